"""The paper, sentence by sentence: Chandy and Lamport, "Distributed Snapshots", ACM TOCS 3(1), 1985.

Each test paraphrases one sentence of the paper in its docstring and shows that it is true here. Sections 2 to 4 need
the protocol alone; section 5 asks what nodes do, and so runs them.
"""

from __future__ import annotations

import random
from typing import Any

import pytest
from harness import CoreWorld, Sent, Taken, TokenWorld, World, graph, snap, tokens_in

from mpsnap.core.forms import parse_topology
from mpsnap.core.node import Context, Node
from mpsnap.core.protocol import LocalSnapshot, Marker, Message, Report, SendMarkers
from mpsnap.core.topology import Topology

PAIR = graph("p<->q")
S = snap("p")


def messages(world: World, src: str, dst: str) -> list[object]:
    """Return the payloads on the wire, markers left out."""
    return [item.payload for item in world.wire[src, dst] if isinstance(item, Message)]


def reported(effects: tuple[Any, ...]) -> LocalSnapshot:
    (report,) = [effect for effect in effects if isinstance(effect, Report)]
    return report.local


# --- The marker-sending rule. ---


def test_a_process_sends_one_marker_along_each_outbound_channel() -> None:
    """For each channel directed away from p, p sends one marker along it."""
    world = World(graph("p->a p->b p->c a->p"))
    effects = world.initiate(S, "p")
    assert effects == (SendMarkers(S, {"a": 0, "b": 0, "c": 0}),)
    assert [list(world.wire["p", dst]) for dst in ("a", "b", "c")] == [[Marker(S, sent=0)]] * 3


def test_markers_follow_the_recording_of_the_state() -> None:
    """The process p sends the marker after p records its state."""
    world = World(PAIR, {"p": "before"})
    world.initiate(S, "p")
    # The marker is out; what p does from here on is not in its part.
    world.state["p"] = "after"
    world.deliver_all()
    assert world.snapshots[S].nodes["p"].state == "before"


def test_markers_precede_every_later_message() -> None:
    """The process p sends the marker before p sends further messages along the channel."""
    world = World(PAIR)
    world.send("p", "q", "earlier")
    world.initiate(S, "p")
    world.send("p", "q", "later")
    assert list(world.wire["p", "q"]) == [Message(1, "earlier"), Marker(S, sent=1), Message(2, "later")]


# --- The marker-receiving rule. ---


def test_a_process_that_has_not_recorded_records_at_the_first_marker() -> None:
    """On receiving a marker, if q has not recorded its state, then q records its state..."""
    world = World(PAIR, {"q": "as it is now"})
    world.initiate(S, "p")
    world.deliver("p", "q")
    world.state["q"] = "later"
    world.deliver_all()
    assert world.snapshots[S].nodes["q"].state == "as it is now"


def test_it_then_follows_the_marker_sending_rule_itself() -> None:
    """...by the marker-sending rule: it passes markers on, on all its outbound channels."""
    world = World(graph("p->q q->p q->r r->q"))
    world.initiate(S, "p")
    assert world.deliver("p", "q") == (SendMarkers(S, {"p": 0, "r": 0}),)


def test_the_channel_of_the_first_marker_is_recorded_as_empty() -> None:
    """...and q records the state of the channel as the empty sequence."""
    world = World(PAIR)
    world.transfer("p", "q", "taken before the cut")
    world.initiate(S, "p")
    local = reported(world.deliver("p", "q"))
    assert local.channels["p"].payloads == ()


def test_every_other_channel_is_what_came_between_the_record_and_its_marker() -> None:
    """Else q records the channel as the messages received along it after q recorded and before the marker."""
    world = World(PAIR)
    world.send("p", "q", "before the record")
    world.deliver("p", "q")
    world.take("p", "q")
    world.initiate(S, "q")
    world.send("p", "q", "between 1")
    world.send("p", "q", "between 2")
    world.deliver("p", "q")
    world.deliver("p", "q")
    world.initiate(S, "p")
    world.send("p", "q", "after the marker")
    local = reported(world.deliver("p", "q"))
    world.deliver("p", "q")
    assert local.channels["p"].payloads == ("between 1", "between 2")


# --- Termination of the algorithm. ---


def test_any_process_may_initiate() -> None:
    """The algorithm can be initiated by one or more processes, each of which records spontaneously."""
    for number, initiators in enumerate([("a",), ("b",), ("c",), ("a", "c"), ("a", "b", "c")]):
        world = World(graph("a->b b->c c->a"))
        world.snapshot(snap(initiators[0], 2 * number + 1), *initiators)


def test_a_path_from_a_recorder_makes_a_process_record() -> None:
    """If p records and there is a path from p to q, then q records in finite time."""
    world = World(graph("p->a a->b b->q aside->q"))
    world.initiate(S, "p")
    world.deliver_all()
    assert world.cuts[S].keys() == {"p", "a", "b", "q"}


def test_processes_without_such_a_path_are_never_reached() -> None:
    """Every process must record spontaneously or have a path from one that does: otherwise it does not terminate."""
    world = World(graph("p->q aside->q"))
    world.initiate(S, "p")
    world.deliver_all()
    assert world.open("q") == {S: ("aside",)}
    world.initiate(S, "aside")
    world.deliver_all()
    assert world.snapshots[S].verified


@pytest.mark.parametrize("spec", ["ring:2", "ring:7", "biring:5", "star:6", "grid:3x3", "complete:5", "random:9:0.2:4"])
def test_in_a_strongly_connected_graph_one_initiator_is_enough(spec: str) -> None:
    """If the graph is strongly connected and one process records, then all do, and no marker stays on its way."""
    topology = parse_topology(spec)
    for initiator in topology.nodes:
        world = World(topology)
        world.snapshot(snap(initiator))
        assert world.cuts[snap(initiator)].keys() == set(topology.nodes)
        assert not any(world.wire.values())
        assert not any(world.open(node) for node in topology.nodes)


# --- Section 2: what a consistent global state is. ---


def single_token(moves: int) -> TokenWorld:
    """Example 2.1, the single-token conservation system: p and q pass one token to and fro, so many moves long."""
    world = TokenWorld(PAIR, {"p": 1, "q": 0})
    for move in range(moves):
        move_token(world, move)
    return world


def move_token(world: TokenWorld, move: int) -> None:
    """Send the token or take it, by turns."""
    src, dst = ("p", "q") if move % 4 < 2 else ("q", "p")
    if move % 2 == 0:
        world.send(src, dst, 1)
        return
    while not world.waiting(src, dst):
        world.deliver(src, dst)
    world.take(src, dst)


@pytest.mark.parametrize("initiator", ["p", "q"])
@pytest.mark.parametrize("begun", range(5))
def test_a_cut_shows_exactly_one_token(initiator: str, begun: int) -> None:
    """The token is in one of four places: at p, on the way to q, at q, on the way to p; never in two or in none."""
    for meanwhile in range(8):
        world = single_token(begun)
        world.initiate(snap(initiator), initiator)
        # The computation goes on while the markers are on their way.
        for move in range(begun, begun + meanwhile):
            move_token(world, move)
        world.deliver_all()
        assert tokens_in(world.snapshots[snap(initiator)]) == 1


def test_a_cut_can_show_the_token_in_each_of_the_four_places() -> None:
    """There are four global states of this system, and a snapshot can show every one of them."""
    shown = []
    for moves in range(4):
        snapshot = single_token(moves).snapshot(S)
        p, q = snapshot.nodes["p"].state, snapshot.nodes["q"].state
        shown.append((p, snapshot.channels["p", "q"], q, snapshot.channels["q", "p"]))
    assert shown == [(1, (), 0, ()), (0, (1,), 0, ()), (0, (), 1, ()), (0, (), 0, (1,))]


def test_the_channel_state_is_what_was_sent_before_and_not_received_before() -> None:
    """Section 3.1: with n sent before p's state and m taken before q's, the channel holds messages m+1 to n."""
    for sent in range(4):
        for taken in range(sent + 1):
            world = World(PAIR)
            for number in range(1, sent + 1):
                world.send("p", "q", f"m{number}")
            for _ in range(taken):
                world.deliver("p", "q")
                world.take("p", "q")
            snapshot = world.snapshot(S, "p", "q")
            assert snapshot.channels["p", "q"] == tuple(f"m{number}" for number in range(taken + 1, sent + 1))
            assert (snapshot.nodes["p"].sent["q"], snapshot.nodes["q"].received["p"]) == (sent, taken)


# --- Sections 3 and 4: what the recorded state means. ---


def test_the_recorded_state_need_not_have_occurred() -> None:
    """Example 2.2: p records A and q records D with M' on its way, and the system passed through no such state.

    p moves A -> B when it sends M and back when it receives M'; q moves C -> D when it sends M' and back at M.
    """
    world = World(PAIR, {"p": "A", "q": "C"})

    def now() -> tuple[str, str, list[object], list[object]]:
        return world.state["p"], world.state["q"], messages(world, "p", "q"), messages(world, "q", "p")

    passed_through = [now()]
    world.initiate(S, "p")
    world.state["p"] = "B"
    world.send("p", "q", "M")
    passed_through.append(now())
    world.state["q"] = "D"
    world.send("q", "p", "M'")
    passed_through.append(now())
    world.deliver("q", "p")
    world.take("q", "p")
    world.state["p"] = "A"
    passed_through.append(now())
    world.deliver_all()

    snapshot = world.snapshots[S]
    recorded = (
        snapshot.nodes["p"].state,
        snapshot.nodes["q"].state,
        list(snapshot.channels["p", "q"]),
        list(snapshot.channels["q", "p"]),
    )
    assert recorded == ("A", "D", [], ["M'"])
    assert recorded not in passed_through
    assert passed_through[-1] == ("A", "D", ["M"], [])


def run_at_random(topology: Topology, seed: int) -> TokenWorld:
    """Run a computation with one snapshot somewhere in it, completely determined by the seed."""
    world, chance = TokenWorld(topology), random.Random(seed)
    begin = chance.randrange(60)
    for moment in range(120):
        if moment == begin:
            world.initiate(snap(topology.nodes[0]), topology.nodes[0])
        src, dst = topology.channels[int(chance.random() * len(topology.channels))]
        what = chance.random()
        if what < 0.4:
            world.send(src, dst, moment + 1)
        elif what < 0.75 and world.wire[src, dst]:
            world.deliver(src, dst)
        elif world.waiting(src, dst):
            world.take(src, dst)
    world.deliver_all()
    return world


@pytest.mark.parametrize("seed", range(25))
def test_the_recorded_state_is_reachable_and_leads_to_the_last_one(seed: int) -> None:
    """Theorem of section 4: some order of the same events passes through the recorded state and ends as it did.

    It is the order in which all events before the cut precede all events after it, each group as it was.
    """
    topology = parse_topology("random:4:0.4:1")
    world = run_at_random(topology, seed)
    snapshot_id, snapshot = next(iter(world.snapshots.items()))
    cut = world.cuts[snapshot_id]
    before = [step for place, step in enumerate(world.trace) if place < cut[step.node]]
    after = [step for place, step in enumerate(world.trace) if place >= cut[step.node]]

    state = dict(topology.tokens)
    channels: dict[tuple[str, str], list[object]] = {(c.src, c.dst): [] for c in topology.channels}

    def replay(steps: list[Sent | Taken]) -> None:
        for step in steps:
            assert isinstance(step.payload, int)
            if isinstance(step, Sent):
                state[step.node] -= step.payload
                channels[step.node, step.dst].append(step.payload)
            else:
                # Possible only if the message stands first on its channel.
                assert channels[step.src, step.node].pop(0) == step.payload
                state[step.node] += step.payload

    replay(before)
    assert state == {name: node.state for name, node in snapshot.nodes.items()}
    assert channels == {channel: list(snapshot.channels[channel]) for channel in channels}
    replay(after)
    assert state == world.state


def test_the_random_computations_are_worth_something() -> None:
    """Among them are cuts with messages in flight, and cuts that fall between events of different nodes."""
    worlds = [run_at_random(parse_topology("random:4:0.4:1"), seed) for seed in range(25)]
    snapshots = [snapshot for world in worlds for snapshot in world.snapshots.values()]
    assert len(snapshots) == 25
    assert sum(snapshot.in_flight > 0 for snapshot in snapshots) > 15
    assert sum(len(set(cut.values())) > 1 for world in worlds for cut in world.cuts.values()) > 15


# --- Section 5: stable properties. ---


class Relay(Node):
    """Pass a number on, one less each time, until it is 0."""

    def setup(self, ctx: Context, start: int = 0) -> None:
        self.handled = 0
        if start:
            ctx.broadcast(start)

    def on_message(self, ctx: Context, sender: str, payload: Any) -> None:
        self.handled += 1
        if payload > 1:
            ctx.broadcast(payload - 1)


RELAYS = parse_topology("ring:3")


def test_a_property_of_the_recorded_state_holds_at_the_end_of_the_algorithm() -> None:
    """If a stable property holds in the recorded state, it holds when the algorithm ends: nothing happens after."""
    world = CoreWorld(RELAYS, Relay, {"N1": {"start": 5}})
    world.settle()
    assert world.snapshot(snap("N2")).terminated
    handled = [node.handled for node in world.nodes.values() if isinstance(node, Relay)]
    world.settle()
    assert [node.handled for node in world.nodes.values() if isinstance(node, Relay)] == handled
    assert sum(handled) == 5


def test_a_property_that_held_at_the_beginning_is_found() -> None:
    """If a stable property holds in the initial state, it holds in the recorded state."""
    world = CoreWorld(RELAYS, Relay)
    assert world.snapshot(snap("N1")).terminated


def test_termination_is_not_claimed_while_a_message_is_on_its_way() -> None:
    """A computation has ended when every process is idle and no channel holds a message; idle alone is not enough."""
    world = CoreWorld(RELAYS, Relay, {"N1": {"start": 5}})
    for core in world.cores.values():
        assert core.passive
    # All record at once, so that the message is seen by nobody yet.
    snapshot = world.snapshot(snap("N1"), "N1", "N2", "N3")
    assert [node.passive for node in snapshot.nodes.values()] == [True, True, True]
    assert snapshot.channels["N1", "N2"] == (5,)
    assert not snapshot.terminated


def test_termination_is_found_once_and_for_all() -> None:
    """The answers of snapshots taken one after another are no, no, ... yes, yes: never a yes before a no."""
    world = CoreWorld(RELAYS, Relay, {"N1": {"start": 5}})
    answers = []
    for n in range(12):
        answers.append(world.snapshot(snap("N3", 2 * n + 1)).terminated)
        world.round()
    assert answers == sorted(answers)
    assert set(answers) == {False, True}


def test_the_trace_of_a_run_is_what_the_world_did() -> None:
    """The bookkeeping that these tests rest on, checked once by hand."""
    world = World(PAIR)
    world.transfer("p", "q", "x")
    world.send("q", "p", "y")
    world.initiate(S, "q")
    assert world.trace == [Sent("p", "q", "x"), Taken("q", "p", "x"), Sent("q", "p", "y")]
    assert world.cuts[S] == {"q": 3}
    world.deliver_all()
    assert world.in_flight_at(S, "q", "p") == ["y"]
    assert world.in_flight_at(S, "p", "q") == []
