"""The store of a `Cluster`: opened, looked at, and refused if it is another run's.

This module owns what a program may do with a store that is there already. It must not know processes.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

from mpsnap.core.errors import InputError
from mpsnap.core.program import Program
from mpsnap.core.topology import Topology, listed
from mpsnap.runtime.recovery import Recovery
from mpsnap.store.contract import is_recovery_point
from mpsnap.store.directory import DirectoryStore
from mpsnap.store.manifest import Manifest, check_compatible


def open_recovery(
    path: str | os.PathLike[str],
    topology: Topology,
    programs: Mapping[str, Program],
    *,
    keep: int,
    restarts: int,
    resume: bool,
    run: Mapping[str, Any],
) -> Recovery:
    """Open a store, and return what a cluster needs to survive the death of its nodes; its store is to be closed.

    Args:
        path: The directory, made if there is none.
        topology: Of the cluster.
        programs: What each node runs.
        keep: How many snapshots are kept.
        restarts: After so many within a minute the cluster gives up.
        resume: Go on from the newest snapshot there that this is possible from, if there is one.
        run: Plain data that is kept with each snapshot.

    Raises:
        InputError: The store is in use, or what is in it does not fit.
        StoreError: It cannot be read or written.
    """
    for name, value, least in (("keep", keep, 1), ("restarts", restarts, 0)):
        if not (isinstance(value, int) and value >= least):
            raise InputError(f"{name} is {value!r}, not a whole number from {least} on")
    store = DirectoryStore(path)
    try:
        if not resume:
            _refuse_snapshots(store)
        point = _point(store, topology, programs) if resume else None
    except BaseException:
        store.close()
        raise
    return Recovery(store, resume=point, keep=keep, restarts=restarts, run=run)


def _refuse_snapshots(store: DirectoryStore) -> None:
    """Refuse a store with snapshots: those of another run would get between the cluster's own."""
    numbers = store.numbers()
    if numbers:
        raise InputError(
            f"the store holds the snapshots of a run already, the newest is {numbers[-1]}",
            where=store.path,
            hint="resume=True, or another directory",
        )


def _point(store: DirectoryStore, topology: Topology, programs: Mapping[str, Program]) -> Manifest | None:
    manifest = store.latest(is_recovery_point)
    if manifest is None:
        return None
    if manifest.run.get("final") is True:
        raise InputError(
            f"this run has ended, snapshot {manifest.number} holds what it left",
            where=store.path,
            hint="another directory",
        )
    pickling = [node for node, entry in manifest.nodes.items() if entry.codec == "pickle"]
    if pickling:
        raise InputError(
            f"snapshot {manifest.number} holds pickles of {listed(pickling)}, and to take them back runs code",
            where=store.path,
            hint="another directory, or values that are plain data",
        )
    check_compatible(manifest, topology, {node: program.reference for node, program in programs.items()})
    # Before anything starts: a damaged one is not to be found out by the nodes.
    store.verify(manifest.number)
    return manifest
