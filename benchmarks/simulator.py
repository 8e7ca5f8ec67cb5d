"""What a delivery in the simulator costs, and how large a graph it takes: `python -m benchmarks.simulator`.

- dense: every node holds a message and passes each on to a neighbour. One delivery in units of one rotation of a deque,
  `q.append(q.popleft())`: the least that anything could cost that moves items through queues.
- sparse: one message goes round a ring of 1,000 nodes; one delivery over one in a ring of 10. It must not matter how
  many nodes have nothing to do.
- large (with --scale, and in `python -m benchmarks`): one snapshot of a graph of 100,000 nodes, with tokens in flight,
  each in a process of its own. Seconds and memory are those of the whole process: topology, nodes, tokens, snapshot and
  proof. Without the garbage collector (`gc.disable()`): it would search millions of objects over and over, all of which
  stay, and take a quarter of the time. With --collector it runs.
"""

from __future__ import annotations

import argparse
import gc
import json
import resource
import subprocess
import sys
import time
from collections import deque
from collections.abc import Iterable
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.measure import Benchmark, Row, Scale, options, ratio, row, run
from mpsnap import Context, Node, parse_topology
from mpsnap.apps.tokens import conserved
from mpsnap.core.program import assign
from mpsnap.simulator.simulator import Simulator, random_delays

DENSE = ("ring:10", "ring:100", "ring:1000", "complete:8")
SPARSE = ("ring:1000", "ring:10")
#: The second has about a million channels.
LARGE = ("ring:100000", "random:100000:0.00009:1")

#: The most that each may cost: rotations a delivery, ratio, seconds, GiB.
MOST_DENSE, MOST_SPARSE, MOST_SECONDS, MOST_GIB = 100, 3, 60, 4

#: Deliveries and rotations of one round; of a quick one, a tenth.
DELIVERIES, ROTATIONS, QUICK_PART = 20_000, 100_000, 10
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


def delivery_seconds(simulator: Simulator, deliveries: int) -> float:
    """Return what one delivery takes."""
    before = simulator.deliveries
    start = time.perf_counter()
    while simulator.deliveries < before + deliveries:
        simulator.advance(50)
    return (time.perf_counter() - start) / (simulator.deliveries - before)


def rotation_seconds(rotations: int) -> float:
    """Return what one rotation of a deque takes."""
    queue = deque(range(10))
    start = time.perf_counter()
    for _ in range(rotations):
        queue.append(queue.popleft())
    return (time.perf_counter() - start) / rotations


def _part(scale: Scale) -> int:
    return QUICK_PART if scale.quick else 1


def dense(scale: Scale) -> Iterable[Row]:
    """Measure deliveries where all nodes are busy."""
    for spec in DENSE:
        simulator = forwarding(spec, everywhere=True)
        turns = scale.turns(f"dense, {spec}", partial(_delivery_in_rotations, simulator, _part(scale)))
        yield row(
            f"a delivery, all nodes of {spec} busy",
            (found for (found,) in turns),
            unit="rotations",
            sense="at most",
            floor=MOST_DENSE,
        )


def _delivery_in_rotations(simulator: Simulator, part: int) -> float:
    # One before and one after, since a machine's speed changes in between.
    before = rotation_seconds(ROTATIONS // part)
    delivery = delivery_seconds(simulator, DELIVERIES // part)
    return 2 * delivery / (before + rotation_seconds(ROTATIONS // part))


def sparse(scale: Scale) -> Iterable[Row]:
    """Measure deliveries of a single message, in a large ring over those in a small one."""
    rings = [forwarding(spec, everywhere=False) for spec in SPARSE]
    turns = scale.turns("sparse", *(partial(delivery_seconds, ring, DELIVERIES // _part(scale)) for ring in rings))
    return [ratio(f"a delivery of a lone message, {' over '.join(SPARSE)}", turns, sense="at most", floor=MOST_SPARSE)]


def large(scale: Scale) -> Iterable[Row]:
    """Take one snapshot of each large graph, once; not in a quick run."""
    return _snapshots_of_large(scale)


def large_with_collector(scale: Scale) -> Iterable[Row]:
    """Take them with the garbage collector."""
    return _snapshots_of_large(scale, "--collector")


def _snapshots_of_large(scale: Scale, *options: str) -> Iterable[Row]:
    for spec in () if scale.quick else LARGE:
        scale.told(spec)
        start = time.perf_counter()
        child = subprocess.run(
            [sys.executable, "-m", "benchmarks.simulator", "--child", spec, *options],
            cwd=Path(__file__).parent.parent,
            stdout=subprocess.PIPE,
            check=True,
        )
        seconds = time.perf_counter() - start
        notes: dict[str, Any] = json.loads(child.stdout)
        memory = notes.pop("GiB")
        yield row(f"one snapshot of {spec}", [seconds], unit="s", sense="at most", floor=MOST_SECONDS, notes=notes)
        yield row(f"memory for one snapshot of {spec}", [memory], unit="GiB", sense="at most", floor=MOST_GIB)


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
        "channels": len(topology.channels),
        "in flight": snapshot.in_flight,
        "deliveries": simulator.deliveries,
        "GiB": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20,
    }


BENCHMARKS: tuple[Benchmark, ...] = (dense, sparse, large)


def main() -> None:
    """Measure and print; or be the process of one large graph, and print what it found."""
    parser = options("benchmarks.simulator", __doc__)
    parser.add_argument("--scale", action="store_true", help="take the snapshots of large graphs too: minutes")
    parser.add_argument("--collector", action="store_true", help="with the garbage collector in them")
    parser.add_argument("--child", metavar="SPEC", help=argparse.SUPPRESS)
    chosen = parser.parse_args()
    if chosen.child is None:
        large_ones = [large_with_collector if chosen.collector else large] if chosen.scale else []
        run([dense, sparse, *large_ones], chosen)
        return
    if not chosen.collector:
        gc.disable()
    print(json.dumps(snapshot_of(chosen.child)))


if __name__ == "__main__":
    main()
