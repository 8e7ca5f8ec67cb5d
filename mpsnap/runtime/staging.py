"""Files for what is too large for a pipe: states, above all, on their way to the supervisor and from then on.

This module owns these files: how a node fills one, how the supervisor opens it, how it is read. It must not know when
or by whom a state is encoded.

A file has no name: whoever dies, nothing is left lying about. The node tells a descriptor's number, the size and a
checksum; the supervisor opens the same file through /proc/PID/fd. A state stays there, and is read when somebody looks
at it: a supervisor of many large nodes has no room for all their states, and hardly any of them is looked at.

Rules a maintainer keeps:

- The size is checked when a file is opened, the checksum at every reading, whole, before a byte is believed. Checked at
  its arrival, a gigabyte would stop the supervisor for a second, and prove nothing of what is read an hour later.
- Reading moves no offset: several threads may look at one snapshot.
- An open file is a descriptor, and those are few: who keeps many snapshots closes some.
"""

from __future__ import annotations

import os
import tempfile
import weakref
from typing import IO, NamedTuple
from zlib import crc32

from mpsnap.core.errors import CodecError
from mpsnap.core.snapshot import StoredState

#: A state that is larger stays in its file.
STAGING_BYTES = 1 << 20
#: What else is larger travels as a file: a pipe holds no more at a time, and a busy node fills it once a turn.
PIPE_BYTES = 1 << 16
#: How much is hashed and written at a time.
_CHUNK_BYTES = 1 << 20
#: A file no larger than that, whose content is no longer needed, is kept for the next one: to write over what is there
#: takes a quarter of what it takes to make a file, and parts are handed over while everybody waits for the snapshot.
SPARE_BYTES = 4 << 20

#: How a node tells where a file is: its descriptor there, and the receipt; plain data.
Ticket = tuple[int, int, int | None]


class Receipt(NamedTuple):
    """Say what is in a file: how many bytes, and their checksum, None for one that is read at once and by then gone.

    CRC-32 finds what a broken memory or disk does; against somebody who could write to this file, which has no name and
    one owner, a digest would not help either, and it takes four times as long.
    """

    size: int
    checksum: int | None


def open_unnamed() -> IO[bytes]:
    """Return a new file without a name, in the folder for temporary ones.

    Raises:
        OSError: There is no room for one.
    """
    # Without a buffer, for closing one whose disk is full would fail once more.
    return tempfile.TemporaryFile(prefix="mpsnap-", buffering=0)


def fill(file: IO[bytes], data: bytes | memoryview, *, lasts: bool = True) -> Receipt:
    """Write `data` into a file and return the receipt for it; there is no checksum if it does not last.

    Raises:
        OSError: The disk is full, for one.
    """
    checksum = 0
    view = memoryview(data)
    for at in range(0, len(view), _CHUNK_BYTES):
        chunk = view[at : at + _CHUNK_BYTES]
        if lasts:
            checksum = crc32(chunk, checksum)
        while chunk:
            chunk = chunk[file.write(chunk) :]
    return Receipt(len(view), checksum if lasts else None)


class UnnamedFile:
    """Be a file without a name, for one state; raises `OSError` if there is no room for one."""

    def __init__(self) -> None:
        self.file = open_unnamed()

    def fill(self, data: bytes | memoryview) -> Receipt:
        """Write `data` and return the receipt; raises as `fill`."""
        return fill(self.file, data)

    def drop(self) -> None:
        """Close it, which is the end of it."""
        self.file.close()


class Staging:
    """Hold what a node has staged, until the supervisor has opened it."""

    def __init__(self) -> None:
        self._files: dict[int, IO[bytes]] = {}
        #: Of those, what is read before it is released; and one that was, for the next one.
        self._passing: set[int] = set()
        self._spare: IO[bytes] | None = None

    def put(self, data: bytes) -> Ticket:
        """Write `data` into a new file.

        Raises:
            OSError: There is no room for it.
        """
        return self._put(open_unnamed(), data, lasts=True)

    def put_if_large(self, data: bytes) -> bytes | Ticket:
        """Return what a note can hold: `data`, or where it is for whoever reads it at once; raises as `put`."""
        if len(data) <= PIPE_BYTES:
            return data
        file, self._spare = self._spare or open_unnamed(), None
        # A checksum takes as long as all the rest, and could show no more than that memory is broken.
        ticket = self._put(file, data, lasts=False)
        self._passing.add(ticket[0])
        return ticket

    def _put(self, file: IO[bytes], data: bytes, *, lasts: bool) -> Ticket:
        try:
            receipt = fill(file, data, lasts=lasts)
            file.truncate()
        except OSError:
            file.close()
            raise
        return self.hold(file, receipt)

    def hold(self, file: IO[bytes], receipt: Receipt) -> Ticket:
        """Take a file that is filled."""
        self._files[file.fileno()] = file
        return file.fileno(), receipt.size, receipt.checksum

    def release(self, fd: int) -> None:
        """Give a file up: what lasts was opened elsewhere by now, and what does not was read."""
        file = self._files.pop(fd)
        if fd in self._passing:
            self._passing.remove(fd)
            if self._spare is None and file.tell() <= SPARE_BYTES:
                file.seek(0)
                self._spare = file
                return
        file.close()

    def close(self) -> None:
        """Give up all that it holds, be it read or not: the node ends."""
        for file in (*self._files.values(), *([self._spare] if self._spare else ())):
            file.close()
        self._files.clear()
        self._passing.clear()
        self._spare = None


class StagedFile(StoredState):
    """Hold a file that somebody else has filled; its descriptor is given back with the last reference to this.

    A copy is the same file. A pickle holds the bytes themselves, since a descriptor means nothing elsewhere.
    """

    def __init__(self, path: str, receipt: Receipt) -> None:
        """Open it.

        Raises:
            OSError: It is not there.
            CodecError: It has another size than the receipt says.
        """
        self._receipt = receipt
        self._fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        self._closing = weakref.finalize(self, os.close, self._fd)
        size = os.fstat(self._fd).st_size
        if size != receipt.size:
            self.close()
            raise CodecError(f"{size} bytes are in a file that was filled with {receipt.size}")

    @property
    def size(self) -> int:
        """How many bytes it holds."""
        return self._receipt.size

    @property
    def place(self) -> tuple[str, int, int | None]:
        """Where another process of this user finds it, as long as this holds it, and what is in it."""
        return f"/proc/{os.getpid()}/fd/{self._fd}", *self._receipt

    def read(self) -> bytes:
        """Return all of it; see `StoredState`."""
        if not self._closing.alive:
            # Its number may be another file's by now.
            raise CodecError("the file of a state is read after its snapshot was given up")
        with open(f"/proc/self/fd/{self._fd}", "rb", buffering=0) as file:
            data: bytes = file.read()
        checksum = None if self._receipt.checksum is None else crc32(data)
        if Receipt(len(data), checksum) != self._receipt:
            raise CodecError(f"the file of a state, {self.size} bytes, does not hold any more what was captured")
        return data

    def close(self) -> None:
        """Give the descriptor back; whoever reads now is told."""
        self._closing()

    def __copy__(self) -> StagedFile:
        return self

    def __deepcopy__(self, memo: object) -> StagedFile:
        return self

    def __reduce__(self) -> tuple[object, ...]:
        return bytes, (self.read(),)


def receive(pid: int, ticket: Ticket) -> bytes | StagedFile:
    """Open what the node with this pid has staged; return the file of what is large and lasts, the bytes of the rest.

    Raises:
        OSError: It is not there: the node is dead, or there are no descriptors left here.
        CodecError: It is not what the ticket says.
    """
    fd, size, checksum = ticket
    file = StagedFile(f"/proc/{pid}/fd/{fd}", Receipt(size, checksum))
    if size > STAGING_BYTES and checksum is not None:
        return file
    try:
        return file.read()
    finally:
        file.close()
