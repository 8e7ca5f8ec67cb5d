"""The end of a supervisor at any operation on its store: nothing committed is lost, and the next goes on from it."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent

pytestmark = [pytest.mark.processes, pytest.mark.timeout(100)]


def run_lives(folder: Path, *arguments: str) -> tuple[int, int]:
    """Run `lives.py` in a session of its own; return how many lives were cut short, and the newest recovery point."""
    paths = [str(HERE), str(HERE.parent), *filter(None, [os.environ.get("PYTHONPATH")])]
    process = subprocess.Popen(
        [sys.executable, str(HERE / "lives.py"), str(folder), *arguments],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(paths)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        out, err = process.communicate(timeout=95)
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
    assert process.returncode == 0, err
    count, newest = map(int, out.split())
    return count, newest


@pytest.mark.parametrize(("method", "step"), [("fork", 7), ("forkserver", 29), ("spawn", 61)])
def test_a_supervisor_killed_at_any_operation_is_followed_by_another(tmp_path: Path, method: str, step: int) -> None:
    count, newest = run_lives(tmp_path, method, str(step), "1000", str(step))
    assert count > 150 // step - 2
    assert newest > 0


def test_a_supervisor_killed_before_there_was_anything_is_followed_by_a_fresh_start(tmp_path: Path) -> None:
    count, _ = run_lives(tmp_path, "fork", "1", "80", "7", "again")
    assert count > 5
