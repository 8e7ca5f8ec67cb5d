"""Rows: what the commonest payloads that can change become when they are sent, for as long as they stay in a cluster.

This module owns the form of rows, and how they are laid and what is made of them. It must not know the codec's bytes:
a row is another form of the same values, and by the codec whatever leaves the cluster is written.

A row is a list that nobody but the message holds, and that is never changed: `[head, part, part...]`, its parts what
cannot change. A flat list, a flat dict, an instance of a dataclass or NamedTuple with flat fields are laid out so, in a
quarter of the time that encoding them takes, and `marshal` carries a row as it is (`batch`). Of any other value, the
one part is the codec's bytes. A value that is no tree or has a flaw of any kind is never laid out otherwise: the codec
looks at it properly, and says what is wrong with it. No fixed payload that is no row is a list, so its type tells it.

A head says all that is needed to make the value, or what stands for it where its class is not known.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from mpsnap.core.errors import CodecError
from mpsnap.core.kinds import (
    DATACLASS,
    IDENTITY_DATACLASS,
    KINDS,
    NAMED_TUPLE,
    NATIVE,
    Shape,
    make_instance,
    make_opaque,
    told,
)
from mpsnap.core.walk import Classes

Row = list[Any]
Layer = Callable[[Any], Row | None]
Maker = Callable[[Row], object]

#: How deep the tuples of a payload may be that is sent without being encoded.
MAX_FIXED_DEPTH = 50

#: The heads of lists, dicts and the codec's bytes: what marshal writes in one byte. Every other head is a str.
_LIST, _DICT, ENCODED = None, True, False

_DATACLASSES = frozenset({DATACLASS, IDENTITY_DATACLASS})

#: Up to how many items a loop looks at their types faster than a method of a set does.
_SEVERAL = 8

#: Between the parts of a head: no name of a class that can be written in a program has it.
_SEPARATOR = "\n"


def is_fixed(value: Any, depth: int = MAX_FIXED_DEPTH) -> bool:
    """Return whether a value cannot change: None, bool, int, float, str, bytes, and tuples of these."""
    kind = type(value)
    if kind is not tuple:
        return kind in NATIVE
    if not depth:
        return False
    for item in value:  # noqa: SIM110 - to set up a generator takes longer than the loop
        if type(item) not in NATIVE and not is_fixed(item, depth - 1):
            return False
    return True


def is_row(value: list[Any]) -> bool:
    """Return whether a list is of the form of a row; what can be made of it, `Rows.make` finds out."""
    if not value:
        return False
    head, *parts = value
    if head is ENCODED:
        return len(parts) == 1 and type(parts[0]) is bytes
    if head is _DICT:
        held = parts[0] if len(parts) == 1 and type(parts[0]) is dict else {None: []}
        return all(type(key) in NATIVE and is_fixed(item) for key, item in held.items())
    return (head is _LIST or type(head) is str) and all(map(is_fixed, parts))


class Rows:
    """Lay payloads out as rows, and make them again.

    `layers` has, by the type of a value, what returns its row, or None if the value is to be encoded.

    Args:
        classes: The user's classes that may be kept.
        decode: Returns the value that the codec's bytes stand for.
    """

    __slots__ = ("_makers", "layers")

    def __init__(self, classes: Classes, decode: Callable[[bytes], object]) -> None:
        self.layers: Mapping[type, Layer] = _Layers(classes)
        self._makers = _Makers(classes)
        self._makers[ENCODED] = lambda row: decode(row[1])

    def make(self, row: Row) -> object:
        """Return the value that was laid out, a new one at every call; an `Opaque` if its class is not known here.

        Raises:
            CodecError: It is no row, or its class has changed.
        """
        try:
            return self._makers[row[0]](row)
        except CodecError:
            raise
        except Exception as error:
            raise CodecError(f"this is no payload that was sent from here: {told(error)}") from error


class _Layers(dict[type, Layer]):
    """Find what lays out the values of a type, and keep it where it is not found at once."""

    def __init__(self, classes: Classes) -> None:
        super().__init__({list: _lay_list, dict: _lay_dict})
        self._classes = classes

    def __missing__(self, kind: type) -> Layer:
        shape = None if kind in KINDS else self._classes.shape(kind)
        if shape is None:
            return _lay_nothing
        layer = self[kind] = _layer_of(shape)
        return layer


class _Makers(dict[Any, Maker]):
    """Find what makes the values of rows with some head. Of a class that is not known it may be another next time."""

    def __init__(self, classes: Classes) -> None:
        super().__init__({_LIST: _make_list, _DICT: _make_dict})
        self._classes = classes

    def __missing__(self, head: str) -> Maker:
        tag, name, *fields = head.split(_SEPARATOR)
        shape = self._classes.find(name)
        if shape is None:
            return lambda row: _make_opaque(tag.encode(), name, fields, row)
        if head != _head(shape):
            # Of another kind now, or with other fields: this says what is wrong, or makes what can be made.
            return lambda row: _make_changed(shape, tag.encode(), fields, row)
        # Only what is laid out like that has such a head, so the shape is a plain one.
        maker = self[head] = _maker_of(shape)
        return maker


def _lay_nothing(value: object) -> None:
    return None


def _lay_list(value: list[Any]) -> Row | None:
    row = [_LIST, *value]
    if len(row) > _SEVERAL and NATIVE.issuperset(map(type, row)):
        return row
    for item in row:
        if type(item) not in NATIVE and not is_fixed(item):
            return None
    return row


def _make_list(row: Row) -> object:
    return row[1:]


def _lay_dict(value: dict[Any, Any]) -> Row | None:
    held = value.copy()
    for key, item in held.items():
        if type(key) not in NATIVE or (type(item) not in NATIVE and not is_fixed(item)):
            return None
    return [_DICT, held]


def _make_dict(row: Row) -> object:
    _, held = row
    return dict.copy(held)


# ------------------------------------------------------------------- classes


def _head(shape: Shape) -> str:
    return _SEPARATOR.join((shape.tag.decode(), shape.name, *shape.fields))


def _layer_of(shape: Shape) -> Layer:
    """Return what lays an instance out; for a class out of the common, what leaves that to the codec."""
    head, fields = _head(shape), shape.fields
    if head.split(_SEPARATOR) != [shape.tag.decode(), shape.name, *fields]:
        return _lay_nothing
    names = [f"v{k}" for k in range(len(fields))]
    if _is_plain_tuple(shape):
        looks = [f"if len(value) != {len(names)}: return None", f"[{', '.join(names)}] = value"]
    elif _has_plain_dict(shape):
        # As many as there are fields, and each field among them: so there is nothing else.
        looks = ["held = value.__dict__", f"if type(held) is not dict or len(held) != {len(names)}: return None"]
        looks += [f"{v} = held[{field!r}]" for v, field in zip(names, fields, strict=True)]
    elif _has_plain_slots(shape):
        looks = ["pass", *(f"{v} = get{v}(value)" for v in names)]
    else:
        return _lay_nothing
    looks += [f"if type({v}) not in NATIVE and not is_fixed({v}): return None" for v in names]
    body = ["try:", *(f"    {line}" for line in looks), "except (KeyError, AttributeError): return None"]
    body.append(f"return [head, {', '.join(names)}]")
    getters = {f"get{v}": shape.slots[field].__get__ for v, field in zip(names, fields, strict=True) if shape.slots}
    layer: Layer = _compiled("value", body, head=head, NATIVE=NATIVE, is_fixed=is_fixed, **getters)
    return layer


def _maker_of(shape: Shape) -> Maker:
    """Return what makes instances of rows of exactly this shape; none of the class's own code makes or checks them."""
    cls, fields = shape.cls, shape.fields
    names = [f"v{k}" for k in range(len(fields))]
    if _is_plain_tuple(shape):
        return lambda row: make_instance(shape, row[1:])
    setters: dict[str, Any] = {}
    if _has_plain_dict(shape):
        targets = [f"held[{field!r}]" for field in fields]
        body = ["value = new(cls)", "held = value.__dict__", f"[{', '.join(['_', *targets])}] = row"]
    else:
        body = ["value = new(cls)", f"[{', '.join(['_', *names])}] = row", *(f"set{v}(value, {v})" for v in names)]
        setters = {f"set{v}": shape.slots[field].__set__ for v, field in zip(names, fields, strict=True)}
    maker: Maker = _compiled("row", [*body, "return value"], new=object.__new__, cls=cls, **setters)
    return maker


def _compiled(argument: str, body: list[str], **names: Any) -> Any:
    """Return a function of this body: a loop over the fields would take half as long again.

    No name of a user's stands in it but as a quoted str.
    """
    text = f"def made({argument}):\n" + "".join(f"    {line}\n" for line in body)
    exec(text, names)
    return names["made"]


def _is_plain_tuple(shape: Shape) -> bool:
    return shape.tag == NAMED_TUPLE and not shape.cls.__dictoffset__


def _has_plain_dict(shape: Shape) -> bool:
    return shape.tag in _DATACLASSES and bool(shape.cls.__dictoffset__) and not shape.slots


def _has_plain_slots(shape: Shape) -> bool:
    return shape.tag in _DATACLASSES and not shape.cls.__dictoffset__ and shape.slots.keys() == shape.field_set


def _make_changed(shape: Shape, tag: bytes, fields: list[str] | tuple[str, ...], row: Row) -> object:
    if shape.tag != tag and not {shape.tag, tag} <= _DATACLASSES:
        raise TypeError(f"{shape.name} is a class of another kind now")
    return make_instance(shape, _parts(tag, fields, row))


def _make_opaque(tag: bytes, name: str, fields: list[str], row: Row) -> object:
    return make_opaque(tag, name, _parts(tag, fields, row))


def _parts(tag: bytes, fields: list[str] | tuple[str, ...], row: Row) -> list[Any]:
    return row[1:] if tag == NAMED_TUPLE else [dict(zip(fields, row[1:], strict=True))]
