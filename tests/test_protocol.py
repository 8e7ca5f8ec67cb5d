"""The protocol of one node: odd graphs, late and doubled markers, illegal steps, the inbox, and what is remembered."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from harness import TokenWorld, World, anatomy, graph, send_on, snap, tokens_in
from hypothesis import given
from hypothesis import strategies as st

from mpsnap.core.batch import PackedBatch
from mpsnap.core.errors import ProtocolError, SnapshotError
from mpsnap.core.protocol import (
    ChannelState,
    FinishedIds,
    LocalSnapshot,
    Marker,
    Message,
    Report,
    SendMarkers,
    SnapshotId,
    SnapshotProtocol,
)

S, T = snap("A"), snap("A", 3)


def protocol(
    inbound: str = "", outbound: str = "", capture: Callable[[], object] = lambda: "state", **restored: Any
) -> SnapshotProtocol:
    """Make the protocol of a node N; neighbours are single letters."""
    return SnapshotProtocol("N", inbound, outbound, capture, **restored)


def report_in(effects: tuple[object, ...]) -> LocalSnapshot:
    (report,) = [effect for effect in effects if isinstance(effect, Report)]
    return report.local


# --- Shapes of graphs. ---


def test_a_single_node_completes_at_once() -> None:
    world = World(graph("A"), {"A": 7})
    (effect,) = world.initiate(S, "A")
    assert effect == Report(LocalSnapshot("A", S, report_in((effect,)).captured, {}, {}, {}))
    assert world.snapshots[S].nodes["A"].state == 7


def test_a_source_reports_as_soon_as_its_markers_are_out() -> None:
    """A node without inbound channels has nothing to wait for; its markers come before its report."""
    node = protocol(outbound="BC")
    send_on(node, "C")
    effects = node.initiate(S)
    assert effects[0] == SendMarkers(S, {"B": 0, "C": 1})
    assert report_in(effects[1:]) == LocalSnapshot("N", S, "state", {"B": 0, "C": 1}, {}, {})
    assert node.open_channels() == {}


def test_a_sink_reports_at_its_last_marker_and_sends_none() -> None:
    node = protocol(inbound="BC")
    assert node.receive("C", Marker(S, 0)) == ()
    local = report_in(node.receive("B", Marker(S, 0)))
    assert local == LocalSnapshot(
        "N", S, "state", {}, {"B": 0, "C": 0}, {"B": ChannelState(1, ()), "C": ChannelState(1, ())}
    )


def test_the_first_marker_is_also_the_last_where_there_is_one_inbound_channel() -> None:
    """Record, pass markers on and report in a single step, in that order."""
    node = protocol(inbound="B", outbound="C")
    markers, report = node.receive("B", Marker(S, 0))
    assert markers == SendMarkers(S, {"C": 0})
    assert isinstance(report, Report)


def test_a_pipeline_needs_the_initiator_at_its_head() -> None:
    """A published implementation never completes here, wherever the snapshot begins."""
    world = World(graph("A->B B->C"))
    world.send("A", "B", "m")
    assert world.snapshot(S, "A").channels["A", "B"] == ("m",)


def test_weakly_connected_parts_are_covered_by_several_initiators() -> None:
    """Two sources that cannot reach each other, and an island: each has to begin by itself."""
    world = World(graph("A->C B->C C->D E"))
    assert world.topology.initiators(["A"]) == ("A", "B", "E")
    world.send("B", "C", "m")
    snapshot = world.snapshot(S, "A", "B", "E")
    assert snapshot.initiators == ("A", "B", "E")
    assert snapshot.channels["B", "C"] == ("m",)


def test_both_directions_of_a_pair_are_two_channels() -> None:
    world = World(graph("A<->B"))
    world.send("A", "B", "to B")
    world.send("B", "A", "to A")
    snapshot = world.snapshot(S, "A", "B")
    assert dict(snapshot.channels) == {("A", "B"): ("to B",), ("B", "A"): ("to A",)}


# --- What a record holds. ---


def test_a_channel_is_closed_by_its_marker_while_others_are_still_open() -> None:
    """A well-known implementation goes on recording it, and over-counts in every third of its cuts."""
    node = protocol(inbound="BC")
    node.initiate(S)
    node.receive("B", Message(1, "before the marker"))
    node.receive("B", Marker(S, 1))
    node.receive("B", Message(2, "behind it"))
    node.receive("C", Message(1, "still recorded"))
    channels = report_in(node.receive("C", Marker(S, 1))).channels
    assert channels == {"B": ChannelState(1, ("before the marker",)), "C": ChannelState(1, ("still recorded",))}


def test_the_state_is_that_of_the_record_whenever_it_is_reported() -> None:
    state = ["at the record"]
    node = protocol(inbound="B", capture=lambda: state[0])
    node.initiate(S)
    state[0] = "at the report"
    assert report_in(node.receive("B", Marker(S, 0))).captured == "at the record"


def test_the_counts_are_those_of_the_record_whenever_they_are_reported() -> None:
    node = protocol(inbound="B", outbound="C")
    send_on(node, "C")
    node.receive("B", Message(1, "x"))
    node.initiate(S)
    send_on(node, "C")
    node.take("B")
    local = report_in(node.receive("B", Marker(S, 1)))
    assert (local.sent, local.received, local.channels["B"]) == ({"C": 1}, {"B": 0}, ChannelState(1, ("x",)))


# --- Several initiators of one snapshot. ---


def test_two_initiators_meet_half_way() -> None:
    world = World(graph("A->B B->C C->A"))
    world.initiate(S, "A")
    world.initiate(S, "C")
    world.deliver_all()
    assert world.snapshots[S].verified
    assert world.markers[S] == 3


def test_a_marker_may_arrive_before_the_own_wish() -> None:
    """Then the node has recorded already and its own wish changes nothing."""
    world = World(graph("A<->B B<->C"))
    world.initiate(S, "A")
    world.deliver("A", "B")
    assert world.open("B") == {S: ("C",)}
    before = anatomy(world.protocols["B"])
    assert world.initiate(S, "B") == ()
    assert anatomy(world.protocols["B"]) == before
    world.deliver_all()
    assert world.markers[S] == 4


def test_a_wish_may_come_after_everything_is_over() -> None:
    """The id is finished at this node, so its own late wish must not record a second time."""
    world = World(graph("A<->B"))
    world.snapshot(S)
    assert world.initiate(S, "B") == ()
    assert world.open("B") == {}


def test_asking_twice_is_asking_once() -> None:
    world = World(graph("A<->B"))
    world.initiate(S, "A")
    assert world.initiate(S, "A") == ()


# --- Doubled and late markers. ---


def test_a_second_marker_of_an_open_snapshot_is_refused() -> None:
    """A channel carries one marker per snapshot; the state of the closed channel stays as it is."""
    node = protocol(inbound="BC")
    node.receive("B", Marker(S, 0))
    before = anatomy(node)
    with pytest.raises(ProtocolError, match="second marker") as caught:
        node.receive("B", Marker(S, 0))
    assert caught.value.where == "B->N"
    assert anatomy(node) == before


def test_a_second_marker_on_a_channel_closed_later_is_refused_too() -> None:
    node = protocol(inbound="BCD")
    for src in "BC":
        node.receive(src, Marker(S, 0))
    with pytest.raises(ProtocolError, match="second marker"):
        node.receive("C", Marker(S, 0))
    assert node.open_channels() == {S: ("D",)}


def test_a_second_marker_of_a_finished_snapshot_is_ignored() -> None:
    """The closest published implementation begins anew here, and counts a message twice."""
    node = protocol(inbound="B", outbound="C")
    node.receive("B", Marker(S, 0))
    before = anatomy(node)
    assert node.receive("B", Marker(S, 0)) == ()
    assert anatomy(node) == before


def test_an_abandoned_snapshot_is_not_recorded_any_more() -> None:
    node = protocol(inbound="BC", outbound="D")
    node.receive("B", Marker(S, 0))
    node.abandon(S)
    assert node.open_channels() == {}
    assert node.receive("C", Marker(S, 0)) == ()
    assert node.initiate(S) == ()


def test_an_abandoned_snapshot_never_begins_where_it_was_not_heard_of() -> None:
    """The word to abandon may overtake the marker."""
    world = World(graph("A->B B->C C->A"))
    world.initiate(S, "A")
    world.abandon(S)
    world.deliver_all()
    assert world.cuts[S].keys() == {"A"}
    assert S not in world.snapshots


def test_a_snapshot_abandoned_by_some_is_never_completed_and_harms_no_other() -> None:
    world = TokenWorld(graph("A<->B B<->C"))
    world.initiate(S, "A")
    world.deliver("A", "B")
    world.initiate(T, "A")
    world.abandon(S, "B")
    world.send("A", "B", 3)
    world.deliver_all()
    assert S not in world.snapshots
    assert tokens_in(world.snapshots[T]) == 30
    assert world.open("A") == world.open("B") == world.open("C") == {}


def test_abandoning_is_right_at_any_time() -> None:
    """Before the snapshot, in it, after it, and twice."""
    world = World(graph("A<->B"))
    for _ in range(2):
        world.abandon(T)
    assert world.initiate(T, "A") == ()
    world.snapshot(S)
    world.abandon(S)
    assert world.snapshot(snap("A", 5)).verified


def test_a_late_marker_of_an_abandoned_snapshot_still_has_to_count_right() -> None:
    """What the channel lost does not become right because nobody wants the snapshot."""
    node = protocol(inbound="B")
    node.abandon(S)
    with pytest.raises(ProtocolError):
        node.receive("B", Marker(S, 1))


# --- Illegal steps raise and change nothing. ---


def busy_node() -> SnapshotProtocol:
    """A node in the middle of everything: two taken, one waiting, two snapshots open, one finished."""
    node = protocol(inbound="BC", outbound="DE")
    node.abandon(snap("Z"))
    send_on(node, "D")
    for number in (1, 2, 3):
        node.receive("B", Message(number, f"m{number}"))
    node.take("B")
    node.take("B")
    node.receive("B", Marker(S, 3))
    node.initiate(T)
    return node


@pytest.mark.parametrize(
    ("story", "step"),
    [
        ("a message is lost", lambda n: n.receive("B", Message(5, "x"))),
        ("a message is repeated", lambda n: n.receive("B", Message(3, "x"))),
        ("a message of long ago", lambda n: n.receive("B", Message(1, "x"))),
        ("a number that is none", lambda n: n.receive("B", Message(0, "x"))),
        ("a batch is lost", lambda n: n.receive_batch("B", 6, ["x", "y"])),
        ("a batch is repeated", lambda n: n.receive_batch("B", 2, ["x", "y"])),
        ("a batch overlaps", lambda n: n.receive_batch("B", 3, ["x", "y"])),
        ("an empty batch at the wrong place", lambda n: n.receive_batch("B", 7, [])),
        ("a marker overtakes a message", lambda n: n.receive("B", Marker(T, 4))),
        ("a message overtakes a marker", lambda n: n.receive("B", Marker(T, 2))),
        ("a marker that would begin a snapshot overtakes", lambda n: n.receive("C", Marker(snap("B"), 1))),
        ("a second marker", lambda n: n.receive("B", Marker(S, 3))),
        ("a finished snapshot's marker counts wrong", lambda n: n.receive("B", Marker(snap("Z"), 2))),
        ("a message from nobody we know", lambda n: n.receive("X", Message(1, "x"))),
        ("a marker from nobody we know", lambda n: n.receive("X", Marker(S, 0))),
        ("a batch from nobody we know", lambda n: n.receive_batch("X", 1, ["x"])),
        ("a message on a channel that leads away", lambda n: n.receive("D", Message(1, "x"))),
        ("taking from nobody we know", lambda n: n.take("X")),
        ("taking from an empty inbox", lambda n: n.take("C")),
    ],
    ids=lambda part: part.replace(" ", "-") if isinstance(part, str) else "",
)
def test_an_illegal_step_raises_and_changes_nothing(story: str, step: Callable[[SnapshotProtocol], object]) -> None:
    node = busy_node()
    before = anatomy(node)
    with pytest.raises(ProtocolError) as caught:
        step(node)
    assert caught.value.where in {f"{a}->{b}" for a in "BCXD" for b in "N"} | {f"N->{b}" for b in "XB"}, story
    assert anatomy(node) == before
    # And it goes on as if nothing had been: what is due is still accepted.
    node.receive("B", Marker(T, 3))
    node.receive("C", Marker(S, 0))
    (effect,) = node.receive("C", Marker(T, 0))
    assert isinstance(effect, Report)


def loaded() -> World:
    """Three messages, a marker and one more message stand on the wire from A to B."""
    world = World(graph("A<->B"))
    for number in range(3):
        world.send("A", "B", number)
    world.initiate(S, "A")
    world.send("A", "B", 3)
    return world


@pytest.mark.parametrize("place", range(4))
def test_a_swap_on_the_wire_is_noticed(place: int) -> None:
    """Two messages, or a message and the marker: the one that came too early is refused."""
    world = loaded()
    wire = world.wire["A", "B"]
    wire[place], wire[place + 1] = wire[place + 1], wire[place]
    with pytest.raises(ProtocolError, match="lost, repeated or swapped"):
        world.deliver_all()


@pytest.mark.parametrize("place", range(3))
def test_a_message_lost_on_the_wire_is_noticed_by_the_next_item(place: int) -> None:
    world = loaded()
    del world.wire["A", "B"][place]
    with pytest.raises(ProtocolError, match="lost, repeated or swapped"):
        world.deliver_all()


@pytest.mark.parametrize("place", [0, 1, 2, 4])
def test_a_message_repeated_on_the_wire_is_noticed(place: int) -> None:
    world = loaded()
    world.wire["A", "B"].insert(place, world.wire["A", "B"][place])
    with pytest.raises(ProtocolError, match="lost, repeated or swapped"):
        world.deliver_all()


def test_a_lost_marker_makes_no_cut_at_all() -> None:
    """It leaves the numbering whole, so nobody can notice; but no wrong cut comes of it either."""
    world = loaded()
    del world.wire["A", "B"][3]
    world.deliver_all()
    assert world.open("A") == {S: ("B",)}
    assert S not in world.snapshots


def test_a_repeated_marker_changes_no_cut() -> None:
    world = loaded()
    world.wire["A", "B"].insert(3, world.wire["A", "B"][3])
    world.deliver_all()
    assert world.snapshots[S].channels["A", "B"] == (0, 1, 2)


def test_a_capture_that_raises_leaves_everything_unchanged() -> None:
    """No marker has left, nothing is recorded, and the same marker is accepted when the capture has recovered."""
    broken = [True]

    def capture() -> str:
        if broken:
            raise SnapshotError("not now")
        return "state"

    node = protocol(inbound="BC", outbound="D", capture=capture)
    node.receive("B", Message(1, "m"))
    before = anatomy(node)
    with pytest.raises(SnapshotError, match="not now"):
        node.receive("B", Marker(S, 1))
    assert anatomy(node) == before
    with pytest.raises(SnapshotError, match="not now"):
        node.initiate(S)
    assert anatomy(node) == before
    broken.clear()
    assert node.receive("B", Marker(S, 1)) == (SendMarkers(S, {"D": 0}),)


def test_capture_is_called_once_per_snapshot_and_first_of_all() -> None:
    """When it is called nothing of the snapshot exists yet, and it is not called again for any later marker."""
    seen_by_capture: list[object] = []
    node = protocol(inbound="BC", outbound="D", capture=lambda: seen_by_capture.append(anatomy(node)))
    for snapshot_id in (S, T):
        before = anatomy(node)
        assert node.receive("B", Marker(snapshot_id, 0))
        assert seen_by_capture == [before]
        node.initiate(snapshot_id)
        node.receive("C", Marker(snapshot_id, 0))
        node.receive("B", Marker(snapshot_id, 0))
        assert len(seen_by_capture) == 1
        seen_by_capture.clear()


# --- The inbox. ---


def test_what_was_seen_and_not_taken_is_in_flight() -> None:
    """The node's code has not had it, so the state does not show it: the channel must."""
    world = TokenWorld(graph("A<->B"))
    world.send("A", "B", 3)
    world.deliver("A", "B")
    snapshot = world.snapshot(S)
    assert snapshot.channels["A", "B"] == (3,)
    assert (snapshot.nodes["A"].state, snapshot.nodes["B"].state) == (7, 10)


def test_a_marker_acts_at_once_however_many_messages_wait_in_front_of_it() -> None:
    """Nothing has to be taken for a snapshot to complete."""
    world = World(graph("A<->B"))
    for number in range(1000):
        world.send("A", "B", number)
    assert world.snapshot(S).channels["A", "B"] == tuple(range(1000))
    assert world.waiting("A", "B") == 1000


def test_taking_after_the_record_changes_nothing_in_it() -> None:
    world = TokenWorld(graph("A<->B"))
    world.send("A", "B", 1)
    world.send("A", "B", 2)
    world.send("A", "B", 4)
    for _ in range(3):
        world.deliver("A", "B")
    world.take("A", "B")
    world.initiate(S, "B")
    world.take("A", "B")
    world.send("A", "B", 8)
    world.deliver("A", "B")
    world.take("A", "B")
    world.take("A", "B")
    world.deliver_all()
    snapshot = world.snapshots[S]
    assert snapshot.channels["A", "B"] == (2, 4, 8)
    assert (snapshot.nodes["B"].state, snapshot.nodes["B"].received["A"]) == (11, 1)


def test_a_snapshot_right_after_a_recovery_holds_the_inbox_once_more() -> None:
    """What was in flight at the cut stands in the inboxes after it; until it is taken it is in flight again."""
    world = TokenWorld(graph("A<->B B->C C->A"))
    for amount in (1, 2, 3):
        world.send("A", "B", amount)
    world.deliver("A", "B")
    world.take("A", "B")
    first = world.snapshot(S)
    assert first.channels["A", "B"] == (2, 3)

    again = TokenWorld.resume(first)
    second = again.snapshot(T)
    assert dict(second.channels) == dict(first.channels)
    assert {name: node.state for name, node in second.nodes.items()} == {
        name: node.state for name, node in first.nodes.items()
    }


def test_a_node_recovered_half_way_through_its_inbox_goes_on_counting() -> None:
    """Half of the restored inbox is taken and new messages arrive behind it: numbers go on, nothing is lost."""
    world = TokenWorld(graph("A<->B"))
    for amount in (1, 2, 4):
        world.send("A", "B", amount)
    again = TokenWorld.resume(world.snapshot(S))
    assert again.take("A", "B") == 1
    again.send("A", "B", 8)
    again.deliver("A", "B")
    snapshot = again.snapshot(T, "B")
    assert snapshot.channels["A", "B"] == (2, 4, 8)
    assert (snapshot.nodes["A"].sent["B"], snapshot.nodes["B"].received["A"]) == (4, 1)
    assert tokens_in(snapshot) == 20


def test_restored_counts_are_what_the_wire_is_measured_by() -> None:
    node = protocol(inbound="B", outbound="C", sent={"C": 7}, received={"B": 40}, inboxes={"B": ["x", "y"]})
    assert (node.seen("B"), node.waiting("B"), send_on(node, "C")) == (42, 2, 8)
    for wrong in (Message(41, "x"), Message(44, "x"), Marker(S, 40), Marker(S, 41)):
        with pytest.raises(ProtocolError):
            node.receive("B", wrong)
    node.receive("B", Message(43, "z"))
    assert [node.take("B") for _ in range(3)] == ["x", "y", "z"]
    assert report_in(node.receive("B", Marker(S, 43))).received == {"B": 43}


def test_receive_and_take_in_one_step_is_the_same_as_one_after_the_other() -> None:
    """With a snapshot that records the channel, one whose marker came there, and none."""
    joined, apart = (protocol(inbound="BD", outbound="C") for _ in range(2))
    for number in range(1, 5):
        joined.receive_and_take("B", number, number)
        apart.receive("B", Message(number, number))
        assert apart.take("B") == number
        if number == 2:
            assert joined.receive("D", Marker(snap("D"), 0)) == apart.receive("D", Marker(snap("D"), 0))
        elif number == 3:
            assert joined.receive("B", Marker(snap("B"), 3)) == apart.receive("B", Marker(snap("B"), 3))
    assert joined.fingerprint() == apart.fingerprint()
    assert joined.receive("B", Marker(snap("D"), 4)) == apart.receive("B", Marker(snap("D"), 4))


@pytest.mark.parametrize("number", [1, 3])
def test_receive_and_take_never_overtakes_and_never_skips(number: int) -> None:
    node = protocol(inbound="B", inboxes={"B": ["first"]} if number == 1 else {}, outbound="C")
    before = anatomy(node)
    with pytest.raises(ProtocolError):
        node.receive_and_take("B", number, "x")
    assert anatomy(node) == before


@pytest.mark.parametrize(
    "restored", [{"sent": {"D": 1}}, {"received": {"D": 1}}, {"inboxes": {"D": ["x"]}}, {"inboxes": {"C": ["x"]}}]
)
def test_what_is_restored_must_belong_to_a_channel_that_is_there(restored: dict[str, Any]) -> None:
    """Otherwise its messages would be lost without a trace."""
    with pytest.raises(ProtocolError, match="to restore"):
        protocol(inbound="B", outbound="C", **restored)


def test_what_was_handed_over_at_the_start_is_not_written_to() -> None:
    """The protocol keeps copies: two nodes may be restored from one and the same snapshot."""
    sent, received, inboxes = {"C": 7}, {"B": 40}, {"B": ["x"]}
    node = protocol(inbound="B", outbound="C", sent=sent, received=received, inboxes=inboxes)
    send_on(node, "C")
    node.receive("B", Message(42, "y"))
    node.take("B")
    assert (sent, received, inboxes) == ({"C": 7}, {"B": 40}, {"B": ["x"]})


def test_what_stands_in_an_outbox_is_sent() -> None:
    """The driver collects when it likes; a cut counts what the node has sent, and its marker says so."""
    node = protocol(outbound="BC")
    box = node.outboxes["B"]
    box.payloads += ["x", "y"]
    assert (node.sent("B"), node.sent("C")) == (2, 0)
    effects = node.initiate(S)
    assert effects[0] == SendMarkers(S, {"B": 2, "C": 0})
    assert report_in(effects).sent == {"B": 2, "C": 0}
    assert box.collect() == (1, ["x", "y"])
    box.payloads.append("z")
    assert (node.sent("B"), box.collect(), box.collect(), node.sent("B")) == (3, (3, ["z"]), (4, []), 3)


def test_messages_that_are_taken_in_a_row_count_one_by_one() -> None:
    """Between any two of them, a cut falls where the node is."""
    node = protocol(inbound="BC")
    node.receive_batch("B", 1, ["v", "w", "x"])
    node.receive_batch("B", 4, ["y"])
    taking = node.taking("B")
    assert (next(taking), node.received("B"), node.waiting("B")) == ("v", 1, 3)
    node.initiate(S)
    assert (next(taking), node.received("B"), node.waiting("B")) == ("w", 2, 2)
    node.initiate(T)
    assert list(taking) == ["x"], "the next batch is the next call's"
    assert (node.received("B"), node.waiting("B"), list(node.taking("B"))) == (3, 1, ["y"])
    for snapshot, received, in_flight in ((S, 1, ("w", "x", "y")), (T, 2, ("x", "y"))):
        node.receive("B", Marker(snapshot, 4))
        local = report_in(node.receive("C", Marker(snapshot, 0)))
        assert (local.received["B"], local.channels["B"].payloads) == (received, in_flight)


@pytest.mark.parametrize("in_front", [[], ["x"]])
def test_a_batch_that_cannot_be_unpacked_names_its_channel(in_front: list[object]) -> None:
    """At once, or when its turn comes; until then, nothing is changed by it."""
    node = protocol(inbound="B")
    node.receive_batch("B", 1, in_front)
    garbage = PackedBatch(2, b"garbage")

    def see_and_take() -> None:
        node.receive_batch("B", len(in_front) + 1, garbage)
        assert node.take("B") == "x"
        node.take("B")

    with pytest.raises(ProtocolError, match="what nobody sent") as caught:
        see_and_take()
    assert caught.value.where == "B->N"
    assert node.received("B") == len(in_front)


def test_a_batch_is_the_same_as_its_messages_one_by_one() -> None:
    """Also for what the snapshots that are open record."""

    def started() -> SnapshotProtocol:
        node = protocol(inbound="BC")
        node.receive("C", Marker(S, 0))
        return node

    one_by_one, at_once = started(), started()
    for number in (1, 2, 3):
        one_by_one.receive("B", Message(number, number * 10))
    at_once.receive_batch("B", 1, [10, 20])
    at_once.receive_batch("B", 3, [])
    at_once.receive_batch("B", 3, [30])
    assert at_once.fingerprint() == one_by_one.fingerprint()


# --- Many snapshots at once. ---


def test_snapshots_in_progress_do_not_disturb_each_other() -> None:
    """Each of twenty has its own cut, one message later than the one before."""
    world = TokenWorld(graph("A->B B->C C->A"))
    ids = [SnapshotId.triggered(0, "A", count) for count in range(20)]
    for snapshot_id in ids:
        world.initiate(snapshot_id, "A")
        world.send("A", "B", 1)
    assert world.open("A") == dict.fromkeys(ids, ("C",))
    world.deliver_all()
    snapshots = [world.snapshots[snapshot_id] for snapshot_id in ids]
    assert [snapshot.nodes["A"].state for snapshot in snapshots] == [10 - k for k in range(20)]
    assert [snapshot.channels["A", "B"] for snapshot in snapshots] == [(1,) * k for k in range(20)]
    assert [tokens_in(snapshot) for snapshot in snapshots] == [30] * 20


def test_snapshots_from_every_node_may_cross() -> None:
    world = TokenWorld(graph("A<->B B<->C A<->C"))
    for node in "ABC":
        world.initiate(snap(node), node)
        for dst in world.topology.outbound(node):
            world.send(node, dst, 2)
    world.deliver_all()
    assert {str(snapshot_id): tokens_in(cut) for snapshot_id, cut in world.snapshots.items()} == {
        "0-A-1": 30,
        "0-B-1": 30,
        "0-C-1": 30,
    }
    assert all(count == len(world.topology.channels) for count in world.markers.values())


def test_awaited_channels_are_told_for_each_open_snapshot() -> None:
    """That is how an overdue snapshot names what is missing."""
    node = protocol(inbound="DBC")
    node.receive("C", Marker(S, 0))
    node.initiate(T)
    assert node.open_channels() == {S: ("B", "D"), T: ("B", "C", "D")}
    node.receive("D", Marker(T, 0))
    assert node.open_channels() == {S: ("B", "D"), T: ("B", "C")}


# --- Which ids are finished. ---


def memory_of(finished: FinishedIds) -> int:
    """Count the numbers that it keeps."""

    def count(thing: object) -> int:
        if isinstance(thing, dict):
            return sum(count(value) for value in thing.values())
        return len(thing) if isinstance(thing, set) else 1

    return sum(count(value) for value in vars(finished).values())


IDS = st.builds(SnapshotId, st.integers(0, 2), st.sampled_from("AB"), st.integers(1, 24))


@given(st.lists(IDS))
def test_finished_ids_are_exactly_those_added(ids: list[SnapshotId]) -> None:
    """In whatever order ids finish, those the supervisor gave out and those of the node's own: a plain set agrees."""
    finished, plain = FinishedIds(), set()
    for snapshot_id in ids:
        finished.add(snapshot_id)
        plain.add(snapshot_id)
        known = {
            other
            for incarnation in range(4)
            for initiator in "ABC"
            for other in (SnapshotId(incarnation, initiator, n) for n in range(1, 27))
            if other in finished
        }
        assert known == plain


@given(st.permutations(range(12)), st.permutations(range(12)))
def test_what_is_kept_of_them_stays_small(odd: list[int], even: list[int]) -> None:
    """Once there are no gaps, one number per series and nothing else, in whatever order they came."""
    finished = FinishedIds()
    for a, b in zip(odd, even, strict=True):
        finished.add(SnapshotId.triggered(0, "A", a))
        finished.add(SnapshotId.spontaneous(0, "A", b))
    assert memory_of(finished) == 2
    assert SnapshotId.triggered(0, "A", 12) not in finished
    assert SnapshotId.spontaneous(0, "A", 12) not in finished


def test_a_hundred_thousand_snapshots_take_no_more_room_than_two() -> None:
    """A little out of order, as they finish in life."""
    finished = FinishedIds()
    for count in range(0, 100_000, 2):
        finished.add(SnapshotId.triggered(0, "A", count + 1))
        finished.add(SnapshotId.triggered(0, "A", count))
    assert memory_of(finished) == 1
    assert SnapshotId.triggered(0, "A", 99_999) in finished
    assert SnapshotId.triggered(0, "A", 100_000) not in finished


# --- Ids as text. ---

NAMES = st.from_regex(r"[A-Za-z0-9][A-Za-z0-9._-]{0,12}", fullmatch=True)


@given(st.integers(0, 10**6), NAMES, st.integers(1, 10**6))
def test_an_id_comes_back_from_its_text(incarnation: int, initiator: str, n: int) -> None:
    """Whatever the name: also with dashes and digits at its ends."""
    snapshot_id = SnapshotId(incarnation, initiator, n)
    assert SnapshotId.parse(str(snapshot_id)) == snapshot_id


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("0-A-1", (0, "A", 1)),
        ("12-web-1-7", (12, "web-1", 7)),
        ("0-1-1-1", (0, "1-1", 1)),
        ("3-a--2", (3, "a-", 2)),
        ("0-a.b_c-20", (0, "a.b_c", 20)),
    ],
)
def test_names_may_have_dashes(text: str, expected: tuple[int, str, int]) -> None:
    assert SnapshotId.parse(text) == expected
    assert str(SnapshotId(*expected)) == text


@pytest.mark.parametrize(
    "text",
    [
        *("", "A", "0-A", "0--1", "-A-1", "A-0-1", "0-A-", "0-A-x", "0-A-1.0", "x-A-1", "0-A-0x1", "0-A-0"),
        *(" 0-A-1", "0-A-1\n", "00-A-1", "0-A-01", "0-A-+1", "0-A-1_0", "0-A-\u0663"),
    ],
)
def test_what_is_no_id_is_refused(text: str) -> None:
    """One id has one text: what would not come back as it was is none."""
    with pytest.raises(ValueError, match="not a snapshot id"):
        SnapshotId.parse(text)


@given(st.text("0123456789-aA. _+", max_size=12))
def test_whatever_is_read_as_an_id_is_written_the_same(text: str) -> None:
    try:
        snapshot_id = SnapshotId.parse(text)
    except ValueError:
        return
    assert str(snapshot_id) == text


def test_the_two_who_number_snapshots_never_give_out_the_same_id() -> None:
    triggered = [SnapshotId.triggered(0, "A", count) for count in range(50)]
    spontaneous = [SnapshotId.spontaneous(0, "A", count) for count in range(50)]
    assert [snapshot_id.n for snapshot_id in triggered[:3]] == [1, 3, 5]
    assert [snapshot_id.n for snapshot_id in spontaneous[:3]] == [2, 4, 6]
    assert len({*triggered, *spontaneous}) == 100
