"""The space-time diagram of a log, before anyone draws it: points on node lines, arrows, cuts.

This module owns what is drawn where; svg.py and html.py own how it looks, and the other views of a log read its arrows
and cuts too. Pure: a `History` to tuples.

Two places are known for every point. Its *column* is its place in the order of causes: no node has two points in one,
no arrow stays within one, and columns follow time (a tick begins where the one before ends; of seconds, a point may
stand a few columns early). Its *place* is its time, moved on just as far as it takes to keep points apart and arrows
pointing forward.

What a node does in one step around a snapshot (a marker comes, the state is recorded, markers leave) is one point, as
in every drawing of the algorithm. A cut is then a line through the points where the nodes recorded.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

from mpsnap.core.history import Entry, Head, History, causal_order
from mpsnap.views.wording import error_text

#: Entries that belong to the point of the entry before them, at the same node.
_CONTINUES = {
    "recorded": ("marker received",),
    "closed": ("marker received", "recorded"),
    "marker sent": ("recorded", "closed", "marker sent"),
    "reported": ("marker received", "recorded", "closed", "marker sent"),
}
#: The least distance of two points of a node in seconds: the resolution of the log's times.
_RESOLUTION = 1e-6
#: How many columns early a point may stand where time is in seconds: what others did just before is no cause of it.
_SLACK = 4


class Point(NamedTuple):
    """Say where an entry stands; `lane` is None for the supervisor's."""

    entry: Entry
    lane: int | None
    column: int
    place: float


class Arrow(NamedTuple):
    """Join two entries, each by its rank in the diagram or None if the log lacks it; a marker names its snapshot."""

    src: int
    dst: int
    number: int
    snapshot: str | None
    sent: int | None
    received: int | None


class Cut(NamedTuple):
    """Hold what the log tells of one snapshot.

    `status` is completed, abandoned or open (the log ends before); `recorded` has the ranks of these entries by lane,
    `in_flight` the ranks in `Diagram.messages` of the messages in flight, channels by name, oldest first. `total` is
    how many were in flight, also those that the log has lost.
    """

    id: str
    number: int | None
    initiators: tuple[str, ...]
    status: str
    verified: bool
    error: str | None
    recorded: Mapping[int, int]
    in_flight: tuple[int, ...]
    total: int


class Diagram(NamedTuple):
    """Hold a whole log as points in an order of causes, arrows between them, and cuts by number."""

    head: Head
    nodes: tuple[str, ...]
    points: tuple[Point, ...]
    messages: tuple[Arrow, ...]
    markers: tuple[Arrow, ...]
    cuts: tuple[Cut, ...]
    columns: int
    notices: tuple[str, ...]


class NoSuchCut(LookupError):
    """There is no snapshot of this number in the log."""


def diagram(history: History) -> Diagram:
    """Lay out a log."""
    entries = _in_order(history)
    nodes = _nodes(history.head, entries)
    lanes = {name: lane for lane, name in enumerate(nodes)}
    messages, markers = _arrows(entries, lanes)
    causes = {arrow.received: arrow.sent for arrow in (*messages, *markers) if arrow.received is not None}
    points, columns = _points(entries, lanes, causes, history.head.unit == "ticks")
    return Diagram(
        history.head,
        nodes,
        tuple(points),
        tuple(messages),
        tuple(markers),
        tuple(_cuts(entries, lanes, messages)),
        columns,
        tuple(_notices(history, entries)),
    )


def chosen_cut(drawing: Diagram, number: int | None = None) -> Cut | None:
    """Return the cut of this number; without one the last that completed, else the last of which anything is known.

    Raises:
        NoSuchCut: None has this number.
    """
    if number is not None:
        for cut in drawing.cuts:
            if cut.number == number:
                return cut
        raise NoSuchCut(number)
    completed = [cut for cut in drawing.cuts if cut.status == "completed"]
    begun = [cut for cut in drawing.cuts if cut.recorded]
    return next(reversed(completed or begun), None)


def name_of(cut: Cut) -> str:
    """Return what a snapshot is called: its number, or its id where the log has lost the number."""
    return f"snapshot {cut.id if cut.number is None else cut.number}"


def about(cut: Cut) -> str:
    """Return in words how a snapshot ended."""
    if cut.status == "completed":
        return "consistent" if cut.verified else "NOT CONSISTENT"
    return "abandoned" if cut.status == "abandoned" else "not completed in this log"


# ------------------------------------------------------------------- reading


def _in_order(history: History) -> list[Entry]:
    # The supervisor's first: what it initiates is recorded after that, and nothing in the log would tell.
    parts: dict[str | None, list[Entry]] = {None: []}
    parts.update((name, []) for name in history.head.nodes)
    for entry in history.entries:
        parts.setdefault(entry.node, []).append(entry)
    return list(causal_order(parts))


def _nodes(head: Head, entries: Sequence[Entry]) -> tuple[str, ...]:
    """Return the nodes of the head, and those that a head which lies has left out."""
    names = dict.fromkeys(head.nodes)
    for entry in entries:
        for name in (entry.node, entry.detail.get("to"), entry.detail.get("from")):
            if isinstance(name, str):
                names.setdefault(name)
    return tuple(names)


def _arrows(entries: Sequence[Entry], lanes: Mapping[str, int]) -> tuple[list[Arrow], list[Arrow]]:
    found: dict[tuple[int, int, int | str], Arrow] = {}
    #: What was lost or undone by a recovery, and happened again.
    past: list[Arrow] = []
    restored: dict[int, int] = {}
    for rank, (node, _, _, event, detail) in enumerate(entries):
        if node is None:
            continue
        if event in ("sent", "marker sent"):
            src, dst = lanes[node], lanes[detail["to"]]
        elif event in ("received", "marker received"):
            src, dst = lanes[detail["from"]], lanes[node]
        else:
            if event == "restored":
                restored[lanes[node]] = rank
            continue
        snapshot = detail["snapshot"] if event[0] == "m" else None
        key = (src, dst, detail["number"] if snapshot is None else snapshot)
        arrow = found.get(key) or Arrow(src, dst, detail["number"], snapshot, None, None)
        again = arrow.sent if event[-4:] == "sent" else arrow.received
        if again is not None and again < restored.get(lanes[node], -1):
            past.append(arrow)
            arrow = arrow._replace(sent=None if event[-4:] == "sent" else arrow.sent, received=None)
        if event[-4:] == "sent":
            found[key] = arrow._replace(sent=rank)
        elif arrow.received is None:
            found[key] = arrow._replace(received=rank)
    arrows = [*past, *found.values()]
    messages = [arrow for arrow in arrows if arrow.snapshot is None]
    return messages, [arrow for arrow in arrows if arrow.snapshot is not None]


def _cuts(entries: Sequence[Entry], lanes: Mapping[str, int], messages: Sequence[Arrow]) -> Iterator[Cut]:
    cuts: dict[str, Cut] = {}
    recorded: dict[str, dict[int, int]] = {}
    flying: dict[str, list[tuple[str, str, int, int]]] = {}
    for rank, (node, _, _, event, detail) in enumerate(entries):
        if event not in (("initiated", "completed", "abandoned") if node is None else ("recorded", "reported")):
            continue
        id = str(detail.get("snapshot"))
        cut = cuts.get(id) or Cut(id, None, (), "open", False, None, {}, (), 0)
        if node is None:
            number = detail.get("number")
            cut = cut._replace(number=number if type(number) is int else None)
            if event == "initiated":
                cut = cut._replace(initiators=tuple(map(str, detail["initiators"])))
            elif event == "completed":
                cut = cut._replace(status="completed", verified=detail["verified"])
            elif event == "abandoned":
                cut = cut._replace(status="abandoned", error=error_text(detail.get("error")))
        elif event == "recorded":
            recorded.setdefault(id, {})[lanes[str(node)]] = rank
        else:
            flying.setdefault(id, []).extend(
                (src, str(node), first, count) for src, (first, count) in detail["channels"].items()
            )
        cuts[id] = cut
    by_number = {(arrow.src, arrow.dst, arrow.number): rank for rank, arrow in enumerate(messages)}
    unnumbered = max((cut.number for cut in cuts.values() if cut.number is not None), default=0) + 1
    for id, cut in sorted(cuts.items(), key=lambda item: unnumbered if item[1].number is None else item[1].number):
        known: list[int] = []
        for src, dst, first, count in sorted(flying.get(id, ())):
            for number in range(first, first + min(count, len(messages))):
                flown = by_number.get((lanes.get(src, -1), lanes[dst], number))
                if flown is not None:
                    known.append(flown)
        total = sum(max(count, 0) for _, _, _, count in flying.get(id, ()))
        yield cut._replace(recorded=recorded.get(id, {}), in_flight=tuple(known), total=total)


def _notices(history: History, entries: Sequence[Entry]) -> Iterator[str]:
    if history.flaw:
        yield history.flaw
    for entry in entries:
        if entry.event == "dropped":
            yield f"{entry.node}: {entry.detail['count']} entries are missing, the log had reached its size"
        elif entry.event == "died":
            yield f"{entry.node} died: {error_text(entry.detail.get('error'))}"
        elif entry.event == "recovered":
            yield f"incarnation {entry.detail['incarnation']} begins from snapshot {entry.detail['snapshot']}"
        elif entry.event == "violated":
            yield f"violated: {error_text(entry.detail.get('error'))}"
    if not entries:
        yield "the log has no entries"


# ------------------------------------------------------------------- places


def _points(
    entries: Sequence[Entry], lanes: Mapping[str, int], causes: Mapping[int, int | None], ticks: bool
) -> tuple[list[Point], int]:
    columns = _columns(entries, causes, ticks)
    places = _tick_places(entries, columns) if ticks else _second_places(entries, causes)
    points = [
        Point(entry, None if entry.node is None else lanes[entry.node], column, place)
        for entry, column, place in zip(entries, columns, places, strict=True)
    ]
    return points, max(columns, default=-1) + 1


def _columns(entries: Sequence[Entry], causes: Mapping[int, int | None], ticks: bool) -> list[int]:
    columns: list[int] = []
    #: The first column that may be taken, and the last that is.
    least, most = 0, -1
    time: float | None = None
    #: By node, its latest entry's event, column and snapshot.
    latest: dict[str, tuple[str, int, object]] = {}
    for rank, entry in enumerate(entries):
        if entry.node is None:
            columns.append(max(most, 0))
            continue
        event, snapshot = entry.event, entry.detail.get("snapshot")
        before, taken, its = latest.get(entry.node, ("", -1, None))
        if before in _CONTINUES.get(event, ()) and its == snapshot:
            column = taken
        else:
            if not ticks:
                least = max(least, most - _SLACK)
            elif time is None or entry.time > time:
                least, time = most + 1, entry.time
            cause = causes.get(rank)
            column = max(least, taken + 1, 0 if cause is None else columns[cause] + 1)
        most = max(most, column)
        latest[entry.node] = (event, column, snapshot)
        columns.append(column)
    return columns


def _tick_places(entries: Sequence[Entry], columns: Sequence[int]) -> list[float]:
    """Spread the columns of a tick evenly over it."""
    first: dict[float, int] = {}
    last: dict[float, int] = {}
    for entry, column in zip(entries, columns, strict=True):
        if entry.node is not None:
            first[entry.time] = min(column, first.get(entry.time, column))
            last[entry.time] = max(column, last.get(entry.time, column))
    places = []
    for entry, column in zip(entries, columns, strict=True):
        width = last.get(entry.time, column) - first.get(entry.time, column) + 1
        places.append(round(entry.time + (column - first.get(entry.time, column)) / width, 6))
    return places


def _second_places(entries: Sequence[Entry], causes: Mapping[int, int | None]) -> list[float]:
    places: list[float] = []
    latest: dict[str | None, tuple[str, float]] = {}
    for rank, entry in enumerate(entries):
        place = entry.time
        before = latest.get(entry.node)
        if before is not None and entry.node is not None:
            same = before[0] in _CONTINUES.get(entry.event, ())
            place = before[1] if same else max(place, before[1] + _RESOLUTION)
        cause = causes.get(rank)
        if cause is not None:
            place = max(place, places[cause] + _RESOLUTION)
        latest[entry.node] = (entry.event, place)
        places.append(round(place, 9))
    return places
