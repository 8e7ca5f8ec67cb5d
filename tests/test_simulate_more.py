"""What `simulate` and `explore` do at their edges: pickles, full disks, deaths in the log, schedules that end early."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

import pytest

from mpsnap import Context, GlobalSnapshot, Node, Topology
from mpsnap.cli.main import main
from mpsnap.core.jsonform import to_json

HERE = "test_simulate_more"


class Opaque:
    """Nothing that the codec knows."""


class Pickling(Node):
    """Keep, send and put out what only pickle can keep."""

    pickle = True

    def setup(self, ctx: Context) -> None:
        self.last = Opaque()

    def on_command(self, ctx: Context, command: dict[str, Any]) -> None:
        ctx.send(command["send"], Opaque())

    def on_message(self, ctx: Context, sender: str, payload: object) -> None:
        assert type(payload) is Opaque
        self.last = payload
        ctx.emit(payload)


class Chatty(Node):
    """Put much into the log from inside one hook."""

    def on_command(self, ctx: Context, command: dict[str, Any]) -> None:
        for _ in range(1000):
            ctx.log("a long line of text")


class Dying(Node):
    def on_command(self, ctx: Context, command: dict[str, Any]) -> None:
        ctx.send(command["send"], 1)

    def on_message(self, ctx: Context, sender: str, payload: int) -> None:
        raise ValueError("no more")


class Refusing(Node):
    """Do nothing but be idle, over and over."""

    def setup(self, ctx: Context) -> None:
        self.calls = 0

    def on_command(self, ctx: Context, command: dict[str, Any]) -> bool:
        return False

    def on_idle(self, ctx: Context) -> bool:
        self.calls += 1
        return True


class Beginning(Node):
    """Begin a snapshot at a command: two such may be complete in the other order."""

    def setup(self, ctx: Context) -> None:
        self.got = 0

    def on_command(self, ctx: Context, command: dict[str, Any]) -> None:
        ctx.snapshot()
        ctx.send(command["send"], 1)

    def on_message(self, ctx: Context, sender: str, payload: int) -> None:
        self.got += 1


def nothing_in_flight(snapshot: GlobalSnapshot) -> bool:
    return snapshot.in_flight == 0


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(os.path.dirname(__file__))
    monkeypatch.setitem(sys.modules, HERE, sys.modules[__name__])
    monkeypatch.chdir(tmp_path)
    Path("two.events").write_text("send N1 N2 1\nsnapshot N1\nsend N2 N1 1\n")


def call(*words: str) -> int:
    return main([*words, "--quiet"])


def on_two(verb: str, node: type[Node], *more: str) -> int:
    return call(verb, f"{HERE}:{node.__name__}", "--topology", "complete:2", "--events", "two.events", *more)


def entries(path: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in Path(path).read_text().splitlines()[1:]]


def test_what_a_node_has_pickled_stays_so_in_the_document_and_in_the_log(capsys: pytest.CaptureFixture[str]) -> None:
    assert on_two("simulate", Pickling, "--format", "json", "--log", "x.log") == 0
    document = json.loads(capsys.readouterr().out)
    states = [node["state"]["$type"] for node in document["snapshots"][0]["nodes"].values()]
    assert states == ["pickle", "pickle"]
    assert [output["record"]["$type"] for output in document["outputs"]] == ["pickle", "pickle"]
    assert {entry["payload"]["$type"] for entry in entries("x.log") if entry["event"] == "sent"} == {"pickle"}


def test_what_a_node_has_pickled_stays_so_in_a_schedule_that_is_taken_again(capsys: pytest.CaptureFixture[str]) -> None:
    invariant = ("--invariant", f"{HERE}:{nothing_in_flight.__name__}")
    assert on_two("explore", Pickling, *invariant, "--save", "x.schedule") == 1
    capsys.readouterr()
    assert call("simulate", "--schedule", "x.schedule", "--format", "json") == 1
    document = json.loads(capsys.readouterr().out)
    assert document["snapshots"][0]["nodes"]["N1"]["state"]["$type"] == "pickle"


def test_no_node_is_to_blame_for_a_full_disk(capsys: pytest.CaptureFixture[str]) -> None:
    assert on_two("simulate", Chatty, "--log", "/dev/full", "--format", "json") == 3
    said = capsys.readouterr()
    assert said.err == "mpsnap: error: /dev/full: cannot be written: No space left on device\n"
    error = json.loads(said.out)["error"]
    assert (error["what"], error["where"]) == ("cannot be written: No space left on device", "/dev/full")


def test_the_log_of_a_simulation_tells_which_node_ended_it() -> None:
    assert on_two("simulate", Dying, "--log", "x.log") == 3
    *_, received, died = entries("x.log")
    assert (received["event"], died["event"], died["node"]) == ("received", "died", received["node"])
    assert died["index"] == received["index"] + 1
    assert "failed in on_message: ValueError: no more" in died["error"]["what"]


def test_a_schedule_that_ends_where_no_more_was_allowed_breaks_again(capsys: pytest.CaptureFixture[str]) -> None:
    """The violation is in what was left undone, after so many idle calls; without their bound the end is no end."""
    assert on_two("explore", Refusing, "--save", "x.schedule") == 3
    found = capsys.readouterr().err
    assert "`send N1 N2 1` (two.events:1) is never carried out" in found
    assert call("simulate", "--schedule", "x.schedule") == 3
    assert capsys.readouterr().err == found


def test_a_bound_that_is_met_before_any_cut_is_no_violation(capsys: pytest.CaptureFixture[str]) -> None:
    assert call("explore", "--max-states", "1") == 3
    assert "not every schedule was tried" in capsys.readouterr().err


def test_a_snapshot_that_a_node_begins_keeps_its_number_in_a_log_of_a_schedule() -> None:
    assert on_two("explore", Beginning, "--invariant", f"{HERE}:{nothing_in_flight.__name__}") == 1
    schedule = json.loads(Path("violation.schedule").read_text())
    # Both begin before either is complete, and N2's, begun last, is complete first.
    schedule["invariants"] = []
    schedule["plan"]["N1"] = [planned for planned in schedule["plan"]["N1"] if "command" in planned]
    schedule["steps"] = ["plan N1", "plan N2", "mark N2->N1", "mark N1->N2", "mark N1->N2", "mark N2->N1"]
    Path("x.schedule").write_text(json.dumps(schedule))
    assert call("simulate", "--schedule", "x.schedule", "--log", "x.log") == 0
    named: dict[str, list[tuple[str, int]]] = {}
    for entry in entries("x.log"):
        if entry["event"] in ("initiated", "completed"):
            named.setdefault(entry["snapshot"], []).append((entry["event"], entry["number"]))
    assert {tuple(event for event, _ in told) for told in named.values()} == {("initiated", "completed")}
    assert sorted({number for _, number in told} for told in named.values()) == [{0}, {1}]


class Given(Node):
    """Send its parameter, which JSON cannot keep."""

    def setup(self, ctx: Context, given: object) -> None:
        self.given = given
        if ctx.name == "A":
            ctx.send("B", given)


GIVEN = ({1}, (b"x", 10**5000))
nodes = {"A": (Given, {"given": GIVEN}), "B": (Given, {"given": 1})}
default_topology = Topology(["A", "B"], [("A", "B"), ("B", "A")])


def test_parameters_that_json_cannot_keep_are_the_same_when_a_schedule_is_taken_again(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert call("explore", HERE, "--invariant", f"{HERE}:{nothing_in_flight.__name__}") == 1
    assert json.loads(Path("violation.schedule").read_text())["nodes"]["B"]["params"] == {"given": 1}
    capsys.readouterr()
    assert call("simulate", "--schedule", "violation.schedule", "--format", "json") == 1
    (snapshot,) = json.loads(capsys.readouterr().out)["snapshots"]
    assert snapshot["nodes"]["A"]["state"] == {"given": to_json(GIVEN)}
    damaged = json.loads(Path("violation.schedule").read_text())
    damaged["nodes"]["A"]["params"] = {"$codec": "AAAA"}
    Path("x.schedule").write_text(json.dumps(damaged))
    assert call("simulate", "--schedule", "x.schedule") == 2
    assert "not a schedule" in capsys.readouterr().err


class Growing(Beginning):
    """Refuse to be set up once a file is there."""

    def setup(self, ctx: Context) -> None:
        super().setup(ctx)
        if Path("grown").exists():
            raise ValueError("too late")


def test_a_setup_that_raises_when_a_schedule_is_taken_again_has_its_document(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert on_two("explore", Growing, "--invariant", f"{HERE}:{nothing_in_flight.__name__}") == 1
    Path("grown").touch()
    capsys.readouterr()
    assert call("simulate", "--schedule", "violation.schedule", "--format", "json") == 3
    assert "N1 failed in setup: ValueError: too late" in json.loads(capsys.readouterr().out)["error"]["what"]


@pytest.mark.parametrize("place", ["/dev/full", "nowhere/x.schedule", "."])
def test_a_violation_is_told_also_where_its_schedule_cannot_be_saved(
    place: str, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ("--invariant", f"{HERE}:{nothing_in_flight.__name__}", "--save", place)
    assert on_two("explore", Beginning, *words, "--format", "json") == 1
    said = capsys.readouterr()
    violation = json.loads(said.out)["violation"]
    assert (bool(violation["steps"]), violation["file"]) == (True, None)
    not_saved, error = said.err.splitlines()
    assert not_saved.startswith(f"mpsnap: the schedule is not saved: {place}: cannot be written: ")
    assert "is false on snapshot" in error
    assert on_two("explore", Beginning, *words) == 1
    assert "again:" not in capsys.readouterr().out
