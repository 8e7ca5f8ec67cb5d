"""A run that goes on, as tables for people: its nodes, channels and snapshots, and why it does what it does.

Pure functions from the documents of the control plane to text, in the manner of `tables`. Every text in a document may
be anything, so it is made harmless for a terminal, and shortened.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from mpsnap.core.errors import one_line
from mpsnap.core.words import listed
from mpsnap.views.reading import bytes_shown
from mpsnap.views.tables import ROWS_SHOWN, count, duration_shown, loose_table, shortened, table

#: Columns that names may take.
NAME_WIDTH = 24
#: Columns that what a node says of its state may take.
SUMMARY_WIDTH = 30
#: Channels and snapshots that a status shows before the rest is counted.
CHANNELS_SHOWN, SNAPSHOTS_SHOWN = 12, 8

#: Frames of ours that are shown of a node that is at something long, and columns of those that one waits for.
STACK_SHOWN, WAITS_WIDTH = 8, 44
#: Columns of what there is to say of a snapshot.
WHAT_WIDTH = 100

Document = Mapping[str, Any]


# ----------------------------------------------------------------------- small parts


def span_shown(seconds: float) -> str:
    """Return how long something lasts, as exactly as one wants to know.

    >>> span_shown(0.0123), span_shown(12.34), span_shown(200), span_shown(7384)
    ('12 ms', '12.3 s', '3:20', '2:03:04')
    """
    if seconds < 0.9995:
        return f"{max(seconds, 0.0) * 1000:.0f} ms"
    if seconds < 119.95:
        return f"{seconds:.1f} s"
    hours, rest = divmod(round(seconds), 3600)
    minutes, left = divmod(rest, 60)
    return f"{hours}:{minutes:02}:{left:02}" if hours else f"{minutes}:{left:02}"


def rate_shown(rate: float | None) -> str:
    """Return a rate of messages; nothing if it is not known.

    >>> rate_shown(None), rate_shown(3.21), rate_shown(1234.5)
    ('', '3.2', '1234')
    """
    return "" if rate is None else f"{rate:.1f}" if rate < 99.95 else f"{rate:.0f}"


def percent_shown(percent: float | None) -> str:
    """Return a share of a processor; nothing if it is not known."""
    return "" if percent is None else f"{percent:.0f}%"


def memory_shown(size: int | None) -> str:
    """Return a number of bytes; nothing if it is not known."""
    return "" if size is None else bytes_shown(size)


def number_shown(number: int | None) -> str:
    """Return the number of a snapshot; nothing if there is none."""
    return "" if number is None else f"#{number}"


def error_shown(error: Document | None, width: int | None = None) -> str:
    """Return an error that a document tells, nothing if there is none."""
    if error is None:
        return ""
    what, where = str(error.get("what")), error.get("where")
    text = f"{where}: {what}" if where and not what.startswith(str(where)) else what
    return one_line(text) if width is None else shortened(text, width)


# ------------------------------------------------------------------------------ runs


def run_line(status: Document) -> str:
    """Return one line that says which run this is and how it is."""
    run, totals = status["run"], status["totals"]
    parts = [
        f"{shortened(str(run['name']), NAME_WIDTH)}: {run['state']} for {span_shown(run['uptime_s'])}",
        f"{shortened(str(run['app']), NAME_WIDTH)} on {shortened(str(run['topology']), NAME_WIDTH)}",
        f"pid {run['pid']}",
        f"{totals['sent']} messages sent and {totals['in_flight']} in flight",
    ]
    if totals.get("handled_per_s") is not None:
        parts.append(f"{rate_shown(totals['handled_per_s'])}/s")
    if run.get("incarnation"):
        parts.append(f"incarnation {run['incarnation']}")
    return one_line(", ".join(parts))


def runs_table(found: Sequence[tuple[str, int, Document | None]]) -> str:
    """Return the runs of this host: name, pid and status document, None of one that does not answer."""
    rows = [_run_row(*each) for each in found]
    headers = ("run", "pid", "app", "topology", "state", "up", "nodes", "messages/s", "url")
    return loose_table(rows, headers, "lrlllrrrl") + "\n"


def _run_row(name: str, pid: int, status: Document | None) -> tuple[object, ...]:
    if status is None:
        return shortened(name, 40), pid, "", "", "NO ANSWER", "", "", "", ""
    run = status["run"]
    return (
        shortened(name, 40),
        pid,
        shortened(str(run["app"]), NAME_WIDTH),
        shortened(str(run["topology"]), NAME_WIDTH),
        one_line(str(run["state"])),
        span_shown(run["uptime_s"]),
        len(status["nodes"]),
        rate_shown(status["totals"].get("handled_per_s")),
        one_line(str(run.get("url") or "")),
    )


# ---------------------------------------------------------------------------- status


def status_text(status: Document, full: bool = False, channels: int = CHANNELS_SHOWN) -> str:
    """Return a run: a heading, its nodes, the busiest of its channels, its last snapshots, and what it has survived."""
    parts = [run_line(status)]
    if status["run"].get("error"):
        parts.append(f"error: {error_shown(status['run']['error'])}")
    parts.append("")
    parts.append(nodes_table(status["nodes"]))
    busiest = sorted(status["channels"], key=busyness)
    if busiest:
        parts += ["", channels_table(busiest, None if full else channels)]
    if status["snapshots"]:
        parts += ["", snapshots_table(status["snapshots"], None if full else SNAPSHOTS_SHOWN)]
    survived = [*map(_death_line, status.get("deaths") or ()), *map(_recovery_line, status.get("recoveries") or ())]
    if survived:
        parts += ["", *(survived if full else survived[-SNAPSHOTS_SHOWN:])]
    return "\n".join(parts) + "\n"


def _death_line(death: Document) -> str:
    return f"death: {error_shown(death)}"


def _recovery_line(recovery: Document) -> str:
    return f"recovery: all nodes went on from snapshot {recovery['number']}, after {span_shown(recovery['seconds'])}"


def nodes_table(nodes: Sequence[Document]) -> str:
    """Return a table of nodes."""
    rows: list[tuple[object, ...]] = [
        (
            shortened(str(node["name"]), NAME_WIDTH),
            node["pid"],
            one_line(str(node["status"])),
            one_line(str(node["phase"] or "")),
            node["handled"],
            rate_shown(node.get("handled_per_s")),
            node["backlog"],
            percent_shown(node.get("cpu_percent")),
            memory_shown(node.get("memory_bytes")),
            number_shown(node.get("last_snapshot")),
        )
        for node in nodes
    ]
    headers = ["node", "pid", "status", "in", "handled", "/s", "backlog", "cpu", "memory", "last"]
    sides = "lrllrrrrrr"
    if any(node.get("summary") for node in nodes):
        headers.append("state")
        sides += "l"
        rows = [
            (*row, shortened(node.get("summary") or "", SUMMARY_WIDTH)) for row, node in zip(rows, nodes, strict=True)
        ]
    return table(rows, headers, sides)


def busyness(channel: Document) -> tuple[float, float, int]:
    """Return what sorts channels so that the busiest come first: by backlog, rate, and all they have carried."""
    return -channel["in_flight"], -(channel.get("handled_per_s") or 0.0), -channel["sent"]


def channels_table(channels: Sequence[Document], most: int | None) -> str:
    """Return a table of channels in this order, of which all after the first `most` are only counted."""
    rows = [
        (
            channel_shown(channel["src"], channel["dst"]),
            channel["sent"],
            channel["handled"],
            channel["in_flight"],
            rate_shown(channel.get("handled_per_s")),
            "full" if channel["full"] else "",
        )
        for channel in channels[:most]
    ]
    text = table(rows, ("channel", "sent", "handled", "in flight", "/s", ""), "lrrrrl")
    rest = channels[len(rows) :]
    if rest:
        held = sum(channel["in_flight"] for channel in rest)
        text += f"\nand {count(len(rest), 'more channel')} with {count(held, 'message')} in flight; --full shows all"
    return text


def channel_shown(src: object, dst: object) -> str:
    """Return a channel on one line."""
    return f"{shortened(str(src), NAME_WIDTH)} -> {shortened(str(dst), NAME_WIDTH)}"


# ------------------------------------------------------------------------- snapshots


def snapshots_table(digests: Sequence[Document], most: int | None) -> str:
    """Return a table of the last snapshots, and of those before them that are open still."""
    older = [] if most is None else [digest for digest in digests[:-most] if is_open(digest)]
    chosen = [*older, *(digests if most is None else digests[-most:])]
    rows = [
        (
            number_shown(digest["number"]),
            shortened(str(digest["id"]), 2 * NAME_WIDTH),
            one_line(str(digest["phase"])),
            _milliseconds(digest["duration_s"]),
            recorded_shown(digest),
            _who_and_what(digest, None if most is None else WHAT_WIDTH),
        )
        for digest in chosen
    ]
    text = loose_table(rows, ("#", "id", "phase", "ms", "recorded", "what"), "rllrrl")
    left = len(digests) - len(chosen)
    return f"{text}\nand {count(left, 'snapshot')} before; --full shows all" if left else text


def _who_and_what(digest: Document, width: int | None) -> str:
    """Return what there is to say of a snapshot; of one that is open, also who has recorded."""
    recorded = [str(name) for name, node in digest["nodes"].items() if node["recorded_s"] is not None]
    if not is_open(digest) or digest.get("error") or not recorded:
        return what_of(digest, width)
    by = f"recorded by {', '.join(recorded) if width is None else listed(recorded)}"
    text = "; ".join(filter(None, [waiting_shown(digest, width), by]))
    return one_line(text) if width is None else shortened(text, width)


def is_open(digest: Document) -> bool:
    """Return whether a snapshot is still being taken."""
    return digest["phase"] not in ("completed", "abandoned")


def recorded_shown(digest: Document) -> str:
    """Return how many of the nodes have recorded their states."""
    nodes = digest["nodes"]
    return f"{sum(node['recorded_s'] is not None for node in nodes.values())}/{len(nodes)}" if nodes else ""


def what_of(digest: Document, width: int | None = 60) -> str:
    """Return what there is to say of a snapshot: what it waits for, why it was abandoned, or what is in it."""
    if digest.get("error"):
        return error_shown(digest["error"], width)
    if is_open(digest):
        return waiting_shown(digest, width)
    parts = ["" if digest["verified"] is None else "consistent" if digest["verified"] else "NOT CONSISTENT"]
    if digest["in_flight"] is not None:
        parts.append(f"{digest['in_flight']} in flight")
    if digest["bytes"] is not None:
        parts.append(bytes_shown(digest["bytes"]))
    parts.append("recovery point" if digest["recovery_point"] else "")
    return ", ".join(filter(None, parts))


def waiting_shown(digest: Document, width: int | None = 60) -> str:
    """Return which nodes and channels a snapshot still waits for."""
    nodes = [str(node) for node in digest["waiting"]["nodes"]]
    channels = [f"{src}->{dst}" for src, dst in digest["waiting"]["channels"]]
    parts = [listed(nodes) if width is not None else ", ".join(nodes)] if nodes else []
    if channels:
        parts.append(listed(channels) if width is not None else ", ".join(channels))
    text = "waits for " + "; ".join(parts) if parts else ""
    return one_line(text) if width is None else shortened(text, width)


def _milliseconds(seconds: float | None) -> str:
    return "" if seconds is None else f"{1000 * seconds:.1f}"


def digest_line(digest: Document) -> str:
    """Return one line that says which snapshot this is and how far it is."""
    number = digest["number"]
    which = digest["id"] if number is None else f"{number} ({digest['id']})"
    done = digest["duration_s"] is not None and not is_open(digest)
    took = f" in {duration_shown(digest['duration_s'], False)}" if done else ""
    said = ", ".join(filter(None, [str(digest["phase"]), what_of(digest)]))
    by = ", ".join(map(str, digest["initiators"]))
    return shortened(f"Snapshot {which} from {by}{took}: {said}", 300)


# ------------------------------------------------------------------------------- why


def why_text(why: Document, full: bool = False) -> str:
    """Return why a run does what it does: the verdict, a line a node with its stack below, and who waits for whom."""
    width = max((len(str(node["node"])) for node in why["nodes"]), default=0)
    lines = [one_line(str(why["verdict"])), ""]
    for node in why["nodes"]:
        lines.append(
            f"{shortened(str(node['node']), NAME_WIDTH):{min(width, NAME_WIDTH)}}  {one_line(str(node['text']))}"
        )
        lines += [
            "      " + one_line(str(line)) for line in ((node["stack"] or ()) if full else stack_of_interest(node))
        ]
    if why["waits"]:
        lines += ["", waits_table(why["waits"], None if full else ROWS_SHOWN)]
    if why["cycle"]:
        cycle = [shortened(str(node), NAME_WIDTH) for node in why["cycle"]]
        lines += ["", "cycle: " + " -> ".join([*cycle, cycle[0]])]
    return "\n".join(lines) + "\n"


def stack_of_interest(node: Document) -> list[str]:
    """Return the stack of a node in a hook down to where the user's code was called: what called that says nothing.

    Nor does what a node is at that only waits; or of ours, unless it takes long.
    """
    lines = [str(line) for line in node["stack"] or ()]
    users = [index for index, line in enumerate(lines) if line.startswith(">")]
    if users:
        return lines[: users[-1] + 1] if node["doing"] not in ("waiting", "blocked", "paused") else []
    return lines[:STACK_SHOWN] if node["doing"] == "handler" and (node["for_s"] or 0.0) >= 1.0 else []


def waits_table(waits: Sequence[Document], most: int | None) -> str:
    """Return who waits for whom, those that are blocked first; all after the first `most` nodes are only counted."""
    grouped: dict[tuple[str, str], list[str]] = {}
    for wait in sorted(waits, key=lambda wait: str(wait["kind"]) != "full"):
        grouped.setdefault((str(wait["node"]), str(wait["kind"])), []).append(str(wait["for"]))
    rows = []
    for (node, kind), others in list(grouped.items())[:most]:
        # A node that is blocked needs all of them, one that has nothing to take any.
        full = kind == "full"
        which, to = ("all of ", "take from a full channel") if full else ("any of ", "send something")
        names = one_line(", ".join(others)) if most is None else shortened(listed(others), WAITS_WIDTH)
        rows.append((shortened(node, NAME_WIDTH), (which if others[1:] else "") + names, to))
    text = loose_table(rows, ("node", "waits for", "to"), "lll")
    left = len(grouped) - len(rows)
    return f"{text}\nand {count(left, 'more node')}; --full shows all" if left else text
