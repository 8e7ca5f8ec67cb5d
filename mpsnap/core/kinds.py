"""The kinds of plain data: which values can be kept exactly, and how each is taken apart and put together again.

This module owns the tables of kinds, the shape of a user's Enum, dataclass or NamedTuple, and the three stand-ins
`Encoded`, `Pickled` and `Opaque`. It must not know the wire format beyond one tag per kind, nor which of the user's
classes are allowed: both belong to the codec.

Rules for whoever adds a kind:
- it is recognised by its exact type, never by `isinstance`: a subclass may hold more than its base can keep;
- `take` gives parts that are plain data themselves; `make` is given whatever a damaged file holds, so it must raise
  on parts of the wrong shape instead of making an odd value of them;
- equal in type and value after `make(*take(value))`, or it is not a kind.
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections import Counter, OrderedDict, defaultdict, deque
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from datetime import date, datetime, time, timedelta, timezone
from decimal import Decimal
from enum import Enum

# Paths are plain data: they are taken apart and built as values, and nothing here ever asks the disk about one.
from pathlib import PosixPath, PurePosixPath, PureWindowsPath
from types import MemberDescriptorType, NoneType
from typing import Any, NamedTuple
from uuid import UUID, SafeUUID
from zoneinfo import ZoneInfo

from mpsnap.core.errors import CodecError


@dataclasses.dataclass(frozen=True, slots=True, init=False)
class Encoded:
    """Hold a value as the codec's bytes, where something fixed is kept or compared."""

    #: What `Codec.encode` returned; never decoded on the way.
    data: bytes

    def __init__(self, data: bytes) -> None:
        # The __init__ of a frozen dataclass looks up object.__setattr__ each time, and one is made for every message.
        _set_data(self, data)


_set_data: Callable[[Encoded, bytes], None] = vars(Encoded)["data"].__set__


@dataclasses.dataclass(frozen=True, slots=True, repr=False)
class Pickled:
    """Hold a pickle without loading it: whoever merely reads a snapshot gets its size and its hash."""

    #: The pickle itself.
    data: bytes

    @property
    def size(self) -> int:
        """Return the number of bytes."""
        return len(self.data)

    @property
    def sha256(self) -> str:
        """Return the hash of the bytes, as hex digits."""
        return hashlib.sha256(self.data).hexdigest()

    def load(self) -> object:
        """Unpickle the value. This runs whatever code the bytes name: only for bytes you trust.

        Raises:
            CodecError: The bytes are not a pickle, or what they name cannot be found or raised here.
        """
        import pickle

        try:
            return pickle.loads(self.data)
        except Exception as error:
            raise CodecError(
                f"a pickle of {self.size} bytes cannot be loaded: {told(error)}",
                hint="load it where the program's own code can be imported",
            ) from error

    def __repr__(self) -> str:
        return f"Pickled(size={self.size}, sha256={self.sha256[:12]}...)"


@dataclasses.dataclass(frozen=True, slots=True, eq=False)
class Opaque:
    """Stand for an object whose class is not known here, so that a reader needs none of the program's code.

    `value` is a dict of fields for a dataclass, a list for a NamedTuple, and for an Enum the member's name (an int
    for a combination of flags). Encoding it again gives the bytes of the original.
    """

    #: The class, as `module:Qualified.Name`.
    name: str
    value: object
    #: The class compares its instances by identity; then so do their stand-ins, or two keys could fall into one.
    by_identity: bool = False

    def __eq__(self, other: object) -> bool:
        if type(other) is not Opaque or self.by_identity or other.by_identity:
            return self is other
        return self.name == other.name and self.value == other.value

    def __hash__(self) -> int:
        return object.__hash__(self) if self.by_identity else hash((self.name, _hashable(self.value)))


def _hashable(value: object) -> object:
    """Return something hashable that is equal for equal values."""
    if isinstance(value, (list, tuple)):
        return tuple(map(_hashable, value))
    if isinstance(value, dict):
        return frozenset((key, _hashable(item)) for key, item in value.items())
    if isinstance(value, set):
        return frozenset(value)
    try:
        hash(value)
    except TypeError:
        return None
    return value


def told(error: Exception) -> str:
    """Return what an exception says, in brief and at any rate: it may hold a user's object, or half a file."""
    try:
        said = str(error)
    except Exception:
        said = ""
    return f"{type(error).__name__}: {said[:200]}" if said else type(error).__name__


class Kind(NamedTuple):
    """Say how values of one exact type become a list of parts and how the parts become the value."""

    tag: bytes
    take: Callable[[Any], list[Any]]
    make: Callable[..., object]


def _make_bytearray(data: bytes) -> bytearray:
    # bytearray(n) would reserve n bytes, whatever a damaged file says n is.
    return bytearray(_exactly(bytes, data))


def _make_deque(maxlen: int | None, *items: object) -> deque[object]:
    if maxlen is not None and len(items) > maxlen:
        raise ValueError(f"{len(items)} items in a deque of at most {maxlen}")
    return deque(items, maxlen)


def _make_counter(counts: dict[object, Any]) -> Counter[object]:
    made: Counter[object] = Counter()
    made.update(_exactly(dict, counts))
    return made


def _make_datetime(
    year: int, month: int, day: int, hour: int, minute: int, second: int, us: int, fold: int, zone: Any
) -> datetime:
    return datetime(year, month, day, hour, minute, second, us, zone, fold=fold)


def _make_time(hour: int, minute: int, second: int, us: int, fold: int, zone: Any) -> time:
    return time(hour, minute, second, us, zone, fold=fold)


def _exactly(kind: type, value: Any) -> Any:
    if type(value) is not kind:
        raise TypeError(f"{kind.__name__} expected, not {type(value).__name__}")
    return value


#: What a defaultdict may make its values with.
FACTORIES: dict[str, type] = {kind.__name__: kind for kind in (int, float, str, bool, bytes, list, tuple, dict, set)}

PATHS: tuple[type, ...] = (PosixPath, PurePosixPath, PureWindowsPath)

#: Kinds that msgpack has a type for (an int beyond 64 bits excepted) and that cannot change.
NATIVE = frozenset({NoneType, bool, int, float, str, bytes})

#: Kinds whose parts can be no user's objects, so that nothing is to be looked for inside.
SIMPLE: dict[type, Kind] = {
    bytearray: Kind(b"b", lambda v: [bytes(v)], _make_bytearray),
    date: Kind(b"a", lambda v: [v.year, v.month, v.day], lambda year, month, day: date(year, month, day)),
    timedelta: Kind(b"e", lambda v: [v.days, v.seconds, v.microseconds], lambda d, s, us: timedelta(d, s, us)),
    # The arguments as given, since a zone with a name is not the one without.
    timezone: Kind(b"z", lambda v: list(v.__getinitargs__()), timezone),
    ZoneInfo: Kind(b"Z", lambda v: [v.key], lambda key: ZoneInfo(_exactly(str, key))),
    Decimal: Kind(b"m", lambda v: [str(v)], lambda text: Decimal(_exactly(str, text))),
    UUID: Kind(b"u", lambda v: [v.bytes, v.is_safe.value], lambda b, s: UUID(bytes=b, is_safe=SafeUUID(s))),
    PosixPath: Kind(b"P", lambda v: [str(v)], lambda text: PosixPath(_exactly(str, text))),
    PurePosixPath: Kind(b"p", lambda v: [str(v)], lambda text: PurePosixPath(_exactly(str, text))),
    PureWindowsPath: Kind(b"w", lambda v: [str(v)], lambda text: PureWindowsPath(_exactly(str, text))),
}

#: Kinds that hold other values. (The codec puts the elements of a set in order.)
COMPOUND: dict[type, Kind] = {
    tuple: Kind(b"t", list, lambda *items: items),
    set: Kind(b"s", list, lambda *items: set(items)),
    frozenset: Kind(b"f", list, lambda *items: frozenset(items)),
    deque: Kind(b"q", lambda v: [v.maxlen, *v], _make_deque),
    # dict(v) follows the order of v, also when an OrderedDict was reordered.
    Counter: Kind(b"c", lambda v: [dict(v)], _make_counter),
    OrderedDict: Kind(b"o", lambda v: [dict(v)], lambda items: OrderedDict(_exactly(dict, items))),
    defaultdict: Kind(
        b"d",
        lambda v: [v.default_factory and v.default_factory.__name__, dict(v)],
        lambda name, items: defaultdict(
            None if name is None else FACTORIES[_exactly(str, name)], _exactly(dict, items)
        ),
    ),
    datetime: Kind(
        b"D",
        lambda v: [v.year, v.month, v.day, v.hour, v.minute, v.second, v.microsecond, v.fold, v.tzinfo],
        _make_datetime,
    ),
    time: Kind(b"T", lambda v: [v.hour, v.minute, v.second, v.microsecond, v.fold, v.tzinfo], _make_time),
}

KINDS: dict[type, Kind] = SIMPLE | COMPOUND

#: Kinds of which every value can be kept, wherever and however often it stands.
LEAVES: frozenset[type] = NATIVE | {Encoded, Pickled} | (SIMPLE.keys() - {bytearray, ZoneInfo})

#: Kinds whose values can change: one of them reached twice would become two, so that is refused.
MUTABLE: frozenset[type] = frozenset({list, dict, bytearray, set, deque, Counter, OrderedDict, defaultdict})

SEQUENCES: frozenset[type] = frozenset({list, tuple, set, frozenset, deque})
MAPPINGS: frozenset[type] = frozenset({dict, Counter, OrderedDict, defaultdict})
CLOCKS: frozenset[type] = frozenset({datetime, time})


@dataclasses.dataclass(frozen=True, slots=True)
class Shape:
    """Describe a user's class: what its instances consist of."""

    cls: Any
    #: One of the tags below.
    tag: bytes
    name: str
    mutable: bool = False
    fields: tuple[str, ...] = ()
    #: Every slot of the class and its bases, fields or not.
    slots: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    field_set: frozenset[str] = dataclasses.field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "field_set", frozenset(self.fields))


ENUM, NAMED_TUPLE, DATACLASS = b"E", b"N", b"C"
#: A dataclass whose instances compare by identity.
IDENTITY_DATACLASS = b"I"


def class_name(cls: type) -> str:
    """Return the name that stands for a class in bytes: `module:Qualified.Name`."""
    return f"{module_name(cls.__module__)}:{cls.__qualname__}"


def module_name(name: str) -> str:
    """Return the name that stands for a module in every process.

    The user's script is `__main__` where it was started and `__mp_main__` in the processes that multiprocessing starts
    by spawn and forkserver; there it has both names in `sys.modules`.
    """
    return "__main__" if name == "__mp_main__" else name


def shape_of(cls: type) -> Shape | None:
    """Return the shape of an Enum, dataclass or NamedTuple class; None for a class that is none of them.

    A dataclass that extends a built-in type (a dict, an exception) is none of them: fields are not all it holds.
    """
    if issubclass(cls, Enum):
        return Shape(cls, ENUM, class_name(cls))
    names = getattr(cls, "_fields", None)
    if issubclass(cls, tuple) and type(names) is tuple:
        return Shape(cls, NAMED_TUPLE, class_name(cls), fields=names)
    bases = cls.__mro__[:-1]
    # A __new__ written in Python stands there as a staticmethod; any other is that of a built-in type.
    built_in = any("__new__" in vars(base) and not isinstance(vars(base)["__new__"], staticmethod) for base in bases)
    if built_in or not dataclasses.is_dataclass(cls):
        return None
    slots = {
        name: slot
        for base in reversed(bases)
        for name, slot in vars(base).items()
        if isinstance(slot, MemberDescriptorType)
    }
    frozen = bool(cls.__dataclass_params__.frozen)  # type: ignore[attr-defined]
    tag = IDENTITY_DATACLASS if cls.__hash__ is object.__hash__ else DATACLASS
    return Shape(cls, tag, class_name(cls), not frozen, tuple(f.name for f in dataclasses.fields(cls)), slots)


_NO_ATTRIBUTES: dict[str, Any] = {}


def attributes(value: object, shape: Shape) -> dict[str, Any]:
    """Return everything an instance of a dataclass holds, whether or not it is a field."""
    held: dict[str, Any] = getattr(value, "__dict__", _NO_ATTRIBUTES)
    if not shape.slots and len(held) >= len(shape.fields):
        return held
    held = dict(held)
    for name, slot in shape.slots.items():
        try:
            held[name] = slot.__get__(value)
        except AttributeError:  # an empty slot
            continue
    for name in shape.fields:
        # A default of a field that is not in __init__ stays with the class until it is set.
        if name not in held and name not in shape.slots and hasattr(type(value), name):
            held[name] = getattr(type(value), name)
    return held


def instance_contents(value: Any, shape: Shape) -> Collection[object] | None:
    """Return what an instance holds, or None if it cannot be kept: the verdict of `flaw_of`, quickly."""
    if shape.tag == ENUM:
        return None if _flaw_of_instance(value, shape) else ()
    if shape.tag == NAMED_TUPLE:
        bare = not shape.cls.__dictoffset__ or not value.__dict__
        return value if bare and len(value) == len(shape.fields) else None
    held = attributes(value, shape)
    return held.values() if held.keys() == shape.field_set else None


def contents_of_all(group: list[Any], shape: Shape) -> list[Collection[object]] | None:
    """Return what each of many instances of one class holds, or None if one of them cannot be kept."""
    if shape.tag == NAMED_TUPLE:
        bare = not shape.cls.__dictoffset__ or not any(item.__dict__ for item in group)
        return group if bare and set(map(len, group)) == {len(shape.fields)} else None
    contents = []
    for item in group:
        held = instance_contents(item, shape)
        if held is None:
            return None
        contents.append(held)
    return contents


def take_instance(value: Any, shape: Shape) -> list[Any]:
    """Return the parts of an instance of a user's class, the class's name first."""
    if shape.tag == ENUM:
        # A combination of flags has no name of its own in every Python; its value serves.
        return [shape.name, value._name_ if _is_named(value) else value._value_]
    if shape.tag == NAMED_TUPLE:
        return [shape.name, *value]
    held = attributes(value, shape)
    if tuple(held) != shape.fields or type(held) is not dict:  # a __dict__ may be assigned, and be any kind of dict
        held = {name: held[name] for name in shape.fields}
    return [shape.name, held]


def _is_named(member: Any) -> bool:
    return type(member).__members__.get(member._name_) is member


def make_instance(shape: Shape, parts: list[Any]) -> object:
    """Return the instance that `take_instance` took apart; none of the class's own code makes or checks it."""
    if shape.tag == ENUM:
        (member,) = parts
        return shape.cls.__members__[member] if type(member) is str else shape.cls(_exactly(int, member))
    if shape.tag == NAMED_TUPLE:
        if len(parts) != len(shape.fields):
            raise ValueError(f"{shape.name} has {len(shape.fields)} fields, not {len(parts)}")
        return tuple.__new__(shape.cls, parts)
    (held,) = parts
    if _exactly(dict, held).keys() != shape.field_set:
        raise ValueError(f"{shape.name} no longer has the fields it was kept with: {_changes(held, shape)}")
    value = object.__new__(shape.cls)
    if not shape.slots and held:
        value.__dict__.update(held)
        return value
    slots = shape.slots
    for name, item in held.items():
        if name in slots:
            slots[name].__set__(value, item)
        else:
            value.__dict__[name] = item
    return value


def _changes(held: dict[Any, Any], shape: Shape) -> str:
    gone = sorted(repr(name) for name in held.keys() - shape.field_set)
    new = sorted(repr(name) for name in shape.field_set - held.keys())
    return "; ".join(f"{what}: {', '.join(names[:5])}" for what, names in (("gone", gone), ("new", new)) if names)


def take_opaque(value: Opaque) -> tuple[bytes, list[Any]]:
    """Return the tag and the parts of the object that an Opaque stands for."""
    if isinstance(value.value, dict):
        return IDENTITY_DATACLASS if value.by_identity else DATACLASS, [value.name, value.value]
    if isinstance(value.value, list):
        return NAMED_TUPLE, [value.name, *value.value]
    return ENUM, [value.name, value.value]


def make_opaque(tag: bytes, name: str, parts: list[Any]) -> Opaque:
    """Return what stands for an object of a class that is not known here."""
    if tag == NAMED_TUPLE:
        return Opaque(name, parts)
    (value,) = parts
    made = Opaque(name, value, by_identity=tag == IDENTITY_DATACLASS)
    flaw = flaw_of(made, None)
    if flaw or take_opaque(made)[0] != tag:
        raise ValueError(flaw or f"{name} is kept in the shape of another kind")
    return made


def flaw_of(value: Any, shape: Shape | None) -> str | None:
    """Return why this very value of a known kind cannot be kept, or None. Looks at the value alone, not inside."""
    if shape is not None:
        return _flaw_of_instance(value, shape)
    kind = type(value)
    if kind is defaultdict and not _is_plain_factory(value.default_factory):
        return "the factory of a defaultdict can only be None or one of " + ", ".join(sorted(FACTORIES))
    if kind is ZoneInfo and value.key is None:
        return "a ZoneInfo without a key cannot be found again"
    if kind is Opaque:
        fields = isinstance(value.value, dict) and all(type(key) is str for key in value.value)
        if type(value.name) is not str or not (fields or type(value.value) in (list, str, int)):
            return "an Opaque needs a name and a dict of fields, a list, a str or an int"
    if kind in (Counter, OrderedDict) and value.__dict__:
        return _foreign(value.__dict__, kind.__name__)
    return None


def _flaw_of_instance(value: Any, shape: Shape) -> str | None:
    if shape.tag == ENUM:
        findable = _is_named(value) or type(value._value_) is int
        return None if findable else f"this member of {shape.name} cannot be found by its name"
    if shape.tag == NAMED_TUPLE:
        if len(value) != len(shape.fields):
            return f"this {shape.name} has {len(value)} items for {len(shape.fields)} fields"
        extra = getattr(value, "__dict__", {}).keys()
    else:
        held = attributes(value, shape)
        extra = held.keys() - shape.field_set
        missing = [name for name in shape.fields if name not in held]
        if missing and not extra:
            return f"field {missing[0]} of {shape.name} has no value"
    return _foreign(extra, shape.name) if extra else None


def _foreign(names: Iterable[str], of: str) -> str:
    return f"attribute {min(map(str, names))} is no part of what is kept of {of}"


def _is_plain_factory(factory: Any) -> bool:
    return factory is None or (type(factory) is type and FACTORIES.get(factory.__name__) is factory)


def steps(value: Any, shape: Shape | None) -> Iterator[tuple[str, object]]:
    """Yield what a value of a known kind holds, each with the step that leads there from the value's own path."""
    kind = type(value)
    if kind in MAPPINGS:
        yield from ((f".keys()[{index}]", key) for index, key in enumerate(value))
        yield from ((_key_step(key), item) for key, item in value.items())
    elif kind in (set, frozenset):
        yield from (("{}", item) for item in value)
    elif kind in SEQUENCES:
        yield from ((f"[{index}]", item) for index, item in enumerate(value))
    elif kind in CLOCKS:
        yield ".tzinfo", value.tzinfo
    elif kind is Opaque:
        if isinstance(value.value, (dict, list)):
            yield from steps(value.value, None)
    elif shape is not None and shape.tag == NAMED_TUPLE:
        yield from ((f".{name}", item) for name, item in zip(shape.fields, value, strict=True))
    elif shape is not None:
        held = attributes(value, shape)
        yield from ((f".{name}", held[name]) for name in shape.fields)


def _key_step(key: object) -> str:
    """Return `.key` for a word, else `[key]`; never a long repr, and never one that a user's class makes."""
    if type(key) is str and key.isidentifier() and len(key) <= 40:
        return f".{key}"
    return f"[{key!r}]" if _is_short(key) else f"[<{type(key).__name__}>]"


def _is_short(key: object) -> bool:
    if type(key) is tuple:
        return len(key) <= 4 and all(map(_is_short, key))
    if type(key) is int:
        return key.bit_length() <= 128
    return type(key) in NATIVE and not (isinstance(key, (str, bytes)) and len(key) > 40)
