"""How soon a cluster goes on after a death, and what keeping snapshots costs: `python -m benchmarks.recovery`.

A cluster keeps its snapshots in a directory, one of its nodes is killed with SIGKILL, and what counts is the time until
every node of the new incarnation has handled a message. A fresh start of the same cluster is measured in the same way,
its initial cut included. Every snapshot is proven, and what the nodes count is compared with what was sent.
"""

from __future__ import annotations

import multiprocessing
import os
import resource
import shutil
import signal
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from hashlib import sha256
from multiprocessing.pool import Pool
from types import TracebackType
from typing import Any

import psutil

from benchmarks.measure import Benchmark, Row, Scale, main, ratio, row
from mpsnap import Context, GlobalSnapshot, Node, parse_topology
from mpsnap.core.events import ClusterStopped, Recovered, SnapshotAbandoned, SnapshotCompleted
from mpsnap.core.program import assign
from mpsnap.runtime.recovering import RecoveringSupervisor
from mpsnap.runtime.recovery import Recovery
from mpsnap.store.contract import Place, is_recovery_point
from mpsnap.store.directory import DirectoryStore
from mpsnap.store.manifest import NodeEntry, Receipt, describe

METHODS = ("fork", "forkserver", "spawn")
CLUSTERS, QUICK_CLUSTERS = ("ring:16", "complete:8"), ("complete:3",)
#: The grace that a recovery has over one and a half fresh starts.
GRACE_SECONDS = 0.1
#: What one node holds in its inbox in the row of many messages, and how often that is measured, as it takes seconds.
MANY, QUICK_MANY, MANY_ROUNDS = 1_000_000, 10_000, 3
#: Files of a commit, and their size.
FILES, FILE_BYTES = 8, 1 << 20


class Passer(Node):
    """Pass each token on, and check that none is lost or doubled on a channel."""

    def setup(self, ctx: Context, tokens: int) -> None:
        """Send the tokens on their way."""
        self.handled = 0
        for k in range(tokens):
            ctx.send(ctx.outbound[k % len(ctx.outbound)], k)

    def on_message(self, ctx: Context, sender: str, payload: int) -> None:
        """Pass it on."""
        self.handled += 1
        ctx.send(ctx.random.choice(ctx.outbound), payload)


class Flood(Node):
    """Send many messages to a node that takes its time over each, and checks their order."""

    def setup(self, ctx: Context, messages: int) -> None:
        """Send them all."""
        self.expected = 0
        if ctx.outbound:
            for k in range(messages):
                ctx.send(ctx.outbound[0], (k, "waiting"))

    def on_message(self, ctx: Context, sender: str, payload: tuple[int, str]) -> None:
        """Check that it is the next."""
        assert payload[0] == self.expected, f"message {payload[0]} where {self.expected} was due"
        self.expected += 1
        time.sleep(0.001)


class Kept:
    """Run a cluster that keeps its snapshots in a folder of its own, pumped by whoever measures."""

    def __init__(self, spec: str, node: type[Node], method: str, *, window: int = 4096, **params: Any) -> None:
        self._folder = tempfile.mkdtemp(prefix="benchmark-")
        self.store = DirectoryStore(os.path.join(self._folder, "store"))
        self.topology, programs = assign(parse_topology(spec), (node, params))
        self.supervisor = RecoveringSupervisor(
            self.topology, programs, Recovery(self.store), start_method=method, window=window, allow_threads=True
        )

    def __enter__(self) -> Kept:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.supervisor.close()
        self.store.close()
        shutil.rmtree(self._folder)

    def start(self) -> float:
        """Start it; return the seconds until every node has handled a message."""
        began = time.perf_counter()
        self.supervisor.start()
        self.pump_until(self._all_have_handled(dict.fromkeys(self.topology.nodes, 0)))
        return time.perf_counter() - began

    def snapshot(self) -> GlobalSnapshot:
        """Take a recovery point."""
        wanted = self.supervisor.trigger()
        found: list[GlobalSnapshot] = []

        def look(event: object) -> None:
            if isinstance(event, SnapshotCompleted) and event.snapshot.id == wanted:
                found.append(event.snapshot)

        self.pump_until(lambda: bool(found), look)
        return found[0]

    def kill(self, node: str) -> tuple[float, float]:
        """Kill a node; return the seconds until that is noticed, and until every node has handled a message again."""
        last = self.store.latest(is_recovery_point)
        assert last is not None
        handled = {name: sum(entry.received.values()) for name, entry in last.nodes.items()}
        noticed: list[float] = []

        def look(event: object) -> None:
            if isinstance(event, Recovered):
                # Its seconds begin when the death was noticed, before the other nodes were killed.
                noticed.append(time.perf_counter() - began - event.seconds)

        ready = self._all_have_handled(handled)
        began = time.perf_counter()
        self.supervisor.signal(node, signal.SIGKILL)
        self.pump_until(lambda: bool(noticed) and ready(), look)
        return noticed[0], time.perf_counter() - began

    def pump_until(self, done: Callable[[], bool], look: Callable[[object], None] = lambda event: None) -> None:
        """Pump until something is so; an error of the cluster is raised."""
        while not done():
            for event in self.supervisor.pump(0.001):
                look(event)
                if isinstance(event, (SnapshotAbandoned, ClusterStopped)) and event.error is not None:
                    raise event.error

    def _all_have_handled(self, before: dict[str, int]) -> Callable[[], bool]:
        def done() -> bool:
            if self.supervisor.state != "running":
                return False
            channels = self.supervisor.status()["channels"]
            taken = dict.fromkeys(self.topology.nodes, 0)
            for channel in self.topology.channels:
                taken[channel.dst] += channels[str(channel)]["taken"]
            return all(taken[node] > before[node] for node in self.topology.nodes)

        return done

    @property
    def rss(self) -> float:
        """The megabytes of the largest node."""
        pids = [node["pid"] for node in self.supervisor.status()["nodes"].values()]
        return max(psutil.Process(pid).memory_info().rss for pid in pids) / 1e6


def recoveries(scale: Scale) -> Iterator[Row]:
    """Seconds from a kill until every node handles messages again, less a tenth, over a fresh start."""
    detected: list[float] = []
    for spec in QUICK_CLUSTERS if scale.quick else CLUSTERS:
        for method in METHODS:
            name = f"recovery of {spec}, {method}, less {GRACE_SECONDS * 1e3:g} ms, over a fresh start"
            rounds = [each for (each,) in scale.turns(name, partial(_recovery, spec, method))]
            detected += [noticed for _, noticed, _ in rounds]
            notes = {
                "start ms": 1e3 * statistics.median(start for start, _, _ in rounds),
                "recovery ms": 1e3 * statistics.median(again for _, _, again in rounds),
            }
            pairs = ((max(0.0, again - GRACE_SECONDS), start) for start, _, again in rounds)
            yield ratio(name, pairs, sense="at most", floor=1.5, notes=notes)
    yield row("a death is noticed after", (1e3 * each for each in detected), unit="ms", sense="at most", floor=50)


def _recovery(spec: str, method: str) -> tuple[float, float, float]:
    with Kept(spec, Passer, method, tokens=8) as cluster:
        fresh = cluster.start()
        cluster.snapshot()
        noticed, again = cluster.kill(cluster.topology.nodes[len(cluster.topology.nodes) // 2])
        snapshot = cluster.snapshot()
        assert snapshot.in_flight == 8 * len(cluster.topology.nodes), "a token was lost or doubled"
    return fresh, noticed, again


def commit(scale: Scale) -> Iterator[Row]:
    """Seconds that a store takes for a snapshot of 8 parts of 1 MB, over the same bytes in bare files, each synced."""
    name = f"a commit of {FILES} x 1 MB, over a bare loop of write and fsync"
    with Kept(f"ring:{FILES}", Passer, "fork", tokens=0) as cluster:
        snapshot = _idle_cut(cluster)
    folder = tempfile.mkdtemp(prefix="benchmark-")
    try:
        with DirectoryStore(os.path.join(folder, "store")) as store:
            place = store.next_incarnation()
            # As many processes as there are parts, like the nodes that stage them.
            with multiprocessing.get_context("fork").Pool(FILES, _be_a_stager, (place,)) as pool:
                rounds = scale.turns(name, partial(_commit, store, snapshot, pool), partial(_bare_files, folder))
    finally:
        shutil.rmtree(folder)
    notes = {
        "commit ms": 1e3 * statistics.median(mine for mine, _ in rounds),
        "SHA-256 of as many bytes ms": 1e3 * _hashing(),
    }
    yield ratio(name, rounds, sense="at most", floor=2, notes=notes)


_DATA = bytes(range(256)) * (FILE_BYTES // 256)
_stagers: list[Place] = []


def _be_a_stager(place: Place) -> None:
    _stagers.append(place)


def _stage(index: int) -> Receipt:
    # By the process and not by the node: whichever of them is asked, no two use one name.
    return _stagers[0].write(os.getpid(), _DATA)


def _commit(store: DirectoryStore, snapshot: GlobalSnapshot, pool: Pool) -> float:
    began = time.perf_counter()
    number = store.begin()
    staged = pool.map(_stage, range(FILES), chunksize=1)
    entries = {
        node: NodeEntry("m:C", {}, "plain", part.sent, part.received, receipt, None)
        for (node, part), receipt in zip(snapshot.nodes.items(), staged, strict=True)
    }
    manifest = describe(snapshot, entries, wall_time=0.0, recovery_point=True)
    store.commit(manifest._replace(number=number))
    return time.perf_counter() - began


def _hashing() -> float:
    began = time.perf_counter()
    for _ in range(FILES):
        sha256(_DATA).digest()
    return time.perf_counter() - began


def _idle_cut(cluster: Kept) -> GlobalSnapshot:
    cluster.supervisor.start()
    cluster.pump_until(lambda: cluster.supervisor.state == "running")
    return cluster.snapshot()


def _bare_files(folder: str) -> float:
    began = time.perf_counter()
    for k in range(FILES):
        path = os.path.join(folder, f"bare-{k}")
        fd = os.open(path, os.O_CREAT | os.O_WRONLY | os.O_TRUNC, 0o600)
        os.write(fd, _DATA)
        os.fsync(fd)
        os.close(fd)
    seconds = time.perf_counter() - began
    for k in range(FILES):
        os.unlink(os.path.join(folder, f"bare-{k}"))
    return seconds


def many_in_flight(scale: Scale) -> Iterator[Row]:
    """Seconds of a snapshot that records a million messages in flight and keeps them, and of a recovery with them."""
    many = QUICK_MANY if scale.quick else MANY
    title = f"{many:,} messages in flight"
    few = replace(scale, rounds=min(scale.rounds, MANY_ROUNDS))
    rounds = [each for (each,) in few.turns(title, partial(_with_many, many))]
    kept, restored, rss = zip(*rounds, strict=True)
    about = {"sense": "at most", "floor": 10}
    yield row(f"a snapshot of {title} is kept after", kept, unit="s", **about)
    yield row(f"a recovery with {title}, from the kill to the first message handled", restored, unit="s", **about)
    yield row(f"memory of the largest node with {title}", rss, unit="MB", sense="at most", floor=1000)


def _with_many(many: int) -> tuple[float, float, float]:
    # The initial cut is it: setup has sent them all.
    with Kept("line:2", Flood, "fork", window=2 * many, messages=many) as cluster:
        cluster.supervisor.start()
        cluster.pump_until(lambda: cluster.supervisor.state == "running")
        began = time.perf_counter()
        snapshot = cluster.snapshot()
        kept = time.perf_counter() - began
        handled = snapshot.nodes["N2"].state["expected"]
        assert handled + snapshot.in_flight == many, "a message was lost or doubled"
        began = time.perf_counter()
        recovered: list[bool] = []
        cluster.supervisor.signal("N2", signal.SIGKILL)
        cluster.pump_until(
            lambda: bool(recovered) and cluster.supervisor.totals()[1] > handled,
            lambda event: recovered.append(True) if isinstance(event, Recovered) else None,
        )
        restored = time.perf_counter() - began
        rss = max(cluster.rss, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3)
        again = cluster.snapshot()
        assert again.nodes["N2"].state["expected"] + again.in_flight == many, "a message was lost or doubled"
    return kept, restored, rss


BENCHMARKS: tuple[Benchmark, ...] = (recoveries, commit, many_in_flight)

if __name__ == "__main__":
    main("benchmarks.recovery", __doc__, BENCHMARKS)
