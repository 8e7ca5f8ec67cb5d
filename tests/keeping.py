"""Stores for what reads them: snapshots made by hand are kept as a run would keep them, without processes."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from cli_harness import PLAIN, cut
from stores import stage

from mpsnap.core.codec import Codec
from mpsnap.core.forms import parse_topology
from mpsnap.core.snapshot import Captured, GlobalSnapshot, Timer
from mpsnap.core.topology import Topology
from mpsnap.store.contract import SnapshotStore
from mpsnap.store.directory import DirectoryStore
from mpsnap.store.manifest import NodeEntry, describe

#: When the snapshots of these stores were taken, in seconds since 1970: the 9th of September 2001.
MOMENT = 1_000_000_000.0


def keep(
    store: SnapshotStore,
    snapshot: GlobalSnapshot,
    *,
    program: str = "mpsnap.apps.tokens:Tokens",
    codec: str = "plain",
    recovery_point: bool = True,
    timers: Mapping[str, tuple[Timer, ...]] | None = None,
    **changed: Any,
) -> int:
    """Commit a snapshot under the store's next number; `changed` fields of the manifest are told otherwise."""
    place = store.next_incarnation()
    number = store.begin()
    entries = {}
    for index, (node, part) in enumerate(snapshot._locals.items()):
        captured = part.captured
        assert isinstance(captured, Captured)
        local = part._replace(captured=captured._replace(timers=(timers or {}).get(node, captured.timers)))
        receipt, state = stage(place, index, local)
        entries[node] = NodeEntry(program, {}, codec, part.sent, part.received, receipt, state)
    manifest = describe(snapshot, entries, wall_time=MOMENT + 60 * number, recovery_point=recovery_point)
    store.commit(manifest._replace(number=number, **changed))
    return number


def kept(path: str | os.PathLike[str], *snapshots: GlobalSnapshot, **told: Any) -> Path:
    """Make a store of these snapshots and return its path."""
    with DirectoryStore(path) as store:
        for snapshot in snapshots:
            keep(store, snapshot, **told)
    return Path(path)


RING = parse_topology("ring:3").with_tokens(10)


def round_of(
    number: int,
    states: Mapping[str, object],
    in_flight: Mapping[tuple[str, str], Sequence[object]],
    received: Mapping[tuple[str, str], int],
    topology: Topology = RING,
    codec: Codec = PLAIN,
    passive: Sequence[str] = (),
) -> GlobalSnapshot:
    """Make a consistent snapshot by hand."""
    return cut(
        topology, states, in_flight, received=received, number=number, duration=0.0021, codec=codec, passive=passive
    )


def three() -> list[GlobalSnapshot]:
    """Return three snapshots of one run of tokens on a ring, in each of which there are 30 tokens."""
    first = round_of(0, {name: {"tokens": 10} for name in RING.nodes}, {}, {})
    second = round_of(
        1,
        {"N1": {"tokens": 3}, "N2": {"tokens": 8}, "N3": {"tokens": 11}},
        {("N1", "N2"): [1, 2], ("N3", "N1"): [5]},
        {("N1", "N2"): 4, ("N2", "N3"): 2, ("N3", "N1"): 6},
    )
    third = round_of(
        2,
        {"N1": {"tokens": 0}, "N2": {"tokens": 8}, "N3": {"tokens": 14}},
        {("N1", "N2"): [2, 3], ("N2", "N3"): [1, 2]},
        {("N1", "N2"): 5, ("N2", "N3"): 4, ("N3", "N1"): 9},
        passive=["N2"],
    )
    return [first, second, third]
