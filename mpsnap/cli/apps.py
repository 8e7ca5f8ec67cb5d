"""Which app a command means: a name of ours, `module:Class`, `path/to/file.py:Class`, or a module with `nodes`."""

from __future__ import annotations

import difflib
import importlib.util
import os
from collections.abc import Mapping
from types import ModuleType
from typing import NamedTuple, NoReturn

from mpsnap.core.errors import AppError, InputError, TopologyError
from mpsnap.core.forms import FORMS, is_spec, parse_topology
from mpsnap.core.node import Node
from mpsnap.core.program import NodeSpec, load_module, load_object
from mpsnap.core.topology import Topology, parse_top
from mpsnap.core.words import MAX_FILE_BYTES, listed

#: Our own apps by name.
APPS = {
    "tokens": "mpsnap.apps.tokens:Tokens",
    "bank": "mpsnap.apps.bank:Bank",
    "pingpong": "mpsnap.apps.pingpong:PingPong",
    "wordcount": "mpsnap.apps.wordcount",
}
#: For an app that does not name its own.
DEFAULT_TOPOLOGY = "complete:4"


class App(NamedTuple):
    """What to run: the name as given, the nodes, and the topology it runs on unless told otherwise."""

    name: str
    nodes: NodeSpec | Mapping[str, NodeSpec]
    default_topology: Topology | str


def find_app(name: str) -> App:
    """Import an app.

    Raises:
        AppError: There is none.
    """
    module_name, attribute = _split(APPS.get(name, name))
    if module_name.endswith(".py") and attribute != "":
        if not os.path.isfile(module_name):
            raise AppError("there is no such file", where=module_name)
        # Nodes import it too, and may live in another working directory by then.
        module_name = os.path.abspath(module_name)
    elif attribute == "" or not all(part.isidentifier() for part in module_name.split(".")):
        _refuse(name, f"{module_name}.py{name[len(module_name) :]}" if os.path.isfile(f"{module_name}.py") else None)
    elif module_name == name and "." not in name and (_close(name) or importlib.util.find_spec(name) is None):
        # Before a module is imported that nobody meant: there is a `token` in the standard library.
        _refuse(name)
    module = load_module(module_name)
    if attribute is None and not hasattr(module, "nodes"):
        classes = [f"{name}:{found}" for found in _node_classes(module)]
        raise AppError(
            "there is no mapping `nodes` in this module", where=name, hint=listed(classes) if classes else None
        )
    nodes = load_object(f"{module_name}:{attribute or 'nodes'}")
    if not isinstance(nodes, Mapping) and not (isinstance(nodes, type) and issubclass(nodes, Node)):
        raise AppError(
            f"{attribute or 'nodes'} is neither a subclass of mpsnap.Node nor a mapping of node names to such classes",
            where=module_name,
        )
    default: Topology | str = getattr(module, "default_topology", DEFAULT_TOPOLOGY)
    default = getattr(nodes, "default_topology", default)
    if isinstance(nodes, Mapping):
        return App(name, nodes, default)
    return App(name, f"{module_name}:{attribute}", default)


def absolute(reference: str) -> str:
    """Return the reference with its path, if it has one, made absolute: one file must not be two modules."""
    module_name, attribute = _split(reference)
    if attribute is None or not module_name.endswith(".py"):
        return reference
    return f"{os.path.abspath(module_name)}:{attribute}"


def _split(reference: str) -> tuple[str, str | None]:
    module_name, colon, attribute = reference.rpartition(":")
    return (module_name, attribute) if colon else (reference, None)


def _close(name: str) -> str:
    return next(iter(difflib.get_close_matches(name, APPS, n=1)), "")


def _refuse(name: str, better: str | None = None) -> NoReturn:
    meant = _close(name)
    raise AppError(
        f"there is no app {name!r}" + (f"; did you mean {meant!r}?" if meant else ""),
        hint=better or f"{', '.join(APPS)}, module:Class or path/to/file.py:Class",
    )


def _node_classes(module: ModuleType) -> list[str]:
    return [
        name
        for name, found in vars(module).items()
        if isinstance(found, type) and issubclass(found, Node) and found.__module__ == module.__name__
    ]


def find_topology(given: str | None, app: App) -> Topology:
    """Return the topology that an option names, a specification or a .top file, or the app's own.

    Raises:
        InputError: There is no such file, or something is wrong with it.
    """
    if given is not None:
        if is_spec(given):
            return parse_topology(given)
        hint = None if given.endswith(".top") else f"{', '.join(FORMS)}, or a .top file"
        return parse_top(read_file(given, hint), given)
    if isinstance(app.default_topology, Topology):
        return app.default_topology
    place = f"default_topology of {app.name}"
    if not isinstance(app.default_topology, str):
        raise AppError(f"neither a Topology nor a text but {app.default_topology!r}", where=place)
    try:
        return parse_topology(app.default_topology)
    except TopologyError as error:
        raise TopologyError(error.what, where=place, hint=error.hint) from error


def read_file(path: str, hint: str | None = None) -> bytes:
    """Return a file's content; `hint` says what to try if it cannot be read.

    Raises:
        InputError: It cannot be read, or is too large.
    """
    try:
        with open(path, "rb") as file:
            # Not all of it: a device may never end.
            data = file.read(MAX_FILE_BYTES + 1)
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else str(error)
        raise InputError(f"cannot be read: {reason}", where=path or "''", hint=hint) from error
    if len(data) > MAX_FILE_BYTES:
        raise InputError(f"the file has more than the {MAX_FILE_BYTES:,} bytes allowed", where=path)
    return data
