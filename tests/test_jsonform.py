"""The JSON form: what stands as it is, what is tagged and how, and that nothing in it depends on the process."""

from __future__ import annotations

import dataclasses
import json
from collections import Counter, OrderedDict, defaultdict, deque
from datetime import date, datetime, time, timedelta, timezone
from decimal import Decimal
from enum import Enum, Flag
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any, NamedTuple
from uuid import UUID
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from test_codec import HERE, STRANGER, plain

from mpsnap.core.codec import MAX_DEPTH, Codec, Encoded, Opaque, Pickled
from mpsnap.core.jsonform import dumps, to_json


class Colour(Enum):
    RED = 1


class Right(Flag):
    READ = 1
    WRITE = 2


class Point(NamedTuple):
    x: Any
    y: Any


@dataclasses.dataclass
class Account:
    owner: str
    log: tuple[Any, ...] = ()


@dataclasses.dataclass(frozen=True)
class Key:
    name: str


PICKLED = Pickled(b"abc")
SHA256 = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"


def typed(name: str, value: object) -> dict[str, object]:
    return {"$type": name, "value": value}


@pytest.mark.parametrize(
    "value",
    [None, True, False, 0, -7, 2**70, 1.5, -0.0, "", "text", "$text", [], [1, [None]], {}, {"a": {"b": []}}],
    ids=repr,
)
def test_what_json_has_stands_as_it_is(value: object) -> None:
    assert to_json(value) == value
    assert type(to_json(value)) is type(value)
    assert json.loads(dumps(value)) == value


@pytest.mark.parametrize(
    ("value", "form"),
    [
        ((), {"$tuple": []}),
        ((1, (2.0, "x")), {"$tuple": [1, {"$tuple": [2.0, "x"]}]}),
        ({3, 1}, {"$set": [1, 3]}),
        (frozenset({"b", "a"}), typed("frozenset", ["a", "b"])),
        (b"\x00\xff", {"$bytes": "AP8="}),
        (bytearray(b"ab"), typed("bytearray", "YWI=")),
        (float("nan"), {"$float": "nan"}),
        (float("inf"), {"$float": "inf"}),
        (float("-inf"), {"$float": "-inf"}),
        ({1: "a", "1": "b"}, {"$map": [[1, "a"], ["1", "b"]]}),
        ({"$tuple": [1]}, {"$map": [["$tuple", [1]]]}),
        ({(1, 2): {None: b""}}, {"$map": [[{"$tuple": [1, 2]}, {"$map": [[None, {"$bytes": ""}]]}]]}),
        (datetime(2024, 1, 2, 3, 4, 5, 6), typed("datetime", "2024-01-02T03:04:05.000006")),
        (datetime(2024, 1, 2, tzinfo=timezone.utc), typed("datetime", "2024-01-02T00:00:00+00:00")),
        (datetime(2024, 7, 2, tzinfo=ZoneInfo("Europe/Berlin")), typed("datetime", "2024-07-02T00:00:00+02:00")),
        (date(2024, 1, 2), typed("date", "2024-01-02")),
        (time(3, 4, tzinfo=timezone(timedelta(hours=1))), typed("time", "03:04:00+01:00")),
        (timedelta(days=-1, microseconds=5), typed("timedelta", {"days": -1, "seconds": 0, "microseconds": 5})),
        (timezone(timedelta(hours=1)), typed("timezone", "UTC+01:00")),
        (ZoneInfo("Europe/Berlin"), typed("ZoneInfo", "Europe/Berlin")),
        (Decimal("1.10"), typed("Decimal", "1.10")),
        (Decimal("sNaN7"), typed("Decimal", "sNaN7")),
        (UUID(int=1), typed("UUID", "00000000-0000-0000-0000-000000000001")),
        (Path("/a/b"), typed("PosixPath", "/a/b")),
        (PurePosixPath("a"), typed("PurePosixPath", "a")),
        (PureWindowsPath("c:\\a"), typed("PureWindowsPath", "c:\\a")),
        (deque([1, (2,)], 3), typed("deque", {"items": [1, {"$tuple": [2]}], "maxlen": 3})),
        (deque(), typed("deque", {"items": [], "maxlen": None})),
        (Counter("aab"), typed("Counter", {"a": 2, "b": 1})),
        (Counter([1]), typed("Counter", {"$map": [[1, 1]]})),
        (OrderedDict(b=1, a=2), typed("OrderedDict", {"b": 1, "a": 2})),
        (defaultdict(list, {"a": [1]}), typed("defaultdict", {"factory": "list", "items": {"a": [1]}})),
        (defaultdict(None, {1: 2}), typed("defaultdict", {"factory": None, "items": {"$map": [[1, 2]]}})),
        (Colour.RED, typed("test_jsonform:Colour", "RED")),
        (Right.READ | Right.WRITE, typed("test_jsonform:Right", 3)),
        (Account("ann", (1,)), typed("test_jsonform:Account", {"owner": "ann", "log": {"$tuple": [1]}})),
        (Point(1, {2}), typed("test_jsonform:Point", {"x": 1, "y": {"$set": [2]}})),
        (Opaque("m:A", {"x": (1,)}), typed("m:A", {"x": {"$tuple": [1]}})),
        (Opaque("m:P", [1, b""]), typed("m:P", [1, {"$bytes": ""}])),
        (Opaque("m:E", "RED"), typed("m:E", "RED")),
        (PICKLED, typed("pickle", {"size": 3, "sha256": SHA256})),
        ({Key("b"), Key("a")}, {"$set": [typed("test_jsonform:Key", {"name": name}) for name in "ab"]}),
        (10**5000, typed("int", hex(10**5000))),
    ],
    ids=lambda value: type(value).__name__,
)
def test_all_else_is_tagged(value: object, form: object) -> None:
    assert to_json(value) == form
    assert json.loads(dumps(value)) == form


def test_order_is_kept() -> None:
    assert dumps({"b": 1, "a": {2: 0, 1: 0}}) == '{"b": 1, "a": {"$map": [[2, 0], [1, 0]]}}'


def test_text_is_ascii_and_indented_on_request() -> None:
    assert dumps({"k\u00e4se": "\ud800"}) == '{"k\\u00e4se": "\\ud800"}'
    assert dumps([1, (2,)], indent=1) == '[\n 1,\n {\n  "$tuple": [\n   2\n  ]\n }\n]'


@pytest.mark.parametrize("value", [Encoded(b""), [Encoded(b"")], object(), 1j, range(3), {"a": (lambda: 0)}, int])
def test_what_is_not_plain_is_a_type_error(value: object) -> None:
    with pytest.raises(TypeError, match="is not plain data"):
        to_json(value)


def test_a_pickle_is_shown_and_never_loaded(tmp_path: Path) -> None:
    class Trap:
        def __reduce__(self) -> tuple[Any, ...]:
            return Path.touch, (tmp_path / "unpickled",)

    data = Codec(pickle=True).encode([Trap()])
    form = to_json({"state": Codec().decode(data)})
    assert form == {"state": typed("pickle", to_json(Codec().decode(data))["value"])}  # type: ignore[index]
    assert not (tmp_path / "unpickled").exists()


def test_the_deepest_value_has_a_form() -> None:
    nested: Any = 0
    for _ in range(MAX_DEPTH):
        nested = {1: nested}
    assert dumps(Codec().decode(Codec().encode(nested))).count("$map") == MAX_DEPTH


def without_payloads(value: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    return value.filter(lambda made: "Encoded" not in repr(made))


@given(without_payloads(plain))
@settings(max_examples=150, deadline=None)
def test_every_kind_has_a_form(value: Any) -> None:
    """It is JSON, it survives being written and read, and it is that of the value after a round trip."""
    text = dumps(value)
    assert json.loads(text) == to_json(value)
    assert dumps(HERE.decode(HERE.encode(value))) == text


@given(without_payloads(plain))
@settings(max_examples=100, deadline=None)
def test_a_reader_sees_the_same(value: Any) -> None:
    """Without the program's classes the form is the same, but that it does not know a NamedTuple's field names."""
    if "Point" not in repr(value):
        assert to_json(STRANGER.decode(HERE.encode(value))) == to_json(value)
