"""A store in memory: for tests, and for runs whose snapshots need not outlive them.

This module owns nothing but that. What is committed here goes through the same bytes as on a disk.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator
from hashlib import sha256

from mpsnap.core.errors import ProtocolError, StoreError
from mpsnap.core.protocol import LocalSnapshot
from mpsnap.core.snapshot import StoredState
from mpsnap.store.contents import Contents, Output, encode_outputs
from mpsnap.store.contract import Blob, Origin, Place, SnapshotStore
from mpsnap.store.manifest import OUTPUTS, Manifest, Receipt, Seal, committed, read, write

_WHERE = "the store in memory"


class MemoryStore(SnapshotStore):
    """Keep snapshots as long as this object lives; nodes must be in the same process."""

    def __init__(self) -> None:
        self._staged: dict[str, bytes] = {}
        #: By number, the text of the manifest and the files.
        self._snapshots: dict[int, tuple[bytes, dict[str, bytes]]] = {}
        self._begun: set[int] = set()
        self._next = 0
        self._incarnation = -1

    def numbers(self) -> tuple[int, ...]:
        return tuple(sorted(self._snapshots))

    @contextlib.contextmanager
    def contents(self, number: int) -> Iterator[Contents]:
        yield _MemoryContents(number, *self._kept(number))

    def origin(self, number: int) -> Origin:
        return _MemoryOrigin(number, *self._kept(number))

    def close(self) -> None:
        self._staged.clear()

    def next_incarnation(self) -> Place:
        self._incarnation += 1
        self._staged.clear()
        return _MemoryPlace(self._incarnation, self._staged)

    def begin(self) -> int:
        number = self._next
        self._next += 1
        self._begun.add(number)
        return number

    def commit(self, manifest: Manifest, outputs: Iterable[Output] = (), seal: Seal | None = None) -> Manifest:
        number = manifest.number
        if number not in self._begun:
            raise ProtocolError(f"snapshot {number} is committed and was not begun, or has ended", where=_WHERE)
        self._begun.remove(number)
        manifest = manifest._replace(outputs=None)
        try:
            records = encode_outputs(outputs)
            pending = Receipt(OUTPUTS, len(records), sha256(records).hexdigest()) if records != _NO_OUTPUTS else None
            made = committed(manifest, pending, seal)
            text = write(made)
            files = {
                final.name: self._taken(staged)
                for staged, final in zip(manifest.files(), committed(manifest, None).files(), strict=True)
            }
        finally:
            self.drop_staged(manifest.files())
        if pending is not None:
            files[OUTPUTS] = records
        self._snapshots[number] = text, files
        return made

    def abandon(self, number: int) -> None:
        self._begun.discard(number)

    def staged(self, receipt: Receipt) -> StoredState:
        return _MemoryState(self._taken(receipt))

    def drop_staged(self, receipts: Iterable[Receipt]) -> None:
        for receipt in receipts:
            self._staged.pop(receipt.name, None)

    def remove(self, number: int) -> None:
        self._kept(number)
        del self._snapshots[number]

    def _kept(self, number: int) -> tuple[bytes, dict[str, bytes]]:
        if number not in self._snapshots:
            raise StoreError(f"there is no snapshot {number} in this store", where=_WHERE)
        return self._snapshots[number]

    def _taken(self, staged: Receipt) -> bytes:
        data = self._staged.get(staged.name) if staged.name.startswith(f"{self._incarnation}-") else None
        if data is None or len(data) != staged.size:
            raise StoreError(f"no file {staged.name} of {staged.size} bytes was staged", where=_WHERE)
        return data


_NO_OUTPUTS = encode_outputs(())


class _MemoryPlace(Place):
    def __init__(self, incarnation: int, staged: dict[str, bytes]) -> None:
        self.incarnation = incarnation
        self._staged = staged
        self._count = 0

    def create(self, node: int) -> Blob:
        name = f"{self.incarnation}-{node}-{self._count}"
        self._count += 1
        return _MemoryBlob(name, self._staged)


class _MemoryBlob(Blob):
    def __init__(self, name: str, staged: dict[str, bytes]) -> None:
        self._name = name
        self._staged = staged

    def fill(self, data: bytes | memoryview) -> Receipt:
        kept = self._staged[self._name] = bytes(data)
        return Receipt(self._name, len(kept), sha256(kept).hexdigest())

    def close(self) -> None:
        pass

    def drop(self) -> None:
        self._staged.pop(self._name, None)


class _MemoryOrigin(Origin):
    def __init__(self, number: int, text: bytes, files: dict[str, bytes]) -> None:
        self._number = number
        self._text = text
        self._files = files

    def part(self, node: str) -> LocalSnapshot:
        return _MemoryContents(self._number, self._text, self._files).part(node)


class _MemoryContents(Contents):
    def __init__(self, number: int, text: bytes, files: dict[str, bytes]) -> None:
        self._number = number
        self._files = files
        self.manifest = read(text)

    def where(self, name: str) -> str:
        return f"{_WHERE}, snapshot {self._number}: {name}"

    def read(self, receipt: Receipt) -> bytes:
        return self._files[receipt.name]

    def state(self, receipt: Receipt) -> StoredState:
        return _MemoryState(self.read(receipt))


class _MemoryState(StoredState):
    def __init__(self, data: bytes) -> None:
        self._data = data

    @property
    def size(self) -> int:
        return len(self._data)

    def read(self) -> bytes:
        return self._data

    def close(self) -> None:
        pass
