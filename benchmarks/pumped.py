"""A cluster whose supervisor is pumped by whoever measures, in the main thread.

This module owns the life of such a cluster and how long a snapshot of it takes. It must not know what is compared.

`Cluster` pumps in a thread of its own, so that what it measures holds a change of threads in this program as well. Here
nothing stands between the report that completes a snapshot and the clock. A snapshot takes from the wish until it is
merged, proven and in the caller's hands.
"""

from __future__ import annotations

import math
import statistics
import time
from types import TracebackType
from typing import Any, NamedTuple

from mpsnap import GlobalSnapshot, Node, parse_topology
from mpsnap.core.events import ClusterStopped, Event, SnapshotAbandoned, SnapshotCompleted
from mpsnap.core.program import assign
from mpsnap.runtime.supervisor import WINDOW, Supervisor

#: Snapshots that a median is taken of at least, however little time there is.
LEAST = 3
#: Snapshots taken one right after the other before they are verified.
IN_A_ROW = 16


class Stretch(NamedTuple):
    """Hold what became of some time: how much it was in the end, and the snapshots taken in it."""

    seconds: float
    snapshots: list[GlobalSnapshot]


class Pumped:
    """Run a cluster while the `with` lasts; an error of the cluster is raised by whatever is asked next.

    Args:
        spec: The topology.
        node: What each node runs.
        method: How processes are started, None for mpsnap's choice.
        window: Messages of one channel that may be sent and not taken before its sender pauses.
        params: Of `setup`.
    """

    def __init__(
        self, spec: str, node: type[Node] = Node, *, method: str | None = "fork", window: int = WINDOW, **params: Any
    ) -> None:
        self.topology, programs = assign(parse_topology(spec), (node, params))
        # Whoever measures may have threads, of a bar or a queue: they hold no lock that a node needs.
        self.supervisor = Supervisor(self.topology, programs, start_method=method, window=window, allow_threads=True)

    def __enter__(self) -> Pumped:
        try:
            self.supervisor.start()
            while self.supervisor.state == "starting":
                self._pump(1)
        except BaseException:
            self.supervisor.close()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if kind is None:
                self.supervisor.stop()
                while not self.supervisor.ended:
                    self._pump(1)
        finally:
            self.supervisor.close()

    @property
    def pids(self) -> list[int]:
        """The processes of the nodes."""
        return [node["pid"] for node in self.supervisor.status()["nodes"].values()]

    def snapshot(self) -> GlobalSnapshot:
        """Take one snapshot."""
        wanted = self.supervisor.trigger()
        while True:
            for event in self._pump(1):
                if isinstance(event, SnapshotCompleted) and event.snapshot.id == wanted:
                    return event.snapshot

    def latency(self, seconds: float, in_a_row: int = IN_A_ROW) -> float:
        """Take one snapshot after the other for a while; return the median of the seconds that each took.

        All are verified, so many at a time: what is done between two of them takes caches from the next one, and
        nothing is done between two of the bare waves that they are compared with. Where each holds much, one at a time,
        or they would take the memory from each other.
        """
        taken: list[float] = []
        done: list[GlobalSnapshot] = []
        until = time.perf_counter() + seconds
        while len(taken) < LEAST or time.perf_counter() < until:
            began = time.perf_counter()
            done.append(self.snapshot())
            taken.append(time.perf_counter() - began)
            if len(done) == in_a_row:
                _verify(done)
        _verify(done)
        return statistics.median(taken)

    def run(self, seconds: float, every: float = math.inf) -> Stretch:
        """Let it run for a while and begin a snapshot every so often; return when the last one is taken.

        What a late snapshot has missed is not made up for: they must not come in bursts.
        """
        began = now = time.perf_counter()
        end, due = began + seconds, began + every / 2
        under_way = 0
        done: list[GlobalSnapshot] = []
        while now < end or under_way:
            if due <= now < end:
                self.supervisor.trigger()
                under_way += 1
                due = max(due + every, now)
            for event in self._pump(min(due, end) - now if now < end else 1):
                if isinstance(event, SnapshotCompleted):
                    done.append(event.snapshot)
                    under_way -= 1
            now = time.perf_counter()
        return Stretch(now - began, done)

    def _pump(self, seconds: float) -> list[Event]:
        events = self.supervisor.pump(seconds)
        for event in events:
            if isinstance(event, (SnapshotAbandoned, ClusterStopped)) and event.error is not None:
                raise event.error
        return events


def _verify(snapshots: list[GlobalSnapshot]) -> None:
    for snapshot in snapshots:
        snapshot.verify()
    snapshots.clear()
