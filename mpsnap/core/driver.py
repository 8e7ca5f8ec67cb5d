"""What a running node asks of whoever drives it: `Driver`, the seam between a `NodeCore` and an engine.

This module owns the calls that go out of a node. It must not know when they come, which is the node's business
(`nodecore`), nor what an engine does with them.

Rules for whoever implements a driver: calls come in order and are carried out in order, completely, before the node is
offered anything else; none may block, or a node would not see markers; and the contract of `protocol` holds.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from typing import Protocol, TypeVar

from mpsnap.core.errors import MpsnapError
from mpsnap.core.protocol import LocalSnapshot, Marker, Outbox, SnapshotId
from mpsnap.core.snapshot import UnfinishedState

T = TypeVar("T")


class Encode(Protocol):
    """Make the bytes of a state and return what `use` makes of them; when it returns they are gone."""

    def __call__(self, use: Callable[[memoryview], T]) -> T:
        """Raise a `SnapshotError` if the state cannot be kept."""


class Driver(ABC):
    """What a `NodeCore` asks of whoever drives it. Calls come in order and must be carried out in order."""

    __slots__ = ()

    @abstractmethod
    def send(self, dst: str, number: int, payload: object) -> None:
        """Put message `number` on the channel to `dst`; the payload is fixed. Must not block."""

    def offer(self, outbox: Outbox) -> None:
        """Attend to an outbox in which as many messages stand as its limit says: one, to begin with, passed on at once.

        A driver that sends in batches overrides this, sets the limits, and collects when it sees fit.
        """
        self.send(outbox.dst, *outbox.collect_one())

    @abstractmethod
    def send_marker(self, dst: str, marker: Marker) -> None:
        """Put a marker on the channel to `dst`, behind everything sent there so far, collected or not."""

    def send_markers(self, snapshot_id: SnapshotId, sent: Mapping[str, int]) -> None:
        """Put this snapshot's marker on each of these channels, as `send_marker` does; `sent` is what each counts."""
        for dst, count in sent.items():
            self.send_marker(dst, Marker(snapshot_id, count))

    @abstractmethod
    def initiated(self, snapshot_id: SnapshotId) -> None:
        """Note that this node has recorded spontaneously, or had recorded already when it was asked to."""

    @abstractmethod
    def report(self, local: LocalSnapshot) -> None:
        """Hand this node's part of a snapshot to whoever collects."""

    def fix(self, snapshot_id: SnapshotId | None, encode: Encode) -> bytes | UnfinishedState:
        """Fix a state as it is at this moment, before any marker leaves, whatever becomes of it later.

        Args:
            snapshot_id: What it is for; None where nothing is recorded and only the attempt counts.
            encode: Makes its bytes; raises a `SnapshotError` if it cannot be kept.

        Returns:
            Its bytes, or what stands for them: `report` gets it back, and if it comes to nothing, `NodeCore.refuse`
            has to be told.
        """
        return encode(bytes)

    @abstractmethod
    def refused(self, snapshot_id: SnapshotId, error: MpsnapError) -> None:
        """Note that this node could not record, so that the snapshot must be abandoned everywhere."""

    @abstractmethod
    def emit(self, n: int, record: bytes) -> None:
        """Put out the node's `n`-th record, encoded."""

    @abstractmethod
    def reply(self, ticket: int, value: bytes) -> None:
        """Return what `on_command` answered to the command with this ticket, encoded."""

    @abstractmethod
    def log(self, text: str) -> None:
        """Pass a line from the user's code on."""

    def taken(self, src: str, received: int) -> None:  # noqa: B027 - only a driver with flow control has a use for it
        """Note that messages from `src` were taken out of the inbox, so many in all."""

    def phase(self, phase: str) -> None:  # noqa: B027 - a driver whose nodes cannot hang has no use for it
        """Note what the node does from now on: a word of `PHASES`."""
