"""Which code runs on which node, and with which parameters.

This module owns import strings and the assignment of nodes. It must not know how a node is run.

Nodes travel to their processes as an import string and plain parameters, never as objects: a class that only the parent
can see works under fork and dies in the child under spawn and forkserver, so it is refused for all of them alike.

Importing a node's module runs its code; whoever names one trusts it.
"""

from __future__ import annotations

import difflib
import fnmatch
import importlib
import importlib.util
import inspect
import sys
from collections.abc import Iterable, Mapping
from types import MemberDescriptorType, ModuleType
from typing import Any, NamedTuple

from mpsnap.core.codec import Codec
from mpsnap.core.errors import AppError, CodecError
from mpsnap.core.node import Node, parameters
from mpsnap.core.topology import Topology
from mpsnap.core.words import listed

#: What `nodes=` takes for one node: a class or its import string, alone or with parameters.
NodeSpec = type[Node] | str | tuple[type[Node] | str, Mapping[str, Any]]

#: What of a node is called as a plain function, and what no such function is: a call of it runs none of its body.
_HOOKS = ("setup", "on_start", "on_message", "on_command", "on_idle", "on_stop", "capture", "restore")
_NO_HOOKS = (inspect.iscoroutinefunction, inspect.isgeneratorfunction, inspect.isasyncgenfunction)


class Program(NamedTuple):
    """Say what one node runs: the import string of its class, and the parameters of `setup`."""

    reference: str
    params: dict[str, Any]

    def load(self) -> type[Node]:
        """Import the class.

        Raises:
            AppError: There is none.
        """
        return load_node_class(self.reference)


def codec_of(node_class: type[Node], cluster: Iterable[type[Node]] = ()) -> Codec:
    """Return the codec for the states and payloads of a node class.

    It knows the classes of every node class of the cluster: a payload must be to its receiver what it was to its
    sender, also where the two are written in different modules.
    """
    known = dict.fromkeys((node_class, *cluster))
    types = dict.fromkeys(kept for each in known for kept in each.types)
    return Codec(types=types, modules={each.__module__ for each in known}, pickle=node_class.pickle)


def load_module(name: str) -> ModuleType:
    """Import a module by its dotted name, or a file by a path that ends in .py.

    A file is imported under its own name, so that its classes are found again by it in every process.

    Raises:
        AppError: There is none, its import raises, or its name is taken by another module.
    """
    try:
        return _module_of_file(name) if name.endswith(".py") else importlib.import_module(name)
    except AppError:
        raise
    except ModuleNotFoundError as error:
        if error.name is not None and (name == error.name or name.startswith(error.name + ".")):
            raise AppError(f"there is no module {name}", hint="a path that ends in .py, or PYTHONPATH") from error
        raise AppError(f"importing {name} failed: {error}", where=_place(error)) from error
    except (Exception, SystemExit) as error:
        # A script that calls sys.exit without looking at __name__ must not end us with a status of its own.
        raise AppError(f"importing {name} failed: {type(error).__name__}: {error}", where=_place(error)) from error


def _module_of_file(path: str) -> ModuleType:
    name = path.rpartition("/")[2][: -len(".py")]
    if not name.isidentifier():
        raise AppError(f"{name!r} cannot be the name of a module", where=path, hint="renaming the file")
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    assert spec.origin is not None
    # Made absolute, as modules remember it: a file is asked for again under the path it was given by.
    path = spec.origin
    present = sys.modules.get(name)
    if present is not None and getattr(present, "__file__", None) == path:
        return present
    found = None if present is not None else importlib.util.find_spec(name)
    if found is not None and found.origin == path:
        return importlib.import_module(name)
    if found is not None or present is not None:
        raise AppError(f"{name} is the name of another module", where=path, hint="renaming the file")
    module = importlib.util.module_from_spec(spec)
    # The app's own folder, so that it can import its neighbours as it does when run as a script.
    folder = path.rpartition("/")[0]
    if folder not in sys.path:
        sys.path.append(folder)
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except FileNotFoundError as error:
        del sys.modules[name]
        if error.filename == path:
            raise AppError("there is no such file", where=path) from error
        raise
    except BaseException:
        del sys.modules[name]
        raise
    return module


def _place(error: BaseException) -> str | None:
    if isinstance(error, SyntaxError) and error.filename:
        return f"{error.filename}:{error.lineno}"
    place = None
    step = error.__traceback__
    while step is not None:
        code = step.tb_frame.f_code
        if "importlib" not in code.co_filename:
            place = f"{code.co_filename}:{step.tb_lineno}"
        step = step.tb_next
    return place


def load_object(reference: str) -> Any:
    """Return what `module:name` or `path.py:name` refers to; `name` may have dots.

    Raises:
        AppError: There is no such module or no such name in it.
    """
    module_name, colon, name = reference.rpartition(":")
    if not colon or not module_name or not name:
        raise AppError(f"{reference!r} is not of the form module:name", hint="module:name or path/to/file.py:name")
    found: Any = load_module(module_name)
    for part in name.split("."):
        if not hasattr(found, part):
            raise AppError(f"there is no {name!r} in {module_name}{_similar(part, dir(found))}")
        found = getattr(found, part)
    return found


def load_node_class(reference: str) -> type[Node]:
    """Return the Node class that `module:Class` refers to.

    Raises:
        AppError: There is none, or it is not a Node.
    """
    found = load_object(reference)
    if not (isinstance(found, type) and issubclass(found, Node)):
        raise AppError(f"{reference} is a {type(found).__name__}, not a subclass of mpsnap.Node")
    return found


def reference_to(node_class: type[Node]) -> str:
    """Return the import string under which other processes find `node_class`.

    Raises:
        AppError: They cannot, since the class is local to a function or not where it says.
    """
    reference = f"{node_class.__module__}:{node_class.__qualname__}"
    if "<locals>" in node_class.__qualname__:
        raise AppError(f"{reference} is local to a function, other processes cannot import it", hint="the module's top")
    file = getattr(sys.modules.get(node_class.__module__), "__file__", None)
    if load_node_class(reference) is not node_class:
        raise AppError(f"{reference} is another class than the one given", where=file)
    return reference


def assign(
    topology: Topology,
    nodes: NodeSpec | Mapping[str, NodeSpec],
    offered: Mapping[str, Any] | None = None,
) -> tuple[Topology, dict[str, Program]]:
    """Give each node of the topology its program.

    The tokens of the topology go to every node whose `setup` names them; a parameter `tokens` replaces them, in the
    topology returned too.

    Args:
        topology: Names the nodes.
        nodes: One class for all, or a mapping of node names and glob patterns; names win over patterns, then the first
            pattern that matches.
        offered: Parameters for all nodes; each must be one that some node's `setup` takes.

    Raises:
        AppError: A node without a program, a pattern without a node, a parameter that nobody takes or that is missing.
    """
    offered = dict(offered or {})
    if type(offered.get("tokens")) is int:
        topology = topology.with_tokens(offered["tokens"])
    table = nodes if isinstance(nodes, Mapping) else {"*": nodes}
    for key in table:
        if not isinstance(key, str):
            raise AppError(f"{key!r} in nodes is no name of a node", hint="a mapping of names or patterns to classes")
    # Once for each class and not for each node: a simulation may have a hundred thousand.
    choices = {key: _choose(spec, offered) for key, spec in table.items()}
    used: set[str] = set()
    programs = {}
    for node in topology.nodes:
        key = _key_of(node, table)
        used.add(key)
        choice = choices[key]
        tokens = {"tokens": topology.tokens[node]} if choice.takes_tokens else {}
        programs[node] = Program(choice.reference, tokens | choice.params)
    for key in sorted(table.keys() - used):
        raise AppError(f"no node of {topology.name} is called {key!r}{_similar(key, topology.nodes)}")
    for name in sorted(offered.keys() - {name for choice in choices.values() for name in choice.params}):
        known = sorted(set().union(*(choice.names for choice in choices.values())))
        raise AppError(
            f"no node takes a parameter {name!r}{_similar(name, known)}",
            hint=f"one of {', '.join(known)}" if known else "leaving it out",
        )
    return topology, programs


class _Choice(NamedTuple):
    """What one entry of `nodes` comes to."""

    reference: str
    params: dict[str, Any]
    names: frozenset[str]
    takes_tokens: bool


def _choose(spec: NodeSpec, offered: Mapping[str, Any]) -> _Choice:
    if isinstance(spec, tuple) and (len(spec) != 2 or not isinstance(spec[1], Mapping)):
        raise AppError(f"{spec!r} is not a node class and its parameters", hint="(Class, {name: value})")
    what, own = spec if isinstance(spec, tuple) else (spec, {})
    if isinstance(what, str):
        node_class, reference = load_node_class(what), what
    elif isinstance(what, type) and issubclass(what, Node):
        node_class, reference = what, reference_to(what)
    else:
        raise AppError(f"{what!r} is neither a Node class nor an import string")
    _check_class(node_class, reference)
    names, required, any_name = parameters(node_class)
    params = {k: v for k, v in offered.items() if any_name or k in names} | dict(own)
    for name in sorted(params.keys() - names) if not any_name else ():
        raise AppError(f"setup of {reference} takes no parameter {name!r}{_similar(name, names)}")
    for name in sorted(required - params.keys() - {"tokens"}):
        raise AppError(
            f"setup of {reference} needs a parameter {name!r}", hint=f"--param {name}=..., or params={{...}}"
        )
    try:
        Codec().encode(params, where="params")
    except CodecError as error:
        raise AppError(f"the parameters of {reference} are not plain data: {error.what}", where=error.where) from error
    return _Choice(reference, params, names, "tokens" in names)


def _check_class(node_class: type[Node], reference: str) -> None:
    """Refuse what would otherwise only show in a running node."""
    if not isinstance(node_class.transient, (tuple, list, set, frozenset)):
        raise AppError(f"transient of {reference} is {node_class.transient!r}", hint='a tuple: transient = ("name",)')
    try:
        codec_of(node_class)
    except (CodecError, TypeError) as error:
        raise AppError(f"types of {reference}: {error}") from error
    for hook in _HOOKS:
        function = getattr(node_class, hook)
        if any(kind(function) for kind in _NO_HOOKS):
            raise AppError(
                f"{hook} of {reference} is a coroutine or a generator, and nobody would run it",
                hint=f"def {hook} without async and yield",
            )
    slots = _slots(node_class) - set(node_class.transient)
    if slots and node_class.capture is Node.capture:
        raise AppError(
            f"{reference} has __slots__ ({listed(sorted(slots))}), which no snapshot would hold",
            hint="attributes without slots, or capture and restore that keep them",
        )
    try:
        inspect.signature(node_class.setup).bind_partial(None, None)
    except TypeError as error:
        raise AppError(f"setup of {reference} does not take a context", hint="def setup(self, ctx, ...)") from error


def _slots(node_class: type[Node]) -> set[str]:
    """Return the names of what an instance holds in slots, and not in its dict."""
    return {
        name for base in node_class.__mro__ for name, slot in vars(base).items() if type(slot) is MemberDescriptorType
    }


def _key_of(node: str, table: Mapping[str, NodeSpec]) -> str:
    if node in table:
        return node
    for pattern in table:
        if fnmatch.fnmatchcase(node, pattern):
            return pattern
    raise AppError(f"node {node} has no program", where=node, hint="a pattern '*' for all others")


def _similar(name: str, known: Any) -> str:
    close = difflib.get_close_matches(name, [str(k) for k in known], n=1)
    return f"; did you mean {close[0]!r}?" if close else ""
