"""What the explorer's search leaves out, against a walk that leaves out nothing: no cut and no violation is hidden."""

from __future__ import annotations

import random
import sys
from collections.abc import Iterable
from typing import Any

import pytest

from mpsnap import Context, Node, Topology, parse_topology
from mpsnap.core.errors import NodeError, SnapshotError
from mpsnap.core.program import NodeSpec, assign
from mpsnap.core.protocol import SnapshotId
from mpsnap.simulator.actor import Command, Initiation
from mpsnap.simulator.explorer import Explorer
from mpsnap.simulator.machine import Machine, State

pytestmark = pytest.mark.slow

#: Its id, and the ranks of its local snapshots.
Cut = tuple[SnapshotId, tuple[int, ...]]


class Teller(Node):
    """Keep in order what happened; a message of 1 begins a snapshot, one of 2 sets a timer."""

    def setup(self, ctx: Context) -> None:
        self.told: list[str] = []

    def on_command(self, ctx: Context, command: dict[str, Any]) -> None:
        ctx.send(command["send"], command["amount"])

    def on_message(self, ctx: Context, sender: str, payload: int) -> None:
        self.told.append(f"{sender} {payload}")
        if payload == 1 and len(self.told) < 4:
            ctx.snapshot()
        if payload == 2:
            ctx.after(1, "ring")

    def ring(self, ctx: Context) -> None:
        self.told.append("ring")
        ctx.send(ctx.outbound[0], 3)


class IdleTeller(Teller):
    """Keep idle calls too."""

    def on_idle(self, ctx: Context) -> None:
        self.told.append("idle")


class Relay(Teller):
    """Raise in one order alone: an idle call after what A relayed, and before what B sent here first."""

    def on_command(self, ctx: Context, command: dict[str, Any]) -> None:
        super().on_command(ctx, command)
        if command["amount"] == 7:
            ctx.snapshot()

    def on_message(self, ctx: Context, sender: str, payload: int) -> None:
        self.told.append(sender)
        if ctx.name == "A":
            ctx.send("C", payload)

    def on_idle(self, ctx: Context) -> None:
        self.told.append("idle")
        if ctx.name == "C" and self.told == ["idle", "A", "idle"]:
            raise ValueError("idle between A and B")


def cluster(topology: Topology, nodes: NodeSpec, plan: list[tuple[str, Command | Initiation]], idle: int) -> Machine:
    of_node: dict[str, list[Command | Initiation]] = {}
    for node, planned in plan:
        of_node.setdefault(node, []).append(planned)
    topology, programs = assign(topology, nodes)
    return Machine(topology, programs, of_node, sources=idle)


def sending(src: str, dst: str, payload: int) -> tuple[str, Command]:
    return src, Command({"send": dst, "amount": payload}, f"send {src} {dst} {payload}")


def test_an_idle_call_between_messages_that_a_marker_stands_behind_is_tried() -> None:
    """To see a marker is to see the messages in front of it, and no idle call comes until they are taken.

    So always to see it first would hide the schedule in which C is idle while B's message is on its way.
    """
    topology = Topology(["A", "B", "C"], [("A", "C"), ("B", "A"), ("B", "C"), ("C", "B")])
    plan = [sending("B", "C", 7), sending("B", "A", 8)]
    findings = Explorer(cluster(topology, Relay, [*plan], 2)).exhaust()
    assert isinstance(findings.verdict, NodeError)
    assert "idle between A and B" in findings.verdict.what


def walked(machine: Machine, most: int) -> set[Cut] | None:
    """Return every cut, by a walk through all states and all steps; None if there are more than `most` states."""
    explorer = Explorer(machine)
    seen, queue, cuts = {machine.start}, [machine.start], set()
    for state in queue:
        for step in machine.enabled(state):
            following = machine.after(state, step)
            if following is None:
                continue
            assert following[1].error is None
            cuts |= {cut_of(machine, each, following[0]) for each in explorer.completed(state, following[0])}
            if following[0] not in seen:
                seen.add(following[0])
                queue.append(following[0])
        if len(seen) > most:
            return None
    return cuts


def cut_of(machine: Machine, snapshot_id: SnapshotId, state: State) -> Cut:
    return snapshot_id, tuple(machine.locals[rank].reports[snapshot_id] for rank in state.locals)


def random_cluster(draw: random.Random) -> Machine:
    topology = parse_topology(draw.choice(["complete:2", "ring:2", "ring:3", "biring:3", "star:3", "complete:3"]))
    channels = list(topology.channels)
    plan: list[tuple[str, Command | Initiation]] = [
        sending(*draw.choice(channels), draw.choice([1, 2, 5, 5])) for _ in range(draw.randint(1, 2))
    ]
    initiators = draw.sample(topology.nodes, draw.choice([1, 1, 2]))
    snapshot_id = SnapshotId.triggered(0, initiators[0], 0)
    plan += [(node, Initiation(snapshot_id, 0)) for node in initiators]
    draw.shuffle(plan)
    return cluster(topology, draw.choice([Teller, IdleTeller]), plan, draw.choice([1, 2]))


def test_random_clusters_have_no_cuts_but_those_that_the_search_finds() -> None:
    compared = 0
    for seed in range(40):
        whole, searched = (random_cluster(random.Random(f"whole {seed}")) for _ in range(2))
        expected = walked(whole, 1500)
        if expected is None:
            continue
        explorer = Explorer(searched)
        findings = explorer.exhaust()
        assert (findings.exhausted, findings.violation) == (True, None), seed
        assert texts(searched, explorer.cuts) == texts(whole, expected), seed
        compared += 1
    assert compared >= 15


def texts(machine: Machine, cuts: Iterable[Cut]) -> set[str]:
    """Return what cuts are in full: ranks follow the order in which local snapshots were met."""
    return {repr((each, [machine.reports[rank] for rank in ranks])) for each, ranks in cuts}


class Quitter(Node):
    """End in `sys.exit`, which raises what is no Exception."""

    def setup(self, ctx: Context, at_once: bool) -> None:
        if at_once:
            sys.exit("at once")

    def on_command(self, ctx: Context, command: dict[str, Any]) -> None:
        sys.exit(0)


@pytest.mark.parametrize("at_once", [True, False])
def test_a_hook_that_ends_in_sys_exit_is_a_failure_of_its_node(at_once: bool) -> None:
    topology, programs = assign(parse_topology("complete:2"), Quitter, {"at_once": at_once})
    plan = dict([sending("N2", "N1", 1)])
    with pytest.raises(NodeError, match=r"N\d failed in (setup|on_command): SystemExit: "):
        raise Explorer(Machine(topology, programs, {n: [p] for n, p in plan.items()})).exhaust().verdict or Exception


class Fickle(Teller):
    """Raise when the same happens a second time."""

    seen = 0

    def on_command(self, ctx: Context, command: dict[str, Any]) -> None:
        super().on_command(ctx, command)
        Fickle.seen += 1
        if Fickle.seen > 1:
            raise ValueError("not again")


def test_a_node_that_raises_when_its_history_is_repeated_is_told() -> None:
    begun = [(node, Initiation(SnapshotId.triggered(0, node, 0), number)) for number, node in enumerate(("N1", "N2"))]
    plan: list[tuple[str, Command | Initiation]] = [sending("N1", "N2", 5), *begun]
    findings = Explorer(cluster(parse_topology("complete:2"), Fickle, plan, 1)).exhaust()
    assert findings.violation is None
    assert isinstance(findings.verdict, SnapshotError)
    assert "N1 to the same state again (now: ValueError: not again)" in findings.verdict.what
