"""`.events` scripts: what is read, what is refused and where, and that the scenarios beside can be carried out."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mpsnap.core.errors import ScriptError
from mpsnap.core.forms import parse_topology
from mpsnap.core.script import Script, Send, Snapshot, Tick, parse_events
from mpsnap.core.topology import Topology, parse_top

SCENARIOS = Path(__file__).parent / "scenarios"
NAMES = sorted(path.stem for path in SCENARIOS.glob("*.top"))

RING = parse_topology("ring:3")


def test_reads_steps_in_order() -> None:
    """Every step keeps its line; blank lines and comments are none."""
    script = parse_events(
        b"# a story\n\nsend N1 N2 4 # half of it\r\n\tsnapshot  N3\ntick\ntick 0\ntick 1000000000\nsend N3 N1 30",
        RING,
        "a.events",
    )
    assert script == Script(
        (
            Send(3, "N1", "N2", 4),
            Snapshot(4, "N3"),
            Tick(5, 1),
            Tick(6, 0),
            Tick(7, 10**9),
            Send(8, "N3", "N1", 30),
        ),
        "a.events",
    )
    assert [step.count for step in script.steps if isinstance(step, Tick)] == [1, 0, 10**9]


@pytest.mark.parametrize(
    ("text", "line", "what", "hint"),
    [
        ("", 1, "the script has no steps", "send SRC DST N"),
        ("# nothing\n\n", 1, "the script has no steps", "snapshot NODE"),
        ("tick\nsned N1 N2 1", 2, "unknown step 'sned'", "send"),
        ("Snapshot N1", 1, "unknown step 'Snapshot'", "snapshot"),
        ("jump", 1, "unknown step 'jump'", "send, snapshot, tick"),
        ("send N1 N2", 1, "expected `send SRC DST N`; found 'send N1 N2'", None),
        ("send N1 N2 1 1", 1, "expected `send SRC DST N`", None),
        ("snapshot", 1, "expected `snapshot NODE`; found 'snapshot'", None),
        ("snapshot N1 N2", 1, "expected `snapshot NODE`", None),
        ("tick 1 ms", 1, "expected `tick [N]`; found 'tick 1 ms'", None),
        ("\n\nsnapshot n1", 3, "there is no node 'n1'", "N1"),
        ("send Nl N2 1", 1, "there is no node 'Nl'", "N"),
        ("send N1 other 1", 1, "there is no node 'other'", "N1, N2, N3"),
        ("send N1 N3 1", 1, "there is no channel N1->N3", "from N1 to N2"),
        ("send N1 N1 1", 1, "there is no channel N1->N1", "from N1 to N2"),
        ("send N1 N2 0", 1, "the tokens to send must be a whole number >= 1, not 0", None),
        ("send N1 N2 -4", 1, "the tokens to send must be a whole number >= 1, not '-4'", None),
        ("send N1 N2 1.0", 1, "the tokens to send must be a whole number >= 1, not '1.0'", None),
        ("send N1 N2 04", 1, "without leading zeros, not '04'", None),
        ("send N1 N2 ٣", 1, "a whole number >= 1, not '٣'", None),
        ("send N1 N2 1_0", 1, "a whole number >= 1, not '1_0'", None),
        ("send N1 N2 31", 1, "N1 can never hold 31 tokens: all nodes together have 30", None),
        ("send N1 N2 " + "9" * 4000, 1, "the tokens to send must be at most 9223372036854775807", None),
        ("tick -1", 1, "the ticks must be a whole number >= 0, not '-1'", None),
        ("tick ten", 1, "the ticks must be a whole number, not 'ten'", None),
        ("tick 1000000001", 1, "the ticks must be at most 1000000000, not 1000000001", None),
        ("tick\u00a01", 1, "the line holds the white space U+00A0", "spaces or tabs"),
        ("tick\n\ufefftick", 2, "unknown step '\\ufeff", "tick"),
    ],
)
def test_refusals_name_the_line(text: str, line: int, what: str, hint: str | None) -> None:
    with pytest.raises(ScriptError) as caught:
        parse_events(text.encode(), RING, "bad.events")
    assert caught.value.where == f"bad.events:{line}"
    assert what in caught.value.what
    assert len(str(caught.value)) < 400
    if hint is None:
        assert caught.value.hint is None
    else:
        assert hint in (caught.value.hint or "")


def test_refuses_what_no_channel_leaves() -> None:
    """At the end of a pipeline there is nothing to suggest but another source."""
    with pytest.raises(ScriptError) as caught:
        parse_events(b"send N3 N2 1", parse_topology("line:3"), "bad.events")
    assert caught.value.hint == "another source, as no channel leaves N3"


def test_lists_only_a_few_channels() -> None:
    with pytest.raises(ScriptError) as caught:
        parse_events(b"send hub x 1", Topology(["hub", "x", *"abcdefghijk"], [("hub", c) for c in "abcdefghijk"]), "f")
    assert caught.value.hint == "from hub to a, b, c, d, e, f, g, h and 3 more"


@pytest.mark.parametrize(
    ("data", "where", "what"),
    [
        (b"\xef\xbb\xbftick", "f:1", "byte order mark (BOM) of UTF-8"),
        (b"tick\nti\0ck", "f:2", "NUL"),
        (b"tick\n\ntick \xff", "f:3", "not UTF-8: byte 0xff"),
        (b"tick\rtick", "f:1", "a CR that ends no line"),
        (b"#" * 4097, "f:1", "4,097 characters"),
        (bytes((64 << 20) + 1), "f", "67,108,865 bytes, more than the 67,108,864"),
    ],
)
def test_unreadable_files_are_script_errors(data: bytes, where: str, what: str) -> None:
    """How a file is read is shared with `.top` files; the error is the script's all the same."""
    with pytest.raises(ScriptError) as caught:
        parse_events(data, RING, "f")
    assert caught.value.where == where
    assert what in caught.value.what


def test_total_is_that_of_the_topology_given() -> None:
    """Who starts the nodes with other tokens parses the script for a topology that says so."""
    rich = Topology(RING.nodes, RING.channels, {"N1": 1_000})
    assert parse_events(b"send N2 N3 1020", rich, "f").steps == (Send(1, "N2", "N3", 1020),)
    poor = Topology(RING.nodes, RING.channels, dict.fromkeys(RING.nodes, 0))
    with pytest.raises(ScriptError, match="all nodes together have 0"):
        parse_events(b"send N2 N3 1", poor, "f")


# --- Nothing but ScriptError may come of any bytes. ---


def outcome(data: bytes) -> Script | ScriptError:
    try:
        return parse_events(data, RING, "fuzz")
    except ScriptError as error:
        return error


@settings(max_examples=500, deadline=None)
@given(st.binary(max_size=200))
def test_arbitrary_bytes(data: bytes) -> None:
    result = outcome(data)
    assert isinstance(result, Script) or (result.where or "").startswith("fuzz:")


FIELD = st.sampled_from(["send", "snapshot", "tick", "N1", "N2", "N3", "N4", "0", "1", "7", "99", "-1", "#", "٣", "\0"])
LINE = st.one_of(
    st.lists(FIELD, max_size=6).map(" ".join),
    st.tuples(st.just("send"), FIELD, FIELD, FIELD).map(" ".join),
    st.sampled_from(["send N1 N2 1", "snapshot N2", "tick", "tick 5 # five", "", "\t", "tick\r"]),
)


@settings(max_examples=500, deadline=None)
@given(st.lists(LINE, max_size=6))
def test_nearly_valid_scripts(lines: list[str]) -> None:
    """What is accepted fits the topology; what is not is refused at a line that is there."""
    result = outcome("\n".join(lines).encode())
    if isinstance(result, ScriptError):
        source, _, line = (result.where or "").partition(":")
        assert source == "fuzz"
        assert 1 <= int(line) <= max(1, len(lines))
        return
    assert result.steps
    for step in result.steps:
        assert lines[step.line - 1].split()[0] == type(step).__name__.lower()
        if isinstance(step, Send):
            assert step.dst in RING.outbound(step.src)
            assert 1 <= step.amount <= 30


# --- The scenarios. ---


def load(name: str) -> tuple[Topology, Script]:
    top, events = SCENARIOS / f"{name}.top", SCENARIOS / f"{name}.events"
    topology = parse_top(top.read_bytes(), top.name)
    return topology, parse_events(events.read_bytes(), topology, events.name)


def test_scenarios_come_in_pairs() -> None:
    assert len(NAMES) >= 12
    assert sorted(path.stem for path in SCENARIOS.glob("*.events")) == NAMES


@pytest.mark.parametrize("name", NAMES)
def test_scenario_can_be_carried_out(name: str) -> None:
    """No node sends what it cannot have: what is under way arrives with the next tick, not before."""
    topology, script = load(name)
    held = Counter(topology.tokens)
    under_way: Counter[str] = Counter()
    for step in script.steps:
        if isinstance(step, Send):
            assert held[step.src] >= step.amount, f"{script.source}:{step.line}"
            held[step.src] -= step.amount
            under_way[step.dst] += step.amount
        elif isinstance(step, Tick):
            held.update(under_way)
            under_way.clear()
    assert not under_way, "a scenario ends with a tick, in which all that was sent arrives"
    assert held.total() == sum(topology.tokens.values())
    assert 2 <= len(topology.nodes) <= 10
    assert any(isinstance(step, Snapshot) for step in script.steps)


SAYING = sorted(path for path in SCENARIOS.iterdir() if path.suffix in (".top", ".events"))


@pytest.mark.parametrize("path", SAYING, ids=lambda path: path.name)
def test_scenario_says_what_it_shows(path: Path) -> None:
    first, second, *_ = path.read_text(encoding="utf-8").splitlines()
    assert first.startswith("# ")
    assert first.endswith(".")
    assert not second.startswith("#")


def test_scenarios_cover_what_is_hard() -> None:
    """Each of these is shown by at least one of them, so that a test that runs them all does not pass for nothing."""
    shown = Counter[str]()
    for name in NAMES:
        topology, script = load(name)
        sends = [step for step in script.steps if isinstance(step, Send)]
        pairs = list(zip(script.steps, script.steps[1:], strict=False))
        shown["no sends"] += not sends
        shown["several source components"] += len(topology.source_components()) > 1
        shown["a sink"] += any(not topology.outbound(node) for node in topology.nodes)
        shown["an initiator that cannot reach all"] += any(
            isinstance(step, Snapshot) and bool(topology.unreachable_from(step.node)) for step in script.steps
        )
        shown["concurrent snapshots"] += any(isinstance(a, Snapshot) and isinstance(b, Snapshot) for a, b in pairs)
        shown["sequential snapshots"] += any(isinstance(a, Tick) and isinstance(b, Snapshot) for a, b in pairs)
        shown["sends during a snapshot"] += any(isinstance(a, Snapshot) and isinstance(b, Send) for a, b in pairs)
        shown["deep queue"] += max(Counter((s.src, s.dst) for s in sends).values(), default=0) > 30
        spent = Counter[str]()
        for send in sends:
            spent[send.src] += send.amount
        shown["tokens that must arrive first"] += any(spent[node] > topology.tokens[node] for node in spent)
    assert all(shown.values()), shown
