"""Global snapshots: what `verify` finds, and how a snapshot shows itself."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import pytest
from harness import PLAIN, TokenWorld, graph, snap

from mpsnap.core.codec import Codec
from mpsnap.core.errors import ConsistencyError, InvariantError
from mpsnap.core.protocol import ChannelState, EmptyChannels, LocalSnapshot, SnapshotId
from mpsnap.core.snapshot import (
    Captured,
    GlobalSnapshot,
    check_invariants,
)
from mpsnap.core.topology import Topology

S = snap("A")

Parts = dict[str, LocalSnapshot]


def parts_of(topology: Topology) -> Parts:
    """Record a snapshot of five messages from A to B, two of them taken and three in flight."""
    world = TokenWorld(topology, dict.fromkeys(topology.nodes, 100))
    for amount in range(1, 6):
        world.send("A", "B", amount)
    for _ in range(2):
        world.deliver("A", "B")
        world.take("A", "B")
    world.snapshot(S, "A", "B")
    return world.collector.parts[S]


TRIANGLE = graph("A->B B->C C->A")


def merged(parts: Mapping[str, LocalSnapshot], topology: Topology = TRIANGLE) -> GlobalSnapshot:
    return GlobalSnapshot(4, S, ("A", "B"), topology, parts, dict.fromkeys(["A", "B", "C", "X"], PLAIN), duration=0.5)


def channel_of(parts: Parts, first: int, *payloads: object) -> None:
    """Replace the state of A->B."""
    parts["B"] = parts["B"]._replace(channels={"A": ChannelState(first, payloads)})


# --- verify: a cut proves itself. ---


def test_a_right_cut_passes() -> None:
    snapshot = merged(parts_of(TRIANGLE))
    snapshot.verify()
    assert snapshot.verified
    assert snapshot.channels["A", "B"] == (3, 4, 5)


Damage = Callable[[Parts], None]


def replace(node: str, **changes: Any) -> Damage:
    def damage(parts: Parts) -> None:
        parts[node] = parts[node]._replace(**changes)

    return damage


DAMAGES: list[tuple[str, str, Damage]] = [
    ("a node is missing", "B", lambda parts: parts.__delitem__("B")),
    ("nothing is there", "A", lambda parts: parts.clear()),
    ("a stranger is there", "X", lambda parts: parts.update(X=parts["A"]._replace(node="X"))),
    ("a part is another node's", "B", lambda parts: parts.update(B=parts["C"])),
    ("a part is of another snapshot", "C", replace("C", snapshot_id=snap("A", 3))),
    ("a part is of another incarnation", "C", replace("C", snapshot_id=SnapshotId(1, "A", 1))),
    ("an inbound channel has no state", "B", replace("B", channels={})),
    ("an inbound channel has no count", "B", replace("B", received={})),
    ("an outbound channel has no count", "A", replace("A", sent={})),
    ("a channel that is none has a state", "C", replace("C", channels={"A": ChannelState(1, ())})),
    ("a channel that is none has a count", "A", replace("A", sent={"B": 5, "C": 0})),
    ("more was received than sent", "A->B", replace("A", sent={"B": 1})),
    ("one message too many was received", "A->B", replace("B", received={"A": 6})),
    ("one message was received and is in flight", "A->B", replace("B", received={"A": 3})),
    ("one message is missing between", "A->B", replace("B", received={"A": 1})),
    ("a message less was sent", "A->B", replace("A", sent={"B": 4})),
    ("a message more was sent", "A->B", replace("A", sent={"B": 6})),
    ("the channel state is short by its end", "A->B", lambda parts: channel_of(parts, 3, 3, 4)),
    ("the channel state is short by its beginning", "A->B", lambda parts: channel_of(parts, 4, 4, 5)),
    ("the channel state is long at its end", "A->B", lambda parts: channel_of(parts, 3, 3, 4, 5, 6)),
    ("the channel state is long at its beginning", "A->B", lambda parts: channel_of(parts, 2, 2, 3, 4, 5)),
    ("the channel state is shifted back", "A->B", lambda parts: channel_of(parts, 2, 2, 3, 4)),
    ("the channel state is shifted ahead", "A->B", lambda parts: channel_of(parts, 4, 4, 5, 6)),
    ("the channel state is empty", "A->B", lambda parts: channel_of(parts, 3)),
    ("an empty channel state begins elsewhere", "C->A", replace("A", channels={"C": ChannelState(2, ())})),
]


@pytest.mark.parametrize(
    ("where", "damage"), [row[1:] for row in DAMAGES], ids=[row[0].replace(" ", "-") for row in DAMAGES]
)
def test_verify_finds_the_damage_and_says_where(where: str, damage: Damage) -> None:
    parts = dict(parts_of(TRIANGLE))
    damage(parts)
    snapshot = merged(parts)
    with pytest.raises(ConsistencyError, match="snapshot 0-A-1") as caught:
        snapshot.verify()
    assert caught.value.where == where
    assert not snapshot.verified


def quiet(parts: Parts) -> Parts:
    """Return the same with nothing in flight, told as a node tells it: all channels at once."""
    there = {node: part._replace(channels=EmptyChannels(part.received)) for node, part in parts.items()}
    there["A"] = there["A"]._replace(sent={"B": 2})
    return there


def test_a_cut_with_nothing_in_flight_is_proven_too() -> None:
    snapshot = merged(quiet(parts_of(TRIANGLE)))
    snapshot.verify()
    assert snapshot.in_flight == 0
    assert dict(snapshot.channels) == dict.fromkeys(snapshot.channels, ())
    assert snapshot.flight("A", "B") == (3, 0)


@pytest.mark.parametrize(
    ("where", "damage"),
    [
        ("A->B", replace("A", sent={"B": 3})),
        ("A->B", replace("A", sent={"B": 1})),
        ("A->B", replace("B", received={"A": 1})),
        ("A->B", replace("B", channels=EmptyChannels({"A": 1}))),
        ("B", replace("B", received={}, channels=EmptyChannels({}))),
        ("B", replace("B", channels=EmptyChannels({}))),
    ],
    ids=["one-is-missing", "one-too-many", "another-count", "another-first", "no-channels", "no-states"],
)
def test_that_all_channels_are_empty_is_not_taken_on_trust(where: str, damage: Damage) -> None:
    parts = dict(quiet(parts_of(TRIANGLE)))
    damage(parts)
    with pytest.raises(ConsistencyError, match="snapshot 0-A-1") as caught:
        merged(parts).verify()
    assert caught.value.where == where


def test_several_strangers_are_told_of_in_a_fixed_order() -> None:
    """The error is the same in every process, whatever its hashes."""
    parts = dict(parts_of(TRIANGLE))
    strangers = [f"X{number}" for number in range(20)]
    parts.update({name: parts["A"]._replace(node=name) for name in reversed(strangers)})
    with pytest.raises(ConsistencyError) as caught:
        merged(parts).verify()
    assert caught.value.where == "X0"


def test_a_cut_of_another_topology_does_not_pass() -> None:
    """A channel more or less is enough."""
    parts = parts_of(TRIANGLE)
    for text in ("A->B B->C C->A A->C", "A->B B->C", "A->B B->C C->A D"):
        assert not merged(parts, graph(text)).verified


def test_the_words_of_an_error_say_what_was_found() -> None:
    parts = dict(parts_of(TRIANGLE))
    channel_of(parts, 3, 3, 4)
    with pytest.raises(ConsistencyError) as caught:
        merged(parts).verify()
    assert caught.value.what == "snapshot 0-A-1: messages 3..5 were in flight, the channel state holds 2 from 3"


# --- How it shows itself. ---


def test_a_snapshot_tells_what_it_is() -> None:
    snapshot = merged(parts_of(TRIANGLE))
    assert repr(snapshot) == "<GlobalSnapshot 4 (0-A-1): 3 nodes, 3 channels, 3 messages in flight>"
    assert (snapshot.number, snapshot.id, snapshot.initiators, snapshot.duration) == (4, S, ("A", "B"), 0.5)
    assert snapshot.in_flight == 3
    assert snapshot.topology is TRIANGLE


def test_nodes_are_in_the_order_of_the_topology() -> None:
    topology = Topology(["C", "A", "B"], [("A", "B"), ("B", "C"), ("C", "A")])
    snapshot = merged(parts_of(topology), topology)
    assert list(snapshot.nodes) == ["C", "A", "B"]
    node = snapshot.nodes["B"]
    assert (node.name, node.state, node.sent, node.received) == ("B", 103, {"C": 0}, {"A": 2})
    assert repr(node) == "<NodeSnapshot B: 103>"
    assert (node.passive, node.finished, node.timers) == (False, False, ())


def test_channels_are_a_mapping_of_every_channel_also_the_empty_ones() -> None:
    channels = merged(parts_of(TRIANGLE)).channels
    assert len(channels) == 3
    assert list(channels) == [("A", "B"), ("B", "C"), ("C", "A")]
    assert dict(channels) == {("A", "B"): (3, 4, 5), ("B", "C"): (), ("C", "A"): ()}
    assert ("A", "B") in channels
    assert channels.get(("B", "C")) == ()


@pytest.mark.parametrize("key", [("B", "A"), ("A", "X"), ("X", "A"), ("A",), ("A", "B", "C"), "AB", "A->B", None, 7])
def test_what_is_no_channel_is_a_key_error(key: Any) -> None:
    """As in any mapping: also what is not even a pair."""
    channels = merged(parts_of(TRIANGLE)).channels
    with pytest.raises(KeyError) as caught:
        channels[key]
    assert caught.value.args == (key,)
    assert key not in channels
    assert channels.get(key) is None


def test_a_message_in_flight_is_decoded_anew_at_every_look() -> None:
    """A snapshot is a value: whoever changes what it hands out changes nothing in it."""
    world = TokenWorld(graph("A<->B"))
    super(TokenWorld, world).send("A", "B", [1])
    channels = world.snapshot(S).channels
    channels["A", "B"][0].append(2)
    assert channels["A", "B"] == ([1],)


def test_a_missing_part_is_missing_and_not_empty() -> None:
    """Where a peer shows an empty list, this is an error."""
    parts = dict(parts_of(TRIANGLE))
    del parts["B"]
    snapshot = merged(parts)
    assert list(snapshot.nodes) == ["A", "C"]
    with pytest.raises(KeyError):
        snapshot.channels["A", "B"]


def test_a_state_is_decoded_with_the_nodes_codec_when_first_looked_at() -> None:
    """Merging and verifying need no class of the program's, and load no pickle."""
    with_pickle = Codec(pickle=True)
    captured = Captured(with_pickle.encode(range(3)), (), (0, 0), True, False, 0)
    parts = {"A": LocalSnapshot("A", S, captured, {}, {}, {})}
    alone = graph("A")
    for codec, expected in [(with_pickle, "range"), (PLAIN, "Pickled")]:
        snapshot = GlobalSnapshot(0, S, ("A",), alone, parts, {"A": codec})
        snapshot.verify()
        assert type(snapshot.nodes["A"].state).__name__ == expected


# --- Termination. ---


def settled(passive: tuple[bool, bool], *in_flight: object) -> GlobalSnapshot:
    def part(node: str, other: str, quiet: bool, sent: int, *payloads: object) -> LocalSnapshot:
        captured = Captured(PLAIN.encode(None), (), (0, 0), quiet, False, 0)
        return LocalSnapshot(node, S, captured, {other: sent}, {other: 0}, {other: ChannelState(1, payloads)})

    parts = {
        "A": part("A", "B", passive[0], len(in_flight)),
        "B": part("B", "A", passive[1], 0, *in_flight),
    }
    snapshot = GlobalSnapshot(0, S, ("A",), graph("A<->B"), parts, {"A": PLAIN, "B": PLAIN})
    snapshot.verify()
    return snapshot


def test_it_proves_the_end_if_every_node_is_passive_and_every_channel_is_empty() -> None:
    assert settled((True, True)).terminated


def test_one_node_that_is_not_passive_is_no_end() -> None:
    assert not settled((True, False)).terminated
    assert not settled((False, True)).terminated


def test_one_message_in_flight_is_no_end() -> None:
    assert not settled((True, True), "late").terminated


def test_an_incomplete_cut_proves_no_end() -> None:
    """Who knows what the missing node would do."""
    assert not merged({}).terminated


# --- Invariants. ---


def no_debt(snapshot: GlobalSnapshot) -> bool:
    return all(node.state >= 0 for node in snapshot.nodes.values())


def rich(snapshot: GlobalSnapshot) -> bool:
    return all(node.state > 1000 for node in snapshot.nodes.values())


def broken(snapshot: GlobalSnapshot) -> bool:
    raise ZeroDivisionError("division by zero")


def test_invariants_that_hold_say_nothing() -> None:
    """Anything true counts as true."""
    check_invariants(merged(parts_of(TRIANGLE)), [])
    check_invariants(merged(parts_of(TRIANGLE)), [no_debt, lambda snapshot: 1, lambda snapshot: ["yes"]])


def test_a_false_invariant_is_named_with_the_cut() -> None:
    with pytest.raises(InvariantError, match=r"^invariant rich is false on snapshot 4 \(0-A-1\)$"):
        check_invariants(merged(parts_of(TRIANGLE)), [no_debt, rich])


@pytest.mark.parametrize("answer", [None, 0, "", [], False])
def test_anything_false_is_false(answer: object) -> None:
    with pytest.raises(InvariantError, match="is false on"):
        check_invariants(merged(parts_of(TRIANGLE)), [lambda snapshot: answer])


def test_an_invariant_that_raises_is_told_apart_from_a_false_one() -> None:
    message = r"invariant broken raised on snapshot 4 \(0-A-1\): ZeroDivisionError: division by zero"
    with pytest.raises(InvariantError, match=message) as caught:
        check_invariants(merged(parts_of(TRIANGLE)), [broken])
    assert isinstance(caught.value.__cause__, ZeroDivisionError)


def test_a_violated_invariant_is_also_a_violated_consistency() -> None:
    """For whoever only asks whether the cut was good."""
    assert issubclass(InvariantError, ConsistencyError)
