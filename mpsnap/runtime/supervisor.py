"""The supervisor: spawn, watch, trigger, collect, merge, stop. An object that is pumped.

This module owns the life of a cluster, from the first process to the last. It must not print, and must not know who
pumps it: the command line does so in its main thread, `Cluster` in a thread of its own.

States: new -> starting -> running -> stopping -> ended; a failure leads from any of them to ended at once.

Rules a maintainer keeps:

- `pump` is the only place that waits, on everything together: result queues, pidfds, its own bell, the next deadline;
  always on the monotonic clock.
- An unexplained death ends the cluster: open snapshots are abandoned, all nodes are fenced, all queues dropped. Its
  queues may hold half a frame, so nothing can go on with them.
- Stop = ask, deadline, SIGTERM, deadline, SIGKILL, reap.
"""

from __future__ import annotations

import itertools
import signal
import time
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from typing import Any

from mpsnap.core.blame import Blame, node_error
from mpsnap.core.errors import ClusterDeadlock, ClusterError, CodecError, InputError, MpsnapError, NodeError
from mpsnap.core.events import ClusterStarted, ClusterStopped, Event, Logged
from mpsnap.core.program import Program, codec_of
from mpsnap.core.protocol import SnapshotId
from mpsnap.core.snapshot import GlobalSnapshot
from mpsnap.core.topology import Topology
from mpsnap.core.words import shown, suggestion
from mpsnap.runtime import preflight
from mpsnap.runtime.commits import Commits
from mpsnap.runtime.contact import Contact
from mpsnap.runtime.deadlock import Waits
from mpsnap.runtime.failpoints import Failpoint
from mpsnap.runtime.frames import ToldId
from mpsnap.runtime.hangs import Hangs, Readiness, did_not_stop
from mpsnap.runtime.incarnation import Incarnation
from mpsnap.runtime.journal import JournalSpec
from mpsnap.runtime.outputs import Outputs
from mpsnap.runtime.parts import take_over
from mpsnap.runtime.pump import Pump
from mpsnap.runtime.questions import Questions
from mpsnap.runtime.snapshots import Snapshots
from mpsnap.store.contract import Origin, Place
from mpsnap.store.manifest import Manifest

#: How long a snapshot may take unless told otherwise.
SNAPSHOT_SECONDS = 30.0
#: How long a node that was asked to stop may go on before SIGTERM, and after it before SIGKILL.
STOP_SECONDS = 5.0
TERMINATE_SECONDS = 0.3
#: Messages of one channel that may be sent and not taken before the sender pauses.
WINDOW = 4096


class Supervisor:
    """Run a cluster of node processes.

    Args:
        topology: Nodes and channels.
        programs: What each node runs.
        start_method: fork, forkserver, spawn, or None for the best one here.
        seed: Of the nodes' random numbers.
        window: Messages of one channel that may be sent and not taken before the sender pauses.
        snapshot_timeout: Seconds a snapshot may take unless its trigger says otherwise.
        until_terminated: Probe for a cut that proves termination, see `terminated`.
        allow_threads: Permit fork although other threads run.
        fork_captures: Let a node with a large state fork at the cut, so that it can go on while a child encodes it.
        handler_deadline: Seconds after which a hook that has not returned counts as a death; None for never.
        failpoints: Where nodes are to come to harm, by node, in tests.
    """

    def __init__(
        self,
        topology: Topology,
        programs: Mapping[str, Program],
        *,
        start_method: str | None = None,
        seed: int = 0,
        window: int = WINDOW,
        snapshot_timeout: float = SNAPSHOT_SECONDS,
        until_terminated: bool = False,
        allow_threads: bool = False,
        journals: Mapping[str, JournalSpec] | None = None,
        fork_captures: bool = True,
        handler_deadline: float | None = None,
        failpoints: Mapping[str, tuple[Failpoint, ...]] | None = None,
    ) -> None:
        self.topology = topology
        self.seed = seed
        self.state = "new"
        #: Why the cluster failed; None as long as it has not.
        self.error: MpsnapError | None = None
        #: The nodes that run no hooks for now, since somebody asked for that.
        self.paused: set[str] = set()
        #: Something to say about how the cluster is run, or None.
        self.notice: str | None = None
        if not (isinstance(window, int) and window >= 2):
            # With one, sources would use it up, and messages could not be handled for want of room for an answer.
            raise InputError(f"window is {window!r}, not a whole number of messages from 2 on")
        preflight.secure_standard_streams()
        self._context, self.notice = preflight.choose_context(start_method, topology)
        preflight.check(self._context, topology, allow_threads=allow_threads)
        self._programs = programs
        self._window = window
        self._journals = journals or {}
        self._fork_captures = fork_captures
        self._until_terminated = until_terminated
        self._snapshot_timeout = snapshot_timeout
        self._handler_deadline = handler_deadline
        self._failpoints = failpoints or {}
        self._incarnation: Incarnation | None = None
        self._contact: Contact
        self._readiness: Readiness
        self._classes = {
            reference: Program(reference, {}).load() for reference in {p.reference for p in programs.values()}
        }
        codecs = {reference: codec_of(each, self._classes.values()) for reference, each in self._classes.items()}
        #: How to read each node's values.
        self.codecs = {node: codecs[program.reference] for node, program in programs.items()}
        self._pump = Pump()
        self._deadlines = self._pump.deadlines
        self._events: list[Event] = []
        #: The numbers of questions, which go on counting over all incarnations.
        self._tickets = itertools.count(1)
        self._totals = (0, 0)
        #: Whether nodes that did not stop in time were told so by a signal.
        self._insisted = False
        # Here a pickle stays a pickle: looking at a snapshot runs no code from it.
        self._readers = {node: codec.reader() for node, codec in self.codecs.items()}
        self._outputs = Outputs(self._readers, self._happened)
        self._commits = Commits()
        self._begin_incarnation(0)

    def _begin_incarnation(self, number: int) -> None:
        """Forget what was known of the nodes of an older incarnation."""
        self._number = number
        self._stopped: set[str] = set()
        self._dead: set[str] = set()
        self._waits = Waits()
        self._snapshots = Snapshots(
            self.topology,
            self._readers,
            number,
            self._snapshot_timeout,
            self._commits,
            deadlines=self._deadlines,
            tell=self._tell,
            happened=self._happened,
            doing=self._doing,
        )
        self._questions = Questions(
            self._tickets, self._readers, self._snapshots, tell=self._tell, happened=self._happened
        )
        self._on_note: dict[object, Callable[..., None]] = {
            "ready": self._on_ready,
            "failed": self._on_failed,
            "stopped": self._on_stopped,
            "initiated": self._snapshots.initiated,
            "report": self._on_report,
            "refused": self._snapshots.refused,
            "abandoned": self._snapshots.abandoned,
            "blocked": self._on_blocked,
            "emitted": self._outputs.put,
            "logged": self._on_logged,
            **self._questions.on_note,
        }

    # ------------------------------------------------------------------- asking

    @property
    def start_method(self) -> str:
        """The start method in use."""
        return self._context.get_start_method()

    @property
    def ended(self) -> bool:
        """Whether no process of the cluster is left."""
        return self.state == "ended"

    @property
    def open_snapshots(self) -> int:
        """How many snapshots that somebody asked for are under way."""
        return sum(collection.number is not None for collection in self._snapshots.open)

    @property
    def incarnation(self) -> int:
        """The number of the generation of nodes that runs, or has run last."""
        return self._number

    @property
    def window(self) -> int:
        """Messages of one channel that may be sent and not taken before the sender pauses."""
        return self._window

    @property
    def pump_with(self) -> Pump:
        """What `pump` waits with, for whoever wants to be attended to in the same thread."""
        return self._pump

    @property
    def terminated(self) -> GlobalSnapshot | None:
        """A cut that proves that nothing can happen any more, once there is one."""
        return self._snapshots.terminated

    def totals(self) -> tuple[int, int]:
        """Return messages sent and received (taken) so far, over all channels."""
        if self._incarnation is not None:
            self._totals = self._incarnation.board.totals()
        return self._totals

    def status(self) -> dict[str, Any]:
        """Return what is known now, without asking the nodes: plain data.

        Keys: `state`; `nodes` with `pid`, `phase`, `turn_s` (the seconds since its last turn began, None before the
        first), `busy_s` (for how long its hooks have run) and whether it is `paused`, each; `channels` with `sent` and
        `taken` each; `snapshots`, the open ones, with `id`, `number`, `seconds`, the nodes that are `missing`, and the
        `progress` of each node as [recorded, closed, awaits].
        """
        now = time.monotonic()
        nodes: dict[str, Any] = {}
        channels: dict[str, Any] = {}
        if self._incarnation is not None:
            board = self._incarnation.board
            channels = {str(channel): board.counts(channel) for channel in self.topology.channels}
            nodes = {
                node: {"pid": endpoints.pid, **board.status(node, now), "paused": node in self.paused}
                for node, endpoints in self._incarnation.nodes.items()
            }
        snapshots = [collection.status(self.topology, now) for collection in self._snapshots.open]
        return {"state": self.state, "nodes": nodes, "channels": channels, "snapshots": snapshots}

    # ------------------------------------------------------------------- acting

    def start(self) -> None:
        """Spawn every node; `ClusterStarted` comes when all are ready.

        Raises:
            ClusterError: A process could not be started; none is left.
        """
        if self.state != "new":
            raise ClusterError(f"the cluster is {self.state} and starts once only", hint="a new one")
        self.state = "starting"
        self._pump.open()
        try:
            self._spawn_first()
        except BaseException:
            self.close()
            raise

    def _spawn_first(self) -> None:
        self._spawn(0, None, None)

    def _spawn(self, number: int, place: Place | None, restored: tuple[Manifest, Origin] | None) -> None:
        """Spawn the nodes of an incarnation."""
        self._begin_incarnation(number)
        incarnation = Incarnation(
            number,
            self.topology,
            self._programs,
            self._context,
            seed=self.seed,
            window=self._window,
            journals=self._journals,
            fork_captures=self._fork_captures,
            place=place,
            restored=restored,
            failpoints=self._failpoints,
        )
        if self.ended:
            # A signal handler or another thread has stopped it meanwhile, and could not know of the processes yet.
            incarnation.kill()
            incarnation.close()
            raise ClusterError("the cluster was stopped while it started")
        self._contact = Contact(incarnation.nodes, self._pump, self._on_note, self._on_death)
        self._incarnation = incarnation
        self._contact.begin()
        self._readiness = Readiness(incarnation, self._deadlines, self._fail)
        self._readiness.watch()

    def pump(self, timeout: float) -> list[Event]:
        """Wait at most `timeout` seconds for anything to happen, see to it, and return what happened.

        Never raises for a failure of the cluster: that is `ClusterStopped` with its error.
        """
        if not self.ended and not self._events:
            self._pump.wait(timeout)
        events, self._events = self._events, []
        return events

    def ring(self) -> None:
        """Make `pump` return soon; safe at any time from any thread and signal handler."""
        self._pump.ring()

    def trigger(
        self, initiators: Iterable[str] = (), timeout: float | None = None, *, acknowledged: bool = False
    ) -> SnapshotId:
        """Begin one snapshot at all of `initiators`, and at those needed to reach every node.

        Returns:
            Its id; `SnapshotCompleted` or `SnapshotAbandoned` follows for it, and before that, if it is to be
            `acknowledged`, an `Initiated` for each node where it begins.

        Raises:
            TopologyError: There is no such node.
            ClusterError: The cluster is not running.
        """
        self._require_running("trigger a snapshot")
        return self._snapshots.trigger(self.topology.initiators(initiators), timeout, acknowledged=acknowledged)

    def command(self, node: str, command: object) -> int:
        """Give `command`, plain data, to a node's `on_command`; `Replied` follows with the ticket returned.

        Raises:
            CodecError: It is not plain data.
            ClusterError: The cluster is not running, or has no such node.
        """
        self._require_node(node, "send a command")
        encoded = self.codecs[node].encode(command, where="command")
        return self._questions.command(node, encoded)

    def ask_state(self, node: str) -> int:
        """Ask a node for its local state as it is now; `StateTold` follows with the ticket returned.

        Raises:
            ClusterError: The cluster is not running, or has no such node.
        """
        self._require_node(node, "ask a node")
        return self._questions.state(node)

    def inspect(self) -> None:
        """Ask all nodes how far they are with the open snapshots, for `status` to tell once they have answered."""
        self._require_running("inspect nodes")
        self._questions.inspect(self.topology.nodes)

    def pause(self, nodes: Iterable[str]) -> None:
        """Have nodes run no hooks until they may again; markers and questions are seen to all the same.

        Raises:
            ClusterError: The cluster is not running, or has no such node.
        """
        self._turn(nodes, "pause a node", "pause")

    def unpause(self, nodes: Iterable[str]) -> None:
        """Let nodes run hooks again; raises as `pause`."""
        self._turn(nodes, "let a node go on", "go")

    def _turn(self, nodes: Iterable[str], wish: str, note: str) -> None:
        asked = tuple(nodes)
        for node in asked:
            self._require_node(node, wish)
        for node in asked:
            (self.paused.add if note == "pause" else self.paused.discard)(node)
            self._tell(node, note)

    def finish(self, node: str) -> None:
        """Have a node finish as it would by `ctx.finish()`: no idle calls and no timers any more.

        Raises:
            ClusterError: The cluster is not running, or has no such node, or keeps an event log, which could not tell.
        """
        self._require_node(node, "finish a node")
        if self._journals:
            raise ClusterError("a node is not finished from outside while its events are logged", where=node)
        self._snapshots.disturb()
        self._snapshots.settle()
        self._tell(node, "finish")

    def ask_stack(self, node: str) -> int:
        """Have a node write its Python stack into its file in memory, `STACK_FILE`, even if it hangs; return its pid.

        Raises:
            ClusterError: There is no such node, or it is not far enough to do so.
        """
        if node not in self.codecs:
            raise self._no_node(node)
        # Before it has said what to do with it, the signal would kill it.
        if self._incarnation is None or self._incarnation.board.phase(node) == "starting":
            raise ClusterError(f"{node} cannot tell its stack yet", where=node)
        self._incarnation.signal(node, signal.SIGUSR2)
        return self._incarnation.nodes[node].pid

    def stop(self, seconds: float = STOP_SECONDS) -> None:
        """Ask every node to stop; who has not after `seconds` is ended by signals. `ClusterStopped` follows."""
        if self.state == "running":
            self.state = "stopping"
            self._deadlines.clear()
            self._snapshots.lose_all(None)
            self._deadlines.set("stop", seconds, lambda: self._insist(seconds))
            self._ask_to_stop()
        elif self.state in ("new", "starting"):
            self.kill()

    def signal(self, node: str, number: int) -> None:
        """Send a signal to a node's process, to see what becomes of it.

        Raises:
            ClusterError: The cluster is not running, or has no such node.
        """
        self._require_node(node, "signal a node")
        assert self._incarnation is not None
        self._incarnation.signal(node, number)

    def _ask_to_stop(self) -> None:
        for node in self.topology.nodes:
            self._tell(node, "stop")

    def kill(self) -> None:
        """End every node at once. `ClusterStopped` follows."""
        if not self.ended:
            self._end(self.error)

    def close(self) -> None:
        """Leave nothing behind, whatever the state; the object is of no use afterwards."""
        self.kill()
        self._pump.close()

    # ---------------------------------------------------------------- attending

    def _tell(self, node: str, *note: object) -> None:
        self._contact.tell(node, *note)

    def _happened(self, event: Event) -> None:
        self._events.append(event)

    def _require_node(self, node: str, wish: str) -> None:
        self._require_running(wish)
        if node not in self.codecs:
            raise self._no_node(node)

    def _no_node(self, node: str) -> ClusterError:
        return ClusterError(f"there is no node {shown(node)}", hint=suggestion(node, self.topology.nodes))

    def _require_running(self, wish: str) -> None:
        if self.state != "running":
            reason = f": {self.error}" if self.error else ""
            raise ClusterError(f"cannot {wish}, the cluster is {self.state}{reason}")

    # ------------------------------------------------------------ life and death

    def _on_ready(self, node: str) -> None:
        if self._readiness.ready(node):
            self._on_all_ready()

    def _on_all_ready(self) -> None:
        self._go()
        self._happened(ClusterStarted(self.topology.nodes))

    def _go(self) -> None:
        """Let hooks run."""
        self.state = "running"
        for node in self.topology.nodes:
            # Those that were paused before a recovery still are.
            self._tell(node, "pause" if node in self.paused else "go")
        if self._until_terminated:
            self._snapshots.probe_until_terminated()
        if self._handler_deadline is not None:
            assert self._incarnation is not None
            Hangs(self._incarnation, self._handler_deadline, self._deadlines, self._fail).watch()

    def _on_failed(
        self,
        node: str,
        phase: str,
        what: str,
        where: str | None,
        hint: str | None,
        traceback: str,
        in_hand: tuple[str, int] | None,
    ) -> None:
        blamed = Blame(what, where, hint, traceback)
        self._fail(node_error(node, phase, blamed, "exit status 1", in_hand))

    def _fail(self, error: NodeError) -> None:
        """A node has failed: this ends the cluster."""
        self._end(error)

    def _on_stopped(self, node: str) -> None:
        self._stopped.add(node)

    def _on_death(self, node: str) -> None:
        assert self._incarnation is not None
        self._dead.add(node)
        if node not in self._stopped:
            error = self._incarnation.death(node)
            if self.state != "stopping" or self._goes_on:
                self._fail(error)
                return
            self._on_late_death(error)
        if len(self._dead) == len(self.topology.nodes):
            self._end(self.error)

    def _on_late_death(self, error: NodeError) -> None:
        """A node has died on its way out."""
        self.error = self.error or error

    def _insist(self, seconds: float) -> None:
        assert self._incarnation is not None
        self._insisted = True
        self.error = self.error or did_not_stop(self._incarnation, self._unstopped(), seconds)
        for node in self._incarnation.alive():
            self._incarnation.signal(node, signal.SIGTERM)
        self._deadlines.set("stop", TERMINATE_SECONDS, lambda: self._end(self.error))

    def _unstopped(self) -> set[str]:
        """Return the nodes that the end waits for."""
        return set(self.topology.nodes) - self._stopped

    @property
    def _goes_on(self) -> bool:
        """Whether the death of a node while the cluster stops is not yet the end."""
        return False

    def _end(self, error: MpsnapError | None) -> None:
        """Fence everything, drop everything, and say why."""
        self.state = "ended"
        self.error = error
        self._deadlines.clear()
        try:
            self._fence()
        except ClusterError as unkillable:
            self.error = error or unkillable
        self._snapshots.lose_all(self.error)
        self._happened(ClusterStopped(self.error))

    def _fence(self) -> None:
        """Kill all nodes, and give up all that leads to them."""
        if self._incarnation is not None:
            try:
                self._incarnation.kill()
            finally:
                self.totals()
                self._contact.break_off()
                self._incarnation.close()
                self._incarnation = None

    def _doing(self, node: str) -> str:
        assert self._incarnation is not None
        return self._incarnation.board.doing(node)

    # -------------------------------------------------------------- what nodes say

    def _on_report(
        self, node: str, told: ToldId, handed_over: bytes | tuple[Any, ...], times: tuple[float, ...]
    ) -> None:
        if isinstance(handed_over, bytes):
            self._snapshots.report(node, told, times, handed_over)
            return
        assert self._incarnation is not None
        pid = self._incarnation.nodes[node].pid
        try:
            data, state, staged = take_over(handed_over, pid, partial(self._tell, node, "release"))
        except (OSError, CodecError) as error:
            self._snapshots.refused(node, told, f"its staged part cannot be read: {error}")
        else:
            self._snapshots.report(node, told, times, data, state, staged)

    def _on_blocked(self, node: str, now: float, full_since: dict[str, float]) -> None:
        try:
            self._waits.report(node, now, full_since)
        except ClusterDeadlock as error:
            if self.state == "running":
                self._end(error)

    def _on_logged(self, node: str, text: str) -> None:
        self._happened(Logged(node, text))
