"""Rows: payloads that can change travel laid out, and nobody can tell it from the outside."""

from __future__ import annotations

import copy
import dataclasses
import math
import pickle
from collections import OrderedDict
from decimal import Decimal
from enum import Enum
from typing import Any, NamedTuple

import pytest
from harness import CoreWorld, graph, snap

from mpsnap.core.batch import pack_batch
from mpsnap.core.codec import Codec, Encoded, Opaque, encoded, freeze, thaw
from mpsnap.core.errors import CodecError
from mpsnap.core.history import value_shown
from mpsnap.core.jsonform import to_json
from mpsnap.core.node import Context, Node
from mpsnap.core.rows import ENCODED


@dataclasses.dataclass
class Order:
    """Has a field that its __init__ does not know, and code that must not run again."""

    number: Any
    text: Any = "x"
    done: Any = dataclasses.field(init=False, default=None)

    def __post_init__(self) -> None:
        self.text = f"{self.text}!"
        self.done = False


@dataclasses.dataclass(frozen=True)
class Fixed:
    name: Any


@dataclasses.dataclass(slots=True)
class Slotted:
    left: Any
    right: Any = None


@dataclasses.dataclass(frozen=True, slots=True)
class FixedSlotted:
    left: Any


@dataclasses.dataclass
class Mixed(Slotted):
    """Fields in slots and fields in a dict."""

    more: Any = 1


@dataclasses.dataclass(eq=False)
class Session:
    user: Any


@dataclasses.dataclass
class Empty:
    pass


class Pair(NamedTuple):
    left: Any
    right: Any = 0


class Loose(Pair):
    """Extends a NamedTuple, and so has room for attributes that are no fields."""


class Nothing(NamedTuple):
    pass


class Colour(Enum):
    RED = 1


class Other(Enum):
    """Takes the name of another class."""


class Word(str):
    pass


CLASSES = (Order, Fixed, Slotted, FixedSlotted, Mixed, Session, Empty, Pair, Loose, Nothing, Colour)
HERE, STRANGER = Codec(types=CLASSES), Codec()

NATIVES = [None, True, 2**70, -0.0, math.inf, "é\ud800", b"\0", (1, (2.0, ())), "x\ny"]
ROWS: list[Any] = [
    [],
    [1],
    NATIVES,
    [*range(9)],
    [*range(9), (1,)],
    {},
    {"id": 1, "name": "abc"},
    {1: (2,), b"b": None, 1.5: 0, None: "x"},
    Order(1),
    Order((1, "a"), 2),
    Fixed(0.5),
    Slotted(1, "b"),
    FixedSlotted(b"c"),
    Empty(),
    Pair(1, (2, 3)),
    Nothing(),
]


def picture(value: Any) -> Any:
    """Return something that two values share only if they are equal in value and in type."""
    return type(value), to_json(value), HERE.encode(value)


@pytest.mark.parametrize("value", ROWS, ids=repr)
def test_flat_values_are_laid_out_as_rows(value: Any) -> None:
    before = picture(value)
    row = freeze(value, HERE)
    assert isinstance(row, list)
    assert row[0] is not ENCODED
    (there,) = pack_batch([row])
    for form in (row, there, copy.deepcopy(row), pickle.loads(pickle.dumps(row))):
        assert picture(thaw(form, HERE)) == before


@pytest.mark.parametrize("value", ROWS, ids=repr)
@pytest.mark.parametrize("codec", [HERE, STRANGER, pickle.loads(pickle.dumps(HERE)), HERE.reader()])
def test_a_row_gives_the_bytes_of_its_value_whether_or_not_its_class_is_known(value: Any, codec: Codec) -> None:
    row = freeze(value, HERE)
    assert encoded(row, codec) == Encoded(HERE.encode(value))
    assert value_shown(row, codec, 4096) == value_shown(Encoded(HERE.encode(value)), codec, 4096)
    assert value_shown(row, codec, 1) in ({"$size": len(HERE.encode(value))}, to_json(value))


def test_an_instance_of_a_class_that_is_not_known_comes_as_what_stands_for_it() -> None:
    assert thaw(freeze(Slotted(1, 2), HERE), STRANGER) == Opaque(f"{__name__}:Slotted", {"left": 1, "right": 2})
    assert thaw(freeze(Pair(1, 2), HERE), STRANGER) == Opaque(f"{__name__}:Pair", [1, 2])
    session = thaw(freeze(Session(1), HERE), STRANGER)
    assert isinstance(session, Opaque)
    assert session.by_identity


def test_what_becomes_of_a_value_after_the_send_does_not_show() -> None:
    order, slotted, items, table = Order(1), Slotted(1), [1, 2], {"a": 1}
    values: list[Any] = [order, slotted, items, table]
    expected = list(map(picture, values))
    frozen = [freeze(value, HERE) for value in values]
    order.number = slotted.left = "changed"
    items.append(3)
    table.clear()
    assert [picture(thaw(row, HERE)) for row in frozen] == expected


@pytest.mark.parametrize("value", [[1], {"a": 1}, Order(1), Slotted(1), Pair(1)], ids=repr)
def test_each_value_that_is_made_of_a_row_is_a_new_one(value: Any) -> None:
    row = freeze(value, HERE)
    first, second = thaw(row, HERE), thaw(row, HERE)
    assert first is not second
    if isinstance(first, (list, dict)):
        first.clear()
    elif not isinstance(first, tuple):
        for field in dataclasses.fields(first):  # type: ignore[arg-type]
            setattr(first, field.name, "changed")
    assert picture(thaw(row, HERE)) == picture(second) == picture(value)


def nested(depth: int) -> object:
    value: object = ()
    for _ in range(depth - 1):
        value = (value,)
    return value


@pytest.mark.parametrize("part", [[1], {}, {1}, bytearray(b"x"), Decimal(1), Colour.RED, ([],), nested(51)], ids=repr)
def test_a_value_with_anything_else_in_it_is_left_to_the_codec(part: Any) -> None:
    values: list[Any] = [[part], [*range(9), part], {"a": part}, Order(part), Slotted(1, part), Pair(part), Fixed(part)]
    for value in values:
        frozen = freeze(value, HERE)
        assert frozen == [ENCODED, HERE.encode(value)]
        assert picture(thaw(frozen, HERE)) == picture(value)


@pytest.mark.parametrize("value", [Mixed(1), Loose(1), Colour.RED, OrderedDict(a=1), {(1, 2): 3}, Decimal(1)], ids=repr)
def test_kinds_out_of_the_common_are_left_to_the_codec(value: Any) -> None:
    frozen = freeze(value, HERE)
    assert frozen == [ENCODED, HERE.encode(value)]
    assert picture(thaw(frozen, HERE)) == picture(value)


def with_attribute(value: Any, **attributes: object) -> Any:
    vars(value).update(attributes)
    return value


def without(value: Any, name: str) -> Any:
    delattr(value, name)
    return value


@pytest.mark.parametrize(
    ("value", "where"),
    [
        ([1, Word("a")], "payload[1]"),
        ({"a": Word("a")}, "payload.a"),
        ({Word("a"): 1}, "payload.keys()[0]"),
        (Order(1, object()), None),
        (Order(object()), "payload.number"),
        (Slotted(1, Word("a")), "payload.right"),
        (Pair(1, Word("a")), "payload.right"),
        (with_attribute(Order(1), note=2), "payload"),
        (with_attribute(without(Order(1), "number"), note=2), "payload"),
        (without(Order(1), "number"), "payload"),
        (without(Slotted(1), "right"), "payload"),
        (tuple.__new__(Pair, (1,)), "payload"),
        (Opaque("m:A", 1j), "payload"),
    ],
)
def test_what_the_codec_refuses_is_never_a_row(value: object, where: str | None) -> None:
    if where is None:
        # What __post_init__ made of it is a str.
        assert type(freeze(value, HERE)) is list
        return
    with pytest.raises(CodecError) as caught:
        freeze(value, HERE)
    assert caught.value.where == where


def test_a_default_that_its_class_keeps_is_sent() -> None:
    order = without(Order(1), "done")
    assert picture(thaw(freeze(order, HERE), HERE)) == picture(order)


def test_attributes_in_another_order_give_the_same_row() -> None:
    order = Order(1)
    vars(order)["number"] = vars(order).pop("number")
    assert freeze(order, HERE) == freeze(Order(1), HERE)


def test_a_dict_of_another_kind_is_looked_at_properly() -> None:
    order = Order(1)
    order.__dict__ = OrderedDict(vars(order))
    frozen = freeze(order, HERE)
    assert frozen == [ENCODED, HERE.encode(order)]
    assert picture(thaw(frozen, HERE)) == picture(Order(1))


def test_a_class_whose_name_no_program_can_write_is_left_to_the_codec() -> None:
    odd = dataclasses.make_dataclass("odd\nname", ["a"])
    codec = Codec(types=(odd,))
    assert freeze(odd(1), codec) == [ENCODED, codec.encode(odd(1))]


def changed(name: str, cls: type) -> Codec:
    """Return a codec to which the class of this name is another."""
    cls.__qualname__, cls.__module__ = name, __name__
    return Codec(types=(cls,))


def test_a_class_that_has_changed_since_is_named() -> None:
    row = freeze(Slotted(1, 2), HERE)
    fewer = changed("Slotted", dataclasses.make_dataclass("Slotted", ["left"]))
    with pytest.raises(CodecError, match=r"test_rows:Slotted no longer has the fields"):
        thaw(row, fewer)
    with pytest.raises(CodecError, match=r"test_rows:Slotted is a class of another kind now"):
        thaw(row, changed("Slotted", Other))
    by_identity = changed("Slotted", dataclasses.make_dataclass("Slotted", ["left", "right"], eq=False))
    made: Any = thaw(row, by_identity)
    assert (made.left, made.right) == (1, 2)


@pytest.mark.parametrize(
    "damaged",
    [
        [],
        [None][:0],
        [True],
        [True, 1],
        [7],
        [[]],
        ["no head"],
        ["C\nm:A\na"],
        ["E\nm:A\na", 1],
        [1.5, 2],
        [False],
        [False, 1],
        [False, b"\xc1"],
    ],
)
def test_whatever_is_wrong_with_a_row_is_a_codec_error(damaged: Any) -> None:
    with pytest.raises(CodecError):
        thaw(damaged, HERE)


def test_a_row_of_too_few_or_too_many_parts_is_a_codec_error() -> None:
    for value in (Order(1), Slotted(1, 2), Pair(1, 2)):
        row = freeze(value, HERE)
        assert isinstance(row, list)
        for damaged in (row[:-1], [*row, 1]):
            with pytest.raises(CodecError):
                thaw(damaged, HERE)


# --- In a node. ---


class Teller(Node):
    """Send one of each and change it; keep what comes and change it."""

    types = CLASSES
    transient = ("got",)

    def setup(self, ctx: Context) -> None:
        self.got: list[Any] = []

    def on_command(self, ctx: Context, command: Any) -> Any:
        self.order, items, table = Order(1), [1, 2], {"a": 1}
        for payload in (self.order, items, table):
            ctx.send("B", payload)
        self.order.number = 5
        items.clear()
        table.clear()
        ctx.send("B", self.order)

    def on_message(self, ctx: Context, sender: str, payload: Any) -> None:
        self.got.append(copy.copy(payload))
        if isinstance(payload, Order):
            payload.number = "changed"
        else:
            payload.clear()


def test_rows_in_flight_are_recorded_as_they_were_sent_and_handled_once() -> None:
    world = CoreWorld(graph("A<->B"), Teller, codec=HERE)
    world.cores["A"].command(0, STRANGER.encode("go"))
    world.step("A")
    world.cores["B"].initiate(snap("B"))
    world.deliver_all()
    later = Order(1)
    later.number = 5
    expected = [Order(1), [1, 2], {"a": 1}, later]
    world.settle()
    assert world.snapshots[snap("B")].channels["A", "B"] == tuple(expected)
    assert vars(world.nodes["B"])["got"] == expected
