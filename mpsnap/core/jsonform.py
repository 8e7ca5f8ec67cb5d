"""The JSON form of plain data, as every command prints it.

This module owns that form, and it is fixed: scripts read it. What JSON has stands as it is; everything else is an
object with one key that begins with `$`, or with `$type` and `value`. It must not know where the text goes.

    tuple                  {"$tuple": [...]}
    set                    {"$set": [...]}, in an order that depends on the elements alone
    bytes                  {"$bytes": base64}
    dict                   an object; {"$map": [[key, value], ...]} unless every key is a str without a leading $
    float                  a number; {"$float": "nan" | "inf" | "-inf"} for what JSON has no number for
    pickle                 {"$type": "pickle", "value": {"size": n, "sha256": hex}}; it is never loaded
    a class `Name` in `m`  {"$type": "m:Name", "value": ...}: an object of fields, or the name of an Enum's member
    any other kind         {"$type": its name, "value": ...}

Rules: the form tells every kind from every other, it does not depend on the process that makes it, and making it
runs no code of the user's.
"""

from __future__ import annotations

import base64
import json
import math
from collections import Counter, OrderedDict, defaultdict, deque
from collections.abc import Callable
from datetime import date, datetime, time, timedelta, timezone
from decimal import Decimal
from types import NoneType
from typing import Any
from uuid import UUID
from zoneinfo import ZoneInfo

from mpsnap.core.kinds import ENUM, NAMED_TUPLE, PATHS, Encoded, Opaque, Pickled, class_name, shape_of, take_instance

#: An int of more bits is written in hex: Python refuses to write, and many readers to read, that many digits.
_MAX_INT_BITS = 14_000


def to_json(value: object) -> object:
    """Return the JSON form of plain data: a tree of None, bool, int, float, str, list and dict.

    Args:
        value: What `Codec.decode` returned, or what `Codec.encode` would accept; nothing `Encoded` may be in it.

    Raises:
        TypeError: Something in it is not plain data.

    Example:
        >>> to_json({"pair": (1, float("nan"))})
        {'pair': {'$tuple': [1, {'$float': 'nan'}]}}
    """
    kind = type(value)
    if kind in (NoneType, bool, str):
        return value
    form = _FORMS.get(kind)
    return _instance(value) if form is None else form(value)


def dumps(value: object, indent: int | None = None) -> str:
    """Return the JSON text of plain data, in ASCII.

    Raises:
        TypeError: Something in it is not plain data.
    """
    return json.dumps(to_json(value), ensure_ascii=True, allow_nan=False, indent=indent)


def _tagged(name: str, value: object) -> dict[str, object]:
    return {"$type": name, "value": value}


def _list(items: Any) -> list[object]:
    return [to_json(item) for item in items]


def _set(items: Any) -> list[object]:
    return sorted(_list(items), key=lambda item: json.dumps(item, sort_keys=True))


def _int(value: int) -> object:
    return value if value.bit_length() <= _MAX_INT_BITS else _tagged("int", hex(value))


def _float(value: float) -> object:
    return value if math.isfinite(value) else {"$float": repr(value)}


def _base64(value: bytes | bytearray) -> str:
    return base64.b64encode(value).decode("ascii")


def _dict(value: dict[Any, Any]) -> object:
    if all(type(key) is str and not key.startswith("$") for key in value):
        return {key: to_json(item) for key, item in value.items()}
    return {"$map": [[to_json(key), to_json(item)] for key, item in value.items()]}


def _clock(value: datetime | time) -> object:
    # A ZoneInfo shows as its offset at that moment: the ISO form has no place for its key.
    return _tagged(type(value).__name__, value.isoformat())


def _timedelta(value: timedelta) -> object:
    parts = {"days": value.days, "seconds": value.seconds, "microseconds": value.microseconds}
    return _tagged("timedelta", parts)


def _deque(value: deque[Any]) -> object:
    return _tagged("deque", {"items": _list(value), "maxlen": value.maxlen})


def _defaultdict(value: defaultdict[Any, Any]) -> object:
    factory: Any = value.default_factory
    return _tagged("defaultdict", {"factory": factory and factory.__name__, "items": _dict(value)})


def _text(value: object) -> object:
    return _tagged(type(value).__name__, str(value))


def _pickled(value: Pickled) -> object:
    return _tagged("pickle", {"size": value.size, "sha256": value.sha256})


def _opaque(value: Opaque) -> object:
    return _tagged(value.name, to_json(value.value))


def _instance(value: object) -> object:
    """Return the form of an instance of a user's class; the same as that of its `Opaque`, but for field names."""
    shape = None if type(value) is Encoded else shape_of(type(value))
    if shape is None:
        raise TypeError(f"a value of type {class_name(type(value))} is not plain data")
    name, *parts = take_instance(value, shape)
    if shape.tag == NAMED_TUPLE:
        return _tagged(name, {field: to_json(part) for field, part in zip(shape.fields, parts, strict=True)})
    return _tagged(name, parts[0] if shape.tag == ENUM else _dict(parts[0]))


_FORMS: dict[type, Callable[[Any], object]] = {
    int: _int,
    float: _float,
    list: _list,
    dict: _dict,
    tuple: lambda value: {"$tuple": _list(value)},
    set: lambda value: {"$set": _set(value)},
    frozenset: lambda value: _tagged("frozenset", _set(value)),
    bytes: lambda value: {"$bytes": _base64(value)},
    bytearray: lambda value: _tagged("bytearray", _base64(value)),
    datetime: _clock,
    time: _clock,
    date: lambda value: _tagged("date", value.isoformat()),
    timedelta: _timedelta,
    timezone: _text,
    ZoneInfo: _text,
    Decimal: _text,
    UUID: _text,
    deque: _deque,
    Counter: lambda value: _tagged("Counter", _dict(value)),
    OrderedDict: lambda value: _tagged("OrderedDict", _dict(value)),
    defaultdict: _defaultdict,
    Pickled: _pickled,
    Opaque: _opaque,
    **dict.fromkeys(PATHS, _text),
}
