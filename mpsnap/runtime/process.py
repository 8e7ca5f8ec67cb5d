"""The process of one node: the loop between its pipes and its `NodeCore`.

This module owns what runs in a node process, from the first line to `os._exit`. It must not decide when a hook runs or
what a marker means: that is the core's.

The process has one thread. A second one could leave a lock held over a fork, and would fight the hooks for the
interpreter.

Rules a maintainer keeps:

- Nothing here blocks but the one `epoll`: a node that waits for a pipe would not see markers.
- Items are seen whatever the windows say; only hooks wait for room. So a marker is never held up by a full channel.
- No signal handler raises. An exception inside a read would lose what was read.
- Any end without the stop handshake is a failure, also an exit with status 0: a hook may call `sys.exit`.
"""

from __future__ import annotations

import contextlib
import faulthandler
import fcntl
import os
import select
import signal
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from multiprocessing.connection import Connection
from multiprocessing.queues import Queue
from typing import Any, NoReturn

from mpsnap.core.blame import blame
from mpsnap.core.driver import Driver, Encode
from mpsnap.core.errors import ClusterError, CodecError, MpsnapError, SnapshotError, StoreError, one_line
from mpsnap.core.journal import JournaledCore
from mpsnap.core.nodecore import NodeCore
from mpsnap.core.program import Program, codec_of, load_node_class
from mpsnap.core.protocol import LocalSnapshot, Marker, Outbox, SnapshotId
from mpsnap.core.snapshot import Captured, UnfinishedState
from mpsnap.core.topology import Channel
from mpsnap.runtime import lifeline
from mpsnap.runtime.answers import Answers
from mpsnap.runtime.board import PHASE_NUMBER, Board
from mpsnap.runtime.capture import Captures, Encoding
from mpsnap.runtime.channel import QueueReceiver, QueueSender, close_reader, writer_fd
from mpsnap.runtime.failpoints import Failpoint, arm, fail_at, stumbling
from mpsnap.runtime.frames import FrameReader, FrameWriter, ToldId
from mpsnap.runtime.journal import FileJournal, JournalSpec
from mpsnap.runtime.outbound import Outbound
from mpsnap.runtime.parts import Parts
from mpsnap.store.contract import Origin, Place

#: How long hooks run before items are looked at again; a marker waits this long and one hook at most (`NodeCore.run`).
TURN_SECONDS = 0.001
#: A hook that runs twice as long as a turn is a slow one.
SLOW_SECONDS = 0.002
#: How often a node looks whether a closed window has opened: its reader cannot ring, it can only count.
WINDOW_POLL_SECONDS = 0.001
#: Bytes of records and reports that may wait for the supervisor before hooks pause.
RESULT_BACKLOG_BYTES = 1 << 20
#: How long a failing node tries to get its last words out.
LAST_WORDS_SECONDS = 2.0

LONGEST_WAIT_SECONDS = 3600.0
#: The name of the file in memory where a node's stack is written on SIGUSR2; others find it in /proc.
STACK_FILE = "mpsnap-stack"

#: Phases in which something may be sent.
_HOOKS = frozenset({"on_message", "on_idle", "on_timer", "on_command"})

#: What `epoll` says of a pipe that can be written to, and of nothing else.
_WRITABLE = select.EPOLLOUT

#: Exit statuses of a node.
EXIT_STOPPED = 0
EXIT_FAILED = 1


@dataclass(frozen=True)
class NodeSpec:
    """What one node process is given; everything in it survives the way through spawn and forkserver."""

    name: str
    program: Program
    references: frozenset[str]
    inbound: Mapping[str, Queue[Any]]
    outbound: Mapping[str, Queue[Any]]
    results: Queue[Any]
    control: Connection
    life: Connection
    board: Board
    unreachable: tuple[str, ...]
    incarnation: int
    seed: int
    window: int
    journal: JournalSpec | None
    fork_captures: bool
    #: This node's place in the topology; where a store has its parts staged, and what it is restored from.
    index: int
    place: Place | None
    origin: Origin | None
    #: Where it is to come to harm; none outside of tests.
    failpoints: tuple[Failpoint, ...] = ()


def node_main(spec: NodeSpec, release: Callable[[], None] | None) -> NoReturn:
    """Be a node; never returns. `release` closes what a fork inherited and must not hold."""
    # Ctrl-C and the end of a terminal reach every process of it; only the supervisor answers, and asks nodes to stop.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    # A forked node has the parent's wakeup descriptor: a signal here would ring there.
    signal.set_wakeup_fd(-1)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT, signal.SIGTERM, signal.SIGHUP})
    lifeline.tie(spec.life.fileno())
    spec.life.close()
    if release is not None:
        release()
    # Where a hook hangs, the supervisor asks for the stack before it kills; this works in a loop in C too.
    faulthandler.register(signal.SIGUSR1, file=2, all_threads=True)
    # Elsewhere than that one, which is for whoever reads stderr: this is for whoever asks `why`.
    faulthandler.register(signal.SIGUSR2, file=_stack_file(), all_threads=True)
    # A print in a hook must not get between the lines of the document on stdout.
    os.dup2(2, 1)
    # Nor may it wait in a buffer: a node that dies takes that along, and it may be what explains the death.
    sys.stdout = sys.stderr
    arm(spec.failpoints, spec.incarnation)
    (_Stumbling if spec.failpoints else NodeProcess)(spec).run()


def _stack_file() -> int:
    file = os.memfd_create(STACK_FILE, os.MFD_CLOEXEC)
    # So that whoever has read it can empty it, and what is written next stands at the beginning.
    fcntl.fcntl(file, fcntl.F_SETFL, os.O_APPEND)
    return file


class NodeProcess(Driver):
    """Drive one `NodeCore` from this process's pipes."""

    def __init__(self, spec: NodeSpec) -> None:
        self._spec = spec
        self._phase_at, self._turn_at, self._busy_at = spec.board.node_slots(spec.name)
        self._words = spec.board.words
        self._core: NodeCore
        self._receivers = {src: QueueReceiver(queue) for src, queue in spec.inbound.items()}
        self._senders = {dst: QueueSender(queue) for dst, queue in spec.outbound.items()}
        self._taken_slots = {src: spec.board.taken_slot(Channel(src, spec.name)) for src in self._receivers}
        self._outbound: Outbound
        self._answers: Answers
        self._parts = Parts(spec.place, spec.index)
        self._control = FrameReader(spec.control.fileno())
        self._on_note: dict[object, Callable[..., None]] = {
            "go": self._on_go,
            "pause": self._on_pause,
            "trigger": self._on_trigger,
            "abandon": self._on_abandon,
            "command": self._on_command,
            "release": self._parts.staging.release,
            "pass": self._on_pass,
            "halt": self._on_halt,
            "stop": self._on_stop,
        }
        close_reader(spec.results)
        self._results = FrameWriter(writer_fd(spec.results))
        self._journal: FileJournal | None = None
        self._phase = ""
        #: The hook that runs or has run last.
        self._hook = ""
        #: Whether what is being read is the only thing that has arrived.
        self._lone = False
        #: By hook, whether it ran long the last time: then what it sends is not kept waiting.
        self._slow: dict[str, bool] = {}
        #: For how many seconds hooks have run.
        self._busy = 0.0
        #: Whether the supervisor has to hear of a snapshot that begins now: of one that it has triggered it knows, and
        #: would wake up for nothing while the nodes need the processor.
        self._acknowledges = True
        #: Whether every node is ready, and none has to pause, so that hooks may run.
        self._running = False
        self._stopping = False
        #: Whether `on_stop` has run, and only items are seen to.
        self._halted = False
        self._epoll = select.epoll()
        self._on_readable: dict[int, Callable[[], None]] = {}
        #: Descriptors whose writability is waited for.
        self._awaited: set[int] = set()
        self._captures = Captures(
            spec.name,
            spec.fork_captures,
            self._parts.open_file,
            watch=self._register,
            unwatch=self._unregister,
            ended=self._on_encoded,
        )

    # -------------------------------------------------------------------- life

    def run(self) -> NoReturn:
        """Live until stopped or failed."""
        try:
            self._boot()
            passive = False
            while not self._stopping:
                self._wait(passive)
                passive = self._core.passive
                if not passive and self._running and not self._stopping:
                    self._turn()
                    passive = self._core.passive
            self._leave()
        except BaseException as error:
            self._fail(error)
        os._exit(EXIT_STOPPED)

    def _boot(self) -> None:
        spec = self._spec
        self._words[self._phase_at] = PHASE_NUMBER["importing"]
        fail_at("import")
        node_class = spec.program.load()
        cluster = [load_node_class(reference) for reference in spec.references]
        core, node = stumbling(NodeCore if spec.journal is None else JournaledCore, node_class)
        core_class: Callable[..., NodeCore] = core
        if spec.journal is not None:
            self._journal = FileJournal(spec.journal, sorted(spec.inbound), sorted(spec.outbound), self.log)
            core_class = partial(core_class, journal=self._journal)
        self._core = core_class(
            spec.name,
            node(),
            inbound=tuple(spec.inbound),
            outbound=tuple(spec.outbound),
            unreachable=spec.unreachable,
            incarnation=spec.incarnation,
            seed=spec.seed,
            codec=codec_of(node_class, cluster),
            driver=self,
            clock=time.monotonic,
            restored=None if spec.origin is None else spec.origin.part(spec.name),
        )
        self._outbound = self._make_outbound()
        self._answers = Answers(self._core, self._tell)
        self._on_note.update(self._answers.on_note)
        fail_at("setup" if spec.origin is None else "restore")
        self._core.start(dict(spec.program.params))
        self._register(self._control.fd, self._read_control)
        for src, receiver in self._receivers.items():
            self._register(receiver.fileno(), partial(self._read_channel, src, receiver))
        self._outbound.flush(all_of_it=True)
        self._tell("ready")
        fail_at("ready")

    def _make_outbound(self) -> Outbound:
        spec = self._spec
        channels = {dst: Channel(spec.name, dst) for dst in self._senders}
        outbound = Outbound(
            spec.name,
            # With a journal, the node's own outboxes are emptied message by message, for each to be noted.
            {dst: Outbox(dst, 0) for dst in channels} if self._journal else self._core.protocol.outboxes,
            self._senders,
            {dst: (spec.board.sent_slot(each), spec.board.taken_slot(each)) for dst, each in channels.items()},
            self._words,
            spec.window,
            await_writable=self._await_writable,
            interrupt=self._core.interrupt,
        )
        if self._journal is None:
            # Called from within hooks: straight to where it goes.
            self.offer = outbound.offer  # type: ignore[method-assign]
        return outbound

    def _leave(self) -> None:
        fail_at("leaving")
        # Whatever is still being encoded, its snapshot was lost when the stop was asked for.
        self._captures.close()
        if not self._halted:
            fail_at("on_stop")
            self._core.stop()
        self._outbound.flush(all_of_it=True)
        self._publish_counts()
        if self._journal is not None:
            self._journal.close()
        self._tell("stopped")
        self._drain_results(None)
        self._parts.staging.close()
        for stream in (sys.stdout, sys.stderr):
            # A program may run without them, and a hook may have closed them; the node has stopped all the same.
            with contextlib.suppress(AttributeError, ValueError, OSError):
                stream.flush()

    def _fail(self, error: BaseException) -> NoReturn:
        try:
            self._publish_counts()
            if self._journal is not None:
                self._journal.close()
            if self._running and self._phase != "capture":
                # The board may still say what ran before: it is not written to after each hook.
                self.phase(self._core.hook)
            in_hand = self._core.in_hand if self._running else None
            self._tell("failed", self._phase_in_words(), *blame(error), in_hand)
            self._captures.close()
            self._drain_results(LAST_WORDS_SECONDS)
        finally:
            os._exit(EXIT_FAILED)

    def _phase_in_words(self) -> str:
        return self._spec.board.phase(self._spec.name)

    def _drain_results(self, seconds: float | None) -> None:
        poll = select.poll()
        poll.register(self._results.fd, select.POLLOUT)
        deadline = None if seconds is None else time.monotonic() + seconds
        while not self._results.flush() and (deadline is None or time.monotonic() < deadline):
            poll.poll(100)

    # -------------------------------------------------------------------- loop

    def _register(self, fd: int, act: Callable[[], None]) -> None:
        self._on_readable[fd] = act
        self._epoll.register(fd, select.EPOLLIN)

    def _unregister(self, fd: int) -> None:
        del self._on_readable[fd]
        self._epoll.unregister(fd)

    def _wait(self, passive: bool) -> None:
        # Nearly always a node waits for an item and for nothing else.
        timeout = None if passive and self._journal is None else self._timeout()
        events: Sequence[tuple[int, int]] = ()
        if timeout == 0.0 or self._outbound.waiting:
            # What has just arrived may add to the batches that wait, so it is looked at before they leave.
            events = self._epoll.poll(0)
        if timeout != 0.0 and not events:
            if self._outbound.waiting:
                self._outbound.flush(all_of_it=True)
            if self._phase != "waiting":
                self.phase("waiting")
            events = self._epoll.poll(timeout)
        now = time.monotonic()
        if self._journal is not None:
            self._journal.turn(now)
        self._words[self._turn_at] = int(now * 1e9)
        self._outbound.now = now
        self._lone = len(events) == 1
        on_readable = self._on_readable
        for fd, mask in events:
            if mask != _WRITABLE and fd in on_readable:
                on_readable[fd]()
            elif fd == self._results.fd:
                self._write_results()
            elif fd in self._awaited:
                self._outbound.writable(fd)
        if self._outbound.waiting:
            self._outbound.flush(all_of_it=False)

    def _timeout(self) -> float | None:
        if not self._running:
            return None
        room = self._room()
        wanted = self._core.wants(sources=room > 1) if room else None
        if wanted == 0.0:
            return 0.0
        # No longer than the kernel takes: a timer may be months away.
        waits = [] if wanted is None else [min(LONGEST_WAIT_SECONDS, max(0.0, wanted - time.monotonic()))]
        if room < 2 and not self._core.passive:
            waits.append(WINDOW_POLL_SECONDS)
        if self._journal is not None and self._journal.due is not None:
            waits.append(max(0.0, self._journal.due - time.monotonic()))
        return min(waits) if waits else None

    def _turn(self) -> None:
        core, outbound, clock = self._core, self._outbound, time.monotonic
        outbound.now = began = before = clock()
        until = before + TURN_SECONDS
        runs, busy = 0, True
        while busy and before < until:
            room = self._room()
            if not room or not core.run(sources=room > 1, now=before, until=until):
                break
            outbound.now = outbound.hook_ended = clock()
            self._slow[self._hook] = outbound.eager = outbound.now - before >= SLOW_SECONDS
            before = outbound.now
            runs += 1
            busy = core.busy
        self._busy += before - began
        self._words[self._busy_at] = int(self._busy * 1e9)
        if outbound.waiting:
            # Where little is to be done, what was sent leaves before anything else is seen to: its receivers wake up
            # meanwhile, and nothing is gained by a look for more.
            outbound.flush(all_of_it=runs == 1 and not busy)
        if outbound.full or outbound.told:
            self._report_full_channels()

    def _report_full_channels(self) -> None:
        report = self._outbound.full_report()
        if report is not None:
            self._tell("blocked", *report)

    def _room(self) -> int:
        """Return 2 if any hook may run, 1 if only the handling of what has arrived may, 0 if none may."""
        # First what is nearly always so, and costs next to nothing.
        room = self._outbound.room() if self._outbound.crowded else 2
        return 0 if self._results.backlog and self._results.backlog_bytes > RESULT_BACKLOG_BYTES else room

    def _write_results(self) -> None:
        self._await_writable(self._results.fd, not self._results.flush())

    def _publish_counts(self) -> None:
        if hasattr(self, "_outbound"):
            self._outbound.publish()
            for src in self._receivers:
                self.taken(src, self._core.protocol.received(src))

    def _await_writable(self, fd: int, wanted: bool) -> None:
        if wanted and fd not in self._awaited:
            self._epoll.register(fd, select.EPOLLOUT)
            self._awaited.add(fd)
        elif not wanted and fd in self._awaited:
            self._epoll.unregister(fd)
            self._awaited.remove(fd)

    # ------------------------------------------------------------------- input

    def _read_channel(self, src: str, receiver: QueueReceiver) -> None:
        items = receiver.receive()
        for item in items:
            if isinstance(item, Marker):
                self._core.receive_marker(src, item)
            elif self._lone and len(items) == 1 and len(item[1]) == 1 and self._may_deliver():
                self._deliver(src, *item)
            else:
                self._core.receive_batch(src, *item)

    def _may_deliver(self) -> bool:
        # Where there might be no room the long way is gone, which looks.
        return self._running and not self._outbound.crowded and not self._results.backlog and self._core.passive

    def _deliver(self, src: str, number: int, payloads: Sequence[object]) -> None:
        """Have a lone message handled on the shortest way: nothing else waits here that it could keep waiting."""
        outbound = self._outbound
        try:
            (payload,) = payloads
        except CodecError:
            # The long way raises it too, and names the channel.
            self._core.receive_batch(src, number, payloads)
            raise
        began = outbound.now
        self._core.deliver(src, number, payload)
        self._core.forget_pace()
        self.taken(src, number)
        outbound.now = outbound.hook_ended = time.monotonic()
        self._busy += outbound.now - began
        self._words[self._busy_at] = int(self._busy * 1e9)
        self._slow["on_message"] = outbound.now - began >= SLOW_SECONDS
        if outbound.waiting and self._core.passive:
            outbound.flush(all_of_it=True)

    def _read_control(self) -> None:
        for kind, *content in self._control.read():
            self._on_note[kind](*content)
        if self._control.ended:
            raise ClusterError("the supervisor has closed the control pipe", where=self._spec.name)

    def _on_go(self) -> None:
        self._running = True
        fail_at("after_go")

    def _on_pause(self) -> None:
        # No hook runs, and everything else goes on: items are seen, markers are acted upon, questions are answered.
        self._running = False

    def _on_trigger(self, told: ToldId, acknowledged: bool) -> None:
        self._acknowledges = acknowledged
        self._core.initiate(SnapshotId(*told))
        self._acknowledges = True

    def _on_abandon(self, told: ToldId) -> None:
        snapshot_id = SnapshotId(*told)
        awaited = self._core.abandon(snapshot_id)
        if self._captures.abandon(snapshot_id) and awaited is None:
            awaited = ()
        self._parts.forget(snapshot_id)
        self._answers.forget(snapshot_id)
        self._tell("abandoned", snapshot_id, awaited)

    def _on_pass(self, told: ToldId) -> None:
        self._parts.let_pass(SnapshotId(*told))

    def _on_halt(self) -> None:
        # From now on nothing of the user's runs here, so that the last snapshot holds what `on_stop` has left.
        self._running = False
        self._halted = True
        fail_at("on_stop")
        self._core.stop()
        self._tell("halted")
        fail_at("after_halt")

    def _on_command(self, ticket: int, command: bytes) -> None:
        self._core.command(ticket, command)

    def _on_stop(self) -> None:
        self._stopping = True

    def _on_encoded(self, encoding: Encoding) -> None:
        if encoding.error is not None:
            self._core.refuse(encoding.snapshot_id, encoding.error)
        elif encoding.local is not None:
            self.report(encoding.local)

    # ------------------------------------------------------------------ output

    def _tell(self, *note: object) -> None:
        self._results.post(note)
        if self._results.backlog:
            self._await_writable(self._results.fd, True)

    def send(self, dst: str, number: int, payload: object) -> None:
        self._outbound.send(dst, payload)

    def send_marker(self, dst: str, marker: Marker) -> None:
        snapshot_id, sent = marker
        self._outbound.send_markers(snapshot_id, {dst: sent})

    def send_markers(self, snapshot_id: SnapshotId, sent: Mapping[str, int]) -> None:
        self._outbound.send_markers(snapshot_id, sent)

    def taken(self, src: str, received: int) -> None:
        self._words[self._taken_slots[src]] = received

    def initiated(self, snapshot_id: SnapshotId) -> None:
        if self._acknowledges:
            self._tell("initiated", snapshot_id)

    def fix(self, snapshot_id: SnapshotId | None, encode: Encode) -> bytes | UnfinishedState:
        fixed = self._captures.fix(snapshot_id, encode)
        if snapshot_id is not None:
            self._answers.times[snapshot_id] = [time.monotonic()]
        return fixed

    def report(self, local: LocalSnapshot) -> None:
        captured = local.captured
        assert isinstance(captured, Captured)
        state = captured.state
        if isinstance(state, Encoding) and state.receipt is None:
            self._answers.times[local.snapshot_id].append(time.monotonic())
            state.local = local  # `_on_encoded` comes back with it.
            return
        self._hand_over(local)

    def _hand_over(self, local: LocalSnapshot) -> None:
        times = self._answers.times.pop(local.snapshot_id)
        if len(times) == 1:
            times.append(time.monotonic())
        try:
            handed_over = self._parts.hand_over(local, self._captures)
        except (OSError, StoreError) as error:
            why = SnapshotError(f"staging its part failed: {error}", where=self._spec.name)
            self._core.refuse(local.snapshot_id, why)
        else:
            self._tell("report", local.snapshot_id, handed_over, times)

    def refused(self, snapshot_id: SnapshotId, error: MpsnapError) -> None:
        self._answers.forget(snapshot_id)
        blamed = blame(error)
        self._tell("refused", snapshot_id, blamed.what, blamed.where, blamed.hint)

    def emit(self, n: int, record: bytes) -> None:
        self._tell("emitted", n, record)

    def reply(self, ticket: int, value: bytes) -> None:
        self._tell("replied", ticket, value)

    def log(self, text: str) -> None:
        self._tell("logged", one_line(text))

    def phase(self, phase: str) -> None:
        if phase != self._phase:
            self._phase = phase
            self._words[self._phase_at] = PHASE_NUMBER[phase]
            if self._running and phase in _HOOKS:
                self._hook = phase
                self._outbound.eager = self._slow.get(phase, True)
                if self._outbound.eager and self._outbound.waiting:
                    # What quick hooks have sent does not wait for a slow one.
                    self._outbound.flush(all_of_it=True)


class _Stumbling(NodeProcess):
    """Meet the moments that a snapshot goes through, for a node that is to come to harm; no other looks for them."""

    # One after another, as for a driver that cannot send them at once.
    send_markers = Driver.send_markers

    def send_marker(self, dst: str, marker: Marker) -> None:
        super().send_marker(dst, marker)
        fail_at("mid_markers")

    def fix(self, snapshot_id: SnapshotId | None, encode: Encode) -> bytes | UnfinishedState:
        if snapshot_id is None:
            return super().fix(None, encode)
        if self._halted:
            fail_at("last_record")
        fail_at("before_record")
        fixed = super().fix(snapshot_id, encode)
        fail_at("after_record")
        return fixed

    def _hand_over(self, local: LocalSnapshot) -> None:
        fail_at("before_report")
        super()._hand_over(local)

    def _tell(self, *note: object) -> None:
        if note[0] != "report":
            super()._tell(*note)
            return
        fail_at("after_stage")
        super()._tell(*note)
        fail_at("after_report")
