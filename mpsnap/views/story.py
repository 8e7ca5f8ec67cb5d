"""A schedule told step by step, for people.

Pure functions to lines of text. Values are shortened and escaped as in tables.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from mpsnap.core.codec import Codec, Encoded, thaw
from mpsnap.views.tables import count, shown

#: What happened in one step: the node, what the step was called, and its events with their fields (see
#: `mpsnap.core.history`), values fixed.
Told = tuple[str, str, Iterable[tuple[str, Mapping[str, Any]]]]


def story(steps: Iterable[Told], codecs: Mapping[str, Codec]) -> list[str]:
    """Return a numbered line a step.

    Args:
        steps: What happened, in order.
        codecs: How to read each node's values.
    """
    told = [(node, _tell(node, what, dict_of(events), codecs[node])) for node, what, events in steps]
    wide = max((len(node) for node, _ in told), default=0)
    digits = len(str(len(told)))
    return [f"{k:>{digits}}  {node:<{wide}}  {text}" for k, (node, text) in enumerate(told, 1)]


def dict_of(events: Iterable[tuple[str, Mapping[str, Any]]]) -> dict[str, list[Mapping[str, Any]]]:
    """Return the fields of events by their names."""
    table: dict[str, list[Mapping[str, Any]]] = {}
    for event, fields in events:
        table.setdefault(event, []).append(fields)
    return table


def _tell(node: str, what: str, events: Mapping[str, list[Mapping[str, Any]]], codec: Codec) -> str:
    parts = [_beginning(node, what, events)]
    parts += [
        f"sends message {fields['number']} to {fields['to']}: {_value(fields['payload'], codec)}"
        for fields in events.get("sent", ())
    ]
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
    return "; ".join(parts)


def _beginning(node: str, what: str, events: Mapping[str, list[Mapping[str, Any]]]) -> str:
    for fields in events.get("received", ()):
        return f"receives message {fields['number']} from {fields['from']}"
    for fields in events.get("marker received", ()):
        return f"sees the marker of {fields['snapshot']} from {fields['from']}{what}"
    for fields in events.get("recorded", ()):
        if fields["from"] is None:
            return f"begins snapshot {fields['snapshot']}"
    for fields in events.get("timer", ()):
        return f"its timer {fields['method']} rings"
    return what


def _value(value: object, codec: Codec) -> str:
    return shown(thaw(value, codec.reader()) if type(value) is Encoded else value)
