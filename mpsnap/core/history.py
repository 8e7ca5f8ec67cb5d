"""What happened in a run, entry by entry: the event log, its file format, and one order that respects causes.

This module owns the kinds of entries, how they are written, and how the entries of many nodes become one log. It must
not know who saw them happen, nor what anyone draws of them.

A log is a text of JSON lines. The first says what ran:

    {"log": 1, "driver": "simulator" or "processes", "unit": "ticks" or "seconds", "app": ..., "topology": ...,
     "nodes": [NAME, ...], "channels": [[SRC, DST], ...]}

Each other line is an entry. All have `node` (null for the supervisor), `index` (0, 1, 2... of that node), `time` (since
the start, in the unit above) and `event`; the rest depends on the event:

    event            further fields
    sent             to, number, payload: message `number` of the channel, counted from 1
    received         from, number: the node's code gets the message now (the paper's "receives")
    command          value: an injected command or a line of a script
    timer            method
    recorded         snapshot, from (null: spontaneously), state; without it if that was large and still being encoded
    marker sent      to, snapshot, number: so many messages were sent there before it
    marker received  from, snapshot, number: it acts at once, also in front of messages that were not yet handled
    closed           from, snapshot: this channel's state is fixed
    reported         snapshot, channels: {SRC: [first, count]}, the messages in flight to this node at the cut
    refused          snapshot, error: the state could not be recorded
    restored         snapshot, channels, state: the node begins anew from its part of this snapshot, which is not
                     always one that the log tells of; fields as of reported and recorded
    output           n, record
    log              text
    dropped          count, sent: so many entries of this node are missing here, for the log had reached its size, and
                     among them all before the messages counted, by destination, in `sent`
    died             error; of the node that ended the cluster, or this incarnation of it
    initiated        number, snapshot, initiators; by the supervisor, as the four that follow
    completed        number, snapshot, verified
    abandoned        number, snapshot, error
    recovered        incarnation, snapshot: all nodes have ended, and new ones begin from this snapshot
    violated         error: a cut or an invariant

Values (`payload`, `state`, `record`, `value`) have the JSON form of `mpsnap.core.jsonform`; one that is too large is
`{"$size": bytes}`.

Rules a maintainer keeps: the entries of a node stand in the order in which they happened, and none stands before what
caused it: a message or marker is received after it was sent. Messages that were sent or received after the cut of a
recovery do so again, under the same numbers. Reading runs no code from the log. A log that breaks off
is read to its last good line, and says so.
"""

from __future__ import annotations

import heapq
import json
import math
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, NamedTuple

from mpsnap.core.codec import Codec, Encoded, encoded
from mpsnap.core.errors import InputError, MpsnapError
from mpsnap.core.jsonform import to_json

#: Version of the format; a reader refuses any other.
FORMAT = 1
#: The fields that hold a value of the user's, and above how many bytes it is logged as its size.
VALUES: Mapping[str, int] = {"payload": 4096, "value": 4096, "record": 4096, "state": 65536}
#: No run lasts so many seconds or ticks; beyond it neighbouring times could not be told apart.
_ENDLESS = 1e15


class LogError(InputError):
    """Refuse a file that is no event log; `where` is file:line."""


class Entry(NamedTuple):
    """Say what happened at one node; `node` is None for the supervisor. The module's table has the details by event."""

    node: str | None
    index: int  # type: ignore[assignment] # hides the method of tuple, which has no meaning for an entry
    time: float
    event: str
    detail: Mapping[str, Any]


class Head(NamedTuple):
    """Say what ran."""

    driver: str
    unit: str
    app: str
    topology: str
    nodes: tuple[str, ...]
    channels: tuple[tuple[str, str], ...]


class History(NamedTuple):
    """Hold a whole log; `flaw` says where and why it breaks off, None if it does not."""

    head: Head
    entries: tuple[Entry, ...]
    flaw: str | None = None


# ---------------------------------------------------------------------- text


def head_line(head: Head) -> str:
    """Return the first line of a log, without its end."""
    plain = {"log": FORMAT, **head._asdict()}
    return json.dumps(plain)


def entry_line(entry: Entry) -> str:
    """Return the line of one entry, without its end."""
    return json.dumps(
        {"node": entry.node, "index": entry.index, "time": entry.time, "event": entry.event, **entry.detail}
    )


def parse_log(lines: Iterable[bytes], source: str) -> History:
    """Read a log back, as far as it is good.

    Args:
        lines: The file's lines, each with its end.
        source: What to call the file in errors.

    Raises:
        LogError: The first line is not that of a log of this version.
    """
    numbered = enumerate(lines, 1)
    _, first = next(numbered, (1, b""))
    head = _head(first, source)
    entries: list[Entry] = []
    for number, line in numbered:
        try:
            # A last line without its end was being written: it may be a number cut in two.
            entries.append(_entry(line) if line.endswith(b"\n") else _no_end())
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
            flaw = f"{source}:{number} is damaged; what stands before it, {len(entries)} entries, is read"
            return History(head, tuple(entries), flaw)
    return History(head, tuple(entries))


def _no_end() -> Entry:
    raise ValueError("no end of line")


def _head(line: bytes, source: str) -> Head:
    try:
        plain = json.loads(line)
        version = plain["log"]
        if type(version) is not int or version != FORMAT:
            raise LogError(f"a log of format {version!r}, this version reads {FORMAT}", where=f"{source}:1")
        words = [plain[name] for name in ("driver", "unit", "app", "topology")]
        nodes = tuple(plain["nodes"])
        channels = tuple((src, dst) for src, dst in plain["channels"])
        if not all(type(text) is str for text in (*words, *nodes)) or not {x for c in channels for x in c} <= set(
            nodes
        ):
            raise ValueError("not the fields of a head")
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        raise LogError(
            "not an event log of mpsnap", where=f"{source}:1", hint="a file that `run --log` or `simulate --log` wrote"
        ) from error
    return Head(words[0], words[1], words[2], words[3], nodes, channels)


#: By event, the fields that must be there and their types.
_FIELDS: Mapping[str, Mapping[str, tuple[type, ...]]] = {
    "sent": {"to": (str,), "number": (int,)},
    "received": {"from": (str,), "number": (int,)},
    "timer": {"method": (str,)},
    "recorded": {"snapshot": (str,)},
    "marker sent": {"to": (str,), "snapshot": (str,), "number": (int,)},
    "marker received": {"from": (str,), "snapshot": (str,), "number": (int,)},
    "closed": {"from": (str,), "snapshot": (str,)},
    "reported": {"snapshot": (str,), "channels": (dict,)},
    "restored": {"snapshot": (str,), "channels": (dict,)},
    "log": {"text": (str,)},
    "dropped": {"count": (int,)},
    "initiated": {"number": (int,), "snapshot": (str,), "initiators": (list,)},
    "completed": {"number": (int,), "snapshot": (str,), "verified": (bool,)},
    "recovered": {"incarnation": (int,), "snapshot": (str,)},
}


def _finite(text: str) -> float:
    number = float(text)
    if not math.isfinite(number):
        raise ValueError("JSON has no such number")
    return number


#: Python's own would read NaN and the infinities, which nobody can sort by or write again.
_DECODER = json.JSONDecoder(parse_float=_finite, parse_constant=_finite)


def _entry(line: bytes) -> Entry:
    plain = _DECODER.decode(line.decode())
    node, index, time, event = (plain.pop(name) for name in ("node", "index", "time", "event"))
    if not (node is None or type(node) is str) or type(index) is not int or type(event) is not str:
        raise TypeError("not the fields of an entry")
    if type(time) not in (int, float) or not 0 <= time < _ENDLESS:
        raise TypeError("no time")
    for field, types in _FIELDS.get(event, {}).items():
        if type(plain[field]) not in types:
            raise TypeError(field)
    if event == "dropped" and not all(type(number) is int for number in plain.get("sent", {}).values()):
        raise TypeError("sent")
    if event in ("reported", "restored") and not all(
        type(pair) is list and [type(part) for part in pair] == [int, int] for pair in plain["channels"].values()
    ):
        raise TypeError("channels")
    return Entry(node, index, time, event, plain)


# -------------------------------------------------------------------- values


def value_shown(value: object, codec: Codec, most: int) -> object:
    """Return the JSON form of a value that is fixed, or about its size if that is above `most` bytes."""
    value = encoded(value, codec)
    if type(value) is Encoded:
        return {"$size": len(value.data)} if len(value.data) > most else to_json(codec.decode(value.data))
    if type(value) in (str, bytes) and len(value) > most:  # type: ignore[arg-type] # both have a length
        return {"$size": len(value)}  # type: ignore[arg-type]
    shown = to_json(value)
    if type(value) is tuple and len(json.dumps(shown)) > most:
        return {"$size": len(json.dumps(shown))}
    return shown


def error_shown(error: MpsnapError) -> dict[str, str | None]:
    """Return an error as what, where and what to try."""
    return {"what": error.what, "where": error.where, "try": error.hint}


# --------------------------------------------------------------------- order


class _Cause(NamedTuple):
    """The sending of one item: a message by its number, a marker by its id and the number of the message before it."""

    src: str
    dst: str | None
    number: int
    snapshot: str | None


def causal_order(parts: Mapping[str | None, Iterable[Entry]]) -> Iterator[Entry]:
    """Merge the entries of several nodes: by time, but never an effect before its cause.

    Args:
        parts: The entries of each node, in their order. Times need not tell what came first: a batch of messages may
            have one time for all. A cause that is in none of the parts (dropped, or lost with a dying node) is not
            waited for.
    """
    return _Merge(parts).entries()


class _Merge:
    """The state of one merge: streams by the time of their next entry, and those that wait for a cause."""

    def __init__(self, parts: Mapping[str | None, Iterable[Entry]]) -> None:
        self._names = list(parts)
        self._known = set(parts)
        self._streams = [iter(part) for part in parts.values()]
        self._next: list[Entry] = []
        #: Heap of (time, rank) of the streams that can go on.
        self._ready: list[tuple[float, int]] = []
        #: What has been sent and not yet received.
        self._happened: set[_Cause] = set()
        self._waiting: dict[_Cause, int] = {}
        #: Per channel, how many of its first messages are not in the log.
        self._dropped: dict[tuple[str, str | None], int] = {}
        self._ended: set[str | None] = set()
        #: Per channel, the messages that stood in the inbox of a node when it was restored.
        self._in_inbox: dict[tuple[str, str | None], range] = {}

    def entries(self) -> Iterator[Entry]:
        for rank, stream in enumerate(self._streams):
            entry = next(stream, None)
            # Whatever, where a stream is empty: nobody looks at it.
            self._next.append(entry or Entry(None, 0, 0.0, "", {}))
            self._go_on(rank, entry)
        while self._ready or self._waiting:
            if not self._ready:
                # Only in a log that contradicts itself: the earliest goes on without its cause.
                self._free(min(self._waiting, key=lambda cause: self._next[self._waiting[cause]].time), wait=False)
            _, rank = heapq.heappop(self._ready)
            entry = self._next[rank]
            cause = _cause(entry)
            if cause is not None and not self._has_happened(cause):
                self._waiting[cause] = rank
                continue
            yield entry
            self._note_effect(entry)
            following = next(self._streams[rank], None)
            if following is not None:
                self._next[rank] = following
            self._go_on(rank, following)

    def _go_on(self, rank: int, entry: Entry | None) -> None:
        if entry is not None:
            heapq.heappush(self._ready, (entry.time, rank))
            return
        self._ended.add(self._names[rank])
        for cause in [cause for cause in self._waiting if cause.src == self._names[rank]]:
            self._free(cause)

    def _free(self, cause: _Cause, wait: bool = True) -> None:
        rank = self._waiting.pop(cause)
        if not wait:
            self._happened.add(cause)
        heapq.heappush(self._ready, (self._next[rank].time, rank))

    def _has_happened(self, cause: _Cause) -> bool:
        if cause in self._happened:
            self._happened.remove(cause)
            return True
        return (
            (cause.snapshot is None and cause.number in self._in_inbox.get((cause.src, cause.dst), ()))
            or cause.src in self._ended
            or cause.src not in self._known
            or cause.number <= self._dropped.get((cause.src, cause.dst), -1)
        )

    def _note_effect(self, entry: Entry) -> None:
        if entry.event == "dropped":
            for dst, number in entry.detail.get("sent", {}).items():
                self._dropped[str(entry.node), dst] = number
            for cause in [cause for cause in self._waiting if cause.src == entry.node and self._has_happened(cause)]:
                self._free(cause)
            return
        effect = _effect(entry)
        if effect is not None:
            self._happened.add(effect)
            if effect in self._waiting:
                self._free(effect)
        elif entry.event == "recovered":
            self._begin_anew()
        elif entry.event == "restored":
            for src, (first, count) in entry.detail["channels"].items():
                self._in_inbox[src, entry.node] = range(first, first + max(count, 0))

    def _begin_anew(self) -> None:
        """Forget what the incarnation before had sent: the next one uses its numbers again."""
        self._happened.clear()
        for cause in list(self._waiting):
            self._free(cause, wait=False)


def _effect(entry: Entry) -> _Cause | None:
    """Return what this entry makes possible elsewhere."""
    if entry.event in ("sent", "marker sent"):
        detail = entry.detail
        return _Cause(str(entry.node), detail["to"], detail["number"], detail.get("snapshot"))
    return None


def _cause(entry: Entry) -> _Cause | None:
    """Return what must have happened elsewhere before this entry."""
    if entry.event in ("received", "marker received"):
        detail = entry.detail
        return _Cause(detail["from"], entry.node, detail["number"], detail.get("snapshot"))
    return None
