"""Scripted runs on real processes: every scenario beside, and what happens when a script asks for too much.

How processes interleave is theirs, so what a cut holds differs from run to run; that nothing is lost or doubled in it,
and that there are as many cuts as were asked for, does not.
"""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from cli_harness import QUICK, mpsnap

pytestmark = pytest.mark.processes

SCENARIOS = Path(__file__).parent / "scenarios"
NAMES = sorted(path.stem for path in SCENARIOS.glob("*.top"))
START_METHODS = ("fork", "forkserver", "fork", "fork", "spawn", "fork")


def lines_of(path: Path) -> list[list[str]]:
    """Read a file of lines by its format alone, not by the parser that is under test elsewhere."""
    fields = [line.partition("#")[0].split() for line in path.read_text().splitlines()]
    return [line for line in fields if line]


def options(name: str) -> tuple[str, ...]:
    conserved = ("--invariant", "mpsnap.apps.tokens:conserved")
    return "--topology", str(SCENARIOS / f"{name}.top"), "--events", str(SCENARIOS / f"{name}.events"), *conserved


def test_there_are_scenarios() -> None:
    assert len(NAMES) >= 12


@pytest.mark.parametrize("name", NAMES)
def test_a_scenario_gives_the_files_it_asks_for(tmp_path: Path, name: str) -> None:
    """One `.snap` for each `snapshot` line, numbered in order, well-formed, with all tokens in it."""
    done = mpsnap("run", *options(name), "--format", "snap", "--out", "out", "--quiet", *QUICK, cwd=tmp_path)
    assert (done.stdout, done.stderr) == ("", "")
    (size,), *rest = lines_of(SCENARIOS / f"{name}.top")
    nodes = {node: int(tokens) for node, tokens in rest[: int(size)]}
    channels = {(src, dst) for src, dst in rest[int(size) :]}
    asked = [step for step in lines_of(SCENARIOS / f"{name}.events") if step[0] == "snapshot"]
    assert {path.name for path in (tmp_path / "out").iterdir()} == {f"{k}.snap" for k in range(len(asked))}
    for number in range(len(asked)):
        first, *lines = (tmp_path / "out" / f"{number}.snap").read_text().removesuffix("\n").split("\n")
        assert first == str(number)
        states = [line.split(" ") for line in lines[: len(nodes)]]
        assert [node for node, _ in states] == sorted(nodes)
        messages = [re.fullmatch(r"(\S+) (\S+) token\(([1-9]\d*)\)", line) for line in lines[len(nodes) :]]
        places = [match.group(1, 2) for match in messages if match]
        assert len(places) == len(messages)
        assert places == sorted(places)
        assert channels.issuperset(places)
        amounts = [int(tokens) for _, tokens in states] + [int(match[3]) for match in messages if match]
        assert sum(amounts) == sum(nodes.values())
        assert min(amounts) >= 0


@pytest.mark.parametrize(
    ("name", "start_method"), [(name, START_METHODS[k % 6]) for k, name in enumerate(NAMES[::2])], ids=str
)
def test_a_scenario_sends_what_it_says_and_begins_snapshots_where_it_says(
    tmp_path: Path, name: str, start_method: str
) -> None:
    document = mpsnap("run", *options(name), "--format", "json", "--start-method", start_method, cwd=tmp_path).document
    steps = lines_of(SCENARIOS / f"{name}.events")
    sends = [step for step in steps if step[0] == "send"]
    assert document["run"]["messages_sent"] == document["run"]["messages_received"] == len(sends)
    asked = [step[1] for step in steps if step[0] == "snapshot"]
    assert [snapshot["number"] for snapshot in document["snapshots"]] == list(range(len(asked)))
    assert [snapshot["initiators"][0] for snapshot in document["snapshots"]] == asked
    before = 0
    remaining = iter(steps)
    for snapshot in document["snapshots"]:
        # A line is acknowledged before the next: what stands above the snapshot was sent before its initiator recorded,
        # and there each channel's messages are in the cut or taken, none is left out.
        for step in remaining:
            before += step[0] == "send"
            if step[0] == "snapshot":
                break
        sent = sum(sum(node["sent"].values()) for node in snapshot["nodes"].values())
        received = sum(sum(node["received"].values()) for node in snapshot["nodes"].values())
        assert sent - received == sum(len(channel["messages"]) for channel in snapshot["channels"])
        assert before <= sent <= len(sends)


def scripted(tmp_path: Path, script: str) -> tuple[str, ...]:
    (tmp_path / "pair.top").write_text("2\nA 0\nB 5\nA B\nB A\n")
    (tmp_path / "pair.events").write_text(script)
    return "run", "--topology", "pair.top", "--events", "pair.events", *QUICK


def test_tokens_that_never_come_end_the_run_at_the_line_that_waits(tmp_path: Path) -> None:
    """Five seconds, then exit 3; what was done before is shown."""
    script = "send B A 2\nsnapshot A\n# A has two and waits for a third\nsend A B 3\nsnapshot B\n"
    done = mpsnap(*scripted(tmp_path, script), "--format", "json", cwd=tmp_path, status=3)
    assert done.error == "pair.events:4: A did not hold 3 tokens within 5 s; try: sending them there first"
    assert done.document["error"]["where"] == "pair.events:4"
    assert [snapshot["number"] for snapshot in done.document["snapshots"]] == [0]


def test_a_script_that_is_longer_than_its_time_ends_at_the_line_it_has_come_to(tmp_path: Path) -> None:
    script = "send B A 2\n\ntick 10\nsend A B 3\n"
    done = mpsnap(*scripted(tmp_path, script), "--duration", "0.3", cwd=tmp_path, status=3)
    assert done.error == "pair.events:4: the time was over before the script was; try: a longer --duration"


def test_a_script_waits_for_tokens_that_are_on_their_way(tmp_path: Path) -> None:
    """They are sent one by one; the line after them needs all of them."""
    script = "send B A 1\n" * 5 + "send A B 5\nsend B A 4\nsnapshot A\ntick 20\n"
    document = mpsnap(*scripted(tmp_path, script), "--format", "json", cwd=tmp_path).document
    assert document["run"]["messages_sent"] == document["run"]["messages_received"] == 7
    assert document["error"] is None


def test_ticks_are_milliseconds(tmp_path: Path) -> None:
    done = mpsnap(*scripted(tmp_path, "tick 250\ntick\n"), "--format", "json", cwd=tmp_path)
    assert 0.25 <= done.document["run"]["duration_s"] < 20
    assert done.document["snapshots"] == []
