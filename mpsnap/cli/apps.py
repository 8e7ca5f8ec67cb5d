"""Which app a command means: a name of ours, `module:Class`, `path/to/file.py:Class`, or a module with `nodes`."""

from __future__ import annotations

import difflib
import os
from collections.abc import Mapping
from typing import NamedTuple

from mpsnap.core.errors import AppError, InputError
from mpsnap.core.node import Node
from mpsnap.core.program import NodeSpec, load_module, load_object
from mpsnap.core.topology import Topology, is_spec, parse_top, parse_topology

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
    reference = APPS.get(name, name)
    if reference is name and ":" not in name and not name.endswith(".py") and "." not in name and "/" not in name:
        close = difflib.get_close_matches(name, APPS, n=1)
        raise AppError(
            f"there is no app {name!r}" + (f"; did you mean {close[0]!r}?" if close else ""),
            hint=f"{', '.join(APPS)}, module:Class or path/to/file.py:Class",
        )
    module_name, colon, attribute = reference.rpartition(":")
    if not colon:
        module_name, attribute = reference, "nodes"
    if module_name.endswith(".py"):
        # Nodes import it too, and may live in another working directory by then.
        module_name = os.path.abspath(module_name)
    nodes = load_object(f"{module_name}:{attribute}")
    if not isinstance(nodes, Mapping) and not (isinstance(nodes, type) and issubclass(nodes, Node)):
        raise AppError(
            f"{attribute} is neither a subclass of mpsnap.Node nor a mapping of node names to such classes",
            where=module_name,
        )
    module = load_module(module_name)
    default: Topology | str = getattr(module, "default_topology", DEFAULT_TOPOLOGY)
    default = getattr(nodes, "default_topology", default)
    if isinstance(nodes, Mapping):
        return App(name, nodes, default)
    return App(name, f"{module_name}:{attribute}", default)


def find_topology(given: str | None, app: App) -> Topology:
    """Return the topology that an option names, a specification or a .top file, or the app's own.

    Raises:
        InputError: There is no such file, or something is wrong with it.
    """
    if given is None:
        default = app.default_topology
        return parse_topology(default) if isinstance(default, str) else default
    return parse_topology(given) if is_spec(given) else parse_top(read_file(given), given)


def read_file(path: str) -> bytes:
    """Return a file's content.

    Raises:
        InputError: It cannot be read.
    """
    try:
        with open(path, "rb") as file:
            return file.read()
    except OSError as error:
        raise InputError(f"cannot be read: {error.strerror}", where=path) from error
