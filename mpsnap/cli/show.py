"""What a run shows while it goes on and at its end: snapshots on stdout and in files, its progress on stderr.

This module owns what is printed. It must not know which driver runs what it shows.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import sys
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from itertools import islice
from typing import IO, TYPE_CHECKING, Any, NamedTuple, TextIO

from mpsnap.cli.options import Work
from mpsnap.core.errors import ConsistencyError, InputError, MpsnapError, OutputError, one_line
from mpsnap.core.events import (
    Emitted,
    Event,
    Logged,
    NodeDied,
    Recovered,
    SnapshotAbandoned,
    SnapshotCompleted,
    SurplusKept,
)
from mpsnap.core.snapshot import MOST_STORED, GlobalSnapshot
from mpsnap.views.document import death_document, output_document, run_document, snapshot_document
from mpsnap.views.snapfile import snap_text
from mpsnap.views.tables import count, duration_shown, outputs_table, snapshot_line, snapshot_table

if TYPE_CHECKING:
    from tqdm import tqdm

#: Snapshots shown as whole tables; of those after them, a line each.
SHOWN_IN_FULL = 10
OUTPUTS_SHOWN = 20
#: Of a run without an end: snapshots, and records, that its document and summary tell of.
NEWEST = 100
#: Characters written to stdout at once: what a pipe holds.
PART = 2**16


class Result(NamedTuple):
    """How a command ended: its error, if any, and whether a signal ended it."""

    error: MpsnapError | None
    interrupted: bool


class Driving(NamedTuple):
    """Say what runs the nodes: "processes" or "simulator", how they were started, and how to ask for the messages."""

    driver: str
    start_method: str | None
    #: Returns how many messages were sent and received so far.
    totals: Callable[[], tuple[int, int]]
    #: Whether it writes the file of `--emit` itself.
    writes_emitted: bool = False
    #: Whether it goes on until somebody stops it.
    endless: bool = False


class Show:
    """Show a run: its snapshots on stdout and in files, its progress on stderr.

    Args:
        options: Of the verb; `add_output` has those that are used here.
        work: What runs.
        driving: And how.
        stdout: Where the data goes.
    """

    def __init__(self, options: argparse.Namespace, work: Work, driving: Driving, stdout: TextIO) -> None:
        self._options = options
        self._work = work
        self._driving = driving
        self._stdout = stdout
        #: What the document at the end will show: snapshots, and documents of those whose files had to be given up.
        most = NEWEST if driving.endless else None
        self._snapshots: deque[GlobalSnapshot] = deque(maxlen=most)
        self._documents: deque[dict[str, Any]] = deque(maxlen=most)
        self._taken = 0
        self._durations: deque[float] = deque(maxlen=most and 100 * most)
        self._outputs: deque[tuple[str, int, object]] = deque(maxlen=most)
        self._emitted = 0
        self._deaths: list[NodeDied] = []
        self._recoveries: list[Recovered] = []
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
        if self._options.emit is not None and not self._driving.writes_emitted:
            # By lines, so that it can be followed while it grows.
            self._emit = open_output(self._options.emit, buffering=1)
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._bar.close()
        if self._emit is not None:
            with writing(self._options.emit):
                self._emit.close()

    def attend(self, event: Event) -> None:
        """Show what happened."""
        if isinstance(event, SnapshotCompleted):
            self._on_snapshot(event.snapshot)
        elif isinstance(event, SnapshotAbandoned):
            self.narrate(event.error.what)
        elif isinstance(event, SurplusKept):
            self.narrate(f"old snapshots stay in the store: {event.error}")
        elif isinstance(event, Emitted):
            self._on_output(event)
        elif isinstance(event, NodeDied):
            self._deaths.append(event)
            self.narrate(event.error.what)
        elif isinstance(event, Recovered):
            self._recoveries.append(event)
            self.narrate(f"all nodes went on from snapshot {event.number}, {event.seconds:.2f} s after the death")
        elif isinstance(event, Logged):
            self.narrate(f"{event.node}: {event.text}")

    def open_bar(self, total: int | None, form: str) -> None:
        """Show progress from now on, on a terminal; `form` is tqdm's, a `total` of None has no end."""
        self.close_bar()
        self._bar = open_bar(self._options.quiet, total, form)

    def progress(self, by: int) -> None:
        """Move the bar."""
        if self._bar is not None:
            self._bar.update(by)

    def close_bar(self) -> None:
        """Show no progress any more."""
        if self._bar is not None:
            self._bar.close()
            self._bar = None

    def narrate(self, text: str) -> None:
        """Say something to whoever watches."""
        if not self._options.quiet:
            with self._without_bar():
                print(f"mpsnap: {one_line(text)}", file=sys.stderr, flush=True)

    def finish(self, seconds: float, error: MpsnapError | None) -> None:
        """Show what is to be shown at the end; the seconds are simulated ones in the simulator."""
        self.close_bar()
        if self._options.format == "json":
            documents = [*self._documents, *map(snapshot_document, self._snapshots)]
            documents.sort(key=lambda document: int(document["number"]))
            document = run_document(self._facts(seconds), documents, self._outputs, error)
            self._print(json.dumps(document, allow_nan=False))
        elif self._options.format == "table":
            self._print_summary(seconds, error)

    # ------------------------------------------------------------------- parts

    @property
    def _simulated(self) -> bool:
        return self._driving.driver == "simulator"

    def _on_snapshot(self, snapshot: GlobalSnapshot) -> None:
        options = self._options
        self._taken += 1
        if snapshot.duration is not None:
            self._durations.append(snapshot.duration)
        if options.format == "json":
            self._keep(snapshot)
        if options.out is not None:
            self._write_file(snapshot)
        elif options.format == "snap":
            self._print(snap_text(snapshot))
        if options.format == "table":
            full = self._taken <= SHOWN_IN_FULL
            self._print((snapshot_table if full else snapshot_line)(snapshot, self._simulated))

    def _keep(self, snapshot: GlobalSnapshot) -> None:
        self._snapshots.append(snapshot)
        if snapshot.stored:
            # Documents are made at the end, when nobody waits, but for what would keep too many files open till then.
            while sum(len(kept.stored) for kept in self._snapshots) > MOST_STORED:
                self._documents.append(snapshot_document(self._snapshots.popleft()))

    def _write_file(self, snapshot: GlobalSnapshot) -> None:
        ending = {"table": "txt", "json": "json", "snap": "snap"}[self._options.format]
        path = os.path.join(self._options.out, f"{snapshot.number}.{ending}")
        if ending == "json":
            text = json.dumps(snapshot_document(snapshot), allow_nan=False) + "\n"
        else:
            text = snap_text(snapshot) if ending == "snap" else snapshot_table(snapshot, self._simulated)
        with writing(path), open(path, "w", encoding="utf-8") as file:
            file.write(text)

    def _on_output(self, event: Emitted) -> None:
        self._emitted += 1
        self._outputs.append((event.node, event.n, event.record))
        if self._emit is not None:
            with writing(self._options.emit):
                self._emit.write(json.dumps(output_document(*event), allow_nan=False) + "\n")

    def _facts(self, seconds: float) -> Mapping[str, Any]:
        sent, received = self._driving.totals()
        topology = self._work.topology
        return {
            "app": self._work.app.name,
            "topology": topology.name,
            "nodes": len(topology.nodes),
            "channels": len(topology.channels),
            "driver": self._driving.driver,
            "start_method": self._driving.start_method,
            "seed": self._options.seed,
            "duration_s": seconds,
            "messages_sent": sent,
            "messages_received": received,
            "deaths": [death_document(death.node, death.error) for death in self._deaths],
            "recoveries": [recovery._asdict() for recovery in self._recoveries],
        }

    def _print_summary(self, seconds: float, error: MpsnapError | None) -> None:
        if self._outputs and self._options.emit is None:
            self._print(outputs_table(list(islice(self._outputs, OUTPUTS_SHOWN))))
            if self._emitted > OUTPUTS_SHOWN:
                self._print(f"and {self._emitted - OUTPUTS_SHOWN} more records; --emit FILE keeps them all\n")
        sent, received = self._driving.totals()
        taken = count(self._taken, "consistent snapshot") if self._taken else "no snapshots"
        if self._durations:
            median = duration_shown(sorted(self._durations)[len(self._durations) // 2], self._simulated)
            taken += f", median {median}"
        passed = duration_shown(seconds, True) if self._simulated else f"{seconds:.1f} s"
        self._print(f"{taken}; {count(sent, 'message')} sent and {received} received in {passed}")
        if self._deaths:
            lost = sum(recovery.seconds for recovery in self._recoveries)
            recoveries = f"{len(self._recoveries)} recover{'y' if len(self._recoveries) == 1 else 'ies'}"
            proven = "" if isinstance(error, ConsistencyError) else "; every snapshot was consistent"
            self._print(f"{count(len(self._deaths), 'death')}, {recoveries}, {lost:.2f} s lost{proven}")

    def _print(self, text: str) -> None:
        with self._without_bar():
            print_data(text, self._stdout)

    @contextlib.contextmanager
    def _without_bar(self) -> Iterator[None]:
        if self._bar is not None:
            self._bar.clear()
        yield
        if self._bar is not None:
            self._bar.refresh()


def started_line(work: Work, processes: bool, how: str) -> str:
    """Return the line that says what runs."""
    nodes = count(len(work.topology.nodes), "process" if processes else "node")
    channels = count(len(work.topology.channels), "channel")
    return f"{work.app.name} on {work.topology.name}: {nodes}, {channels}, {how}".rstrip() + "; Ctrl-C stops it"


def open_bar(quiet: bool, total: int | None, form: str) -> tqdm[Any] | None:
    """Return a progress bar on a terminal, None where there is none or nobody wants it."""
    if quiet or not sys.stderr.isatty():
        return None
    # Only here: most runs have no terminal, and importing it takes longer than all our views.
    from tqdm import tqdm

    tqdm.monitor_interval = 0  # its monitor would be a second thread, for a bar that moves by itself
    return tqdm(total=total, bar_format=form, file=sys.stderr, leave=False)


def write_out(text: str) -> None:
    """Write a whole text to stdout."""
    with writing("stdout"):
        # By parts: an unbuffered stdout drops the rest of a write that ends early, as when its reader goes away.
        for start in range(0, len(text), PART):
            sys.stdout.write(text[start : start + PART])
        sys.stdout.flush()


def print_data(text: str, stdout: TextIO) -> None:
    """Print a line of what was asked for."""
    with writing("stdout"):
        print(text, file=stdout, flush=True)


def open_output(path: str, buffering: int = -1) -> IO[str]:
    """Open a file that an option names for writing.

    Raises:
        InputError: It cannot be written.
    """
    try:
        return open(path, "w", encoding="utf-8", buffering=buffering)
    except (OSError, ValueError) as error:
        raise InputError(f"cannot be written: {_reason(error)}", where=path or "''") from error


@contextlib.contextmanager
def writing(where: str) -> Iterator[None]:
    """Turn what goes wrong with the writing of a file into an error that names it."""
    try:
        yield
    except BrokenPipeError:
        raise
    except OSError as error:
        raise OutputError(f"cannot be written: {_reason(error)}", where=where) from error


def _reason(error: OSError | ValueError) -> str:
    return (error.strerror if isinstance(error, OSError) else None) or str(error)
