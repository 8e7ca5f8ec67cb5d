"""`mpsnap simulate --schedule`: take the steps of a schedule again, a tick each."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterable, Mapping
from typing import Any, TextIO

from mpsnap.cli.logfile import LogFile
from mpsnap.cli.schedule import Schedule, read_schedule
from mpsnap.cli.show import Driving, Result, Show
from mpsnap.core.errors import InputError, MpsnapError
from mpsnap.core.events import Emitted, Logged, SnapshotCompleted
from mpsnap.core.history import VALUES, Entry, error_shown, value_shown
from mpsnap.core.protocol import SnapshotId
from mpsnap.simulator.actor import Note
from mpsnap.simulator.explorer import Explorer, Followed
from mpsnap.simulator.machine import Machine
from mpsnap.views.tables import count

#: What the file says itself, with the value that means that nobody has given the option.
_IN_THE_FILE: Mapping[str, object] = {
    **{"app": "tokens", "topology": None, "events": None, "param": [], "seed": 0, "invariant": []},
    **{"ticks": None, "snapshots": None, "initiator": [], "delays": None},
}


def replay(options: argparse.Namespace, stdout: TextIO) -> Result:
    """Take the steps and show what the run shows that they are the schedule of.

    Raises:
        InputError: The file is no schedule, or something else is asked for besides.
    """
    for name, absent in _IN_THE_FILE.items():
        if getattr(options, name) != absent:
            said = "APP" if name == "app" else f"--{name}"
            raise InputError(f"{said} does not go with --schedule, which says itself what runs", where=options.schedule)
    schedule = read_schedule(options.schedule)
    options.seed = schedule.seed
    run = _Replay(schedule)
    driving = Driving("simulator", None, lambda: (run.sent, run.received))
    with LogFile.of(options, schedule.work, "simulator") as log, Show(options, schedule.work, driving, stdout) as show:
        show.narrate(f"{count(len(schedule.steps), 'step')} of {options.schedule}")
        try:
            run.follow(show, log.keep)
            log.close()
        except MpsnapError as error:
            run.error = error
        show.finish(float(run.ticks), run.error)
    return Result(run.error, False)


class _Replay:
    """Follow a schedule and tell its events."""

    def __init__(self, schedule: Schedule) -> None:
        self._schedule = schedule
        self._machine: Machine
        self._indices: dict[str | None, int] = {}
        self.ticks = self.sent = self.received = 0
        self.error: MpsnapError | None = None

    def follow(self, show: Show, log: Callable[[Entry], None] | None) -> None:
        # Not before there is somebody to show it to: a setup may raise.
        schedule = self._schedule
        work = schedule.work
        self._machine = Machine(
            work.topology,
            work.programs,
            schedule.plan,
            seed=schedule.seed,
            sources=schedule.idle,
            crashes=schedule.crashes,
        )
        for node, notes in self._machine.beginning:
            self._tell_notes(node, notes, show, log)
        explorer = Explorer(self._machine, work.invariants)
        for followed in explorer.follow(schedule.steps):
            self.ticks += 1
            self._tell(followed, show, log)
            if followed.error is not None:
                self._log(log, None, "violated", {"error": error_shown(followed.error)})
                raise followed.error

    def _tell(self, followed: Followed, show: Show, log: Callable[[Entry], None] | None) -> None:
        self._tell_notes(followed.step.node, followed.notes, show, log)
        for node, notes in followed.others:
            if node is None:
                self._tell_recovery(followed.step.node, notes, show, log)
            else:
                self._tell_notes(node, notes, show, log)
        for snapshot in followed.completed:
            detail = {"number": snapshot.number, "snapshot": str(snapshot.id), "verified": snapshot.verified}
            self._log(log, None, "completed", detail)
            show.attend(SnapshotCompleted(snapshot))

    def _tell_recovery(self, died: str, notes: Iterable[Note], show: Show, log: Callable[[Entry], None] | None) -> None:
        for event, fields in notes:
            if event == "recovered":
                show.narrate(f"{died} died; incarnation {fields['incarnation']} recovers from {fields['snapshot']}")
            self._log(log, None, event, fields)

    def _tell_notes(self, node: str, notes: Iterable[Note], show: Show, log: Callable[[Entry], None] | None) -> None:
        codec = self._machine.readers[node]
        for event, fields in notes:
            self.sent += event == "sent"
            self.received += event == "received"
            if event == "output":
                show.attend(Emitted(node, fields["n"], codec.decode(fields["record"].data)))
            elif event == "log":
                show.attend(Logged(node, fields["text"]))
            elif event == "recorded" and fields["from"] is None:
                self._initiated(fields["snapshot"], node, log)
            values = {name: value_shown(fields[name], codec, VALUES[name]) for name in VALUES if name in fields}
            self._log(log, node, event, {**fields, **values})

    def _initiated(self, snapshot: str, node: str, log: Callable[[Entry], None] | None) -> None:
        # Noted, so that it has the same number when it is complete, whatever was begun or completed in between.
        numbers = self._machine.numbers
        number = numbers.setdefault(SnapshotId.parse(snapshot), len(numbers))
        self._log(log, None, "initiated", {"number": number, "snapshot": snapshot, "initiators": [node]})

    def _log(
        self, log: Callable[[Entry], None] | None, node: str | None, event: str, detail: Mapping[str, Any]
    ) -> None:
        if log is not None:
            index = self._indices.get(node, 0)
            self._indices[node] = index + 1
            log(Entry(node, index, self.ticks, event, detail))
