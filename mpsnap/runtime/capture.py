"""Capturing a large state without stopping its node: a child is forked at the cut and encodes what it sees.

This module owns that child, from the fork to its reaping, and the decision to have one. It must not know snapshots
beyond their ids, nor who collects them.

A fork copies page tables and no pages: it takes milliseconds for a gigabyte, and from that moment on the child sees the
memory of the cut, whatever the node does to it. The child encodes the state, writes it into a file that was opened
before, tells its node size and checksum through a pipe of its own, and is gone.

Rules a maintainer keeps:

- The fork is the cut: it comes before any marker leaves, in `fix`, and nothing of the state is read later in the node.
- A child never returns into the node's code, whatever is raised in it, and runs nothing that the node has arranged for
  its end. It writes to its file and its pipe and to nothing else: queues, the board and the epoll are shared with the
  node, and what it does to them it does to the node.
- It dies with its node. Its failure is the snapshot's and not the node's, and where there can be none, because the
  node has threads (one may hold a lock that the child needs), has a child already or cannot fork, encoding in place
  is right and only slow.
- A small state pays for nothing of this.
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import os
import signal
import time
from collections.abc import Callable
from typing import Any, NoReturn, Protocol

from mpsnap.core.blame import blame
from mpsnap.core.driver import Encode
from mpsnap.core.errors import SnapshotError, StoreError
from mpsnap.core.protocol import LocalSnapshot, SnapshotId
from mpsnap.core.snapshot import UnfinishedState
from mpsnap.runtime.frames import FrameReader, FrameWriter, Note
from mpsnap.runtime.staging import STAGING_BYTES

#: What takes less stays in place: a pause as long as a time slice of the scheduler is none to speak of.
LEAST_SECONDS = 0.005
#: So soon after a capture that took next to nothing, another one is quick too: what a node comes by in that time it can
#: encode in a time like that. Then neither clock nor memory is looked at, which takes longer than a small state does.
SOON_SECONDS, NEXT_TO_NOTHING = 0.005, 0.0005
#: How many times longer than the fork a capture in place has to take: a child also costs the node page faults
#: afterwards, and the machine the time of another processor.
LEAST_FACTOR = 4
#: What a file takes in place, where it is filled when the node reports.
STAGING_SECONDS_PER_BYTE = 1e-9
#: Memory that came since the last capture is taken for state of the kind that is encoded fastest, a gigabyte in a
#: second, and then goes to a file; less than that much of it (messages that wait, an import) is taken for nothing.
GROWTH_SECONDS_PER_BYTE = 1e-9 + STAGING_SECONDS_PER_BYTE
GROWTH_BYTES = 16 << 20
#: What a fork is taken to cost until the first one tells: a millisecond, and 15 for each gigabyte.
FORK_SECONDS = 0.001
FORK_SECONDS_PER_BYTE = 0.015 / (1 << 30)
#: How far the child stands back: of equal rank, on a machine whose processors are all busy, it takes its node's turns,
#: which stops the node twice as long as the fork. Much further, and it would not get on there at all.
NICENESS = 5

_PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")
_PR_SET_PDEATHSIG = 1
# Resolved here: the dynamic linker's lock has no place in a forked child.
_prctl = ctypes.CDLL(None).prctl


class Costs:
    """Know what captures of one node have cost so far, and say whether the next one should fork."""

    def __init__(self) -> None:
        #: Processor seconds that the last capture took or would have taken in place, and the bytes resident then.
        self._last = (0.0, 0)
        #: Seconds of a fork: so many, and so many for each byte resident.
        self._fork = FORK_SECONDS
        self._fork_per_byte = FORK_SECONDS_PER_BYTE
        #: When the last capture in place was made.
        self._looked = -SOON_SECONDS

    def captured(self, seconds: float, resident: int) -> None:
        """Note how long a capture took; in processor time, since what else ran meanwhile says nothing of the next."""
        self._last = seconds, resident

    def forked(self, seconds: float, resident: int) -> None:
        """Note how long a fork took; in processor time, or one that was interrupted would seem dear for ever."""
        self._fork, self._fork_per_byte = 0.0, seconds / resident

    def looked(self, now: float) -> None:
        """Note that the last capture was made in place, now."""
        self._looked = now

    def negligible(self, now: float) -> bool:
        """Return whether a capture is certainly quick, whatever is resident: one was, just now."""
        return now - self._looked < SOON_SECONDS and self._last[0] <= NEXT_TO_NOTHING

    def fork_wins(self, resident: int) -> bool:
        """Return whether a fork stops the node so much less than a capture in place that it should be made."""
        seconds, resident_then = self._last
        growth = resident - resident_then
        if growth >= GROWTH_BYTES:
            seconds += growth * GROWTH_SECONDS_PER_BYTE
        fork = self._fork + resident * self._fork_per_byte
        return seconds >= max(LEAST_SECONDS, LEAST_FACTOR * fork)


class File(Protocol):
    """Say what a child fills: a file without a name, or one of a store."""

    def fill(self, data: memoryview) -> tuple[Any, ...]:
        """Write `data` and return the receipt, plain data; raises `OSError` or `StoreError`."""

    def drop(self) -> None:
        """Leave nothing of it, be it filled or not."""


class Encoding(UnfinishedState):
    """Stand for a state that a child encodes."""

    def __init__(self, snapshot_id: SnapshotId, pid: int, notes: FrameReader, file: File, resident: int) -> None:
        self.snapshot_id = snapshot_id
        self.pid = pid
        self.notes = notes
        #: Where the child writes to.
        self.file = file
        #: Bytes resident at the fork.
        self.resident = resident
        #: What is in the file, plain data, once the child has told.
        self.receipt: tuple[Any, ...] | None = None
        #: Why nothing came of it.
        self.error: SnapshotError | None = None
        #: The part that is complete but for this.
        self.local: LocalSnapshot | None = None


class Captures:
    """Fix the states of one node, in place or in a child.

    Args:
        node: The node's name.
        fork: Whether there may be a child at all.
        open_file: Opens a new file for a child to fill.
        watch: Has a function called when a descriptor can be read.
        unwatch: Ends that.
        ended: Is told when a child has made a state, or will not: `receipt` or `error` is set.
    """

    def __init__(
        self,
        node: str,
        fork: bool,
        open_file: Callable[[], File],
        *,
        watch: Callable[[int, Callable[[], None]], None],
        unwatch: Callable[[int], None],
        ended: Callable[[Encoding], None],
    ) -> None:
        self._node = node
        self._may_fork = fork
        self._open_file = open_file
        self._watch = watch
        self._unwatch = unwatch
        self._ended = ended
        self._costs = Costs()
        # Held open: to open it anew would take longer than the capture of a small state.
        self._statm = os.open("/proc/self/statm", os.O_RDONLY | os.O_CLOEXEC)
        #: The child that is at work, and those that are through or killed and not yet gone.
        self._child: Encoding | None = None
        self._ending: set[Encoding] = set()
        #: What is being made, or is made and not yet reported.
        self._open: dict[SnapshotId, Encoding] = {}

    def fix(self, snapshot_id: SnapshotId | None, encode: Encode) -> bytes | Encoding:
        """Fix a state, see `Driver.fix`; at the start, without an id, always in place, which tells what it costs."""
        if not self._may_fork or (snapshot_id is not None and self._costs.negligible(time.monotonic())):
            return encode(bytes)
        resident = self._resident()
        if snapshot_id is not None and self._child is None and self._costs.fork_wins(resident) and not _has_threads():
            encoding = self._begin(snapshot_id, encode, resident)
            if encoding is not None:
                return encoding
        began = time.thread_time()
        state = encode(bytes)
        staging = len(state) * STAGING_SECONDS_PER_BYTE if len(state) > STAGING_BYTES else 0.0
        self._costs.captured(time.thread_time() - began + staging, resident)
        self._costs.looked(time.monotonic())
        return state

    def release(self, encoding: Encoding) -> tuple[File, tuple[Any, ...]]:
        """Forget a state that is reported; return its file, the caller's from now on, and what is in it."""
        assert encoding.receipt is not None
        del self._open[encoding.snapshot_id]
        return encoding.file, encoding.receipt

    def abandon(self, snapshot_id: SnapshotId) -> bool:
        """Give up what was being made for a snapshot and return whether a child was at it."""
        encoding = self._open.pop(snapshot_id, None)
        if encoding is None:
            return False
        encoding.file.drop()
        if encoding is not self._child:
            return False
        self._dismiss(encoding)
        _kill(encoding.pid)
        return True

    def close(self) -> None:
        """Leave no child behind."""
        for snapshot_id in tuple(self._open):
            self.abandon(snapshot_id)
        for encoding in tuple(self._ending):
            self._reap(encoding)

    # ------------------------------------------------------------------- the node

    def _resident(self) -> int:
        return int(os.pread(self._statm, 128, 0).split()[1]) * _PAGE_BYTES

    def _begin(self, snapshot_id: SnapshotId, encode: Encode, resident: int) -> Encoding | None:
        try:
            began = time.thread_time()
            pid, reading, file = _fork(encode, self._open_file)
        except (OSError, StoreError):
            # No descriptor, memory, process or disk is left: the slow way needs less, and tells what it lacks.
            return None
        self._costs.forked(time.thread_time() - began, resident)
        encoding = Encoding(snapshot_id, pid, FrameReader(reading), file, resident)
        self._open[snapshot_id] = self._child = encoding
        self._watch(reading, lambda: self._read(encoding))
        return encoding

    def _read(self, encoding: Encoding) -> None:
        for note in encoding.notes.read():
            self._take(encoding, note)
        if encoding.notes.ended:
            at_work = encoding is self._child
            self._dismiss(encoding)
            status = self._reap(encoding)
            if at_work:
                self._fail(encoding, SnapshotError(f"the process that encoded its state {status}", where=self._node))

    def _take(self, encoding: Encoding, note: Any) -> None:
        if encoding is not self._child:
            return  # It was given up just before.
        self._dismiss(encoding)
        kind, *content = note
        if kind == "failed":
            what, where, hint = content
            self._fail(encoding, SnapshotError(what, where=where, hint=hint))
            return
        seconds, *receipt = content
        self._costs.captured(seconds, encoding.resident)
        encoding.receipt = tuple(receipt)
        self._ended(encoding)

    def _fail(self, encoding: Encoding, error: SnapshotError) -> None:
        encoding.error = error
        self.abandon(encoding.snapshot_id)
        self._ended(encoding)

    def _dismiss(self, encoding: Encoding) -> None:
        """Have room for another child: this one has nothing more to say, though its memory may not be gone yet."""
        self._ending.add(encoding)
        if encoding is self._child:
            self._child = None

    def _reap(self, encoding: Encoding) -> str:
        """Collect a child that has ended or was killed; return how it ended, in words."""
        # In this order: a registration outlives its descriptor for as long as a fork has a copy of it.
        self._unwatch(encoding.notes.fd)
        os.close(encoding.notes.fd)
        self._ending.remove(encoding)
        try:
            _, status = os.waitpid(encoding.pid, 0)
        except ChildProcessError:
            return "ended; the node's own code has taken its status"
        code = os.waitstatus_to_exitcode(status)
        if code >= 0:
            return f"ended with status {code}"
        # Not every signal has a name.
        return "was killed by " + next((known.name for known in signal.Signals if known == -code), f"signal {-code}")


def _fork(encode: Encode, open_file: Callable[[], File]) -> tuple[int, int, File]:
    """Have a child encode; return its pid, the pipe that it tells by, and the file that it fills."""
    node = os.getpid()
    with contextlib.ExitStack() as undo:
        file = open_file()
        undo.callback(file.drop)
        reading, writing = os.pipe()
        undo.callback(os.close, reading)
        try:
            pid = os.fork()
            if pid == 0:
                _encode_and_exit(node, encode, file, writing)
        finally:
            os.close(writing)
        undo.pop_all()
        return pid, reading, file


def _has_threads() -> bool:
    # Not those that Python knows: a library's own threads hold locks too.
    return len(os.listdir("/proc/self/task")) > 1


def _kill(pid: int) -> None:
    # Its pipe is open, so it lives; but it may just be ending, and who waits for any child may have reaped it.
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)


# ------------------------------------------------------------------------ the child


def _encode_and_exit(node: int, encode: Encode, file: File, writing: int) -> NoReturn:
    """Be the child: encode, tell, and end without a trace, whatever is raised."""
    status = 1
    try:
        _prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        # The node may have died before the line above; nothing tells that later.
        if os.getppid() == node:
            # A collection would write to every object's header, and so copy every page.
            gc.disable()
            # No handler of the node's may run here, but this must end when it is asked to.
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
            signal.pthread_sigmask(signal.SIG_SETMASK, signal.valid_signals() - {signal.SIGTERM})
            _offer_to_the_kernel()
            os.nice(NICENESS)
            results = FrameWriter(writing)
            # A pipe of its own, with nothing else to do: here it may wait.
            os.set_blocking(writing, True)
            results.post(_encoded(encode, file))
            status = 0
    finally:
        os._exit(status)


def _offer_to_the_kernel() -> None:
    """Have the child killed first where memory runs out: of all processes here only it can be spared."""
    with contextlib.suppress(OSError), open("/proc/self/oom_score_adj", "w") as file:  # a sandbox may not have it
        file.write("1000")


def _encoded(encode: Encode, file: File) -> Note:
    def keep(view: memoryview) -> Note:
        try:
            receipt = file.fill(view)
        except (OSError, StoreError) as error:
            raise SnapshotError(f"staging its state failed: {error}") from error
        return "done", time.thread_time() - began, *receipt

    began = time.thread_time()
    try:
        return encode(keep)
    except BaseException as error:  # what is not told is not known
        blamed = blame(error)
        return "failed", blamed.what, blamed.where, blamed.hint
