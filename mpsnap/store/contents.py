"""What is in one stored snapshot, and how it becomes a `GlobalSnapshot` again.

This module owns the putting together and the checks that need more than one file. It must not know how files are kept.

Reading trusts nothing and runs nothing: parts come in the lasting form alone, values are decoded without the user's
classes, pickles stay pickles, and what the manifest says of a part is compared with what the part says.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Final, NamedTuple

from mpsnap.core.codec import Codec
from mpsnap.core.errors import CodecError, ConsistencyError, SnapshotCorrupt
from mpsnap.core.part import unpack_lasting
from mpsnap.core.protocol import LocalSnapshot
from mpsnap.core.snapshot import Captured, GlobalSnapshot, StoredState
from mpsnap.store.manifest import MANIFEST, Manifest, Receipt

_HINT: Final = "an older snapshot of this store, or a copy of that file from elsewhere"
_PLAIN: Final = Codec()


class Output(NamedTuple):
    """Hold the `n`-th record that a node put out, encoded; it was not yet released at the cut."""

    node: str
    n: int
    record: bytes


class Contents(ABC):
    """Show the files of one snapshot while they are read; what is open stays readable when the snapshot is removed."""

    #: Checked.
    manifest: Manifest

    @abstractmethod
    def where(self, name: str) -> str:
        """Return in words where a file is."""

    @abstractmethod
    def read(self, receipt: Receipt) -> bytes:
        """Return the bytes of a file.

        Raises:
            SnapshotCorrupt: They are not those of the receipt.
        """

    @abstractmethod
    def state(self, receipt: Receipt) -> StoredState:
        """Return a file of a state, to be read when somebody looks at it.

        Raises:
            SnapshotCorrupt: It is not as large as the receipt says.
        """

    def snapshot(self) -> GlobalSnapshot:
        """Return the snapshot.

        Raises:
            SnapshotCorrupt: It is not what was committed.
        """
        parts = self._parts()
        try:
            return self._merged(parts)
        except BaseException:
            _close_states(parts)
            raise

    def part(self, node: str) -> LocalSnapshot:
        """Return one node's part.

        Raises:
            SnapshotCorrupt: It is not what was committed.
        """
        entry = self.manifest.nodes[node]
        data = self.read(entry.part)
        state = None if entry.state is None else self.state(entry.state)
        try:
            with self.telling(entry.part.name):
                local = unpack_lasting(data, state)
                for what, found, told in (
                    ("node", local.node, node),
                    ("snapshot", local.snapshot_id, self.manifest.id),
                    ("messages sent", local.sent, entry.sent),
                    ("messages received", local.received, entry.received),
                ):
                    if found != told:
                        raise CodecError(f"its {what} is not what the manifest says")
        except BaseException:
            if state is not None:
                state.close()
            raise
        return local

    def outputs(self) -> tuple[Output, ...]:
        """Return the outputs that were not released.

        Raises:
            SnapshotCorrupt: They are not what was committed.
        """
        receipt = self.manifest.outputs
        if receipt is None:
            return ()
        with self.telling(receipt.name):
            return decode_outputs(self.read(receipt))

    def verify(self) -> None:
        """Read everything and look at every value.

        Raises:
            SnapshotCorrupt: Something is not what was committed.
        """
        self.outputs()
        parts = self._parts()
        try:
            snapshot = self._merged(parts)
            for name, node in snapshot.nodes.items():
                entry = self.manifest.nodes[name]
                with self.telling((entry.state or entry.part).name):
                    _ = node.state
                with self.telling(entry.part.name):
                    for src in snapshot.topology.inbound(name):
                        _ = snapshot.channels[src, name]
        finally:
            _close_states(parts)

    @contextmanager
    def telling(self, name: str) -> Iterator[None]:
        """Say of what goes wrong inside that this file shows it."""
        try:
            yield
        except (CodecError, ConsistencyError) as error:
            raise corrupt(self.where(name), error.what) from error

    def _parts(self) -> dict[str, LocalSnapshot]:
        parts: dict[str, LocalSnapshot] = {}
        try:
            for node in self.manifest.topology.nodes:
                parts[node] = self.part(node)
        except BaseException:
            _close_states(parts)
            raise
        return parts

    def _merged(self, parts: Mapping[str, LocalSnapshot]) -> GlobalSnapshot:
        manifest = self.manifest
        snapshot = GlobalSnapshot(
            manifest.number,
            manifest.id,
            manifest.initiators,
            manifest.topology,
            parts,
            dict.fromkeys(manifest.topology.nodes, _PLAIN),
            duration=manifest.duration,
        )
        with self.telling(MANIFEST):
            if manifest.verified:
                snapshot.verify()
            else:
                snapshot.check_complete()
        return snapshot


def _close_states(parts: Mapping[str, LocalSnapshot]) -> None:
    for part in parts.values():
        if isinstance(part.captured, Captured) and isinstance(part.captured.state, StoredState):
            part.captured.state.close()


def corrupt(where: str, what: str) -> SnapshotCorrupt:
    """Return the error for a file that is not what was committed."""
    return SnapshotCorrupt(what, where=where, hint=_HINT)


def encode_outputs(outputs: Iterable[Output]) -> bytes:
    """Return outputs as the bytes of their file."""
    return _PLAIN.encode([tuple(output) for output in outputs])


def decode_outputs(data: bytes) -> tuple[Output, ...]:
    """Read what `encode_outputs` made.

    Raises:
        CodecError: It is something else.
    """
    read = _PLAIN.decode(data)
    if type(read) is not list or not all(
        type(item) is tuple and list(map(type, item)) == [str, int, bytes] for item in read
    ):
        raise CodecError("these are no outputs")
    return tuple(Output(*item) for item in read)
