"""The difference of two snapshots, and paths into values: exact, complete, and the same from either side."""

from __future__ import annotations

from collections import Counter, OrderedDict, defaultdict, deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import date, datetime, timedelta, timezone
from decimal import Decimal
from enum import Enum
from typing import Any, NamedTuple
from uuid import UUID

import pytest
from cli_harness import cut
from hypothesis import given, settings
from hypothesis import strategies as st
from keeping import RING, three

from mpsnap.core.codec import Codec, Opaque, Pickled
from mpsnap.core.diff import Change, ChannelDiff, SnapshotDiff, TimerChange, diff_values
from mpsnap.core.errors import InputError
from mpsnap.core.forms import parse_topology
from mpsnap.core.path import element_step, joined, key_step, look_up
from mpsnap.core.snapshot import Captured, GlobalSnapshot, Timer
from mpsnap.core.topology import Topology


@dataclass
class Account:
    owner: str
    balance: object


class Pair(NamedTuple):
    left: object
    right: object


class Colour(Enum):
    RED = 1
    BLUE = 2


#: However slow the machine is.
PATIENT = settings(max_examples=150)
HERE = Codec(types=[Account, Pair, Colour])
STRANGER = Codec()

LEAVES = (
    st.none()
    | st.booleans()
    | st.integers(-3, 3)
    | st.sampled_from([0.0, -0.0, 1.0, float("nan"), float("inf"), 10**40])
    | st.text("ab .\"'[]\x1b\n", max_size=3)
    | st.binary(max_size=2)
    | st.sampled_from([Decimal("1.0"), Decimal("1.00"), date(1985, 2, 1), timedelta(1), UUID(int=5), Colour.RED])
)
KEYS = LEAVES | st.tuples(LEAVES, LEAVES) | st.frozensets(st.integers(0, 3), max_size=2)
VALUES: st.SearchStrategy[Any] = st.recursive(
    LEAVES,
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.lists(inner, max_size=3).map(tuple)
        | st.lists(inner, max_size=3).map(deque)
        | st.dictionaries(KEYS, inner, max_size=4)
        | st.dictionaries(st.text("abc", min_size=1, max_size=2), inner, max_size=4)
        | st.sets(KEYS, max_size=3)
        | st.builds(Account, st.text("ab", max_size=1), inner)
        | st.builds(Pair, inner, inner)
    ),
    max_leaves=12,
)


def exact(value: Any) -> object:
    """Return something hashable that is equal for exactly the same values, dicts in any order."""
    kind = type(value)
    if kind is Account:
        return kind, exact(vars(value))
    if kind in (list, tuple, deque, Pair):
        return kind, tuple(map(exact, value))
    if kind is dict:
        return kind, frozenset((exact(key), exact(item)) for key, item in value.items())
    if kind in (set, frozenset):
        return kind, frozenset(map(exact, value))
    return kind, repr(value)


def leaves(value: Any, path: str = "") -> Iterator[tuple[str, object]]:
    """Yield every leaf of a value, empty containers too, with its path."""
    kind = type(value)
    inner: list[tuple[str, object]] = []
    if kind is Account:
        inner = [(f".{name}", item) for name, item in vars(value).items()]
    elif kind is Pair:
        inner = [(f".{name}", item) for name, item in value._asdict().items()]
    elif kind in (list, tuple, deque):
        inner = [(f"[{index}]", item) for index, item in enumerate(value)]
    elif kind is dict:
        inner = [(key_step(key), item) for key, item in value.items()]
    elif kind in (set, frozenset):
        yield from ((joined(path, element_step(element)), element) for element in value)
        return
    if not inner:
        yield path, value
    for step, item in inner:
        yield from leaves(item, joined(path, step))


def is_under(path: str, above: str) -> bool:
    return path == above or not above or (path.startswith(above) and path[len(above)] in ".[{")


# --- Values. ---


@PATIENT
@given(VALUES)
def test_a_value_does_not_differ_from_itself_nor_from_its_copy(value: object) -> None:
    assert diff_values(value, value) == ()
    copy, again = (HERE.decode(HERE.encode(value)) for _ in range(2))
    assert diff_values(copy, again) == ()


@PATIENT
@given(VALUES, VALUES)
def test_values_differ_if_they_are_not_exactly_the_same(one: object, other: object) -> None:
    assert (diff_values(one, other) == ()) is (exact(one) == exact(other))


@PATIENT
@given(VALUES, VALUES)
def test_changes_are_at_exactly_the_places_that_differ(old: object, new: object) -> None:
    changes = diff_values(old, new)
    notes = [change for change in changes if change.what == "length"]
    places = [change for change in changes if change.what != "length"]
    assert len({change.path for change in places}) == len(places)
    for change in notes:
        assert [len(side) for side in (look_up(old, change.path), look_up(new, change.path))] == [  # type: ignore[arg-type]
            change.old,
            change.new,
        ]
    for change in places:
        for what, value, told in (("added", old, change.old), ("removed", new, change.new)):
            if change.what == what:
                with pytest.raises(InputError):
                    look_up(value, change.path)
            else:
                assert exact(look_up(value, change.path)) == exact(told)
        assert change.what != "changed" or exact(change.old) != exact(change.new)
    for value, other in ((old, new), (new, old)):
        for path, leaf in leaves(value):
            if not any(is_under(path, change.path) for change in places) and leaf not in ([], (), {}, deque(), set()):
                assert exact(look_up(other, path)) == exact(leaf), f"{path} differs, and no change says so"


@PATIENT
@given(VALUES, VALUES)
def test_the_difference_is_the_same_from_the_other_side(one: object, other: object) -> None:
    swapped = {"added": "removed", "removed": "added"}
    there = {(change.path, swapped.get(change.what, change.what)) for change in diff_values(one, other)}
    back = {(change.path, change.what) for change in diff_values(other, one)}
    assert there == back


@PATIENT
@given(VALUES, VALUES)
def test_who_does_not_know_the_classes_sees_the_same_differences(one: object, other: object) -> None:
    """But for the names of a NamedTuple's fields, which are kept with its class alone."""
    known = diff_values(one, other)
    unknown = diff_values(*(STRANGER.decode(HERE.encode(value)) for value in (one, other)))
    assert sorted(change.what for change in known) == sorted(change.what for change in unknown)
    mixed = diff_values(one, STRANGER.decode(HERE.encode(one)))
    assert mixed == ()


@pytest.mark.parametrize(
    ("old", "new", "changes"),
    [
        (1, 1.0, [("", "changed")]),
        (True, 1, [("", "changed")]),
        (0.0, -0.0, [("", "changed")]),
        ([1], (1,), [("", "changed")]),
        ({"a": {"b": [1, 2]}}, {"a": {"b": [1, 3]}}, [("a.b[1]", "changed")]),
        ([1, 2, 3], [1], [("", "length"), ("[1]", "removed"), ("[2]", "removed")]),
        ({"q": deque([1])}, {"q": deque([1, 2])}, [("q", "length"), ("q[1]", "added")]),
        (deque([1], 3), deque([1], 4), [("", "changed")]),
        ({1: 0, 2: 1}, {1.0: 0, 2: 1}, [("[1]", "removed"), ("[1.0]", "added")]),
        ({"a b": 1, "é": 2}, {"a b": 2, "é": 3}, [('["a b"]', "changed"), ('["\\u00e9"]', "changed")]),
        ({(1, "x"): 1}, {(1, "x"): 2}, [("[(1, 'x')]", "changed")]),
        ({"s": {1, 2}}, {"s": {2, 3}}, [("s{1}", "removed"), ("s{3}", "added")]),
        (Counter("aab"), Counter("abb"), [("a", "changed"), ("b", "changed")]),
        (OrderedDict(a=1, b=2), OrderedDict(b=2, a=1), [("", "reordered")]),
        ({"a": 1, "b": 2}, {"b": 2, "a": 1}, []),
        (defaultdict(int, a=1), defaultdict(float, a=1.0), [("", "changed")]),
        (Account("ann", 1), Account("ann", 2), [("balance", "changed")]),
        (Pair(1, 2), Pair(1, 3), [("right", "changed")]),
        (Opaque("m:P", [1, 2]), Opaque("m:P", [1, 3]), [("[1]", "changed")]),
        (Opaque("m:P", [1, 2]), Opaque("m:Q", [1, 2]), [("", "changed")]),
        (Colour.RED, Opaque(f"{__name__}:Colour", "RED"), []),
        (Colour.RED, Colour.BLUE, [("", "changed")]),
        (Pickled(b"a"), Pickled(b"b"), [("", "changed")]),
        (Decimal("1.0"), Decimal("1.00"), [("", "changed")]),
        (Decimal("sNaN"), Decimal("sNaN"), []),
        (datetime(2000, 1, 1, tzinfo=timezone.utc), datetime(2000, 1, 1), [("", "changed")]),
        (
            datetime(2000, 1, 1, 1, tzinfo=timezone(timedelta(hours=1))),
            datetime(2000, 1, 1, tzinfo=timezone.utc),
            [("", "changed")],
        ),
    ],
)
def test_what_counts_as_a_difference(old: object, new: object, changes: list[tuple[str, str]]) -> None:
    assert [(change.path, change.what) for change in diff_values(old, new)] == changes


def test_large_values_take_linear_time() -> None:
    """Each of these would take minutes if an item, an entry or an element were looked for."""
    many = 100_000
    numbers = list(range(many))
    assert diff_values(numbers, list(range(many))) == ()
    assert diff_values(deque(numbers), deque([*numbers[:-1], 0])) == (Change(f"[{many - 1}]", "changed", many - 1, 0),)
    shifted = diff_values(numbers, numbers[1:])
    assert len(shifted) == many + 1
    assert shifted[0] == Change("", "length", many, many - 1)
    keyed = {(k, str(k)): k for k in numbers}
    assert diff_values(keyed, {**keyed, (0, "0"): 1}) == (Change("[(0, '0')]", "changed", 0, 1),)
    assert len(diff_values(set(numbers), set(numbers[1:]) | {-1})) == 2


def test_the_deepest_value_that_can_be_kept() -> None:
    old: object = 1
    new: object = 2
    for _ in range(99):
        old, new = {"a": old}, {"a": new}
    STRANGER.encode(old)
    assert [change.path for change in diff_values(old, new)] == [".".join("a" * 99)]


# --- Paths. ---

PLACES = {
    "a": {"b": [1, {"key": "here"}, deque([7])], "x y": 2, 'q"]': 3},
    1: "one",
    (1, "x"): {"seen": {3, "b", (4,)}},
    None: Account("ann", Pair([5], 6)),
    date(1985, 2, 1): "paper",
    "far": Opaque("m:A", {"balance": 9}),
    "pair": Opaque("m:P", [8, 9]),
    "pickle": Pickled(b"abc"),
    b"raw": 10**5000,
    10**5000: "huge",
}


@pytest.mark.parametrize(
    ("path", "found"),
    [
        ("", PLACES),
        ("a.b[0]", 1),
        (".a.b[-2].key", "here"),
        ('a["b"][1]["key"]', "here"),
        ("a['b'][2][0]", 7),
        ('a["x y"]', 2),
        ("a['q\"]']", 3),
        ('a["q\\"]"]', 3),
        ("[1]", "one"),
        ("[(1, 'x')].seen{3}", 3),
        ('[{"$tuple": [1, "x"]}].seen{"b"}', "b"),
        ("[(1, 'x')].seen{(4,)}", (4,)),
        ("[None].owner", "ann"),
        ("[null].balance.left[0]", 5),
        ("[null].balance[1]", 6),
        ('[{"value": "1985-02-01", "$type": "date"}]', "paper"),
        ("far.balance", 9),
        ('far["balance"]', 9),
        ("pair[1]", 9),
        ("[b'raw']", 10**5000),
        (key_step(10**5000), "huge"),
    ],
    ids=lambda value: value[:30] if isinstance(value, str) else "",
)
def test_a_path_leads_there(path: str, found: object) -> None:
    assert look_up(PLACES, path) == found


@pytest.mark.parametrize(
    ("path", "error"),
    [
        ("b", "N1: there is no 'b': this is a dict of 10 entries; try: a, [1], "),
        ("a.c", "N1: a: there is no '.c': this is a dict of 3 entries; try: b"),
        ("a.b.c", "N1: a.b: a list of 3 items has items, and '.c' is no index; try: [0]"),
        ("a.b[3]", "N1: a.b: there is no item [3]: this is a list of 3 items; try: an index from 0 to 2"),
        ("a.b[-4]", "N1: a.b: there is no item [-4]"),
        ("a.b[True]", "N1: a.b: a list of 3 items has items, and '[True]' is no index"),
        ("a.b[0].x", "N1: a.b[0]: nothing is inside of an int, so there is no '.x'"),
        ("a.b{1}", "N1: a.b: a list of 3 items has no elements, only a set has"),
        ("[True]", "N1: there is no '[True]': this is a dict of 10 entries"),
        ("[1.0]", "N1: there is no '[1.0]'"),
        ("[(1, 'x')].seen[0]", "N1: [(1, 'x')].seen: a set of 3 elements has elements, and '[0]' is none"),
        ("[(1, 'x')].seen{4}", "N1: [(1, 'x')].seen: there is no '{4}': this is a set of 3 elements; try: "),
        ("far.balanse", "N1: far: there is no '.balanse': this is an A with the fields balance; try: balance"),
        ("pair.left", "N1: pair: a P of 2 items is kept without the names of its fields: no '.left'; try: [0]"),
        (
            "pickle.x",
            "N1: pickle: nothing is inside of a pickle of 3 bytes, which is never loaded, so there is no '.x'",
        ),
        ("a[", "a[: the [ is not closed at character 2 of the path"),
        ("a[(1]", "the [ is not closed at character 2"),
        ("a['x]", "the [ is not closed at character 2"),
        ("a..b", "a name is missing at character 3"),
        ("a.", "a name is missing at character 3"),
        ("a b", "' ' is neither . nor [ nor { at character 2"),
        ("3", "a name is missing at character 1"),
        ("a[]", "'' is no literal at character 3"),
        ("a[open('x')]", "is no literal"),
        ("a[__import__('os')]", "is no literal"),
        ("a[1+1j]", "is no plain data"),
        ("a[" + "(" * 5000 + ")" * 5000 + "]", "is no "),
        ("a[" + "9" * 5000 + "]", "is no literal"),
        ("a\x1b[2J", r"a\x1b[2J: '\x1b' is neither"),
    ],
)
def test_a_path_that_leads_nowhere_says_where_it_ends_and_what_is_there(path: str, error: str) -> None:
    with pytest.raises(InputError) as caught:
        look_up(PLACES, path, "N1")
    assert error in str(caught.value)
    assert str(caught.value).isprintable()
    assert len(str(caught.value)) < 500


def test_a_long_path_takes_no_time() -> None:
    with pytest.raises(InputError):
        look_up({}, "a" * 10**6)
    with pytest.raises(InputError):
        look_up({}, ".a" * 10**5)


# --- Snapshots. ---


def test_a_snapshot_does_not_differ_from_itself() -> None:
    for snapshot, again in zip(three(), three(), strict=True):
        assert not snapshot.diff(snapshot)
        assert not snapshot.diff(again)


def test_what_became_of_nodes_and_messages() -> None:
    _, old, new = three()
    diff = old.diff(new)
    assert diff
    assert (diff.old, diff.new) == ((1, old.id), (2, new.id))
    assert {name: node.state for name, node in diff.nodes.items()} == {
        "N1": (Change("tokens", "changed", 3, 0),),
        "N2": (),
        "N3": (Change("tokens", "changed", 11, 14),),
    }
    assert diff.nodes["N1"].sent == {"N2": (6, 7)}
    assert diff.nodes["N1"].received == {"N3": (6, 9)}
    assert [diff.nodes[name].passive for name in RING.nodes] == [None, (False, True), None]
    assert diff.channels == {
        ("N1", "N2"): ChannelDiff(((5, 1),), ((7, 3),), ()),
        ("N2", "N3"): ChannelDiff((), ((5, 1), (6, 2)), ()),
        ("N3", "N1"): ChannelDiff(((7, 5),), (), ()),
    }


def test_the_difference_of_snapshots_is_the_same_from_the_other_side() -> None:
    for one in three():
        for other in three():
            assert _turned(one.diff(other)) == other.diff(one)


def _turned(diff: SnapshotDiff) -> SnapshotDiff:
    swapped = {"added": "removed", "removed": "added"}

    def pair(value: Any) -> Any:
        return value and value[::-1]

    def pairs(values: Mapping[str, Any]) -> dict[str, Any]:
        return {name: pair(value) for name, value in values.items()}

    nodes = {
        name: node._replace(
            state=tuple(Change(c.path, swapped.get(c.what, c.what), c.new, c.old) for c in node.state),
            sent=pairs(node.sent),
            received=pairs(node.received),
            passive=pair(node.passive),
            finished=pair(node.finished),
            emitted=pair(node.emitted),
        )
        for name, node in diff.nodes.items()
    }
    channels = {
        channel: ChannelDiff(c.entered, c.left, tuple((number, new, old) for number, old, new in c.changed))
        for channel, c in diff.channels.items()
    }
    return SnapshotDiff(diff.new, diff.old, nodes, channels, *diff[5:3:-1], *diff[:5:-1])


def one_channel(received: int, messages: Sequence[object]) -> GlobalSnapshot:
    return cut(
        parse_topology("line:2"), {"N1": 0, "N2": 0}, {("N1", "N2"): messages}, received={("N1", "N2"): received}
    )


def test_messages_whose_numbers_came_a_second_time() -> None:
    """As they do when a cluster was taken back to an older cut."""
    old, new = one_channel(10, ["k", "l", "m", "n"]), one_channel(8, ["i", "j", "k", "X"])
    channel = old.diff(new).channels["N1", "N2"]
    assert channel == ChannelDiff(((13, "m"), (14, "n")), ((9, "i"), (10, "j")), ((12, "l", "X"),))
    inner = one_channel(10, [1, 2, 3]).diff(one_channel(11, [2])).channels["N1", "N2"]
    assert inner.left == ((11, 1), (13, 3))
    assert not one_channel(3, [[1], {"a": 2}]).diff(one_channel(3, [[1], {"a": 2}]))
    assert one_channel(3, [(1,)]).diff(one_channel(3, [(True,)])), "exactly, by type too"


def test_snapshots_of_different_clusters() -> None:
    old = cut(Topology(["A", "B"], [("A", "B")]), {"A": 1, "B": 2}, {("A", "B"): [1]})
    new = cut(Topology(["B", "C"], [("C", "B")]), {"B": 2, "C": 3}, {})
    diff = old.diff(new)
    assert (diff.old_nodes, diff.new_nodes) == (("A",), ("C",))
    assert (diff.old_channels, diff.new_channels) == ((("A", "B"),), (("C", "B"),))
    assert diff.channels == {}
    assert diff.nodes["B"].received == {"A": (0, None), "C": (None, 0)}
    assert diff.nodes["B"].state == ()


def with_timers(*timers: Timer) -> GlobalSnapshot:
    snapshot = cut(Topology(["A"], []), {"A": 1}, {})
    part = snapshot._locals["A"]
    assert isinstance(part.captured, Captured)
    parts = {"A": part._replace(captured=part.captured._replace(timers=timers))}
    return GlobalSnapshot(0, snapshot.id, ("A",), snapshot.topology, parts, {"A": STRANGER})


def test_timers_are_told_by_what_they_call() -> None:
    old = with_timers(Timer(1.0, None, "late", (1,)), Timer(2.0, 5.0, "beat", ()), Timer(3.0, 5.0, "beat", ()))
    new = with_timers(Timer(4.0, 5.0, "beat", ()), Timer(2.0, 5.0, "beat", ()), Timer(1.0, None, "late", (True,)))
    assert old.diff(new).nodes["A"].timers == (
        TimerChange("late", (1,), None, 1.0, None),
        TimerChange("beat", (), 5.0, 3.0, 4.0),
        TimerChange("late", (True,), None, None, 1.0),
    )
    assert not old.diff(old)
