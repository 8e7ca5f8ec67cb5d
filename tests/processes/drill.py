"""Run a cluster that comes to harm in a planned way, and see whether everything happened exactly once."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable, Iterator, Mapping
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
    SnapshotAbandoned,
    SnapshotCompleted,
)
from mpsnap.core.program import assign
from mpsnap.runtime.failpoints import Failpoint
from mpsnap.runtime.recovering import RecoveringSupervisor
from mpsnap.runtime.recovery import Recovery
from mpsnap.store.contract import is_recovery_point
from mpsnap.store.directory import DirectoryStore
from mpsnap.store.disk import Disk

#: How long a drill may take on a busy machine.
DRILL_SECONDS = 30.0

Plan = Mapping[str, tuple[Failpoint, ...]]


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
        resume: bool = False,
        recovery: dict[str, Any] | None = None,
        **settings: Any,
    ) -> None:
        self.path = folder / "store"
        self.store = DirectoryStore(self.path, disk)
        self.topology, programs = assign(parse_topology(topology), node, params)
        self.total = sum(self.topology.tokens.values())
        last = self.store.latest(is_recovery_point) if resume else None
        self.supervisor = RecoveringSupervisor(
            self.topology,
            programs,
            Recovery(self.store, resume=last, **(recovery or {})),
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
                    check_conserved(event.snapshot, self.total)
                for stored in event.snapshot.stored:
                    stored.close()

    def until(self, condition: Callable[[], object], what: str, *, snapshots: bool = True) -> None:
        """Pump until something is so, or the cluster has ended; meanwhile begin one snapshot after another."""
        deadline = time.monotonic() + DRILL_SECONDS
        while not condition() and not self.supervisor.ended:
            self.pump()
            now = time.monotonic()
            if snapshots and self.supervisor.state == "running" and not self.supervisor.open_snapshots:
                if now >= self.next_trigger:
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
        self.until(lambda: self.told(ClusterStarted), "the start")

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
        check_records(self.told(Emitted), final)
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
