"""Run all benchmarks, tell what they found, and keep it as JSON: `python -m benchmarks`.

A full run takes up to 25 minutes, and the machine should have nothing else to do. Its report goes to
benchmarks/results/latest.json, with pictures beside it if matplotlib is there. That file is always of a full run of
everything: what `--quick` finds goes to quick.json, and what a run finds with `--only`, or until Ctrl-C, to
partial.json. `--out` says otherwise.

`--readme` measures nothing: it takes the figures of that file into benchmarks/README.md, and draws the pictures again.

The exit status is 0 whatever the figures are, 2 for bad options, 3 if a benchmark failed, 130 after Ctrl-C.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
import traceback
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from benchmarks import capture, channels, eventlog, plots, recovery, report, simulator, snapshots, startup
from benchmarks.measure import Benchmark, Row, Scale, absent, options, progress, scale_of, table
from benchmarks.report import Report

RESULTS = Path(__file__).parent / "results"
README = Path(__file__).parent / "README.md"
MODULES: Mapping[str, Sequence[Benchmark]] = {
    "channels": channels.BENCHMARKS,
    "snapshots": snapshots.BENCHMARKS,
    "capture": capture.BENCHMARKS,
    "startup": startup.BENCHMARKS,
    "recovery": recovery.BENCHMARKS,
    "eventlog": eventlog.BENCHMARKS,
    "simulator": simulator.BENCHMARKS,
}


def main(
    arguments: Sequence[str] | None = None,
    modules: Mapping[str, Sequence[Benchmark]] = MODULES,
    results: Path = RESULTS,
    readme: Path = README,
) -> int:
    """Be the command line; return the exit status."""
    parser = _parser()
    chosen = parser.parse_args(arguments)
    if chosen.readme:
        return _fill(parser, chosen.out or results / "latest.json", chosen.into or readme)
    named = [(module, each) for module, them in modules.items() for each in them]
    wanted = [(module, each) for module, each in named if chosen.only in f"{module}.{each.__name__}"]
    if not wanted:
        parser.error(f"no benchmark has {chosen.only!r} in its name; try one of {', '.join(modules)}")
    found = _measured(wanted, scale_of(chosen), chosen.only)
    path = chosen.out or results / _file_name(found)
    found.write(path)
    print(path.read_text() if chosen.json else _tables(found))
    if chosen.out or path.name == "latest.json":
        _draw(found, path.parent)
    return _told(found, path)


def _parser() -> argparse.ArgumentParser:
    parser = options("benchmarks", __doc__)
    parser.add_argument("--out", type=Path, metavar="FILE", help="of the JSON (default benchmarks/results/latest.json)")
    parser.add_argument("--readme", action="store_true", help="put the figures of --out into the README and end")
    parser.add_argument("--into", type=Path, metavar="FILE", help="instead of benchmarks/README.md")
    return parser


def _measured(wanted: Sequence[tuple[str, Benchmark]], scale: Scale, only: str) -> Report:
    """Run benchmarks, one after the other whatever becomes of it, until Ctrl-C."""
    found, began = report.begun(scale, only), time.perf_counter()
    try:
        with progress(wanted) as bar:
            watched = replace(scale, told=bar.set_postfix_str)
            for module, benchmark in bar:
                name = f"{module}.{benchmark.__name__}"
                bar.set_description(name)
                begun = time.perf_counter()
                found.modules.setdefault(module, []).extend(_rows(name, benchmark, watched))
                found.took[name] = round(time.perf_counter() - begun, 2)
    except KeyboardInterrupt:
        found.state = "interrupted"
    report.ended(found, time.perf_counter() - began)
    return found


def _rows(name: str, benchmark: Benchmark, scale: Scale) -> list[Row]:
    """Return the rows of a benchmark; of one that fails all it has, marked, and one more that says so."""
    rows: list[Row] = []
    try:
        for row in benchmark(scale):
            rows.append(row)  # noqa: PERF402 - those before an error are kept
    except Exception as error:
        traceback.print_exc()
        why = f"{type(error).__name__}: {error}"
        return [replace(row, failed=why) for row in [*rows, absent(name, why)]]
    return rows


def _file_name(found: Report) -> str:
    return "quick.json" if found.options["quick"] else "latest.json" if found.state == "whole" else "partial.json"


def _tables(found: Report) -> str:
    return "\n\n".join(f"{module}\n\n{table(rows)}" for module, rows in found.modules.items() if rows)


def _told(found: Report, path: Path) -> int:
    failed = [row.name for rows in found.modules.values() for row in rows if row.failed and not row.measured]
    rows = sum(len(rows) for rows in found.modules.values())
    print(f"{len(found.took)} benchmarks, {rows} rows in {found.seconds:.0f} s: {path}", file=sys.stderr)
    if failed:
        print(f"failed: {', '.join(failed)}", file=sys.stderr)
    if found.state == "interrupted":
        print("interrupted: the benchmark under way and those behind it are not in there", file=sys.stderr)
        return 130
    return 3 if failed else 0


def _draw(found: Report, folder: Path) -> dict[str, Path]:
    if plots.missing():
        print(f"the pictures are left out: {plots.missing()}", file=sys.stderr)
        return {}
    return plots.draw(found.modules, folder)


def _fill(parser: argparse.ArgumentParser, path: Path, readme: Path) -> int:
    """Put the figures of a file, if it is there, into the README."""
    sections = {}
    if path.exists():
        try:
            found = Report.read(path)
        except (ValueError, TypeError, KeyError) as error:
            parser.error(f"{path} is no report: {error}")
        _draw(found, path.parent)
        # Those that were drawn before will do, where there is no matplotlib.
        pictures = {name: path.parent / file for name, file in plots.FILES.items() if (path.parent / file).exists()}
        addresses = {name: os.path.relpath(file, readme.parent) for name, file in pictures.items()}
        sections = report.tables(found, addresses)
    readme.write_text(report.filled(readme.read_text(encoding="utf-8"), sections), encoding="utf-8")
    print(f"{path if path.exists() else 'no figures'} to {readme}", file=sys.stderr)
    return 0


if __name__ == "__main__":
    sys.exit(main())
