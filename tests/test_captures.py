"""When a capture forks, and the files that large states stay in; no processes here."""

from __future__ import annotations

import contextlib
import copy
import os
import pickle
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from mpsnap.core.errors import CodecError
from mpsnap.runtime import capture
from mpsnap.runtime.capture import Costs
from mpsnap.runtime.staging import (
    PIPE_BYTES,
    SPARE_BYTES,
    STAGING_BYTES,
    Receipt,
    StagedFile,
    Staging,
    fill,
    open_unnamed,
    receive,
)

MB = 1 << 20

# --- When to fork. ---


def test_nothing_is_known_at_first_and_a_small_process_does_not_fork() -> None:
    costs = Costs()
    costs.captured(0.0001, 30 * MB)
    assert not costs.fork_wins(30 * MB)


@pytest.mark.parametrize(
    ("seconds", "resident", "forks"),
    [
        (0.0049, 10 * MB, False),
        (0.0060, 10 * MB, True),
        # As long as four forks of that size.
        (0.0600, 1024 * MB, False),
        (0.0700, 1024 * MB, True),
    ],
)
def test_a_capture_has_to_take_much_longer_than_a_fork(seconds: float, resident: int, forks: bool) -> None:
    costs = Costs()
    costs.captured(seconds, resident)
    assert costs.fork_wins(resident) is forks


def test_a_fork_that_was_made_says_what_the_next_one_costs() -> None:
    costs = Costs()
    costs.captured(0.1, 100 * MB)
    assert costs.fork_wins(100 * MB)
    costs.forked(0.03, 100 * MB)
    assert not costs.fork_wins(100 * MB)
    assert costs.fork_wins(50 * MB)
    costs.forked(0.003, 100 * MB)
    assert costs.fork_wins(100 * MB)


@pytest.mark.parametrize(("growth", "forks"), [(15 * MB, False), (64 * MB, True), (-64 * MB, False)])
def test_memory_that_came_since_may_be_state(growth: int, forks: bool) -> None:
    costs = Costs()
    costs.captured(0.0001, 200 * MB)
    assert costs.fork_wins(200 * MB + growth) is forks


def test_a_state_that_was_large_and_is_small_again_forks_no_more() -> None:
    costs = Costs()
    costs.captured(1.0, 1000 * MB)
    assert costs.fork_wins(1000 * MB)
    costs.captured(0.0001, 1000 * MB)
    assert not costs.fork_wins(1000 * MB)


def test_what_follows_a_quick_capture_at_once_is_quick() -> None:
    """Neither what follows later, nor what follows a capture that took its time, nor the first one of all."""
    soon, later = capture.SOON_SECONDS / 2, capture.SOON_SECONDS
    costs = Costs()
    assert not costs.negligible(0.0)
    costs.captured(0.0001, 100 * MB)
    costs.looked(10.0)
    assert costs.negligible(10.0 + soon)
    assert not costs.negligible(10.0 + later)
    costs.captured(0.001, 100 * MB)
    assert not costs.negligible(10.0 + soon)


def test_what_the_constants_are_held_against_each_other() -> None:
    """A process without any memory has to wait for the least pause, not for the least fork."""
    assert capture.LEAST_FACTOR * capture.FORK_SECONDS <= capture.LEAST_SECONDS


# --- Files. ---


def staged(folder: Path, data: bytes) -> tuple[Path, Receipt]:
    path = folder / "state"
    with path.open("wb", buffering=0) as file:
        return path, fill(file, data)


@pytest.mark.parametrize("size", [0, 1, MB, 3 * MB + 7])
def test_what_is_filled_in_is_read_back_any_number_of_times(size: int, tmp_path: Path) -> None:
    data = os.urandom(size)
    path, receipt = staged(tmp_path, data)
    file = StagedFile(str(path), receipt)
    assert (file.size, file.read(), file.read()) == (size, data, data)
    file.close()


def test_several_threads_read_one_file(tmp_path: Path) -> None:
    data = os.urandom(2 * MB)
    path, receipt = staged(tmp_path, data)
    file = StagedFile(str(path), receipt)
    read: list[bytes] = []
    threads = [threading.Thread(target=lambda: read.append(file.read())) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert read == [data] * 8
    file.close()


def test_a_file_of_another_size_is_refused_at_once(tmp_path: Path) -> None:
    path, receipt = staged(tmp_path, b"abc")
    with pytest.raises(CodecError, match="3 bytes are in a file that was filled with 4"):
        StagedFile(str(path), receipt._replace(size=4))


def test_a_file_that_has_changed_is_refused_when_it_is_read(tmp_path: Path) -> None:
    path, receipt = staged(tmp_path, b"abc")
    file = StagedFile(str(path), receipt)
    path.write_bytes(b"abd")
    with pytest.raises(CodecError, match="does not hold any more what was captured"):
        file.read()
    path.write_bytes(b"abc")
    assert file.read() == b"abc"
    file.close()


def test_a_closed_file_says_so_and_never_reads_another(tmp_path: Path) -> None:
    path, receipt = staged(tmp_path, b"abc")
    file = StagedFile(str(path), receipt)
    file.close()
    file.close()
    with path.open("rb"), pytest.raises(CodecError, match="given up"):
        file.read()


def test_a_copy_is_the_same_file_and_a_pickle_the_bytes(tmp_path: Path) -> None:
    path, receipt = staged(tmp_path, b"abc")
    file = StagedFile(str(path), receipt)
    assert copy.copy(file) is file
    assert copy.deepcopy([file])[0] is file
    assert pickle.loads(pickle.dumps(file)) == b"abc"
    file.close()


@pytest.fixture
def staging() -> Iterator[Staging]:
    with contextlib.closing(Staging()) as made:
        yield made


def test_the_way_through_a_file_of_another_process(staging: Staging) -> None:
    """This one, as it happens: small things are taken out of their file, large ones stay in it."""
    small, large = b"x" * STAGING_BYTES, b"x" * (STAGING_BYTES + 1)
    assert staging.put_if_large(small[:PIPE_BYTES]) == small[:PIPE_BYTES]
    ticket = staging.put_if_large(small[: PIPE_BYTES + 1])
    assert not isinstance(ticket, bytes), "a pipe does not hold it"
    staging.release(ticket[0])
    for data in (small, large):
        ticket = staging.put(data)
        received = receive(os.getpid(), ticket)
        staging.release(ticket[0])
        assert type(received) is (StagedFile if data is large else bytes)
        assert data == (received if isinstance(received, bytes) else received.read())
        if isinstance(received, StagedFile):
            received.close()


def test_a_file_that_was_read_is_written_over_and_no_other(staging: Staging) -> None:
    pieces = [bytes([k]) * (PIPE_BYTES + size) for k, size in enumerate((9000, 5, 9000, 1))]
    files = set()
    for data in pieces:
        ticket = staging.put_if_large(data)
        assert isinstance(ticket, tuple)
        assert receive(os.getpid(), ticket) == data
        files.add(os.stat(ticket[0]).st_ino)
        staging.release(ticket[0])
    assert len(files) == 1
    # While one is there to be read, the next one gets another.
    first, second = staging.put_if_large(pieces[0]), staging.put_if_large(pieces[1])
    assert len({os.stat(ticket[0]).st_ino for ticket in (first, second) if isinstance(ticket, tuple)}) == 2
    # A state that is released is opened elsewhere, and stays as it is.
    large = bytes(STAGING_BYTES + 1)
    state = staging.put(large)
    kept = receive(os.getpid(), state)
    assert isinstance(kept, StagedFile)
    staging.release(state[0])
    again = staging.put_if_large(pieces[3])
    assert isinstance(again, tuple)
    assert (receive(os.getpid(), again), kept.read()) == (pieces[3], large)
    kept.close()
    for ticket, data in ((first, pieces[0]), (second, pieces[1])):
        assert isinstance(ticket, tuple)
        assert receive(os.getpid(), ticket) == data
        staging.release(ticket[0])


def test_a_large_file_that_was_read_is_given_back(staging: Staging) -> None:
    ticket = staging.put_if_large(bytes(SPARE_BYTES + 1))
    assert isinstance(ticket, tuple)
    staging.release(ticket[0])
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(ticket[0])


def test_a_full_disk_is_told() -> None:
    class Full:
        def write(self, data: bytes) -> int:
            raise OSError(28, "No space left on device")

    before = len(os.listdir("/proc/self/fd"))
    with open_unnamed() as file:
        assert len(os.listdir("/proc/self/fd")) == before + 1
        with pytest.raises(OSError, match="No space"):
            fill(Full(), b"abc")  # type: ignore[arg-type]
        assert fill(file, b"abc").size == 3
    assert len(os.listdir("/proc/self/fd")) == before
