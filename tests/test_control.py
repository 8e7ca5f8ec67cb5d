"""The supervisor's end of the control plane, and what is told of a run, without a cluster."""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import json
import os
import signal
import socket
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from cli_harness import cut
from conftest import wait_until
from upstream import FACTS, RING, told

from mpsnap.core.codec import Codec
from mpsnap.core.errors import ClusterError, InputError, MpsnapError, SnapshotError
from mpsnap.core.events import (
    ClusterStopped,
    CommandLost,
    Progress,
    Replied,
    SnapshotAbandoned,
    SnapshotCompleted,
    SnapshotInitiated,
    StateTold,
)
from mpsnap.core.jsonform import to_json
from mpsnap.core.part import pack, unpack
from mpsnap.core.protocol import SnapshotId
from mpsnap.runtime.process import STACK_FILE
from mpsnap.runtime.pump import Pump
from mpsnap.server import child, control, link, stacks
from mpsnap.server.brief import SUMMARY, brief, summary
from mpsnap.server.child import Child
from mpsnap.server.control import Control
from mpsnap.server.digests import KEPT, REMEMBERED, Digests, Histogram
from mpsnap.server.link import Link, Splitter, frame
from mpsnap.server.looking import Snapshots
from mpsnap.server.picture import Picture
from mpsnap.server.rundir import RunDir
from mpsnap.views.document import diff_document, snapshot_document

# --- The link. ---


def test_notes_arrive_however_they_are_cut() -> None:
    notes = [("a", 1, None), ("b", {"x": [1, 2.5, b"\x00" * 100]}), ("c", "\ud800", -(1 << 63), (1 << 64) - 1)]
    data = b"".join(map(frame, notes))
    expected = [("a", 1, None), ("b", {"x": (1, 2.5, b"\x00" * 100)}), notes[2]]
    for size in (1, 3, 7, len(data)):
        splitter = Splitter()
        found = [note for at in range(0, len(data), size) for note in splitter.feed(data[at : at + size])]
        assert found == expected


@pytest.fixture
def ends() -> Iterator[tuple[Link, socket.socket]]:
    ours, theirs = socket.socketpair()
    made = Link(ours)
    yield made, theirs
    made.close()
    theirs.close()


def test_what_has_no_form_leaves_nothing_half_written(ends: tuple[Link, socket.socket]) -> None:
    made, theirs = ends
    deep: Any = ()
    for _ in range(2000):
        deep = (deep,)
    for odd in (1 << 64, deep, object()):
        with pytest.raises((OverflowError, ValueError, TypeError)):
            made.post(("odd", odd))
    made.post(("even",))
    assert Splitter().feed(theirs.recv(1000)) == [("even",)]


def test_whoever_stops_reading_is_given_up_also_if_the_notes_are_small(
    ends: tuple[Link, socket.socket], monkeypatch: pytest.MonkeyPatch
) -> None:
    made, _theirs = ends
    monkeypatch.setattr(link, "MOST_WAITING_BYTES", 1_000_000)
    count = 0
    with pytest.raises(ConnectionError, match="bytes wait to be read"):  # noqa: PT012 - the last of many
        while True:
            made.post(("changed",))
            count += 1
            assert count < 20_000, "what holds a note takes more memory than the note"
    assert made.waits


def test_all_that_waits_is_written_before_the_end(ends: tuple[Link, socket.socket]) -> None:
    made, _theirs = ends
    made.post(("large", b"x" * 1_000_000))
    assert made.waits
    assert made.waiting_bytes > 500_000
    with pytest.raises(TimeoutError):
        made.end(("end",), 0.01)


@pytest.mark.parametrize(
    "garbage",
    [
        b"\x00\x00\x00\x01\x01",
        b"\x00\x00\x00\x01\x90",
        b"\x00\x00\x00\x01\xc1",
        b"\x00\x00\x00\x02\xa5x",
        b"\x00\x00\x00\x03\x81\x80\x01",
    ],
)
def test_garbage_is_the_end_of_a_link(ends: tuple[Link, socket.socket], garbage: bytes) -> None:
    made, theirs = ends
    theirs.sendall(garbage)
    with pytest.raises(ConnectionError, match="no note"):
        made.read()
    theirs.close()
    with pytest.raises(ConnectionError):
        made.read()


# --- The control process, from the supervisor's side. ---

#: In place of the control process: says what it heard first, asks three things, and does as it is told.
CHILD = """
import json, os, signal, socket, sys, time
sys.path[:] = json.loads(sys.argv[1])["path"]
from mpsnap.server.link import Splitter, frame
given = json.loads(sys.argv[1])
link = socket.socket(fileno=given["link"])
splitter = Splitter()
def hear():
    while True:
        for note in splitter.feed(link.recv(65536)):
            yield note
notes = hear()
kind, facts = next(notes)
for k in range(3):
    link.sendall(frame((facts["first"] + k, "ask", {"k": k, "pid": os.getpid()})))
for kind, *content in notes:
    if kind == "die":
        os._exit(1)
    if kind == "babble":
        link.sendall(frame(("status", {})))
    if kind == "end":
        os._exit(0)
"""


class Parent:
    """Hold a control process as a supervisor does."""

    def __init__(self) -> None:
        self.pump = Pump()
        self.pump.open()
        self.asked: list[tuple[int, int, int]] = []
        self.said: list[str] = []
        self.lost = 0
        self.folder = RunDir("one")
        self.child = Child(
            self.pump, self.folder, None, hello=lambda: {}, attend=self.attend, lost=self._lost, tell=self.said.append
        )

    def attend(self, number: int, do: str, args: Mapping[str, int]) -> None:
        self.asked.append((number, args["k"], args["pid"]))

    def _lost(self) -> None:
        self.lost += 1

    def until(self, condition: Callable[[], object]) -> None:
        deadline = time.monotonic() + 10
        while not condition():
            assert time.monotonic() < deadline
            self.pump.wait(0.1)

    def close(self) -> None:
        self.child.close("end", None)
        self.pump.close()


@pytest.fixture
def parent(runs: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Parent]:
    monkeypatch.setattr(child, "_PROGRAM", CHILD)
    held = Parent()
    yield held
    held.close()
    assert not os.path.exists(held.folder.path)


def test_a_control_process_is_replaced_a_few_times_and_then_given_up(parent: Parent) -> None:
    parent.child.start()
    for life in range(child.MOST_DEATHS + 1):
        parent.until(lambda life=life: len(parent.asked) == 3 * (life + 1))  # type: ignore[misc]
        assert [number for number, _, _ in parent.asked[-3:]] == [life * child.REQUESTS_OF_ONE + k for k in (1, 2, 3)]
        assert parent.lost == life
        parent.child.post("die")
        parent.until(lambda life=life: parent.lost == life + 1)  # type: ignore[misc]
    assert len({pid for _, _, pid in parent.asked}) == child.MOST_DEATHS + 1
    assert parent.said[-1] == "the control process has died 4 times; the run goes on without it"
    assert not os.path.exists(parent.folder.path)
    # From now on there is nobody to tell, and nothing to give back; in a forked child neither.
    parent.child.post("whatever", 1 << 100)
    parent.child.forget()
    # Others may use its name.
    RunDir("one").close()


def test_what_a_dead_control_process_has_asked_is_left_aside(parent: Parent, monkeypatch: pytest.MonkeyPatch) -> None:
    """Three requests arrive together; to answer the first, it is found dead, and the next one started."""

    def attend(number: int, do: str, args: Mapping[str, int]) -> None:
        parent.attend(number, do, args)
        if parent.lost == 0:
            monkeypatch.setattr(first, "flush", broken)
            parent.child.post("answer", number, {})

    def broken() -> None:
        raise ConnectionError

    monkeypatch.setattr(parent.child, "_attend", attend)
    parent.child.start()
    first = parent.child._link
    three = len(b"".join(frame((k, "ask", {"k": k, "pid": 1 << 20})) for k in range(3)))
    wait_until(lambda: _arrived(first) >= three - 12, "all three")
    parent.until(lambda: len(parent.asked) >= 4)
    assert [k for _, k, _ in parent.asked[:2]] == [0, 0], "the other two are nobody's any more"
    assert parent.asked[1][0] == child.REQUESTS_OF_ONE + 1


def _arrived(made: Link) -> int:
    with contextlib.suppress(BlockingIOError):
        return len(made._socket.recv(1 << 16, socket.MSG_PEEK))
    return 0


def test_a_control_process_that_asks_for_what_is_no_request_is_replaced(parent: Parent) -> None:
    parent.child.start()
    parent.until(lambda: len(parent.asked) == 3)
    parent.child.post("babble")
    parent.until(lambda: len(parent.asked) == 6)
    assert parent.lost == 1


def test_a_control_process_that_does_not_end_is_killed_in_time(parent: Parent, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(child, "END_SECONDS", 0.3)
    parent.child.start()
    parent.until(lambda: parent.asked)
    pid = parent.asked[0][2]
    os.kill(pid, signal.SIGSTOP)
    began = time.monotonic()
    parent.child.close("end", None)
    assert 0.3 <= time.monotonic() - began < 3.0
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)


# --- What others may have done, and what they are told. ---


class Cluster:
    """Stand in for a supervisor: note what is asked of it."""

    def __init__(self) -> None:
        self.pump_with = Pump()
        self.topology = RING
        self.state = "running"
        self.error: MpsnapError | None = None
        self.incarnation, self.window = 0, 4096
        self.paused: set[str] = set()
        self.done: list[tuple[Any, ...]] = []
        self.inspected = 0

    def status(self) -> dict[str, Any]:
        found = told()
        return {key: found[key] for key in ("state", "nodes", "channels", "snapshots")}

    def inspect(self) -> None:
        self.inspected += 1

    def trigger(self, nodes: tuple[str, ...]) -> SnapshotId:
        self.done.append(("trigger", *nodes))
        return SnapshotId(0, "N1", 2 * len(self.done) + 1)

    def ask_state(self, node: str) -> int:
        self.done.append(("state", node))
        return len(self.done)

    def command(self, node: str, command: object) -> int:
        self.done.append(("command", node, command))
        return len(self.done)

    def pause(self, nodes: tuple[str, ...]) -> None:
        if self.state != "running":
            raise ClusterError(f"the cluster is {self.state}")
        self.paused.update(nodes)

    def finish(self, node: str) -> None:
        raise ZeroDivisionError("a flaw")


class Told:
    """Stand in for the control process: hold what it is told."""

    def __init__(self, *args: object, attend: Callable[..., None], lost: Callable[[], None], **_: object) -> None:
        self.ask, self.lost = attend, lost
        self.notes: list[tuple[Any, ...]] = []
        self.waiting_bytes = 0

    def post(self, *note: Any) -> None:
        frame(note)  # which raises what the link would
        self.notes.append(note)

    def close(self, *note: Any) -> None:
        self.notes.append(note)

    def answers(self) -> list[tuple[Any, ...]]:
        """Return what was told since the last look; of refusals the words alone."""
        found = [(kind, *rest) for kind, *rest in self.notes]
        self.notes.clear()
        return [(*note[:2], note[2]["what"]) if note[0] == "refusal" else note for note in found]


class Steered(Control):
    """A control whose control process is none."""

    told: Told
    said: list[str]


@pytest.fixture
def steered(runs: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[Steered, Told, Cluster]]:
    monkeypatch.setattr(control, "Child", Told)
    cluster: Any = Cluster()
    made = Steered(cluster, {"store": None}, name="one", port=None, stop=lambda: None, tell=lambda text: None)
    made.said = []
    made._tell = made.said.append
    made.told = made._child  # type: ignore[assignment]
    yield made, made.told, cluster
    made._folder.close()


ID = SnapshotId(0, "N1", 1)


def completed(number: int = 0, in_flight: int = 0, snapshot_id: SnapshotId | None = None) -> SnapshotCompleted:
    snapshot = cut(
        RING, {key: {"n": number} for key in RING.nodes}, {("N1", "N2"): list(range(in_flight))}, number=number
    )
    if snapshot_id is not None:
        snapshot.id = snapshot_id
    return SnapshotCompleted(snapshot, dict.fromkeys(RING.nodes, Progress(0.1, 0.2, ())))


def test_nothing_that_is_asked_raises_where_it_would_end_the_run(steered: tuple[Steered, Told, Cluster]) -> None:
    made, told_, cluster = steered
    for do, args in [
        ("nonsense", {}),
        ("pause", {}),
        ("pause", {"nodes": (), "more": 1}),
        ("content", {"number": "x"}),
        ("command", {"node": "N1", "command": b"no codec's"}),
        ("stop", {"node": "N1"}),
    ]:
        told_.ask(1, do, args)
    words = [what for _, _, what in told_.answers()]
    assert words[:3] == ["KeyError in the supervisor", "TypeError in the supervisor", "TypeError in the supervisor"]
    assert "not held any more" in words[3]
    assert words[5] == "ZeroDivisionError in the supervisor"
    assert "an error in the control plane, the run goes on: ZeroDivisionError: a flaw" in made.said
    cluster.state = "recovering"
    told_.ask(2, "pause", {"nodes": ()})
    assert told_.answers() == [("refusal", 2, "the cluster is recovering")]


def test_no_event_raises_where_it_would_end_the_run(steered: tuple[Steered, Told, Cluster]) -> None:
    made, told_, _ = steered
    broken: Any = SnapshotCompleted(None, {})  # type: ignore[arg-type]
    made.attend(broken)
    assert made.said[0].startswith("an error in the control plane, the run goes on: AttributeError")
    made.attend(completed())
    assert told_.answers() == [("changed",)]


@pytest.mark.parametrize("reply", [1 << 100, {"deep": [[[[(1, {2})]]]]}, float("nan"), "\ud800", b"\xff"])
def test_any_reply_can_be_told(steered: tuple[Steered, Told, Cluster], reply: object) -> None:
    made, told_, cluster = steered
    told_.ask(7, "command", {"node": "N1", "command": Codec().encode([1, (2,)])})
    assert cluster.done == [("command", "N1", [1, (2,)])]
    made.attend(Replied(1, "N1", reply))
    ((kind, number, answer),) = told_.answers()
    assert (kind, number, answer["node"]) == ("answer", 7, "N1")
    assert json.loads(answer["reply"]) == to_json(reply)
    made.attend(Replied(1, "N1", reply))
    assert told_.answers() == []


def test_who_waits_for_a_snapshot_or_an_answer_is_told_how_it_ends(steered: tuple[Steered, Told, Cluster]) -> None:
    made, told_, _ = steered
    told_.ask(1, "snapshot", {"nodes": (), "wait": False})
    told_.ask(2, "snapshot", {"nodes": ("N2",), "wait": True})
    first, second = SnapshotId(0, "N1", 3), SnapshotId(0, "N1", 5)
    assert made.asked_for(first)
    assert told_.answers() == []
    made.attend(SnapshotInitiated(0, first, ("N1",)))
    made.attend(SnapshotInitiated(1, second, ("N1",)))
    kinds = told_.answers()
    assert [kind for kind, *_ in kinds] == ["changed", "answer"], "that there is something new is told once"
    assert kinds[1][2]["digest"]["phase"] == "recording"
    made.attend(SnapshotAbandoned(0, first, SnapshotError("no")))
    assert not made.asked_for(first)
    made.attend(completed(1, snapshot_id=second))
    ((kind, number, answer),) = told_.answers()
    assert (kind, number) == ("answer", 2)
    assert answer["digest"]["number"] == 1
    assert [node for node, *_ in answer["parts"]] == ["N1", "N2", "N3"]
    told_.ask(3, "news", {})
    ((_, _, digests),) = told_.answers()
    assert [digest["phase"] for digest in digests] == ["abandoned", "completed"]
    # And what waits when the run ends.
    for number, (do, args) in enumerate(
        [
            ("snapshot", {"nodes": (), "wait": False}),
            ("snapshot", {"nodes": (), "wait": True}),
            ("state", {"node": "N1"}),
            ("state", {"node": "N2"}),
        ]
    ):
        told_.ask(number, do, args)
    made.attend(StateTold(5, "N1", None, SnapshotError("cannot be captured")))
    made.attend(CommandLost(6, "N2"))
    assert told_.answers() == [("refusal", 2, "cannot be captured"), ("refusal", 3, "N2 died before it answered")]
    made.attend(ClusterStopped(None))
    assert told_.answers() == [("refusal", 0, "the cluster has stopped"), ("refusal", 1, "the cluster has stopped")]


def test_what_is_asked_for_and_left_behind_is_bounded(
    steered: tuple[Steered, Told, Cluster], monkeypatch: pytest.MonkeyPatch
) -> None:
    made, told_, _cluster = steered
    for number in range(control.MOST_OPEN + 1):
        told_.ask(number, "snapshot", {"nodes": (), "wait": False})
    assert told_.answers() == [("refusal", 16, "16 snapshots are asked for and not complete")]
    made.attend(SnapshotAbandoned(0, SnapshotId(0, "N1", 3), SnapshotError("no")))
    told_.answers()
    told_.ask(1, "snapshot", {"nodes": (), "wait": False})
    assert told_.answers() == []
    for number in range(control.MOST_QUESTIONS + 1):
        told_.ask(number, "state", {"node": "N1"})
    assert told_.answers() == [("refusal", 256, "256 questions wait for an answer of a node")]
    # Of snapshots that nobody asks about, the newest are remembered.
    for n in range(1000):
        made.attend(SnapshotInitiated(n, SnapshotId(1, "N2", n), ("N2",)))
    told_.answers()
    told_.ask(9, "news", {})
    ((_, _, digests),) = told_.answers()
    assert [digest["number"] for digest in digests] == list(range(950, 1000))
    # With the process that has asked, its questions are gone, and the next one is told anew.
    told_.lost()
    told_.ask(1, "state", {"node": "N1"})
    made.attend(completed())
    assert told_.answers() == [("changed",)]


def test_what_is_too_large_to_be_told_is_refused_and_kills_nobody(
    steered: tuple[Steered, Told, Cluster], monkeypatch: pytest.MonkeyPatch
) -> None:
    made, told_, _ = steered
    monkeypatch.setattr(control, "LARGE_BYTES", 100)
    monkeypatch.setattr(control, "MOST_ANSWER_BYTES", 1000)
    large = b"x" * 500
    made.attend(completed(in_flight=500))
    told_.answers()
    told_.ask(1, "content", {"number": 0})
    told_.waiting_bytes = control.CROWDED_BYTES + 1
    for state in (b"small", large):
        told_.ask(2, "state", {"node": "N1"})
        made.attend(StateTold(len(made._supervisor.done), "N1", state, None))  # type: ignore[attr-defined]
    first, second, third = told_.answers()
    assert "more than is shown at once" in first[2]
    assert second == ("answer", 2, {"node": "N1", "state": b"small"})
    assert third[2] == "too much is on its way to be shown already"


# --- Digests. ---


def test_an_id_that_fell_out_comes_back_and_nothing_piles_up() -> None:
    digests = Digests()
    for n in range(REMEMBERED + 1):
        digests.attend(SnapshotInitiated(n, SnapshotId(0, "N1", n), ("N1",)))
    assert digests.digest(SnapshotId(0, "N1", 0)) is None
    assert digests.digest_of_number(0) is None
    event = completed(0, snapshot_id=SnapshotId(0, "N1", 0))
    digests.attend(event)
    found = digests.digest(SnapshotId(0, "N1", 0))
    assert found == digests.digest_of_number(0)
    assert found is not None
    assert (found["phase"], found["kept"]) == ("completed", True)
    # A store that has no room for weeks.
    for n in range(1000, 2000):
        digests.attend(SnapshotAbandoned(None, SnapshotId(0, "N2", n), SnapshotError("no room")))
    assert len(digests.documents([])) == REMEMBERED
    assert digests.counts()["outcomes"] == {"completed": 1, "abandoned": 1000}
    assert digests.attend(ClusterStopped(None)) is None


def test_what_is_kept_is_bounded_by_messages_too(monkeypatch: pytest.MonkeyPatch) -> None:
    digests = Digests()
    for n in range(KEPT + 5):
        digests.attend(completed(n))
    kept = [digest["number"] for digest in digests.documents([]) if digest["kept"]]
    assert kept == list(range(5, KEPT + 5))
    with pytest.raises(InputError, match="snapshot 4 is not held any more"):
        digests.content(4)
    monkeypatch.setattr("mpsnap.server.digests.KEPT_BYTES", 5000)
    for n in range(100, 103):
        event = completed(n, in_flight=3000)
        parts = {node: unpack(pack(part)) for node, part in event.snapshot._locals.items()}
        event.snapshot._locals = parts
        digests.attend(event)
        assert [digest["number"] for digest in digests.documents([]) if digest["kept"]] == [n]
    with pytest.raises(InputError, match="a snapshot first"):
        Digests().content(0)


def test_a_digest_names_what_an_open_snapshot_waits_for() -> None:
    digests = Digests()
    digests.attend(SnapshotInitiated(3, ID, ("N1",)))
    progress: dict[str, list[Any]] = {"N1": [0.1, 0.2, ()], "N2": [0.1, None, ("N1", "N3")], "N3": [None, None, None]}
    (digest,) = digests.documents([{"id": str(ID), "progress": progress}])
    assert digest["waiting"] == {"nodes": ["N2", "N3"], "channels": [["N1", "N2"], ["N3", "N2"]]}
    assert digest["nodes"]["N3"] == {"recorded_s": None, "closed_s": None, "awaits": None}
    assert digest["duration_s"] >= 0
    told_ = {node: Progress(*each) for node, each in progress.items()}
    digests.attend(SnapshotAbandoned(3, ID, SnapshotError("too late", where="N3"), told_))
    (digest,) = digests.documents([])
    assert digest["waiting"] == {"nodes": ["N2", "N3"], "channels": [["N1", "N2"], ["N3", "N2"]]}
    assert digest["error"] == {"what": "too late", "where": "N3", "try": None}


def test_a_histogram_counts_up_to_and_with_each_bound() -> None:
    histogram = Histogram((1.0, 2.0))
    for value in (0.5, 1.0, 1.5, 2.0, 9.0):
        histogram.add(value)
    assert histogram.document() == {"buckets": [[1.0, 2], [2.0, 4]], "count": 5, "sum": 14.0}


# --- The status document. ---


def picture() -> Picture:
    return Picture({**FACTS, "topology": "ring:3"}, RING.nodes, [(c.src, c.dst) for c in RING.channels])


def test_a_status_adds_up() -> None:
    document = picture().document(told(41), None)
    for node in document["nodes"]:
        sent = [each for each in document["channels"] if each["src"] == node["name"]]
        handled = [each for each in document["channels"] if each["dst"] == node["name"]]
        assert (node["sent"], node["handled"], node["backlog"]) == (42, 41, 1)
        assert sum(each["sent"] for each in sent) == node["sent"]
        assert sum(each["in_flight"] for each in handled) == node["backlog"]
        assert (node["pid"], node["handled_per_s"]) == (os.getpid(), None)
    assert {name: document["totals"][name] for name in ("sent", "handled", "in_flight")} == {
        **{"sent": 126, "handled": 123, "in_flight": 3}
    }


def test_rates_are_of_the_time_between_and_nothing_is_handled_backwards(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 100.0
    monkeypatch.setattr("mpsnap.server.picture.time.monotonic", lambda: now)
    made = picture()
    assert made.document(told(0), None)["totals"]["handled_per_s"] is None
    now += 2.0
    assert made.document(told(10), None)["totals"]["handled_per_s"] == 15.0
    now += 0.1
    assert made.document(told(1000), None)["totals"]["handled_per_s"] == 15.0, "too soon for a new one"
    now += 1.9
    # A recovery took the counts back.
    assert made.document(told(5), None)["totals"]["handled_per_s"] == 0.0


@pytest.mark.parametrize(
    ("node", "channel", "state", "status"),
    [
        ({"phase": "starting"}, (0, 0), "starting", "starting"),
        ({"phase": "setup"}, (0, 0), "recovering", "starting"),
        ({"phase": "on_message"}, (5, 5), "running", "running"),
        ({"phase": "on_message", "paused": True}, (5, 5), "running", "paused"),
        ({"phase": "waiting", "paused": True}, (5, 0), "running", "paused"),
        ({"phase": "waiting"}, (5, 5), "running", "waiting"),
        ({"phase": "waiting"}, (5, 4), "running", "running"),
        ({"phase": "waiting"}, (4096, 0), "running", "blocked"),
        (None, (0, 0), "starting", "starting"),
        (None, (0, 0), "recovering", "dead"),
    ],
)
def test_what_a_node_is_doing_in_a_word(
    node: dict[str, Any] | None, channel: tuple[int, int], state: str, status: str
) -> None:
    plain = {"pid": os.getpid(), "turn_s": None, "busy_s": 0.0, "paused": False}
    counts = {str(each): {"sent": channel[0], "taken": channel[1]} for each in RING.channels}
    nodes = {} if node is None else {key: {**plain, **node} for key in RING.nodes}
    document = picture().document(told(state=state, nodes=nodes, channels=counts), None)
    assert {each["status"] for each in document["nodes"]} == {status}


def test_what_is_kept_is_what_the_store_still_has() -> None:
    digests = [{"number": n, "phase": "completed", "kept": True} for n in range(3)]
    document = picture().document(told(digests=digests), frozenset({1}))
    assert [digest["kept"] for digest in document["snapshots"]] == [False, True, False]
    assert {node["last_snapshot"] for node in document["nodes"]} == {2}


# --- Looking into snapshots; what is cut. ---


def test_a_snapshot_is_looked_into_whole_and_cut() -> None:
    event = completed(4, in_flight=60)
    digests = Digests()
    digests.attend(event)
    held = Snapshots(RING, None)
    assert held.kept() is None
    content = digests.content(4)
    whole = held.document(4, False, content)
    assert whole == snapshot_document(event.snapshot)
    short_ = held.document(4, True, content)
    channels = {(each["src"], each["dst"]): each["messages"] for each in short_["channels"]}
    assert channels["N1", "N2"] == [{"$more": 60}]
    assert {key: value for key, value in short_.items() if key != "channels"} == {
        key: value for key, value in whole.items() if key != "channels"
    }
    newer = completed(5)
    digests.attend(newer)
    found = held.diff((4, 5), False, (content, digests.content(5)))
    assert found == diff_document(event.snapshot.diff(newer.snapshot))
    assert found["differ"]


def test_of_a_store_that_is_gone_nothing_is_kept(tmp_path: Path) -> None:
    assert Snapshots(RING, str(tmp_path / "gone")).kept() == frozenset()


def test_cuts_say_how_much_they_leave_out() -> None:
    deep: Any = "x"
    for _ in range(12):
        deep = [deep]
    assert json.dumps(brief(deep)) == "[" * 9 + '{"$more": 1}' + "]" * 9
    assert brief({str(k): k for k in range(70)})["$more"] == 10
    assert brief({"a": [1, "b", None, True]}) == {"a": [1, "b", None, True]}
    # Two keys that differ behind the cut alone.
    long_ = "k" * 500
    assert sorted(brief({long_ + "1": 1, long_ + "2": 2}).values()) == [1, 2]


@pytest.mark.parametrize(
    ("form", "words"),
    [
        ({"tokens": 7, "seen": [1, 2]}, "tokens=7, seen=[1, 2]"),
        ({"$tuple": [1, "x"]}, '{"$tuple": [1, "x"]}'),
        (None, "null"),
        ({}, "{}"),
        ({"text": "\x1b[2J" * 100}, None),
    ],
)
def test_a_state_is_told_in_a_few_words(form: Any, words: str | None) -> None:
    said = summary(form)
    assert len(said) <= SUMMARY
    assert words is None or said == words


# --- Stacks. ---


def test_the_file_of_stacks_is_found_and_emptied_by_whoever_reads_it() -> None:
    fd = os.memfd_create(STACK_FILE, os.MFD_CLOEXEC)
    try:
        fcntl.fcntl(fd, fcntl.F_SETFL, os.O_APPEND)
        path = stacks.find(os.getpid())
        assert path is not None
        for _ in range(3):
            os.write(fd, b"Stack (most recent call first):\n")
            assert asyncio.run(stacks.read(path)) == "Stack (most recent call first):\n"
            stacks.clear(path)
            assert os.fstat(fd).st_size == 0, "or a node would keep all that it ever wrote"
    finally:
        os.close(fd)
    assert stacks.find(os.getpid()) is None
    assert asyncio.run(stacks.read(path)) is None
    stacks.clear(path)
