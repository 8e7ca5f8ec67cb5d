"""Why a run does what it does: `why_document` on instants made by hand, and on any that may come."""

from __future__ import annotations

import faulthandler
import graphlib
import json
import re
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from fake_run import Document, channel_of, node_of, ring_of, status_of
from hypothesis import given, settings
from hypothesis import strategies as st

import mpsnap
from mpsnap.apps import pingpong
from mpsnap.core.node import PHASES
from mpsnap.runtime import process
from mpsnap.server.why import find_cycle, stack_lines, wait_for, why_document
from mpsnap.views.running import span_shown, why_text


def verdict(status: Document) -> str:
    return str(why_document(status, {})["verdict"])


def texts(status: Document) -> dict[str, str]:
    return {node["node"]: node["text"] for node in why_document(status, {})["nodes"]}


# --- Verdicts. ---


def test_a_busy_run_is_well() -> None:
    status = ring_of(node_of("N1", "running", "on_message"), node_of("N2"), node_of("N3", "blocked"))
    status["channels"][2].update(in_flight=9, full=True)
    status["channels"][0].update(in_flight=1)
    assert verdict(status) == (
        "all is well: 3 nodes, 1 in a hook, 1 about to take a message, 1 blocked on full channels, 1,200 messages/s"
    )


def test_a_hook_that_does_not_return_is_named_with_those_that_wait_for_it() -> None:
    """On a complete graph, where all the others wait for each other too, but for none that will ever send."""
    names = ["N1", "N2", "N3", "N4", "N5"]
    nodes = [node_of(name, phase_s=12.3) for name in names]
    nodes[2] = node_of("N3", "running", "on_message", 12.34)
    status = status_of(nodes, [channel_of(a, b) for a in names for b in names if a != b])
    assert verdict(status) == "N3 has been in on_message for 12.3 s and 4 nodes wait for it"
    # As soon as one of them has something to take, they wait for that one as well.
    status["channels"][0]["in_flight"] = 1
    assert verdict(status) == "N3 has been in on_message for 12.3 s; nobody waits for it"


def test_of_several_slow_hooks_those_that_are_waited_for_come_first() -> None:
    slow = [node_of(name, "running", "on_idle", seconds) for name, seconds in (("N1", 5.0), ("N3", 2.0))]
    status = status_of(
        [slow[0], node_of("N2"), slow[1], node_of("N4")], [channel_of("N3", "N4"), channel_of("N1", "N3")]
    )
    assert verdict(status) == "N3 has been in on_idle for 2.0 s and 1 node waits for it"


def test_a_process_that_is_stopped_is_named() -> None:
    status = ring_of(node_of("N1"), node_of("N2", "frozen", "on_message"), node_of("N3"), node_of("N4"))
    assert verdict(status) == "N2's process is stopped (SIGSTOP); 3 nodes wait for it"
    assert texts(status)["N2"] == "frozen: its process is stopped (SIGSTOP), in on_message, last turn 10 ms ago"
    assert texts(status)["N3"] == "waits for a message, the channel from N2 is empty, last turn 10 ms ago"
    status["nodes"][3] = node_of("N4", "frozen")
    assert verdict(status) == "the processes of N2, N4 are stopped (SIGSTOP); 2 nodes wait for them"


def test_nodes_that_wait_for_others_too_do_not_wait_for_it() -> None:
    status = ring_of(node_of("N1"), node_of("N2", "frozen"), node_of("N3"))
    status["nodes"].append(node_of("N4", "running", "on_message"))
    status["channels"] += [channel_of("N4", "N3"), channel_of("N4", "N1")]
    assert verdict(status) == "N2's process is stopped (SIGSTOP)"


def test_paused_nodes() -> None:
    status = ring_of(node_of("N1"), node_of("N2", "paused"), node_of("N3"))
    assert verdict(status) == "N2 is paused; 2 nodes wait for it"
    assert verdict(ring_of(node_of("N1", "paused"), node_of("N2", "paused"))) == (
        "all nodes are paused: `unpause` lets them go on"
    )


def test_a_dead_node_is_told_with_its_end() -> None:
    death = {
        "node": "N2",
        "what": "N2 was killed by SIGKILL while it was waiting",
        "where": "N2",
        "try": None,
        "time": 1.0,
    }
    status = ring_of(node_of("N1"), node_of("N2", "dead"), deaths=[death])
    assert verdict(status) == "N2 was killed by SIGKILL while it was waiting; 1 node waits for it"
    assert texts(status)["N2"] == "dead: was killed by SIGKILL while it was waiting"
    assert verdict(ring_of(node_of("N1"), node_of("N2", "dead"))) == "N2 is dead; 1 node waits for it"


def two_blocked(seconds: float | None) -> Document:
    status = status_of(
        [
            node_of("N1", "blocked", phase_s=seconds),
            node_of("N2", "blocked", phase_s=seconds),
            node_of("N3", "blocked"),
        ],
        [channel_of("N1", "N2", 8, True), channel_of("N2", "N1", 8, True), channel_of("N3", "N1", 8, True)],
    )
    return status


def test_a_deadlock_is_a_cycle_of_full_channels() -> None:
    why = why_document(two_blocked(3.0), {})
    assert why["cycle"] in (["N1", "N2"], ["N2", "N1"])
    assert why["verdict"] == (
        "deadlock: each node of N1 -> N2 -> N1 waits for the next one to take messages from a full channel, "
        "and 1 node waits for them"
    )
    assert {"node": "N3", "for": "N1", "channel": ["N3", "N1"], "kind": "full"} in why["waits"]
    assert why["nodes"][0]["channels"] == [["N1", "N2"]]
    assert "cycle: N1 -> N2 -> N1" in why_text(why)


def test_a_node_that_has_come_to_its_end_takes_nothing_more() -> None:
    """What was sent to it stays in its channel, and nobody is let go on by it."""
    nodes = [node_of("N1", "frozen"), node_of("N2"), node_of("N3", phase="stopped")]
    channels = [channel_of("N1", "N2"), channel_of("N2", "N3", 1), channel_of("N3", "N2")]
    assert verdict(status_of(nodes, channels)) == "N1's process is stopped (SIGSTOP); 1 node waits for it"


@pytest.mark.parametrize("seconds", [0.2, None])
def test_a_cycle_that_may_be_of_this_instant_is_not_called_a_deadlock(seconds: float | None) -> None:
    """The numbers of a status are read one after the other, and full channels come and go."""
    assert verdict(two_blocked(seconds)).startswith("at this instant each node of N1 -> N2 -> N1 waits")


def test_a_reader_that_is_slow_is_no_deadlock() -> None:
    status = status_of(
        [node_of("N1", "blocked", phase_s=3.25), node_of("N2", "running", "on_message")],
        [channel_of("N1", "N2", 8, True)],
    )
    assert verdict(status) == "N1 has been blocked for 3.2 s: N2 cannot take as fast as is sent"


def test_nothing_happens_any_more() -> None:
    status = ring_of(node_of("N1", phase_s=7.0), node_of("N2", phase_s=5.0))
    assert verdict(status) == (
        "every node waits and no message is in flight, for 5.0 s now: "
        "nothing happens any more but for timers and commands"
    )
    status["nodes"][0]["phase_s"] = 0.01
    assert verdict(status) == (
        "at this instant every node waits and no message is in flight; "
        "if it stays so, nothing happens any more but for timers and commands"
    )


@pytest.mark.parametrize(
    ("facts", "said"),
    [
        ({"state": "starting"}, "the run is starting, 1 of 2 nodes ready: N2 (importing)"),
        ({"state": "recovering"}, "the run is recovering from a death"),
        ({"state": "stopping"}, "the run is stopping: N1 (on_stop)"),
        ({"state": "ended"}, "the run has ended"),
        (
            {"state": "ended", "error": {"what": "N1 died\x1b[2J", "where": None, "try": None}},
            r"the run has ended: N1 died\x1b[2J",
        ),
    ],
)
def test_the_state_of_the_run_explains_the_rest(facts: dict[str, Any], said: str) -> None:
    status = ring_of(node_of("N1", "running", "on_stop"), node_of("N2", "starting", "importing"), **facts)
    assert verdict(status) == said


def test_a_source_that_waits_waits_for_nobody() -> None:
    status = status_of([node_of("N1"), node_of("N2", "running", "on_idle")], [channel_of("N1", "N2")])
    assert texts(status)["N1"] == "waits for a timer or a command, no channel leads to it, last turn 10 ms ago"
    assert wait_for(status) == []


def test_spans_are_shown_as_exactly_as_one_wants_to_know() -> None:
    assert [span_shown(s) for s in (-1, 0, 0.9996, 119.9, 119.96, 3599.9)] == [
        *("0 ms", "0 ms", "1.0 s", "119.9 s", "2:00", "1:00:00"),
    ]


# --- Stacks. ---

OURS, USERS = process.__file__, "/home/ann/accounts.py"
DUMP = f"""\
Fatal thing that is no frame
Thread 0x00007f67b6da56c0 [helper] (most recent call first):
  File "{threading.__file__}", line 982 in run
  File "/home/ann/background.py", line 3 in loop

Current thread 0x00007f67b79dfb80 (most recent call first):
  File "{threading.__file__}", line 331 in wait
  File "{USERS}", line 12 in on_message
  File "{OURS}", line 300 in _take
  File "<string>", line 1 in <module>
"""


def test_of_the_threads_of_a_node_its_own_is_shown_with_the_users_frames_marked() -> None:
    lines = stack_lines(DUMP)
    assert lines == [
        f'  File "{threading.__file__}", line 331 in wait',
        f'> File "{USERS}", line 12 in on_message',
        f'  File "{OURS}", line 300 in _take',
        '  File "<string>", line 1 in <module>',
    ]
    # Also if the signal hit another thread.
    other = DUMP.replace("Current thread", "Thread").replace("Thread 0x00007f67b6da56c0", "Current thread 0x1", 1)
    assert stack_lines(other) == lines


def test_what_faulthandler_writes_can_be_read(tmp_path: Path) -> None:
    with open(tmp_path / "stack", "w") as file:
        faulthandler.dump_traceback(file, all_threads=False)
    lines = stack_lines((tmp_path / "stack").read_text())
    assert lines is not None
    assert lines[0].startswith(f'> File "{__file__}", line ')
    assert lines[0].endswith(" in test_what_faulthandler_writes_can_be_read")


@pytest.mark.parametrize("text", ["", "  <no Python frame>\n", "Stack (most recent call first):\n", "\0\n\n"])
def test_no_stack_is_none(text: str) -> None:
    assert stack_lines(text) is None


def test_a_stack_is_harmless_and_bounded() -> None:
    frames = [f'  File "/x\x1b[2J{"y" * 500}.py", line {n} in f' for n in range(200)]
    lines = stack_lines("Stack (most recent call first):\n" + "\n".join(frames) + "\n  ...\n")
    assert lines is not None
    assert len(lines) == 61
    assert lines[-1] == "  and 141 more"
    assert all(line.isprintable() and len(line) < 320 for line in lines)


def test_our_example_programs_are_users_like_any_other() -> None:
    package = Path(mpsnap.__file__).parent
    text = f'Stack (most recent call first):\n  File "{pingpong.__file__}", line 3 in on_message\n'
    text += (
        f'  File "{package / "core" / "nodecore.py"}", line 3 in f\n  File "/v/lib/site-packages/x.py", line 1 in g\n'
    )
    assert [line[0] for line in stack_lines(text) or ()] == [">", " ", ">"]


def test_only_stacks_of_hooks_are_shown_and_only_down_to_the_users_code() -> None:
    status = ring_of(node_of("N1", "running", "on_message", 2.0), node_of("N2"))
    why = why_document(status, {"N1": DUMP, "N2": DUMP, "N9": DUMP})
    shown = why_text(why)
    assert shown.startswith(f"{why['verdict']}\n\nN1  in on_message for 2.0 s\n        File")
    assert shown.count("line 12 in on_message") == 1
    assert "_take" not in shown
    assert why_text(why, full=True).count("line 300 in _take") == 2


# --- Any instant. ---

#: A machine that is busy with something else is no failure.
ANY = settings(max_examples=150)
NAMES = [f"Q{k}" for k in range(6)]
#: Of a healthy run; and what else may be the matter with a node.
BUSY = ["running", "waiting", "blocked"]
STATUSES = [*BUSY, "starting", "paused", "frozen", "dead"]


@st.composite
def statuses(
    draw: Any, of_nodes: list[str] = STATUSES, states: tuple[str, ...] = ("running",), most: float = 9.0
) -> Document:
    names = NAMES[: draw(st.integers(0, len(NAMES)))]
    seconds = st.none() | st.floats(0, most, exclude_max=True)
    nodes = [
        node_of(name, draw(st.sampled_from(of_nodes)), draw(st.sampled_from(PHASES)), draw(seconds)) for name in names
    ]
    # Some lead from or to what is no node.
    pairs = st.tuples(st.sampled_from([*names, "Q9"]), st.sampled_from([*names, "Q9"])).filter(lambda p: p[0] != p[1])
    channels = [
        channel_of(src, dst, draw(st.sampled_from([0, 0, 1, 7])), draw(st.booleans()))
        for src, dst in (draw(st.lists(pairs, unique=True, max_size=20)) if names else [])
    ]
    error = draw(st.sampled_from([None, {"what": "it\x1b broke", "where": None, "try": None}]))
    death = {"node": "Q0", "what": "Q0 was killed", "where": None, "try": None, "time": 1.0}
    deaths = [death] if names and draw(st.booleans()) else []
    return status_of(nodes, channels, deaths=deaths, state=draw(st.sampled_from(states)), error=error)


EVERY_STATE = ("starting", "running", "recovering", "stopping", "ended")


@ANY
@given(
    statuses(states=EVERY_STATE), st.dictionaries(st.sampled_from(NAMES), st.sampled_from([None, "", "x\x1b\n", DUMP]))
)
def test_any_instant_can_be_told(status: Document, stacks: Mapping[str, str | None]) -> None:
    why = why_document(status, stacks)
    json.dumps(why, allow_nan=False)
    names = [node["name"] for node in status["nodes"]]
    assert [node["node"] for node in why["nodes"]] == names
    assert why["verdict"]
    for line in (why["verdict"], *(node["text"] for node in why["nodes"])):
        assert line.isprintable()
        assert set(re.findall(r"\bQ\d\b", line)) <= set(names)
    for full in (False, True):
        assert why_text(why, full).replace("\n", "").isprintable()


@ANY
@given(statuses())
def test_waits_are_for_what_is_there(status: Document) -> None:
    channels = {(channel["src"], channel["dst"]): channel for channel in status["channels"]}
    for wait in wait_for(status):
        channel = channels[tuple(wait["channel"])]
        if wait["kind"] == "full":
            assert channel["full"]
            assert (wait["node"], wait["for"]) == (channel["src"], channel["dst"])
        else:
            assert channel["in_flight"] == 0
            assert (wait["node"], wait["for"]) == (channel["dst"], channel["src"])


@ANY
@given(statuses(["blocked", "blocked", "blocked", "waiting"]))
def test_a_cycle_is_found_if_there_is_one_and_is_one_of_full_channels(status: Document) -> None:
    waits = wait_for(status)
    edges = {(wait["node"], wait["for"]) for wait in waits if wait["kind"] == "full"}
    cycle = find_cycle(waits)
    graph: dict[str, set[str]] = {}
    for node, other in edges:
        graph.setdefault(node, set()).add(other)
    try:
        graphlib.TopologicalSorter(graph).prepare()
        assert cycle is None
    except graphlib.CycleError:
        assert cycle is not None
        assert len(set(cycle)) == len(cycle) >= 2
        assert set(zip(cycle, cycle[1:] + cycle[:1], strict=True)) <= edges


@ANY
@given(statuses(BUSY, most=1.0))
def test_a_healthy_run_gives_no_alarm(status: Document) -> None:
    assert verdict(status).startswith(("all is well", "at this instant"))


@ANY
@given(statuses())
def test_a_deadlock_is_one_that_lasts(status: Document) -> None:
    why = why_document(status, {})
    since = {node["node"]: node["for_s"] for node in why["nodes"]}
    lasting = why["cycle"] is not None and all((since[node] or 0.0) >= 1.0 for node in why["cycle"])
    assert why["verdict"].startswith("deadlock") == lasting


@ANY
@given(statuses(["waiting", "blocked", "frozen", "frozen"]))
def test_nobody_is_said_to_wait_for_a_stopped_process_who_can_go_on(status: Document) -> None:
    """Worked out the other way round: all that wait are taken to be stuck, but for those that something lets go on."""
    why = why_document(status, {})
    doing = {node["node"]: node["doing"] for node in why["nodes"]}
    awaited: dict[str, list[str]] = {}
    for wait in why["waits"]:
        awaited.setdefault(wait["node"], []).append(wait["for"])
    stuck = set(awaited)
    frozen = {node for node, at in doing.items() if at == "frozen"}
    # Sources that wait for timers alone are no help either.
    no_help = frozen | {
        n["node"] for n in why["nodes"] if "no channel leads to it" in n["text"] or "orderly" in n["text"]
    }
    while free := {
        node
        for node in stuck
        if not (any if doing[node] == "blocked" else all)(each in stuck | no_help for each in awaited[node])
    }:
        stuck -= free
    found = re.search(r"SIGSTOP\); (\d+) nodes? waits? for", why["verdict"])
    said = int(found[1]) if found else 0
    assert said <= len(stuck)
    direct = {node for node in stuck for each in awaited[node] if each in frozen}
    if "all nodes" not in why["verdict"]:
        assert said >= len(direct)
