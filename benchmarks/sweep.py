"""How the constants of the hot path were found: `python -m benchmarks.sweep batch 64 128 512`.

One constant takes one value after the other, in turns, while messages go from node to node, through `complete:8` and
through `ring:4`; each value's throughput is shown over that with the value that the product has. Where the ratios do
not differ by more than the noise, the constant is as good as any.
"""

from __future__ import annotations

import argparse
import statistics
import types
from collections.abc import Callable, Mapping
from functools import partial

from tabulate import tabulate

from benchmarks.channels import forwarding_rate, mpsnap_rate
from benchmarks.measure import Scale
from mpsnap import parse_topology
from mpsnap.core import nodecore
from mpsnap.runtime import channel, outbound, process

#: By the name on the command line, where a constant stands. Nodes are forked, so that they have it too.
CONSTANTS: Mapping[str, tuple[types.ModuleType, str]] = {
    "batch": (outbound, "BATCH_MESSAGES"),
    "batch-bytes": (outbound, "BATCH_BYTES"),
    "age": (outbound, "AGE_SECONDS"),
    "window-bytes": (outbound, "WINDOW_BYTES"),
    "turn": (process, "TURN_SECONDS"),
    "row": (nodecore, "RUN_MESSAGES"),
    "stride": (nodecore, "STRIDE"),
    "read": (channel, "READ_BYTES"),
    "wide-read": (channel, "WIDE_READ_BYTES"),
    "pipe": (channel, "_WIDE_BYTES"),
}


def contenders(seconds: float) -> Mapping[str, Callable[[], float]]:
    """Return what is measured, by its name: each returns messages a second, and checks that none was lost."""
    return {
        "(int, int)": partial(mpsnap_rate, "(int, int)", seconds),
        "10 kB": partial(mpsnap_rate, "10 kB", seconds),
        "complete:8": partial(forwarding_rate, parse_topology("complete:8"), 64, seconds),
        "ring:4": partial(forwarding_rate, parse_topology("ring:4"), 1024, seconds),
    }


def sweep(name: str, values: list[float], scale: Scale) -> list[tuple[object, ...]]:
    """Return a line per value: the median over the rounds of its throughput over that of the value in use."""
    module, constant = CONSTANTS[name]
    in_use = getattr(module, constant)
    tried = [in_use, *(type(in_use)(value) for value in values if value != in_use)]
    measured = contenders(scale.seconds)

    def all_rates(value: float) -> tuple[float, ...]:
        setattr(module, constant, value)
        try:
            return tuple(rate() for rate in measured.values())
        finally:
            setattr(module, constant, in_use)

    rounds = scale.turns(constant, *(partial(all_rates, value) for value in tried))
    lines: list[tuple[object, ...]] = []
    for k, value in sorted(enumerate(tried), key=lambda pair: pair[1]):
        ratios = [statistics.median(turn[k][case] / turn[0][case] for turn in rounds) for case in range(len(measured))]
        lines.append((f"{value:g}", *(f"{ratio:.2f}" for ratio in ratios), "in use" if value == in_use else ""))
    return lines


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.sweep", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("constant", choices=sorted(CONSTANTS))
    parser.add_argument("values", nargs="+", type=float)
    parser.add_argument("--rounds", type=int, default=5, help="of all values, in turns (default 5)")
    parser.add_argument("--seconds", type=float, default=0.3, help="of one measurement (default 0.3)")
    chosen = parser.parse_args()
    lines = sweep(chosen.constant, chosen.values, Scale(chosen.rounds, chosen.seconds))
    print(tabulate(lines, headers=(chosen.constant, *contenders(0), ""), disable_numparse=True))


if __name__ == "__main__":
    main()
