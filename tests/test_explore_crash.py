"""The explorer with crashes: nodes die at any step, every recovery is tried, every seeded bug in one is found."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from histories import Story
from test_explore import SMALL, cut_of, machine
from test_explore_whole import IdleTeller, Teller, cluster, sending

from mpsnap import Context, Node, parse_topology
from mpsnap.apps.tokens import conserved
from mpsnap.cli.main import main
from mpsnap.core import nodecore
from mpsnap.core.errors import ConsistencyError, NodeError
from mpsnap.core.history import parse_log
from mpsnap.core.program import assign
from mpsnap.core.protocol import Effect, LocalSnapshot, SnapshotId, SnapshotProtocol
from mpsnap.simulator.actor import Command, Initiation
from mpsnap.simulator.explorer import Explorer
from mpsnap.simulator.machine import Machine, Outcome, Part, State, Step
from mpsnap.views.shiviz import vector_clocks
from mpsnap.views.spacetime import diagram

pytestmark = pytest.mark.slow


# ------------------------------------------------------------- every schedule


def every_state(world: Machine, most: int = 100_000) -> list[tuple[State, State]] | None:
    """Walk all states by all steps and deaths, with nothing left out; None if there are more than `most`."""
    seen, queue, pairs = {world.start}, [world.start], []
    for state in queue:
        for step in (*world.enabled(state), *world.deaths(state)):
            following = world.after(state, step)
            if following is None:
                continue
            assert following[1].error is None
            pairs.append((state, following[0]))
            if following[0] not in seen:
                seen.add(following[0])
                queue.append(following[0])
        if len(seen) > most:
            return None
    return pairs


def begun_from(world: Machine) -> set[str]:
    """Return in full what incarnations have gone on from."""
    return {
        repr([(world.reports[part.report], part.place) for part in world._origins(cut)]) + f" {incarnation}"
        for cut, incarnation in world._recoveries
    }


def compared(searched: Machine, whole: Machine, most: int = 100_000) -> bool:
    """Let a search and a walk that leaves out nothing meet the same cuts and recoveries; False if it is too much."""
    pairs = every_state(whole, most)
    if pairs is None:
        return False
    explorer = Explorer(searched)
    findings = explorer.exhaust()
    assert (findings.exhausted, findings.violation, findings.trouble) == (True, None, None)
    slow = Explorer(whole)
    met = {cut_of(slow.merged(each, after)) for before, after in pairs for each in slow.completed(before, after)}
    assert {cut_of(cut) for cut in explorer.cuts.values()} == met
    assert begun_from(searched) == begun_from(whole)
    return True


@pytest.mark.parametrize("world", SMALL, ids=lambda world: f"{world[0]} {len(world[1])} {len(world[2])}")
def test_what_is_left_out_hides_no_cut_and_no_recovery(world: Any) -> None:
    assert compared(machine(*world, crashes=1), machine(*world, crashes=1))


def random_cluster(seed: int) -> Machine:
    draw = random.Random(f"crash {seed}")
    topology = parse_topology(draw.choice(["complete:2", "ring:2", "ring:3", "line:2", "star:3"]))
    plan: list[tuple[str, Command | Initiation]] = [
        sending(*draw.choice(list(topology.channels)), draw.choice([1, 2, 5])) for _ in range(draw.randint(1, 2))
    ]
    first = topology.nodes[0]
    initiators = draw.choice([[first], [first, draw.choice(topology.nodes[1:])]])
    plan += [(node, Initiation(SnapshotId.triggered(0, first, 0), 0)) for node in initiators]
    draw.shuffle(plan)
    built = cluster(topology, draw.choice([Teller, IdleTeller]), plan, draw.choice([0, 1]))
    return Machine(
        built.topology, built.programs, built.plan, sources=draw.choice([0, 1]), crashes=draw.choice([1, 1, 2])
    )


def test_random_clusters_have_no_cuts_and_recoveries_but_those_that_the_search_finds() -> None:
    count = 0
    for seed in range(30):
        # There a teller may begin a snapshot that cannot reach all, which is an error.
        if "line" in random_cluster(seed).topology.name:
            continue
        count += compared(random_cluster(seed), random_cluster(seed), most=500)
    assert count >= 10


def test_every_schedule_walked_one_by_one_recovers_from_the_cuts_that_the_search_does() -> None:
    """Nothing is a state here, so none can lack anything: whole schedules, with their own idea of the last cut."""
    world = machine("complete:2", [("N1", "N2", 1)], ["N1", "N2"], crashes=1)
    met: set[str] = set()
    schedules = 0

    def walk(state: State, last: str) -> None:
        nonlocal schedules
        (death,) = world.deaths(state)
        recovery = world.after(state, death)
        assert recovery is not None
        (_, notes), *restored = recovery[1].others
        assert notes[-1].fields["snapshot"] == last
        met.add(repr([[note.fields for note in each] for _, each in restored]))
        ended = True
        for step in world.enabled(state):
            following = world.after(state, step)
            assert following is not None
            complete = list(Explorer(world).completed(state, following[0]))
            walk(following[0], str(complete[-1]) if complete else last)
            ended = False
        schedules += ended

    walk(world.start, "0-N1-0")
    searched = machine("complete:2", [("N1", "N2", 1)], ["N1", "N2"], crashes=1)
    assert Explorer(searched).exhaust().verdict is None
    found = {
        repr([[note.fields for note in notes] for _, notes in recovered.notes])
        for (_, incarnation), recovered in searched._recoveries.items()
    }
    assert found == met
    assert (schedules > 10, len(met) > 5) == (True, True)


@pytest.mark.parametrize("crashes", [0, 1, 2])
def test_every_crash_of_a_small_cluster_is_survived(crashes: int) -> None:
    world = machine("complete:2", [("N1", "N2", 1), ("N2", "N1", 2)], ["N1", "N2"], crashes=crashes)
    findings = Explorer(world, [conserved]).exhaust()
    assert (findings.verdict, findings.exhausted) == (None, True)
    assert (findings.recoveries is None) == (not crashes)
    assert bool(findings.restoring) == bool(crashes)


def test_schedules_with_a_crash_are_counted() -> None:
    """Each schedule of one message, N1 to N2, written out: so many orders, with a death in each place."""
    world = machine("line:2", [("N1", "N2", 1)], ["N1"], crashes=1)
    findings = Explorer(world).exhaust()

    def ways(state: State) -> tuple[int, int]:
        steps = [*world.enabled(state), *world.deaths(state)]
        each = [following for step in steps if (following := world.after(state, step)) is not None]
        counted = [ways(after) for after, _ in each]
        ended = not world.enabled(state)
        return ended + sum(n for n, _ in counted), max((1 + longest for _, longest in counted), default=0)

    assert (findings.schedules, findings.depth) == ways(world.start)
    assert findings.schedules > 10


def test_the_last_complete_cut_and_the_crashes_left_are_part_of_a_state() -> None:
    world = machine("complete:2", [("N1", "N2", 1)], ["N1", "N2"], crashes=1)
    pairs = every_state(world)
    assert pairs is not None
    states = {after for _, after in pairs}
    kinds = {(state.incarnation, world.complete[state.cut].snapshot_id.n) for state in states}
    # The initial cut and that of either snapshot; after the last crash no cut is needed any more.
    assert kinds == {(0, 0), (0, 1), (1, 0)}
    assert len({world.complete[state.cut].snapshot_id for state in states}) == 3
    ends = {state for state in states if not world.enabled(state)}
    assert {state.incarnation for state in ends} == {0, 1}


def take(world: Machine, *texts: str) -> tuple[State, Outcome]:
    """Take these steps."""
    state, outcome = world.start, None
    for text in texts:
        following = world.after(state, Step.parse(text))
        assert following is not None, text
        state, outcome = following
    assert outcome is not None
    return state, outcome


def test_the_plan_goes_back_with_the_cut() -> None:
    """What was sent before the cut is not sent again, what was sent after it is; messages of after it are gone."""
    sends = [("N1", "N2", 1), ("N1", "N2", 2)]
    world = machine("line:2", sends, [], crashes=1)
    plan = [world.plan["N1"][0], Initiation(SnapshotId.triggered(0, "N1", 0), 0), world.plan["N1"][1]]
    world = Machine(world.topology, world.programs, {"N1": plan}, crashes=1)
    state, _ = take(world, "plan N1", "plan N1", "plan N1", "mark N1->N2", "take N1->N2", "take N1->N2", "die N2")
    assert state.incarnation == 1
    assert [str(step) for step in world.enabled(state)] == ["take N1->N2", "plan N1"]
    planned = [world.locals[rank].planned for rank in state.locals]
    assert planned == [plan[2], None]


def test_a_snapshot_begun_after_the_cut_is_begun_again_in_the_new_incarnation() -> None:
    world = machine("line:2", [], ["N1"], crashes=1)
    state, outcome = take(world, "plan N1", "die N1")
    assert world.locals[state.locals[0]].planned == Initiation(SnapshotId(1, "N1", 1), 0)
    (node, notes), *others = outcome.others
    assert node is None
    assert [(note.event, note.fields["snapshot"]) for note in notes] == [
        ("abandoned", "0-N1-1"),
        ("recovered", "0-N1-0"),
    ]
    assert [(node, [note.event for note in notes]) for node, notes in others] == [
        ("N1", ["restored"]),
        ("N2", ["restored"]),
    ]


def test_a_snapshot_that_somebody_had_begun_at_the_cut_is_begun_by_nobody_any_more() -> None:
    """Half of its initiators alone might never complete it."""
    topology, programs = assign(parse_topology("complete:2"), Teller)
    early, late = SnapshotId.triggered(0, "N1", 0), SnapshotId.triggered(0, "N1", 1)
    plan = {"N1": [Initiation(late, 1), Initiation(early, 0)], "N2": [Initiation(late, 1)]}
    world = Machine(topology, programs, plan, crashes=1)
    # N1 begins both, and N2 sees the marker of the second alone: never, for markers do not overtake.
    state, _ = take(world, "plan N1", "plan N1", "mark N1->N2", "mark N1->N2", "mark N2->N1", "mark N2->N1", "die N2")
    assert all(world.locals[rank].planned is None for rank in state.locals)
    findings = Explorer(world).exhaust()
    assert findings.violation is None
    assert findings.exhausted


def test_ids_of_all_incarnations_differ() -> None:
    explorer = Explorer(machine("complete:2", [("N1", "N2", 1)], ["N1"], Selfish, crashes=2))
    assert explorer.exhaust().violation is None
    ids = {snapshot_id for snapshot_id, _ in explorer.cuts}
    assert {each.incarnation for each in ids} == {0, 1, 2}
    assert {each.n % 2 for each in ids} == {0, 1}


class Selfish(Node):
    """Begin a snapshot at each message."""

    def setup(self, ctx: Context) -> None:
        self.had = 0

    def on_command(self, ctx: Context, command: dict[str, Any]) -> None:
        ctx.send(command["send"], command["amount"])

    def on_message(self, ctx: Context, sender: str, payload: int) -> None:
        self.had += payload
        ctx.snapshot()


class Boxes(Selfish):
    """Send what is no plain number, from the setup on, and set timers with it."""

    def setup(self, ctx: Context) -> None:
        super().setup(ctx)
        self.boxes: list[Any] = []
        if ctx.name == "N1":
            ctx.send("N2", {"first": [1, (2, "x")], "set": {1}})
            ctx.after(1, "give", [bytearray(b"x")])

    def give(self, ctx: Context, box: Any) -> None:
        ctx.send("N2", box)

    def on_message(self, ctx: Context, sender: str, payload: Any) -> None:
        self.boxes.append(payload)


def test_payloads_of_any_kind_are_restored() -> None:
    explorer = Explorer(machine("complete:2", [], ["N1", "N2"], Boxes, crashes=2, sources=1))
    findings = explorer.exhaust()
    assert (findings.verdict, findings.exhausted) == (None, True)
    kinds = {repr(node.state["boxes"]) for cut in explorer.cuts.values() for node in cut.nodes.values()}
    assert kinds == {
        "[]",
        "[{'first': [1, (2, 'x')], 'set': {1}}]",
        "[{'first': [1, (2, 'x')], 'set': {1}}, [bytearray(b'x')]]",
    }


class Restarts(Selfish):
    """Count restarts in the state, as a program may."""

    def on_start(self, ctx: Context) -> None:
        self.starts = getattr(self, "starts", 0) + 1


def test_what_a_program_does_when_it_starts_again_is_its_own_affair() -> None:
    findings = Explorer(machine("complete:2", [("N1", "N2", 1)], ["N1"], Restarts, crashes=1)).exhaust()
    assert (findings.verdict, findings.exhausted) == (None, True)


class Unwilling(Selfish):
    """Refuse to take a state back in which something was received."""

    def restore(self, state: Any) -> None:
        super().restore(state)
        if self.had:
            raise ValueError("not with that")


def test_a_node_that_cannot_be_restored_is_found() -> None:
    findings = Explorer(machine("complete:2", [("N1", "N2", 1)], ["N1"], Unwilling, crashes=1)).exhaust()
    assert isinstance(findings.verdict, NodeError)
    assert "N2 failed in restore: ValueError: not with that" in findings.verdict.what
    assert findings.violation is not None
    assert findings.violation.steps[-1].kind == "die"


def test_random_schedules_crash_early_and_late() -> None:
    world = ("complete:3", [("N1", "N2", 1), ("N2", "N3", 2), ("N3", "N1", 3)], ["N1", "N3"])
    findings = Explorer(machine(*world, crashes=2), [conserved]).walk(80, 3)
    assert (findings.schedules, findings.verdict) == (80, None)
    assert findings.restoring > 3
    assert Explorer(machine(*world, crashes=2)).walk(80, 3)[:6] == findings[:6]


# --------------------------------------------------------------- command line


APP = """
from mpsnap import Node

class Letters(Node):
    def setup(self, ctx):
        self.letters = ""
        if ctx.name == "N1":
            ctx.send("N2", "a")
            ctx.send("N2", "b")

    def on_message(self, ctx, sender, payload):
        self.letters += payload
        if self.letters == "ab" and len(ctx.outbound) == 1:
            ctx.send("N1", "seen")

def fine(snapshot):
    return snapshot.id.incarnation == 0 or snapshot.nodes["N2"].state["letters"] != "ab"
"""


@pytest.fixture
def found(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> tuple[Path, str]:
    """Find what holds only before a crash, and return the saved schedule and what was said."""
    app, saved = tmp_path / f"{tmp_path.name}.py", tmp_path / "found.schedule"
    app.write_text(APP)
    asked = ["--invariant", f"{app}:fine", "--snapshots", "1", "--save", str(saved), "--crash"]
    assert main(["explore", f"{app}:Letters", "--topology", "complete:2", *asked]) == 1
    return saved, capsys.readouterr().out


def test_a_violation_after_a_crash_is_told(found: tuple[Path, str]) -> None:
    """The story has a number for each step, and none for what a recovery does."""
    saved, said = found
    assert "recovered states, each exactly its cut" in said
    lines = [line[1:].strip() for line in said.splitlines()]
    died = next(k for k, line in enumerate(said.splitlines()) if "dies" in line)
    assert lines[died].endswith("N1  dies, and all nodes end with it")
    assert lines[died + 1] == "incarnation 1 recovers from the initial cut"
    assert lines[died + 2] == "N1  restores {'letters': ''}"
    assert lines[died + 3] == "N2  restores {'letters': ''}, with 2 messages to take"
    assert "receives message 1 from N1: 'a'" in said.split("restores")[-1]
    assert f"again: python -m mpsnap simulate --schedule {saved}" in said


def test_a_violation_after_a_crash_is_played_again_and_drawn(
    found: tuple[Path, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    saved, _ = found
    log = tmp_path / "found.log"
    assert main(["simulate", "--schedule", str(saved), "--log", str(log), "--format", "json"]) == 1
    said = capsys.readouterr()
    assert "fine is false" in json.loads(said.out)["error"]["what"]
    assert "N1 died; incarnation 1 recovers from 0-N1-0" in said.err
    history = parse_log(log.read_bytes().splitlines(keepends=True), "log")
    assert history.flaw is None
    events = [entry.event for entry in history.entries]
    assert [events.count(event) for event in ("died", "recovered", "restored", "violated")] == [1, 1, 2, 1]
    assert events.index("died") < events.index("recovered") < events.index("restored")
    drawing = diagram(history)
    for arrow in (*drawing.messages, *drawing.markers):
        if arrow.sent is not None and arrow.received is not None:
            assert drawing.points[arrow.sent].column < drawing.points[arrow.received].column
    assert "N1 died: N1: N1 died" in drawing.notices
    assert "incarnation 1 begins from snapshot 0-N1-0" in drawing.notices
    for form in ("svg", "html", "shiviz", "perfetto", "dot"):
        assert main(["export", str(log), "--as", form, "--output", str(tmp_path / f"found.{form}")]) == 0
        text = (tmp_path / f"found.{form}").read_text()
        assert "restored" in text or form == "dot", form


def test_a_message_that_is_received_or_sent_again_has_an_arrow_each_time() -> None:
    """One was in flight at the cut and received before the crash and after; one was sent behind the cut, twice."""
    story = Story("A", "B")
    story.send(1, "A", "B", "in flight")
    story.add(2, "A", "recorded", snapshot="0-A-1", from_=None, state={})
    story.send(3, "A", "B", "behind")
    story.receive(4, "B", "A")
    story.receive(5, "B", "A")
    story.add(6, "A", "died", error={"what": "A died", "where": "A", "try": None})
    story.add(7, None, "recovered", incarnation=1, snapshot="0-A-1")
    story.add(8, "A", "restored", snapshot="0-A-1", channels={}, state={})
    story.add(8, "B", "restored", snapshot="0-A-1", channels={"A": [1, 1]}, state={})
    story.add(9, "B", "received", from_="A", number=1)
    story.add(10, "A", "sent", to="B", number=2, payload="behind")
    story.add(11, "B", "received", from_="A", number=2)
    drawing = diagram(story.history)
    ends = [
        (drawing.points[arrow.sent or 0].entry.time, drawing.points[arrow.received or 0].entry.time)
        for arrow in drawing.messages
    ]
    assert sorted(ends) == [(1, 4), (1, 9), (3, 5), (10, 11)]
    clocks = {rank: dict(clock) for rank, clock in vector_clocks(drawing)}
    received = [rank for rank, point in enumerate(drawing.points) if point.entry.event == "received"]
    assert [clocks[rank][0] for rank in received] == [1, 3, 3, 6]


def test_crashes_in_the_document(capsys: pytest.CaptureFixture[str]) -> None:
    conserving = ("--invariant", "mpsnap.apps.tokens:conserved")
    assert main(["explore", "--topology", "complete:2", "--crash", *conserving, "--format", "json"]) == 0
    told = json.loads(capsys.readouterr().out)["exploration"]
    assert told["crashes"] == 1
    assert told["recoveries"] > told["recoveries_in_flight"] > 0
    with pytest.raises(SystemExit, match="2"):
        main(["explore", "--topology", "complete:2", "--crash", "0"])


def test_random_crashes_of_a_program_that_sends_by_itself(capsys: pytest.CaptureFixture[str]) -> None:
    asked = ("--topology", "ring:3", "--snapshots", "3", "--invariant", "mpsnap.apps.bank:audit", "--crash", "2")
    assert main(["explore", "bank", *asked, "--random", "20"]) == 0
    assert "recovered states, each exactly its cut" in capsys.readouterr().out


# ---------------------------------------------------------------- seeded bugs


class TwoCuts(Machine):
    """Recover the first node from the cut before the last."""

    def _origins(self, cut: int) -> tuple[Part, ...]:
        first, *rest = super()._origins(cut)
        return super()._origins(cut - 1)[0] if cut else first, *rest


class Leaking(Machine):
    """Leave on the channels what the old incarnation sent."""

    def after(self, state: State, step: Step) -> tuple[State, Outcome] | None:
        following = super().after(state, step)
        if following is None or step.kind != "die":
            return following
        messages = tuple(tuple(item for item in items if self._items[item][0]) for items in state.channels)
        return following[0]._replace(channels=messages), following[1]


class LeakingMarkers(Machine):
    """Leave the markers."""

    def after(self, state: State, step: Step) -> tuple[State, Outcome] | None:
        following = super().after(state, step)
        if following is None or step.kind != "die":
            return following
        markers = tuple(tuple(item for item in items if not self._items[item][0]) for items in state.channels)
        return following[0]._replace(channels=markers), following[1]


def forget_what_was_in_flight(monkeypatch: pytest.MonkeyPatch) -> None:
    whole: Any = nodecore._protocol

    def forgetful(*args: Any) -> SnapshotProtocol:
        *rest, restored = args
        if isinstance(restored, LocalSnapshot):
            empty = {src: state._replace(payloads=()) for src, state in restored.channels.items()}
            restored = restored._replace(channels=empty)
        made: SnapshotProtocol = whole(*rest, restored)
        return made

    monkeypatch.setattr(nodecore, "_protocol", forgetful)


def restore_no_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    whole: Any = nodecore._protocol

    def forgetful(*args: Any) -> SnapshotProtocol:
        *rest, restored = args
        if isinstance(restored, LocalSnapshot):
            restored = restored._replace(sent=dict.fromkeys(restored.sent, 0))
        made: SnapshotProtocol = whole(*rest, restored)
        return made

    monkeypatch.setattr(nodecore, "_protocol", forgetful)


class Hiding(SnapshotProtocol):
    """Leave out of a cut what stands in a restored inbox, and count it as received: no count shows it."""

    def __init__(self, *args: Any, inboxes: Any = None, **more: Any) -> None:
        super().__init__(*args, inboxes=inboxes, **more)
        self._were_restored = dict(self._inboxes)

    def _record(self, snapshot_id: SnapshotId, closing: str | None) -> tuple[Effect, ...]:
        inboxes, self._inboxes = (
            self._inboxes,
            {src: inbox for src, inbox in self._inboxes.items() if inbox is not self._were_restored.get(src)},
        )
        effects = super()._record(snapshot_id, closing)
        self._inboxes = inboxes
        return effects


def leave_the_restored_inbox_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nodecore, "SnapshotProtocol", Hiding)


def judge_the_restored_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let what a recovery restores be looked at by nobody: then what follows must show it."""
    monkeypatch.setattr(Explorer, "_not_restored", lambda *_: None)


BUGS: dict[str, tuple[type[Machine], Callable[[pytest.MonkeyPatch], None] | None]] = {
    "the recovery forgets what was in flight": (Machine, forget_what_was_in_flight),
    "the recovery forgets what was sent": (Machine, restore_no_counts),
    "states of two cuts are restored": (TwoCuts, None),
    "messages leak into the next incarnation": (Leaking, None),
    "markers leak into the next incarnation": (LeakingMarkers, None),
    "a restored inbox is not in the next snapshot": (Machine, leave_the_restored_inbox_out),
}


def broken(kind: type[Machine], crashes: int = 1) -> Machine:
    """Return a cluster in which each of the bugs shows."""
    whole = machine("complete:2", [("N1", "N2", 1), ("N2", "N1", 2)], ["N1", "N2"])
    return kind(whole.topology, whole.programs, whole.plan, crashes=crashes)


@pytest.mark.parametrize("bug", BUGS)
def test_a_seeded_bug_of_a_recovery_is_found_and_played_again(bug: str, monkeypatch: pytest.MonkeyPatch) -> None:
    kind, seed_it = BUGS[bug]
    if seed_it is not None:
        seed_it(monkeypatch)
    assert Explorer(broken(kind, crashes=0), [conserved]).exhaust().verdict is None, "it shows without a crash"
    findings = Explorer(broken(kind), [conserved]).exhaust()
    assert findings.violation is not None
    assert isinstance(findings.verdict, ConsistencyError)
    assert [step.kind for step in findings.violation.steps].count("die") == 1
    assert played_with(broken(kind), findings) == findings.violation.error.what


def played_with(world: Machine, findings: Any) -> str | None:
    """Take the steps again, and return what does not hold at the end; invariants are asked too."""
    *before, last = Explorer(world, [conserved]).follow(findings.violation.steps)
    assert [each.error for each in before] == [None] * len(before)
    return None if last.error is None else last.error.what


@pytest.mark.parametrize("bug", BUGS)
def test_a_seeded_bug_of_a_recovery_is_found_by_random_schedules(bug: str, monkeypatch: pytest.MonkeyPatch) -> None:
    kind, seed_it = BUGS[bug]
    if seed_it is not None:
        seed_it(monkeypatch)
    findings = Explorer(broken(kind), [conserved]).walk(300, seed=2)
    assert findings.violation is not None
    assert played_with(broken(kind), findings) == findings.violation.error.what


@pytest.mark.parametrize("bug", BUGS)
def test_what_follows_a_wrong_recovery_shows_it_too(bug: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Counts on the wire, the next cuts and the end of the schedule: also if nobody looks at what is restored."""
    kind, seed_it = BUGS[bug]
    if seed_it is not None:
        seed_it(monkeypatch)
    judge_the_restored_alone(monkeypatch)
    findings = Explorer(broken(kind), [conserved]).exhaust()
    assert findings.violation is not None
    assert isinstance(findings.verdict, ConsistencyError)


def test_without_a_bug_nothing_is_found_there() -> None:
    assert Explorer(broken(Machine), [conserved]).exhaust().verdict is None
