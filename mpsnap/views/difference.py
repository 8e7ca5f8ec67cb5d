"""The difference of two snapshots as tables for people.

Pure functions to text, in the manner of `tables`. In brief, what was and what is stand side by side; in full they stand
one above the other, since either may be long.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import islice

from mpsnap.core.diff import Change, ChannelDiff, NodeDiff, SnapshotDiff
from mpsnap.core.snapshot import GlobalSnapshot
from mpsnap.views.reading import PATH_WIDTH, cut_to, with_more
from mpsnap.views.tables import ROWS_SHOWN, count, loose_table, shortened, shown, snapshot_line, table

#: Columns that each of two values side by side may take.
SIDE_WIDTH = 21
#: Changes of one node that are shown before the rest is counted.
CHANGES_SHOWN = 12
#: Columns that the messages which left a channel, or entered it, may take.
MOVED_WIDTH = 20

#: A place, and what was and is there; None where nothing is.
Row = tuple[str, str | None, str | None]

_NOTES = {"length": " (length)", "reordered": " (order)"}


def diff_table(old: GlobalSnapshot, new: GlobalSnapshot, diff: SnapshotDiff, full: bool) -> str:
    """Return which snapshots these are, and tables of what differs at the nodes and on the channels."""
    differ = f"{len(diff.nodes)} of {count(len(old.nodes), 'node')} differ, and what is in flight on "
    differ += f"{len(diff.channels)} of {count(len(old.channels), 'channel')}"
    parts = [snapshot_line(old), snapshot_line(new), differ if diff else "no difference"]
    for side, nodes, channels in (
        ("first", diff.old_nodes, diff.old_channels),
        ("second", diff.new_nodes, diff.new_channels),
    ):
        parts += [f"node {name} is in the {side} alone" for name in nodes]
        parts += [f"channel {src} -> {dst} is in the {side} alone" for src, dst in channels]
    parts += _in_full(diff) if full else _in_brief(diff)
    return "\n".join(parts) + "\n"


def _in_brief(diff: SnapshotDiff) -> Iterator[str]:
    rows: list[tuple[str, str, str, str]] = []
    more = 0
    for name, node in diff.nodes.items():
        room = CHANGES_SHOWN if len(rows) < ROWS_SHOWN * CHANGES_SHOWN else 0
        for place, old, new in islice(_rows(node, SIDE_WIDTH), room):
            rows.append((name, shortened(place, PATH_WIDTH), "-" if old is None else old, "-" if new is None else new))
        more += max(0, _rows_of(node) - room)
    if rows:
        yield with_more(table(rows, ("node", "place", "first", "second"), "llll"), more, "change")
    used = _used_channels(diff)
    moved = [(*_growths(diff, channel), *map(_moved, _flights(diff, channel))) for channel in used[:ROWS_SHOWN]]
    if moved:
        text = table(moved, ("channel", "sent", "received", "left it", "entered it"), "lrrll")
        yield with_more(text, len(used) - len(moved), "channel")


def _in_full(diff: SnapshotDiff) -> Iterator[str]:
    rows = []
    for name, node in diff.nodes.items():
        for place, *sides in _rows(node, None):
            said = [(sign, text) for sign, text in zip("-+", sides, strict=True) if text is not None]
            rows += [(name, cut_to(place, None), sign, text) for sign, text in said]
    if rows:
        yield loose_table(rows, ("node", "place", "", "value"), "llll")
    used = _used_channels(diff)
    if used:
        yield table([_growths(diff, channel) for channel in used], ("channel", "sent", "received"), "lrr")
    moved = [
        (f"{src} -> {dst}", what, number, shown(message, None))
        for src, dst in used
        for what, messages in zip(("left it", "entered it"), _flights(diff, (src, dst)), strict=True)
        for number, message in messages
    ]
    if moved:
        yield loose_table(moved, ("channel", "", "number", "message"), "llrl")


# ------------------------------------------------------------------------ nodes


def _rows(node: NodeDiff, width: int | None) -> Iterator[Row]:
    """Yield what differs; what is no place in the state stands in round brackets."""
    for change in node.state:
        yield (change.path or "(state)") + _NOTES.get(change.what, ""), *_sides(change, width)
    for timer in node.timers:
        name = f"(timer {timer.method}{shown(timer.args, PATH_WIDTH)})"
        yield name, _due(timer.old), _due(timer.new)
    for name, pair in (("passive", node.passive), ("finished", node.finished), ("emitted", node.emitted)):
        if pair is not None:
            yield f"({name})", str(pair[0]), str(pair[1])


def _rows_of(node: NodeDiff) -> int:
    flags = sum(pair is not None for pair in (node.passive, node.finished, node.emitted))
    return len(node.state) + len(node.timers) + flags


def _sides(change: Change, width: int | None) -> tuple[str | None, str | None]:
    """Return both values, shortened so that one sees in what they differ."""
    if change.what == "added":
        return None, shown(change.new, width)
    if change.what == "removed":
        return shown(change.old, width), None
    old, new = shown(change.old, width), shown(change.new, width)
    if width is None or old != new:
        return old, new
    whole = [shown(side, None) for side in (change.old, change.new)]
    at = next((place for place, (one, other) in enumerate(zip(*whole, strict=False)) if one != other), 0)
    begin = max(0, at - width // 3)
    old, new = (f"...{text[begin : begin + width - 6]}..." for text in whole)
    return old, new


def _due(remaining: float | None) -> str | None:
    return None if remaining is None else f"due in {remaining:.3f} s"


# ---------------------------------------------------------------------- channels


def _used_channels(diff: SnapshotDiff) -> list[tuple[str, str]]:
    """Return the channels that were used in between, or whose messages differ."""
    used = set(diff.channels)
    used |= {(name, dst) for name, node in diff.nodes.items() for dst in node.sent}
    used |= {(src, name) for name, node in diff.nodes.items() for src in node.received}
    return sorted(used)


def _growths(diff: SnapshotDiff, channel: tuple[str, str]) -> tuple[str, str, str]:
    src, dst = channel
    sent = diff.nodes[src].sent.get(dst) if src in diff.nodes else None
    received = diff.nodes[dst].received.get(src) if dst in diff.nodes else None
    return f"{src} -> {dst}", _growth(sent), _growth(received)


def _growth(pair: tuple[int | None, int | None] | None) -> str:
    if pair is None:
        return ""
    return f"{pair[1] - pair[0]:+}" if pair[0] is not None and pair[1] is not None else "-"


def _flights(diff: SnapshotDiff, channel: tuple[str, str]) -> tuple[list[tuple[int, object]], list[tuple[int, object]]]:
    """Return the messages that left a channel and those that entered it, with their numbers, in order."""
    moved = diff.channels.get(channel, ChannelDiff((), (), ()))
    left = [*moved.left, *((number, old) for number, old, _ in moved.changed)]
    entered = [*moved.entered, *((number, new) for number, _, new in moved.changed)]
    return sorted(left, key=_number), sorted(entered, key=_number)


def _number(message: tuple[int, object]) -> int:
    return message[0]


def _moved(messages: Sequence[tuple[int, object]]) -> str:
    """Return messages with their numbers in brief: `13..15: 4, 1, 1`."""
    texts = []
    for run in _runs(messages):
        first, last = run[0][0], run[-1][0]
        numbers = str(first) if first == last else f"{first}..{last}"
        texts.append(f"{numbers}: {', '.join(shown(message, MOVED_WIDTH) for _, message in run[:MOVED_WIDTH])}")
    text = "; ".join(texts)
    return text if len(text) <= MOVED_WIDTH else text[: MOVED_WIDTH - 3] + "..."


def _runs(messages: Sequence[tuple[int, object]]) -> Iterator[list[tuple[int, object]]]:
    """Yield messages whose numbers follow one another."""
    run: list[tuple[int, object]] = []
    for message in messages:
        if run and run[-1][0] + 1 != message[0]:
            yield run
            run = []
        run.append(message)
    if run:
        yield run
