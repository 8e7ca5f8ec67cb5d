"""What the documents say is tried here, word for word."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path

import pytest
from keeping import kept, three

from mpsnap.cli.main import VERBS, parser
from mpsnap.runtime.supervisor import WINDOW

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()


def blocks(language: str) -> list[str]:
    """Return README's fenced blocks of one language, "" for those without."""
    fenced = re.findall(r"^```(\w*)\n(.*?)^```$", README, re.DOTALL | re.MULTILINE)
    return [text for found, text in fenced if found == language]


def run(command: list[str] | str, cwd: Path, environment: Mapping[str, str] | None = None) -> str:
    done = subprocess.run(
        command,
        cwd=cwd,
        env={**os.environ, **(environment or {})},
        shell=isinstance(command, str),
        executable="/bin/bash" if isinstance(command, str) else None,
        capture_output=True,
        text=True,
        timeout=110,
    )
    assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
    return done.stdout


@pytest.mark.processes
def test_the_program_is_short_runs_as_it_stands_and_prints_what_it_says(tmp_path: Path) -> None:
    (program,) = blocks("python")
    assert len(program.splitlines()) <= 20
    (tmp_path / "accounts.py").write_text(program)
    printed = run([sys.executable, "accounts.py"], tmp_path)
    shape = r"(\d+) in accounts \+ (\d+) in flight = 300, proven: True\n"
    for text in (printed, blocks("")[1]):
        match = re.fullmatch(shape, text)
        assert match is not None, text
        assert int(match[1]) + int(match[2]) == 300


@pytest.mark.processes
def test_the_first_command_installs_and_runs_the_main_job_in_a_fresh_clone(tmp_path: Path) -> None:
    run(["git", "clone", "-q", str(ROOT), str(tmp_path / "mpsnap")], tmp_path)
    printed = run(blocks("sh")[0], tmp_path / "mpsnap")
    headings = re.findall(r"^Snapshot (\d) from N\d in [\d.]+ ms: consistent, 4 nodes, ", printed, re.MULTILINE)
    assert headings == ["0", "1", "2", "3", "4"]


def test_the_second_command_is_what_ci_runs() -> None:
    """It runs all tests and so cannot be run by one of them; `.ci/run` takes it from README and runs it whole."""
    assert blocks("sh")[1].endswith("-m pytest\n")
    assert "block 2" in (ROOT / ".ci" / "run").read_text()


@pytest.mark.processes
@pytest.mark.parametrize("command", blocks("sh")[2].splitlines())
def test_the_other_commands_run(command: str) -> None:
    python, *arguments = shlex.split(command)
    assert python == "python"
    run([sys.executable, *arguments], ROOT)


@pytest.mark.processes
def test_a_run_survives_the_deaths_that_it_is_dealt(tmp_path: Path) -> None:
    (command,) = blocks("sh")[3].splitlines()
    printed = run(command.replace("python", sys.executable, 1), tmp_path).splitlines()[-1]
    (said,) = [block.strip() for block in blocks("") if "lost; every" in block]
    shape = r"\d+ deaths?, \d+ recover(?:y|ies), [\d.]+ s lost; every snapshot was consistent"
    assert re.fullmatch(shape, printed)
    assert re.fullmatch(shape, said)


@pytest.mark.processes
def test_a_cluster_that_is_served_can_be_seen_and_steered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (serve,), verbs = blocks("sh")[4].splitlines(), blocks("sh")[5].splitlines()
    # Short: the path of a socket has room for a hundred characters.
    with tempfile.TemporaryDirectory(prefix="mpsnap-") as folder:
        monkeypatch.setenv("XDG_RUNTIME_DIR", folder)
        command = [sys.executable, *shlex.split(serve)[1:]]
        with subprocess.Popen(
            command, cwd=tmp_path, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        ) as served:
            assert served.stderr is not None
            said = [served.stderr.readline(), served.stderr.readline()]
            assert "its page: http://127.0.0.1:" in said[0]
            assert "8 processes, 56 channels" in said[1]
            printed = [run([sys.executable, *shlex.split(verb)[1:]], tmp_path) for verb in verbs]
            served.communicate(timeout=60)
        assert served.returncode == 0
    assert "complete:8" in printed[0]
    assert "from N3 in" in printed[2]
    assert "consistent, 8 nodes" in printed[2]


@pytest.mark.processes
def test_the_picture_is_what_its_commands_make(tmp_path: Path) -> None:
    for command in blocks("sh")[6].splitlines():
        run([sys.executable, *shlex.split(command)[1:]], tmp_path)
    assert (tmp_path / "small.svg").read_bytes() == (ROOT / "tests" / "golden" / "small.svg").read_bytes()
    assert "tests/golden/small.svg" in README


@pytest.mark.processes
def test_the_exploration_finds_what_it_says(tmp_path: Path) -> None:
    commands = [shlex.split(command)[1:] for command in blocks("sh")[7].splitlines()]
    printed = "".join(run([sys.executable, *command], tmp_path) for command in commands)
    (said,) = [block for block in blocks("") if block.startswith("tokens on ring:3")]
    assert re.sub(r"in [\d.]+ s", "", printed) == re.sub(r"in [\d.]+ s", "", said)


@pytest.mark.processes
def test_what_was_kept_reads_as_it_says(tmp_path: Path) -> None:
    """In a store of three snapshots that are always the same."""
    kept(tmp_path / "kept", *three())
    (block,) = blocks("console")
    _, *sessions = re.split(r"^\$ ", block, flags=re.MULTILINE)
    assert [shlex.split(session)[3] for session in sessions] == ["list", "show", "diff"]
    for session in sessions:
        command, said = session.split("\n", 1)
        printed = run([sys.executable, *shlex.split(command)[1:]], tmp_path, {"TZ": "UTC"})
        assert printed == said


def test_every_option_of_run_is_explained_in_its_help() -> None:
    verbs = next(action for action in parser()._actions if action.dest == "verb")
    assert verbs.choices is not None
    assert list(verbs.choices) == list(VERBS), "those that are found by their first word are all there are"
    for verb in verbs.choices:
        sub = verbs.choices[verb]  # type: ignore[index]
        for action in sub._actions:
            assert action.help, f"{verb} {action.option_strings}"
        assert "examples:" in sub.epilog


def test_every_example_table_of_the_readme_has_the_sum_it_claims() -> None:
    """40 tokens at first, none at a node, all in the pipes."""
    (table,) = [block for block in blocks("") if block.startswith("Snapshot")]
    held = sum(int(n) for n in re.findall(r"'tokens': (\d+)", table))
    in_flight = sum(
        sum(map(int, m.split(", "))) for m in re.findall(r"^N\d -> N\d +\d+ +([\d, ]+)$", table, re.MULTILINE)
    )
    assert held + in_flight == 40


def test_limits_and_files_named_in_the_readme_are_the_real_ones() -> None:
    assert f"{WINDOW:,} of its messages" in README
    for name in re.findall(r"`((?:core|runtime|cli|views)/\w*)`", README):
        assert (ROOT / "mpsnap" / f"{name}.py").exists() or (ROOT / "mpsnap" / name).is_dir(), name


def test_no_document_or_source_refers_to_what_is_outside_the_product() -> None:
    outside = re.compile(r"\.\./shared|\bDESIGN\.md\b|\bissue #?\d+\b|" + "DEVELOPERS" + r"\.md")
    files = run(["git", "ls-files"], ROOT).split()
    for name in files:
        path = ROOT / name
        if path != Path(__file__) and path.is_file():
            match = outside.search(path.read_text(errors="replace"))
            assert match is None, f"{name}: {match}"
