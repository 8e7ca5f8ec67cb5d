"""Channels between processes, made of `multiprocessing.Queue`; the only file that knows that class's internals.

This module owns batching, framing and the writing and reading of a channel's pipe. It must not know markers' meaning,
hooks or the supervisor.

A channel is one Queue with one writer and one reader. Its pipe is used directly and its feeder thread never starts: a
feeder pickles *after* `put` returned (so a state changed meanwhile is sent changed), drops what it cannot pickle with a
line on stderr, and fights the node for the interpreter. Its locks are not used either, which is why a killed reader
cannot leave them held; all the same a queue that lost an end is never used again, since half a frame may stand in it.

Rules a maintainer keeps:

- Neither end ever blocks. Two nodes blocked in writing to each other's full pipes would wait for ever.
- Messages and markers of a channel go through one outbox in the order of the calls.
- Frames hold plain data only: `marshal` keeps the types of what cannot change exactly and, unlike pickle, runs no code.
"""

from __future__ import annotations

import marshal
import os
import struct
from abc import ABC, abstractmethod
from collections import deque
from multiprocessing.queues import Queue
from typing import Any

from mpsnap.core.codec import Encoded
from mpsnap.core.errors import ClusterError, ProtocolError
from mpsnap.core.protocol import Marker, SnapshotId

#: A batch is sealed at this many messages or, going by the size of the last one, at about this many bytes.
BATCH_MESSAGES = 256
BATCH_BYTES = 48 * 1024
#: What one turn reads from one channel, so that a busy one does not keep the others waiting.
READ_BYTES = 64 * 1024

#: Bytes that follow, kind, number of the first message or count of the marker.
_HEADER = struct.Struct("!IBQ")
_BATCH, _BATCH_WITH_ENCODED, _MARKER = range(3)
#: `marshal` version 2 keeps no table of repeated objects: faster for small tuples, and nothing here needs one.
_MARSHAL_VERSION = 2

Batch = tuple[int, list[object]]


class Sender(ABC):
    """The writing end of a channel: items in, in order; never blocks."""

    @abstractmethod
    def send(self, number: int, payload: object) -> None:
        """Append one message; `number` follows the last one's, the payload is frozen."""

    @abstractmethod
    def send_marker(self, marker: Marker) -> None:
        """Append a marker behind every message sent so far, and write."""

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
    """Write a channel's items into a Queue's pipe, in batches."""

    def __init__(self, queue: Queue[Any]) -> None:
        self._queue = queue
        self._fd = writer_fd(queue)
        os.set_blocking(self._fd, False)
        close_reader(queue)
        #: Messages not yet in a frame, the number of the first, and which of them are encoded.
        self._batch: list[object] = []
        self._first = 0
        self._encoded: list[int] = []
        #: How many messages make the next batch; follows their size.
        self._limit = BATCH_MESSAGES
        #: Frames not yet written, the head possibly in part.
        self._outbox: deque[memoryview] = deque()

    def send(self, number: int, payload: object) -> None:
        if not self._batch:
            self._first = number
        if type(payload) is Encoded:
            self._encoded.append(len(self._batch))
            payload = payload.data
        self._batch.append(payload)
        if len(self._batch) >= self._limit:
            self.flush()

    def send_marker(self, marker: Marker) -> None:
        self._seal()
        self._frame(_MARKER, marker.sent, tuple(marker.snapshot_id))
        self._write()

    def flush(self) -> bool:
        self._seal()
        return self._write()

    def fileno(self) -> int:
        return self._fd

    def close(self) -> None:
        close_writer(self._queue)

    def _seal(self) -> None:
        if not self._batch:
            return
        count = len(self._batch)
        if self._encoded:
            size = self._frame(_BATCH_WITH_ENCODED, self._first, (self._batch, self._encoded))
            self._encoded = []
        else:
            size = self._frame(_BATCH, self._first, self._batch)
        self._batch = []
        self._limit = max(1, min(BATCH_MESSAGES, BATCH_BYTES * count // size))

    def _frame(self, kind: int, number: int, content: Any) -> int:
        body = marshal.dumps(content, _MARSHAL_VERSION)
        self._outbox.append(memoryview(_HEADER.pack(len(body), kind, number) + body))
        return len(body)

    def _write(self) -> bool:
        while self._outbox:
            head = self._outbox[0]
            try:
                written = os.write(self._fd, head)
            except BlockingIOError:
                return False
            except BrokenPipeError:
                raise ClusterError("the reader of a channel is gone") from None
            if written < len(head):
                self._outbox[0] = head[written:]
            else:
                self._outbox.popleft()
        return True


class QueueReceiver(Receiver):
    """Read a channel's items from a Queue's pipe."""

    def __init__(self, queue: Queue[Any]) -> None:
        self._queue = queue
        self._fd = reader_fd(queue)
        os.set_blocking(self._fd, False)
        close_writer(queue)
        #: Bytes of frames not yet complete.
        self._buffer = bytearray()

    def receive(self) -> list[Batch | Marker]:
        try:
            data = os.read(self._fd, READ_BYTES)
        except BlockingIOError:
            return []
        if not data:
            raise ClusterError("the writer of a channel is gone")
        self._buffer += data
        return self._parse()

    def fileno(self) -> int:
        return self._fd

    def close(self) -> None:
        close_reader(self._queue)

    def _parse(self) -> list[Batch | Marker]:
        items: list[Batch | Marker] = []
        at = 0
        while len(self._buffer) - at >= _HEADER.size:
            length, kind, number = _HEADER.unpack_from(self._buffer, at)
            if kind > _MARKER:
                # At once: the length is not one either, and so many bytes may never come.
                raise ProtocolError(f"a channel carried a frame of unknown kind {kind}")
            end = at + _HEADER.size + length
            if len(self._buffer) < end:
                break
            items.append(_item(kind, number, self._buffer[at + _HEADER.size : end]))
            at = end
        del self._buffer[:at]
        return items


def _item(kind: int, number: int, body: bytearray) -> Batch | Marker:
    try:
        content = marshal.loads(body)
        if kind == _MARKER:
            return Marker(_snapshot_id(*content), number)
        payloads, encoded = (content, ()) if kind == _BATCH else content
        if type(payloads) is list:
            for k in encoded:
                data = payloads[k]
                if type(data) is not bytes:
                    raise TypeError(f"{type(data).__name__} in place of encoded bytes")
                payloads[k] = Encoded(data)
            return number, payloads
    except (EOFError, ValueError, TypeError, IndexError) as error:
        raise ProtocolError(f"a channel carried a frame that nobody wrote: {error}") from error
    raise ProtocolError(f"a channel carried a {type(payloads).__name__} where a batch was due")


def _snapshot_id(incarnation: object, initiator: object, n: object) -> SnapshotId:
    if type(incarnation) is int and type(initiator) is str and type(n) is int:
        return SnapshotId(incarnation, initiator, n)
    raise TypeError("no snapshot id")
