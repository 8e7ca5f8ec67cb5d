"""One generation of all node processes, with everything that belongs to it.

This module owns spawning, fencing and reaping, and every queue, pipe, process and descriptor of one incarnation: they
are made together and dropped together. It must not know snapshots.

Rules a maintainer keeps:

- A queue that lost an end is never repaired or used again; whoever goes on after a death makes a new incarnation.
- Nodes are killed and waited for by pidfd. `Process.kill` and `is_alive` are not enough: once a forkserver is dead they
  report exit status 255 for nodes that are alive, and the kill does nothing.
- Every queue is held until all nodes are dead. Dropped earlier, a node that is still starting under spawn or forkserver
  finds its semaphores gone.
- Never `waitpid(-1)`: it steals the status of somebody else's child.
"""

from __future__ import annotations

import atexit
import contextlib
import errno
import gc
import multiprocessing.process
import multiprocessing.util
import os
import select
import signal
import time
import weakref
from collections.abc import Iterator, Mapping
from functools import partial
from multiprocessing import forkserver
from multiprocessing.connection import Connection
from multiprocessing.context import BaseContext, ForkServerProcess
from multiprocessing.process import BaseProcess
from multiprocessing.queues import Queue
from typing import Any, NamedTuple

from mpsnap.core.errors import ClusterError, NodeError
from mpsnap.core.program import Program
from mpsnap.core.topology import Channel, Topology
from mpsnap.runtime import lifeline
from mpsnap.runtime.board import Board, in_phase
from mpsnap.runtime.channel import close_reader, close_writer, reader_fd, writer_fd
from mpsnap.runtime.failpoints import Failpoint
from mpsnap.runtime.frames import FrameReader, FrameWriter
from mpsnap.runtime.journal import JournalSpec
from mpsnap.runtime.process import NodeSpec, node_main
from mpsnap.store.contract import Origin, Place
from mpsnap.store.manifest import Manifest

#: How long the fence waits for a killed process; the kernel needs milliseconds, a process in disk sleep more.
FENCE_SECONDS = 5.0
#: Exit status of a process that starts a cluster while it is itself being started by one.
EXIT_NO_MAIN_GUARD = 78


class Endpoints(NamedTuple):
    """Hold the supervisor's side of one node."""

    process: BaseProcess
    #: By them multiprocessing would notice the end of the process, and the process that of this one.
    sentinels: tuple[int, ...]
    #: Readable when the process has ended.
    pidfd: int
    pid: int
    control: FrameWriter
    results: FrameReader


class Incarnation:
    """Spawn all nodes of a cluster; hold them until `close`.

    Args:
        number: Part of every snapshot id; counts up.
        topology: Nodes and channels.
        programs: What each node runs.
        context: The one multiprocessing context of the cluster.
        seed: Of the run.
        window: Messages of one channel that may be sent and not taken before its sender pauses.
        journals: Where each node keeps its journal; empty for none.
        fork_captures: Whether nodes with large states fork at the cut.
        place: Where nodes have their parts of snapshots staged, None without a store.
        restored: The manifest of the snapshot to go on from, and what nodes are restored from; None for a fresh start.
        failpoints: Where nodes are to come to harm; empty outside of tests.
    """

    def __init__(
        self,
        number: int,
        topology: Topology,
        programs: Mapping[str, Program],
        context: BaseContext,
        *,
        seed: int,
        window: int,
        journals: Mapping[str, JournalSpec],
        fork_captures: bool,
        place: Place | None,
        restored: tuple[Manifest, Origin] | None,
        failpoints: Mapping[str, tuple[Failpoint, ...]],
    ) -> None:
        self.number = number
        self.topology = topology
        self.board = Board(context, topology)
        self.nodes: dict[str, Endpoints] = {}
        self._context = context
        self._queues: dict[Channel, Queue[Any]] = {}
        self._results: dict[str, Queue[Any]] = {}
        #: Per node, the read and write ends of its control pipe and its life pipe.
        self._control: dict[str, tuple[Connection, Connection]] = {}
        self._life: dict[str, tuple[Connection, Connection]] = {}
        self._journals = journals
        self._fork_captures = fork_captures
        self._place = place
        self._failpoints = failpoints
        self._origin: Origin | None = None
        if restored is not None:
            manifest, self._origin = restored
            for channel in topology.channels:
                sent = manifest.nodes[channel.src].sent[channel.dst]
                self.board.go_on(channel, sent, manifest.nodes[channel.dst].received[channel.src])
        #: What a forked node inherits, and closes if it is not its own.
        self._descriptors: frozenset[int] = frozenset()
        self._closed = False
        lifeline.forget_in_children(self)
        _living.add(self)
        try:
            self._make_channels()
            if context.get_start_method() == "forkserver":
                _start_forkserver()
            with _signals_held():
                for index, node in enumerate(topology.nodes):
                    self._spawn(index, node, programs, seed, window)
        except BaseException:
            self.kill()
            self.close()
            raise

    # -------------------------------------------------------------- spawning

    def _make_channels(self) -> None:
        for channel in self.topology.channels:
            self._queues[channel] = self._context.Queue()
        for node in self.topology.nodes:
            self._results[node] = self._context.Queue()
            self._control[node] = self._context.Pipe(duplex=False)
            self._life[node] = self._context.Pipe(duplex=False)
        if self._context.get_start_method() == "fork":
            _exempt_from_resets([*self._queues.values(), *self._results.values()])
            self._descriptors = self._all_descriptors()

    def _all_descriptors(self) -> frozenset[int]:
        """Return the descriptors of all of it but the writing ends of the life pipes, which `forget` closes."""
        queues = [*self._queues.values(), *self._results.values()]
        pipes = [*(end for ends in self._control.values() for end in ends), *(read for read, _ in self._life.values())]
        return frozenset((*map(reader_fd, queues), *map(writer_fd, queues), *(pipe.fileno() for pipe in pipes)))

    def _descriptors_of(self, node: str) -> set[int]:
        """Return those among them that the process of `node` closes itself, when it is done with them."""
        queues = [
            *(self._queues[Channel(src, node)] for src in self.topology.inbound(node)),
            *(self._queues[Channel(node, dst)] for dst in self.topology.outbound(node)),
            self._results[node],
        ]
        pipes = (self._control[node][0], self._life[node][0])
        return {*map(reader_fd, queues), *map(writer_fd, queues), *(pipe.fileno() for pipe in pipes)}

    def _spawn(self, index: int, node: str, programs: Mapping[str, Program], seed: int, window: int) -> None:
        spec = NodeSpec(
            name=node,
            program=programs[node],
            references=frozenset(each.reference for each in programs.values()),
            inbound={src: self._queues[Channel(src, node)] for src in self.topology.inbound(node)},
            outbound={dst: self._queues[Channel(node, dst)] for dst in self.topology.outbound(node)},
            results=self._results[node],
            control=self._control[node][0],
            life=self._life[node][0],
            board=self.board,
            unreachable=self.topology.unreachable_from(node),
            incarnation=self.number,
            seed=seed,
            window=window,
            journal=self._journals.get(node),
            fork_captures=self._fork_captures,
            index=index,
            place=self._place,
            origin=self._origin,
            failpoints=self._failpoints.get(node, ()),
        )
        forked = self._context.get_start_method() == "fork"
        release = partial(self._release, self._descriptors - self._descriptors_of(node)) if forked else None
        process: BaseProcess = self._context.Process(  # type: ignore[attr-defined]
            target=node_main, args=(spec, release), name=f"mpsnap-{node}", daemon=True
        )
        try:
            process.start()
        except (EOFError, ConnectionError) as error:
            raise ClusterError(
                f"the forkserver died while starting {node}: {type(error).__name__}: {error}",
                where=node,
                hint="putting the script's start under if __name__ == '__main__':, or start_method='spawn'",
            ) from error
        except OSError as error:
            raise ClusterError(f"{node} could not be started: {error}", where=node) from error
        assert process.pid is not None
        pidfd = _open_pidfd(process)
        # It does so itself too, but only when it has imported what it needs.
        lifeline.tie_child(self._life[node][0].fileno(), process.pid, pidfd)
        control = FrameWriter(self._control[node][1].fileno())
        results = FrameReader(reader_fd(self._results[node]))
        self.nodes[node] = Endpoints(process, _sentinels(process), pidfd, process.pid, control, results)

    def forget(self) -> None:
        """Close, in a forked child, the ends that keep nodes alive, the pidfds and the sentinels."""
        for _, write in self._life.values():
            write.close()
        for endpoints in self.nodes.values():
            # multiprocessing closes its sentinels in the process that made them only, so not here, and not again.
            for fd in (endpoints.pidfd, *endpoints.sentinels):
                os.close(fd)
        # The nodes are not this process's; it must not end them when it exits, as multiprocessing does with children.
        _children().difference_update(each.process for each in self.nodes.values())
        self.nodes.clear()

    def _release(self, foreign: frozenset[int]) -> None:
        """Close, in a forked node, the descriptors that belong to other nodes or to the supervisor.

        By number: to close an object is to write to its memory, and with thousands of them the node would get a copy of
        nearly all that it shares with the supervisor. They stay as they are until the node ends, and nothing may close
        them after this: their numbers soon belong to other files.
        """
        self._closed = True
        # The collector, too, writes to all that it looks at.
        gc.freeze()
        for fd in foreign:
            os.close(fd)

    # ---------------------------------------------------------------- ending

    def signal(self, node: str, number: int) -> None:
        """Send a signal to one node; nothing happens if it is dead."""
        pidfd = self.nodes[node].pidfd
        if _ended(pidfd):
            return
        try:
            signal.pidfd_send_signal(pidfd, number)
        except OSError as error:
            # It has died in between; or what stands in for its pidfd, since it was dead before that, is about to tell.
            if error.errno not in (errno.ESRCH, errno.EBADF):
                raise

    def alive(self) -> list[str]:
        """Return the nodes whose process has not ended."""
        return [node for node, endpoints in self.nodes.items() if not _ended(endpoints.pidfd)]

    def death(self, node: str) -> NodeError:
        """Return how a dead node has ended, as the failure that it is unless the node was to end."""
        self._reap(self.nodes[node])
        phase = self.board.phase(node)
        status = status_in_words(self.nodes[node].process.exitcode, self._context.get_start_method())
        # By itself, that is: a signal that came that early has nothing to do with the script.
        unguarded = phase == "starting" and not status.startswith("killed")
        return NodeError(
            f"{node} died {in_phase(phase)}: {status}",
            node=node,
            phase=phase,
            status=status,
            where=node,
            hint="the start of the cluster under if __name__ == '__main__':" if unguarded else None,
        )

    def _reap(self, endpoints: Endpoints) -> None:
        """Collect the status of a dead process."""
        if self._context.get_start_method() == "forkserver" or not _ended(endpoints.pidfd):
            endpoints.process.join(timeout=FENCE_SECONDS)
        else:
            # With a timeout it would wait for the end of a pipe that whatever the node has forked still holds.
            endpoints.process.join()

    def kill(self) -> None:
        """Fence: kill every node, also a stopped one, and return when none is left.

        Raises:
            ClusterError: A process did not end within 5 seconds of SIGKILL.
        """
        for node in self.nodes:
            self.signal(node, signal.SIGKILL)
        deadline = time.monotonic() + FENCE_SECONDS
        for endpoints in self.nodes.values():
            poll = select.poll()
            poll.register(endpoints.pidfd, select.POLLIN)
            poll.poll(max(0, int((deadline - time.monotonic()) * 1000)))
        left = self.alive()
        if left:
            raise ClusterError(f"{', '.join(left)} did not end after SIGKILL", where=left[0])

    def close(self) -> None:
        """Reap every node and give every descriptor and semaphore back; all nodes must be dead."""
        if self._closed:
            return
        self._closed = True
        for endpoints in self.nodes.values():
            self._reap(endpoints)
            try:
                endpoints.process.close()
            except ValueError:
                # Somebody who ignores SIGCHLD, or waits for any child, has taken the status. The pidfd has told the
                # death, and multiprocessing would wait for this process at every exit and every start.
                _children().discard(endpoints.process)
            os.close(endpoints.pidfd)
        for queue in [*self._queues.values(), *self._results.values()]:
            close_reader(queue)
            close_writer(queue)
        for read, write in [*self._control.values(), *self._life.values()]:
            read.close()
            write.close()
        for kept in (self.nodes, self._queues, self._results, self._control, self._life):
            kept.clear()


def _exempt_from_resets(queues: list[Queue[Any]]) -> None:
    """Have multiprocessing leave the locks and buffers of queues alone in the processes that it forks.

    Channels use neither. To reset those of all channels in every node takes longer than all else at the start, and
    gives each node a copy of the memory they are in.
    """
    parts = {id(part) for queue in queues for part in (queue, *vars(queue).values())}
    # There is no public way to take one out.
    registry: weakref.WeakValueDictionary[tuple[int, int, object], object]
    registry = multiprocessing.util._afterfork_registry  # type: ignore[attr-defined]
    for key in [key for key in registry if key[1] in parts]:
        registry.pop(key, None)


def _start_forkserver() -> None:
    # Not with signals held: it would pass that on to every process it ever starts, other people's too.
    try:
        forkserver.ensure_running()
    except OSError as error:
        raise ClusterError(f"the forkserver could not be started: {error}", hint="start method spawn") from error


@contextlib.contextmanager
def _signals_held() -> Iterator[None]:
    """Hold back SIGINT and SIGTERM in this thread and in the processes started meanwhile.

    A Ctrl-C must not come between the start of a process and the note of it here, and must not kill the nodes with a
    traceback each while they are still importing; they let signals through when they have seen to them.
    """
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGTERM})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _kill_leftovers() -> None:
    """Kill the nodes of a program that exits without having stopped its cluster.

    multiprocessing would send them SIGTERM and wait, for ever if one of them is stopped.
    """
    for incarnation in list(_living):
        for node in incarnation.nodes:
            incarnation.signal(node, signal.SIGKILL)


_living: weakref.WeakSet[Incarnation] = weakref.WeakSet()
atexit.register(_kill_leftovers)


def _children() -> set[BaseProcess]:
    """Return the processes for which multiprocessing feels responsible; it has no public way to let one go."""
    children: set[BaseProcess] = multiprocessing.process._children  # type: ignore[attr-defined]
    return children


def _sentinels(process: BaseProcess) -> tuple[int, ...]:
    """Return both of the descriptors that multiprocessing keeps for a process; only one has a public name."""
    return tuple(process._popen.finalizer._args)  # type: ignore[attr-defined]


def _open_pidfd(process: BaseProcess) -> int:
    """Return what becomes readable when a process that was just started has ended, and stays so.

    That is its pidfd, unless it is dead already and somebody, such as its forkserver, has reaped it: then its number is
    nobody's or another's, and what else tells its end stands in.
    """
    assert process.pid is not None
    try:
        pidfd = os.pidfd_open(process.pid)
    except ProcessLookupError:
        if isinstance(process, ForkServerProcess):
            return os.dup(process.sentinel)
        # Any process that it has left behind would keep its sentinel from telling.
        reading, writing = os.pipe()
        os.close(writing)
        return reading
    # Only a forkserver's sentinel tells the end of the process and nothing else; and only there is it not our child,
    # whose number stays its own until we reap it.
    if isinstance(process, ForkServerProcess) and _ended(process.sentinel):
        os.close(pidfd)
        return os.dup(process.sentinel)
    return pidfd


def _ended(pidfd: int) -> bool:
    poll = select.poll()
    poll.register(pidfd, select.POLLIN)
    return bool(poll.poll(0))


def status_in_words(exitcode: int | None, start_method: str) -> str:
    """Say what an exit status means.

    >>> status_in_words(-9, "spawn")
    'killed by SIGKILL (kill -9, or the kernel out of memory)'
    """
    if exitcode is None or (exitcode == 255 and start_method == "forkserver"):
        # A forkserver that died takes the statuses of its children with it.
        return "exit status unknown"
    if exitcode == EXIT_NO_MAIN_GUARD:
        return "importing the main script starts a cluster again"
    if exitcode >= 0:
        return f"exit status {exitcode}"
    try:
        name = signal.Signals(-exitcode).name
    except ValueError:
        name = f"signal {-exitcode}"
    reason = " (kill -9, or the kernel out of memory)" if name == "SIGKILL" else ""
    return f"killed by {name}{reason}"
