"""Run a cluster that comes to harm in a planned way, and see whether everything happened exactly once."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import signal
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from ledger import Ledger, check_conserved, check_records

from mpsnap import GlobalSnapshot, Node, parse_topology
from mpsnap.core.errors import MpsnapError
from mpsnap.core.events import (
    ClusterStarted,
    ClusterStopped,
    Emitted,
    Event,
    NodeDied,
    Recovered,
    Replied,
    SnapshotAbandoned,
    SnapshotCompleted,
)
from mpsnap.core.program import assign
from mpsnap.runtime.failpoints import Failpoint, fail_at
from mpsnap.runtime.outputs import Sink
from mpsnap.runtime.recovering import RecoveringSupervisor
from mpsnap.runtime.recovery import Recovery
from mpsnap.store.contract import is_recovery_point
from mpsnap.store.directory import DirectoryStore
from mpsnap.store.disk import Disk

#: How long a drill may take on a busy machine.
DRILL_SECONDS = 30.0

Plan = Mapping[str, tuple[Failpoint, ...]]


class File(Sink):
    """Keep released records in a file, a line each."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.path.touch()

    def write(self, records: Iterable[Emitted]) -> None:
        with self.path.open("a") as file:
            file.writelines(json.dumps(list(record)) + "\n" for record in records)

    def sync(self) -> int:
        with self.path.open("ab") as file:
            os.fsync(file.fileno())
            return file.tell()

    def cut(self, size: int | None) -> None:
        """Go back to so many bytes: who goes on from a snapshot releases once more what it covers."""
        assert size is not None
        os.truncate(self.path, size)

    def records(self) -> list[Emitted]:
        return [Emitted(*json.loads(line)) for line in self.path.read_text().splitlines()]


class Drill:
    """Hold a cluster with a store, and all that it has told."""

    def __init__(
        self,
        folder: Path,
        method: str = "fork",
        plan: Plan | None = None,
        *,
        topology: str = "ring:3",
        node: type[Node] = Ledger,
        params: dict[str, Any] | None = None,
        disk: Disk | None = None,
        resume: bool | int = False,
        recovery: dict[str, Any] | None = None,
        **settings: Any,
    ) -> None:
        self.path = folder / "store"
        self.disk = disk
        self.store = DirectoryStore(self.path, disk)
        self.topology, programs = assign(parse_topology(topology), node, params)
        self.total = sum(self.topology.tokens.values())
        last = self.store.latest(is_recovery_point) if resume is True else None
        last = self.store.manifest(resume) if type(resume) is int else last
        self.file = File(folder / "outputs")
        if last is not None:
            self.file.cut(last.emitted_bytes)
        self.supervisor = RecoveringSupervisor(
            self.topology,
            programs,
            Recovery(self.store, resume=last, sink=self.file, **(recovery or {})),
            start_method=method,
            allow_threads=True,
            failpoints=plan,
            **settings,
        )
        self.events: list[Event] = []
        #: Snapshots that were told complete since the last recovery, and the time after which the next one begins.
        self.since = 0
        self.next_trigger = 0.0
        self.pause = 0.01
        self.ledger = issubclass(node, Ledger)

    def told(self, kind: type[Any]) -> list[Any]:
        """Return the events of one kind."""
        return [event for event in self.events if isinstance(event, kind)]

    @property
    def recoveries(self) -> int:
        return len(self.told(Recovered))

    @property
    def error(self) -> MpsnapError | None:
        return self.supervisor.error

    def pump(self, timeout: float = 0.02) -> None:
        """Pump once and look at what happened."""
        for event in self.supervisor.pump(timeout):
            self.events.append(event)
            if isinstance(event, Recovered):
                self.since = 0
            elif isinstance(event, SnapshotCompleted):
                self.since += 1
                if self.ledger:
                    with self.at_ease():
                        check_conserved(event.snapshot, self.total)

    @contextlib.contextmanager
    def at_ease(self) -> Iterator[None]:
        """Have the disk not fail where only the test asks it for something."""
        if isinstance(self.disk, FailingDisk):
            self.disk.at_ease = True
        yield
        if isinstance(self.disk, FailingDisk):
            self.disk.at_ease = False

    def until(self, condition: Callable[[], object], what: str, *, snapshots: bool = True) -> None:
        """Pump until something is so, or the cluster has ended; meanwhile begin one snapshot after another."""
        deadline = time.monotonic() + DRILL_SECONDS
        while not condition() and not self.supervisor.ended:
            self.pump()
            now = time.monotonic()
            idle = self.supervisor.state == "running" and not self.supervisor.open_snapshots
            if snapshots and idle and now >= self.next_trigger:
                self.supervisor.trigger()
                self.next_trigger = now + self.pause
            if now > deadline:
                pytest.fail(f"waited for {what}; the last that happened:\n" + self.story())

    def story(self) -> str:
        """Return the last events in words, records left out."""
        kept = [event for event in self.events if not isinstance(event, Emitted)]
        return "\n".join(str(event)[:300] for event in [*kept[-30:], self.supervisor.status()])

    def start(self) -> None:
        """Start it and wait for the first hooks to run."""
        self.supervisor.start()
        self.until(lambda: self.told(ClusterStarted), "the start", snapshots=False)

    def ask(self, node: str, command: object) -> Any:
        """Give a node a command and return what it replies."""
        ticket = self.supervisor.command(node, command)
        self.until(lambda: self._replies(ticket), f"the reply of {node}", snapshots=False)
        return self._replies(ticket)[0].value

    def _replies(self, ticket: int) -> list[Replied]:
        return [event for event in self.told(Replied) if event.ticket == ticket]

    def snapshot(self, timeout: float | None = None) -> SnapshotCompleted | SnapshotAbandoned:
        """Take one and return how it ended."""
        seen = len(self.events)
        wanted = self.supervisor.trigger((), timeout)

        def ends() -> list[Any]:
            ended = [each for each in self.events[seen:] if isinstance(each, (SnapshotCompleted, SnapshotAbandoned))]
            return [
                each
                for each in ended
                if (each.snapshot.id if isinstance(each, SnapshotCompleted) else each.snapshot_id) == wanted
            ]

        self.until(ends, "a snapshot", snapshots=False)
        found: SnapshotCompleted | SnapshotAbandoned = ends()[0]
        return found

    def live(self, recoveries: int = 1, snapshots: int = 2) -> None:
        """Live through so many recoveries and then so many snapshots, and come to an orderly end."""
        self.start()
        self.until(lambda: self.recoveries >= recoveries and self.since >= snapshots, f"{recoveries} recoveries")
        self.stop()

    def stop(self, seconds: float = 10.0) -> None:
        """Come to an orderly end, whatever happens meanwhile."""
        # A cluster that is recovering stops as soon as it has.
        self.supervisor.stop(seconds)
        self.until(lambda: False, "the end", snapshots=False)
        self.pump()

    def check(self, recoveries: int) -> GlobalSnapshot:
        """See that it came to an orderly end, with nothing lost, doubled or left behind; return the last cut."""
        assert self.error is None, f"{self.error!r}\n{self.story()}"
        assert isinstance(self.events[-1], ClusterStopped), self.story()
        numbers = [event.incarnation for event in self.told(Recovered)]
        assert len(numbers) == recoveries, self.story()
        assert numbers == sorted(set(numbers))
        assert all(event.error.what for event in self.told(SnapshotAbandoned) + self.told(NodeDied))
        assert os.listdir(self.path / "staging") == [], "something is left of what was staged"
        last = self.store.latest(is_recovery_point)
        assert last is not None
        assert last.run["final"]
        final = self.store.load(last.number)
        check_conserved(final, self.total)
        check_records(self.file.records(), final)
        return final

    def close(self) -> None:
        """Leave nothing behind."""
        self.supervisor.close()
        self.store.close()


@contextlib.contextmanager
def drill(folder: Path, *args: Any, **settings: Any) -> Iterator[Drill]:
    """Be a drill, and whatever happens leave nothing of it."""
    made = Drill(folder, *args, **settings)
    try:
        yield made
    finally:
        made.close()


# ------------------------------------------------------------------------- disks


class FailingDisk(Disk):
    """Twin of `Disk`: fail when told to, in the process that has made it or in those to which it was given.

    In the first one, operation `failing` (counted in `asked`) fails, or with `for_good` all from there on; or the
    next one that is called `next`. In the
    others each `every`-th fails.
    """

    def __init__(self, number: int = errno.ENOSPC, every: int = 0) -> None:
        self.number = number
        self.every = every
        self.home = self.process = os.getpid()
        self.asked = 0
        self.failing: int | None = None
        self.next = ""
        self.for_good = False
        self.at_ease = False
        #: What has failed here.
        self.failed: list[str] = []

    def ask(self, what: str) -> None:
        """Count one operation, and fail if it is its turn."""
        if self.at_ease:
            return
        if self.process != os.getpid():
            self.process, self.asked = os.getpid(), 0
        self.asked += 1
        if self.process == self.home:
            fails = self.failing is not None and (
                self.asked == self.failing or (self.for_good and self.asked > self.failing)
            )
        else:
            fails = bool(self.every) and self.asked % self.every == 0
        if fails or what == self.next:
            self.next = ""
            self.failed.append(what)
            raise OSError(self.number, os.strerror(self.number))


class KillingDisk(Disk):
    """Twin of `Disk`: operation `last` of the process that has made it is the last thing that this does."""

    def __init__(self, last: int) -> None:
        self.last = last
        self.home = os.getpid()
        self.asked = 0

    def ask(self, what: str) -> None:
        """Count one operation, and die if it is its turn."""
        if os.getpid() == self.home:
            self.asked += 1
            if self.asked == self.last:
                os.kill(self.home, signal.SIGKILL)


class HalfDisk(Disk):
    """Twin of `Disk`: a write is done by halves, and in between `mid_stage` is met."""

    def write(self, fd: int, data: memoryview) -> int:
        done = super().write(fd, data[: (len(data) + 1) // 2])
        fail_at("mid_stage")
        return done


def _asking(name: str) -> Callable[..., Any]:
    whole = getattr(Disk, name)

    def asked(self: Any, *args: Any) -> Any:
        if name == "write" and isinstance(self, KillingDisk) and self.asked + 1 == self.last:
            # Torn in the middle.
            whole(self, args[0], args[1][: len(args[1]) // 2])
        self.ask(name)
        return whole(self, *args)

    return asked


# A close gives the descriptor back, whatever it says.
for _name in {name for name in vars(Disk) if not name.startswith("_")} - {"close"}:
    setattr(FailingDisk, _name, _asking(_name))
    setattr(KillingDisk, _name, _asking(_name))
