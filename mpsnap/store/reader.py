"""Reading snapshots from a directory.

This module owns the names in a store's directory and the opening of what stands under them. It must not change
anything, and needs no lock: a snapshot appears whole, under its name, and what is open stays readable when it goes.

    STORE/mpsnap-store-1        says what this directory is
    STORE/LOCK                  locked by the supervisor, whose pid it holds
    STORE/incarnation-4         the present incarnation
    STORE/staging/4-0-17        a file that a node process has staged
    STORE/.tmp-00000007/        a snapshot that is not committed, or its number, which is used up
    STORE/snap-00000006/        a snapshot: MANIFEST.json, node-0.part, node-1.part, node-1.state, outputs
    STORE/.trash-00000002/      a snapshot that is being removed
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
import weakref
from collections.abc import Iterator
from hashlib import sha256
from typing import Final

from mpsnap.core.errors import CodecError, InputError, SnapshotCorrupt, StoreError
from mpsnap.core.protocol import LocalSnapshot
from mpsnap.core.snapshot import StoredState
from mpsnap.store.contents import Contents, corrupt
from mpsnap.store.contract import Origin, SnapshotReader
from mpsnap.store.disk import Disk
from mpsnap.store.manifest import MANIFEST, MOST_MANIFEST_BYTES, Receipt, read
from mpsnap.store.staging import telling

#: The file that says what the directory is; its name holds the version, so that it is never half there.
MARK: Final = "mpsnap-store-1"

#: Prefixes of directories that hold a snapshot, or its number alone.
SNAP, TEMPORARY, TRASH = "snap-", ".tmp-", ".trash-"

_NUMBERED = re.compile(r"(snap-|\.tmp-|\.trash-)([0-9]{8,18})")
#: What opening says where no plain file or directory of its own stands.
_STRANGE: Final = (errno.ELOOP, errno.ENOTDIR, errno.EISDIR, errno.ENXIO)


def named(prefix: str, number: int) -> str:
    """Return the name of the directory with this number."""
    return f"{prefix}{number:08}"


def parsed(name: str) -> tuple[str, int] | None:
    """Return the prefix and the number that `named` made a name of, None if it did not make it."""
    match = _NUMBERED.fullmatch(name)
    if match is None or name != named(match[1], int(match[2])):
        return None
    return match[1], int(match[2])


class DirectoryReader(SnapshotReader):
    """Look into the store in a directory.

    Args:
        path: The directory.
        disk: Does what is asked of the disk.

    Raises:
        InputError: It is no store.
        StoreError: It cannot be read.
    """

    def __init__(self, path: str | os.PathLike[str], disk: Disk | None = None) -> None:
        if not os.fspath(path):
            # Which would be the folder that somebody happens to be in.
            raise InputError("the path of a store is empty", hint="the name of a directory")
        # Without a slash at its end, which would have the last part followed.
        self.path = os.path.abspath(os.fspath(path))
        self._disk = disk or Disk()
        self._root = self._open_root()
        try:
            with telling("the store cannot be read", self.path):
                self._check_root(self._disk.names(self._root))
        except BaseException:
            self.close()
            raise

    def numbers(self) -> tuple[int, ...]:
        return self._numbers(SNAP)

    @contextlib.contextmanager
    def contents(self, number: int) -> Iterator[Contents]:
        name = named(SNAP, number)
        where = os.path.join(self.path, name)
        if number not in self.numbers():
            raise self._absent(number)
        try:
            with telling("a snapshot cannot be read", where):
                at = self._open_snapshot(name, where)
            try:
                yield _Files(self._disk, at, where, number)
            finally:
                self._disk.close(at)
        except SnapshotCorrupt:
            if number not in self.numbers():
                raise self._absent(number) from None
            raise

    def origin(self, number: int) -> Origin:
        return DirectoryOrigin(self.path, number)

    def close(self) -> None:
        root, self._root = self._root, -1
        if root >= 0:
            self._disk.close(root)

    # ------------------------------------------------------------------ the directory

    def _open_root(self) -> int:
        try:
            return self._disk.open_top(self.path)
        except FileNotFoundError:
            raise InputError("there is no such directory", where=self.path) from None
        except OSError as error:
            if error.errno not in _STRANGE:
                raise StoreError(f"the store cannot be opened: {error.strerror}", where=self.path) from error
            raise InputError(
                "a store is a directory, and no symbolic link to one", where=self.path, hint="the directory's own path"
            ) from None

    def _check_root(self, names: list[str]) -> None:
        if MARK not in names:
            other = next((name for name in names if name.startswith("mpsnap-store-")), None)
            what = f"a store of another version ({other})" if other else "not a store of snapshots"
            raise InputError(f"this directory is {what}", where=self.path, hint=f"one that holds a file {MARK}")

    def _numbers(self, *prefixes: str) -> tuple[int, ...]:
        with telling("the store cannot be read", self.path):
            found = map(parsed, self._disk.names(self._root))
            return tuple(sorted(name[1] for name in found if name is not None and name[0] in prefixes))

    def _open_snapshot(self, name: str, where: str) -> int:
        try:
            return self._disk.open_directory(name, self._root)
        except OSError as error:
            if error.errno in _STRANGE or error.errno == errno.ENOENT:
                raise corrupt(where, "this is no directory with a snapshot") from None
            raise

    def _absent(self, number: int) -> StoreError:
        there = self.numbers()
        hint = f"one of {there[0]} to {there[-1]}" if there else "a store with snapshots, this one has none"
        return StoreError(f"there is no snapshot {number} in this store", where=self.path, hint=hint)


class DirectoryOrigin(Origin):
    """Restore nodes from a snapshot in a directory store."""

    def __init__(self, path: str, number: int) -> None:
        self._path = path
        self._number = number

    def part(self, node: str) -> LocalSnapshot:
        with DirectoryReader(self._path) as reader, reader.contents(self._number) as contents:
            return contents.part(node)


class _Files(Contents):
    """Read the files of one open directory."""

    def __init__(self, disk: Disk, at: int, path: str, number: int) -> None:
        self._disk = disk
        self._at = at
        self._path = path
        text = self._whole(MANIFEST, MOST_MANIFEST_BYTES)
        with self.telling(MANIFEST):
            self.manifest = read(text)
            if self.manifest.number != number:
                raise CodecError(f"it is the manifest of snapshot {self.manifest.number}")
        self._check_names()

    def where(self, name: str) -> str:
        return os.path.join(self._path, name)

    def read(self, receipt: Receipt) -> bytes:
        data = self._whole(receipt.name, receipt.size)
        if len(data) != receipt.size or sha256(data).hexdigest() != receipt.sha256:
            raise corrupt(self.where(receipt.name), _changed(receipt, len(data)))
        return data

    def state(self, receipt: Receipt) -> StoredState:
        fd, size = self._open(receipt.name)
        if size != receipt.size:
            self._disk.close(fd)
            raise corrupt(self.where(receipt.name), _changed(receipt, size))
        return StoredFile(self._disk, fd, receipt, self.where(receipt.name))

    def _check_names(self) -> None:
        with telling("a snapshot cannot be read", self._path):
            there = set(self._disk.names(self._at))
        wanted = {MANIFEST, *(receipt.name for receipt in self.manifest.files())}
        for name in sorted(there ^ wanted):
            raise corrupt(
                self.where(name), "this file is missing" if name in wanted else "the manifest knows no such file"
            )

    def _open(self, name: str) -> tuple[int, int]:
        where = self.where(name)
        with telling("a file of a snapshot cannot be read", where):
            try:
                fd = self._disk.open(name, self._at)
            except OSError as error:
                if error.errno == errno.ENOENT:
                    raise corrupt(where, "this file is missing") from None
                if error.errno in _STRANGE:
                    raise corrupt(where, "this is no plain file") from None
                raise
            found = self._disk.found(fd)
        if not found.is_file:
            self._disk.close(fd)
            raise corrupt(where, "this is no plain file")
        return fd, found.size

    def _whole(self, name: str, most: int) -> bytes:
        fd, size = self._open(name)
        try:
            if size > most:
                raise corrupt(self.where(name), f"{size} bytes are in a file of {most} at most")
            with telling("a file of a snapshot cannot be read", self.where(name)):
                return read_whole(self._disk, fd, size)
        finally:
            self._disk.close(fd)


class StoredFile(StoredState):
    """Hold the open file of a state; its descriptor is given back with the last reference to this.

    A copy is the same file. A pickle holds the bytes themselves, since a descriptor means nothing elsewhere.
    """

    def __init__(self, disk: Disk, fd: int, receipt: Receipt, where: str) -> None:
        self._disk = disk
        self._fd = fd
        self._receipt = receipt
        self._where = where
        self._closing = weakref.finalize(self, disk.close, fd)

    @property
    def size(self) -> int:
        """How many bytes it holds."""
        return self._receipt.size

    def read(self) -> bytes:
        """Return all of it; see `StoredState`."""
        if not self._closing.alive:
            # Its number may be another file's by now.
            raise CodecError("the file of a state is read after its snapshot was given up", where=self._where)
        try:
            # A byte more than it should hold: it may have grown.
            data = read_whole(self._disk, self._fd, self.size + 1)
        except OSError as error:
            raise CodecError(f"the file of a state cannot be read: {error.strerror}", where=self._where) from error
        if len(data) != self.size or sha256(data).hexdigest() != self._receipt.sha256:
            raise CodecError(_changed(self._receipt, len(data)), where=self._where)
        return data

    def close(self) -> None:
        """Give the descriptor back; whoever reads now is told."""
        self._closing()

    def __copy__(self) -> StoredFile:
        return self

    def __deepcopy__(self, memo: object) -> StoredFile:
        return self

    def __reduce__(self) -> tuple[object, ...]:
        return bytes, (self.read(),)


def read_whole(disk: Disk, fd: int, size: int) -> bytes:
    """Return up to so many bytes of a file; raises `OSError`."""
    pieces = []
    done = 0
    while done < size and (piece := disk.read(fd, size - done, done)):
        pieces.append(piece)
        done += len(piece)
    # Of most files there is one, which is not to be copied.
    return pieces[0] if len(pieces) == 1 else b"".join(pieces)


def _changed(receipt: Receipt, size: int) -> str:
    if size != receipt.size:
        return f"this file does not hold what was committed: {receipt.size} bytes"
    return f"this file does not hold what was committed: {size} bytes with the SHA-256 {receipt.sha256}"
