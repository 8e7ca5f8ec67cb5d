r"""A log at one cut as a graph for Graphviz: nodes with their recorded states, channels with their messages in flight.

This module owns that form. Without a cut it is the graph at the end of the log: what each node has sent and received,
and the messages that nobody has received. Whatever comes from a program is within a quoted text, with every `\`, `"`
and `&` escaped, for Graphviz has sequences of its own behind the first and last.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from mpsnap.views.spacetime import Arrow, Cut, Diagram, about, name_of
from mpsnap.views.tables import count
from mpsnap.views.wording import brief, brief_line

#: Characters of a state and of a payload, and messages of a channel, that are shown.
_STATE, _PAYLOAD, _MESSAGES = 36, 24, 4

_STYLE = """\
  graph [fontname="Helvetica", fontsize=13, labelloc=t, bgcolor=white, pad=0.3, nodesep=0.5, ranksep=0.9]
  node [fontname="Helvetica", fontsize=11, shape=box, style="rounded,filled", fillcolor="#f6f7f9", color="#556074"]
  edge [fontname="Helvetica", fontsize=10, color="#9aa5b5", arrowsize=0.7]"""


def dot_text(drawing: Diagram, cut: Cut | None = None) -> str:
    """Return the graph at a cut, or at the end of the log."""
    lines = ["digraph snapshot {", f"  label={_quoted(_title(drawing, cut))}", _STYLE]
    lines += [f"  n{lane} [{attributes}]" for lane, attributes in enumerate(_nodes(drawing, cut))]
    lines += _edges(drawing, cut)
    return "\n".join((*lines, "}", ""))


def _title(drawing: Diagram, cut: Cut | None) -> str:
    what = f"{drawing.head.app} on {drawing.head.topology}"
    if cut is not None:
        return f"{what}: {name_of(cut)}, {about(cut)}, {count(cut.total, 'message')} in flight"
    pending = sum(1 for arrow in drawing.messages if arrow.received is None)
    return f"{what}: the end of the log, {count(pending, 'message')} not received"


def _nodes(drawing: Diagram, cut: Cut | None) -> Iterator[str]:
    sent, received = [0] * len(drawing.nodes), [0] * len(drawing.nodes)
    for arrow in drawing.messages:
        sent[arrow.src] += arrow.sent is not None
        received[arrow.dst] += arrow.received is not None
    for lane, name in enumerate(drawing.nodes):
        more = ""
        if cut is None:
            told = f"{sent[lane]} sent, {received[lane]} received"
        elif lane in cut.recorded:
            detail = drawing.points[cut.recorded[lane]].entry.detail
            told = brief(detail["state"], _STATE) if "state" in detail else "recorded"
            if name in cut.initiators:
                more = ', color="#a8116f", penwidth=2'
        else:
            told, more = "not recorded", ", style=dashed"
        yield f"label={_quoted(brief_line(name, 64), told)}{more}"


def _edges(drawing: Diagram, cut: Cut | None) -> Iterator[str]:
    flying: dict[tuple[int, int], list[Arrow]] = {}
    if cut is not None:
        arrows: Sequence[Arrow] = [drawing.messages[rank] for rank in cut.in_flight]
    else:
        arrows = [arrow for arrow in drawing.messages if arrow.received is None]
    for arrow in arrows:
        flying.setdefault((arrow.src, arrow.dst), []).append(arrow)
    lanes: Mapping[str, int] = {name: lane for lane, name in enumerate(drawing.nodes)}
    channels = dict.fromkeys((lanes[src], lanes[dst]) for src, dst in drawing.head.channels)
    for src, dst in channels | dict.fromkeys(flying):
        messages = flying.get((src, dst), [])
        attributes = ""
        if messages:
            told = [brief(_payload(drawing, arrow), _PAYLOAD) for arrow in messages[:_MESSAGES]]
            if len(messages) > _MESSAGES:
                told.append(f"and {len(messages) - _MESSAGES} more")
            label = _quoted(f"{len(messages)} in flight", *told)
            attributes = f' [label={label}, color="#d35400", fontcolor="#a04000", penwidth=2]'
        yield f"  n{src} -> n{dst}{attributes}"


def _payload(drawing: Diagram, arrow: Arrow) -> object:
    return None if arrow.sent is None else drawing.points[arrow.sent].entry.detail.get("payload")


def _quoted(*lines: str) -> str:
    escaped = (brief_line(line, 200).replace("\\", "\\\\").replace('"', '\\"').replace("&", "&amp;") for line in lines)
    return '"' + "\\n".join(escaped).encode("ascii", "xmlcharrefreplace").decode() + '"'
