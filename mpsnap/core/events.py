"""What happened to a cluster, as values in the past tense.

This module owns the events that a driver tells its user interface. It must not know what anyone does with them.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import NamedTuple

from mpsnap.core.errors import MpsnapError
from mpsnap.core.protocol import SnapshotId
from mpsnap.core.snapshot import GlobalSnapshot


class ClusterStarted(NamedTuple):
    """Every node has run its `setup` and handles messages from now on."""

    nodes: tuple[str, ...]


class SnapshotInitiated(NamedTuple):
    """A snapshot has begun; `number` counts from 0 in the order in which the supervisor learned of them."""

    number: int
    snapshot_id: SnapshotId
    initiators: tuple[str, ...]


class Initiated(NamedTuple):
    """A node has recorded spontaneously, or had recorded already when it was asked to.

    Of a snapshot that was triggered, only if that was to be acknowledged.
    """

    node: str
    snapshot_id: SnapshotId


class Progress(NamedTuple):
    """Say how far one node is with a snapshot, in seconds since that began; None is what is not known, or not so yet.

    `awaits` are the sources whose marker it still awaits.
    """

    recorded: float | None
    closed: float | None
    awaits: tuple[str, ...] | None


#: For a driver without a clock.
UNKNOWN: Mapping[str, Progress] = MappingProxyType({})


class SnapshotCompleted(NamedTuple):
    """All local snapshots are merged. Whether the cut is proven stands in `snapshot.verified`."""

    snapshot: GlobalSnapshot
    progress: Mapping[str, Progress] = UNKNOWN
    #: Whether the cluster may go on from it: it is kept, and releases outputs.
    recovery_point: bool = False


class SnapshotAbandoned(NamedTuple):
    """A snapshot did not complete and never will; `error` names what is missing, `number` is None for a probe."""

    number: int | None
    snapshot_id: SnapshotId
    error: MpsnapError
    progress: Mapping[str, Progress] = UNKNOWN


class Emitted(NamedTuple):
    """A node put out its `n`-th record."""

    node: str
    n: int
    record: object


class Logged(NamedTuple):
    """A node's code said something."""

    node: str
    text: str


class StateTold(NamedTuple):
    """A node told its state, as bytes of its codec, when it was asked with this ticket; or why it cannot."""

    ticket: int
    node: str
    state: bytes | None
    error: MpsnapError | None


class Replied(NamedTuple):
    """A node answered the command with this ticket."""

    ticket: int
    node: str
    value: object


class NodeDied(NamedTuple):
    """A node has failed; all nodes are gone, and the cluster goes on from its last recovery point."""

    node: str
    error: MpsnapError


class Recovered(NamedTuple):
    """Every node of a new incarnation has taken its state of snapshot `number` back and handles messages again."""

    incarnation: int
    number: int
    #: From the death to now.
    seconds: float


class CommandLost(NamedTuple):
    """A node died before it answered the command, or the question, with this ticket; a new one can be asked anew."""

    ticket: int
    node: str


class SurplusKept(NamedTuple):
    """Old snapshots could not be removed; nothing is lost, and each commit tries again. Told once, until one can."""

    error: MpsnapError


class ClusterStopped(NamedTuple):
    """No process of the cluster is left; `error` says why it failed, None after an orderly stop."""

    error: MpsnapError | None


Event = (
    ClusterStarted
    | SnapshotInitiated
    | Initiated
    | SnapshotCompleted
    | SnapshotAbandoned
    | Emitted
    | Logged
    | StateTold
    | Replied
    | NodeDied
    | Recovered
    | CommandLost
    | SurplusKept
    | ClusterStopped
)
