"""One live node of a machine: the real core, driven step by step, with all it does collected.

This module owns how a step is carried out at its node. It must not know other nodes, or what stands on channels.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, TypeAlias

from mpsnap.core.blame import blame, node_error
from mpsnap.core.codec import Codec, encoded
from mpsnap.core.driver import Driver, Encode
from mpsnap.core.errors import ConsistencyError, MpsnapError, SnapshotError
from mpsnap.core.journal import JournaledCore, PlainJournal
from mpsnap.core.nodecore import NodeCore
from mpsnap.core.program import Program
from mpsnap.core.protocol import ChannelState, LocalSnapshot, Marker, SnapshotId
from mpsnap.core.snapshot import Captured, Timer, UnfinishedState
from mpsnap.core.topology import Topology


class Command(NamedTuple):
    """Let a node handle a command of plain data; `text` is what a reader calls it."""

    value: object
    text: str


class Initiation(NamedTuple):
    """Let a node begin this snapshot, which has this number."""

    snapshot_id: SnapshotId
    number: int


class Place(NamedTuple):
    """Say how far a node had come when it recorded, in what no part of a snapshot holds.

    `todo` has the places in its plan of what was still to be done; `sources` counts its idle calls and timers.
    """

    todo: tuple[int, ...]
    sources: int


#: By node, what is to be done there, in this order but at any moments.
Plan: TypeAlias = Mapping[str, Sequence[Command | Initiation]]


#: For fingerprints: the codec's bytes tell 1 from True and from 1.0, which Python's own comparison does not.
EXACT = Codec(types=(Captured, Timer, SnapshotId, ChannelState, LocalSnapshot, Place))


class Note(NamedTuple):
    """One event of a step, with the fields of the event log; values of the user's are fixed, not yet JSON."""

    event: str
    fields: Mapping[str, Any]


class Actor(PlainJournal, Driver):
    """One live node: what it sends, reports and notes in a step is collected here."""

    def __init__(
        self,
        name: str,
        program: Program,
        topology: Topology,
        plan: Sequence[Command | Initiation],
        *,
        unreachable: Sequence[str],
        codec: Codec,
        seed: int,
        keep_report: Callable[[LocalSnapshot], int],
        incarnation: int,
        place: Place | None,
        restored: LocalSnapshot | None,
        keeps_places: bool,
    ) -> None:
        super().__init__()
        self.incarnation = incarnation
        #: What is still to be done, as places in the plan; and how many idle calls and timers have run.
        self.todo, self.sources = place or Place(tuple(range(len(plan))), 0)
        #: By snapshot id, what `keep_report` made of this node's local snapshot.
        self.reports: dict[SnapshotId, int] = {}
        #: By snapshot id, where this node recorded; only for whoever may recover from there.
        self.places: dict[SnapshotId, Place] = {}
        self._keeps_places = keeps_places
        self.sent_items: list[tuple[str, int, object]] = []
        self.notes: list[Note] = []
        self._now = 0.0
        self._answer: bytes = b""
        self._plan = plan
        self._codec = codec
        self._keep_report = keep_report
        self.core = JournaledCore(
            name,
            program.load()(),
            inbound=topology.inbound(name),
            outbound=topology.outbound(name),
            unreachable=unreachable,
            incarnation=incarnation,
            seed=seed,
            codec=codec,
            driver=self,
            clock=lambda: self._now,
            journal=self,
            restored=restored,
        )
        self.core.start(dict(program.params))

    def fingerprint(self) -> bytes:
        """Return all that decides what this node does next; equal bytes, equal futures."""
        captured, rest = self.core.fingerprint()
        return EXACT.encode((captured, rest, self.incarnation, self.todo, self.sources, self.reports, self.places))

    def basic(self) -> bytes:
        """Return the user's state, timers, random numbers and count of records: what snapshots are about."""
        return basic_of(self.core.fingerprint()[0])

    def act(self, kind: str, src: str, items: Sequence[tuple[int, object]]) -> bool:
        """Take a step that moves these items from the channel; return False if the plan's command was refused."""
        core = self.core
        if kind == "take":
            if items:
                core.deliver(src, *items[0])
            else:
                core.take(src)
        elif kind == "mark":
            for number, payload in items[:-1]:
                core.receive_batch(src, number, (payload,))
            marker = items[-1][1]
            assert isinstance(marker, Marker)
            core.receive_marker(src, marker)
        elif kind == "plan":
            return self._carry_out()
        elif kind == "idle":
            self.sources += 1
            core.run_idle()
        else:
            self.sources += 1
            self._now = max(self._now, core.next_timer or 0.0)
            core.run_timer()
        return True

    @property
    def planned(self) -> Command | Initiation | None:
        """What is to be done next; None if nothing is. A snapshot has the incarnation that begins it in its id."""
        if not self.todo:
            return None
        planned = self._plan[self.todo[0]]
        if isinstance(planned, Initiation):
            return planned._replace(snapshot_id=planned.snapshot_id._replace(incarnation=self.incarnation))
        return planned

    def _carry_out(self) -> bool:
        planned = self.planned
        assert planned is not None
        self.todo = self.todo[1:]
        if isinstance(planned, Initiation):
            self.core.initiate(planned.snapshot_id)
            return True
        self.core.command(0, self._codec.encode(planned.value, where="command"))
        self.core.step(sources=False)
        return self._codec.decode(self._answer) is not False

    # -------------------------------------------------------- what the core asks

    def send(self, dst: str, number: int, payload: object) -> None:
        # As the codec's bytes, in which equal values are equal: states are told apart by what is in flight.
        self.sent_items.append((dst, number, encoded(payload, self._codec)))

    def send_marker(self, dst: str, marker: Marker) -> None:
        self.sent_items.append((dst, 0, marker))

    def report(self, local: LocalSnapshot) -> None:
        if local.snapshot_id in self.reports:
            raise ConsistencyError(f"a second local snapshot of {local.snapshot_id}", where=local.node)
        self.reports[local.snapshot_id] = self._keep_report(local)

    def fix(self, snapshot_id: SnapshotId | None, encode: Encode) -> bytes | UnfinishedState:
        if snapshot_id is not None and self._keeps_places:
            self.places[snapshot_id] = Place(self.todo, self.sources)
        return encode(bytes)

    def refused(self, snapshot_id: SnapshotId, error: MpsnapError) -> None:
        raise error

    def reply(self, ticket: int, value: bytes) -> None:
        self._answer = value

    def initiated(self, snapshot_id: SnapshotId) -> None:
        pass

    def emit(self, n: int, record: bytes) -> None:
        pass

    def log(self, text: str) -> None:
        pass

    # ------------------------------------------------------------- what it notes

    def note(self, event: str, **fields: Any) -> None:
        self.notes.append(Note(event, fields))


def error_of(core: NodeCore, raised: BaseException) -> MpsnapError:
    """Return what an exception of a step means: the node's own failure, or a rule of the protocol that is broken."""
    if core.hook != "waiting":
        return node_error(core.name, core.hook, blame(raised), "raised")
    if isinstance(raised, SnapshotError):
        return raised
    # No code of the user's was running: a rule of the protocol is broken.
    what = raised.what if isinstance(raised, MpsnapError) else f"{type(raised).__name__}: {raised}"
    where = raised.where if isinstance(raised, MpsnapError) else core.name
    return ConsistencyError(what, where=where)


def basic_of(captured: object) -> bytes:
    """Return what a capture says of the program itself: not whether its inbox happened to be empty."""
    assert isinstance(captured, Captured)
    return EXACT.encode((captured.state, captured.timers, captured.random, captured.finished, captured.emitted))
