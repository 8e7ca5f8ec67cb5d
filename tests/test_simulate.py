"""`mpsnap simulate`: every scenario to the byte, the same run for the same seed anywhere, and what goes wrong."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from cli_harness import mpsnap
from reference import SCENARIOS, listed, play_reference, scenario

from mpsnap.cli.main import main

NAMES = sorted(path.stem for path in SCENARIOS.glob("*.top"))


def simulate(*arguments: str, status: int = 0) -> None:
    """Carry the command out in this process, which is quicker than one of its own."""
    assert main(["simulate", *arguments]) == status


def files_of(name: str) -> tuple[str, ...]:
    options = {"--topology": "top", "--events": "events", "--delays": "delays"}
    return tuple(word for option, end in options.items() for word in (option, str(SCENARIOS / f"{name}.{end}")))


def expected(name: str) -> dict[str, str]:
    return {path.name.split(".", 1)[1]: path.read_text() for path in SCENARIOS.glob(f"{name}.*.snap")}


@pytest.mark.parametrize("name", NAMES)
def test_a_scenario_gives_its_snapshots_to_the_byte(name: str, tmp_path: Path) -> None:
    simulate(*files_of(name), "--format", "snap", "--out", str(tmp_path), "--quiet")
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == expected(name)


@pytest.mark.parametrize("name", NAMES)
def test_the_expected_snapshots_are_those_of_the_reference(name: str) -> None:
    """So that nobody rewrites them with what the simulator says."""
    assert dict(enumerate(play_reference(*scenario(name), listed(name))[0])) == {
        int(file.removesuffix(".snap")): text for file, text in expected(name).items()
    }


def test_the_scenarios_are_worth_it() -> None:
    assert len(NAMES) >= 15
    assert sum("token(" in text for name in NAMES for text in expected(name).values()) > len(NAMES)


def test_the_one_that_was_worked_out_on_paper() -> None:
    """No program made this expectation: by-hand.events tells how it comes about."""
    assert expected("by-hand") == {"0.snap": "0\nA 3\nB 3\nA B token(2)\n"}


def test_a_delay_too_few_is_an_error_that_counts(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    delays = (SCENARIOS / "by-hand.delays").read_text().splitlines()
    short = tmp_path / "short.delays"
    short.write_text("\n".join(delays[:-1]) + "\n")
    simulate(*files_of("by-hand")[:4], "--delays", str(short), "--format", "json", status=3)
    said = capsys.readouterr()
    assert f"{short}: all 3 delays are used and one more item is sent" in said.err
    assert json.loads(said.out)["error"]["what"].startswith("all 3 delays")


@pytest.mark.parametrize(
    ("text", "line", "hint"),
    [("0\n5\n", 2, "--max-delay 6"), ("-1\n", 1, ""), ("0 1\n", 1, ""), ("\n\nx\n", 3, ""), ("1.5\n", 1, "")],
)
def test_bad_delays_are_refused_with_their_line(
    text: str, line: int, hint: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "bad.delays"
    path.write_text(text)
    simulate(*files_of("by-hand")[:4], "--delays", str(path), status=2)
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err.startswith(f"mpsnap: error: {path}:{line}: ")
    assert hint in said.err


@pytest.mark.parametrize("option", [("--ticks", "5"), ("--snapshots", "1"), ("--initiator", "A")])
def test_a_script_says_itself_when_it_ends(option: tuple[str, str], capsys: pytest.CaptureFixture[str]) -> None:
    simulate(*files_of("by-hand"), *option, status=2)
    assert f"{option[0]} does not go with --events" in capsys.readouterr().err


def test_tokens_that_never_come_are_told_with_the_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    events = tmp_path / "greedy.events"
    events.write_text("send A B 5\ntick\nsend A B 1\n")
    simulate("--topology", str(SCENARIOS / "by-hand.top"), "--events", str(events), status=3)
    assert f"{events}:3: A does not hold 1 tokens" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("verb", "options"),
    [
        ("simulate", ("--events", "x.events", "--log", "x.events")),
        ("simulate", ("--events", "x.events", "--log", "./y", "--emit", "y")),
        ("explore", ("--events", "x.events", "--save", "x.events")),
        ("run", ("--topology", "x.top", "--emit", "x.top")),
    ],
)
def test_nothing_is_written_over_what_is_read(
    verb: str,
    options: tuple[str, ...],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("x.events", "x.top"):
        Path(name).write_text("precious\n")
    assert main([verb, *options]) == 2
    assert "it is that of --" in capsys.readouterr().err
    assert Path("x.events").read_text() == Path("x.top").read_text() == "precious\n"
    assert not Path("y").exists()


def document(capsys: pytest.CaptureFixture[str], *arguments: str, status: int = 0) -> Any:
    simulate(*arguments, "--format", "json", "--quiet", status=status)
    return json.loads(capsys.readouterr().out)


def test_the_document_has_the_shape_of_that_of_run(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    simulated = document(capsys, "--topology", "ring:3", "--ticks", "50", "--snapshots", "2")
    real = mpsnap(
        *("run", "--topology", "ring:3", "--snapshots", "2", "--format", "json", "--quiet", "--start-method", "fork"),
        cwd=tmp_path,
    ).document
    assert simulated.keys() == real.keys()
    assert simulated["run"].keys() == real["run"].keys()
    assert simulated["snapshots"][0].keys() == real["snapshots"][0].keys()
    assert [snapshot["verified"] for snapshot in simulated["snapshots"]] == [True, True]
    assert (simulated["run"]["driver"], real["run"]["driver"]) == ("simulator", "processes")
    assert simulated["run"]["duration_s"] > 50


def test_snapshots_are_spread_over_the_ticks_and_begin_in_turn(capsys: pytest.CaptureFixture[str]) -> None:
    told = document(capsys, "--topology", "ring:3", "--ticks", "40", "--snapshots", "4")
    assert [snapshot["initiators"] for snapshot in told["snapshots"]] == [["N1"], ["N2"], ["N3"], ["N1"]]
    told = document(capsys, "--topology", "ring:3", "--snapshots", "2", "--initiator", "N3,N1", "--initiator", "N2")
    assert [snapshot["initiators"] for snapshot in told["snapshots"]] == [["N3", "N1"], ["N2"]]


def test_a_program_that_ends_by_itself_is_run_to_its_end(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    text = tmp_path / "words.txt"
    text.write_text("to be or not to be\n" * 40)
    told = document(capsys, "wordcount", "--param", f"files={text}")
    counts = {
        output["record"]["word"]: output["record"]["count"] for output in told["outputs"] if "word" in output["record"]
    }
    assert counts == {"to": 80, "be": 80, "or": 40, "not": 40}


APP = """
from mpsnap import Node

class Frail(Node):
    def setup(self, ctx):
        self.met = set()
        ctx.send(ctx.outbound[0], {"a", "b", "c"})

    def on_message(self, ctx, sender, payload):
        self.met |= payload | {ctx.random.choice(["d", "e", "f"])}
        if len(self.met) == 6:
            raise RuntimeError("enough")
        ctx.send(ctx.random.choice(ctx.outbound), self.met)
        ctx.log("still here")
        ctx.emit(self.met)
"""


def test_an_exception_of_a_node_is_told_with_its_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    app = tmp_path / "frail.py"
    app.write_text(APP)
    line = 1 + APP.splitlines().index('            raise RuntimeError("enough")')
    told = document(capsys, f"{app}:Frail", "--topology", "ring:3", status=3)
    assert told["error"]["where"] == f"{app}:{line}"
    assert "failed in on_message: RuntimeError: enough" in told["error"]["what"]


def test_a_state_that_cannot_be_kept_costs_the_snapshot_and_is_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    app = tmp_path / "spoilt.py"
    app.write_text(
        "from mpsnap import Node\n\nclass Spoilt(Node):\n"
        "    def on_idle(self, ctx):\n        self.what = object()\n        return True\n"
    )
    told = document(capsys, f"{app}:Spoilt", "--topology", "ring:2", "--snapshots", "2", status=3)
    assert told["snapshots"] == []
    assert "could not be captured" in told["error"]["what"]
    assert told["run"]["duration_s"] > 100


@pytest.mark.processes
def test_a_seed_gives_the_same_bytes_in_every_process(tmp_path: Path) -> None:
    """Whatever the order in which a process keeps its sets: the same document, and the same log."""
    app = tmp_path / "gossip.py"
    app.write_text(APP.replace("== 6", "> 6"))

    def told(hash_seed: str, seed: str) -> tuple[str, bytes]:
        log = tmp_path / f"{hash_seed}-{seed}.log"
        done = mpsnap(
            *("simulate", f"{app}:Frail", "--topology", "complete:4", "--seed", seed, "--format", "json"),
            *("--log", str(log), "--quiet"),
            cwd=tmp_path,
            env={"PYTHONHASHSEED": hash_seed},
        )
        return done.stdout, log.read_bytes()

    one, other = told("1", "7"), told("2", "7")
    assert one == other
    assert one != told("1", "8")
    assert b'"received"' in one[1]
