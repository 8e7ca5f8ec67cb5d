"""A node that keeps a journal: the same `NodeCore`, with each of its events noted where it happens.

This module owns which events are noted and in which order. It must not know where a journal is kept.

A node without a journal is a plain `NodeCore`, so that what is not wanted costs nothing at all. What comes in
(messages, markers, commands, timers) is noted by `JournaledCore` before it acts, what goes out by the driver around the
real one before it leaves: so the journal of a node that breaks off holds no effect of what it does not hold.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from itertools import islice
from typing import Any

from mpsnap.core.codec import Codec, Encoded, thaw
from mpsnap.core.driver import Driver, Encode
from mpsnap.core.errors import MpsnapError
from mpsnap.core.history import VALUES, Entry, error_shown, value_shown
from mpsnap.core.nodecore import RUN_MESSAGES, NodeCore
from mpsnap.core.protocol import LocalSnapshot, Marker, SnapshotId
from mpsnap.core.snapshot import Captured, UnfinishedState


class Journal(ABC):
    """Where a node's events are kept; `mpsnap.core.history` has their names and fields.

    The two that come with every message have methods of their own: at that rate a dict for each is too slow.
    """

    @abstractmethod
    def sent(self, dst: str, number: int, payload: object) -> None:
        """Note that message `number` leaves for `dst`; the payload is fixed."""

    def sending(self, send: Callable[[str, int, object], None]) -> Callable[[str, int, object], None]:
        """Return `send` with a note of each message before it leaves; a journal may have a quicker way to do both."""

        def noted(dst: str, number: int, payload: object) -> None:
            self.sent(dst, number, payload)
            send(dst, number, payload)

        return noted

    @abstractmethod
    def restored(self, sent: Mapping[str, int], received: Mapping[str, int]) -> None:
        """Go on counting from what a restored node had sent and received, per neighbour."""

    @abstractmethod
    def received(self, src: str) -> None:
        """Note that the node's code gets the next message from `src`."""

    @abstractmethod
    def note(self, event: str, **fields: Any) -> None:
        """Note any other event; a field that is a value of the user's is `Encoded`."""


class PlainJournal(Journal):
    """Note messages like every other event."""

    def __init__(self) -> None:
        self._taken: dict[str, int] = {}

    def restored(self, sent: Mapping[str, int], received: Mapping[str, int]) -> None:
        self._taken = dict(received)

    def sent(self, dst: str, number: int, payload: object) -> None:
        self.note("sent", to=dst, number=number, payload=payload)

    def received(self, src: str) -> None:
        number = self._taken[src] = self._taken.get(src, 0) + 1
        self.note("received", **{"from": src, "number": number})


class EntryJournal(PlainJournal):
    """Make an `Entry` of each event at once, for a driver that counts time in its own way.

    Args:
        node: The node's name.
        codec: Of its values; a reader, for pickles are shown and not opened.
        clock: The time of an entry.
        keep: Gets every entry.
    """

    def __init__(self, node: str, codec: Codec, clock: Callable[[], float], keep: Callable[[Entry], None]) -> None:
        super().__init__()
        self._node = node
        self._codec = codec
        self._clock = clock
        self._keep = keep
        self._count = 0

    def note(self, event: str, **fields: Any) -> None:
        for name in VALUES.keys() & fields.keys():
            fields[name] = value_shown(fields[name], self._codec, VALUES[name])
        self._keep(Entry(self._node, self._count, self._clock(), event, fields))
        self._count += 1


class JournaledCore(NodeCore):
    """Run one node's hooks and note what happens."""

    def __init__(self, name: str, *args: Any, journal: Journal, driver: Driver, **kwargs: Any) -> None:
        super().__init__(name, *args, driver=_JournaledDriver(driver, journal), **kwargs)
        self._journal = journal
        self._received = journal.received
        self._goes_on_from: LocalSnapshot | None = kwargs.get("restored")
        if self._goes_on_from is not None:
            journal.restored(self._goes_on_from.sent, self._goes_on_from.received)

    def start(self, params: dict[str, Any]) -> None:
        """Run `setup`, or take the state back, and `on_start`."""
        local, self._goes_on_from = self._goes_on_from, None
        if local is not None:
            assert isinstance(local.captured, Captured)
            state = {"state": Encoded(local.captured.state)} if isinstance(local.captured.state, bytes) else {}
            self._journal.note("restored", snapshot=str(local.snapshot_id), channels=_in_flight(local), **state)
        super().start(params)

    def receive_marker(self, src: str, marker: Marker) -> None:
        """See a marker from `src`."""
        text = str(marker.snapshot_id)
        self._journal.note("marker received", **{"from": src, "snapshot": text, "number": marker.sent})
        if marker.snapshot_id in self.protocol.open_channels():
            self._journal.note("closed", **{"from": src, "snapshot": text})
        super().receive_marker(src, marker)

    def command(self, ticket: int, command: bytes) -> None:
        """Queue an encoded command for `on_command`; the reply bears the same ticket."""
        self._journal.note("command", value=Encoded(command))
        super().command(ticket, command)

    def note_death(self, error: MpsnapError) -> None:
        """Note that a hook has raised, and that this ends the cluster."""
        self._journal.note("died", error=error_shown(error))

    def _handle(self, src: str, payload: object) -> None:
        self._received(src)
        NodeCore._handle(self, src, payload)

    def _take_in_a_row(self, src: str, now: float, until: float) -> None:
        taking = self.protocol.taking(src)
        self._begin("on_message")
        self._sender = src
        self._interrupted = False
        for payload in islice(taking, RUN_MESSAGES):
            # Each at its place between what else happens.
            self._received(src)
            self._node.on_message(self._ctx, src, thaw(payload, self.codec))
            if self._interrupted or self._clock() >= until:
                break
        self._put_back(src)

    def run_timer(self) -> None:
        """Run the next timer, due or not; there must be one."""
        self._journal.note("timer", method=self._timers.heap[0].method)
        super().run_timer()

    def _capture(self) -> Captured:
        captured = super()._capture()
        if self._cause is not None:
            snapshot_id, src = self._cause
            text = str(snapshot_id)
            # Of a state whose bytes are still being made there is nothing to show, and nothing here waits for it.
            state = {"state": Encoded(captured.state)} if isinstance(captured.state, bytes) else {}
            self._journal.note("recorded", **{"snapshot": text, "from": src, **state})
            if src is not None:
                self._journal.note("closed", **{"from": src, "snapshot": text})
        return captured


def _in_flight(local: LocalSnapshot) -> dict[str, list[int]]:
    """Return the number of the first message in flight on each channel at the cut, and how many they are."""
    return {src: [state.first, len(state.payloads)] for src, state in local.channels.items()}


class _JournaledDriver(Driver):
    """Pass everything on to the real driver, and note what is an event."""

    def __init__(self, driver: Driver, journal: Journal) -> None:
        self._driver = driver
        self._journal = journal
        # Both are called for each message: straight to where they go, and not through a method of this object first.
        self.send = journal.sending(driver.send)  # type: ignore[assignment, method-assign]
        self.phase = driver.phase  # type: ignore[method-assign]

    def send(self, dst: str, number: int, payload: object) -> None:
        """Note and pass on, which `__init__` puts in the place of this."""

    def send_marker(self, dst: str, marker: Marker) -> None:
        self._journal.note("marker sent", to=dst, snapshot=str(marker.snapshot_id), number=marker.sent)
        self._driver.send_marker(dst, marker)

    def initiated(self, snapshot_id: SnapshotId) -> None:
        self._driver.initiated(snapshot_id)

    def report(self, local: LocalSnapshot) -> None:
        self._journal.note("reported", snapshot=str(local.snapshot_id), channels=_in_flight(local))
        self._driver.report(local)

    def fix(self, snapshot_id: SnapshotId | None, encode: Encode) -> bytes | UnfinishedState:
        return self._driver.fix(snapshot_id, encode)

    def refused(self, snapshot_id: SnapshotId, error: MpsnapError) -> None:
        self._journal.note("refused", snapshot=str(snapshot_id), error=error_shown(error))
        self._driver.refused(snapshot_id, error)

    def emit(self, n: int, record: bytes) -> None:
        self._journal.note("output", n=n, record=Encoded(record))
        self._driver.emit(n, record)

    def reply(self, ticket: int, value: bytes) -> None:
        self._driver.reply(ticket, value)

    def log(self, text: str) -> None:
        self._journal.note("log", text=text)
        self._driver.log(text)

    def taken(self, src: str, received: int) -> None:
        self._driver.taken(src, received)

    def phase(self, phase: str) -> None:
        """Pass it on, which `__init__` puts in the place of this; without it the core would never call it."""
