"""The walk through a value: can all of it be kept exactly, and if not, what cannot, and where.

This module owns the rules that a value must obey to be kept, and the register of the user's classes that may be. It
must not know how a value is written.

The rules: every type is one of `kinds` or an allowed class; a value is a tree, so that nothing which can change is
reached twice; no more than `MAX_DEPTH` levels. There are two walks with the same verdict: `survey` decides, as fast
as it can, since it runs inside the pause of every snapshot and at the sending of payloads; `explain` names the place,
after a refusal.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Collection, Iterable, Set
from itertools import chain
from typing import Any

from mpsnap.core.errors import CodecError
from mpsnap.core.kinds import (
    CLOCKS,
    ENUM,
    KINDS,
    LEAVES,
    MAPPINGS,
    MUTABLE,
    SEQUENCES,
    SIMPLE,
    Opaque,
    Shape,
    class_name,
    contents_of_all,
    flaw_of,
    instance_contents,
    module_name,
    shape_of,
    steps,
)

#: How many containers may stand inside each other. Well below what Python's own recursion, and msgpack's, allow.
MAX_DEPTH = 100

_NO_KINDS: frozenset[type] = frozenset()

#: How many containers are looked at one by one, before going level by level is the faster way. Below `MAX_DEPTH`.
_FEW = 32

#: Up to how many items a loop looks at their types faster than a method of a set does: for two, in half the time.
_SEVERAL = 8

_HINT = (
    "convert it to plain data, name its class in `types = (...)`, leave the attribute out with `transient = (...)`, "
    "or set `pickle = True` on the Node"
)
_HINT_TREE = "keep it in one place and a key to it in the others, or a copy; `pickle = True` on the Node keeps sharing"


class Classes:
    """Know the user's classes that may be kept: those named, and those that a module defines.

    Args:
        types: Enum, dataclass and NamedTuple classes, wherever they are defined.
        modules: Names of imported modules; such classes at their top, or inside a class there, are allowed too.

    Raises:
        CodecError: One of `types` is no such class, or two of them have the same name.
    """

    __slots__ = ("_by_name", "_modules", "_shapes")

    def __init__(self, types: Iterable[type], modules: Iterable[str]) -> None:
        #: Those of the allowed classes seen so far; those of the modules join when they are met.
        self._shapes: dict[type, Shape] = {}
        self._by_name: dict[str, Shape] = {}
        self._modules = frozenset(map(module_name, modules))
        for cls in types:
            shape = shape_of(cls) if isinstance(cls, type) else None
            if shape is None:
                raise CodecError(
                    f"{cls!r} in `types` is not an Enum, dataclass or NamedTuple class",
                    hint="name only such classes, and none that extends a built-in type such as dict",
                )
            if self._by_name.setdefault(shape.name, shape).cls is not cls:
                raise CodecError(f"two classes in `types` have the name {shape.name}", hint="rename one of them")
            self._shapes[cls] = shape

    def shape(self, kind: type) -> Shape | None:
        """Return the shape of an allowed class, None for every other type."""
        shape = self._shapes.get(kind)
        if shape is None and module_name(kind.__module__) in self._modules:
            found = self.find(class_name(kind))
            return found if found is not None and found.cls is kind else None
        return shape

    def find(self, name: str) -> Shape | None:
        """Return the shape of the allowed class of that name, None if there is none. Imports nothing."""
        known = self._by_name.get(name)
        if known is not None:
            return known
        module, _, path = name.partition(":")
        if module not in self._modules:
            return None
        found: Any = sys.modules.get(module)
        for step in path.split("."):
            # Not getattr: a module may import, or do anything else, when it is asked for a name it does not have.
            found = getattr(found, "__dict__", {}).get(step)
        shape = shape_of(found) if isinstance(found, type) else None
        if shape is None or shape.name != name:
            return None
        self._shapes[found] = self._by_name[name] = shape
        return shape


def survey(value: object, classes: Classes) -> Set[type] | None:
    """Return the types of all that is in a value, or None if it cannot be kept. Of a simple value, no types.

    Level by level and, within a level, kind by kind, so that nearly all the work on big containers happens in C.
    """
    if type(value) is dict and LEAVES.issuperset(map(type, value)) and LEAVES.issuperset(map(type, value.values())):
        # So most states are, and no function is called for it.
        return _NO_KINDS
    if _is_simple(value, classes, None):
        return _NO_KINDS
    kinds = {type(value)}
    reached: set[int] = set()
    level: list[Any] = [value]
    for _ in range(MAX_DEPTH):
        here = set(map(type, level))
        below: list[Any] = []
        for kind in here - LEAVES:
            group = level if len(here) == 1 else [item for item in level if type(item) is kind]
            shape = None if kind in KINDS else classes.shape(kind)
            if _is_mutable(kind, shape):
                distinct = len(reached) + len(group)
                reached.update(map(id, group))
                if len(reached) < distinct:
                    return None
            contents = _contents(kind, shape, group)
            if contents is None:
                return None
            for content in contents:
                found = set(map(type, content()))
                kinds |= found
                if not found <= LEAVES:
                    below += content()
        if not below:
            return kinds
        level = below
    return None


def explain(value: object, where: str, classes: Classes) -> CodecError:
    """Return the error for the first thing that `survey` refused in a value whose own path is `where`."""
    error = _refusal(value, where, classes, {}, frozenset())
    return error or CodecError("the value changed while it was looked at", where=where)


def _is_simple(value: Any, classes: Classes, met: set[int] | None) -> bool:
    """Return whether a value is certainly a small tree of the commonest kinds, or a flat one of any size.

    Most payloads are, and are spared the cost of going level by level. False means no more than: look properly. `met`
    has what the value stands in, and what was met beside it; nothing of the outermost one.
    """
    kind = type(value)
    items: Collection[object] | None
    if kind is list or kind is tuple:
        items = value
    elif kind is dict or kind is set or kind is frozenset:
        if not _is_flat(value):
            return False
        items = value.values() if kind is dict else ()
    elif kind in LEAVES:
        return True
    else:
        shape = None if kind in KINDS else classes.shape(kind)
        items = None if shape is None else instance_contents(value, shape)
        if items is None or shape is None or shape.tag == ENUM:
            return items is not None
    if met is not None:
        if id(value) in met or len(met) >= _FEW:
            return False
        met.add(id(value))
    if len(items) > _SEVERAL and LEAVES.issuperset(map(type, items)):
        return True
    if len(items) > _FEW:
        return False
    for item in items:
        if type(item) not in LEAVES:
            if met is None:
                met = {id(value)}
            if not _is_simple(item, classes, met):
                return False
    return True


def _is_flat(items: Collection[object]) -> bool:
    if len(items) > _SEVERAL:
        return LEAVES.issuperset(map(type, items))
    for item in items:  # noqa: SIM110 - to set up a generator takes longer than the loop
        if type(item) not in LEAVES:
            return False
    return True


def _is_mutable(kind: type, shape: Shape | None) -> bool:
    return kind in MUTABLE or (shape is not None and shape.mutable)


def _contents(kind: type, shape: Shape | None, group: list[Any]) -> tuple[Callable[[], Iterable[object]], ...] | None:
    """Return functions that run through what values of one kind hold, or None if one of the values cannot be kept."""
    if kind in SEQUENCES:
        return (lambda: chain.from_iterable(group),)
    if kind is dict or (kind in MAPPINGS and not any(flaw_of(item, None) for item in group)):
        # Views of the values one at a time: a list of them all would set off the garbage collector.
        return (lambda: chain.from_iterable(group), lambda: chain.from_iterable(map(dict.values, group)))
    if kind in CLOCKS:
        return (lambda: [item.tzinfo for item in group],)
    if shape is not None:
        contents = contents_of_all(group, shape)
        return None if contents is None else (lambda: chain.from_iterable(contents),)
    if (kind not in SIMPLE and kind is not Opaque) or any(flaw_of(item, None) for item in group):
        return None
    return (lambda: [held for item in group for _, held in steps(item, None)],)


def _refusal(
    value: object, where: str, classes: Classes, reached: dict[int, str], around: frozenset[int]
) -> CodecError | None:
    """Look at one value and, in order, at what is in it; None if all of it can be kept.

    `reached` has the path of everything met so far that can change, `around` what this value stands in.
    """
    kind = type(value)
    if kind in LEAVES:
        return None
    shape = classes.shape(kind)
    if shape is None and kind not in KINDS and kind not in (list, dict, Opaque):
        return CodecError(f"a value of type {_type_name(kind)} cannot be kept exactly", where=where, hint=_HINT)
    flaw = flaw_of(value, shape)
    if flaw is not None:
        return CodecError(flaw, where=where, hint=_HINT)
    if len(around) >= MAX_DEPTH:
        return CodecError(f"more than {MAX_DEPTH} levels are nested here", where=where, hint="make it flatter")
    if _is_mutable(kind, shape):
        if id(value) in around:
            what = f"this is the {kind.__name__} at {reached[id(value)]} again, which so contains itself"
            return CodecError(what, where=where, hint=_HINT_TREE)
        if id(value) in reached:
            what = f"this {kind.__name__} is also at {reached[id(value)]}, and would come back as two"
            return CodecError(what, where=where, hint=_HINT_TREE)
        reached[id(value)] = where
    around |= {id(value)}
    for step, item in steps(value, shape):
        error = _refusal(item, where + step, classes, reached, around)
        if error is not None:
            return error
    return None


def _type_name(kind: type) -> str:
    return kind.__qualname__ if kind.__module__ == "builtins" else f"{kind.__module__}.{kind.__qualname__}"
