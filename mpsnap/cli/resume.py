"""`mpsnap resume`: go on with a run from a snapshot that it has kept, and show what follows."""

from __future__ import annotations

import argparse
import contextlib
import os
import sys
from collections.abc import Mapping
from typing import Any, TextIO

from mpsnap.cli.apps import find_app
from mpsnap.cli.controlling import add_control, check_control
from mpsnap.cli.emit import EmitFile
from mpsnap.cli.options import Work, add_output, add_verb, check_paths, few, find_invariant, positive, seconds, whole
from mpsnap.cli.run import plan_of, supervise
from mpsnap.cli.show import Result
from mpsnap.cli.storing import add_recovery, complete, kept, opened, recovery_of
from mpsnap.core.errors import InputError
from mpsnap.core.program import Program, assign
from mpsnap.core.words import listed
from mpsnap.runtime.seal import key_path, read_key
from mpsnap.runtime.stored import choose, read_all, try_states
from mpsnap.store.directory import DirectoryStore
from mpsnap.store.manifest import MANIFEST, Manifest, check_compatible, content
from mpsnap.store.reader import DirectoryReader

DESCRIPTION = """\
Go on with a run whose supervisor has died or was killed, from the newest
snapshot in its store that a run can go on from: with the same app, topology,
parameters and options, in the folder where it was started. Times and numbers
of snapshots count anew. It imports the app that the snapshot names.
"""

EXAMPLES = """\
examples:
  python -m mpsnap resume kept   # goes on as `run --store kept` had begun
  python -m mpsnap resume kept --duration 60 --snapshot-every 5
  python -m mpsnap resume kept --from 3   # an older one: what was done since is done again
"""


def add_verbs(verbs: Any) -> None:
    """Add the verb to the command line."""
    parser = add_verb(
        verbs, "resume", "go on with a run from a snapshot in its store", description=DESCRIPTION, examples=EXAMPLES
    )
    parser.add_argument("store", metavar="DIR", help="the store of the run")
    parser.add_argument(
        "--from",
        dest="number",
        type=whole,
        metavar="N",
        help="go on from this snapshot and not from the newest; what was done after it is done again",
    )
    parser.add_argument(
        "--allow-pickle",
        action="store_true",
        help="unpickle, which runs code from the snapshot; only of one that you have taken, as its seal has to show",
    )
    when = parser.add_argument_group("when snapshots are taken, and when it ends (default: as the run had it)")
    when.add_argument("--duration", type=seconds, metavar="S", help="seconds from now")
    when.add_argument("--snapshot-every", type=seconds, metavar="S", help="seconds")
    when.add_argument("--snapshots", type=positive, metavar="N", help="end after N from now")
    when.add_argument("--concurrent", type=few, metavar="K", help="snapshots open at once")
    when.add_argument("--timeout", type=seconds, metavar="S", help="of one snapshot")
    add_recovery(parser.add_argument_group("what becomes of a death (default: as the run had it)"))
    add_control(parser)
    add_output(parser)
    parser.set_defaults(carry_out=carry_out, serve=None, control=None, http=None, port=None)


def carry_out(options: argparse.Namespace) -> Result:
    """Go on and show.

    Raises:
        InputError: There is nothing to go on from, or it does not fit; nothing was started.
    """
    stdout = sys.stdout
    with contextlib.redirect_stdout(sys.stderr):
        return _resume(options, stdout)


def _resume(options: argparse.Namespace, stdout: TextIO) -> Result:
    for name in ("store", "emit", "out"):
        # The run goes on in another folder than this command is given in.
        if getattr(options, name):
            setattr(options, name, os.path.abspath(getattr(options, name)))
    # Only a store that is there: to open one for writing makes it.
    DirectoryReader(options.store).close()
    with opened(options.store) as store:
        manifest = choose(store, options.number, _asking_for)
        if manifest is None:
            raise InputError(
                "there is no snapshot here to go on from",
                where=store.path,
                hint=f"a run from its beginning with {store.path}",
            )
        if manifest.pickling:
            _check_pickles(options, store, manifest)
        read_all(store, manifest, _asking_for)
        complete(options, manifest, options.store)
        if options.events is not None:
            raise InputError(
                f"this run follows the script {options.events}, and how far it had come is not kept",
                where=options.store,
                hint="the script from its beginning, with another --store",
            )
        _enter(manifest.run["folder"])
        work = _work(options, manifest)
        _refuse_pickles_of_now(manifest, work.programs, options.store)
        try_states(store, manifest, work.programs)
        plan = plan_of(options, work)
        check_paths(options)
        check_control(options)
        emit = None if options.emit is None else EmitFile(options.emit, manifest.emitted_bytes)
        run = kept(options)
        return supervise(options, work, plan, stdout, None, recovery_of(options, store, emit, run, manifest))


def _check_pickles(options: argparse.Namespace, store: DirectoryStore, manifest: Manifest) -> None:
    """Refuse pickles that nobody has allowed, or that this user's runs have not kept; none is looked at.

    Raises:
        InputError: They are such.
    """
    if not options.allow_pickle:
        raise InputError(
            f"snapshot {manifest.number} holds pickles of {listed(manifest.pickling)}, and to take them back runs code",
            where=options.store,
            hint="--allow-pickle, if the run was yours",
        )
    key = read_key()
    if manifest.seal is None:
        why = "it has no seal"
    elif key is None:
        why = f"there is no key of yours, {key_path()}"
    elif not key.has_sealed(content(manifest), manifest.seal):
        why = "its seal is not yours"
    else:
        return
    with store.contents(manifest.number) as contents:
        where = contents.where(MANIFEST)
    raise InputError(
        f"snapshot {manifest.number} was not taken by you here, or was changed since ({why}), and it holds pickles",
        where=where,
        hint="a run from its beginning with another --store; or, if it was yours elsewhere, the key of there "
        f"as {key_path()}",
    )


def _refuse_pickles_of_now(manifest: Manifest, programs: Mapping[str, Program], where: str) -> None:
    """Refuse nodes that take pickles back from a snapshot that says it has none, and so has no seal.

    Whoever changes a store can have it say so.

    Raises:
        InputError: There are such nodes.
    """
    pickling = [node for node, program in programs.items() if program.load().pickle]
    if pickling and not manifest.pickling:
        raise InputError(
            f"{listed(pickling)} would take pickles back, and snapshot {manifest.number} was taken without, unsealed",
            where=where,
            hint="the program that it was taken with, or a run from its beginning with another --store",
        )


def _asking_for(older: int) -> str:
    return f"--from {older}"


def _enter(folder: str) -> None:
    """Go where the run was started: its app, and the files that it opens, are named from there."""
    try:
        os.chdir(folder)
    except OSError as error:
        raise InputError(f"the run's folder cannot be entered: {error.strerror}", where=folder) from error
    if folder not in sys.path:
        sys.path.append(folder)


def _work(options: argparse.Namespace, manifest: Manifest) -> Work:
    app = find_app(options.app)
    _, now = assign(manifest.topology, app.nodes, dict(options.param))
    check_compatible(manifest, manifest.topology, {node: program.reference for node, program in now.items()})
    programs = {node: Program(entry.program, dict(entry.params)) for node, entry in manifest.nodes.items()}
    invariants = tuple(find_invariant(reference) for reference in options.invariant)
    until_terminated = not any(program.load().endless for program in programs.values())
    return Work(app, manifest.topology, programs, None, invariants, until_terminated)
