"""The contract of a channel between two nodes: one body of tests, run over every implementation.

Who brings another transport adds it to `CHANNELS` and has to pass what is written here.
"""

from __future__ import annotations

import marshal
import math
import multiprocessing
import os
import select
import struct
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from multiprocessing.connection import Connection
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from memory_channel import MemoryPipe, MemoryReceiver, MemorySender

from mpsnap.core.errors import ClusterError, CodecError, ProtocolError
from mpsnap.core.protocol import Marker, SnapshotId
from mpsnap.runtime.channel import Batch, QueueReceiver, QueueSender, Receiver, Sender

#: A message by number and payload, or a marker.
Item = tuple[int, object] | Marker


class Channel(ABC):
    """Hold both ends of one channel, which in earnest are held by two processes."""

    sender: Sender
    receiver: Receiver
    #: What no sender writes, by a name for it.
    garbage: Mapping[str, Any]

    @abstractmethod
    def garble(self, garbage: Any) -> None:
        """Put garbage where the receiver reads."""

    def close(self) -> None:
        self.sender.close()
        self.receiver.close()
        # The semaphores of a queue live as long as the queue does.
        del self.sender, self.receiver


class MemoryChannel(Channel):
    garbage = {"nothing": None, "bytes": b"rubbish", "list": [1, "x"]}

    def __init__(self) -> None:
        self._pipe = MemoryPipe(capacity=50)
        self.sender, self.receiver = MemorySender(self._pipe), MemoryReceiver(self._pipe)

    def garble(self, garbage: Any) -> None:
        self._pipe.items.append(garbage)

    def close(self) -> None:
        self._pipe.drop()


def _frame(kind: int, body: bytes, count: int = 1) -> bytes:
    return struct.pack("!QBQI", len(body), kind, 1, count) + body


class QueueChannel(Channel):
    garbage = {
        "ones": b"\xff" * 64,
        "http": b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n",
        "unknown kind": _frame(7, b"N"),
        "empty batch body": _frame(0, b""),
        "not marshal": _frame(0, b"\x00\x01\x02"),
        "cut off": _frame(0, marshal.dumps([1, 2, 3])[:-2], 3),
        "another count": _frame(0, marshal.dumps([1, 2, 3]), 4),
        "batch of nothing": _frame(0, marshal.dumps(None)),
        "batch of a dict": _frame(0, marshal.dumps({1: 2})),
        "marker of nothing": _frame(1, b""),
        "marker of a number": _frame(1, b"5"),
        "marker of half an id": _frame(1, b"0-N1"),
        "marker of no text": _frame(1, b"\xff-N1-1"),
    }

    def __init__(self, start_method: str) -> None:
        context = multiprocessing.get_context(start_method)
        here, there = context.Queue(), context.Queue()
        # What a start of processes does: both have both ends, and each closes the one it has no use for.
        ends: Any = there
        for name in ("_reader", "_writer"):
            old: Connection = getattr(ends, name)
            old.close()
            copy = os.dup(getattr(here, name).fileno())
            setattr(ends, name, Connection(copy, readable=name == "_reader", writable=name == "_writer"))
        self.sender, self.receiver = QueueSender(here), QueueReceiver(there)
        self._garbage_fd = self.sender.fileno()

    def garble(self, garbage: Any) -> None:
        os.write(self._garbage_fd, garbage)


CHANNELS: dict[str, Any] = {
    "memory": MemoryChannel,
    "fork": lambda: QueueChannel("fork"),
    "forkserver": lambda: QueueChannel("forkserver"),
    "spawn": lambda: QueueChannel("spawn"),
}


@contextmanager
def new_channel(kind: str) -> Iterator[Channel]:
    made: Channel = CHANNELS[kind]()
    try:
        yield made
    finally:
        made.close()


@pytest.fixture(params=CHANNELS)
def channel(request: pytest.FixtureRequest) -> Iterator[Channel]:
    with new_channel(request.param) as made:
        yield made


def marker(n: int, sent: int) -> Marker:
    return Marker(SnapshotId(0, "N1", n), sent)


def arrived(channel: Channel) -> list[Item]:
    """Return all items that can be read now, batches taken apart."""
    items: list[Item] = []
    while _is_ready(channel.receiver.fileno(), select.POLLIN):
        items += _apart(channel.receiver.receive())
    return items


def _apart(received: list[Batch | Marker]) -> Iterator[Item]:
    for item in received:
        if isinstance(item, Marker):
            yield item
        else:
            first, payloads = item
            yield from enumerate(payloads, first)


def carried(channel: Channel) -> list[Item]:
    """Write and read in turn until nothing is left, and return what came."""
    items: list[Item] = []
    while not channel.sender.flush():
        got = arrived(channel)
        assert got or _is_ready(channel.sender.fileno(), select.POLLOUT), "neither end can go on"
        items += got
    return items + arrived(channel)


def _is_ready(fd: int, what: int) -> bool:
    poll = select.poll()
    poll.register(fd, what)
    return bool(poll.poll(0))


# --- Order and numbers. ---


def test_messages_arrive_once_in_order_with_their_numbers(channel: Channel) -> None:
    sent = [(n, f"message {n}") for n in range(1, 3000)]
    for number, payload in sent:
        channel.sender.send(number, [payload])
    assert carried(channel) == sent


def test_numbers_go_on_where_they_stood(channel: Channel) -> None:
    """A restored node does not begin at 1, and numbers may exceed 32 bits."""
    sent = [(2**40 + n, n) for n in range(10)]
    for number, payload in sent:
        channel.sender.send(number, [payload])
    assert carried(channel) == sent


def test_a_marker_stands_exactly_where_it_was_sent(channel: Channel) -> None:
    sent: list[Item] = []
    for n in range(1, 1000):
        channel.sender.send(n, [n])
        sent.append((n, n))
        if n in (1, 2, 255, 256, 257, 700):
            channel.sender.send_marker(*marker(n, n))
            sent.append(marker(n, n))
    assert carried(channel) == sent


def test_a_marker_may_be_the_first_item_and_several_may_follow_each_other(channel: Channel) -> None:
    sent: list[Item] = [marker(1, 0), marker(2, 0), (1, "x"), marker(3, 1)]
    channel.sender.send_marker(*marker(1, 0))
    channel.sender.send_marker(*marker(2, 0))
    channel.sender.send(1, ["x"])
    channel.sender.send_marker(*marker(3, 1))
    assert arrived(channel) == sent


def test_a_marker_comes_back_as_it_was(channel: Channel) -> None:
    there = Marker(SnapshotId(7, "a.b-c_d", 2**33), 2**50)
    channel.sender.send_marker(*there)
    (back,) = arrived(channel)
    assert type(back) is Marker
    assert type(back.snapshot_id) is SnapshotId
    assert back == there


Step = tuple[str, int]
STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("send"), st.integers(1, 400)),
        st.tuples(st.just("marker"), st.just(0)),
        st.tuples(st.just("flush"), st.just(0)),
        st.tuples(st.just("receive"), st.just(0)),
    ),
    max_size=30,
)


@settings(max_examples=30, deadline=None)
@given(steps=STEPS, size=st.sampled_from([0, 10, 3000]))
@pytest.mark.parametrize("kind", ["memory", "spawn"])
def test_whatever_the_order_of_calls_the_items_are_those_sent(kind: str, steps: list[Step], size: int) -> None:
    sent: list[Item] = []
    got: list[Item] = []
    number = 0
    with new_channel(kind) as channel:
        for verb, count in steps:
            batch: list[object] = [f"{number + k}".ljust(size) for k in range(1, count + 1)]
            if batch:
                channel.sender.send(number + 1, list(batch))
                sent += enumerate(batch, number + 1)
                number += count
            if verb == "marker":
                sent.append(marker(len(sent) + 1, number))
                channel.sender.send_marker(*marker(len(sent), number))
            elif verb == "flush":
                channel.sender.flush()
            elif verb == "receive":
                got += arrived(channel)
            assert got == sent[: len(got)]
        assert got + carried(channel) == sent


# --- Payloads. ---

PAYLOADS = [
    None,
    True,
    False,
    0,
    -1,
    2**31,
    2**63 - 1,
    -(2**63),
    2**64,
    -(10**400),
    0.0,
    -0.0,
    1e-320,
    math.pi,
    math.inf,
    -math.inf,
    "",
    "é\n\0\U0001f600",
    "\ud800 alone",
    b"",
    bytes(range(256)),
    (),
    (1, (2.0, ("3", (b"4", (None, (True,)))))),
    [False, b""],
    [None, 1, (2.0, "3")],
    [True, {1: "a", "b": None}],
    ["C\nm:A\nx", True],
]


def test_payloads_arrive_with_their_exact_values_and_types(channel: Channel) -> None:
    for number, payload in enumerate(PAYLOADS, 1):
        channel.sender.send(number, [payload])
    back = [item[1] for item in carried(channel)]
    assert [type(payload) for payload in back] == [type(payload) for payload in PAYLOADS]
    assert [_exact(payload) for payload in back] == [_exact(payload) for payload in PAYLOADS]


def test_a_float_that_is_not_a_number_arrives(channel: Channel) -> None:
    channel.sender.send(1, [(math.nan, -math.nan)])
    ((_, payload),) = carried(channel)
    assert isinstance(payload, tuple)
    assert all(map(math.isnan, payload))
    assert [math.copysign(1, part) for part in payload] == [1, -1]


def test_equal_payloads_of_different_types_stay_different(channel: Channel) -> None:
    sent = [1, True, 1.0, "1", b"1", [False, b"1"], (1,), (True,), (1.0,)]
    for number, payload in enumerate(sent, 1):
        channel.sender.send(number, [payload])
    back = [item[1] for item in carried(channel)]
    assert list(map(_exact, back)) == list(map(_exact, sent))


def test_rows_are_told_from_bytes_wherever_they_stand_in_a_batch(channel: Channel) -> None:
    sent: list[object] = [[False, b"x"] if n % 3 == 0 and n < 500 else b"x" for n in range(700)]
    number = 1
    for size in (1, 2, 97, 200, 300, 1, 99):
        channel.sender.send(number, sent[number - 1 : number - 1 + size])
        number += size
    assert [item[1] for item in carried(channel)] == sent


def _exact(payload: object) -> str:
    if isinstance(payload, (tuple, list)):
        return f"{type(payload).__name__} ({', '.join(map(_exact, payload))})"
    return f"{type(payload).__name__} {payload!r}"


# --- Size, and a pipe that is full. ---


@pytest.mark.parametrize("size", [65_536, 1_000_000, 8_000_000])
def test_big_payloads_never_block_and_arrive_whole(channel: Channel, size: int) -> None:
    payload = os.urandom(1000) * (size // 1000)
    sent: list[Item] = [(1, payload), (2, "small"), marker(1, 2), (3, [False, payload]), marker(2, 3)]
    channel.sender.send(1, [payload])
    channel.sender.send(2, ["small"])
    channel.sender.send_marker(*marker(1, 2))
    channel.sender.send(3, [[False, payload]])
    channel.sender.send_marker(*marker(2, 3))
    assert carried(channel) == sent


def test_nothing_is_lost_when_the_pipe_is_full(channel: Channel) -> None:
    """Nobody reads for a long time; every call returns all the same, and then everything comes."""
    sent: list[Item] = []
    for n in range(1, 3001):
        payload = f"{n}".ljust(200)
        channel.sender.send(n, [payload])
        sent.append((n, payload))
        if n % 500 == 0:
            channel.sender.send_marker(*marker(n, n))
            sent.append(marker(n, n))
    assert not channel.sender.flush(), "600 kB should be more than this pipe holds"
    assert carried(channel) == sent
    assert channel.sender.flush()


def test_after_a_flush_that_left_nothing_over_everything_can_be_read(channel: Channel) -> None:
    for n in range(1, 4):
        channel.sender.send(n, [n])
    assert channel.sender.flush()
    assert arrived(channel) == [(1, 1), (2, 2), (3, 3)]
    assert channel.sender.flush(), "a flush of nothing leaves nothing over"
    assert arrived(channel) == []


def test_a_marker_is_written_at_once_with_all_before_it(channel: Channel) -> None:
    channel.sender.send(1, ["x"])
    channel.sender.send_marker(*marker(1, 1))
    assert arrived(channel) == [(1, "x"), marker(1, 1)]


# --- When to read and to write. ---


def test_the_descriptors_tell_when_there_is_something_to_read_and_room_to_write(channel: Channel) -> None:
    reader, writer = channel.receiver.fileno(), channel.sender.fileno()
    assert not _is_ready(reader, select.POLLIN)
    assert _is_ready(writer, select.POLLOUT)
    number = 0
    while channel.sender.flush():
        number += 1
        channel.sender.send(number, [b"x" * 4000])
    assert _is_ready(reader, select.POLLIN)
    assert not _is_ready(writer, select.POLLOUT)
    assert len(carried(channel)) == number
    assert not _is_ready(reader, select.POLLIN)
    assert _is_ready(writer, select.POLLOUT)


def test_receiving_where_nothing_is_returns_nothing(channel: Channel) -> None:
    assert channel.receiver.receive() == []
    channel.sender.send(1, ["x"])
    assert carried(channel) == [(1, "x")]
    assert channel.receiver.receive() == []


# --- Ends. ---


def test_a_reader_that_is_gone_is_an_error(channel: Channel) -> None:
    channel.receiver.close()
    with pytest.raises(ClusterError, match="reader"):
        channel.sender.send(1, ["x"])


def test_a_reader_that_is_gone_is_an_error_for_a_marker_too(channel: Channel) -> None:
    channel.receiver.close()
    with pytest.raises(ClusterError, match="reader"):
        channel.sender.send_marker(*marker(1, 0))


def test_a_writer_that_is_gone_is_an_error_after_what_it_left(channel: Channel) -> None:
    channel.sender.send(1, ["x"])
    channel.sender.flush()
    channel.sender.close()
    assert list(_apart(channel.receiver.receive())) == [(1, "x")]
    assert _is_ready(channel.receiver.fileno(), select.POLLIN), "the end must wake a reader that waits"
    with pytest.raises(ClusterError, match="writer"):
        channel.receiver.receive()


def test_a_batch_does_not_keep_a_far_larger_one_that_was_read_with_it() -> None:
    with new_channel("fork") as channel:
        assert isinstance(channel.receiver, QueueReceiver)
        for first, size in ((1, 1_000_000), (2, 20_000)):
            channel.sender.send(first, [bytes(size)])
        found: list[Any] = []
        while len(found) < 2:
            channel.sender.flush()
            found += channel.receiver.receive()
        large, small = (payloads.data for _, payloads in found)
        assert memoryview(memoryview(small).obj).nbytes < 2 * len(small) < len(large)


# --- Garbage. ---


GARBAGE = [
    pytest.param(kind, garbage, id=f"{kind}-{name}")
    for kind, made in (("memory", MemoryChannel), ("spawn", QueueChannel))
    for name, garbage in made.garbage.items()
]


@pytest.mark.parametrize(("kind", "garbage"), GARBAGE)
def test_garbage_is_an_error_at_the_latest_when_it_is_looked_at(kind: str, garbage: Any) -> None:
    with new_channel(kind) as channel:
        channel.garble(garbage)
        with pytest.raises((ProtocolError, CodecError)):
            list(_apart(channel.receiver.receive()))


def test_garbage_behind_right_items_is_a_protocol_error_too(channel: Channel) -> None:
    channel.sender.send(1, ["x"])
    channel.sender.flush()
    channel.garble(next(iter(channel.garbage.values())))
    with pytest.raises(ProtocolError):
        channel.receiver.receive()
