"""Messages per second through a cluster, over the same program on plain queues: `python -m benchmarks.throughput`.

Both run the same thing: every node passes each token that it gets to a random neighbour. The plain one is what one has
without mpsnap: `multiprocessing.Queue` per edge, `put`, `connection.wait`, `get`. Rounds of both alternate in one
run, and the ratio of each round is what counts: machines are noisy, and absolute figures compare nothing. During the
rounds of mpsnap snapshots are taken and verified, and no token may be lost.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import random
import signal
import statistics
import threading
from collections.abc import Sequence
from multiprocessing.connection import Connection, wait
from multiprocessing.queues import Queue
from typing import Any

from mpsnap import Cluster, Context, Node, Topology, parse_topology

#: Topology and tokens a node.
SHAPES = (("ring:4", 1024), ("complete:8", 64))


class Forwarder(Node):
    """Pass each token on to a random neighbour."""

    def setup(self, ctx: Context, tokens: int) -> None:
        """Send the tokens on their way."""
        for k in range(tokens):
            ctx.send(ctx.outbound[k % len(ctx.outbound)], k)

    def on_message(self, ctx: Context, sender: str, payload: int) -> None:
        """Pass it on."""
        ctx.send(ctx.random.choice(ctx.outbound), payload)


def mpsnap_rate(topology: Topology, tokens: int, seconds: float) -> float:
    """Return messages taken per second by a cluster; its snapshots are verified and count its tokens."""
    with Cluster(topology, Forwarder, params={"tokens": tokens}, start_method="fork") as cluster:
        before = _taken(cluster)
        threading.Event().wait(seconds)
        after = _taken(cluster)
        snapshot = cluster.snapshot()
    snapshot.verify()
    assert snapshot.in_flight == tokens * len(topology.nodes), "a token was lost or doubled"
    return (after - before) / seconds


def _taken(cluster: Cluster) -> int:
    return sum(channel["taken"] for channel in cluster.status()["channels"].values())


def plain_rate(topology: Topology, tokens: int, seconds: float) -> float:
    """Return messages taken per second by processes on plain queues."""
    context = multiprocessing.get_context("fork")
    queues = {channel: context.Queue() for channel in topology.channels}
    counts = {node: context.Pipe(duplex=False) for node in topology.nodes}
    nodes = [
        context.Process(
            target=_plain_node,
            args=(
                [queue for channel, queue in queues.items() if channel.dst == node],
                [queue for channel, queue in queues.items() if channel.src == node],
                tokens,
                counts[node][1],
            ),
        )
        for node in topology.nodes
    ]
    for process in nodes:
        process.start()
    before = [_count(counts[node][0], process) for node, process in zip(topology.nodes, nodes, strict=True)]
    threading.Event().wait(seconds)
    after = [_count(counts[node][0], process) for node, process in zip(topology.nodes, nodes, strict=True)]
    for process in nodes:
        process.kill()
        process.join()
        process.close()
    for queue in queues.values():
        queue.close()
    return (sum(after) - sum(before)) / seconds


def _count(connection: Connection, process: Any) -> int:
    os.kill(process.pid, signal.SIGUSR1)
    count: int = connection.recv()
    return count


def _plain_node(inbound: Sequence[Queue[int]], outbound: Sequence[Queue[int]], tokens: int, counts: Connection) -> None:
    taken = 0
    asked = False

    def on_ask(*_: object) -> None:
        nonlocal asked
        asked = True

    signal.signal(signal.SIGUSR1, on_ask)
    draw = random.Random(0)
    for k in range(tokens):
        outbound[k % len(outbound)].put(k)
    by_reader = {queue._reader: queue for queue in inbound}  # type: ignore[attr-defined]
    while True:
        for reader in wait(list(by_reader), timeout=0.05):
            payload = by_reader[reader].get()
            taken += 1
            draw.choice(outbound).put(payload)
        if asked:
            asked = False
            counts.send(taken)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.throughput", description=__doc__)
    parser.add_argument("--rounds", type=int, default=9, help="of each, alternating (default 9)")
    parser.add_argument("--seconds", type=float, default=0.5, help="of one round (default 0.5)")
    parser.add_argument("--json", action="store_true", help="print JSON")
    options = parser.parse_args()
    results = []
    for spec, tokens in SHAPES:
        topology = parse_topology(spec)
        rounds = [
            (mpsnap_rate(topology, tokens, options.seconds), plain_rate(topology, tokens, options.seconds))
            for _ in range(options.rounds)
        ]
        ratios = sorted(ours / plain for ours, plain in rounds)
        results.append(
            {
                "topology": spec,
                "tokens_per_node": tokens,
                "ratio_median": statistics.median(ratios),
                "ratio_min": ratios[0],
                "ratio_max": ratios[-1],
                "messages_per_s": statistics.median(ours for ours, _ in rounds),
            }
        )
    if options.json:
        print(json.dumps(results, indent=1))
        return
    for row in results:
        print(
            f"{row['topology']:12} {row['tokens_per_node']:5} tokens a node: {row['ratio_median']:5.1f} x plain queues "
            f"[{row['ratio_min']:.1f}-{row['ratio_max']:.1f}], {row['messages_per_s']:,.0f} messages/s"
        )


if __name__ == "__main__":
    main()
