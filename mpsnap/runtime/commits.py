"""What becomes of a complete snapshot: its number, and with a store its commit.

This module owns the numbers of snapshots and, with a store, what is written about one and when its outputs are
released. It must not know how a snapshot is collected, or what a store does with files.

Recovery points are taken one after another, and only they release outputs: of two that overlap, the one committed last
might be the one cut first. Every other snapshot is kept as well.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any

from mpsnap.core.errors import StoreError
from mpsnap.core.events import SurplusKept
from mpsnap.core.program import Program
from mpsnap.core.protocol import SnapshotId
from mpsnap.core.snapshot import GlobalSnapshot, StoredState
from mpsnap.runtime.outputs import Outputs
from mpsnap.store.contract import SnapshotStore
from mpsnap.store.manifest import Manifest, NodeEntry, Receipt, Seal, describe


class Commits:
    """Number the snapshots of a run without a store."""

    #: Whether snapshots are kept.
    keeps = False

    def __init__(self) -> None:
        #: The number that is given out next.
        self.upcoming = 0

    def begin(self) -> int:
        """Give out the number of a snapshot that begins.

        Raises:
            StoreError: The store has no room for it.
        """
        number = self.upcoming
        self.upcoming += 1
        return number

    def stage(
        self, snapshot_id: SnapshotId, node: str, state: Receipt | None, part: Receipt | None
    ) -> StoredState | None:
        """Take note of what a node has staged; return its state, if that is there.

        Raises:
            StoreError: It is not.
        """
        return None

    def commit(self, snapshot: GlobalSnapshot, *, recovery_point: bool, final: bool) -> None:
        """Keep a snapshot that is proven.

        Raises:
            StoreError: It is not kept.
            OutputError: What it covers could not be released.
        """

    def abandon(self, snapshot_id: SnapshotId, number: int | None) -> None:
        """Forget a snapshot that will not be committed."""


class StoreCommits(Commits):
    """Commit the snapshots of a run to a store.

    Args:
        store: Where to.
        programs: What each node runs.
        pickling: The nodes whose values may be pickles.
        outputs: What the nodes have put out.
        seal: Makes the seals of manifests, None where no node's values are pickles.
        keep: How many snapshots are kept, the one to go on from among them.
        run: Plain data that is kept with each: how the run was started.
        last: The manifest of the recovery point that the run goes on from, None for a fresh one.
        happened: Is told what costs no snapshot, and somebody should know.
    """

    keeps = True

    def __init__(
        self,
        store: SnapshotStore,
        programs: Mapping[str, Program],
        pickling: frozenset[str],
        outputs: Outputs,
        *,
        seal: Seal | None,
        keep: int,
        run: Mapping[str, Any],
        last: Manifest | None,
        happened: Callable[[SurplusKept], None],
    ) -> None:
        super().__init__()
        self._store = store
        self._programs = programs
        self._pickling = pickling
        self._outputs = outputs
        self._seal = seal
        self._keep = keep
        self._run = run
        #: The newest recovery point.
        self.last = last
        #: By snapshot, and by node, the receipts of the state, if that is apart, and of the part, if it is to be kept.
        self._staged: dict[SnapshotId, dict[str, tuple[Receipt | None, Receipt | None]]] = {}
        self._happened = happened
        #: Whether old snapshots could not be removed the last time.
        self._surplus = False

    def begin(self) -> int:
        """See `Commits`."""
        return self._store.begin()

    def stage(
        self, snapshot_id: SnapshotId, node: str, state: Receipt | None, part: Receipt | None
    ) -> StoredState | None:
        """See `Commits`."""
        self._staged.setdefault(snapshot_id, {})[node] = (state, part)
        return None if state is None else self._store.staged(state)

    def commit(self, snapshot: GlobalSnapshot, *, recovery_point: bool, final: bool) -> None:
        """See `Commits`."""
        emitted = {name: node.emitted for name, node in snapshot.nodes.items()}
        released = self._outputs.covered(emitted) if recovery_point else []
        manifest = describe(
            snapshot,
            self._entries(snapshot),
            wall_time=time.time(),
            recovery_point=recovery_point,
            emitted_bytes=self._outputs.sync() if recovery_point else None,
            run={**self._run, "final": final},
        )
        made = self._store.commit(manifest, released, self._seal)
        del self._staged[snapshot.id]
        if recovery_point:
            self.last = made
            self._outputs.release(released)
        self._retain()

    def _retain(self) -> None:
        try:
            # The one to go on from is not the newest recovery point if somebody has chosen an older one.
            last = None if self.last is None else self.last.number
            self._store.retain(max(0, self._keep - 1), lambda manifest: manifest.number != last)
            self._surplus = False
        except StoreError as error:
            # The snapshot that was just committed is there all the same.
            if not self._surplus:
                self._surplus = True
                self._happened(SurplusKept(error))

    def _entries(self, snapshot: GlobalSnapshot) -> dict[str, NodeEntry]:
        staged = self._staged.get(snapshot.id, {})
        entries = {}
        for name, node in snapshot.nodes.items():
            state, part = staged.get(name, (None, None))
            if part is None:
                raise StoreError(f"{name} has staged nothing of snapshot {snapshot.id}", where=name)
            program = self._programs[name]
            codec = "pickle" if name in self._pickling else "plain"
            entries[name] = NodeEntry(program.reference, program.params, codec, node.sent, node.received, part, state)
        return entries

    def abandon(self, snapshot_id: SnapshotId, number: int | None) -> None:
        """See `Commits`."""
        for receipts in self._staged.pop(snapshot_id, {}).values():
            self._store.drop_staged(receipt for receipt in receipts if receipt is not None)
        if number is not None:
            self._store.abandon(number)
