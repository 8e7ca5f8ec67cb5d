"""The options that verbs share, and what they name: an app, a topology, a script, invariants.

This module owns the way from the words of a command line to what is to be run, and every refusal on that way. It must
not know which driver runs it.
"""

from __future__ import annotations

import argparse
import json
import math
import os
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from mpsnap.apps.tokens import ScriptedTokens, Tokens
from mpsnap.cli.apps import APPS, App, absolute, find_app, find_topology, read_file
from mpsnap.core.errors import AppError, InputError, TopologyError
from mpsnap.core.node import Node
from mpsnap.core.program import Program, assign, load_object
from mpsnap.core.script import Script, parse_events
from mpsnap.core.snapshot import GlobalSnapshot, Invariant
from mpsnap.core.topology import Topology
from mpsnap.core.words import MAX_NUMBER, shown, whole_number

#: Each snapshot that is open costs every node time at every message.
MAX_CONCURRENT = 1000


#: Options that name files which are read, and those that name files which are written.
_READ = ("topology", "events", "delays", "schedule")
_WRITTEN = ("log", "emit", "save")


class Work(NamedTuple):
    """What is to be run: everything that does not depend on the driver.

    `until_terminated` says that the program ends by itself; `script` is None without `--events`.
    """

    app: App
    topology: Topology
    programs: Mapping[str, Program]
    script: Script | None
    invariants: tuple[Invariant, ...]
    until_terminated: bool


def add_verb(verbs: Any, name: str, brief: str, *, description: str, examples: str) -> argparse.ArgumentParser:
    """Add a verb to the command line; its help ends with examples."""
    parser: argparse.ArgumentParser = verbs.add_parser(
        name,
        help=brief,
        description=description,
        epilog=examples,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    return parser


def add_work(parser: argparse.ArgumentParser, group: Any, tick: str) -> None:
    """Add the options that say what runs; `tick` tells what a tick of a script is."""
    parser.add_argument(
        "app",
        metavar="APP",
        nargs="?",
        default="tokens",
        help="tokens (default), bank, pingpong, wordcount, module:Class, path/to/file.py:Class, "
        "or a module with a mapping `nodes`",
    )
    group.add_argument(
        "--topology",
        metavar="SPEC|FILE",
        help="ring:N biring:N line:N star:N grid:RxC complete:N random:N:P:SEED, or a .top file "
        "(default: the app's own)",
    )
    group.add_argument(
        "--events", metavar="FILE", help=f"an .events script: send SRC DST N, snapshot NODE, tick [{tick}]"
    )
    group.add_argument(
        "--param",
        metavar="K=V",
        action="append",
        default=[],
        type=param,
        help="parameter of setup, V as JSON else text",
    )
    group.add_argument("--seed", type=whole, default=0, metavar="N", help="of all random numbers (default 0)")
    group.add_argument(
        "--invariant", metavar="MODULE:FUNCTION", action="append", default=[], help="must be true of every snapshot"
    )


def add_initiator(group: Any) -> None:
    """Add the option that says where snapshots begin."""
    group.add_argument(
        "--initiator",
        metavar="A[,B...]",
        action="append",
        default=[],
        help="several = one snapshot begun at all of them; repeated = taken in turn (default: all nodes in turn)",
    )


def add_output(parser: argparse.ArgumentParser) -> None:
    """Add the options that say what is shown and where."""
    output = parser.add_argument_group("what is shown")
    output.add_argument(
        "--format", choices=("table", "json", "snap"), default="table", help="of stdout (default table)"
    )
    output.add_argument("--out", metavar="DIR", help="write each snapshot to a file there: N.txt, N.json or N.snap")
    output.add_argument("--emit", metavar="FILE", help="write what nodes emit there, a JSON line each")
    output.add_argument("--quiet", action="store_true", help="no narration and no progress bar")
    output.add_argument("--debug", action="store_true", help="show tracebacks")


def check_paths(options: argparse.Namespace) -> None:
    """Look that nothing is written over what is read, nor two things into one file.

    Raises:
        InputError: It would be.
    """
    named = [(name, getattr(options, name, None)) for name in (*_READ, *_WRITTEN)]
    given = [(name, path) for name, path in named if path]
    for k, (name, path) in enumerate(given):
        for other, theirs in given[:k]:
            if name in _WRITTEN and _same_file(path, theirs):
                raise InputError(f"it is that of --{other} too", where=f"--{name} {path}", hint="another file")


def _same_file(one: str, other: str) -> bool:
    if os.path.exists(one) and os.path.exists(other):
        # What is no file, a terminal or /dev/null, may be written to by many.
        return os.path.isfile(one) and os.path.samefile(one, other)
    return os.path.abspath(one) == os.path.abspath(other)


def find_work(options: argparse.Namespace, script_of: Callable[[Topology], bytes] | None = None) -> Work:
    """Find everything that the options name.

    Args:
        options: Those of `add_work` and `add_initiator`, `snapshots` and `format`.
        script_of: Makes a script for the tokens app where none is given.

    Raises:
        InputError: Something is not there, or does not fit.
    """
    app = find_app(options.app)
    plain = not (options.events or options.snapshots or options.initiator)
    made = script_of if plain and app.nodes == APPS["tokens"] else None
    nodes = app.nodes if options.events is None and made is None else _scripted(app)
    params = dict(options.param)
    if type(params.get("tokens")) is int and params["tokens"] < 0:
        raise InputError(f"must be a whole number >= 0, not {params['tokens']}", where="--param tokens")
    topology, programs = assign(find_topology(options.topology, app), nodes, params)
    # After the parameters: how many tokens there are decides what a script can send.
    script = None if options.events is None else parse_events(read_file(options.events), topology, options.events)
    if made is not None:
        script = parse_events(made(topology), topology, "example")
    classes = {program.load() for program in programs.values()}
    if "tokens" in params and type(params["tokens"]) is not int and any(issubclass(c, Tokens) for c in classes):
        raise InputError(f"must be a whole number >= 0, not {shown(params['tokens'])}", where="--param tokens")
    if options.format == "snap" and not all(issubclass(c, Tokens) for c in classes):
        raise AppError(f"--format snap is for the tokens app, not for {app.name}", hint="--format json")
    invariants = tuple(find_invariant(reference) for reference in options.invariant)
    until_terminated = script is None and not any(c.endless for c in classes)
    return Work(app, topology, programs, script, invariants, until_terminated)


def find_initiators(options: argparse.Namespace, topology: Topology) -> list[tuple[str, ...]]:
    """Return the initiators of one snapshot after the other, over and over."""
    given = [tuple(text.split(",")) for text in options.initiator]
    for initiators in given:
        try:
            topology.initiators(initiators)
        except TopologyError as error:
            where = f"--initiator {','.join(initiators)}"
            raise TopologyError(error.what, where=where, hint=error.hint) from error
    return given or [(node,) for node in topology.nodes]


def _scripted(app: App) -> str:
    """Return the node class for a scripted run: tokens move as the script says and in no other way."""
    node_class = load_object(app.nodes) if isinstance(app.nodes, str) else None
    if node_class is Tokens:
        return f"{ScriptedTokens.__module__}:{ScriptedTokens.__qualname__}"
    if node_class is None or node_class.on_command is Node.on_command:
        raise AppError(
            f"{app.name} takes no commands, so no script either", hint="the tokens app, or an on_command hook"
        )
    assert isinstance(app.nodes, str)
    return app.nodes


def find_invariant(reference: str) -> Invariant:
    """Import an invariant.

    Raises:
        AppError: There is none.
    """
    place = f"--invariant {reference}"
    try:
        found = load_object(absolute(reference))
    except AppError as error:
        raise AppError(error.what, where=error.where or place, hint=error.hint) from error
    if not callable(found):
        raise AppError(f"it is of type {type(found).__name__}, not a function of a snapshot", where=place)

    def invariant(snapshot: GlobalSnapshot) -> object:
        try:
            return found(snapshot)
        except SystemExit as end:
            raise RuntimeError(f"sys.exit({end.code!r})") from end

    # As it was named, so that it is found again when it is false.
    invariant.__qualname__ = reference
    return invariant


def param(text: str) -> tuple[str, Any]:
    """Read `name=value`, the value as JSON or else as text."""
    name, equals, value = text.partition("=")
    if not equals or not name.isidentifier():
        raise argparse.ArgumentTypeError(f"{shown(text)} is not of the form name=value")
    try:
        return name, json.loads(value)
    except (ValueError, RecursionError):
        return name, value


def seconds(text: str) -> float:
    """Read a positive number of seconds."""
    try:
        # Not all that float() takes: 1_0 is a slip.
        seconds = float(text) if text.isascii() and "_" not in text else math.nan
    except ValueError:
        seconds = math.nan
    if not (math.isfinite(seconds) and seconds > 0):
        raise argparse.ArgumentTypeError(f"{shown(text)} is not a positive number of seconds")
    return seconds


def positive(text: str) -> int:
    """Read a whole number above 0."""
    return whole(text, least=1)


def few(text: str) -> int:
    """Read how many snapshots may be open at once."""
    return whole(text, least=1, most=MAX_CONCURRENT)


def whole(text: str, least: int = 0, most: int = MAX_NUMBER - 1) -> int:
    """Read a whole number."""
    try:
        return whole_number(text, least=least, most=most)
    except ValueError as problem:
        raise argparse.ArgumentTypeError(f"must be {problem}") from problem
