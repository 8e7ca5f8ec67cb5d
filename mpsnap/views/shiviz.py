"""A log for ShiViz (https://bestchai.bitbucket.io/shiviz/): a line an event, with its vector clock.

This module owns the lines and the clocks. A file for ShiViz begins with the regular expression that reads its lines and
with that of a delimiter between executions, empty where there is one execution; whoever uploads the file need not
enter either, whoever pastes the lines enters the first.

Rules of ShiViz: the clock of a node begins at 1 and each of its events adds 1; entries of 0 are left out; a name is one
word. Only events of nodes count, for a supervisor exchanges no messages with them.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Mapping
from urllib.parse import quote

from mpsnap.views.spacetime import Diagram, name_of
from mpsnap.views.wording import described

#: What reads a line, in the dialect of JavaScript.
PARSER = r"^(?<host>\S+) (?<clock>\{.*?\}) (?<time>\S+) (?<event>.*)$"
#: Numbers of all clocks together; ShiViz itself has long given up by then.
MOST_NUMBERS = 50_000_000
#: Names that mean something else to the JavaScript objects in which ShiViz keeps its nodes.
_RESERVED = frozenset(
    ("constructor", "hasOwnProperty", "isPrototypeOf", "propertyIsEnumerable", "toLocaleString", "toString", "valueOf")
)


class TooManyNumbers(ValueError):
    """The clocks of a log would fill a disk."""


def shiviz_text(drawing: Diagram, most: int = MOST_NUMBERS) -> str:
    """Return the file: the expression, no delimiter, the lines.

    Raises:
        TooManyNumbers: All clocks together have more than `most`.
    """
    return "\n".join((PARSER, "", *_lines(drawing, most), ""))


def _lines(drawing: Diagram, most: int) -> Iterator[str]:
    hosts = [json.dumps(host(name)) for name in drawing.nodes]
    names = {cut.id: name_of(cut) for cut in drawing.cuts}
    sent = {arrow.received: arrow.sent for arrow in drawing.messages if arrow.sent is not None}
    for rank, clock in vector_clocks(drawing):
        most -= len(clock)
        if most < 0:
            raise TooManyNumbers
        point = drawing.points[rank]
        cause = sent.get(rank)
        payload = None if cause is None else drawing.points[cause].entry.detail.get("payload")
        text = described(point.entry, names, payload).encode("ascii", "backslashreplace").decode()
        told = ", ".join(f"{hosts[lane]}: {count}" for lane, count in sorted(clock.items()))
        yield f"{host(point.entry.node or '')} {{{told}}} {point.entry.time} {text}"


def vector_clocks(drawing: Diagram) -> Iterator[tuple[int, Mapping[int, int]]]:
    """Yield the rank and the clock of each entry of a node.

    A clock has of each node, by lane, how many of its entries happened before this one or are it; those of which none
    did are left out. It is good until the next one.
    """
    latest: list[dict[int, int]] = [{} for _ in drawing.nodes]
    causes = {arrow.received: arrow.sent for arrow in (*drawing.messages, *drawing.markers) if arrow.sent is not None}
    #: Of what was sent and will be received, the clocks: nobody asks for others.
    kept: dict[int, dict[int, int]] = {}
    # A message is received twice if a recovery went back behind the first time.
    awaited = Counter(sent for received, sent in causes.items() if received is not None)
    for rank, point in enumerate(drawing.points):
        if point.lane is None:
            continue
        clock = latest[point.lane]
        # Only in a log that contradicts itself does a cause come later.
        cause = causes.get(rank, -1)
        if cause in awaited:
            awaited[cause] -= 1
        for lane, count in (kept.get if awaited[cause] > 0 else kept.pop)(cause, {}).items():
            if count > clock.get(lane, 0):
                clock[lane] = count
        clock[point.lane] = clock.get(point.lane, 0) + 1
        if rank in awaited:
            kept[rank] = dict(clock)
        yield rank, clock


def host(name: str) -> str:
    """Return a node's name as ShiViz can have it.

    >>> host("N1"), host("two words"), host("toString")
    ('N1', 'two%20words', '%74oString')
    """
    if name in _RESERVED:
        return f"%{ord(name[0]):x}{name[1:]}"
    return quote(name, safe="") or "%"
