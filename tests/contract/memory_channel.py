"""A channel in memory: what `mpsnap.runtime.channel` promises, in the smallest way that keeps it.

Its pipe holds a limited number of items, so that everything about full pipes shows at small sizes; its two descriptors
tell, as those of a real pipe do, when there is something to read and when there is room.
"""

from __future__ import annotations

import contextlib
import os
from collections import deque
from typing import Any

from mpsnap.core.errors import ClusterError, ProtocolError
from mpsnap.core.protocol import Marker, SnapshotId
from mpsnap.runtime.channel import Batch, Receiver, Sender

#: An eventfd at its largest value is not writable.
_FULL = 2**64 - 2


class MemoryPipe:
    """Hold items on their way, at most `capacity`."""

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        self.items: deque[Any] = deque()
        self.has_writer = self.has_reader = True
        #: Readable while there is something to read or the writer is gone; writable while there is room.
        self.readable = os.eventfd(0, os.EFD_NONBLOCK)
        self.writable = os.eventfd(0, os.EFD_NONBLOCK)

    def changed(self) -> None:
        """Set both descriptors after any change."""
        _set(self.readable, 1 if self.items or not self.has_writer else 0)
        _set(self.writable, _FULL if len(self.items) >= self.capacity and self.has_reader else 0)

    def drop(self) -> None:
        """Give both descriptors back."""
        os.close(self.readable)
        os.close(self.writable)


def _set(event: int, value: int) -> None:
    with contextlib.suppress(BlockingIOError):
        os.eventfd_read(event)
    if value:
        os.eventfd_write(event, value)


class MemorySender(Sender):
    """Put items into a `MemoryPipe`."""

    def __init__(self, pipe: MemoryPipe) -> None:
        self._pipe = pipe
        self._outbox: deque[tuple[int, object] | Marker] = deque()

    def send(self, first: int, payloads: list[object]) -> bool:
        self._outbox += enumerate(payloads, first)
        return self.flush()

    def send_marker(self, snapshot_id: SnapshotId, sent: int) -> bool:
        self._outbox.append(Marker(snapshot_id, sent))
        return self.flush()

    def flush(self) -> bool:
        if self._outbox and not self._pipe.has_reader:
            raise ClusterError("the reader of a channel is gone")
        while self._outbox and len(self._pipe.items) < self._pipe.capacity:
            self._pipe.items.append(self._outbox.popleft())
        self._pipe.changed()
        return not self._outbox

    def fileno(self) -> int:
        return self._pipe.writable

    def close(self) -> None:
        self._pipe.has_writer = False
        self._pipe.changed()


class MemoryReceiver(Receiver):
    """Take items out of a `MemoryPipe`."""

    def __init__(self, pipe: MemoryPipe) -> None:
        self._pipe = pipe

    def receive(self) -> list[Batch | Marker]:
        if not self._pipe.items and not self._pipe.has_writer:
            raise ClusterError("the writer of a channel is gone")
        found: list[Batch | Marker] = []
        while self._pipe.items:
            found.append(_item(self._pipe.items.popleft()))
        self._pipe.changed()
        return found

    def fileno(self) -> int:
        return self._pipe.readable

    def close(self) -> None:
        self._pipe.has_reader = False
        self._pipe.changed()


def _item(item: object) -> Batch | Marker:
    if isinstance(item, Marker):
        return item
    if isinstance(item, tuple):
        number, payload = item
        return number, [payload]
    raise ProtocolError("a channel carried what nobody sent")
