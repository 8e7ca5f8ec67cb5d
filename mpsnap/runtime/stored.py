"""The store of a run that is to be gone on with: opened, looked at, and refused if it is another run's.

This module owns which snapshot of a store a run goes on from, and what a program may do with a store that is there
already. It must not know processes.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Mapping
from typing import Any

from mpsnap.core.codec import thaw
from mpsnap.core.errors import CodecError, InputError, SnapshotCorrupt, SnapshotIncompatible, StoreError
from mpsnap.core.program import Program, codec_of
from mpsnap.core.snapshot import GlobalSnapshot
from mpsnap.core.topology import Topology
from mpsnap.core.words import listed
from mpsnap.runtime.recovery import Recovery
from mpsnap.store.contract import SnapshotReader, is_recovery_point
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
    resume_from: int | None,
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
        resume_from: Go on from this snapshot, and not from the newest.
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
        if resume_from is not None or resume:
            point = _point(store, resume_from, topology, programs)
        else:
            _refuse_snapshots(store)
            point = None
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


def _point(
    store: DirectoryStore, number: int | None, topology: Topology, programs: Mapping[str, Program]
) -> Manifest | None:
    def asking_for(older: int) -> str:
        return f"resume_from={older}"

    manifest = choose(store, number, asking_for)
    if manifest is None:
        return None
    if manifest.pickling:
        raise InputError(
            f"snapshot {manifest.number} holds pickles of {listed(manifest.pickling)}, and to take them back runs code",
            where=store.path,
            hint="another directory, or values that are plain data",
        )
    # Of what the store says, this too may have been changed.
    pickling = [node for node, program in programs.items() if program.load().pickle]
    if pickling:
        raise InputError(
            f"{listed(pickling)} would take pickles back, and to take them back runs code",
            where=store.path,
            hint="another directory, or values that are plain data",
        )
    check_compatible(manifest, topology, {node: program.reference for node, program in programs.items()})
    read_all(store, manifest, asking_for)
    try_states(store, manifest, programs)
    return manifest


def choose(store: DirectoryStore, number: int | None, asking_for: Callable[[int], str]) -> Manifest | None:
    """Return the manifest of the snapshot to go on from, None if the store is empty; the rest is not read yet.

    Args:
        store: Where it is.
        number: Of the snapshot; None for the newest that a run can go on from.
        asking_for: How whoever calls is asked for another number, for hints.

    Raises:
        InputError: It is not there, its manifest cannot be read, or a run cannot go on from it.
    """
    try:
        manifest = store.latest(is_recovery_point) if number is None else store.manifest(number)
    except StoreError as error:
        raise _unreadable(store, error, number, asking_for) from error
    if manifest is None:
        return None
    if manifest.run.get("final") is True:
        older = _older(store, manifest.number)
        raise InputError(
            f"this run has ended, snapshot {manifest.number} holds what it left",
            where=store.path,
            hint="another store" if older is None else f"{asking_for(older)} to go on from before its end",
        )
    if not is_recovery_point(manifest):
        older = _older(store, manifest.number)
        raise InputError(
            f"snapshot {manifest.number} is none to go on from: a node began it, or another one was open",
            where=store.path,
            hint=None if older is None else asking_for(older),
        )
    return manifest


def read_all(store: DirectoryStore, manifest: Manifest, asking_for: Callable[[int], str]) -> None:
    """Read every byte of a snapshot, before anything starts: no node is to find out that it is damaged.

    No code of anybody's sees it.

    Raises:
        InputError: It is not what was committed.
    """
    try:
        store.verify(manifest.number)
    except StoreError as error:
        raise _unreadable(store, error, manifest.number, asking_for) from error


def try_states(store: SnapshotReader, manifest: Manifest, programs: Mapping[str, Program]) -> None:
    """Read every value with the classes of the program as it is now; pickles are left alone.

    A class that is gone is no `Opaque` here: no node could do anything with that.

    Raises:
        SnapshotIncompatible: One of them does not fit any more.
    """
    classes = {node: program.load() for node, program in programs.items()}
    codecs = {node: codec_of(each, classes.values()).trial() for node, each in classes.items()}
    origin = store.origin(manifest.number)
    parts = {node: origin.part(node) for node in manifest.topology.nodes}
    snapshot = GlobalSnapshot(
        manifest.number, manifest.id, manifest.initiators, manifest.topology, parts, codecs, manifest.duration
    )
    for name, node in snapshot.nodes.items():
        try:
            _ = node.state
            for src in manifest.topology.inbound(name):
                _ = snapshot.channels[src, name]
            for timer in node.timers:
                thaw(timer.args, codecs[name])
        except CodecError as error:
            raise SnapshotIncompatible(
                f"what {name} held in snapshot {manifest.number} does not fit {programs[name].reference} any more: "
                f"{error.what}",
                where=error.where or name,
                hint="the program that it was taken with",
            ) from error


def _unreadable(
    store: DirectoryStore, error: StoreError, number: int | None, asking_for: Callable[[int], str]
) -> InputError:
    older = None
    if isinstance(error, SnapshotCorrupt):
        older = _older(store, store.numbers()[-1] if number is None else number)
    hint = error.hint if older is None else f"{asking_for(older)}, an older one: what was done after it is done again"
    return InputError(error.what, where=error.where, hint=hint)


def _older(store: SnapshotReader, number: int) -> int | None:
    """Return the newest snapshot before this one that a run can go on from, None if there is none."""
    for earlier in reversed([each for each in store.numbers() if each < number]):
        with contextlib.suppress(StoreError):
            manifest = store.manifest(earlier)
            if is_recovery_point(manifest) and manifest.run.get("final") is not True:
                return earlier
    return None
