"""What the event log costs: `python -m benchmarks.eventlog`.

The same program with a log and without one, in turns; what counts is the ratio of their messages a second. A second run
without a log takes its turn too: its ratio to the first, in the notes, is what the machine's noise makes of nothing.

The nodes of the first row compute for each message as long as it takes to handle about so many messages a second on
this machine (measured first); those of the second compute nothing at all. Every log is merged, read back, and must hold
the messages that its run counted.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Iterable
from functools import partial
from pathlib import Path
from typing import NamedTuple

from benchmarks.measure import Benchmark, Row, Scale, main, ratio
from mpsnap import Context, Node, Topology, parse_topology
from mpsnap.core.history import Head, parse_log
from mpsnap.core.program import assign
from mpsnap.runtime.journal import RunLog
from mpsnap.runtime.supervisor import Supervisor

SPEC, TOKENS = "complete:4", 256
#: Messages a second that the first row aims at.
RATE = 50_000
#: What a run takes at least, so that the log's blocks, twenty a second, are many; and one that only finds the work.
LEAST_SECONDS, SEARCH_SECONDS = 0.5, 0.2


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


class Run(NamedTuple):
    """Hold the messages a second of one run, and how many entries its log has."""

    rate: float
    entries: int


def run(topology: Topology, work: int, seconds: float, path: Path | None) -> Run:
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
        return Run(rate, 0)
    log.merge(supervisor.codecs, lambda count: None)
    log.close()
    return Run(rate, _checked(log.path, sent, received))


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


def computing(scale: Scale) -> Iterable[Row]:
    """Measure a program that is busy with something else than messages."""
    topology, seconds = parse_topology(SPEC), scale.seconds if scale.quick else SEARCH_SECONDS
    scale.told("how much to compute")
    return _with_and_without(f"about {RATE:,} messages/s", _work_for(topology, RATE, seconds), scale)


def forwarding(scale: Scale) -> Iterable[Row]:
    """Measure a program that does nothing but send and receive."""
    return _with_and_without("as many messages as there can be", 0, scale)


def _with_and_without(title: str, work: int, scale: Scale) -> Iterable[Row]:
    topology = parse_topology(SPEC)
    seconds = scale.seconds if scale.quick else max(scale.seconds, LEAST_SECONDS)
    plain = partial(run, topology, work, seconds, None)
    # A run right after the merge of a long log is not like the others: in turns, each of them is that one.
    turns = scale.turns(title, partial(_logged, topology, work, seconds), plain, plain)
    notes = {
        "messages/s without": statistics.median(once.rate for _, once, _ in turns),
        "again without, over without": statistics.median(again.rate / once.rate for _, once, again in turns),
        "entries checked": sum(logged.entries for logged, _, _ in turns),
    }
    yield ratio(
        f"{title}, with a log over without", [(with_log.rate, once.rate) for with_log, once, _ in turns], notes=notes
    )


def _logged(topology: Topology, work: int, seconds: float) -> Run:
    with tempfile.TemporaryDirectory(prefix="benchmark-") as folder:
        return run(topology, work, seconds, Path(folder, "run.log"))


BENCHMARKS: tuple[Benchmark, ...] = (computing, forwarding)

if __name__ == "__main__":
    main("benchmarks.eventlog", __doc__, BENCHMARKS)
