"""`mpsnap simulate`: run an app in discrete time, one thread, the same run for the same seed or list of delays."""

from __future__ import annotations

import argparse
import contextlib
import gc
import itertools
import signal
import sys
from collections.abc import Callable, Sequence
from types import FrameType
from typing import Any, TextIO

from mpsnap.cli.apps import read_file
from mpsnap.cli.logfile import LogFile, add_log
from mpsnap.cli.options import (
    Work,
    add_initiator,
    add_output,
    add_verb,
    add_work,
    check_paths,
    find_initiators,
    find_work,
    positive,
    whole,
)
from mpsnap.cli.replay import replay
from mpsnap.cli.show import Driving, Result, Show, started_line
from mpsnap.core.errors import InputError, MpsnapError, OutputError, SnapshotError
from mpsnap.core.events import Event, SnapshotAbandoned, SnapshotCompleted
from mpsnap.core.script import Script, Send, Snapshot, Tick
from mpsnap.core.snapshot import check_invariants
from mpsnap.core.words import significant_lines, whole_number
from mpsnap.simulator.simulator import DelayModel, Simulator, listed_delays, random_delays

DEFAULT_TICKS = 100
DEFAULT_SNAPSHOTS = 5
DEFAULT_MAX_DELAY = 5
MAX_DELAY = 1_000_000
#: How many ticks a script's `send` waits until the node holds the tokens.
SEND_TICKS = 1000
#: How many ticks pass between two looks at a signal and two moves of the bar.
TICKS_A_LOOK = 64

DESCRIPTION = """\
Run the nodes that `run` runs as processes in one thread and in discrete time.
What is sent at tick t may be delivered at or after t + 1 + its delay, and in
each tick each node delivers one item that it has sent. A second of a timer is
a tick.
"""

EXAMPLES = """\
examples:
  python -m mpsnap simulate   # tokens on 4 nodes for 100 ticks, 5 snapshots
  python -m mpsnap simulate bank --topology ring:6 --seed 7 --invariant mpsnap.apps.bank:audit
  python -m mpsnap simulate --topology net.top --events net.events --delays net.delays --format snap --out snaps
  python -m mpsnap simulate --schedule violation.schedule --log violation.log
  echo snapshot N1 > one.events; python -m mpsnap simulate --topology ring:100000 --events one.events
"""


def add_verbs(verbs: Any) -> None:
    """Add the verb to the command line."""
    parser = add_verb(
        verbs,
        "simulate",
        "run an app in discrete time, the same run for the same seed",
        description=DESCRIPTION,
        examples=EXAMPLES,
    )
    what = parser.add_argument_group("what runs")
    add_work(parser, what, tick="N")
    when = parser.add_argument_group("when snapshots are taken, and when it ends")
    when.add_argument(
        "--ticks",
        type=positive,
        metavar="N",
        help=f"how long it runs, before it ends in order (default {DEFAULT_TICKS})",
    )
    when.add_argument(
        "--snapshots",
        type=whole,
        metavar="N",
        help=f"how many, evenly spread over the ticks (default {DEFAULT_SNAPSHOTS})",
    )
    add_initiator(when)
    delays = parser.add_argument_group("how late items are")
    delays.add_argument(
        "--max-delay",
        type=_max_delay,
        default=DEFAULT_MAX_DELAY,
        metavar="D",
        help=f"delays are 0 to D-1 ticks, equally likely (default {DEFAULT_MAX_DELAY})",
    )
    delays.add_argument(
        "--delays",
        metavar="FILE",
        help="the delays, one a line, one for each message or marker in the order of sending",
    )
    what.add_argument(
        "--schedule", metavar="FILE", help="take the steps of a schedule that `explore` found, a tick each"
    )
    add_output(parser)
    add_log(parser)
    parser.set_defaults(carry_out=carry_out)


def _max_delay(text: str) -> int:
    return whole(text, least=1, most=MAX_DELAY)


def carry_out(options: argparse.Namespace) -> Result:
    """Simulate and show.

    Raises:
        InputError: Something asked for is wrong; no node's code has run.
    """
    stdout = sys.stdout
    # What is built here lives as long as the run, and may be millions of objects: the collector would only go through
    # them again and again.
    gc.disable()
    try:
        with contextlib.redirect_stdout(sys.stderr):
            return _simulate(options, stdout)
    finally:
        gc.enable()
        gc.unfreeze()


def _simulate(options: argparse.Namespace, stdout: TextIO) -> Result:
    check_paths(options)
    if options.schedule is not None:
        return replay(options, stdout)
    work = find_work(options)
    for name in ("ticks", "snapshots", "initiator"):
        if work.script is not None and getattr(options, name):
            raise InputError(
                f"--{name} does not go with --events", where=options.events, hint="`tick N` and `snapshot NODE` there"
            )
    delays = _delays(options)
    initiators = find_initiators(options, work.topology)
    with (
        LogFile.of(options, work, "simulator") as log,
        _Run(options, work) as run,
        Show(options, work, Driving("simulator", None, run.totals), stdout) as show,
    ):
        run.conduct(show, delays, initiators, log.keep)
        try:
            # Before the document is printed, which says what went wrong.
            log.close()
        except OutputError as error:
            run.error = run.error or error
        show.finish(run.seconds, run.error)
    return Result(run.error, run.signals > 0)


def _delays(options: argparse.Namespace) -> DelayModel:
    if options.delays is None:
        return random_delays(options.seed, options.max_delay)
    most = options.max_delay
    delays = []
    for line, fields in significant_lines(read_file(options.delays), options.delays, InputError):
        place = f"{options.delays}:{line}"
        if len(fields) > 1:
            raise InputError("more than one delay on a line", where=place)
        try:
            delays.append(whole_number(fields[0], least=0, most=most - 1))
        except ValueError as problem:
            hint = f"--max-delay {int(fields[0]) + 1}" if fields[0].isascii() and fields[0].isdecimal() else None
            raise InputError(f"the delay must be {problem}", where=place, hint=hint) from None
    return listed_delays(delays, options.delays)


class _Run:
    """Drive a simulator through a script, or through its ticks, and to the end of every snapshot."""

    def __init__(self, options: argparse.Namespace, work: Work) -> None:
        self._options = options
        self._work = work
        self._simulator: Simulator | None = None
        self._show: Show
        self._fresh: list[SnapshotCompleted] = []
        self.error: MpsnapError | None = None
        self.signals = 0

    def __enter__(self) -> _Run:
        self._before = {number: signal.signal(number, self._on_signal) for number in (signal.SIGINT, signal.SIGTERM)}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        self.signals += 1
        # The first is looked at between two ticks, so that what is shown is whole. A hook may never return, though.
        if self.signals > 1:
            raise KeyboardInterrupt

    def totals(self) -> tuple[int, int]:
        return (0, 0) if self._simulator is None else self._simulator.totals

    @property
    def seconds(self) -> float:
        return 0.0 if self._simulator is None else float(self._simulator.time)

    def conduct(
        self,
        show: Show,
        delays: DelayModel,
        initiators: Sequence[tuple[str, ...]],
        log: Callable[..., None] | None,
    ) -> None:
        """Run to the end, or to the first error, which is kept."""
        self._show = show
        try:
            show.narrate(started_line(self._work, False, self._ending()))
            self._simulator = Simulator(
                self._work.topology,
                self._work.programs,
                delays,
                seed=self._options.seed,
                audience=self._attend,
                log=log,
            )
            gc.freeze()
            gc.enable()
            if self._work.script is None:
                self._through_ticks(self._simulator, initiators)
            else:
                self._through_script(self._simulator, self._work.script)
            self._to_the_end(self._simulator)
        except _Over:
            pass
        except BrokenPipeError:
            raise
        except MpsnapError as error:
            self.error = self.error or error
        except Exception as error:
            self.error = MpsnapError(f"{type(error).__name__}: {error}")
            self.error.__cause__ = error

    def _ending(self) -> str:
        if self._work.script is not None:
            return "by the script"
        if self._work.until_terminated and self._options.ticks is None:
            return "until it ends by itself"
        return f"for {self._options.ticks or DEFAULT_TICKS} ticks"

    # ------------------------------------------------------------------- parts

    def _through_ticks(self, simulator: Simulator, initiators: Sequence[tuple[str, ...]]) -> None:
        options = self._options
        ticks = options.ticks or DEFAULT_TICKS
        number = options.snapshots
        if number is None:
            number = 0 if self._work.until_terminated else DEFAULT_SNAPSHOTS
        self._show.open_bar(ticks, "{percentage:3.0f}%|{bar}| tick {n_fmt} of {total_fmt}, {elapsed}")
        in_turn = itertools.cycle(initiators)
        for k in range(number):
            self._advance(simulator, (k + 1) * ticks // (number + 1))
            simulator.snapshot(next(in_turn))
            self._check()
        if options.ticks is None and self._work.until_terminated:
            self._show.open_bar(None, "tick {n_fmt}, {elapsed}")
            while not simulator.quiet:
                self._advance(simulator, simulator.time + TICKS_A_LOOK)
        self._advance(simulator, ticks if options.ticks or not self._work.until_terminated else simulator.time)

    def _through_script(self, simulator: Simulator, script: Script) -> None:
        for step in script.steps:
            if isinstance(step, Send):
                self._send(simulator, step, script)
            elif isinstance(step, Snapshot):
                simulator.snapshot([step.node])
            elif isinstance(step, Tick):
                self._advance(simulator, simulator.time + step.count)
            self._check()

    def _send(self, simulator: Simulator, step: Send, script: Script) -> None:
        patience = simulator.time + SEND_TICKS
        while simulator.command(step.src, {"send": step.dst, "amount": step.amount}) is False:
            if simulator.quiet or simulator.time >= patience:
                raise SnapshotError(
                    f"{step.src} does not hold {step.amount} tokens by tick {simulator.time}",
                    where=f"{script.source}:{step.line}",
                    hint="sending them there first",
                )
            self._advance(simulator, simulator.time + 1)

    def _to_the_end(self, simulator: Simulator) -> None:
        total = missing = simulator.missing
        if missing:
            self._show.open_bar(total, "{percentage:3.0f}%|{bar}| {n_fmt} of {total_fmt} local snapshots, {elapsed}")
        while simulator.open_snapshots:
            if simulator.quiet:
                simulator.finish()  # says which snapshot can never be complete
            for _ in range(TICKS_A_LOOK):
                simulator.step(None)
                if not simulator.open_snapshots:
                    break
            self._check()
            self._show.progress(missing - simulator.missing)
            missing = simulator.missing
        self._show.close_bar()
        # What was sent last arrives.
        self._advance(simulator, simulator.time + self._options.max_delay + 1)
        simulator.stop()
        self._check()

    def _advance(self, simulator: Simulator, end: int) -> None:
        self._show.progress(0)
        while simulator.time < end:
            before = simulator.time
            for _ in range(TICKS_A_LOOK):
                if not simulator.step(end):
                    break
            self._check()
            self._show.progress(simulator.time - before)

    def _attend(self, event: Event) -> None:
        if isinstance(event, SnapshotCompleted):
            self._fresh.append(event)
        elif isinstance(event, SnapshotAbandoned):
            self.error = self.error or event.error
        self._show.attend(event)

    def _check(self) -> None:
        """Ask the invariants about what is new, outside the simulator; end at a violation or after a signal.

        Raises:
            _Over: Nothing more is to be run.
            InvariantError: One is false.
        """
        fresh, self._fresh = self._fresh, []
        for event in fresh:
            check_invariants(event.snapshot, self._work.invariants)
        if self.signals:
            raise _Over


class _Over(Exception):
    """End the run here."""
