"""When messages leave a node and when its hooks wait: decided here without a process, a pipe or a clock that runs."""

from __future__ import annotations

import time
from typing import Any

import pytest
from harness import Clock, snap

from mpsnap.core.errors import MpsnapError
from mpsnap.core.protocol import Marker, Outbox, SnapshotId
from mpsnap.runtime.outbound import AGE_SECONDS, BATCH_BYTES, BATCH_MESSAGES, HARD_CAP, WINDOW_BYTES, Outbound

#: What a test says of `Outbound.room`.
ANY, HANDLING, NONE = 2, 1, 0


class Pipe:
    """Twin of a sender: keep what was sent, take as much as there is room for."""

    def __init__(self, fd: int) -> None:
        self.fd = fd
        self.message_bytes = 1
        self.has_room = True
        self.items: list[Any] = []

    def send(self, first: int, payloads: list[object]) -> bool:
        self.items.append((first, payloads))
        return self.has_room

    def send_marker(self, snapshot_id: SnapshotId, sent: int) -> bool:
        self.items.append(Marker(snapshot_id, sent))
        return self.has_room

    def flush(self) -> bool:
        return self.has_room

    def fileno(self) -> int:
        return self.fd


class World:
    """One node's outbound channels to B and C, and the test in the place of its hooks, its loop and its receivers."""

    def __init__(self, window: int = 1000) -> None:
        self.clock = Clock()
        self.clock.now = 100.0
        self.words = memoryview(bytearray(4 * 8)).cast("Q")
        self.boxes = {dst: Outbox(dst, 0) for dst in "BC"}
        self.pipes: dict[str, Any] = {dst: Pipe(k) for k, dst in enumerate("BC")}
        #: Descriptors that are waited for, and how often a hook was to be the last one.
        self.awaited: set[int] = set()
        self.interrupts = 0
        self.out = Outbound(
            "A",
            self.boxes,
            self.pipes,
            {"B": (0, 1), "C": (2, 3)},
            self.words,
            window,
            await_writable=lambda fd, wanted: (self.awaited.add if wanted else self.awaited.discard)(fd),
            interrupt=self.interrupted,
        )
        self.out.eager = False
        self.out.now = self.clock.now

    def interrupted(self) -> None:
        self.interrupts += 1

    def send(self, dst: str, *payloads: object) -> None:
        """Do as a hook does."""
        for payload in payloads:
            box = self.boxes[dst]
            box.payloads.append(payload)
            if len(box.payloads) >= box.limit:
                self.out.offer(box)

    def send_one_of(self, dst: str, message_bytes: int) -> None:
        """Let one message leave that is so large: the next ones are expected to be alike."""
        self.pipes[dst].message_bytes = message_bytes
        self.send(dst, "large")
        self.out.flush(all_of_it=True)
        self.left(dst)

    def take(self, dst: str, count: int) -> None:
        """Do as the receiver's process does."""
        self.words[{"B": 1, "C": 3}[dst]] += count

    def left(self, dst: str) -> list[Any]:
        """Return what has left since the last look."""
        pipe: Pipe = self.pipes[dst]
        items, pipe.items = pipe.items, []
        return items


@pytest.fixture
def world(monkeypatch: pytest.MonkeyPatch) -> World:
    return made(monkeypatch)


def made(monkeypatch: pytest.MonkeyPatch, window: int = 1000) -> World:
    world = World(window)
    monkeypatch.setattr(time, "monotonic", world.clock)
    return world


# --- Leaving. ---


def test_messages_wait_for_each_other_until_the_node_waits(world: World) -> None:
    world.send("B", "x", "y")
    world.send("C", "z")
    assert world.left("B") == world.left("C") == []
    world.out.flush(all_of_it=True)
    assert world.left("B") == [(1, ["x", "y"])]
    assert world.left("C") == [(1, ["z"])]
    world.send("B", "w")
    world.out.flush(all_of_it=True)
    assert world.left("B") == [(3, ["w"])]
    assert list(world.words) == [3, 0, 1, 0], "who reads the counts sees what has left"
    world.out.flush(all_of_it=True)
    assert world.left("B") == []


def test_a_full_batch_leaves_by_itself(world: World) -> None:
    world.send("B", *range(BATCH_MESSAGES + 1))
    assert world.left("B") == [(1, list(range(BATCH_MESSAGES)))]


def test_large_messages_make_small_batches(world: World) -> None:
    world.send_one_of("B", BATCH_BYTES // 3)
    world.send("B", *range(7))
    assert [payloads for _, payloads in world.left("B")] == [[0, 1, 2], [3, 4, 5]]
    world.out.flush(all_of_it=True)
    world.send_one_of("B", BATCH_BYTES * 5)
    world.send("B", 7, 8)
    assert [payloads for _, payloads in world.left("B")] == [[7], [8]]


def test_what_is_old_leaves_between_turns(world: World) -> None:
    world.send("B", "old")
    world.out.now += AGE_SECONDS / 2
    world.send("C", "young")
    world.out.now += AGE_SECONDS * 0.6
    world.out.flush(all_of_it=False)
    assert (world.left("B"), world.left("C")) == ([(1, ["old"])], [])
    world.out.now += AGE_SECONDS
    world.out.flush(all_of_it=False)
    assert world.left("C") == [(1, ["young"])]


def test_where_hooks_run_long_a_message_leaves_a_quiet_channel_at_once(world: World) -> None:
    world.out.eager = True
    world.send("B", "first")
    assert world.left("B") == [(1, ["first"])]
    world.send("B", "second")
    assert world.left("B") == [], "it may be one of many"
    world.clock.pass_time(AGE_SECONDS)
    world.send("B", "third")
    assert world.left("B") == [(2, ["second", "third"])]
    world.clock.pass_time(AGE_SECONDS)
    world.send("B", "fourth")
    assert world.left("B") == [(4, ["fourth"])]


def test_where_hooks_run_long_a_batch_is_looked_at_ever_more_rarely(world: World) -> None:
    """At its 2nd, 4th, 8th... message: so none waits much longer than those before it took to be sent."""
    world.out.eager = True
    world.send("B", 0, 1)
    world.left("B")
    for number in range(2, 100):
        world.clock.pass_time(AGE_SECONDS / 7)
        world.send("B", number)
    assert [len(payloads) for _, payloads in world.left("B")] == [8] * 12


def test_what_waits_leaves_in_front_of_a_marker(world: World) -> None:
    world.send("B", "x")
    world.out.send_markers(snap("A"), {"B": 1, "C": 0})
    assert world.left("B") == [(1, ["x"]), Marker(snap("A"), 1)]
    assert world.left("C") == [Marker(snap("A"), 0)]
    world.out.flush(all_of_it=True)
    assert world.left("B") == []


def test_nobody_sees_more_messages_taken_than_sent(world: World) -> None:
    """The count is there before the receiver can have the messages."""
    counted = []
    pipe = world.pipes["B"]

    def send(first: int, payloads: list[object]) -> bool:
        counted.append((world.words[0], first + len(payloads) - 1))
        return True

    pipe.send = send
    world.send("B", *range(BATCH_MESSAGES + 5))
    world.out.flush(all_of_it=True)
    assert counted == [(BATCH_MESSAGES, BATCH_MESSAGES), (BATCH_MESSAGES + 5, BATCH_MESSAGES + 5)]


def test_a_full_pipe_is_waited_for_until_it_has_taken_everything(world: World) -> None:
    pipe = world.pipes["B"]
    pipe.has_room = False
    world.send("B", "x")
    world.out.flush(all_of_it=True)
    assert world.awaited == {pipe.fd}
    world.out.writable(pipe.fd)
    assert world.awaited == {pipe.fd}
    pipe.has_room = True
    world.out.writable(pipe.fd)
    assert world.awaited == set()
    pipe.has_room = False
    world.out.send_markers(snap("A"), {"B": 1})
    assert world.awaited == {pipe.fd}


def test_messages_that_are_noted_one_by_one_are_batched_too(world: World) -> None:
    for number in range(BATCH_MESSAGES + 3):
        world.out.send("B", number)
    assert [len(payloads) for _, payloads in world.left("B")] == [BATCH_MESSAGES]
    world.out.publish()
    assert world.words[0] == BATCH_MESSAGES + 3


# --- Room. ---


def test_half_a_window_stops_sources_and_a_whole_one_every_hook(monkeypatch: pytest.MonkeyPatch) -> None:
    world = made(monkeypatch, window=10)
    world.send("B", *range(4))
    assert (world.out.room(), world.interrupts) == (ANY, 0)
    world.send("B", 4)
    assert (world.out.room(), world.interrupts) == (HANDLING, 0)
    world.send("B", 5, 6, 7, 8)
    assert (world.out.room(), world.interrupts) == (HANDLING, 0)
    world.send("B", 9)
    assert world.interrupts == 1, "this hook is the last one"
    assert world.out.room() == NONE
    world.take("B", 1)
    assert world.out.room() == HANDLING
    world.take("B", 4)
    assert world.out.room() == HANDLING
    world.take("B", 1)
    assert world.out.room() == ANY


def test_the_receivers_count_is_read_again_where_the_limit_may_be_reached(monkeypatch: pytest.MonkeyPatch) -> None:
    """Not at each message, and never too late: whatever the receiver has taken meanwhile, and in whatever portions."""
    world = made(monkeypatch, window=10)
    sent = 0
    for portion, taken in ((4, 4), (4, 3), (6, 0), (3, 5), (1, 0), (9, 8), (4, 10)):
        world.send("B", *range(portion))
        sent += portion
        on_the_way = sent - world.words[1]
        assert world.out.room() == (ANY if on_the_way < 5 else HANDLING if on_the_way < 10 else NONE)
        world.take("B", taken)


def test_the_fullest_channel_decides(monkeypatch: pytest.MonkeyPatch) -> None:
    world = made(monkeypatch, window=10)
    world.send("B", *range(6))
    world.send("C", *range(11))
    assert world.out.room() == NONE
    world.take("C", 11)
    assert world.out.room() == HANDLING


def test_large_messages_have_a_small_window(monkeypatch: pytest.MonkeyPatch) -> None:
    """So that a slow receiver's inbox is bounded in bytes too."""
    world = made(monkeypatch, window=1000)
    world.send_one_of("B", WINDOW_BYTES // 4)
    assert world.out.room() == ANY
    world.send("B", 2)
    assert world.out.room() == HANDLING
    world.send("B", 3, 4)
    assert world.out.room() == NONE
    world.take("B", 3)
    world.pipes["B"].message_bytes = 1
    world.send("B", *range(BATCH_MESSAGES))
    assert world.out.room() == ANY


def test_a_hook_that_never_stops_sending_is_stopped(world: World) -> None:
    with pytest.raises(MpsnapError, match=f"{HARD_CAP} messages are on their way") as caught:
        world.send("B", *range(HARD_CAP + 2))
    assert caught.value.where == "A->B"


def test_a_node_waits_from_the_end_of_its_last_hook_on(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its hook may have filled a channel long before; meanwhile nobody could see what it had taken itself."""
    world = made(monkeypatch, window=4)
    world.send("B", *range(4))
    world.clock.pass_time(3)
    world.out.hook_ended = world.clock.now
    assert world.out.full_report() == (103.0, {"B": 103.0})


def test_a_window_that_opens_and_fills_again_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also by a batch that began while it was full, and looked far ahead."""
    world = made(monkeypatch, window=4)
    world.send("B", *range(5))
    assert world.out.room() == NONE
    world.take("B", 5)
    assert world.out.room() == ANY
    before = world.interrupts
    world.send("B", *range(4))
    assert world.interrupts == before + 1
    assert world.out.room() == NONE


def test_full_channels_are_reported_after_a_while_and_again(monkeypatch: pytest.MonkeyPatch) -> None:
    world = made(monkeypatch, window=4)
    world.send("B", *range(4))
    world.clock.pass_time(0.5)
    world.send("C", *range(3))
    assert world.out.full_report() is None, "it may open soon"
    world.clock.pass_time(1)
    assert world.out.full_report() == (101.5, {"B": 100.0})
    assert world.out.full_report() is None
    world.clock.pass_time(1)
    assert world.out.full_report() == (102.5, {"B": 100.0})
    world.take("B", 1)
    world.clock.pass_time(1)
    assert world.out.full_report() == (103.5, {}), "who waits no more says so once"
    world.clock.pass_time(1)
    assert world.out.full_report() is None
