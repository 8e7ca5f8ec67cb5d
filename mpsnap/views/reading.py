"""What was kept, as tables for people: stores, single nodes and channels, values, differences.

Pure functions to text, in the manner of `tables`: shortened unless all is asked for, and made harmless for a terminal.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import islice
from typing import Any, NamedTuple

from mpsnap.core.codec import Codec, thaw
from mpsnap.core.diff import ChannelDiff, NodeDiff, SnapshotDiff
from mpsnap.core.errors import MpsnapError, one_line
from mpsnap.core.inside import inside
from mpsnap.core.path import element_step, key_step
from mpsnap.core.snapshot import GlobalSnapshot, NodeSnapshot, Timer
from mpsnap.store.contract import is_recovery_point
from mpsnap.store.manifest import Manifest
from mpsnap.views.tables import ROWS_SHOWN, VALUE_WIDTH, count, shortened, shown, snapshot_line, table

#: Columns that a path and each of two values may take, side by side.
PATH_WIDTH = 24
SIDE_WIDTH = 21
#: Changes of one node that are shown before the rest is counted.
CHANGES_SHOWN = 12
#: Columns that messages which left a channel, or entered it, may take.
_MOVED_WIDTH = 22
_PLAIN = Codec()


class Listed(NamedTuple):
    """Say what is known of one snapshot of a store: what it says of itself, or why that cannot be read."""

    number: int
    manifest: Manifest | None
    error: MpsnapError | None


# ------------------------------------------------------------------------ stores


def listing_table(snapshots: Sequence[Listed]) -> str:
    """Return a table of what is in a store."""
    rows = [_listing_row(*listed) for listed in snapshots]
    headers = ("#", "id", "taken", "by", "nodes", "in flight", "size", "status")
    last = max((one.number for one in snapshots if one.manifest and is_recovery_point(one.manifest)), default=None)
    below = "no cluster can go on from them" if last is None else f"the newest that a cluster can go on from is {last}"
    total = bytes_shown(sum(one.manifest.size for one in snapshots if one.manifest))
    return f"{table(rows, headers, 'rlllrrrl')}\n{count(len(snapshots), 'snapshot')}, {total}; {below}\n"


def _listing_row(number: int, manifest: Manifest | None, error: MpsnapError | None) -> tuple[object, ...]:
    if manifest is None:
        return number, "", "", "", "", "", "", "DAMAGED"
    status = "recovery" if is_recovery_point(manifest) else "verified" if manifest.verified else "UNPROVEN"
    return (
        number,
        shortened(str(manifest.id), 30),
        moment_shown(manifest.wall_time),
        shortened(", ".join(manifest.initiators), 20),
        len(manifest.topology.nodes),
        manifest.in_flight,
        bytes_shown(manifest.size),
        status,
    )


def moment_shown(seconds: float) -> str:
    """Return seconds since 1970 as a date and a time of day here."""
    try:
        return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(seconds))
    except (OverflowError, ValueError, OSError):  # a manifest may say what it likes
        return "?"


def bytes_shown(size: int) -> str:
    """Return a number of bytes, short.

    >>> bytes_shown(812), bytes_shown(81_200), bytes_shown(3 * 10**9)
    ('812 B', '81.2 kB', '3.0 GB')
    """
    if size < 1000:
        return f"{size} B"
    amount = float(size)
    for unit in ("kB", "MB", "GB"):
        amount /= 1000
        if amount < 999.95:
            return f"{amount:.1f} {unit}"
    return f"{amount / 1000:.1f} TB"


def verdict_table(verdicts: Iterable[tuple[int, MpsnapError | None]]) -> str:
    """Return a line a snapshot: whether it is what was committed, and its cut proven."""
    rows = []
    for number, error in verdicts:
        what = "whole, and its cut consistent" if error is None else str(error)
        rows.append((number, "ok" if error is None else "FAILED", what))
    return table(rows, ("#", "verdict", "what was found"), "rll") + "\n"


def kept_line(manifest: Manifest) -> str:
    """Return one line that says which snapshot this is, when it was taken, of what, and what it is good for."""
    programs = sorted({entry.program for entry in manifest.nodes.values()})
    use = ", recovery point" if is_recovery_point(manifest) else ""
    what = shortened(", ".join(programs), 60)
    return f"{manifest.id}, taken {moment_shown(manifest.wall_time)} of {what}{use}"


# ------------------------------------------------------------- nodes, channels, values


def value_table(value: object, full: bool) -> str:
    """Return a value: what is inside of it place by place, one level deep, or itself if nothing is."""
    rows = list(islice(_places(value), None if full else ROWS_SHOWN))
    if not rows:
        return shown(value, None if full else 10 * ROWS_SHOWN) + "\n"
    cut = [
        (_cut(step, None if full else PATH_WIDTH), shown(item, None if full else VALUE_WIDTH)) for step, item in rows
    ]
    return _with_more(table(cut, ("place", "value"), "ll"), _length(value) - len(rows), "place") + "\n"


def _places(value: object) -> Iterator[tuple[str, object]]:
    held = inside(value)
    if held.items is not None:
        for index, item in enumerate(held.items):
            yield held.names[index] if index < len(held.names) else f"[{index}]", item
    elif held.elements is not None:
        yield from sorted(((element_step(item), item) for item in held.elements), key=lambda place: place[0])
    else:
        for key, item in (held.entries or held.fields or {}).items():
            yield key_step(key).removeprefix("."), item


def _length(value: object) -> int:
    held = inside(value)
    parts = (held.items, held.elements, held.entries, held.fields)
    return next((len(part) for part in parts if part is not None), 0)


def node_table(snapshot: GlobalSnapshot, node: NodeSnapshot, full: bool) -> str:
    """Return one node: its state place by place, its timers, and its counts a neighbour."""
    words = [word for word, said in (("passive", node.passive), ("finished", node.finished)) if said]
    head = f"{node.name} in snapshot {snapshot.number} ({snapshot.id}): {', '.join(words) or 'active'}"
    if node.emitted:
        head += f", {count(node.emitted, 'record')} emitted"
    parts = [head, value_table(node.state, full).removesuffix("\n")]
    timers = [_timer_row(timer, full) for timer in node.timers[: None if full else ROWS_SHOWN]]
    if timers:
        text = table(timers, ("timer", "arguments", "due in", "every"), "llrr")
        parts.append(_with_more(text, len(node.timers) - len(timers), "timer"))
    around = [(node.name, dst) for dst in node.sent] + [(src, node.name) for src in node.received]
    rows = [_channel_row(snapshot, *channel) for channel in around[: None if full else ROWS_SHOWN]]
    if rows:
        text = table(rows, ("channel", "sent", "received", "in flight"), "lrrr")
        parts.append(_with_more(text, len(around) - len(rows), "channel"))
    return "\n".join(parts) + "\n"


def _timer_row(timer: Timer, full: bool) -> tuple[str, ...]:
    method, args = _cut(timer.method, None if full else PATH_WIDTH), thaw(timer.args, _PLAIN)
    period = "" if timer.period is None else f"{timer.period:g} s"
    return method, shown(args, None if full else PATH_WIDTH), f"{timer.remaining:.3f} s", period


def _channel_row(snapshot: GlobalSnapshot, src: str, dst: str) -> tuple[object, ...]:
    sent, received = snapshot.nodes[src].sent[dst], snapshot.nodes[dst].received[src]
    return f"{src} -> {dst}", sent, received, snapshot.flight(src, dst)[1]


def channel_table(snapshot: GlobalSnapshot, src: str, dst: str, full: bool) -> str:
    """Return one channel: each of its messages in flight with its number."""
    first, many = snapshot.flight(src, dst)
    sent, received = snapshot.nodes[src].sent[dst], snapshot.nodes[dst].received[src]
    head = f"{src} -> {dst} in snapshot {snapshot.number} ({snapshot.id}): {sent} sent, {received} received, "
    head += f"{count(many, 'message')} in flight"
    if not many:
        return head + "\n"
    messages = islice(enumerate(snapshot.channels[src, dst], first), None if full else ROWS_SHOWN)
    rows = [(number, shown(message, None if full else 60)) for number, message in messages]
    return f"{head}\n{_with_more(table(rows, ('number', 'message'), 'rl'), many - len(rows), 'message')}\n"


def values_table(values: Mapping[str, Any], missing: Sequence[str], full: bool) -> str:
    """Return what is at one place of several nodes; those that have no such place are told below."""
    rows = [(node, shown(value, None if full else 60)) for node, value in values.items()]
    below = f"no such place at {', '.join(missing)}\n" if missing else ""
    return f"{table(rows, ('node', 'value'), 'll')}\n{below}"


def _with_more(text: str, number: int, noun: str) -> str:
    """Return a table, with a line below that says how much of it is not shown."""
    return f"{text}\nand {count(number, f'more {noun}')}; --full shows all" if number > 0 else text


def _cut(text: str, width: int | None) -> str:
    return one_line(text) if width is None else shortened(text, width)


# ------------------------------------------------------------------------ differences


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
    if any(map(_has_rows, diff.nodes.values())):
        parts.append(_nodes_part(diff, full))
    if moved := _channel_rows(diff, full):
        most = len(moved) if full else ROWS_SHOWN
        text = table(moved[:most], ("channel", "sent", "received", "left it", "entered it"), "lrrll")
        parts.append(_with_more(text, len(moved) - most, "channel"))
    return "\n".join(parts) + "\n"


def _has_rows(node: NodeDiff) -> bool:
    return bool(node.state or node.timers or node.passive or node.finished or node.emitted)


def _nodes_part(diff: SnapshotDiff, full: bool) -> str:
    rows: list[tuple[str, str, str, str]] = []
    more = 0
    named = [(name, node) for name, node in diff.nodes.items() if _has_rows(node)]
    for name, node in named[: None if full else ROWS_SHOWN]:
        rows += ((name, *row) for row in islice(_node_rows(node, full), None if full else CHANGES_SHOWN))
        more += 0 if full else max(0, _rows_of(node) - CHANGES_SHOWN)
    if not full:
        more += sum(_rows_of(node) for _, node in named[ROWS_SHOWN:])
    text = table(rows, ("node", "place", "first", "second"), "llll")
    return _with_more(text, more, "change")


def _rows_of(node: NodeDiff) -> int:
    flags = sum(pair is not None for pair in (node.passive, node.finished, node.emitted))
    return len(node.state) + len(node.timers) + flags


def _node_rows(node: NodeDiff, full: bool) -> Iterator[tuple[str, str, str]]:
    """Yield a place and what was there in either snapshot; what is no place in the state stands in round brackets."""

    def place(text: str) -> str:
        return _cut(text, None if full else PATH_WIDTH)

    def side(value: object, there: bool = True) -> str:
        return shown(value, None if full else SIDE_WIDTH) if there else "-"

    for change in node.state:
        old, new = side(change.old, change.what != "added"), side(change.new, change.what != "removed")
        yield place((change.path or "(state)") + _NOTES.get(change.what, "")), old, new
    for timer in node.timers:
        name = f"(timer {timer.method}{shown(timer.args, PATH_WIDTH)})"
        yield place(name), _due(timer.old), _due(timer.new)
    for name, pair in (("passive", node.passive), ("finished", node.finished), ("emitted", node.emitted)):
        if pair is not None:
            yield f"({name})", str(pair[0]), str(pair[1])


_NOTES = {"length": " (length)", "reordered": " (order)"}


def _due(remaining: float | None) -> str:
    return "-" if remaining is None else f"due in {remaining:.3f} s"


def _channel_rows(diff: SnapshotDiff, full: bool) -> list[tuple[str, str, str, str, str]]:
    """Return a row a channel that was used, or whose messages differ."""
    channels = dict.fromkeys(diff.channels)
    channels |= dict.fromkeys((name, dst) for name, node in diff.nodes.items() for dst in node.sent)
    channels |= dict.fromkeys((src, name) for name, node in diff.nodes.items() for src in node.received)
    rows = []
    for src, dst in sorted(channels):
        sent = diff.nodes[src].sent.get(dst) if src in diff.nodes else None
        received = diff.nodes[dst].received.get(src) if dst in diff.nodes else None
        moved = diff.channels.get((src, dst), ChannelDiff((), (), ()))
        left = [*moved.left, *((number, old) for number, old, _ in moved.changed)]
        entered = [*moved.entered, *((number, new) for number, _, new in moved.changed)]
        rows.append((f"{src} -> {dst}", _growth(sent), _growth(received), _moved(left, full), _moved(entered, full)))
    return rows


def _growth(pair: tuple[int | None, int | None] | None) -> str:
    if pair is None:
        return ""
    return f"{pair[1] - pair[0]:+}" if pair[0] is not None and pair[1] is not None else "-"


def _moved(messages: Sequence[tuple[int, object]], full: bool) -> str:
    """Return messages with their numbers, as ranges: `13..15: 4, 1, 1`."""
    texts = []
    for run in _runs(messages):
        first, last = run[0][0], run[-1][0]
        numbers = str(first) if first == last else f"{first}..{last}"
        most, width = (None, None) if full else (_MOVED_WIDTH, _MOVED_WIDTH)
        texts.append(f"{numbers}: {', '.join(shown(message, width) for _, message in islice(run, most))}")
    return "; ".join(texts) if full else shortened("; ".join(texts), _MOVED_WIDTH)


def _runs(messages: Sequence[tuple[int, object]]) -> Iterator[list[tuple[int, object]]]:
    run: list[tuple[int, object]] = []
    for message in sorted(messages, key=lambda message: message[0]):
        if run and run[-1][0] + 1 != message[0]:
            yield run
            run = []
        run.append(message)
    if run:
        yield run
