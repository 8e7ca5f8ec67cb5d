"""What mpsnap's channels are measured against: the same work over queues, a pipe, pyzmq and MPI.

This module owns those programs, the payloads that both sides send, and how a running process is asked for its count. It
must not know mpsnap.

Every process of a peer answers a signal with what it has counted and when, as a node answers a command: so the loops
that are measured hold nothing but what they are there for. They never end; whoever asked kills them, and so there is
no last message that a closing sender could drop.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import pickle
import random
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, partial
from importlib.util import find_spec
from multiprocessing.connection import Connection, wait
from multiprocessing.queues import Queue
from pathlib import Path
from typing import Any, NamedTuple

FORK = multiprocessing.get_context("fork")
#: Messages that a producer makes at a time.
BURST = 256
#: Messages that a queue holds whose producer sends without end, and a channel of mpsnap before its sender pauses.
BOUND = 4096
#: How long a process may take to begin, or to answer.
PATIENCE_SECONDS = 30.0
#: What a sender computes right after a send, and how long it leaves the channel quiet before the next.
COMPUTE_SECONDS, QUIET_SECONDS = 0.020, 0.010


@dataclass(frozen=True)
class Sample:
    """Be a payload of three fields."""

    id: int
    name: str
    value: float


#: What producers send, by name: from a message's number to it and the following ones of a burst. No two are one object,
#: which pickle would write once.
PAYLOADS: Mapping[str, Callable[[int], list[Any]]] = {
    "(int, int)": lambda first: [(k, k + 1) for k in range(first, first + BURST)],
    "100 bytes": lambda first: [k.to_bytes(100, "little") for k in range(first, first + BURST)],
    "10 kB": lambda first: [k.to_bytes(10_000, "little") for k in range(first, first + BURST)],
    "list": lambda first: [[k, k + 1, "abc"] for k in range(first, first + BURST)],
    "dict": lambda first: [{"id": k, "name": "abc"} for k in range(first, first + BURST)],
    "dataclass": lambda first: [Sample(k, "abc", 0.5) for k in range(first, first + BURST)],
}


class Reading(NamedTuple):
    """Say how many messages a process had taken at a time, both by its own account."""

    taken: int
    at: int


def reading(taken: int) -> Reading:
    """Return a count with the time of now."""
    return Reading(taken, time.perf_counter_ns())


def rate(read: Callable[[], Sequence[Reading]], seconds: float) -> float:
    """Return messages taken per second by those who are read, in a window that begins after a warm-up.

    The window is longer if nothing arrived in it.
    """
    pause(seconds / 2)
    before = read()
    for _ in range(int(PATIENCE_SECONDS / seconds)):
        pause(seconds)
        found = sum((b.taken - a.taken) / (b.at - a.at) * 1e9 for a, b in zip(before, read(), strict=True))
        if found:
            return found
    raise TimeoutError(f"no message arrived in {PATIENCE_SECONDS:g} s")


def pause(seconds: float) -> None:
    """Let a window pass."""
    threading.Event().wait(seconds)


def compute(seconds: float) -> None:
    """Keep the interpreter busy."""
    until = time.perf_counter() + seconds
    while time.perf_counter() < until:
        pass


class Processes:
    """Run functions as processes, ask them, and leave none behind.

    Each function is given a `Connection`, on which it `answer`s before it begins.
    """

    def __init__(self, *targets: Callable[[Connection], None]) -> None:
        self._pipes = [FORK.Pipe(duplex=False) for _ in targets]
        self._processes = [
            FORK.Process(target=target, args=(answers,), daemon=True)
            for target, (_, answers) in zip(targets, self._pipes, strict=True)
        ]

    def __enter__(self) -> Processes:
        try:
            for process in self._processes:
                process.start()
            for which in range(len(self._processes)):
                # A signal to a process that is not ready for it would be its end.
                self._receive(which)
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        started = [process for process in self._processes if process.pid is not None]
        for process in started:
            process.kill()
        for process in started:
            process.join()
            process.close()
        for pipe in self._pipes:
            for end in pipe:
                end.close()

    def ask(self, which: int) -> Any:
        """Return what one process answers now."""
        pid = self._processes[which].pid
        assert pid is not None
        os.kill(pid, signal.SIGUSR1)
        return self._receive(which)

    def _receive(self, which: int) -> Any:
        answers = self._pipes[which][0]
        if not answers.poll(PATIENCE_SECONDS):
            raise TimeoutError(f"process {which} does not answer; its exit status is {self._processes[which].exitcode}")
        return answers.recv()


def answer(answers: Connection, what: Callable[[], Any] = lambda: None) -> None:
    """Answer whoever asks this process from now on."""
    signal.signal(signal.SIGUSR1, lambda *_: answers.send(what()))
    # Ctrl-C reaches every process of the terminal; only the one that measures answers it, and kills the others.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    answers.send("ready")


# ------------------------------------------------------------------- one way


def queue_rate(payload: str, seconds: float) -> float:
    """Return messages per second by `put` and `get` of one message each."""
    # Without a bound the producer would starve the thread that writes for it, and take memory without end.
    queue: Queue[Any] = FORK.Queue(BOUND)
    with Processes(partial(_put, queue, payload), partial(_get, queue)) as processes:
        found = rate(lambda: [processes.ask(1)], seconds)
    queue.close()
    return found


def _put(queue: Queue[Any], payload: str, answers: Connection) -> None:
    answer(answers)
    make, first = PAYLOADS[payload], 0
    while True:
        for each in make(first):
            queue.put(each)
        first += BURST


def _get(queue: Queue[Any], answers: Connection) -> None:
    count = 0
    answer(answers, lambda: reading(count))
    while True:
        queue.get()
        count += 1


def pipe_rate(payload: str, seconds: float) -> float:
    """Return messages per second through a pipe that carries them as pickled lists: about what can be had."""
    reader, writer = FORK.Pipe(duplex=False)
    with Processes(partial(_send_lists, writer, payload), partial(_receive_lists, reader)) as processes:
        found = rate(lambda: [processes.ask(1)], seconds)
    reader.close()
    writer.close()
    return found


def _send_lists(writer: Connection, payload: str, answers: Connection) -> None:
    answer(answers)
    make, first = PAYLOADS[payload], 0
    while True:
        writer.send(make(first))
        first += BURST


def _receive_lists(reader: Connection, answers: Connection) -> None:
    count = 0
    answer(answers, lambda: reading(count))
    while True:
        count += len(reader.recv())


def zmq_rate(payload: str, seconds: float) -> float:
    """Return messages per second from a PUSH to a PULL socket over ipc; all but bytes are pickled one by one."""
    with tempfile.TemporaryDirectory(prefix="benchmark-") as folder:
        address = f"ipc://{folder}/socket"
        with Processes(partial(_push, address, payload), partial(_pull, address, payload)) as processes:
            return rate(lambda: [processes.ask(1)], seconds)


def _push(address: str, payload: str, answers: Connection) -> None:
    import zmq

    answer(answers)
    push = zmq.Context().socket(zmq.PUSH)
    push.bind(address)
    make, first = PAYLOADS[payload], 0
    plain = type(make(0)[0]) is bytes
    while True:
        if plain:
            for each in make(first):
                push.send(each)
        else:
            for each in make(first):
                push.send(pickle.dumps(each, pickle.HIGHEST_PROTOCOL))
        first += BURST


def _pull(address: str, payload: str, answers: Connection) -> None:
    import zmq

    count = 0
    answer(answers, lambda: reading(count))
    pull = zmq.Context().socket(zmq.PULL)
    pull.connect(address)
    if type(PAYLOADS[payload](0)[0]) is bytes:
        while True:
            pull.recv()
            count += 1
    while True:
        pickle.loads(pull.recv())
        count += 1


def mpi_rate(payload: str, seconds: float) -> float:
    """Return messages per second by `isend` and `recv` of one object each, as the two ranks of an MPI run find it."""
    return _mpi_run([_mpiexec() or "mpiexec", *_MPI_OPTIONS, sys.executable, "-m", __name__, payload, str(seconds)])


#: Ranks that yield when they wait, on whichever core: on a machine with other work, those that spin carry a fifth.
_MPI_OPTIONS = ("-n", "2", "--oversubscribe", "--bind-to", "none", "--mca", "mpi_yield_when_idle", "1")
#: Open MPI refuses to run as root otherwise.
_MPI_AS_ROOT = {"OMPI_ALLOW_RUN_AS_ROOT": "1", "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1"}


def _mpiexec() -> str | None:
    # That of the environment this interpreter is in goes with its mpi4py.
    beside = Path(sys.executable).with_name("mpiexec")
    return str(beside) if beside.exists() else shutil.which("mpiexec")


def _mpi_run(command: Sequence[str]) -> float:
    process = subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, **_MPI_AS_ROOT},
        cwd=Path(__file__).parent.parent,
    )
    try:
        printed, complaint = process.communicate(timeout=PATIENCE_SECONDS)
    except BaseException:
        # It ends its ranks on this signal; killed, it would leave them behind.
        process.terminate()
        process.communicate(timeout=PATIENCE_SECONDS)
        raise
    if process.returncode:
        raise RuntimeError(f"mpiexec failed: {' '.join(complaint.split()) or process.returncode}")
    return float(json.loads(printed)["rate"])


#: Tag of what follows the last message: how many there were.
_MPI_END = 1


def mpi_rank(payload: str, seconds: float) -> None:
    """Be one of the two ranks; the one that receives prints what it finds."""
    from mpi4py import MPI

    if MPI.COMM_WORLD.rank == 0:
        _mpi_send(MPI, payload)
    else:
        print(json.dumps({"rate": _mpi_receive(MPI, seconds)}))


def _mpi_send(mpi: Any, payload: str) -> None:
    comm, make, first = mpi.COMM_WORLD, PAYLOADS[payload], 0
    while not comm.iprobe(source=1):
        mpi.Request.waitall([comm.isend(each, 1) for each in make(first)])
        first += BURST
    comm.recv(source=1)
    comm.send(first, 1, tag=_MPI_END)


def _mpi_receive(mpi: Any, seconds: float) -> float:
    comm = mpi.COMM_WORLD
    count = 0

    def receive_for(span: float) -> Reading:
        nonlocal count
        until = time.perf_counter() + span
        while time.perf_counter() < until:
            for _ in range(BURST):
                comm.recv(source=0, tag=0)
            count += BURST
        return reading(count)

    before = receive_for(seconds / 2)
    after = receive_for(seconds)
    comm.send(None, 0)
    status = mpi.Status()
    while True:
        last = comm.recv(source=0, status=status)
        if status.tag == _MPI_END:
            break
        count += 1
    assert last == count, "MPI lost or doubled a message"
    return (after.taken - before.taken) / (after.at - before.at) * 1e9


@cache
def missing(peer: str) -> str | None:
    """Return why a peer cannot be measured here and what to install, None if it can."""
    hint = "`pip install -e '.[peers]'`"
    if peer == "pyzmq":
        return None if find_spec("zmq") else f"pyzmq is not installed: {hint}"
    if find_spec("mpi4py") is None or _mpiexec() is None:
        return f"mpi4py or mpiexec is not installed: {hint}"
    try:
        mpi_rate("(int, int)", 0.01)
    except (RuntimeError, OSError, ValueError, subprocess.TimeoutExpired) as error:
        return f"mpi4py does not run: {error}"
    return None


# -------------------------------------------------------------------- tokens


def tokens_rate(channels: Sequence[tuple[str, str]], tokens: int, seconds: float) -> float:
    """Return messages taken per second by processes that pass tokens to random neighbours, a queue per channel."""
    queues: dict[tuple[str, str], Queue[int]] = {channel: FORK.Queue() for channel in channels}
    names = sorted({src for src, _ in channels})
    nodes = [
        partial(
            _pass_tokens,
            [queue for (_, dst), queue in queues.items() if dst == name],
            [queue for (src, _), queue in queues.items() if src == name],
            range(k * tokens, (k + 1) * tokens),
        )
        for k, name in enumerate(names)
    ]
    with Processes(*nodes) as processes:
        found = rate(lambda: [processes.ask(which) for which in range(len(nodes))], seconds)
    for queue in queues.values():
        queue.close()
    return found


def _pass_tokens(
    inbound: Sequence[Queue[int]], outbound: Sequence[Queue[int]], tokens: range, answers: Connection
) -> None:
    taken = 0
    answer(answers, lambda: reading(taken))
    draw = random.Random(0)
    for token in tokens:
        outbound[token % len(outbound)].put(token)
    by_reader = {queue._reader: queue for queue in inbound}  # type: ignore[attr-defined]
    while True:
        for reader in wait(list(by_reader)):
            token = by_reader[reader].get()
            taken += 1
            draw.choice(outbound).put(token)


# ------------------------------------------------------------------- latency


def round_trip(seconds: float) -> float:
    """Return the median time, in nanoseconds, of a message to another process and back, over two queues."""
    there: Queue[int] = FORK.Queue()
    back: Queue[int] = FORK.Queue()
    with Processes(partial(_go_round, there, back), partial(_echo, there, back)) as processes:
        found = median_after_warm_up(lambda: processes.ask(0), seconds)
    there.close()
    back.close()
    return found


def median_after_warm_up(take: Callable[[], Sequence[int]], seconds: float) -> float:
    """Return the median of what was measured in a window; `take` returns what was since it was last called."""
    pause(seconds / 2)
    take()
    found: list[int] = []
    while not found:
        pause(seconds)
        found += take()
    return statistics.median(found)


def _go_round(there: Queue[int], back: Queue[int], answers: Connection) -> None:
    times: list[int] = []
    answer(answers, lambda: _emptied(times))
    while True:
        began = time.perf_counter_ns()
        there.put(0)
        back.get()
        times.append(time.perf_counter_ns() - began)


def _emptied(times: list[int]) -> list[int]:
    taken = times[:]
    times.clear()
    return taken


def _echo(there: Queue[int], back: Queue[int], answers: Connection) -> None:
    answer(answers)
    while True:
        back.put(there.get())


def first_delivery(seconds: float) -> float:
    """Return the median time, in nanoseconds, until a message arrives whose sender computes right after `put`."""
    queue: Queue[int] = FORK.Queue()
    with Processes(partial(_put_and_compute, queue), partial(_take_times, queue)) as processes:
        found = median_after_warm_up(lambda: processes.ask(1), seconds)
    queue.close()
    return found


def _put_and_compute(queue: Queue[int], answers: Connection) -> None:
    answer(answers)
    while True:
        time.sleep(QUIET_SECONDS)
        queue.put(time.perf_counter_ns())
        compute(COMPUTE_SECONDS)


def _take_times(queue: Queue[int], answers: Connection) -> None:
    times: list[int] = []
    answer(answers, lambda: _emptied(times))
    while True:
        sent = queue.get()
        times.append(time.perf_counter_ns() - sent)


if __name__ == "__main__":
    mpi_rank(sys.argv[1], float(sys.argv[2]))
