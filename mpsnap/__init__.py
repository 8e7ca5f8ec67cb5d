"""Consistent global snapshots of running multi-process Python programs: node states and messages in flight."""

from typing import TYPE_CHECKING

from mpsnap.core.errors import (
    AppError,
    ClusterDeadlock,
    ClusterError,
    CodecError,
    ConsistencyError,
    InputError,
    InvariantError,
    MpsnapError,
    NodeError,
    PreflightError,
    ProtocolError,
    ScriptError,
    SnapshotError,
    StoreError,
    TopologyError,
)
from mpsnap.core.node import Context, Node
from mpsnap.core.protocol import SnapshotId
from mpsnap.core.snapshot import GlobalSnapshot, NodeSnapshot
from mpsnap.core.topology import Channel, Topology, parse_topology

if TYPE_CHECKING:
    from mpsnap.runtime.cluster import Cluster

__version__ = "0.1.0"

__all__ = [
    "AppError",
    "Channel",
    "Cluster",
    "ClusterDeadlock",
    "ClusterError",
    "CodecError",
    "ConsistencyError",
    "Context",
    "GlobalSnapshot",
    "InputError",
    "InvariantError",
    "MpsnapError",
    "Node",
    "NodeError",
    "NodeSnapshot",
    "PreflightError",
    "ProtocolError",
    "ScriptError",
    "SnapshotError",
    "SnapshotId",
    "StoreError",
    "Topology",
    "TopologyError",
    "__version__",
    "parse_topology",
]


if not TYPE_CHECKING:  # to whom every name would be one of this package then

    def __getattr__(name: str) -> object:
        """Import `Cluster` when somebody asks for it: a node imports this package too, and needs no supervisor."""
        if name != "Cluster":
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        from mpsnap.runtime.cluster import Cluster

        globals()[name] = Cluster
        return Cluster

    def __dir__() -> list[str]:
        return sorted({*globals(), *__all__})
