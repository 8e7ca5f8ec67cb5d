"""A still picture of a space-time diagram, as SVG.

This module owns how the picture looks. It has its own background, so that it reads the same on a light and on a dark
page, is as wide as a page of text, and uses shape and dash as well as colour. The same log gives the same bytes.
Whatever comes from a program is escaped text.
"""

from __future__ import annotations

import html
import itertools
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

from mpsnap.core.errors import one_line
from mpsnap.views.spacetime import Arrow, Cut, Diagram, about, name_of
from mpsnap.views.tables import count
from mpsnap.views.wording import brief, brief_line

#: Pixels of the picture: as wide as a page of text, wider only if a cut needs it.
WIDTH = 860
#: Pixels of a column: what it is given, and what it may shrink to until it cannot be read.
WIDEST, NARROWEST = 40.0, 9.0
#: Columns of a picture at most: nobody looks at a wider one, and what shows it would not open it.
MOST_COLUMNS = 2_000
#: Node lines of a picture at most: the first ones.
MOST_NODES = 40
_RIGHT, _TOP = 26.0, 104.0
#: Characters of a node's name.
_NAME = 18
#: Columns drawn at least before and after a cut, where not the whole log fits.
_MARGIN = 6
#: Most lines of states, and of payloads, that are written beside the points and crossings.
_LABELS = 40

_STYLE = """\
text{font:11px ui-sans-serif,system-ui,"Segoe UI",Helvetica,Arial,sans-serif;fill:#3b4556}
.title{font-size:14px;font-weight:600;fill:#141a24}.node{font-size:12px;font-weight:600;fill:#141a24}
.note{fill:#5c6778}.warn{fill:#8a3b00;font-weight:600}
.value{font:10px ui-monospace,Menlo,Consolas,monospace;fill:#141a24}
.lane{stroke:#9aa5b5;stroke-width:1.5}.grid{stroke:#e6e9ef}.past{fill:#a8116f;fill-opacity:.06}
.message{stroke:#4a76b0;stroke-width:1.2;stroke-opacity:.75;fill:none}.head{fill:#4a76b0}
.marker{stroke:#0a8a72;stroke-width:1.2;stroke-dasharray:4 3;fill:none}
.markerhead{fill:#fff;stroke:#0a8a72;stroke-width:1.1}.faint{opacity:.4}
.flying{stroke:#d35400;stroke-width:2.2;fill:none}.flyinghead{fill:#d35400}
.crossing{fill:#fff;stroke:#d35400;stroke-width:1.8}
.unended{stroke-dasharray:7 4}.end{fill:#fff;stroke:#4a76b0;stroke-width:1.3}
.cut{stroke:#a8116f;stroke-width:2.6;fill:none}.cutlabel{fill:#a8116f;font-weight:700}.open{stroke-dasharray:9 5}
.other{stroke:#a8116f;stroke-opacity:.4;stroke-width:1.2;fill:none;stroke-dasharray:2 3}
.recorded{fill:#a8116f;stroke:#fff;stroke-width:1}.dot{fill:#4a76b0}.glyph{fill:#fff;stroke:#3b4556;stroke-width:1.2}
.chip{fill:#fff;stroke:#c9d0da}.died{stroke:#141a24;stroke-width:2.4;fill:none}"""

#: By event, the outline of what marks it; those not named are ends of arrows, or stand at one.
_GLYPHS = {
    "timer": "M-4 3.5L0 -4L4 3.5Z",
    "command": "M-4 -3.5L0 4L4 -3.5Z",
    "output": "M-3.5 -3.5H3.5V3.5H-3.5Z",
    "log": "M-4 -2.5H4V2.5H-4Z",
    "refused": "M-3.5 0L0 -4.5L3.5 0L0 4.5Z",
    "dropped": "M-2 -5V5M2 -5V5",
    "died": "M-5 -5L5 5M-5 5L5 -5",
    "restored": "M-3 -6V6L5 0Z",
}
#: What the legend calls them, where their own name does not say it.
_WORDS = {
    "log": "log line",
    "refused": "state refused",
    "dropped": "entries missing",
    "restored": "restored after a crash",
}


class Box(NamedTuple):
    """Hold a place that is taken by a text."""

    x0: float
    y0: float
    x1: float
    y1: float


def svg_text(drawing: Diagram, cut: Cut | None = None, start: float | None = None, end: float | None = None) -> str:
    """Return the picture of a log, or of the part around a cut if not all of it can be read.

    Args:
        drawing: The log, laid out.
        cut: The snapshot whose cut is drawn and whose messages in flight stand out; None draws none.
        start: Draw from this time on, in the log's unit.
        end: Draw to this time.
    """
    return _Picture(drawing, cut, start, end).text()


def window(drawing: Diagram, cut: Cut | None, start: float | None, end: float | None) -> tuple[int, int]:
    """Return the first and the last column to draw: those asked for, else all that fit, around the cut."""
    if start is not None or end is not None:
        asked = [
            point.column
            for point in drawing.points
            if point.lane is not None
            and (start is None or point.entry.time >= start)
            and (end is None or point.entry.time <= end)
        ]
        return (min(asked), min(max(asked), min(asked) + MOST_COLUMNS - 1)) if asked else (0, -1)
    last = drawing.columns - 1
    most = int((WIDTH - _left(drawing) - _RIGHT) / NARROWEST)
    if last < most:
        return 0, last
    columns = [drawing.points[rank].column for rank in cut.recorded.values()] if cut is not None else []
    if not columns:
        return 0, most - 1
    low, high = max(0, min(columns) - _MARGIN), min(last, max(columns) + _MARGIN)
    spare = max(0, most - (high - low + 1))
    low = max(0, low - spare // 2)
    high = min(last, max(high, low + most - 1), low + MOST_COLUMNS - 1)
    return max(0, min(low, high - most + 1)), high


def _left(drawing: Diagram) -> float:
    """Return where the node lines begin: right of the longest name."""
    return 40.0 + 7.2 * max((len(brief_line(name, _NAME)) for name in drawing.nodes[:MOST_NODES]), default=2)


class _Picture:
    """The state of one picture: its parts, and where texts stand already."""

    def __init__(self, drawing: Diagram, cut: Cut | None, start: float | None, end: float | None) -> None:
        self._drawing = drawing
        self._cut = cut
        self._left = _left(drawing)
        self._nodes = drawing.nodes[:MOST_NODES]
        self._asked = start is not None or end is not None
        self._first, self._last = window(drawing, cut, start, end)
        shown = max(1, self._last - self._first + 1)
        self._step = min(WIDEST, max(NARROWEST, (WIDTH - self._left - _RIGHT) / (shown + 1)))
        self._width = max(float(WIDTH), self._left + _RIGHT + self._step * (shown + 1))
        self._gap = {1: 84.0, 2: 84.0, 3: 84.0, 4: 70.0, 5: 66.0}.get(len(drawing.nodes), 54.0)
        shown_events = {
            p.entry.event for p in drawing.points if self._first <= p.column <= self._last and p.lane is not None
        }
        self._glyphs = [event for event in _GLYPHS if event in shown_events]
        self._flying = frozenset(cut.in_flight if cut is not None else ())
        self._taken: list[Box] = []
        self._parts: list[str] = []

    def text(self) -> str:
        drawing = self._drawing
        bottom = self._y(max(0, len(self._nodes) - 1)) + 34
        notices = [f"Note: {notice}" for notice in drawing.notices[:3]]
        below = bottom + (84 if self._glyphs else 64)
        height = below - 2 + 16 * len(notices)
        self._add(
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_n(self._width)} {_n(height)}" '
            f'width="{_n(self._width)}" height="{_n(height)}" role="img">'
        )
        self._add(f"<title>{_escape(self._title())}</title><style>{_STYLE}</style>")
        self._add('<rect width="100%" height="100%" rx="8" fill="#fff"/><clipPath id="c">')
        box = f'x="{_n(self._left - 8)}" y="{_n(_TOP - 40)}" width="{_n(self._width - self._left - 4)}"'
        self._add(f'<rect {box} height="{_n(bottom - _TOP + 40)}"/></clipPath>')
        self._text(16, 25, self._title(), "title")
        self._text(16, 43, self._facts(), "note")
        self._axis(bottom)
        self._add('<g clip-path="url(#c)">')
        self._cuts(bottom)
        self._lanes()
        self._arrows()
        self._add("</g>")
        self._events()
        self._labels()
        self._legend(bottom + 22)
        for line, notice in enumerate(notices):
            self._text(16, below + 16 * line, brief_line(notice, 130), "warn")
        self._add("</svg>")
        return "".join(self._parts) + "\n"

    # ------------------------------------------------------------------ places

    def _x(self, column: float) -> float:
        return self._left + (column - self._first + 0.75) * self._step

    def _y(self, lane: int) -> float:
        return _TOP + 24 + lane * self._gap

    def _at(self, rank: int) -> tuple[float, float]:
        point = self._drawing.points[rank]
        return self._x(point.column), self._y(point.lane or 0)

    def _shows(self, low: float, high: float) -> bool:
        return high >= self._first - 1 and low <= self._last + 1

    # ------------------------------------------------------------------- words

    def _title(self) -> str:
        head = self._drawing.head
        title = f"{head.app} on {head.topology}"
        if self._cut is not None:
            title += f": {name_of(self._cut)}, {about(self._cut)}, {count(self._cut.total, 'message')} in flight"
        return brief_line(title, 112)

    def _facts(self) -> str:
        drawing = self._drawing
        ticks = drawing.head.unit == "ticks"
        unit = "ticks " if ticks else ""
        facts = f"{drawing.head.driver}, {count(len(drawing.nodes), 'node')}, {len(drawing.points)} entries"
        if len(drawing.nodes) > MOST_NODES:
            facts += f", the first {MOST_NODES} nodes shown"
        times = [point.entry.time for point in drawing.points if point.lane is not None]
        if not times:
            return facts
        shown = [
            point.entry.time
            for point in drawing.points
            if point.lane is not None and self._first <= point.column <= self._last
        ]
        if len(shown) == len(times):
            return (
                f"{facts}, {unit}{_time(min(times), ticks)} to {_time(max(times), ticks)}; by cause, from left to right"
            )
        part = "the part asked for" if self._asked else "the part around the cut" if self._cut else "the beginning"
        if self._last - self._first + 1 >= MOST_COLUMNS:
            part = "as much as fits"
        span = "nothing in it"
        if shown:
            span = f"{unit}{_time(min(shown), ticks)} to {_time(max(shown), ticks)} of {_time(max(times), ticks)}"
        return f"{facts}; shown is {part}, {span}"

    def _axis(self, bottom: float) -> None:
        ticks = self._drawing.head.unit == "ticks"
        begins: dict[int, float] = {}
        for point in self._drawing.points:
            if point.lane is not None and self._first <= point.column <= self._last:
                begins[point.column] = min(point.entry.time, begins.get(point.column, point.entry.time))
        free, time = self._left, None
        for column in sorted(begins):
            if begins[column] == time or (time is not None and begins[column] < time):
                continue
            time = begins[column]
            x = self._x(column) - self._step / 2
            if ticks:
                self._add(f'<path class="grid" d="M{_n(x)} {_n(_TOP - 8)}V{_n(bottom)}"/>')
            label = _time(time, ticks)
            if x >= free and x + 6 * len(label) < self._width - 10:
                self._text(x + 2, _TOP - 12, label, "note")
                free = x + 6.4 * len(label) + 14
        self._text(16, _TOP - 12, "tick" if ticks else "time", "note")

    # ------------------------------------------------------------------- parts

    def _cuts(self, bottom: float) -> None:
        top = _TOP - 4
        for cut in self._drawing.cuts:
            if cut is self._cut or not cut.recorded or cut.status != "completed":
                continue
            line = self._line(cut)
            if line and self._shows_line(line):
                self._add(f'<path class="other" d="{_curve(line, top, bottom)}"/>')
        if self._cut is None or not (line := self._line(self._cut)):
            return
        curve = _curve(line, top, bottom)
        if self._cut.status == "completed":
            self._add(f'<path class="past" d="{curve}H{_n(self._left - 8)}V{_n(top)}Z"/>')
        kind = "cut" if self._cut.status == "completed" else "cut open"
        self._add(f'<path class="{kind}" d="{curve}"/>')

    def _line(self, cut: Cut) -> list[tuple[float, float]]:
        return [self._at(cut.recorded[lane]) for lane in sorted(cut.recorded) if lane < MOST_NODES]

    def _shows_line(self, line: Sequence[tuple[float, float]]) -> bool:
        return any(self._x(self._first) <= x <= self._x(self._last) for x, _ in line)

    def _lanes(self) -> None:
        for lane in range(len(self._nodes)):
            y = _n(self._y(lane))
            self._add(f'<path class="lane" d="M{_n(self._left - 8)} {y}H{_n(self._width - 12)}"/>')

    def _arrows(self) -> None:
        for arrow in self._drawing.markers:
            faint = "" if self._cut is None or arrow.snapshot == self._cut.id else " faint"
            self._arrow(arrow, f"marker{faint}", f"markerhead{faint}")
        for rank, arrow in enumerate(self._drawing.messages):
            if rank not in self._flying:
                self._arrow(arrow, "message", "head")
        for rank in sorted(self._flying):
            self._arrow(self._drawing.messages[rank], "flying", "flyinghead")

    def _arrow(self, arrow: Arrow, line: str, head: str) -> None:
        columns = self._columns(arrow)
        if not self._shows(*columns) or min(arrow.src, arrow.dst) >= MOST_NODES:
            return
        (x0, y0), (x1, y1) = self._ends(arrow)
        if arrow.received is None:
            self._add(f'<path class="{line} unended" d="M{_n(x0)} {_n(y0)}L{_n(x1)} {_n(y1)}"/>')
            self._add(f'<circle class="end" cx="{_n(x1)}" cy="{_n(y1)}" r="3"/>')
            return
        length = max(1e-9, ((x1 - x0) ** 2 + (y1 - y0) ** 2) ** 0.5)
        ux, uy = (x1 - x0) / length, (y1 - y0) / length
        bx, by = x1 - 8 * ux, y1 - 8 * uy
        self._add(f'<path class="{line}" d="M{_n(x0)} {_n(y0)}L{_n(bx)} {_n(by)}"/>')
        wing = f"L{_n(bx - 3.2 * uy)} {_n(by + 3.2 * ux)}L{_n(bx + 3.2 * uy)} {_n(by - 3.2 * ux)}Z"
        self._add(f'<path class="{head}" d="M{_n(x1)} {_n(y1)}{wing}"/>')

    def _columns(self, arrow: Arrow) -> tuple[float, float]:
        points = self._drawing.points
        high = float(self._drawing.columns) if arrow.received is None else points[arrow.received].column
        low = high - 1.5 if arrow.sent is None else points[arrow.sent].column
        return low, high

    def _ends(self, arrow: Arrow) -> tuple[tuple[float, float], tuple[float, float]]:
        low, high = self._columns(arrow)
        src, dst = self._y(arrow.src), self._y(arrow.dst)
        # Of a message whose sending the log has lost, or whose end, only what is next to the known end is drawn.
        if arrow.sent is None:
            src = dst + (self._gap / 2 if src > dst else -self._gap / 2)
        return (self._x(low), src), (self._x(high), dst)

    def _events(self) -> None:
        for point in self._drawing.points:
            if point.lane is None or point.lane >= MOST_NODES or not self._first <= point.column <= self._last:
                continue
            x, y, event = _n(self._x(point.column)), _n(self._y(point.lane)), point.entry.event
            if event in ("sent", "received"):
                self._add(f'<circle class="dot" cx="{x}" cy="{y}" r="{"2.2" if event == "sent" else "1.6"}"/>')
            elif event in _GLYPHS:
                self._glyph(event, self._x(point.column), self._y(point.lane))

    def _glyph(self, event: str, x: float, y: float) -> None:
        kind = "died" if event in ("died", "dropped") else "glyph"
        self._add(f'<path class="{kind}" transform="translate({_n(x)} {_n(y)})" d="{_GLYPHS[event]}"/>')

    def _labels(self) -> None:
        """Write names, states and payloads, each where there is room; who comes first is served first."""
        for lane, name in enumerate(self._nodes):
            self._text(self._left - 14, self._y(lane) + 4, brief_line(name, _NAME), "node", 'text-anchor="end"')
        if self._cut is None or not (line := self._line(self._cut)):
            return
        top = _TOP - 8
        label = name_of(self._cut)
        x = min(max(line[0][0], self._left + 3.3 * len(label)), self._width - 12 - 3.3 * len(label))
        self._text(x, top - 20, brief_line(label, 30), "cutlabel", 'text-anchor="middle"')
        recorded = sorted(item for item in self._cut.recorded.items() if item[0] < MOST_NODES)
        crossings = list(self._crossings(line))
        self._taken += [Box(x - 7, y - 7, x + 7, y + 7) for x, y in line]
        self._taken += [Box(x - 5, y - 5, x + 5, y + 5) for _, x, y in crossings]
        for (_, rank), (x, y) in list(zip(recorded, line, strict=True))[:_LABELS]:
            detail = self._drawing.points[rank].entry.detail
            state = brief(detail["state"], 26) if "state" in detail else "recorded"
            self._chip(x, y, state, ((9, -20), (-9, -20), (9, 8), (-9, 8)), force=True)
        for arrow, x, y in crossings[:_LABELS]:
            if arrow.sent is not None:
                payload = brief(self._drawing.points[arrow.sent].entry.detail.get("payload"), 18)
                self._chip(x, y, payload, ((8, -6), (-8, -6), (8, -18), (8, 6), (-8, -18), (-8, 6)))
        for _, x, y in crossings:
            self._add(f'<path class="crossing" transform="translate({_n(x)} {_n(y)})" d="M-3.6 -3.6H3.6V3.6H-3.6Z"/>')
        for x, y in line:
            self._add(f'<path class="recorded" transform="translate({_n(x)} {_n(y)})" d="M-5.5 0L0 -6L5.5 0L0 6Z"/>')

    def _chip(self, x: float, y: float, text: str, places: Iterable[tuple[float, float]], force: bool = False) -> None:
        width = 6.05 * len(text) + 8
        fits = None
        for dx, dy in places:
            left = x + dx if dx > 0 else x + dx - width
            box = Box(left, y + dy, left + width, y + dy + 13)
            if box.x0 < self._left - 6 or box.x1 > self._width - 6:
                continue
            if not any(_overlap(box, other) for other in self._taken):
                fits = box
                break
            fits = fits or (box if force else None)
        if fits is None:
            return
        self._taken.append(fits)
        self._add(f'<rect class="chip" x="{_n(fits.x0)}" y="{_n(fits.y0)}" width="{_n(width)}" height="13" rx="3"/>')
        self._text(fits.x0 + 4, fits.y0 + 10, text, "value")

    def _crossings(self, line: Sequence[tuple[float, float]]) -> Iterator[tuple[Arrow, float, float]]:
        outline = polyline(line)
        for rank in self._cut.in_flight if self._cut is not None else ():
            arrow = self._drawing.messages[rank]
            found = crossing(outline, *self._ends(arrow))
            if found is not None and self._left - 8 <= found[0] <= self._width - 12:
                yield arrow, *found

    def _legend(self, y: float) -> None:
        unended = any(arrow.received is None for arrow in self._drawing.messages)
        samples = [("message", "head", "message"), ("marker", "markerhead", "marker")]
        x = 20.0
        if self._cut is not None and self._cut.recorded:
            self._add(f'<path class="cut" d="M{_n(x)} {_n(y + 8)}V{_n(y - 8)}"/>')
            self._add(f'<path class="recorded" transform="translate({_n(x)} {_n(y)})" d="M-5.5 0L0 -6L5.5 0L0 6Z"/>')
            x = self._sample(x + 12, y, "the cut: each node's state recorded")
            samples.insert(1, ("flying", "flyinghead", "in flight at the cut"))
        for line, head, words in samples:
            self._add(f'<path class="{line}" d="M{_n(x)} {_n(y)}H{_n(x + 24)}"/>')
            self._add(f'<path class="{head}" d="M{_n(x + 32)} {_n(y)}l-8 -3.2v6.4Z"/>')
            if line == "flying":
                self._add(f'<path class="crossing" d="M{_n(x + 8)} {_n(y - 3.6)}h7.2v7.2h-7.2Z"/>')
            x = self._sample(x + 38, y, words)
        if unended:
            self._add(f'<path class="message unended" d="M{_n(x)} {_n(y)}H{_n(x + 26)}"/>')
            self._add(f'<circle class="end" cx="{_n(x + 29)}" cy="{_n(y)}" r="3"/>')
            self._sample(x + 38, y, "not received in this log")
        x = 20.0
        for event in self._glyphs:
            self._glyph(event, x + 4, y + 22)
            x = self._sample(x + 14, y + 22, _WORDS.get(event, event))

    def _sample(self, x: float, y: float, words: str) -> float:
        self._text(x, y + 4, words, "note")
        return x + 6.1 * len(words) + 20

    def _text(self, x: float, y: float, text: str, kind: str, more: str = "") -> None:
        self._add(f'<text class="{kind}" x="{_n(x)}" y="{_n(y)}" {more}>{_escape(text)}</text>'.replace(" >", ">"))

    def _add(self, part: str) -> None:
        self._parts.append(part)


# ----------------------------------------------------------------- geometry


def polyline(line: Sequence[tuple[float, float]], steps: int = 12) -> list[tuple[float, float]]:
    """Return points of the curve through these, which crosses each node line at a right angle."""
    if len(line) < 2:
        return [(x, y + dy) for x, y in line for dy in (-20, 20)]
    found = [(line[0][0], line[0][1] - 20)]
    for (x0, y0), (x1, y1) in itertools.pairwise(line):
        for step in range(steps):
            t = step / steps
            ease = t * t * (3 - 2 * t)
            height = 1.5 * t * (1 - t) ** 2 + 1.5 * t * t * (1 - t) + t**3
            found.append((x0 + (x1 - x0) * ease, y0 + (y1 - y0) * height))
    return [*found, line[-1], (line[-1][0], line[-1][1] + 20)]


def crossing(
    outline: Sequence[tuple[float, float]], start: tuple[float, float], end: tuple[float, float]
) -> tuple[float, float] | None:
    """Return where a segment first crosses an outline."""
    (x0, y0), (x1, y1) = start, end
    best: float | None = None
    for (ax, ay), (bx, by) in itertools.pairwise(outline):
        across = (x1 - x0) * (by - ay) - (y1 - y0) * (bx - ax)
        if across == 0:
            continue
        along = ((ax - x0) * (by - ay) - (ay - y0) * (bx - ax)) / across
        other = ((ax - x0) * (y1 - y0) - (ay - y0) * (x1 - x0)) / across
        if 0 <= along <= 1 and 0 <= other <= 1 and (best is None or along < best):
            best = along
    return None if best is None else (x0 + (x1 - x0) * best, y0 + (y1 - y0) * best)


def _curve(line: Sequence[tuple[float, float]], top: float, bottom: float) -> str:
    parts = [f"M{_n(line[0][0])} {_n(top)}V{_n(line[0][1])}"]
    for (x0, y0), (x1, y1) in itertools.pairwise(line):
        # A tangent along time's normal at both ends: at its node line a cut divides before from after.
        bend = (y1 - y0) / 2
        parts.append(f"C{_n(x0)} {_n(y0 + bend)} {_n(x1)} {_n(y1 - bend)} {_n(x1)} {_n(y1)}")
    return "".join(parts) + f"V{_n(bottom)}"


def _overlap(a: Box, b: Box) -> bool:
    return a.x0 < b.x1 and b.x0 < a.x1 and a.y0 < b.y1 and b.y0 < a.y1


# -------------------------------------------------------------------- text


def _escape(text: str) -> str:
    return html.escape(one_line(text)).encode("ascii", "xmlcharrefreplace").decode()


def _n(number: float) -> str:
    """Return a coordinate, the same on every machine."""
    text = f"{number:.1f}"
    return text[:-2] if text.endswith(".0") else text


def _time(time: float, ticks: bool) -> str:
    if ticks:
        return str(time)
    return f"{time * 1000:.3f} ms" if time < 1 else f"{time:.6f} s"
