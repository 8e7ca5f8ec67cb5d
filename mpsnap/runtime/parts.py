"""A node's part of a snapshot on its way out: in a note or a file to the supervisor, and with a store to the disk.

This module owns where the bytes of a part go, and how the supervisor gets at them. It must not know when a part is
complete, or what becomes of it.

With a store each part is made twice: once for the supervisor, which has to merge and prove the cut at once and reads
its messages packed as they are, and once to be kept. What is large, the state, is written once and serves both.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Any, NamedTuple

from mpsnap.core.part import pack, pack_lasting
from mpsnap.core.protocol import LocalSnapshot, SnapshotId
from mpsnap.core.snapshot import Captured
from mpsnap.runtime.capture import Captures, Encoding, File
from mpsnap.runtime.staging import STAGING_BYTES, Receipt, StagedFile, Staging, Ticket, UnnamedFile, receive
from mpsnap.store.contract import Blob, Place
from mpsnap.store.manifest import Receipt as StagedReceipt


class HandedOver(NamedTuple):
    """Say where a part is; plain data, to go into a note.

    `rest` is the part, or where it is; `ticket` or `state` says where its state is, if that is apart from it; `part` is
    what is to be kept of it, with `state`, and None where nothing is.
    """

    rest: bytes | Ticket
    ticket: Ticket | None
    state: StagedReceipt | None
    part: StagedReceipt | None


class Parts:
    """Hand over the parts of one node.

    Args:
        place: Where the store has them staged, None without a store.
        index: The node's place in the topology.
    """

    def __init__(self, place: Place | None, index: int) -> None:
        self._place = place
        self._index = index
        self.staging = Staging()
        #: Snapshots that nobody will keep.
        self._passing: set[SnapshotId] = set()

    def open_file(self) -> File:
        """Open a file for a state that a child encodes; raises `OSError` or `StoreError`."""
        return UnnamedFile() if self._place is None else self._place.create(self._index)

    def let_pass(self, snapshot_id: SnapshotId) -> None:
        """Note that a snapshot is looked at and not kept."""
        if self._place is not None:
            self._passing.add(snapshot_id)

    def forget(self, snapshot_id: SnapshotId) -> None:
        """Note that no part of a snapshot will be handed over."""
        self._passing.discard(snapshot_id)

    def hand_over(self, local: LocalSnapshot, captures: Captures) -> bytes | HandedOver:
        """Put a part where the supervisor finds it; nothing is left of one that cannot be put there.

        Returns:
            The part itself, if that is small and nothing of it is to be kept.

        Raises:
            OSError: A file could not be filled.
            StoreError: The same, in the store.
        """
        keeps = self._place is not None and local.snapshot_id not in self._passing
        self._passing.discard(local.snapshot_id)
        captured = local.captured
        assert isinstance(captured, Captured)
        if not keeps and isinstance(captured.state, bytes) and len(captured.state) <= STAGING_BYTES:
            # Nearly always, and then a node of many snapshots a second has nothing to undo.
            rest = self.staging.put_if_large(pack(local))
            return rest if isinstance(rest, bytes) else HandedOver(rest, None, None, None)
        with contextlib.ExitStack() as undo:
            ticket, state = self._put_state(captured.state, captures, keeps, undo)
            apart = ticket is not None or state is not None
            part = self._keep(pack_lasting(local, apart=apart), undo) if keeps else None
            handed_over = HandedOver(self.staging.put_if_large(pack(local, apart=apart)), ticket, state, part)
            undo.pop_all()
        return handed_over

    def _put_state(
        self, state: object, captures: Captures, keeps: bool, undo: contextlib.ExitStack
    ) -> tuple[Ticket | None, StagedReceipt | None]:
        if isinstance(state, Encoding):
            file, receipt = captures.release(state)
            undo.callback(file.drop)
            if isinstance(file, UnnamedFile):
                return self._hold(self.staging.hold(file.file, Receipt(*receipt)), undo), None
            assert isinstance(file, Blob)
            file.close()
            return None, StagedReceipt(*receipt)
        assert isinstance(state, bytes)
        if len(state) <= STAGING_BYTES:
            return None, None
        return (None, self._keep(state, undo)) if keeps else (self._hold(self.staging.put(state), undo), None)

    def _keep(self, data: bytes, undo: contextlib.ExitStack) -> StagedReceipt:
        assert self._place is not None
        blob = self._place.create(self._index)
        undo.callback(blob.drop)
        return blob.fill(data)

    def _hold(self, ticket: Ticket, undo: contextlib.ExitStack) -> Ticket:
        undo.callback(self.staging.release, ticket[0])
        return ticket


class TakenOver(NamedTuple):
    """Hold a part as the supervisor has it.

    `data` is the part, `state` its state if it came apart in a file; `staged` are the receipts of the state, in place
    of `state`, and of what is to be kept of the part, None where nothing is.
    """

    data: bytes
    state: bytes | StagedFile | None
    staged: tuple[StagedReceipt | None, StagedReceipt | None] | None


def take_over(handed_over: tuple[Any, ...], pid: int, release: Callable[[int], None]) -> TakenOver:
    """Get at what the node with this pid has handed over.

    Args:
        handed_over: The values of a `HandedOver`, as they come out of a note.
        pid: Of the node.
        release: Is told of each file that the node need not hold any longer, also of one that cannot be read.

    Raises:
        OSError: A file is not there, or there are no descriptors left here.
        CodecError: A file does not hold what it should.
    """
    rest, ticket, state, part = handed_over
    opened = None if ticket is None else _take(ticket, pid, release)
    packed = rest if isinstance(rest, bytes) else _take(rest, pid, release)
    data = packed if isinstance(packed, bytes) else packed.read()
    staged = None if state is None else StagedReceipt(*state), None if part is None else StagedReceipt(*part)
    return TakenOver(data, opened, None if staged == (None, None) else staged)


def _take(ticket: Ticket, pid: int, release: Callable[[int], None]) -> bytes | StagedFile:
    try:
        return receive(pid, ticket)
    finally:
        release(ticket[0])
