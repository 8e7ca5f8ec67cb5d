"""Snapshots as tables for people.

Pure functions to text. Values are shown by their Python form, shortened, with control characters escaped: a payload
must not steer the reader's terminal. A table is for reading, so it is cut where nobody would read on, and says so; the
documents have everything.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence

from tabulate import tabulate

from mpsnap.core.errors import one_line
from mpsnap.core.jsonform import dumps
from mpsnap.core.snapshot import GlobalSnapshot

#: Columns that one value may take: with names and counts beside it, a table of short names fits a terminal of 80.
VALUE_WIDTH = 52
#: Columns that the messages of one channel may take.
MESSAGES_WIDTH = 50
#: Values with more elements are shown as `repr` makes them.
FORMED = 1000
#: Nodes, and channels that hold messages, that are shown before the rest is counted.
ROWS_SHOWN = 24


def snapshot_table(snapshot: GlobalSnapshot, simulated: bool = False) -> str:
    """Return a heading, a table of the nodes and one of the channels that hold messages."""
    nodes = [
        (name, shown(node.state), sum(node.sent.values()), sum(node.received.values()))
        for name, node in itertools.islice(snapshot.nodes.items(), ROWS_SHOWN)
    ]
    busy = list(snapshot.busy.items())
    held = [(f"{src} -> {dst}", len(messages), messages_shown(messages)) for (src, dst), messages in busy[:ROWS_SHOWN]]
    parts = [snapshot_line(snapshot, simulated), _table(nodes, ("node", "state", "sent", "received"), "llrr")]
    if len(snapshot.nodes) > ROWS_SHOWN:
        parts.append(f"and {count(len(snapshot.nodes) - ROWS_SHOWN, 'more node')}")
    if held:
        parts.append(_table(held, ("channel", "in flight", "messages, oldest first"), "lrl"))
    if len(busy) > ROWS_SHOWN:
        rest = sum(len(messages) for _, messages in busy[ROWS_SHOWN:])
        parts.append(f"and {count(rest, 'more message')} on {count(len(busy) - ROWS_SHOWN, 'more channel')}")
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
    return _table([(node, n, shown(record)) for node, n, record in outputs], ("node", "n", "record"), "lrl") + "\n"


def messages_shown(messages: Sequence[object]) -> str:
    """Return the first messages of a channel, as many as fit but at least one, and how many more there are."""
    texts: list[str] = []
    for message in messages:
        text = shown(message)
        if texts and len(", ".join([*texts, text])) > MESSAGES_WIDTH:
            break
        texts.append(text)
    more = len(messages) - len(texts)
    return ", ".join(texts) + (f" and {more} more" if more else "")


def shown(value: object) -> str:
    """Return a value's Python form on one line, shortened in the middle."""
    try:
        text = _python_form(value)
    except Exception:
        # Python refuses to write an int of thousands of digits, and a class of the user's may refuse what it likes.
        text = dumps(value)
    # Only what will be seen: to escape a text of many megabytes would take longer than the snapshot.
    head, tail = one_line(text[:VALUE_WIDTH]), one_line(text[-VALUE_WIDTH:])
    if len(text) <= VALUE_WIDTH and len(head) <= VALUE_WIDTH:
        return head
    cut = VALUE_WIDTH * 2 // 3
    return f"{head[:cut]}...{tail[cut + 3 - VALUE_WIDTH :]}"


def _python_form(value: object) -> str:
    """Return `repr`, with sets in an order of their elements' own: that of a set is another one in every process.

    Not within large values, of which hardly anything is seen, nor within instances of classes.
    """
    kind = type(value)
    if kind in (list, tuple, dict) and len(value) > FORMED:  # type: ignore[arg-type] # each has a length
        return repr(value)
    if isinstance(value, dict) and kind is dict:
        return "{" + ", ".join(f"{_python_form(key)}: {_python_form(item)}" for key, item in value.items()) + "}"
    if isinstance(value, list) and kind is list:
        return "[" + ", ".join(map(_python_form, value)) + "]"
    if isinstance(value, tuple) and kind is tuple:
        return "(" + ", ".join(map(_python_form, value)) + (",)" if len(value) == 1 else ")")
    if isinstance(value, set | frozenset) and kind in (set, frozenset) and value:
        try:
            elements = list(map(_python_form, sorted(value)))
        except TypeError:
            elements = sorted(map(_python_form, value))
        return ("frozenset({%s})" if kind is frozenset else "{%s}") % ", ".join(elements)
    return repr(value)


def count(number: int, noun: str) -> str:
    """Return a number with its noun.

    >>> count(1, "node"), count(2, "node"), count(4, "process")
    ('1 node', '2 nodes', '4 processes')
    """
    if number == 1:
        return f"{number} {noun}"
    return f"{number} {noun}{'es' if noun.endswith('s') else 's'}"


def _table(rows: Sequence[Sequence[object]], headers: Sequence[str], alignment: str) -> str:
    sides = [{"l": "left", "r": "right"}[side] for side in alignment]
    # Text stays text: tabulate would otherwise read a state of "1e5" as a number and print 100000.
    text = tabulate(rows, headers=headers, disable_numparse=True, colalign=sides)
    return "\n".join(line.rstrip() for line in text.splitlines())
