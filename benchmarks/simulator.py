"""What a delivery in the simulator costs, and how large a graph it takes: `python -m benchmarks.simulator`.

- dense: every node holds a message and passes each on to a neighbour. One delivery in units of one rotation of a deque,
  `q.append(q.popleft())`: the least that anything could cost that moves items through queues.
- sparse: one message goes round a ring of 1,000 nodes; one delivery over one in a ring of 10. It must not matter how
  many nodes have nothing to do.
- scale (with --scale): one snapshot of a graph of 100,000 nodes, with tokens in flight, each in a process of its own.
  Seconds and memory are those of the whole process: topology, nodes, tokens, snapshot and proof. Without the garbage
  collector (`gc.disable()`): it would search millions of objects over and over, all of which stay, and take a quarter
  of the time. With --collector it runs.

What is compared alternates in one run, and the median of the rounds' ratios is what counts: machines are noisy, and
absolute figures compare nothing.
"""

from __future__ import annotations

import argparse
import gc
import json
import resource
import statistics
import subprocess
import sys
import time
from collections import deque
from typing import Any

from mpsnap import Context, Node, parse_topology
from mpsnap.apps.tokens import conserved
from mpsnap.core.program import assign
from mpsnap.simulator.simulator import Simulator, random_delays

EXAMPLE = """\
example:
  python -m benchmarks.simulator --rounds 15 --scale
"""

DENSE = ("ring:10", "ring:100", "ring:1000", "complete:8")
SPARSE = ("ring:1000", "ring:10")
#: The second has about a million channels.
SCALE = ("ring:100000", "random:100000:0.00009:1")

#: The most that each may cost: rotations a delivery, ratio, seconds, GiB.
MOST_DENSE, MOST_SPARSE, MOST_SECONDS, MOST_GIB = 100, 3, 60, 4

#: Deliveries and rotations of one round.
DELIVERIES, ROTATIONS = 20_000, 100_000
#: Delays are 0 to one less than this many ticks.
DELAYS = 5


class Forwarder(Node):
    """Pass each message on to the neighbours in turn."""

    def setup(self, ctx: Context, senders: list[str]) -> None:
        """Send the first one, where it starts here."""
        if ctx.name in senders:
            ctx.send(ctx.outbound[0], 0)

    def on_message(self, ctx: Context, sender: str, payload: int) -> None:
        """Pass it on."""
        ctx.send(ctx.outbound[payload % len(ctx.outbound)], payload + 1)


def forwarding(spec: str, *, everywhere: bool) -> Simulator:
    """Return a cluster in which a message starts at every node, or at the first one alone."""
    topology = parse_topology(spec)
    senders = list(topology.nodes if everywhere else topology.nodes[:1])
    topology, programs = assign(topology, Forwarder, {"senders": senders})
    return Simulator(topology, programs, random_delays(1, DELAYS))


def delivery_seconds(simulator: Simulator) -> float:
    """Return what one delivery takes."""
    before = simulator.deliveries
    start = time.perf_counter()
    while simulator.deliveries < before + DELIVERIES:
        simulator.advance(50)
    return (time.perf_counter() - start) / (simulator.deliveries - before)


def rotation_seconds() -> float:
    """Return what one rotation of a deque takes."""
    queue = deque(range(10))
    start = time.perf_counter()
    for _ in range(ROTATIONS):
        queue.append(queue.popleft())
    return (time.perf_counter() - start) / ROTATIONS


def spread(row: str, spec: str, ratios: list[float], most: float, unit: str) -> dict[str, Any]:
    """Return the figures of one row."""
    return {
        "row": row,
        "topology": spec,
        "unit": unit,
        "median": statistics.median(ratios),
        "min": min(ratios),
        "max": max(ratios),
        "most": most,
        "within": statistics.median(ratios) <= most,
    }


def dense(spec: str, rounds: int) -> dict[str, Any]:
    """Measure deliveries where all nodes are busy."""
    simulator = forwarding(spec, everywhere=True)
    ratios = []
    for _ in range(rounds):
        # One before and one after, since a machine's speed changes in between.
        before = rotation_seconds()
        delivery = delivery_seconds(simulator)
        ratios.append(2 * delivery / (before + rotation_seconds()))
    return spread("dense", spec, ratios, MOST_DENSE, "rotations")


def sparse(rounds: int) -> dict[str, Any]:
    """Measure deliveries of a single message, in a large ring over those in a small one."""
    large, small = (forwarding(spec, everywhere=False) for spec in SPARSE)
    ratios = [delivery_seconds(large) / delivery_seconds(small) for _ in range(rounds)]
    return spread("sparse", " over ".join(SPARSE), ratios, MOST_SPARSE, "times")


def scale(spec: str, *, collector: bool) -> dict[str, Any]:
    """Take one snapshot of a large graph, in a process of its own."""
    start = time.perf_counter()
    child = subprocess.run(
        [sys.executable, "-m", "benchmarks.simulator", "--child", spec, *(["--collector"] if collector else [])],
        stdout=subprocess.PIPE,
        check=True,
    )
    row: dict[str, Any] = json.loads(child.stdout)
    row["seconds"] = time.perf_counter() - start
    row["within"] = row["seconds"] < MOST_SECONDS and row["gib"] < MOST_GIB
    return row


def snapshot_of(spec: str) -> dict[str, Any]:
    """Take one snapshot while tokens move, and return what it holds and how much memory that took."""
    topology, programs = assign(parse_topology(spec), "mpsnap.apps.tokens:ScriptedTokens")
    simulator = Simulator(topology, programs, random_delays(1, DELAYS))

    def one_from(node: str) -> None:
        # Towards the first node, where there is such a channel: it records before all others.
        others = topology.outbound(node)
        simulator.command(node, {"send": "N1" if "N1" in others else others[0], "amount": 1})

    for node in topology.nodes:
        one_from(node)
    number = simulator.snapshot(["N1"])
    # And some more from nodes that the markers have not reached.
    for k in range(0, len(topology.nodes), 100):
        one_from(topology.nodes[k])
        if k % 5000 == 0:
            simulator.advance(1)
    simulator.finish()
    # It was verified when it was complete.
    snapshot = simulator.snapshots[number]
    assert snapshot.in_flight > 0, "nothing was in flight"
    assert conserved(snapshot), "a token was lost or doubled"
    return {
        "row": "scale",
        "topology": spec,
        "nodes": len(topology.nodes),
        "channels": len(topology.channels),
        "in_flight": snapshot.in_flight,
        "deliveries": simulator.deliveries,
        "gib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20,
        "most_seconds": MOST_SECONDS,
        "most_gib": MOST_GIB,
    }


def shown(row: dict[str, Any]) -> str:
    """Return one row of the table."""
    verdict = "" if row["within"] else "  TOO MUCH"
    if row["row"] == "scale":
        return (
            f"{'scale':7} {row['topology']:23} {row['seconds']:6.1f} s (most {row['most_seconds']}), "
            f"{row['gib']:.2f} GiB (most {row['most_gib']}): {row['channels']:,} channels, "
            f"{row['in_flight']:,} in flight{verdict}"
        )
    return (
        f"{row['row']:7} {row['topology']:23} {row['median']:6.1f} {row['unit']} a delivery (most {row['most']}) "
        f"[{row['min']:.1f}-{row['max']:.1f}]{verdict}"
    )


def main() -> int:
    """Measure and print; 1 if anything costs more than it may."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.simulator",
        description=__doc__,
        epilog=EXAMPLE,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--rounds", type=int, default=9, help="of each, alternating (default 9)")
    parser.add_argument("--scale", action="store_true", help="take the snapshots of large graphs too: minutes")
    parser.add_argument("--collector", action="store_true", help="with the garbage collector in them")
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.add_argument("--child", metavar="SPEC", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child is not None:
        if not options.collector:
            gc.disable()
        print(json.dumps(snapshot_of(options.child)))
        return 0
    if options.rounds < 1:
        parser.error("--rounds must be at least 1")
    rows = []
    for spec in DENSE:
        print(f"dense {spec}...", file=sys.stderr)
        rows.append(dense(spec, options.rounds))
    print("sparse...", file=sys.stderr)
    rows.append(sparse(options.rounds))
    for spec in SCALE if options.scale else ():
        print(f"scale {spec}...", file=sys.stderr)
        rows.append(scale(spec, collector=options.collector))
    print(json.dumps(rows, indent=1) if options.json else "\n".join(map(shown, rows)))
    return 0 if all(row["within"] for row in rows) else 1


if __name__ == "__main__":
    sys.exit(main())
