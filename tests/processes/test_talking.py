"""The verbs that talk to a run, against a real one: what is asked for is done, and what is shown is so."""

from __future__ import annotations

import json
import os
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from cli_harness import COMMAND, ENVIRONMENT, end, leaves_nothing, write
from conftest import wait_until
from terminal import Terminal

from mpsnap.cli import main
from mpsnap.server import client

pytestmark = [pytest.mark.processes, pytest.mark.timeout(240)]

APP = """
    import time
    from mpsnap import Node


    class Counter(Node):
        def setup(self, ctx):
            self.total = 0
            ctx.every(0.02, "tick")

        def tick(self, ctx):
            ctx.broadcast(1)

        def on_message(self, ctx, sender, payload):
            self.total += payload

        def on_command(self, ctx, command):
            if "sleep" in command:
                time.sleep(command["sleep"])
            self.total += command.get("add", 0)
            return (ctx.name, self.total)
"""

#: Asks with one verb in this process, and returns its document.
Ask = Callable[..., Any]


class Serving:
    """Serve a ring of three in a process of its own, for a `with` block."""

    def __init__(self, folder: Path, *options: str) -> None:
        write(folder / "counter.py", APP)
        command = [*COMMAND, "serve", "counter.py:Counter", "--topology", "ring:3", "--no-http", "--quiet", *options]
        self._command = [*command, "--name", "counting"]
        self._folder = folder

    def __enter__(self) -> Serving:
        self.process = subprocess.Popen(
            self._command,
            cwd=self._folder,
            env={**ENVIRONMENT, "XDG_RUNTIME_DIR": os.environ["XDG_RUNTIME_DIR"]},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        return self

    def __exit__(self, *_: object) -> None:
        end(self.process)
        assert self.process.stderr is not None
        self.process.stderr.close()

    def ended(self) -> int:
        """Return with which status it has ended; it leaves no process."""
        status = self.process.wait(60)
        leaves_nothing(self.process.pid)
        return status


@pytest.fixture
def ask(capsys: pytest.CaptureFixture[str], runs: Path) -> Ask:
    def execute(*arguments: str) -> Any:
        capsys.readouterr()
        status = main([*arguments, "--format", "json"])
        stdout, stderr = capsys.readouterr()
        assert (status, stderr) == (0, ""), (arguments, status, stderr)
        return json.loads(stdout)

    return execute


def statuses(ask: Ask) -> set[str]:
    return {node["status"] for node in ask("status")["nodes"]}


def until_running(ask: Ask, seconds: float = 30.0) -> None:
    wait_until(lambda: [run.answers for run in client.runs()] == [True], "a run", seconds)

    def is_running() -> bool:
        status = ask("status")
        return status["run"]["state"] == "running" and statuses(ask) <= {"running", "waiting", "blocked"}

    wait_until(is_running, "nodes that run", seconds)


def test_every_verb_does_what_it_says(ask: Ask, tmp_path: Path, start_method: str) -> None:
    store = str(tmp_path / "kept")
    with Serving(tmp_path, "--start-method", start_method, "--store", store) as serving:
        until_running(ask)
        (run,) = ask("ps")["runs"]
        assert (run["name"], run["pid"], run["answers"]) == ("counting", serving.process.pid, True)
        status = ask("status")
        assert [node["name"] for node in status["nodes"]] == ["N1", "N2", "N3"]
        assert status["run"]["start_method"] == start_method
        # A command changes the state, which a snapshot holds from then on.
        name, total = ask("command", "N2", '{"add": 1000000}')["reply"]["$tuple"]
        assert name == "N2"
        assert total >= 1_000_000
        assert ask("state", "N2")["state"]["total"] >= total
        snapshot = ask("snapshot", "N2", "N3", "--wait")["snapshot"]
        assert (sorted(snapshot["initiators"]), snapshot["verified"]) == (["N2", "N3"], True)
        assert snapshot["nodes"]["N2"]["state"]["total"] >= total
        assert ask("snapshot")["digest"]["phase"] in ("recording", "committing", "completed")
        assert ask("pause", "N1")["paused"] == ["N1"]
        wait_until(lambda: "paused" in statuses(ask), "a node that is paused")
        assert "N1 is paused" in ask("why")["verdict"]
        assert ask("unpause")["paused"] == []
        assert ask("stop", "N3") == {}
        assert ask("top", "--count", "1")["run"]["name"] == "counting"
        # The run has a store, so it survives the death of a node.
        assert ask("kill", "N1")["node"] == "N1"
        wait_until(lambda: ask("status")["recoveries"], "a recovery", 60.0)
        until_running(ask, 60.0)
        assert ask("status")["run"]["incarnation"] >= 1
        assert ask("state", "N2")["state"]["total"] >= total
        assert ask("stop") == {}
        assert serving.ended() == 0
    assert ask("ps") == {"runs": []}


def test_a_hook_that_does_not_return_is_found_with_its_stack(ask: Ask, tmp_path: Path) -> None:
    with Serving(tmp_path, "--start-method", "fork"):
        until_running(ask)
        # The one that asks is as patient as the node is slow, so another process has to ask.
        asking = subprocess.Popen(
            [*COMMAND, "command", "N2", '{"sleep": 600}'],
            env={**ENVIRONMENT, "XDG_RUNTIME_DIR": os.environ["XDG_RUNTIME_DIR"]},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        try:

            def verdict() -> dict[str, Any]:
                why: dict[str, Any] = ask("why")
                return why if "N2 has been in on_command for" in why["verdict"] else {}

            why = wait_until(verdict, "N2 in on_command", 30.0)
            (node,) = [node for node in why["nodes"] if node["node"] == "N2"]
            assert node["doing"] == "handler"
            assert any(line.startswith("> File") and line.endswith("in on_command") for line in node["stack"])
        finally:
            end(asking)


def test_a_process_that_is_stopped_is_found(ask: Ask, tmp_path: Path) -> None:
    with Serving(tmp_path, "--start-method", "fork"):
        until_running(ask)
        (pid,) = [node["pid"] for node in ask("status")["nodes"] if node["name"] == "N3"]
        os.kill(pid, signal.SIGSTOP)
        wait_until(lambda: "frozen" in statuses(ask), "a node that is frozen")
        assert ask("why")["verdict"].startswith("N3's process is stopped (SIGSTOP)")
        os.kill(pid, signal.SIGCONT)
        wait_until(lambda: "frozen" not in statuses(ask), "the end of it")


def test_top_takes_a_snapshot_where_it_is_asked_to_and_ends_with_the_run(ask: Ask, tmp_path: Path, runs: Path) -> None:
    with Serving(tmp_path, "--start-method", "fork") as serving:
        until_running(ask)
        with Terminal(runs) as top:
            top.see_text("> N1")
            top.press("js")
            top.see_text("#0     N2       completed      3/3")
            serving.process.send_signal(signal.SIGTERM)
            assert top.end() == (0, "mpsnap: the run counting has ended\n")
