"""Snapshots as tables for people.

Pure functions to text. Values are shown by their Python form, shortened, with control characters escaped: a payload
must not steer the reader's terminal.
"""

from __future__ import annotations

from collections.abc import Sequence

from tabulate import tabulate

from mpsnap.core.errors import one_line
from mpsnap.core.snapshot import GlobalSnapshot

#: Columns that one value may take.
VALUE_WIDTH = 60
#: Messages of one channel that are shown before the rest is counted.
MESSAGES_SHOWN = 8


def snapshot_table(snapshot: GlobalSnapshot) -> str:
    """Return a heading, a table of the nodes and one of the channels that hold messages."""
    nodes = [
        (name, shown(node.state), sum(node.sent.values()), sum(node.received.values()))
        for name, node in snapshot.nodes.items()
    ]
    held = [
        (f"{src} -> {dst}", len(messages), messages_shown(messages))
        for (src, dst), messages in snapshot.channels.items()
        if messages
    ]
    parts = [snapshot_line(snapshot), _table(nodes, ("node", "state", "sent", "received"))]
    if held:
        parts.append(_table(held, ("channel", "in flight", "messages, oldest first")))
    return "\n".join(parts) + "\n"


def snapshot_line(snapshot: GlobalSnapshot) -> str:
    """Return one line that says which snapshot this is, that it is proven, and how much was in flight."""
    took = "" if snapshot.duration is None else f" in {1000 * snapshot.duration:.1f} ms"
    busy = sum(1 for messages in snapshot.channels.values() if messages)
    return (
        f"Snapshot {snapshot.number} from {', '.join(snapshot.initiators)}{took}: "
        f"{'consistent' if snapshot.verified else 'NOT CONSISTENT'}, "
        f"{count(len(snapshot.nodes), 'node')}, {count(snapshot.in_flight, 'message')} in flight "
        f"on {busy} of {count(len(snapshot.channels), 'channel')}"
    )


def outputs_table(outputs: Sequence[tuple[str, int, object]]) -> str:
    """Return a table of what nodes have emitted."""
    return _table([(node, n, shown(record)) for node, n, record in outputs], ("node", "n", "record")) + "\n"


def messages_shown(messages: Sequence[object]) -> str:
    """Return the first messages of a channel and how many more there are."""
    more = len(messages) - MESSAGES_SHOWN
    text = ", ".join(shown(message) for message in messages[:MESSAGES_SHOWN])
    return text + (f" and {more} more" if more > 0 else "")


def shown(value: object) -> str:
    """Return a value's Python form on one line, shortened in the middle."""
    text = one_line(repr(value))
    if len(text) <= VALUE_WIDTH:
        return text
    head = VALUE_WIDTH * 2 // 3
    return f"{text[:head]}...{text[-(VALUE_WIDTH - head - 3) :]}"


def count(number: int, noun: str) -> str:
    """Return a number with its noun.

    >>> count(1, "node"), count(2, "node")
    ('1 node', '2 nodes')
    """
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def _table(rows: Sequence[Sequence[object]], headers: Sequence[str]) -> str:
    # Text stays text: tabulate would otherwise read a state of "1e5" as a number and print 100000.
    return tabulate(rows, headers=headers, disable_numparse=[1, 2] if "messages" in headers[-1] else [0, 1])
