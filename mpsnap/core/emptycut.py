"""Prove a cut with nothing in flight by its parts as they come, without unpacking them.

This module owns the short way to the proof that `GlobalSnapshot.verify` gives in full. It must not know more of a part
than how its bytes begin (`part`).

Nearly every cut of a cluster that is at rest is of this kind. Whoever wished for it waits until it is proven, and to
unpack all parts and look at every channel takes one process as long as its nodes took for the snapshot. Here all the
counts of a cut are compared in one step; a part is unpacked when somebody looks at it.

Rule a maintainer keeps: where `holds` says yes, `verify` finds nothing, and a test compares the two. A no says only
that the long way is to be gone, which also finds what is to blame.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from operator import itemgetter
from struct import Struct
from typing import Any

from mpsnap.core.part import front, is_whole, names_in
from mpsnap.core.protocol import SnapshotId
from mpsnap.core.snapshot import StoredState
from mpsnap.core.topology import Topology


class EmptyCut:
    """Say of cuts of one topology whether they are complete, consistent and without a message in flight."""

    def __init__(self, topology: Topology) -> None:
        #: By node, the names in its part, and how many channels lead out and in.
        self._nodes: dict[str, tuple[bytes, int, int]] = {}
        sent_at: dict[tuple[str, str], int] = {}
        received_at: dict[tuple[str, str], int] = {}
        at = 0
        for node, (inbound, outbound) in topology.neighbours.items():
            self._nodes[node] = names_in(node, outbound, inbound), len(outbound), len(inbound)
            sent_at |= {(node, dst): at + k for k, dst in enumerate(outbound)}
            received_at |= {(src, node): at + len(outbound) + k for k, src in enumerate(inbound)}
            at += len(outbound) + len(inbound)
        self._counts = Struct(f"!{at}Q")
        #: They pick, out of the counts of all parts, those of the messages sent and received, channel by channel.
        self._sent = _picking([sent_at[channel] for channel in topology.channels])
        self._received = _picking([received_at[channel] for channel in topology.channels])

    def holds(self, snapshot_id: SnapshotId, parts: Mapping[str, tuple[bytes, bytes | StoredState | None]]) -> bool:
        """Return whether these are the parts of all nodes in this snapshot, and prove that nothing was in flight.

        Args:
            snapshot_id: Of the snapshot that they are to be parts of.
            parts: By node, what `pack` made of its part, and the state that came apart, if it did.

        Paper: section 2. With no message in flight, a cut is consistent if on each channel as many messages were
        received as were sent.
        """
        if parts.keys() != self._nodes.keys():
            return False
        counts = []
        for node, (names, outbound, inbound) in self._nodes.items():
            data, state = parts[node]
            begins, end = front(snapshot_id, names, outbound, inbound, apart=state is not None, empty=True)
            if not data.startswith(begins) or not is_whole(data, end):
                return False
            counts.append(data[len(begins) : end])
        numbers = self._counts.unpack(b"".join(counts))
        return bool(self._sent(numbers) == self._received(numbers))


def _picking(places: list[int]) -> Callable[[tuple[int, ...]], Any]:
    return itemgetter(*places) if places else lambda numbers: ()
