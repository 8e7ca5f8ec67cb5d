"""Snapshots as tables for people.

Pure functions to text. Values are shown by their Python form, shortened, with control characters escaped: a payload
must not steer the reader's terminal. A table is for reading, so it is cut where nobody would read on, and says so; the
documents have everything.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence

from mpsnap.core.errors import one_line
from mpsnap.core.jsonform import dumps
from mpsnap.core.kinds import Opaque
from mpsnap.core.snapshot import GlobalSnapshot

#: Columns that one value may take: with names and counts beside it, a table of short names fits a terminal of 80.
VALUE_WIDTH = 52
#: Columns that the messages of one channel may take.
MESSAGES_WIDTH = 50
#: Columns that the line below the heading of a last column takes, however wide that is.
WIDEST_RULE = 80
#: Values with more elements are shown as `repr` makes them.
FORMED = 1000
#: Nodes, and channels that hold messages, that are shown before the rest is counted.
ROWS_SHOWN = 24


def snapshot_table(snapshot: GlobalSnapshot, simulated: bool = False, full: bool = False) -> str:
    """Return a heading, a table of the nodes and one of the channels that hold messages; in `full`, nothing is cut."""
    most, width = (None, None) if full else (ROWS_SHOWN, VALUE_WIDTH)
    nodes = [
        (name, shown(node.state, width), sum(node.sent.values()), sum(node.received.values()))
        for name, node in itertools.islice(snapshot.nodes.items(), most)
    ]
    busy = list(snapshot.busy.items())
    held = [
        (f"{src} -> {dst}", len(messages), messages_shown(messages, None if full else MESSAGES_WIDTH))
        for (src, dst), messages in busy[:most]
    ]
    if full:
        rows = [(name, sent, received, state) for name, state, sent, received in nodes]
        text = loose_table(rows, ("node", "sent", "received", "state"), "lrrl")
    else:
        text = table(nodes, ("node", "state", "sent", "received"), "llrr")
    parts = [snapshot_line(snapshot, simulated), text]
    if len(nodes) < len(snapshot.nodes):
        parts.append(f"and {count(len(snapshot.nodes) - len(nodes), 'more node')}")
    if held:
        parts.append(loose_table(held, ("channel", "in flight", "messages, oldest first"), "lrl"))
    if len(held) < len(busy):
        rest = sum(len(messages) for _, messages in busy[len(held) :])
        parts.append(f"and {count(rest, 'more message')} on {count(len(busy) - len(held), 'more channel')}")
    return "\n".join(parts) + "\n"


def snapshot_line(snapshot: GlobalSnapshot, simulated: bool = False) -> str:
    """Return one line that says which snapshot this is, that it is proven, and how much was in flight."""
    took = "" if snapshot.duration is None else f" in {duration_shown(snapshot.duration, simulated)}"
    busy = len(snapshot.busy)
    return (
        f"Snapshot {snapshot.number} from {', '.join(snapshot.initiators)}{took}: "
        f"{'consistent' if snapshot.verified else 'NOT CONSISTENT'}, "
        f"{count(len(snapshot.nodes), 'node')}, {count(snapshot.in_flight, 'message')} in flight "
        f"on {busy} of {count(len(snapshot.channels), 'channel')}"
    )


def duration_shown(seconds: float, simulated: bool) -> str:
    """Return how long something took: in milliseconds, or in ticks, which are a simulator's seconds.

    >>> duration_shown(0.0125, False), duration_shown(12, True)
    ('12.5 ms', '12 ticks')
    """
    return count(round(seconds), "tick") if simulated else f"{1000 * seconds:.1f} ms"


def outputs_table(outputs: Sequence[tuple[str, int, object]]) -> str:
    """Return a table of what nodes have emitted."""
    return table([(node, n, shown(record)) for node, n, record in outputs], ("node", "n", "record"), "lrl") + "\n"


def messages_shown(messages: Sequence[object], width: int | None = MESSAGES_WIDTH) -> str:
    """Return the first messages of a channel, as many as fit but at least one, and how many more there are."""
    texts: list[str] = []
    used = 0
    for message in messages:
        text = shown(message, None if width is None else VALUE_WIDTH)
        used += len(text) + 2
        if texts and width is not None and used - 2 > width:
            break
        texts.append(text)
    more = len(messages) - len(texts)
    return ", ".join(texts) + (f" and {more} more" if more else "")


def shown(value: object, width: int | None = VALUE_WIDTH) -> str:
    """Return a value's Python form on one line, shortened in the middle; of a `width` of None, not shortened."""
    try:
        text = _python_form(value, math.inf if width is None else FORMED)
    except Exception:
        # Python refuses to write an int of thousands of digits, and a class of the user's may refuse what it likes.
        text = dumps(value)
    return one_line(text) if width is None else shortened(text, width)


def shortened(text: str, width: int) -> str:
    """Return a text on one line, shortened in the middle."""
    # Only what will be seen: to escape a text of many megabytes would take longer than the snapshot.
    head, tail = one_line(text[:width]), one_line(text[-width:])
    if len(text) <= width and len(head) <= width:
        return head
    cut = width * 2 // 3
    return f"{head[:cut]}...{tail[cut + 3 - width :]}"


def _python_form(value: object, most: float) -> str:
    """Return `repr`, with sets in an order of their elements' own: that of a set is another one in every process.

    Not within values of more than `most` elements, of which hardly anything is seen, nor within instances of classes.
    What stands for an instance whose class is not known here looks like the instance.
    """

    def form(item: object) -> str:
        return _python_form(item, most)

    kind = type(value)
    if kind in (list, tuple, dict) and len(value) > most:  # type: ignore[arg-type] # each has a length
        return repr(value)
    if isinstance(value, dict) and kind is dict:
        return "{" + ", ".join(f"{form(key)}: {form(item)}" for key, item in value.items()) + "}"
    if isinstance(value, list) and kind is list:
        return "[" + ", ".join(map(form, value)) + "]"
    if isinstance(value, tuple) and kind is tuple:
        return "(" + ", ".join(map(form, value)) + (",)" if len(value) == 1 else ")")
    if isinstance(value, set | frozenset) and kind in (set, frozenset) and value:
        try:
            elements = list(map(form, sorted(value)))
        except TypeError:
            elements = sorted(map(form, value))
        return ("frozenset({%s})" if kind is frozenset else "{%s}") % ", ".join(elements)
    return _opaque_form(value, form) if isinstance(value, Opaque) else repr(value)


def _opaque_form(value: Opaque, form: Callable[[object], str]) -> str:
    name = value.name.rpartition(":")[2]
    held = value.value
    if isinstance(held, dict):
        return f"{name}({', '.join(f'{field}={form(item)}' for field, item in held.items())})"
    return f"{name}({', '.join(map(form, held))})" if isinstance(held, list) else f"{name}.{held}"


def count(number: int, noun: str) -> str:
    """Return a number with its noun.

    >>> count(1, "node"), count(2, "node"), count(4, "process")
    ('1 node', '2 nodes', '4 processes')
    """
    if number == 1:
        return f"{number} {noun}"
    return f"{number} {noun}{'es' if noun.endswith('s') else 's'}"


def table(rows: Sequence[Sequence[object]], headers: Sequence[str], alignment: str) -> str:
    """Return rows as a table; `alignment` has an `l` or `r` a column."""
    sides = [{"l": "left", "r": "right"}[side] for side in alignment]
    # Imported here: it takes as long as all that is ours, and whoever asks for JSON needs nothing of it.
    from tabulate import tabulate

    # Text stays text: tabulate would otherwise read a state of "1e5" as a number and print 100000.
    text = tabulate(rows, headers=headers, disable_numparse=True, colalign=sides)
    return "\n".join(line.rstrip() for line in text.splitlines())


def loose_table(rows: Sequence[Sequence[object]], headers: Sequence[str], alignment: str) -> str:
    """Return rows as a table like the others, but of any length and with a last column of any width.

    No line is longer than what stands in it, and a row takes a few microseconds: tabulate would pad all lines to the
    longest, and takes a second for ten thousand rows.
    """
    cells = [list(map(str, row)) for row in rows]
    widths = [
        max(len(header) + 2, *map(len, column))
        for header, column in zip(headers, zip(*cells, strict=True), strict=True)
    ]
    widths[-1] = min(widths[-1], WIDEST_RULE)
    sides = [str.ljust if side == "l" else str.rjust for side in alignment]
    lines = (
        "  ".join([side(cell, width) for side, cell, width in zip(sides, row, widths, strict=True)]).rstrip()
        for row in (headers, ["-" * width for width in widths], *cells)
    )
    return "\n".join(lines)
