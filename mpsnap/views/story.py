"""A schedule told step by step, for people.

Pure functions to lines of text. Values are shortened and escaped as in tables.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from mpsnap.core.codec import Codec, thaw
from mpsnap.views.tables import count, shown

#: What happened in one step: the node ("" for the supervisor), what the step was called, and its events with their
#: fields (see `mpsnap.core.history`), values fixed.
Told = tuple[str, str, Iterable[tuple[str, Mapping[str, Any]]]]


def story(steps: Iterable[Told], codecs: Mapping[str, Codec], begun: int = 0) -> list[str]:
    """Return a numbered line a step.

    Args:
        steps: What happened, in order.
        codecs: How to read each node's values.
        begun: How many of the first are no steps but what came before them. Nor is what follows a death until all
            nodes are restored: these lines have no number either.
    """
    lines: list[tuple[str, str, bool]] = []
    payloads: dict[tuple[str, str, int], str] = {}
    for node, what, events in steps:
        table = _by_name(events)
        for fields in table.get("sent", ()):
            payloads[node, fields["to"], fields["number"]] = _value(fields["payload"], codecs[node])
        is_step = len(lines) >= begun and not ("recovered" in table or "restored" in table)
        text = _tell(node, what, table, codecs[node], payloads) if node else _tell_recovery(table)
        lines.append((node, text, is_step))
    wide = max((len(node) for node, _, _ in lines), default=0)
    digits = len(str(sum(is_step for _, _, is_step in lines)))
    told, number = [], 0
    for node, text, is_step in lines:
        number += is_step
        told.append(f"{number if is_step else '':>{digits}}  {node:<{wide}}  {text}")
    return told


def _tell_recovery(events: Mapping[str, list[Mapping[str, Any]]]) -> str:
    parts = [f"snapshot {fields['snapshot']} is abandoned" for fields in events.get("abandoned", ())]
    parts += [
        f"incarnation {fields['incarnation']} recovers from {_cut(fields['snapshot'])}"
        for fields in events.get("recovered", ())
    ]
    return "; ".join(parts)


def _cut(snapshot: str) -> str:
    # No snapshot that anybody began has the number 0.
    return "the initial cut" if snapshot.endswith("-0") else f"snapshot {snapshot}"


def _by_name(events: Iterable[tuple[str, Mapping[str, Any]]]) -> dict[str, list[Mapping[str, Any]]]:
    """Return the fields of events by their names."""
    table: dict[str, list[Mapping[str, Any]]] = {}
    for event, fields in events:
        table.setdefault(event, []).append(fields)
    return table


def _tell(
    node: str,
    what: str,
    events: Mapping[str, list[Mapping[str, Any]]],
    codec: Codec,
    payloads: Mapping[tuple[str, str, int], str],
) -> str:
    parts = [_beginning(node, what, events, payloads)]
    parts += [
        f"sends message {fields['number']} to {fields['to']}: {payloads[node, fields['to'], fields['number']]}"
        for fields in events.get("sent", ())
    ]
    parts += [_restored(fields, codec) for fields in events.get("restored", ())]
    parts += [f"records {_value(fields['state'], codec)}" for fields in events.get("recorded", ())]
    if events.get("marker sent"):
        parts.append("sends markers to " + ", ".join(fields["to"] for fields in events["marker sent"]))
    if not events.get("recorded"):
        parts += [f"closes {fields['from']}->{node}" for fields in events.get("closed", ())]
    for fields in events.get("reported", ()):
        held = sum(number for _, number in fields["channels"].values())
        parts.append(f"its part is complete, with {count(held, 'message')} in flight to it")
    parts += [f"puts out {_value(fields['record'], codec)}" for fields in events.get("output", ())]
    parts += [f"says {shown(fields['text'])}" for fields in events.get("log", ())]
    return "; ".join(filter(None, parts))


def _restored(fields: Mapping[str, Any], codec: Codec) -> str:
    held = sum(number for _, number in fields["channels"].values())
    return f"restores {_value(fields['state'], codec)}" + (f", with {count(held, 'message')} to take" if held else "")


def _beginning(
    node: str,
    what: str,
    events: Mapping[str, list[Mapping[str, Any]]],
    payloads: Mapping[tuple[str, str, int], str],
) -> str:
    for fields in events.get("received", ()):
        number, src = fields["number"], fields["from"]
        return f"receives message {number} from {src}: {payloads[src, node, number]}"
    for fields in events.get("marker received", ()):
        return f"sees the marker of {fields['snapshot']} from {fields['from']}{what}"
    for fields in events.get("recorded", ()):
        if fields["from"] is None:
            return f"begins snapshot {fields['snapshot']}"
    for fields in events.get("timer", ()):
        return f"its timer {fields['method']} rings"
    return what


def _value(value: object, codec: Codec) -> str:
    return shown(thaw(value, codec.reader()))
