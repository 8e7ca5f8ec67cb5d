"""Which code runs on which node: import strings, names and patterns, parameters, and every way to get them wrong."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

import pytest

from mpsnap.core.codec import Encoded
from mpsnap.core.errors import AppError, InputError
from mpsnap.core.forms import parse_topology
from mpsnap.core.node import Context, Node, parameters
from mpsnap.core.program import Program, assign, codec_of, load_module, load_node_class, load_object, reference_to
from mpsnap.core.topology import Topology

RING = parse_topology("ring:3")
HERE = __name__


class Plain(Node):
    pass


class Sized(Node):
    def setup(self, ctx: Context, size: int, colour: str = "red") -> None: ...


class Holder(Node):
    def setup(self, ctx: Context, tokens: int) -> None: ...


class Greedy(Node):
    def setup(self, ctx: Context, first: int = 0, **rest: Any) -> None: ...


NODE = "class A(Node):\n    pass\n\n\n"
COLOUR = "class Colour(enum.Enum):\n    RED = 1\n\n\n"


class Outer:
    class Inner(Node):
        """Found by a name with a dot."""

    number: ClassVar[int] = 7


def some_function() -> None: ...


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder to put modules in; what is imported from it is forgotten afterwards."""
    monkeypatch.setattr(sys, "path", list(sys.path))
    before = set(sys.modules)
    yield tmp_path
    for name in set(sys.modules) - before:
        del sys.modules[name]


def module(folder: Path, name: str, text: str = "from mpsnap import Node\n\n\n" + NODE) -> str:
    """Write a module and return its path."""
    path = folder / f"{name}.py"
    path.write_text(text)
    return str(path)


def refusal(nodes: Any, topology: Topology = RING, **offered: Any) -> AppError:
    """Return the error with which an assignment is refused."""
    with pytest.raises(AppError) as caught:
        assign(topology, nodes, offered)
    return caught.value


def programs(nodes: Any, topology: Topology = RING, **offered: Any) -> dict[str, Program]:
    return assign(topology, nodes, offered)[1]


def references(nodes: Any, topology: Topology = RING) -> list[str]:
    """Return what each node runs, in order."""
    return [programs(nodes, topology)[node].reference.rpartition(":")[2] for node in topology.nodes]


# --- Which node runs what. ---


def test_one_class_runs_on_all_nodes() -> None:
    """Given as a class or as its import string, which is the same."""
    by_class, by_name = programs(Plain), programs(f"{HERE}:Plain")
    assert by_class == by_name == dict.fromkeys(RING.nodes, Program(f"{HERE}:Plain", {}))
    assert by_class["N1"].load() is Plain


def test_names_win_over_patterns_wherever_they_stand() -> None:
    assert references({"N*": Plain, "N2": Greedy}) == ["Plain", "Greedy", "Plain"]
    assert references({"N2": Greedy, "N*": Plain}) == ["Plain", "Greedy", "Plain"]


def test_of_patterns_the_first_that_matches_wins() -> None:
    topology = Topology(["map-1", "map-2", "reduce", "x"], [])
    assert references({"map-[1]": Greedy, "map-*": Holder, "*": Plain}, topology) == [
        *("Greedy", "Holder", "Plain", "Plain"),
    ]


def test_patterns_tell_upper_case_from_lower_case() -> None:
    """As names do."""
    assert "node a1 has no program" in refusal({"A*": Plain}, Topology(["a1"], [])).what


def test_a_node_that_nothing_matches_is_named() -> None:
    error = refusal({"N1": Plain, "N3": Plain})
    assert (error.what, error.where, error.hint) == ("node N2 has no program", "N2", "a pattern '*' for all others")


def test_a_name_without_a_node_is_refused_with_the_closest() -> None:
    """A typing error, most likely."""
    error = refusal({"*": Plain, "N11": Plain})
    assert error.what == "no node of ring:3 is called 'N11'; did you mean 'N1'?"


def test_a_pattern_without_a_node_is_refused() -> None:
    assert "no node of ring:3 is called 'M*'" in refusal({"*": Plain, "M*": Plain}).what


def test_a_pattern_in_the_shadow_of_an_earlier_one_is_refused_too() -> None:
    """It would never run, which nobody can have wanted."""
    assert "'N1*'" in refusal({"*": Plain, "N1*": Greedy}).what


def test_an_empty_mapping_leaves_the_first_node_without_a_program() -> None:
    assert refusal({}).where == "N1"


def test_of_several_mistakes_the_same_is_told_every_time() -> None:
    """Whatever the hashes: the first by name."""
    assert "'A0'" in refusal({"*": Plain} | {f"A{k}": Plain for k in reversed(range(9))}).what
    assert "'b0'" in refusal(Plain, RING, **{f"b{k}": 1 for k in reversed(range(9))}).what
    assert "'c0'" in refusal((Sized, {f"c{k}": 1 for k in reversed(range(9))})).what


# --- Parameters. ---


def test_parameters_offered_go_to_the_nodes_that_take_them() -> None:
    found = programs({"N1": Sized, "*": Plain}, size=3)
    assert found["N1"].params == {"size": 3}
    assert found["N2"].params == {}


def test_a_nodes_own_parameters_win_over_those_offered() -> None:
    found = programs({"N1": (Sized, {"size": 1}), "*": (f"{HERE}:Sized", {"colour": "blue"})}, size=3)
    assert found["N1"].params == {"size": 1}
    assert found["N2"].params == {"size": 3, "colour": "blue"}


def test_a_missing_parameter_is_named() -> None:
    error = refusal(Sized)
    assert error.what == f"setup of {HERE}:Sized needs a parameter 'size'"
    assert "size" in (error.hint or "")


def test_a_parameter_that_a_nodes_own_list_gets_wrong_is_named_with_the_closest() -> None:
    error = refusal((Sized, {"size": 1, "color": "red"}))
    assert error.what == f"setup of {HERE}:Sized takes no parameter 'color'; did you mean 'colour'?"


def test_a_parameter_that_no_node_takes_is_refused_with_those_there_are() -> None:
    error = refusal({"N1": Sized, "*": Holder}, size=1, sise=2)
    assert error.what == "no node takes a parameter 'sise'; did you mean 'size'?"
    assert error.hint == "one of colour, size, tokens"
    assert refusal(Plain, size=1).hint == "leaving it out"


def test_a_setup_with_double_star_takes_any_parameter() -> None:
    assert programs(Greedy, anything=1)["N1"].params == {"anything": 1}


def test_a_node_without_setup_takes_no_parameter() -> None:
    """Although the base class's own setup takes any."""
    assert parameters(Plain) == (frozenset(), frozenset(), False)
    assert parameters(Sized) == (frozenset({"size", "colour"}), frozenset({"size"}), False)
    assert parameters(Greedy) == (frozenset({"first"}), frozenset(), True)


@pytest.mark.parametrize("value", [object(), [object()], {1: lambda: None}])
def test_parameters_must_be_plain_data(value: object) -> None:
    """They travel to the node's process; the error says where in them the trouble is."""
    error = refusal((Sized, {"size": value}))
    assert error.what.startswith(f"the parameters of {HERE}:Sized are not plain data: ")
    assert error.where is not None
    assert error.where.startswith("params")
    assert "size" in error.where


# --- Tokens. ---


def test_tokens_of_the_topology_go_to_nodes_whose_setup_names_them() -> None:
    topology = Topology(["A", "B"], [("A", "B")], {"A": 3, "B": 0})
    returned, found = assign(topology, {"A": Holder, "B": Holder})
    assert [found[node].params for node in "AB"] == [{"tokens": 3}, {"tokens": 0}]
    assert returned == topology
    assert programs(Plain, topology)["A"].params == {}
    assert programs(Greedy, topology)["A"].params == {}


def test_a_parameter_tokens_replaces_them_in_the_topology_too() -> None:
    returned, found = assign(RING, Holder, {"tokens": 4})
    assert dict(returned.tokens) == {"N1": 4, "N2": 4, "N3": 4}
    assert found["N2"].params == {"tokens": 4}
    assert dict(RING.tokens) == {"N1": 10, "N2": 10, "N3": 10}


def test_a_nodes_own_tokens_win_over_those_of_the_topology() -> None:
    found = programs({"N1": (Holder, {"tokens": 99}), "*": Holder}, tokens=5)
    assert [found[node].params["tokens"] for node in RING.nodes] == [99, 5, 5]


def test_negative_tokens_are_refused() -> None:
    with pytest.raises(InputError, match="whole number >= 0"):
        assign(RING, Holder, {"tokens": -1})


def test_tokens_are_refused_where_no_node_takes_them() -> None:
    assert "no node takes a parameter 'tokens'" in refusal(Plain, tokens=4).what


# --- What can run at all. ---


def test_a_class_local_to_a_function_is_refused_under_every_start_method() -> None:
    """It would work under fork and die in the child under the others."""

    class Local(Node):
        pass

    error = refusal(Local)
    assert "is local to a function, other processes cannot import it" in error.what
    assert error.hint == "the module's top"


def test_a_class_inside_a_class_can_be_found() -> None:
    assert reference_to(Outer.Inner) == f"{HERE}:Outer.Inner"
    assert load_node_class(f"{HERE}:Outer.Inner") is Outer.Inner


def test_a_class_that_is_not_where_it_says_is_refused() -> None:
    """Another process would run another class."""
    double = type("Plain", (Node,), {"__module__": HERE, "__qualname__": "Plain"})
    assert f"{HERE}:Plain is another class than the one given" in refusal(double).what
    gone = type("Gone", (Node,), {"__module__": HERE, "__qualname__": "Gone"})
    assert f"there is no 'Gone' in {HERE}" in refusal(gone).what


@pytest.mark.parametrize(
    ("nodes", "what"),
    [
        (Outer, "is neither a Node class nor an import string"),
        (7, "7 is neither a Node class nor an import string"),
        (Plain(), "is neither a Node class nor an import string"),
        ((Plain,), "is not a node class and its parameters"),
        ({"*": (Plain, None)}, "is not a node class and its parameters"),
        ((Plain, {}, {}), "is not a node class and its parameters"),
        ({"*": some_function}, "is neither a Node class nor an import string"),
        (f"{HERE}:Outer", f"{HERE}:Outer is a type, not a subclass of mpsnap.Node"),
        (f"{HERE}:some_function", f"{HERE}:some_function is a function, not a subclass of mpsnap.Node"),
        (f"{HERE}:RING", f"{HERE}:RING is a Topology, not a subclass of mpsnap.Node"),
    ],
)
def test_what_is_no_node_class_is_refused(nodes: Any, what: str) -> None:
    assert what in refusal(nodes).what


@pytest.mark.parametrize("text", ["", "Plain", ":", ":Plain", "module:", "module.Plain"])
def test_what_is_no_import_string_is_refused(text: str) -> None:
    error = refusal(text)
    assert error.what == f"{text!r} is not of the form module:name"
    assert error.hint == "module:name or path/to/file.py:name"


def test_a_name_that_is_not_there_is_refused_with_the_closest() -> None:
    error = refusal(f"{HERE}:Plane")
    assert error.what == f"there is no 'Plane' in {HERE}; did you mean 'Plain'?"


@pytest.mark.parametrize("name", ["Outer.Other", "Outer.number.real.nothing", "HERE.nothing", "RING.nothing.more"])
def test_a_name_inside_something_that_does_not_have_it_is_refused(name: str) -> None:
    """Also inside a number or a text, which have no names of their own to look through."""
    assert f"there is no '{name}' in {HERE}" in refusal(f"{HERE}:{name}").what


# --- Importing. ---


@pytest.mark.parametrize("name", ["no_such_module", "mpsnap.no_such_module", "no_such_package.module"])
def test_a_module_that_does_not_exist_is_refused(name: str) -> None:
    error = refusal(f"{name}:A")
    assert error.what == f"there is no module {name}"
    assert error.hint is not None


def test_a_relative_module_name_is_refused() -> None:
    assert "importing ..apps failed" in refusal("..apps:A").what


def test_a_file_is_imported_by_its_path(folder: Path) -> None:
    path = module(folder, "app_by_path")
    found = programs(f"{path}:A")["N1"]
    assert found.reference == f"{path}:A"
    assert found.load().__module__ == "app_by_path"


def test_a_file_is_imported_once(folder: Path) -> None:
    """Or its classes would not be themselves any more."""
    path = module(folder, "app_once")
    assert load_node_class(f"{path}:A") is load_node_class(f"{path}:A")
    assert load_node_class("app_once:A") is load_node_class(f"{path}:A")
    assert reference_to(load_node_class(f"{path}:A")) == "app_once:A"


def test_a_relative_path_is_as_good(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    path = module(folder, "app_relative")
    first = load_node_class("app_relative.py:A")
    assert load_node_class("app_relative.py:A") is first
    assert load_node_class(f"{path}:A") is first
    assert programs("app_relative.py:A")["N1"].load() is first


def test_a_file_can_import_its_neighbours(folder: Path) -> None:
    """As it can when it is run as a script."""
    module(folder, "neighbour")
    path = module(folder, "app_with_neighbour", "from neighbour import A\n\nB = A\n")
    assert load_object(f"{path}:B") is load_object(f"{folder / 'neighbour.py'}:A")


def test_a_missing_file_is_refused(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    error = refusal(f"{folder}/missing.py:A")
    assert (error.what, error.where) == ("there is no such file", f"{folder}/missing.py")
    monkeypatch.chdir(folder)
    assert refusal("missing.py:A").what == "there is no such file"
    assert "missing" not in sys.modules


@pytest.mark.parametrize("name", ["json", "subprocess", "harness"])
def test_a_file_called_like_another_module_is_refused(folder: Path, name: str) -> None:
    """It would be found instead of the other, or the other instead of it."""
    error = refusal(f"{module(folder, name)}:A")
    assert error.what == f"{name} is the name of another module"
    assert error.hint == "renaming the file"
    assert getattr(load_module(name), "__file__", None) != f"{folder}/{name}.py"


@pytest.mark.parametrize("name", ["two words", "1st", "dash-ed", ""])
def test_a_file_that_no_module_can_be_called_is_refused(folder: Path, name: str) -> None:
    error = refusal(f"{module(folder, name)}:A")
    assert error.what == f"{name!r} cannot be the name of a module"
    assert error.where == f"{folder}/{name}.py"


BROKEN = {
    "raises": ("import sys\n\nsys.path\n1 / 0\n", 4, "ZeroDivisionError: division by zero"),
    "raises_inside": ("def f():\n    return {}['x']\n\n\nf()\n", 2, "KeyError: 'x'"),
    "misses_a_module": ("\nimport no_such_module\n", 2, "No module named 'no_such_module'"),
    "misses_a_name": ("\nfrom mpsnap import Nodes\n", 2, "ImportError: cannot import name 'Nodes' from 'mpsnap'"),
    "is_not_python": ("x = 1\n\nclass :\n", 3, "SyntaxError: "),
    "leaves": ("import sys\n\nsys.exit(1)\n", 3, "SystemExit: 1"),
}


@pytest.mark.parametrize("name", BROKEN)
@pytest.mark.parametrize("by", ["path", "name"])
def test_a_module_that_cannot_be_imported_is_refused_at_its_line(folder: Path, name: str, by: str) -> None:
    """The place is the user's own line, and a second try fails in the same way."""
    text, line, what = BROKEN[name]
    path = module(folder, f"app_that_{name}", text)
    sys.path.append(str(folder))
    reference = path if by == "path" else f"app_that_{name}"
    for _ in range(2):
        error = refusal(f"{reference}:A")
        assert error.what.startswith(f"importing {reference} failed: {what}")
        assert error.where == f"{path}:{line}"
        assert f"app_that_{name}" not in sys.modules


def test_an_error_in_a_neighbour_is_placed_there(folder: Path) -> None:
    broken = module(folder, "broken_neighbour", "\n\n1 / 0\n")
    path = module(folder, "app_of_the_broken", "import broken_neighbour\n")
    assert refusal(f"{path}:A").where == f"{broken}:3"


def test_a_reference_made_here_is_found_in_a_fresh_process(folder: Path) -> None:
    """That is what references are for."""
    path = module(folder, "app_far_away")
    reference = programs(f"{path}:A")["N1"].reference
    code = f"from mpsnap.core.program import load_node_class; print(load_node_class({reference!r}).__qualname__)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "A\n"


# --- The codec of a class. ---


def test_the_codec_of_a_class_knows_what_the_class_says(folder: Path) -> None:
    """Its `types`, the classes of its own module, and whether it pickles."""
    path = module(
        folder,
        "app_with_types",
        "import enum\nfrom mpsnap import Node\n\n\n" + COLOUR + NODE + "class B(Node):\n    pickle = True\n",
    )
    red = load_object(f"{path}:Colour.RED")
    for name in "AB":
        codec = codec_of(load_node_class(f"{path}:{name}"))
        assert codec.decode(codec.encode(red)) is red
    pickling = codec_of(load_node_class(f"{path}:B"))
    assert pickling.decode(pickling.encode(range(3))) == range(3)
    assert codec_of(Plain).decode(codec_of(Plain).encode(Encoded(b"x"))) == Encoded(b"x")


def test_the_codec_of_a_cluster_knows_the_classes_of_all_its_nodes(folder: Path) -> None:
    """A payload is to its receiver what it was to its sender, also where the two are written in different modules."""
    with_an_enum = module(folder, "app_sender", "import enum\nfrom mpsnap import Node\n\n\n" + COLOUR + NODE)
    sender, receiver = load_node_class(f"{with_an_enum}:A"), load_node_class(f"{module(folder, 'app_receiver')}:A")
    red = load_object(f"{with_an_enum}:Colour.RED")
    data = codec_of(sender, [sender, receiver]).encode(red)
    assert codec_of(receiver, [sender, receiver]).decode(data) is red
    assert codec_of(receiver).decode(data) != red


class Awaited(Node):
    async def on_message(self, ctx: Context, sender: str, payload: object) -> None:  # type: ignore[override]
        pass


class Yielding(Node):
    def on_idle(self, ctx: Context) -> Any:
        yield True


class Slotted(Node):
    __slots__ = ("cache", "count")
    count: int
    transient = ("cache",)


class SlottedWithACapture(Slotted):
    def capture(self) -> Any:
        return self.count


class OnlyTransientSlots(Node):
    __slots__ = ("cache",)
    transient = ("cache",)


@pytest.mark.parametrize(("node", "hook"), [(Awaited, "on_message"), (Yielding, "on_idle")])
def test_a_hook_whose_body_nobody_would_run_is_refused(node: type[Node], hook: str) -> None:
    """What a call of it returns would be thrown away, and every message with it."""
    with pytest.raises(AppError) as caught:
        assign(RING, node)
    assert str(caught.value) == (
        f"{hook} of {HERE}:{node.__name__} is a coroutine or a generator, and nobody would run it; "
        f"try: def {hook} without async and yield"
    )


def test_a_state_in_slots_is_refused_unless_the_class_captures_it_itself() -> None:
    """An instance has a dict besides, and `capture` returns that alone."""
    with pytest.raises(AppError) as caught:
        assign(RING, Slotted)
    assert str(caught.value) == (
        f"{HERE}:Slotted has __slots__ (count), which no snapshot would hold; "
        "try: attributes without slots, or capture and restore that keep them"
    )
    assign(RING, SlottedWithACapture)
    assign(RING, OnlyTransientSlots)
