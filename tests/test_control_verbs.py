"""The verbs that talk to a run, against one that is none: what they ask, what they show, how they end."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from cli_harness import COMMAND, ENVIRONMENT
from fake_run import Document, FakeRun, channel_of, digest_of, fake_runs, node_of, ring_of, status_of
from keeping import three
from said import Said, carried_out

from mpsnap.core.errors import ClusterError, InputError, MpsnapError
from mpsnap.server.why import why_document
from mpsnap.views.document import snapshot_document
from mpsnap.views.running import status_text
from mpsnap.views.tables import snapshot_table

HOSTILE = "\x1b]0;owned\x07\nmpsnap: error: \x9b2J"


#: Runs one command in this process.
Command = Callable[..., Said]


@pytest.fixture
def command(capsys: pytest.CaptureFixture[str], runs: Path) -> Command:
    def execute(*arguments: str, status: int | None = 0) -> Said:
        said = carried_out(capsys, *arguments)
        assert status in (None, said.status), f"{arguments} -> {said.status}\n{said.stdout}\n{said.stderr}"
        assert all(line.isprintable() for line in said.stdout.splitlines())
        return said

    return execute


@pytest.fixture
def fake(command: Command, runs: Path) -> Iterator[FakeRun]:
    with FakeRun(runs, ring_of(node_of("N1"), node_of("N2", "paused"), node_of("N3"))) as run:
        yield run


# --- Which run. ---


TALKING = [
    ["status"],
    ["snapshot"],
    ["state", "N1"],
    ["command", "N1", "1"],
    ["pause"],
    ["unpause"],
    ["stop"],
    ["kill", "N1"],
    ["why"],
    ["top"],
]


@pytest.mark.parametrize("arguments", TALKING, ids=lambda arguments: str(arguments[0]))
def test_without_a_run_it_is_said_how_to_start_one(command: Command, arguments: list[str]) -> None:
    said = command(*arguments, status=2)
    assert said.stdout == ""
    assert "no run" in said.error
    assert said.error.endswith("; try: python -m mpsnap serve")


@pytest.mark.parametrize("arguments", TALKING, ids=lambda arguments: str(arguments[0]))
def test_of_several_runs_one_has_to_be_named(command: Command, runs: Path, arguments: list[str]) -> None:
    with fake_runs(*(FakeRun(runs, status_of(1), name) for name in ("bank-1", "tokens-2"))):
        said = command(*arguments, status=2)
        assert "bank-1" in said.error
        assert "tokens-2" in said.error
        assert "; try: --run bank-1" in said.error
        assert "there is no run called bank-3" in command(*arguments, "--run", "bank-3", status=2).error


def test_the_one_that_is_named_is_asked(command: Command, runs: Path) -> None:
    both = [FakeRun(runs, status_of(1), name) for name in ("bank-1", "tokens-2")]
    with fake_runs(*both):
        for run in both:
            run.answers["pause"] = lambda _: {"paused": []}
        command("pause", "--run", "tokens-2")
    assert [run.asked for run in both] == [[], [("pause", {"nodes": []})]]


def test_ps_lists_what_answers_and_what_does_not(command: Command, runs: Path) -> None:
    status = status_of(3, app="x.py:Y\x1b[2J", url="http://127.0.0.1:4321/")
    with fake_runs(FakeRun(runs, status, "a"), FakeRun(runs, status, "b")) as _:
        said = command("ps")
        rows = [line.split() for line in said.stdout.splitlines()[2:]]
        assert rows == [
            [
                name,
                str(os.getpid()),
                r"x.py:Y\x1b[2J",
                "ring:3",
                "running",
                "12.3",
                "s",
                "3",
                "1200",
                status["run"]["url"],
            ]
            for name in "ab"
        ]
        assert [run["name"] for run in command("ps", "--run", "b", "--format", "json").document["runs"]] == ["b"]
        assert "there is no run called c" in command("ps", "--run", "c", status=2).error
    silent = FakeRun(runs, status, "a")
    silent.answers["hello"] = silent.answers["status"] = _refuse(ClusterError("no time"))
    with silent:
        assert command("ps").stdout.splitlines()[2].split() == ["a", str(os.getpid()), "NO", "ANSWER"]
        (run,) = command("ps", "--format", "json").document["runs"]
        assert (run["answers"], run["status"]) == (False, None)


def test_ps_without_a_run(command: Command) -> None:
    said = command("ps")
    assert (said.stdout, said.stderr) == ("", "mpsnap: there is no run of yours on this host\n")
    assert command("ps", "--quiet").stderr == ""
    assert command("ps", "--format", "json").document == {"runs": []}


def _refuse(error: MpsnapError) -> Callable[[Document], Any]:
    def answer(_: Document) -> Any:
        raise error

    return answer


# --- What is asked, and what is shown. ---


@pytest.mark.parametrize(
    ("arguments", "asked", "answer", "printed"),
    [
        (["state", "N1"], {"node": "N1"}, {"node": "N1", "state": {"tokens": 3}, "bytes": 12}, "N1 now, 12 B:\nplace"),
        (
            ["command", "N1", '{"a": [1]}'],
            {"node": "N1", "command": {"a": [1]}},
            {"node": "N1", "reply": None},
            "N1: None",
        ),
        (
            ["command", "N1", "-1"],
            {"node": "N1", "command": -1},
            {"node": "N1", "reply": {"$tuple": [1]}},
            "N1: (1,)\n",
        ),
        (["pause", "N1", "N3"], {"nodes": ["N1", "N3"]}, {"paused": ["N1", "N3"]}, "paused: N1, N3\n"),
        (["pause"], {"nodes": []}, {"paused": ["N1"]}, "paused: N1\n"),
        (["unpause"], {"nodes": []}, {"paused": []}, "no node is paused\n"),
        (["stop"], {"node": None}, {}, "tokens-4711 was told to come to its end\n"),
        (["stop", "N2"], {"node": "N2"}, {}, "N2 was told to come to its end\n"),
        (["kill", "N2"], {"node": "N2"}, {"node": "N2", "pid": 4712}, "N2, pid 4712, was killed\n"),
        (
            ["snapshot"],
            {"nodes": [], "wait": False},
            {"digest": digest_of(4)},
            "Snapshot 4 (0-N3-9) from N3 in 1.3 ms: ",
        ),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else None,
)
def test_a_verb_asks_one_thing_and_shows_the_answer(
    command: Command, fake: FakeRun, arguments: list[str], asked: Document, answer: Document, printed: str
) -> None:
    fake.answers[arguments[0]] = lambda _: answer
    said = command(*arguments)
    assert said.stdout.startswith(printed)
    assert said.stderr == ""
    assert fake.asked == [(arguments[0], asked)]
    assert command(*arguments, "--format", "json").document == answer


@pytest.mark.parametrize(
    "arguments",
    [
        ["snapshot", "n1"],
        ["state", "n1"],
        ["command", "n1", "1"],
        ["pause", "N3", "n1"],
        ["unpause", "n1"],
        ["stop", "n1"],
        ["kill", "n1"],
    ],
    ids=lambda arguments: str(arguments[0]),
)
def test_a_node_that_is_mistyped_is_answered_with_the_close_one(
    command: Command, fake: FakeRun, arguments: list[str]
) -> None:
    assert command(*arguments, status=2).error == "NODE: there is no node 'n1' in tokens-4711; try: N1"
    assert fake.asked == []


def test_a_node_is_named_once(command: Command, fake: FakeRun) -> None:
    assert "N1 is named twice" in command("pause", "N1", "N2", "N1", status=2).error


@pytest.mark.parametrize(
    "text", ["report", "{'a': 1}", "", "NaN", '{"a": -Infinity}', "[1e400]", 10_000 * "[", "'", "\x1b[2J"]
)
def test_a_command_is_json_before_anything_is_asked(command: Command, fake: FakeRun, text: str) -> None:
    error = command("command", "N1", text, status=2).error
    assert "is not JSON" in error
    assert "try: " in error
    assert fake.asked == []
    if text == "report":
        assert error.endswith("""; try: '"report"' for a text""")


@pytest.mark.parametrize("kind", [InputError, ClusterError])
def test_what_the_run_refuses_is_told_in_one_line(command: Command, fake: FakeRun, kind: type[MpsnapError]) -> None:
    fake.answers["kill"] = _refuse(kind(f"N1 is {HOSTILE}", where="N1", hint="N2"))
    error = command("kill", "N1", status=2 if kind is InputError else 3).error
    assert error == r"N1 is \x1b]0;owned\x07\nmpsnap: error: \x9b2J; try: N2"


def test_a_run_that_goes_away_meanwhile_is_told_in_one_line(command: Command, fake: FakeRun) -> None:
    def vanish(_: Document) -> None:
        fake.vanish()

    fake.answers["snapshot"] = vanish
    assert "is gone" in command("snapshot", "--wait", status=3).error


def test_debug_shows_where_it_went_wrong(command: Command, fake: FakeRun) -> None:
    fake.answers["why"] = _refuse(ClusterError("no"))
    assert "Traceback" in command("why", "--debug", status=3).stderr
    assert "Traceback" not in command("why", status=3).stderr


def test_whoever_stops_reading_ends_it_without_a_word(fake: FakeRun, runs: Path) -> None:
    fake.status = status_of(2000)
    env = {**ENVIRONMENT, "XDG_RUNTIME_DIR": str(runs)}
    with subprocess.Popen([*COMMAND, "status"], env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as started:
        assert started.stdout is not None
        assert started.stderr is not None
        assert started.stdout.readline().startswith(b"tokens-4711: running")
        started.stdout.close()
        assert started.stderr.read() == b""
        assert started.wait(60) == 3


# --- Snapshots. ---


def test_a_snapshot_that_is_waited_for_is_shown_as_run_shows_it(command: Command, fake: FakeRun) -> None:
    snapshot = three()[1]
    document = json.loads(json.dumps(snapshot_document(snapshot)))
    fake.answers["snapshot"] = lambda _: {"digest": digest_of(1), "snapshot": document}
    said = command("snapshot", "N1", "N3", "--wait")
    assert said.stdout == snapshot_table(snapshot) + "\n"
    assert fake.asked == [("snapshot", {"nodes": ["N1", "N3"], "wait": True})]
    assert command("snapshot", "--wait", "--format", "json").document == {"snapshot": document}


def test_a_snapshot_that_is_abandoned_is_an_error(command: Command, fake: FakeRun) -> None:
    fake.answers["snapshot"] = _refuse(ClusterError("snapshot 3 was abandoned: N2 has not recorded within 30 s"))
    assert command("snapshot", "--wait", status=3).error == "snapshot 3 was abandoned: N2 has not recorded within 30 s"


def test_a_cut_that_is_not_consistent_is_a_violation(command: Command, fake: FakeRun) -> None:
    document = {**snapshot_document(three()[1]), "verified": False}
    fake.answers["snapshot"] = lambda _: {"digest": digest_of(1, verified=False), "snapshot": document}
    said = command("snapshot", "--wait", status=1)
    assert "NOT CONSISTENT" in said.stdout
    assert "the cut of snapshot 1 is not consistent" in said.error


def test_a_snapshot_that_is_open_says_what_it_waits_for(command: Command, fake: FakeRun) -> None:
    fake.answers["snapshot"] = lambda _: {"digest": digest_of(None, "recording")}
    assert command("snapshot").stdout == "Snapshot 0-N3-1 from N3: recording, waits for N2; N2->N1\n"


# --- Status and why. ---


def test_status_shows_nodes_channels_and_snapshots(command: Command, fake: FakeRun) -> None:
    death = {"node": "N2", "what": "N2 was killed by SIGKILL", "where": None, "try": None, "time": 1.0}
    fake.status = status_of(
        [node_of("N1", "running", "on_message", summary="tokens: 3", last_snapshot=2), node_of("N2", "blocked")],
        [
            channel_of("N1", "N2", 3),
            channel_of("N2", "N1", 5000, True),
            *(channel_of("N1", f"M{k}") for k in range(20)),
        ],
        [
            *(digest_of(k) for k in range(8)),
            digest_of(8, "abandoned", error={"what": f"N2 took it along {HOSTILE}", "where": None, "try": None}),
            digest_of(9, "committing"),
        ],
        [death],
    )
    fake.status["recoveries"] = [{"incarnation": 1, "number": 7, "seconds": 0.25, "time": 2.0}]
    lines = [" ".join(line.split()) for line in command("status").stdout.splitlines()]
    channels = [line for line in lines if "->" in line and line.startswith("N")]
    assert channels[:2] == ["N2 -> N1 5100 100 5000 3.2 full", "N1 -> N2 103 100 3 3.2"]
    for line in (
        "N1 4712 running on_message 12345 150 0 12% 12.3 MB #2 tokens: 3",
        "and 10 more channels with 0 messages in flight; --full shows all",
        "#9 0-N3-19 committing 1/2 waits for N2; N2->N1; recorded by N1",
        "#7 0-N3-15 completed 1.3 2/2 consistent, 7 in flight, 4.3 kB",
        "and 2 snapshots before; --full shows all",
        "death: N2 was killed by SIGKILL",
        "recovery: all nodes went on from snapshot 7, after 250 ms",
    ):
        assert line in lines
    (abandoned,) = [line for line in lines if line.startswith("#8")]
    assert abandoned.startswith(r"#8 0-N3-17 abandoned 1/2 N2 took it along \x1b]0;owned\x07")
    assert "and 10 more" not in command("status", "--full").stdout
    assert command("status", "--format", "json").document == fake.status


def test_snapshots_that_are_open_are_never_left_out() -> None:
    status = status_of(1, snapshots=[digest_of(0, "recording"), *(digest_of(k) for k in range(1, 40))])
    assert "recording" in status_text(status)
    assert "and 31 snapshots before" in status_text(status)


def test_a_run_that_has_failed_says_so() -> None:
    error = {"what": "N1 died", "where": "N1", "try": None}
    assert "error: N1 died\n" in status_text(status_of(1, state="ended", error=error))


def test_why_prints_the_verdict_first(command: Command, fake: FakeRun) -> None:
    fake.answers["why"] = lambda _: why_document(fake.status, {})
    lines = command("why").stdout.splitlines()
    assert lines[0] == "N2 is paused; 2 nodes wait for it"
    assert lines[2].startswith("N1  waits for a message, the channel from N3 is empty")
    assert "N1      N3           send something" in lines
    assert command("why", "--format", "json").document == why_document(fake.status, {})


def test_nothing_in_a_document_steers_the_terminal(command: Command, fake: FakeRun) -> None:
    name = f"N{HOSTILE}"
    fake.status = status_of(
        [node_of(name, "running", HOSTILE, summary=HOSTILE), node_of(HOSTILE * 20)],
        [channel_of(name, HOSTILE * 20, full=True)],
        [
            digest_of(
                0,
                "recording",
                initiators=[HOSTILE],
                id=HOSTILE,
                waiting={"nodes": [HOSTILE], "channels": [[HOSTILE] * 2]},
            )
        ],
        app=HOSTILE,
        topology=HOSTILE,
        url=HOSTILE,
    )
    fake.answers = {
        "why": lambda _: why_document(fake.status, {name: HOSTILE}),
        "state": lambda _: {"node": "N1", "state": {HOSTILE: HOSTILE}, "bytes": 1},
        "snapshot": lambda _: {"digest": fake.status["snapshots"][0]},
        "pause": lambda _: {"paused": []},
    }
    # The fixture looks at every line.
    for verb in ("ps", "status", "why", "snapshot"):
        command(verb)
        if verb in ("status", "why"):
            command(verb, "--full")
    command("state", name)
    command("top", "--count", "1")


# --- Top without a terminal. ---


def test_top_prints_blocks_of_lines_where_there_is_no_terminal(command: Command, fake: FakeRun) -> None:
    said = command("top", "--count", "1", "--every", "0.5")
    assert said.stdout.startswith("tokens-4711: running for 12.3 s")
    assert said.stdout.endswith("\n\n")
    assert fake.intervals == [0.5]
    assert command("top", "--count", "1", "--format", "json").document == fake.status


def test_top_says_how_the_run_has_ended(command: Command, fake: FakeRun) -> None:
    def end_with(error: Document | None) -> Said:
        # A fake that ends at once: its first watcher is told so after the first status.
        fake.on_watch = [["end", {"error": error}]]
        return command("top", status=None)

    said = end_with(None)
    assert (said.status, said.stderr) == (0, "mpsnap: the run tokens-4711 has ended\n")
    said = end_with({"what": "N1 died", "where": "N1", "try": None})
    assert (said.status, said.error) == (3, "N1 died")


def test_top_is_not_to_be_asked_too_often(command: Command, fake: FakeRun) -> None:
    assert "--every" in command("top", "--every", "0.05", status=2).error
    assert command("top", "--every", "1e-400", status=2)
    assert fake.intervals == []
