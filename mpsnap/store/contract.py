"""The contract of a store: where nodes stage what a snapshot is made of, and where snapshots are kept for good.

This module owns the five base classes below, and how a stored snapshot is put together and checked. It must not know
disks.

    Place             where the nodes of one incarnation stage files; it goes to their processes
    Blob              one file that is being staged
    Origin            the snapshot from which the nodes of one incarnation are restored; it goes to their processes
    SnapshotReader    what may be asked of a store by whoever only looks, also while a run writes
    SnapshotStore     the same, and what the supervisor of a run does to it

**A snapshot's way into a store.** The supervisor raises the incarnation, before it spawns anybody, and gives the place
that it got to the nodes. A snapshot begins with a number. Each node stages its part, and apart from it a state that is
large, and tells the receipts. From them the supervisor makes the manifest and commits. Until `commit` returns there is
no such snapshot; from then on it is there, whole, whatever is killed or loses its power.

Rules for whoever implements a store:

- Numbers grow and none is given twice: not those of abandoned, failed or removed snapshots either, nor after a crash.
- `commit` either raises, and the snapshot is not in the store, or the snapshot is durable. Whatever else fails leaves
  what was committed as it is, raises one `StoreError`, and does not stop the next call from succeeding.
- Reading runs no code from a snapshot: it unpickles nothing and imports none of the user's modules.
- What is not exactly what was committed is `SnapshotCorrupt`, never an odd snapshot or an empty list.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager
from types import TracebackType
from typing import TypeVar

from mpsnap.core.errors import SnapshotCorrupt
from mpsnap.core.protocol import LocalSnapshot
from mpsnap.core.snapshot import GlobalSnapshot, StoredState
from mpsnap.store.contents import Contents, Output
from mpsnap.store.manifest import Manifest, Receipt, Seal

Self = TypeVar("Self", bound="SnapshotReader")


class Blob(ABC):
    """Stand for a file that is being staged; filled once, be it by a forked child of the process that has opened it."""

    @abstractmethod
    def fill(self, data: bytes | memoryview) -> Receipt:
        """Write `data`, make it durable, and return the receipt; the file is closed.

        Raises:
            StoreError: There is no room, for one; nothing is left.
        """

    @abstractmethod
    def close(self) -> None:
        """Give up what holds the file here: somebody else has filled it, or will."""

    @abstractmethod
    def drop(self) -> None:
        """Remove the file: nobody will fill it, or nobody wants it; also right for one that is gone."""


class Place(ABC):
    """Say where the nodes of one incarnation stage files; it can be pickled."""

    #: The generation of processes that may stage here.
    incarnation: int

    @abstractmethod
    def create(self, node: int) -> Blob:
        """Open a new file for the node at this place in the topology.

        Raises:
            StoreError: There is no room, or no store any more.
        """

    def write(self, node: int, data: bytes | memoryview) -> Receipt:
        """Stage `data` and return the receipt.

        Raises:
            StoreError: As `create` and `Blob.fill`.
        """
        return self.create(node).fill(data)


class Origin(ABC):
    """Say which snapshot the nodes of an incarnation are restored from; it can be pickled."""

    @abstractmethod
    def part(self, node: str) -> LocalSnapshot:
        """Return the part of a node.

        Raises:
            StoreError: There is no such snapshot any more.
            SnapshotCorrupt: It is not what was committed.
        """


class SnapshotReader(ABC):
    """Look into a store, be it that of a running cluster: without a lock, and without changing anything.

    Every method that is given a number raises `StoreError` if there is no such snapshot, and `SnapshotCorrupt` if it is
    not what was committed.
    """

    @abstractmethod
    def numbers(self) -> tuple[int, ...]:
        """Return the numbers of the snapshots that are there, the newest last."""

    @abstractmethod
    def contents(self, number: int) -> AbstractContextManager[Contents]:
        """Open one snapshot for a `with` block."""

    @abstractmethod
    def origin(self, number: int) -> Origin:
        """Return what nodes are given that are restored from a snapshot."""

    @abstractmethod
    def close(self) -> None:
        """Give the store up; also right twice."""

    def manifest(self, number: int) -> Manifest:
        """Return what a snapshot says of itself."""
        with self.contents(number) as contents:
            return contents.manifest

    def load(self, number: int) -> GlobalSnapshot:
        """Return a snapshot, checked; the files of large states are checked when somebody looks at them.

        Its values are decoded without the user's classes, so they come back as `Opaque`, and pickles as `Pickled`.
        """
        with self.contents(number) as contents:
            return contents.snapshot()

    def outputs(self, number: int) -> tuple[Output, ...]:
        """Return the outputs that were not yet released when a snapshot was committed, in order."""
        with self.contents(number) as contents:
            return contents.outputs()

    def verify(self, number: int) -> None:
        """Read all of a snapshot and look at every value in it."""
        with self.contents(number) as contents:
            contents.verify()

    def latest(self, wanted: Callable[[Manifest], bool] = lambda manifest: True) -> Manifest | None:
        """Return the manifest of the newest snapshot that is `wanted`, None if there is none.

        A newer one that cannot be read raises `SnapshotCorrupt`: it may be the one that was meant, and to go on from an
        older one loses and repeats what was done since. That is for people to decide.
        """
        return next((found for number in reversed(self.numbers()) if wanted(found := self.manifest(number))), None)

    def __enter__(self: Self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def is_recovery_point(manifest: Manifest) -> bool:
    """Return whether a cluster may go on from a snapshot: it was meant for that, and its cut was proven."""
    return manifest.recovery_point and manifest.verified


class SnapshotStore(SnapshotReader):
    """Keep the snapshots of one run; there is one supervisor at a time, which alone calls what follows."""

    @abstractmethod
    def next_incarnation(self) -> Place:
        """Raise the incarnation, durably, and return where its nodes stage; what older ones staged is removed.

        Call it when no node of an older incarnation lives, and before one of the new is spawned.

        Raises:
            StoreError: It could not be raised.
        """

    @abstractmethod
    def begin(self) -> int:
        """Give out the number of a snapshot that begins.

        Raises:
            StoreError: It could not be reserved.
        """

    @abstractmethod
    def commit(self, manifest: Manifest, outputs: Iterable[Output] = (), seal: Seal | None = None) -> Manifest:
        """Make a snapshot durable and visible; return its manifest as it is in the store.

        However it ends, its number is used up and its staged files are gone from their place.

        Args:
            manifest: With the receipts of staged files, of the store's present incarnation.
            outputs: Records that were put out before the cut and are not released.
            seal: Makes the seal of what the manifest says in the end; for a manifest with pickles alone.

        Raises:
            StoreError: It is not in the store.
            CodecError: `run` or a node's `params` are no plain data; it is not in the store either.
            ProtocolError: Its number was not begun, or is committed or abandoned.
        """

    @abstractmethod
    def abandon(self, number: int) -> None:
        """Give up a snapshot that was begun; its number stays used up. Right also for one that is not open."""

    @abstractmethod
    def staged(self, receipt: Receipt) -> StoredState:
        """Open the staged file of a state, to be read when somebody looks at it; it stays readable once committed.

        Raises:
            StoreError: It is not there, or not as large as the receipt says.
        """

    @abstractmethod
    def drop_staged(self, receipts: Iterable[Receipt]) -> None:
        """Remove staged files that nobody will commit; those that are gone are none of its business."""

    @abstractmethod
    def remove(self, number: int) -> None:
        """Remove a snapshot.

        Raises:
            StoreError: There is none; or it is still there, or might be after a loss of power.
        """

    def summary(self, number: int) -> Manifest:
        """Return what a snapshot says of itself, or said when it was last read: for choosing among many."""
        return self.manifest(number)

    def retain(self, keep: int, among: Callable[[Manifest], bool] = lambda manifest: True) -> tuple[int, ...]:
        """Remove all but the newest `keep` snapshots of those `among` which to choose; return what was removed.

        Never removed are the newest recovery point, since a cluster may need it at any moment, and what cannot be read,
        since somebody will want to know why.

        Raises:
            StoreError: One could not be removed; those before it are.
        """
        manifests = []
        for number in self.numbers():
            try:
                manifests.append(self.summary(number))
            except SnapshotCorrupt:
                continue
        needed = max((found.number for found in manifests if is_recovery_point(found)), default=None)
        chosen = [found.number for found in manifests if among(found)]
        surplus = tuple(number for number in chosen[: max(0, len(chosen) - keep)] if number != needed)
        for number in surplus:
            self.remove(number)
        return surplus
