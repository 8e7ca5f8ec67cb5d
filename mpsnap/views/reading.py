"""What was kept, as tables for people: stores, single nodes and channels, values.

Pure functions to text, in the manner of `tables`: shortened unless all is asked for, and made harmless for a terminal.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import islice
from typing import Any, NamedTuple

from mpsnap.core.codec import Codec, thaw
from mpsnap.core.errors import MpsnapError, one_line
from mpsnap.core.inside import inside
from mpsnap.core.path import element_step, key_step
from mpsnap.core.snapshot import GlobalSnapshot, NodeSnapshot, Timer
from mpsnap.store.contract import is_recovery_point
from mpsnap.store.manifest import Manifest
from mpsnap.views.tables import ROWS_SHOWN, VALUE_WIDTH, count, loose_table, shortened, shown, table

#: Columns that a path may take.
PATH_WIDTH = 24
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
    return loose_table(rows, ("#", "verdict", "what was found"), "rll") + "\n"


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
        (cut_to(step, None if full else PATH_WIDTH), shown(item, None if full else VALUE_WIDTH)) for step, item in rows
    ]
    return with_more(loose_table(cut, ("place", "value"), "ll"), _length(value) - len(rows), "place") + "\n"


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
        parts.append(with_more(text, len(node.timers) - len(timers), "timer"))
    around = [(node.name, dst) for dst in node.sent] + [(src, node.name) for src in node.received]
    rows = [_channel_row(snapshot, *channel) for channel in around[: None if full else ROWS_SHOWN]]
    if rows:
        text = table(rows, ("channel", "sent", "received", "in flight"), "lrrr")
        parts.append(with_more(text, len(around) - len(rows), "channel"))
    return "\n".join(parts) + "\n"


def _timer_row(timer: Timer, full: bool) -> tuple[str, ...]:
    method, args = cut_to(timer.method, None if full else PATH_WIDTH), thaw(timer.args, _PLAIN)
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
    head += f"{many} in flight"
    if not many:
        return head + "\n"
    messages = islice(enumerate(snapshot.channels[src, dst], first), None if full else ROWS_SHOWN)
    rows = [(number, shown(message, None if full else 60)) for number, message in messages]
    return f"{head}\n{with_more(loose_table(rows, ('number', 'message'), 'rl'), many - len(rows), 'message')}\n"


def values_table(values: Mapping[str, Any], missing: Sequence[str], full: bool) -> str:
    """Return what is at one place of several nodes; those that have no such place are told below."""
    rows = [(node, shown(value, None if full else 60)) for node, value in values.items()]
    below = f"no such place at {', '.join(missing)}\n" if missing else ""
    return f"{loose_table(rows, ('node', 'value'), 'll')}\n{below}"


def with_more(text: str, number: int, noun: str) -> str:
    """Return a table, with a line below that says how much of it is not shown."""
    return f"{text}\nand {count(number, f'more {noun}')}; --full shows all" if number > 0 else text


def cut_to(text: str, width: int | None) -> str:
    """Return a text on one line, shortened unless `width` is None."""
    return one_line(text) if width is None else shortened(text, width)
