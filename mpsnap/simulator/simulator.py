"""A cluster in discrete time: one thread, no clock, and the same run for the same seed or the same list of delays.

This module owns ticks, delays and the order of deliveries. What a node does is the business of the same `NodeCore` that
runs in the processes.

The semantics of a tick, on which scenario files rely:

- What is sent at time t, message or marker, may be delivered at or after t + 1 + delay.
- A tick advances the time by one. Then sources are visited in the order of their names, and a source's outbound
  channels in the order of their destinations. The first channel whose *head* is due delivers it, and that source
  delivers nothing more in this tick. A later item never overtakes the head, even if it is due and the head is not.
- Then timers run, then the idle calls of the nodes that asked, both in the order of names.
- Who records sends its markers in the order of destinations; each takes a delay of its own.

Cost follows deliveries, not nodes times ticks: a channel waits in the bucket of the tick at which its head is due, and
only sources with something due are visited.

Rules a maintainer keeps: randomness comes from one seeded stream and is drawn once per send, in the order of sending;
nothing iterates over a set; time that holds nothing is skipped, not walked.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial
from heapq import heappop, heappush
from typing import NamedTuple

from mpsnap.core.blame import blame, node_error
from mpsnap.core.codec import Codec
from mpsnap.core.driver import Driver
from mpsnap.core.errors import MpsnapError, OutputError, SnapshotError, one_line
from mpsnap.core.events import Emitted, Event, Logged, SnapshotAbandoned, SnapshotCompleted, SnapshotInitiated
from mpsnap.core.history import Entry, error_shown
from mpsnap.core.journal import EntryJournal, JournaledCore
from mpsnap.core.nodecore import NodeCore
from mpsnap.core.program import Program, codec_of
from mpsnap.core.protocol import LocalSnapshot, Marker, SnapshotId
from mpsnap.core.rng import CounterRandom
from mpsnap.core.snapshot import GlobalSnapshot
from mpsnap.core.topology import Topology

#: A delay model: the ticks, from 0, by which the item sent now is late.
DelayModel = Callable[[], int]


class OutOfDelays(MpsnapError):
    """Report that a list of delays was shorter than the run."""


def random_delays(seed: int, most: int) -> DelayModel:
    """Return delays of 0 to `most` - 1 ticks, equally likely, from one seeded stream."""
    draw = CounterRandom(f"delays:{seed}")
    if most > 256:
        return lambda: draw.randrange(most)
    return _bytes_below(draw, most).__next__


def _bytes_below(draw: CounterRandom, most: int) -> Iterator[int]:
    """Yield numbers below `most` without bias, eight at a draw: a delay is needed for each item that is sent."""
    table = [byte % most if byte < 256 - 256 % most else None for byte in range(256)]
    while True:
        for byte in draw.randrange(1 << 64).to_bytes(8, "little"):
            delay = table[byte]
            if delay is not None:
                yield delay


def listed_delays(delays: Iterable[int], source: str | None = None) -> DelayModel:
    """Return the delays of a list, one a send; running out raises `OutOfDelays` and says how many of `source`."""
    remaining = iter(delays)
    used = 0

    def following() -> int:
        nonlocal used
        for delay in remaining:
            used += 1
            return delay
        raise OutOfDelays(f"all {used} delays are used and one more item is sent", where=source, hint="a longer list")

    return following


#: When an item may be delivered, its number, its payload; a marker has the number 0.
_Item = tuple[int, int, object]


class _Channel:
    """One channel and what is in flight on it."""

    __slots__ = ("behind", "head", "source", "target")

    def __init__(self, source: _Source, target: _Source) -> None:
        self.source = source
        self.target = target
        #: The oldest item, None if there is none.
        self.head: _Item | None = None
        #: The others, oldest first; None until there was one. An empty deque takes as much memory as all the rest, and
        #: most channels of a large graph never hold two items at a time.
        self.behind: deque[_Item] | None = None


class _Source(Driver):
    """One node and its driver: puts what the node sends on its outbound channels."""

    __slots__ = ("_simulator", "alarm", "channels", "core", "due", "name", "rank")

    core: NodeCore

    def __init__(self, simulator: Simulator, name: str, rank: int) -> None:
        self._simulator = simulator
        self.name = name
        #: Its place among all nodes, by name.
        self.rank = rank
        #: Its channels by destination.
        self.channels: dict[str, _Channel] = {}
        #: Heap of the destinations of channels whose head is due.
        self.due: list[str] = []
        #: The next tick at which its timers are looked at, None if they are not.
        self.alarm: int | None = None

    def send(self, dst: str, number: int, payload: object) -> None:
        simulator = self._simulator
        due = simulator.time + 1 + simulator.delay()
        channel = self.channels[dst]
        if channel.head is None:
            channel.head = (due, number, payload)
            simulator.await_head(channel, due)
        elif channel.behind is None:
            channel.behind = deque([(due, number, payload)])
        else:
            channel.behind.append((due, number, payload))

    def send_marker(self, dst: str, marker: Marker) -> None:
        self.send(dst, 0, marker)

    def initiated(self, snapshot_id: SnapshotId) -> None:
        self._simulator.learn(snapshot_id, (snapshot_id.initiator,))

    def report(self, local: LocalSnapshot) -> None:
        self._simulator.collect(local)

    def refused(self, snapshot_id: SnapshotId, error: MpsnapError) -> None:
        self._simulator.abandon(snapshot_id, error)

    def emit(self, n: int, record: bytes) -> None:
        self._simulator.tell(Emitted(self.name, n, self._simulator.readers[self.name].decode(record)))

    def reply(self, ticket: int, value: bytes) -> None:
        self._simulator.replies[ticket] = value

    def log(self, text: str) -> None:
        self._simulator.tell(Logged(self.name, one_line(text)))


class _Known(NamedTuple):
    """A snapshot that was heard of: its number, who begins it, and the tick of that."""

    number: int
    initiators: tuple[str, ...]
    begun: int


class Simulator:
    """Run a cluster in discrete time.

    Args:
        topology: Nodes and channels.
        programs: What each node runs.
        delays: How late each item is.
        seed: Of the nodes' random numbers.
        ticks_per_second: How many ticks the seconds of a timer take.
        audience: Hears what happens: snapshots, records, what nodes log.
        log: Gets every entry of the event log, causes before effects; None for none.

    Example:
        >>> simulator = Simulator(topology, programs, random_delays(7, 5))   # doctest: +SKIP
        >>> simulator.snapshot(["N1"])                                       # doctest: +SKIP
        >>> simulator.finish()                                               # doctest: +SKIP
        >>> simulator.snapshots[0].verify()                                  # doctest: +SKIP
    """

    def __init__(
        self,
        topology: Topology,
        programs: Mapping[str, Program],
        delays: DelayModel,
        *,
        seed: int = 0,
        ticks_per_second: int = 1,
        audience: Callable[[Event], None] = lambda event: None,
        log: Callable[[Entry], None] | None = None,
    ) -> None:
        self.topology = topology
        self.time = 0
        #: Messages and markers delivered so far.
        self.deliveries = 0
        #: Completed snapshots by number, verified.
        self.snapshots: dict[int, GlobalSnapshot] = {}
        self.replies: dict[int, bytes] = {}
        self.tell = audience
        self.delay = delays
        self._ticks_per_second = ticks_per_second
        self._names = sorted(topology.nodes)
        self._sources: list[_Source] = []
        self._by_name: dict[str, _Source] = {}
        self.codecs: dict[str, Codec] = {}
        #: For whoever looks at snapshots and records: as in every driver, pickles of nodes stay pickles there.
        self.readers: dict[str, Codec] = {}
        #: Channels by the tick at which their head becomes due, and a heap of these ticks.
        self._buckets: dict[int, list[_Channel]] = {}
        self._ticks: list[int] = []
        #: Ranks of the sources with something due.
        self._active: list[int] = []
        #: Ranks of the nodes whose idle call is wanted, and a heap of (tick, rank) for timers.
        self._restless: set[int] = set()
        self._alarms: list[tuple[int, int]] = []
        #: Parts of open snapshots; numbers and initiators of all.
        self._parts: dict[SnapshotId, dict[str, LocalSnapshot]] = {}
        self._known: dict[SnapshotId, _Known] = {}
        self._triggered: dict[str, int] = {}
        self._tickets = 0
        self._log = log
        self._noted = 0
        self._build(programs, seed)

    def _build(self, programs: Mapping[str, Program], seed: int) -> None:
        classes = {program.reference: program.load() for program in programs.values()}
        codecs = {reference: codec_of(each, classes.values()) for reference, each in classes.items()}
        # Found once for most graphs: in one component, every node reaches every other.
        strong = len(self.topology.source_components()[0]) == len(self._names)
        readers = {reference: codec.reader() for reference, codec in codecs.items()}
        clock = self._clock
        for rank, name in enumerate(self._names):
            source = _Source(self, name, rank)
            self._sources.append(source)
            self._by_name[name] = source
            reference = programs[name].reference
            self.codecs[name] = codecs[reference]
            self.readers[name] = readers[reference]
            source.core = self._core_class(name)(
                name,
                classes[reference](),
                inbound=self.topology.inbound(name),
                outbound=self.topology.outbound(name),
                unreachable=() if strong else self.topology.unreachable_from(name),
                incarnation=0,
                seed=seed,
                codec=codecs[reference],
                driver=source,
                clock=clock,
            )
        for source in self._sources:
            for dst in self.topology.outbound(source.name):
                source.channels[dst] = _Channel(source, self._by_name[dst])
        try:
            for source in self._sources:
                source.core.start(dict(programs[source.name].params))
                self._remember(source)
        except BaseException as error:
            self._blame(error)
            raise

    def _core_class(self, name: str) -> Callable[..., NodeCore]:
        if self._log is None:
            return NodeCore
        return partial(JournaledCore, journal=EntryJournal(name, self.readers[name], lambda: self.time, self._log))

    def _clock(self) -> float:
        return self.time / self._ticks_per_second

    # ------------------------------------------------------------------- acting

    def snapshot(self, initiators: Iterable[str] = ()) -> int:
        """Begin a snapshot now at all of these nodes, and at those needed to reach every node; return its number."""
        nodes = self.topology.initiators(initiators)
        count = self._triggered.get(nodes[0], 0)
        self._triggered[nodes[0]] = count + 1
        snapshot_id = SnapshotId.triggered(0, nodes[0], count)
        number = self.learn(snapshot_id, nodes)
        for node in nodes:
            self._by_name[node].core.initiate(snapshot_id)
        return number

    def command(self, node: str, command: object) -> object:
        """Give a command, plain data, to a node's `on_command` now and return the reply."""
        self._tickets += 1
        codec, source = self.codecs[node], self._by_name[node]
        source.core.command(self._tickets, codec.encode(command, where="command"))
        try:
            source.core.step(sources=False)
        except BaseException as error:
            self._blame(error)
            raise
        self._remember(source)
        return codec.decode(self.replies.pop(self._tickets))

    def step(self, end: int | None) -> bool:
        """Let time pass until anything has happened, but not beyond `end`; return whether anything has.

        Raises:
            NodeError: A hook raised.
        """
        following = self._next_time()
        if following is None or (end is not None and following > end):
            self.time = self.time if end is None else max(self.time, end)
            return False
        self.time = following - 1
        self.tick()
        return True

    def advance(self, ticks: int) -> None:
        """Let this many ticks pass."""
        end = self.time + ticks
        while self.time < end:
            self.step(end)

    def finish(self) -> None:
        """Let ticks pass until every snapshot is complete.

        Raises:
            SnapshotError: Nothing is in flight any more and one is not complete.
        """
        while self._parts:
            if not self.step(None):
                raise SnapshotError(f"snapshot {next(iter(self._parts))} cannot complete, nothing is in flight")

    def stop(self) -> None:
        """End in an orderly way: `on_stop` of every node, in the order of names.

        Raises:
            NodeError: A hook raised.
        """
        try:
            for source in self._sources:
                source.core.stop()
        except BaseException as error:
            self._blame(error)
            raise

    @property
    def open_snapshots(self) -> int:
        """How many snapshots have begun and are not complete."""
        return len(self._parts)

    @property
    def missing(self) -> int:
        """How many local snapshots the open snapshots still lack."""
        return sum(len(self._names) - len(parts) for parts in self._parts.values())

    @property
    def quiet(self) -> bool:
        """Whether nothing is in flight and no node has anything to do: nothing can ever happen again by itself."""
        return self._next_time() is None

    @property
    def totals(self) -> tuple[int, int]:
        """How many messages were sent and received so far."""
        protocols = [source.core.protocol for source in self._sources]
        sent = sum(protocol.sent(dst) for protocol in protocols for dst in protocol.outbound)
        return sent, sum(protocol.received(src) for protocol in protocols for src in protocol.inbound)

    def tick(self) -> None:
        """Let one tick pass.

        Raises:
            NodeError: A hook raised.
        """
        self.time += 1
        self._find_due()
        try:
            if self._active:
                self._deliver()
            if self._restless or self._alarms:
                self._run_sources()
        except BaseException as error:
            self._blame(error)
            raise

    def _next_time(self) -> int | None:
        """Return the next tick at which anything can happen, None if nothing ever can."""
        if self._active or self._restless:
            return self.time + 1
        following = self._ticks[0] if self._ticks else None
        if self._alarms and (following is None or self._alarms[0][0] < following):
            following = self._alarms[0][0]
        return None if following is None else max(self.time + 1, following)

    def _find_due(self) -> None:
        """Give every channel whose head is due from now on to its source."""
        while self._ticks and self._ticks[0] <= self.time:
            for channel in self._buckets.pop(heappop(self._ticks)):
                source = channel.source
                if not source.due:
                    self._active.append(source.rank)
                heappush(source.due, channel.target.name)

    def _deliver(self) -> None:
        """Deliver one item of each source that has one due."""
        active, self._active = sorted(self._active), []
        self.deliveries += len(active)
        sources, time = self._sources, self.time
        for rank in active:
            source = sources[rank]
            dst = heappop(source.due)
            channel = source.channels[dst]
            assert channel.head is not None
            _, number, payload = channel.head
            if channel.behind:
                following = channel.head = channel.behind.popleft()
                if following[0] <= time:
                    heappush(source.due, dst)
                else:
                    self.await_head(channel, following[0])
            else:
                channel.head = None
            if source.due:
                self._active.append(rank)
            target = channel.target
            if number:
                if target.core.deliver(source.name, number, payload):
                    self._remember(target)
            else:
                assert isinstance(payload, Marker)
                target.core.receive_marker(source.name, payload)

    def _run_sources(self) -> None:
        """Run the timers that are due and then the idle calls that are wanted, both in the order of names."""
        ringing = set()
        while self._alarms and self._alarms[0][0] <= self.time:
            ringing.add(heappop(self._alarms)[1])
        for rank in sorted(ringing):
            source = self._sources[rank]
            source.alarm = None
            while source.core.next_timer is not None and source.core.next_timer <= self._clock():
                source.core.step(sources=True)
            self._remember(source)
        idle, self._restless = sorted(self._restless), set()
        for rank in idle:
            source = self._sources[rank]
            if source.core.idle_wanted:
                source.core.step(sources=True)
            self._remember(source)

    # ------------------------------------------------------------ what nodes do

    def await_head(self, channel: _Channel, due: int) -> None:
        """Note when the head of a channel will be due."""
        bucket = self._buckets.get(due)
        if bucket is None:
            self._buckets[due] = [channel]
            heappush(self._ticks, due)
        else:
            bucket.append(channel)

    def _remember(self, source: _Source) -> None:
        """Remember whether a node wants its timers or idle calls looked at."""
        if source.core.idle_wanted:
            self._restless.add(source.rank)
        timer = source.core.next_timer
        if timer is not None:
            tick = math.ceil(timer * self._ticks_per_second)
            # A later one is noted when the earlier one has rung: this is asked after every message.
            if source.alarm is None or tick < source.alarm:
                source.alarm = tick
                heappush(self._alarms, (tick, source.rank))

    def learn(self, snapshot_id: SnapshotId, initiators: tuple[str, ...]) -> int:
        """Give a snapshot its number, when it is first heard of."""
        known = self._known.get(snapshot_id)
        if known is None:
            known = self._known[snapshot_id] = _Known(len(self._known), initiators, self.time)
            self._parts[snapshot_id] = {}
            self._note("initiated", number=known.number, snapshot=str(snapshot_id), initiators=list(initiators))
            self.tell(SnapshotInitiated(known.number, snapshot_id, initiators))
        return known.number

    def collect(self, local: LocalSnapshot) -> None:
        """Take a part of a snapshot in; with the last one it is merged and verified."""
        # A node that begins one by itself may report before it is known to have begun it.
        number = self.learn(local.snapshot_id, (local.snapshot_id.initiator,))
        parts = self._parts[local.snapshot_id]
        parts[local.node] = local
        if len(parts) < len(self._names):
            return
        del self._parts[local.snapshot_id]
        _, initiators, begun = self._known[local.snapshot_id]
        seconds = (self.time - begun) / self._ticks_per_second
        snapshot = GlobalSnapshot(number, local.snapshot_id, initiators, self.topology, parts, self.readers, seconds)
        snapshot.verify()
        self._note("completed", number=number, snapshot=str(local.snapshot_id), verified=True)
        self.snapshots[number] = snapshot
        self.tell(SnapshotCompleted(snapshot))

    def abandon(self, snapshot_id: SnapshotId, error: MpsnapError) -> None:
        """Give a snapshot up everywhere, since a node could not record."""
        number = self.learn(snapshot_id, (snapshot_id.initiator,))
        del self._parts[snapshot_id]
        for source in self._sources:
            source.core.abandon(snapshot_id)
        self._note("abandoned", number=number, snapshot=str(snapshot_id), error=error_shown(error))
        self.tell(SnapshotAbandoned(number, snapshot_id, error))

    def _note(self, event: str, **fields: object) -> None:
        """Log what is nobody's event but the cluster's."""
        if self._log is not None:
            self._log(Entry(None, self._noted, self.time, event, fields))
            self._noted += 1

    def _blame(self, error: BaseException) -> None:
        """Raise the error of the node whose hook raised, if one did."""
        if isinstance(error, OutOfDelays | OutputError | KeyboardInterrupt):
            return
        for source in self._sources:
            if source.core.hook != "waiting":
                failure = node_error(source.name, source.core.hook, blame(error), "raised")
                if isinstance(source.core, JournaledCore):
                    source.core.note_death(failure)
                raise failure from error
