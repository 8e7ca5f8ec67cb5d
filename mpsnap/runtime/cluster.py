"""`Cluster`: a running cluster for Python programs, tests and interactive work.

This module owns the thread that pumps a supervisor and the calls that other threads make. It must not know how nodes
run: whatever it wants goes to the supervisor as a request, carried out in that one thread.
"""

from __future__ import annotations

import atexit
import logging
import os
import threading
import time
import weakref
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import Future
from types import TracebackType
from typing import Any, TypeVar

from mpsnap.core.errors import (
    ClusterError,
    ConsistencyError,
    InputError,
    InvariantError,
    MpsnapError,
    PreflightError,
    SnapshotLost,
)
from mpsnap.core.events import (
    ClusterStarted,
    ClusterStopped,
    CommandLost,
    Emitted,
    Event,
    Logged,
    NodeDied,
    Recovered,
    Replied,
    SnapshotAbandoned,
    SnapshotCompleted,
    SurplusKept,
)
from mpsnap.core.forms import parse_topology
from mpsnap.core.program import NodeSpec, assign
from mpsnap.core.protocol import SnapshotId
from mpsnap.core.snapshot import MOST_STORED, GlobalSnapshot, Invariant, check_invariants
from mpsnap.core.topology import Topology
from mpsnap.runtime.calls import Calls, taken
from mpsnap.runtime.main_script import refuse_to_start_in_a_node, refuse_what_a_session_cannot_ship
from mpsnap.runtime.recovering import RecoveringSupervisor
from mpsnap.runtime.recovery import KEEP, MOST_RESTARTS
from mpsnap.runtime.stored import open_recovery
from mpsnap.runtime.supervisor import SNAPSHOT_SECONDS, STOP_SECONDS, WINDOW, Supervisor

T = TypeVar("T")

#: Where a cluster says what nobody asked for: what nodes log, snapshots that were abandoned, and its `notice`.
LOGGER = logging.getLogger("mpsnap")

#: Snapshots that `Cluster.snapshots` keeps, and how large their states in files may be, all together.
KEPT, KEPT_BYTES = 100, 4 << 30
#: How long the pump sleeps when it has nothing to do; requests ring a bell.
_IDLE_SECONDS = 60.0
#: How long a caller waits for the thread to give its last descriptors back.
JOIN_SECONDS = 1.0
#: How long the exit of a program waits for a cluster that it has left running.
EXIT_SECONDS = 10.0
#: How long nodes may take to stop when the body of the `with` has failed.
IMPATIENT_STOP_SECONDS = 1.0


class Cluster:
    """Run nodes as processes, and take consistent snapshots of them while they run.

    Use it as a context manager: it starts on entry, and on exit asks the nodes to stop and leaves no process behind.
    A failure of the cluster is raised by the call that meets it first, at the latest on exit.

    Args:
        topology: A `Topology`, or a specification such as "ring:4".
        nodes: A Node class, its import string, or a mapping of node name or glob to a class or to (class, parameters).
        params: Parameters of `setup`, for every node that takes them.
        start_method: "fork", "forkserver" or "spawn"; None takes the best one here.
        seed: Of every node's `ctx.random`.
        snapshot_every: Take a snapshot every so many seconds, initiated by the nodes in turn.
        snapshot_timeout: Seconds after which a snapshot is given up.
        invariants: Functions of a `GlobalSnapshot`, checked on every one; one that is false or raises ends the cluster.
        window: Messages of one channel that may be sent and not taken before its sender pauses.
        allow_threads: Permit "fork" although other threads run; with a store, one of them is the cluster's own.
        fork_captures: Let a node with a large state fork at the cut, so that it can go on while a child encodes it.
        handler_deadline: Seconds after which a hook that has not returned counts as a death; None for never.
        store: A directory for snapshots, made if there is none. With it the cluster survives the death of its nodes: it
            goes on from the newest snapshot that it has taken itself, and the first is taken before any message.
            Records are in `outputs` once a snapshot covers them, and each exactly once.
        keep: How many snapshots the store keeps.
        restarts: After so many recoveries within a minute the cluster fails.
        resume: Go on from the newest snapshot in the store, if there is one: the program before this one was killed.
            Without it a store with snapshots is refused. Pickles are not taken back: nodes that keep them are refused.
        resume_from: Go on from the snapshot of this number, and not from the newest; what was done since is done again.

    Raises:
        InputError: What was asked for cannot be done; nothing was started.
        StoreError: The store cannot be written to.

    Example:
        >>> with Cluster("ring:3", "mpsnap.apps.tokens:Tokens") as cluster:   # doctest: +SKIP
        ...     snapshot = cluster.snapshot("N2")
        >>> snapshot.verify()                                                 # doctest: +SKIP

        With a store, a node may be killed at any moment:

        >>> with Cluster("ring:3", "mpsnap.apps.tokens:Tokens", store="kept") as cluster:   # doctest: +SKIP
        ...     os.kill(cluster.status()["nodes"]["N2"]["pid"], 9)
        ...     cluster.snapshot().verify()
        ...     print(cluster.deaths, cluster.recoveries)
    """

    def __init__(
        self,
        topology: Topology | str,
        nodes: NodeSpec | Mapping[str, NodeSpec],
        *,
        params: Mapping[str, Any] | None = None,
        start_method: str | None = None,
        seed: int = 0,
        snapshot_every: float | None = None,
        snapshot_timeout: float = SNAPSHOT_SECONDS,
        invariants: Iterable[Invariant] = (),
        window: int = WINDOW,
        allow_threads: bool = False,
        fork_captures: bool = True,
        handler_deadline: float | None = None,
        store: str | os.PathLike[str] | None = None,
        keep: int = KEEP,
        restarts: int = MOST_RESTARTS,
        resume: bool = False,
        resume_from: int | None = None,
    ) -> None:
        refuse_to_start_in_a_node()
        for name, value in (("snapshot_every", snapshot_every), ("handler_deadline", handler_deadline)):
            if value is not None:
                _refuse_unless_positive(name, value)
        _refuse_unless_positive("snapshot_timeout", snapshot_timeout)
        if store is None and (resume or resume_from is not None):
            raise InputError("a cluster goes on from what is in its store, and has none", hint="store=DIRECTORY")
        given: object = parse_topology(topology) if isinstance(topology, str) else topology
        if not isinstance(given, Topology):
            raise InputError(f"{given!r} is no topology", hint="a specification such as 'ring:4', or a Topology")
        self.topology, programs = assign(given, nodes, params)
        settings: dict[str, Any] = {
            "start_method": start_method,
            "seed": seed,
            "window": window,
            "snapshot_timeout": snapshot_timeout,
            "until_terminated": not any(program.load().endless for program in programs.values()),
            "allow_threads": allow_threads,
            "fork_captures": fork_captures,
            "handler_deadline": handler_deadline,
        }
        self._supervisor: Supervisor
        #: Gives the store back, at the latest when nobody knows this object any more.
        self._close_store: Callable[[], object] = lambda: None
        if store is None:
            self._supervisor = Supervisor(self.topology, programs, **settings)
        else:
            if start_method == "fork" and not allow_threads:
                raise PreflightError(
                    "fork is not safe in a process with threads, and a recovery starts nodes while this cluster's runs",
                    hint="start_method='forkserver', or allow_threads=True",
                )
            run = {"seed": seed, "snapshot_every": snapshot_every, "window": window, "folder": os.getcwd()}
            recovery = open_recovery(
                store,
                self.topology,
                programs,
                keep=keep,
                restarts=restarts,
                resume=resume,
                resume_from=resume_from,
                run=run,
            )
            self._close_store = weakref.finalize(self, recovery.store.close)
            try:
                self._supervisor = RecoveringSupervisor(self.topology, programs, recovery, **settings)
            except BaseException:
                self._close_store()
                raise
        try:
            refuse_what_a_session_cannot_ship(programs, self._supervisor.start_method)
        except BaseException:
            self._close_store()
            raise
        self._every = snapshot_every
        self._turns = 0
        self._next_snapshot = float("inf")
        self._invariants = tuple(invariants)
        self._calls = Calls(self._supervisor, snapshot_timeout)
        self._requests: deque[Callable[[], None]] = deque()
        self._kept: deque[GlobalSnapshot] = deque(maxlen=KEPT)
        self._abandoned: deque[MpsnapError] = deque(maxlen=KEPT)
        #: Why probes for termination did not complete.
        self._undecided: list[MpsnapError] = []
        #: The periodic snapshot that is open.
        self._periodic: SnapshotId | None = None
        self._outputs: list[tuple[str, int, object]] = []
        self._deaths: list[NodeDied] = []
        self._recoveries: list[Recovered] = []
        #: Notified of every change of the three below.
        self._changed = threading.Condition()
        self._started = False
        self._ended = False
        self._error: MpsnapError | None = None
        self._thread = threading.Thread(target=self._pump, name="mpsnap-supervisor", daemon=True)
        _living.add(self)

    # ------------------------------------------------------------------ life

    def start(self) -> Cluster:
        """Start every node and return when all have run their `setup`; `with` does this.

        Raises:
            ClusterError: A node could not be started; none is left.
        """
        if self.notice is not None:
            LOGGER.warning("%s", self.notice)
        # The processes are made here and not in the thread: under fork, a child of a program with two threads can
        # deadlock on whatever lock the other one holds.
        try:
            self._supervisor.start()
            self._thread.start()
            self._wait_for(lambda: self._started or self._ended)
            self._raise_error()
        except BaseException:
            # A Ctrl-C, for one: a `with` whose beginning fails does not come to its end.
            self.kill()
            raise
        return self

    def stop(self, timeout: float = STOP_SECONDS) -> None:
        """Ask the nodes to stop, end by signals who has not after `timeout` seconds, and leave no process behind.

        Raises:
            ClusterError: The cluster had failed, or a node had to be killed.
        """
        self._end(lambda: self._supervisor.stop(timeout))
        self._raise_error()

    def kill(self) -> None:
        """End every node at once and leave no process behind."""
        self._end(self._supervisor.kill)

    def __enter__(self) -> Cluster:
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None:
            self.stop()
        else:
            # The error of the body is the one to be seen; it may itself be the cluster's.
            self._end(lambda: self._supervisor.stop(IMPATIENT_STOP_SECONDS))

    # ------------------------------------------------------------- what it is for

    def snapshot(self, *initiators: str, timeout: float | None = None) -> GlobalSnapshot:
        """Take a consistent snapshot of all nodes and channels, initiated at all of `initiators`.

        Initiators are added where the given ones cannot reach every node; with none given, only those needed initiate.
        Several threads may take snapshots at once. During a recovery it waits for its end, and one that the death of a
        node takes along is taken again.

        Raises:
            SnapshotError: It did not complete within `timeout` seconds; names the nodes and channels that are missing.
            InvariantError: It breaks an invariant.
            ClusterError: The cluster has failed or is not running.
        """
        return self._request(lambda: self._calls.snapshot(initiators, timeout)).result().result()

    def command(self, node: str, command: object) -> object:
        """Give `command`, plain data, to the node's `on_command` and return what it returns.

        During a recovery it waits for its end. What a command has changed since the snapshot from which a cluster goes
        on is undone.

        Raises:
            CodecError: The command is not plain data.
            ClusterError: The cluster has failed, is not running, or has no such node; or a node died before the answer.
        """
        return self._request(lambda: self._calls.command(node, command)).result().result()

    def wait(self, timeout: float | None = None) -> GlobalSnapshot | None:
        """Wait until a cut proves that the program has ended by itself, and return that cut.

        Returns:
            None if `timeout` seconds passed first, or the cluster was stopped. A program with `endless = True` on one
            of its classes ends in no other way.

        Raises:
            SnapshotError: Whether it has ended cannot be told: a snapshot taken to find out was abandoned.
            ClusterError: The cluster has failed.
        """
        told = len(self._undecided)
        self._wait_for(
            lambda: self._supervisor.terminated is not None or len(self._undecided) > told or self._ended, timeout
        )
        self._raise_error()
        if len(self._undecided) > told and self._supervisor.terminated is None:
            raise self._undecided[-1]
        return self._supervisor.terminated

    def status(self) -> dict[str, Any]:
        """Return what is known now without asking the nodes, so also when they hang: plain data.

        Keys: `state`; `nodes` with `pid` and `phase` each; `channels` with `sent` and `taken` each; `snapshots`, the
        open ones, with `id`, `number`, `seconds` and the nodes that are `missing`.
        """
        if self._ended or not self._thread.is_alive():
            return self._supervisor.status()
        return self._request(self._supervisor.status).result()

    @property
    def notice(self) -> str | None:
        """What is not as was to be expected of how the cluster is run, and why; logged as a warning at the start.

        So far only that spawn, which starts nodes more slowly, takes the place of forkserver. None if all is as usual.
        """
        return self._supervisor.notice

    @property
    def snapshots(self) -> list[GlobalSnapshot]:
        """The newest snapshots, in the order in which they completed: at most 100, with 64 large states of 4 GB."""
        return list(self._kept)

    @property
    def abandoned(self) -> list[MpsnapError]:
        """Why snapshots that no call waited for did not complete, the newest 100; each was logged as a warning too."""
        return list(self._abandoned)

    @property
    def outputs(self) -> list[tuple[str, int, object]]:
        """What the nodes have emitted so far: (node, n, record); with a store, what nothing can take back any more."""
        return list(self._outputs)

    @property
    def deaths(self) -> list[NodeDied]:
        """The deaths of nodes after which a cluster with a store went on or tried to: `node` and `error` of each."""
        return list(self._deaths)

    @property
    def recoveries(self) -> list[Recovered]:
        """Its recoveries: the new `incarnation`, the `number` of the snapshot it began from, and `seconds`."""
        return list(self._recoveries)

    def __repr__(self) -> str:
        return f"<Cluster {self.topology.name} of {len(self.topology.nodes)} nodes: {self._supervisor.state}>"

    # ------------------------------------------------------------------ requests

    def _request(self, act: Callable[[], T]) -> Future[T]:
        """Have `act` called by the pumping thread; its result or error comes with the future."""
        future: Future[T] = Future()

        def carry_out() -> None:
            try:
                future.set_result(act())
            except BaseException as error:
                # That it has ended is no news; why it has is.
                because = self._error if isinstance(error, ClusterError) else None
                future.set_exception(because or error)

        if self._thread.ident is None:
            raise ClusterError("the cluster is not started", hint="with Cluster(...) as cluster:")
        if self._in_a_fork():
            raise ClusterError("the cluster belongs to the process that this one was forked from")
        if threading.current_thread() is self._thread:
            raise ClusterError("an invariant cannot ask its own cluster", hint="looking at the snapshot it is given")
        # No lock: a signal handler may stop the cluster while its own thread is just here.
        self._requests.append(carry_out)
        self._supervisor.ring()
        if self._ended:
            self._refuse_the_rest()
        return future

    def _end(self, how: Callable[[], None]) -> None:
        if self._thread.ident is None:
            self._supervisor.close()
            self._close_store()
            return
        if not self._in_a_fork():
            self._request(how)
            while not self._ended:
                self._thread.join(0.05)
            self._join()

    def _in_a_fork(self) -> bool:
        """Whether this is a process forked from the one that has the cluster: here is no thread and no node."""
        return not self._thread.is_alive() and not self._ended

    def _join(self) -> None:
        """Wait for the thread, which is through with everything but its bell.

        Bounded: in a signal handler that has come just between the two halves of a ring, it would wait for ever, since
        the thread waits for the ring to end.
        """
        self._thread.join(JOIN_SECONDS)

    def _wait_for(self, holds: Callable[[], bool], timeout: float | None = None) -> None:
        with self._changed:
            self._changed.wait_for(holds, timeout)

    def _raise_error(self) -> None:
        if self._ended:
            self._join()
        if self._error is not None:
            raise self._error

    # ---------------------------------------------------------- the pumping thread

    def _pump(self) -> None:
        try:
            while not self._supervisor.ended:
                while self._requests:
                    self._requests.popleft()()
                self._calls.go_on()
                self._take_turn()
                for event in self._supervisor.pump(self._pause()):
                    self._attend(event)
            # A request may have ended it; what that brought about is still to be told.
            for event in self._supervisor.pump(0):
                self._attend(event)
        except BaseException as error:  # whoever waits for an answer must get one
            self._error = ClusterError(f"the supervisor failed: {type(error).__name__}: {error}")
            self._error.__cause__ = error
        finally:
            try:
                self._supervisor.kill()
            finally:
                # No process is left. Whoever asks from now on sees to it alone.
                self._ended = True
                self._refuse_the_rest()
                with self._changed:
                    self._changed.notify_all()
                self._supervisor.close()
                self._close_store()

    def _pause(self) -> float:
        if self._every is None or self._supervisor.state != "running" or self._periodic is not None:
            return _IDLE_SECONDS
        return min(_IDLE_SECONDS, max(0.0, self._next_snapshot - time.monotonic()))

    def _take_turn(self) -> None:
        """Begin the next periodic snapshot if it is time and the one before is done: they must not pile up."""
        if self._every is None or self._supervisor.state != "running" or self._periodic is not None:
            return
        now = time.monotonic()
        if now >= self._next_snapshot:
            self._next_snapshot = now + self._every
            initiator = self.topology.nodes[self._turns % len(self.topology.nodes)]
            self._turns += 1
            self._periodic = self._supervisor.trigger([initiator])

    def _attend(self, event: Event) -> None:
        if isinstance(event, ClusterStarted):
            if self._every is not None:
                self._next_snapshot = time.monotonic() + self._every
            self._started = True
        elif isinstance(event, SnapshotCompleted):
            self._complete(event.snapshot)
        elif isinstance(event, SnapshotAbandoned):
            self._abandon(event)
        elif isinstance(event, SurplusKept):
            LOGGER.warning("old snapshots stay in the store: %s", event.error)
        elif isinstance(event, Logged):
            LOGGER.info("%s: %s", event.node, event.text)
        elif isinstance(event, Replied):
            self._calls.replied(event)
        elif isinstance(event, CommandLost):
            self._calls.lost(event)
        elif isinstance(event, NodeDied):
            LOGGER.warning("%s", event.error)
            self._deaths.append(event)
        elif isinstance(event, Recovered):
            LOGGER.warning("all nodes went on from snapshot %d, %.2f s after the death", event.number, event.seconds)
            self._recoveries.append(event)
        elif isinstance(event, Emitted):
            self._outputs.append((event.node, event.n, event.record))
        elif isinstance(event, ClusterStopped):
            self._error = self._error or event.error
        with self._changed:
            self._changed.notify_all()

    def _complete(self, snapshot: GlobalSnapshot) -> None:
        self._periodic = None if snapshot.id == self._periodic else self._periodic
        self._keep(snapshot)
        try:
            check_invariants(snapshot, self._invariants)
        except InvariantError as error:
            self._error = self._error or error
            self._supervisor.kill()
            self._calls.completed(snapshot, error)
        else:
            self._calls.completed(snapshot, None)

    def _keep(self, snapshot: GlobalSnapshot) -> None:
        self._kept.append(snapshot)
        if snapshot.stored:
            sizes = [size for kept in self._kept for size in kept.stored]
            while len(self._kept) > 1 and (len(sizes) > MOST_STORED or sum(sizes) > KEPT_BYTES):
                del sizes[: len(self._kept.popleft().stored)]

    def _abandon(self, event: SnapshotAbandoned) -> None:
        self._periodic = None if event.snapshot_id == self._periodic else self._periodic
        awaited = self._calls.abandoned(event)
        if not awaited and self._supervisor.state == "running" and not isinstance(event.error, SnapshotLost):
            # Nobody waits for this one, and still somebody must hear of it.
            LOGGER.warning("%s", event.error)
            self._abandoned.append(event.error)
            if event.number is None:
                self._undecided.append(event.error)
        if isinstance(event.error, ConsistencyError):
            self._error = self._error or event.error
            self._supervisor.kill()

    def _refuse_the_rest(self) -> None:
        """Answer everything that is still asked, now that the cluster has ended; from several threads at once."""
        # Taken out one by one: another thread may be at it too.
        while (refuse := taken(self._requests.popleft)) is not None:
            refuse()  # by the supervisor, each in its own words
        self._calls.refuse(self._error or ClusterError("the cluster has stopped"))


def _refuse_unless_positive(name: str, value: Any) -> None:
    try:
        if value > 0:
            return
    except TypeError:
        pass
    raise InputError(f"{name} is {value!r}, not a positive number of seconds")


def _kill_the_living() -> None:
    """End the clusters that a program leaves running when it exits.

    Their daemon threads would be frozen half-way by the end of the interpreter, with semaphores not given back.
    """
    for cluster in [cluster for cluster in _living if cluster._thread.ident is not None]:
        cluster._request(cluster._supervisor.kill)
        # Bounded: an invariant may hang in that thread, and the program must be able to end. The nodes die with it.
        cluster._thread.join(EXIT_SECONDS)


_living: weakref.WeakSet[Cluster] = weakref.WeakSet()
atexit.register(_kill_the_living)
# They are not the child's to end; and a lock of theirs may have been held when it was forked.
os.register_at_fork(after_in_child=_living.clear)
