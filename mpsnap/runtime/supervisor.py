"""The supervisor: spawn, watch, trigger, collect, merge, stop. An object that is pumped.

This module owns the life of a cluster, from the first process to the last. It must not print, and must not know who
pumps it: the command line does so in its main thread, `Cluster` in a thread of its own.

States: new -> starting -> running -> stopping -> ended; a failure leads from any of them to ended at once.

Rules a maintainer keeps:

- `pump` is the only place that waits, on everything together: result queues, pidfds, its own bell, the next deadline;
  always on the monotonic clock.
- An unexplained death ends the cluster: open snapshots are abandoned, all nodes are fenced, all queues dropped. Its
  queues may hold half a frame, so nothing can go on with them.
- A death is learned from the process, never from a queue; what the dead node still had to say is read first.
- Stop = ask, deadline, SIGTERM, deadline, SIGKILL, reap.
"""

from __future__ import annotations

import select
import signal
import time
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from typing import Any

from mpsnap.core.blame import Blame, node_error
from mpsnap.core.errors import (
    ClusterDeadlock,
    ClusterError,
    CodecError,
    InputError,
    MpsnapError,
    NodeError,
    SnapshotError,
)
from mpsnap.core.events import (
    ClusterStarted,
    ClusterStopped,
    Event,
    Logged,
    Replied,
    StateTold,
)
from mpsnap.core.program import Program, codec_of
from mpsnap.core.protocol import SnapshotId
from mpsnap.core.snapshot import GlobalSnapshot
from mpsnap.core.topology import Topology, shown, suggestion
from mpsnap.runtime import preflight
from mpsnap.runtime.commits import Commits
from mpsnap.runtime.deadlock import Waits
from mpsnap.runtime.failpoints import Failpoint
from mpsnap.runtime.frames import Note
from mpsnap.runtime.hangs import Hangs
from mpsnap.runtime.incarnation import Incarnation
from mpsnap.runtime.journal import JournalSpec
from mpsnap.runtime.outputs import Outputs
from mpsnap.runtime.pump import Pump
from mpsnap.runtime.snapshots import Snapshots
from mpsnap.runtime.staging import StagedFile, Ticket, receive
from mpsnap.store.contract import Origin, Place
from mpsnap.store.manifest import Manifest, Receipt

#: How long all nodes may stand still on their way to being ready, in the import of their code or in `setup`. It is no
#: limit of the whole way: hundreds of processes on a busy machine take minutes.
READY_SECONDS = 60.0
#: How long a snapshot may take unless told otherwise.
SNAPSHOT_SECONDS = 30.0
#: How long a node that was asked to stop may go on before SIGTERM, and after it before SIGKILL.
STOP_SECONDS = 5.0
TERMINATE_SECONDS = 0.3
#: How long a node that hangs has to write its stack down.
STACK_SECONDS = 0.1
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
        self._hangs: Hangs
        self._incarnation: Incarnation | None = None
        self._classes = {
            reference: Program(reference, {}).load() for reference in {p.reference for p in programs.values()}
        }
        codecs = {reference: codec_of(each, self._classes.values()) for reference, each in self._classes.items()}
        #: How to read each node's values.
        self.codecs = {node: codecs[program.reference] for node, program in programs.items()}
        self._pump = Pump()
        self._deadlines = self._pump.deadlines
        self._events: list[Event] = []
        #: While it starts: each node's phase, and since when none has changed.
        self._phases: list[str] = []
        self._unchanged_since = 0.0
        self._tickets = 0
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
        self._ready: set[str] = set()
        self._stopped: set[str] = set()
        self._dead: set[str] = set()
        #: Commands that are not answered, and who was to.
        self._unanswered: dict[int, str] = {}
        #: The nodes that are asked how far they are and have not answered.
        self._inspected: set[str] = set()
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
            "replied": self._on_replied,
            "told": self._on_told,
            "inspected": self._on_inspected,
            "logged": self._on_logged,
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
        incarnation = self._incarnation
        nodes: dict[str, Any] = {}
        channels: dict[str, Any] = {}
        if incarnation is not None:
            channels = {str(channel): incarnation.board.counts(channel) for channel in self.topology.channels}
            for node, endpoints in incarnation.nodes.items():
                began = incarnation.board.turn_began(node)
                nodes[node] = {
                    "pid": endpoints.pid,
                    "phase": incarnation.board.phase(node),
                    "turn_s": now - began if began else None,
                    "busy_s": incarnation.board.busy_seconds(node),
                    "paused": node in self.paused,
                }
        snapshots = [
            {
                "id": str(collection.id),
                "number": collection.number,
                "seconds": now - collection.began,
                "missing": list(collection.missing(self.topology)),
                "progress": {node: list(p) for node, p in collection.progress(self.topology.nodes).items()},
            }
            for collection in self._snapshots.open
        ]
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
        self._incarnation = incarnation
        for node, endpoints in incarnation.nodes.items():
            self._pump.watch(endpoints.results.fd, partial(self._read_results, node))
            # Results before deaths: the last words of a node that died explain its death.
            self._pump.watch(endpoints.pidfd, partial(self._read_last_words, node), last=True)
        self._phases = []
        self._watch_start()

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

    def trigger(self, initiators: Iterable[str] = (), timeout: float | None = None) -> SnapshotId:
        """Begin one snapshot at all of `initiators`, and at those needed to reach every node.

        Returns:
            Its id; `SnapshotCompleted` or `SnapshotAbandoned` follows for it.

        Raises:
            TopologyError: There is no such node.
            ClusterError: The cluster is not running.
        """
        self._require_running("trigger a snapshot")
        return self._snapshots.trigger(self.topology.initiators(initiators), timeout)

    def command(self, node: str, command: object) -> int:
        """Give `command`, plain data, to a node's `on_command`; `Replied` follows with the ticket returned.

        Raises:
            CodecError: It is not plain data.
            ClusterError: The cluster is not running, or has no such node.
        """
        self._require_node(node, "send a command")
        encoded = self.codecs[node].encode(command, where="command")
        self._tickets += 1
        self._snapshots.disturb()
        self._unanswered[self._tickets] = node
        self._tell(node, "command", self._tickets, encoded)
        return self._tickets

    def ask_state(self, node: str) -> int:
        """Ask a node for its local state as it is now; `StateTold` follows with the ticket returned.

        Raises:
            ClusterError: The cluster is not running, or has no such node.
        """
        self._require_node(node, "ask a node")
        self._tickets += 1
        self._unanswered[self._tickets] = node
        self._tell(node, "state", self._tickets)
        return self._tickets

    def inspect(self) -> None:
        """Ask all nodes how far they are with the open snapshots, for `status` to tell once they have answered."""
        self._require_running("inspect nodes")
        for node in self.topology.nodes:
            # Not again before it has answered: for one that hangs, questions would pile up.
            if node not in self._inspected:
                self._inspected.add(node)
                self._tell(node, "inspect")

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
        pid: int = self._nodes[node].pid
        return pid

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

    def _read_results(self, node: str) -> None:
        self._read(node, self._nodes[node].results.read())

    def _read_last_words(self, node: str) -> None:
        incarnation = self._incarnation
        self._read(node, self._nodes[node].results.drain())
        if self._incarnation is incarnation:
            self._on_death(node)

    @property
    def _nodes(self) -> Mapping[str, Any]:
        assert self._incarnation is not None
        return self._incarnation.nodes

    def _read(self, node: str, notes: list[Note]) -> None:
        incarnation = self._incarnation
        for kind, *content in notes:
            if self._incarnation is not incarnation:
                return
            self._on_note[kind](node, *content)

    def _tell(self, node: str, *note: object) -> None:
        try:
            self._nodes[node].control.post(note)
        except BrokenPipeError:
            return  # It is dead; its pidfd says so, and says more.
        self._write(node)

    def _write(self, node: str) -> None:
        control = self._nodes[node].control
        try:
            done = control.flush()
        except BrokenPipeError:
            done = True  # As above: the pidfd tells.
        watched = self._pump.is_watched(control.fd)
        if done and watched:
            self._pump.unwatch(control.fd)
        elif not done and not watched:
            self._pump.watch(control.fd, partial(self._write, node), select.EPOLLOUT)

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
        self._ready.add(node)
        if len(self._ready) < len(self.topology.nodes):
            return
        self._deadlines.cancel("ready")
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
            self._hangs = Hangs(self._handler_deadline)
            self._deadlines.set("hang", self._handler_deadline / 4, self._look_for_hangs)

    def _look_for_hangs(self) -> None:
        assert self._incarnation is not None
        for node, endpoints in self._nodes.items():
            reason = self._hangs.reason(node, endpoints.pid, self._incarnation.board, time.monotonic())
            if reason is not None:
                # Its stack says more than any word of ours; it needs a moment to write it down.
                self._incarnation.signal(node, signal.SIGUSR1)
                self._deadlines.set("hang", STACK_SECONDS, partial(self._give_up_on, node, reason))
                return
        self._deadlines.set("hang", self._hangs.seconds / 4, self._look_for_hangs)

    def _give_up_on(self, node: str, reason: str) -> None:
        assert self._incarnation is not None
        phase = self._incarnation.board.phase(node)
        self._fail(
            NodeError(
                f"{node} hangs: {reason}, the deadline is {self._hangs.seconds:g} s",
                node=node,
                phase=phase,
                status="killed",
                where=node,
                hint="a look at its stack, on stderr",
            )
        )

    def _watch_start(self) -> None:
        assert self._incarnation is not None
        phases, now = [self._incarnation.board.phase(node) for node in self.topology.nodes], time.monotonic()
        if phases != self._phases:
            self._phases, self._unchanged_since = phases, now
        if now - self._unchanged_since < READY_SECONDS:
            # Nothing rings for a change of phase; this often is enough to know how old the last one is.
            self._deadlines.set("ready", READY_SECONDS / 20, self._watch_start)
        else:
            self._not_ready()

    def _not_ready(self) -> None:
        late = [node for node in self.topology.nodes if node not in self._ready]
        doing = "; ".join(f"{node} is {self._doing(node)}" for node in late[:3])
        count = f"{len(late)} of {len(self.topology.nodes)} nodes not ready"
        self._fail(
            NodeError(
                f"{count}, and none any further within {READY_SECONDS:g} s: {doing}",
                node=late[0],
                phase=self._phases[self.topology.nodes.index(late[0])],
                status="killed",
                where=late[0],
            )
        )

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
        self._pump.unwatch(self._nodes[node].pidfd)
        self._pump.unwatch(self._nodes[node].results.fd)
        if node not in self._stopped:
            phase, status = self._incarnation.board.phase(node), self._incarnation.status(node)
            # By itself, that is: a signal that came that early has nothing to do with the script.
            unguarded = phase == "starting" and not status.startswith("killed")
            error = NodeError(
                f"{node} died {_in_phase(phase)}: {status}",
                node=node,
                phase=phase,
                status=status,
                where=node,
                hint="the start of the cluster under if __name__ == '__main__':" if unguarded else None,
            )
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
        self._insisted = True
        self._note_unstopped(seconds)
        self._signal_rest(signal.SIGTERM)
        self._deadlines.set("stop", TERMINATE_SECONDS, lambda: self._end(self.error))

    def _note_unstopped(self, seconds: float) -> None:
        assert self._incarnation is not None
        for node in self._incarnation.alive():
            if node in self._unstopped():
                phase = self._incarnation.board.phase(node)
                self.error = self.error or NodeError(
                    f"{node} did not stop within {seconds:g} s and was killed, {_in_phase(phase)}",
                    node=node,
                    phase=phase,
                    status="killed",
                    where=node,
                )

    def _unstopped(self) -> set[str]:
        """Return the nodes that the end waits for."""
        return set(self.topology.nodes) - self._stopped

    def _signal_rest(self, number: int) -> None:
        assert self._incarnation is not None
        for node in self._incarnation.alive():
            self._incarnation.signal(node, number)

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
                for endpoints in self._nodes.values():
                    for fd in (endpoints.results.fd, endpoints.pidfd, endpoints.control.fd):
                        if self._pump.is_watched(fd):
                            self._pump.unwatch(fd)
                self._incarnation.close()
                self._incarnation = None

    def _doing(self, node: str) -> str:
        assert self._incarnation is not None
        phase, since = self._incarnation.board.phase(node), self._incarnation.board.turn_began(node)
        return f"{_in_phase(phase)}, for {time.monotonic() - since:.1f} s" if since else _in_phase(phase)

    # -------------------------------------------------------------- what nodes say

    def _on_report(
        self,
        node: str,
        snapshot_id: str,
        rest: bytes | Ticket,
        ticket: Ticket | None,
        state: tuple[Any, ...] | None,
        part: tuple[Any, ...] | None,
        times: tuple[float, ...],
    ) -> None:
        try:
            opened = None if ticket is None else self._open(node, ticket)
            packed = rest if isinstance(rest, bytes) else self._open(node, rest)
            data = packed if isinstance(packed, bytes) else packed.read()
        except (OSError, CodecError) as error:
            self._snapshots.refused(node, snapshot_id, f"its staged part cannot be read: {error}")
            return
        staged = None if state is None else Receipt(*state), None if part is None else Receipt(*part)
        self._snapshots.report(node, snapshot_id, data, opened, staged, times)

    def _open(self, node: str, ticket: Ticket) -> bytes | StagedFile:
        try:
            return receive(self._nodes[node].pid, ticket)
        finally:
            self._tell(node, "release", ticket[0])

    def _on_blocked(self, node: str, now: float, full_since: dict[str, float]) -> None:
        try:
            self._waits.report(node, now, full_since)
        except ClusterDeadlock as error:
            if self.state == "running":
                self._end(error)

    def _on_replied(self, node: str, ticket: int, value: bytes) -> None:
        del self._unanswered[ticket]
        self._snapshots.settle()
        self._happened(Replied(ticket, node, self._readers[node].decode(value)))

    def _on_told(
        self, node: str, ticket: int, state: bytes | None, what: str, where: str | None, hint: str | None
    ) -> None:
        del self._unanswered[ticket]
        error = None if state is not None else SnapshotError(what, where=where, hint=hint)
        self._happened(StateTold(ticket, node, state, error))

    def _on_inspected(self, node: str, told: Mapping[str, tuple[float, tuple[str, ...]]]) -> None:
        self._inspected.discard(node)
        self._snapshots.inspected(node, told)

    def _on_logged(self, node: str, text: str) -> None:
        self._happened(Logged(node, text))


def _in_phase(phase: str) -> str:
    return {"waiting": "waiting for messages", "starting": "while starting"}.get(phase, f"in {phase}")
