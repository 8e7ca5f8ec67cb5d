"""A node's part of a snapshot as bytes: on its way to whoever collects, or to be kept.

This module owns the two forms of these bytes. It must not know how they travel or where they are kept.

Every node makes one and the supervisor reads them one after another, all within the latency of a snapshot: so this is
msgpack as it stands, of maps and lists alone, which takes a tenth of what the codec takes to look through each value.

The forms differ in what they are for. On its way (`pack`) a part begins with whose it is and its counts, so that a cut
can be proven by the bytes as they are (`emptycut`); then comes one list, quick to make and to look through, and its
messages in flight stay packed as they were sent (`batch`), however many they are; those bytes are good for one version
of Python, and only between processes that trust each other. To be kept (`pack_lasting`) it is a map of named
fields, and messages are written by the plain codec, block by block. Neither form is ever taken for the other.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import lru_cache
from itertools import accumulate, chain, islice, product
from typing import Any

import msgpack

from mpsnap.core.batch import PackedBatch, pack_batch
from mpsnap.core.codec import Codec, is_frozen
from mpsnap.core.errors import CodecError
from mpsnap.core.kinds import told
from mpsnap.core.protocol import Chained, ChannelState, EmptyChannels, LocalSnapshot, SnapshotId, empty_channel
from mpsnap.core.snapshot import Captured, StoredState, Timer

#: Version of the bytes on their way; a reader refuses any other.
FORMAT = 7
#: Version of those that are kept.
LASTING_FORMAT = "lasting 1"
#: Messages in one block of the lasting form: enough to be quick, and few enough to take no room while they are written.
BLOCK_MESSAGES = 16_384
#: More than any count can be; a number with thousands of digits could not even be told in an error.
_MOST = (1 << 64) - 1

#: What a part on its way begins with: its format, whether its state travels apart, whether nothing is in flight, the
#: incarnation and the number of its snapshot, how long the initiator's name is; and that name.
_HEAD = struct.Struct("!B??QQI")
#: Then: how many channels lead out and how many in, how long the names are; and the names. Behind them come the counts,
#: 8 bytes each; how long the list is, 8 bytes too; the list; the messages in flight.
_SIZES = struct.Struct("!III")
NUMBER_BYTES = 8
_LENGTH = struct.Struct("!Q")
#: Where it says whether nothing is in flight.
_EMPTY_AT = 2
_PLAIN = Codec()
#: The one extension: an int of more than 64 bits.
_WIDE_INT = 1

_NUMBER = frozenset({int, float})
_NONE = type(None)
#: The fields of a part that is kept and what they hold: a type, one of several, a list item by item, a list of any
#: length (of the one in a tuple), a map.
_LASTING_SHAPES: Mapping[str, Any] = {
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
    "in flight": {str: (bytes,)},
}
#: What is in the list of a part on its way, in its order.
_WAY_SHAPES: Mapping[str, Any] = {
    "state": frozenset({bytes, _NONE}),
    "passive": bool,
    "finished": bool,
    "emitted": int,
    "seed": frozenset({int, str}),
    "counter": int,
    "timers": ([_NUMBER, _NUMBER | {_NONE}, str, bytes],),
    "channels": {str: int},
    "in flight": {str: (int,)},
}

Check = Callable[[Any], bool]


def _check(shape: Any) -> Check:
    """Return what tells whether a value is of a shape, which is gone through here and not at each look."""
    kinds = _kinds(shape)
    if isinstance(shape, (type, frozenset)):
        return lambda value: type(value) in kinds
    if isinstance(shape, list):
        rows = frozenset(product(*map(_kinds, shape)))
        return lambda value: type(value) is list and tuple(map(type, value)) in rows
    if isinstance(shape, tuple):
        items = _check_all(shape[0])
        return lambda value: type(value) is list and (not value or items(value))
    ((key_kind, item_shape),) = shape.items()
    keys, items = _kinds(key_kind), _check_all(item_shape)
    return lambda value: type(value) is dict and keys.issuperset(map(type, value)) and items(value.values())


def _check_all(shape: Any) -> Callable[[Iterable[Any]], bool]:
    """Return what tells whether all values are of a shape."""
    if isinstance(shape, (type, frozenset)):
        kinds = _kinds(shape)
        return lambda values: kinds.issuperset(map(type, values))
    check = _check(shape)
    return lambda values: all(map(check, values))


def _kinds(shape: Any) -> frozenset[type]:
    """Return the types that a value of a shape can be of."""
    if isinstance(shape, frozenset):
        return shape
    return frozenset({shape if isinstance(shape, type) else dict if isinstance(shape, dict) else list})


def _wrong(fields: Mapping[str, Any], checks: Mapping[str, Check]) -> str | None:
    """Return the name of a field that is not there or not of its shape; None if there is none."""
    return next((name for name, check in checks.items() if name not in fields or not check(fields[name])), None)


_WAY = {name: _check(shape) for name, shape in _WAY_SHAPES.items()}
_LASTING = {name: _check(shape) for name, shape in _LASTING_SHAPES.items()}

#: The types of the list's items, one after another; what is in its maps and lists is another matter. In the place of
#: the channels stands nothing where all of them are empty.
_ROWS = frozenset(
    product(*(_kinds(shape) | ({_NONE} if name == "channels" else set()) for name, shape in _WAY_SHAPES.items()))
)
#: Those that pack parts and are not at work: to make one takes as long as its work. Each is taken and put back in one
#: step, and one that failed never comes back.
_packers: list[msgpack.Packer] = []


def head(snapshot_id: SnapshotId, apart: bool, empty: bool) -> bytes:
    """Return how the bytes of a part begin: what all parts of one snapshot have in common."""
    incarnation, initiator, n = snapshot_id
    name = initiator.encode()
    return _HEAD.pack(FORMAT, apart, empty, incarnation, n, len(name)) + name


def whose(node: str, outbound: tuple[str, ...], inbound: tuple[str, ...]) -> bytes:
    """Return what follows: what all parts of one node have in common, its neighbours in the order of the counts."""
    names = "\0".join((node, *outbound, *inbound)).encode()
    return _SIZES.pack(len(outbound), len(inbound), len(names)) + names


def pack(local: LocalSnapshot, *, apart: bool = False) -> bytes:
    """Return a local snapshot as bytes for the way; `local.captured` must be a `Captured`.

    If its state travels `apart`, it is left out.
    """
    _, snapshot_id, captured, sent, received, _ = local
    assert isinstance(captured, Captured)
    empty = local.all_empty
    firsts: dict[str, int] | None = None
    in_flight: dict[str, list[int]] = {}
    bodies: list[bytes | memoryview] = []
    if not empty:
        firsts = {}
        for src, (first, payloads) in local.channels.items():
            firsts[src] = first
            # Not `if payloads`: of a thousand batches that would count the messages in each.
            if type(payloads) is not tuple or payloads:
                batches = _packed(payloads)
                in_flight[src] = [n for batch in batches for n in (batch.size, len(batch.data))]
                bodies += [batch.data for batch in batches]
    row = (
        None if apart else captured.state,
        captured.passive,
        captured.finished,
        captured.emitted,
        *captured.random,
        _plain_timers(captured) if captured.timers else (),
        firsts,
        in_flight,
    )
    packer = _packers.pop() if _packers else msgpack.Packer(unicode_errors="surrogatepass", default=_lowered)
    packed = packer.pack(row)
    _packers.append(packer)
    names, in_bytes = _form(local.node, tuple(sent), tuple(received))
    numbers = in_bytes(*sent.values(), *received.values(), len(packed))
    # Behind the rest, and not in it: a hundred thousand messages are copied once, and not at all when they are read.
    return b"".join((head(snapshot_id, apart, empty), names, numbers, packed, *bodies))


@lru_cache(maxsize=256)
def _form(node: str, outbound: tuple[str, ...], inbound: tuple[str, ...]) -> tuple[bytes, Callable[..., bytes]]:
    """Return what is the same in all parts of one node, and what makes bytes of its numbers."""
    return whose(node, outbound, inbound), struct.Struct(f"!{len(outbound) + len(inbound) + 1}Q").pack


def unpack(data: bytes, state: bytes | StoredState | None = None) -> LocalSnapshot:
    """Read what `pack` made.

    Args:
        data: What `pack` returned.
        state: That which travelled apart, if it did.

    Raises:
        CodecError: The bytes are none, or of another format; or there are two states, or there is none.
    """
    node, snapshot_id, sent, received, at = _read_front(data, state)
    end = at + _LENGTH.unpack_from(data, at)[0] + _LENGTH.size
    row = _read(data[at + _LENGTH.size : end])
    # Once for all: each look of its own would take longer than all of this one.
    if type(row) is not list or tuple(map(type, row)) not in _ROWS:
        raise _not_a_row(row)
    inside, passive, finished, emitted, seed, counter, timers, firsts, in_flight = row
    if (inside is None) is (state is None):
        raise _states(state)
    channels: Mapping[str, ChannelState] = EmptyChannels(received)
    if firsts is not None or in_flight:
        channels, end = _channels(row, data, end)
    if end != len(data):
        raise CodecError(f"not a local snapshot: {len(data)} bytes where {end} were due")
    if data[_EMPTY_AT] != isinstance(channels, EmptyChannels):
        raise CodecError("not a local snapshot: it says of its channels what is not so")
    captured = Captured(
        inside if state is None else state,
        _timers(row, timers) if timers else (),
        (seed, counter),
        passive,
        finished,
        emitted,
    )
    return LocalSnapshot(node, snapshot_id, captured, sent, received, channels)


def _read_front(
    data: bytes, state: bytes | StoredState | None
) -> tuple[str, SnapshotId, dict[str, int], dict[str, int], int]:
    """Return whose part it is, the counts, and where they end."""
    if len(data) < _HEAD.size:
        raise CodecError(f"{len(data)} bytes are not a local snapshot")
    found, apart, _, incarnation, n, length = _HEAD.unpack_from(data)
    if found != FORMAT:
        raise CodecError(f"a local snapshot of format {found}, this version reads {FORMAT}")
    sizes_at = _HEAD.size + length
    names_at = sizes_at + _SIZES.size
    if len(data) < names_at:
        raise CodecError(f"{len(data)} bytes are not a local snapshot: its names are missing")
    outbound, inbound, length = _SIZES.unpack_from(data, sizes_at)
    counts_at = names_at + length
    end = counts_at + NUMBER_BYTES * (outbound + inbound)
    if len(data) < end + _LENGTH.size:
        raise CodecError(f"{len(data)} bytes are not a local snapshot: its counts are missing")
    try:
        initiator = data[_HEAD.size : sizes_at].decode()
        node, *names = data[names_at:counts_at].decode().split("\0")
    except ValueError as error:
        raise CodecError(f"not a local snapshot: {told(error)}") from error
    if apart is (state is None):
        raise _states(state)
    counts = struct.unpack_from(f"!{outbound + inbound}Q", data, counts_at)
    sent = dict(zip(names[:outbound], counts, strict=False))
    received = dict(zip(names[outbound:], counts[outbound:], strict=False))
    if len(names) != len(counts) or (len(sent), len(received)) != (outbound, inbound):
        raise CodecError("not a local snapshot: its counts are not those of its neighbours")
    return node, SnapshotId(incarnation, initiator, n), sent, received, end


class PackedParts(Mapping[str, LocalSnapshot]):
    """Show parts that came packed, each with the state that came apart, by node: unpacked when one is looked at.

    Looks raise `CodecError`, naming the node, if a part is none.
    """

    def __init__(self, packed: Mapping[str, tuple[bytes, bytes | StoredState | None]]) -> None:
        self._nodes = tuple(packed)
        self._packed = dict(packed)
        self._states = [state for _, state in packed.values() if state is not None]
        self._parts: dict[str, LocalSnapshot] = {}

    def __getitem__(self, node: str) -> LocalSnapshot:
        packed = self._packed.get(node)
        if packed is None:
            return self._parts[node]
        try:
            part = unpack(*packed)
        except CodecError as error:
            raise CodecError(error.what, where=node) from error
        # In this order, for whoever looks at the same time in another thread.
        self._parts[node] = part
        self._packed.pop(node, None)
        return part

    def __contains__(self, node: object) -> bool:
        # `Mapping` would unpack it for that.
        return node in self._packed or node in self._parts

    def __iter__(self) -> Iterator[str]:
        return iter(self._nodes)

    def __len__(self) -> int:
        return len(self._nodes)

    @property
    def stored(self) -> list[int]:
        """The sizes of those states that are in files; nothing is unpacked for it."""
        return [state.size for state in self._states if isinstance(state, StoredState)]

    def __reduce__(self) -> tuple[object, ...]:
        # What is copied or pickled are the parts: the bytes are good for this version alone, and for no other thread's
        # look in between.
        return dict, ({node: self[node] for node in self._nodes},)


def _channels(row: list[Any], data: bytes, at: int) -> tuple[dict[str, ChannelState], int]:
    """Return the channels, with the messages that stand in `data` from `at` on, and where these end."""
    firsts, in_flight = row[-2:]
    if firsts is None or not (_WAY["channels"](firsts) and _WAY["in flight"](in_flight)):
        raise _not_a_row(row)
    channels = {src: empty_channel(first) for src, first in firsts.items()}
    if not in_flight.keys() <= channels.keys():
        raise CodecError("not a local snapshot: messages on a channel that it does not have")
    bodies = memoryview(data)
    for src, numbers in in_flight.items():
        if len(numbers) % 2:
            raise CodecError("not a local snapshot: messages without a length", where=src)
        length = sum(numbers[1::2])
        # None is of no bytes; and more than there is memory for could not even be counted.
        if min(numbers, default=0) < 0 or length > len(data) - at or sum(numbers[::2]) > length:
            raise CodecError("not a local snapshot: messages are missing", where=src)
        if numbers:
            body = bodies[at : at + length]
            payloads = _Run(numbers, body) if len(numbers) > 2 else PackedBatch(numbers[0], body)
            channels[src] = ChannelState(channels[src].first, payloads)
        at += length
    return channels, at


class _Run(Chained):
    """Show batches as they came, behind one another; taken apart when somebody looks, as whoever counts does not.

    Of each, `numbers` has how many messages and how many bytes it is.
    """

    __slots__ = ("_body", "_numbers")

    def __init__(self, numbers: list[int], body: memoryview) -> None:
        self._numbers = numbers
        self._body = body

    def __len__(self) -> int:
        return sum(self._numbers[::2])

    @property
    def batches(self) -> tuple[PackedBatch, ...]:
        """The batches, in order; made anew at every look."""
        ends = [*accumulate(self._numbers[1::2])]
        bodies = [self._body[at:end] for at, end in zip([0, *ends], ends, strict=False)]
        return tuple(map(PackedBatch, self._numbers[::2], bodies))

    def __reduce__(self) -> tuple[object, ...]:
        # As with one batch: a view cannot be pickled, and a copy need not keep what was read with it.
        return Chained, (self.batches,)


def _not_a_row(row: object) -> CodecError:
    """Return what is wrong with a list that is not that of a part on its way."""
    if type(row) is not list:
        return CodecError(f"not a local snapshot: a {type(row).__name__}")
    fields = dict(zip(_WAY, row, strict=False))
    if fields.get("channels", {}) is None and not fields.get("in flight"):
        fields["channels"] = {}  # All of them are empty.
    wrong = _wrong(fields, _WAY)
    return CodecError("not a local snapshot: " + (f"something is wrong with its {wrong!r}" if wrong else "too long"))


def _timers(row: list[Any], timers: list[list[Any]]) -> tuple[Timer, ...]:
    if not _WAY["timers"](timers):
        raise _not_a_row(row)
    return _put_timers(timers)


def _put_timers(timers: list[list[Any]]) -> tuple[Timer, ...]:
    return tuple([Timer(due, period, method, _PLAIN.decode(args)) for due, period, method, args in timers])


def _plain_timers(captured: Captured) -> list[list[object]]:
    return [[*timer[:3], _PLAIN.encode(timer.args)] for timer in captured.timers]


def pack_lasting(local: LocalSnapshot, *, apart: bool = False) -> bytes:
    """Return a local snapshot as bytes to be kept; otherwise as `pack`.

    Raises:
        CodecError: What came as packed messages is none.
    """
    captured = local.captured
    assert isinstance(captured, Captured)
    plain = {
        "format": LASTING_FORMAT,
        "node": local.node,
        "id": list(local.snapshot_id),
        "state": None if apart else captured.state,
        "timers": _plain_timers(captured),
        "random": list(captured.random),
        "passive": captured.passive,
        "finished": captured.finished,
        "emitted": captured.emitted,
        "sent": local.sent,
        "received": local.received,
        "channels": {src: state.first for src, state in local.channels.items()},
        "in flight": {src: list(_blocks(each.payloads)) for src, each in local.channels.items() if each.payloads},
    }
    packed: bytes = msgpack.packb(plain, unicode_errors="surrogatepass", default=_lowered)
    return packed


def unpack_lasting(data: bytes, state: bytes | StoredState | None = None) -> LocalSnapshot:
    """Read what `pack_lasting` made; whoever wrote the bytes, reading them runs no code.

    Raises:
        CodecError: As `unpack`, also for what `pack` made; or a count is none, or a message is not fixed.
    """
    plain = _read_lasting(data)
    sent, received, firsts, in_flight = (plain[name] for name in ("sent", "received", "channels", "in flight"))
    incarnation, initiator, n = plain["id"]
    counts = chain((incarnation, n, plain["emitted"]), sent.values(), received.values(), firsts.values())
    if not all(0 <= count <= _MOST for count in counts):
        raise CodecError("not a local snapshot: a count in it is negative or absurd")
    if (plain["state"] is None) is (state is None):
        raise _states(state)
    if not in_flight.keys() <= firsts.keys():
        raise CodecError("not a local snapshot: messages on a channel that it does not have")
    channels = {
        src: ChannelState(first, _messages(src, in_flight[src])) if src in in_flight else empty_channel(first)
        for src, first in firsts.items()
    }
    timers = _put_timers(plain["timers"])
    if not all(is_frozen(timer.args) for timer in timers):
        raise CodecError("not a local snapshot: the arguments of a timer are not fixed")
    captured = Captured(
        plain["state"] if state is None else state,
        timers,
        tuple(plain["random"]),
        plain["passive"],
        plain["finished"],
        plain["emitted"],
    )
    return LocalSnapshot(plain["node"], SnapshotId(incarnation, initiator, n), captured, sent, received, channels)


def _read(data: bytes) -> object:
    try:
        return msgpack.unpackb(data, unicode_errors="surrogatepass", ext_hook=_raised, timestamp=2)
    except Exception as error:
        raise CodecError(f"{len(data)} bytes are not a local snapshot: {told(error)}") from error


def _read_lasting(data: bytes) -> dict[str, Any]:
    """Return the fields, each of its shape."""
    plain = _read(data)
    if type(plain) is not dict:
        raise CodecError(f"not a local snapshot: a {type(plain).__name__}")
    found = plain.get("format")
    if type(found) is not str or found != LASTING_FORMAT:
        raise CodecError(f"a local snapshot of format {_shown(found)}, this version reads {LASTING_FORMAT}")
    wrong = _wrong(plain, _LASTING)
    if wrong is not None:
        # Here and not in whoever trips over it: bytes may be damaged and still make a value.
        raise CodecError(f"not a local snapshot: something is wrong with its {wrong!r}")
    return plain


def _states(state: object) -> CodecError:
    return CodecError("not a local snapshot: its state is " + ("left out" if state is None else "there twice"))


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
    # Those that are packed are never empty, and to ask each would take as long as all the rest.
    return [
        batch if type(batch) is PackedBatch else pack_batch(list(batch))
        for batch in batches
        if type(batch) is PackedBatch or batch
    ]


def _lowered(value: int) -> msgpack.ExtType:
    return msgpack.ExtType(_WIDE_INT, value.to_bytes(value.bit_length() // 8 + 1, "big", signed=True))


def _raised(code: int, body: bytes) -> int:
    if code != _WIDE_INT:
        raise ValueError(f"unknown extension {code}")
    return int.from_bytes(body, "big", signed=True)
