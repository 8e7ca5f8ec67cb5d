"""Snapshots and runs as JSON documents for machines.

Pure functions to trees that `json` can write. The field names are fixed: others script against them. Values follow
`mpsnap.core.jsonform`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from mpsnap.core.errors import MpsnapError
from mpsnap.core.jsonform import to_json
from mpsnap.core.snapshot import GlobalSnapshot


def snapshot_document(snapshot: GlobalSnapshot) -> dict[str, Any]:
    """Return one snapshot; `channels` lists every channel, empty ones too."""
    return {
        "number": snapshot.number,
        "id": str(snapshot.id),
        "initiators": list(snapshot.initiators),
        "verified": snapshot.verified,
        "duration_s": snapshot.duration,
        "nodes": {
            name: {
                "state": to_json(node.state),
                "sent": dict(node.sent),
                "received": dict(node.received),
                "passive": node.passive,
                "finished": node.finished,
            }
            for name, node in snapshot.nodes.items()
        },
        "channels": [
            {"src": src, "dst": dst, "messages": [to_json(message) for message in messages]}
            for (src, dst), messages in snapshot.channels.items()
        ],
    }


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
