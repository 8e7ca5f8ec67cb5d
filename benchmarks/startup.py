"""What it takes to start and stop a cluster, and what its processes hold: `python -m benchmarks.startup`.

Each start is made in an interpreter of its own (`benchmarks.starter`). The seconds until ready go from the construction
of the cluster, or of the first queue, to the moment when every process has said that it is ready; with forkserver they
hold the start of the forkserver, and with spawn what every node imports. A bare start makes as many processes by the
same method with one `multiprocessing.Queue` per channel, and nothing of mpsnap.

Descriptors are those open in the supervisor's process beyond those open before, and all those of the node that has
most: under fork a node inherits two for each node started before it, of `multiprocessing`'s own. Memory is
per node: PSS counts a share of the pages that it shares, USS none. Each cluster takes a snapshot, which is verified.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import cache, partial
from pathlib import Path
from typing import Any

from benchmarks.measure import Benchmark, Row, Scale, main, ratio, row

#: Numbers of nodes; of a quick run, only the first.
RING_SIZES, COMPLETE_SIZES = (8, 32, 64, 128), (8, 16, 32)
#: Rounds of a start at most, and of more than 32 nodes under spawn: those take half a minute.
ROUNDS, LONG_ROUNDS = 3, 1
#: The shape of which no forkserver can start a node, since it cannot hand over so many descriptors.
HUGE = "complete:64"


def ring_fork(scale: Scale) -> Iterator[Row]:
    """Rings under fork."""
    yield from _sizes("ring", RING_SIZES, "fork", scale)


def ring_forkserver(scale: Scale) -> Iterator[Row]:
    """Rings under forkserver."""
    yield from _sizes("ring", RING_SIZES, "forkserver", scale)


def ring_spawn(scale: Scale) -> Iterator[Row]:
    """Rings under spawn."""
    yield from _sizes("ring", RING_SIZES, "spawn", scale)


def complete_fork(scale: Scale) -> Iterator[Row]:
    """Complete graphs under fork."""
    yield from _sizes("complete", COMPLETE_SIZES, "fork", scale)


def complete_forkserver(scale: Scale) -> Iterator[Row]:
    """Complete graphs under forkserver."""
    yield from _sizes("complete", COMPLETE_SIZES, "forkserver", scale)


def complete_spawn(scale: Scale) -> Iterator[Row]:
    """Complete graphs under spawn."""
    yield from _sizes("complete", COMPLETE_SIZES, "spawn", scale)


def huge(scale: Scale) -> Iterator[Row]:
    """4,032 channels: once under fork, once by what mpsnap chooses, and what forkserver says; not in a quick run."""
    if scale.quick:
        return
    once = replace(scale, rounds=1)
    forked, chosen, refused = once.turns(
        HUGE, *(partial(_started, HUGE, m) for m in ("fork", "default", "forkserver"))
    )[0]
    yield _ready(f"{HUGE}, fork", [forked])
    assert "descriptors" in refused["refused"], refused["refused"]
    said = {
        "method": f"{chosen['method']}, by a notice" if chosen["notice"] else chosen["method"],
        "forkserver, if asked for": "refused, too many descriptors",
    }
    yield _ready(f"{HUGE}, no method asked for", [chosen], said)


def _sizes(kind: str, sizes: Sequence[int], method: str, scale: Scale) -> Iterator[Row]:
    for n in sizes[:1] if scale.quick else sizes:
        spec = f"{kind}:{n}"
        most = 1 if scale.quick else LONG_ROUNDS if method == "spawn" and n > 32 else ROUNDS
        name = f"{spec}, {method}"
        few = replace(scale, rounds=min(scale.rounds, most))
        rounds = few.turns(name, partial(_started, spec, method), partial(_started, spec, method, "bare"))
        yield _ready(name, [ours for ours, _ in rounds])
        bare = {"bare s": statistics.median(theirs["ready"] for _, theirs in rounds)}
        pairs = [(ours["ready"], theirs["ready"]) for ours, theirs in rounds]
        yield ratio(f"{name}: over a bare start", pairs, sense="at most", goal=1.5, notes=bare)


def _ready(name: str, starts: Sequence[dict[str, Any]], more: dict[str, Any] | None = None) -> Row:
    notes = {
        "stop s": _median(starts, "stop"),
        "descriptors": starts[0]["fds"],
        "of a node at most": starts[0]["node fds"],
        "PSS MB": _median(starts, "pss"),
        "USS MB": _median(starts, "uss"),
        "first snapshot ms": 1e3 * _median(starts, "snapshot"),
    }
    return row(f"{name}: until ready", (each["ready"] for each in starts), unit="s", notes=notes | (more or {}))


def _median(starts: Sequence[dict[str, Any]], key: str) -> float:
    return float(statistics.median(each[key] for each in starts))


def _started(spec: str, method: str, what: str = "mpsnap") -> dict[str, Any]:
    _compile()
    return _run_starter(what, spec, method)


@cache
def _compile() -> None:
    """Have all bytecode written that a start needs, as an installation does: compiling takes longer than starting."""
    _run_starter("mpsnap", "ring:2", "spawn")


def _run_starter(*arguments: str) -> dict[str, Any]:
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.starter", *arguments],
        cwd=Path(__file__).parent.parent,
        env={name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"},
        stdout=subprocess.PIPE,
        check=True,
    )
    figures: dict[str, Any] = json.loads(done.stdout)
    return figures


BENCHMARKS: tuple[Benchmark, ...] = (
    ring_fork,
    ring_forkserver,
    ring_spawn,
    complete_fork,
    complete_forkserver,
    complete_spawn,
    huge,
)

if __name__ == "__main__":
    main("benchmarks.startup", __doc__, BENCHMARKS)
