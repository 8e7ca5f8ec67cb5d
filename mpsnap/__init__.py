"""Consistent global snapshots of running multi-process Python programs: node states and messages in flight."""

import importlib
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
    SnapshotCorrupt,
    SnapshotError,
    StoreError,
    TopologyError,
)
from mpsnap.core.forms import parse_topology
from mpsnap.core.kinds import Opaque, Pickled
from mpsnap.core.node import Context, Node
from mpsnap.core.protocol import SnapshotId
from mpsnap.core.snapshot import GlobalSnapshot, NodeSnapshot
from mpsnap.core.topology import Channel, Topology

if TYPE_CHECKING:
    from mpsnap.core.diff import SnapshotDiff
    from mpsnap.runtime.cluster import Cluster
    from mpsnap.store.opening import StoredSnapshots, open_store

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
    "Opaque",
    "Pickled",
    "PreflightError",
    "ProtocolError",
    "ScriptError",
    "SnapshotCorrupt",
    "SnapshotDiff",
    "SnapshotError",
    "SnapshotId",
    "StoreError",
    "StoredSnapshots",
    "Topology",
    "TopologyError",
    "__version__",
    "open_store",
    "parse_topology",
]


#: What is imported when somebody asks for it: a node imports this package too, and needs neither supervisor nor store.
_LATER = {
    "Cluster": "mpsnap.runtime.cluster",
    "SnapshotDiff": "mpsnap.core.diff",
    "StoredSnapshots": "mpsnap.store.opening",
    "open_store": "mpsnap.store.opening",
}

if not TYPE_CHECKING:  # to whom every name would be one of this package then

    def __getattr__(name: str) -> object:
        """Import what is imported later."""
        if name not in _LATER:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        found = globals()[name] = getattr(importlib.import_module(_LATER[name]), name)
        return found

    def __dir__() -> list[str]:
        return sorted({*globals(), *__all__})
