"""Snapshots and runs as JSON documents for machines.

Pure functions to trees that `json` can write. The field names are fixed: others script against them. Values follow
`mpsnap.core.jsonform`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from mpsnap.core.diff import Change, ChannelDiff, NodeDiff, SnapshotDiff
from mpsnap.core.errors import MpsnapError
from mpsnap.core.jsonform import to_json
from mpsnap.core.snapshot import GlobalSnapshot, NodeSnapshot
from mpsnap.store.contract import is_recovery_point
from mpsnap.store.manifest import Manifest


def snapshot_document(snapshot: GlobalSnapshot) -> dict[str, Any]:
    """Return one snapshot; `channels` lists every channel, empty ones too."""
    return {
        "number": snapshot.number,
        "id": str(snapshot.id),
        "initiators": list(snapshot.initiators),
        "verified": snapshot.verified,
        "duration_s": snapshot.duration,
        "nodes": {name: node_document(node) for name, node in snapshot.nodes.items()},
        "channels": [channel_document(snapshot, *channel) for channel in snapshot.channels],
    }


def node_document(node: NodeSnapshot) -> dict[str, Any]:
    """Return one node of a snapshot."""
    return {
        "state": to_json(node.state),
        "sent": dict(node.sent),
        "received": dict(node.received),
        "passive": node.passive,
        "finished": node.finished,
    }


def channel_document(snapshot: GlobalSnapshot, src: str, dst: str) -> dict[str, Any]:
    """Return one channel of a snapshot."""
    return {"src": src, "dst": dst, "messages": [to_json(message) for message in snapshot.channels[src, dst]]}


def output_document(node: str, n: int, record: object) -> dict[str, Any]:
    """Return one emitted record."""
    return {"node": node, "n": n, "record": to_json(record)}


def error_document(error: MpsnapError | None) -> dict[str, str | None] | None:
    """Return an error as what, where and what to try; None if there is none."""
    return None if error is None else {"what": error.what, "where": error.where, "try": error.hint}


def death_document(node: str, error: MpsnapError) -> dict[str, str | None]:
    """Return the death of a node that the run has survived, or has tried to."""
    return {"node": node, "what": error.what, "where": error.where, "try": error.hint}


def run_document(
    run: Mapping[str, Any],
    snapshots: Iterable[Mapping[str, Any]],
    outputs: Iterable[tuple[str, int, object]],
    error: MpsnapError | None,
) -> dict[str, Any]:
    """Return a whole run: what was run, the documents of its snapshots, what nodes emitted, and why it failed if so."""
    return {
        "run": dict(run),
        "snapshots": list(snapshots),
        "outputs": [output_document(*output) for output in outputs],
        "error": error_document(error),
    }


# --------------------------------------------------------------------- what was kept


def listed_document(number: int, manifest: Manifest | None, error: MpsnapError | None) -> dict[str, Any]:
    """Return what is known of one snapshot of a store; of one whose manifest cannot be read, its number and why."""
    if manifest is None:
        return {"number": number, "error": error_document(error)}
    return {
        "number": number,
        "id": str(manifest.id),
        "initiators": list(manifest.initiators),
        "wall_time": manifest.wall_time,
        "duration_s": manifest.duration,
        "topology": manifest.topology.name,
        "nodes": len(manifest.topology.nodes),
        "channels": len(manifest.topology.channels),
        "in_flight": manifest.in_flight,
        "bytes": manifest.size,
        "verified": manifest.verified,
        "recovery_point": is_recovery_point(manifest),
        "error": None,
    }


def verdict_document(number: int, error: MpsnapError | None) -> dict[str, Any]:
    """Return whether a snapshot is what was committed, and its cut consistent."""
    return {"number": number, "ok": error is None, "error": error_document(error)}


def diff_document(diff: SnapshotDiff) -> dict[str, Any]:
    """Return how two snapshots differ; a `[old, new]` is null where there is no difference."""
    return {
        "old": {"number": diff.old[0], "id": str(diff.old[1])},
        "new": {"number": diff.new[0], "id": str(diff.new[1])},
        "differ": bool(diff),
        "nodes": {name: _node_diff(node) for name, node in diff.nodes.items()},
        "channels": [_channel_diff(src, dst, channel) for (src, dst), channel in diff.channels.items()],
        "only_in_old": {"nodes": list(diff.old_nodes), "channels": list(map(list, diff.old_channels))},
        "only_in_new": {"nodes": list(diff.new_nodes), "channels": list(map(list, diff.new_channels))},
    }


def _node_diff(node: NodeDiff) -> dict[str, Any]:
    return {
        "state": list(map(_change, node.state)),
        "sent": {name: list(pair) for name, pair in node.sent.items()},
        "received": {name: list(pair) for name, pair in node.received.items()},
        "timers": [
            {
                "method": timer.method,
                "args": to_json(timer.args),
                "period_s": timer.period,
                "old_remaining_s": timer.old,
                "new_remaining_s": timer.new,
            }
            for timer in node.timers
        ],
        "passive": node.passive and list(node.passive),
        "finished": node.finished and list(node.finished),
        "emitted": node.emitted and list(node.emitted),
    }


def _change(change: Change) -> dict[str, Any]:
    document: dict[str, Any] = {"path": change.path, "what": change.what}
    if change.what != "added":
        document["old"] = to_json(change.old)
    if change.what != "removed":
        document["new"] = to_json(change.new)
    return document


def _channel_diff(src: str, dst: str, channel: ChannelDiff) -> dict[str, Any]:
    return {
        "src": src,
        "dst": dst,
        "left": [{"number": number, "message": to_json(message)} for number, message in channel.left],
        "entered": [{"number": number, "message": to_json(message)} for number, message in channel.entered],
        "changed": [
            {"number": number, "old": to_json(old), "new": to_json(new)} for number, old, new in channel.changed
        ],
    }
