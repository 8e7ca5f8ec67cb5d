"""Pictures of what the benchmarks found, by matplotlib, which need not be there.

This module owns how rows are drawn. It must not know how they are measured, only what their names and notes are.

The colours are of Okabe and Ito, which people tell apart whatever colours they see; the background is white, so that a
picture can be read on a page of any colour.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.measure import Row, short

BLUE, SKY, ORANGE, GREEN, GRAY = "#0072B2", "#56B4E9", "#E69F00", "#009E73", "#666666"
#: The file of a module's picture.
FILES = {name: f"{name}.svg" for name in ("channels", "snapshots", "capture")}
#: Text becomes outlines, whose width no viewer's fonts can change; and the same figures give the same file.
STYLE = {"svg.fonttype": "path", "svg.hashsalt": "mpsnap", "font.size": 10}


def missing() -> str | None:
    """Return what to install before anything can be drawn, None if nothing."""
    try:
        import matplotlib  # noqa: F401 - whether it can be imported is what counts
    except ImportError:
        return "`pip install -e '.[plot]'` for matplotlib"
    return None


def draw(modules: Mapping[str, Sequence[Row]], folder: Path) -> dict[str, Path]:
    """Draw the modules that have a picture and rows for it; return their files."""
    import matplotlib

    makers: dict[str, Callable[[Sequence[Row]], Any]] = {
        "channels": channels,
        "snapshots": snapshots,
        "capture": capture,
    }
    drawn = {}
    with matplotlib.rc_context(STYLE):
        for name, make in makers.items():
            rows = [row for row in modules.get(name, ()) if row.measured and row.failed is None]
            if (figure := make(rows)) is not None:
                drawn[name] = folder / FILES[name]
                figure.savefig(drawn[name], metadata={"Date": None})
    return drawn


def _figure(height: float) -> Any:
    from matplotlib.figure import Figure

    return Figure(figsize=(9, height), layout="constrained", facecolor="white")


# ------------------------------------------------------------------ channels


def channels(rows: Sequence[Row]) -> Any:
    """Return a figure of throughput ratios: the median as a bar, the range of the rounds, the floor and the goal."""
    shown = [row for row in rows if row.unit == "x" and row.sense == "at least"][::-1]
    if not shown:
        return None
    figure = _figure(1.6 + 0.32 * len(shown))
    axes = figure.subplots()
    places = range(len(shown))
    # A bar on a logarithmic scale has no zero to stand on: it goes from "as fast as" to the ratio.
    axes.barh(places, [row.value - 1 for row in shown], left=1, height=0.62, color=SKY, label="median of the rounds")
    ends = [[row.value - row.least for row in shown], [row.most - row.value for row in shown]]
    values = [row.value for row in shown]
    axes.errorbar(values, places, xerr=ends, fmt="none", ecolor="black", elinewidth=1, capsize=3, label="their range")
    _marks(axes, shown, "floor", "|", ORANGE)
    _marks(axes, shown, "goal", "d", GREEN)
    axes.axvline(1, color=GRAY, linewidth=1)
    axes.set(xscale="log", title="Messages per second: mpsnap over the other", xlabel="ratio, 1 = as fast as the other")
    axes.set_yticks(places, [row.name.replace("one way, ", "") for row in shown])
    _plain_ticks(axes.xaxis, (0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 50, 100, 200))
    axes.grid(axis="x", color="#dddddd", linewidth=0.6)
    axes.set_axisbelow(True)
    handles, labels = axes.get_legend_handles_labels()
    order = sorted(
        range(len(labels)), key=lambda k: (labels[k] in ("floor", "goal"), labels[k] != "median of the rounds")
    )
    entries = [handles[k] for k in order], [labels[k] for k in order]
    figure.legend(*entries, loc="outside lower center", ncols=4, frameon=False)
    return figure


def _marks(axes: Any, rows: Sequence[Row], bound: str, marker: str, colour: str) -> None:
    found = [(getattr(row, bound), place) for place, row in enumerate(rows) if getattr(row, bound) is not None]
    if found:
        xs, ys = zip(*found, strict=True)
        size = {"markersize": 16, "markeredgewidth": 2.5} if marker == "|" else {"markersize": 8}
        # On the bar as well as beside it: a white edge sets it off.
        edge = colour if marker == "|" else "white"
        axes.plot(xs, ys, marker, color=colour, markeredgecolor=edge, linestyle="", label=bound, zorder=3, **size)


def _plain_ticks(axis: Any, candidates: Iterable[float]) -> None:
    low, high = axis.get_view_interval()
    ticks = [each for each in candidates if low <= each <= high]
    axis.set_ticks(ticks, [f"{each:g}" for each in ticks])
    axis.set_ticks([], minor=True)


# ----------------------------------------------------------------- snapshots


def snapshots(rows: Sequence[Row]) -> Any:
    """Return a figure of how the latency of an idle snapshot grows, one panel for channels and one for hops."""
    panels = {unit: points for unit in ("channel", "hop") if (points := _points(rows, f"{unit}s"))}
    if not panels:
        return None
    figure = _figure(3.8)
    for axes, (unit, points) in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels.items(), strict=True):
        xs, medians, least, most = zip(*points, strict=True)
        axes.fill_between(xs, least, most, alpha=0.25, color=BLUE, linewidth=0, label="range of the rounds")
        axes.plot(xs, medians, "o-", color=BLUE, label="median")
        at = min(1, len(xs) - 1)
        line = [medians[at] * x / xs[at] for x in xs]
        axes.plot(xs, line, "--", color=ORANGE, label=f"as much per {unit} as at {xs[at]}")
        axes.set(xscale="log", yscale="log", xlabel=f"{unit}s", ylabel="ms", title=f"Idle snapshot against {unit}s")
        axes.set_xticks(xs, [f"{x:,}" for x in xs])
        axes.set_xticks([], minor=True)
        _plain_ticks(axes.yaxis, [digit * 10.0**power for power in range(-3, 5) for digit in (1, 2, 5)])
        axes.legend(loc="lower right")
    return figure


def _points(rows: Iterable[Row], unit: str) -> list[tuple[int, float, float, float]]:
    return sorted((row.notes[unit], row.value, row.least, row.most) for row in rows if unit in row.notes)


# ------------------------------------------------------------------- capture


def capture(rows: Sequence[Row]) -> Any:
    """Return a figure of pauses beside the time that encoding takes, one pair of bars a state."""
    shown = [row for row in rows if {"pause ms", "encoding ms"} <= row.notes.keys()][::-1]
    if not shown:
        return None
    figure = _figure(1.6 + 0.6 * len(shown))
    axes = figure.subplots()
    series = (("pause ms", 0.2, BLUE, "pause of the node"), ("encoding ms", -0.2, ORANGE, "time to encode the state"))
    for note, offset, colour, label in series:
        places = [place + offset for place in range(len(shown))]
        bars = axes.barh(places, [row.notes[note] for row in shown], height=0.38, color=colour, label=label)
        axes.bar_label(bars, [f"{short(row.notes[note], 3)} ms" for row in shown], padding=4)
    axes.set(xscale="log", xlabel="ms", title="How long a snapshot stops its node")
    times = [row.notes[note] for row in shown for note, *_ in series]
    # On the right there has to be room for what stands beside the longest bar.
    axes.set_xlim(min(times) / 3, max(times) * (max(times) / min(times) * 3) ** 0.2)
    axes.set_yticks(range(len(shown)), [row.name.removeprefix("pause, ") for row in shown])
    _plain_ticks(axes.xaxis, [10.0**power for power in range(-3, 7)])
    axes.grid(axis="x", color="#dddddd", linewidth=0.6)
    axes.set_axisbelow(True)
    figure.legend(loc="outside lower center", ncols=2, frameon=False)
    return figure
