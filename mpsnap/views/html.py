"""A space-time diagram as one page that needs nothing but a browser.

This module owns what the page is given; the files beside it in `page` own how it is drawn there. The page holds the log
as data, draws the part that is in view, and can load nothing: its policy allows its own script and style alone, by
their hashes. Whatever comes from a program is data for `textContent`, never markup.
"""

from __future__ import annotations

import base64
import hashlib
import html
import json
from collections.abc import Mapping, Sequence
from functools import cache
from importlib.resources import files
from typing import Any

from mpsnap.core.errors import one_line
from mpsnap.core.history import VALUES
from mpsnap.views.spacetime import Arrow, Cut, Diagram, about

#: Entries on one page, and characters of values; a page of more would not open smoothly.
MAX_ENTRIES = 250_000
MAX_VALUES = 32_000_000
#: What the page calls an end of an arrow that is no entry of it: the log lacks it, or the page does.
_MISSING, _BEYOND = -1, -2
_SCRIPTS = ("model.js", "draw.js", "frame.js", "controls.js", "start.js")
#: Fields that an arrow of the page tells already.
_TOLD = frozenset(("to", "from", "number"))


def html_text(
    drawing: Diagram, cut: Cut | None = None, max_entries: int = MAX_ENTRIES, max_values: int = MAX_VALUES
) -> str:
    """Return the page of a log.

    Args:
        drawing: The log, laid out.
        cut: The snapshot that is selected when the page is opened.
        max_entries: Of a larger log so many entries around the cut are on the page, and it says so.
        max_values: Values beyond so many characters are left out, and the page says so.
    """
    data = json.dumps(page_data(drawing, cut, max_entries, max_values), separators=(",", ":"), allow_nan=False)
    # What would end the script element, or begin a comment in it, is written in another way.
    data = data.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")
    page, style, script = _parts()
    title = html.escape(one_line(f"{drawing.head.app} on {drawing.head.topology}"[:200]))
    filled = {
        "SCRIPT_HASH": _hash(script),
        "STYLE_HASH": _hash(style),
        "TITLE": title.encode("ascii", "xmlcharrefreplace").decode(),
        "STYLE": style,
        "DATA": data,
        "SCRIPT": script,
    }
    # In one pass, so that nothing that was filled in is taken for a place to fill.
    pieces = page.split("@")
    return "".join(filled.get(piece, piece) if odd % 2 else piece for odd, piece in enumerate(pieces))


@cache
def _parts() -> tuple[str, str, str]:
    folder = files("mpsnap.views") / "page"
    page = (folder / "page.html").read_text("ascii")
    style = (folder / "page.css").read_text("ascii")
    script = "".join((folder / name).read_text("ascii") for name in _SCRIPTS)
    return page, style, script


def _hash(text: str) -> str:
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()


def page_data(drawing: Diagram, cut: Cut | None, max_entries: int, max_values: int) -> dict[str, Any]:
    """Return what the page is given: the log as columns, arrows and cuts by their ranks."""
    low, high = _part(drawing, cut, max_entries)
    points = drawing.points[low:high]
    first = min((point.column for point in points), default=0)
    notices = [one_line(notice) for notice in drawing.notices]
    if len(points) < len(drawing.points):
        around = "around the cut" if low > 0 else "from the beginning"
        notices.insert(
            0,
            f"This page holds {len(points):,} of the log's {len(drawing.points):,} entries, {around}; the log has all",
        )
    names: dict[str, int] = {}
    events = [names.setdefault(point.entry.event, len(names)) for point in points]
    details, left_out = _details(drawing, low, high, max_values)
    if left_out:
        notices.insert(0, f"{left_out:,} values are left out, for the page would be too large; the log has them")
    # Only what is drawn counts: the supervisor has no line.
    times = [point.entry.time for point in points if point.lane is not None]
    ids = {each.id: rank for rank, each in enumerate(drawing.cuts)}
    return {
        "head": drawing.head._asdict() | {"nodes": None, "channels": None},
        "channels": len(drawing.head.channels),
        "nodes": drawing.nodes,
        "notices": notices,
        "total": len(drawing.points),
        "span": [min(times), max(times)] if times else None,
        "columns": max((point.column for point in points), default=-1) - first + 1,
        "events": list(names),
        "event": events,
        "lane": [-1 if point.lane is None else point.lane for point in points],
        "column": [point.column - first for point in points],
        "time": [point.entry.time for point in points],
        "place": [point.place for point in points],
        "index": [point.entry.index for point in points],
        "detail": details,
        "messages": _arrows(drawing.messages, low, high, ids)[0],
        "markers": _arrows(drawing.markers, low, high, ids)[0],
        "cuts": _cuts(drawing, low, high),
        "selected": -1 if cut is None else ids[cut.id],
    }


def _part(drawing: Diagram, cut: Cut | None, most: int) -> tuple[int, int]:
    """Return the ranks from and to which entries are on the page."""
    total = len(drawing.points)
    if total <= most:
        return 0, total
    ranks = sorted(cut.recorded.values()) if cut is not None and cut.recorded else [0]
    low = max(0, min((ranks[0] + ranks[-1] - most) // 2, total - most))
    return low, low + most


def _details(drawing: Diagram, low: int, high: int, most: int) -> tuple[dict[int, dict[str, object]], int]:
    """Return by rank what the page tells of an entry besides its arrow, and how many values were too much."""
    found: dict[int, dict[str, object]] = {}
    left_out = 0
    for rank, point in enumerate(drawing.points[low:high]):
        event, detail = point.entry.event, point.entry.detail
        arrow = event in ("sent", "received", "marker sent", "marker received")
        told: dict[str, object] = {}
        for name, value in detail.items():
            if arrow and name in _TOLD:
                continue
            if name in VALUES or isinstance(value, dict | list):
                text = json.dumps(value)
                most -= len(text)
                if most < 0:
                    left_out += 1
                    text = json.dumps({"$size": len(text)})
                told[name] = text
            elif value is not None:
                told[name] = value if isinstance(value, str | bool) else json.dumps(value)
        if told:
            found[rank] = told
    return found, left_out


def _arrows(
    arrows: Sequence[Arrow], low: int, high: int, ids: Mapping[str, int]
) -> tuple[dict[str, list[int]], dict[int, int]]:
    """Return the arrows that have an end on the page, as columns, and their new ranks by the old."""
    columns: dict[str, list[int]] = {name: [] for name in ("src", "dst", "number", "sent", "received", "cut")}
    ranks: dict[int, int] = {}
    for rank, arrow in enumerate(arrows):
        ends = [
            _MISSING if end is None else end - low if low <= end < high else _BEYOND
            for end in (arrow.sent, arrow.received)
        ]
        passes = arrow.sent is not None and arrow.sent < low and (arrow.received is None or arrow.received >= high)
        if max(ends) < 0 and not passes:
            continue
        ranks[rank] = len(columns["src"])
        own = (arrow.src, arrow.dst, arrow.number, *ends, ids.get(arrow.snapshot or "", -1))
        for column, value in zip(columns.values(), own, strict=True):
            column.append(value)
    return columns, ranks


def _cuts(drawing: Diagram, low: int, high: int) -> list[dict[str, object]]:
    _, ranks = _arrows(drawing.messages, low, high, {})
    return [
        {
            "id": one_line(cut.id),
            "number": cut.number,
            "initiators": [one_line(name) for name in cut.initiators],
            "status": cut.status,
            "about": about(cut),
            "error": None if cut.error is None else one_line(cut.error),
            "recorded": [
                rank - low if low <= (rank := cut.recorded.get(lane, -1)) < high else _MISSING
                for lane in range(len(drawing.nodes))
            ],
            "flying": [ranks[rank] for rank in cut.in_flight if rank in ranks],
            "total": cut.total,
        }
        for cut in drawing.cuts
    ]
