"""The snapshots of a running cluster: begun, collected, merged, abandoned.

This module owns the snapshots that are open and how each of them ends. It must not know processes, pipes or when to
wait: it is told what nodes say, and tells nodes and the audience what it wants through the functions it is given.

Rules a maintainer keeps:

- A snapshot is merged only when every part is there, and told only when it is verified.
- However a snapshot ends, its id is remembered: what still arrives of it is ignored.
- A deadline is not the end: nodes are asked what they await, and if all parts come meanwhile, it is whole after all.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping

from mpsnap.core.codec import Codec
from mpsnap.core.emptycut import EmptyCut
from mpsnap.core.errors import CodecError, ConsistencyError, MpsnapError, SnapshotError, StoreError
from mpsnap.core.events import Event, Initiated, SnapshotAbandoned, SnapshotCompleted, SnapshotInitiated
from mpsnap.core.protocol import FinishedIds, SnapshotId
from mpsnap.core.snapshot import GlobalSnapshot, StoredState
from mpsnap.core.topology import Topology
from mpsnap.runtime.collection import Collection
from mpsnap.runtime.commits import Commits
from mpsnap.runtime.deadlines import Deadlines
from mpsnap.runtime.frames import ToldId
from mpsnap.store.manifest import Receipt

#: How long a snapshot that is given up waits for the nodes to say what they await.
GIVE_UP_SECONDS = 0.25
#: Between two probes for termination: at least, at most, and times what the last one took.
PROBE_SECONDS = (0.02, 0.25)
PROBE_FACTOR = 4


class Snapshots:
    """Keep the open snapshots of one cluster.

    Args:
        topology: What a snapshot has to cover.
        codecs: How to read each node's values; they leave pickles alone.
        incarnation: Part of every snapshot id.
        timeout: Seconds a snapshot may take unless its trigger says otherwise.
        commits: Numbers snapshots, and keeps them.
        deadlines: Where what is due later is noted.
        tell: Gives a node a note.
        happened: Is told each event.
        doing: Says in words what a node does now.
    """

    def __init__(
        self,
        topology: Topology,
        codecs: Mapping[str, Codec],
        incarnation: int,
        timeout: float,
        commits: Commits,
        *,
        deadlines: Deadlines,
        tell: Callable[..., None],
        happened: Callable[[Event], None],
        doing: Callable[[str], str],
    ) -> None:
        self._topology = topology
        self._empty_cut = EmptyCut(topology)
        self._codecs = codecs
        self._incarnation = incarnation
        self._timeout = timeout
        self._commits = commits
        self._deadlines = deadlines
        self._tell = tell
        self._happened = happened
        self._doing = doing
        #: Open snapshots, in the order in which they were learned of.
        self._open: dict[ToldId, Collection] = {}
        self._finished = FinishedIds()
        #: How many snapshots were triggered at each node.
        self._triggered: dict[str, int] = {}
        self._probing = False
        #: Whether what nodes still begin by themselves comes too late.
        self._closing = False
        #: The snapshot that holds how the run has ended, once it has begun.
        self._final: SnapshotId | None = None
        #: Commands that are not answered, and how many there ever were: no cut sees them on their way to a node.
        self._commands = 0
        self._disturbances = 0
        #: A cut that proves that nothing can happen any more, once there is one.
        self.terminated: GlobalSnapshot | None = None

    @property
    def open(self) -> list[Collection]:
        """The open snapshots, those that nobody asked for (probes) included."""
        return list(self._open.values())

    # ------------------------------------------------------------------ beginning

    def trigger(
        self, initiators: tuple[str, ...], timeout: float | None, *, acknowledged: bool = False, final: bool = False
    ) -> SnapshotId:
        """Begin one at all of these nodes, which must reach every node.

        When it has recorded, each of them says so if that is to be `acknowledged`. A `final` one holds how the run has
        ended.
        """
        snapshot_id = self._trigger(initiators, timeout, numbered=True, acknowledged=acknowledged)
        self._final = snapshot_id if final else self._final
        return snapshot_id

    def upcoming(self, initiators: tuple[str, ...]) -> SnapshotId:
        """Return the id of the snapshot that is triggered next at these nodes."""
        first = initiators[0]
        return SnapshotId.triggered(self._incarnation, first, self._triggered.get(first, 0))

    def probe_until_terminated(self) -> None:
        """From now on look for a cut that proves termination; only that one is told of."""
        self._probing = True
        self._deadlines.set("probe", PROBE_SECONDS[0], self._probe)

    def disturb(self) -> None:
        """Note that a command is on its way: until it is answered, and for cuts begun before it, nothing is over."""
        self._commands += 1
        self._disturbances += 1
        if self.terminated is not None:
            self.terminated = None
            self._deadlines.set("probe", PROBE_SECONDS[0], self._probe)

    def settle(self) -> None:
        """Note that a command was answered."""
        self._commands -= 1

    def _probe(self) -> None:
        if self.terminated is None:
            self._trigger(self._topology.initiators(()), None, numbered=False)

    def _trigger(
        self, initiators: tuple[str, ...], timeout: float | None, *, numbered: bool, acknowledged: bool = False
    ) -> SnapshotId:
        snapshot_id = self.upcoming(initiators)
        self._triggered[initiators[0]] = self._triggered.get(initiators[0], 0) + 1
        began = time.monotonic()
        if not numbered and self._commits.keeps:
            # To each, and before the first marker leaves: whoever does not hear of it in time stages for nothing.
            for node in self._topology.nodes:
                self._tell(node, "pass", snapshot_id)
        for node in initiators:
            self._tell(node, "trigger", snapshot_id, acknowledged)
        # While they wake up; what they say of it is not read before.
        self._learn(snapshot_id, initiators, began, timeout, numbered=numbered)
        return snapshot_id

    def _learn(
        self,
        snapshot_id: SnapshotId,
        initiators: tuple[str, ...],
        began: float,
        timeout: float | None,
        *,
        numbered: bool,
    ) -> Collection | None:
        """Open a snapshot; None if there is no room for it, which is told like every other reason to abandon one."""
        number = None
        triggered = snapshot_id.n % 2 == 1
        if numbered:
            try:
                number = self._commits.begin()
            except StoreError as error:
                self._finished.add(snapshot_id)
                self._abandon_everywhere(snapshot_id)
                self._happened(SnapshotAbandoned(None, snapshot_id, error))
                self._go_on_probing()
                return None
            self._happened(SnapshotInitiated(number, snapshot_id, initiators))
        seconds = self._timeout if timeout is None else timeout
        point = numbered and triggered and not any(collection.recovery_point for collection in self._open.values())
        collection = Collection(number, snapshot_id, initiators, began, seconds, point)
        collection.disturbances = self._disturbances
        self._open[snapshot_id] = collection
        self._deadlines.set(snapshot_id, seconds, lambda: self._give_up(collection))
        return collection

    # ------------------------------------------------------------ what nodes say

    def initiated(self, node: str, told: ToldId) -> None:
        """A node has recorded spontaneously."""
        self._find(told)
        self._happened(Initiated(node, SnapshotId(*told)))

    def report(
        self,
        node: str,
        told: ToldId,
        times: tuple[float, ...],
        data: bytes,
        state: bytes | StoredState | None = None,
        staged: tuple[Receipt | None, Receipt | None] | None = None,
    ) -> None:
        """A node's part is complete; `state` is what came apart from `data`, if anything did.

        `times` are when it was recorded and closed; `staged` are the receipts of the state, in place of `state`, and of
        what is to be kept of the part.
        """
        collection = self._find(told)
        if staged is not None:
            try:
                state = self._commits.stage(SnapshotId(*told), node, *staged) or state
            except StoreError as error:
                self.refused(node, told, error.what, error.where, error.hint)
                return
        if collection is not None:
            collection.add(node, data, state, times)
            if len(collection.parts) == len(self._topology.nodes):
                self._complete(collection)
            return
        if isinstance(state, StoredState):
            state.close()
        self._commits.abandon(SnapshotId(*told), None)

    def refused(self, node: str, told: ToldId, what: str, where: str | None = None, hint: str | None = None) -> None:
        """A node cannot give its part."""
        collection = self._find(told)
        if collection is not None:
            self.abandon(collection, SnapshotError(f"snapshot {collection}: {what}", where=where or node, hint=hint))

    def abandoned(self, node: str, told: ToldId, awaited: tuple[str, ...] | None) -> None:
        """A node has given a snapshot up and says which sources it still awaited, None if it had not recorded.

        With none left to await, it was still encoding its state.
        """
        collection = self._open.get(told)
        if collection is not None:
            collection.answers[node] = awaited
            if all(missing in collection.answers for missing in collection.missing(self._topology)):
                self._expire(collection)

    def inspected(self, node: str, about: Iterable[tuple[ToldId, float, tuple[str, ...]]]) -> None:
        """A node says when it recorded for each open snapshot, and which sources it still awaits."""
        for told, recorded, awaited in about:
            collection = self._open.get(told)
            if collection is not None:
                collection.inspected(node, recorded, awaited)

    def _find(self, told: ToldId) -> Collection | None:
        """Return the open snapshot of this id, opened now if a node has begun it by itself; None if it is finished."""
        found = self._open.get(told)
        if found is not None:
            return found
        snapshot_id = SnapshotId(*told)
        if snapshot_id in self._finished:
            return None
        if self._closing:
            self._finished.add(snapshot_id)
            self._abandon_everywhere(snapshot_id)
            return None
        return self._learn(snapshot_id, (snapshot_id.initiator,), time.monotonic(), None, numbered=True)

    # --------------------------------------------------------------------- ending

    def abandon(self, collection: Collection, error: MpsnapError) -> None:
        """Give an open snapshot up at once, everywhere."""
        self._abandon_everywhere(collection.id)
        self._close(collection, error)

    def _abandon_everywhere(self, snapshot_id: SnapshotId) -> None:
        for node in self._topology.nodes:
            self._tell(node, "abandon", snapshot_id)

    def begin_no_more(self) -> None:
        """Have the nodes give up what is open, and what they have begun and this does not know of yet.

        The end is near, and would wait until they have staged it all.
        """
        self._closing = True
        for collection in self.open:
            self._abandon_everywhere(collection.id)

    def lose_all(self, error: MpsnapError | None) -> None:
        """Close every open snapshot, since the cluster ends, because of `error` or in good order."""
        self._probing = False
        for collection in self.open:
            self._close(collection, collection.lost(error))

    def _complete(self, collection: Collection) -> None:
        probe = collection.number is None
        undisturbed = self._commands == 0 and collection.disturbances == self._disturbances
        number = self._commits.upcoming if collection.number is None else collection.number
        try:
            snapshot = collection.merge(number, self._topology, self._empty_cut, self._codecs, time.monotonic())
            # Only then does anybody ask.
            terminated = self._probing and undisturbed and snapshot.terminated
            if not probe:
                final = collection.id == self._final
                self._commits.commit(snapshot, recovery_point=collection.recovery_point, final=final)
        except (CodecError, ConsistencyError, StoreError) as error:
            self._close(collection, error)
            return
        self._close(collection, None)
        if probe and not terminated:
            self._probe_later(collection)
        elif probe and self._commits.keeps:
            # It was looked at and not kept: another one is, and what it says holds for good.
            self._trigger(self._topology.initiators(()), None, numbered=True)
        else:
            if probe:
                self._commits.begin()
            self._tell_of(snapshot, collection, terminated)

    def _tell_of(self, snapshot: GlobalSnapshot, collection: Collection, terminated: bool) -> None:
        if terminated and self._probing and self.terminated is None:
            self.terminated = snapshot
            self._deadlines.cancel("probe")
        elif self._commits.keeps and self._probing and not self._is_probing():
            # The one that was to keep what a probe had found did not find it: a command came between.
            self._probe_later(collection)
        point = collection.recovery_point and self._commits.keeps
        self._happened(SnapshotCompleted(snapshot, collection.times(self._topology), point))

    def _is_probing(self) -> bool:
        under_way = any(collection.number is None for collection in self._open.values())
        return under_way or self.terminated is not None or self._deadlines.holds("probe")

    def _go_on_probing(self) -> None:
        """See to it that one that was abandoned is not the last, be it a probe or what was to keep its finding."""
        if self._probing and not self._is_probing():
            self._deadlines.set("probe", PROBE_SECONDS[1], self._probe)

    def _probe_later(self, collection: Collection) -> None:
        low, high = PROBE_SECONDS
        pause = max(low, min(high, PROBE_FACTOR * (time.monotonic() - collection.began)))
        self._deadlines.set("probe", pause, self._probe)

    def _give_up(self, collection: Collection) -> None:
        self._abandon_everywhere(collection.id)
        self._deadlines.set(collection.id, GIVE_UP_SECONDS, lambda: self._expire(collection))

    def _expire(self, collection: Collection) -> None:
        self._close(collection, collection.expired(self._topology, self._doing))

    def _close(self, collection: Collection, error: MpsnapError | None) -> None:
        """Take a snapshot out of the open ones; with an error it is abandoned and told so."""
        del self._open[collection.id]
        self._finished.add(collection.id)
        self._deadlines.cancel(collection.id)
        if error is not None or collection.number is None:
            self._commits.abandon(collection.id, collection.number)
        if error is not None:
            collection.drop()
            progress = collection.progress(self._topology.nodes)
            self._happened(SnapshotAbandoned(collection.number, collection.id, error, progress))
            self._go_on_probing()
