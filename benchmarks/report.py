"""What a run of the benchmarks found, on which machine: as JSON, and as the tables of `README.md`.

This module owns the form of both. It must not know what is measured, or how.
"""

from __future__ import annotations

import json
import os
import platform
import re
import subprocess
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from datetime import datetime, timezone
from importlib import metadata
from pathlib import Path
from typing import Any, Literal

import psutil

import mpsnap
from benchmarks.measure import HEADERS, Row, Scale, cells

ROOT = Path(__file__).parent.parent
#: What is worth knowing the version of.
PACKAGES = ("msgpack", "pyzmq", "mpi4py")
#: What stands between the markers while there is no figure.
NOTHING = "*No full run is recorded yet.*"


@dataclass
class Report:
    """Hold the rows of every module, and what one has to know about them.

    A report is `whole` if every benchmark had its turn, whatever became of it; `part` of a run with `--only`.
    `took` holds the seconds of each benchmark, by the names of its module and its own.
    """

    machine: dict[str, Any]
    date: str
    commit: str | None
    version: str
    options: dict[str, Any]
    state: Literal["whole", "part", "interrupted"] = "whole"
    seconds: float = 0.0
    modules: dict[str, list[Row]] = field(default_factory=dict)
    took: dict[str, float] = field(default_factory=dict)

    def write(self, path: Path) -> None:
        """Write it as JSON, to be there whole or not at all."""
        modules = {name: [row.plain() for row in rows] for name, rows in self.modules.items()}
        path.parent.mkdir(parents=True, exist_ok=True)
        beside = path.with_name(f"{path.name}.{os.getpid()}")
        beside.write_text(as_json({**asdict(self), "modules": modules}) + "\n", encoding="utf-8")
        beside.replace(path)

    @classmethod
    def read(cls, path: Path) -> Report:
        """Return the report that was written there."""
        found = json.loads(path.read_text(encoding="utf-8"))
        modules = {name: [Row.of(row) for row in rows] for name, rows in found["modules"].items()}
        return cls(**{**found, "modules": modules})


def as_json(value: object) -> str:
    """Return strict JSON: what is no number raises."""
    return json.dumps(value, indent=1, allow_nan=False)


def begun(scale: Scale, only: str) -> Report:
    """Return a report without rows."""
    return Report(
        machine=_machine() | {"load average before": _load()},
        date=datetime.now(timezone.utc).isoformat(timespec="seconds"),
        commit=_commit(),
        version=mpsnap.__version__,
        options={"quick": scale.quick, "only": only, "rounds": scale.rounds, "seconds": scale.seconds},
        state="part" if only else "whole",
    )


def ended(report: Report, seconds: float) -> None:
    """Note how long it took and how busy the machine is now."""
    report.seconds = seconds
    report.machine["load average after"] = _load()


def _load() -> list[float]:
    return [round(load, 2) for load in os.getloadavg()]


def _machine() -> dict[str, Any]:
    models = re.findall(r"^model name\s*:\s*(.*)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    return {
        "cpu": models[0] if models else platform.machine(),
        "cores": len(os.sched_getaffinity(0)),
        "RAM GiB": round(psutil.virtual_memory().total / 2**30, 1),
        "kernel": f"{platform.system()} {platform.release()}",
        "python": f"{platform.python_implementation()} {platform.python_version()}",
        "packages": {name: _version(name) for name in PACKAGES},
    }


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _commit() -> str | None:
    """Return the commit of this folder, with a + if the code differs from it; None outside of git."""
    # The first line leads from here to the folder of the repository: mpsnap may lie, unpacked, in somebody else's.
    if (found := _git("rev-parse", "--show-cdup", "HEAD")) is None:
        return None
    up, commit = found.split("\n")
    changed = _git("diff", "--quiet", "HEAD", "--", "mpsnap", "benchmarks/*.py") is None
    return None if up else commit + "+" * changed


def _git(*arguments: str) -> str | None:
    try:
        done = subprocess.run(["git", "-C", str(ROOT), *arguments], capture_output=True, text=True)
    except OSError:
        return None
    return None if done.returncode else done.stdout.removesuffix("\n")


# -------------------------------------------------------------------- README


def tables(report: Report, pictures: Mapping[str, str]) -> dict[str, str]:
    """Return the Markdown that belongs between the markers of each name: `machine`, and those of the modules.

    Args:
        report: What was measured.
        pictures: The address of a module's picture, for those that have one.
    """
    shown = {name: [markdown(rows)] for name, rows in report.modules.items()}
    for name, address in pictures.items():
        shown.setdefault(name, []).insert(0, f"![{name}]({address})")
    return {"machine": _heading(report), **{name: "\n\n".join(parts) for name, parts in shown.items()}}


def markdown(rows: list[Row]) -> str:
    """Return rows as a table in Markdown."""
    lines = [HEADERS, ["---"] * len(HEADERS), *(cells(row) for row in rows)]
    return "\n".join("| " + " | ".join(cell.replace("|", r"\|") for cell in line) + " |" for line in lines)


def _heading(report: Report) -> str:
    machine, options = report.machine, report.options
    packages = [f"{name} {version or 'not installed'}" for name, version in machine["packages"].items()]
    found = (
        f"Measured at {report.date} on {machine['cores']} cores of {machine['cpu']} with {machine['RAM GiB']:g} GiB: "
        f"{machine['kernel']}, {machine['python']}, {', '.join(packages)}, mpsnap {report.version}"
        f"{f' at commit {report.commit}' if report.commit else ''}. {options['rounds']} rounds of "
        f"{options['seconds']:g} s, {report.seconds / 60:.1f} minutes in all; load average over a minute "
        f"{machine['load average before'][0]:g} before and {machine['load average after'][0]:g} after."
    )
    return f"{found} **A quick run: its figures mean nothing.**" if options["quick"] else found


def filled(text: str, sections: Mapping[str, str]) -> str:
    """Return a text with each section between its markers: `<!-- figures: NAME -->` and `<!-- end -->`.

    Markers without a section get a line that says so.
    """
    missing = sections.keys() - set(re.findall(r"<!-- figures: (\w+) -->", text))
    if missing:
        raise ValueError(f"no markers for {', '.join(sorted(missing))}")

    def between(found: re.Match[str]) -> str:
        return f"{found[1]}\n\n{sections.get(found[2], NOTHING)}\n\n{found[3]}"

    return re.sub(r"(<!-- figures: (\w+) -->).*?(<!-- end -->)", between, text, flags=re.DOTALL)
