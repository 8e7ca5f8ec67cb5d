"""The event log of real processes: it tells the run that its snapshots tell, whatever dies."""

from __future__ import annotations

import json
import signal
import subprocess
from pathlib import Path
from typing import Any

import pytest
from cli_harness import COMMAND, ENVIRONMENT, QUICK, Done, mpsnap, under_way
from harness import send_on

from mpsnap.core.history import Entry, History, parse_log
from mpsnap.core.protocol import Marker, Report, SnapshotId, SnapshotProtocol

pytestmark = pytest.mark.processes


def run(tmp_path: Path, *arguments: str, status: int = 0, log: str = "run.log") -> tuple[Done, History]:
    done = mpsnap("run", *arguments, "--log", log, "--format", "json", "--quiet", cwd=tmp_path, status=status)
    assert not (tmp_path / f"{log}.parts").exists()
    return done, read(tmp_path / log)


def read(path: Path) -> History:
    history = parse_log(path.read_bytes().splitlines(keepends=True), path.name)
    assert history.flaw is None
    return history


class Replay:
    """The pure protocol of one node, fed with what the log says that the node did."""

    def __init__(self, node: str, history: History) -> None:
        self.node = node
        inbound = [src for src, dst in history.head.channels if dst == node]
        outbound = [dst for src, dst in history.head.channels if src == node]
        self.protocol = SnapshotProtocol(node, inbound, outbound, lambda: None)
        self.reported: dict[str, dict[str, list[int]]] = {}
        self.counts: dict[str, tuple[dict[str, int], dict[str, int]]] = {}

    def see(self, src: str, upto: int) -> None:
        for number in range(self.protocol.seen(src) + 1, upto + 1):
            self.protocol.receive_batch(src, number, (number,))

    def feed(self, entry: Entry) -> None:
        detail: Any = entry.detail
        if entry.event == "sent":
            assert send_on(self.protocol, detail["to"]) == detail["number"]
        elif entry.event == "received":
            self.see(detail["from"], detail["number"])
            assert self.protocol.take(detail["from"]) == detail["number"]
        elif entry.event == "marker received":
            # A marker acts when it is seen, and what was sent before it has been seen by then.
            self.see(detail["from"], detail["number"])
            marker = Marker(SnapshotId.parse(detail["snapshot"]), detail["number"])
            self.note(self.protocol.receive(detail["from"], marker))
        elif entry.event == "recorded" and detail["from"] is None:
            self.note(self.protocol.initiate(SnapshotId.parse(detail["snapshot"])))

    def note(self, effects: tuple[Any, ...]) -> None:
        for effect in effects:
            if isinstance(effect, Report):
                local, snapshot = effect.local, str(effect.local.snapshot_id)
                self.reported[snapshot] = {src: [s.first, len(s.payloads)] for src, s in local.channels.items()}
                self.counts[snapshot] = dict(local.sent), dict(local.received)


@pytest.mark.parametrize("start_method", ["fork", "forkserver", "spawn"])
def test_the_log_played_through_the_pure_core_gives_the_same_snapshots(tmp_path: Path, start_method: str) -> None:
    """What one process after the other did, in the order of the log, is a run of the algorithm with the same cuts."""
    options = ("--topology", "complete:4", "--snapshots", "6", "--concurrent", "3", "--start-method", start_method)
    done, history = run(tmp_path, *options)
    replays = {node: Replay(node, history) for node in history.head.nodes}
    in_flight: dict[tuple[str, str, int], object] = {}
    for entry in history.entries:
        if entry.node is None:
            continue
        if entry.event == "sent":
            in_flight[entry.node, entry.detail["to"], entry.detail["number"]] = entry.detail["payload"]
        elif entry.event == "received":
            assert (entry.detail["from"], entry.node, entry.detail["number"]) in in_flight, "before it was sent"
        replays[entry.node].feed(entry)
    snapshots = done.document["snapshots"]
    assert len(snapshots) == 6
    assert sum(len(channel["messages"]) for snapshot in snapshots for channel in snapshot["channels"]) > 0
    for snapshot in snapshots:
        for node, part in snapshot["nodes"].items():
            assert replays[node].counts[snapshot["id"]] == (part["sent"], part["received"])
        for channel in snapshot["channels"]:
            src, dst = channel["src"], channel["dst"]
            first, count = replays[dst].reported[snapshot["id"]][src]
            assert channel["messages"] == [in_flight[src, dst, first + k] for k in range(count)]
    states = {
        (entry.detail["snapshot"], entry.node): entry.detail["state"]
        for entry in history.entries
        if entry.event == "recorded"
    }
    for snapshot in snapshots:
        for node, part in snapshot["nodes"].items():
            assert states[snapshot["id"], node] == part["state"]
    noted = [entry for entry in history.entries if entry.event == "reported"]
    assert len(noted) == 6 * 4
    for entry in noted:
        assert replays[str(entry.node)].reported[entry.detail["snapshot"]] == entry.detail["channels"]


def test_messages_of_the_log_are_those_of_the_run(tmp_path: Path) -> None:
    done, history = run(tmp_path, "bank", "--topology", "ring:3", "--duration", "0.3", *QUICK)
    events = [entry.event for entry in history.entries]
    facts = done.document["run"]
    assert (events.count("sent"), events.count("received")) == (facts["messages_sent"], facts["messages_received"])
    assert history.entries[-1].time < 30
    assert (history.head.driver, history.head.unit, history.head.topology) == ("processes", "seconds", "ring:3")


APP = """
import os, signal
from mpsnap import Node

class Mortal(Node):
    def setup(self, ctx, last=200, how="raise"):
        self.seen, self.last, self.how = 0, last, how
        ctx.every(0.001, "tick")
        ctx.emit(["begins", ctx.name])
        if ctx.name == "N1":
            ctx.send("N2", b"go")
        elif how == "kill":
            # Long after the node has begun to write down what happens.
            ctx.after(0.5, "die")

    def tick(self, ctx):
        pass

    def die(self, ctx):
        os.kill(os.getpid(), signal.SIGKILL)

    def on_message(self, ctx, sender, payload):
        self.seen += 1
        if ctx.name == "N2" and self.seen == self.last and self.how == "raise":
            ctx.log("the last one")
            raise RuntimeError("no more")
        ctx.send(ctx.outbound[0], payload)
"""


@pytest.mark.parametrize("how", ["raise", "kill"])
def test_the_log_of_a_node_that_died_ends_with_its_death(tmp_path: Path, how: str) -> None:
    (tmp_path / "mortal.py").write_text(APP)
    done, history = run(
        tmp_path, "mortal.py:Mortal", "--topology", "ring:2", "--param", f"how={how}", *QUICK, status=3
    )  # fmt: skip
    of_n2 = [entry for entry in history.entries if entry.node == "N2"]
    assert of_n2[-1].event == "died"
    assert of_n2[-1].detail["error"]["what"] == done.document["error"]["what"]
    received = [entry for entry in of_n2 if entry.event == "received"]
    if how == "raise":
        # It had the time to write everything down.
        assert [entry.detail["number"] for entry in received] == list(range(1, 201))
        assert of_n2[-2].detail == {"text": "the last one"}
    else:
        # What is not yet on the disk dies with it, and that is little. What is there is in order.
        assert [entry.detail["number"] for entry in received] == list(range(1, 1 + len(received)))
        assert len(received) > 10
    assert [entry.index for entry in of_n2] == list(range(len(of_n2)))
    assert {"timer", "output"} <= {entry.event for entry in history.entries}


FLOOD = """
from mpsnap import Node

class Flood(Node):
    endless = False

    def setup(self, ctx):
        self.seen = 0
        if ctx.name == "N1":
            for k in range(20000):
                ctx.send("N2", k)

    def on_message(self, ctx, sender, payload):
        self.seen += 1
"""


def test_a_limit_keeps_the_newest_and_says_how_many_there_were(tmp_path: Path) -> None:
    (tmp_path / "flood.py").write_text(FLOOD)
    _, history = run(tmp_path, "flood.py:Flood", "--topology", "line:2", "--log-limit", "9000", *QUICK)
    dropped = {entry.node: entry for entry in history.entries if entry.event == "dropped"}
    assert dropped.keys() == {"N1", "N2"}
    for node, event in (("N1", "sent"), ("N2", "received")):
        kept = [entry.detail["number"] for entry in history.entries if entry.node == node and entry.event == event]
        assert kept == list(range(20_001 - len(kept), 20_001))
        assert 2000 < len(kept) < 9000
        of_node = [entry.index for entry in history.entries if entry.node == node]
        assert of_node == list(range(dropped[node].detail["count"] - 1, of_node[-1] + 1))
        if event == "sent":
            assert dropped[node].detail["sent"] == {"N2": kept[0] - 1}
    mpsnap("export", "run.log", "--as", "svg", "-o", "run.svg", cwd=tmp_path)


def test_what_a_killed_supervisor_leaves_can_be_drawn_and_is_taken_away_by_the_next_run(tmp_path: Path) -> None:
    with under_way("run", "--duration", "60", "--log", "run.log", *QUICK, cwd=tmp_path) as victim:
        assert victim.stdout is not None
        victim.stdout.readline()
        victim.kill()
        victim.communicate(timeout=60)
    assert (tmp_path / "run.log.parts").is_dir()
    assert oct((tmp_path / "run.log.parts").stat().st_mode)[-3:] == "700"
    drawn = mpsnap("export", "run.log", "--as", "shiviz", cwd=tmp_path)
    assert "goes on, or was killed" in drawn.stderr
    assert len(drawn.stdout.splitlines()) > 20
    _, history = run(tmp_path, "--snapshots", "1", *QUICK)
    assert history.entries


def test_ctrl_c_leaves_a_whole_log(tmp_path: Path) -> None:
    running = subprocess.Popen(
        [*COMMAND, "run", "--duration", "60", "--snapshot-every", "0.05", "--log", "run.log", *QUICK],
        cwd=tmp_path,
        env=ENVIRONMENT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )
    with running:
        assert running.stdout is not None
        running.stdout.readline()
        running.send_signal(signal.SIGINT)
        running.communicate(timeout=60)
    assert running.returncode == 130
    history = read(tmp_path / "run.log")
    assert "completed" in {entry.event for entry in history.entries}
    assert not (tmp_path / "run.log.parts").exists()


def test_a_log_that_cannot_be_written_is_refused_before_anything_starts(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    for path in ("folder", "missing/run.log", ""):
        done = mpsnap("run", "--log", path, "--quiet", cwd=tmp_path, status=2)
        assert "cannot be written" in done.error
        assert done.stdout == ""


def test_what_is_not_asked_for_is_not_there(tmp_path: Path) -> None:
    done = mpsnap("run", "--snapshots", "1", "--format", "json", "--quiet", *QUICK, cwd=tmp_path)
    assert json.loads(done.stdout)["error"] is None
    assert list(tmp_path.iterdir()) == []
