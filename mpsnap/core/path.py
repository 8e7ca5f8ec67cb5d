"""Paths to what is inside of a value: `a.b[3]["key"]`.

This module owns the language of paths. It must not know what the values are part of.

    name        at the beginning, short for .name
    .name       the entry of a dict under that text, or the field of a dataclass or NamedTuple
    [literal]   the item of a list, tuple or deque at that index, from the end if it is negative; the entry of that key
    {literal}   the element of a set

A literal is one of Python's, such as `3`, `"key"`, `None` or `(1, 2)`, or the JSON form of any plain data, such as
`{"$type": "date", "value": "1985-02-01"}`. What `diff` calls a place, `look_up` finds there again.
"""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Iterable, Sequence
from itertools import islice
from typing import Any, NamedTuple

from mpsnap.core.errors import InputError
from mpsnap.core.inside import Inside, inside
from mpsnap.core.jsonform import dumps, to_json
from mpsnap.core.kinds import NATIVE, Opaque, Pickled
from mpsnap.core.words import listed, shown, suggestion

_NAME = re.compile(r"[^\W\d]\w*")
_CLOSING = {"[": "]", "{": "}", "(": ")"}
#: Characters of a key that is offered in place of one that is not there.
_BRIEF = 50
#: Keys that may be looked through for one that was meant.
_MOST_COMPARED = 10_000


class Step(NamedTuple):
    """Lead from a value to one in it: `opening` is the sign that it begins with, `end` where it ends in its path."""

    opening: str
    #: The form of the key in JSON, in which each key has one text.
    key: str
    #: The key, if it is a whole number.
    number: int | None
    end: int


def key_step(key: Any) -> str:
    """Return the step to the entry under a key, or to an item at an index."""
    # In ASCII: a step with a name ends where the letters end, and of others not everybody has the same idea.
    word = type(key) is str and key.isascii() and key.isidentifier()
    return f".{key}" if word else f"[{_literal(key)}]"


def element_step(element: Any) -> str:
    """Return the step to an element of a set."""
    return f"{{{_literal(element)}}}"


def joined(path: str, step: str) -> str:
    """Return a path that goes on by a step."""
    return path + step if path else step.removeprefix(".")


def parse_path(path: str) -> tuple[Step, ...]:
    """Read a path.

    Raises:
        InputError: It is none; says at which character.
    """
    steps = []
    at = 0
    while at < len(path):
        step = _step(path, at)
        steps.append(step)
        at = step.end
    return tuple(steps)


def look_up(value: object, path: str, where: str = "") -> object:
    """Return what is in a value at a path; the value itself for an empty one.

    Args:
        value: Plain data.
        path: Where to look.
        where: What the value is called in an error.

    Raises:
        InputError: It is no path, or leads nowhere; names the first step that fails, and says what is there.
    """
    at = 0
    for step in parse_path(path):
        try:
            value = _taken(value, step, path[at : step.end])
        except _Nowhere as nowhere:
            place = ": ".join(filter(None, [where, _short(path[:at])]))
            raise InputError(nowhere.what, where=place or None, hint=nowhere.hint) from None
        at = step.end
    return value


# ---------------------------------------------------------------------- reading


def _step(path: str, at: int) -> Step:
    if path[at] in "[{":
        end = _end_of_literal(path, at)
        key, index = _read_literal(path[at + 1 : end - 1], path, at)
        return Step(path[at], key, index, end)
    if path[at] == ".":
        begin = at + 1
    elif at == 0:
        begin = 0
    else:
        raise _no_path(path, at, f"{shown(path[at])} is neither . nor [ nor {{")
    name = _NAME.match(path, begin)
    if name is None:
        raise _no_path(path, begin, "a name is missing")
    return Step(".", dumps(name[0]), None, name.end())


def _end_of_literal(path: str, begin: int) -> int:
    """Return the place behind the bracket that closes the one at `begin`."""
    awaited: list[str] = []
    at = begin
    while at < len(path):
        sign = path[at]
        if sign in "\"'":
            at += 1
            while at < len(path) and path[at] != sign:
                at += 2 if path[at] == "\\" else 1
        elif sign in _CLOSING:
            awaited.append(_CLOSING[sign])
        elif sign in _CLOSING.values():
            if awaited.pop() != sign:
                break
            if not awaited:
                return at + 1
        at += 1
    raise _no_path(path, begin, f"the {path[begin]} is not closed")


def _read_literal(text: str, path: str, at: int) -> tuple[str, int | None]:
    """Return the JSON form of a literal as text, and the number if it is a whole one."""
    try:
        # Of a JSON form, the text is put in order: whoever types one cannot know that of the keys.
        form = json.loads(text)
        value = form if type(form) is not dict else None
        if value is None and form is not None:
            return _in_order(form), None
    except (ValueError, RecursionError):
        try:
            value = ast.literal_eval(text.strip())
        except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
            raise _no_path(path, at + 1, f"{shown(text)} is no literal") from None
        if type(value) is dict:
            return _in_order(value), None
    try:
        return _in_order(to_json(value)), value if type(value) is int else None
    except (TypeError, ValueError, RecursionError):
        raise _no_path(path, at + 1, f"{shown(text)} is no plain data") from None


def _no_path(path: str, at: int, what: str) -> InputError:
    return InputError(
        f"{what} at character {at + 1} of the path", where=_short(path), hint='a path such as a.b[3]["key"]'
    )


# ---------------------------------------------------------------------- writing


def _literal(key: Any) -> str:
    """Return a literal for a key: Python's where it is short to read, else the JSON form."""
    kind = type(key)
    if kind is str:
        return dumps(key)
    try:
        simple = kind in NATIVE and kind is not float
        if simple or (kind is tuple and all(type(item) in NATIVE and type(item) is not float for item in key)):
            return repr(key)
    except ValueError:
        pass  # an int with thousands of digits
    return dumps(key)


def _in_order(form: object) -> str:
    return json.dumps(form, sort_keys=True)


# --------------------------------------------------------------------- following


class _Nowhere(Exception):
    def __init__(self, what: str, hint: str | None = None) -> None:
        self.what = what
        self.hint = hint


def _taken(value: Any, step: Step, text: str) -> object:
    """Return what one step leads to; `text` is how it was written."""
    held = inside(value)
    if held.elements is not None:
        if step.opening == "{":
            return _found(((element, element) for element in held.elements), step, text, value)
        raise _Nowhere(f"{_told(value, held)} has elements, and {shown(text)} is none", "{element}")
    if step.opening == "{":
        raise _Nowhere(f"{_told(value, held)} has no elements, only a set has")
    if held.items is not None:
        return _item(value, held, held.items, step, text)
    entries: Any = held.entries if held.entries is not None else held.fields
    if entries is None:
        raise _Nowhere(f"nothing is inside of {_told(value, held)}, so there is no {shown(text)}")
    key = json.loads(step.key)
    if type(key) is str:
        # Nearly always, and then nothing is looked through.
        if key in entries:
            return entries[key]
        raise _absent(value, held, entries, text)
    return _found(entries.items(), step, text, value)


def _item(value: object, held: Inside, items: Sequence[object], step: Step, text: str) -> object:
    name = json.loads(step.key)
    if step.opening == "." and name in held.names:
        return items[held.names.index(name)]
    if step.number is None:
        hint = "[0]" if items else None
        if step.opening == "." and type(value) is Opaque:
            raise _Nowhere(f"{_told(value, held)} is kept without the names of its fields: no {shown(text)}", hint)
        raise _Nowhere(f"{_told(value, held)} has items, and {shown(text)} is no index", hint)
    if not -len(items) <= step.number < len(items):
        hint = f"an index from 0 to {len(items) - 1}" if items else None
        raise _Nowhere(f"there is no item {_short(text)}: this is {_told(value, held)}", hint)
    return items[step.number]


def _found(pairs: Iterable[tuple[Any, object]], step: Step, text: str, value: object) -> object:
    keys = []
    for key, item in pairs:
        if _in_order(to_json(key)) == step.key:
            return item
        keys.append(key)
    raise _absent(value, inside(value), keys, text)


def _absent(value: object, held: Inside, keys: Iterable[Any], text: str) -> _Nowhere:
    make = element_step if held.elements is not None else key_step
    known = [make(key).removeprefix(".") for key in islice(keys, _MOST_COMPARED) if _is_brief(key)]
    return _Nowhere(
        f"there is no {shown(text)}: this is {_told(value, held)}",
        suggestion(text.removeprefix("."), known) if known else None,
    )


def _is_brief(key: object) -> bool:
    if isinstance(key, str | bytes):
        return len(key) <= _BRIEF
    return type(key) in NATIVE and (type(key) is not int or key.bit_length() <= 2 * _BRIEF)


def _told(value: object, held: Inside) -> str:
    """Return in words what a value is, but nothing of what is in it but its keys."""
    if type(value) is Pickled:
        return f"a pickle of {value.size} bytes, which is never loaded"
    kind = value.name.rpartition(":")[2] if type(value) is Opaque else type(value).__name__
    name = f"{'an' if kind[:1] in 'aeiouAEIOU' else 'a'} {_short(kind)}"
    for parts, noun in ((held.items, "item"), (held.elements, "element"), (held.entries, "entry")):
        if parts is not None:
            many = "entries" if noun == "entry" else f"{noun}s"
            return f"{name} of {len(parts)} {noun if len(parts) == 1 else many}"
    if held.fields is not None:
        return f"{name} with the fields {listed(held.fields)}"
    return name


def _short(text: str) -> str:
    return text if len(text) <= 80 else text[:77] + "..."
