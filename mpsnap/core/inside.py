"""What is inside of plain data, seen in one way whatever the kind: for whoever walks through values to look.

This module owns which kinds have an inside and when two values are exactly the same. It must not know what is looked
for. Exactly means by type too: 1, 1.0 and True are three values, and so are 0.0 and -0.0; a nan is the same as a nan.

An instance of a user's class and the `Opaque` that stands for it elsewhere have the same inside.
"""

from __future__ import annotations

from collections import OrderedDict, defaultdict, deque
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from functools import lru_cache
from types import NoneType
from typing import Any, NamedTuple

from mpsnap.core.jsonform import dumps
from mpsnap.core.kinds import (
    CLOCKS,
    DATACLASS,
    ENUM,
    IDENTITY_DATACLASS,
    KINDS,
    MAPPINGS,
    NAMED_TUPLE,
    NATIVE,
    Opaque,
    Pickled,
    attributes,
    shape_of,
    take_instance,
)

_shape_of = lru_cache(maxsize=256)(shape_of)

#: Kinds of which two values of the same type are the same if they are equal.
_PLAINLY_EQUAL = NATIVE - {float}
_BARE = frozenset({int, bool, NoneType})


class Inside(NamedTuple):
    """Show what a value holds; all but one of the last four are None, and all of them for a value with no inside.

    Two values can be compared part by part if their `label` is the same; otherwise one is in place of the other.
    """

    label: object
    entries: Mapping[Any, object] | None = None
    fields: Mapping[str, object] | None = None
    items: Sequence[object] | None = None
    elements: Collection[Any] | None = None
    #: Of a NamedTuple whose class is known, what its items are called.
    names: tuple[str, ...] = ()


def inside(value: Any) -> Inside:
    """Return what a value holds."""
    kind = type(value)
    if kind in NATIVE:
        return Inside(kind)
    if kind is dict:
        return Inside(kind, entries=value)
    if kind is list or kind is tuple:
        return Inside(kind, items=value)
    if kind is set or kind is frozenset:
        return Inside(kind, elements=value)
    if kind in MAPPINGS:
        return Inside((kind, value.default_factory) if kind is defaultdict else kind, entries=value)
    if kind is deque:
        return Inside((kind, value.maxlen), items=value)
    if kind is Opaque:
        return _inside_opaque(value)
    if kind in KINDS or kind is Pickled:
        return Inside(kind)
    return _inside_instance(value)


def _inside_opaque(value: Opaque) -> Inside:
    held: Any = value.value
    if isinstance(held, dict):
        return Inside((DATACLASS, value.name), fields=held)
    return Inside((NAMED_TUPLE, value.name), items=held) if isinstance(held, list) else Inside((ENUM, value.name))


def _inside_instance(value: Any) -> Inside:
    kind: Any = type(value)
    shape = _shape_of(kind)
    if shape is None:
        return Inside(kind)
    if shape.tag == NAMED_TUPLE:
        return Inside((NAMED_TUPLE, shape.name), items=value, names=shape.fields)
    if shape.tag in (DATACLASS, IDENTITY_DATACLASS):
        held = attributes(value, shape)
        return Inside((DATACLASS, shape.name), fields={name: held[name] for name in shape.fields if name in held})
    return Inside((ENUM, shape.name))


def same_leaf(one: Any, other: Any) -> bool:
    """Return whether two values with no inside and the same label are exactly the same."""
    if one is other:
        return True
    kind = type(one)
    if kind in _PLAINLY_EQUAL:
        return bool(one == other)
    if kind is float:
        return bool(one.hex() == other.hex())
    if kind in CLOCKS:
        *ours, our_zone = KINDS[kind].take(one)
        *theirs, their_zone = KINDS[kind].take(other)
        return ours == theirs and type(our_zone) is type(their_zone) and same_leaf(our_zone, their_zone)
    if kind in KINDS:
        return KINDS[kind].take(one) == KINDS[kind].take(other)
    if kind is Pickled:
        return bool(one.data == other.data)
    mine, yours = _member(one), _member(other)
    return type(mine) is type(yours) and mine == yours


def _member(value: Any) -> object:
    """Return what tells one member of an Enum from the others; of what is no plain data, the value itself."""
    if type(value) is Opaque:
        return value.value
    kind: Any = type(value)
    shape = _shape_of(kind)
    return value if shape is None else take_instance(value, shape)[1]


def tokens(keys: Iterable[Any]) -> Iterator[tuple[object, Any]]:
    """Yield each key with its token; keys have the same token if, and only if, they are exactly the same.

    But for instances that compare by identity: of those that look the same, the n-th here goes with the n-th there.
    """
    met: dict[object, int] = {}
    for key in keys:
        kind = type(key)
        if kind is str or kind is bytes:
            yield key, key
        elif kind in _BARE:
            yield (kind, key), key
        else:
            looks = dumps(key)
            met[looks] = met.get(looks, 0) + 1
            yield (looks, met[looks]), key


def in_order(value: object) -> bool:
    """Return whether the order of the entries is a part of a mapping."""
    return type(value) is OrderedDict
