"""Channels between processes, made of `multiprocessing.Queue`; the only file that knows that class's internals.

This module owns framing and the writing and reading of a channel's pipe. It must not know markers' meaning, hooks, the
supervisor, or how many messages make a batch.

A channel is one Queue with one writer and one reader. Its pipe is used directly and its feeder thread never starts: a
feeder pickles *after* `put` returned (so a state changed meanwhile is sent changed), drops what it cannot pickle with a
line on stderr, and fights the node for the interpreter. Its locks are not used either, which is why a killed reader
cannot leave them held; all the same a queue that lost an end is never used again, since half a frame may stand in it.

Rules a maintainer keeps:

- Neither end ever blocks. Two nodes blocked in writing to each other's full pipes would wait for ever.
- Messages and markers of a channel go through one backlog in the order of the calls.
- A frame's payloads stay packed (`mpsnap.core.batch`) until somebody takes them.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import struct
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Sequence
from functools import lru_cache, partial
from multiprocessing.queues import Queue
from typing import Any, TypeVar

from mpsnap.core.batch import PackedBatch, pack
from mpsnap.core.errors import ClusterError, ProtocolError
from mpsnap.core.protocol import Marker, SnapshotId

#: What one turn reads from one channel, so that a busy one does not keep the others waiting.
READ_BYTES = 64 * 1024
#: What it reads after a turn that has read so much: not always, as Python makes room for all of it beforehand. From 128
#: KiB on malloc maps new pages for it each time, and where messages are large that halves what a channel carries.
WIDE_READ_BYTES = 120 * 1024

#: What a message is taken to be at least. Of smaller ones the average changes
#: with every batch, and with it all that goes by the size of messages would have to be reckoned anew.
LEAST_BYTES = 16

#: What a large frame is: a pipe that is full of them is made as wide as a user may make it.
_LARGE_BYTES, _WIDE_BYTES = 16 * 1024, 1 << 20

#: Bytes that follow, kind, number of the first message or count of the marker, how many messages.
_HEADER = struct.Struct("!QBQI")
_HEADER_BYTES = _HEADER.size
_KIND_AT = 8
_SMALL_BYTES = 128
_BATCH, _MARKER = range(2)
#: A marker's body: incarnation and `n` of its snapshot's id; behind them the initiator.
_ID = struct.Struct("!QQ")

T = TypeVar("T")

#: The number of the first message, and the payloads.
Batch = tuple[int, Sequence[object]]


class Sender(ABC):
    """The writing end of a channel: items in, in order; never blocks."""

    @abstractmethod
    def send(self, first: int, payloads: list[object]) -> bool:
        """Append messages, write what the channel takes now, and return whether nothing is left over.

        `first`, the number of the first, follows the last one's; the payloads are frozen, and the list is given away.
        """

    @abstractmethod
    def send_marker(self, snapshot_id: SnapshotId, sent: int) -> bool:
        """Append a marker behind every message sent so far, `sent` of them, otherwise as `send`."""

    @abstractmethod
    def flush(self) -> bool:
        """Write what the channel takes now; return whether nothing is left over."""

    @abstractmethod
    def fileno(self) -> int:
        """Return a descriptor that is writable when the channel takes more."""

    @abstractmethod
    def close(self) -> None:
        """Give this end up."""


class Receiver(ABC):
    """The reading end of a channel: items out, in order; never blocks."""

    @abstractmethod
    def receive(self) -> list[Batch | Marker]:
        """Return the next items, none if there are none now: `(first number, payloads)` or a marker.

        Payloads may be a sequence that is unpacked when it is iterated over, and raises `CodecError` if it cannot be.

        Raises:
            ClusterError: The other end is gone for good.
            ProtocolError: What arrived is not what a `Sender` writes.
        """

    @abstractmethod
    def fileno(self) -> int:
        """Return a descriptor that is readable when there is more."""

    @abstractmethod
    def close(self) -> None:
        """Give this end up."""


def writer_fd(queue: Queue[Any]) -> int:
    """Return the descriptor of the writing end of a queue's pipe."""
    return queue._writer.fileno()  # type: ignore[attr-defined, no-any-return]


def reader_fd(queue: Queue[Any]) -> int:
    """Return the descriptor of the reading end of a queue's pipe."""
    return queue._reader.fileno()  # type: ignore[attr-defined, no-any-return]


def close_writer(queue: Queue[Any]) -> None:
    """Close this process's copy of the writing end; right after that the queue is good for reading only."""
    queue._writer.close()  # type: ignore[attr-defined]


def close_reader(queue: Queue[Any]) -> None:
    """Close this process's copy of the reading end."""
    queue._reader.close()  # type: ignore[attr-defined]


class QueueSender(Sender):
    """Write a channel's items into a Queue's pipe.

    `message_bytes` is what a message took on average in the last batch, `LEAST_BYTES` at least.
    """

    def __init__(self, queue: Queue[Any]) -> None:
        self.message_bytes = LEAST_BYTES
        self._queue = queue
        self._fd = writer_fd(queue)
        os.set_blocking(self._fd, False)
        close_reader(queue)
        #: Frames not yet written, the first possibly in part.
        self._backlog: deque[memoryview] = deque()
        #: Whether it was tried to widen the pipe.
        self._widened = False

    def send(self, first: int, payloads: list[object]) -> bool:
        data = pack(payloads)
        length, size = len(data), len(payloads)
        self.message_bytes = max(LEAST_BYTES, length // size)
        return self._write(_HEADER.pack(length, _BATCH, first, size), data)

    def send_marker(self, snapshot_id: SnapshotId, sent: int) -> bool:
        frame = _marker_frame(snapshot_id, sent)
        if not self._backlog:
            # So few bytes a pipe takes at once or not at all (PIPE_BUF).
            try:
                os.write(self._fd, frame)
            except BlockingIOError:
                pass
            except BrokenPipeError:
                raise _gone() from None
            else:
                return True
        self._backlog.append(memoryview(frame))
        return False

    def flush(self) -> bool:
        while self._backlog:
            head = self._backlog[0]
            written = self._try(os.write, head)
            if written < len(head):
                self._backlog[0] = head[written:]
                return False
            self._backlog.popleft()
        return True

    def fileno(self) -> int:
        return self._fd

    def close(self) -> None:
        close_writer(self._queue)

    def _write(self, header: bytes, body: bytes | memoryview) -> bool:
        # Behind what stands in the backlog nothing is tried: its pipe is full.
        written = 0 if self._backlog else self._try(os.writev, (header, body))
        if written == len(header) + len(body):
            return True
        if len(body) > _LARGE_BYTES and not self._widened:
            self._widen()
        if written < len(header):
            self._backlog.append(memoryview(header)[written:])
            written = len(header)
        self._backlog.append(memoryview(body)[written - len(header) :])
        return False

    def _widen(self) -> None:
        """Make a pipe that is full of large messages hold more of them: at 64 KiB its ends wait for each other."""
        self._widened = True
        # Not for everyone there is: a user's pipes together may take so much, and no more.
        with contextlib.suppress(OSError):
            fcntl.fcntl(self._fd, fcntl.F_SETPIPE_SZ, _WIDE_BYTES)

    def _try(self, write: Callable[[int, T], int], data: T) -> int:
        try:
            return write(self._fd, data)
        except BlockingIOError:
            return 0
        except BrokenPipeError:
            raise _gone() from None


class QueueReceiver(Receiver):
    """Read a channel's items from a Queue's pipe."""

    def __init__(self, queue: Queue[Any]) -> None:
        self._queue = queue
        self._fd = reader_fd(queue)
        os.set_blocking(self._fd, False)
        close_writer(queue)
        #: What is read next at most.
        self._most = READ_BYTES
        #: The beginning of a frame that is not yet complete, and how long it will be as far as is known.
        self._rest: list[bytes] = []
        self._length = 0
        self._needed = 0

    def receive(self) -> list[Batch | Marker]:
        try:
            data = os.read(self._fd, self._most)
        except BlockingIOError:
            return []
        size = len(data)
        if _HEADER_BYTES <= size < _SMALL_BYTES and not self._rest:
            # One item alone, as they mostly come where little is sent: then there is nothing to go through.
            if data[_KIND_AT] == _MARKER:
                marker = _lone_marker(data)
                if marker is not None:
                    return [marker]
            else:
                length, kind, number, count = _HEADER.unpack_from(data)
                if kind == _BATCH and length == size - _HEADER_BYTES:
                    return [(number, PackedBatch(count, data[_HEADER_BYTES:]))]
        if not size:
            raise ClusterError("the writer of a channel is gone")
        self._most = WIDE_READ_BYTES if size >= READ_BYTES else READ_BYTES
        if self._rest:
            self._rest.append(data)
            self._length += len(data)
            if self._length < self._needed:
                return []
            data = b"".join(self._rest)
            self._rest = []
            size = len(data)
        items: list[Batch | Marker] = []
        at = 0
        end = needed = _HEADER_BYTES
        while end <= size:
            length, kind, number, count = _HEADER.unpack_from(data, at)
            if kind > _MARKER:
                # At once: the length is not one either, and so many bytes may never come.
                raise ProtocolError(f"a channel carried a frame of unknown kind {kind}")
            body, needed = end, _HEADER_BYTES + length
            if at + needed > size:
                break
            at = body + length
            if kind == _MARKER:
                items.append(_marker((_snapshot_id(data[body:at]), number)))
            else:
                # A large one is copied once, when it is unpacked; one must not keep much more that was read with it.
                whole = data if length < _LARGE_BYTES or 4 * length < size else memoryview(data)
                items.append((number, PackedBatch(count, whole[body:at])))
            end, needed = at + _HEADER_BYTES, _HEADER_BYTES
        if at < size:
            self._rest, self._length, self._needed = [data[at:]], size - at, needed
        return items

    def fileno(self) -> int:
        return self._fd

    def close(self) -> None:
        close_reader(self._queue)


# As `Marker` itself, without a call of Python's for each that comes in.
_marker: Callable[[tuple[SnapshotId, int]], Marker] = partial(tuple.__new__, Marker)


def _gone() -> ClusterError:
    return ClusterError("the reader of a channel is gone")


# A snapshot's marker goes over every channel of a node and comes in on every one; where little was sent, or the same on
# all of them, it is even the same to the last byte.
@lru_cache(maxsize=64)
def _marker_frame(snapshot_id: SnapshotId, sent: int) -> bytes:
    body = _id_bytes(snapshot_id)
    return _HEADER.pack(len(body), _MARKER, sent, 0) + body


@lru_cache(maxsize=64)
def _lone_marker(data: bytes) -> Marker | None:
    length, _, sent, _ = _HEADER.unpack_from(data)
    return _marker((_snapshot_id(data[_HEADER_BYTES:]), sent)) if len(data) == _HEADER_BYTES + length else None


@lru_cache(maxsize=64)
def _id_bytes(snapshot_id: SnapshotId) -> bytes:
    incarnation, initiator, n = snapshot_id
    return _ID.pack(incarnation, n) + initiator.encode()


@lru_cache(maxsize=64)
def _snapshot_id(body: bytes) -> SnapshotId:
    try:
        incarnation, n = _ID.unpack_from(body)
        return SnapshotId(incarnation, body[_ID.size :].decode(), n)
    except (struct.error, UnicodeDecodeError) as error:
        raise ProtocolError(f"a channel carried a marker that nobody wrote: {error}") from error
