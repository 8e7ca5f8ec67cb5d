"""What people and machines are shown of a snapshot, word for word.

The files in `golden` were written from the formats and read by eye. `pytest tests/test_views.py --rewrite` writes down
what the views say now; commit the difference only if it is meant.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from cli_harness import cut

from mpsnap.core.codec import Codec
from mpsnap.core.errors import MpsnapError
from mpsnap.core.forms import parse_topology
from mpsnap.core.snapshot import GlobalSnapshot
from mpsnap.core.topology import Topology
from mpsnap.views.document import error_document, output_document, run_document, snapshot_document
from mpsnap.views.snapfile import snap_text
from mpsnap.views.tables import (
    MESSAGES_WIDTH,
    ROWS_SHOWN,
    VALUE_WIDTH,
    count,
    messages_shown,
    outputs_table,
    shown,
    snapshot_line,
    snapshot_table,
)

GOLDEN = Path(__file__).parent / "golden"

Golden = Callable[[str, str], None]


@pytest.fixture
def golden(request: pytest.FixtureRequest) -> Golden:
    """Compare a text with a file, or make the file."""

    def compare(name: str, text: str) -> None:
        if request.config.getoption("--rewrite", default=False):
            (GOLDEN / name).write_text(text)
        assert text == (GOLDEN / name).read_text()

    return compare


def tokens() -> GlobalSnapshot:
    """Three nodes out of order, one of which holds nothing, and messages on two channels of four."""
    topology = Topology(["N2", "N10", "N1"], [("N1", "N10"), ("N1", "N2"), ("N2", "N1"), ("N10", "N2")])
    return cut(
        topology,
        {"N1": {"tokens": 0}, "N2": {"tokens": 17}, "N10": {"tokens": 4}},
        {("N1", "N10"): [5, 1, 1], ("N2", "N1"): [2]},
        received={("N1", "N2"): 120, ("N2", "N1"): 7, ("N10", "N2"): 3},
        number=3,
        initiators=("N2", "N1"),
        duration=0.0123456,
        passive=["N1"],
    )


def office() -> GlobalSnapshot:
    """Eight nodes with long names and states, every channel in use."""
    branches = [f"branch-{k}.example.org" for k in range(1, 9)]
    topology = Topology(branches, [(src, dst) for src in branches for dst in branches if src != dst])
    states = {
        branch: {"accounts": [10**k, -k, 0], "owner": {"name": "Ada " * k, "since": (1985, k)}, "open": k % 2 == 0}
        for k, branch in enumerate(branches)
    }
    messages: dict[tuple[str, str], list[object]] = {
        channel: [{"to": k % 5, "amount": 10**k, "reference": "x" * k} for k in range(n % 4 + 1)]
        for n, channel in enumerate(topology.channels)
    }
    return cut(topology, states, messages, number=11, duration=1.5)


HOSTILE: list[object] = [
    "\x1b[2J\x1b[31mred",
    "two\nlines\r\ttab",
    "right\u202eto left",
    "1e5",
    1e22,
    float("nan"),
    True,
    None,
    "007",
    7,
    "",
    " spaces ",
    "a" * 10**6,
    10**5000,
    [0] * 10**5,
    b"\x00\xff" * 100,
    {"nested": {"deep": ["\x07" * 100]}},
    {3, 1, 2},
]


def hostile() -> GlobalSnapshot:
    """Names that look like numbers, and values that would break a table or a terminal."""
    topology = Topology(["1e5", "007", "1.50"], [("1e5", "007"), ("007", "1.50"), ("1.50", "1e5")])
    return cut(
        topology,
        {"1e5": "1e5", "007": HOSTILE[0], "1.50": HOSTILE[12]},
        {("1e5", "007"): ["12", "1e5", 12], ("007", "1.50"): HOSTILE[:3], ("1.50", "1e5"): HOSTILE[12:14]},
    )


# --- Tables. ---


@pytest.mark.parametrize("snapshot", [tokens, office, hostile])
def test_snapshot_tables(golden: Golden, snapshot: Callable[[], GlobalSnapshot]) -> None:
    text = snapshot_table(snapshot())
    golden(f"table-{snapshot.__name__}.txt", text)
    assert text.endswith("\n")
    assert all(line.isprintable() for line in text.splitlines())
    assert all(line == line.rstrip() for line in text.splitlines())


def test_snapshot_lines(golden: Golden) -> None:
    alone = cut(Topology(["only"], []), {"only": None}, {}, number=1, duration=0.0004)
    golden("lines.txt", "".join(snapshot_line(snapshot) + "\n" for snapshot in (tokens(), office(), hostile(), alone)))


def test_a_wrong_cut_says_so() -> None:
    """None is ever shown by a run; a reader of files may meet one."""
    snapshot = tokens()
    snapshot._locals["N1"].received["N2"] += 1  # type: ignore[index]
    assert ": NOT CONSISTENT, " in snapshot_line(snapshot)


def test_outputs_tables(golden: Golden) -> None:
    text = outputs_table([("N1" if n % 2 else "1e5", n * 55, record) for n, record in enumerate(HOSTILE)])
    golden("outputs.txt", text)
    assert all(line.isprintable() for line in text.splitlines())


def test_a_table_of_many_is_cut_and_says_of_how_many() -> None:
    topology = parse_topology("complete:40")
    snapshot = cut(topology, dict.fromkeys(topology.nodes), dict.fromkeys(topology.channels[:30], (1, 2, 3)))
    lines = snapshot_table(snapshot).splitlines()
    assert len(lines) == 1 + 2 * (2 + ROWS_SHOWN + 1)
    assert lines[2 + ROWS_SHOWN + 1] == "and 16 more nodes"
    assert lines[-1] == "and 18 more messages on 6 more channels"


@pytest.mark.parametrize("value", HOSTILE, ids=lambda value: repr(value)[:20] if type(value) is not int else "int")
def test_a_value_takes_one_line_of_bounded_width(value: object) -> None:
    text = shown(value)
    assert text.isprintable()
    assert 0 < len(text) <= VALUE_WIDTH


def test_a_value_that_fits_is_its_own_python_form() -> None:
    assert shown("a" * (VALUE_WIDTH - 2)) == repr("a" * (VALUE_WIDTH - 2))
    longer = shown("a" * (VALUE_WIDTH - 1) + "z")
    assert len(longer) == VALUE_WIDTH
    assert longer.startswith("'aaa")
    assert longer.endswith("aaz'")
    assert longer.count("...") == 1


@dataclass
class Shy:
    """Refuse to be shown."""

    size: int

    def __repr__(self) -> str:
        raise RuntimeError("no")


def test_a_value_that_cannot_show_itself_is_shown_all_the_same() -> None:
    assert shown(Shy(3)) == '{"$type": "test_views:Shy", "value": {"size": 3}}'
    assert shown([10**5000]).startswith('[{"$type": "int", "value": "0x')


def test_messages_are_shown_as_far_as_they_fit() -> None:
    assert messages_shown([1]) == "1"
    assert messages_shown(list(range(10))) == "0, 1, 2, 3, 4, 5, 6, 7, 8, 9"
    many = messages_shown(list(range(100, 1000)))
    assert many.startswith("100, 101, 102, ")
    assert len(many.partition(" and ")[0]) <= MESSAGES_WIDTH
    assert many.endswith(" and 890 more")
    assert messages_shown(["x" * 500, 1]).endswith("' and 1 more"), "at least one, however long"


def test_numbers_agree_with_their_nouns() -> None:
    assert [count(n, "channel") for n in (0, 1, 2)] == ["0 channels", "1 channel", "2 channels"]
    assert [count(n, "process") for n in (1, 2)] == ["1 process", "2 processes"]


# --- Files and documents. ---


def test_snap_files(golden: Golden) -> None:
    """Nodes and channels by name, as text: N10 stands before N2."""
    text = snap_text(tokens())
    assert text == "3\nN1 0\nN10 4\nN2 17\nN1 N10 token(5)\nN1 N10 token(1)\nN1 N10 token(1)\nN2 N1 token(2)\n"
    golden("tokens.snap", text)


def test_snapshot_documents(golden: Golden) -> None:
    golden("document-tokens.json", as_text(snapshot_document(tokens())))
    document = snapshot_document(hostile())
    assert as_text(document).isascii()
    assert document["nodes"]["007"]["state"] == HOSTILE[0], "escaped by JSON, not by us"
    assert document["channels"][0]["messages"] == HOSTILE[:3]


def test_run_documents(golden: Golden) -> None:
    """Kinds that JSON has not are tagged; an error has its three parts."""
    codec = Codec(types=[Shy])
    topology = Topology(["A", "B"], [("A", "B")])
    state = {"pair": (1, 2), "raw": b"\xff", "by": {1: {2}}, "odd": [float("inf"), 10**5000 > 0], "$key": Shy(1)}
    snapshot = cut(topology, {"A": state, "B": None}, {("A", "B"): [Shy(2), (3,)]}, codec=codec)
    error = MpsnapError("what\nfailed", where="app.py:3", hint="something \x1b else")
    document = run_document({"app": "mine"}, [snapshot_document(snapshot)], [("A", 0, (1,)), ("B", 7, None)], error)
    golden("document-run.json", as_text(document))


def test_small_documents() -> None:
    assert error_document(None) is None
    assert error_document(MpsnapError("failed")) == {"what": "failed", "where": None, "try": None}
    assert output_document("A", 3, {"b"}) == {"node": "A", "n": 3, "record": {"$set": ["b"]}}
    assert run_document({}, [], [], None) == {"run": {}, "snapshots": [], "outputs": [], "error": None}


def as_text(document: Any) -> str:
    return json.dumps(document, indent=2, allow_nan=False) + "\n"


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ({"b", "a", "c"}, "{'a', 'b', 'c'}"),
        ([frozenset({"b", "a"}), (set(),)], "[frozenset({'a', 'b'}), (set(),)]"),
        ({"k": {1, "x"}}, "{'k': {'x', 1}}"),
    ],
)
def test_sets_are_shown_in_the_same_order_in_every_process(value: object, text: str) -> None:
    assert shown(value) == text
