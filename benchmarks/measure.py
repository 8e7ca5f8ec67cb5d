"""How a benchmark here is made: several ways to do one thing, taken in turns, and the ratio of each turn.

This module owns turns, ratios, rows and how they are printed. It must not know what is measured.

Machines are noisy: one figure swings by a third from one second to the next, and by a factor of two between hours. So
nothing here compares two figures of different moments. Contenders run one after another within a round, each round
begins with another one, and what counts is the median over the rounds of the ratio within a round.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Literal, TypeVar

from tabulate import tabulate
from tqdm import tqdm

T = TypeVar("T")

#: Rounds of a full run, and of `--quick`, whose figures say only that everything works.
ROUNDS, QUICK_ROUNDS = 9, 2
#: Seconds that a contender runs in one round.
SECONDS, QUICK_SECONDS = 0.3, 0.05


@dataclass(frozen=True)
class Row:
    """Hold one measured figure: its median over the rounds, what it has to be and what it is hoped to be.

    `unit` is "x" for a ratio. `notes` are absolute figures, for orientation alone. A row without `floor` and `goal` is
    one of a table that shows growth. One that could not be measured has no rounds, a value that is no number, and says
    why in `notes`. `failed` is what went wrong in the benchmark that the row is of: then it counts for nothing.
    """

    name: str
    value: float
    least: float
    most: float
    rounds: int
    unit: str = "x"
    sense: Literal["at least", "at most"] = "at least"
    floor: float | None = None
    goal: float | None = None
    notes: dict[str, Any] = field(default_factory=dict)
    failed: str | None = None

    @property
    def measured(self) -> bool:
        """Whether there is a value."""
        return not math.isnan(self.value)

    def plain(self) -> dict[str, Any]:
        """Return the row for JSON, which knows no such numbers as stand for no value."""
        found = {key: _finite(value) for key, value in asdict(self).items()}
        return {**found, "notes": {key: _finite(value) for key, value in self.notes.items()}}

    @classmethod
    def of(cls, plain: dict[str, Any]) -> Row:
        """Return the row that `plain` was made of."""
        return cls(**{**plain, **{key: math.nan for key in ("value", "least", "most") if plain[key] is None}})

    def meets(self, bound: float | None) -> bool | None:
        """Return whether the median is on the right side of a bound; None if one of the two is not there."""
        if bound is None or not self.measured or self.failed is not None:
            return None
        return self.value >= bound if self.sense == "at least" else self.value <= bound


def _finite(value: object) -> object:
    return None if isinstance(value, float) and not math.isfinite(value) else value


@dataclass(frozen=True)
class Scale:
    """How long to measure: rounds, seconds a contender runs in one, and whether it is for health alone."""

    rounds: int = ROUNDS
    seconds: float = SECONDS
    quick: bool = False
    #: Is told what is under way.
    told: Callable[[str], None] = lambda text: None

    def turns(self, name: str, *contenders: Callable[[], T]) -> list[tuple[T, ...]]:
        """Run every contender once a round, another one first each time; return their results, a tuple a round."""
        done = []
        for k in range(self.rounds):
            results: dict[int, T] = {}
            for at in range(len(contenders)):
                which = (k + at) % len(contenders)
                self.told(f"{name}, round {k + 1} of {self.rounds}")
                results[which] = contenders[which]()
            done.append(tuple(results[which] for which in range(len(contenders))))
        return done


#: One function measures one row or a few that belong together.
Benchmark = Callable[[Scale], Iterable[Row]]


def row(name: str, values: Iterable[float], **about: Any) -> Row:
    """Return the row of a figure that was measured once a round."""
    ordered = sorted(values)
    return Row(name, statistics.median(ordered), ordered[0], ordered[-1], len(ordered), **about)


def ratio(name: str, pairs: Iterable[Sequence[float]], **about: Any) -> Row:
    """Return the row of the ratios ours / theirs, one pair a round."""
    return row(name, (pair[0] / pair[1] for pair in pairs), **about)


def absent(name: str, why: str, **about: Any) -> Row:
    """Return the row of what cannot be measured here."""
    return Row(name, math.nan, math.nan, math.nan, 0, notes={"why": why}, **about)


def progress(items: Sequence[T]) -> tqdm[T]:
    """Return a bar that counts benchmarks, on a terminal alone."""
    # The bar's own thread: what is measured forks, and a process that forks must have no other.
    tqdm.monitor_interval = 0
    return tqdm(items, file=sys.stderr, unit="benchmark", leave=False, disable=None)


def measure(benchmarks: Sequence[Benchmark], scale: Scale, only: str = "") -> list[Row]:
    """Run benchmarks, those whose name contains `only`, with a bar on a terminal."""
    rows: list[Row] = []
    with progress([benchmark for benchmark in benchmarks if only in benchmark.__name__]) as bar:
        watched = replace(scale, told=bar.set_postfix_str)
        for benchmark in bar:
            bar.set_description(benchmark.__name__)
            rows += benchmark(watched)
    return rows


#: What the cells of a row are.
HEADERS = ("measure", "median", "range", "floor", "held", "goal", "reached", "for orientation")


def cells(each: Row) -> tuple[str, ...]:
    """Return a row for people."""
    verdict = {None: "", True: "yes", False: "NO"}
    missing = "not measured" if each.failed is None else "failed"
    notes = [f"{key} {short(value)}" for key, value in each.notes.items()]
    return (
        each.name,
        f"{short(each.value, 3)} {each.unit}" if each.measured and each.failed is None else missing,
        f"{short(each.least, 3)} to {short(each.most, 3)}" if each.measured else "",
        "" if each.floor is None else f"{each.sense} {each.floor:g}",
        verdict[each.meets(each.floor)],
        "" if each.goal is None else f"{each.goal:g}",
        verdict[each.meets(each.goal)],
        ", ".join(notes if each.failed is None else [each.failed]),
    )


def table(rows: Sequence[Row]) -> str:
    """Return rows as a table for people."""
    return tabulate([cells(each) for each in rows], headers=HEADERS, disable_numparse=True)


def short(value: object, digits: int = 4) -> str:
    """Return a figure with so many digits, or as many as it has before the point; anything else as it is."""
    if isinstance(value, float):
        return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.{digits}g}"
    return f"{value:,}" if isinstance(value, int) else str(value)


def options(prog: str, description: str | None) -> argparse.ArgumentParser:
    """Return the parser of a benchmark's command line."""
    parser = argparse.ArgumentParser(
        prog=f"python -m {prog}", description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=_rounds, help=f"of each contender, in turns (default {ROUNDS})")
    parser.add_argument("--seconds", type=_seconds, help=f"that a contender runs in a round (default {SECONDS})")
    parser.add_argument("--quick", action="store_true", help="see that everything works; the figures mean nothing")
    parser.add_argument("--only", default="", metavar="TEXT", help="only the functions with this in their name")
    parser.add_argument("--json", action="store_true", help="print JSON")
    return parser


def _rounds(text: str) -> int:
    if (rounds := int(text)) < 1:
        raise argparse.ArgumentTypeError("must be at least 1")
    return rounds


def _seconds(text: str) -> float:
    if not 0 < (seconds := float(text)) < math.inf:
        raise argparse.ArgumentTypeError("must be above 0")
    return seconds


def scale_of(chosen: argparse.Namespace) -> Scale:
    """Return the scale that a command line asks for."""
    rounds = chosen.rounds or (QUICK_ROUNDS if chosen.quick else ROUNDS)
    seconds = chosen.seconds or (QUICK_SECONDS if chosen.quick else SECONDS)
    return Scale(rounds, seconds, chosen.quick)


def run(benchmarks: Sequence[Benchmark], chosen: argparse.Namespace) -> None:
    """Measure what a command line asks for, and print."""
    rows = measure(benchmarks, scale_of(chosen), chosen.only)
    print(json.dumps([each.plain() for each in rows], indent=1, allow_nan=False) if chosen.json else table(rows))


def main(prog: str, description: str | None, benchmarks: Sequence[Benchmark]) -> None:
    """Be the command line of one benchmark: measure and print."""
    run(benchmarks, options(prog, description).parse_args())
