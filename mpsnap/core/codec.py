"""The codec: plain data to bytes and back, exact in value and in type, or an error that names the place.

This module owns the wire format, and what becomes of a payload when it is sent. Which kinds of value there are stands
in `kinds`, whether a given value can be kept is decided in `walk`. It must not know who keeps or carries the bytes.

The format is msgpack in its strict mode. What msgpack has no type for is an array whose first item is a mark (an
extension of one byte, the kind's tag), followed by the parts of the value; wide ints, encoded values and pickles are
extensions of their own. No value of a user's can be a mark, so nothing has to be escaped.

Rules:
- Refuse or keep, never convert: a value is looked through completely before its first byte is made.
- A value is a tree. What can change and is reached twice would come back as two, so it is refused.
- Equal values (in type, and dicts in order) give equal bytes, in every process: sets are put in order.
- Decoding imports nothing and runs nothing but the hash of keys; a pickle is only loaded by a codec that opted in.
- Whatever is wrong with the bytes, decoding raises `CodecError` and nothing else.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, TypeVar

import msgpack

from mpsnap.core.errors import CodecError
from mpsnap.core.kinds import (
    DATACLASS,
    ENUM,
    IDENTITY_DATACLASS,
    KINDS,
    NAMED_TUPLE,
    NATIVE,
    Encoded,
    Opaque,
    Pickled,
    make_instance,
    make_opaque,
    take_instance,
    take_opaque,
    told,
)
from mpsnap.core.rows import ENCODED, Rows, is_fixed, is_row
from mpsnap.core.walk import MAX_DEPTH, Classes, explain, survey

__all__ = ["MAX_DEPTH", "Codec", "Encoded", "Opaque", "Pickled", "encoded", "freeze", "is_frozen", "thaw"]

T = TypeVar("T")

_HINT_BYTES = "check that they are complete, and that the program's classes are those they were encoded with"

# Extension codes of the format.
_MARK, _WIDE_INT, _ENCODED, _PICKLED = 0, 1, 2, 3

#: How many bytes a packer may have written to be kept: far below the buffer that it starts with.
_SMALL = 1 << 16

#: What msgpack raises for a length that it cannot write, and Python for a full stack.
_UNWRITABLE = (ValueError, OverflowError, RecursionError)

#: Sets of these alone are put in order by their own order, which is faster than that of their elements' bytes.
_SORTABLE = ({int}, {str}, {bytes})


class _Mark:
    """What a mark decodes to: a type of its own, so that no decoded value can be taken for one."""

    __slots__ = ("make", "tag")

    def __init__(self, tag: bytes, make: Callable[..., object] | None) -> None:
        self.tag = tag
        #: None for the tags of the user's classes.
        self.make = make


#: By tag, what a mark decodes to.
_MARKS = {kind.tag: _Mark(kind.tag, kind.make) for kind in KINDS.values()}
_MARKS |= {tag: _Mark(tag, None) for tag in (ENUM, NAMED_TUPLE, DATACLASS, IDENTITY_DATACLASS)}
_TUPLE_MARK = _MARKS[KINDS[tuple].tag]

#: By tag, what is written for a mark; and the two that are not looked up.
_WRITTEN_MARKS = {tag: msgpack.ExtType(_MARK, tag) for tag in _MARKS}
_WRITTEN_TUPLE_MARK = _WRITTEN_MARKS[KINDS[tuple].tag]
_WRITTEN_BYTEARRAY_MARK = _WRITTEN_MARKS[KINDS[bytearray].tag]


class _Writer:
    """Write values that were looked through.

    Args:
        classes: The user's classes that may be kept.
        hide: Whether a bytearray is somewhere in the values.
        ordered: For one value alone, room to note the elements of its sets in order: a set inside of sets is put in
            order once, not once for each. None for a writer of many values: the next may have a set with the same id.
    """

    __slots__ = ("_classes", "_hide", "_ordered")

    def __init__(self, classes: Classes, hide: bool, ordered: dict[int, list[Any]] | None) -> None:
        self._classes = classes
        self._hide = hide
        self._ordered = ordered

    def pack(self, value: object) -> bytes:
        return self.packer()(_hidden(value) if self._hide else value)

    def packer(self) -> Callable[[object], bytes]:
        """Return what packs one value at a time: it cannot be entered again, be it by a nested set or a thread."""
        pack: Callable[[object], bytes]
        pack = msgpack.Packer(strict_types=True, unicode_errors="surrogatepass", default=self._lower).pack
        return pack

    def holder(self) -> msgpack.Packer:
        """Return a packer that holds the bytes of what it packs."""
        return msgpack.Packer(strict_types=True, unicode_errors="surrogatepass", default=self._lower, autoreset=False)

    def _lower(self, item: Any) -> Any:
        """Return what msgpack can write for an item that it has no type for."""
        kind = type(item)
        if kind is tuple:
            lowered = [_WRITTEN_TUPLE_MARK, *item]
        elif kind in KINDS:
            parts = self._in_order(item) if kind is set or kind is frozenset else KINDS[kind].take(item)
            lowered = [_WRITTEN_MARKS[KINDS[kind].tag], *parts]
        elif (shape := self._classes.shape(kind)) is not None:
            lowered = [_WRITTEN_MARKS[shape.tag], *take_instance(item, shape)]
        elif kind is Opaque:
            tag, parts = take_opaque(item)
            lowered = [_WRITTEN_MARKS[tag], *parts]
        elif kind is _Hidden:
            return [_WRITTEN_BYTEARRAY_MARK, item.data]
        elif kind is Encoded or kind is Pickled:
            return msgpack.ExtType(_ENCODED if kind is Encoded else _PICKLED, item.data)
        else:
            return msgpack.ExtType(_WIDE_INT, item.to_bytes(item.bit_length() // 8 + 1, "big", signed=True))
        return _hidden(lowered) if self._hide else lowered

    def _in_order(self, elements: set[Any] | frozenset[Any]) -> list[Any]:
        """Return the elements in an order that is the same in every process, which that of a set is not."""
        known = self._ordered.get(id(elements)) if self._ordered else None
        if known is None:
            kinds = set(map(type, elements))
            # One packer for all: a set inside of an element has its own, and no bytearray is hashable.
            known = sorted(elements, key=None if kinds in _SORTABLE or len(elements) == 1 else self.packer())
            if self._ordered is not None:
                self._ordered[id(elements)] = known
        return known


class _Reader:
    """Read values one at a time: what msgpack calls for each extension and for each list."""

    __slots__ = ("_classes", "_known_only", "_pickle", "array", "extension", "stray")

    def __init__(self, classes: Classes, pickle: bool, known_only: bool) -> None:
        self._classes = classes
        self._pickle = pickle
        self._known_only = known_only
        #: How many marks were met that no list was found to begin with.
        self.stray = 0
        # Bound here, and not once more for each value.
        self.array, self.extension = self._array, self._extension

    def _extension(self, code: int, body: bytes) -> object:
        if code == _MARK:
            self.stray += 1
            return _MARKS[body]
        if code == _WIDE_INT:
            return int.from_bytes(body, "big", signed=True)
        if code == _ENCODED:
            return Encoded(body)
        if code == _PICKLED:
            return Pickled(body).load() if self._pickle else Pickled(body)
        raise ValueError(f"unknown extension {code}")

    def _array(self, items: list[Any]) -> object:
        if not items or type(items[0]) is not _Mark:
            return items
        self.stray -= 1
        mark: _Mark = items[0]
        del items[0]
        if mark is _TUPLE_MARK:
            return tuple(items)
        return self._instance(mark.tag, items) if mark.make is None else mark.make(*items)

    def _instance(self, tag: bytes, parts: list[Any]) -> object:
        """Return the instance of a user's class, or what stands for it."""
        name = parts.pop(0)
        if type(name) is not str:
            raise TypeError("the name of a class is not a str")
        shape = self._classes.find(name)
        if shape is None:
            if self._known_only:
                raise ValueError(f"there is no class {name} any more")
            return make_opaque(tag, name, parts)
        if shape.tag != tag and not {shape.tag, tag} <= {DATACLASS, IDENTITY_DATACLASS}:
            raise TypeError(f"{name} is a class of another kind now")
        return make_instance(shape, parts)


class _Hidden:
    """Cover a bytearray, which msgpack would otherwise take for bytes."""

    __slots__ = ("data",)

    def __init__(self, data: bytearray) -> None:
        self.data = bytes(data)


class Codec:
    """Encode plain data as bytes and decode it again, exactly by value and type.

    Kept are None, bool, int of any size, float, str, bytes, bytearray, list, tuple, dict, set, frozenset, datetime,
    date, time, timedelta, timezone, ZoneInfo, Decimal, UUID, paths, deque, Counter, OrderedDict, defaultdict of a
    plain factory, and Enums, dataclasses and NamedTuples that are allowed: those in `types`, and those defined at the
    top of one of `modules` or inside a class there. Subclasses of the former are not kept.

    With `pickle`, a value that is refused is pickled as a whole, and decoding loads pickles: for a cluster's own live
    data only.

    Args:
        types: Enum, dataclass and NamedTuple classes that may be kept, wherever they are defined.
        modules: Names of imported modules whose Enum, dataclass and NamedTuple classes may be kept too.
        pickle: Whether to pickle what cannot be kept otherwise, and to unpickle.

    Raises:
        CodecError: One of `types` is no such class, or two of them have the same name.

    Example:
        >>> codec = Codec()
        >>> codec.decode(codec.encode({"seen": {3, 1}, 7: (1.0, True)}))
        {'seen': {1, 3}, 7: (1.0, True)}
    """

    def __init__(self, types: Iterable[type] = (), modules: Iterable[str] = (), pickle: bool = False) -> None:
        self._know(Classes(types, modules))
        self._pickle = pickle
        self._known_only = False
        # Those not at work: to make one for every message would take as long as its work. Each is taken and put back in
        # one step, so that neither a thread nor the hash of a key meets one at work. One that failed never comes back.
        self._packers: list[Callable[[object], bytes]] = []
        self._holders: list[msgpack.Packer] = []
        self._readers: list[_Reader] = []

    def _know(self, classes: Classes) -> None:
        self._classes = classes
        #: How payloads travel that need not be encoded for it.
        self.rows = Rows(classes, self.decode)

    def encode(self, value: object, where: str = "value") -> bytes:
        """Return the bytes of a value.

        Args:
            value: Plain data; a tree of at most `MAX_DEPTH` levels.
            where: What the value is called; the path in an error begins with it.

        Raises:
            CodecError: The value holds something that cannot be kept exactly; `where` is its path.
        """
        kinds = survey(value, self._classes)
        if kinds is None:
            value, kinds = self._in_one_piece(value, where), set()
        try:
            if kinds:
                return _Writer(self._classes, bytearray in kinds, {}).pack(value)
            return self._pack_simple(value)
        except _UNWRITABLE as error:
            raise CodecError(f"the value cannot be encoded: {told(error)}", where=where) from error

    def encode_for(self, use: Callable[[memoryview], T], value: object, where: str = "value") -> T:
        """Return what `use` makes of the bytes of a value: the same as `use(encode(value))` without a second copy.

        For values so large that their bytes should be in memory once only. The view is gone when `use` returns.

        Raises:
            CodecError: As `encode`; what `use` raises is passed on.
        """
        if use is bytes:
            # A copy either way; and so it is made in one step.
            return self.encode(value, where)  # type: ignore[return-value]
        kinds = survey(value, self._classes)
        if kinds is None:
            value, kinds = self._in_one_piece(value, where), set()
        simple, hide = not kinds, bytearray in kinds
        try:
            holder = self._holders.pop() if simple and self._holders else self._holder(simple, hide)
            holder.pack(_hidden(value) if hide else value)
        except _UNWRITABLE as error:
            raise CodecError(f"the value cannot be encoded: {told(error)}", where=where) from error
        # The view is of the packer's own memory, which older versions of msgpack do not keep alive for it.
        with holder.getbuffer() as view:
            used, small = use(view), len(view) <= _SMALL
        if simple and small:
            holder.reset()
            self._holders.append(holder)
        return used

    def _holder(self, simple: bool, hide: bool) -> msgpack.Packer:
        return _Writer(self._classes, hide, None if simple else {}).holder()

    def _in_one_piece(self, value: object, where: str) -> Pickled:
        if not self._pickle:
            raise explain(value, where, self._classes)
        return _pickled(value, where)

    def decode(self, data: bytes) -> object:
        """Return the value that `encode` made `data` of.

        An instance of a class that is not known here comes back as an `Opaque`. A pickle comes back as a `Pickled`,
        unless this codec opted in.

        Raises:
            CodecError: `data` is damaged, or its classes or time zones have changed or cannot be found since.
        """
        try:
            return self._unpack(data)
        except CodecError:
            raise
        except Exception as error:
            raise CodecError(
                f"{len(data)} bytes are not a value that can be decoded here: {told(error)}",
                hint=_HINT_BYTES,
            ) from error

    def __getstate__(self) -> tuple[Classes, bool]:
        # Snapshots are copied and pickled with their codecs. What is at hand for the next value stays here.
        return self._classes, self._pickle

    def __setstate__(self, state: tuple[Classes, bool]) -> None:
        self.__init__()  # type: ignore[misc]
        classes, self._pickle = state
        self._know(classes)

    def reader(self) -> Codec:
        """Return a codec that knows the same classes and leaves pickles alone, for whoever only looks."""
        if not self._pickle:
            return self
        other = Codec()
        other._know(self._classes)
        return other

    def trial(self) -> Codec:
        """Return a codec as `reader` does, of which `decode` raises where an instance of a class is not known here."""
        other = Codec()
        other._know(self._classes)
        other._known_only = True
        return other

    def _pack_simple(self, value: object) -> bytes:
        """Write a value in which there is neither a bytearray nor a set inside of a set."""
        try:
            pack = self._packers.pop()
        except IndexError:
            pack = _Writer(self._classes, False, None).packer()
        packed = pack(value)
        if len(packed) <= _SMALL:
            self._packers.append(pack)
        return packed

    def _unpack(self, data: bytes) -> object:
        try:
            reader = self._readers.pop()
        except IndexError:
            reader = _Reader(self._classes, self._pickle, self._known_only)
        value: object = msgpack.unpackb(
            data,
            ext_hook=reader.extension,
            list_hook=reader.array if _MARK in data else None,  # without that byte there is no mark to look for
            strict_map_key=False,
            unicode_errors="surrogatepass",
            timestamp=2,  # nothing here writes one; damaged bytes may hold it, and this makes it an int
        )
        if reader.stray:
            raise ValueError("a mark stands where no value begins")
        # What encode would refuse is damage too, and deep nesting would be the ruin of whoever walks the value. A level
        # takes a byte at least, so few bytes need no look. (What was unpickled may hold anything.)
        if len(data) > MAX_DEPTH and not self._pickle and survey(value, self._classes) is None:
            raise ValueError(f"no value of at most {MAX_DEPTH} levels")
        self._readers.append(reader)
        return value


def freeze(value: object, codec: Codec, where: str = "payload") -> object:
    """Return what a payload becomes when it is sent: something that nobody changes any more.

    None, bool, int, float, str, bytes and tuples of these are returned as they are. Anything else is laid out as a row,
    which may be its bytes, here and now, so that whatever the sender does to it later stays the sender's.

    Raises:
        CodecError: The payload cannot be kept exactly.
    """
    kind = type(value)
    if kind in NATIVE or (kind is tuple and is_fixed(value)):
        return value
    row = codec.rows.layers[kind](value)
    return [ENCODED, codec.encode(value, where)] if row is None else row


def is_frozen(value: object) -> bool:
    """Return whether a value is one that `freeze` returns."""
    return is_row(value) if type(value) is list else type(value) is Encoded or is_fixed(value)


def thaw(value: object, codec: Codec) -> object:
    """Return the payload that `freeze` fixed; of a row or an encoded one, a new copy at every call.

    Raises:
        CodecError: The bytes are damaged, or need classes that cannot be found here.
    """
    if type(value) is list:
        return codec.rows.make(value)
    return codec.decode(value.data) if type(value) is Encoded else value


def encoded(value: object, codec: Codec) -> object:
    """Return the payload that `freeze` fixed, for whoever keeps or compares it: a row as the bytes of its value.

    Raises:
        CodecError: It needs classes that cannot be found here.
    """
    if type(value) is not list:
        return value
    return Encoded(value[1] if value[:1] == [ENCODED] else codec.encode(codec.rows.make(value)))


def _hidden(value: Any) -> Any:
    """Return `value` with every bytearray covered that msgpack would meet in a list or dict, or by itself."""
    kind = type(value)
    if kind is bytearray:
        return _Hidden(value)
    if kind is list:
        return [_hidden(item) for item in value]
    if kind is dict:
        return {key: _hidden(item) for key, item in value.items()}
    return value


def _pickled(value: object, where: str) -> Pickled:
    import pickle

    try:
        return Pickled(pickle.dumps(value, protocol=5))
    except Exception as error:
        raise CodecError(
            f"the value can neither be kept exactly nor be pickled: {told(error)}",
            where=where,
            hint="leave the attribute out with `transient = (...)`",
        ) from error
