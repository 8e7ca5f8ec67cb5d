"""A node's part of a snapshot as bytes, on its way to whoever collects.

This module owns the form of these bytes. It must not know how they travel.

Every node makes one and the supervisor reads them one after another, all within the latency of a snapshot: so this is
msgpack as it stands, of maps and lists alone, which takes a tenth of what the codec takes to look through each value.
The messages in flight stay packed as they were sent (`batch`), however many they are.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import msgpack

from mpsnap.core.batch import PackedBatch, pack_batch
from mpsnap.core.codec import Codec
from mpsnap.core.errors import CodecError
from mpsnap.core.kinds import told
from mpsnap.core.protocol import Chained, ChannelState, LocalSnapshot, SnapshotId
from mpsnap.core.snapshot import Captured, StoredState, Timer

#: Version of these bytes; a reader refuses any other.
FORMAT = 3

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
    "in flight": {str: ([int, bytes],)},
}


def pack(local: LocalSnapshot, *, apart: bool = False) -> bytes:
    """Return a local snapshot as bytes; `local.captured` must be a `Captured`.

    If its state travels `apart`, it is left out.
    """
    captured = local.captured
    assert isinstance(captured, Captured)
    plain = {
        "format": FORMAT,
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
        "in flight": {src: _packed(state.payloads) for src, state in local.channels.items() if state.payloads},
    }
    packed: bytes = msgpack.packb(plain, unicode_errors="surrogatepass", default=_lowered)
    return packed


def unpack(data: bytes, state: bytes | StoredState | None = None) -> LocalSnapshot:
    """Read what `pack` made.

    Args:
        data: What `pack` returned.
        state: That which travelled apart, if it did.

    Raises:
        CodecError: The bytes are none, or of another format; or there are two states, or there is none.
    """
    try:
        plain = msgpack.unpackb(data, unicode_errors="surrogatepass", ext_hook=_raised, timestamp=2)
    except Exception as error:
        raise CodecError(f"{len(data)} bytes are not a local snapshot: {told(error)}") from error
    if type(plain) is not dict:
        raise CodecError(f"not a local snapshot: a {type(plain).__name__}")
    version = plain.get("format")
    if type(version) is not int or version != FORMAT:
        raise CodecError(f"a local snapshot of format {version!r}, this version reads {FORMAT}")
    for name, shape in _SHAPES.items():
        # Here and not in whoever trips over it: bytes may be damaged and still make a value.
        if name not in plain or not _fits(plain[name], shape):
            raise CodecError(f"not a local snapshot: something is wrong with its {name!r}")
    if (plain["state"] is None) is (state is None):
        raise CodecError("not a local snapshot: its state is " + ("left out" if state is None else "there twice"))
    captured = Captured(
        plain["state"] if state is None else state,
        tuple(Timer(due, period, method, _PLAIN.decode(args)) for due, period, method, args in plain["timers"]),
        tuple(plain["random"]),
        plain["passive"],
        plain["finished"],
        plain["emitted"],
    )
    channels = {}
    for src, first in plain["channels"].items():
        batches = plain["in flight"].pop(src, None)
        channels[src] = ChannelState(first, Chained([PackedBatch(*batch) for batch in batches]) if batches else ())
    if plain["in flight"]:
        raise CodecError("not a local snapshot: messages on a channel that it does not have")
    return LocalSnapshot(plain["node"], SnapshotId(*plain["id"]), captured, plain["sent"], plain["received"], channels)


def _packed(payloads: Sequence[object]) -> list[tuple[int, bytes]]:
    """Return payloads as batches, of which those that are packed already are left as they are."""
    batches = payloads.batches if isinstance(payloads, Chained) else (payloads,)
    made = [batch if isinstance(batch, PackedBatch) else pack_batch(list(batch)) for batch in batches if batch]
    return [(batch.size, batch.data) for batch in made]


def _lowered(value: int) -> msgpack.ExtType:
    return msgpack.ExtType(_WIDE_INT, value.to_bytes(value.bit_length() // 8 + 1, "big", signed=True))


def _raised(code: int, body: bytes) -> int:
    if code != _WIDE_INT:
        raise ValueError(f"unknown extension {code}")
    return int.from_bytes(body, "big", signed=True)


def _fits(value: Any, shape: Any) -> bool:
    if isinstance(shape, type):
        return type(value) is shape
    if isinstance(shape, frozenset):
        return type(value) in shape
    if isinstance(shape, tuple):
        return type(value) is list and all(_fits(item, shape[0]) for item in value)
    if isinstance(shape, list):
        return type(value) is list and len(value) == len(shape) and all(map(_fits, value, shape))
    ((key_shape, item_shape),) = shape.items()
    if type(value) is not dict or not {key_shape}.issuperset(map(type, value)):
        return False
    if isinstance(item_shape, type):
        return {item_shape}.issuperset(map(type, value.values()))
    return all(_fits(item, item_shape) for item in value.values())
