"""`mpsnap ps`, `status`, `snapshot`, `state`, `command`, `pause`, `unpause`, `stop`, `kill` and `why`: talk to a run.

This module owns these verbs. Each finds a run on this host, asks it one thing over its control socket, shows the answer
and ends. What is known to be wrong is refused before anything is asked.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, NoReturn

from mpsnap.cli.options import add_verb
from mpsnap.cli.show import Result, write_out
from mpsnap.core.errors import ConsistencyError, InputError, MpsnapError, one_line
from mpsnap.core.words import shown, suggestion
from mpsnap.server import client
from mpsnap.views.reading import bytes_shown, value_table
from mpsnap.views.running import digest_line, runs_table, status_text, why_text
from mpsnap.views.tables import shown as value_shown
from mpsnap.views.told import from_json, told_snapshot_table

#: How long one run may take to say how it is, where others are waited for.
PS_SECONDS = 2.0
#: Columns that a reply may take.
REPLY_WIDTH = 2000

PS_EXAMPLES = """\
examples:
  python -m mpsnap ps
  python -m mpsnap ps --format json
"""

STATUS_EXAMPLES = """\
status of a node:
  running   in a hook         blocked   a channel from it is full
  waiting   nothing to take   paused    told to pause
  starting  not ready yet     frozen    its process is stopped (SIGSTOP)
  dead      its process has ended

examples:
  python -m mpsnap status
  python -m mpsnap status --run tokens-4711 --full
  python -m mpsnap status --format json
"""

SNAPSHOT_EXAMPLES = """\
Without a node it begins where it has to, so that it reaches all of them.

examples:
  python -m mpsnap snapshot
  python -m mpsnap snapshot N3 --wait
  python -m mpsnap snapshot N1 N2 --wait --format json
"""

STATE_EXAMPLES = """\
examples:
  python -m mpsnap state N1
  python -m mpsnap state N1 --format json
"""

COMMAND_EXAMPLES = """\
examples:
  python -m mpsnap command N1 '{"send": 3, "to": "N2"}'
  python -m mpsnap command N1 '"report"'   # a text in JSON has quotes of its own
"""

PAUSE_EXAMPLES = """\
A node that is paused calls no hooks. It still sees what arrives, so that snapshots complete.

examples:
  python -m mpsnap pause N1 N2
  python -m mpsnap pause   # all of them
"""

UNPAUSE_EXAMPLES = """\
examples:
  python -m mpsnap unpause N1
  python -m mpsnap unpause   # all of them
"""

STOP_EXAMPLES = """\
A node that is stopped gets no idle calls and timers any more; it still handles messages.

examples:
  python -m mpsnap stop      # the whole run, in good order
  python -m mpsnap stop N2
"""

KILL_EXAMPLES = """\
It is the process that is killed, by SIGKILL. A run with a store recovers from it, any other one fails.

examples:
  python -m mpsnap kill N3
"""

WHY_EXAMPLES = """\
What is shown is one instant. Lines of a stack that begin with > are the user's, the most recent call first.

examples:
  python -m mpsnap why
  python -m mpsnap why --full --run tokens-4711
"""


def add_verbs(verbs: Any) -> None:
    """Add the verbs to the command line."""
    what = "List the runs of yours on this host that can be talked to."
    _add(verbs, "ps", "list the runs on this host", what, PS_EXAMPLES, _ps)
    what = "Show a run: its nodes, its channels, and how far its snapshots are."
    parser = _add(verbs, "status", "show the nodes, channels and snapshots of a run", what, STATUS_EXAMPLES, _status)
    _add_full(parser)
    what = "Begin a snapshot of a run, at one node or at several at once."
    parser = _add(verbs, "snapshot", "begin a snapshot of a run", what, SNAPSHOT_EXAMPLES, _snapshot)
    parser.add_argument("nodes", metavar="NODE", nargs="*", help="where it begins (default: where it has to)")
    parser.add_argument("--wait", action="store_true", help="until it is complete, and show it")
    _add_full(parser)
    what = "Show the state of a node as it is now. It is one node's, not part of a consistent cut."
    parser = _add(verbs, "state", "show the state of a node now", what, STATE_EXAMPLES, _state)
    parser.add_argument("node", metavar="NODE", help="which one")
    _add_full(parser)
    what = "Hand a command to the hook on_command of a node, and show its reply."
    parser = _add(verbs, "command", "hand a command to a node", what, COMMAND_EXAMPLES, _command)
    parser.add_argument("node", metavar="NODE", help="which one")
    parser.add_argument("command", metavar="JSON", help="the command")
    what = "Let nodes call no hooks until they are told to go on."
    parser = _add(verbs, "pause", "let nodes stand still", what, PAUSE_EXAMPLES, _pause)
    parser.add_argument("nodes", metavar="NODE", nargs="*", help="which ones (default: all)")
    what = "Let nodes that are paused go on."
    parser = _add(verbs, "unpause", "let nodes that stand still go on", what, UNPAUSE_EXAMPLES, _pause)
    parser.add_argument("nodes", metavar="NODE", nargs="*", help="which ones (default: all)")
    what = "Bring a run to an orderly end, or one node of it."
    parser = _add(verbs, "stop", "bring a run to an orderly end", what, STOP_EXAMPLES, _stop)
    parser.add_argument("node", metavar="NODE", nargs="?", help="only this one")
    what = "Kill the process of a node, to see what the run makes of it."
    parser = _add(verbs, "kill", "kill the process of a node", what, KILL_EXAMPLES, _kill)
    parser.add_argument("node", metavar="NODE", help="which one")
    what = "Say what each node is doing right now and for how long, and who waits for whom."
    parser = _add(verbs, "why", "say what each node is doing, and who waits for whom", what, WHY_EXAMPLES, _why)
    _add_full(parser)


def _add(
    verbs: Any,
    name: str,
    brief: str,
    description: str,
    examples: str,
    carry_out: Callable[[argparse.Namespace], Result],
) -> argparse.ArgumentParser:
    parser = add_verb(verbs, name, brief, description=description, examples=examples)
    parser.add_argument("--format", choices=("table", "json"), default="table", help="of stdout (default table)")
    add_run(parser)
    parser.set_defaults(carry_out=carry_out)
    return parser


def add_run(parser: argparse.ArgumentParser) -> None:
    """Add the options of every verb that talks to a run."""
    parser.add_argument("--run", metavar="NAME", help="which run, if there are several on this host")
    parser.add_argument("--quiet", action="store_true", help="nothing but what is asked for and errors")
    parser.add_argument("--debug", action="store_true", help="show tracebacks")


def _add_full(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--full", action="store_true", help="nothing is shortened or left out")


# ---------------------------------------------------------------------- what there is


def _ps(options: argparse.Namespace) -> Result:
    found = [run for run in client.runs() if options.run in (None, run.name)]
    if options.run is not None and not found:
        # It says what there is instead.
        client.find_run(options.run)
    documents = [_status_of(run) for run in found]
    if options.format == "json":
        listing = [
            {
                "name": run.name,
                "pid": run.pid,
                "socket": run.socket,
                "answers": document is not None,
                "status": document,
            }
            for run, document in zip(found, documents, strict=True)
        ]
        _write_json({"runs": listing})
    elif found:
        write_out(runs_table([(run.name, run.pid, document) for run, document in zip(found, documents, strict=True)]))
    else:
        _narrate(options, "there is no run of yours on this host")
    return Result(None, False)


def _status_of(run: client.Run) -> dict[str, Any] | None:
    """Return the status of a run; None if it does not answer."""
    if not run.answers:
        return None
    try:
        with client.Client(run) as asked:
            status: dict[str, Any] = asked.ask("status", seconds=PS_SECONDS)
            return status
    except MpsnapError:
        return None


def _status(options: argparse.Namespace) -> Result:
    with _found(options) as run:
        status = run.ask("status")
    _write(options, status, lambda: status_text(status, options.full))
    return Result(None, False)


def _why(options: argparse.Namespace) -> Result:
    with _found(options) as run:
        why = run.ask("why")
    _write(options, why, lambda: why_text(why, options.full))
    return Result(None, False)


# --------------------------------------------------------------------- what can be done


def _snapshot(options: argparse.Namespace) -> Result:
    with _found(options) as run:
        _check_nodes(run, options.nodes)
        # It has its own time limit, which is the run's to know.
        answer = run.ask("snapshot", {"nodes": options.nodes, "wait": options.wait}, seconds=None)
    digest = answer["digest"]
    if options.wait:
        document = answer["snapshot"]
        _write(options, {"snapshot": document}, lambda: told_snapshot_table(document, options.full) + "\n")
        if document["verified"] is False:
            error = ConsistencyError(f"the cut of snapshot {document['number']} is not consistent")
            return Result(error, False)
    else:
        _write(options, {"digest": digest}, lambda: digest_line(digest) + "\n")
    return Result(None, False)


def _state(options: argparse.Namespace) -> Result:
    with _found(options) as run:
        _check_nodes(run, [options.node])
        answer = run.ask("state", {"node": options.node})
    _write(
        options,
        answer,
        lambda: (
            f"{one_line(options.node)} now, {bytes_shown(answer['bytes'])}:\n"
            + value_table(from_json(answer["state"]), options.full)
        ),
    )
    return Result(None, False)


def _command(options: argparse.Namespace) -> Result:
    command = _json(options.command)
    with _found(options) as run:
        _check_nodes(run, [options.node])
        answer = run.ask("command", {"node": options.node, "command": command})
    _write(
        options, answer, lambda: f"{one_line(options.node)}: {value_shown(from_json(answer['reply']), REPLY_WIDTH)}\n"
    )
    return Result(None, False)


def _pause(options: argparse.Namespace) -> Result:
    with _found(options) as run:
        _check_nodes(run, options.nodes)
        answer = run.ask(options.verb, {"nodes": options.nodes})
    paused = answer["paused"]
    _write(options, answer, lambda: f"paused: {one_line(', '.join(paused))}\n" if paused else "no node is paused\n")
    return Result(None, False)


def _stop(options: argparse.Namespace) -> Result:
    with _found(options) as run:
        if options.node is not None:
            _check_nodes(run, [options.node])
        answer = run.ask("stop", {"node": options.node})
        what = run.run.name if options.node is None else options.node
    _write(options, answer, lambda: f"{one_line(what)} was told to come to its end\n")
    return Result(None, False)


def _kill(options: argparse.Namespace) -> Result:
    with _found(options) as run:
        _check_nodes(run, [options.node])
        answer = run.ask("kill", {"node": options.node})
    _write(options, answer, lambda: f"{one_line(answer['node'])}, pid {answer['pid']}, was killed\n")
    return Result(None, False)


def _check_nodes(run: client.Client, names: Iterable[str]) -> None:
    """Look that there are these nodes.

    Raises:
        InputError: There is none of that name; the closest one is the hint.
    """
    names = list(names)
    if not names:
        return
    known = [node["name"] for node in run.ask("status")["nodes"]]
    for name in names:
        if name not in known:
            raise InputError(
                f"there is no node {shown(name)} in {run.run.name}", where="NODE", hint=suggestion(name, known)
            )
        if names.count(name) > 1:
            raise InputError(f"the node {name} is named twice", where="NODE", hint="each node once")


def _json(text: str) -> Any:
    """Return a value given as JSON.

    Raises:
        InputError: It is not JSON.
    """

    def refuse(constant: str) -> NoReturn:
        raise ValueError(f"{constant} is no number of JSON")

    def finite(digits: str) -> float:
        number = float(digits)
        return number if math.isfinite(number) else refuse(digits)

    try:
        return json.loads(text, parse_constant=refuse, parse_float=finite)
    except (ValueError, RecursionError) as error:
        quoted = json.dumps(text)
        # For a shell, unless it is long or has quotes itself; then only the rule.
        hint = f"'{quoted}' for a text" if len(text) <= 40 and "'" not in text else "a text in JSON has quotes"
        raise InputError(f"{shown(text)} is not JSON: {error}", where="JSON", hint=hint) from error


# --------------------------------------------------------------------------- in common


@contextmanager
def _found(options: argparse.Namespace) -> Iterator[client.Client]:
    """Find the run that is meant, and hold a connection to it."""
    with client.Client(client.find_run(options.run)) as run:
        yield run


def _write(options: argparse.Namespace, document: Mapping[str, Any], text: Callable[[], str]) -> None:
    if options.format == "json":
        _write_json(document)
    else:
        write_out(text())


def _write_json(document: Mapping[str, Any]) -> None:
    write_out(json.dumps(document, allow_nan=False) + "\n")


def _narrate(options: argparse.Namespace, text: str) -> None:
    if not options.quiet:
        print(f"mpsnap: {text}", file=sys.stderr, flush=True)
