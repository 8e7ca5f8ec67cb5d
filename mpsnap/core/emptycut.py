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

from collections.abc import Callable, Mapping, Sequence
from operator import add, getitem, itemgetter, sub
from struct import Struct
from typing import Any, NamedTuple

from mpsnap.core.part import NUMBER_BYTES, head, whose
from mpsnap.core.protocol import SnapshotId
from mpsnap.core.snapshot import StoredState
from mpsnap.core.topology import Topology


class _Layout(NamedTuple):
    """Say how the beginnings of all parts are read at once, where their heads have one length."""

    #: By node, the beginning of its part: all but its list; and how long it is.
    beginnings: list[slice]
    ends: list[int]
    #: Of all beginnings one behind the other: for each, head and names in one piece, then the numbers.
    fields: Struct


class EmptyCut:
    """Say of cuts of one topology whether they are complete, consistent and without a message in flight."""

    def __init__(self, topology: Topology) -> None:
        #: By node, what its part goes on with behind the head, and how many numbers come then: the counts, and how long
        #: the list is.
        self._nodes: dict[str, tuple[bytes, int]] = {}
        self._layouts: dict[int, _Layout] = {}
        names_at, length_at = [], []
        sent_at: dict[tuple[str, str], int] = {}
        received_at: dict[tuple[str, str], int] = {}
        at = 0
        for node, (inbound, outbound) in topology.neighbours.items():
            self._nodes[node] = whose(node, outbound, inbound), len(outbound) + len(inbound) + 1
            names_at.append(at)
            sent_at |= {(node, dst): at + k for k, dst in enumerate(outbound, 1)}
            received_at |= {(src, node): at + k for k, src in enumerate(inbound, 1 + len(outbound))}
            at += 1 + self._nodes[node][1]
            length_at.append(at - 1)
        self._names = [names for names, _ in self._nodes.values()]
        self._in_order = _picking([*self._nodes])
        #: They pick, out of the fields, all of one kind: head and names, node by node; what was sent and what received,
        #: channel by channel; how long the lists are, node by node.
        self._begins = _picking(names_at)
        self._sent = _picking([sent_at[channel] for channel in topology.channels])
        self._received = _picking([received_at[channel] for channel in topology.channels])
        self._lengths = _picking(length_at)

    def holds(self, snapshot_id: SnapshotId, parts: Mapping[str, tuple[bytes, bytes | StoredState | None]]) -> bool:
        """Return whether these are the parts of all nodes in this snapshot, and prove that nothing was in flight.

        Args:
            snapshot_id: Of the snapshot that they are to be parts of.
            parts: By node, what `pack` made of its part, and the state that came apart, if it did.

        Paper: section 2. With no message in flight, a cut is consistent if on each channel as many messages were
        received as were sent.
        """
        # In few steps for however many parts: everything else is done by now, and this is all that is waited for.
        if parts.keys() != self._nodes.keys():
            return False
        packed, states = zip(*self._in_order(parts), strict=True)
        whole, apart = head(snapshot_id, False, True), head(snapshot_id, True, True)
        layout = self._layouts.get(len(whole)) or self._lay_out(len(whole))
        beginnings = b"".join(map(getitem, packed, layout.beginnings))
        if len(beginnings) != layout.fields.size:
            return False
        fields = layout.fields.unpack(beginnings)
        heads = [whole if state is None else apart for state in states]
        return (
            self._begins(fields) == tuple(map(add, heads, self._names))
            and self._lengths(fields) == tuple(map(sub, map(len, packed), layout.ends))
            and self._sent(fields) == self._received(fields)
        )

    def _lay_out(self, head_bytes: int) -> _Layout:
        """Return, and keep, the layout for heads of one length: as many as initiators' names have lengths."""
        form, ends = "!", []
        for names, numbers in self._nodes.values():
            begins = head_bytes + len(names)
            form += f"{begins}s{numbers}Q"
            ends.append(begins + NUMBER_BYTES * numbers)
        layout = self._layouts[head_bytes] = _Layout([*map(slice, ends)], ends, Struct(form))
        return layout


def _picking(places: Sequence[Any]) -> Callable[[Any], tuple[Any, ...]]:
    # Of one place alone, `itemgetter` would make no tuple.
    return itemgetter(*places) if len(places) > 1 else lambda fields: tuple(fields[place] for place in places)
