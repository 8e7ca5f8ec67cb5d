"""Stores as Python programs open them, to read what was kept.

This module owns the public face of a store's reader. It must not know how anything is kept.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from types import TracebackType

from mpsnap.core.diff import SnapshotDiff
from mpsnap.core.errors import InputError, SnapshotCorrupt, StoreError
from mpsnap.core.snapshot import GlobalSnapshot
from mpsnap.store.contract import SnapshotReader
from mpsnap.store.manifest import Manifest
from mpsnap.store.reader import DirectoryReader


def open_store(path: str | os.PathLike[str]) -> StoredSnapshots:
    """Open the store in a directory for reading, be it that of a running cluster.

    Takes no lock, changes nothing, and runs nothing from the store: values come back without the program's classes,
    those as `Opaque`, and pickles as `Pickled`.

    Raises:
        InputError: There is no store.
        StoreError: It cannot be read.

    Example:
        >>> with mpsnap.open_store("kept") as kept:       # doctest: +SKIP
        ...     kept.latest().nodes["N1"].state
        {'tokens': 7}
    """
    try:
        return StoredSnapshots(DirectoryReader(path))
    except ValueError as error:  # a path with a NUL in it
        raise InputError(f"no path of a store: {error}", where=repr(path)) from error


class StoredSnapshots:
    """Show the snapshots of a store; iterating loads one after the other, the oldest first.

    Whoever runs the cluster may commit and remove snapshots at any time: `numbers` says which are there now. What was
    loaded stays readable. Every method that is given a number raises `StoreError` if there is no such snapshot (any
    more), and `SnapshotCorrupt` if it is not what was committed.
    """

    def __init__(self, store: SnapshotReader) -> None:
        self._store = store

    def numbers(self) -> tuple[int, ...]:
        """Return the numbers of the snapshots that are there, the newest last."""
        return self._store.numbers()

    def load(self, number: int) -> GlobalSnapshot:
        """Return a snapshot, checked; the files of large states are checked when somebody looks at them."""
        return self._store.load(number)

    def __getitem__(self, number: int) -> GlobalSnapshot:
        return self.load(number)

    def latest(self) -> GlobalSnapshot:
        """Return the newest snapshot.

        Raises:
            StoreError: There is none yet.
            SnapshotCorrupt: It is not what was committed; an older one is never given in its place.
        """
        while numbers := self.numbers():
            try:
                return self.load(numbers[-1])
            except StoreError:
                if numbers[-1] in self.numbers():
                    raise
        raise StoreError("there are no snapshots in this store yet")

    def manifest(self, number: int) -> Manifest:
        """Return what a snapshot says of itself: time, topology, programs, counts, files; nothing else is read."""
        return self._store.manifest(number)

    def verify(self, number: int) -> None:
        """Read all of a snapshot, test its checksums, look at every value and prove the cut consistent.

        Raises:
            SnapshotCorrupt: It is not what was committed.
            ConsistencyError: It is, and the cut is not consistent.
        """
        with self._store.contents(number) as contents:
            contents.verify()
            if not contents.manifest.verified:
                contents.snapshot().verify()

    def diff(self, old: int, new: int) -> SnapshotDiff:
        """Return how the snapshot `new` differs from `old`."""
        return self.load(old).diff(self.load(new))

    def close(self) -> None:
        """Give the store up; also right twice. Snapshots that were loaded stay readable."""
        self._store.close()

    def __iter__(self) -> Iterator[GlobalSnapshot]:
        for number in self.numbers():
            try:
                snapshot = self.load(number)
            except SnapshotCorrupt:
                raise
            except StoreError:
                if number in self.numbers():
                    raise
                continue
            yield snapshot

    def __len__(self) -> int:
        return len(self.numbers())

    def __enter__(self) -> StoredSnapshots:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
