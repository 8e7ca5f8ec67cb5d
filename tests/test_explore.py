"""The explorer: every schedule is tried, every seeded bug is found, and what was found can be played again."""

from __future__ import annotations

import inspect
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from mpsnap import Context, GlobalSnapshot, Node, parse_topology
from mpsnap.apps.tokens import conserved
from mpsnap.cli.main import main
from mpsnap.core import nodecore, protocol
from mpsnap.core.errors import ConsistencyError, InvariantError, NodeError, SnapshotError
from mpsnap.core.history import parse_log
from mpsnap.core.program import NodeSpec, assign
from mpsnap.core.protocol import SnapshotId
from mpsnap.core.snapshot import Invariant
from mpsnap.simulator.actor import Command, Initiation
from mpsnap.simulator.explorer import Explorer, Findings
from mpsnap.simulator.machine import Machine, State, Step

pytestmark = pytest.mark.slow

SCRIPTED = "mpsnap.apps.tokens:ScriptedTokens"


def machine(
    spec: str, sends: list[tuple[str, str, int]], initiators: list[str], nodes: NodeSpec = SCRIPTED, **options: Any
) -> Machine:
    """Return a machine whose plan has these sends, and then a snapshot at each of these nodes."""
    topology, programs = assign(parse_topology(spec), nodes)
    plan: dict[str, list[Command | Initiation]] = {}
    for src, dst, amount in sends:
        plan.setdefault(src, []).append(Command({"send": dst, "amount": amount}, f"send {src} {dst} {amount}"))
    for number, node in enumerate(initiators):
        nth = initiators[:number].count(node)
        plan.setdefault(node, []).append(Initiation(SnapshotId.triggered(0, node, nth), number))
    return Machine(topology, programs, plan, **options)


SMALL = [
    ("complete:2", [("N1", "N2", 1), ("N2", "N1", 2)], ["N1"]),
    ("complete:2", [("N1", "N2", 1), ("N1", "N2", 2)], ["N2", "N1"]),
    ("ring:3", [("N1", "N2", 1), ("N2", "N3", 2)], ["N1", "N2"]),
    ("complete:3", [("N1", "N2", 1), ("N2", "N3", 2)], ["N3"]),
    ("biring:3", [("N1", "N3", 1)], ["N1", "N2"]),
]


def every_state(world: Machine) -> Iterator[tuple[State, Step, State]]:
    """Walk all states by all steps, with nothing left out."""
    seen, queue = {world.start}, [world.start]
    for state in queue:
        for step in world.enabled(state):
            following = world.after(state, step)
            if following is None:
                continue
            yield state, step, following[0]
            if following[0] not in seen:
                seen.add(following[0])
                queue.append(following[0])


def cut_of(snapshot: GlobalSnapshot) -> tuple[str, ...]:
    states = [f"{name} {node.state}" for name, node in sorted(snapshot.nodes.items())]
    return str(snapshot.id), *states, *(f"{channel} {messages}" for channel, messages in snapshot.channels.items())


@pytest.mark.parametrize("world", SMALL, ids=lambda world: f"{world[0]} {len(world[1])} {len(world[2])}")
def test_what_is_left_out_hides_no_cut(world: Any) -> None:
    """The search leaves out orders that make no difference; a walk that leaves out nothing meets the same cuts."""
    explorer = Explorer(machine(*world), [conserved])
    findings = explorer.exhaust()
    assert (findings.exhausted, findings.verdict) == (True, None)
    whole = machine(*world)
    slow = Explorer(whole, [conserved])
    met: set[tuple[str, ...]] = set()
    for before, _, after in every_state(whole):
        for snapshot_id in slow.completed(before, after):
            met.add(cut_of(slow.merged(snapshot_id, after)))
    assert {cut_of(cut) for cut in explorer.cuts.values()} == met
    assert len(met) > 1


def test_schedules_are_counted() -> None:
    """A marker there and one back: one order."""
    assert Explorer(machine("complete:2", [], ["N1"])).exhaust()[:4] == (4, 3, 1, 3)
    lines = Explorer(machine("line:2", [("N1", "N2", 1)], ["N1"])).exhaust()
    # A message and then a marker: N2 receives the message before the marker leaves, after that, or, as the marker acts
    # when it is seen, after the marker. Only then was it in flight.
    assert (lines.schedules, lines.cuts, lines.in_flight) == (3, 2, 1)


@pytest.mark.parametrize("seed", range(3))
def test_random_schedules_find_what_exhaustive_ones_do_not_contradict(seed: int) -> None:
    world = ("complete:3", [("N1", "N2", 1), ("N2", "N3", 2), ("N3", "N1", 3)], ["N1", "N3"])
    explorer = Explorer(machine(*world), [conserved])
    findings = explorer.walk(60, seed)
    assert (findings.schedules, findings.violation, findings.exhausted) == (60, None, False)
    assert findings.in_flight > 3
    assert Explorer(machine(*world)).walk(60, seed)[:6] == findings[:6]
    assert Explorer(machine(*world)).walk(60, seed + 99)[:6] != findings[:6]


def test_an_exploration_without_messages_in_flight_fails() -> None:
    findings = Explorer(machine("complete:2", [], ["N1"])).exhaust()
    assert findings.violation is None
    assert isinstance(findings.verdict, ConsistencyError)
    assert "shows nothing" in findings.verdict.what


# ------------------------------------------------------------------ seeded bugs


SEEDED = {
    "what comes while a channel records is lost": (
        "                recording.add(src, (payload,))\n",
        "                pass\n",
    ),
    "what waits at the record is lost": (
        "                recording.add(src, *inbox.batches())\n",
        "                pass\n",
    ),
    "what comes behind the marker is recorded": (
        "            if src in recording.open:\n                recording.add(src, (payload,))",
        "            if True:\n                recording.add(src, (payload,))",
    ),
    "the first marker does not close its channel": (
        "        recording.open.discard(closing)\n",
        "",
    ),
    "any marker closes all channels": ("        recording.open.remove(src)\n", "        recording.open.clear()\n"),
    "only the newest snapshot records": (
        "        for recording in self._recordings.values():\n            if src in recording.open:\n"
        "                recording.add(src, (payload,))",
        "        for recording in list(self._recordings.values())[-1:]:\n            if src in recording.open:\n"
        "                recording.add(src, (payload,))",
    ),
    "the state is that of the report": ("snapshot_id, recording.captured,", "snapshot_id, self._capture(),"),
    "the counts are those of the report": (
        "recording.captured, recording.sent, recording.received,",
        "recording.captured, self._all_sent(), self._all_received(),",
    ),
    "a finished snapshot begins anew": (
        "        self._finished.add(snapshot_id)\n        channels: ",
        "        channels: ",
    ),
    "a neighbour gets no marker": (
        "SendMarkers(snapshot_id, recording.sent)",
        "SendMarkers(snapshot_id, dict(list(recording.sent.items())[1:]))",
    ),
    "a marker does not count right": (
        "SendMarkers(snapshot_id, recording.sent)",
        "SendMarkers(snapshot_id, dict.fromkeys(recording.sent, 0))",
    ),
}


def break_protocol(monkeypatch: pytest.MonkeyPatch, old: str, new: str) -> None:
    """Let nodes run a copy of the protocol with one mistake in it."""
    source = inspect.getsource(protocol)
    source = source[source.index("class _Recording:") :]
    assert source.count(old) == 1, "the table is out of date: this must stand there exactly once"
    names = dict(vars(protocol))
    exec(compile(source.replace(old, new), "a broken copy of protocol.py", "exec"), names)
    monkeypatch.setattr(nodecore, "SnapshotProtocol", names["SnapshotProtocol"])


def small(bug: str = "") -> Machine:
    """Return a cluster in which a bug shows: one snapshot begun at two nodes, or two snapshots at once."""
    if bug == "only the newest snapshot records":
        return machine("complete:2", [("N1", "N2", 1), ("N2", "N1", 2)], ["N1", "N1"])
    world = machine("complete:3", [("N1", "N2", 1), ("N2", "N3", 2)], ["N1"])
    both = {**world.plan, "N3": world.plan["N1"][1:]}
    return Machine(world.topology, world.programs, both)


@pytest.mark.parametrize("bug", SEEDED)
def test_a_seeded_bug_is_found_and_its_schedule_is_short(bug: str, monkeypatch: pytest.MonkeyPatch) -> None:
    break_protocol(monkeypatch, *SEEDED[bug])
    findings = Explorer(small(bug)).exhaust()
    assert findings.violation is not None
    assert isinstance(findings.verdict, ConsistencyError)
    assert played(small(bug), findings) == findings.violation.error.what
    for k in range(len(findings.violation.steps)):
        assert without(small(bug), findings, k) != findings.violation.error.what, k


@pytest.mark.parametrize("bug", SEEDED)
def test_a_seeded_bug_is_found_by_random_schedules(bug: str, monkeypatch: pytest.MonkeyPatch) -> None:
    break_protocol(monkeypatch, *SEEDED[bug])
    findings = Explorer(small(bug)).walk(400, seed=5)
    assert findings.violation is not None
    assert played(small(bug), findings) == findings.violation.error.what


def played(world: Machine, findings: Findings) -> str | None:
    """Take the steps again on a new machine and return what does not hold at the end."""
    assert findings.violation is not None
    followed = list(Explorer(world).follow(findings.violation.steps))
    assert [each.error for each in followed[:-1]] == [None] * (len(followed) - 1)
    error = followed[-1].error
    return None if error is None else error.what


def without(world: Machine, findings: Findings, left_out: int) -> str | None:
    """Take the steps but one, as far as they can be taken, and return what does not hold."""
    assert findings.violation is not None
    state, explorer = world.start, Explorer(world)
    taken: list[Step] = []
    for step in [step for k, step in enumerate(findings.violation.steps) if k != left_out]:
        following = world.after(state, step)
        if following is None:
            continue
        taken.append(step)
        error = following[1].error or explorer.broken_by(lambda: taken, state, following[0])
        if error is not None:
            return error.what
        state = following[0]
    return None


@pytest.mark.parametrize("bug", ["only the newest snapshot records", "any other"])
def test_a_protocol_without_bugs_passes_where_they_were_found(bug: str) -> None:
    findings = Explorer(small(bug)).exhaust()
    assert (findings.verdict, findings.exhausted) == (None, True)


# ------------------------------------------------------------------------ apps


class Torn(Node):
    """Begin a snapshot between taking the money out and sending it."""

    def setup(self, ctx: Context, tokens: int = 10) -> None:
        self.tokens = tokens

    def on_command(self, ctx: Context, command: dict[str, Any]) -> None:
        self.tokens -= command["amount"]
        ctx.snapshot()
        ctx.send(command["send"], command["amount"])

    def on_message(self, ctx: Context, sender: str, payload: int) -> None:
        self.tokens += payload


def test_a_snapshot_begun_in_a_hook_is_reachable_and_keeps_all() -> None:
    findings = Explorer(machine("complete:3", [("N1", "N2", 4), ("N2", "N1", 3)], [], Torn), [conserved]).exhaust()
    assert (findings.verdict, findings.exhausted) == (None, True)


class Purse(Torn):
    """Send what can change, and change it."""

    def on_command(self, ctx: Context, command: dict[str, Any]) -> None:
        self.tokens -= command["amount"]
        for purse in ([command["amount"]], {"amount": 0}):
            ctx.send(command["send"], purse)
            purse.clear()

    def on_message(self, ctx: Context, sender: str, payload: Any) -> None:
        self.tokens += payload.pop("amount") if isinstance(payload, dict) else payload.pop()


def amounts_are_conserved(snapshot: GlobalSnapshot) -> bool:
    moving = [purse[0] for purses in snapshot.channels.values() for purse in purses if isinstance(purse, list)]
    held = [node.state["tokens"] for node in snapshot.nodes.values()]
    return bool(sum(held) + sum(moving) == 20)


def test_payloads_that_can_change_are_explored_like_others() -> None:
    """One that is in flight and recorded stands in two places of one state."""
    world = machine("complete:2", [("N1", "N2", 4), ("N2", "N1", 3)], ["N1", "N2"], Purse)
    findings = Explorer(world, [amounts_are_conserved]).exhaust()
    assert (findings.verdict, findings.exhausted) == (None, True)


def test_a_record_inside_a_hook_is_found_without_any_invariant(monkeypatch: pytest.MonkeyPatch) -> None:
    """No count shows it; that the recorded state cannot be reached does."""

    def at_once(core: nodecore.NodeCore) -> SnapshotId:
        snapshot_id = SnapshotId.spontaneous(0, core.name, core._spontaneous)
        core._spontaneous += 1
        hook = core._hook
        core.initiate(snapshot_id)
        core._hook = hook
        return snapshot_id

    monkeypatch.setattr(nodecore.NodeCore, "wish_snapshot", at_once)
    findings = Explorer(machine("complete:2", [("N1", "N2", 4)], [], Torn)).exhaust()
    assert findings.violation is not None
    assert "cannot be reached" in findings.violation.error.what


class Letters(Node):
    """Let N3 collect letters."""

    def setup(self, ctx: Context) -> None:
        self.letters = ""
        if ctx.name != "N3":
            ctx.send("N3", {"N1": "a", "N2": "b"}[ctx.name])

    def on_message(self, ctx: Context, sender: str, payload: str) -> None:
        self.letters += payload


class Order(Letters):
    """Fail if a letter overtakes another, which two senders never promised."""

    def on_message(self, ctx: Context, sender: str, payload: str) -> None:
        super().on_message(ctx, sender, payload)
        if self.letters == "ba":
            raise RuntimeError("b came before a")


def test_a_hook_that_raises_in_some_schedule_is_found() -> None:
    findings = Explorer(machine("complete:3", [], ["N1"], Order)).exhaust()
    assert isinstance(findings.verdict, NodeError)
    assert findings.verdict.node == "N3"
    assert findings.violation is not None
    assert [str(step) for step in findings.violation.steps] == ["take N2->N3", "take N1->N3"]


def never_a_first(snapshot: GlobalSnapshot) -> bool:
    return bool(snapshot.nodes["N3"].state["letters"] != "a")


@pytest.mark.parametrize("way", ["exhaust", "walk"])
def test_a_false_invariant_is_found_and_its_schedule_is_short(way: str) -> None:
    invariants: list[Invariant] = [never_a_first]
    explorer = Explorer(machine("complete:3", [], ["N3"], Letters), invariants)
    findings = explorer.exhaust() if way == "exhaust" else explorer.walk(300, 1)
    assert isinstance(findings.verdict, InvariantError)
    assert findings.violation is not None
    # One message, a marker to each of the others, one back from each on each channel.
    assert len(findings.violation.steps) == 8


class Clock(Node):
    """Send at a timer and when idle."""

    def setup(self, ctx: Context) -> None:
        self.rung = 0
        ctx.every(1, "ring")

    def ring(self, ctx: Context) -> None:
        self.rung += 1
        ctx.send(ctx.outbound[0], self.rung)

    def on_idle(self, ctx: Context) -> bool:
        self.rung += 10
        return True


def test_timers_and_idle_calls_come_at_any_moment_and_are_bounded() -> None:
    explorer = Explorer(machine("complete:2", [], ["N1"], Clock, sources=1))
    findings = explorer.exhaust()
    assert (findings.verdict, findings.exhausted) == (None, True)
    rung = {cut.nodes["N1"].state["rung"] for cut in explorer.cuts.values()}
    assert rung == {0, 1, 10}


class Moody(Node):
    """Do something else every time."""

    calls = 0

    def setup(self, ctx: Context) -> None:
        self.mood = 0
        if ctx.name == "N1":
            ctx.send("N2", 1)

    def on_message(self, ctx: Context, sender: str, payload: int) -> None:
        Moody.calls += 1
        self.mood = Moody.calls


@pytest.mark.parametrize("way", ["exhaust", "walk"])
def test_a_program_that_cannot_be_repeated_is_no_violation_but_told(way: str) -> None:
    explorer = Explorer(machine("complete:2", [], ["N1", "N2"], Moody))
    findings = explorer.exhaust() if way == "exhaust" else explorer.walk(50, 1)
    assert findings.violation is None
    assert isinstance(findings.verdict, SnapshotError)
    assert "N2 to the same state again (different: mood)" in findings.verdict.what


def test_a_command_that_is_never_carried_out_is_told() -> None:
    findings = Explorer(machine("complete:2", [("N1", "N2", 11)], ["N1"])).exhaust()
    assert isinstance(findings.verdict, SnapshotError)
    assert "send N1 N2 11 is never carried out" in findings.verdict.what


# ----------------------------------------------------------------- command line


def explore(*arguments: str, status: int = 0) -> None:
    assert main(["explore", *arguments]) == status


def test_the_document(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    events = tmp_path / "two.events"
    events.write_text("send N1 N2 3\ntick 5\nsnapshot N2\nsend N2 N1 1\n")
    conserving = ("--invariant", "mpsnap.apps.tokens:conserved")
    explore("--topology", "complete:2", "--events", str(events), *conserving, "--format", "json", "--quiet")
    document = json.loads(capsys.readouterr().out)
    assert document["violation"] is None
    assert document["error"] is None
    told = document["exploration"]
    assert told["exhausted"] is True
    assert (told["nodes"], told["channels"], told["cuts"] >= told["cuts_in_flight"] > 0) == (2, 2, True)
    explore("--topology", "complete:2", "--events", str(events))
    assert "every schedule tried" in capsys.readouterr().out


def test_a_violation_is_told_saved_and_played_again(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    app, saved, log = tmp_path / "order.py", tmp_path / "found.schedule", tmp_path / "found.log"
    app.write_text(
        "from mpsnap import Node\n\n"
        + inspect.getsource(Letters).replace(": Context", "")
        + "\n\ndef fine(snapshot):\n"
        "    return snapshot.nodes['N3'].state['letters'] != 'a'\n"
    )
    invariant = ("--invariant", f"{app}:fine")
    explore(f"{app}:Letters", "--topology", "complete:3", *invariant, "--snapshots", "1", "--initiator", "N3",
            "--save", str(saved), status=1)  # fmt: skip
    said = capsys.readouterr()
    assert "N3  receives message 1 from N1: 'a'" in said.out
    assert "N3  begins snapshot 0-N3-1; records {'letters': 'a'}; sends markers to N1, N2" in said.out
    assert "fine is false" in said.err
    assert main(["simulate", "--schedule", str(saved), "--log", str(log), "--format", "json"]) == 1
    played = json.loads(capsys.readouterr().out)
    assert "fine is false" in played["error"]["what"]
    history = parse_log(log.read_bytes().splitlines(keepends=True), "log")
    assert [entry.event for entry in history.entries if entry.node is None] == ["initiated", "completed", "violated"]
    assert {"received", "recorded", "marker sent", "marker received", "closed", "reported"} <= {
        entry.event for entry in history.entries
    }


def test_a_schedule_says_itself_what_runs(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    path = tmp_path / "x.schedule"
    path.write_text("{}")
    assert main(["simulate", "--schedule", str(path)]) == 2
    assert "not a schedule" in capsys.readouterr().err
    assert main(["simulate", "bank", "--schedule", str(path)]) == 2
    assert "APP does not go with --schedule" in capsys.readouterr().err
    assert main(["simulate", "--ticks", "3", "--schedule", str(path)]) == 2
    assert "--ticks does not go with --schedule" in capsys.readouterr().err


def test_a_bound_that_is_met_leaves_the_question_open(capsys: pytest.CaptureFixture[str]) -> None:
    explore("--max-states", "300", status=3)
    said = capsys.readouterr()
    assert "not every schedule was tried" in said.err
    assert "consistent and reachable" in said.out


def test_random_schedules_of_a_program_that_sends_by_itself(capsys: pytest.CaptureFixture[str]) -> None:
    conserving = ("--invariant", "mpsnap.apps.tokens:conserved")
    explore("--topology", "complete:4", "--snapshots", "3", "--random", "20", *conserving, "--seed", "4")
    assert "20 whole schedules tried" in capsys.readouterr().out


def test_options_that_do_not_go_together_are_refused(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    events = tmp_path / "one.events"
    events.write_text("snapshot N1\n")
    explore("--events", str(events), "--snapshots", "2", status=2)
    assert "--snapshots does not go with --events" in capsys.readouterr().err
