"""Snapshots and values of which only the JSON form is at hand, told by another process: as tables for people.

Pure functions. They are shown as the values themselves would be, which is what `tables` does: so they are first made
values again, as far as plain data goes. Instances of the user's classes become stand-ins, pickles stay what is told of
them, and a form that makes no sense is shown as it stands.
"""

from __future__ import annotations

import base64
import builtins
from collections import Counter, OrderedDict, defaultdict, deque
from collections.abc import Callable, Mapping
from datetime import date, datetime, time, timedelta
from decimal import Decimal
from typing import Any, NamedTuple, cast
from uuid import UUID
from zoneinfo import ZoneInfo

from mpsnap.core.kinds import PATHS, Opaque
from mpsnap.core.snapshot import GlobalSnapshot
from mpsnap.views.tables import snapshot_table


class _Node(NamedTuple):
    state: object
    sent: Mapping[str, int]
    received: Mapping[str, int]


class _Snapshot(NamedTuple):
    """Hold what a table shows of a snapshot."""

    number: int
    initiators: tuple[str, ...]
    duration: float | None
    verified: bool
    nodes: Mapping[str, _Node]
    channels: Mapping[tuple[str, str], list[object]]
    busy: Mapping[tuple[str, str], list[object]]
    in_flight: int


def told_snapshot_table(document: Mapping[str, Any], full: bool = False) -> str:
    """Return a snapshot, given as its document, in the words and tables in which it would show itself."""
    nodes = {
        name: _Node(from_json(node["state"]), node["sent"], node["received"])
        for name, node in document["nodes"].items()
    }
    channels = {
        (channel["src"], channel["dst"]): list(map(from_json, channel["messages"])) for channel in document["channels"]
    }
    told = _Snapshot(
        number=document["number"],
        initiators=tuple(document["initiators"]),
        duration=document["duration_s"],
        verified=document["verified"],
        nodes=nodes,
        channels=channels,
        busy={channel: messages for channel, messages in channels.items() if messages},
        in_flight=sum(map(len, channels.values())),
    )
    # It has all that a table looks at. A true one could not be made: it is put together from the codec's bytes.
    return snapshot_table(cast(GlobalSnapshot, told), full=full)


def from_json(form: Any) -> Any:
    """Return the value that has this JSON form, or what comes closest to it.

    >>> from_json({"pair": {"$tuple": [1, {"$float": "nan"}]}})
    {'pair': (1, nan)}
    """
    if isinstance(form, list):
        return [from_json(item) for item in form]
    if not isinstance(form, dict):
        return form
    make: Callable[[Any], Any] | None = None
    inner: Any = None
    if len(form) == 1:
        ((key, inner),) = form.items()
        make = _TAGS.get(key)
    elif form.keys() == {"$type", "value"} and isinstance(form["$type"], str):
        inner, kind = form["value"], form["$type"]
        make = _KINDS.get(kind) or (_opaque(kind) if ":" in kind else None)
    if make is not None:
        try:
            return make(inner)
        except (TypeError, ValueError, KeyError, ArithmeticError, AttributeError):
            return form
    return {key: from_json(item) for key, item in form.items()}


def _items(inner: Any) -> list[Any]:
    if not isinstance(inner, list):
        raise TypeError
    return [from_json(item) for item in inner]


def _map(inner: Any) -> dict[Any, Any]:
    return {from_json(key): from_json(item) for key, item in inner}


def _entries(inner: Any) -> Any:
    entries = from_json(inner)
    if not isinstance(entries, dict):
        raise TypeError
    return entries


def _defaultdict(inner: Any) -> Any:
    factory = inner["factory"]
    # A type and nothing else: `exit` is a builtin too.
    made = None if factory is None else vars(builtins)[factory]
    if made is not None and not isinstance(made, type):
        raise TypeError
    return defaultdict(made, _entries(inner["items"]))


def _opaque(name: str) -> Callable[[Any], Any]:
    return lambda inner: Opaque(name, from_json(inner))


_TAGS: dict[str, Callable[[Any], Any]] = {
    "$tuple": lambda inner: tuple(_items(inner)),
    "$set": lambda inner: set(_items(inner)),
    "$bytes": lambda inner: base64.b64decode(inner),
    "$map": _map,
    "$float": float,
}
_KINDS: dict[str, Callable[[Any], Any]] = {
    "int": lambda inner: int(inner, 16),
    "frozenset": lambda inner: frozenset(_items(inner)),
    "bytearray": lambda inner: bytearray(base64.b64decode(inner)),
    "datetime": datetime.fromisoformat,
    "date": date.fromisoformat,
    "time": time.fromisoformat,
    "timedelta": lambda inner: timedelta(**inner),
    "Decimal": Decimal,
    "UUID": UUID,
    "ZoneInfo": ZoneInfo,
    "deque": lambda inner: deque(_items(inner["items"]), inner["maxlen"]),
    "Counter": lambda inner: Counter(_entries(inner)),
    "OrderedDict": lambda inner: OrderedDict(_entries(inner)),
    "defaultdict": _defaultdict,
    **{kind.__name__: kind for kind in PATHS},
}
