"""The short proof of a cut with nothing in flight: it says yes to nothing that the long one would refuse."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import pytest
from harness import PLAIN, graph
from hypothesis import given
from hypothesis import strategies as st

from mpsnap.core.emptycut import EmptyCut
from mpsnap.core.part import pack
from mpsnap.core.protocol import EmptyChannels, LocalSnapshot, SnapshotId
from mpsnap.core.snapshot import Captured, GlobalSnapshot
from mpsnap.core.topology import Topology

S = SnapshotId(3, "A", 7)
GRAPHS = ["A", "A B", "A->B", "A<->B", "A->B B->C C->A", "A<->B B<->C C<->A D->A"]

#: By node, what `pack` made of its part, and the state that came apart.
Packed = dict[str, tuple[bytes, bytes | None]]
Counts = Mapping[tuple[str, str], int]


def parts_of(topology: Topology, sent: Counts, received: Counts) -> Packed:
    """Return the parts of a cut whose nodes say that nothing is in flight."""
    return {node: (pack(part_of(node, topology, sent, received)), None) for node in topology.nodes}


def part_of(node: str, topology: Topology, sent: Counts, received: Counts) -> LocalSnapshot:
    came = {src: received[src, node] for src in topology.inbound(node)}
    went = {dst: sent[node, dst] for dst in topology.outbound(node)}
    captured = Captured(b"state of " + node.encode(), (), (0, 0), True, False, 0)
    return LocalSnapshot(node, S, captured, went, came, EmptyChannels(came))


def counts(topology: Topology, first: int = 5) -> dict[tuple[str, str], int]:
    """Return a count for each channel, no two the same."""
    return {(src, dst): first + k for k, (src, dst) in enumerate(topology.channels)}


def verified(topology: Topology, parts: Mapping[str, LocalSnapshot]) -> bool:
    return GlobalSnapshot(0, S, ("A",), topology, parts, dict.fromkeys(parts, PLAIN)).verified


@given(st.data())
def test_it_holds_where_the_long_proof_does_and_nowhere_else(data: st.DataObject) -> None:
    topology = graph(data.draw(st.sampled_from(GRAPHS)))
    few = st.integers(0, 2) | st.just(2**63)
    sent = {channel: data.draw(few) for channel in counts(topology)}
    received = {channel: data.draw(st.just(count) | few) for channel, count in sent.items()}
    parts = {node: part_of(node, topology, sent, received) for node in topology.nodes}
    holds = EmptyCut(topology).holds(S, parts_of(topology, sent, received))
    assert holds == verified(topology, parts) == (sent == received)


@pytest.mark.parametrize("text", GRAPHS)
def test_one_message_more_or_less_anywhere_is_seen(text: str) -> None:
    topology = graph(text)
    right = counts(topology)
    cut = EmptyCut(topology)
    assert cut.holds(S, parts_of(topology, right, right))
    for channel in right:
        for by in (-1, 1, 256):
            wrong = right | {channel: right[channel] + by}
            assert not cut.holds(S, parts_of(topology, wrong, right))
            assert not cut.holds(S, parts_of(topology, right, wrong))


Change = Callable[[Packed], object]
RING = graph("A->B B->C C->A")
COUNTS = counts(RING)


def other(**fields: object) -> tuple[bytes, None]:
    """Return the part of B with other fields."""
    return pack(part_of("B", RING, COUNTS, COUNTS)._replace(**fields)), None  # type: ignore[arg-type]


CHANGES: dict[str, Change] = {
    "a part is missing": lambda parts: parts.pop("B"),
    "there is a stranger's": lambda parts: parts.update(X=parts["B"]),
    "a stranger's is in the place of one": lambda parts: parts.update(X=parts.pop("B")),
    "one is another node's": lambda parts: parts.update(B=parts["C"]),
    "one is of another snapshot": lambda parts: parts.update(B=other(snapshot_id=S._replace(n=9))),
    "one is of another initiator's": lambda parts: parts.update(B=other(snapshot_id=S._replace(initiator="B"))),
    "one is of another incarnation": lambda parts: parts.update(B=other(snapshot_id=S._replace(incarnation=4))),
    "one has another neighbour": lambda parts: parts.update(B=other(sent={"A": COUNTS["B", "C"]})),
    "one lacks a neighbour": lambda parts: parts.update(B=other(sent={})),
    "one has a neighbour more": lambda parts: parts.update(B=other(sent={"A": 0, "C": COUNTS["B", "C"]})),
    "one says nothing of its channels": lambda parts: parts.update(B=other(channels={})),
    "one begins behind what was received": lambda parts: parts.update(B=other(channels=EmptyChannels({"A": 9}))),
    "one lacks its state": lambda parts: parts.update(B=(pack(part_of("B", RING, COUNTS, COUNTS), apart=True), None)),
    "one has two states": lambda parts: parts.update(B=(parts["B"][0], b"state")),
    "one is of another format": lambda parts: parts.update(B=(b"\xff" + parts["B"][0][1:], None)),
    "one breaks off in its list": lambda parts: parts.update(B=(parts["B"][0][:-1], None)),
    "one goes on behind its list": lambda parts: parts.update(B=(parts["B"][0] + b"1", None)),
    "one breaks off behind its counts": lambda parts: parts.update(B=(parts["B"][0][:57], None)),
    "one breaks off in its counts": lambda parts: parts.update(B=(parts["B"][0][:50], None)),
    "one is empty": lambda parts: parts.update(B=(b"", None)),
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES.keys())
def test_what_is_not_the_whole_of_this_cut_is_not_taken_for_it(change: Change) -> None:
    parts = parts_of(RING, COUNTS, COUNTS)
    assert EmptyCut(RING).holds(S, parts)
    change(parts)
    assert not EmptyCut(RING).holds(S, parts)


def test_a_cut_with_messages_in_flight_is_left_to_the_long_proof() -> None:
    local = part_of("B", RING, COUNTS, COUNTS)
    parts = parts_of(RING, COUNTS, COUNTS)
    parts["B"] = pack(local._replace(channels=dict(local.channels))), None
    assert not EmptyCut(RING).holds(S, parts)


def test_states_that_travel_apart_are_parts_all_the_same() -> None:
    parts: Packed = {node: (pack(part_of(node, RING, COUNTS, COUNTS), apart=True), b"state") for node in RING.nodes}
    assert EmptyCut(RING).holds(S, parts)
