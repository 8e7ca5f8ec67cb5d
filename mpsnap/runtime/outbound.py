"""The outbound channels of one node: when what was sent leaves, and when hooks have to wait.

This module owns batching and flow control. It must not know hooks, or how a channel carries its items.

When a batch leaves:

- Messages wait for each other until there are enough for a frame, until the oldest is `AGE_SECONDS` old, or until the
  node is about to wait. So a lone message is never late, and load makes batches by itself.
- Whatever waits leaves in front of a marker.
- While hooks run long, a message on a channel that was quiet leaves at once: its hook may go on computing. How old a
  batch is can only be seen when its channel is used, at its 2nd, 4th, 8th... message, and between turns of hooks; a
  thread or a signal that looked meanwhile would be in the hooks' way all the time.

When hooks wait: a channel on which half a window of messages is sent and not taken stops hooks that begin something new
(timers, idle calls), and one with a whole window also those that handle messages. The receiver's count stands in shared
memory; it is read only where the last look left open whether a limit was reached.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping

from mpsnap.core.errors import MpsnapError
from mpsnap.core.protocol import Outbox, SnapshotId
from mpsnap.runtime.channel import LEAST_BYTES, QueueSender
from mpsnap.runtime.deadlock import REPORT_SECONDS

#: A batch leaves at this many messages or, going by the size of the last ones, at about this many bytes.
BATCH_MESSAGES = 256
BATCH_BYTES = 96 * 1024
#: A channel is quiet if nothing has left on it for so long; and the age at which a message waits no more.
QUIET_SECONDS = 0.001
AGE_SECONDS = 0.001
#: What a channel may hold, sent and not taken, going by the size of the last messages: its window in bytes.
WINDOW_BYTES = 16 << 20
#: Messages that one channel may hold before `send` raises: memory has an end.
HARD_CAP = 4_000_000


class _Lane:
    """One outbound channel: its outbox, its sender, and what is known of its receiver's count."""

    __slots__ = (
        "left",
        "line",
        "message_bytes",
        "most",
        "outbox",
        "sender",
        "sent_slot",
        "since",
        "taken_slot",
        "window",
    )

    def __init__(self, sender: QueueSender, outbox: Outbox, slots: tuple[int, int], window: int) -> None:
        self.sender = sender
        self.outbox = outbox
        #: Where the counts of messages sent and taken stand in the shared memory.
        self.sent_slot, self.taken_slot = slots
        #: Going by the size of the last ones: messages that may be sent and not taken, and those that make a batch.
        self.window = window
        self.most = BATCH_MESSAGES
        self.message_bytes = LEAST_BYTES
        #: When something last left; and when the oldest message that waits was sent, 0 while none does.
        self.left = self.since = 0.0
        #: The message after which the receiver's count has to be read again.
        self.line = self.low - 1

    @property
    def low(self) -> int:
        """How many messages on their way stop what begins something new."""
        return max(1, self.window // 2)


class Outbound:
    """Send what one node's outboxes hold, and say how much room there is.

    Args:
        node: The node's name, for errors.
        outboxes: What the node sends, by destination.
        senders: Where it goes, by destination.
        slots: By destination, the places in `words` of the counts of messages sent and taken.
        words: Memory shared with the receivers.
        window: Messages of one channel that may be sent and not taken.
        await_writable: Told of a descriptor whether its pipe is full, and `writable` to be called when it has room.
        interrupt: Called when no further hook may run after this one.
    """

    def __init__(
        self,
        node: str,
        outboxes: Mapping[str, Outbox],
        senders: Mapping[str, QueueSender],
        slots: Mapping[str, tuple[int, int]],
        words: memoryview,
        window: int,
        *,
        await_writable: Callable[[int, bool], None],
        interrupt: Callable[[], None],
    ) -> None:
        self._node = node
        self._words = words
        self._window = window
        self._await_writable = await_writable
        self._interrupt = interrupt
        self._lanes = {dst: _Lane(sender, outboxes[dst], slots[dst], window) for dst, sender in senders.items()}
        self._by_fd = {lane.sender.fileno(): lane for lane in self._lanes.values()}
        #: Channels in whose outbox something waits, the oldest first.
        self.waiting: dict[str, _Lane] = {}
        #: Channels that may hold half a window or more.
        self.crowded: dict[str, _Lane] = {}
        #: Channels whose window is full, and since when; when they are next reported.
        self.full: dict[str, float] = {}
        self._next_report = 0.0
        #: Whether the last report named a full channel; and when a hook last ended, which is the loop's to set.
        self.told = False
        self.hook_ended = 0.0
        #: Whether hooks run long, as far as is known; and the time, as of the last look. Both are the loop's to set.
        self.eager = True
        self.now = 0.0

    # ------------------------------------------------------------------ leaving

    def send(self, dst: str, payload: object) -> None:
        """Send one message, where `outboxes` are not those that the node itself fills."""
        outbox = self._lanes[dst].outbox
        outbox.payloads.append(payload)
        if len(outbox.payloads) >= outbox.limit:
            self.offer(outbox)

    def offer(self, outbox: Outbox) -> None:
        """Look whether what stands in an outbox has to leave, and whether hooks have to wait.

        Raises:
            MpsnapError: `HARD_CAP` messages are on their way.
        """
        lane = self._lanes[outbox.dst]
        count = len(outbox.payloads)
        if self.eager:
            self.now = time.monotonic()
        if count >= lane.most or (self.eager and self._late(lane)):
            self._ship(lane)
            count = 0
        elif not lane.since:
            lane.since = self.now
            self.waiting[outbox.dst] = lane
        sent = outbox.sent
        if sent > lane.line:
            self._look_at_window(lane)
        # The next look is where the batch is full, at the line, or, after a short while of an eager channel, soon.
        full = lane.most if count and not self.eager else min(lane.most, 2 * count)
        limit = count + lane.line + 1 - sent
        if limit > full:
            limit = full
        outbox.limit = limit if limit > count else count + 1

    def send_markers(self, snapshot_id: SnapshotId, sent: Mapping[str, int]) -> None:
        """Send a snapshot's marker to each of these nodes, behind all that was sent there: so many messages each."""
        lanes = self._lanes
        for dst, count in sent.items():
            lane = lanes[dst]
            if lane.outbox.payloads:
                self._ship(lane)
            if not lane.sender.send_marker(snapshot_id, count):
                self._await_writable(lane.sender.fileno(), True)

    def flush(self, *, all_of_it: bool) -> None:
        """Let what waits leave, or only what has waited long enough."""
        for lane in tuple(self.waiting.values()):
            if not all_of_it and self.now - lane.since < AGE_SECONDS:
                return
            self._ship(lane)

    def writable(self, fd: int) -> None:
        """Write what a full pipe has left over."""
        if self._by_fd[fd].sender.flush():
            self._await_writable(fd, False)

    def publish(self) -> None:
        """Let others see how many messages were sent, those included that have not left."""
        for lane in self._lanes.values():
            self._words[lane.sent_slot] = lane.outbox.sent

    def _late(self, lane: _Lane) -> bool:
        return self.now - lane.since >= AGE_SECONDS if lane.since else self.now - lane.left >= QUIET_SECONDS

    def _ship(self, lane: _Lane) -> None:
        first, payloads = lane.outbox.collect()
        # First the count: nobody must see more messages taken than sent.
        self._words[lane.sent_slot] = first + len(payloads) - 1
        if not lane.sender.send(first, payloads):
            self._await_writable(lane.sender.fileno(), True)
        if lane.sender.message_bytes != lane.message_bytes:
            self._size(lane)
        lane.left = self.now
        if lane.since:
            lane.since = 0.0
            del self.waiting[lane.outbox.dst]
        lane.outbox.limit = 1

    def _size(self, lane: _Lane) -> None:
        lane.message_bytes = lane.sender.message_bytes
        lane.most = max(1, min(BATCH_MESSAGES, BATCH_BYTES // lane.message_bytes))
        window = max(2, min(self._window, WINDOW_BYTES // lane.message_bytes))
        if window != lane.window:
            # The line belongs to the other window.
            lane.window, lane.line = window, 0

    # --------------------------------------------------------------------- room

    def room(self) -> int:
        """Return 2 if any hook may run, 1 if only the handling of what has arrived may, 0 if none may."""
        # Every channel is looked at, whatever the others say: one that has opened must not be called full.
        return min([self._look_at_window(lane) for lane in tuple(self.crowded.values())], default=2)

    def full_report(self) -> tuple[float, dict[str, float]] | None:
        """Return the time, and the channels that are full and since when; None if it is not time to report them."""
        # The time first and then the look: what is full now was full then, however long the two are apart.
        now = time.monotonic()
        if now < self._next_report or not (self.full or self.told):
            return None
        self._next_report = now + REPORT_SECONDS
        self.room()
        self.told = bool(self.full)
        # While a hook runs its node waits for nobody, and others cannot see what it has taken meanwhile.
        return now, {dst: max(since, self.hook_ended) for dst, since in self.full.items()}

    def _look_at_window(self, lane: _Lane) -> int:
        room = self._read_window(lane)
        # Where the line has come nearer, it must not be passed unseen.
        outbox = lane.outbox
        outbox.limit = max(
            len(outbox.payloads) + 1, min(outbox.limit, lane.line + 1 - outbox.sent + len(outbox.payloads))
        )
        return room

    def _read_window(self, lane: _Lane) -> int:
        dst, sent, taken = lane.outbox.dst, lane.outbox.sent, self._words[lane.taken_slot]
        on_the_way = sent - taken
        if on_the_way < lane.window:
            self.full.pop(dst, None)
            if on_the_way < lane.low:
                self.crowded.pop(dst, None)
                lane.line = taken + lane.low - 1
                return 2
            self.crowded[dst] = lane
            lane.line = taken + lane.window - 1
            return 1
        self.crowded[dst] = lane
        lane.line = taken + HARD_CAP - 1
        if dst not in self.full:
            self.full[dst] = time.monotonic()
            self._next_report = self.full[dst] + REPORT_SECONDS
        self._interrupt()
        if on_the_way > HARD_CAP:
            raise MpsnapError(
                f"{HARD_CAP} messages are on their way and not taken",
                where=f"{self._node}->{dst}",
                hint="sending less from one hook: flow control acts between hooks only",
            )
        return 0
