"""A log for ShiViz (https://bestchai.bitbucket.io/shiviz/): a line an event, with its vector clock.

This module owns the lines and the clocks. A file for ShiViz begins with the regular expression that reads its lines and
with that of a delimiter between executions, empty where there is one execution; whoever uploads the file need not
enter either, whoever pastes the lines enters the first.

Rules of ShiViz: the clock of a node begins at 1 and each of its events adds 1; entries of 0 are left out; a name is one
word. Only events of nodes count, for a supervisor exchanges no messages with them.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from urllib.parse import quote

from mpsnap.views.spacetime import Diagram, name_of
from mpsnap.views.wording import described

#: What reads a line, in the dialect of JavaScript.
PARSER = r"^(?<host>\S+) (?<clock>\{.*?\}) (?<time>\S+) (?<event>.*)$"
#: Names that mean something else to the JavaScript objects in which ShiViz keeps its nodes.
_RESERVED = frozenset(
    ("constructor", "hasOwnProperty", "isPrototypeOf", "propertyIsEnumerable", "toLocaleString", "toString", "valueOf")
)


def shiviz_text(drawing: Diagram) -> str:
    """Return the file: the expression, no delimiter, the lines."""
    return "\n".join((PARSER, "", *_lines(drawing), ""))


def _lines(drawing: Diagram) -> Iterator[str]:
    hosts = [host(name) for name in drawing.nodes]
    names = {cut.id: name_of(cut) for cut in drawing.cuts}
    sent = {
        arrow.received: arrow.sent
        for arrow in (*drawing.messages, *drawing.markers)
        if arrow.received is not None and arrow.sent is not None
    }
    clocks = vector_clocks(drawing)
    for rank, point in enumerate(drawing.points):
        if point.lane is None:
            continue
        clock = json.dumps({hosts[lane]: count for lane, count in enumerate(clocks[rank]) if count})
        cause = sent.get(rank)
        payload = None if cause is None else drawing.points[cause].entry.detail.get("payload")
        text = described(point.entry, names, payload).encode("ascii", "backslashreplace").decode()
        yield f"{hosts[point.lane]} {clock} {point.entry.time} {text}"


def vector_clocks(drawing: Diagram) -> list[Sequence[int]]:
    """Return by rank the clock of each entry: of each node, by lane, how many of its entries happened before or are it.

    The supervisor's are empty.
    """
    latest = [[0] * len(drawing.nodes) for _ in drawing.nodes]
    causes = {arrow.received: arrow.sent for arrow in (*drawing.messages, *drawing.markers) if arrow.sent is not None}
    clocks: list[Sequence[int]] = []
    for rank, point in enumerate(drawing.points):
        if point.lane is None:
            clocks.append(())
            continue
        clock = latest[point.lane]
        cause = causes.get(rank)
        # Only in a log that contradicts itself does a cause come later.
        if cause is not None and cause < rank:
            clock[:] = map(max, clock, clocks[cause])
        clock[point.lane] += 1
        clocks.append(tuple(clock))
    return clocks


def host(name: str) -> str:
    """Return a node's name as ShiViz can have it.

    >>> host("N1"), host("two words"), host("toString")
    ('N1', 'two%20words', '%74oString')
    """
    if name in _RESERVED:
        return f"%{ord(name[0]):x}{name[1:]}"
    return quote(name, safe="") or "%"
