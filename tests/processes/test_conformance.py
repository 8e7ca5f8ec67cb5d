"""One class, three ways: what runs as processes and what is simulated pass the same checks, and end the same."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from cli_harness import QUICK, mpsnap

from mpsnap.core.history import parse_log
from mpsnap.views.spacetime import diagram

pytestmark = pytest.mark.processes

TEXT = "the quick brown fox jumps over the lazy dog and the dog barks\n" * 60
RUNS = {
    "tokens": ("tokens", "--topology", "complete:4", "--invariant", "mpsnap.apps.tokens:conserved"),
    "tokens one way": ("tokens", "--topology", "line:3", "--invariant", "mpsnap.apps.tokens:conserved"),
    "bank": ("bank", "--topology", "ring:4", "--invariant", "mpsnap.apps.bank:audit"),
    "pingpong": ("pingpong",),
}


def both(tmp_path: Path, *arguments: str, run: tuple[str, ...] = (), simulate: tuple[str, ...] = ()) -> list[Any]:
    """Return the documents of the same thing as processes and simulated."""
    shared = (*arguments, "--format", "json", "--quiet")
    return [
        mpsnap("run", *shared, *run, *QUICK, "--log", "run.log", cwd=tmp_path).document,
        mpsnap("simulate", *shared, *simulate, "--log", "simulate.log", cwd=tmp_path).document,
    ]


@pytest.mark.parametrize("name", RUNS)
def test_both_ways_take_proven_snapshots_of_the_same_shape(tmp_path: Path, name: str) -> None:
    documents = both(tmp_path, *RUNS[name], "--snapshots", "5", run=("--snapshot-every", "0.02"))
    for document in documents:
        assert document["error"] is None
        assert len(document["snapshots"]) == 5
        assert all(snapshot["verified"] for snapshot in document["snapshots"])
    processes, simulated = ([shape(snapshot) for snapshot in document["snapshots"]] for document in documents)
    assert processes == simulated


def shape(snapshot: Any) -> Any:
    """Return all of a snapshot that does not depend on who was faster."""
    return (
        snapshot["number"],
        snapshot["id"],
        snapshot["initiators"],
        {name: sorted(node["state"]) for name, node in snapshot["nodes"].items()},
        [(channel["src"], channel["dst"]) for channel in snapshot["channels"]],
    )


def test_a_program_that_ends_gives_the_same_result_both_ways(tmp_path: Path) -> None:
    (tmp_path / "words.txt").write_text(TEXT)
    documents = both(tmp_path, "wordcount", "--param", "files=words.txt")
    results = [sorted(json.dumps(output["record"]) for output in document["outputs"]) for document in documents]
    assert results[0] == results[1]
    assert len(results[0]) > 5


def test_both_logs_are_drawn_with_the_same_cuts(tmp_path: Path) -> None:
    """A log is a log, whichever driver wrote it: each cut goes through every node, with its messages in flight."""
    documents = both(tmp_path, *RUNS["tokens"], "--snapshots", "3", run=("--snapshot-every", "0.02"))
    for document, name in zip(documents, ("run.log", "simulate.log"), strict=True):
        history = parse_log((tmp_path / name).read_bytes().splitlines(keepends=True), name)
        drawn = diagram(history)
        assert [cut.number for cut in drawn.cuts] == [0, 1, 2]
        for snapshot, cut in zip(document["snapshots"], drawn.cuts, strict=True):
            held = sum(len(channel["messages"]) for channel in snapshot["channels"])
            assert (len(cut.recorded), len(cut.in_flight), cut.total) == (4, held, held)
