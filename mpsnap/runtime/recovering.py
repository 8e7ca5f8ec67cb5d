"""A supervisor whose cluster survives the death of its nodes.

This module owns what a store adds to the life of a cluster: the initial cut, what follows a death, and the last cut of
an orderly end. It must not know how nodes are spawned or fenced, nor how a snapshot is collected.

    starting -> (initial cut) -> running -> stopping -> (last cut) -> ended
                                 |    ^        |
                          a death v    |        v a death before the last cut
                              recovering <------

Rules a maintainer keeps:

- Nobody handles a message before the initial cut is durable: from then on there is always something to go on from.
- A death fences all nodes, and nothing of their incarnation is used again: not a queue, not a part of a snapshot, not a
  record that waits. The new incarnation's number is on the disk before its first process is spawned.
- A node that fails before it ever was ready fails the start: it would do so again.
- An orderly end has the nodes run `on_stop`, takes a cut of what that has left, and only when this is durable, and the
  records it covers are released, lets them go.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

from mpsnap.core.errors import (
    ClusterError,
    MpsnapError,
    NodeError,
    OutputError,
    SnapshotCorrupt,
    SnapshotLost,
    StoreError,
)
from mpsnap.core.events import (
    ClusterStarted,
    Event,
    NodeDied,
    Recovered,
    SnapshotAbandoned,
    SnapshotCompleted,
)
from mpsnap.core.program import Program
from mpsnap.core.protocol import SnapshotId
from mpsnap.core.topology import Topology
from mpsnap.runtime.commits import StoreCommits
from mpsnap.runtime.outputs import Outputs
from mpsnap.runtime.recovery import BUDGET_SECONDS, Recovery, Restarts
from mpsnap.runtime.seal import own_key
from mpsnap.runtime.supervisor import STOP_SECONDS, Supervisor


class RecoveringSupervisor(Supervisor):
    """Run a cluster that goes on from its last recovery point when a node dies.

    Args:
        topology: Nodes and channels.
        programs: What each node runs.
        recovery: Where its snapshots are kept, and how long it tries.
        settings: As `Supervisor`.

    Raises:
        InputError: As `Supervisor`; or a node keeps pickles, and there is no key to seal them with.
    """

    def __init__(
        self, topology: Topology, programs: Mapping[str, Program], recovery: Recovery, **settings: Any
    ) -> None:
        super().__init__(topology, programs, **settings)
        self._recovery = recovery
        self._restarts = Restarts(recovery.restarts)
        self._outputs = Outputs(self._readers, self._happened, recovery.sink, holds=not recovery.emit_early)
        pickling = frozenset(node for node, program in programs.items() if self._classes[program.reference].pickle)
        self._commits: StoreCommits = StoreCommits(
            recovery.store,
            programs,
            pickling,
            self._outputs,
            # Now, for nobody could go on from what is kept without one: no key, no run.
            seal=own_key().seal if pickling else None,
            keep=recovery.keep,
            run=recovery.run,
            last=recovery.resume,
            happened=self._happened,
        )
        #: The initial cut and the last one, while they are taken.
        self._initial: SnapshotId | None = None
        self._last: SnapshotId | None = None
        #: Whether the last cut is durable, or never will be, so that a death costs nothing any more.
        self._sealed = False
        #: How long the stop that was asked for may take, None if none was.
        self._stop_within: float | None = None
        #: When the first node died of those whose death is being recovered from.
        self._died = 0.0
        #: Nodes of this incarnation whose death is intended: it is no sign that they would die for ever.
        self.excused: set[str] = set()

    # ---------------------------------------------------------------- starting

    def _spawn_first(self) -> None:
        store, resumed = self._recovery.store, self._recovery.resume
        place = store.next_incarnation()
        if resumed is None:
            self._spawn(place.incarnation, place, None)
        else:
            self._outputs.release(store.outputs(resumed.number))
            self._spawn(place.incarnation, place, (resumed, store.origin(resumed.number)))

    def _begin_incarnation(self, number: int) -> None:
        super()._begin_incarnation(number)
        self._halted: set[str] = set()
        self._on_note["halted"] = self._on_halted

    def _on_all_ready(self) -> None:
        if self._commits.last is None:
            # Before "go": what `setup` has sent is in it, and nothing has been handled.
            self._initial = self._upcoming()
            self._snapshots.trigger(self.topology.initiators(()), None)
        elif self.state == "recovering":
            self._go()
            self._happened(Recovered(self._number, self._commits.last.number, time.monotonic() - self._died))
            if self._stop_within is not None:
                self.stop(self._stop_within)
        else:
            super()._on_all_ready()
            # What was released on the way is covered from now on, and of several that one might go on from, this is the
            # newest.
            self._snapshots.trigger(self.topology.initiators(()), None)

    def _upcoming(self) -> SnapshotId:
        # Known before it is triggered: one for which the store has no room is abandoned at once.
        return self._snapshots.upcoming(self.topology.initiators(()))

    def _happened(self, event: Event) -> None:
        super()._happened(event)
        if isinstance(event, SnapshotCompleted):
            if event.snapshot.id == self._initial:
                self._initial = None
                self._go()
                super()._happened(ClusterStarted(self.topology.nodes))
            elif event.snapshot.id == self._last:
                self._seal()
        elif isinstance(event, SnapshotAbandoned) and event.snapshot_id in (self._initial, self._last):
            if event.snapshot_id == self._initial and not self.ended:
                self._end(
                    ClusterError(f"the initial cut could not be kept: {event.error.what}", where=event.error.where)
                )
            elif not self.ended:
                self.error = self.error or event.error
                self._seal()

    def pump(self, timeout: float) -> list[Event]:
        """Wait at most `timeout` seconds for anything to happen; see `Supervisor.pump`."""
        try:
            return super().pump(timeout)
        except OutputError as error:
            # Whatever else could go on, nobody would get what it puts out.
            self._end(error)
            return super().pump(0)

    # ------------------------------------------------------------------ deaths

    @property
    def _goes_on(self) -> bool:
        return not self._sealed

    def _on_late_death(self, error: NodeError) -> None:
        # All that it has done is durable and released, and nothing of the user's would have run in it any more: it is
        # told, and is no failure.
        self._happened(NodeDied(error.node, error))

    def _fail(self, error: NodeError) -> None:
        if self._sealed and not self._insisted:
            return  # It dies of it, see above.
        if self._commits.last is None or self._insisted or self.state == "starting":
            # Of the nodes that were told to stop by a signal, the first to die is not the one that did not stop.
            self._end(self.error or error)
            return
        now = time.monotonic()
        self._died = self._died if self.state == "recovering" else now
        intended = error.node in self.excused
        try:
            self._give_up_incarnation(error)
        except ClusterError as unkillable:
            self._end(unkillable)
            return
        self._happened(NodeDied(error.node, error))
        self._questions.lose_all()
        self._recover_or_end(_too_often(error, self._restarts.most), counts=not intended)

    def _give_up_incarnation(self, error: NodeError) -> None:
        self.state = "recovering"
        self._deadlines.clear()
        self._fence()
        # Before they are told: the last cut is taken again, and the cluster is not to go without it.
        self._last = None
        self._snapshots.lose_all(SnapshotLost(error.what, where=error.where))
        self._outputs.take_back()
        self.excused.clear()

    def _recover_or_end(self, error: MpsnapError, *, counts: bool) -> None:
        """Recover when it is time to, or end because of `error` if there were too many recoveries that count."""
        pause = self._restarts.next_pause(time.monotonic()) if counts else 0.0
        if pause is None:
            self._end(error)
        else:
            self._deadlines.set("recover", pause, self._recover)

    def _recover(self) -> None:
        """Begin a new incarnation from the last recovery point."""
        store = self._recovery.store
        assert self._commits.last is not None
        try:
            # Read anew, for it may have been damaged since; and rather none than an older one, which would repeat what
            # was released.
            manifest = store.manifest(self._commits.last.number)
            place = store.next_incarnation()
            self._spawn(place.incarnation, place, (manifest, store.origin(manifest.number)))
        except SnapshotCorrupt as error:
            self._end(error)
        except StoreError as error:
            # A disk that is full now may not be so the next time.
            self._recover_or_end(error, counts=True)
        except (MpsnapError, OSError) as error:
            if not self.ended:
                why = error if isinstance(error, MpsnapError) else ClusterError(f"no node could be started: {error}")
                self._end(why)

    # ---------------------------------------------------------------- stopping

    def stop(self, seconds: float = STOP_SECONDS) -> None:
        """Ask every node to stop, and keep a last cut of what they have left; otherwise as `Supervisor.stop`."""
        self._stop_within = seconds
        if self.state == "running":
            self._snapshots.begin_no_more()
        super().stop(seconds)

    def _ask_to_stop(self) -> None:
        for node in self.topology.nodes:
            self._tell(node, "halt")

    def _on_halted(self, node: str) -> None:
        self._halted.add(node)
        if len(self._halted) == len(self.topology.nodes):
            self._last = self._upcoming()
            self._snapshots.trigger(self.topology.initiators(()), None, final=True)

    def _unstopped(self) -> set[str]:
        if self._sealed:
            return super()._unstopped()
        for collection in self._snapshots.open:
            if collection.id == self._last:
                return set(collection.missing(self.topology))
        return set(self.topology.nodes) - self._halted

    def _seal(self) -> None:
        self._last = None
        self._sealed = True
        super()._ask_to_stop()


def _too_often(error: NodeError, most: int) -> NodeError:
    """Return the error of a node that has died once more than the cluster recovers from."""
    often = f", and that after {most} recover{'y' if most == 1 else 'ies'} within {BUDGET_SECONDS:g} s" if most else ""
    # What comes again after each recovery, and then kills, has to be known to be got rid of.
    sender, number = error.in_hand or ("", 0)
    last = f"; it had message {number} of {sender}->{error.node} in hand" if sender else ""
    return NodeError(
        f"{error.what}{often}{last}",
        node=error.node,
        phase=error.phase,
        status=error.status,
        traceback=error.traceback,
        in_hand=error.in_hand,
        where=error.where,
        hint=error.hint or "a look at what it did last; snapshots are kept, and the run can be resumed",
    )
