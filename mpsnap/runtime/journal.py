"""The event log of a run: each node writes what happens to it into a file of its own; at the end they are merged.

This module owns these files. What an event is, and the log that is made of them, is the business of
`mpsnap.core.history`.

A node must lose next to no time: a message costs two appends to lists, its number and its time follow from the order.
Every few thousand events, or after `FLUSH_SECONDS`, a block goes to the file:

    length, checksum (two u32)   marshal of (index of the first event, counts, codes, times, payloads, notes)

A code is an event: 0 takes the next of `times`, 1 the next of `notes`, the others are a message sent or received on a
channel. `counts` says how many went over each channel before the block. So a file is read to its last whole block,
however the node ended; one that is killed takes its last `FLUSH_SECONDS` along.

A file has an end: when half of a node's share is full it becomes the old one, and the one that was old before is gone.
So the newest events are kept, and the log says how many are not.
"""

from __future__ import annotations

import contextlib
import fcntl
import marshal
import os
import struct
import time
from array import array
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import chain
from typing import IO, Any, NamedTuple
from zlib import crc32

from mpsnap.core.codec import Codec, Encoded
from mpsnap.core.errors import InputError, NodeError, OutputError
from mpsnap.core.events import ClusterStopped, Event, SnapshotAbandoned, SnapshotCompleted, SnapshotInitiated
from mpsnap.core.history import VALUES, Entry, Head, causal_order, entry_line, error_shown, head_line, value_shown
from mpsnap.core.journal import Journal

#: Events of a block.
BLOCK_EVENTS = 4096
#: How long a node keeps events to itself. A block costs as much as some twenty events.
FLUSH_SECONDS = 0.05
#: What an event may take on average before a file is full: values may be large.
EVENT_BYTES = 256
#: The least that a node may keep, and the least that a block may hold.
LEAST_EVENTS, LEAST_BLOCK_EVENTS = 100, 32

_HEADER = struct.Struct("!II")
_TIME, _NOTE, _FIRST_CHANNEL = 0, 1, 2


class JournalSpec(NamedTuple):
    """Where a node keeps its journal, and about how many events."""

    path: str
    events: int


class FileJournal(Journal):
    """Keep one node's events in a file.

    Args:
        spec: Where.
        inbound: Sources of the node's channels, in the order of names.
        outbound: Their destinations, too.
        complain: Told, once, why nothing more is written: a full disk must not end the node.
    """

    def __init__(
        self, spec: JournalSpec, inbound: Sequence[str], outbound: Sequence[str], complain: Callable[[str], None]
    ) -> None:
        self._path = spec.path
        self._block = max(LEAST_BLOCK_EVENTS, min(BLOCK_EVENTS, spec.events // 4))
        self._most = max(self._block, spec.events // 2)
        self._complain = complain
        first_in = _FIRST_CHANNEL + len(outbound)
        self._sent = {dst: _FIRST_CHANNEL + k for k, dst in enumerate(outbound)}
        self._received = {src: first_in + k for k, src in enumerate(inbound)}
        #: Per channel, the outbound ones first, messages before this block.
        self._counts = [0] * (len(outbound) + len(inbound))
        self._index = 0
        #: Every block begins with a time.
        self._codes: list[int] = [_TIME]
        self._times: list[float] = [time.monotonic()]
        self._payloads: list[object] = []
        self._notes: list[tuple[float, str, dict[str, Any]]] = []
        #: How long `codes` was when a time was last put there.
        self._marked = 1
        self._flushed = time.monotonic()
        #: What is in the file.
        self._file_events = self._file_bytes = 0
        self._file: IO[bytes] | None = open(spec.path, "wb", buffering=0)  # noqa: SIM115 - open as long as the node lives

    def sent(self, dst: str, number: int, payload: object) -> None:
        self.sending(lambda dst, number, payload: None)(dst, number, payload)

    def sending(self, send: Callable[[str, int, object], None]) -> Callable[[str, int, object], None]:
        # Once a message: names instead of attributes, and one call instead of two.
        note, keep = self._codes.append, self._payloads.append
        code_of, block = self._sent, self._block

        def noted(dst: str, number: int, payload: object) -> None:
            note(code_of[dst])
            keep(payload)
            if not number % block:
                self.flush()
            send(dst, number, payload)

        return noted

    def restored(self, sent: Mapping[str, int], received: Mapping[str, int]) -> None:
        for codes, counts in ((self._sent, sent), (self._received, received)):
            for name, count in counts.items():
                self._counts[codes[name] - _FIRST_CHANNEL] = count

    def received(self, src: str) -> None:
        self._codes.append(self._received[src])

    def note(self, event: str, **fields: Any) -> None:
        for name in VALUES.keys() & fields.keys():
            fields[name] = _shortened(fields[name], VALUES[name])
        self._codes.append(_NOTE)
        self._notes.append((time.monotonic(), event, fields))

    @property
    def due(self) -> float | None:
        """When what is kept back is to be written, on the monotonic clock; None while nothing is."""
        return None if len(self._codes) == len(self._times) else self._flushed + FLUSH_SECONDS

    def turn(self, now: float) -> None:
        """Note that what follows happens from now on, and write what has waited too long."""
        if now - self._flushed >= FLUSH_SECONDS or len(self._codes) >= self._block:
            self.flush()
        if len(self._codes) == self._marked:
            # Nothing since the last time: it moves.
            self._times[-1] = now
            return
        self._codes.append(_TIME)
        self._times.append(now)
        self._marked = len(self._codes)

    def flush(self) -> None:
        """Write what there is."""
        if len(self._codes) == len(self._times):
            return
        done = Counter(self._codes)
        events = len(self._codes) - done[_TIME]
        if self._file is not None:
            try:
                self._write(self._body(), events)
            except OSError as error:
                self._complain(f"the event log of this node ends here: {error.strerror}")
                with contextlib.suppress(OSError):
                    self._file.close()
                self._file = None
        self._begin_block(done, events)

    def _body(self) -> bytes:
        codes = array("I", self._codes).tobytes()
        content = self._index, self._counts, codes, self._times, self._payloads, self._notes
        body = marshal.dumps(content)
        if len(body) > EVENT_BYTES * len(self._codes):
            self._shorten_payloads()
            body = marshal.dumps(content)
        return body

    def _write(self, body: bytes, events: int) -> None:
        assert self._file is not None
        rest = memoryview(_HEADER.pack(len(body), crc32(body)) + body)
        while rest:
            rest = rest[self._file.write(rest) :]
        self._file_events += events
        self._file_bytes += len(body)
        if self._file_events >= self._most or self._file_bytes >= self._most * EVENT_BYTES:
            self._file.close()
            os.replace(self._path, f"{self._path}.old")
            self._file = open(self._path, "wb", buffering=0)  # noqa: SIM115 - open as long as the node lives
            self._file_events = self._file_bytes = 0

    def close(self) -> None:
        """Write what there is; nothing can be noted any more."""
        self.flush()
        if self._file is not None:
            self._file.close()

    def _begin_block(self, done: Counter[int], events: int) -> None:
        self._index += events
        for code, count in done.items():
            if code >= _FIRST_CHANNEL:
                self._counts[code - _FIRST_CHANNEL] += count
        last = self._times[-1]
        # Emptied and not replaced: `sending` holds on to them.
        for kept in (self._codes, self._times, self._payloads, self._notes):
            kept.clear()
        self._codes.append(_TIME)
        self._times.append(last)
        self._marked = 1
        self._flushed = time.monotonic()

    def _shorten_payloads(self) -> None:
        most = VALUES["payload"]
        for k, payload in enumerate(self._payloads):
            if isinstance(payload, str | bytes | tuple | list) and len(data := marshal.dumps(payload)) > most:
                self._payloads[k] = {"$size": len(data)}


def _shortened(value: object, most: int) -> object:
    """Return a fixed value as marshal can write it: (1, bytes) of an encoded one, (0, value), or its size."""
    if type(value) is Encoded:
        return (1, value.data) if len(value.data) <= most else {"$size": len(value.data)}
    return 0, value


# ------------------------------------------------------------------- reading


def read_part(path: str, node: str, head: Head, codec: Codec, started: float) -> Iterator[Entry]:
    """Read a node's events back, as far as they are whole."""
    first = True
    for block in chain(_blocks(f"{path}.old"), _blocks(path)):
        if first:
            yield from _dropped(block, node, head)
            first = False
        yield from _entries(block, node, head, codec, started)


def _blocks(path: str) -> Iterator[Any]:
    try:
        file = open(path, "rb")  # noqa: SIM115 - closed by the `with` below
    except FileNotFoundError:
        return
    with file:
        while len(header := file.read(_HEADER.size)) == _HEADER.size:
            length, checksum = _HEADER.unpack(header)
            body = file.read(length)
            if len(body) < length or crc32(body) != checksum:
                return
            yield marshal.loads(body)


def _neighbours(node: str, head: Head) -> tuple[list[str], list[str]]:
    outbound = sorted(dst for src, dst in head.channels if src == node)
    return outbound, sorted(src for src, dst in head.channels if dst == node)


def _dropped(block: Any, node: str, head: Head) -> Iterator[Entry]:
    index, counts = block[:2]
    if index:
        outbound, _ = _neighbours(node, head)
        sent = dict(zip(outbound, counts, strict=False))
        yield Entry(node, index - 1, 0.0, "dropped", {"count": index, "sent": sent})


def _entries(block: Any, node: str, head: Head, codec: Codec, started: float) -> Iterator[Entry]:
    index, counts, codes, times, payloads, notes = block
    outbound, inbound = _neighbours(node, head)
    order = array("I")
    order.frombytes(codes)
    marks, values, told = iter(times), iter(payloads), iter(notes)
    now = 0.0
    for code in order:
        if code == _TIME:
            now = _since(next(marks), started)
            continue
        if code == _NOTE:
            at, event, fields = next(told)
            now = max(now, _since(at, started))
            yield Entry(node, index, now, event, _shown(fields, codec))
        else:
            at = code - _FIRST_CHANNEL
            number = counts[at] = counts[at] + 1
            if at < len(outbound):
                value = next(values)
                payload = value if type(value) is dict else value_shown(value, codec, VALUES["payload"])
                yield Entry(node, index, now, "sent", {"to": outbound[at], "number": number, "payload": payload})
            else:
                yield Entry(node, index, now, "received", {"from": inbound[at - len(outbound)], "number": number})
        index += 1


def _since(at: float, started: float) -> float:
    return max(0.0, round(at - started, 6))


def _shown(fields: dict[str, Any], codec: Codec) -> dict[str, Any]:
    for name in VALUES.keys() & fields.keys():
        value = fields[name]
        if type(value) is tuple:
            kind, inner = value
            fields[name] = value_shown(Encoded(inner) if kind else inner, codec, VALUES[name])
    return fields


# ------------------------------------------------------------------ the whole


#: In the folder of journals: the time on the monotonic clock that the log counts from.
_STARTED = "started"


def _folder(path: str) -> str:
    return f"{path}.parts"


def _part(path: str, rank: int) -> str:
    return os.path.join(_folder(path), str(rank))


def entries_so_far(path: str, head: Head) -> list[Entry] | None:
    """Return the entries of a log whose run goes on, or was killed before it could merge them; None if it has ended.

    What the supervisor alone knew is not among them.
    """
    try:
        # Journals are trusted to be what nodes wrote: of another user's, they are not.
        if os.stat(_folder(path)).st_uid != os.getuid():
            return None
        with open(os.path.join(_folder(path), _STARTED), encoding="ascii") as file:
            started = float(file.read())
    except (OSError, ValueError):
        return None
    plain = Codec()
    parts: dict[str | None, Iterable[Entry]] = {
        node: read_part(_part(path, rank), node, head, plain, started) for rank, node in enumerate(head.nodes)
    }
    return list(causal_order(parts))


class RunLog:
    """Hold the log of one run: the journals of its nodes while it goes on, the merged file at the end.

    Args:
        path: Of the merged log. The journals are in a folder beside it until then.
        head: What runs.
        events: About how many events are kept in all.

    Raises:
        InputError: It cannot be written there.
    """

    def __init__(self, path: str, head: Head, events: int) -> None:
        self.path = path
        self._folder = _folder(path)
        self._head = head
        self._events = events
        self._started = time.monotonic()
        self._noted: list[Entry] = []
        self._died: NodeError | None = None
        file: IO[str] | None = None
        try:
            # Not "w": that would empty the log of a run that goes on.
            file = self._file = open(path, "a", encoding="utf-8")  # noqa: SIM115 - closed by `close`
            _lock(file, path)
            _clear(self._folder)
            file.truncate(0)
            file.write(head_line(head) + "\n")
            file.flush()
            os.mkdir(self._folder, 0o700)
            with open(os.path.join(self._folder, _STARTED), "w", encoding="ascii") as started:
                started.write(repr(self._started))
        except (OSError, ValueError, InputError) as error:
            if file is not None:
                file.close()
            if isinstance(error, InputError):
                raise
            reason = (error.strerror if isinstance(error, OSError) else None) or str(error)
            raise InputError(f"cannot be written: {reason}", where=path or "''") from error

    def specs(self) -> dict[str, JournalSpec]:
        """Return where each node keeps its journal."""
        share = max(LEAST_EVENTS, self._events // len(self._head.nodes))
        return {node: JournalSpec(self._part(rank), share) for rank, node in enumerate(self._head.nodes)}

    def _part(self, rank: int) -> str:
        return os.path.abspath(_part(self.path, rank))

    def attend(self, event: Event) -> None:
        """Note what is the supervisor's to tell."""
        if isinstance(event, SnapshotInitiated):
            self._note("initiated", event, initiators=list(event.initiators))
        elif isinstance(event, SnapshotCompleted):
            snapshot = event.snapshot
            named = SnapshotInitiated(snapshot.number, snapshot.id, snapshot.initiators)
            self._note("completed", named, verified=snapshot.verified)
        elif isinstance(event, SnapshotAbandoned):
            self._note("abandoned", event, error=error_shown(event.error))
        elif isinstance(event, ClusterStopped) and isinstance(event.error, NodeError):
            self._died = event.error

    def _note(self, event: str, about: SnapshotInitiated | SnapshotAbandoned, **fields: Any) -> None:
        detail = {"number": about.number, "snapshot": str(about.snapshot_id), **fields}
        now = _since(time.monotonic(), self._started)
        self._noted.append(Entry(None, len(self._noted), now, event, detail))

    def merge(self, codecs: Mapping[str, Codec], progress: Callable[[int], None]) -> int:
        """Write the log, when no node is left; return how many entries it has.

        Args:
            codecs: How to read each node's values.
            progress: Told how many entries are written.
        """
        parts: dict[str | None, Iterable[Entry]] = {None: self._noted}
        for rank, node in enumerate(self._head.nodes):
            part = read_part(self._part(rank), node, self._head, codecs[node].reader(), self._started)
            parts[node] = self._with_death(part) if self._died is not None and self._died.node == node else part
        count = 0
        for count, entry in enumerate(causal_order(parts), 1):
            self._file.write(entry_line(entry) + "\n")
            if count % 1000 == 0:
                progress(count)
        return count

    def _with_death(self, part: Iterable[Entry]) -> Iterator[Entry]:
        index, now = -1, 0.0
        for entry in part:
            index, now = entry.index, entry.time
            yield entry
        assert self._died is not None
        yield Entry(self._died.node, index + 1, now, "died", {"error": error_shown(self._died)})

    def close(self) -> None:
        """Give everything back but the log.

        Raises:
            OutputError: The last of the log cannot be written.
        """
        try:
            self._file.close()
        except OSError as error:
            raise OutputError(f"cannot be written: {error.strerror}", where=self.path) from error
        finally:
            _clear(self._folder)


def _lock(file: IO[str], path: str) -> None:
    """Keep other runs from writing this log; the lock goes with the last process that has the file."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise InputError("another run writes this log", where=path, hint="another file for --log") from None


def _clear(folder: str) -> None:
    """Remove a folder of journals, such as a run leaves that is killed with its supervisor; nothing else."""
    try:
        names = os.listdir(folder)
    except FileNotFoundError:
        return
    if not all(name == _STARTED or name.removesuffix(".old").isdecimal() for name in names):
        raise InputError("there is something else in the folder of the log's journals", where=folder, hint="moving it")
    for name in names:
        os.unlink(os.path.join(folder, name))
    os.rmdir(folder)
