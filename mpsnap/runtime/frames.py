"""Small plain messages between the supervisor and one node, over a pipe that neither may block on.

This module owns the frames of control pipes and result queues. It must not know what the messages mean.

A frame is at most 4096 bytes, header included: the kernel writes that much at once or not at all (PIPE_BUF), so a
writer that is killed leaves no half frame. A longer message is cut into numbered frames; whoever dies between two of
them leaves a message that never becomes complete, and is seen to be dead by its process, not by its pipe.
"""

from __future__ import annotations

import contextlib
import os
import struct
from collections import deque
from collections.abc import Callable
from functools import partial

import msgpack

from mpsnap.core.errors import ProtocolError
from mpsnap.core.kinds import told

#: PIPE_BUF of Linux; the size that cannot tear.
FRAME_BYTES = 4096

#: Bytes that follow, this part's number, how many parts.
_HEADER = struct.Struct("!HII")
_HEADER_BYTES = _HEADER.size
_BODY_BYTES = FRAME_BYTES - _HEADER_BYTES
_READ_BYTES = 64 * 1024

#: A kind, then what belongs to it: None, bools, ints of 64 bits, floats, str, bytes, and tuples and dicts of these.
#: That is msgpack as it stands, which takes a fifth of what the codec takes to look through a value of any kind.
Note = tuple[object, ...]
#: What comes out of a note where the id of a snapshot went in: equal to it, and of the same hash.
ToldId = tuple[int, str, int]


class FrameWriter:
    """Write notes into a pipe; what it does not take now stays in a backlog."""

    def __init__(self, fd: int) -> None:
        self.fd = fd
        os.set_blocking(fd, False)
        #: Frames that wait to be written.
        self.backlog: deque[bytes] = deque()
        self._pack: Callable[[Note], bytes] = msgpack.Packer(unicode_errors="surrogatepass").pack

    @property
    def backlog_bytes(self) -> int:
        """About how many bytes wait to be written."""
        return len(self.backlog) * FRAME_BYTES

    def post(self, note: Note) -> None:
        """Append one note and write what the pipe takes now."""
        data = self._pack(note)
        if len(data) <= _BODY_BYTES and not self.backlog:
            # Nearly always, and then it need not go by way of the backlog.
            frame = _HEADER.pack(len(data), 0, 1) + data
            if not self._write(frame):
                self.backlog.append(frame)
            return
        parts = -(-len(data) // _BODY_BYTES)
        for k in range(parts):
            body = data[k * _BODY_BYTES : (k + 1) * _BODY_BYTES]
            self.backlog.append(_HEADER.pack(len(body), k, parts) + body)
        self.flush()

    def flush(self) -> bool:
        """Write what the pipe takes now; return whether nothing is left over.

        Raises:
            BrokenPipeError: The reader is gone.
        """
        while self.backlog:
            # One write per frame: two joined would exceed PIPE_BUF and could tear.
            if not self._write(self.backlog[0]):
                return False
            self.backlog.popleft()
        return True

    def _write(self, frame: bytes) -> bool:
        try:
            os.write(self.fd, frame)
        except BlockingIOError:
            return False
        return True


class FrameReader:
    """Read notes from a pipe."""

    def __init__(self, fd: int) -> None:
        self.fd = fd
        os.set_blocking(fd, False)
        self._buffer = b""
        #: Parts of a note that is not yet complete, and how many it will have.
        self._parts: list[bytes] = []
        self._due = 0
        #: Whether the writer has closed its end and everything was read.
        self.ended = False

    def read(self) -> list[Note]:
        """Return the notes that are complete by now; reads at most 64 KiB.

        Raises:
            ProtocolError: What arrived is not what a `FrameWriter` writes.
        """
        try:
            data = os.read(self.fd, _READ_BYTES)
        except BlockingIOError:
            return []
        self.ended = not data
        return self._parse(data)

    def drain(self) -> list[Note]:
        """Return all notes that a writer which is dead by now has left."""
        notes: list[Note] = []
        with contextlib.suppress(BlockingIOError):
            # Somebody else may still hold its end open, and writes nothing.
            while data := os.read(self.fd, _READ_BYTES):
                notes += self._parse(data)
            self.ended = True
        return notes

    def _parse(self, data: bytes) -> list[Note]:
        data = self._buffer + data
        size = len(data)
        one = (size - _HEADER_BYTES, 0, 1)
        if _HEADER_BYTES < size <= FRAME_BYTES and not self._parts and _HEADER.unpack_from(data) == one:
            # One note and nothing else, as it is nearly always: then there is nothing to go through.
            self._buffer = b""
            return [_note(data[_HEADER_BYTES:])]
        notes: list[Note] = []
        at = 0
        while size - at >= _HEADER_BYTES:
            length, part, parts = _HEADER.unpack_from(data, at)
            self._due = self._due if self._parts else parts
            # Before the body is waited for: in garbage the length is not one, and so many bytes may never come.
            if length > _BODY_BYTES or part != len(self._parts) or parts != self._due or part >= parts:
                raise ProtocolError(
                    f"{length} bytes of part {part} of {parts} where part {len(self._parts)} of {self._due} was due"
                )
            body = at + _HEADER_BYTES
            end = body + length
            if size < end:
                break
            at = end
            if parts == 1:
                notes.append(_note(data[body:end]))
                continue
            self._parts.append(data[body:end])
            if part + 1 == parts:
                notes.append(_note(b"".join(self._parts)))
                self._parts = []
        self._buffer = data[at:]
        return notes


# With what never changes given beforehand: the supervisor reads one from each node for each snapshot.
_unpack = partial(msgpack.unpackb, use_list=False, unicode_errors="surrogatepass", timestamp=2)


def _note(data: bytes) -> Note:
    try:
        note = _unpack(data)
    except Exception as error:
        raise ProtocolError(f"{len(data)} bytes are not a note: {told(error)}") from error
    if not isinstance(note, tuple) or not note:
        raise ProtocolError(f"a {type(note).__name__} where a note was due")
    return note
