"""The simulator against a reference of few lines that scans every channel at every tick, and has no core at all."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from reference import play_reference

from mpsnap import Context, Node, Topology, parse_topology
from mpsnap.apps.tokens import conserved
from mpsnap.core.program import assign
from mpsnap.core.rng import CounterRandom
from mpsnap.core.script import Script, Send, Snapshot, Tick, parse_events
from mpsnap.core.topology import parse_top
from mpsnap.simulator.simulator import OutOfDelays, Simulator, listed_delays, random_delays
from mpsnap.views.snapfile import snap_text

SCENARIOS = sorted((Path(__file__).parent / "scenarios").glob("*.top"))


def play(topology: Topology, script: Script, delays: Iterator[int]) -> tuple[list[str], int]:
    topology, programs = assign(topology, "mpsnap.apps.tokens:ScriptedTokens")
    simulator = Simulator(topology, programs, listed_delays(delays))
    for step in script.steps:
        if isinstance(step, Send):
            while not simulator.command(step.src, {"send": step.dst, "amount": step.amount}):
                simulator.advance(1)
        elif isinstance(step, Snapshot):
            simulator.snapshot([step.node])
        else:
            assert isinstance(step, Tick)
            simulator.advance(step.count)
    simulator.finish()
    return [snap_text(simulator.snapshots[number]) for number in sorted(simulator.snapshots)], simulator.time


def drawn(seed: int, most: int) -> Iterator[int]:
    draw = CounterRandom(seed)
    while True:
        yield draw.randrange(most)


@pytest.mark.parametrize("path", SCENARIOS, ids=lambda path: path.stem)
def test_every_scenario_gives_the_snapshots_of_the_reference_to_the_byte(path: Path) -> None:
    topology = parse_top(path.read_bytes(), path.name)
    script = parse_events(path.with_suffix(".events").read_bytes(), topology, path.stem)
    for seed in range(4):
        assert play(topology, script, drawn(seed, 5)) == play_reference(topology, script, drawn(seed, 5)), seed


def test_snapshots_of_the_scenarios_hold_messages_in_flight() -> None:
    """Or the test before this one would say little."""
    held = 0
    for path in SCENARIOS:
        topology = parse_top(path.read_bytes(), path.name)
        script = parse_events(path.with_suffix(".events").read_bytes(), topology, path.stem)
        held += any("token(" in text for text in play(topology, script, drawn(0, 5))[0])
    assert held >= len(SCENARIOS) // 2


@st.composite
def scripts(draw: st.DrawFn) -> tuple[Topology, Script]:
    size = draw(st.integers(2, 6))
    topology = parse_topology(f"random:{size}:0.4:{draw(st.integers(0, 99))}")
    channels = st.sampled_from(topology.channels)
    steps = draw(
        st.lists(
            st.one_of(
                st.builds(lambda c, n: Send(0, c.src, c.dst, n), channels, st.integers(1, 3)),
                st.builds(lambda node: Snapshot(0, node), st.sampled_from(topology.nodes)),
                st.builds(lambda n: Tick(0, n), st.integers(1, 4)),
            ),
            max_size=25,
        )
    )
    # No node can be asked for more than it has: at most three sends from each.
    kept, sent = [], dict.fromkeys(topology.nodes, 0)
    for step in steps:
        if isinstance(step, Send):
            sent[step.src] += 1
            if sent[step.src] > 3:
                continue
        kept.append(step)
    return topology, Script(tuple(kept), "drawn")


@given(scripts(), st.integers(0, 2**32), st.integers(1, 7))
@settings(max_examples=60, deadline=None)
def test_random_scripts_give_the_snapshots_of_the_reference(
    world: tuple[Topology, Script], seed: int, most: int
) -> None:
    assert play(*world, drawn(seed, most)) == play_reference(*world, drawn(seed, most))


def run_tokens(seed: int) -> Simulator:
    topology, programs = assign(parse_topology("complete:5"), "mpsnap.apps.tokens:Tokens")
    simulator = Simulator(topology, programs, random_delays(seed, 5), seed=seed)
    for k in range(20):
        simulator.advance(3)
        simulator.snapshot([topology.nodes[k % 5]])
    simulator.finish()
    return simulator


def test_the_same_node_class_as_in_processes_runs_and_every_cut_is_conserved() -> None:
    simulator = run_tokens(1)
    assert sorted(simulator.snapshots) == list(range(20))
    assert all(conserved(snapshot) for snapshot in simulator.snapshots.values())
    assert sum(snapshot.in_flight for snapshot in simulator.snapshots.values()) > 0


def test_a_seed_says_everything() -> None:
    def told(seed: int) -> tuple[int, list[str]]:
        simulator = run_tokens(seed)
        return simulator.time, [snap_text(simulator.snapshots[k]) for k in range(20)]

    assert told(3) == told(3)
    assert told(3) != told(4)


def test_a_list_of_delays_that_is_too_short_says_how_many_were_used() -> None:
    topology, programs = assign(parse_topology("ring:3"), "mpsnap.apps.tokens:ScriptedTokens")
    simulator = Simulator(topology, programs, listed_delays([0, 0]))
    simulator.snapshot(["N1"])
    with pytest.raises(OutOfDelays, match="all 2 delays"):
        simulator.finish()


class Clockwork(Node):
    """Note the tick of every timer and idle call."""

    def setup(self, ctx: Context) -> None:
        self.heard: list[str] = []
        ctx.every(3, "ring")
        ctx.after(4, "once", "x")

    def ring(self, ctx: Context) -> None:
        self.heard.append("ring")

    def once(self, ctx: Context, word: str) -> None:
        self.heard.append(word)


def test_a_second_of_a_timer_is_a_tick() -> None:
    topology, programs = assign(parse_topology("ring:2"), Clockwork)
    simulator = Simulator(topology, programs, random_delays(0, 5))
    simulator.advance(7)
    number = simulator.snapshot(["N1"])
    simulator.finish()
    assert simulator.snapshots[number].nodes["N1"].state == {"heard": ["ring", "x", "ring"]}


class Alarmed(Node):
    """Pass a message on for ever, and set timers: a late one first and earlier ones at messages."""

    def setup(self, ctx: Context) -> None:
        self.heard: list[str] = []
        self.taken = 0
        ctx.send(ctx.outbound[0], None)
        ctx.after(20, "ring", "late")

    def on_message(self, ctx: Context, sender: str, payload: None) -> None:
        self.taken += 1
        if self.taken == 2:
            ctx.after(5, "ring", "early")
            ctx.after(3, "ring", "earlier")
        ctx.send(ctx.outbound[0], None)

    def ring(self, ctx: Context, word: str) -> None:
        self.heard.append(word)
        if word == "late":
            ctx.finish()


def test_timers_ring_in_their_order_whenever_they_were_set() -> None:
    topology, programs = assign(parse_topology("ring:2"), Alarmed)
    simulator = Simulator(topology, programs, listed_delays(itertools.repeat(0)))
    for _ in range(25):
        simulator.advance(1)
        simulator.snapshot(["N1"])
    simulator.finish()
    heard = [simulator.snapshots[number].nodes["N1"].state["heard"] for number in range(25)]
    # The second message comes at tick 2; a snapshot is taken after the timers of its tick.
    assert heard[3] == []
    assert heard[4] == heard[5] == ["earlier"]
    assert heard[6] == heard[18] == ["earlier", "early"]
    assert heard[19] == heard[24] == ["earlier", "early", "late"]


def test_a_snapshot_of_hundreds_of_busy_nodes_is_consistent_and_conserved() -> None:
    topology, programs = assign(parse_topology("random:600:0.004:7"), "mpsnap.apps.tokens:Tokens")
    simulator = Simulator(topology, programs, random_delays(3, 5), seed=3)
    simulator.advance(5)
    number = simulator.snapshot(["N1"])
    simulator.finish()
    snapshot = simulator.snapshots[number]
    snapshot.verify()
    assert conserved(snapshot)
    assert snapshot.in_flight > 0


def test_time_that_holds_nothing_is_skipped() -> None:
    """Walking it would take hours."""
    topology, programs = assign(parse_topology("ring:2"), "mpsnap.apps.tokens:ScriptedTokens")
    simulator = Simulator(topology, programs, random_delays(0, 5))
    simulator.advance(10**12)
    assert simulator.time == 10**12
