"""Consistent global snapshots of running multi-process Python programs: node states and messages in flight."""

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
    TopologyError,
)
from mpsnap.core.node import Context, Node
from mpsnap.core.protocol import SnapshotId
from mpsnap.core.snapshot import GlobalSnapshot, NodeSnapshot
from mpsnap.core.topology import Channel, Topology, parse_topology
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
    "Topology",
    "TopologyError",
    "__version__",
    "parse_topology",
]
