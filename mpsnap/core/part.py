"""A node's part of a snapshot as bytes: on its way to whoever collects, or to be kept.

This module owns the two forms of these bytes. It must not know how they travel or where they are kept.

Every node makes one and the supervisor reads them one after another, all within the latency of a snapshot: so this is
msgpack as it stands, of maps and lists alone, which takes a tenth of what the codec takes to look through each value.

The forms differ in the messages in flight. On their way (`pack`) they stay packed as they were sent (`batch`), however
many they are; those bytes are good for one version of Python, and only between processes that trust each other. To be
kept (`pack_lasting`) they are written by the plain codec, block by block. Neither form is ever taken for the other.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import chain, islice, product
from operator import itemgetter
from struct import Struct
from typing import Any

import msgpack

from mpsnap.core.batch import PackedBatch, pack_batch
from mpsnap.core.codec import Codec, is_frozen
from mpsnap.core.errors import CodecError
from mpsnap.core.kinds import told
from mpsnap.core.protocol import Chained, ChannelState, LocalSnapshot, SnapshotId, empty_channel
from mpsnap.core.snapshot import Captured, StoredState, Timer

#: Version of the bytes on their way; a reader refuses any other.
FORMAT = 4
#: Version of those that are kept.
LASTING_FORMAT = "lasting 1"
#: Messages in one block of the lasting form: enough to be quick, and few enough to take no room while they are written.
BLOCK_MESSAGES = 16_384
#: More than any count can be; a number with thousands of digits could not even be told in an error.
_MOST = (1 << 64) - 1

#: In front of a part on its way: how long it is without its messages.
_HEAD = Struct("!Q")
_PLAIN = Codec()
#: The one extension: an int of more than 64 bits.
_WIDE_INT = 1

_NUMBER = frozenset({int, float})
_NONE = type(None)
#: The fields of these bytes and what they hold: a type, one of several, a list item by item, a list of any length (of
#: the one in a tuple), a map.
_SHAPES: Mapping[str, Any] = {
    "node": str,
    "id": [int, str, int],
    "state": frozenset({bytes, _NONE}),
    "timers": ([_NUMBER, _NUMBER | {_NONE}, str, bytes],),
    "random": [frozenset({int, str}), int],
    "passive": bool,
    "finished": bool,
    "emitted": int,
    "sent": {str: int},
    "received": {str: int},
    "channels": {str: int},
    "in flight": {str: (int,)},
}
_LASTING_SHAPES = {**_SHAPES, "in flight": {str: (bytes,)}}

Check = Callable[[Any], bool]


def _check(shape: Any) -> Check:
    """Return what tells whether a value is of a shape, which is gone through here and not at each look."""
    if isinstance(shape, (type, frozenset)):
        kinds = _kinds(shape)
        return lambda value: type(value) in kinds
    if isinstance(shape, list):
        rows = frozenset(product(*map(_kinds, shape)))
        return lambda value: type(value) is list and tuple(map(type, value)) in rows
    if isinstance(shape, tuple):
        items = _check_all(shape[0])
        return lambda value: type(value) is list and (not value or items(value))
    ((key_kind, item_shape),) = shape.items()
    keys = _kinds(key_kind)
    if isinstance(item_shape, type):
        kinds = _kinds(item_shape)
        # Three of these in a part, with an item for each neighbour: as few calls as possible.
        return lambda value: (
            type(value) is dict and keys.issuperset(map(type, value)) and kinds.issuperset(map(type, value.values()))
        )
    items = _check_all(item_shape)
    return lambda value: type(value) is dict and keys.issuperset(map(type, value)) and items(value.values())


def _check_all(shape: Any) -> Callable[[Iterable[Any]], bool]:
    """Return what tells whether all values are of a shape."""
    if isinstance(shape, (type, frozenset)):
        kinds = _kinds(shape)
        return lambda values: kinds.issuperset(map(type, values))
    check = _check(shape)
    return lambda values: all(map(check, values))


def _kinds(shape: type | frozenset[type]) -> frozenset[type]:
    return frozenset({shape}) if isinstance(shape, type) else shape


class _Form:
    """Tell what is wrong with the fields of one form; each part of each snapshot is looked through by it."""

    def __init__(self, shapes: Mapping[str, Any]) -> None:
        plain = {name: _kinds(shape) for name, shape in shapes.items() if isinstance(shape, (type, frozenset))}
        self._checks = {name: _check(shape) for name, shape in shapes.items()}
        #: The fields that hold one value, whose types are looked at together; and the others, one after another.
        self._plain = itemgetter(*plain)
        self._rows = frozenset(product(*plain.values()))
        self._others = [(name, check) for name, check in self._checks.items() if name not in plain]

    def wrong(self, fields: Mapping[str, Any]) -> str | None:
        """Return the name of a field that is not there or not of its shape; None if there is none."""
        try:
            if tuple(map(type, self._plain(fields))) in self._rows:
                return next((name for name, check in self._others if not check(fields[name])), None)
        except KeyError:
            pass  # The long way says which one is not there.
        return next(name for name, check in self._checks.items() if name not in fields or not check(fields[name]))


_FORM = _Form(_SHAPES)
_LASTING_FORM = _Form(_LASTING_SHAPES)


def pack(local: LocalSnapshot, *, apart: bool = False) -> bytes:
    """Return a local snapshot as bytes for the way; `local.captured` must be a `Captured`.

    If its state travels `apart`, it is left out.
    """
    packed = {src: _packed(state.payloads) for src, state in local.channels.items() if state.payloads}
    in_flight = {
        src: [n for batch in batches for n in (batch.size, len(batch.data))] for src, batches in packed.items()
    }
    head = _written(FORMAT, local, apart, in_flight)
    # Behind the rest, and not in it: a hundred thousand messages are copied once, and not at all when they are read.
    bodies = (batch.data for batches in packed.values() for batch in batches)
    return b"".join((_HEAD.pack(len(head)), head, *bodies))


def unpack(data: bytes, state: bytes | StoredState | None = None) -> LocalSnapshot:
    """Read what `pack` made.

    Args:
        data: What `pack` returned.
        state: That which travelled apart, if it did.

    Raises:
        CodecError: The bytes are none, or of another format; or there are two states, or there is none.
    """
    if len(data) < _HEAD.size:
        raise CodecError(f"{len(data)} bytes are not a local snapshot")
    at = _HEAD.size + _HEAD.unpack_from(data)[0]
    plain = _read(data[_HEAD.size : at], FORMAT, _FORM)
    bodies = memoryview(data)
    in_flight: dict[str, Sequence[object]] = {}
    for src, numbers in plain["in flight"].items():
        if len(numbers) % 2:
            raise CodecError("not a local snapshot: messages without a length", where=src)
        found = []
        for k in range(0, len(numbers), 2):
            size, length = numbers[k], numbers[k + 1]
            if size < 0 or not 0 <= length <= len(data) - at:
                raise CodecError("not a local snapshot: messages are missing", where=src)
            found.append(PackedBatch(size, bodies[at : at + length]))
            at += length
        if found:
            in_flight[src] = Chained(found) if len(found) > 1 else found[0]
    if at != len(data):
        raise CodecError(f"not a local snapshot: {len(data)} bytes where {at} were due")
    return _put_together(plain, state, in_flight)


def pack_lasting(local: LocalSnapshot, *, apart: bool = False) -> bytes:
    """Return a local snapshot as bytes to be kept; otherwise as `pack`.

    Raises:
        CodecError: What came as packed messages is none.
    """
    in_flight = {src: list(_blocks(state.payloads)) for src, state in local.channels.items() if state.payloads}
    return _written(LASTING_FORMAT, local, apart, in_flight)


def unpack_lasting(data: bytes, state: bytes | StoredState | None = None) -> LocalSnapshot:
    """Read what `pack_lasting` made; whoever wrote the bytes, reading them runs no code.

    Raises:
        CodecError: As `unpack`, also for what `pack` made; or a count is none, or a message is not fixed.
    """
    plain = _read(data, LASTING_FORMAT, _LASTING_FORM)
    incarnation, _, n = plain["id"]
    counts = [plain[name].values() for name in ("sent", "received", "channels")]
    if not all(0 <= count <= _MOST for count in (incarnation, n, plain["emitted"], *chain.from_iterable(counts))):
        raise CodecError("not a local snapshot: a count in it is negative or absurd")
    in_flight = {src: _messages(src, blocks) for src, blocks in plain["in flight"].items()}
    local = _put_together(plain, state, in_flight)
    assert isinstance(local.captured, Captured)
    if not all(is_frozen(timer.args) for timer in local.captured.timers):
        raise CodecError("not a local snapshot: the arguments of a timer are not fixed")
    return local


def _written(version: int | str, local: LocalSnapshot, apart: bool, in_flight: Mapping[str, object]) -> bytes:
    captured = local.captured
    assert isinstance(captured, Captured)
    plain = {
        "format": version,
        "node": local.node,
        "id": list(local.snapshot_id),
        "state": None if apart else captured.state,
        "timers": [[*timer[:3], _PLAIN.encode(timer.args)] for timer in captured.timers],
        "random": list(captured.random),
        "passive": captured.passive,
        "finished": captured.finished,
        "emitted": captured.emitted,
        "sent": local.sent,
        "received": local.received,
        "channels": {src: state.first for src, state in local.channels.items()},
        "in flight": in_flight,
    }
    packed: bytes = msgpack.packb(plain, unicode_errors="surrogatepass", default=_lowered)
    return packed


def _read(data: bytes, version: int | str, form: _Form) -> dict[str, Any]:
    """Return the fields, each of its shape."""
    try:
        plain = msgpack.unpackb(data, unicode_errors="surrogatepass", ext_hook=_raised, timestamp=2)
    except Exception as error:
        raise CodecError(f"{len(data)} bytes are not a local snapshot: {told(error)}") from error
    if type(plain) is not dict:
        raise CodecError(f"not a local snapshot: a {type(plain).__name__}")
    found = plain.get("format")
    if type(found) is not type(version) or found != version:
        raise CodecError(f"a local snapshot of format {_shown(found)}, this version reads {version}")
    wrong = form.wrong(plain)
    if wrong is not None:
        # Here and not in whoever trips over it: bytes may be damaged and still make a value.
        raise CodecError(f"not a local snapshot: something is wrong with its {wrong!r}")
    return plain


def _put_together(
    plain: dict[str, Any], state: bytes | StoredState | None, in_flight: Mapping[str, Sequence[object]]
) -> LocalSnapshot:
    if (plain["state"] is None) is (state is None):
        raise CodecError("not a local snapshot: its state is " + ("left out" if state is None else "there twice"))
    if not plain["in flight"].keys() <= plain["channels"].keys():
        raise CodecError("not a local snapshot: messages on a channel that it does not have")
    captured = Captured(
        plain["state"] if state is None else state,
        tuple(Timer(due, period, method, _PLAIN.decode(args)) for due, period, method, args in plain["timers"]),
        tuple(plain["random"]),
        plain["passive"],
        plain["finished"],
        plain["emitted"],
    )
    channels = {src: empty_channel(first) for src, first in plain["channels"].items()}
    for src, payloads in in_flight.items():
        channels[src] = ChannelState(plain["channels"][src], payloads)
    return LocalSnapshot(plain["node"], SnapshotId(*plain["id"]), captured, plain["sent"], plain["received"], channels)


def _blocks(payloads: Sequence[object]) -> Iterator[bytes]:
    """Write payloads, so many at a time."""
    waiting = iter(payloads)
    while block := list(islice(waiting, BLOCK_MESSAGES)):
        yield _PLAIN.encode(block, where="messages in flight")


def _messages(src: str, blocks: list[bytes]) -> tuple[object, ...]:
    """Read payloads, all of them fixed as `freeze` would: what follows relies on that."""
    payloads: list[object] = []
    for block in blocks:
        read = _PLAIN.decode(block)
        if type(read) is not list or not all(map(is_frozen, read)):
            raise CodecError("not a local snapshot: what is in flight is not messages", where=src)
        payloads += read
    return tuple(payloads)


def _shown(version: object) -> str:
    # Whatever damaged bytes may hold here: thousands of digits, or lists a thousand deep.
    brief = isinstance(version, (str, float, type(None))) or (isinstance(version, int) and abs(version) <= _MOST)
    return repr(version)[:40] if brief else f"that is a {type(version).__name__}"


def _packed(payloads: Sequence[object]) -> list[PackedBatch]:
    """Return payloads as batches, of which those that are packed already are left as they are."""
    batches = payloads.batches if isinstance(payloads, Chained) else (payloads,)
    return [batch if isinstance(batch, PackedBatch) else pack_batch(list(batch)) for batch in batches if batch]


def _lowered(value: int) -> msgpack.ExtType:
    return msgpack.ExtType(_WIDE_INT, value.to_bytes(value.bit_length() // 8 + 1, "big", signed=True))


def _raised(code: int, body: bytes) -> int:
    if code != _WIDE_INT:
        raise ValueError(f"unknown extension {code}")
    return int.from_bytes(body, "big", signed=True)
