"""The pure part of a running node: one user's `Node`, its protocol, its timers; hooks in, effects out.

This module owns when a hook runs and what may happen inside it, so that a node means the same in every driver. It must
not know processes, pipes or real time: the driver hands in a clock, offers items and carries out what is asked.

Rules a maintainer keeps:

- The protocol is fed between hooks only, and a wish to snapshot from inside a hook waits for the hook to return: a
  hook that has debited an account and not yet sent the money would otherwise be cut in two, and no count could show it.
- Values are fixed where the user lets go of them: payloads in `send`, timer arguments in `set_timer`, records in
  `emit`, the state in the capture (its bytes may come later, if a driver can see to it that they are the same).
- `step` runs at most one hook, in the order commands, due timers, messages, idle; between two steps the driver may
  offer items. `run` does the same and takes messages of one channel in a row, as long as nothing asks for more than
  the next message: a wish to snapshot, a timer, a driver whose channels are full.
- An exception of a hook leaves `step` as it is; the node is then dead and the driver says so. A capture that fails
  costs the snapshot, not the node.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Sequence
from itertools import islice
from operator import length_hint
from typing import Any, TypeVar

from mpsnap.core.codec import Codec, encoded, freeze, thaw
from mpsnap.core.driver import Driver
from mpsnap.core.errors import CodecError, MpsnapError, ProtocolError, SnapshotError
from mpsnap.core.node import Context, Node, looked_up_by_place
from mpsnap.core.outgoing import Outgoing
from mpsnap.core.protocol import Effect, LocalSnapshot, Marker, SendMarkers, SnapshotId, SnapshotProtocol
from mpsnap.core.rng import CounterRandom
from mpsnap.core.snapshot import Captured, UnfinishedState
from mpsnap.core.timers import Timers

T = TypeVar("T")

_HOOKS_THAT_ACT = frozenset({"on_message", "on_idle", "on_timer", "on_command"})
_MAY_SEND = _HOOKS_THAT_ACT | {"setup"}
_MAY_EMIT = _MAY_SEND | {"on_stop"}

#: Messages of one channel that are taken in a row, so that a busy one does not keep the others waiting.
RUN_MESSAGES = 64
#: Looking at the clock costs as much as a quick hook does. Where hooks are quick, it is looked at after so many of
#: them; and quick are those of which so many take no longer than this.
STRIDE, QUICK_SECONDS = 8, 0.0001


def _protocol(
    name: str,
    inbound: Sequence[str],
    outbound: Sequence[str],
    capture: Callable[[], object],
    restored: LocalSnapshot | None,
) -> SnapshotProtocol:
    if restored is None:
        return SnapshotProtocol(name, inbound, outbound, capture)
    if restored.node != name:
        raise ProtocolError(f"{name} cannot be restored from the part of {restored.node}", where=name)
    inboxes = {src: _unpacked(src, name, state.payloads) for src, state in restored.channels.items()}
    return SnapshotProtocol(
        name, inbound, outbound, capture, sent=restored.sent, received=restored.received, inboxes=inboxes
    )


def _unpacked(src: str, dst: str, payloads: Sequence[object]) -> list[object]:
    try:
        return list(payloads)
    except CodecError as error:
        raise CodecError(error.what, where=f"{src}->{dst}", hint=error.hint) from error


def _state(captured: Captured) -> bytes:
    assert not isinstance(captured.state, UnfinishedState), "a snapshot is put together of finished parts"
    return captured.state if isinstance(captured.state, bytes) else captured.state.read()


def _captured(local: LocalSnapshot) -> Captured:
    assert isinstance(local.captured, Captured)
    return local.captured


class _Pace:
    """Know after how many messages of a row the clock is looked at."""

    __slots__ = ("_began", "stride", "unmeasured")

    def __init__(self) -> None:
        self.stride = 1
        #: When the last row began, and whether nothing is known of how long it took.
        self._began = 0.0
        self.unmeasured = False

    def begin(self, now: float) -> None:
        """Note that a row begins."""
        if self.unmeasured:
            # The last row ended before its time was taken; if the node has slept since, this errs on the safe side.
            self.stride = STRIDE if now - self._began < QUICK_SECONDS else 1
        self.unmeasured, self._began = True, now


class NodeCore:
    """Run one node's hooks for a driver.

    Args:
        name: The node's name.
        node: The user's node, freshly constructed.
        inbound: Names of the nodes with a channel to this one.
        outbound: Names of the nodes this one has a channel to.
        unreachable: Nodes that markers from here cannot reach.
        incarnation: Part of the ids of snapshots begun here; every recovery begins a higher one, or ids would repeat.
        seed: Of the run; each node draws its own stream from it.
        codec: Of the node's class.
        driver: Carries out effects.
        clock: Seconds on a scale of the driver's own; never goes back.
        restored: This node's part of the snapshot that the cluster goes on from; None for a fresh start.

    Raises:
        ProtocolError: What is restored is another node's, of no earlier incarnation, or belongs to a channel that this
            node does not have.
        CodecError: A recorded message cannot be read.
    """

    def __init__(
        self,
        name: str,
        node: Node,
        *,
        inbound: Sequence[str],
        outbound: Sequence[str],
        unreachable: Sequence[str],
        incarnation: int,
        seed: int,
        codec: Codec,
        driver: Driver,
        clock: Callable[[], float],
        restored: LocalSnapshot | None = None,
    ) -> None:
        self.name = name
        self.codec = codec
        if restored is not None and restored.snapshot_id.incarnation >= incarnation:
            raise ProtocolError(f"incarnation {incarnation} cannot go on from {restored.snapshot_id}", where=name)
        self.protocol = _protocol(name, inbound, outbound, self._capture, restored)
        self._node = looked_up_by_place(node)
        self._driver = driver
        self._tells_phases = type(driver).phase is not Driver.phase
        self._clock = clock
        self._unreachable = tuple(unreachable)
        self._incarnation = incarnation
        self._outgoing = Outgoing(name, self.protocol.outboxes, codec, driver)
        self._ctx = Context(self, self._outgoing, CounterRandom(f"{seed}:{name}"))
        #: The hook that is running, or "waiting" between hooks.
        self._hook = "waiting"
        #: Who has sent the message that is being handled, or was the last.
        self._sender = ""
        #: Whether no further message is to be taken in a row; and how fast hooks are, as far as is known.
        self._interrupted = False
        self._pace = _Pace()
        #: Inbound channels with something to take, each once, the next one first.
        self._ready = deque(src for src in self.protocol.inbound if self.protocol.waiting(src))
        #: Commands not yet handled.
        self._commands: deque[tuple[int, bytes]] = deque()
        self._timers = Timers()
        #: Whether the last hook was a timer's: then a message goes first, or timers that are always late would keep all
        #: messages from ever being taken.
        self._timer_was_last = False
        self._has_idle = type(node).on_idle is not Node.on_idle
        #: Whether `on_idle` is to be called when there is nothing else to do.
        self._idle_wanted = self._has_idle
        self._finished = False
        self._emitted = 0
        self._spontaneous = 0
        #: What is to be recorded and whose marker caused it, None if none did; None while nothing is.
        self._cause: tuple[SnapshotId, str | None] | None = None
        #: Snapshots begun inside the hook that is running.
        self._wishes: list[SnapshotId] = []
        self._restored = None if restored is None else _captured(restored)

    # ---------------------------------------------------------------- life

    def start(self, params: dict[str, Any]) -> None:
        """Run `setup` and `on_start`, then capture once for nothing, so that a state that cannot be kept shows now.

        A restored node takes its state back in place of `setup`.
        """
        if self._restored is None:
            self._run("setup", lambda: self._node.setup(self._ctx, **params))
            self._run("on_start", lambda: self._node.on_start(self._ctx))
        else:
            captured, self._restored = self._restored, None
            self._restore(captured)
        self._capture()

    def _restore(self, captured: Captured) -> None:
        """Go on where the cut was; what is not the user's state comes last, whatever `on_start` does."""
        seed, counter = captured.random
        # One object for good: the node may keep it from `on_start` on.
        object.__setattr__(self._ctx, "random", CounterRandom(seed, counter))
        self._run("restore", lambda: self._node.restore(self.codec.decode(_state(captured))))
        self._run("on_start", lambda: self._node.on_start(self._ctx))
        self.random.counter = counter
        self._emitted = captured.emitted
        self._finished = self._finished or captured.finished
        # Why a node was not passive the cut does not say. One idle call too many does no harm, one too few does.
        self._idle_wanted = self._has_idle and not (self._finished or captured.passive)
        if not self._finished:
            now = self._clock()
            for timer in captured.timers:
                self._timers.push(now + timer.remaining, timer.period, timer.method, timer.args)

    def stop(self) -> None:
        """Run `on_stop`."""
        self._run("on_stop", lambda: self._node.on_stop(self._ctx))

    @property
    def random(self) -> CounterRandom:
        """The node's random numbers."""
        return self._ctx.random

    @property
    def hook(self) -> str:
        """The hook that is running, or "waiting"."""
        return self._hook

    @property
    def in_hand(self) -> tuple[str, int] | None:
        """The sender and the number of the message that is being handled, None outside of `on_message`."""
        return (self._sender, self.protocol.received(self._sender)) if self._hook == "on_message" else None

    @property
    def passive(self) -> bool:
        """Whether nothing is left to do here until a message comes: the paper's idle state of a process."""
        return not (self._ready or self._commands or self._timers.heap or self._idle_wanted)

    # --------------------------------------------------------------- items

    def receive_batch(self, src: str, first: int, payloads: Sequence[object]) -> None:
        """See messages from `src`, numbered from `first`."""
        if self.protocol.receive_batch(src, first, payloads):
            self._ready.append(src)

    def deliver(self, src: str, number: int, payload: object) -> bool:
        """See one message and handle it at once, for a driver that never lets messages wait: see and `step` in one.

        Returns:
            Whether an idle call is wanted or a timer is set now.
        """
        self.protocol.receive_and_take(src, number, payload)
        self._handle(src, payload)
        return self._idle_wanted or bool(self._timers.heap)

    def forget_pace(self) -> None:
        """Take nothing for granted of how long hooks run: `deliver` does not look."""
        self._pace.stride = 1

    def receive_marker(self, src: str, marker: Marker) -> None:
        """See a marker from `src`."""
        snapshot_id, sent = marker
        self._cause = snapshot_id, src
        try:
            effects = self.protocol.receive_marker(src, snapshot_id, sent)
        except SnapshotError as error:
            self.refuse(snapshot_id, error)
        else:
            if effects:
                self._carry_out(effects)
        self._cause = None

    def initiate(self, snapshot_id: SnapshotId) -> None:
        """Record spontaneously."""
        self._cause = snapshot_id, None
        try:
            effects = self.protocol.initiate(snapshot_id)
        except SnapshotError as error:
            self.refuse(snapshot_id, error)
        else:
            # Behind the markers, which others wait for, and in front of the report: so that nobody hears of the end of
            # a snapshot before its beginning.
            first = 1 if effects and isinstance(effects[0], SendMarkers) else 0
            self._carry_out(effects[:first])
            self._driver.initiated(snapshot_id)
            self._carry_out(effects[first:])
        self._cause = None

    def abandon(self, snapshot_id: SnapshotId) -> tuple[str, ...] | None:
        """Give a snapshot up; return the sources whose marker it still awaited, None if it was not recording here."""
        awaited = self.protocol.open_channels().get(snapshot_id)
        self.protocol.abandon(snapshot_id)
        return awaited

    def command(self, ticket: int, command: bytes) -> None:
        """Queue an encoded command for `on_command`; the reply bears the same ticket."""
        self._commands.append((ticket, command))

    def refuse(self, snapshot_id: SnapshotId, error: SnapshotError) -> None:
        """Give a snapshot up because the state could not be kept, at once or as it turned out; the node goes on."""
        # At once means before any change: only the capture raises that. Later only what was recorded is dropped.
        self._driver.phase(self._hook)
        self.protocol.abandon(snapshot_id)
        self._driver.refused(snapshot_id, error)

    def _carry_out(self, effects: tuple[Effect, ...]) -> None:
        for effect in effects:
            if isinstance(effect, SendMarkers):
                self._driver.send_markers(effect.snapshot_id, effect.sent)
            else:
                self._driver.report(effect.local)

    # --------------------------------------------------------------- hooks

    @property
    def next_timer(self) -> float | None:
        """When the next timer is due, on the driver's clock; None if there is none."""
        return self._timers.heap[0].due if self._timers.heap else None

    @property
    def idle_wanted(self) -> bool:
        """Whether `on_idle` is to be called when there is nothing else to do."""
        return self._idle_wanted

    @property
    def busy(self) -> bool:
        """Whether there is a hook to run now, timers left aside."""
        return bool(self._ready or self._commands or self._idle_wanted)

    def wants(self, *, sources: bool) -> float | None:
        """Return when `step` has something to run: 0 for now, a time of the clock, None for not before an item."""
        if self._ready or self._commands or (sources and self._idle_wanted):
            return 0.0
        timers = self._timers.heap
        return timers[0].due if sources and timers else None

    def step(self, *, sources: bool) -> bool:
        """Run at most one hook and return whether one ran; timers and idle calls only if `sources` is true.

        A driver whose channels fill up stops the sources of new messages first and the handling of old ones last.
        """
        if self._commands:
            self._run_command()
        elif sources and self._timer_is_due() and not (self._timer_was_last and self._ready):
            self.run_timer()
            self._timer_was_last = True
            return True
        elif self._ready:
            self._take(self._ready.popleft())
        elif sources and self._idle_wanted:
            self.run_idle()
        else:
            return False
        self._timer_was_last = False
        return True

    def run(self, *, sources: bool, now: float, until: float) -> bool:
        """Do as `step` and, if it is a message's turn, take more of its channel's; return whether a hook ran.

        From the time `now` to `until`, by the clock, give or take a hook (or `STRIDE`, where quick ones are suddenly
        slow), and no more than `RUN_MESSAGES`.
        """
        timers = self._timers.heap
        timer_first = sources and timers and timers[0].due <= now and not self._timer_was_last
        if self._commands or timer_first or not self._ready:
            return self.step(sources=sources)
        self._timer_was_last = False
        self._pace.begin(now)
        src = self._ready.popleft()
        self._take_in_a_row(src, now, until)
        self._end(self._has_idle)
        return True

    def _take_in_a_row(self, src: str, now: float, until: float) -> None:
        taking = self.protocol.taking(src)
        self._begin("on_message")
        self._sender = src
        node, ctx, make, clock = self._node, self._ctx, self.codec.rows.make, self._clock
        self._interrupted = False
        pace, left = self._pace, RUN_MESSAGES
        while left > 0:
            stride = min(pace.stride, left)
            left -= stride
            for payload in islice(taking, stride):
                # `thaw` written out. The hook is looked up each time: one may have made its node behave in another way.
                node.on_message(ctx, src, make(payload) if type(payload) is list else payload)
                if self._interrupted:
                    break
            if self._interrupted or not length_hint(taking):
                break
            before, now = now, clock()
            pace.stride = STRIDE if now - before < QUICK_SECONDS else 1
            pace.unmeasured = False
            if now >= until:
                break
        self._put_back(src)

    def _put_back(self, src: str) -> None:
        waiting = self.protocol.waiting(src)
        if waiting:
            # To the back: one busy channel must not starve the others.
            self._ready.append(src)
        self._driver.taken(src, self.protocol.seen(src) - waiting)

    def interrupt(self) -> None:
        """Let `run` take no further message after the hook that is running."""
        self._interrupted = True

    def _timer_is_due(self) -> bool:
        return bool(self._timers.heap) and self._timers.heap[0].due <= self._clock()

    def take(self, src: str) -> None:
        """Run `on_message` for the oldest message that waits from `src`, for a driver that chooses whose turn it is.

        Raises:
            ProtocolError: None waits.
        """
        if src not in self._ready:
            raise ProtocolError(f"nothing from {src} waits at {self.name}", where=f"{src}->{self.name}")
        self._ready.remove(src)
        self._take(src)

    def _take(self, src: str) -> None:
        payload = self.protocol.take(src)
        self._put_back(src)
        self._handle(src, payload)

    def _handle(self, src: str, payload: object) -> None:
        value = thaw(payload, self.codec)
        # `_run` and `_begin` written out: this is what runs once per message.
        self._sender = src
        self._hook = "on_message"
        self._outgoing.allow(True)
        if self._tells_phases:
            self._driver.phase("on_message")
        self._node.on_message(self._ctx, src, value)
        self._end(self._has_idle)

    def _run_command(self) -> None:
        ticket, command = self._commands.popleft()
        value = self.codec.decode(command)
        where = f"{self.name}: reply of on_command"
        # Encoded as part of the hook: a reply that is no plain data is the hook's failure.
        reply = self._run("on_command", lambda: self.codec.encode(self._node.on_command(self._ctx, value), where=where))
        self._driver.reply(ticket, reply)

    def run_idle(self) -> None:
        """Run `on_idle`, wanted or not."""
        self._run("on_idle", lambda: self._node.on_idle(self._ctx))

    def run_timer(self) -> None:
        """Run the next timer, due or not; there must be one."""
        timer = self._timers.pop(self._clock())
        method, args = timer.method, thaw(timer.args, self.codec)
        assert isinstance(args, tuple)
        self._run("on_timer", lambda: getattr(self._node, method)(self._ctx, *args))

    def _run(self, hook: str, call: Callable[[], Any]) -> Any:
        self._begin(hook)
        result = call()
        self._end(result is True if hook == "on_idle" else self._has_idle)
        return result

    def _begin(self, hook: str) -> None:
        self._hook = hook
        self._outgoing.allow(hook in _MAY_SEND)
        if self._tells_phases:
            self._driver.phase(hook)

    def _end(self, idle_wanted: bool) -> None:
        self._hook = "waiting"
        self._outgoing.allow(False)
        # Before the wishes: the cut says whether this node is passive, and any hook brings the idle calls back.
        self._idle_wanted = idle_wanted and not self._finished
        if self._wishes:
            wishes, self._wishes = self._wishes, []
            for snapshot_id in wishes:
                self.initiate(snapshot_id)

    # ------------------------------------------------- what a hook may do

    def refusal(self, dst: str) -> ProtocolError:
        """Return why nothing can be sent there now; see `Context.send`."""
        return self._outgoing.no_channel(dst) if self._hook in _MAY_SEND else self._not_now("send")

    def emit(self, record: object) -> None:
        """Fix, number and pass on one record; see `Context.emit`."""
        if self._hook not in _MAY_EMIT:
            raise self._not_now("emit")
        encoded = self.codec.encode(record, where=f"{self.name}: record")
        self._driver.emit(self._emitted, encoded)
        self._emitted += 1

    def wish_snapshot(self) -> SnapshotId:
        """Note a wish to snapshot, carried out when the hook has returned; see `Context.snapshot`."""
        if self._hook not in _HOOKS_THAT_ACT:
            raise self._not_now("snapshot")
        if self._unreachable:
            raise SnapshotError(
                f"markers from {self.name} cannot reach {', '.join(self._unreachable)}",
                where=self.name,
                hint="begin the snapshot from outside, which adds the initiators it needs",
            )
        snapshot_id = SnapshotId.spontaneous(self._incarnation, self.name, self._spontaneous)
        self._spontaneous += 1
        self._wishes.append(snapshot_id)
        self.interrupt()
        return snapshot_id

    def set_timer(self, seconds: float, period: float | None, method: str, args: tuple[object, ...]) -> None:
        """Fix and set one timer; see `Context.after`."""
        # Not in on_start: a restored node has its timers already, and would get each a second time.
        if self._hook not in _MAY_SEND:
            raise self._not_now("set timers")
        # A bool, a Fraction or a numpy number would come into the snapshot as it is.
        seconds = float(seconds)
        period = None if period is None else seconds
        if not (math.isfinite(seconds) and (seconds >= 0 if period is None else seconds > 0)):
            raise ValueError(f"a timer of {self.name} cannot wait for {seconds:g} seconds")
        if not callable(getattr(self._node, method, None)):
            raise ValueError(f"a timer of {self.name} names no method: {type(self._node).__name__}.{method}")
        if self._finished:
            return
        # They come into every capture until then.
        frozen = encoded(freeze(args, self.codec, where=f"{self.name}: arguments of timer {method}"), self.codec)
        self._timers.push(self._clock() + seconds, period, method, frozen)
        self.interrupt()

    def finish(self) -> None:
        """See `Context.finish`."""
        self._finished = True
        self._idle_wanted = False
        self._timers.clear()

    def log(self, text: str) -> None:
        """See `Context.log`."""
        self._driver.log(str(text))

    def _not_now(self, verb: str) -> ProtocolError:
        place = "outside a hook" if self._hook == "waiting" else f"in {self._hook}"
        return ProtocolError(f"{self.name} cannot {verb} {place}", where=self.name)

    # ------------------------------------------------------------- capture

    def fingerprint(self) -> tuple[Captured, object]:
        """Return all that decides what this node does next: what a capture says, and the rest as plain data."""
        return self._capture(), (self.protocol.fingerprint(), self._spontaneous, self._idle_wanted)

    def look(self) -> bytes:
        """Return the encoded local state as it is now, between two hooks; it belongs to no cut.

        Raises:
            SnapshotError: The node's capture raised, or what it returned is not plain data.
        """
        self._driver.phase("capture")
        try:
            state = self.codec.encode(self._node.capture(), where=f"{self.name}: state")
        except Exception as error:
            raise self._uncaptured(error) from error
        self._driver.phase(self._hook)
        return state

    def _capture(self) -> Captured:
        self._driver.phase("capture")
        # Whatever either part of the user's raises costs the snapshot and not the node.
        try:
            value = self._node.capture()
        except Exception as error:
            raise self._uncaptured(error) from error

        def encode(use: Callable[[memoryview], T]) -> T:
            try:
                return self.codec.encode_for(use, value, where=f"{self.name}: state")
            except Exception as error:
                raise self._uncaptured(error) from error

        state = self._driver.fix(None if self._cause is None else self._cause[0], encode)
        self._driver.phase(self._hook)
        timers = self._timers.remaining(self._clock()) if self._timers.heap else ()
        return Captured(state, timers, self._ctx.random.state, self.passive, self._finished, self._emitted)

    def _uncaptured(self, error: Exception) -> SnapshotError:
        if isinstance(error, MpsnapError):
            what, where, hint = error.what, error.where, error.hint
        else:
            what, where, hint = f"{type(error).__name__}: {error}", self.name, None
        return SnapshotError(f"{self.name} could not be captured: {what}", where=where, hint=hint)
