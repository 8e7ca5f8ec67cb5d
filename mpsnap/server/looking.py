"""Snapshots of a running cluster, looked into from outside of its supervisor.

This module owns the way from what the supervisor hands out, or its store has, to documents. It must not know who asks.
No code of the user's is here: values of its classes come as their fields, and pickles as what they are.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mpsnap.core.codec import Codec
from mpsnap.core.errors import MpsnapError, SnapshotError
from mpsnap.core.part import unpack
from mpsnap.core.protocol import SnapshotId
from mpsnap.core.snapshot import GlobalSnapshot, NodeSnapshot
from mpsnap.core.topology import Topology
from mpsnap.runtime.staging import Receipt, StagedFile
from mpsnap.server.brief import brief, summary
from mpsnap.store.reader import DirectoryReader
from mpsnap.views.document import channel_document, diff_document, node_document, snapshot_document

#: Bytes of a state, and messages of a channel, that are decoded for a brief look.
BRIEF_BYTES = 4 << 20
BRIEF_MESSAGES = 50


class Snapshots:
    """Look into the snapshots of one run.

    Args:
        topology: Of the run.
        store: The folder of its store, None if it has none.
    """

    def __init__(self, topology: Topology, store: str | None) -> None:
        self._topology = topology
        self._store = store

    @property
    def stored(self) -> bool:
        """Whether they are in a store."""
        return self._store is not None

    def kept(self) -> frozenset[int] | None:
        """Return the numbers of those that are in the store now, None without one."""
        if self._store is None:
            return None
        try:
            with DirectoryReader(self._store) as reader:
                return frozenset(reader.numbers())
        except MpsnapError:
            return frozenset()  # The store is gone: then none is there.

    def document(self, number: int, short: bool, told: Mapping[str, Any]) -> dict[str, Any]:
        """Return a snapshot as a document, a `short` one cut for people; `told` is what the supervisor holds of it.

        Raises:
            MpsnapError: It is not there any more, or is not what was committed.
        """
        snapshot = self._load(number, told)
        return _brief_document(snapshot) if short else snapshot_document(snapshot)

    def diff(self, numbers: tuple[int, int], short: bool, told: tuple[Mapping[str, Any], ...]) -> dict[str, Any]:
        """Return how two snapshots differ; raises as `document`."""
        old, new = (self._load(number, each) for number, each in zip(numbers, told, strict=True))
        found = diff_document(old.diff(new))
        return _brief_diff(found) if short else found

    def summaries(self, number: int, told: Mapping[str, Any]) -> dict[str, str]:
        """Return a few words on each node's state in a snapshot that is not large; raises as `document`."""
        snapshot = self._load(number, told)
        return {name: summary(node_document(node)["state"]) for name, node in snapshot.nodes.items()}

    def _load(self, number: int, told: Mapping[str, Any]) -> GlobalSnapshot:
        if self._store is not None:
            with DirectoryReader(self._store) as reader:
                return reader.load(number)
        parts = {}
        for node, packed, place in told["parts"]:
            try:
                state = None if place is None else StagedFile(place[0], Receipt(*place[1:]))
            except OSError as error:
                raise SnapshotError(f"snapshot {number} is not held any more", where=node) from error
            parts[node] = unpack(packed, state)
        snapshot = GlobalSnapshot(
            number,
            SnapshotId.parse(told["id"]),
            tuple(told["initiators"]),
            self._topology,
            parts,
            dict.fromkeys(parts, Codec()),
            told["duration"],
        )
        snapshot.verify()
        return snapshot


def _brief_document(snapshot: GlobalSnapshot) -> dict[str, Any]:
    channels = []
    for src, dst in snapshot.channels:
        _, count = snapshot.flight(src, dst)
        if count > BRIEF_MESSAGES:
            document = {"src": src, "dst": dst, "messages": [{"$more": count}]}
        else:
            document = brief(channel_document(snapshot, src, dst))
        channels.append(document)
    return {
        "number": snapshot.number,
        "id": str(snapshot.id),
        "initiators": list(snapshot.initiators),
        "verified": snapshot.verified,
        "duration_s": snapshot.duration,
        "nodes": {name: _brief_node(node) for name, node in snapshot.nodes.items()},
        "channels": channels,
    }


def _brief_node(node: NodeSnapshot) -> dict[str, Any]:
    if node.stored is not None and node.stored > BRIEF_BYTES:
        counts = {"sent": dict(node.sent), "received": dict(node.received)}
        return {"state": {"$size": node.stored}, **counts, "passive": node.passive, "finished": node.finished}
    document = node_document(node)
    return {**document, "state": brief(document["state"])}


def _brief_diff(found: dict[str, Any]) -> dict[str, Any]:
    """Cut values and lists of messages, but no node and no channel."""
    nodes = {
        name: {key: value if key in ("sent", "received") else brief(value) for key, value in node.items()}
        for name, node in found["nodes"].items()
    }
    return {**found, "nodes": nodes, "channels": [brief(channel) for channel in found["channels"]]}
