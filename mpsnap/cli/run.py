"""`mpsnap run`: run an app on real processes, and show the snapshots taken of it."""

from __future__ import annotations

import argparse
import contextlib
import json
import math
import os
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from typing import IO, TYPE_CHECKING, Any, NamedTuple, TextIO

from mpsnap.apps.tokens import ScriptedTokens, Tokens
from mpsnap.cli.apps import App, absolute, find_app, find_topology, read_file
from mpsnap.cli.conduct import Conductor, Plan
from mpsnap.core.errors import AppError, InputError, MpsnapError, TopologyError, one_line
from mpsnap.core.events import ClusterStarted, Emitted, Event, Logged, SnapshotAbandoned, SnapshotCompleted
from mpsnap.core.node import Node
from mpsnap.core.program import assign, load_object
from mpsnap.core.script import Script, parse_events
from mpsnap.core.snapshot import GlobalSnapshot
from mpsnap.core.topology import MAX_NUMBER, Topology, shown, whole_number
from mpsnap.runtime.supervisor import Supervisor
from mpsnap.views.document import output_document, run_document, snapshot_document
from mpsnap.views.snapfile import snap_text
from mpsnap.views.tables import count, outputs_table, snapshot_line, snapshot_table

if TYPE_CHECKING:
    from tqdm import tqdm

DEFAULT_SECONDS = 5.0
DEFAULT_EVERY = 1.0
#: Snapshots shown as whole tables; of those after them, a line each.
SHOWN_IN_FULL = 10
OUTPUTS_SHOWN = 20
#: Each snapshot that is open costs every node time at every message.
MAX_CONCURRENT = 1000

EXAMPLES = """\
examples:
  python -m mpsnap run   # tokens on 4 processes for 5 s, a snapshot a second
  python -m mpsnap run bank --topology ring:6 --invariant mpsnap.apps.bank:audit
  python -m mpsnap run --snapshots 100 --concurrent 5 --format json > run.json
  python -m mpsnap run path/to/file.py:MyNode --param size=10 --duration 2
"""


class Result(NamedTuple):
    """How a command ended: its error, if any, and whether a signal ended it."""

    error: MpsnapError | None
    interrupted: bool


def add_parser(verbs: Any) -> None:
    """Add the verb to the command line."""
    parser = verbs.add_parser(
        "run",
        help="run an app on real processes and take snapshots of it",
        description="Run an app, each node a process of its own, and take consistent snapshots of it while it runs.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument(
        "app",
        metavar="APP",
        nargs="?",
        default="tokens",
        help="tokens (default), bank, pingpong, wordcount, module:Class, path/to/file.py:Class, "
        "or a module with a mapping `nodes`",
    )
    what = parser.add_argument_group("what runs")
    what.add_argument(
        "--topology",
        metavar="SPEC|FILE",
        help="ring:N biring:N line:N star:N grid:RxC complete:N random:N:P:SEED, or a .top file "
        "(default: the app's own)",
    )
    what.add_argument("--events", metavar="FILE", help="an .events script: send SRC DST N, snapshot NODE, tick [N ms]")
    what.add_argument(
        "--param",
        metavar="K=V",
        action="append",
        default=[],
        type=_param,
        help="parameter of setup, V as JSON else text",
    )
    what.add_argument("--start-method", choices=("fork", "forkserver", "spawn"), help="default: the best one here")
    what.add_argument("--seed", type=_whole, default=0, metavar="N", help="of the nodes' random numbers (default 0)")
    when = parser.add_argument_group("when snapshots are taken, and when it ends")
    when.add_argument("--duration", type=_seconds, metavar="S", help=f"seconds (default {DEFAULT_SECONDS:g})")
    when.add_argument("--snapshot-every", type=_seconds, metavar="S", help=f"seconds (default {DEFAULT_EVERY:g})")
    when.add_argument(
        "--snapshots", type=_positive, metavar="N", help="end after N; without --snapshot-every one right after another"
    )
    when.add_argument(
        "--initiator",
        metavar="A[,B...]",
        action="append",
        default=[],
        help="several = one snapshot begun at all of them; repeated = taken in turn (default: all nodes in turn)",
    )
    when.add_argument("--concurrent", type=_few, default=1, metavar="K", help="snapshots open at once (default 1)")
    when.add_argument("--timeout", type=_seconds, default=30.0, metavar="S", help="of one snapshot (default 30)")
    when.add_argument(
        "--invariant", metavar="MODULE:FUNCTION", action="append", default=[], help="must be true of every snapshot"
    )
    output = parser.add_argument_group("what is shown")
    output.add_argument(
        "--format", choices=("table", "json", "snap"), default="table", help="of stdout (default table)"
    )
    output.add_argument("--out", metavar="DIR", help="write each snapshot to a file there: N.txt, N.json or N.snap")
    output.add_argument("--emit", metavar="FILE", help="write what nodes emit there, a JSON line each")
    output.add_argument("--quiet", action="store_true", help="no narration and no progress bar")
    output.add_argument("--debug", action="store_true", help="show tracebacks")
    known = [option for action in parser._actions for option in action.option_strings]
    parser.set_defaults(carry_out=carry_out, known=known)


def carry_out(options: argparse.Namespace) -> Result:
    """Run and show.

    Raises:
        InputError: Something asked for is wrong; nothing was started.
    """
    stdout = sys.stdout
    # The user's modules and invariants run in this process too, and what they print must not get into the document.
    with contextlib.redirect_stdout(sys.stderr):
        return _run(options, stdout)


def _run(options: argparse.Namespace, stdout: TextIO) -> Result:
    app = find_app(options.app)
    nodes = app.nodes if options.events is None else _scripted(app)
    params = dict(options.param)
    if type(params.get("tokens")) is int and params["tokens"] < 0:
        raise InputError(f"must be a whole number >= 0, not {params['tokens']}", where="--param tokens")
    topology, programs = assign(find_topology(options.topology, app), nodes, params)
    # After the parameters: how many tokens there are decides what a script can send.
    script = None if options.events is None else parse_events(read_file(options.events), topology, options.events)
    classes = {program.load() for program in programs.values()}
    if "tokens" in params and type(params["tokens"]) is not int and any(issubclass(c, Tokens) for c in classes):
        raise InputError(f"must be a whole number >= 0, not {shown(params['tokens'])}", where="--param tokens")
    if options.format == "snap" and not all(issubclass(c, Tokens) for c in classes):
        raise AppError(f"--format snap is for the tokens app, not for {app.name}", hint="--format json")
    invariants = [_invariant(reference) for reference in options.invariant]
    until_terminated = script is None and not any(c.endless for c in classes)
    plan = _plan(options, topology, script, until_terminated)
    supervisor = Supervisor(
        topology,
        programs,
        start_method=options.start_method,
        seed=options.seed,
        snapshot_timeout=options.timeout,
        until_terminated=until_terminated,
    )
    try:
        with Show(options, app, topology, supervisor, plan, stdout) as show:
            return _conduct(Conductor(supervisor, plan, script, invariants, show.attend), show)
    finally:
        supervisor.close()


def _conduct(conductor: Conductor, show: Show) -> Result:
    # Whatever goes wrong from here on, nodes were started, so a document is due although it may have nothing to show.
    try:
        conductor.run()
    except BrokenPipeError:
        raise
    except MpsnapError as error:
        conductor.error = conductor.error or error
    except Exception as error:
        conductor.error = MpsnapError(f"{type(error).__name__}: {error}")
        conductor.error.__cause__ = error
    show.finish(conductor)
    return Result(conductor.error, conductor.interrupted)


def _plan(options: argparse.Namespace, topology: Topology, script: Script | None, until_terminated: bool) -> Plan:
    asked = options.snapshots is not None or options.snapshot_every is not None
    # Scripts and programs that end by themselves take no snapshots in turn unless told to.
    by_itself = script is not None or until_terminated
    every, limit, duration = options.snapshot_every, options.snapshots, options.duration
    if not asked:
        # A run shorter than that still takes one.
        every, limit = (None, 0) if by_itself else (min(DEFAULT_EVERY, duration or DEFAULT_EVERY), None)
    if duration is None and limit is None and not by_itself:
        duration = DEFAULT_SECONDS
    given = [tuple(text.split(",")) for text in options.initiator]
    for initiators in given:
        try:
            topology.initiators(initiators)
        except TopologyError as error:
            where = f"--initiator {','.join(initiators)}"
            raise TopologyError(error.what, where=where, hint=error.hint) from error
    in_turn = given or [(node,) for node in topology.nodes]
    return Plan(every, limit, options.concurrent, in_turn, duration, until_terminated)


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


def _invariant(reference: str) -> Callable[[GlobalSnapshot], object]:
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


class Show:
    """Show a run: its snapshots on stdout and in files, its progress on stderr."""

    def __init__(
        self,
        options: argparse.Namespace,
        app: App,
        topology: Topology,
        supervisor: Supervisor,
        plan: Plan,
        stdout: TextIO,
    ) -> None:
        self._options = options
        self._app = app
        self._topology = topology
        self._supervisor = supervisor
        self._plan = plan
        self._stdout = stdout
        self._snapshots: list[GlobalSnapshot] = []
        self._durations: list[float] = []
        self._outputs: list[tuple[str, int, object]] = []
        self._emit: IO[str] | None = None
        self._bar: tqdm[Any] | None = None

    def __enter__(self) -> Show:
        out = self._options.out
        if out is not None:
            try:
                os.makedirs(out, exist_ok=True)
            except OSError as error:
                raise InputError(f"cannot be made: {error.strerror}", where=out or "''") from error
            if not os.access(out, os.W_OK | os.X_OK):
                raise InputError("cannot be written to", where=out)
        if self._options.emit is not None:
            try:
                # By lines, so that it can be followed while it grows.
                self._emit = open(self._options.emit, "w", encoding="utf-8", buffering=1)
            except (OSError, ValueError) as error:
                raise InputError(f"cannot be written: {_reason(error)}", where=self._options.emit or "''") from error
        if self._supervisor.notice:
            self._narrate(self._supervisor.notice)
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._bar.close()
        if self._emit is not None:
            with _writing(self._options.emit):
                self._emit.close()

    def attend(self, event: Event) -> None:
        """Show what happened."""
        if isinstance(event, ClusterStarted):
            self._on_started()
        elif isinstance(event, SnapshotCompleted):
            self._on_snapshot(event.snapshot)
        elif isinstance(event, SnapshotAbandoned):
            self._narrate(event.error.what)
        elif isinstance(event, Emitted):
            self._on_output(event)
        elif isinstance(event, Logged):
            self._narrate(f"{event.node}: {event.text}")
        if self._bar is not None and not self._plan.limit:
            self._bar.update(0)

    def finish(self, conductor: Conductor) -> None:
        """Show what is to be shown at the end."""
        if self._bar is not None:
            self._bar.close()
            self._bar = None
        seconds = time.monotonic() - conductor.started if conductor.started else 0.0
        if self._options.format == "json":
            snapshots = sorted(self._snapshots, key=lambda snapshot: snapshot.number)
            document = run_document(self._facts(seconds), snapshots, self._outputs, conductor.error)
            self._print(json.dumps(document, allow_nan=False))
        elif self._options.format == "table":
            self._print_summary(seconds)

    # ------------------------------------------------------------------- parts

    def _on_started(self) -> None:
        plan = self._plan
        until = "until it ends by itself" if plan.until_terminated else ""
        if plan.duration is not None:
            until = f"for {plan.duration:g} s"
        nodes, channels = count(len(self._topology.nodes), "process"), count(len(self._topology.channels), "channel")
        self._narrate(
            f"{self._app.name} on {self._topology.name}: {nodes}, {channels}, "
            f"{self._supervisor.start_method} {until}".rstrip()
            + "; Ctrl-C stops it"
        )
        if not self._options.quiet and sys.stderr.isatty():
            # Only here: most runs have no terminal, and importing it takes longer than all our views.
            from tqdm import tqdm

            tqdm.monitor_interval = 0  # its monitor would be a second thread, for a bar that moves by itself
            form = "{percentage:3.0f}%|{bar}| {n_fmt} of {total_fmt} snapshots, {elapsed}"
            if not plan.limit:
                form = "{n_fmt} snapshots, {elapsed}" + ("" if plan.duration is None else f" of {plan.duration:g} s")
            self._bar = tqdm(total=plan.limit or None, bar_format=form, file=sys.stderr, leave=False)

    def _on_snapshot(self, snapshot: GlobalSnapshot) -> None:
        options = self._options
        self._durations.append(snapshot.duration or 0.0)
        if options.format == "json":
            self._snapshots.append(snapshot)
        if options.out is not None:
            self._write_file(snapshot)
        elif options.format == "snap":
            self._print(snap_text(snapshot))
        if options.format == "table":
            full = len(self._durations) <= SHOWN_IN_FULL
            self._print(snapshot_table(snapshot) if full else snapshot_line(snapshot))
        if self._bar is not None:
            self._bar.update(1)

    def _write_file(self, snapshot: GlobalSnapshot) -> None:
        ending = {"table": "txt", "json": "json", "snap": "snap"}[self._options.format]
        path = os.path.join(self._options.out, f"{snapshot.number}.{ending}")
        if ending == "json":
            text = json.dumps(snapshot_document(snapshot), allow_nan=False) + "\n"
        else:
            text = snap_text(snapshot) if ending == "snap" else snapshot_table(snapshot)
        with _writing(path), open(path, "w", encoding="utf-8") as file:
            file.write(text)

    def _on_output(self, event: Emitted) -> None:
        self._outputs.append((event.node, event.n, event.record))
        if self._emit is not None:
            with _writing(self._options.emit):
                self._emit.write(json.dumps(output_document(*event), allow_nan=False) + "\n")

    def _facts(self, seconds: float) -> Mapping[str, Any]:
        sent, received = self._supervisor.totals()
        return {
            "app": self._app.name,
            "topology": self._topology.name,
            "nodes": len(self._topology.nodes),
            "channels": len(self._topology.channels),
            "start_method": self._supervisor.start_method,
            "seed": self._options.seed,
            "duration_s": seconds,
            "messages_sent": sent,
            "messages_received": received,
        }

    def _print_summary(self, seconds: float) -> None:
        if self._outputs and self._emit is None:
            self._print(outputs_table(self._outputs[:OUTPUTS_SHOWN]))
            if len(self._outputs) > OUTPUTS_SHOWN:
                self._print(f"and {len(self._outputs) - OUTPUTS_SHOWN} more records; --emit FILE keeps them all\n")
        sent, received = self._supervisor.totals()
        taken = "no snapshots"
        if self._durations:
            median = sorted(self._durations)[len(self._durations) // 2]
            taken = f"{count(len(self._durations), 'consistent snapshot')}, median {1000 * median:.1f} ms"
        self._print(f"{taken}; {sent} messages sent and {received} received in {seconds:.1f} s")

    def _print(self, text: str) -> None:
        with _writing("stdout"), self._without_bar():
            print(text, file=self._stdout, flush=True)

    def _narrate(self, text: str) -> None:
        if not self._options.quiet:
            with self._without_bar():
                print(f"mpsnap: {one_line(text)}", file=sys.stderr, flush=True)

    @contextlib.contextmanager
    def _without_bar(self) -> Iterator[None]:
        if self._bar is not None:
            self._bar.clear()
        yield
        if self._bar is not None:
            self._bar.refresh()


@contextlib.contextmanager
def _writing(where: str) -> Iterator[None]:
    try:
        yield
    except BrokenPipeError:
        raise
    except OSError as error:
        raise MpsnapError(f"cannot be written: {_reason(error)}", where=where) from error


def _reason(error: OSError | ValueError) -> str:
    return (error.strerror if isinstance(error, OSError) else None) or str(error)


def _param(text: str) -> tuple[str, Any]:
    name, equals, value = text.partition("=")
    if not equals or not name.isidentifier():
        raise argparse.ArgumentTypeError(f"{shown(text)} is not of the form name=value")
    try:
        return name, json.loads(value)
    except (ValueError, RecursionError):
        return name, value


def _seconds(text: str) -> float:
    try:
        # Not all that float() takes: 1_0 is a slip.
        seconds = float(text) if text.isascii() and "_" not in text else math.nan
    except ValueError:
        seconds = math.nan
    if not (math.isfinite(seconds) and seconds > 0):
        raise argparse.ArgumentTypeError(f"{shown(text)} is not a positive number of seconds")
    return seconds


def _positive(text: str) -> int:
    return _whole(text, least=1)


def _few(text: str) -> int:
    return _whole(text, least=1, most=MAX_CONCURRENT)


def _whole(text: str, least: int = 0, most: int = MAX_NUMBER - 1) -> int:
    try:
        return whole_number(text, least=least, most=most)
    except ValueError as problem:
        raise argparse.ArgumentTypeError(f"must be {problem}") from problem
