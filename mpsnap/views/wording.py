"""Entries and values of a log in words, each on one printable line."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from mpsnap.core.errors import one_line
from mpsnap.core.history import Entry


def brief(value: object, width: int = 40) -> str:
    """Return a value, given in its JSON form, on one line of at most so many characters, in printable ASCII.

    >>> brief({"tokens": 3, "pair": {"$tuple": [1, "a"]}})
    'tokens: 3, pair: (1, "a")'
    """
    inner = isinstance(value, dict) and not any(key.startswith("$") for key in value) and value
    text = ", ".join(f"{_key(key)}: {_plain(part)}" for key, part in inner.items()) if inner else _plain(value)
    return text if len(text) <= width else text[: width - 3] + "..."


def _plain(value: object) -> str:
    if isinstance(value, dict):
        if len(value) == 1:
            ((key, inner),) = value.items()
            if key == "$size":
                return f"<{inner} bytes>"
            if key == "$tuple" and isinstance(inner, list):
                return f"({', '.join(map(_plain, inner))}{',' if len(inner) == 1 else ''})"
            if key == "$set" and isinstance(inner, list):
                return f"{{{', '.join(map(_plain, inner))}}}"
        return "{" + ", ".join(f"{_key(key)}: {_plain(part)}" for key, part in value.items()) + "}"
    if isinstance(value, list):
        return f"[{', '.join(map(_plain, value))}]"
    # In ASCII, so that nothing in a text steers a terminal or turns its direction.
    return json.dumps(value)


def _key(key: str) -> str:
    return key if key.isascii() and key.isprintable() else json.dumps(key)


def brief_line(text: str, width: int) -> str:
    r"""Return a text on one line, without what steers a terminal, of at most so many characters.

    >>> brief_line("a\\nlong name", 8)
    'a\\\\nlo...'
    """
    line = one_line(text[: 4 * width])
    return line if len(line) <= width else line[: max(0, width - 3)] + "..."


def error_text(error: Any) -> str | None:
    """Return an error of the log, which may be anything, as one text."""
    if isinstance(error, dict):
        parts = [str(error[key]) for key in ("where", "what") if error.get(key)]
        return ": ".join(parts) or None
    return None if error is None else str(error)


def described(entry: Entry, names: Mapping[str, str], payload: object = None, width: int = 60) -> str:
    """Return what happened at a node.

    Args:
        entry: What to describe.
        names: What snapshots are called, by id.
        payload: Of a message that is received; the entry does not repeat it.
        width: Of a value, in characters.
    """
    event, detail = entry.event, entry.detail
    snapshot = names.get(str(detail.get("snapshot")), str(detail.get("snapshot")))
    text = event
    if event == "sent":
        text = f"sent {detail['number']} to {detail['to']}: {brief(detail.get('payload'), width)}"
    elif event == "received":
        text = f"received {detail['number']} from {detail['from']}"
        text += "" if payload is None else f": {brief(payload, width)}"
    elif event in ("marker sent", "marker received"):
        text = f"{event}, {snapshot}, " + (f"to {detail['to']}" if event == "marker sent" else f"from {detail['from']}")
    elif event == "recorded":
        # Of a large state the log may say nothing: it was still being encoded.
        text = f"recorded, {snapshot}" + (f": {brief(detail['state'], width)}" if "state" in detail else "")
    elif event == "closed":
        text = f"closed the channel from {detail['from']}, {snapshot}"
    elif event == "reported":
        count = sum(max(count, 0) for _, count in detail["channels"].values())
        text = f"reported, {snapshot}, {count} in flight to it"
    elif event == "dropped":
        text = f"{detail['count']} entries missing"
    elif event == "restored":
        count = sum(max(count, 0) for _, count in detail["channels"].values())
        text = f"restored from {snapshot}" + (f", {count} in flight to it" if count else "")
        text += f": {brief(detail['state'], width)}" if "state" in detail else ""
    elif event in ("refused", "died"):
        text = f"{event}: {error_text(detail.get('error'))}"
    else:
        # A later version may have events that this one has no words for.
        known = [value for name, value in detail.items() if name in ("value", "method", "record", "text")]
        text = f"{event}: {brief(known[0], width)}" if known else event
    return one_line(text)
