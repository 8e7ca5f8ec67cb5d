"""The difference of two snapshots: what became of nodes, and of messages, from one cut to the other.

This module owns what counts as a difference and the order in which differences are told. It must not know how they are
shown, nor how much of them.

Values are compared exactly, by type too. Dicts and dataclasses are compared entry by entry, sets element by element,
sequences index by index: so an item that is put in at the front changes all behind it. What a value is in place of one
of another type is told whole. In time and memory it is linear in what is compared.

Messages are told by their numbers: of a channel, those in flight in one cut and not in the other have left it or
entered it in between. Where the program was taken back to an older cut in between, numbers come a second time, and a
message may be another one under the same number.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import islice
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

from mpsnap.core.codec import Codec, thaw
from mpsnap.core.inside import Inside, in_order, inside, same_leaf, tokens
from mpsnap.core.jsonform import dumps
from mpsnap.core.path import element_step, joined, key_step
from mpsnap.core.protocol import SnapshotId

if TYPE_CHECKING:
    from mpsnap.core.snapshot import GlobalSnapshot, NodeSnapshot, Timer

T = TypeVar("T")

_PLAIN = Codec()


class Change(NamedTuple):
    """Say what is different at one place of a value.

    `what` is "changed", "added" or "removed"; "reordered" for an OrderedDict of the same keys in another order; and
    "length" for a sequence, before the changes of its items, with the two lengths. Where a value is only on one side,
    the other is None.
    """

    #: Which `mpsnap.core.path.look_up` follows; "" is the value itself.
    path: str
    what: str
    old: Any
    new: Any


class TimerChange(NamedTuple):
    """Say what became of a timer: in how many seconds it was due in each cut, None where it was not set."""

    method: str
    args: Any
    period: float | None
    old: float | None
    new: float | None


class NodeDiff(NamedTuple):
    """Say how a node differs; of the last three fields, None is for no difference, else it is old and new.

    `sent` and `received` have those neighbours with another count; a count is None where there is no such channel.
    """

    state: tuple[Change, ...]
    sent: Mapping[str, tuple[int | None, int | None]]
    received: Mapping[str, tuple[int | None, int | None]]
    timers: tuple[TimerChange, ...]
    passive: tuple[bool, bool] | None
    finished: tuple[bool, bool] | None
    emitted: tuple[int, int] | None


class ChannelDiff(NamedTuple):
    """Say how a channel differs: messages with their numbers, in order.

    `left` were in flight in the old cut alone, `entered` in the new one alone. `changed` are not the same, though they
    have a number that is in flight in both: number, old, new.
    """

    left: tuple[tuple[int, Any], ...]
    entered: tuple[tuple[int, Any], ...]
    changed: tuple[tuple[int, Any, Any], ...]


class SnapshotDiff(NamedTuple):
    """Say how two snapshots differ; true if they do.

    Number, id, initiators and duration are no difference: they only say which snapshots these are.
    """

    #: Number and id of either snapshot.
    old: tuple[int, SnapshotId]
    new: tuple[int, SnapshotId]
    #: Of nodes that are in both and differ.
    nodes: Mapping[str, NodeDiff]
    #: Of channels that are in both and differ.
    channels: Mapping[tuple[str, str], ChannelDiff]
    #: Nodes that are in one of them alone.
    old_nodes: tuple[str, ...]
    new_nodes: tuple[str, ...]
    #: Channels that are in one of them alone.
    old_channels: tuple[tuple[str, str], ...]
    new_channels: tuple[tuple[str, str], ...]

    def __bool__(self) -> bool:
        return any(self[2:])


def diff_snapshots(old: GlobalSnapshot, new: GlobalSnapshot) -> SnapshotDiff:
    """Return how `new` differs from `old`."""
    nodes = {}
    for name, node in old.nodes.items():
        if name in new.nodes and any(found := _diff_nodes(node, new.nodes[name])):
            nodes[name] = found
    channels = {}
    theirs = set(new.topology.channels)
    for channel in old.topology.channels:
        if channel in theirs and (moved := _diff_channels(old, new, channel)) is not None:
            channels[channel.src, channel.dst] = moved
    return SnapshotDiff(
        (old.number, old.id),
        (new.number, new.id),
        nodes,
        channels,
        tuple(_only(old.nodes, new.nodes)),
        tuple(_only(new.nodes, old.nodes)),
        tuple(_only(old.channels, new.channels)),
        tuple(_only(new.channels, old.channels)),
    )


def diff_values(old: object, new: object) -> tuple[Change, ...]:
    """Return how plain data differs from other plain data, in the order of the old, what was added last."""
    found: list[Change] = []
    _walk(old, new, "", found)
    return tuple(found)


def _only(ours: Mapping[T, object], theirs: Mapping[T, object]) -> list[T]:
    others = set(theirs)
    return [key for key in ours if key not in others]


# ------------------------------------------------------------------------ nodes


def _diff_nodes(old: NodeSnapshot, new: NodeSnapshot) -> NodeDiff:
    return NodeDiff(
        () if old.same_bytes(new) else diff_values(old.state, new.state),
        _counts(old.sent, new.sent),
        _counts(old.received, new.received),
        tuple(_diff_timers(old.timers, new.timers)),
        (old.passive, new.passive) if old.passive != new.passive else None,
        (old.finished, new.finished) if old.finished != new.finished else None,
        (old.emitted, new.emitted) if old.emitted != new.emitted else None,
    )


def _counts(old: Mapping[str, int], new: Mapping[str, int]) -> dict[str, tuple[int | None, int | None]]:
    pairs = {name: (old.get(name), new.get(name)) for name in sorted(old.keys() | new.keys())}
    return {name: pair for name, pair in pairs.items() if pair[0] != pair[1]}


def _diff_timers(old: Sequence[Timer], new: Sequence[Timer]) -> Iterator[TimerChange]:
    """Match timers that call the same, in the order in which they are due: a timer has no name."""
    theirs: dict[object, list[Timer]] = {}
    for timer in new:
        theirs.setdefault(_call(timer), []).append(timer)
    for due in theirs.values():
        due.sort(key=lambda timer: timer.remaining, reverse=True)
    for timer in sorted(old, key=lambda timer: timer.remaining):
        same = theirs.get(_call(timer))
        match = same.pop() if same else None
        if match is None or match.remaining != timer.remaining:
            yield _timer_change(timer, timer.remaining, match and match.remaining)
    for timer in sorted((timer for rest in theirs.values() for timer in rest), key=lambda timer: timer.remaining):
        yield _timer_change(timer, None, timer.remaining)


def _call(timer: Timer) -> object:
    return timer.method, timer.period, dumps(thaw(timer.args, _PLAIN))


def _timer_change(timer: Timer, old: float | None, new: float | None) -> TimerChange:
    return TimerChange(timer.method, thaw(timer.args, _PLAIN), timer.period, old, new)


# ---------------------------------------------------------------------- channels


def _diff_channels(old: GlobalSnapshot, new: GlobalSnapshot, channel: tuple[str, str]) -> ChannelDiff | None:
    old_first, old_count = old.flight(*channel)
    new_first, new_count = new.flight(*channel)
    if not old_count and not new_count:
        # Nearly always in a large graph.
        return None
    ours, theirs = old.channels[channel], new.channels[channel]
    both = range(max(old_first, new_first), min(old_first + old_count, new_first + new_count))
    made = ChannelDiff(
        tuple(_outside(old_first, ours, both)),
        tuple(_outside(new_first, theirs, both)),
        tuple(
            (number, one, other)
            for number in both
            if not same(one := ours[number - old_first], other := theirs[number - new_first])
        ),
    )
    return made if any(made) else None


def _outside(first: int, messages: Sequence[object], both: range) -> Iterator[tuple[int, object]]:
    """Yield the messages that are in one cut alone, with their numbers."""
    for number, message in enumerate(messages, first):
        if number not in both:
            yield number, message


# ------------------------------------------------------------------------ values


def same(old: object, new: object) -> bool:
    """Return whether two values are exactly the same."""
    found: list[Change] = []
    _walk(old, new, "", found)
    return not found


_QUICK = frozenset({int, str, bytes, bool})


def _walk(old: Any, new: Any, path: str, found: list[Change]) -> None:
    kind = type(old)
    if old is new or (kind in _QUICK and kind is type(new) and old == new):
        return
    ours, theirs = inside(old), inside(new)
    if ours.label != theirs.label:
        found.append(Change(path, "changed", old, new))
    elif ours.items is not None and theirs.items is not None:
        _walk_items(ours.items, theirs.items, path, ours.names or theirs.names, found)
    elif ours.elements is not None and theirs.elements is not None:
        _walk_elements(ours, theirs, path, found)
    elif ours.entries is not None and theirs.entries is not None:
        _walk_entries(ours.entries, theirs.entries, path, found)
        if in_order(old) and _in_another_order(ours.entries, theirs.entries):
            found.append(Change(path, "reordered", old, new))
    elif ours.fields is not None and theirs.fields is not None:
        _walk_entries(ours.fields, theirs.fields, path, found)
    elif not same_leaf(old, new):
        found.append(Change(path, "changed", old, new))


def _walk_items(
    old: Sequence[object], new: Sequence[object], path: str, names: tuple[str, ...], found: list[Change]
) -> None:
    def place(index: int) -> str:
        return joined(path, f".{names[index]}" if index < len(names) else f"[{index}]")

    if len(old) != len(new):
        found.append(Change(path, "length", len(old), len(new)))
    # A deque takes long to find an item in its middle, so both are gone through side by side.
    for index, (one, other) in enumerate(zip(old, new, strict=False)):
        kind = type(one)
        if not (one is other or (kind in _QUICK and kind is type(other) and one == other)):
            _walk(one, other, place(index), found)
    least = min(len(old), len(new))
    found.extend(Change(place(k), "removed", item, None) for k, item in enumerate(islice(old, least, None), least))
    found.extend(Change(place(k), "added", None, item) for k, item in enumerate(islice(new, least, None), least))


def _walk_entries(old: Mapping[Any, object], new: Mapping[Any, object], path: str, found: list[Change]) -> None:
    ours, theirs = dict(tokens(old)), dict(tokens(new))
    for token, key in ours.items():
        if token in theirs:
            one, other = old[key], new[theirs[token]]
            kind = type(one)
            if not (one is other or (kind in _QUICK and kind is type(other) and one == other)):
                _walk(one, other, joined(path, key_step(key)), found)
        else:
            found.append(Change(joined(path, key_step(key)), "removed", old[key], None))
    for token, key in theirs.items():
        if token not in ours:
            found.append(Change(joined(path, key_step(key)), "added", None, new[key]))


def _walk_elements(old: Inside, new: Inside, path: str, found: list[Change]) -> None:
    ours, theirs = dict(tokens(old.elements or ())), dict(tokens(new.elements or ()))
    removed = [(element_step(ours[token]), ours[token]) for token in ours.keys() - theirs.keys()]
    added = [(element_step(theirs[token]), theirs[token]) for token in theirs.keys() - ours.keys()]
    # The order of a set is another one in every process.
    found.extend(Change(path + step, "removed", element, None) for step, element in sorted(removed, key=_first))
    found.extend(Change(path + step, "added", None, element) for step, element in sorted(added, key=_first))


def _first(pair: tuple[str, object]) -> str:
    return pair[0]


def _in_another_order(old: Mapping[Any, object], new: Mapping[Any, object]) -> bool:
    ours, theirs = [token for token, _ in tokens(old)], [token for token, _ in tokens(new)]
    return ours != theirs and len(ours) == len(theirs) and set(ours) == set(theirs)
