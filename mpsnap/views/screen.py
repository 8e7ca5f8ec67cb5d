"""A run that goes on, as a screen of so many lines and columns: what `top` draws.

Pure functions from what is known of a run and what its watcher has chosen to lines of marked text; whoever draws them
knows terminals. A line is never wider than the screen, there are never more of them than it has, and all is printable
ASCII, so that every character takes one column and none steers the terminal.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from mpsnap.views.running import (
    busyness,
    error_shown,
    is_open,
    memory_shown,
    number_shown,
    percent_shown,
    rate_shown,
    recorded_shown,
    span_shown,
    stack_of_interest,
    what_of,
)

Document = Mapping[str, Any]

#: Orders of the nodes, in the order in which a key chooses them; the first is that of the topology.
SORTS: Mapping[str, Callable[[Document], float] | None] = {
    "topology": None,
    "rate": lambda node: -(node.get("handled_per_s") or 0.0),
    "backlog": lambda node: -node["backlog"],
    "cpu": lambda node: -(node.get("cpu_percent") or 0.0),
    "memory": lambda node: -(node.get("memory_bytes") or 0),
}

HELP = (
    "q                quit; the run goes on",
    "s                take a snapshot that begins at the selected node",
    "S                take a snapshot that begins where it has to",
    "p                pause the selected node, or let it go on",
    "up, down, j, k   select a node, or scroll where there are none",
    "PgUp, PgDn       the same, page by page",
    "Home, End        the first, the last",
    "o                sort the nodes: " + ", ".join(SORTS),
    "n, c             show or hide the nodes, the channels",
    "w                why: what each node is doing, and who waits for whom",
    "h, ?             this help",
)
_KEYS = "q quit  s S snapshot  p pause  o sort  n c w show  h help"

#: Looks of pieces of text; a terminal may have none of them.
PLAIN, STRONG, FAINT, GOOD, WARNING, BAD, TITLE, SELECTED = range(8)
_LOOKS = {"running": GOOD, "blocked": WARNING, "paused": WARNING, "starting": FAINT, "frozen": BAD, "dead": BAD}
_RUN_LOOKS = {"running": GOOD, "ended": BAD}

#: Lines of nodes that are shown on any screen that has so many, before other sections get theirs.
_LEAST = 3
#: Columns of a node's line that are not its name.
_NODE_COLUMNS = 66


class Piece(NamedTuple):
    """Hold some text and how it looks."""

    text: str
    look: int = PLAIN


Line = list[Piece]


@dataclass
class Chosen:
    """Hold what the watcher has chosen, and how far things are scrolled."""

    sort: str = "topology"
    selected: str | None = None
    nodes: bool = True
    channels: bool = True
    why: bool = False
    help: bool = False
    #: The first node that is shown, of those in order; and the first line of what has no selection.
    first: int = 0
    line: int = 0
    #: What was last done, or went wrong, and how that looks.
    message: Piece = field(default_factory=lambda: Piece(""))


class Known(NamedTuple):
    """Hold what is known of a run; `age_s` is how old the status is, None if it is fresh."""

    name: str
    status: Document | None
    why: Document | None
    age_s: float | None


# ----------------------------------------------------------------------- the screen


def screen(known: Known, chosen: Chosen, rows: int, columns: int) -> list[Line]:
    """Return the lines of the screen, and scroll `chosen` so that what is selected is among them."""
    if rows < 1 or columns < 1:
        return []
    status = known.status
    if status is None:
        lines = [[Piece(f"mpsnap top: waiting for {known.name}", STRONG)]]
        return _fitted([*lines, *[[]] * (rows - 2), _footer(chosen)], rows, columns)
    head = _head(status, known.age_s, columns)
    room = max(0, rows - len(head) - 1)
    if chosen.help:
        body = _scrolled("keys", [[Piece(text)] for text in HELP], chosen, room)
    elif chosen.why:
        body = _scrolled("why", _why_lines(known.why), chosen, room)
    else:
        body = _sections(status, chosen, room, columns)
    body += [[]] * (room - len(body))
    return _fitted([*head, *body, _footer(chosen)], rows, columns)


def in_order(nodes: Sequence[Document], sort: str) -> list[Document]:
    """Return the nodes as they are sorted; those that are equal stay in the order of the topology."""
    key = SORTS[sort]
    return list(nodes) if key is None else sorted(nodes, key=key)


def _fitted(lines: Sequence[Line], rows: int, columns: int) -> list[Line]:
    # The last line, that of the keys, is the first to be done without.
    return [_cut(line, columns) for line in lines[:rows]]


def _cut(line: Line, columns: int) -> Line:
    cut: Line = []
    for text, look in line:
        fitting = plain(text, columns)
        if fitting:
            cut.append(Piece(fitting, look))
        columns -= len(fitting)
    return cut


def plain(text: str, width: int) -> str:
    r"""Return a text in at most so many characters of printable ASCII.

    >>> plain("a\x1b[2Jé", 20), plain("a long name", 8)
    ('a\\x1b[2J\\xe9', 'a lon...')
    """
    shown = text[: 4 * width + 4]
    if not (shown.isascii() and shown.isprintable()):
        escaped = (c if c.isascii() and c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in shown)
        shown = "".join(escaped)
    if len(shown) <= width:
        return shown
    return shown[: width - 3] + "..." if width > 3 else shown[:width]


def _head(status: Document, age: float | None, columns: int) -> list[Line]:
    run, totals = status["run"], status["totals"]
    state = str(run["state"])
    first: Line = [
        Piece("mpsnap top  ", FAINT),
        Piece(plain(str(run["name"]), 40), STRONG),
        Piece("  "),
        Piece(state, _RUN_LOOKS.get(state, WARNING)),
        Piece(f" for {span_shown(run['uptime_s'])}  {plain(str(run['app']), 24)} on {run['topology']}"),
    ]
    if age is not None:
        first.insert(3, Piece(f"NO NEWS for {span_shown(age)}, then ", BAD))
    count = len(status["nodes"])
    rate = totals.get("handled_per_s")
    facts = [f"{count} node{'s' if count != 1 else ''}", f"{totals['sent']} sent", f"{totals['in_flight']} in flight"]
    facts += [] if rate is None else [f"{rate_shown(rate)} messages/s"]
    facts += [f"{len(status['recoveries'])} recoveries"] if status.get("recoveries") else []
    facts += ["store"] if run.get("store") else []
    second = [Piece(", ".join(facts))]
    if run.get("error"):
        second = [Piece(error_shown(run["error"]), BAD)]
    return [first, second]


def _footer(chosen: Chosen) -> Line:
    return [chosen.message] if chosen.message.text else [Piece(_KEYS, FAINT)]


def _title(text: str, rest: str = "") -> Line:
    return [Piece(text.upper(), TITLE), Piece(f"  {rest}" if rest else "", FAINT)]


def _scrolled(title: str, lines: list[Line], chosen: Chosen, room: int) -> list[Line]:
    """Return a window of lines below a title that says which part of them it is."""
    page = max(0, room - 1)
    chosen.line = max(0, min(chosen.line, len(lines) - page))
    shown = lines[chosen.line : chosen.line + page]
    part = f"{chosen.line + 1}-{chosen.line + len(shown)} of {len(lines)}" if len(shown) < len(lines) else ""
    return [_title(title, part), *shown][:room]


def _sections(status: Document, chosen: Chosen, room: int, columns: int) -> list[Line]:
    """Share the room out: each section gets a little, then each as much as it wants, nodes first."""
    wanted = {
        "nodes": len(status["nodes"]) + 2 if chosen.nodes else 0,
        "channels": len(status["channels"]) + 2 if chosen.channels and status["channels"] else 0,
        "snapshots": len(status["snapshots"]) + 1 if status["snapshots"] else 0,
    }
    least = {"nodes": _LEAST + 2, "channels": _LEAST + 2, "snapshots": _LEAST + 1}
    given = dict.fromkeys(wanted, 0)
    for share in (least, wanted):
        for section, wish in wanted.items():
            more = min(wish, share[section]) - given[section]
            given[section] += max(0, min(more, room - sum(given.values())))
    parts = {"nodes": _node_lines, "channels": _channel_lines, "snapshots": _snapshot_lines}
    return [
        line
        for section, make in parts.items()
        if given[section]
        for line in make(status, chosen, given[section], columns)[: given[section]]
    ]


# ------------------------------------------------------------------------- sections


def _node_lines(status: Document, chosen: Chosen, room: int, columns: int) -> list[Line]:
    nodes = in_order(status["nodes"], chosen.sort)
    names = [node["name"] for node in nodes]
    if chosen.selected not in names:
        chosen.selected = names[0] if names else None
    page = max(0, room - 2)
    at = 0 if chosen.selected is None else names.index(chosen.selected)
    # Just so far that the selected one is among them, and no line stays empty.
    chosen.first = max(at - page + 1, min(chosen.first, at, len(nodes) - page), 0)
    shown = nodes[chosen.first : chosen.first + page]
    width = max(8, min(max(map(len, names), default=8), columns - _NODE_COLUMNS, 32))
    part = f"{chosen.first + 1}-{chosen.first + len(shown)} of {len(nodes)}, " if len(shown) < len(nodes) else ""
    title = _title("nodes", f"{part}by {chosen.sort}")
    header = (
        f"  {'name':{width}} {'status':8} {'in':10} {'messages/s':>10} {'backlog':>8} {'cpu':>5} {'memory':>9} last"
    )
    return [title, [Piece(header, FAINT)], *(_node_line(node, chosen, width) for node in shown)]


def _node_line(node: Document, chosen: Chosen, width: int) -> Line:
    selected = node["name"] == chosen.selected
    status = str(node["status"])
    name = f"{'>' if selected else ' '} {plain(str(node['name']), width):{width}} "
    facts = (
        f" {plain(str(node['phase'] or ''), 10):10} {rate_shown(node.get('handled_per_s')):>10} {node['backlog']:>8} "
        f"{percent_shown(node.get('cpu_percent')):>5} {memory_shown(node.get('memory_bytes')):>9} "
        f"{number_shown(node.get('last_snapshot')):>4}"
    )
    look = SELECTED if selected else PLAIN
    line = [Piece(name, look), Piece(f"{plain(status, 8):8}", look if selected else _LOOKS.get(status, PLAIN))]
    line.append(Piece(facts, look))
    return [*line, Piece(f"  {node['summary']}", FAINT)] if node.get("summary") else line


def _channel_lines(status: Document, chosen: Chosen, room: int, columns: int) -> list[Line]:
    channels = sorted(status["channels"], key=busyness)
    page = max(0, room - 2)
    if not chosen.nodes:
        # Nothing else is there to be scrolled.
        chosen.line = max(0, min(chosen.line, len(channels) - page))
    first = 0 if chosen.nodes else chosen.line
    shown = channels[first : first + page]
    names = [f"{plain(str(c['src']), 24)}->{plain(str(c['dst']), 24)}" for c in shown]
    width = max(12, min(max(map(len, names), default=12), max(12, columns - 52)))
    part = f"{first + 1}-{first + len(shown)} of {len(channels)}, " if len(shown) < len(channels) else ""
    header = f"  {'channel':{width}} {'in flight':>10} {'messages/s':>10} {'sent':>12} {'handled':>12}"
    lines: list[Line] = [_title("channels", f"{part}by backlog"), [Piece(header, FAINT)]]
    for name, channel in zip(names, shown, strict=True):
        text = (
            f"  {plain(name, width):{width}} {channel['in_flight']:>10} "
            f"{rate_shown(channel.get('handled_per_s')):>10} {channel['sent']:>12} {channel['handled']:>12}"
        )
        lines.append([Piece(text, WARNING if channel["full"] else PLAIN)])
    return lines


def _snapshot_lines(status: Document, _: Chosen, room: int, columns: int) -> list[Line]:
    digests = status["snapshots"]
    # Open ones first, else the newest: what waits is what one looks for.
    newest = [*(d for d in reversed(digests) if is_open(d)), *(d for d in reversed(digests) if not is_open(d))]
    page = max(0, room - 1)
    part = f"the last {page} of {len(digests)}" if page < len(digests) else ""
    lines: list[Line] = [_title("snapshots", part)]
    for digest in newest[:page]:
        phase = str(digest["phase"])
        failed = phase == "abandoned" or digest["verified"] is False
        took = "" if digest["duration_s"] is None else f"{1000 * digest['duration_s']:.1f} ms"
        which = number_shown(digest["number"]) or str(digest["id"])
        by = plain(",".join(map(str, digest["initiators"])), 16)
        lines.append(
            [
                Piece(f"  {plain(which, 12):<6} {by:8} "),
                Piece(f"{plain(phase, 10):10}", BAD if failed else WARNING if is_open(digest) else GOOD),
                Piece(f" {recorded_shown(digest):>7} {took:>10}  {what_of(digest, max(20, columns - 50))}"),
            ]
        )
    return lines


def _why_lines(why: Document | None) -> list[Line]:
    if why is None:
        return [[Piece("asking...", FAINT)]]
    lines: list[Line] = [[Piece(str(why["verdict"]), STRONG)], []]
    width = max((len(plain(str(node["node"]), 24)) for node in why["nodes"]), default=0)
    looks = {"handler": GOOD, "frozen": BAD, "dead": BAD, "blocked": WARNING, "paused": WARNING}
    for node in why["nodes"]:
        look = looks.get(str(node["doing"]), PLAIN)
        lines.append([Piece(f"{plain(str(node['node']), 24):{width}}  "), Piece(str(node["text"]), look)])
        lines += [[Piece("      " + frame, FAINT)] for frame in stack_of_interest(node)]
    if why["cycle"]:
        cycle = [*why["cycle"], why["cycle"][0]]
        lines += [[], [Piece("cycle: " + " -> ".join(map(str, cycle)), BAD)]]
    return lines
