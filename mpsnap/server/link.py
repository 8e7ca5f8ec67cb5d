"""The connection between a supervisor and its control process.

This module owns the frames on it. It must not know what the notes mean.

A frame is its length in four bytes and a note in msgpack: a tuple whose first item says what it is. Both ends are this
product's, of one version, so nothing here guards against a hostile peer, only against one that stands still: what waits
to be written is bounded, and whoever lets it grow beyond that is given up.
"""

from __future__ import annotations

import socket
import struct
from collections import deque
from typing import Any

import msgpack

#: More than this waiting, and the other end counts as one that has stopped reading.
MOST_WAITING_BYTES = 256 << 20
#: What a note that waits takes besides its bytes: small ones are many, and made of little else.
NOTE_BYTES = 256
_LENGTH = struct.Struct("!I")
_READ_BYTES = 1 << 18

Note = tuple[Any, ...]


def frame(note: Note) -> bytes:
    """Return a note as it goes over the link."""
    body: bytes = msgpack.packb(note, unicode_errors="surrogatepass")
    return _LENGTH.pack(len(body)) + body


class Splitter:
    """Cut what arrives into notes."""

    def __init__(self) -> None:
        self._buffer = bytearray()

    def feed(self, data: bytes) -> list[Note]:
        """Take what has arrived; return the notes that are complete by now.

        Raises:
            TypeError, ValueError: There is something that is no note.
        """
        buffer, notes, at = self._buffer, [], 0
        buffer += data
        while len(buffer) - at >= _LENGTH.size:
            (length,) = _LENGTH.unpack_from(buffer, at)
            if len(buffer) - at - _LENGTH.size < length:
                break
            at += _LENGTH.size
            with memoryview(buffer)[at : at + length] as body:
                note = msgpack.unpackb(body, use_list=False, unicode_errors="surrogatepass", strict_map_key=False)
            if not isinstance(note, tuple) or not note:
                raise ValueError(f"a {type(note).__name__}")
            notes.append(note)
            at += length
        del buffer[:at]
        return notes


class Link:
    """Be the supervisor's end, which never waits.

    Args:
        end: A connected socket; it is closed with this.
    """

    def __init__(self, end: socket.socket) -> None:
        end.setblocking(False)
        self._socket = end
        self._splitter = Splitter()
        self._waiting: deque[memoryview] = deque()
        self._waiting_bytes = 0

    def fileno(self) -> int:
        """Return its descriptor."""
        return self._socket.fileno()

    @property
    def waits(self) -> bool:
        """Whether something waits to be written."""
        return bool(self._waiting)

    @property
    def waiting_bytes(self) -> int:
        """About how many bytes wait to be written."""
        return self._waiting_bytes + NOTE_BYTES * len(self._waiting)

    def post(self, note: Note) -> None:
        """Write a note, as much of it as goes now.

        Raises:
            ConnectionError: The other end is gone, or has stopped reading.
            OverflowError, TypeError, ValueError: There is no form for this note; nothing was written.
        """
        data = frame(note)
        self._waiting.append(memoryview(data))
        self._waiting_bytes += len(data)
        self.flush()
        if self.waiting_bytes > MOST_WAITING_BYTES:
            raise ConnectionError(f"{self.waiting_bytes} bytes wait to be read")

    def flush(self) -> None:
        """Write what goes now; raises as `post`."""
        while self._waiting:
            try:
                written = self._socket.send(self._waiting[0])
            except BlockingIOError:
                return
            except OSError as error:
                # Also where the kernel has no memory for it: what is lost of a frame is lost for good.
                raise ConnectionError(f"it cannot be written to: {error}") from error
            self._waiting_bytes -= written
            if written == len(self._waiting[0]):
                self._waiting.popleft()
            else:
                self._waiting[0] = self._waiting[0][written:]

    def end(self, note: Note, seconds: float) -> None:
        """Write a last note, waiting at most so long, and say that nothing follows.

        Raises:
            ConnectionError: The other end is gone.
            TimeoutError: It does not read.
        """
        self._socket.settimeout(seconds)
        self._socket.sendall(b"".join((*self._waiting, frame(note))))
        self._waiting.clear()
        self._waiting_bytes = 0
        self._socket.shutdown(socket.SHUT_WR)

    def read(self) -> list[Note]:
        """Return what has arrived.

        Raises:
            ConnectionError: The other end is gone.
        """
        try:
            data = self._socket.recv(_READ_BYTES)
        except BlockingIOError:
            return []
        except OSError as error:
            raise ConnectionError(f"it cannot be read from: {error}") from error
        if not data:
            raise ConnectionError("the other end is gone")
        try:
            return self._splitter.feed(data)
        except (TypeError, ValueError) as error:
            raise ConnectionError(f"what it says is no note: {error}") from error

    def close(self) -> None:
        """Give the descriptor back."""
        self._socket.close()
