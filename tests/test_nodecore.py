"""A node without its process: which hook runs when, what it may do, what is fixed when, and what is captured."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any, ClassVar

import pytest
from harness import PLAIN, Clock, CoreWorld, RecordingDriver, Solo, captured, graph, snap, state_of

from mpsnap.core.codec import Codec, thaw
from mpsnap.core.driver import Encode
from mpsnap.core.errors import CodecError, MpsnapError, ProtocolError, SnapshotError
from mpsnap.core.history import Entry
from mpsnap.core.journal import EntryJournal, JournaledCore
from mpsnap.core.node import PHASES, Context, Node
from mpsnap.core.nodecore import RUN_MESSAGES, STRIDE
from mpsnap.core.protocol import Marker, SnapshotId
from mpsnap.core.rng import CounterRandom
from mpsnap.core.snapshot import Timer, UnfinishedState
from mpsnap.views.wording import described

S = snap("A")

Act = Callable[[Context], Any]


class Diary(Node):
    """Write down every hook; `acts` says what to do in one besides, and what it returns."""

    transient = ("acts",)

    def __init__(self) -> None:
        self.entries: list[Any] = []
        self.acts: dict[str, Act] = {}

    def _act(self, ctx: Context, hook: str, *rest: Any) -> Any:
        self.entries.append((hook, *rest))
        act = self.acts.get(hook)
        return None if act is None else act(ctx)

    def setup(self, ctx: Context, **params: Any) -> None:
        self._act(ctx, "setup", *params.items())

    def on_start(self, ctx: Context) -> None:
        self._act(ctx, "on_start")

    def on_message(self, ctx: Context, sender: str, payload: Any) -> None:
        self._act(ctx, "on_message", sender, payload)

    def on_command(self, ctx: Context, command: Any) -> Any:
        return self._act(ctx, "on_command", command)

    def on_stop(self, ctx: Context) -> None:
        self._act(ctx, "on_stop")

    def ring(self, ctx: Context, *args: Any) -> None:
        self._act(ctx, "ring", *args)


class Idler(Diary):
    """A diary that has idle calls too."""

    def on_idle(self, ctx: Context) -> Any:
        return self._act(ctx, "on_idle")


def solo(node: Diary, acts: dict[str, Act] | None = None, **rest: Any) -> Solo:
    """Make a node that does `acts`, not started yet."""
    node.acts.update(acts or {})
    return Solo(node, **rest)


def started(acts: dict[str, Act] | None = None, **rest: Any) -> tuple[Diary, Solo]:
    """Make a diary that has been started, with an empty page."""
    node = Diary()
    one = solo(node, acts, **rest).start()
    node.entries.clear()
    one.driver.calls.clear()
    return node, one


# --- The order of hooks. ---


def test_a_fresh_start_runs_setup_and_then_on_start() -> None:
    node = Diary()
    Solo(node).start(size=3)
    assert node.entries == [("setup", ("size", 3)), ("on_start",)]


def test_a_start_captures_once_so_that_a_state_that_cannot_be_kept_shows_now() -> None:
    """Not at the first snapshot, an hour later."""
    one = solo(Diary(), {"on_start": lambda ctx: setattr(one.node, "file", object())})
    with pytest.raises(SnapshotError, match=r"could not be captured: a value of type object") as caught:
        one.start()
    assert caught.value.where is not None
    assert caught.value.where.startswith("A: state")
    assert "file" in caught.value.where


def test_commands_come_before_timers_timers_before_messages_and_idle_calls_last() -> None:
    """Whatever order they came in; one hook for each step."""
    node = Idler()
    one = solo(node, {"setup": lambda ctx: ctx.after(1, "ring")}, inbound=["B"]).start()
    node.entries.clear()
    one.clock.now = 1
    one.see("B", "hello")
    one.command("do")
    for expected in ["on_command", "ring", "on_message", "on_idle"]:
        assert one.step()
        assert [entry[0] for entry in node.entries] == [expected]
        node.entries.clear()
    assert not one.step()


def test_an_orderly_end_is_on_stop() -> None:
    node, one = started()
    one.core.stop()
    assert node.entries == [("on_stop",)]


def test_the_driver_is_told_what_the_node_does() -> None:
    """Every phase is one of the known words, and between hooks the node is waiting."""
    node = Idler()
    one = solo(node, {"setup": lambda ctx: ctx.after(0, "ring")}, inbound=["B"]).start()
    one.see("B", 1).command(2)
    one.run()
    one.core.stop()
    phases = [phase for (phase,) in one.driver.all("phase")]
    assert set(phases) <= set(PHASES)
    hooks = [phase for phase in phases if phase not in ("waiting", "capture")]
    assert hooks == ["setup", "on_start", "on_command", "on_timer", "on_message", "on_idle", "on_stop"]
    assert one.core.hook == "waiting"


def test_during_a_hook_the_node_is_in_that_hook() -> None:
    one = solo(Diary(), {"setup": lambda ctx: hooks.append(one.core.hook)})
    hooks: list[str] = []
    one.start()
    assert hooks == ["setup"]


def test_an_exception_in_a_hook_goes_through_and_leaves_the_hook_named() -> None:
    """So that whoever reports the node's death can say what it was doing."""

    def fail(ctx: Context) -> None:
        raise ZeroDivisionError("oh")

    _, one = started({"on_message": fail}, inbound=["B"])
    one.see("B", 1)
    with pytest.raises(ZeroDivisionError, match="oh"):
        one.step()
    assert one.core.hook == "on_message"


def test_hooks_are_optional() -> None:
    """A node without any handles messages and commands by doing nothing."""
    one = Solo(Node(), inbound=["B"]).start()
    one.see("B", 1, 2).command("x", ticket=7)
    assert one.run() == 3
    assert one.driver.all("reply") == [(7, PLAIN.encode(None))]
    one.core.stop()


def test_one_busy_channel_does_not_starve_the_others() -> None:
    """Channels with something to take have their turns, one message each; within a channel order is kept."""
    node, one = started(inbound=["B", "C", "D"])
    one.see("B", 1, 2, 3, 4).see("C", 1, 2).see("D", 1)
    one.step()
    one.see("D", 2).see("B", 5)
    one.run()
    assert [(sender, payload) for _, sender, payload in node.entries] == [
        *(("B", 1), ("C", 1), ("D", 1), ("B", 2), ("C", 2), ("D", 2), ("B", 3), ("B", 4), ("B", 5)),
    ]


def test_a_channel_that_is_never_empty_cannot_starve_one_that_comes_later() -> None:
    """Its neighbour's message waits for one turn, not for the end of the flood."""
    node, one = started(inbound=["B", "C"])
    one.see("B", 0)
    for number in range(1, 20):
        one.see("B", number)
        if number == 10:
            one.see("C", "at last")
        one.step()
    assert ("on_message", "C", "at last") in node.entries[10:12]


def test_sources_of_new_messages_can_be_held_back() -> None:
    """A driver whose channels fill up has old messages and commands handled, but no timers and idle calls."""
    node = Idler()
    one = solo(node, {"setup": lambda ctx: ctx.after(1, "ring"), "on_idle": lambda ctx: True}, inbound=["B"]).start()
    one.clock.now = 1
    one.see("B", 1).command(2)
    node.entries.clear()
    while one.core.step(sources=False):
        pass
    assert [entry[0] for entry in node.entries] == ["on_command", "on_message"]
    assert one.core.wants(sources=False) is None
    assert one.core.wants(sources=True) == 0


def test_wants_tells_when_there_will_be_something_to_do() -> None:
    """Now, at a time of the clock, or not before something arrives."""
    one = solo(Diary(), {"setup": lambda ctx: ctx.after(2.5, "ring")}, inbound=["B"])
    one.clock.now = 100.0
    one.start()
    assert one.core.wants(sources=True) == 102.5
    one.see("B", 1)
    assert one.core.wants(sources=True) == 0
    one.step()
    one.command("x")
    assert one.core.wants(sources=True) == 0
    one.step()
    one.pass_time(3)
    assert one.core.wants(sources=True) is None


# --- Messages in a row. ---


def take_in_a_row(one: Solo, seconds: float = 1.0) -> bool:
    return one.core.run(sources=True, now=one.clock.now, until=one.clock.now + seconds)


def test_messages_of_one_channel_are_taken_in_a_row() -> None:
    """Up to a number, and then it is the next channel's turn; values that were encoded arrive as they were."""
    node, one = started(inbound=["B", "C"])
    one.see("B", *range(100)).see("C", ["a list"], "c")
    sizes = []
    while take_in_a_row(one):
        sizes.append(len(node.entries))
    assert sizes[:2] == [RUN_MESSAGES, RUN_MESSAGES + 2]
    assert sorted(sizes)[-1] == 102
    assert [entry[1:] for entry in node.entries] == [
        *(("B", number) for number in range(RUN_MESSAGES)),
        *(("C", ["a list"]), ("C", "c")),
        *(("B", number) for number in range(RUN_MESSAGES, 100)),
    ]


def test_commands_and_due_timers_come_before_a_row_and_idle_calls_behind_it() -> None:
    node = Idler()
    one = solo(node, {"setup": lambda ctx: ctx.after(1, "ring")}, inbound=["B"]).start()
    one.clock.now = 2
    one.see("B", 1, 2).command("x")
    node.entries.clear()
    while take_in_a_row(one):
        pass
    assert [entry[0] for entry in node.entries] == ["on_command", "ring", "on_message", "on_message", "on_idle"]


def test_a_timer_that_a_message_sets_ends_the_row() -> None:
    """It may be due at once."""
    node, one = started({"on_message": lambda ctx: ctx.after(0, "ring")}, inbound=["B"])
    one.see("B", 1, 2)
    while take_in_a_row(one):
        pass
    assert [entry[0] for entry in node.entries] == ["on_message", "ring", "on_message", "ring"]


def test_a_row_ends_when_its_time_is_over() -> None:
    """A marker waits as long, and a hook at most; where hooks have been quick, a few of them."""
    hook_seconds = [0.0]
    node, one = started({"on_message": lambda ctx: one.clock.pass_time(hook_seconds[0])}, inbound=["B"])
    one.see("B", *range(1000))
    lengths = []
    for hook_seconds[0] in (0.4, 0.4, 0.0, 5.0, 5.0):
        before = len(node.entries)
        assert take_in_a_row(one, seconds=1.0)
        lengths.append(len(node.entries) - before)
    assert lengths == [3, 3, RUN_MESSAGES, STRIDE, 1]


def test_slow_hooks_are_noticed_in_short_rows_too() -> None:
    """A row that its channel ends is not timed inside; the next one begins with what is known by then."""
    hook_seconds = [0.0]
    node, one = started({"on_message": lambda ctx: one.clock.pass_time(hook_seconds[0])}, inbound=["B"])
    one.see("B", *range(RUN_MESSAGES))
    assert take_in_a_row(one)
    lengths = []
    for hook_seconds[0] in (5.0, 5.0, 5.0):
        one.see("B", *range(STRIDE))
        before = len(node.entries)
        assert take_in_a_row(one, seconds=1.0)
        lengths.append(len(node.entries) - before)
    assert lengths == [STRIDE, 1, 1]


def test_a_node_that_changes_its_ways_does_so_at_once() -> None:
    class Later(Node):
        def on_message(self, ctx: Context, sender: str, payload: Any) -> None:
            later.append(payload)

    class First(Node):
        def on_message(self, ctx: Context, sender: str, payload: Any) -> None:
            first.append(payload)
            if payload == 1:
                self.__class__ = Later  # type: ignore[assignment]

    first: list[Any] = []
    later: list[Any] = []
    one = Solo(First(), inbound=["B"]).start()
    one.see("B", 0, 1, 2, 3)
    take_in_a_row(one)
    assert (first, later) == ([0, 1], [2, 3])


def test_a_context_keeps_nothing() -> None:
    _, one = started(outbound=["B"])
    with pytest.raises(AttributeError, match="belongs to the node's own attributes"):
        one.core._ctx.mood = "good"


class Guarded(Node):
    """Let nobody else set attributes, and show them to others from the beginning."""

    transient = ("shown",)
    shown: ClassVar[list[dict[str, Any]]] = []

    def __init__(self) -> None:
        vars(self)["mood"] = "good"
        self.shown.append(vars(self))

    def __setattr__(self, name: str, value: object) -> None:
        raise AssertionError(f"{name} is set from outside")


def test_a_node_keeps_the_attributes_it_was_made_with_and_whoever_else_has_them() -> None:
    """Whatever is done for them to be found quickly."""
    node = Guarded()
    one = Solo(node)
    Guarded.shown[-1]["mood"] = "better"
    assert node.mood == "better"  # type: ignore[attr-defined]
    assert PLAIN.decode(one.core.look()) == {"mood": "better"}
    diary = Diary()
    entries = diary.entries
    Solo(diary)
    assert diary.entries is entries
    assert list(vars(diary)) == ["entries", "acts"]


def test_a_core_has_no_more_attributes_than_its_class_can_lay_out() -> None:
    """With more than 30, each object of a class has a dict of its own, and no call of a method of it is quick."""
    plain = Solo(Diary()).core
    journal = EntryJournal("A", PLAIN, Clock(), lambda entry: None)
    about: dict[str, Any] = {"unreachable": (), "incarnation": 0, "seed": 0, "codec": PLAIN, "clock": Clock()}
    noted = JournaledCore("A", Diary(), inbound=(), outbound=(), driver=RecordingDriver(), journal=journal, **about)
    assert len(vars(plain)) <= 30
    assert len(vars(noted)) <= 30


def test_the_driver_can_end_a_row_from_within_a_hook() -> None:
    """One whose channel has just filled up."""
    node, one = started({"on_message": lambda ctx: one.core.interrupt()}, inbound=["B"])
    one.see("B", *range(5))
    assert take_in_a_row(one)
    assert (len(node.entries), one.core.protocol.waiting("B")) == (1, 4)


def test_a_snapshot_begun_in_a_row_of_messages_cuts_it_there() -> None:
    """The messages behind are in flight: they were not taken when the hook that wished for it returned."""

    def wish(ctx: Context) -> None:
        if len(node.entries) == 2:
            ctx.snapshot()

    node, one = started({"on_message": wish}, inbound=["B"])
    one.see("B", *range(5))
    while take_in_a_row(one):
        pass
    (snapshot_id,) = (call[0] for call in one.driver.all("initiated"))
    one.see_marker("B", snapshot_id)
    (local,) = one.driver.reports()
    assert (local.received, local.channels["B"].payloads) == ({"B": 2}, (2, 3, 4))
    assert len(one.recorded_state()["entries"]) == 2


def run_until_it_raises(one: Solo, way: str) -> None:
    while take_in_a_row(one) if way == "row" else one.core.step(sources=True):
        assert one.core.in_hand is None


@pytest.mark.parametrize("way", ["row", "step", "deliver"])
def test_the_message_in_hand_is_known_when_its_hook_raises(way: str) -> None:
    def refuse_the_third(ctx: Context) -> None:
        if node.entries[-1][2] == "c":
            raise ValueError("no c")

    node, one = started({"on_message": refuse_the_third}, inbound=["B"])
    assert one.core.in_hand is None
    if way == "deliver":
        for number, payload in enumerate("ab", 1):
            one.core.deliver("B", number, payload)
        with pytest.raises(ValueError, match="no c"):
            one.core.deliver("B", 3, "c")
    else:
        one.see("B", *"abcd")
        with pytest.raises(ValueError, match="no c"):
            run_until_it_raises(one, way)
    assert one.core.in_hand == ("B", 3)


# --- Snapshots and hooks. ---


class Account(Node):
    """A hook that is in an impossible state half-way through: it has debited and not yet sent."""

    transient = ("begun",)

    def setup(self, ctx: Context, balance: int = 100) -> None:
        self.balance = balance

    def on_command(self, ctx: Context, command: Any) -> Any:
        self.balance -= 30
        snapshot_id = ctx.snapshot()
        ctx.send("B", 30)
        return snapshot_id

    def on_message(self, ctx: Context, sender: str, payload: Any) -> None:
        self.balance += payload


def test_a_snapshot_begun_in_a_hook_waits_until_the_hook_returns() -> None:
    """The cut falls behind the message that the hook sends later, or 30 would be nowhere."""
    world = CoreWorld(graph("A<->B"), Account)
    world.cores["A"].command(0, PLAIN.encode("pay"))
    world.step("A")
    assert world.drivers["A"].kinds() == ["send", "send_marker", "initiated", "reply"]
    assert list(world.wire["A", "B"])[1] == Marker(snap("A", 2), sent=1)
    world.deliver_all()
    snapshot = world.snapshots[snap("A", 2)]
    assert snapshot.nodes["A"].state["balance"] == 70
    assert snapshot.channels["A", "B"] == (30,)
    assert snapshot.nodes["B"].state["balance"] == 100


def test_the_id_is_known_at_once_and_never_given_twice() -> None:
    """Two wishes in one hook are two snapshots of the same cut."""
    ids: list[str] = []

    def wish_twice(ctx: Context) -> None:
        reports = len(one.driver.reports())
        ids.extend([ctx.snapshot(), ctx.snapshot()])
        assert len(one.driver.reports()) == reports

    _, one = started({"on_command": wish_twice}, outbound=["B"])
    one.command("go").command("again").run()
    assert ids == ["0-A-2", "0-A-4", "0-A-6", "0-A-8"]
    assert [str(local.snapshot_id) for local in one.driver.reports()] == ids
    assert [str(snapshot_id) for (snapshot_id,) in one.driver.all("initiated")] == ids


def test_a_node_from_which_markers_do_not_reach_all_cannot_begin_a_snapshot() -> None:
    """The error names those left out, and nothing has begun."""
    errors: list[SnapshotError] = []

    def wish(ctx: Context) -> None:
        with pytest.raises(SnapshotError, match=r"cannot reach C, D") as caught:
            ctx.snapshot()
        errors.append(caught.value)

    _, one = started({"on_command": wish}, outbound=["B"], unreachable=["C", "D"])
    one.command("go").run()
    assert errors[0].where == "A"
    assert one.driver.kinds() == ["reply"]
    one.core.initiate(S)
    assert one.driver.reports()


def test_a_marker_records_what_the_last_hook_left() -> None:
    node, one = started(inbound=["B", "C"], outbound=["D"])
    one.see("B", "one", "two")
    one.step()
    one.see_marker("B", S)
    one.run()
    one.see_marker("C", S)
    assert one.recorded_state() == {"entries": [("on_message", "B", "one")]}
    assert one.driver.reports()[0].channels["B"].payloads == ("two",)
    assert node.entries[-1] == ("on_message", "B", "two")


def test_state_changed_after_the_record_is_not_in_it() -> None:
    """By value, however deep: the list that the capture returned goes on growing."""

    class Nested(Node):
        def setup(self, ctx: Context) -> None:
            self.table = {"rows": [[1], [2]]}

        def on_message(self, ctx: Context, sender: str, payload: Any) -> None:
            self.table["rows"][0].append(payload)

    one = Solo(Nested(), inbound=["B", "C"]).start()
    one.core.initiate(S)
    one.see("B", 5).run()
    one.see_marker("B", S).see_marker("C", S)
    assert one.recorded_state() == {"table": {"rows": [[1], [2]]}}
    assert vars(one.node) == {"table": {"rows": [[1, 5], [2]]}}


class Slow(RecordingDriver):
    """Let states be made by somebody else, and remember what for."""

    def __init__(self) -> None:
        super().__init__()
        self.made: list[tuple[SnapshotId | None, UnfinishedState]] = []

    def fix(self, snapshot_id: SnapshotId | None, encode: Encode) -> bytes | UnfinishedState:
        self.made.append((snapshot_id, UnfinishedState()))
        return self.made[-1][1]


def test_a_driver_may_make_the_bytes_of_a_state_later() -> None:
    driver = Slow()
    one = Solo(Node(), inbound=["B"], outbound=["B"], driver=driver).start()
    one.core.initiate(S)
    one.see_marker("B", S)
    one.see_marker("B", snap("B"))
    assert [snapshot_id for snapshot_id, _ in driver.made] == [None, S, snap("B")], "the first is no record"
    assert [captured(local).state for local in driver.reports()] == [state for _, state in driver.made[1:]]


def test_a_state_that_comes_to_nothing_costs_its_snapshot() -> None:
    """Before the channels are closed and after."""
    one = Solo(Node(), inbound=["B"], outbound=["B"], driver=Slow()).start()
    error = SnapshotError("nothing came of it")
    for closed in (False, True):
        snapshot_id = snap("A", 1 + closed)
        one.core.initiate(snapshot_id)
        if closed:
            one.see_marker("B", snapshot_id)
        one.core.refuse(snapshot_id, error)
        assert one.driver.all("refused")[-1] == (snapshot_id, error)
        assert one.core.protocol.open_channels() == {}
        one.core.initiate(snapshot_id)
        one.see_marker("B", snapshot_id)
        assert len(one.driver.reports()) == closed, "and it never begins again"


def test_a_journal_says_nothing_of_a_state_that_is_still_being_made() -> None:
    entries: list[Entry] = []
    driver = Slow()
    core = JournaledCore(
        "A",
        Node(),
        inbound=[],
        outbound=[],
        unreachable=[],
        incarnation=0,
        seed=0,
        codec=PLAIN,
        driver=driver,
        clock=Clock(),
        journal=EntryJournal("A", PLAIN, lambda: 0.0, entries.append),
    )
    core.start({})
    core.initiate(S)
    core.refuse(S, SnapshotError("nothing came of it"))
    assert [entry.event for entry in entries] == ["recorded", "reported", "refused"]
    assert entries[0].detail == {"snapshot": str(S), "from": None}
    assert described(entries[0], {}) == f"recorded, {S}"


def test_what_was_captured_never_changes() -> None:
    """Whatever the node does afterwards to the values that its capture returned."""

    class Growing(Node):
        def setup(self, ctx: Context) -> None:
            self.rows: list[int] = []

        def on_command(self, ctx: Context, command: Any) -> Any:
            self.rows.append(command)
            ctx.after(1, "on_command", command)

    one = Solo(Growing()).start()
    one.command(1).run()
    record = one.record()
    as_it_was = copy.deepcopy(record)
    one.command(2).pass_time(1)
    assert record == as_it_was


def test_the_state_itself_is_untouched_by_its_recording() -> None:
    """What is captured is read, never taken away or exchanged."""
    node, one = started()
    entries = node.entries
    one.record()
    assert node.entries is entries


def test_a_capture_that_fails_costs_the_snapshot_and_not_the_node() -> None:
    """The driver is told where it failed; the snapshot is given up here, and the node goes on."""
    node, one = started(inbound=["B"], outbound=["C"])
    node.entries.append(object())
    one.see_marker("B", S)
    one.core.initiate(snap("A", 3))
    assert one.driver.kinds() == ["refused", "refused"]
    for snapshot_id, error in one.driver.all("refused"):
        assert isinstance(error, SnapshotError)
        assert error.where is not None
        assert error.where.startswith("A: state")
        assert "A could not be captured" in error.what
        assert one.core.protocol.open_channels() == {}
        one.core.initiate(snapshot_id)
    node.entries.clear()
    one.see("B", "still here").run()
    assert node.entries == [("on_message", "B", "still here")]
    one.driver.calls.clear()
    one.see_marker("B", snap("A", 5))
    assert one.driver.kinds() == ["send_marker", "report"]


@pytest.mark.parametrize("failure", [ZeroDivisionError("oh"), MpsnapError("oh", where="there"), KeyError("oh")])
def test_a_capture_of_the_users_own_may_raise_anything(failure: Exception) -> None:
    class Moody(Node):
        fails: ClassVar[bool] = False

        def capture(self) -> Any:
            if self.fails:
                raise failure
            return 1

    one = Solo(Moody()).start()
    Moody.fails = True
    one.core.initiate(S)
    ((snapshot_id, error),) = one.driver.all("refused")
    assert snapshot_id == S
    assert "A could not be captured" in error.what
    assert "oh" in error.what
    assert one.core.hook == "waiting"


def test_a_failed_wish_is_refused_like_any_other() -> None:

    def spoil_and_wish(ctx: Context) -> str:
        node.entries.append(object())
        return ctx.snapshot()

    node, one = started({"on_command": spoil_and_wish})
    one.command("go").run()
    assert [str(snapshot_id) for snapshot_id, _ in one.driver.all("refused")] == ["0-A-2"]
    assert one.driver.all("initiated") == []
    assert len(one.driver.all("reply")) == 1


def test_abandoning_tells_which_markers_were_awaited() -> None:
    """And None from a node that was not recording."""
    _, one = started(inbound=["B", "C", "D"])
    assert one.core.abandon(snap("Z")) is None
    one.see_marker("C", S)
    assert one.core.abandon(S) == ("B", "D")
    assert one.core.abandon(S) is None
    one.see_marker("B", S).see_marker("D", S)
    assert one.driver.reports() == []


def test_effects_come_in_order_markers_before_the_report() -> None:
    _, one = started(inbound=["B"], outbound=["C", "D"])
    one.see_marker("B", S)
    assert one.driver.kinds() == ["send_marker", "send_marker", "report"]
    assert [dst for dst, _ in one.driver.all("send_marker")] == ["C", "D"]


def test_an_illegal_item_raises_and_changes_nothing() -> None:
    node, one = started(inbound=["B"])
    with pytest.raises(ProtocolError):
        one.core.receive_batch("B", 2, ["x"])
    with pytest.raises(ProtocolError):
        one.core.receive_batch("Z", 1, ["x"])
    with pytest.raises(ProtocolError):
        one.core.receive_marker("B", Marker(S, 1))
    assert one.run() == 0
    assert one.driver.kinds() == []
    one.see("B", "right").run()
    assert node.entries == [("on_message", "B", "right")]


# --- What may be done where. ---

DOINGS: dict[str, Act] = {
    "send": lambda ctx: ctx.send("B", 1),
    "broadcast": lambda ctx: ctx.broadcast(1),
    "emit": lambda ctx: ctx.emit(1),
    "snapshot": lambda ctx: ctx.snapshot(),
    "after": lambda ctx: ctx.after(1, "ring"),
    "every": lambda ctx: ctx.every(1, "ring"),
}
NOTHING_BUT: dict[str, set[str]] = {
    "setup": {"send", "broadcast", "emit", "after", "every"},
    "on_start": set(),
    "on_message": set(DOINGS),
    "on_command": set(DOINGS),
    "on_idle": set(DOINGS),
    "ring": set(DOINGS),
    "on_stop": {"emit"},
    "outside": set(),
}


def reach(hook: str, act: Act) -> Solo:
    """Have `act` done in this hook, once."""
    todo = [act]

    def once(ctx: Context) -> None:
        if todo:
            todo.pop()(ctx)

    contexts: list[Context] = []
    acts: dict[str, Act] = {"on_command": contexts.append} if hook == "outside" else {hook: once}
    if hook == "ring":
        acts["setup"] = lambda ctx: ctx.after(0, "ring")
    one = solo(Idler(), acts, inbound=["C"], outbound=["B"]).start()
    one.see("C", 1).command("x")
    one.run()
    if hook == "outside":
        act(contexts[0])
    if hook == "on_stop":
        one.core.stop()
    assert hook == "outside" or not todo
    return one


@pytest.mark.parametrize("hook", NOTHING_BUT)
def test_each_hook_may_do_what_is_its_own(hook: str) -> None:
    """Anything else raises and leaves no trace."""
    for doing, act in DOINGS.items():
        if doing in NOTHING_BUT[hook]:
            reach(hook, act)
            continue
        verb = {"after": "set timers", "every": "set timers", "broadcast": "send"}.get(doing, doing)
        place = "outside a hook" if hook == "outside" else f"in {hook}"
        driver = RecordingDriver()

        def try_it(ctx: Context, act: Act = act, verb: str = verb, place: str = place) -> None:
            with pytest.raises(ProtocolError, match=f"A cannot {verb} {place}") as caught:
                act(ctx)
            assert caught.value.where == "A"

        driver = reach(hook, try_it).driver
        assert set(driver.kinds()) <= {"reply"}, doing


def test_sending_to_a_stranger_raises_and_names_those_one_can_send_to() -> None:
    def try_it(ctx: Context) -> None:
        with pytest.raises(ProtocolError, match=r"A has no channel to 'Z'; it can send to B, C"):
            ctx.send("Z", 1)

    one = solo(Diary(), {"setup": try_it}, outbound=["C", "B"]).start()
    assert one.driver.kinds() == []


def test_a_payload_that_cannot_be_kept_is_refused_by_its_path_and_leaves_no_trace() -> None:
    """The next message still has the number 1."""

    def try_it(ctx: Context) -> None:
        with pytest.raises(CodecError) as caught:
            ctx.send("B", {"ok": 1, "bad": [object()]})
        assert caught.value.where is not None
        assert caught.value.where.startswith("A->B: payload")
        assert caught.value.where.endswith("[0]")
        ctx.send("B", "good")

    one = solo(Diary(), {"setup": try_it}, outbound=["B"]).start()
    assert one.driver.all("send") == [("B", 1, "good")]


def test_a_broadcast_goes_to_every_outbound_neighbour() -> None:
    one = solo(Diary(), {"setup": lambda ctx: ctx.broadcast("hi")}, outbound=["D", "B", "C"]).start()
    assert one.driver.all("send") == [("B", 1, "hi"), ("C", 1, "hi"), ("D", 1, "hi")]


def test_a_context_tells_the_name_and_the_neighbours_sorted() -> None:
    contexts: list[Context] = []
    solo(Diary(), {"setup": contexts.append}, inbound=["D", "B"], outbound=["C", "B"]).start()
    ctx = contexts[0]
    assert (ctx.name, ctx.inbound, ctx.outbound, repr(ctx)) == ("A", ("B", "D"), ("B", "C"), "<Context of A>")


def test_records_are_numbered_and_fixed_when_they_are_put_out() -> None:
    record: list[object] = [1]

    def put_out(ctx: Context) -> None:
        ctx.emit(record)
        record.append(2)
        ctx.emit(record)
        with pytest.raises(CodecError, match="cannot be kept exactly"):
            ctx.emit(object())
        ctx.emit("last")

    one = solo(Diary(), {"setup": put_out}).start()
    assert [(n, PLAIN.decode(data)) for n, data in one.driver.all("emit")] == [(0, [1]), (1, [1, 2]), (2, "last")]
    assert one.record().emitted == 3


def test_a_line_for_the_log_is_passed_on() -> None:
    """In every hook, also in those that may not send."""
    one = solo(Diary(), {hook: lambda ctx: ctx.log(ctx.name) for hook in ("setup", "on_start", "on_stop")}).start()
    one.core.stop()
    assert one.driver.all("log") == [("A",)] * 3


# --- Values are fixed where the user lets go of them. ---


class Mutator(Node):
    """Send a list and go on changing it."""

    transient = ("got",)

    def setup(self, ctx: Context) -> None:
        self.got: list[Any] = []

    def on_command(self, ctx: Context, command: Any) -> Any:
        payload: dict[str, list[object]] = {"items": [1, 2]}
        ctx.send("B", payload)
        payload["items"].append("changed after the send")
        ctx.send("B", (payload["items"], "in a tuple"))
        payload["items"].append("changed again")

    def on_message(self, ctx: Context, sender: str, payload: Any) -> None:
        self.got.append(payload)


def test_a_payload_changed_after_the_send_is_recorded_and_delivered_as_it_was() -> None:
    world = CoreWorld(graph("A<->B"), Mutator)
    world.cores["A"].command(0, PLAIN.encode("go"))
    world.step("A")
    world.cores["B"].initiate(snap("B"))
    world.deliver_all()
    expected = ({"items": [1, 2]}, ([1, 2, "changed after the send"], "in a tuple"))
    assert world.snapshots[snap("B")].channels["A", "B"] == expected
    world.settle()
    assert getattr(world.nodes["B"], "got", None) == list(expected)


def test_a_payload_changed_by_its_receiver_stays_as_it_was_in_the_record() -> None:
    """A message that is recorded and then handled: the handler gets a copy of its own."""

    class Greedy(Node):
        def on_message(self, ctx: Context, sender: str, payload: Any) -> None:
            payload.clear()

    one = Solo(Greedy(), inbound=["B", "C"]).start()
    one.core.initiate(S)
    one.see("B", [1, 2, 3])
    one.run()
    one.see_marker("B", S).see_marker("C", S)
    (payload,) = one.driver.reports()[0].channels["B"].payloads
    assert thaw(payload, PLAIN) == [1, 2, 3]


def test_what_cannot_change_travels_as_it_is_and_all_else_as_a_row() -> None:
    fixed = [None, True, 7, 2**70, 1.5, "text", b"bytes", (1, ("deep", None), b"")]
    loose: list[Any] = [[1], {"a": 1}, {1}, bytearray(b"x"), (1, [2])]

    def send(ctx: Context) -> None:
        for payload in fixed + loose:
            ctx.send("B", payload)

    one = solo(Diary(), {"setup": send}, outbound=["B"]).start()
    sent = [payload for _, _, payload in one.driver.all("send")]
    assert sent[: len(fixed)] == fixed
    assert all(isinstance(payload, list) for payload in sent[len(fixed) :])
    assert one.driver.payloads("B") == fixed + loose


def test_each_receiver_of_a_broadcast_gets_a_copy_of_its_own() -> None:
    class Caster(Mutator):
        def on_command(self, ctx: Context, command: Any) -> Any:
            ctx.broadcast([0])

        def on_message(self, ctx: Context, sender: str, payload: Any) -> None:
            payload.append(ctx.name)
            self.got.append(payload)

    world = CoreWorld(graph("A->B A->C"), Caster)
    world.cores["A"].command(0, PLAIN.encode("go"))
    world.settle()
    assert [vars(world.nodes[name])["got"] for name in "BC"] == [[[0, "B"]], [[0, "C"]]]


# --- Timers. ---


def set_in_setup(act: Act, node: Diary | None = None, **rest: Any) -> tuple[Diary, Solo]:
    node = node or Diary()
    one = solo(node, {"setup": act}, **rest).start()
    node.entries.clear()
    return node, one


def test_after_calls_once_when_the_time_has_come() -> None:
    node, one = set_in_setup(lambda ctx: ctx.after(2, "ring", "x", 3))
    assert one.pass_time(1.999) == 0
    assert one.pass_time(0.001) == 1
    assert node.entries == [("ring", "x", 3)]
    assert one.pass_time(1000) == 0


def test_every_calls_the_first_time_after_one_period_and_then_again_and_again() -> None:
    _, one = set_in_setup(lambda ctx: ctx.every(2, "ring"))
    assert [one.pass_time(1) for _ in range(8)] == [0, 1, 0, 1, 0, 1, 0, 1]


def test_every_keeps_its_beat_when_a_call_comes_a_little_late() -> None:
    """Lateness does not add up."""
    _, one = set_in_setup(lambda ctx: ctx.every(2, "ring"))
    assert [one.pass_time(seconds) for seconds in (2.75, 1.0, 0.5)] == [1, 0, 1]


def test_timers_that_are_always_late_leave_every_other_hook_to_a_message() -> None:
    """Each call takes longer than its period, so one is always due; messages would wait for ever."""
    node, one = set_in_setup(lambda ctx: ctx.every(1, "ring"), inbound=["B"])
    one.see("B", 1, 2, 3)
    for _ in range(6):
        one.clock.now += 2
        assert one.step()
    assert [entry[0] for entry in node.entries] == ["ring", "on_message"] * 3


def test_timers_ring_in_order_of_their_times_and_then_of_their_setting() -> None:
    def set_some(ctx: Context) -> None:
        for seconds, name in [(3, "c"), (1, "a1"), (2, "b"), (1, "a2"), (0, "now")]:
            ctx.after(seconds, "ring", name)

    node, one = set_in_setup(set_some)
    one.pass_time(10)
    assert node.entries == [("ring", name) for name in ("now", "a1", "a2", "b", "c")]


@pytest.mark.parametrize("stall", [6.5, 6.0, 100.0])
def test_a_node_that_was_busy_for_several_periods_catches_up_with_one_call(stall: float) -> None:
    """Not with one for each period missed; and the next comes after a period again, not at once."""
    _, one = set_in_setup(lambda ctx: ctx.every(2, "ring"))
    assert one.pass_time(stall) == 1
    assert sum(one.pass_time(1) for _ in range(8)) == 4


def test_arguments_of_timers_are_fixed_when_they_are_set() -> None:
    items = [1]

    def set_and_change(ctx: Context) -> None:
        ctx.every(1, "ring", items)
        items.append(2)

    node, one = set_in_setup(set_and_change)
    node.acts["ring"] = lambda ctx: node.entries[-1][1].append("changed by the call")
    one.pass_time(1)
    one.pass_time(1)
    assert node.entries == [("ring", [1, "changed by the call"])] * 2


def test_arguments_of_timers_must_be_plain_data() -> None:
    def try_it(ctx: Context) -> None:
        with pytest.raises(CodecError) as caught:
            ctx.after(1, "ring", "fine", object())
        assert caught.value.where == "A: arguments of timer ring[1]"

    _, one = set_in_setup(try_it)
    assert one.core.wants(sources=True) is None


@pytest.mark.parametrize("seconds", [-1, -0.001, float("nan"), float("inf")])
def test_a_timer_waits_for_a_finite_time(seconds: float) -> None:
    def try_it(ctx: Context) -> None:
        with pytest.raises(ValueError, match="a timer of A cannot wait"):
            ctx.after(seconds, "ring")
        with pytest.raises(ValueError, match="a timer of A cannot wait"):
            ctx.every(seconds, "ring")

    _, one = set_in_setup(try_it)
    assert one.core.passive


def test_every_needs_a_period() -> None:
    """A period of 0 would never let the node do anything else."""

    def try_it(ctx: Context) -> None:
        with pytest.raises(ValueError, match="cannot wait for 0 seconds"):
            ctx.every(0, "ring")

    set_in_setup(try_it)


@pytest.mark.parametrize("method", ["rung", "entries", ""])
def test_a_timer_names_a_method(method: str) -> None:
    def try_it(ctx: Context) -> None:
        with pytest.raises(ValueError, match=rf"names no method: Diary\.{method}"):
            ctx.after(1, method)

    set_in_setup(try_it)


def test_pending_timers_are_captured_with_what_is_left_of_their_time() -> None:
    """By order of ringing; what is overdue has nothing left."""

    def set_some(ctx: Context) -> None:
        ctx.every(4, "ring", [1])
        ctx.after(3, "ring", "x", 2)

    _, one = set_in_setup(set_some)
    one.clock.now = 1.0
    first, second = one.record().timers
    assert first == Timer(2.0, None, "ring", ("x", 2))
    assert (second.remaining, second.period, second.method) == (3.0, 4, "ring")
    assert thaw(second.args, PLAIN) == ([1],)
    one.clock.now = 3.5
    assert [timer.remaining for timer in one.record(3).timers] == [0.0, 0.5]


def test_a_timer_may_set_the_next_one() -> None:
    node, one = set_in_setup(lambda ctx: ctx.after(1, "ring"))
    node.acts["ring"] = lambda ctx: ctx.after(1, "ring")
    assert [one.pass_time(1) for _ in range(5)] == [1] * 5


# --- Idle calls. ---


def idler(answers: list[Any], **rest: Any) -> tuple[Idler, Solo]:
    """A node whose idle calls return these answers, and then None."""
    node = Idler()
    return node, solo(node, {"on_idle": lambda ctx: answers.pop(0) if answers else None}, **rest).start()


def idle_calls(node: Idler, one: Solo) -> int:
    """Run until nothing wants to; return how many idle calls there were."""
    node.entries.clear()
    one.run()
    return node.entries.count(("on_idle",))


def test_true_means_again_at_once() -> None:
    assert idle_calls(*idler([True, True, True])) == 4


@pytest.mark.parametrize("answer", [None, False, 0, 1, "True", [True], 1.0])
def test_anything_else_means_not_until_something_happens(answer: Any) -> None:
    """Only True itself counts: a 1 or a full list is an accident."""
    node, one = idler([answer, True])
    assert idle_calls(node, one) == 1
    assert one.core.wants(sources=True) is None


def test_a_message_a_timer_and_a_command_each_bring_idle_calls_back() -> None:
    node, one = idler([], inbound=["B"])
    assert idle_calls(node, one) == 1
    assert idle_calls(node, one) == 0
    assert idle_calls(node, one.see("B", 1)) == 1
    assert idle_calls(node, one.command("x")) == 1
    node.acts["on_command"] = lambda ctx: ctx.after(1, "ring")
    assert idle_calls(node, one.command("x")) == 1
    one.clock.now += 1
    assert idle_calls(node, one) == 1


def test_a_marker_does_not_bring_idle_calls_back() -> None:
    """Taking a snapshot does not change what the program does."""
    node, one = idler([], inbound=["B"])
    idle_calls(node, one)
    assert idle_calls(node, one.see_marker("B", S)) == 0


def test_idle_calls_come_when_there_is_nothing_to_take() -> None:
    node, one = idler([True, True, True], inbound=["B"])
    idle_calls(node, one.see("B", 1, 2))
    assert [entry[0] for entry in node.entries] == ["on_message"] * 2 + ["on_idle"] * 4


def test_a_node_without_on_idle_has_no_idle_calls() -> None:
    _, one = started()
    assert one.core.wants(sources=True) is None
    assert not one.step()


# --- Passive. ---


def test_passive_is_nothing_to_take_nothing_pending_and_no_wish_for_idle_calls() -> None:
    """Each of the four by itself makes a node not passive."""
    node = Idler()
    one = solo(node, inbound=["B"]).start()
    told = {"at the start": one.core.passive}
    one.run()
    told["after an idle call"] = one.core.passive
    one.see("B", 1)
    told["a message waits"] = one.core.passive
    one.run()
    one.command("x")
    told["a command waits"] = one.core.passive
    node.acts["on_command"] = lambda ctx: ctx.after(5, "ring")
    one.run()
    told["a timer is pending"] = one.core.passive
    one.pass_time(5)
    told["in the end"] = one.core.passive
    assert [state for state, passive in told.items() if passive] == ["after an idle call", "in the end"]


def test_a_message_that_waits_in_the_inbox_makes_a_recorded_node_not_passive() -> None:
    _, one = started(inbound=["B"])
    one.see("B", 1).see_marker("B", S)
    assert not captured(one.driver.reports()[0]).passive


@pytest.mark.parametrize("hook", ["on_message", "on_command", "ring"])
def test_a_node_that_will_be_asked_again_is_not_passive_in_a_snapshot_of_its_own(hook: str) -> None:
    """The hook that begins the snapshot also brings idle calls back, and they may send: this is no end."""
    node = Idler()
    one = solo(node, {"setup": lambda ctx: ctx.after(1, "ring")}, inbound=["B"]).start()
    node.acts[hook] = lambda ctx: ctx.snapshot()
    one.run()
    if hook == "on_message":
        one.pass_time(1)
        one.see("B", 1)
    elif hook == "on_command":
        one.pass_time(1)
        one.command("x")
    one.clock.now = 1
    one.step()
    one.see_marker("B", snap("A", 2))
    assert not captured(one.driver.reports()[0]).passive
    assert idle_calls(node, one) == 1


def test_a_node_whose_last_idle_call_began_the_snapshot_is_passive_in_it() -> None:
    """The cut falls when the hook has returned, and it has returned something else than True."""
    node = Idler()
    todo = [1]
    one = solo(node, {"on_idle": lambda ctx: ctx.snapshot() if todo and todo.pop() else None}).start()
    one.run()
    assert captured(one.driver.reports()[0]).passive


def test_an_idle_call_that_begins_a_snapshot_and_wants_another_is_not_passive() -> None:
    node = Idler()
    todo = [1]
    one = solo(node, {"on_idle": lambda ctx: bool(todo and todo.pop() and ctx.snapshot())}).start()
    one.run()
    assert not captured(one.driver.reports()[0]).passive


def test_a_finishing_hook_that_begins_a_snapshot_is_recorded_as_finished() -> None:

    def wish_and_finish(ctx: Context) -> None:
        ctx.snapshot()
        ctx.finish()

    one = solo(Idler(), {"on_idle": wish_and_finish}).start()
    one.run()
    record = captured(one.driver.reports()[0])
    assert (record.finished, record.passive) == (True, True)


# --- Finished. ---


def test_a_finished_node_gets_no_idle_calls_and_no_timers() -> None:
    def finish(ctx: Context) -> bool:
        ctx.every(1, "ring")
        ctx.finish()
        ctx.after(1, "ring")
        return True

    node = Idler()
    one = solo(node, {"setup": lambda ctx: ctx.after(1, "ring"), "on_idle": finish}, inbound=["B"]).start()
    node.entries.clear()
    one.run()
    one.pass_time(100)
    assert node.entries == [("on_idle",)]
    assert one.core.passive
    one.core.initiate(S)
    one.see_marker("B", S)
    record = captured(one.driver.reports()[0])
    assert (record.finished, record.passive, record.timers) == (True, True, ())


def test_a_finished_node_still_handles_messages_and_commands_and_relays_markers() -> None:
    node = Idler()
    one = solo(node, {"setup": lambda ctx: ctx.finish()}, inbound=["B"], outbound=["C"]).start()
    node.entries.clear()
    node.acts["on_message"] = lambda ctx: ctx.send("C", "relayed")
    one.see("B", 1).see_marker("B", S).command("x")
    one.run()
    assert [entry[0] for entry in node.entries] == ["on_command", "on_message"]
    assert one.driver.kinds() == ["send_marker", "report", "reply", "send"]


def test_a_timer_that_finishes_its_node_is_its_last() -> None:
    node, one = set_in_setup(lambda ctx: ctx.every(1, "ring"))
    node.acts["ring"] = lambda ctx: ctx.finish()
    assert [one.pass_time(1) for _ in range(3)] == [1, 0, 0]


# --- Commands. ---


def test_each_command_is_answered_once_under_its_ticket() -> None:
    node, one = started({"on_command": lambda ctx: {"seen": len(node.entries)}})
    one.command(["first", 1], ticket=7).command({"second": 2}, ticket=3)
    one.run()
    assert node.entries == [("on_command", ["first", 1]), ("on_command", {"second": 2})]
    assert [(ticket, PLAIN.decode(value)) for ticket, value in one.driver.all("reply")] == [
        (7, {"seen": 1}),
        (3, {"seen": 2}),
    ]


def test_a_reply_that_cannot_be_kept_is_an_error_that_names_it() -> None:
    _, one = started({"on_command": lambda ctx: [object()]})
    one.command("x")
    with pytest.raises(CodecError) as caught:
        one.run()
    assert caught.value.where == "A: reply of on_command[0]"
    assert one.core.hook == "on_command"


# --- Random numbers. ---


def draws(one: Solo, count: int) -> list[int]:
    return [one.core.random.randrange(10**9) for _ in range(count)]


def test_random_numbers_depend_on_the_seed_and_the_name_alone() -> None:
    first, same = draws(Solo(Diary()), 5), draws(Solo(Idler(), inbound=["B"]), 5)
    assert first == same
    assert first != draws(Solo(Diary(), seed=1), 5)
    assert first != draws(Solo(Diary(), name="B"), 5)


def test_the_stream_of_random_numbers_is_part_of_the_snapshot() -> None:
    """Seed and counter say where to go on."""
    one = solo(Diary(), {"setup": lambda ctx: [ctx.random.random() for _ in range(3)]}).start()
    seed, counter = one.record().random
    assert draws(one, 4) == [CounterRandom(seed, counter).randrange(10**9) for _ in range(1)] + draws_from(
        seed, counter + 1, 3
    )


def draws_from(seed: int | str, counter: int, count: int) -> list[int]:
    rng = CounterRandom(seed, counter)
    return [rng.randrange(10**9) for _ in range(count)]


# --- Capture and restore. ---


def test_attributes_named_transient_are_left_out() -> None:
    class Handles(Node):
        transient = ("handle", "never_set")

        def setup(self, ctx: Context) -> None:
            self.handle = object()
            self.count = 1

    assert PLAIN.decode(state_of(Solo(Handles()).start().record())) == {"count": 1}


def test_restore_replaces_the_state_by_a_captured_one() -> None:
    """All of it: what was not there at the cut is gone."""
    node = Diary()
    node.entries.append("early")
    state = PLAIN.decode(PLAIN.encode(node.capture()))
    node.entries.append("late")
    vars(node)["extra"] = 1
    node.restore(state)
    assert vars(node) == {"entries": ["early"]}


def test_a_restored_node_captures_what_it_was_restored_from() -> None:
    node, other = Diary(), Diary()
    node.entries.append({"deep": (1, [2])})
    other.restore(PLAIN.decode(PLAIN.encode(node.capture())))
    assert PLAIN.encode(other.capture()) == PLAIN.encode(node.capture())


def test_capture_and_restore_can_be_the_users_own() -> None:
    class Squeezed(Node):
        def setup(self, ctx: Context) -> None:
            self.numbers = list(range(5))

        def capture(self) -> Any:
            return len(self.numbers)

        def restore(self, state: Any) -> None:
            self.numbers = list(range(state))

    one = Solo(Squeezed()).start()
    assert PLAIN.decode(state_of(one.record())) == 5
    other = Squeezed()
    other.restore(5)
    assert other.numbers == list(range(5))


def test_the_codec_of_the_node_is_used_for_all_its_values() -> None:
    """State, payloads, records, arguments and replies: what the class allows is allowed everywhere."""

    def use(ctx: Context) -> object:
        odd = range(3)
        ctx.send("B", odd)
        ctx.emit(odd)
        ctx.after(1, "ring", odd)
        return odd

    with_pickle = Codec(pickle=True)
    node = Diary()
    one = solo(node, {"on_command": use}, outbound=["B"], codec=with_pickle).start()
    one.command("x").run()
    one.pass_time(1)
    node.entries.append(range(3))
    one.core.initiate(S)
    values = [data for _, data in one.driver.all("emit") + one.driver.all("reply")]
    assert [with_pickle.decode(value) for value in values] == [range(3)] * 2
    assert ("ring", range(3)) in node.entries
    assert one.recorded_state() == {"entries": node.entries}
