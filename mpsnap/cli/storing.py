"""The options of a run that keeps its snapshots, and what is kept of a run for whoever goes on with it.

This module owns the way from these options to a `Recovery`, and every refusal on that way.
"""

from __future__ import annotations

import argparse
import contextlib
import math
import os
from collections.abc import Iterator
from typing import Any

from mpsnap.cli.emit import EmitFile
from mpsnap.cli.options import positive, seconds, whole
from mpsnap.core.errors import InputError, StoreError
from mpsnap.core.words import shown
from mpsnap.runtime.chaos import Rates
from mpsnap.runtime.recovery import BUDGET_SECONDS, KEEP, MOST_RESTARTS, Recovery
from mpsnap.store.directory import DirectoryStore
from mpsnap.store.manifest import Manifest

#: Options that say something about a store, and are refused where there is none.
_OF_A_STORE = ("keep", "restarts", "emit_early", "chaos")
#: Options of a run that whoever goes on with it takes over, with the types that they may have.
KEPT: dict[str, tuple[type, ...]] = {
    "app": (str,),
    "seed": (int,),
    "start_method": (str, type(None)),
    "fork_captures": (bool,),
    "invariant": (list,),
    "duration": (float, type(None)),
    "snapshot_every": (float, type(None)),
    "snapshots": (int, type(None)),
    "initiator": (list,),
    "concurrent": (int,),
    "timeout": (float,),
    "keep": (int, type(None)),
    "restarts": (int, type(None)),
    "handler_deadline": (float, type(None)),
    "emit": (str, type(None)),
    "emit_early": (bool,),
    "serve": (bool,),
    "control": (bool,),
    "http": (bool,),
    "port": (int,),
    "name": (str, type(None)),
}
#: What else is kept: the parameters of `setup`, the working directory, and the script if there was one.
_BESIDES: dict[str, tuple[type, ...]] = {"params": (dict,), "folder": (str,), "script": (str, type(None))}


def add_store(parser: argparse.ArgumentParser) -> None:
    """Add the options of a run that survives the death of its nodes."""
    store = parser.add_argument_group("what becomes of a death")
    store.add_argument(
        "--store",
        metavar="DIR",
        help="keep snapshots there, and go on from the newest when a node dies; see `resume --help`",
    )
    add_recovery(store)
    store.add_argument(
        "--emit-early", action="store_true", help="do not hold records back until a snapshot covers them"
    )


def add_recovery(group: Any) -> None:
    """Add those among them that whoever goes on with a run may give anew."""
    group.add_argument("--keep", type=positive, metavar="N", help=f"how many snapshots are kept (default {KEEP})")
    group.add_argument(
        "--restarts",
        type=whole,
        metavar="N",
        help=f"give up after so many within {BUDGET_SECONDS:g} s (default {MOST_RESTARTS})",
    )
    group.add_argument(
        "--handler-deadline",
        type=seconds,
        metavar="S",
        help="a hook that has not returned after so many seconds counts as a death (default: none does)",
    )
    group.add_argument(
        "--chaos",
        type=rates,
        metavar="kill=RATE,stop=RATE,seed=N",
        help="kill and stop nodes at random, so many a second, to see the run go on",
    )


def check_store(options: argparse.Namespace) -> None:
    """Refuse options that make no sense with a store, or without one.

    Raises:
        InputError: There is one.
    """
    if options.store is None:
        for name in _OF_A_STORE:
            # By identity: `--restarts 0` is given.
            if not any(getattr(options, name) is each for each in (None, False)):
                raise InputError(f"--{name.replace('_', '-')} does not go without --store", hint="--store DIR")
    elif options.log is not None:
        raise InputError(
            "--log does not go with --store: the event log knows no recovery", hint="leaving one of them out"
        )


def rates(text: str) -> Rates:
    """Read how often nodes are killed and stopped."""
    given: dict[str, Any] = {}
    for part in text.split(","):
        name, _, value = part.partition("=")
        if name not in Rates._fields or name in given:
            raise argparse.ArgumentTypeError(f"{shown(text)} is not of the form kill=RATE,stop=RATE,seed=N")
        given[name] = whole(value) if name == "seed" else _rate(value)
    found = Rates(**given)
    if not found.kill + found.stop > 0:
        raise argparse.ArgumentTypeError(f"{shown(text)} kills and stops nobody")
    return found


def _rate(text: str) -> float:
    try:
        rate = float(text) if text.isascii() and "_" not in text else math.nan
    except ValueError:
        rate = math.nan
    if not (math.isfinite(rate) and rate >= 0):
        raise argparse.ArgumentTypeError(f"{shown(text)} is not a number of times a second")
    return rate


@contextlib.contextmanager
def opened(path: str) -> Iterator[DirectoryStore]:
    """Open a store for a `with` block.

    Raises:
        InputError: It cannot be used.
    """
    try:
        store = DirectoryStore(path)
    except StoreError as error:
        raise InputError(error.what, where=error.where, hint=error.hint or "another --store") from error
    with store:
        yield store


@contextlib.contextmanager
def fresh_recovery(options: argparse.Namespace) -> Iterator[Recovery | None]:
    """Yield what a run that begins needs to survive the death of nodes; None if it is not to.

    Raises:
        InputError: The store cannot be used, or holds another run's snapshots.
    """
    if options.store is None:
        yield None
        return
    emit = None if options.emit is None else EmitFile(options.emit, None)
    with opened(options.store) as store:
        numbers = store.numbers()
        if numbers:
            raise InputError(
                f"the store holds the snapshots of a run already, the newest is {numbers[-1]}",
                where=options.store,
                hint=f"resume {options.store}, or another --store",
            )
        yield recovery_of(options, store, emit, kept(options), None)


def kept(options: argparse.Namespace) -> dict[str, Any]:
    """Return what is kept of a run with each snapshot, as plain data."""
    run = {name: getattr(options, name) for name in KEPT}
    run["emit"] = None if options.emit is None else os.path.abspath(options.emit)
    return {**run, "params": dict(options.param), "folder": os.getcwd(), "script": options.events}


def complete(options: argparse.Namespace, manifest: Manifest, where: str) -> None:
    """Give `options` what they do not say, as the run that took this snapshot had it.

    Raises:
        InputError: It does not say.
    """
    run = manifest.run
    for name, types in {**KEPT, **_BESIDES}.items():
        if type(run.get(name, ...)) not in types:
            raise InputError(
                f"snapshot {manifest.number} does not say how `run` would go on with it ({name} is not there)",
                where=where,
                hint="Cluster(..., resume=True), if a program of yours has taken it",
            )
    for name in KEPT:
        if getattr(options, name, None) is None:
            setattr(options, name, run[name])
    options.param = list(run["params"].items())
    options.events = run["script"]
    options.log = None


def recovery_of(
    options: argparse.Namespace,
    store: DirectoryStore,
    emit: EmitFile | None,
    run: dict[str, Any],
    resume: Manifest | None,
) -> Recovery:
    """Return what these options say about deaths."""
    return Recovery(
        store,
        resume=resume,
        keep=KEEP if options.keep is None else options.keep,
        restarts=MOST_RESTARTS if options.restarts is None else options.restarts,
        sink=emit,
        emit_early=options.emit_early,
        run=run,
    )
