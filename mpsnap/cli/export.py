"""`mpsnap export`: draw what an event log tells."""

from __future__ import annotations

import argparse
import gc
import os
import sys
from collections.abc import Iterator
from typing import Any

from mpsnap.cli.options import add_verb, whole
from mpsnap.cli.show import Result, open_output, write_out, writing
from mpsnap.core.errors import InputError, one_line
from mpsnap.core.history import History, parse_log
from mpsnap.core.words import listed, shown
from mpsnap.runtime.journal import entries_so_far
from mpsnap.views.dot import dot_text
from mpsnap.views.html import html_text
from mpsnap.views.perfetto import perfetto_text
from mpsnap.views.shiviz import PARSER, TooManyNumbers, shiviz_text
from mpsnap.views.spacetime import Cut, Diagram, NoSuchCut, chosen_cut, diagram, name_of
from mpsnap.views.svg import svg_text

FORMS = ("html", "svg", "dot", "shiviz", "perfetto")
#: Of a longer line a log has none: its values are cut to their sizes.
MAX_LINE_BYTES = 64 * 2**20
#: A log of so many bytes takes longer to read than anyone waits without being told.
LARGE_BYTES = 20 * 2**20

EXAMPLES = """\
forms:
  html      the space-time diagram, one page for any browser: zoom, click, go through the snapshots
  svg       the same as a still picture, around the cut of one snapshot
  dot       nodes, their states and the messages in flight at the cut, for Graphviz
  shiviz    a line an event with its vector clock, for https://bestchai.bitbucket.io/shiviz/
  perfetto  a trace, for https://ui.perfetto.dev or chrome://tracing

examples:
  python -m mpsnap run --snapshots 3 --log run.log
  python -m mpsnap export run.log --as html -o run.html
  python -m mpsnap export run.log --as svg --snapshot 1 -o cut.svg
  python -m mpsnap export run.log --as svg --from 0.010 --to 0.012 > part.svg
  python -m mpsnap export run.log --as dot | dot -Tpng -o cut.png
"""


def add_verbs(verbs: Any) -> None:
    """Add the verb to the command line."""
    parser = add_verb(
        verbs,
        "export",
        "draw an event log: space-time diagram, graph, trace",
        description="Draw what the event log of `run --log` or `simulate --log` tells.",
        examples=EXAMPLES,
    )
    parser.add_argument("log", metavar="LOG", help="the event log")
    parser.add_argument("--as", dest="form", choices=FORMS, required=True, help="see below")
    parser.add_argument("-o", "--output", metavar="FILE", default="-", help="where to write it (default stdout)")
    parser.add_argument(
        "--snapshot",
        metavar="N",
        type=_number,
        help="of html, svg and dot: whose cut is drawn, or none (default: the last that completed)",
    )
    parser.add_argument("--from", dest="start", metavar="T", type=_time, help="of svg: draw from this time on")
    parser.add_argument("--to", dest="end", metavar="T", type=_time, help="of svg: draw to this time")
    parser.add_argument("--debug", action="store_true", help="show tracebacks")
    parser.set_defaults(carry_out=carry_out)


def carry_out(options: argparse.Namespace) -> Result:
    """Read, draw and write.

    Raises:
        InputError: The log cannot be read, has no such snapshot, or the output cannot be written.
    """
    _check(options)
    # The collector would look through a heap of a million entries again and again, and nothing here is a cycle.
    gc.disable()
    try:
        return _export(options)
    finally:
        gc.enable()


def _export(options: argparse.Namespace) -> Result:
    history = _read(options.log)
    so_far = entries_so_far(options.log, history.head) if not history.entries else None
    if so_far is not None:
        history = history._replace(entries=tuple(so_far), flaw=None)
        _narrate(f"the run of {options.log} goes on, or was killed: this is what its nodes have written so far")
    if history.flaw:
        _narrate(history.flaw)
    drawing = diagram(history)
    text = _drawn(drawing, _cut(drawing, options), options)
    if options.output == "-":
        write_out(text)
    else:
        with open_output(options.output) as file, writing(options.output):
            file.write(text)
    if options.form == "shiviz":
        _narrate(
            "upload the file to https://bestchai.bitbucket.io/shiviz/; to paste its lines, from the third on, enter"
        )
        _narrate(f"this as the parser: {PARSER}")
    return Result(None, False)


def _check(options: argparse.Namespace) -> None:
    window = [f"--{name}" for name, value in (("from", options.start), ("to", options.end)) if value is not None]
    if window and options.form != "svg":
        raise InputError(f"is for --as svg, not for {options.form}", where=window[0])
    if options.snapshot is not None and options.form in ("shiviz", "perfetto"):
        raise InputError(f"is for html, svg and dot; {options.form} has all snapshots", where="--snapshot")
    if len(window) == 2 and options.start > options.end:
        raise InputError(f"{options.start:g} is after --to {options.end:g}", where="--from")
    try:
        same = os.path.samefile(options.log, options.output)
    except (OSError, ValueError):
        # One of them is not there: what is wrong with it shows when it is opened.
        same = False
    if same:
        raise InputError("this is the log itself", where=f"-o {options.output}")


def _read(path: str) -> History:
    try:
        with open(path, "rb") as file:
            size = os.fstat(file.fileno()).st_size
            lines: Iterator[bytes] = iter(lambda: file.readline(MAX_LINE_BYTES), b"")
            if size > LARGE_BYTES and sys.stderr.isatty():
                lines = _watched(lines, size)
            return parse_log(lines, path)
    except (OSError, ValueError) as error:
        reason = (error.strerror if isinstance(error, OSError) else None) or str(error)
        raise InputError(
            f"cannot be read: {reason}", where=path or "''", hint="`python -m mpsnap run --log FILE` writes one"
        ) from error


def _watched(lines: Iterator[bytes], size: int) -> Iterator[bytes]:
    from tqdm import tqdm

    tqdm.monitor_interval = 0  # its monitor would be a second thread, for a bar that moves by itself
    with tqdm(total=size, unit="B", unit_scale=True, desc="reading", file=sys.stderr, leave=False) as bar:
        for line in lines:
            yield line
            bar.update(len(line))


def _cut(drawing: Diagram, options: argparse.Namespace) -> Cut | None:
    if options.snapshot == "none":
        return None
    try:
        cut = chosen_cut(drawing, options.snapshot)
    except NoSuchCut:
        known = [str(cut.number) for cut in drawing.cuts if cut.number is not None]
        raise InputError(
            f"there is no snapshot {options.snapshot} in this log",
            where=options.log,
            hint=f"--snapshot {listed(known)}" if known else "a log of a run that took snapshots",
        ) from None
    if cut is not None and not cut.recorded and options.snapshot is not None:
        _narrate(f"no node has recorded {name_of(cut)} in this log: there is no cut to draw")
    return cut


def _drawn(drawing: Diagram, cut: Cut | None, options: argparse.Namespace) -> str:
    if options.form == "html":
        return html_text(drawing, cut)
    if options.form == "svg":
        return svg_text(drawing, cut, options.start, options.end)
    if options.form == "dot":
        return dot_text(drawing, cut)
    if options.form == "perfetto":
        return perfetto_text(drawing)
    try:
        return shiviz_text(drawing)
    except TooManyNumbers as error:
        what = f"{len(drawing.points):,} entries of {len(drawing.nodes):,} nodes are too many for vector clocks"
        raise InputError(what, where=options.log, hint="--as html, or a shorter run") from error


def _narrate(text: str) -> None:
    print(f"mpsnap: {one_line(text)}", file=sys.stderr, flush=True)


def _number(text: str) -> int | str:
    return text if text == "none" else whole(text)


def _time(text: str) -> float:
    try:
        # Not all that float() takes: 1_0 is a slip.
        time = float(text) if text.isascii() and "_" not in text else -1.0
    except ValueError:
        time = -1.0
    if not 0 <= time < float("inf"):
        raise argparse.ArgumentTypeError(f"{shown(text)} is not a time in the log's unit")
    return time
