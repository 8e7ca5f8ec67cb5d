"""`mpsnap explore`: try every schedule of a small cluster, or many random ones, and tell the shortest that breaks."""

from __future__ import annotations

import argparse
import contextlib
import json
import signal
import sys
import time
from collections.abc import Sequence
from types import FrameType
from typing import Any, TextIO

from mpsnap.cli.options import (
    Work,
    add_initiator,
    add_verb,
    add_work,
    check_paths,
    find_initiators,
    find_work,
    positive,
    whole,
)
from mpsnap.cli.schedule import Schedule, schedule_text
from mpsnap.cli.show import Result, open_bar, open_output, print_data, writing
from mpsnap.core.errors import InputError, MpsnapError, SnapshotError, one_line
from mpsnap.core.protocol import SnapshotId
from mpsnap.core.script import Send, Snapshot, Tick
from mpsnap.core.topology import Topology
from mpsnap.simulator.actor import Command, Initiation, Plan
from mpsnap.simulator.explorer import Explorer, Findings, Violation
from mpsnap.simulator.machine import Machine
from mpsnap.views.document import error_document
from mpsnap.views.story import story
from mpsnap.views.tables import count

DEFAULT_TOPOLOGY = "complete:3"
DEFAULT_SNAPSHOTS = 2
DEFAULT_STATES = 2_000_000
#: Idle calls and timers of a node: all schedules of a program that sends by itself are soon too many.
DEFAULT_IDLE, DEFAULT_IDLE_RANDOM = 2, 20
DEFAULT_FILE = "violation.schedule"

DESCRIPTION = """\
Run the nodes that `run` runs as processes through every order in which
messages, markers, commands and initiations can follow one another. In each,
every cut must be consistent and reachable and every invariant true of it, and
some cut must hold messages in flight. The lines of a script keep their order
at each node, and only there; its ticks say nothing here. With --crash a node
may die between any two steps, and the cluster recovers from the last complete
cut: that must restore it exactly, and what follows must be as right.
"""

EXAMPLES = """\
examples:
  python -m mpsnap explore   # 3 nodes, 3 messages, 2 snapshots at once: every schedule
  python -m mpsnap explore --topology net.top --events net.events --invariant mpsnap.apps.tokens:conserved
  python -m mpsnap explore --topology ring:3 --crash --invariant mpsnap.apps.tokens:conserved   # and every crash
  python -m mpsnap explore bank --topology ring:5 --random 500 --seed 7 --invariant mpsnap.apps.bank:audit
  python -m mpsnap simulate --schedule violation.schedule   # what it found, again
"""


def add_verbs(verbs: Any) -> None:
    """Add the verb to the command line."""
    parser = add_verb(
        verbs,
        "explore",
        "try every schedule of a small cluster",
        description=DESCRIPTION,
        examples=EXAMPLES,
    )
    what = parser.add_argument_group("what runs")
    add_work(parser, what, tick="N")
    how = parser.add_argument_group("what is tried")
    how.add_argument(
        "--snapshots",
        type=positive,
        metavar="N",
        help=f"begun at any moments; without --events (default {DEFAULT_SNAPSHOTS})",
    )
    add_initiator(how)
    how.add_argument(
        "--crash",
        type=positive,
        nargs="?",
        const=1,
        default=0,
        metavar="N",
        help="a node may die N times in a schedule (without N: once), and the cluster recovers",
    )
    how.add_argument("--random", type=positive, metavar="N", help="N random schedules, not all; --seed says which")
    how.add_argument(
        "--idle",
        type=whole,
        metavar="N",
        help=f"idle calls and timers of each node (default {DEFAULT_IDLE}; with --random {DEFAULT_IDLE_RANDOM})",
    )
    how.add_argument(
        "--max-states",
        type=positive,
        default=DEFAULT_STATES,
        metavar="N",
        help=f"give up beyond so many (default {DEFAULT_STATES:,})",
    )
    output = parser.add_argument_group("what is shown")
    output.add_argument("--format", choices=("table", "json"), default="table", help="of stdout (default table)")
    output.add_argument(
        "--save",
        metavar="FILE",
        default=DEFAULT_FILE,
        help=f"where a schedule that breaks goes (default {DEFAULT_FILE})",
    )
    output.add_argument("--quiet", action="store_true", help="no narration and no progress bar")
    output.add_argument("--debug", action="store_true", help="show tracebacks")
    parser.set_defaults(carry_out=carry_out)


def carry_out(options: argparse.Namespace) -> Result:
    """Explore and show.

    Raises:
        InputError: Something asked for is wrong; no node's code has run.
    """
    stdout = sys.stdout
    with contextlib.redirect_stdout(sys.stderr):
        return _Exploration(options, stdout).run()


class _Exploration:
    """One exploration, from the options to what is shown of it."""

    def __init__(self, options: argparse.Namespace, stdout: TextIO) -> None:
        self._options = options
        self._stdout = stdout
        if options.topology is None and options.app == "tokens":
            options.topology = DEFAULT_TOPOLOGY
        check_paths(options)
        self._work = find_work(options, script_of=_example_script)
        self._plan = plan_of(options, self._work)
        self._idle: int = options.idle
        if options.idle is None:
            self._idle = DEFAULT_IDLE_RANDOM if options.random else DEFAULT_IDLE
        self._bar: Any = None
        self._signals = 0
        #: Where a schedule that breaks is, None if it could not be written.
        self._saved: str | None = options.save

    def run(self) -> Result:
        """Explore, show, and say how it ended."""
        before = {number: signal.signal(number, self._on_signal) for number in (signal.SIGINT, signal.SIGTERM)}
        started = time.monotonic()
        machine: Machine | None = None
        try:
            machine = Machine(
                self._work.topology,
                self._work.programs,
                self._plan,
                seed=self._options.seed,
                sources=self._idle,
                crashes=self._options.crash,
            )
            findings = self._explore(Explorer(machine, self._work.invariants))
        except MpsnapError as trouble:
            findings = Findings(0, 0, 0, 0, 0, 0, False, None, trouble)
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)
        seconds = time.monotonic() - started
        error = findings.verdict if not self._signals or findings.violation else None
        settled = findings.exhausted or findings.violation or findings.trouble
        if not (settled or self._options.random or self._signals):
            # Before the verdict that it shows nothing: the states that were not tried might show something.
            error = SnapshotError(
                f"not every schedule was tried: more than {self._options.max_states} states",
                hint="--random N, --max-states, fewer messages or nodes, a lower --idle",
            )
        told: list[str] = []
        if findings.violation is not None and machine is not None:
            told = self._tell(machine, findings.violation)
            self._save(findings.violation, told)
        self._show(findings, error, told, seconds)
        return Result(error, self._signals > 0)

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        self._signals += 1
        if self._signals > 1:
            raise KeyboardInterrupt

    def _explore(self, explorer: Explorer) -> Findings:
        options = self._options
        noun = "schedules" if options.random else "states"
        form = "{n_fmt} " + noun + ", {elapsed}"
        if options.random:
            form = "{percentage:3.0f}%|{bar}| {n_fmt} of {total_fmt} schedules, {elapsed}"
        self._bar = open_bar(options.quiet, options.random, form)
        try:
            if options.random:
                return explorer.walk(options.random, options.seed, self._progress)
            return explorer.exhaust(options.max_states, self._progress)
        finally:
            if self._bar is not None:
                self._bar.close()

    def _progress(self, done: int) -> bool:
        if self._bar is not None:
            self._bar.update(done - self._bar.n)
        return self._signals > 0

    # ------------------------------------------------------------------- results

    def _tell(self, machine: Machine, violation: Violation) -> list[str]:
        steps = [(node, "", notes) for node, notes in machine.beginning if notes]
        begun = len(steps)
        state = machine.start
        for step in violation.steps:
            what = machine.told(state, step)
            following = machine.after(state, step)
            assert following is not None
            steps.append((step.node, what, following[1].notes))
            steps += [(node or "", "", notes) for node, notes in following[1].others]
            state = following[0]
        return story(steps, machine.codecs, begun)

    def _save(self, violation: Violation, told: Sequence[str]) -> None:
        options = self._options
        schedule = Schedule(self._work, self._plan, options.seed, self._idle, violation.steps, options.crash)
        text = schedule_text(schedule, self._options.invariant, violation.error, told)
        try:
            with writing(self._options.save), open_output(self._options.save) as file:
                file.write(text)
        except MpsnapError as error:
            # It may have taken long to find: it is told all the same, and the status is that of the violation.
            print(f"mpsnap: the schedule is not saved: {error}", file=sys.stderr, flush=True)
            self._saved = None

    def _show(self, findings: Findings, error: MpsnapError | None, told: Sequence[str], seconds: float) -> None:
        if self._options.format == "json":
            print_data(json.dumps(self._document(findings, error, told, seconds), allow_nan=False), self._stdout)
            return
        for line in self._lines(findings, told, seconds):
            print_data(line, self._stdout)

    def _document(
        self, findings: Findings, error: MpsnapError | None, told: Sequence[str], seconds: float
    ) -> dict[str, Any]:
        violation = None
        if findings.violation is not None:
            violation = {
                **(error_document(findings.violation.error) or {}),
                "steps": [str(step) for step in findings.violation.steps],
                "story": list(told),
                "file": self._saved,
            }
        topology = self._work.topology
        return {
            "exploration": {
                "app": self._work.app.name,
                "topology": topology.name,
                "nodes": len(topology.nodes),
                "channels": len(topology.channels),
                "random": self._options.random,
                "seed": self._options.seed,
                "states": findings.states,
                "steps": findings.steps,
                "schedules": findings.schedules,
                "depth": findings.depth,
                "cuts": findings.cuts,
                "cuts_in_flight": findings.in_flight,
                "crashes": self._options.crash,
                "recoveries": findings.recoveries or 0,
                "recoveries_in_flight": findings.restoring,
                "exhausted": findings.exhausted,
                "seconds": seconds,
            },
            "violation": violation,
            "error": error_document(error),
        }

    def _lines(self, findings: Findings, told: Sequence[str], seconds: float) -> list[str]:
        planned = [item for items in self._plan.values() for item in items]
        commands = sum(isinstance(item, Command) for item in planned)
        topology = self._work.topology
        what = (
            f"{self._work.app.name} on {topology.name}: {count(len(topology.nodes), 'node')}, "
            f"{count(len(topology.channels), 'channel')}, {count(commands, 'command')}, "
            f"{count(len(planned) - commands, 'initiation')}"
        )
        tried = "every schedule" if findings.exhausted else count(findings.schedules, "whole schedule")
        lines = [
            what,
            f"{tried} tried: {count(findings.states, 'state')}, {count(findings.steps, 'step')}, "
            f"{count(findings.schedules, 'schedule')} of at most {count(findings.depth, 'step')}, in {seconds:.1f} s",
            f"{count(findings.cuts, 'different cut')}, each consistent and reachable; "
            f"{findings.in_flight} of them with messages in flight",
        ]
        if findings.recoveries is not None:
            lines.append(
                f"{count(findings.recoveries, 'recovered state')}, each exactly its cut; "
                f"{findings.restoring} of them with messages in flight"
            )
        if findings.violation is not None:
            lines += [
                "",
                f"violated: {findings.violation.error.what}",
                f"the shortest schedule found that shows it, {count(len(findings.violation.steps), 'step')}:",
                *told,
            ]
            if self._saved is not None:
                lines.append(f"again: python -m mpsnap simulate --schedule {one_line(self._saved)}")
        return lines


def plan_of(options: argparse.Namespace, work: Work) -> Plan:
    """Return what a script, or a number of snapshots, has each node do."""
    plan: dict[str, list[Command | Initiation]] = {}
    begun: dict[str, int] = {}
    initiators = find_initiators(options, work.topology)
    if work.script is None:
        for k in range(options.snapshots or DEFAULT_SNAPSHOTS):
            _plan_snapshot(plan, begun, work.topology, initiators[k % len(initiators)])
        return plan
    for name in ("snapshots", "initiator"):
        if getattr(options, name):
            where, hint = work.script.source, "`snapshot NODE` there"
            raise InputError(f"--{name} does not go with --events", where=where, hint=hint)
    for step in work.script.steps:
        if isinstance(step, Send):
            text = f"`send {step.src} {step.dst} {step.amount}` ({work.script.source}:{step.line})"
            plan.setdefault(step.src, []).append(Command({"send": step.dst, "amount": step.amount}, text))
        elif isinstance(step, Snapshot):
            _plan_snapshot(plan, begun, work.topology, (step.node,))
        else:
            assert isinstance(step, Tick)
    return plan


def _plan_snapshot(
    plan: dict[str, list[Command | Initiation]], begun: dict[str, int], topology: Topology, asked: tuple[str, ...]
) -> None:
    initiators = topology.initiators(asked)
    number, nth = sum(begun.values()), begun.get(initiators[0], 0)
    begun[initiators[0]] = nth + 1
    snapshot_id = SnapshotId.triggered(0, initiators[0], nth)
    for node in initiators:
        plan.setdefault(node, []).append(Initiation(snapshot_id, number))


def _example_script(topology: Topology) -> bytes:
    """Return a script for the tokens app: three messages and two snapshots."""
    senders = [node for node in topology.nodes if topology.outbound(node)][:3]
    lines = [f"send {node} {topology.outbound(node)[0]} 1" for node in senders]
    lines += [f"snapshot {node}" for node in topology.nodes[:2]]
    return "\n".join(lines).encode()
