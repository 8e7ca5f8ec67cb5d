"""Payloads of messages in a row, packed into bytes: as they travel, as they wait, and as a snapshot brings them in.

This module owns how payloads are packed. It must not know channels, or what a payload means.

Packing serves speed, between processes of one cluster that trust each other: a batch is packed once by its sender and
unpacked once, by whoever takes the messages. Until then it stays as it is, in the inbox and in the recorded state of
its channel, so that a hundred thousand messages in flight cost no more than their bytes.

`marshal` is three times as fast as what the codec does, and exact for what payloads are made of. Like the codec, and
unlike pickle, it runs no code; unlike the codec's, its bytes are good for one version of Python, and not to be kept.
"""

from __future__ import annotations

import marshal
from collections.abc import Iterator, Sequence
from typing import overload

from mpsnap.core.errors import CodecError
from mpsnap.core.kinds import told

#: Version 2 keeps no table of repeated objects: faster for small tuples, and nothing here needs one.
_VERSION = 2


class PackedBatch(Sequence[object]):
    """Show payloads that are packed; they are unpacked anew at every look.

    `size` says how many they are. Looking raises `CodecError` if the bytes hold something else.
    """

    __slots__ = ("data", "size")

    def __init__(self, size: int, data: bytes | memoryview) -> None:
        self.size = size
        self.data = data

    def __reduce__(self) -> tuple[object, ...]:
        # A view of what was read with others cannot be pickled, and a copy need not keep the others.
        return type(self), (self.size, bytes(self.data))

    def __len__(self) -> int:
        return self.size

    def __iter__(self) -> Iterator[object]:
        return iter(self.unpacked())

    @overload
    def __getitem__(self, index: int) -> object: ...
    @overload
    def __getitem__(self, index: slice) -> list[object]: ...
    def __getitem__(self, index: int | slice) -> object:
        return self.unpacked()[index]

    def __eq__(self, other: object) -> bool:
        return tuple(self) == tuple(other) if isinstance(other, Sequence) else NotImplemented

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        return f"<{self.size} payloads in {len(self.data)} bytes>"

    def unpacked(self) -> list[object]:
        """Return the payloads.

        Raises:
            CodecError: The bytes are not so many payloads.
        """
        try:
            payloads = marshal.loads(self.data)
            if type(payloads) is not list or len(payloads) != self.size:
                raise TypeError(f"a {type(payloads).__name__} in place of {self.size} payloads")
        except (EOFError, ValueError, TypeError) as error:
            raise CodecError(f"{len(self.data)} bytes are not payloads that were packed: {told(error)}") from error
        return payloads


def pack(payloads: list[object]) -> bytes:
    """Return payloads, each of them fixed, as the bytes of a `PackedBatch`."""
    return marshal.dumps(payloads, _VERSION)


def pack_batch(payloads: list[object]) -> PackedBatch:
    """Pack payloads, each of them fixed."""
    return PackedBatch(len(payloads), pack(payloads))
