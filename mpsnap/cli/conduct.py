"""What a run does and when it ends: snapshots in turn, the lines of a script, the end of the time.

This module owns the order of a `run`. It pumps the supervisor in the main thread and tells what happened to an
audience; it must not print.
"""

from __future__ import annotations

import itertools
import os
import signal
import time
from collections.abc import Callable, Sequence
from types import FrameType
from typing import NamedTuple

from mpsnap.core.errors import (
    ConsistencyError,
    InvariantError,
    MpsnapError,
    NodeError,
    SnapshotError,
    SnapshotLost,
    StoreError,
)
from mpsnap.core.events import (
    ClusterStarted,
    ClusterStopped,
    CommandLost,
    Event,
    Initiated,
    Replied,
    SnapshotAbandoned,
    SnapshotCompleted,
)
from mpsnap.core.protocol import SnapshotId
from mpsnap.core.script import Script, Send, Snapshot, Tick
from mpsnap.core.snapshot import Invariant, check_invariants
from mpsnap.runtime.chaos import Chaos
from mpsnap.runtime.supervisor import Supervisor
from mpsnap.server.control import Control

#: How long a stop after a signal may take before nodes are killed; shorter than an orderly end's, somebody waits.
INTERRUPTED_STOP_SECONDS = 1.0
#: How long a script's `send` waits until the node holds the tokens, and how often it is asked.
SEND_SECONDS = 5.0
SEND_POLL_SECONDS = 0.005
_IDLE_SECONDS = 60.0


class Plan(NamedTuple):
    """When a run takes snapshots, and when it ends by itself.

    `every` is None for one right after the other; `limit` of 0 takes none; `duration` of None has no end in time; an
    `endless` one goes on when its script and its program have come to their end.
    """

    every: float | None
    limit: int | None
    concurrent: int
    initiators: Sequence[tuple[str, ...]]
    duration: float | None
    until_terminated: bool
    endless: bool = False


class Conductor:
    """Carry a plan, and a script if there is one, out on a supervisor.

    Args:
        supervisor: What is conducted, not yet started.
        plan: When snapshots are taken, and when it ends.
        script: Lines to be issued, None for none.
        invariants: Must be true of every snapshot.
        audience: Is told each event.
        patience: Seconds that nodes have to stop after a signal.
        chaos: Comes over the nodes while they run, None if nothing does.
    """

    def __init__(
        self,
        supervisor: Supervisor,
        plan: Plan,
        script: Script | None,
        invariants: Sequence[Invariant],
        audience: Callable[[Event], None],
        *,
        patience: float = INTERRUPTED_STOP_SECONDS,
        chaos: Chaos | None = None,
    ) -> None:
        self._supervisor = supervisor
        self._plan = plan
        self._patience = patience
        self._chaos = chaos
        self._script = _ScriptRunner(supervisor, script) if script else None
        self._invariants = invariants
        self._audience = audience
        self._initiators = itertools.cycle(plan.initiators)
        #: The snapshots of the plan that are open, and how many of it have begun and were not lost.
        self._open: set[SnapshotId] = set()
        self._begun = 0
        self._due = 0.0
        self._signals = 0
        #: Those of stdout and stderr that are a terminal.
        self._terminals = [fd for fd in (1, 2) if os.isatty(fd)]
        self._stopping = False
        #: Whether somebody has asked for an orderly end.
        self._asked_to_stop = False
        #: When all nodes were ready, on the monotonic clock; 0 before.
        self.started = 0.0
        self.error: MpsnapError | None = None
        #: Lets others see and steer the cluster, None if nothing does; to be set before the run.
        self.control: Control | None = None
        #: Whether there is no hope any more that a cut proves the end of the program.
        self._undecided = False

    @property
    def interrupted(self) -> bool:
        """Whether a signal asked for the end."""
        return self._signals > 0

    def run(self) -> None:
        """Start the cluster, see the plan through, and return when no process is left."""
        # A terminal that is closed asks for the end too, unless nohup has said that it is not to.
        hangup = () if signal.getsignal(signal.SIGHUP) is signal.SIG_IGN else (signal.SIGHUP,)
        signals = (signal.SIGINT, signal.SIGTERM, *hangup)
        before = {number: signal.signal(number, self._on_signal) for number in signals}
        try:
            # Nodes inherit the mask: a Ctrl-C while they are still importing must not kill them with a traceback each.
            # So does multiprocessing's fork server, which would not survive the closing of a terminal.
            signal.pthread_sigmask(signal.SIG_BLOCK, signals)
            try:
                self._supervisor.start()
            finally:
                signal.pthread_sigmask(signal.SIG_UNBLOCK, signals)
            if self.control is not None:
                self.control.start()
            while not self._supervisor.ended:
                self._act()
                for event in self._supervisor.pump(self._pause()):
                    self._attend(event)
            for event in self._supervisor.pump(0):
                self._attend(event)
        finally:
            self._supervisor.close()
            for number, handler in before.items():
                signal.signal(number, handler)

    def stop(self) -> None:
        """Bring the run to an orderly end, soon."""
        self._asked_to_stop = True
        self._supervisor.ring()

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        # Only a count and a ring: the loop does the work, between two of its own steps.
        self._signals += 1
        if number == signal.SIGHUP:
            # Whatever is written there fails from now on, and would be told in the place of how the run has ended.
            for fd in self._terminals:
                os.dup2(os.open(os.devnull, os.O_WRONLY), fd)
        self._supervisor.ring()

    # ------------------------------------------------------------------ the loop

    def _act(self) -> None:
        if self._signals > 1:
            self._supervisor.kill()
        elif self._signals == 1:
            self._stop(self._patience)
        elif self._asked_to_stop:
            self._stop(None)
        elif self._supervisor.state == "running" and not self._stopping:
            if self._script is not None:
                self._script.act()
            self._begin_snapshots()
            if self._is_over():
                self._stop(None)
        if self._chaos is not None and not self._stopping:
            self._chaos.act()

    def _stop(self, seconds: float | None) -> None:
        if not self._stopping:
            self._stopping = True
            if self._chaos is not None:
                self._chaos.end()
            self._supervisor.stop() if seconds is None else self._supervisor.stop(seconds)

    def _pause(self) -> float:
        if self._supervisor.state != "running" or self._stopping:
            return _IDLE_SECONDS
        now = time.monotonic()
        waits = [_IDLE_SECONDS]
        if self._chaos is not None:
            waits.append(self._chaos.due - now)
        if self._script is not None and not self._script.done:
            waits.append(self._script.due - now)
        has_room = self._supervisor.open_snapshots < self._plan.concurrent
        if self._wants_snapshots() and self._plan.every is not None and has_room:
            waits.append(self._due - now)
        if self._plan.duration is not None:
            waits.append(self.started + self._plan.duration - now)
        return max(0.0, min(waits))

    def _wants_snapshots(self) -> bool:
        # One after the other without a gap would keep a run that is over from its end.
        if self._has_run_out():
            return False
        if self._plan.limit is not None and self._begun >= self._plan.limit:
            return False
        # One that is due when the time is over is still taken.
        return self._plan.duration is None or self._due - self.started <= self._plan.duration

    def _begin_snapshots(self) -> None:
        plan = self._plan
        now = time.monotonic()
        if plan.every is not None and now < self._due:
            return
        room = plan.concurrent - self._supervisor.open_snapshots
        for _ in range(room):
            if not self._wants_snapshots() or (plan.every is None and self._time_is_over(now)):
                return
            self._open.add(self._supervisor.trigger(next(self._initiators)))
            self._begun += 1
        if plan.every is not None and room > 0:
            # No debt: what could not be begun in time is left out.
            self._due = max(self._due + plan.every, now)

    def _time_is_over(self, now: float) -> bool:
        return self._plan.duration is not None and now - self.started >= self._plan.duration

    def _is_over(self) -> bool:
        if self.error is not None and isinstance(self.error, ConsistencyError):
            return True
        if self._supervisor.open_snapshots:
            return False
        if self._script is not None and self._script.error is not None:
            self.error = self.error or self._script.error
            return True
        if self._time_is_over(time.monotonic()):
            self.error = self.error or self._unfinished()
            return True
        if self._script is None and self._plan.limit and self._begun >= self._plan.limit:
            return True
        return self._has_run_out()

    def _has_run_out(self) -> bool:
        """Whether the script, or the program if it ends by itself, has come to its end, and the run with it."""
        if self._plan.endless:
            return False
        if self._script is not None:
            return self._script.done or self._script.error is not None
        # A probe that was abandoned cannot prove the end, and nothing says that the next one would.
        ended = self._supervisor.terminated is not None or self._undecided
        return self._plan.until_terminated and ended

    def _unfinished(self) -> SnapshotError | None:
        """Return what should have come to an end of its own when the time was over."""
        if self._script is not None and not self._script.done:
            what, where = "the time was over before the script was", self._script.place
        elif self._plan.until_terminated and self._supervisor.terminated is None:
            what, where = "the time was over before a cut proved that the program had ended", None
        else:
            return None
        return SnapshotError(what, where=where, hint="a longer --duration")

    def _attend(self, event: Event) -> None:
        if isinstance(event, ClusterStarted):
            self.started = time.monotonic()
            self._due = self.started + (self._plan.every or 0.0)
        elif isinstance(event, SnapshotAbandoned):
            # What the end takes with it is no failure of the snapshot, and no news: why it ended comes next.
            if self._stopping or self._supervisor.ended:
                if self.control is not None:
                    self.control.attend(event)
                return
            self._on_abandoned(event)
        elif isinstance(event, ClusterStopped):
            # A SIGTERM to all processes at once, as service managers send it, is no failure of the nodes that it ends.
            told = isinstance(event.error, NodeError) and event.error.status == "killed by SIGTERM"
            self.error = self.error or (None if told and self.interrupted else event.error)
        if self._script is not None:
            self._script.attend(event)
        if self.control is not None:
            self.control.attend(event)
        self._audience(event)
        if isinstance(event, SnapshotCompleted):
            self._open.discard(event.snapshot.id)
            try:
                check_invariants(event.snapshot, self._invariants)
            except InvariantError as error:
                self.error = self.error or error

    def _on_abandoned(self, event: SnapshotAbandoned) -> None:
        planned = event.snapshot_id in self._open
        self._open.discard(event.snapshot_id)
        if isinstance(event.error, SnapshotLost):
            # The cluster goes on, and one that was to be taken is taken again.
            self._begun -= planned
            return
        asked_for = self.control is not None and self.control.asked_for(event.snapshot_id)
        if asked_for and not isinstance(event.error, ConsistencyError):
            return  # Whoever has asked for it is told. It was not the run's, and is no failure of it.
        self.error = self.error or event.error
        # Of a store that has no room for one snapshot, the next one may tell the end all the same.
        self._undecided = self._undecided or not (planned and isinstance(event.error, StoreError))


class _ScriptRunner:
    """Issue the lines of a script, each when the one before is acknowledged."""

    def __init__(self, supervisor: Supervisor, script: Script) -> None:
        self._supervisor = supervisor
        self._source = script.source
        self._steps = list(reversed(script.steps))
        self._last = script.steps[-1].line
        #: What the line that was issued waits for: a ticket, a snapshot id, or nothing.
        self._awaited: int | SnapshotId | None = None
        #: The lines of snapshots that are open.
        self._open: dict[SnapshotId, Snapshot] = {}
        #: When the next line may be issued.
        self.due = 0.0
        #: When the line that waits for tokens gives up.
        self._patience = float("inf")
        self.error: MpsnapError | None = None

    @property
    def done(self) -> bool:
        """Whether every line was issued and acknowledged."""
        return not self._steps and self._awaited is None and time.monotonic() >= self.due

    @property
    def place(self) -> str:
        """The line that is to be issued or acknowledged next, or the last one."""
        return f"{self._source}:{self._steps[-1].line if self._steps else self._last}"

    def act(self) -> None:
        """Issue the next line if it is time."""
        if self._awaited is not None:
            self.due = time.monotonic() + _IDLE_SECONDS
            return
        if not self._steps or self.error is not None or time.monotonic() < self.due:
            return
        step = self._steps[-1]
        if isinstance(step, Send):
            self._awaited = self._supervisor.command(step.src, {"send": step.dst, "amount": step.amount})
            self._patience = min(self._patience, time.monotonic() + SEND_SECONDS)
        elif isinstance(step, Snapshot):
            self._awaited = self._supervisor.trigger([step.node], acknowledged=True)
            self._open[self._awaited] = step
        elif isinstance(step, Tick):
            self._next(time.monotonic() + step.count / 1000)

    def attend(self, event: Event) -> None:
        """Take note of an acknowledgement."""
        if isinstance(event, Replied) and event.ticket == self._awaited:
            self._on_reply(event.value)
        elif isinstance(event, CommandLost) and event.ticket == self._awaited:
            self._again()
        elif isinstance(event, SnapshotAbandoned) and isinstance(event.error, SnapshotLost):
            self._on_lost(event.snapshot_id)
        elif isinstance(event, Initiated | SnapshotAbandoned) and event.snapshot_id == self._awaited:
            self._next(0.0)
        elif isinstance(event, SnapshotCompleted):
            self._open.pop(event.snapshot.id, None)

    def _again(self) -> None:
        """Issue the same line once more."""
        self._awaited = None
        self.due = 0.0

    def _on_lost(self, snapshot_id: SnapshotId) -> None:
        step = self._open.pop(snapshot_id, None)
        if snapshot_id == self._awaited:
            self._again()
        elif step is not None:
            # Before what was to come next, unless that is under way: then it stays the next to be acknowledged.
            self._steps.insert(len(self._steps) - (self._awaited is not None), step)

    def _on_reply(self, accepted: object) -> None:
        step = self._steps[-1]
        if accepted is not False:
            self._next(0.0)
            return
        self._awaited = None
        self.due = time.monotonic() + SEND_POLL_SECONDS
        if self.due > self._patience and isinstance(step, Send):
            self.error = SnapshotError(
                f"{step.src} did not hold {step.amount} tokens within {SEND_SECONDS:g} s",
                where=self.place,
                hint="sending them there first",
            )

    def _next(self, due: float) -> None:
        self._steps.pop()
        self._awaited = None
        self.due = due
        self._patience = float("inf")
