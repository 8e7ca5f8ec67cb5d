"""What the event log costs: `python -m benchmarks.eventlog`.

The same program with a log and without one, in alternating rounds of one run; the ratio of each pair is what counts.
Its nodes compute for each message as long as it takes to handle about so many messages a second on this machine
(measured first); a second row has them compute nothing at all. Every log is merged, read back, and must hold the
messages that its run counted.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

from mpsnap import Context, Node, Topology, parse_topology
from mpsnap.core.history import Head, parse_log
from mpsnap.core.program import assign
from mpsnap.runtime.journal import RunLog
from mpsnap.runtime.supervisor import Supervisor

SPEC, TOKENS = "complete:4", 256
#: Messages a second that the first row aims at.
RATE = 50_000


class Worker(Node):
    """Compute a little for each token and pass it on to a random neighbour."""

    def setup(self, ctx: Context, tokens: int, work: int) -> None:
        """Send the tokens on their way."""
        self.work = work
        for k in range(tokens):
            ctx.send(ctx.outbound[k % len(ctx.outbound)], k)

    def on_message(self, ctx: Context, sender: str, payload: int) -> None:
        """Compute and pass it on."""
        for _ in range(self.work):
            pass
        ctx.send(ctx.random.choice(ctx.outbound), payload)


class Round(NamedTuple):
    """Hold the messages a second of one round, and how many entries its log has."""

    rate: float
    entries: int


def run(topology: Topology, work: int, seconds: float, path: Path | None) -> Round:
    """Run the program for a while, with a log if there is a path."""
    topology, programs = assign(topology, (Worker, {"tokens": TOKENS, "work": work}))
    channels = tuple((channel.src, channel.dst) for channel in topology.channels)
    head = Head("processes", "seconds", "benchmark", topology.name, topology.nodes, channels)
    log = None if path is None else RunLog(str(path), head, 100_000_000)
    supervisor = Supervisor(
        topology, programs, start_method="fork", journals=None if log is None else log.specs(), allow_threads=True
    )
    try:
        supervisor.start()
        while supervisor.state == "starting":
            supervisor.pump(1)
        before, started = supervisor.totals()[1], time.monotonic()
        while (passed := time.monotonic() - started) < seconds:
            supervisor.pump(seconds - passed)
        rate = (supervisor.totals()[1] - before) / passed
        supervisor.stop()
        while not supervisor.ended:
            supervisor.pump(1)
        if supervisor.error is not None:
            raise supervisor.error
        sent, received = supervisor.totals()
    finally:
        supervisor.close()
    if log is None:
        return Round(rate, 0)
    log.merge(supervisor.codecs, lambda count: None)
    log.close()
    return Round(rate, _checked(log.path, sent, received))


def _checked(path: str, sent: int, received: int) -> int:
    with open(path, "rb") as file:
        history = parse_log(file, path)
    events = [entry.event for entry in history.entries]
    assert history.flaw is None
    assert (events.count("sent"), events.count("received")) == (sent, received), "the log lost or doubled a message"
    return len(events)


def _work_for(topology: Topology, rate: float, seconds: float) -> int:
    """Return how much to compute for a message so that about so many are handled in a second."""
    least, most = 0, 4096
    while most - least > 16:
        middle = (least + most) // 2
        least, most = (middle, most) if run(topology, middle, seconds, None).rate > rate else (least, middle)
    return most


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.eventlog", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=9, help="of each, alternating (default 9)")
    parser.add_argument("--seconds", type=float, default=0.5, help="of one round (default 0.5)")
    parser.add_argument("--json", action="store_true", help="print JSON")
    options = parser.parse_args()
    topology = parse_topology(SPEC)
    results = []
    with tempfile.TemporaryDirectory(prefix="mpsnap-benchmark-") as folder:
        for name, work in (
            (f"about {RATE:,} messages/s", _work_for(topology, RATE, 0.2)),
            ("as many as there can be", 0),
        ):
            rounds = []
            for k in range(options.rounds):
                # In another order each time: a run right after the merge of a long log is not like the others.
                paths = [Path(folder, f"{k}.log"), None, None]
                done = {}
                for which in (k % 3, (k + 1) % 3, (k + 2) % 3):
                    done[which] = run(topology, work, options.seconds, paths[which])
                rounds.append((done[0], done[1], done[2]))
            results.append(
                {
                    "row": name,
                    "ratio_median": statistics.median(logged.rate / plain.rate for logged, plain, _ in rounds),
                    "noise_median": statistics.median(again.rate / plain.rate for _, plain, again in rounds),
                    "messages_per_s": statistics.median(plain.rate for _, plain, _ in rounds),
                    "entries": sum(logged.entries for logged, _, _ in rounds),
                }
            )
    if options.json:
        print(json.dumps(results, indent=1))
        return
    for row in results:
        print(
            f"{row['row']:26} {row['messages_per_s']:9,.0f} messages/s without a log; "
            f"with one {row['ratio_median']:.3f} of that "
            f"(a second run without: {row['noise_median']:.3f}), {row['entries']:,} entries checked"
        )


if __name__ == "__main__":
    main()
