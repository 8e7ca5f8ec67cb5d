"""What the documents say is tried here, word for word."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from mpsnap.cli.main import parser
from mpsnap.runtime.supervisor import WINDOW

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()


def blocks(language: str) -> list[str]:
    """Return README's fenced blocks of one language, "" for those without."""
    return re.findall(rf"^```{language}\n(.*?)^```$", README, re.DOTALL | re.MULTILINE)


def run(command: list[str] | str, cwd: Path, **environment: str) -> str:
    done = subprocess.run(
        command,
        cwd=cwd,
        shell=isinstance(command, str),
        executable="/bin/bash" if isinstance(command, str) else None,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=110,
    )
    assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
    return done.stdout


@pytest.fixture
def clone(tmp_path: Path) -> Path:
    run(["git", "clone", "-q", str(ROOT), str(tmp_path / "mpsnap")], tmp_path)
    return tmp_path / "mpsnap"


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
def test_the_first_command_installs_and_runs_the_main_job(clone: Path) -> None:
    printed = run(blocks("sh")[0], clone)
    headings = re.findall(r"^Snapshot (\d) from N\d in [\d.]+ ms: consistent, 4 nodes, ", printed, re.MULTILINE)
    assert headings == ["0", "1", "2", "3", "4"]


@pytest.mark.processes
def test_the_second_command_installs_and_passes_the_tests(clone: Path) -> None:
    """All of them would include this one; here it passes those of one file, and `.ci/run` runs it whole."""
    printed = run(blocks("sh")[1], clone, PYTEST_ADDOPTS="tests/test_architecture.py")
    assert re.search(r"\d+ passed", printed)
    assert "block 2" in (ROOT / ".ci" / "run").read_text()


@pytest.mark.processes
@pytest.mark.parametrize("command", blocks("sh")[2].splitlines())
def test_the_other_commands_run(command: str) -> None:
    python, *arguments = shlex.split(command)
    assert python == "python"
    run([sys.executable, *arguments], ROOT)


def test_every_option_of_run_is_explained_in_its_help() -> None:
    verbs = next(action for action in parser()._actions if action.dest == "verb")
    assert verbs.choices is not None
    for verb in verbs.choices:
        sub = verbs.choices[verb]  # type: ignore[call-overload, index]
        for action in sub._actions:
            assert action.help, f"{verb} {action.option_strings}"
        assert "examples:" in sub.epilog


def test_every_example_table_of_the_readme_has_the_sum_it_claims() -> None:
    """40 tokens at first, none at a node, all in the pipes."""
    (table,) = [block for block in blocks("") if block.startswith("Snapshot")]
    held = sum(int(n) for n in re.findall(r"'tokens': (\d+)", table))
    in_flight = sum(sum(map(int, m.split(", "))) for m in re.findall(r"^N\d -> N\d +\d+ +([\d, ]+)$", table, re.MULTILINE))
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
