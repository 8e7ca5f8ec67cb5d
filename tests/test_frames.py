"""The notes between a supervisor and its nodes: small frames that cannot tear, over pipes that nobody blocks on."""

from __future__ import annotations

import os
import random
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from mpsnap.core.errors import ProtocolError
from mpsnap.runtime.frames import FRAME_BYTES, FrameReader, FrameWriter, Note

#: What Linux writes into a pipe whole or not at all.
PIPE_BUF = 4096


@contextmanager
def pipe() -> Iterator[tuple[int, int]]:
    reading, writing = os.pipe()
    try:
        yield reading, writing
    finally:
        os.close(reading)
        os.close(writing)


def written(note: Note) -> list[bytes]:
    """Return what each single write of a writer of this note hands to the kernel."""
    # A socket of this kind keeps writes apart, which a pipe does not.
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with ours, theirs:
        ours.setblocking(False)
        writer = FrameWriter(theirs.fileno())
        writer.post(note)
        writes = []
        while True:
            done = writer.flush()
            try:
                while True:
                    writes.append(ours.recv(1 << 20))
            except BlockingIOError:
                if done:
                    return writes


def passed(notes: list[Note]) -> list[Note]:
    """Return what a reader gets of these notes through a pipe that is full now and then."""
    got = []
    with pipe() as (reading, writing):
        writer, reader = FrameWriter(writing), FrameReader(reading)
        for note in notes:
            writer.post(note)
        done = False
        while not done:
            done = writer.flush()
            got += reader.drain()
        assert writer.backlog_bytes == 0
        assert not reader.ended
    return got


def note_of(size: int) -> Note:
    return ("report", "0-N1-1", random.Random(size).randbytes(size))


# --- Frames. ---

#: Around one frame, around two, and up to the size above which reports travel as files.
SIZES = [0, 1, 100, *range(4050, 4100), *range(8140, 8190), 65_536, 1_000_000, 1 << 20]


def test_a_frame_never_exceeds_what_a_pipe_takes_whole() -> None:
    """A writer that is killed leaves no half frame, since each frame is one write of at most so many bytes."""
    assert FRAME_BYTES <= PIPE_BUF
    for size in SIZES:
        writes = written(note_of(size))
        assert max(map(len, writes)) <= PIPE_BUF, size
        assert sum(map(len, writes)) >= size


@pytest.mark.parametrize("sizes", [[size] for size in (0, 100, 1 << 20)] + [SIZES[:60], [200_000, 0, 200_000, 5, 9000]])
def test_notes_of_any_size_arrive_whole_and_in_order(sizes: list[int]) -> None:
    notes = [note_of(size) for size in sizes]
    assert passed(notes) == notes


@settings(max_examples=40, deadline=None)
@given(
    notes=st.lists(
        st.tuples(st.text(min_size=1), st.integers(-(2**63), 2**64 - 1), st.binary(max_size=10_000)), max_size=20
    )
)
def test_notes_arrive_as_they_were_posted(notes: list[Note]) -> None:
    assert passed(notes) == notes


def test_posting_never_blocks_and_what_the_pipe_does_not_take_is_counted() -> None:
    with pipe() as (reading, writing):
        writer, reader = FrameWriter(writing), FrameReader(reading)
        writer.post(note_of(1 << 20))
        assert not writer.flush()
        assert (1 << 20) - 65_536 <= writer.backlog_bytes <= 2 << 20
        got: list[Note] = []
        while not got:
            writer.flush()
            got = reader.read()
        assert got == [note_of(1 << 20)]


# --- Reading. ---


@settings(max_examples=60, deadline=None)
@given(sizes=st.lists(st.sampled_from([0, 1, 50, 4070, 4090, 9000]), max_size=6), seed=st.integers(0, 1000))
def test_bytes_may_arrive_in_any_portions(sizes: list[int], seed: int) -> None:
    notes = [note_of(size) for size in sizes]
    stream = b"".join(b"".join(written(note)) for note in notes)
    portions = random.Random(seed)
    got: list[Note] = []
    with pipe() as (reading, writing):
        reader = FrameReader(reading)
        while stream:
            n = portions.choice([1, 2, 9, 10, 11, 100, 4096, 5000])
            os.write(writing, stream[:n])
            stream = stream[n:]
            got += reader.read()
            assert got == notes[: len(got)]
    assert got == notes


def test_reading_where_nothing_is_returns_nothing() -> None:
    with pipe() as (reading, _):
        reader = FrameReader(reading)
        assert reader.read() == reader.drain() == []
        assert not reader.ended


def test_the_end_shows_after_the_last_note() -> None:
    reading, writing = os.pipe()
    writer, reader = FrameWriter(writing), FrameReader(reading)
    writer.post(("last",))
    os.close(writing)
    assert reader.read() == [("last",)]
    assert reader.read() == []
    assert reader.ended
    os.close(reading)


def test_what_a_dead_writer_left_is_read_and_its_half_note_is_not_made_up() -> None:
    """Whoever dies between two frames of a note leaves a note that never becomes complete."""
    frames = written(note_of(10_000))
    with pipe() as (reading, writing):
        for data in [*written(("whole",)), *frames[:-1]]:
            os.write(writing, data)
        reader = FrameReader(reading)
        assert reader.drain() == [("whole",)]
        assert reader.drain() == []


def test_a_reader_that_is_gone_is_an_error_of_the_writer() -> None:
    reading, writing = os.pipe()
    writer = FrameWriter(writing)
    os.close(reading)
    with pytest.raises(BrokenPipeError):
        writer.post(("x",))
    os.close(writing)


# --- Garbage. ---


def read_garbage(data: bytes) -> list[Note]:
    with pipe() as (reading, writing):
        os.write(writing, data)
        return FrameReader(reading).drain()


def damaged(note: Note, at: int, byte: int) -> bytes:
    data = bytearray(b"".join(written(note)))
    data[at % len(data)] = byte
    return bytes(data)


@settings(max_examples=300, deadline=None)
@given(data=st.binary(max_size=200))
@example(b"\xff" * 64)
@example(b"\0" * 64)
def test_garbage_raises_nothing_but_the_errors_for_it(data: bytes) -> None:
    with suppress(ProtocolError):
        read_garbage(data)


@settings(max_examples=300, deadline=None)
@given(
    note=st.sampled_from([("ready",), ("staged", "0-N1-1", 7, 10**9, b"\0" * 32), note_of(9000)]),
    at=st.integers(0, 10_000),
    byte=st.integers(0, 255),
)
def test_a_damaged_byte_raises_nothing_but_the_errors_for_it(note: Note, at: int, byte: int) -> None:
    with suppress(ProtocolError):
        read_garbage(damaged(note, at, byte))


@pytest.mark.parametrize(
    "data",
    [
        pytest.param(written(note_of(9000))[1], id="the second part first"),
        pytest.param(written(note_of(9000))[0] * 2, id="the first part twice"),
        pytest.param(written(note_of(9000))[0] + written(note_of(9000))[2], id="a part left out"),
        pytest.param(written(note_of(9000))[0] + written(("x",))[0], id="another note in between"),
        pytest.param(written(note_of(9000))[0] + written(note_of(14_000))[1], id="a part of a longer note"),
        pytest.param(b"\xff\xff" + b"\0" * 4 + b"\0\0\0\1" + b"x" * 100, id="longer than a frame"),
        pytest.param(b"\0\1" + b"\0" * 4 + b"\0" * 4 + b"x", id="one of no parts"),
        pytest.param(b"\0\1" + b"\0" * 4 + b"\0\0\0\1" + b"\xc1", id="not encoded"),
        pytest.param(b"\0\1" + b"\0" * 4 + b"\0\0\0\1" + b"\x05", id="a number for a note"),
        pytest.param(b"\0\0" + b"\0" * 4 + b"\0\0\0\1", id="an empty note"),
    ],
)
def test_what_no_writer_writes_is_an_error_at_once(data: bytes) -> None:
    with pytest.raises(ProtocolError):
        read_garbage(data)
