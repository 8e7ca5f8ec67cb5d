"""A log for Perfetto (https://ui.perfetto.dev) and chrome://tracing: trace events in JSON.

This module owns that form. One process is the run, one thread of it each node, in their order. An event is a short
slice on its node's track; a message or marker is a flow from slice to slice; a snapshot lasts from its first record to
its end on a track of its own; a counter has the messages in flight. Times are microseconds; a tick is a millisecond.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from typing import Any

from mpsnap.views.spacetime import Diagram, about, name_of
from mpsnap.views.wording import brief_line, described

#: Microseconds of a tick and of a second.
TICK, SECOND = 1_000, 1_000_000
#: The run, as a process; the nodes are its threads 1, 2, 3...
_PID = 1
#: Microseconds that a slice takes at most: it must not cover what follows, nor vanish.
_LONGEST = 100.0


def perfetto_text(drawing: Diagram) -> str:
    """Return the trace as a JSON document, an event a line."""
    head = drawing.head
    other = {
        "app": head.app,
        "topology": head.topology,
        "driver": head.driver,
        "time": "1 ms is a tick" if head.unit == "ticks" else "since the start",
        "notices": list(drawing.notices),
    }
    lines = ",\n".join(json.dumps(event, allow_nan=False) for event in trace_events(drawing))
    return f'{{"displayTimeUnit": "ms", "otherData": {json.dumps(other)}, "traceEvents": [\n{lines}\n]}}\n'


def trace_events(drawing: Diagram) -> Iterator[dict[str, Any]]:
    """Yield the events of the trace."""
    head = drawing.head
    yield _named("process_name", 0, {"name": brief_line(f"{head.app} on {head.topology}", 120)})
    for lane, name in enumerate(drawing.nodes, 1):
        yield _named("thread_name", lane, {"name": brief_line(name, 80)})
        yield _named("thread_sort_index", lane, {"sort_index": lane})
    factor = TICK if head.unit == "ticks" else SECOND
    starts = _starts(drawing, factor)
    yield from _slices(drawing, starts)
    yield from _flows(drawing, starts)
    yield from _snapshots(drawing, factor)
    yield from _counter(drawing, starts)


def _named(what: str, thread: int, args: dict[str, Any]) -> dict[str, Any]:
    return {"ph": "M", "pid": _PID, "tid": thread, "ts": 0, "name": what, "args": args}


def _slices(drawing: Diagram, starts: Mapping[int, tuple[float, float]]) -> Iterator[dict[str, Any]]:
    names = {cut.id: name_of(cut) for cut in drawing.cuts}
    for rank, (start, length) in starts.items():
        point = drawing.points[rank]
        yield {
            "ph": "X",
            "pid": _PID,
            "tid": _thread(point.lane),
            "ts": start,
            "dur": length,
            "cat": point.entry.event,
            "name": described(point.entry, names, width=24),
            "args": {"entry": point.entry.index, **point.entry.detail},
        }


def _starts(drawing: Diagram, factor: int) -> dict[int, tuple[float, float]]:
    """Return when the slice of each entry of a node begins and how long it is; slices of a track never overlap."""
    own: dict[int, list[list[int]]] = {}
    for rank, point in enumerate(drawing.points):
        if point.lane is None:
            continue
        groups = own.setdefault(point.lane, [])
        if groups and drawing.points[groups[-1][0]].place == point.place:
            groups[-1].append(rank)
        else:
            groups.append([rank])
    effects = {
        arrow.sent: arrow.received for arrow in (*drawing.messages, *drawing.markers) if arrow.received is not None
    }
    found: dict[int, tuple[float, float]] = {}
    for groups in own.values():
        places = [drawing.points[group[0]].place * factor for group in groups]
        for group, place, after in zip(groups, places, [*places[1:], math.inf], strict=True):
            # What stands at one place is one after the other all the same, and still before its effects elsewhere.
            caused = (drawing.points[effects[rank]].place * factor for rank in group if rank in effects)
            part = min(_LONGEST, min((after, *caused)) - place) / len(group)
            for nth, rank in enumerate(group):
                found[rank] = (round(place + nth * part, 3), max(0.001, round(part * 0.9, 3)))
    return dict(sorted(found.items()))


def _flows(drawing: Diagram, starts: Mapping[int, tuple[float, float]]) -> Iterator[dict[str, Any]]:
    for number, arrow in enumerate((*drawing.messages, *drawing.markers), 1):
        if arrow.sent is None or arrow.received is None:
            continue
        kind = "message" if arrow.snapshot is None else "marker"
        common = {"cat": kind, "name": kind, "id": number, "pid": _PID}
        yield {"ph": "s", "tid": arrow.src + 1, "ts": starts[arrow.sent][0], **common}
        # Bound to the slice it ends in, not to the next one.
        yield {"ph": "f", "bp": "e", "tid": arrow.dst + 1, "ts": starts[arrow.received][0], **common}


def _snapshots(drawing: Diagram, factor: int) -> Iterator[dict[str, Any]]:
    times: dict[str, list[float]] = {}
    for point in drawing.points:
        if point.entry.event in ("initiated", "recorded", "reported", "completed", "abandoned"):
            times.setdefault(str(point.entry.detail.get("snapshot")), []).append(point.place * factor)
    for number, cut in enumerate(drawing.cuts):
        if cut.id not in times:
            continue
        common = {"cat": "snapshot", "id": number, "pid": _PID, "tid": 0, "name": brief_line(name_of(cut), 80)}
        args = {"id": cut.id, "initiators": list(cut.initiators), "result": about(cut), "in flight": cut.total}
        yield {"ph": "b", "ts": round(min(times[cut.id]), 3), "args": args, **common}
        yield {"ph": "e", "ts": round(max(times[cut.id]), 3), **common}


def _counter(drawing: Diagram, starts: Mapping[int, tuple[float, float]]) -> Iterator[dict[str, Any]]:
    changes: dict[float, int] = {}
    for arrow in drawing.messages:
        if arrow.sent is None:
            continue
        changes[starts[arrow.sent][0]] = changes.get(starts[arrow.sent][0], 0) + 1
        if arrow.received is not None:
            changes[starts[arrow.received][0]] = changes.get(starts[arrow.received][0], 0) - 1
    count = 0
    for time in sorted(changes):
        count += changes[time]
        yield {"ph": "C", "pid": _PID, "tid": 0, "ts": time, "name": "messages in flight", "args": {"messages": count}}


def _thread(lane: int | None) -> int:
    return 0 if lane is None else lane + 1
