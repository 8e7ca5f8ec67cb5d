"""Small worlds for tests of the core: nodes joined by a fake wire, every step explicit, every snapshot verified.

`World` joins `SnapshotProtocol`s: the test sends, delivers, takes and initiates, one step at a time. `CoreWorld` joins
`NodeCore`s, so that the nodes are users' nodes and their hooks do these things. Both keep everything that was done, so
that a test can work out for itself what a snapshot has to hold. Nothing here waits, draws random numbers or looks at a
clock.
"""

from __future__ import annotations

from collections import Counter, defaultdict, deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from copy import copy
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from mpsnap.core.codec import Codec, freeze, thaw
from mpsnap.core.driver import Driver
from mpsnap.core.emptycut import EmptyCut
from mpsnap.core.errors import MpsnapError
from mpsnap.core.node import Node
from mpsnap.core.nodecore import NodeCore
from mpsnap.core.part import pack, unpack
from mpsnap.core.protocol import Effect, LocalSnapshot, Marker, Message, Report, SnapshotId, SnapshotProtocol
from mpsnap.core.snapshot import Captured, GlobalSnapshot
from mpsnap.core.topology import Topology

PLAIN = Codec()


def graph(text: str) -> Topology:
    """Make a topology of words like `A->B`, `A<->B` for both directions, and `C` for a node alone."""
    nodes: dict[str, None] = {}
    channels: dict[tuple[str, str], None] = {}
    for word in text.split():
        both, arrow = "<->" in word, "->" in word
        ends = word.split("<->" if both else "->") if arrow else [word]
        nodes.update(dict.fromkeys(ends))
        if arrow:
            channels[ends[0], ends[1]] = None
        if both:
            channels[ends[1], ends[0]] = None
    return Topology(nodes, channels)


def snap(initiator: str, n: int = 1) -> SnapshotId:
    """Name a snapshot."""
    return SnapshotId(0, initiator, n)


def anatomy(thing: object) -> object:
    """Return everything that an object consists of, however deep, as plain values that can be compared."""
    if isinstance(thing, Mapping):
        return {key: anatomy(value) for key, value in thing.items()}
    if isinstance(thing, (list, tuple, deque)):
        return [anatomy(item) for item in thing]
    if isinstance(thing, (set, frozenset)):
        return set(thing)
    if isinstance(thing, Iterator):
        return anatomy(list(copy(thing)))
    if type(thing).__module__.startswith("mpsnap."):
        names = [name for base in type(thing).__mro__ for name in getattr(base, "__slots__", ())]
        parts = {name: getattr(thing, name) for name in names} | getattr(thing, "__dict__", {})
        return type(thing).__name__, {name: anatomy(value) for name, value in parts.items()}
    return thing


def send_on(protocol: SnapshotProtocol, dst: str, payload: object = None) -> int:
    """Send one message that the driver collects at once; return its number."""
    protocol.outboxes[dst].payloads.append(payload)
    first, (_,) = protocol.outboxes[dst].collect()
    return first


class Collector:
    """Twin of the supervisor: put the parts of each snapshot together and verify it when the last has come."""

    def __init__(self, topology: Topology, codecs: Mapping[str, Codec]) -> None:
        self.topology = topology
        self.codecs = codecs
        self.initiators: defaultdict[SnapshotId, list[str]] = defaultdict(list)
        self.parts: defaultdict[SnapshotId, dict[str, LocalSnapshot]] = defaultdict(dict)
        self._packed: defaultdict[SnapshotId, dict[str, tuple[bytes, None]]] = defaultdict(dict)
        self._empty_cut = EmptyCut(topology)
        #: Complete and verified, in order of completion.
        self.snapshots: dict[SnapshotId, GlobalSnapshot] = {}

    def add(self, local: LocalSnapshot) -> None:
        parts = self.parts[local.snapshot_id]
        assert local.node not in parts, f"{local.node} reported twice for {local.snapshot_id}"
        # By way of the bytes, as between processes.
        self._packed[local.snapshot_id][local.node] = pack(local), None
        parts[local.node] = unpack(pack(local))
        if len(parts) == len(self.topology.nodes):
            snapshot = GlobalSnapshot(
                number=len(self.snapshots),
                snapshot_id=local.snapshot_id,
                initiators=tuple(self.initiators[local.snapshot_id]),
                topology=self.topology,
                locals_=parts,
                codecs=self.codecs,
            )
            snapshot.verify()
            # The short proof is good for these cuts and for no others.
            empty = self._empty_cut.holds(local.snapshot_id, self._packed.pop(local.snapshot_id))
            assert empty == all(part.all_empty for part in parts.values())
            self.snapshots[local.snapshot_id] = snapshot


class Sent(NamedTuple):
    """`node` sent `payload` to `dst`."""

    node: str
    dst: str
    payload: object


class Taken(NamedTuple):
    """`node` took `payload` from `src`."""

    node: str
    src: str
    payload: object


Step = Sent | Taken


class World:
    """Join one `SnapshotProtocol` per node by FIFO queues and do what the test says, no more.

    The local state of a node is `state[node]`, plain data that belongs to the test.
    """

    def __init__(
        self, topology: Topology, state: Mapping[str, Any] | None = None, resumed: GlobalSnapshot | None = None
    ) -> None:
        self.topology = topology
        self.state: dict[str, Any] = dict.fromkeys(topology.nodes) | dict(state or {})
        self.wire: dict[tuple[str, str], deque[Message | Marker]] = {channel: deque() for channel in topology.channels}
        self.collector = Collector(topology, dict.fromkeys(topology.nodes, PLAIN))
        #: Every message sent and taken, in the order in which that happened.
        self.trace: list[Step] = []
        #: How long the trace was when each node recorded.
        self.cuts: defaultdict[SnapshotId, dict[str, int]] = defaultdict(dict)
        #: Markers sent per snapshot.
        self.markers: Counter[SnapshotId] = Counter()
        #: Whether the last step raised.
        self.broken = False
        #: The snapshot that a step could make a node record.
        self._at_stake: SnapshotId | None = None
        self.protocols = {node: self._protocol(node, resumed) for node in topology.nodes}

    @classmethod
    def resume(cls, snapshot: GlobalSnapshot) -> World:
        """Make a world that goes on from a cut: states as recorded, messages in flight standing in the inboxes."""
        return cls(snapshot.topology, {name: node.state for name, node in snapshot.nodes.items()}, snapshot)

    def _protocol(self, node: str, resumed: GlobalSnapshot | None) -> SnapshotProtocol:
        inbound, outbound = self.topology.inbound(node), self.topology.outbound(node)
        if resumed is None:
            return SnapshotProtocol(node, inbound, outbound, lambda: self._capture(node))
        return SnapshotProtocol(
            node,
            inbound,
            outbound,
            lambda: self._capture(node),
            sent=resumed.nodes[node].sent,
            received=resumed.nodes[node].received,
            inboxes={src: resumed.channels[src, node] for src in inbound},
        )

    def _capture(self, node: str) -> Captured:
        snapshot_id = self._at_stake
        assert snapshot_id is not None, f"{node} was captured by a step that makes no node record"
        assert node not in self.cuts[snapshot_id], f"{node} recorded twice for {snapshot_id}"
        self.cuts[snapshot_id][node] = len(self.trace)
        return Captured(
            PLAIN.encode(self.state[node]), timers=(), random=(0, 0), passive=False, finished=False, emitted=0
        )

    @property
    def snapshots(self) -> dict[SnapshotId, GlobalSnapshot]:
        """The complete ones."""
        return self.collector.snapshots

    # ---------------------------------------------------------------- the steps

    def send(self, src: str, dst: str, payload: object) -> None:
        frozen = freeze(payload, PLAIN)
        self.wire[src, dst].append(Message(send_on(self.protocols[src], dst, frozen), frozen))
        self.trace.append(Sent(src, dst, payload))

    def deliver(self, src: str, dst: str) -> tuple[Effect, ...]:
        """Offer `dst` what stands at the head of the channel; it stays there if it is refused."""
        item = self.wire[src, dst][0]
        snapshot_id = item.snapshot_id if isinstance(item, Marker) else None
        effects = self._step(dst, snapshot_id, lambda: self.protocols[dst].receive(src, item))
        self.wire[src, dst].popleft()
        return effects

    def take(self, src: str, dst: str) -> object:
        payload = thaw(self.protocols[dst].take(src), PLAIN)
        self.trace.append(Taken(dst, src, payload))
        return payload

    def initiate(self, snapshot_id: SnapshotId, node: str) -> tuple[Effect, ...]:
        self.collector.initiators[snapshot_id].append(node)
        return self._step(node, snapshot_id, lambda: self.protocols[node].initiate(snapshot_id))

    def abandon(self, snapshot_id: SnapshotId, *nodes: str) -> None:
        """Make these nodes give a snapshot up; all of them, if none is named."""
        for node in nodes or self.topology.nodes:
            self.protocols[node].abandon(snapshot_id)

    def _step(
        self, node: str, snapshot_id: SnapshotId | None, act: Callable[[], tuple[Effect, ...]]
    ) -> tuple[Effect, ...]:
        self._at_stake, self.broken = snapshot_id, True
        effects = act()
        for effect in effects:
            if isinstance(effect, Report):
                self.collector.add(effect.local)
            else:
                for dst, sent in effect.sent.items():
                    self.wire[node, dst].append(Marker(effect.snapshot_id, sent))
                    self.markers[effect.snapshot_id] += 1
        self._at_stake, self.broken = None, False
        return effects

    # ------------------------------------------------------------ several at once

    def transfer(self, src: str, dst: str, payload: object) -> object:
        """Send a message on an empty channel and have it delivered and taken."""
        assert not self.wire[src, dst]
        self.send(src, dst, payload)
        self.deliver(src, dst)
        return self.take(src, dst)

    def deliver_all(self) -> None:
        """Deliver until nothing is on the wire, channel by channel in order."""
        while busy := [channel for channel, items in self.wire.items() if items]:
            for channel in busy:
                self.deliver(*channel)

    def snapshot(self, snapshot_id: SnapshotId, *initiators: str) -> GlobalSnapshot:
        """Take a snapshot and deliver all there is, until it is complete."""
        for node in initiators or (snapshot_id.initiator,):
            self.initiate(snapshot_id, node)
        self.deliver_all()
        return self.snapshots[snapshot_id]

    # ------------------------------------------------------------------ questions

    def waiting(self, src: str, dst: str) -> int:
        """How many messages stand in the inbox."""
        return self.protocols[dst].waiting(src)

    def open(self, node: str) -> dict[SnapshotId, tuple[str, ...]]:
        """Return the sources whose markers the node awaits, by snapshot."""
        return self.protocols[node].open_channels()

    def in_flight_at(self, snapshot_id: SnapshotId, src: str, dst: str) -> list[object]:
        """Work out from the trace alone what was in flight on a channel at a cut, and that the cut is consistent."""
        cut = self.cuts[snapshot_id]
        sent = [s.payload for s in self.trace[: cut[src]] if isinstance(s, Sent) and (s.node, s.dst) == (src, dst)]
        taken = [s.payload for s in self.trace[: cut[dst]] if isinstance(s, Taken) and (s.src, s.node) == (src, dst)]
        assert taken == sent[: len(taken)], f"{dst} took from {src} before the cut what was not sent before it"
        return sent[len(taken) :]


class TokenWorld(World):
    """A world in which every node holds tokens and every message moves some; they may be owed."""

    def __init__(
        self, topology: Topology, state: Mapping[str, Any] | None = None, resumed: GlobalSnapshot | None = None
    ) -> None:
        super().__init__(topology, dict(topology.tokens) if state is None else state, resumed)

    def send(self, src: str, dst: str, payload: object) -> None:
        assert isinstance(payload, int)
        self.state[src] -= payload
        super().send(src, dst, payload)

    def take(self, src: str, dst: str) -> object:
        amount = super().take(src, dst)
        self.state[dst] += amount
        return amount


def tokens_in(snapshot: GlobalSnapshot) -> int:
    """Count the tokens of a `TokenWorld`'s snapshot, those in flight included."""
    held = sum(node.state for node in snapshot.nodes.values())
    return int(held + sum(sum(messages) for messages in snapshot.channels.values()))


# --- Nodes that run users' code. ---


class Clock:
    """A clock that stands still until a test moves it."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now

    def pass_time(self, seconds: float) -> None:
        """Move it on."""
        self.now += seconds


class RecordingDriver(Driver):
    """Twin of the real driver: write down what a `NodeCore` asks for, in order.

    A call is a tuple of the method's name and its arguments.
    """

    def __init__(self) -> None:
        self.calls: list[tuple[Any, ...]] = []

    def send(self, dst: str, number: int, payload: object) -> None:
        self.calls.append(("send", dst, number, payload))

    def send_marker(self, dst: str, marker: Marker) -> None:
        self.calls.append(("send_marker", dst, marker))

    def initiated(self, snapshot_id: SnapshotId) -> None:
        self.calls.append(("initiated", snapshot_id))

    def report(self, local: LocalSnapshot) -> None:
        self.calls.append(("report", local))

    def refused(self, snapshot_id: SnapshotId, error: MpsnapError) -> None:
        self.calls.append(("refused", snapshot_id, error))

    def emit(self, n: int, record: bytes) -> None:
        self.calls.append(("emit", n, record))

    def reply(self, ticket: int, value: bytes) -> None:
        self.calls.append(("reply", ticket, value))

    def log(self, text: str) -> None:
        self.calls.append(("log", text))

    def phase(self, phase: str) -> None:
        self.calls.append(("phase", phase))

    def all(self, kind: str) -> list[tuple[Any, ...]]:
        """Return the arguments of every call of one kind, in order."""
        return [call[1:] for call in self.calls if call[0] == kind]

    def kinds(self) -> list[str]:
        """Return which calls there were, in order, phases left out."""
        return [call[0] for call in self.calls if call[0] != "phase"]

    def payloads(self, dst: str) -> list[object]:
        """Return what was sent to `dst`."""
        return [thaw(payload, PLAIN) for to, _, payload in self.all("send") if to == dst]

    def reports(self) -> list[LocalSnapshot]:
        """Return the local snapshots reported."""
        return [local for (local,) in self.all("report")]


@dataclass
class Solo:
    """One node with its driver and its clock, and the test in the place of all other nodes."""

    node: Node
    inbound: Sequence[str] = ()
    outbound: Sequence[str] = ()
    unreachable: Sequence[str] = ()
    name: str = "A"
    seed: int = 0
    codec: Codec = PLAIN
    incarnation: int = 0
    restored: LocalSnapshot | None = None
    driver: RecordingDriver = field(default_factory=RecordingDriver)
    clock: Clock = field(default_factory=Clock)

    def __post_init__(self) -> None:
        self.core = NodeCore(
            self.name,
            self.node,
            inbound=self.inbound,
            outbound=self.outbound,
            unreachable=self.unreachable,
            incarnation=self.incarnation,
            seed=self.seed,
            codec=self.codec,
            driver=self.driver,
            clock=self.clock,
            restored=self.restored,
        )

    def start(self, **params: Any) -> Solo:
        self.core.start(params)
        return self

    def see(self, src: str, *payloads: object) -> Solo:
        """Offer messages, as if `src` had sent them."""
        first = self.core.protocol.seen(src) + 1
        self.core.receive_batch(src, first, [freeze(payload, PLAIN) for payload in payloads])
        return self

    def see_marker(self, src: str, snapshot_id: SnapshotId) -> Solo:
        """Offer a marker that counts right."""
        self.core.receive_marker(src, Marker(snapshot_id, self.core.protocol.seen(src)))
        return self

    def command(self, command: object, ticket: int = 0) -> Solo:
        self.core.command(ticket, PLAIN.encode(command))
        return self

    def step(self) -> bool:
        return self.core.step(sources=True)

    def run(self, most: int = 1000) -> int:
        """Run hooks until none wants to; return how many did."""
        for count in range(most):
            if not self.step():
                return count
        raise AssertionError(f"the node is still busy after {most} hooks")

    def pass_time(self, seconds: float) -> int:
        """Let time pass, then run hooks until none wants to."""
        self.clock.now += seconds
        return self.run()

    def record(self, n: int = 1) -> Captured:
        """Make the node record for a snapshot of its own and return what was captured; needs no inbound channel."""
        assert not self.inbound
        self.core.initiate(snap(self.name, n))
        return captured(self.driver.reports()[-1])

    def recorded_state(self) -> Any:
        """Return the state of the last report."""
        return self.codec.decode(state_of(captured(self.driver.reports()[-1])))


def captured(local: LocalSnapshot) -> Captured:
    """Return what a node's capture fixed."""
    assert isinstance(local.captured, Captured)
    return local.captured


def state_of(captured: Captured) -> bytes:
    """Return the bytes of the state, which are in memory here."""
    assert isinstance(captured.state, bytes)
    return captured.state


def part_of(snapshot: GlobalSnapshot, node: str) -> LocalSnapshot:
    """Return what one node contributed to a snapshot."""
    return snapshot._locals[node]


class WireDriver(RecordingDriver):
    """Carry out what one node of a `CoreWorld` asks for."""

    def __init__(self, world: CoreWorld, name: str) -> None:
        super().__init__()
        self._world = world
        self._name = name

    def send(self, dst: str, number: int, payload: object) -> None:
        super().send(dst, number, payload)
        self._world.wire[self._name, dst].append(Message(number, payload))

    def send_marker(self, dst: str, marker: Marker) -> None:
        super().send_marker(dst, marker)
        self._world.wire[self._name, dst].append(marker)

    def initiated(self, snapshot_id: SnapshotId) -> None:
        super().initiated(snapshot_id)
        self._world.collector.initiators[snapshot_id].append(self._name)

    def report(self, local: LocalSnapshot) -> None:
        super().report(local)
        self._world.collector.add(local)


class CoreWorld:
    """Join one `NodeCore` per node by FIFO queues; the nodes are users' nodes.

    With `recovered` they are restored from a snapshot, and the channels are empty.
    """

    driver_class = WireDriver

    def __init__(
        self,
        topology: Topology,
        make: Callable[[], Node],
        params: Mapping[str, Mapping[str, Any]] | None = None,
        codec: Codec = PLAIN,
        recovered: GlobalSnapshot | None = None,
    ) -> None:
        self.topology = topology
        self.incarnation = 0 if recovered is None else recovered.id.incarnation + 1
        self.wire: dict[tuple[str, str], deque[Message | Marker]] = {channel: deque() for channel in topology.channels}
        self.collector = Collector(topology, dict.fromkeys(topology.nodes, codec))
        self.nodes = {name: make() for name in topology.nodes}
        self.drivers = {name: self.driver_class(self, name) for name in topology.nodes}
        self.clock = Clock()
        self.cores = {
            name: NodeCore(
                name,
                self.nodes[name],
                inbound=topology.inbound(name),
                outbound=topology.outbound(name),
                unreachable=topology.unreachable_from(name),
                incarnation=self.incarnation,
                seed=0,
                codec=codec,
                driver=self.drivers[name],
                clock=self.clock,
                restored=None if recovered is None else part_of(recovered, name),
            )
            for name in topology.nodes
        }
        for name, core in self.cores.items():
            core.start(dict((params or {}).get(name, {})))

    @property
    def snapshots(self) -> dict[SnapshotId, GlobalSnapshot]:
        """The complete ones."""
        return self.collector.snapshots

    def deliver(self, src: str, dst: str) -> None:
        item = self.wire[src, dst].popleft()
        if isinstance(item, Marker):
            self.cores[dst].receive_marker(src, item)
        else:
            self.cores[dst].receive_batch(src, item.number, (item.payload,))

    def step(self, name: str) -> bool:
        return self.cores[name].step(sources=True)

    def deliver_all(self) -> None:
        """Deliver until nothing is on the wire; no hook runs."""
        while busy := [channel for channel, items in self.wire.items() if items]:
            for channel in busy:
                self.deliver(*channel)

    def round(self) -> bool:
        """Deliver everything, then give each node one hook; return whether any ran."""
        self.deliver_all()
        return [self.step(name) for name in self.topology.nodes].count(True) > 0

    def settle(self, most: int = 1000) -> None:
        """Go on until nothing happens any more."""
        for _ in range(most):
            if not self.round() and not any(self.wire.values()):
                return
        raise AssertionError(f"the nodes are still busy after {most} rounds")

    def snapshot(self, snapshot_id: SnapshotId, *initiators: str) -> GlobalSnapshot:
        """Take a snapshot while no hook runs."""
        for node in initiators or (snapshot_id.initiator,):
            self.cores[node].initiate(snapshot_id)
        self.deliver_all()
        return self.snapshots[snapshot_id]
