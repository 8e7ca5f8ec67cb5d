"""Topologies: what a value promises, who must initiate, the short specifications, and `.top` files."""

from __future__ import annotations

import copy
import pickle
import re
from collections.abc import Iterable
from itertools import permutations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mpsnap.core.errors import InputError, TopologyError
from mpsnap.core.forms import FORMS, is_spec, parse_topology
from mpsnap.core.topology import Channel, Topology, parse_top
from mpsnap.core.words import significant_lines, suggestion, whole_number


def refusal(caught: pytest.ExceptionInfo[InputError]) -> tuple[str | None, str, str | None]:
    return caught.value.where, caught.value.what, caught.value.hint


def text_of(topology: Topology) -> str:
    return " ".join(map(str, topology.channels))


# --- The value. ---


def test_holds_nodes_as_declared_and_the_rest_sorted() -> None:
    topology = Topology(["b", "a", "c"], [("b", "c"), ("a", "c"), ("b", "a")], {"a": 3}, name="mine")
    assert topology.nodes == ("b", "a", "c")
    assert topology.channels == (Channel("a", "c"), Channel("b", "a"), Channel("b", "c"))
    assert all(isinstance(channel, Channel) for channel in topology.channels)
    assert dict(topology.tokens) == {"b": 10, "a": 3, "c": 10}
    assert topology.name == "mine"
    assert repr(topology) == "<Topology mine: 3 nodes, 3 channels>"
    assert topology.outbound("b") == ("a", "c")
    assert topology.inbound("c") == ("a", "b")
    assert topology.outbound("c") == topology.inbound("b") == ()


def test_sorts_names_as_text() -> None:
    """One order for all that is shown: N10 stands before N2 everywhere."""
    topology = Topology(["N2", "N10", "hub"], [("hub", "N2"), ("hub", "N10"), ("N2", "hub"), ("N10", "hub")])
    assert text_of(topology) == "N10->hub N2->hub hub->N10 hub->N2"
    assert topology.outbound("hub") == topology.inbound("hub") == ("N10", "N2")


def test_equality_leaves_out_the_name() -> None:
    ring = Topology(["a", "b"], [("a", "b"), ("b", "a")], name="one")
    same = Topology(["a", "b"], [("b", "a"), ("a", "b")], {"b": 10}, name="two")
    assert ring == same
    assert hash(ring) == hash(same)
    ring.inbound("a")
    assert ring == same
    assert ring != Topology(["a", "b"], [("a", "b")])
    assert ring != Topology(["b", "a"], [("a", "b"), ("b", "a")])
    assert ring != Topology(["a", "b"], [("a", "b"), ("b", "a")], {"b": 11})


def test_cannot_be_changed() -> None:
    topology = Topology(["a"], [])
    with pytest.raises(AttributeError):
        topology.nodes = ("b",)  # type: ignore[misc]
    with pytest.raises(TypeError):
        topology.tokens["a"] = 1  # type: ignore[index]


def test_travels() -> None:
    """It can be copied and pickled, as whoever starts processes does."""
    topology = Topology(["b", "a"], [("b", "a")], {"a": 0}, name="mine")
    for other in (copy.copy(topology), copy.deepcopy(topology), pickle.loads(pickle.dumps(topology))):
        assert other == topology
        assert other.name == "mine"
        assert other.inbound("a") == ("b",)


def test_takes_any_iterables_once() -> None:
    pairs = [["a", "b"], ("b", "a")]
    topology = Topology(iter("ab"), ((src, dst) for src, dst in pairs))
    assert text_of(topology) == "a->b b->a"


def test_other_tokens_leave_the_rest_alone() -> None:
    ring = parse_topology("ring:3")
    rich = ring.with_tokens(50)
    assert dict(rich.tokens) == {"N1": 50, "N2": 50, "N3": 50}
    assert (rich.nodes, rich.channels, rich.name) == (ring.nodes, ring.channels, "ring:3")
    assert set(ring.tokens.values()) == {10}
    with pytest.raises(TopologyError, match="must be a whole number >= 0, not -1"):
        ring.with_tokens(-1)


@pytest.mark.parametrize("name", ["N1", "0", "a", "A.b_c-d", "9" * 64])
def test_accepted_names(name: str) -> None:
    assert Topology([name], []).nodes == (name,)


@pytest.mark.parametrize(
    "name",
    [
        "",
        ".a",
        "-a",
        "_a",
        "a b",
        "a\n",
        "\na",
        "a/b",
        "a->b",
        "a#",
        "ä",
        "N\uff11",
        "a" * 65,
        "a\x1b[2J",
        "..",
        7,
        None,
        b"a",
    ],
)
def test_refused_names(name: object) -> None:
    with pytest.raises(TopologyError, match="a node's name must be 1 to 64 characters of A-Z a-z 0-9") as caught:
        Topology(["a", name], [])  # type: ignore[list-item]
    assert str(caught.value).isprintable()


@pytest.mark.parametrize(
    ("nodes", "channels", "tokens", "what", "hint"),
    [
        ([], [], {}, "a topology needs at least one node", None),
        (["a", "b", "a"], [], {}, "node a stands twice", None),
        (["a", "b"], [("a", "b"), ("b", "a"), ("a", "b")], {}, "channel a->b stands twice", None),
        (["a", "b"], [("a", "a")], {}, "channel a->a joins a node with itself", None),
        (["alpha", "beta"], [("alpha", "bet")], {}, "channel alpha->bet needs 'bet', which is not a node", "beta"),
        (["alpha", "beta"], [("Alpha", "beta")], {}, "channel Alpha->beta needs 'Alpha', which is not a node", "alpha"),
        (["a", "b"], [("a", "zzz")], {}, "channel a->zzz needs 'zzz', which is not a node", "a, b"),
        (["a"], [("a", "b" * 200)], {}, "which is not a node", "a"),
        (["a"], [], {"b": 1}, "tokens are given to 'b', which is not a node", "a"),
        (["a"], [], {"a": -1}, "the tokens of a must be a whole number >= 0, not -1", None),
        (["a"], [], {"a": 1.0}, "the tokens of a must be a whole number >= 0, not 1.0", None),
        (["a"], [], {"a": True}, "the tokens of a must be a whole number >= 0, not True", None),
        (["a"], [], {"a": "5"}, "the tokens of a must be a whole number >= 0, not '5'", None),
    ],
)
def test_refused_topologies(
    nodes: list[str], channels: list[tuple[str, str]], tokens: dict[str, int], what: str, hint: str | None
) -> None:
    with pytest.raises(TopologyError) as caught:
        Topology(nodes, channels, tokens)
    assert what in caught.value.what
    assert caught.value.hint == hint
    assert caught.value.where is None
    assert len(str(caught.value)) < 250


def test_unknown_nodes_are_refused_by_every_question() -> None:
    topology = parse_topology("ring:3")
    for ask in (
        topology.inbound,
        topology.outbound,
        topology.unreachable_from,
        lambda node: topology.reachable(["N1", node]),
        lambda node: topology.initiators(["N1", node]),
    ):
        with pytest.raises(TopologyError) as caught:
            ask("n2")
        assert refusal(caught) == (None, "there is no node 'n2'", "N2")


def test_fingerprint_is_of_nodes_and_channels_alone() -> None:
    """It says which snapshots fit, so it must never change: the first figure is frozen."""
    ring = parse_topology("ring:3")
    assert ring.fingerprint() == "42a6f0d4f588ecdc2d21382f6b448088ab9cfa92b4dd8d30d0124e4839cd1f01"
    assert Topology(["N3", "N1", "N2"], reversed(ring.channels), {"N1": 0}, "x").fingerprint() == ring.fingerprint()
    others = [
        Topology(ring.nodes, ring.channels[1:]),
        Topology([*ring.nodes, "N4"], ring.channels),
        Topology(ring.nodes, [(dst, src) for src, dst in ring.channels]),
    ]
    assert len({other.fingerprint() for other in [ring, *others]}) == 4


# --- Who reaches whom, and who must initiate. ---


def test_pipeline_is_reached_from_its_head_alone() -> None:
    line = parse_topology("line:4")
    assert line.reachable(["N2"]) == {"N2", "N3", "N4"}
    assert line.unreachable_from("N1") == ()
    assert line.unreachable_from("N3") == ("N1", "N2")
    assert line.source_components() == (("N1",),)
    assert line.initiators() == ("N1",)
    assert line.initiators(["N4", "N2", "N4"]) == ("N4", "N2", "N1")
    assert line.reachable([]) == frozenset()


def test_each_source_component_gets_one_initiator() -> None:
    """Two sources, one of them a cycle, and a sink: the first by name unless one is given already."""
    topology = Topology(
        ["z", "y", "m", "k", "sink"], [("z", "y"), ("y", "z"), ("y", "sink"), ("m", "sink"), ("m", "k"), ("k", "sink")]
    )
    assert topology.source_components() == (("m",), ("y", "z"))
    assert topology.initiators() == ("m", "y")
    assert topology.initiators(["z"]) == ("z", "m")
    assert topology.initiators(["sink", "y"]) == ("sink", "y", "m")
    assert topology.unreachable_from("k") == ("m", "y", "z")


def dumb_reach(channels: Iterable[tuple[str, str]], starts: Iterable[str]) -> set[str]:
    """Follow every channel until nothing is new: too simple to be wrong."""
    reached, before = set(starts), -1
    while len(reached) != before:
        before = len(reached)
        reached |= {dst for src, dst in channels if src in reached}
    return reached


@st.composite
def topologies(draw: st.DrawFn) -> Topology:
    names = draw(st.lists(st.from_regex(r"[a-c][0-9]?", fullmatch=True), min_size=1, max_size=8, unique=True))
    pairs = list(permutations(names, 2))
    channels = draw(st.lists(st.sampled_from(pairs), unique=True, max_size=16)) if pairs else []
    return Topology(names, channels, {name: draw(st.integers(0, 2**63 - 1)) for name in names if draw(st.booleans())})


@settings(max_examples=200, deadline=None)
@given(topologies(), st.data())
def test_initiators_reach_every_node(topology: Topology, data: st.DataObject) -> None:
    """On any digraph: the sources are right, their initiators reach all, and none of those added could be spared."""
    reach = {node: dumb_reach(topology.channels, [node]) for node in topology.nodes}
    components = {
        node: tuple(sorted(o for o in topology.nodes if o in reach[node] and node in reach[o])) for node in reach
    }
    sources = {
        components[node]
        for node in reach
        if all(components[src] == components[node] for src, dst in topology.channels if dst in components[node])
    }
    assert topology.source_components() == tuple(sorted(sources))
    for node in topology.nodes:
        assert topology.reachable([node]) == reach[node]
        assert topology.unreachable_from(node) == tuple(sorted(reach.keys() - reach[node]))
        assert topology.outbound(node) == tuple(sorted(dst for src, dst in topology.channels if src == node))
        assert topology.inbound(node) == tuple(sorted(src for src, dst in topology.channels if dst == node))
    given_names = data.draw(st.lists(st.sampled_from(topology.nodes), max_size=3))
    chosen = topology.initiators(given_names)
    distinct = tuple(dict.fromkeys(given_names))
    assert chosen[: len(distinct)] == distinct
    assert topology.reachable(chosen) == dumb_reach(topology.channels, chosen) == set(topology.nodes)
    for spared in chosen[len(distinct) :]:
        assert topology.reachable(node for node in chosen if node != spared) != set(topology.nodes)


def test_deep_graphs_need_no_recursion() -> None:
    """A path is as deep as it is long, whichever way the nodes are declared."""
    size = 30_000
    names = [f"N{number}" for number in range(size)]
    path = [(names[place], names[place + 1]) for place in range(size - 1)]
    for nodes in (names, names[::-1]):
        topology = Topology(nodes, path)
        assert topology.source_components() == (("N0",),)
        assert len(topology.reachable(["N0"])) == size
        assert len(topology.unreachable_from(names[-1])) == size - 1
    cycle = Topology(names, [*path, (names[-1], names[0])])
    assert len(cycle.source_components()[0]) == size


# --- Specifications. ---


@pytest.mark.parametrize(
    ("spec", "channels"),
    [
        ("ring:1", ""),
        ("ring:2", "N1->N2 N2->N1"),
        ("ring:3", "N1->N2 N2->N3 N3->N1"),
        ("biring:1", ""),
        ("biring:2", "N1->N2 N2->N1"),
        ("biring:3", "N1->N2 N1->N3 N2->N1 N2->N3 N3->N1 N3->N2"),
        ("biring:4", "N1->N2 N1->N4 N2->N1 N2->N3 N3->N2 N3->N4 N4->N1 N4->N3"),
        ("line:1", ""),
        ("line:3", "N1->N2 N2->N3"),
        ("star:1", ""),
        ("star:3", "N1->N2 N1->N3 N2->N1 N3->N1"),
        ("grid:1x1", ""),
        ("grid:1x3", "N1->N2 N2->N1 N2->N3 N3->N2"),
        ("grid:3x1", "N1->N2 N2->N1 N2->N3 N3->N2"),
        (
            "grid:2x3",
            "N1->N2 N1->N4 N2->N1 N2->N3 N2->N5 N3->N2 N3->N6 N4->N1 N4->N5 N5->N2 N5->N4 N5->N6 N6->N3 N6->N5",
        ),
        ("complete:1", ""),
        ("complete:3", "N1->N2 N1->N3 N2->N1 N2->N3 N3->N1 N3->N2"),
        ("random:1:1:0", ""),
        ("random:2:0:0", "N1->N2 N2->N1"),
        ("random:2:1:0", "N1->N2 N2->N1"),
    ],
)
def test_small_forms(spec: str, channels: str) -> None:
    """Every form at its smallest, where each directed channel must still stand once."""
    topology = parse_topology(spec)
    assert text_of(topology) == channels
    assert topology.name == spec
    assert set(topology.tokens.values()) == {10}
    assert topology.nodes == tuple(f"N{number}" for number in range(1, len(topology.nodes) + 1))


@pytest.mark.parametrize(
    ("spec", "nodes", "channels"),
    [
        ("ring:500", 500, 500),
        ("biring:500", 500, 1000),
        ("line:500", 500, 499),
        ("star:500", 500, 998),
        ("grid:20x30", 600, 2 * (20 * 29 + 30 * 19)),
        ("complete:40", 40, 40 * 39),
        ("random:40:1:3", 40, 40 * 39),
        ("random:500:0:3", 500, 500),
    ],
)
def test_larger_forms(spec: str, nodes: int, channels: int) -> None:
    topology = parse_topology(spec)
    assert (len(topology.nodes), len(topology.channels)) == (nodes, channels)
    assert topology.initiators() == ("N1",)


def test_random_is_the_same_for_ever() -> None:
    """People publish a specification instead of a graph: these channels are frozen."""
    topology = parse_topology("random:5:0.3:7")
    assert text_of(topology) == "N1->N4 N1->N5 N2->N1 N2->N5 N3->N2 N4->N1 N4->N2 N4->N3 N5->N1 N5->N3"
    assert topology != parse_topology("random:5:0.3:8")
    assert topology == parse_topology("random:5:3e-1:7")


@settings(max_examples=60, deadline=None)
@given(
    st.integers(1, 30), st.sampled_from(["0", "1", "0.0", "1e-300", "0.01", "0.5", "0.999"]), st.integers(0, 2**63 - 1)
)
def test_random_is_strongly_connected(size: int, probability: str, seed: int) -> None:
    """There is always a cycle through all nodes, so any node initiates for all."""
    topology = parse_topology(f"random:{size}:{probability}:{seed}")
    assert topology.source_components() == (tuple(sorted(topology.nodes)),)
    if float(probability) < 1e-9 and size > 1:
        assert len(topology.channels) == size
        assert all(len(topology.outbound(node)) == len(topology.inbound(node)) == 1 for node in topology.nodes)
    if probability == "1":
        assert topology.channels == parse_topology(f"complete:{size}").channels


def test_random_hits_its_probability() -> None:
    """Each pair outside the cycle is there with probability P, the early ones no more than the late ones."""
    hits = dict.fromkeys(permutations(["N1", "N2", "N3", "N4", "N5"], 2), 0)
    for seed in range(1_000):
        for channel in parse_topology(f"random:5:0.25:{seed}").channels:
            hits[channel] += 1
    # A pair is in the cycle with probability 1/4, else present with 1/4: 437.5 of 1000, standard deviation 15.7.
    assert all(abs(count - 437.5) < 80 for count in hits.values()), hits
    large = parse_topology("random:400:0.05:1")
    assert abs(len(large.channels) - 400 - 0.05 * 400 * 398) < 450


@pytest.mark.parametrize(
    ("spec", "what", "hint"),
    [
        ("rnig:4", "unknown topology 'rnig'; the forms are " + ", ".join(FORMS), "ring"),
        ("Ring:4", "unknown topology 'Ring'", "ring"),
        ("", "unknown topology ''", "one of these, or a .top file"),
        ("foo", "unknown topology 'foo'", "one of these, or a .top file"),
        (" ring:4", "unknown topology ' ring'", "ring"),
        ("a\x1b[2J:4", "unknown topology 'a\\x1b[2J'", "one of these"),
        ("x" * 5000 + ":4", "unknown topology 'xxx", "one of these"),
        ("ring", "this is not of the form ring:N", "ring:4"),
        ("ring:4:5", "this is not of the form ring:N", "ring:4"),
        ("grid:2", "this is not of the form grid:RxC", "grid:2x3"),
        ("grid:2X3", "this is not of the form grid:RxC", "grid:2x3"),
        ("grid:2x3x4", "this is not of the form grid:RxC", "grid:2x3"),
        ("random:9:0.5", "this is not of the form random:N:P:SEED", "random:20:0.1:7"),
        ("ring:", "N must be a whole number >= 1, not ''", "ring:4"),
        ("ring:x", "N must be a whole number >= 1, not 'x'", "ring:4"),
        ("ring:0", "N must be a whole number >= 1, not 0", "ring:4"),
        ("ring:-3", "N must be a whole number >= 1, not '-3'", "ring:4"),
        ("ring:+3", "N must be a whole number >= 1, not '+3'", "ring:4"),
        ("ring:03", "N must be a whole number >= 1 without leading zeros, not '03'", "ring:4"),
        ("ring:\uff14", "N must be a whole number >= 1, not '\uff14'", "ring:4"),
        ("ring:²", "N must be a whole number >= 1, not '²'", "ring:4"),
        ("ring:1_0", "N must be a whole number >= 1, not '1_0'", "ring:4"),
        ("ring: 4", "N must be a whole number >= 1, not ' 4'", "ring:4"),
        ("ring:4\n", "N must be a whole number >= 1, not '4\\n'", "ring:4"),
        ("ring:4.0", "N must be a whole number >= 1, not '4.0'", "ring:4"),
        ("grid:0x3", "R must be a whole number >= 1, not 0", "grid:2x3"),
        ("grid:3x", "C must be a whole number >= 1, not ''", "grid:2x3"),
        ("random:9:1.01:1", "P must be a number from 0 to 1 such as 0.25, not '1.01'", "random:20:0.1:7"),
        ("random:9:-0.1:1", "P must be a number from 0 to 1", "random:20:0.1:7"),
        ("random:9:nan:1", "P must be a number from 0 to 1", "random:20:0.1:7"),
        ("random:9:inf:1", "P must be a number from 0 to 1", "random:20:0.1:7"),
        ("random:9:1e999:1", "P must be a number from 0 to 1", "random:20:0.1:7"),
        ("random:9:00.5:1", "P must be a number from 0 to 1", "random:20:0.1:7"),
        ("random:9:.5:1", "P must be a number from 0 to 1", "random:20:0.1:7"),
        ("random:9:0.\u0665:1", "P must be a number from 0 to 1", "random:20:0.1:7"),
        ("random:9:0.5:x", "SEED must be a whole number, not 'x'", "random:20:0.1:7"),
        ("random:9:0.5:-1", "SEED must be a whole number >= 0, not '-1'", "random:20:0.1:7"),
        ("random:9:0.5:01", "SEED must be a whole number without leading zeros, not '01'", "random:20:0.1:7"),
    ],
)
def test_refused_specifications(spec: str, what: str, hint: str) -> None:
    with pytest.raises(TopologyError) as caught:
        parse_topology(spec)
    assert caught.value.what.startswith(what)
    assert (caught.value.hint or "").startswith(hint)
    assert (caught.value.where or "")[:40] == repr(spec)[1:-1][:40]
    assert len(str(caught.value)) < 400
    assert str(caught.value).isprintable()


@pytest.mark.parametrize(
    ("spec", "what"),
    [
        ("ring:1000001", "N must be at most 1000000, not 1000001"),
        ("ring:" + "9" * 10_000, "N must be at most 1000000, not 99999"),
        ("grid:1000x1001", "1,001,000 nodes are more than the 1,000,000 of a specification"),
        ("complete:1415", "2,000,810 channels are more than the 2,000,000 of a specification"),
        ("complete:1000000", "999,999,000,000 channels are more than the 2,000,000 of a specification"),
        ("grid:800x800", "2,556,800 channels are more than the 2,000,000 of a specification"),
        ("random:1000000:0.5:1", "500,000,000,000 channels are more than the 2,000,000 of a specification"),
        ("random:9:0.5:" + "9" * 20, "SEED must be at most 9223372036854775807, not 99999"),
    ],
)
def test_oversized_specifications(spec: str, what: str) -> None:
    """A short text cannot ask for more than a machine has; the number is in the message and nothing is built."""
    with pytest.raises(TopologyError) as caught:
        parse_topology(spec)
    assert caught.value.what.startswith(what)


@settings(max_examples=500, deadline=None)
@given(
    st.lists(st.sampled_from([*"ring:gd0123x.e-", "random:", "grid:", "star:", "٣", " ", "\n"]), max_size=8).map(
        "".join
    )
)
def test_any_text_is_a_topology_or_an_error(spec: str) -> None:
    """Sizes are kept small by hand; what matters is that nothing but TopologyError comes out."""
    if re.search(r"\d{3}", spec):
        return
    try:
        topology = parse_topology(spec)
    except TopologyError:
        return
    assert is_spec(spec)
    assert topology.name == spec


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("ring:4", True),
        ("rnig:4", True),
        ("random:5:0.1:2", True),
        ("grid:2/3", True),
        ("ring", True),
        ("four.top", False),
        ("four", False),
        ("./ring", False),
        ("./ring:4", False),
        ("a/b:c", False),
        ("/tmp/x:y", False),
        ("ring:4.top", False),
        ("", False),
    ],
)
def test_tells_specifications_from_files(text: str, expected: bool) -> None:
    """A misspelt form is to be told as such, and `./` makes a file of anything."""
    assert is_spec(text) is expected


# --- .top files. ---

STORY = b"""\
# three nodes, one way
3          # so many

A 5
B\t0
  C 12  # the rich one
A B
B C
"""


def test_reads_a_file() -> None:
    topology = parse_top(STORY, "dir/story.top")
    assert topology == Topology(["A", "B", "C"], [("A", "B"), ("B", "C")], {"A": 5, "B": 0, "C": 12})
    assert topology.name == "dir/story.top"
    assert parse_top(STORY.replace(b"\n", b"\r\n"), "x") == topology
    assert parse_top(STORY.rstrip(), "x") == topology


def test_reads_edges_of_what_is_allowed() -> None:
    """Names of digits, the largest number, a comment with anything in it, and node lines in any order."""
    topology = parse_top("2\n7 9223372036854775807\n3 0 # é \u00a0 \u2028 ok\n3 7\n7 3".encode(), "f")
    assert topology.nodes == ("7", "3")
    assert topology.tokens["7"] == 2**63 - 1
    assert text_of(topology) == "3->7 7->3"
    assert parse_top(b"1\n" + b"#" * 4096 + b"\nA 0", "f").nodes == ("A",)


@pytest.mark.parametrize(
    ("data", "line", "what", "hint"),
    [
        (b"", 1, "the file has no lines but comments: expected the number of nodes", None),
        (b"\n  \n# nothing\n", 1, "the file has no lines but comments: expected the number of nodes", None),
        (b"\xef\xbb\xbf1\nA 0", 1, "byte order mark (BOM) of UTF-8", "without BOM"),
        ("1\nA 0".encode("utf-16"), 1, "byte order mark (BOM) of UTF-16", "without BOM"),
        ("1\nA 0".encode("utf-32"), 1, "byte order mark (BOM) of UTF-32", "without BOM"),
        (b"1\n# caf\xe9\nA 0", 2, "the file is not UTF-8: byte 0xe9", "UTF-8"),
        (b"1\nA 0\n\0", 3, "the line holds a NUL character", None),
        (b"1\n# \0\nA 0", 2, "the line holds a NUL character", None),
        (b"1\rA 0\rB 0", 1, "the line holds a CR that ends no line", "LF"),
        (b"1\r\nA 0 # x\rB 0\r\n", 2, "the line holds a CR that ends no line", "LF"),
        (b"1\n" + b"A" * 5000, 2, "the line has 5,000 characters, more than the 4,096 allowed", None),
        ("1\nA\u00a00".encode(), 2, "the line holds the white space U+00A0", "spaces or tabs"),
        (b"1\nA\x0b0", 2, "the line holds the white space U+000B", "spaces or tabs"),
        ("1\nA 0\u2028".encode(), 2, "the line holds the white space U+2028", "spaces or tabs"),
        (b"# first\n\n2 nodes", 3, "expected the number of nodes alone; found '2 nodes'", None),
        (b"A 5", 1, "expected the number of nodes alone; found 'A 5'", None),
        (b"many", 1, "the number of nodes must be a whole number >= 1, not 'many'", None),
        (b"0", 1, "the number of nodes must be a whole number >= 1, not 0", None),
        (b"-1", 1, "the number of nodes must be a whole number >= 1, not '-1'", None),
        (b"2.0", 1, "the number of nodes must be a whole number >= 1, not '2.0'", None),
        (b"02", 1, "the number of nodes must be a whole number >= 1 without leading zeros, not '02'", None),
        (b"9" * 4000, 1, "the number of nodes must be at most 9223372036854775807, not 999", None),
        (b"2\nA 5", 2, "the file ends after 1 of 2 node lines `name tokens`", None),
        (b"2\n", 1, "the file ends after 0 of 2 node lines `name tokens`", None),
        (b"3\nA 5\nB 5\n# C 5\n\n", 3, "the file ends after 2 of 3 node lines `name tokens`", None),
        (b"3\nA 5\nB 5\nA B", 4, "the tokens of node 3 of 3 must be a whole number, not 'B'", None),
        (b"2\nA", 2, "expected `name tokens`, node 1 of 2; found 'A'", None),
        (b"2\nA 1 2", 2, "expected `name tokens`, node 1 of 2; found 'A 1 2'", None),
        (b"1\nA 5\nB 5", 3, "expected `src dst`, a channel, after the nodes (1); found 'B 5'", "a larger number"),
        (b"2\nA 5\nB 5\nA B\nA", 5, "expected `src dst`, a channel; found 'A'", None),
        (b"2\nA 5\nB 5\nA -> B", 4, "expected `src dst`, a channel; found 'A -> B'", None),
        (b"1\nA -5", 2, "the tokens of node 1 of 1 must be a whole number >= 0, not '-5'", None),
        (b"1\nA 5.5", 2, "the tokens of node 1 of 1 must be a whole number, not '5.5'", None),
        (b"1\nA 9223372036854775808", 2, "the tokens of node 1 of 1 must be at most 9223372036854775807", None),
        ("1\nA ٣".encode(), 2, "the tokens of node 1 of 1 must be a whole number, not '٣'", None),
        (b"1\n_A 5", 2, "a node's name must be 1 to 64 characters", None),
        (b"1\n" + b"A" * 65 + b" 5", 2, "a node's name must be 1 to 64 characters", None),
        ("1\nÄ 5".encode(), 2, "a node's name must be 1 to 64 characters", None),
        (b"1\n\x1b[2J 5", 2, "a node's name must be 1 to 64 characters", None),
        (b"3\nA 5\nB 5\n\nA 6", 5, "node A stands twice, first in line 2", None),
        (b"2\nA 5\nB 5\nA B\nB A\nA B", 6, "channel A->B stands twice, first in line 4", None),
        (b"2\nA 5\nB 5\nB B", 4, "channel B->B joins a node with itself", None),
        (b"2\nin 5\nout 5\nin ouf", 4, "channel in->ouf needs 'ouf', which is not a node", "out"),
        (b"2\nin 5\nout 5\nIN out", 4, "channel IN->out needs 'IN', which is not a node", "in"),
    ],
)
def test_refused_files_name_the_line(data: bytes, line: int, what: str, hint: str | None) -> None:
    with pytest.raises(TopologyError) as caught:
        parse_top(data, "bad.top")
    assert caught.value.where == f"bad.top:{line}"
    assert what in caught.value.what
    assert (hint is None) == (caught.value.hint is None)
    assert (hint or "") in (caught.value.hint or "")
    assert len(str(caught.value)) < 300
    assert str(caught.value).isprintable()


def test_size_is_refused_before_anything_is_read() -> None:
    """Of a file too large not even the first bytes count; one byte less is read, and fails for what is in it."""
    with pytest.raises(TopologyError) as caught:
        parse_top(bytes((64 << 20) + 1), "big.top")
    assert refusal(caught) == ("big.top", "the file has 67,108,865 bytes, more than the 67,108,864 allowed", None)
    with pytest.raises(TopologyError, match="NUL"):
        parse_top(bytes(64 << 20), "big.top")


def test_a_hundred_thousand_nodes() -> None:
    """How many nodes can run is not the parser's business."""
    size = 100_000
    lines = [str(size), *(f"N{number} {number}" for number in range(size)), "N7 N99999", "N99999 N7"]
    topology = parse_top("\n".join(lines).encode(), "large.top")
    assert len(topology.nodes) == size
    assert topology.tokens["N99999"] == 99_999
    assert len(topology.initiators(["N7"])) == size - 1
    with pytest.raises(TopologyError, match="which is not a node") as caught:
        parse_top("\n".join([*lines, "N8 M8"]).encode(), "large.top")
    assert caught.value.hint == "N0, N1, N2, N3, N4, N5, N6, N7 and 99992 more"


def text_form(topology: Topology) -> list[str]:
    return [
        str(len(topology.nodes)),
        *(f"{node} {topology.tokens[node]}" for node in topology.nodes),
        *(f"{channel.src} {channel.dst}" for channel in topology.channels),
    ]


@settings(max_examples=100, deadline=None)
@given(topologies(), st.data())
def test_round_trip(topology: Topology, data: st.DataObject) -> None:
    """What is written out is read back, however it is spaced, commented and ended."""
    written = []
    for line in text_form(topology):
        written += data.draw(st.lists(st.sampled_from(["", "  ", "# 1 2", "\t#"]), max_size=2))
        space = data.draw(st.sampled_from([" ", "\t", "   "]))
        written.append(data.draw(st.sampled_from(["", " ", "\t"])) + line.replace(" ", space))
        written[-1] += data.draw(st.sampled_from(["", "  ", "#", " # A B"]))
    text = data.draw(st.sampled_from(["\n", "\r\n"])).join(written) + data.draw(
        st.sampled_from(["", "\n", "\n\n# end"])
    )
    again = parse_top(text.encode(), "written.top")
    assert again == topology
    assert again.fingerprint() == topology.fingerprint()


# --- Nothing but TopologyError may come of any bytes. ---


def outcome(data: bytes) -> Topology | TopologyError:
    try:
        return parse_top(data, "fuzz")
    except TopologyError as error:
        return error


@settings(max_examples=500, deadline=None)
@given(st.binary(max_size=200))
def test_arbitrary_bytes(data: bytes) -> None:
    result = outcome(data)
    assert isinstance(result, Topology) or (result.where or "").startswith("fuzz:")


FIELD = st.sampled_from(["A", "B", "C", "0", "1", "2", "3", "-1", "05", "9" * 30, "#", "é", "\x0c", "\0", "A" * 70])


@settings(max_examples=500, deadline=None)
@given(topologies(), st.data())
def test_nearly_valid_files(topology: Topology, data: st.DataObject) -> None:
    """One line of a good file is lost, doubled, moved or replaced: accepted or refused at a line that is there."""
    lines = text_form(topology)
    place = data.draw(st.integers(0, len(lines) - 1))
    spoiled = data.draw(
        st.sampled_from([[], [lines[place]] * 2, [lines[-1]], [lines[0]]])
        | st.lists(FIELD, max_size=4).map(lambda fields: [" ".join(fields)])
    )
    lines[place : place + 1] = spoiled
    result = outcome("\n".join(lines).encode())
    if isinstance(result, TopologyError):
        source, _, line = (result.where or "").partition(":")
        assert source == "fuzz"
        assert 1 <= int(line) <= max(1, len(lines))
    else:
        assert len(result.nodes) == int(lines[0].split()[0])
        assert result == Topology(result.nodes, result.channels, result.tokens)


# --- What other parsers share. ---


def test_significant_lines_raise_what_they_are_told_to() -> None:
    class OwnError(InputError):
        pass

    assert list(significant_lines(b"a  b\n\n#\n c#d\n", "f", OwnError)) == [(1, ["a", "b"]), (4, ["c"])]
    with pytest.raises(OwnError) as caught:
        list(significant_lines(b"a\n\0", "f", OwnError))
    assert caught.value.where == "f:2"


@pytest.mark.parametrize(("text", "expected"), [("0", 0), ("7", 7), ("12", 12)])
def test_whole_numbers(text: str, expected: int) -> None:
    assert whole_number(text, most=12) == expected


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("13", "at most 12, not 13"),
        ("100", "at most 12, not 100"),
        ("-0", "a whole number >= 0, not '-0'"),
        ("", "not ''"),
    ],
)
def test_refused_whole_numbers(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        whole_number(text, most=12)


@pytest.mark.parametrize(
    ("word", "known", "expected"),
    [
        ("n1", ["N1", "N2"], "N1"),
        ("N12", ["N1", "N2", "M"], "N2 or N1"),
        ("sned", ["send", "tick"], "send"),
        ("x", ["send", "tick"], "send, tick"),
        ("x", [str(number) for number in range(10)], "0, 1, 2, 3, 4, 5, 6, 7 and 2 more"),
        ("a" * 65, ["a" * 64], "a" * 64),
    ],
)
def test_suggestions(word: str, known: list[str], expected: str) -> None:
    """A slip of the keyboard gets the word that was meant; anything else what there is."""
    assert suggestion(word, known) == expected
    assert suggestion("zzz", known, otherwise="a way out") == "a way out"
