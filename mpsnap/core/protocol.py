"""The snapshot protocol of one node: both marker rules, the inbox and the numbering, and nothing else.

Source: K. M. Chandy and L. Lamport, "Distributed Snapshots: Determining Global States of Distributed Systems", ACM
TOCS 3(1), 1985. Every rule that makes a cut consistent stands in this file; read it beside the paper's section 3.

Two rules of the house. Every change of protocol state happens in a method of `SnapshotProtocol`. And nothing here
knows who drives it: there is no process, clock, queue, log or randomness, so that the same object runs in a process,
in a simulator and in a test.

**The two rules**, in the paper's words and ours:

    Marker-sending rule.    A node records its state, then sends one marker on each outbound channel before it sends
                            any further message there.                                                   `_record`
    Marker-receiving rule.  On a marker from channel c: a node that has not recorded does so now, and the state of c
                            is empty; one that has recorded fixes the state of c as the messages received along c
                            since.                                                                 `receive_marker`

**One refinement: the inbox.** A message is *seen* when the driver offers it and *taken* when the node's code gets it;
only taking counts as the paper's "received". What is seen and not yet taken stands in the channel's inbox and is
still, for the cut, in flight. The channel state is therefore what stands in the inbox at the record plus what is seen
until the marker. So a marker acts the moment it is seen, however many messages wait in front of it to be handled, and a
restored inbox is simply an inbox that starts filled.

**Its twin: the outbox.** A message is *sent* the moment it is put into its channel's outbox, and counts as such from
then on. The driver collects outboxes when it likes, many messages at a time, but always before it sends a marker there.

**Why each cut can prove itself.** Messages are numbered 1, 2, 3... per channel and a marker carries the count of its
sender, so a gap, a swap or an overtaking on the wire raises here at once. Each local snapshot carries how many messages
were sent and received (taken) per channel at the cut; the merge checks that channel states fill exactly the gap.

**The driver's contract.** Whoever drives a `SnapshotProtocol` promises:

1. One thread feeds it; the items of a channel are offered in channel order.
2. Effects are carried out in order and completely before the next item is offered or the node may send. In front of a
   marker goes whatever stands in the outbox of its channel.
3. Recording happens between hooks only. A hook that has debited and not yet sent would be cut in two, and no count
   could show it; so a wish to snapshot from inside a hook waits until the hook returns.
4. `capture` returns the local state *fixed*: bytes, or something that no later step can change. It is called once per
   snapshot, before any marker leaves.
5. A payload is fixed when it is sent: what cannot change as it is, anything else copied or encoded on the spot.
   Recorded messages hold that value, never a reference to something alive.
6. An illegal step raises `ProtocolError` and changes nothing.

**Finished ids are remembered** (completed and abandoned alike), so a late or second marker never begins a snapshot
anew: the closest published implementation forgets them and counts a message twice in every third of its cuts.
"""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from copy import copy
from functools import lru_cache
from itertools import chain
from operator import length_hint
from typing import NamedTuple, TypeVar, overload

from mpsnap.core.errors import CodecError, ProtocolError

_ID_TEXT = re.compile(r"(0|[1-9][0-9]*)-(.+)-([1-9][0-9]*)")


T = TypeVar("T")


class SnapshotId(NamedTuple):
    """Name one snapshot for ever: the incarnation, the first initiator, and a count of the initiator's own.

    Two parties number the snapshots of one initiator and neither waits for the other: the supervisor gives out the odd
    `n`, the node itself the even ones. A *series* is the ids of one party at one initiator.
    """

    incarnation: int
    initiator: str
    n: int

    def __str__(self) -> str:
        return f"{self.incarnation}-{self.initiator}-{self.n}"

    @classmethod
    def parse(cls, text: str) -> SnapshotId:
        """Read the text form `i-NAME-n` back; ValueError if it is none.

        >>> SnapshotId.parse("0-web-1-7")
        SnapshotId(incarnation=0, initiator='web-1', n=7)
        """
        # Not with `int` alone: it also reads 01, 1_0 and digits of other scripts, and an id has one text.
        match = _ID_TEXT.fullmatch(text)
        if match is None:
            raise ValueError(f"not a snapshot id: {text!r}")
        return cls(int(match[1]), match[2], int(match[3]))

    @classmethod
    def triggered(cls, incarnation: int, initiator: str, count: int) -> SnapshotId:
        """Return the id of the `count`-th snapshot (from 0) that the supervisor triggers at `initiator`."""
        return cls(incarnation, initiator, 2 * count + 1)

    @classmethod
    def spontaneous(cls, incarnation: int, initiator: str, count: int) -> SnapshotId:
        """Return the id of the `count`-th snapshot (from 0) that `initiator` begins by itself."""
        return cls(incarnation, initiator, 2 * count + 2)


class Marker(NamedTuple):
    """Stand on a channel between the messages before and after its sender's cut; `sent` counts those before it."""

    snapshot_id: SnapshotId
    sent: int


class Message(NamedTuple):
    """Carry a payload; `number` counts from 1 on its channel."""

    number: int
    payload: object


class ChannelState(NamedTuple):
    """Hold the messages in flight on one channel at the cut: `payloads[k]` has the number `first + k`."""

    first: int
    payloads: Sequence[object]


@lru_cache(maxsize=4096)
def empty_channel(first: int) -> ChannelState:
    """Return the state of a channel with nothing in flight: in a large graph most are, and alike can be the same."""
    return ChannelState(first, ())


class EmptyChannels(Mapping[str, ChannelState]):
    """Show inbound channels with nothing in flight on any of them; `received` says what was taken from each.

    So it is at most cuts, at most nodes, and then nothing is made for each channel unless somebody looks at it.
    """

    __slots__ = ("received",)

    def __init__(self, received: Mapping[str, int]) -> None:
        self.received = received

    def __getitem__(self, src: str) -> ChannelState:
        return empty_channel(self.received[src] + 1)

    def __iter__(self) -> Iterator[str]:
        return iter(self.received)

    def __len__(self) -> int:
        return len(self.received)

    def __repr__(self) -> str:
        return repr(dict(self))


class LocalSnapshot(NamedTuple):
    """Hold what one node contributes to a snapshot.

    `captured` is what the driver's capture returned; `sent` and `received` count messages per neighbour at the cut;
    `channels` has the state of each inbound channel by its source.
    """

    node: str
    snapshot_id: SnapshotId
    captured: object
    sent: Mapping[str, int]
    received: Mapping[str, int]
    channels: Mapping[str, ChannelState]

    @property
    def all_empty(self) -> bool:
        """Whether it is told of all channels at once that nothing is in flight behind what was received."""
        return isinstance(self.channels, EmptyChannels) and self.channels.received is self.received


class SendMarkers(NamedTuple):
    """Effect: on each outbound channel, send a marker behind all messages sent there so far and before any other.

    `sent` says for each channel how many messages those are, which is what its marker carries.
    """

    snapshot_id: SnapshotId
    sent: Mapping[str, int]


class Report(NamedTuple):
    """Effect: this node's part of a snapshot is complete; hand it to whoever collects."""

    local: LocalSnapshot


Effect = SendMarkers | Report


class Outbox:
    """Hold the messages to one neighbour that are sent and not yet collected, oldest first.

    Appending to `payloads` is sending. A message's number follows from its place, so nothing is counted meanwhile: that
    would cost a tenth of what sending costs.
    """

    __slots__ = ("_collected", "dst", "limit", "payloads")

    def __init__(self, dst: str, collected: int) -> None:
        self.dst = dst
        #: Payloads, each fixed.
        self.payloads: list[object] = []
        #: How many may stand here before the driver is told; the driver's to set.
        self.limit = 1
        self._collected = collected

    @property
    def sent(self) -> int:
        """How many messages were sent so far."""
        return self._collected + len(self.payloads)

    def collect(self) -> tuple[int, list[object]]:
        """Hand all that stands here to the driver: the number of the first message, and the payloads."""
        first, payloads = self._collected + 1, self.payloads
        self._collected += len(payloads)
        self.payloads = []
        return first, payloads

    def collect_one(self) -> tuple[int, object]:
        """Hand the one message that stands here to the driver: its number, and the payload."""
        self._collected += 1
        return self._collected, self.payloads.pop()


class _Inbox:
    """Hold the messages from one neighbour that are seen and not yet taken, oldest first.

    Taking is `next(oldest)`. It is a list's own iterator, whose place in the list is known at every moment, so that
    messages can be taken in a row at the speed of a loop and the count is right between any two of them.
    """

    __slots__ = ("_behind", "_later", "oldest")

    def __init__(self) -> None:
        self.oldest: Iterator[object] = iter([])
        #: The batches behind that, possibly packed, and how many messages are in them.
        self._later: deque[Sequence[object]] = deque()
        self._behind = 0

    def waiting(self) -> int:
        """Return how many messages stand here."""
        return length_hint(self.oldest) + self._behind

    def add(self, payloads: Sequence[object]) -> bool:
        """Put messages behind the others; return whether there are none."""
        if self._behind or length_hint(self.oldest):
            self._later.append(payloads)
            self._behind += len(payloads)
            return False
        self.oldest = iter(payloads)
        return True

    def advance(self) -> bool:
        """Go on to the next batch if the one in front is taken; return whether there is one."""
        if not length_hint(self.oldest):
            if not self._behind:
                return False
            # First this, which unpacks them, and may raise.
            self.oldest = iter(self._later[0])
            self._behind -= len(self._later.popleft())
        return True

    def batches(self) -> list[Sequence[object]]:
        """Return what stands here, without taking it."""
        return [list(copy(self.oldest)), *self._later]


class Chained(Sequence[object]):
    """Show batches of payloads one after another as one sequence, without touching what is in them."""

    __slots__ = ("_batches",)

    def __init__(self, batches: Iterable[Sequence[object]]) -> None:
        self._batches = tuple(batches)

    @property
    def batches(self) -> tuple[Sequence[object], ...]:
        """The batches, in order."""
        return self._batches

    def __len__(self) -> int:
        return sum(map(len, self.batches))

    def __iter__(self) -> Iterator[object]:
        return chain.from_iterable(self.batches)

    @overload
    def __getitem__(self, index: int) -> object: ...
    @overload
    def __getitem__(self, index: slice) -> tuple[object, ...]: ...
    def __getitem__(self, index: int | slice) -> object:
        return tuple(self)[index]

    def __eq__(self, other: object) -> bool:
        return tuple(self) == tuple(other) if isinstance(other, (Chained, tuple)) else NotImplemented

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        return f"<{len(self)} payloads>"


class _Recording:
    """A snapshot that this node has recorded and not yet reported."""

    __slots__ = ("batches", "captured", "open", "received", "sent")

    def __init__(self, captured: object, sent: dict[str, int], received: dict[str, int]) -> None:
        #: The node's state, fixed at the record.
        self.captured = captured
        #: Per outbound channel, messages sent before the cut. Never changes.
        self.sent = sent
        #: Per inbound channel, messages taken before the cut. Never changes.
        self.received = received
        #: Per inbound channel, batches of the recorded messages, in channel order; a channel without any is not in it.
        self.batches: dict[str, list[Sequence[object]]] = {}
        #: Inbound channels still recording. Only ever shrinks.
        self.open: set[str] = set()

    def add(self, src: str, *batches: Sequence[object]) -> None:
        """Put messages behind those recorded from `src`."""
        self.batches.setdefault(src, []).extend(batches)

    def payloads(self, src: str) -> Sequence[object]:
        """Return the messages recorded from `src`: a tuple, unless some are packed and can stay so."""
        batches = self.batches.get(src, [])
        if all(type(batch) in (list, tuple) for batch in batches):
            return tuple(chain.from_iterable(batches))
        return Chained(batches)


class FinishedIds:
    """Remember every finished id in little space: per series a high-water mark plus the exceptions above it."""

    def __init__(self) -> None:
        #: Per series, how many of its ids, from the first on, are finished without a gap.
        self._mark: dict[tuple[int, str, int], int] = {}
        #: Per series, places of finished ids above the mark.
        self._above: dict[tuple[int, str, int], set[int]] = {}

    @staticmethod
    def _place(snapshot_id: SnapshotId) -> tuple[tuple[int, str, int], int]:
        """Return the series and the place in it, from 1: the n of a series are 1, 3, 5... or 2, 4, 6..."""
        incarnation, initiator, n = snapshot_id
        return (incarnation, initiator, n % 2), (n + 1) // 2

    def __contains__(self, snapshot_id: SnapshotId) -> bool:
        series, place = self._place(snapshot_id)
        return place <= self._mark.get(series, 0) or place in self._above.get(series, ())

    def add(self, snapshot_id: SnapshotId) -> None:
        """Remember one; right also for one that is known."""
        series, place = self._place(snapshot_id)
        mark = self._mark.get(series, 0)
        if place > mark + 1:
            self._above.setdefault(series, set()).add(place)
        elif place == mark + 1:
            above = self._above.get(series, set())
            while place + 1 in above:
                place += 1
                above.remove(place)
            self._mark[series] = place

    def fingerprint(self) -> tuple[object, ...]:
        """Return which ids are finished, as values that can be compared."""
        return self._mark, {series: above for series, above in self._above.items() if above}


class SnapshotProtocol:
    """Take part in any number of snapshots at once, for one node.

    Args:
        node: This node's name.
        inbound: Names of the nodes with a channel to this one.
        outbound: Names of the nodes this one has a channel to.
        capture: Returns the node's state, fixed (contract, 4).
        sent: Messages sent per outbound channel so far; given when a node is restored.
        received: Messages taken per inbound channel so far; given when a node is restored.
        inboxes: Messages seen and not yet taken, per inbound channel; given when a node is restored.

    Raises:
        ProtocolError: What is restored belongs to a channel that this node does not have.
    """

    def __init__(
        self,
        node: str,
        inbound: Iterable[str],
        outbound: Iterable[str],
        capture: Callable[[], object],
        *,
        sent: Mapping[str, int] | None = None,
        received: Mapping[str, int] | None = None,
        inboxes: Mapping[str, Sequence[object]] | None = None,
    ) -> None:
        self.node = node
        self.inbound = tuple(sorted(inbound))
        self.outbound = tuple(sorted(outbound))
        self._capture = capture
        #: Per outbound channel, what is sent and not yet collected.
        self.outboxes = {dst: Outbox(dst, 0) for dst in self.outbound}
        for dst, count in self._restored("channel to", self.outbound, sent).items():
            self.outboxes[dst] = Outbox(dst, count)
        #: Per inbound channel, messages seen so far.
        self._seen = {**dict.fromkeys(self.inbound, 0), **self._restored("channel from", self.inbound, received)}
        #: Per inbound channel, messages seen and not yet taken. Made when first needed: in a large graph few are.
        self._inboxes: dict[str, _Inbox] = {}
        for src, waiting in self._restored("channel from", self.inbound, inboxes).items():
            self._put(src, list(waiting))
        #: Snapshots recorded here and not yet reported.
        self._recordings: dict[SnapshotId, _Recording] = {}
        self._finished = FinishedIds()

    # ------------------------------------------------------------------ messages

    def sent(self, dst: str) -> int:
        """Return how many messages to `dst` were sent so far."""
        return self.outboxes[dst].sent

    def received(self, src: str) -> int:
        """Return how many messages from `src` were taken so far."""
        return self._seen[src] - self.waiting(src)

    def seen(self, src: str) -> int:
        """Return how many messages from `src` were seen so far."""
        return self._seen[src]

    def waiting(self, src: str) -> int:
        """Return how many messages from `src` stand in the inbox."""
        inbox = self._inboxes.get(src)
        return 0 if inbox is None else inbox.waiting()

    def take(self, src: str) -> object:
        """Hand out the oldest message from `src`; from now on it counts as received.

        Raises:
            ProtocolError: There is no channel from `src`, or nothing stands in its inbox.
        """
        return next(self.taking(src))

    def taking(self, src: str) -> Iterator[object]:
        """Hand out messages from `src` in order, one or more: each counts as received when it is handed out.

        Good until the next call for this channel, of whatever kind.

        Raises:
            ProtocolError: As `take`.
        """
        inbox = self._inboxes.get(src)
        try:
            waits = inbox is not None and inbox.advance()
        except CodecError as error:
            raise self._unreadable(src, error) from error
        if inbox is None or not waits:
            raise ProtocolError(f"nothing from {src} stands in the inbox of {self.node}", where=f"{src}->{self.node}")
        return inbox.oldest

    def receive(self, src: str, item: Message | Marker) -> tuple[Effect, ...]:
        """See the next item of the channel from `src`: a message joins the inbox, a marker acts at once.

        Returns:
            Nothing for a message, and for a marker what `receive_marker` returns.

        Raises:
            ProtocolError: The channel is not inbound here, skipped or swapped an item, or carried this marker before.
        """
        if isinstance(item, Marker):
            return self.receive_marker(src, item.snapshot_id, item.sent)
        self.receive_batch(src, item.number, (item.payload,))
        return ()

    def receive_marker(self, src: str, snapshot_id: SnapshotId, sent: int) -> tuple[Effect, ...]:
        """See a marker of this snapshot that counts so many messages in front of it.

        Returns:
            At the first marker of a snapshot `SendMarkers`, unless there is no outbound channel; at the marker that
            closes the last recording channel, a `Report` (behind it, if both happen at once).

        Raises:
            ProtocolError: As `receive`.

        Paper: the marker-receiving rule for a process q.
        Invariant: once a snapshot is recorded, its recording channels only decrease.
        """
        if sent != self._seen.get(src):
            self._expect(src, sent, "a marker that counts", self._seen_or_raise(src))
        recording = self._recordings.get(snapshot_id)
        if recording is None:
            if snapshot_id in self._finished:
                return ()
            return self._record(snapshot_id, closing=src)
        if src not in recording.open:
            raise ProtocolError(f"second marker of snapshot {snapshot_id}", where=f"{src}->{self.node}")
        recording.open.remove(src)
        return () if recording.open else self._report(snapshot_id, recording)

    def receive_batch(self, src: str, first: int, payloads: Sequence[object]) -> bool:
        """See several messages at once, numbered from `first`: the same as `receive` for each in turn.

        What is given must not be changed afterwards. A sequence of another kind than list and tuple stays as it is
        until the messages are taken, and its iterator has to be that of a list.

        Returns:
            Whether something from `src` can be taken now, and nothing could before.

        Raises:
            ProtocolError: The channel is not inbound here, or `first` is not the next number.
        """
        if first != self._seen.get(src, 0) + 1 or src not in self._seen:
            self._expect(src, first, "message number", self._seen_or_raise(src) + 1)
        is_next = self._put(src, payloads)
        for recording in self._recordings.values():
            if src in recording.open:
                recording.add(src, payloads)
        return is_next

    def receive_and_take(self, src: str, number: int, payload: object) -> None:
        """See one message and take it at once: `receive` and `take` in one step, where nothing stands in the inbox.

        Raises:
            ProtocolError: As `receive`; or something stands in the inbox, which would be overtaken.
        """
        inbox = self._inboxes.get(src)
        if inbox is not None and inbox.waiting():
            raise ProtocolError(f"messages from {src} stand in front of this one", where=f"{src}->{self.node}")
        if self._seen.get(src) != number - 1:
            self._expect(src, number, "message number", self._seen_or_raise(src) + 1)
        for recording in self._recordings.values():
            if src in recording.open:
                recording.add(src, (payload,))
        self._seen[src] = number

    # ----------------------------------------------------------------- snapshots

    def initiate(self, snapshot_id: SnapshotId) -> tuple[Effect, ...]:
        """Record spontaneously, as an initiator of this snapshot.

        A snapshot may have several initiators, and a marker of one may reach the other before its own wish does: then
        it has recorded already and nothing is left to do. The same holds for an id that is finished.

        Paper: the marker-sending rule, for a process that records spontaneously.
        """
        if snapshot_id in self._recordings or snapshot_id in self._finished:
            return ()
        return self._record(snapshot_id, closing=None)

    def abandon(self, snapshot_id: SnapshotId) -> None:
        """Stop recording this snapshot and ignore its markers from now on; also right for one never heard of."""
        self._recordings.pop(snapshot_id, None)
        self._finished.add(snapshot_id)

    def open_channels(self) -> dict[SnapshotId, tuple[str, ...]]:
        """Return, for each snapshot recorded and not yet reported, the sources whose marker is still awaited."""
        return {snapshot_id: tuple(sorted(r.open)) for snapshot_id, r in self._recordings.items()}

    def fingerprint(self) -> tuple[object, ...]:
        """Return all that decides what happens here next: two nodes of equal fingerprints cannot be told apart."""
        recordings = [
            (snapshot_id, r.captured, r.sent, r.received, {src: list(r.payloads(src)) for src in r.batches}, r.open)
            for snapshot_id, r in sorted(self._recordings.items())
        ]
        waiting = {src: inbox.batches() for src, inbox in self._inboxes.items() if inbox.waiting()}
        inboxes = {src: list(chain.from_iterable(batches)) for src, batches in waiting.items()}
        return self._all_sent(), self._all_received(), inboxes, recordings, self._finished.fingerprint()

    def _record(self, snapshot_id: SnapshotId, closing: str | None) -> tuple[Effect, ...]:
        # The capture comes first: it may raise, and then nothing has changed and no marker has left.
        captured = self._capture()
        recording = _Recording(captured, self._all_sent(), self._all_received())
        for src, inbox in self._inboxes.items():
            # What was seen and not taken is in flight as far as this cut is concerned. Leaving it out would lose it.
            if inbox.waiting():
                recording.add(src, *inbox.batches())
        recording.open.update(self.inbound)
        recording.open.discard(closing)
        self._recordings[snapshot_id] = recording
        markers = (SendMarkers(snapshot_id, recording.sent),) if recording.sent else ()
        return markers if recording.open else markers + self._report(snapshot_id, recording)

    def _report(self, snapshot_id: SnapshotId, recording: _Recording) -> tuple[Effect, ...]:
        del self._recordings[snapshot_id]
        self._finished.add(snapshot_id)
        channels: Mapping[str, ChannelState] = EmptyChannels(recording.received)
        if recording.batches:
            channels = dict(channels)
            for src in recording.batches:
                channels[src] = ChannelState(channels[src].first, recording.payloads(src))
        local = LocalSnapshot(self.node, snapshot_id, recording.captured, recording.sent, recording.received, channels)
        return (Report(local),)

    def _all_sent(self) -> dict[str, int]:
        # As `Outbox.sent` says, without a call for each.
        return {dst: outbox._collected + len(outbox.payloads) for dst, outbox in self.outboxes.items()}

    def _all_received(self) -> dict[str, int]:
        received = dict(self._seen)
        for src, inbox in self._inboxes.items():
            received[src] -= inbox.waiting()
        return received

    def _put(self, src: str, payloads: Sequence[object]) -> bool:
        """Let messages join the inbox; return whether one of them is the oldest there."""
        count = len(payloads)
        if not count:
            return False
        inbox = self._inboxes.get(src)
        if inbox is None:
            inbox = self._inboxes[src] = _Inbox()
        try:
            is_next = inbox.add(payloads)
        except CodecError as error:
            raise self._unreadable(src, error) from error
        self._seen[src] += count
        return is_next

    # -------------------------------------------------------------------- checks

    def _restored(self, what: str, channels: tuple[str, ...], given: Mapping[str, T] | None) -> Mapping[str, T]:
        # Dropping what belongs nowhere would lose its messages without a trace.
        for name in sorted(set(given or ()).difference(channels)):
            raise ProtocolError(f"{self.node} has no {what} {name} to restore", where=self.node)
        return given or {}

    def _unreadable(self, src: str, error: CodecError) -> ProtocolError:
        return ProtocolError(f"a channel carried what nobody sent: {error.what}", where=f"{src}->{self.node}")

    def _seen_or_raise(self, src: str) -> int:
        if src not in self._seen:
            raise ProtocolError(f"{self.node} has no channel from {src}", where=f"{src}->{self.node}")
        return self._seen[src]

    def _expect(self, src: str, got: int, noun: str, expected: int) -> None:
        if got != expected:
            raise ProtocolError(
                f"{noun} {got} where {expected} was due: the channel lost, repeated or swapped an item",
                where=f"{src}->{self.node}",
            )
