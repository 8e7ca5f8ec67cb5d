"""A node that is restored goes on exactly as the node that recorded did: in what it does, sends, emits and draws."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable
from typing import Any, NamedTuple

import pytest
from harness import (
    PLAIN,
    Clock,
    CoreWorld,
    RecordingDriver,
    Solo,
    WireDriver,
    captured,
    graph,
    part_of,
    snap,
    state_of,
)
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from mpsnap import Context, Node
from mpsnap.core.batch import PackedBatch, pack_batch
from mpsnap.core.codec import freeze
from mpsnap.core.driver import Encode
from mpsnap.core.errors import CodecError, ProtocolError
from mpsnap.core.history import Entry
from mpsnap.core.journal import EntryJournal, JournaledCore
from mpsnap.core.protocol import ChannelState, LocalSnapshot, Marker, Message, SnapshotId
from mpsnap.core.snapshot import Captured, GlobalSnapshot, StoredState, Timer, UnfinishedState


def part(
    state: object,
    *,
    timers: tuple[Timer, ...] = (),
    random: tuple[int | str, int] = ("0:A", 0),
    passive: bool = False,
    finished: bool = False,
    emitted: int = 0,
    sent: dict[str, int] | None = None,
    inboxes: dict[str, tuple[int, list[object]]] | None = None,
) -> LocalSnapshot:
    """Make A's part of a snapshot; `inboxes` has the count received and the messages in flight, by source."""
    fixed = Captured(PLAIN.encode(state), timers, random, passive, finished, emitted)
    received = {src: count for src, (count, _) in (inboxes or {}).items()}
    channels = {
        src: ChannelState(count + 1, tuple(freeze(payload, PLAIN) for payload in payloads))
        for src, (count, payloads) in (inboxes or {}).items()
    }
    return LocalSnapshot("A", snap("B"), fixed, sent or {}, received, channels)


def restored(node: Node, local: LocalSnapshot, **options: Any) -> Solo:
    """Return a node that goes on from its part of a snapshot."""
    return Solo(
        node,
        inbound=tuple(local.received),
        outbound=tuple(local.sent),
        incarnation=1,
        restored=local,
        **options,
    ).start()


class Diary(Node):
    """Write down every hook; `acts` says what to do in one besides, and what it returns."""

    transient = ("acts",)

    def __init__(self) -> None:
        self.entries: list[Any] = []
        self.acts: dict[str, Callable[[Context], Any]] = {}

    def _act(self, ctx: Context, hook: str, *rest: Any) -> Any:
        self.entries.append((hook, *rest))
        act = self.acts.get(hook)
        return None if act is None else act(ctx)

    def setup(self, ctx: Context) -> None:
        self._act(ctx, "setup")

    def on_start(self, ctx: Context) -> None:
        self._act(ctx, "on_start")

    def on_message(self, ctx: Context, sender: str, payload: Any) -> None:
        self._act(ctx, "on_message", sender, payload)

    def ring(self, ctx: Context, *args: Any) -> None:
        self._act(ctx, "ring", *args)

    def restore(self, state: Any) -> None:
        acts = self.acts
        super().restore(state)
        self.acts = acts


def diary(**acts: Callable[[Context], Any]) -> Diary:
    node = Diary()
    node.acts = acts
    return node


# ------------------------------------------------------------------ one by one


def test_on_start_is_called_and_setup_is_not() -> None:
    """In the place of `setup` the state comes back; `on_start` opens files again."""
    node = diary()
    restored(node, part({"entries": ["of the cut"]}))
    assert node.entries == ["of the cut", ("on_start",)]


def test_messages_in_flight_stand_in_the_inbox_and_are_taken_in_order_before_new_ones() -> None:
    node = diary()
    one = restored(node, part({"entries": []}, inboxes={"B": (3, ["x", ["y"]]), "C": (0, [])}))
    one.see("B", "z").see("C", "c").run()
    of = {src: [entry[2] for entry in node.entries if entry[1:2] == (src,)] for src in "BC"}
    assert of == {"B": ["x", ["y"], "z"], "C": ["c"]}
    assert (one.core.protocol.received("B"), one.core.protocol.received("C")) == (6, 1)


def test_messages_are_numbered_on_without_a_gap() -> None:
    node = diary(on_message=lambda ctx: ctx.send("B", "answer"))
    one = restored(node, part({"entries": []}, sent={"B": 7, "C": 2}, inboxes={"B": (1, ["x"])}))
    one.run()
    assert one.driver.all("send") == [("B", 8, "answer")]
    with pytest.raises(ProtocolError, match="message number 4 where 3 was due"):
        one.core.receive_batch("B", 4, ("later",))
    one.core.receive_batch("B", 3, ("next",))


def test_records_are_numbered_on() -> None:
    one = restored(
        diary(on_message=lambda ctx: ctx.emit("r")), part({"entries": []}, emitted=5, inboxes={"B": (0, [1])})
    )
    one.run()
    assert [n for n, _ in one.driver.all("emit")] == [5]


def test_random_numbers_go_on_whatever_on_start_draws() -> None:
    """A program that draws in `on_start`, once more at each start, still draws the same afterwards."""
    drawn: list[float] = []
    original = Solo(diary()).start()
    original.core.random.random()
    of_cut = captured_by(original)
    expected = [original.core.random.random() for _ in range(3)]
    node = diary(on_start=lambda ctx: ctx.random.random(), ring=lambda ctx: drawn.append(ctx.random.random()))
    one = restored(node, part({"entries": []}, random=of_cut.random, timers=(Timer(1.0, 1.0, "ring", ()),)))
    one.pass_time(1)
    one.pass_time(1)
    assert [*drawn, one.core.random.random()] == expected


def captured_by(one: Solo) -> Captured:
    return one.record(len(one.driver.reports()) + 1)


def test_the_generator_of_a_node_is_one_object_from_on_start_on() -> None:
    kept: list[Any] = []
    one = restored(diary(on_start=lambda ctx: kept.append(ctx.random)), part({"entries": []}, random=("seed", 9)))
    assert kept == [one.core.random]
    assert (one.core.random.seed, one.core.random.counter) == ("seed", 9)


def test_timers_keep_their_remaining_time_their_order_and_their_period() -> None:
    timers = (
        Timer(0.0, None, "ring", ("late",)),
        Timer(2.0, None, "ring", ("once",)),
        Timer(2.0, 3.0, "ring", ("every",)),
        Timer(2.0, None, "ring", ("last",)),
    )
    clock = Clock()
    clock.pass_time(1000)
    one = restored(diary(), part({"entries": []}, timers=timers), clock=clock)
    assert captured_by(one).timers == timers
    rung = ringing(one)
    assert rung(0) == ["late"]
    assert rung(1.5) == []
    assert rung(0.5) == ["once", "every", "last"]
    assert (rung(2.5), rung(0.5)) == ([], ["every"])


def ringing(one: Solo) -> Callable[[float], list[str]]:
    """Return what lets time pass and returns which timers rang."""

    def rung(seconds: float) -> list[str]:
        node = one.core._node
        assert isinstance(node, Diary)
        before = len(node.entries)
        one.pass_time(seconds)
        return [entry[1] for entry in node.entries[before:] if entry[0] == "ring"]

    return rung


def test_timers_that_will_be_due_at_once_ring_in_the_order_of_the_original() -> None:
    """One was set first and is due later: which of two rings first must not hang on what no cut says."""

    def set_two(ctx: Context) -> None:
        ctx.every(10, "ring", "slow")
        ctx.every(5, "ring", "quick")

    one = Solo(diary(setup=set_two)).start()
    other = restored(diary(), part({"entries": []}, timers=captured_by(one).timers))
    orders = [[rung(5), rung(5), rung(5), rung(5)] for rung in (ringing(one), ringing(other))]
    assert orders[0] == orders[1]
    assert sorted(orders[0][1]) == ["quick", "slow"]


def test_a_node_that_finishes_when_it_starts_again_has_no_timers() -> None:
    one = restored(
        diary(on_start=lambda ctx: ctx.finish()), part({"entries": []}, timers=(Timer(1.0, 1.0, "ring", ()),))
    )
    assert (one.core.next_timer, one.core.passive, captured_by(one).finished) == (None, True, True)


@pytest.mark.parametrize("finished", [False, True])
def test_a_finished_node_is_finished_again(finished: bool) -> None:
    class Idler(Diary):
        def on_idle(self, ctx: Context) -> bool:
            return True

    one = restored(Idler(), part({"entries": []}, finished=finished, passive=finished))
    assert (one.core.idle_wanted, one.core.passive) == (not finished, finished)
    assert captured_by(one).finished is finished


def test_a_passive_node_gets_no_idle_call_and_another_gets_one_again() -> None:
    class Idler(Diary):
        def on_idle(self, ctx: Context) -> None:
            self.entries.append("idle")

    for passive, calls in ((True, 0), (False, 1)):
        node = Idler()
        one = restored(node, part({"entries": []}, passive=passive))
        one.run()
        assert node.entries.count("idle") == calls
        assert one.core.passive


class OnDisk(StoredState):
    """Stand for a state in a file, which may be damaged."""

    def __init__(self, data: bytes | None) -> None:
        self._data = data

    @property
    def size(self) -> int:
        return len(self._data or b"")

    def read(self) -> bytes:
        if self._data is None:
            raise CodecError("the file is damaged", where="state.bin")
        return self._data

    def close(self) -> None:
        pass


def with_state(local: LocalSnapshot, state: bytes | StoredState) -> LocalSnapshot:
    return local._replace(captured=captured(local)._replace(state=state))


def test_a_state_that_is_stored_in_a_file_is_read() -> None:
    node = diary()
    restored(node, with_state(part({}), OnDisk(PLAIN.encode({"entries": ["from a file"]}))))
    assert node.entries == ["from a file", ("on_start",)]


def test_messages_in_flight_may_be_packed() -> None:
    node = diary()
    local = part({"entries": []}, inboxes={"B": (0, [])})
    one = restored(node, local._replace(channels={"B": ChannelState(1, pack_batch(["x", (1, 2)]))}))
    one.run()
    assert node.entries[1:] == [("on_message", "B", "x"), ("on_message", "B", (1, 2))]


class Stubborn(Diary):
    def restore(self, state: Any) -> None:
        raise ValueError("I do not want to")


@pytest.mark.parametrize(
    ("node", "state", "error"),
    [
        (Diary(), b"no state", CodecError),
        (Diary(), OnDisk(None), CodecError),
        (Stubborn(), PLAIN.encode({}), ValueError),
    ],
    ids=["damaged", "damaged file", "refused"],
)
def test_what_fails_while_the_state_is_taken_back_fails_in_restore(
    node: Node, state: bytes | StoredState, error: type[Exception]
) -> None:
    """So that whoever is told of it knows that no other hook of the node has run."""
    one = Solo(node, incarnation=1, restored=with_state(part({}), state))
    with pytest.raises(error):
        one.core.start({})
    assert one.core.hook == "restore"
    assert one.driver.all("phase")[-1] == ("restore",)


def test_a_part_that_is_not_this_nodes_or_of_no_earlier_incarnation_is_refused() -> None:
    with pytest.raises(ProtocolError, match="B cannot be restored from the part of A"):
        Solo(diary(), name="B", incarnation=1, restored=part({}))
    with pytest.raises(ProtocolError, match="incarnation 0 cannot go on from 0-B-1"):
        Solo(diary(), incarnation=0, restored=part({}))


def test_messages_that_cannot_be_unpacked_name_their_channel() -> None:
    local = part({}, inboxes={"B": (0, [])})
    damaged = local._replace(channels={"B": ChannelState(1, PackedBatch(2, b"nothing"))})
    with pytest.raises(CodecError) as caught:
        Solo(diary(), inbound="B", incarnation=1, restored=damaged)
    assert caught.value.where == "B->A"


def test_ids_of_a_restored_node_never_repeat() -> None:
    """It begins to count anew, in another incarnation."""
    ids: list[str] = []

    def wish(ctx: Context) -> None:
        ids.append(ctx.snapshot())

    local: LocalSnapshot | None = None
    for incarnation in range(4):
        one = Solo(diary(ring=wish), incarnation=incarnation, restored=local).start()
        one.core.initiate(SnapshotId.triggered(incarnation, "A", 0))
        local = one.driver.reports()[-1]
        local = local._replace(captured=captured(local)._replace(timers=(Timer(1.0, 1.0, "ring", ()),)))
        one = Solo(diary(ring=wish), incarnation=incarnation + 1, restored=local).start()
        one.pass_time(1)
        one.pass_time(1)
        local = one.driver.reports()[-1]._replace(snapshot_id=local.snapshot_id)
    assert len(ids) == 8
    assert len(set(ids)) == len(ids)
    assert ids[:3] == ["1-A-2", "1-A-4", "2-A-2"]


def test_a_journal_counts_on_and_notes_the_restoring() -> None:
    """What it says of messages is numbered as on the wire."""
    entries: list[Entry] = []
    node = diary(on_message=lambda ctx: ctx.send("B", "answer"))
    local = part({"entries": []}, sent={"B": 4}, inboxes={"B": (6, ["x"])})
    driver = RecordingDriver()
    core = JournaledCore(
        "A",
        node,
        inbound="B",
        outbound="B",
        unreachable=(),
        incarnation=1,
        seed=0,
        codec=PLAIN,
        clock=Clock(),
        restored=local,
        driver=driver,
        journal=EntryJournal("A", PLAIN, Clock(), entries.append),
    )
    core.start({})
    core.receive_batch("B", 8, ("y",))
    core.step(sources=True)
    core.step(sources=True)
    assert entries[0].event == "restored"
    assert entries[0].detail == {"snapshot": "0-B-1", "channels": {"B": [7, 1]}, "state": {"entries": []}}
    numbers = [(entry.event, entry.detail["number"]) for entry in entries[1:]]
    assert numbers == [("received", 7), ("sent", 5), ("received", 8), ("sent", 6)]


def test_a_snapshot_begun_before_the_inbox_is_drained_records_the_rest_of_it() -> None:
    node = diary()
    one = restored(node, part({"entries": []}, inboxes={"B": (2, ["x", "y", "z"])}))
    one.step()
    later = SnapshotId(1, "B", 1)
    one.see("B", "new").see_marker("B", later)
    (local,) = one.driver.reports()
    assert (local.received, local.channels["B"].first) == ({"B": 3}, 4)
    assert list(local.channels["B"].payloads) == ["y", "z", "new"]
    again = diary()
    Solo(again, inbound="B", incarnation=2, restored=local).start().run()
    assert [entry[2] for entry in again.entries if entry[0] == "on_message"] == ["x", "y", "z", "new"]


# --------------------------------------------------------------- any program


class Fate(Node):
    """Do what the random numbers say: send, emit, set timers, finish."""

    def setup(self, ctx: Context) -> None:
        self.told: list[object] = []
        self.left = 60
        for dst in ctx.outbound:
            ctx.send(dst, ["hello", dst])
        ctx.every(1.5, "ring", "always")

    def act(self, ctx: Context, *what: object) -> int:
        drawn = ctx.random.randrange(12)
        self.told.append([*what, drawn])
        if self.left <= 0:
            return drawn
        self.left -= 1
        if drawn < 4:
            ctx.send(ctx.random.choice(ctx.outbound), drawn if drawn % 2 else {"list": [drawn]})
        elif drawn < 6:
            ctx.broadcast((drawn, self.left))
        elif drawn == 6:
            ctx.emit([drawn, len(self.told)])
        elif drawn == 7:
            ctx.after(ctx.random.randrange(6) / 2, "ring", [drawn])
        elif drawn == 8:
            ctx.every((1 + ctx.random.randrange(3)) / 2, "ring", self.left)
        elif drawn == 9 and ctx.random.random() < 0.5:
            ctx.finish()
        elif drawn == 10:
            ctx.log(f"{self.left} left")
        return drawn

    def on_message(self, ctx: Context, sender: str, payload: Any) -> None:
        self.act(ctx, sender, payload)

    def on_command(self, ctx: Context, command: Any) -> int:
        return self.act(ctx, "command", command)

    def ring(self, ctx: Context, *args: Any) -> None:
        self.act(ctx, "ring", *args)


class IdleFate(Fate):
    """And in idle calls too."""

    def on_idle(self, ctx: Context) -> bool:
        return self.act(ctx, "idle") % 2 == 0


class Cut(NamedTuple):
    """Where one node recorded: how many inputs it had had, how many effects, and when."""

    inputs: int
    calls: int
    now: float


class NotingDriver(WireDriver):
    """Note where its node records."""

    def fix(self, snapshot_id: SnapshotId | None, encode: Encode) -> bytes | UnfinishedState:
        world = self._world
        assert isinstance(world, Noting)
        if snapshot_id is not None:
            world.cuts[snapshot_id, self._name] = Cut(len(world.inputs[self._name]), len(self.calls), world.clock.now)
        return encode(bytes)


class Noting(CoreWorld):
    """Note all that comes to a node, each with its time, so that it can come to another."""

    driver_class = NotingDriver

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self.inputs: dict[str, list[tuple[float, str, Any]]] = {}
        self.cuts: dict[tuple[SnapshotId, str], Cut] = {}
        topology = args[0]
        self.inputs = {name: [] for name in topology.nodes}
        super().__init__(*args, **kwargs)

    def possible(self) -> list[tuple[str, str, Any]]:
        """Return what may happen next: kind, node, and what more there is to say."""
        found: list[tuple[str, str, Any]] = [("deliver", dst, src) for (src, dst), items in self.wire.items() if items]
        for name, core in self.cores.items():
            found += [("take", name, src) for src in core.protocol.inbound if core.protocol.waiting(src)]
            if core.next_timer is not None and core.next_timer <= self.clock.now:
                found.append(("timer", name, None))
            if core.idle_wanted:
                found.append(("idle", name, None))
            found.append(("command", name, len(self.inputs[name])))
        if not any(kind == "timer" for kind, _, _ in found):
            # A timer that is late rings at once in the next incarnation; by how much it was late no cut says.
            found.append(("time", "", 0.5))
        return found

    def do(self, kind: str, name: str, more: Any) -> None:
        if kind == "time":
            self.clock.pass_time(more)
            return
        if kind == "deliver":
            item = self.wire[more, name][0]
            if isinstance(item, Message):
                self.inputs[name].append((self.clock.now, "see", (more, item)))
            self.deliver(more, name)
            return
        self.inputs[name].append((self.clock.now, kind, more))
        act(self.cores[name], kind, more)


def act(core: Any, kind: str, more: Any) -> None:
    """Let one thing happen to a node."""
    if kind == "see":
        src, item = more
        core.receive_batch(src, item.number, (item.payload,))
    elif kind == "take":
        core.take(more)
    elif kind == "timer":
        core.run_timer()
    elif kind == "idle":
        assert core.idle_wanted
        core.run_idle()
    else:
        core.command(more, PLAIN.encode(more))
        core.step(sources=False)


#: What happened at least once over the whole run. A property that was never put to the test is none.
SOMETIMES: Counter[str] = Counter()

SETTINGS = settings(
    max_examples=80,
    deadline=None,
    phases=(Phase.explicit, Phase.reuse, Phase.generate, Phase.shrink),
    derandomize=bool(os.environ.get("CI")),
    print_blob=True,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)
GRAPHS = ["A<->B", "A->B B->C C->A", "A<->B B<->C C<->A", "A->B B->A B->C C->A"]
CHOICES = st.lists(st.integers(0, 1 << 16), min_size=20, max_size=140)


def run_on(world: Noting, choices: list[int]) -> None:
    for choice in choices:
        possible = world.possible()
        world.do(*possible[choice % len(possible)])


@SETTINGS
@given(st.sampled_from(GRAPHS), st.sampled_from([Fate, IdleFate]), CHOICES, CHOICES, st.data())
@pytest.mark.slow
def test_a_restored_node_goes_on_as_the_original_from_the_cut_on(
    words: str, program: type[Fate], before: list[int], after: list[int], data: st.DataObject
) -> None:
    """The same comes to both, and both do the same: effects with their numbers, and at the end all that a cut holds."""
    world = Noting(graph(words), program)
    run_on(world, before)
    initiator = data.draw(st.sampled_from(world.topology.nodes))
    world.cores[initiator].initiate(snap(initiator))
    run_on(world, after)
    while snap(initiator) not in world.snapshots:
        world.do(*next(step for step in world.possible() if step[0] == "deliver"))
    snapshot = world.snapshots[snap(initiator)]
    for name in world.topology.nodes:
        compare(world, snapshot, name, exact=program is Fate)
    SOMETIMES["in flight"] += snapshot.in_flight > 0
    SOMETIMES["timers"] += any(len(node.timers) > 1 for node in snapshot.nodes.values())
    SOMETIMES["finished"] += any(node.finished for node in snapshot.nodes.values())


def compare(world: Noting, snapshot: GlobalSnapshot, name: str, exact: bool) -> None:
    cut = world.cuts[snapshot.id, name]
    clock, driver = Clock(), RecordingDriver()
    # Another scale: a clock means nothing to the next incarnation.
    clock.now = 4096.0
    core = Solo(
        type(world.nodes[name])(),
        inbound=world.topology.inbound(name),
        outbound=world.topology.outbound(name),
        name=name,
        seed=99,
        incarnation=1,
        restored=part_of(snapshot, name),
        driver=driver,
        clock=clock,
    ).core
    core.start({})
    for now, kind, more in world.inputs[name][cut.inputs :]:
        clock.now = 4096.0 + now - cut.now
        if kind == "see" and more[1].number <= core.protocol.seen(more[0]):
            continue  # It was in flight and stands in the inbox.
        act(core, kind, more)
        SOMETIMES["went on"] += 1
    clock.now = 4096.0 + world.clock.now - cut.now
    kinds = ("send", "emit", "reply", "log")
    effects = [call for call in world.drivers[name].calls[cut.calls :] if call[0] in kinds]
    assert [call for call in driver.calls if call[0] in kinds] == effects
    original, twin = (each.fingerprint()[0] for each in (world.cores[name], core))
    assert state_of(original) == state_of(twin)
    assert original[1:3] + original[4:] == twin[1:3] + twin[4:]
    if exact:
        assert original.passive == twin.passive
    # Messages sent and received, and what stands in the inboxes.
    assert world.cores[name].protocol.fingerprint()[:3] == core.protocol.fingerprint()[:3]
    SOMETIMES["compared"] += 1


class Purse(Node):
    """Hold tokens and pass some of them on; what is had is counted."""

    def setup(self, ctx: Context) -> None:
        self.tokens = 10
        ctx.every(1, "give")

    def give(self, ctx: Context) -> None:
        amount = min(self.tokens, 1 + ctx.random.randrange(3))
        if amount:
            self.tokens -= amount
            ctx.send(ctx.random.choice(ctx.outbound), amount)

    def on_message(self, ctx: Context, sender: str, payload: int) -> None:
        self.tokens += payload
        if self.tokens % 2:
            self.give(ctx)


def tokens_of(snapshot: GlobalSnapshot) -> int:
    held: int = sum(node.state["tokens"] for node in snapshot.nodes.values())
    return held + sum(sum(messages) for messages in snapshot.channels.values())


@SETTINGS
@given(st.sampled_from(GRAPHS), st.lists(CHOICES, min_size=4, max_size=4), st.data())
@pytest.mark.slow
def test_nothing_is_lost_or_doubled_over_a_chain_of_three_recoveries(
    words: str, rounds: list[list[int]], data: st.DataObject
) -> None:
    """Each cut is proven, most of them with part of a restored inbox in their channel state, and holds all tokens."""
    world = Steps(graph(words), Purse)
    total = 10 * len(world.topology.nodes)
    seen: set[SnapshotId] = set()
    for incarnation, choices in enumerate(rounds):
        restored_inbox = any(core.busy for core in world.cores.values())
        half = data.draw(st.integers(0, len(choices)))
        run_on(world, choices[:half])
        initiator = data.draw(st.sampled_from(world.topology.nodes))
        snapshot_id = SnapshotId(incarnation, initiator, 1)
        world.cores[initiator].initiate(snapshot_id)
        run_on(world, choices[half:])
        world.deliver_all()
        snapshot = world.snapshots[snapshot_id]
        assert tokens_of(snapshot) == total
        assert snapshot_id not in seen
        seen.add(snapshot_id)
        if incarnation < 3:
            SOMETIMES["in flight again"] += bool(incarnation and restored_inbox and snapshot.in_flight)
            world = Steps(graph(words), Purse, recovered=snapshot)
            assert sum(core.protocol.waiting(s) for core in world.cores.values() for s in core.protocol.inbound) == (
                snapshot.in_flight
            )
    world.deliver_all()
    for core in world.cores.values():
        core.finish()
        while core.busy:
            core.step(sources=False)
            world.deliver_all()
    while any(core.busy for core in world.cores.values()):
        for core in world.cores.values():
            core.step(sources=False)
        world.deliver_all()
    assert sum(node.tokens for node in world.nodes.values() if isinstance(node, Purse)) == total


class Steps(Noting):
    """Without commands, of which a purse knows nothing."""

    def possible(self) -> list[tuple[str, str, Any]]:
        return [step for step in super().possible() if step[0] != "command"]


@pytest.mark.slow
def test_the_properties_were_put_to_the_test() -> None:
    """Runs behind the two above."""
    if SOMETIMES["compared"]:
        for what in ("in flight", "timers", "finished", "went on", "in flight again"):
            assert SOMETIMES[what], what


def test_a_restored_node_takes_part_in_snapshots_of_its_incarnation() -> None:
    """It remembers no id of an earlier one: no item of that reaches it, as all channels are new."""
    one = restored(diary(), part({"entries": []}, inboxes={"B": (0, [])}))
    one.core.receive_marker("B", Marker(SnapshotId(1, "B", 1), 0))
    assert [local.snapshot_id for local in one.driver.reports()] == [SnapshotId(1, "B", 1)]
    assert one.driver.reports()[0].channels["B"] == ChannelState(1, ())
