"""Where node processes stage files for a directory store.

This module owns the names of staged files and how one is written. It must not know what is in them, nor how they
become a snapshot.

A staged file has a name made of numbers alone: the incarnation, the node's place, a count of that node process. So no
two processes ever want the same one, and what a process of an older incarnation has left is told by its name.

Writing ends with one fsync. If that fails, the file is given up: what a second one would say of the same bytes is
worth nothing, since the kernel may have forgotten that they were never written.
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
from collections.abc import Iterator, Mapping
from hashlib import sha256
from typing import Final

from mpsnap.core.errors import StoreError
from mpsnap.store.contract import Blob, Place
from mpsnap.store.disk import Disk
from mpsnap.store.manifest import Receipt

#: The directory of a store in which files are staged.
STAGING: Final = "staging"

#: How much is hashed and written at a time.
_CHUNK_BYTES: Final = 1 << 20
_HINTS: Final[Mapping[int | None, str]] = {
    errno.ENOSPC: "room on that file system",
    errno.EDQUOT: "room in that quota",
    errno.EFBIG: "a higher limit on the size of files",
    errno.EROFS: "a store on a file system that can be written to",
    errno.ENOENT: "a look at whether the store was removed or moved",
    errno.EIO: "a look at the kernel's log, the disk may be failing",
}
_STAGED = re.compile(r"(0|[1-9][0-9]{0,17})-(0|[1-9][0-9]{0,17})-(0|[1-9][0-9]{0,17})")


def incarnation_of(name: str) -> int | None:
    """Return the incarnation of the process that staged a file of this name, None if nobody did."""
    match = _STAGED.fullmatch(name)
    return None if match is None else int(match[1])


def fill(disk: Disk, fd: int, name: str, data: bytes | memoryview) -> Receipt:
    """Write a whole file, have it on the disk, and return its receipt; raises `OSError`."""
    digest = sha256()
    view = memoryview(data)
    for at in range(0, len(view), _CHUNK_BYTES):
        chunk = view[at : at + _CHUNK_BYTES]
        digest.update(chunk)
        while chunk:
            chunk = chunk[disk.write(fd, chunk) :]
    disk.sync(fd)
    return Receipt(name, len(view), digest.hexdigest())


@contextlib.contextmanager
def telling(what: str, where: str) -> Iterator[None]:
    """Raise a `StoreError` in place of an `OSError`: what failed, where, and why."""
    try:
        yield
    except OSError as error:
        why = error.strerror or type(error).__name__
        raise StoreError(f"{what}: {why}", where=where, hint=_HINTS.get(error.errno)) from error


class DirectoryPlace(Place):
    """Stage files in a directory.

    Args:
        path: Of that directory.
        identity: Which directory it is, or else another one may have taken its path.
        incarnation: Of the processes that stage there.
        disk: Does what is asked of the disk.
    """

    def __init__(self, path: str, identity: tuple[int, int], incarnation: int, disk: Disk) -> None:
        self.incarnation = incarnation
        self._path = path
        self._identity = identity
        self._disk = disk
        self._count = 0

    def create(self, node: int) -> Blob:
        name = f"{self.incarnation}-{node}-{self._count}"
        self._count += 1
        with telling("a file cannot be staged", self._path), self.opened() as at:
            return _StagedBlob(self, self._disk, name, self._disk.create(name, at))

    def where(self, name: str) -> str:
        """Return the path of a staged file."""
        return os.path.join(self._path, name)

    @contextlib.contextmanager
    def opened(self) -> Iterator[int]:
        """Open the directory for a while; raises `OSError` if it is not there any more."""
        at = self._disk.open_top(self._path)
        try:
            if self._disk.found(at).identity != self._identity:
                raise FileNotFoundError(errno.ENOENT, "another directory has taken its place")
            yield at
        finally:
            self._disk.close(at)


class _StagedBlob(Blob):
    def __init__(self, place: DirectoryPlace, disk: Disk, name: str, fd: int) -> None:
        self._place = place
        self._disk = disk
        self._name = name
        self._fd: int | None = fd

    def fill(self, data: bytes | memoryview) -> Receipt:
        assert self._fd is not None, "a blob is filled once"
        try:
            with telling("a file cannot be staged", self._place.where(self._name)):
                return fill(self._disk, self._fd, self._name, data)
        except BaseException:
            self.drop()
            raise
        finally:
            self.close()

    def close(self) -> None:
        fd, self._fd = self._fd, None
        if fd is not None:
            # What closing could still say, fsync has said.
            with contextlib.suppress(OSError):
                self._disk.close(fd)

    def drop(self) -> None:
        self.close()
        # Whoever opens the store next removes what is left.
        with contextlib.suppress(OSError), self._place.opened() as at:
            self._disk.unlink(self._name, at)
