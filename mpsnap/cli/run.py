"""`mpsnap run`: run an app on real processes, and show the snapshots taken of it."""

from __future__ import annotations

import argparse
import contextlib
import sys
import time
from collections.abc import Iterator
from contextlib import nullcontext
from typing import Any, TextIO

from mpsnap.cli.conduct import INTERRUPTED_STOP_SECONDS, Conductor, Plan
from mpsnap.cli.controlling import add_control, check_control, controlled
from mpsnap.cli.emit import EmitFile
from mpsnap.cli.logfile import add_log, head_of
from mpsnap.cli.options import (
    Work,
    add_initiator,
    add_output,
    add_verb,
    add_work,
    check_paths,
    few,
    find_initiators,
    find_work,
    positive,
    seconds,
)
from mpsnap.cli.show import Driving, Result, Show, started_line, writing
from mpsnap.cli.storing import add_store, check_store, fresh_recovery
from mpsnap.core.errors import MpsnapError, one_line
from mpsnap.core.events import ClusterStarted, Event, SnapshotCompleted
from mpsnap.runtime.chaos import Chaos
from mpsnap.runtime.journal import RunLog
from mpsnap.runtime.recovering import RecoveringSupervisor
from mpsnap.runtime.recovery import Recovery
from mpsnap.runtime.supervisor import STOP_SECONDS, Supervisor

DEFAULT_SECONDS = 5.0
DEFAULT_EVERY = 1.0

EXAMPLES = """\
examples:
  python -m mpsnap run   # tokens on 4 processes for 5 s, a snapshot a second
  python -m mpsnap run bank --topology ring:6 --invariant mpsnap.apps.bank:audit
  python -m mpsnap run --snapshots 100 --concurrent 5 --format json > run.json
  python -m mpsnap run path/to/file.py:MyNode --param size=10 --duration 2
  python -m mpsnap run --store kept --chaos kill=2,seed=7   # nodes are killed, and the run goes on
"""


def add_verbs(verbs: Any) -> None:
    """Add the verb to the command line."""
    parser = add_verb(
        verbs,
        "run",
        "run an app on real processes and take snapshots of it",
        description="Run an app, each node a process of its own, and take consistent snapshots of it while it runs.",
        examples=EXAMPLES,
    )
    add_options(parser, f" (default {DEFAULT_SECONDS:g})", f" (default {DEFAULT_EVERY:g})")
    add_control(parser)
    parser.set_defaults(carry_out=carry_out, serve=False)


def add_options(parser: argparse.ArgumentParser, duration: str, every: str) -> None:
    """Add the options of a run that begins; the texts say what holds if how long and how often are not given."""
    what = parser.add_argument_group("what runs")
    add_work(parser, what, tick="N ms")
    what.add_argument("--start-method", choices=("fork", "forkserver", "spawn"), help="default: the best one here")
    what.add_argument(
        "--no-fork-captures",
        dest="fork_captures",
        action="store_false",
        help="encode large states in the node, which stops it meanwhile, and not in a fork of it",
    )
    when = parser.add_argument_group("when snapshots are taken, and when it ends")
    when.add_argument("--duration", type=seconds, metavar="S", help=f"seconds{duration}")
    when.add_argument("--snapshot-every", type=seconds, metavar="S", help=f"seconds{every}")
    when.add_argument(
        "--snapshots", type=positive, metavar="N", help="end after N; without --snapshot-every one right after another"
    )
    add_initiator(when)
    add_pace(when)
    add_store(parser)
    add_output(parser)
    add_log(parser)


def add_pace(when: Any) -> None:
    """Add the options of snapshots that are the same whether a run begins or goes on."""
    when.add_argument("--concurrent", type=few, default=1, metavar="K", help="snapshots open at once (default 1)")
    when.add_argument("--timeout", type=seconds, default=30.0, metavar="S", help="of one snapshot (default 30)")


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
    check_paths(options)
    check_store(options)
    check_control(options)
    work = find_work(options)
    if options.serve:
        # It goes on when its program has come to its end, so nobody has to look for that.
        work = work._replace(until_terminated=False)
    plan = plan_of(options, work)
    with _logged(options, work) as log, fresh_recovery(options) as recovery:
        return supervise(options, work, plan, stdout, log, recovery)


@contextlib.contextmanager
def _logged(options: argparse.Namespace, work: Work) -> Iterator[RunLog | None]:
    if options.log is None:
        yield None
        return
    log = RunLog(options.log, head_of(work, "processes"), options.log_limit)
    try:
        yield log
    finally:
        log.close()


def supervise(
    options: argparse.Namespace,
    work: Work,
    plan: Plan,
    stdout: TextIO,
    log: RunLog | None,
    recovery: Recovery | None,
) -> Result:
    """Run and show; with a `recovery` the run survives the death of its nodes.

    Raises:
        InputError: This machine cannot hold it, or a place to write to cannot be written to; nothing was started.
    """
    settings = {
        "start_method": options.start_method,
        "seed": options.seed,
        "snapshot_timeout": options.timeout,
        "until_terminated": work.until_terminated,
        "journals": None if log is None else log.specs(),
        "fork_captures": options.fork_captures,
        "handler_deadline": options.handler_deadline,
    }
    supervisor: Supervisor
    if recovery is None:
        supervisor = Supervisor(work.topology, work.programs, **settings)
    else:
        supervisor = RecoveringSupervisor(work.topology, work.programs, recovery, **settings)
    sink = None if recovery is None else recovery.sink
    try:
        driving = Driving("processes", supervisor.start_method, supervisor.totals, sink is not None, plan.endless)
        with (
            Show(options, work, driving, stdout) as show,
            sink if isinstance(sink, EmitFile) else nullcontext(),
        ):
            if supervisor.notice:
                show.narrate(supervisor.notice)
            conductor = _conductor(options, work, plan, supervisor, show, log)
            with controlled(options, work, supervisor, conductor, show) as control:
                conductor.control = control
                result = _conduct(conductor, show)
            if log is not None:
                _merge(log, supervisor, show)
            return result
    finally:
        supervisor.close()


def _conductor(
    options: argparse.Namespace, work: Work, plan: Plan, supervisor: Supervisor, show: Show, log: RunLog | None
) -> Conductor:
    attend = _Attention(show, work, plan, supervisor.start_method, log)
    patience, chaos = INTERRUPTED_STOP_SECONDS, None
    if isinstance(supervisor, RecoveringSupervisor):
        # The last cut has to get to the disk, too.
        patience = STOP_SECONDS
        chaos = None if options.chaos is None else Chaos(supervisor, options.chaos, show.narrate)
    return Conductor(supervisor, plan, work.script, work.invariants, attend, patience=patience, chaos=chaos)


def _merge(log: RunLog, supervisor: Supervisor, show: Show) -> None:
    show.open_bar(None, "{n_fmt} events to " + one_line(log.path).replace("{", "{{").replace("}", "}}") + ", {elapsed}")
    told = 0

    def progress(count: int) -> None:
        nonlocal told
        show.progress(count - told)
        told = count

    with writing(log.path):
        log.merge(supervisor.codecs, progress)
    show.close_bar()


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
    seconds = time.monotonic() - conductor.started if conductor.started else 0.0
    show.finish(seconds, conductor.error)
    return Result(conductor.error, conductor.interrupted)


class _Attention:
    """Show what happens, and how far the run is."""

    def __init__(self, show: Show, work: Work, plan: Plan, start_method: str, log: RunLog | None) -> None:
        self._show = show
        self._work = work
        self._plan = plan
        self._start_method = start_method
        self._log = log
        self._taken = 0

    def __call__(self, event: Event) -> None:
        if isinstance(event, ClusterStarted):
            self._on_started()
        if self._log is not None:
            self._log.attend(event)
        self._show.attend(event)
        if isinstance(event, SnapshotCompleted):
            # The first and the last of a run with a store are beyond what was asked for.
            self._taken += 1
            self._show.progress(0 if self._plan.limit and self._taken > self._plan.limit else 1)
        elif not self._plan.limit:
            self._show.progress(0)

    def _on_started(self) -> None:
        plan = self._plan
        until = "until it ends by itself" if plan.until_terminated else ""
        if plan.duration is not None:
            until = f"for {plan.duration:g} s"
        self._show.narrate(started_line(self._work, True, f"{self._start_method} {until}"))
        form = "{percentage:3.0f}%|{bar}| {n_fmt} of {total_fmt} snapshots, {elapsed}"
        if not plan.limit:
            form = "{n_fmt} snapshots, {elapsed}" + ("" if plan.duration is None else f" of {plan.duration:g} s")
        self._show.open_bar(plan.limit or None, form)


def plan_of(options: argparse.Namespace, work: Work) -> Plan:
    """Return when snapshots are taken and when the run ends.

    Raises:
        InputError: An initiator is no node.
    """
    asked = options.snapshots is not None or options.snapshot_every is not None
    every, limit, duration = options.snapshot_every, options.snapshots, options.duration
    endless = options.serve and duration is None and limit is None
    # Scripts and programs that end by themselves take no snapshots in turn unless told to; nor does what is served, but
    # for a store: there whoever wants one triggers it.
    by_itself = work.script is not None or work.until_terminated or (options.serve and options.store is None)
    if not asked:
        # A run shorter than that still takes one.
        every, limit = (None, 0) if by_itself else (min(DEFAULT_EVERY, duration or DEFAULT_EVERY), None)
    if duration is None and limit is None and not (by_itself or endless):
        duration = DEFAULT_SECONDS
    in_turn = find_initiators(options, work.topology)
    return Plan(every, limit, options.concurrent, in_turn, duration, work.until_terminated, endless)
