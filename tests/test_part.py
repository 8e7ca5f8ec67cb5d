"""The bytes of a node's part of a snapshot: exact, quick to read, and an error whatever else they hold."""

from __future__ import annotations

import contextlib
import copy
import pickle
import struct
from typing import Any

import msgpack
import pytest
from harness import PLAIN
from hypothesis import given, settings
from hypothesis import strategies as st
from test_snapshot import TRIANGLE, merged, parts_of

from mpsnap.core.batch import PackedBatch, pack_batch
from mpsnap.core.codec import Pickled, freeze
from mpsnap.core.errors import CodecError, ConsistencyError
from mpsnap.core.part import BLOCK_MESSAGES, FORMAT, PackedParts, pack, pack_lasting, unpack, unpack_lasting
from mpsnap.core.protocol import Chained, ChannelState, EmptyChannels, LocalSnapshot, SnapshotId
from mpsnap.core.snapshot import Captured, GlobalSnapshot, NodeSnapshot, StoredState, Timer

PAYLOADS = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=4) | st.binary(max_size=4),
    lambda inner: st.lists(inner, max_size=3) | st.tuples(inner, inner) | st.dictionaries(st.text(max_size=2), inner),
    max_leaves=5,
)
COUNTS = st.integers(0, 2**63)
NAMES = st.sampled_from(["A", "B", "C-1", "N10"])


@st.composite
def local_snapshots(draw: st.DrawFn) -> LocalSnapshot:
    frozen = PAYLOADS.map(lambda value: freeze(value, PLAIN))
    timers = st.builds(
        Timer, st.floats(0, 1e6), st.none() | st.floats(0.1, 1e6), st.text(max_size=5), PAYLOADS.map(lambda v: (v,))
    ).map(lambda timer: timer._replace(args=freeze(timer.args, PLAIN)))
    captured = Captured(
        state=draw(st.binary(max_size=20)),
        timers=tuple(draw(st.lists(timers, max_size=2))),
        random=draw(st.tuples(st.integers() | st.text(max_size=5), COUNTS)),
        passive=draw(st.booleans()),
        finished=draw(st.booleans()),
        emitted=draw(COUNTS),
    )
    states = st.builds(ChannelState, COUNTS, st.lists(frozen, max_size=4).map(tuple))
    return LocalSnapshot(
        node=draw(NAMES),
        snapshot_id=SnapshotId(draw(COUNTS), draw(NAMES), draw(COUNTS)),
        captured=captured,
        sent=draw(st.dictionaries(NAMES, COUNTS)),
        received=draw(st.dictionaries(NAMES, COUNTS)),
        channels=draw(st.dictionaries(NAMES, states)),
    )


@given(local_snapshots())
@settings(max_examples=60)
def test_a_part_comes_back_from_its_bytes(local: LocalSnapshot) -> None:
    """Equal in every field, and of the same types."""
    again = unpack(pack(local))
    assert again == local
    channels = {src: state._replace(payloads=tuple(state.payloads)) for src, state in again.channels.items()}
    assert repr(again._replace(channels=channels)) == repr(local)


@given(local_snapshots())
@settings(max_examples=20)
def test_a_part_with_nothing_in_flight_says_so_at_once(local: LocalSnapshot) -> None:
    quiet = local._replace(channels=EmptyChannels(local.received))
    again = unpack(pack(quiet))
    assert again == quiet
    assert isinstance(again.channels, EmptyChannels)
    assert dict(again.channels) == {src: ChannelState(count + 1, ()) for src, count in local.received.items()}
    assert len(pack(quiet)) < len(pack(quiet._replace(channels=dict(quiet.channels)))) or not local.received
    assert unpack_lasting(pack_lasting(again)) == quiet


def test_channels_that_begin_elsewhere_come_back_as_they_were() -> None:
    """Empty, but not behind what was received: no cut of anybody's, and `verify` has to see it."""
    local = one_part()._replace(channels=EmptyChannels({"A": 7}))
    again = unpack(pack(local))
    assert again == local
    assert not again.all_empty


@pytest.mark.parametrize("numbers", [[2, 1], [2**63, 1], [2**62, 0, 2**62, 1]])
def test_more_messages_than_bytes_are_refused(numbers: list[int]) -> None:
    """A count is believed before anything is unpacked, and there is none of so many."""
    row = plain_part() | {"channels": {"A": 1}, "in flight": {"A": numbers}}
    with pytest.raises(CodecError, match="messages are missing"):
        unpack(raw(row) + b"N")


def test_messages_without_their_channels_are_refused() -> None:
    with pytest.raises(CodecError, match="something is wrong with its 'channels'"):
        unpack(raw(plain_part() | {"channels": None, "in flight": {"A": [1, 1]}}))


def test_messages_in_flight_stay_packed_all_the_way() -> None:
    """As they came from their senders, and opened by those who look; what was taken apart already is packed again."""
    packed = pack_batch([(1, 2), [False, b"x"]])
    payloads = Chained([["first", [None, b"y"]], packed])
    local = one_part()._replace(channels={"A": ChannelState(3, payloads)})
    (back,) = unpack(pack(local)).channels.values()
    assert isinstance(back.payloads, Chained)
    _, again = back.payloads.batches
    assert isinstance(again, PackedBatch)
    assert again.data == packed.data
    assert len(back.payloads) == 4
    assert back.payloads == ("first", [None, b"y"], (1, 2), [False, b"x"])
    assert back.payloads[3] == [False, b"x"]
    assert back.payloads[:2] == ("first", [None, b"y"])


def test_a_batch_that_holds_something_else_is_told_when_it_is_looked_at() -> None:
    """The count is what a cut is proven by; what nobody has packed is nobody's message."""
    for wrong in (PackedBatch(3, b"[[["), PackedBatch(4, pack_batch([1, 2, 3]).data)):
        local = one_part()._replace(channels={"A": ChannelState(3, Chained([wrong]))})
        (back,) = unpack(pack(local)).channels.values()
        assert len(back.payloads) == wrong.size
        with pytest.raises(CodecError, match="not payloads that were packed"):
            tuple(back.payloads)


def test_messages_on_a_channel_that_is_not_there_are_refused() -> None:
    with pytest.raises(CodecError, match="a channel that it does not have"):
        unpack(raw(plain_part() | {"in flight": {"X": []}}))


@pytest.mark.parametrize(
    ("batches", "behind"),
    [([1, 5], b""), ([1, 5], b"1234"), ([1, 4], b"12345"), ([1, -1], b""), ([-1, 1], b"1"), ([], b"1"), ([1], b"1")],
)
def test_messages_that_are_not_where_the_part_says_are_refused(batches: list[int], behind: bytes) -> None:
    with pytest.raises(CodecError, match="not a local snapshot: "):
        unpack(raw(plain_part() | {"in flight": {"A": batches}}) + behind)


def test_what_was_read_with_others_can_be_copied_and_pickled_alone() -> None:
    for payloads in ((1, "two"), Chained([pack_batch([1]), pack_batch(["two"])])):
        local = one_part()._replace(channels={"A": ChannelState(3, payloads)})
        (state,) = unpack(pack(local)).channels.values()
        for again in (copy.deepcopy(state), pickle.loads(pickle.dumps(state))):
            assert tuple(again.payloads) == (1, "two")


@given(local_snapshots())
@settings(max_examples=30)
def test_equal_parts_have_equal_bytes(local: LocalSnapshot) -> None:
    assert pack(unpack(pack(local))) == pack(local)


class Elsewhere(StoredState):
    """Hold the bytes of a state, and remember what was asked of it."""

    def __init__(self, data: bytes) -> None:
        self.data = data
        self.asked: list[str] = []

    @property
    def size(self) -> int:
        return len(self.data)

    def read(self) -> bytes:
        self.asked.append("read")
        return self.data

    def close(self) -> None:
        self.asked.append("close")


@given(local_snapshots())
@settings(max_examples=30)
def test_a_state_may_travel_apart_from_the_rest(local: LocalSnapshot) -> None:
    assert isinstance(local.captured, Captured)
    state = local.captured.state
    rest = pack(local, apart=True)
    assert isinstance(state, bytes)
    assert unpack(rest, state) == local
    stored = Elsewhere(state)
    again = unpack(rest, stored)
    assert isinstance(again.captured, Captured)
    assert again.captured.state is stored
    assert stored.asked == []


def test_a_part_has_one_state() -> None:
    with pytest.raises(CodecError, match="its state is left out"):
        unpack(pack(one_part(), apart=True))
    with pytest.raises(CodecError, match="its state is there twice"):
        unpack(pack(one_part()), b"another")


def test_a_state_that_is_stored_is_read_when_somebody_looks_at_it() -> None:
    stored = Elsewhere(PLAIN.encode({"n": 1}))
    local = unpack(pack(one_part(), apart=True), stored)
    node = NodeSnapshot(local, PLAIN)
    assert node.stored == stored.size
    assert stored.asked == []
    assert (node.state, node.state) == ({"n": 1}, {"n": 1})
    assert stored.asked == ["read", "read"]
    assert NodeSnapshot(one_part(), PLAIN).stored is None
    assert merged(parts_of(TRIANGLE) | {"B": local}).stored == [stored.size]


def test_parts_that_came_packed_are_there_and_told_of_before_anyone_unpacks_them() -> None:
    """Whoever keeps snapshots asks what of them is in files; a part that is damaged is an error for who looks at it."""
    parts = parts_of(TRIANGLE)
    stored = Elsewhere(PLAIN.encode({"n": 1}))
    packed = {node: (pack(part, apart=node == "B"), stored if node == "B" else None) for node, part in parts.items()}
    damaged = PackedParts(packed | {"A": (packed["A"][0][:-1], None)})
    snapshot = GlobalSnapshot(0, parts["A"].snapshot_id, ("A",), TRIANGLE, damaged, dict.fromkeys(parts, PLAIN))
    assert ("A" in damaged, "B" in damaged, "Z" in damaged, len(damaged)) == (True, True, False, 3)
    assert snapshot.stored == [stored.size]
    assert stored.asked == []
    with pytest.raises(CodecError, match="A: "):
        damaged["A"]
    with pytest.raises(CodecError, match="A: "):
        snapshot.verify()
    assert (damaged["B"].node, "B" in damaged, snapshot.stored) == ("B", True, [stored.size])


@pytest.mark.parametrize("again", [copy.deepcopy, lambda parts: pickle.loads(pickle.dumps(parts))])
def test_what_is_copied_or_pickled_are_the_parts_and_not_their_bytes(again: Any) -> None:
    """Those are good for this version alone."""
    parts = parts_of(TRIANGLE)
    found = again(PackedParts({node: (pack(part), None) for node, part in parts.items()}))
    assert type(found) is dict
    assert {node: (part.sent, part.captured) for node, part in found.items()} == {
        node: (part.sent, part.captured) for node, part in parts.items()
    }


def test_a_snapshot_can_be_copied_while_others_look_at_it() -> None:
    """What is worked out at a first look is noted in it, and must not get into what is being copied."""
    parts = parts_of(TRIANGLE)

    class Looking(dict[str, Any]):
        """Have another thread's first look come in the middle of a copy."""

        def __reduce__(self) -> tuple[object, ...]:
            assert snapshot.nodes
            assert snapshot.channels
            return dict, (dict(self),)

    snapshot = GlobalSnapshot(0, parts["A"].snapshot_id, ("A",), TRIANGLE, Looking(parts), dict.fromkeys(parts, PLAIN))
    assert copy.deepcopy(snapshot).in_flight == snapshot.in_flight


def one_part() -> LocalSnapshot:
    return parts_of(TRIANGLE)["B"]


@given(st.binary(max_size=60))
def test_bytes_that_are_no_part_are_refused(data: bytes) -> None:
    with contextlib.suppress(CodecError):
        unpack(data)


@given(st.data())
def test_damaged_bytes_are_refused_or_read_and_nothing_else(data: st.DataObject) -> None:
    """A flipped bit may change a number; what it cannot do is raise anything but a CodecError, here or in `verify`."""
    whole = bytearray(pack(one_part()))
    for _ in range(data.draw(st.integers(1, 3))):
        whole[data.draw(st.integers(0, len(whole) - 1))] = data.draw(st.integers(0, 255))
    read_and_judge(bytes(whole[: data.draw(st.integers(0, len(whole)))]))


def read_and_judge(data: bytes) -> None:
    """Go the way that a stored part goes: whatever it is, it is refused or judged."""
    try:
        local = unpack(data)
    except CodecError:
        return
    judge(local)


def judge(local: LocalSnapshot) -> None:
    parts = dict(parts_of(TRIANGLE)) | {"B": local}
    with contextlib.suppress(ConsistencyError):
        merged(parts).verify()
    assert isinstance(merged(parts).terminated, bool)


#: What is in the list of a part on its way, in its order.
FIELDS = ["state", "passive", "finished", "emitted", "seed", "counter", "timers", "channels", "in flight"]
LASTING_FIELDS = [
    "channels",
    "emitted",
    "finished",
    "id",
    "in flight",
    "node",
    "passive",
    "random",
    "received",
    "sent",
    "state",
    "timers",
]


def packed(value: object) -> bytes:
    """Return the msgpack of a value."""

    def wide(number: int) -> msgpack.ExtType:
        return msgpack.ExtType(1, number.to_bytes(number.bit_length() // 8 + 1, "big", signed=True))

    made: bytes = msgpack.packb(list(value.values()) if isinstance(value, dict) else value, default=wide)
    return made


def raw(value: object) -> bytes:
    """Return the bytes of a part on its way whose list is this, with no messages behind it."""
    begins, _ = halves(pack(quiet_part()))
    return begins + struct.pack("!Q", len(packed(value))) + packed(value)


def raw_lasting(value: object) -> bytes:
    """Return the bytes of a part that is kept and says this."""
    return packed([value])[1:]


def quiet_part() -> LocalSnapshot:
    """Return a part in which nothing is in flight, and which says so channel by channel."""
    local = one_part()
    return local._replace(channels={src: state._replace(payloads=()) for src, state in local.channels.items()})


def halves(data: bytes) -> tuple[bytes, bytes]:
    """Return what stands in front of the list of a part on its way, and the list."""
    *_, outbound, inbound, names = struct.unpack_from(FRONT, data)
    at = struct.calcsize(FRONT) + names + 8 * (outbound + inbound)
    return data[:at], data[at + 8 :]


def plain_part() -> dict[str, Any]:
    """Return what the list of a part says in which nothing is in flight."""
    row: Any = msgpack.unpackb(halves(pack(quiet_part()))[1])
    return dict(zip(FIELDS, row, strict=True))


@pytest.mark.parametrize("field", FIELDS)
def test_a_field_of_a_wrong_type_is_refused_or_harmless(field: str) -> None:
    odd: list[Any] = [None, True, -1, 1.5, "text", b"bytes", [], [1], [1, 2], {}, {"A": 1}, {1: 2}, {"A": [1]}]
    for value in odd:
        read_and_judge(raw(plain_part() | {field: value}))


@pytest.mark.parametrize(
    ("field", "odd"),
    [
        *(("state", "text"), ("passive", 1), ("finished", None), ("emitted", "1")),
        *(("channels", {"A": [5]}), ("channels", {"A": True})),
        *(("in flight", {"A": 3}), ("in flight", {"A": ["abc"]}), ("in flight", {"A": [1, "x"]}), ("in flight", [1])),
        *(("timers", "abcd"), ("timers", [[1, 2]]), ("timers", [5]), ("seed", 1.5), ("counter", False)),
    ],
)
def test_a_field_of_a_wrong_type_is_refused(field: str, odd: object) -> None:
    """What `pack` never makes is no part, and does not get as far as `verify`."""
    with pytest.raises(CodecError, match=f"not a local snapshot: something is wrong with its '{field}'"):
        unpack(raw(plain_part() | {field: odd}))


@pytest.mark.parametrize("length", range(len(FIELDS)))
def test_a_part_that_is_too_short_is_refused(length: int) -> None:
    with pytest.raises(CodecError, match="not a local snapshot: something is wrong with its"):
        unpack(raw(list(plain_part().values())[:length]))


def test_a_part_that_is_too_long_is_refused() -> None:
    with pytest.raises(CodecError, match="not a local snapshot: too long"):
        unpack(raw([*plain_part().values(), 1]))


@pytest.mark.parametrize("version", [0, 1, FORMAT + 1, 255])
def test_another_format_is_refused_by_name(version: int) -> None:
    with pytest.raises(CodecError, match=rf"of format {version}, this version reads {FORMAT}"):
        unpack(bytes([version]) + pack(one_part())[1:])


#: Of a part on its way whose initiator's name is one letter: its format, apart, empty, incarnation, n, length of that
#: name, the name; channels out and in, length of the names.
FRONT = "!B??QQI1sIII"


@pytest.mark.parametrize(
    ("place", "value", "words"),
    [
        (1, True, "its state is left out"),
        (2, True, "it says of its channels what is not so"),
        *((5, by, "its names are missing") for by in (1000, 2**32 - 1)),
        *((5, by, "its counts are missing") for by in (0, 2)),
        *((place, by, "its counts are missing") for place in (7, 8, 9) for by in (1000, 2**32 - 1)),
        *((place, by, "not those of its neighbours") for place in (7, 8) for by in (0, 2)),
        (9, 3, "not those of its neighbours"),
    ],
)
def test_a_front_that_says_what_is_not_so_is_refused(place: int, value: int, words: str) -> None:
    data = pack(one_part())
    numbers = list(struct.unpack_from(FRONT, data))
    numbers[place] = value
    with pytest.raises(CodecError, match=words):
        unpack(struct.pack(FRONT, *numbers) + data[struct.calcsize(FRONT) :])


def test_names_that_are_none_are_refused() -> None:
    data = pack(one_part())
    for odd in (b"\xff", b"\0"):
        with pytest.raises(CodecError, match="not a local snapshot"):
            unpack(data.replace(b"B", odd))


def test_two_neighbours_of_one_name_are_refused() -> None:
    data = pack(one_part()._replace(sent={"A": 1, "C": 2}))
    assert data.count(b"\0A\0C") == 1
    with pytest.raises(CodecError, match="not those of its neighbours"):
        unpack(data.replace(b"\0A\0C", b"\0A\0A"))


def test_a_part_that_breaks_off_is_refused_wherever_it_does() -> None:
    data = pack(one_part())
    for length in range(len(data)):
        with pytest.raises(CodecError):
            unpack(data[:length])


@pytest.mark.parametrize("value", [None, 1, [], "text"])
def test_a_value_that_is_no_part_is_refused(value: object) -> None:
    with pytest.raises(CodecError, match="not a local snapshot"):
        unpack(raw(value))


# --- The form that is kept. ---


@given(local_snapshots())
@settings(max_examples=60)
def test_a_part_comes_back_from_its_lasting_bytes(local: LocalSnapshot) -> None:
    """Equal in every field, of the same types, and with the same bytes again."""
    data = pack_lasting(local)
    again = unpack_lasting(data)
    assert repr(again) == repr(local)
    assert pack_lasting(again) == data
    # Also by way of the supervisor, whose messages are packed.
    assert pack_lasting(unpack(pack(local))) == data


@given(local_snapshots())
@settings(max_examples=20)
def test_a_state_may_be_kept_apart_from_the_rest(local: LocalSnapshot) -> None:
    assert isinstance(local.captured, Captured)
    state = local.captured.state
    assert isinstance(state, bytes)
    rest = pack_lasting(local, apart=True)
    assert unpack_lasting(rest, state) == local
    stored = Elsewhere(state)
    again = unpack_lasting(rest, stored)
    assert isinstance(again.captured, Captured)
    assert again.captured.state is stored
    assert stored.asked == []
    with pytest.raises(CodecError, match="its state is left out"):
        unpack_lasting(rest)
    with pytest.raises(CodecError, match="its state is there twice"):
        unpack_lasting(pack_lasting(local), state)


@pytest.mark.parametrize("count", [0, 1, BLOCK_MESSAGES - 1, BLOCK_MESSAGES, BLOCK_MESSAGES + 1, 3 * BLOCK_MESSAGES])
def test_messages_in_any_number_are_kept_in_order(count: int) -> None:
    payloads = Chained([pack_batch([(k, "x")]) for k in range(0, count, 2)])
    local = one_part()._replace(channels={"A": ChannelState(3, payloads)})
    (back,) = unpack_lasting(pack_lasting(local)).channels.values()
    assert back.payloads == tuple((k, "x") for k in range(0, count, 2))


def test_the_two_forms_are_never_taken_for_each_other() -> None:
    """What marshal wrote is not to be read from a file, whoever has put it there."""
    with pytest.raises(CodecError, match="not a local snapshot"):
        unpack_lasting(pack(one_part())[8:])
    with pytest.raises(CodecError, match="not a local snapshot"):
        unpack_lasting(pack(one_part()))
    with pytest.raises(CodecError, match=f"a local snapshot of format .*, this version reads {FORMAT}"):
        unpack(pack_lasting(one_part()))
    with pytest.raises(CodecError, match=f"of format {FORMAT}, this version reads lasting 1"):
        unpack_lasting(raw_lasting(plain_part() | {"format": FORMAT}))


def lasting_part() -> dict[str, Any]:
    """Return what the bytes of a part that is kept say."""
    plain: Any = msgpack.unpackb(pack_lasting(one_part()))
    assert sorted(plain) == sorted([*LASTING_FIELDS, "format"])
    return dict(plain)


def test_no_marshal_gets_in_by_way_of_the_messages() -> None:
    batch = pack_batch([3, 4, 5])
    for flying in ([[3, False, batch.data]], [batch.data], batch.data, [3, False, batch.data]):
        with pytest.raises(CodecError):
            unpack_lasting(raw_lasting(lasting_part() | {"in flight": {"A": flying}}))


@pytest.mark.parametrize("payloads", [{1}, 5, (1, 2), [[1]], [{}], [([],)], [bytearray()], [object], None])
def test_what_is_in_flight_is_fixed_or_refused(payloads: Any) -> None:
    """A message that could change would do so in whoever is given it, and a pickle is none."""
    if payloads == [object]:
        payloads = [Pickled(b"x")]
    flying = {"A": [PLAIN.encode(payloads)]}
    with pytest.raises(CodecError, match="what is in flight is not messages"):
        unpack_lasting(raw_lasting(lasting_part() | {"in flight": flying}))


@pytest.mark.parametrize("odd", [-1, 2**64, 10**5000], ids=["negative", "large", "endless"])
@pytest.mark.parametrize("field", ["id", "emitted", "sent", "received", "channels"])
def test_counts_that_cannot_be_are_refused(field: str, odd: int) -> None:
    """One of thousands of digits could not even be told."""
    value: Any = {"id": [odd, "A", 1], "emitted": odd}.get(field, {"A": odd})
    part = lasting_part() | {field: value}
    with pytest.raises(CodecError, match="a count in it is negative or absurd"):
        unpack_lasting(raw_lasting(part))


def test_the_arguments_of_a_timer_are_fixed_or_refused() -> None:
    timers = [[1.0, None, "ring", PLAIN.encode([1])]]
    with pytest.raises(CodecError, match="the arguments of a timer are not fixed"):
        unpack_lasting(raw_lasting(lasting_part() | {"timers": timers}))


@pytest.mark.parametrize("field", LASTING_FIELDS)
def test_a_missing_field_is_refused(field: str) -> None:
    plain = lasting_part()
    del plain[field]
    with pytest.raises(CodecError, match=f"not a local snapshot: something is wrong with its '{field}'"):
        unpack_lasting(raw_lasting(plain))


@pytest.mark.parametrize("field", LASTING_FIELDS)
def test_a_field_of_a_wrong_type_is_refused_or_harmless_in_what_is_kept(field: str) -> None:
    odd: list[Any] = [None, True, -1, 1.5, "text", b"bytes", [], [1], [1, 2], {}, {"A": 1}, {1: 2}, {"A": [1]}]
    for value in odd:
        with contextlib.suppress(CodecError):
            judge(unpack_lasting(raw_lasting(lasting_part() | {field: value})))


@pytest.mark.parametrize(
    "version", [None, 1, 2, True, "lasting 2", [[[]]], 10**5000, b"lasting 1"], ids=lambda version: str(type(version))
)
def test_another_lasting_format_is_refused(version: Any) -> None:
    part = lasting_part() | {"format": version}
    with pytest.raises(CodecError, match=r"a local snapshot of format .{1,40}, this version reads lasting 1"):
        unpack_lasting(raw_lasting(part))


@pytest.mark.parametrize(
    "data",
    [
        *(b"\xdf\xff\xff\xff\xff", b"\xdd\xff\xff\xff\xff", b"\xc6\xff\xff\xff\xff", b"\x91" * 10**6),
        b"\x81" * 10**6,
    ],
    ids=["map", "array", "bytes", "deep list", "deep map"],
)
def test_hostile_lengths_and_depths_are_refused(data: bytes) -> None:
    with pytest.raises(CodecError, match="not a local snapshot"):
        unpack_lasting(data)
    with pytest.raises(CodecError):
        unpack_lasting(raw_lasting(lasting_part() | {"in flight": {"A": [data]}}))
