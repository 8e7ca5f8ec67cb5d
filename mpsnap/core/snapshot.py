"""Global snapshots: the merge of local ones, and the proof that the cut is consistent.

This module owns what a finished snapshot is and what makes it right. It must not know how the parts were collected.

Rules a maintainer keeps:

- A `GlobalSnapshot` is a value: nothing in it changes, and it holds every node and every channel of its topology, empty
  channels too. What is missing is an error of `verify`, never an empty list.
- `verify` trusts nothing but counts: it does not ask how the parts came about. It runs on every snapshot taken, in
  production, unless `emptycut` has proven that one as it came, and is the oracle of every test. It proves the cut, not
  what the user's capture put into a state: invariants are for that.
- Reading runs no code from a snapshot. Values are decoded when they are looked at, by the codec given.

Paper: section 2 (a consistent global state), theorem of section 4; the counting argument is the one the paper uses to
derive the marker rules: for every channel, messages received before the cut <= messages sent before it, and the channel
state is exactly the difference, in order.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import cached_property
from typing import TYPE_CHECKING, Any, NamedTuple

from mpsnap.core.codec import Codec, thaw
from mpsnap.core.errors import ConsistencyError, InvariantError
from mpsnap.core.protocol import LocalSnapshot, SnapshotId
from mpsnap.core.topology import Topology

if TYPE_CHECKING:
    from mpsnap.core.diff import SnapshotDiff

#: States in files that whoever keeps snapshots may hold: each is open, and a process may have a thousand or so.
MOST_STORED = 64


class Timer(NamedTuple):
    """Call `method(ctx, *args)` after `remaining` seconds, then every `period` unless that is None; args are frozen."""

    remaining: float
    period: float | None
    method: str
    args: object


class StoredState(ABC):
    """Stand for the bytes of a state that are not in memory, since they are many; nothing in them changes."""

    @property
    @abstractmethod
    def size(self) -> int:
        """How many bytes there are."""

    @abstractmethod
    def read(self) -> bytes:
        """Return the bytes, whole and as they were captured.

        Raises:
            CodecError: They are not what was stored.
        """

    @abstractmethod
    def close(self) -> None:
        """Give up whatever holds the bytes, before the last reference to them is gone; also right twice."""


class UnfinishedState:
    """Stand for the bytes of a state that is fixed while a driver is still making them; what it is, that one knows."""


class Captured(NamedTuple):
    """Hold what a node's capture fixed at the cut: the user's state as bytes, and what the runtime keeps for it."""

    state: bytes | StoredState | UnfinishedState
    timers: tuple[Timer, ...]
    random: tuple[int | str, int]
    passive: bool
    finished: bool
    emitted: int


class NodeSnapshot:
    """Show one node at the cut.

    `sent` and `received` count messages per neighbour before the cut; `passive` says that it had nothing to do,
    `finished` that it had called `ctx.finish()`.
    """

    def __init__(self, local: LocalSnapshot, codec: Codec) -> None:
        assert isinstance(local.captured, Captured)
        self._local = local
        self._captured = local.captured
        self._codec = codec
        self.name = local.node
        self.sent = local.sent
        self.received = local.received
        self.passive = local.captured.passive
        self.finished = local.captured.finished
        self.timers = local.captured.timers
        #: How many records it had put out.
        self.emitted = local.captured.emitted

    @property
    def state(self) -> Any:
        """The node's local state, decoded anew at every look: what is done to it changes nothing here.

        A large one is in a file, which is read for it: whoever needs several looks keeps what the first returned.

        Raises:
            CodecError: The file does not hold any more what was captured.
        """
        state = self._captured.state
        assert not isinstance(state, UnfinishedState), "a snapshot is put together of finished parts"
        return self._codec.decode(state if isinstance(state, bytes) else state.read())

    @property
    def stored(self) -> int | None:
        """How many bytes of the state are in a file; None if it is in memory."""
        state = self._captured.state
        return state.size if isinstance(state, StoredState) else None

    def same_bytes(self, other: NodeSnapshot) -> bool:
        """Return whether the states are certainly the same, by a look at their bytes; states in files are not read."""
        ours, theirs = self._captured.state, other._captured.state
        return isinstance(ours, bytes) and ours == theirs

    def __repr__(self) -> str:
        return f"<NodeSnapshot {self.name}: {self.state!r}>"


class _Channels(Mapping[tuple[str, str], tuple[Any, ...]]):
    """Map each channel to its messages in flight at the cut, decoded when looked at; `("N1", "N2")` works as a key."""

    def __init__(self, topology: Topology, locals_: Mapping[str, LocalSnapshot], codecs: Mapping[str, Codec]) -> None:
        self._topology = topology
        self._locals = locals_
        self._codecs = codecs

    def __getitem__(self, channel: tuple[str, str]) -> tuple[Any, ...]:
        if not isinstance(channel, tuple) or len(channel) != 2:
            raise KeyError(channel)
        src, dst = channel
        local = self._locals.get(dst)
        state = None if local is None else local.channels.get(src)
        if state is None:
            raise KeyError(channel)
        return tuple([thaw(payload, self._codecs[dst]) for payload in state.payloads]) if state.payloads else ()

    def __iter__(self) -> Iterator[tuple[str, str]]:
        return iter(self._topology.channels)

    def __len__(self) -> int:
        return len(self._topology.channels)


class GlobalSnapshot:
    """Hold one consistent cut of a whole cluster: every node's local state and every channel's messages in flight.

    Args:
        number: 0, 1, 2... by order of initiation.
        snapshot_id: The id its markers carried.
        initiators: Nodes that were asked to record spontaneously.
        topology: What a complete snapshot has to cover.
        locals_: The local snapshots by node.
        codecs: How to read each node's values.
        duration: Seconds from the wish to the merge, None where there is no clock.
        empty: Whether it is proven already that this is a complete and consistent cut with nothing in flight.

    Example:
        >>> snapshot.nodes["N1"].state                    # doctest: +SKIP
        {'tokens': 7}
        >>> snapshot.channels["N1", "N2"]                 # doctest: +SKIP
        (2, 1)
    """

    def __init__(
        self,
        number: int,
        snapshot_id: SnapshotId,
        initiators: tuple[str, ...],
        topology: Topology,
        locals_: Mapping[str, LocalSnapshot],
        codecs: Mapping[str, Codec],
        duration: float | None = None,
        empty: bool = False,
    ) -> None:
        self.number = number
        self.id = snapshot_id
        self.initiators = initiators
        self.topology = topology
        self.duration = duration
        self._locals = locals_
        self._proven = empty
        #: How many messages are in flight, once that is proven.
        self._in_flight = 0
        self._codecs = codecs

    # Both when first looked at: of many snapshots that are taken one after another, few are.
    @cached_property
    def nodes(self) -> Mapping[str, NodeSnapshot]:
        """The nodes at the cut, by name."""
        parts, codecs = self._locals, self._codecs
        return {node: NodeSnapshot(parts[node], codecs[node]) for node in self.topology.nodes if node in parts}

    @cached_property
    def channels(self) -> Mapping[tuple[str, str], tuple[Any, ...]]:
        """The messages in flight at the cut, by channel, decoded when they are looked at; empty channels too."""
        return _Channels(self.topology, self._locals, self._codecs)

    @property
    def in_flight(self) -> int:
        """How many messages were in flight at the cut, over all channels."""
        if self._proven:
            return self._in_flight
        return sum(len(state.payloads) for local in self._locals.values() for state in local.channels.values())

    @property
    def stored(self) -> list[int]:
        """The sizes of those states that are in files and not in memory."""
        # Not above: that imports this module. Whoever keeps snapshots asks each, and nobody may ever look at one.
        from mpsnap.core.part import PackedParts

        if isinstance(self._locals, PackedParts):
            return self._locals.stored
        return [node.stored for node in self.nodes.values() if node.stored is not None]

    @property
    def terminated(self) -> bool:
        """Whether the cut proves that the computation has ended: every node passive and every channel empty.

        Paper: section 5, stable properties. Nothing can happen after such a cut, so what holds in it holds for good.
        """
        complete = len(self._locals) == len(self.topology.nodes)
        return complete and self.in_flight == 0 and all(node.passive for node in self.nodes.values())

    @property
    def verified(self) -> bool:
        """Whether `verify` finds nothing; once it has found nothing it is not asked again, as nothing here changes."""
        if not self._proven:
            try:
                self.verify()
            except ConsistencyError:
                return False
        return True

    @property
    def busy(self) -> dict[tuple[str, str], tuple[Any, ...]]:
        """Return the channels that hold messages, with their messages in flight at the cut."""
        parts = self._locals
        # Not by way of `channels`, whose every look makes a tuple: of a million channels a handful are busy.
        states = ((c, parts[c.dst].channels.get(c.src)) for c in self.topology.channels if c.dst in parts)
        held = (channel for channel, state in states if state is not None and state.payloads)
        return {(channel.src, channel.dst): self.channels[channel] for channel in held}

    def flight(self, src: str, dst: str) -> tuple[int, int]:
        """Return the number of the oldest message in flight on a channel, and how many there are."""
        first, payloads = self._locals[dst].channels[src]
        return first, len(payloads)

    def diff(self, newer: GlobalSnapshot) -> SnapshotDiff:
        """Return how another snapshot differs from this one, which is taken for the older of the two.

        Values are compared exactly, by type too; messages by their numbers on their channel.
        """
        # Not above: nodes import this module, and have no use for it.
        from mpsnap.core.diff import diff_snapshots

        return diff_snapshots(self, newer)

    def verify(self) -> None:
        """Prove that this is a complete and consistent cut.

        Raises:
            ConsistencyError: It is not; `where` is the first node or channel that shows it.
        """
        self.check_complete()
        sent = {src: part.sent for src, part in self._locals.items()}
        in_flight = 0
        for dst, part in self._locals.items():
            received = part.received
            if part.all_empty:
                # All of them at once. What is received next is the first of none in flight, and so there is no gap.
                if [sent[src][dst] for src in received] != [*received.values()]:
                    raise self._first_inconsistent()
                continue
            for src, (first, payloads) in part.channels.items():
                taken, count = received[src], len(payloads)
                # Both together also say that no more was received than sent: nothing has a negative length.
                if first != taken + 1 or taken + count != sent[src][dst]:
                    raise self._first_inconsistent()
                in_flight += count
        self._in_flight, self._proven = in_flight, True

    def __getstate__(self) -> dict[str, Any]:
        # A copy, taken in one step: another thread's first look adds to the original meanwhile.
        return dict(vars(self))

    def check_complete(self) -> None:
        """Look that there are parts of all nodes, with all channels and no others: or what reads them would stumble.

        Raises:
            ConsistencyError: There are not; `where` is the first node that shows it.
        """
        parts, neighbours = self._locals, self.topology.neighbours
        for node, (inbound, outbound) in neighbours.items():
            local = parts.get(node)
            if local is None:
                raise ConsistencyError(f"snapshot {self.id} lacks the local snapshot", where=node)
            if local.node != node or local.snapshot_id != self.id:
                raise ConsistencyError(
                    f"snapshot {self.id} holds the part of {local.node} in snapshot {local.snapshot_id}", where=node
                )
            # Nearly always in the same order, and then no name is looked up.
            states = inbound if local.all_empty else tuple(local.channels)
            if tuple(local.sent) != outbound or not tuple(local.received) == states == inbound:
                self._check_neighbours(local, inbound, outbound)
        for stranger in sorted(parts.keys() - neighbours.keys()):
            raise ConsistencyError(f"snapshot {self.id} holds a node that its topology does not", where=stranger)

    def _check_neighbours(self, local: LocalSnapshot, inbound: tuple[str, ...], outbound: tuple[str, ...]) -> None:
        for part, got, neighbours in (
            ("sent", local.sent, outbound),
            ("received", local.received, inbound),
            ("channels", local.channels, inbound),
        ):
            if got.keys() != set(neighbours):
                raise ConsistencyError(
                    f"snapshot {self.id}: {part} covers {sorted(got)}, the topology has {sorted(neighbours)}",
                    where=local.node,
                )

    def _first_inconsistent(self) -> ConsistencyError:
        """Return what is wrong with the first channel, in the order of the topology, that shows it."""
        for src, dst in self.topology.channels:
            sent, received = self._locals[src].sent[dst], self._locals[dst].received[src]
            first, payloads = self._locals[dst].channels[src]
            if first == received + 1 and len(payloads) == sent - received:
                continue
            if received > sent:
                what = f"{received} messages received before the cut, only {sent} sent before it"
            else:
                held = f"the channel state holds {len(payloads)} from {first}"
                what = f"messages {received + 1}..{sent} were in flight, {held}"
            return ConsistencyError(f"snapshot {self.id}: {what}", where=f"{src}->{dst}")
        raise AssertionError("no channel is inconsistent")

    def __repr__(self) -> str:
        return (
            f"<GlobalSnapshot {self.number} ({self.id}): {len(self.nodes)} nodes, "
            f"{len(self.topology.channels)} channels, {self.in_flight} messages in flight>"
        )


#: A function of a snapshot that has to be true of every one.
Invariant = Callable[[GlobalSnapshot], object]


def check_invariants(snapshot: GlobalSnapshot, invariants: Iterable[Invariant]) -> None:
    """Ask each invariant about a snapshot.

    Raises:
        InvariantError: One is false or raises; names it and the cut.
    """
    for invariant in invariants:
        name = getattr(invariant, "__qualname__", repr(invariant))
        cut = f"snapshot {snapshot.number} ({snapshot.id})"
        try:
            holds = bool(invariant(snapshot))
        except BaseException as error:  # `pytest.fail` and `sys.exit` raise what is no Exception
            raise InvariantError(f"invariant {name} raised on {cut}: {type(error).__name__}: {error}") from error
        if not holds:
            raise InvariantError(f"invariant {name} is false on {cut}")
