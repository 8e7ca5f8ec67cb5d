"""One snapshot while its parts come in.

This module owns what the supervisor knows of an open snapshot, and the words for what is missing. It must not know
pipes or processes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

from mpsnap.core.codec import Codec
from mpsnap.core.emptycut import EmptyCut
from mpsnap.core.errors import MpsnapError, ProtocolError, SnapshotError, SnapshotLost
from mpsnap.core.events import Progress
from mpsnap.core.part import PackedParts
from mpsnap.core.protocol import SnapshotId
from mpsnap.core.snapshot import GlobalSnapshot, StoredState
from mpsnap.core.topology import Topology

#: Names of nodes or channels that one error lists before it counts the rest.
NAMED = 6


class Collection:
    """Gather the local snapshots of one global snapshot.

    Args:
        number: Its place in the order of initiation, None for a probe that nobody asked for.
        snapshot_id: Its id.
        initiators: The nodes asked to record spontaneously.
        began: When, on the supervisor's clock.
        timeout: Seconds after which it is given up.
        recovery_point: Whether the cluster may go on from it, if it is kept.
    """

    def __init__(
        self,
        number: int | None,
        snapshot_id: SnapshotId,
        initiators: tuple[str, ...],
        began: float,
        timeout: float,
        recovery_point: bool,
    ) -> None:
        self.number = number
        self.recovery_point = recovery_point
        self.id = snapshot_id
        self.initiators = initiators
        self.began = began
        self.timeout = timeout
        #: Parts that have come in, by node: as they came, and their states if these came apart. They are not unpacked
        #: before all are there: for that time the supervisor would keep a processor from the nodes that are not so far.
        self.parts: dict[str, tuple[bytes, bytes | StoredState | None]] = {}
        #: How many commands had been given to nodes when it began.
        self.disturbances = 0
        #: When it was given up: the sources whose marker each node still awaited, None if it had not recorded, and an
        #: empty tuple if only its state was missing.
        self.answers: dict[str, tuple[str, ...] | None] = {}
        #: By node that has reported, when it had recorded and when all its channels were closed.
        self._times: dict[str, tuple[float, ...]] = {}
        #: By node that was asked meanwhile, when it had recorded, and the sources it awaited then.
        self._inspected: dict[str, tuple[float, tuple[str, ...]]] = {}

    def add(
        self, node: str, data: bytes, state: bytes | StoredState | None = None, times: tuple[float, ...] = ()
    ) -> None:
        """Take a node's part in, packed, with its state if that came apart, and when it was recorded and closed.

        Raises:
            ProtocolError: The node has reported already.
        """
        if node in self.parts:
            raise ProtocolError(f"second report for snapshot {self.id}", where=node)
        self.parts[node] = data, state
        self._times[node] = times

    def inspected(self, node: str, recorded: float, awaited: tuple[str, ...]) -> None:
        """Take in what a node says while the snapshot is open."""
        self._inspected[node] = recorded, awaited

    def progress(self, nodes: Iterable[str]) -> dict[str, Progress]:
        """Return how far each of these nodes is, as far as it is known."""
        return {node: self._progress_of(node) for node in nodes}

    def times(self, topology: Topology) -> Mapping[str, Progress]:
        """Return how far each node is when all have reported."""
        return _Times(topology.nodes, self._times, self.began)

    def status(self, topology: Topology, now: float) -> dict[str, Any]:
        """Return how far it is as plain data; see `Supervisor.status`."""
        return {
            "id": str(self.id),
            "number": self.number,
            "seconds": now - self.began,
            "missing": list(self.missing(topology)),
            "progress": {node: list(progress) for node, progress in self.progress(topology.nodes).items()},
        }

    def _progress_of(self, node: str) -> Progress:
        if node in self._times:
            return _Times((node,), self._times, self.began)[node]
        recorded, awaited = self._inspected.get(node, (None, None))
        return Progress(_since(self.began, recorded), None, self.answers.get(node, awaited))

    def drop(self) -> None:
        """Give up the files of its states: nobody will look at them."""
        for _, state in self.parts.values():
            if isinstance(state, StoredState):
                state.close()

    def missing(self, topology: Topology) -> tuple[str, ...]:
        """Return the nodes that have not reported."""
        return tuple(node for node in topology.nodes if node not in self.parts)

    def merge(
        self, number: int, topology: Topology, empty_cut: EmptyCut, codecs: Mapping[str, Codec], now: float
    ) -> GlobalSnapshot:
        """Return the global snapshot, proven.

        Raises:
            ConsistencyError: It is not consistent or not complete.
            CodecError: A part is not what a node packs.
        """
        empty = empty_cut.holds(self.id, self.parts)
        parts = PackedParts(self.parts)
        snapshot = GlobalSnapshot(
            number, self.id, self.initiators, topology, parts, codecs, duration=now - self.began, empty=empty
        )
        if not empty:
            snapshot.verify()
        return snapshot

    def expired(self, topology: Topology, doing: Callable[[str], str]) -> SnapshotError:
        """Return the error that names what was missing when the time was over; `doing` tells what a node does."""
        reasons = []
        silent = []
        for node in self.missing(topology):
            if node not in self.answers:
                silent.append(node)
                continue
            awaited = self.answers[node]
            if awaited is None:
                reasons.append(f"{node} has not recorded")
            elif not awaited:
                reasons.append(f"{node} is still encoding its state")
            else:
                reasons.append(f"{node} awaits the marker on {_some([f'{src}->{node}' for src in awaited])}")
        # Those that do not answer come first: they are why the others wait.
        reasons = [f"{node} does not answer ({doing(node)})" for node in silent] + reasons
        return SnapshotError(
            f"snapshot {self} did not complete within {self.timeout:g} s: {_some(reasons, '; ')}",
            where=(silent + list(self.missing(topology)))[0],
            hint="a longer timeout, or a look at why that node does not come back from its hook",
        )

    def lost(self, error: MpsnapError | None) -> SnapshotError:
        """Return the error for a snapshot that the end of the cluster took with it."""
        reason = "the cluster stopped" if error is None else error.what
        kind = SnapshotLost if isinstance(error, SnapshotLost) else SnapshotError
        return kind(f"snapshot {self} was abandoned: {reason}", where=error.where if error else None)

    def __str__(self) -> str:
        return str(self.id) if self.number is None else f"{self.number} ({self.id})"


class _Times(Mapping[str, Progress]):
    """Show when nodes had recorded and closed, worked out when somebody looks."""

    def __init__(self, nodes: Sequence[str], times: Mapping[str, tuple[float, ...]], began: float) -> None:
        self._nodes = nodes
        self._times = times
        self._began = began

    def __getitem__(self, node: str) -> Progress:
        recorded, closed = self._times[node] or (None, None)
        return Progress(_since(self._began, recorded), _since(self._began, closed), ())

    def __iter__(self) -> Iterator[str]:
        return iter(self._nodes)

    def __len__(self) -> int:
        return len(self._nodes)


def _since(began: float, when: float | None) -> float | None:
    return None if when is None else max(0.0, when - began)


def _some(items: list[str], separator: str = ", ") -> str:
    more = len(items) - NAMED
    return separator.join(items[:NAMED]) + (f" and {more} more" if more > 0 else "")
