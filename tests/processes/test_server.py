"""`serve` as its users meet it: every verb against real runs, and every way in which one can be brought to an end.

Each run is a process in a session of its own, with a folder of its own for the sockets of runs. Whatever is done to it,
no process, folder or socket may be left, and the next one of the same name starts.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import psutil
import pytest
from cli_harness import COMMAND, ENVIRONMENT, QUICK, end, leaves_nothing, members, write
from conftest import is_dead, wait_until

from mpsnap.core.errors import ClusterError, InputError, MpsnapError
from mpsnap.server import child, client, rundir
from mpsnap.server.lines import MOST_CONNECTIONS, MOST_LINE_BYTES

pytestmark = [pytest.mark.processes, pytest.mark.timeout(90)]

APP = """
    import os, time
    from dataclasses import dataclass
    from mpsnap import Node

    @dataclass
    class Parcel:
        label: str
        weight: int

    class Worker(Node):
        # Three messages go round and round; the rest is done by commands.
        def setup(self, ctx):
            self.handled = 0
            self.nested = {"list": [1, (2, 3)], "parcel": Parcel(ctx.name, 7), "set": {1, 2}}
            self.ballast = b""
            if ctx.name == "N1":
                for k in range(3):
                    ctx.broadcast(k)

        def on_message(self, ctx, sender, payload):
            self.handled += 1
            if payload != "flood":
                time.sleep(0.0005)
                ctx.broadcast(payload)

        def on_command(self, ctx, command):
            return getattr(self, command["do"])(ctx, *command.get("with", ()))

        def echo(self, ctx, value):
            return value

        def fill(self, ctx, size):
            self.ballast = bytes(range(256)) * (size // 256)

        def flood(self, ctx, count):
            for _ in range(count):
                ctx.broadcast("flood")

        def sits_still(self, ctx, path):
            while not os.path.exists(path):
                time.sleep(0.005)
            return "at last"

    class Ending(Node):
        # Comes to its end when there is a file.
        endless = False

        def setup(self, ctx):
            self.ticks = 0
            ctx.every(0.01, "tick")

        def tick(self, ctx):
            self.ticks += 1
            if os.path.exists("done"):
                ctx.finish()
    """


class Served:
    """Hold a run that can be seen and steered, and a connection to it."""

    def __init__(self, process: subprocess.Popen[str], name: str, folder: Path, stack: contextlib.ExitStack) -> None:
        self.process = process
        #: Closed when the test is over.
        self.stack = stack
        self.name = name
        self.folder = folder
        self.at = client.Run(name, process.pid, str(folder / "mpsnap" / name / "control"), answers=True)

    def client(self) -> client.Client:
        return client.Client(self.at)

    def ask(self, do: str, **args: Any) -> Any:
        """Ask over a connection of its own."""
        with self.client() as asked:
            return asked.ask(do, args)

    def command(self, node: str, do: str, *values: Any) -> Any:
        return self.ask("command", node=node, command={"do": do, "with": list(values)})["reply"]

    def answers(self) -> bool:
        """Return whether it can be asked by now."""
        assert self.process.poll() is None, self.process.communicate()
        with contextlib.suppress(MpsnapError):
            return bool(self.ask("status")["run"]["state"] == "running")
        return False

    def handled(self) -> int:
        return int(self.ask("status")["totals"]["handled"])

    def goes_on(self) -> None:
        """Wait until more messages were handled than now."""
        before = self.handled()
        wait_until(lambda: self.handled() > before, "another message")

    def node(self, name: str) -> dict[str, Any]:
        (found,) = [node for node in self.ask("status")["nodes"] if node["name"] == name]
        return dict(found)

    def control(self) -> psutil.Process:
        """Return the control process, as soon as there is one."""
        root = psutil.Process(self.process.pid)

        def found() -> list[psutil.Process]:
            return [each for each in root.children() if any("mpsnap.server.plane" in part for part in _cmdline(each))]

        return wait_until(found, "the control process")[0]

    @property
    def has_folder(self) -> bool:
        return (self.folder / "mpsnap" / self.name).exists()

    @property
    def has_begun(self) -> bool:
        """Whether there is a folder of its own, and not one that somebody has left."""
        with contextlib.suppress(FileNotFoundError, ValueError):
            facts = json.loads((self.folder / "mpsnap" / self.name / "run.json").read_text())
            return bool(facts["pid"] == self.process.pid)
        return False

    def ends(self, status: int) -> str:
        """Wait for the end, of which nothing may be left; return what it said on stderr."""
        _, stderr = self.process.communicate(timeout=30)
        assert self.process.returncode == status, stderr
        assert "Traceback" not in stderr
        assert not self.has_folder
        leaves_nothing(self.process.pid)
        return stderr


def _cmdline(process: psutil.Process) -> list[str]:
    try:
        return process.cmdline()
    except psutil.Error:
        return []


class Place:
    """Start runs in a folder with the app, and make sure of their end."""

    def __init__(self, folder: Path, runtime: Path) -> None:
        self.folder = folder
        self.runtime = runtime
        self._stack = contextlib.ExitStack()

    def serve(self, *arguments: str, name: str = "one", app: str = "app.py:Worker", verb: str = "serve") -> Served:
        """Start one and return at once."""
        line = [*COMMAND, verb, app, "--name", name, *([] if "--topology" in arguments else ["--topology", "ring:3"])]
        line += ["--no-http"] if verb == "serve" else ["--control"]
        process = subprocess.Popen(
            [*line, *arguments],
            cwd=self.folder,
            env={**ENVIRONMENT, "XDG_RUNTIME_DIR": str(self.runtime)},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        self._stack.callback(self._end, process)
        return Served(process, name, self.runtime, self._stack)

    def serving(self, *arguments: str, **named: Any) -> Served:
        """Start one and return when it runs."""
        made = self.serve(*arguments, **named)
        wait_until(made.answers, "a run that answers", 30)
        return made

    def _end(self, process: subprocess.Popen[str]) -> None:
        end(process)
        process.communicate()

    def close(self) -> None:
        self._stack.close()


@pytest.fixture
def place(tmp_path: Path, runs: Path) -> Iterator[Place]:
    write(tmp_path / "app.py", APP)
    # A shell starts what it runs in the background with Ctrl-C ignored, and that is inherited; a handler is not.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    made = Place(tmp_path, runs)
    try:
        yield made
    finally:
        made.close()
        signal.signal(signal.SIGINT, before)


class Later:
    """Ask something whose answer comes later, over a connection of its own, which ends with its run."""

    def __init__(self, run: Served, do: str, **args: Any) -> None:
        self._client = run.client()
        run.stack.callback(self._client.close)
        self._number = self._client._send(do, args)

    def is_answered(self) -> bool:
        self._client._socket.setblocking(False)
        try:
            return bool(self._client._socket.recv(1, socket.MSG_PEEK))
        except BlockingIOError:
            return False
        finally:
            self._client._socket.setblocking(True)

    def answer(self) -> dict[str, Any]:
        return self._client._answer_to(self._number, 30.0)


# --- Every verb. ---


def adds_up(status: dict[str, Any]) -> None:
    """Check that a status is true in itself."""
    nodes = {node["name"]: node for node in status["nodes"]}
    for each in status["channels"]:
        assert each["sent"] - each["handled"] == each["in_flight"] >= 0
    for name, node in nodes.items():
        assert node["sent"] == sum(each["sent"] for each in status["channels"] if each["src"] == name)
        assert node["handled"] == sum(each["handled"] for each in status["channels"] if each["dst"] == name)
        assert node["backlog"] == sum(each["in_flight"] for each in status["channels"] if each["dst"] == name)
    totals = status["totals"]
    assert totals["sent"] - totals["handled"] == totals["in_flight"]
    assert totals["sent"] == sum(node["sent"] for node in nodes.values())


def test_every_verb(place: Place, start_method: str) -> None:
    run = place.serving("--start-method", start_method)
    _looks(run, start_method)
    _takes_snapshots(run)
    _talks_to_nodes(run)
    _pauses(run)
    # A node that is stopped handles what comes, and says in snapshots that it has finished.
    assert run.ask("stop", node="N2") == {}
    # It hears of that from its supervisor, and of a snapshot from its neighbour: which comes first, nobody says.
    run.ask("state", node="N2")
    nodes = run.ask("snapshot", nodes=[], wait=True)["snapshot"]["nodes"]
    assert {name: node["finished"] for name, node in nodes.items()} == {"N1": False, "N2": True, "N3": False}
    run.goes_on()
    with run.client() as watching:
        items = watching.watch(60)
        assert next(items)[0] == "status"
        with run.client() as asked:
            assert asked.ask("stop") == {}
            with contextlib.suppress(ClusterError):  # the end may come between
                assert asked.ask("stop") == {}
        rest = list(items)
        assert rest[-1] == ("end", {"error": None})
    assert run.ends(0).count("\n") == 2, "nothing but that it began"


def _looks(run: Served, start_method: str) -> None:
    assert [(each.name, each.pid, each.answers) for each in client.runs()] == [("one", run.process.pid, True)]
    assert client.find_run(None).socket == run.at.socket
    with pytest.raises(InputError, match="there is a run called one already"):
        rundir.RunDir("one")
    status = run.ask("status")
    adds_up(status)
    facts = {name: status["run"][name] for name in ("name", "pid", "start_method", "state", "store", "url", "error")}
    assert facts == {
        **{"name": "one", "pid": run.process.pid, "start_method": start_method, "state": "running"},
        **{"store": None, "url": None, "error": None},
    }
    assert (status["run"]["app"], status["run"]["topology"]) == ("app.py:Worker", "ring:3")
    assert [node["name"] for node in status["nodes"]] == ["N1", "N2", "N3"]
    for node in status["nodes"]:
        assert run.process.pid in [each.pid for each in psutil.Process(node["pid"]).parents()]
        assert node["memory_bytes"] > 1_000_000
    assert [(each["src"], each["dst"]) for each in status["channels"]] == [("N1", "N2"), ("N2", "N3"), ("N3", "N1")]
    run.goes_on()
    wait_until(lambda: run.ask("status")["totals"]["handled_per_s"], "a rate")
    why = run.ask("why")
    assert [node["node"] for node in why["nodes"]] == ["N1", "N2", "N3"]
    assert why["cycle"] is None


def _takes_snapshots(run: Served) -> None:
    digest = run.ask("snapshot", nodes=["N3"])["digest"]
    assert (digest["number"], digest["initiators"]) == (0, ["N3"])
    wait_until(lambda: run.ask("status")["snapshots"][0]["phase"] == "completed", "the snapshot")
    (digest,) = run.ask("status")["snapshots"]
    assert (digest["verified"], digest["kept"], digest["error"]) == (True, True, None)
    assert digest["waiting"] == {"nodes": [], "channels": []}
    summaries = wait_until(lambda: [node["summary"] for node in run.ask("status")["nodes"]], "summaries of states")
    assert all(summary.startswith("handled=") for summary in summaries)
    for each in digest["nodes"].values():
        assert 0 <= each["recorded_s"] <= each["closed_s"] <= digest["duration_s"]
    answer = run.ask("snapshot", nodes=["N1", "N2"], wait=True)
    snapshot = answer["snapshot"]
    assert (snapshot["number"], snapshot["initiators"], snapshot["verified"]) == (1, ["N1", "N2"], True)
    assert answer["digest"]["phase"] == "completed"
    messages = sum(len(channel["messages"]) for channel in snapshot["channels"])
    assert messages == answer["digest"]["in_flight"] == 3, "all of them are on their way between two handlers"
    state = snapshot["nodes"]["N2"]["state"]
    assert state["nested"]["list"] == [1, {"$tuple": [2, 3]}]
    assert state["nested"]["parcel"]["value"] == {"label": "N2", "weight": 7}
    for short in (False, True):
        assert run.ask("content", number=1, short=short)["snapshot"] == snapshot
    assert run.ask("content", number=1)["digest"]["number"] == 1
    diff = run.ask("diff", old=0, new=1)
    assert (diff["old"]["number"], diff["new"]["number"], diff["differ"]) == (0, 1, True)
    with pytest.raises(InputError, match="snapshot 7 is not held any more, or was never taken"):
        run.ask("content", number=7)


def _talks_to_nodes(run: Served) -> None:
    answer = run.ask("state", node="N2")
    assert answer["node"] == "N2"
    assert answer["state"]["nested"]["parcel"]["value"]["label"] == "N2"
    for value in ([1, [2]], {"deep": [None, 1.5]}, 1 << 90, "\ud800"):
        assert run.command("N1", "echo", value) == value, "JSON in, JSON out"
    with pytest.raises(InputError, match="there is no node 'N9'"):
        run.ask("state", node="N9")


def _pauses(run: Served) -> None:
    assert run.ask("pause", nodes=["N2"])["paused"] == ["N2"]
    assert run.ask("pause", nodes=[])["paused"] == ["N1", "N2", "N3"]
    # A node answers behind the pause, so it has paused by then.
    before = {name: run.ask("state", node=name)["state"]["handled"] for name in ("N1", "N2", "N3")}
    wait_until(lambda: run.ask("status")["totals"]["in_flight"] == 3, "all messages to wait")
    adds_up(run.ask("status"))
    waiting = Later(run, "command", node="N1", command={"do": "echo", "with": ["late"]})
    assert run.ask("snapshot", nodes=["N2"], wait=True)["digest"]["in_flight"] == 3
    assert {name: run.ask("state", node=name)["state"]["handled"] for name in before} == before
    assert {node["status"] for node in run.ask("status")["nodes"]} == {"paused"}
    assert not waiting.is_answered()
    assert "paused" in run.ask("why")["verdict"]
    assert run.ask("unpause", nodes=["N1", "N2"])["paused"] == ["N3"]
    assert waiting.answer()["result"] == {"node": "N1", "reply": "late"}
    assert run.ask("unpause")["paused"] == []
    run.goes_on()


def test_a_run_with_a_store_goes_on_after_the_death_of_its_nodes(place: Place, start_method: str) -> None:
    run = place.serving("--start-method", start_method, "--store", "kept", "--snapshot-every", "0.2")
    run.ask("pause", nodes=["N3"])
    pid = run.node("N1")["pid"]
    assert run.ask("kill", node="N1") == {"node": "N1", "pid": pid}
    wait_until(lambda: run.ask("status")["recoveries"], "the recovery", 30)
    status = run.ask("status")
    assert (status["run"]["incarnation"], status["run"]["state"]) == (1, "running")
    assert [death["node"] for death in status["deaths"]] == ["N1"]
    assert status["run"]["error"] is None
    assert {node["name"]: node["paused"] for node in status["nodes"]} == {"N1": False, "N2": False, "N3": True}
    assert pid not in [node["pid"] for node in status["nodes"]]
    run.ask("unpause")
    run.goes_on()
    # A node dies that was asked something, while a snapshot waits for it.
    sitting = Later(run, "command", node="N2", command={"do": "sits_still", "with": ["never"]})
    wait_until(lambda: run.node("N2")["phase"] == "on_command", "N2 to sit still")
    open_still = Later(run, "snapshot", nodes=["N1"], wait=True)
    wait_until(lambda: run.ask("status")["snapshots"][-1]["phase"] == "recording", "a snapshot that waits")
    assert run.ask("kill", node="N2")["node"] == "N2"
    assert sitting.answer()["error"]["what"] == "N2 died before it answered"
    assert "was abandoned: N2 died in on_command: killed by SIGKILL" in open_still.answer()["error"]["what"]
    wait_until(lambda: len(run.ask("status")["recoveries"]) == 2, "the second recovery", 30)
    assert run.ask("snapshot", nodes=[], wait=True)["digest"]["recovery_point"] in (True, False)
    _hold_nothing_of_the_supervisors(run)
    os.killpg(run.process.pid, signal.SIGINT)
    said = run.ends(130)
    assert said.count("all nodes went on from snapshot") == 2


def _hold_nothing_of_the_supervisors(run: Served) -> None:
    """Nodes of a later incarnation are forked when the sockets of the control plane are open."""
    ours = _sockets(run.process.pid)
    assert len(ours) >= 2, "the folder's and the link"
    for node in run.ask("status")["nodes"]:
        assert not ours & _sockets(node["pid"]), node["name"]


def _sockets(pid: int) -> set[str]:
    found = set()
    for name in os.listdir(f"/proc/{pid}/fd"):
        with contextlib.suppress(OSError):
            found.add(os.readlink(f"/proc/{pid}/fd/{name}"))
    return {each for each in found if each.startswith("socket:")}


def test_without_a_store_the_death_of_a_node_is_the_end_and_everybody_hears_why(place: Place) -> None:
    run = place.serving(*QUICK)
    waiting = Later(run, "command", node="N1", command={"do": "sits_still", "with": ["never"]})
    wait_until(lambda: run.node("N1")["phase"] == "on_command", "the command to be handled")
    with run.client() as watching:
        items = watching.watch(60)
        next(items)
        run.ask("kill", node="N2")
        kind, value = list(items)[-1]
        assert kind == "end"
        assert value["error"]["where"] == "N2"
        assert "N2 died" in value["error"]["what"]
    assert "killed by SIGKILL" in waiting.answer()["error"]["what"]
    assert "N2 died" in run.ends(3)


# --- Snapshots that do not get on. ---


def test_what_an_open_snapshot_waits_for_can_be_seen(place: Place) -> None:
    run = place.serving(*QUICK, "--timeout", "3")
    waiting = Later(run, "command", node="N2", command={"do": "sits_still", "with": ["go"]})
    wait_until(lambda: run.node("N2")["phase"] == "on_command", "N2 to sit still")
    open_still = Later(run, "snapshot", nodes=["N1"], wait=True)
    # N1 has recorded and awaits the marker that comes round; nobody else has heard of it.
    seen = {"nodes": ["N1", "N2", "N3"], "channels": [["N3", "N1"]]}

    def found() -> list[dict[str, Any]]:
        return [digest for digest in run.ask("status")["snapshots"] if digest["waiting"] == seen]

    (digest,) = wait_until(found, "what it waits for", 2.9)
    assert digest["phase"] == "recording"
    assert digest["nodes"]["N1"]["awaits"] == ["N3"]
    assert digest["nodes"]["N1"]["recorded_s"] >= 0
    wait_until(lambda: "wait for it" in run.ask("why")["verdict"], "others to be seen to wait for it")
    why = run.ask("why")
    assert "N2 has been in on_command for" in why["verdict"]
    (stuck,) = [node for node in why["nodes"] if node["node"] == "N2"]
    assert stuck["doing"] == "handler"
    assert any(each.startswith(">") and "sits_still" in each for each in stuck["stack"])
    error = open_still.answer()["error"]
    assert "did not complete within 3 s: N2 does not answer (in on_command" in error["what"]
    # It stays in the list, with what was missing.
    digest = run.ask("status")["snapshots"][-1]
    assert (digest["phase"], digest["error"]["what"]) == ("abandoned", error["what"])
    assert digest["waiting"] == seen
    (place.folder / "go").touch()
    assert waiting.answer()["result"]["reply"] == "at last"
    _sees_a_frozen_one(run)
    # What others have asked for and nobody got is no failure of the run.
    run.ask("stop")
    run.ends(0)


def _sees_a_frozen_one(run: Served) -> None:
    frozen = psutil.Process(run.node("N3")["pid"])
    frozen.suspend()
    wait_until(lambda: run.node("N3")["status"] == "frozen", "it to be seen")
    assert "stopped (SIGSTOP)" in run.ask("why")["verdict"]
    frozen.resume()
    run.goes_on()
    assert run.ask("snapshot", nodes=["N3"], wait=True)["digest"]["phase"] == "completed"


def test_snapshots_of_much_are_shown(place: Place) -> None:
    run = place.serving(*QUICK)
    run.command("N2", "fill", 5 << 20)
    answer = run.ask("snapshot", nodes=[], wait=True)
    number, size = answer["digest"]["number"], answer["digest"]["bytes"]
    assert size > 5 << 20
    assert len(answer["snapshot"]["nodes"]["N2"]["state"]["ballast"]["$bytes"]) > (5 << 20) * 4 / 3 - 4
    nodes = run.ask("content", number=number, short=True)["snapshot"]["nodes"]
    assert 5 << 20 < nodes["N2"]["state"]["$size"] <= size
    assert nodes["N1"]["state"]["nested"]
    run.command("N2", "fill", 0)
    run.ask("pause", nodes=["N2"])
    run.ask("state", node="N2")
    run.command("N1", "flood", 200_000)
    answer = run.ask("snapshot", nodes=[], wait=True)
    assert answer["digest"]["in_flight"] >= 200_000
    messages = {(each["src"], each["dst"]): each["messages"] for each in answer["snapshot"]["channels"]}
    assert messages["N1", "N2"].count("flood") == 200_000
    number = answer["digest"]["number"]
    short = run.ask("content", number=number, short=True)["snapshot"]["channels"]
    assert short[0]["messages"] == [{"$more": len(messages["N1", "N2"])}]
    run.ask("unpause")
    run.ask("stop")
    run.ends(0)


# --- Who asks too much, or nonsense. ---


def test_whoever_asks_nonsense_or_too_much_harms_nobody(place: Place) -> None:
    run = place.serving(*QUICK)
    with contextlib.ExitStack() as stack:
        raw = [stack.enter_context(socket.socket(socket.AF_UNIX)) for _ in range(100)]
        for each in raw[:30]:
            each.connect(run.at.socket)
            each.sendall(b'{"id": 1, "do": "sta')
        for each in raw[30:40]:
            each.connect(run.at.socket)
            # And never read.
            each.sendall(b"".join(b'{"id": %d, "do": "watch", "args": {"every": 0.1}}\n' % k for k in range(8)))
        run.goes_on()
        _asks_at_random(run)
        for each in raw[40:]:
            each.connect(run.at.socket)
        # Silence is no claim to a place; those that have asked something keep theirs.
        assert MOST_CONNECTIONS < 100
        run.goes_on()
        too_long = stack.enter_context(socket.socket(socket.AF_UNIX))
        too_long.connect(run.at.socket)
        too_long.sendall(b" " * (MOST_LINE_BYTES + 1) + b"\n")
        assert b"a request of more than" in too_long.recv(4096)
    run.goes_on()
    status = run.ask("status")
    assert [digest["phase"] for digest in status["snapshots"]] == ["completed"] * 5
    assert not any(node["paused"] for node in status["nodes"])
    run.ask("stop")
    run.ends(0)


def _asks_at_random(run: Served) -> None:
    """2,000 requests, of which five are right: these alone do anything."""
    chosen = random.Random(6)
    values: list[Any] = [None, True, -1, 1 << 64, 0.5, "", "N1", "N9", [], ["N1", 2], {"N1": 1}, "\ud800", "x" * 3000]
    names = ["node", "nodes", "number", "old", "new", "short", "wait", "command", "every", "args", ""]
    verbs = ["status", "snapshot", "content", "diff", "state", "command", "pause", "stop", "kill", "", "Status", "eval"]
    right = set(chosen.sample(range(2000), 5))
    with run.client() as asked:
        for k in range(2000):
            if k in right:
                assert asked.ask("snapshot", {"nodes": ["N1"], "wait": True})["digest"]["phase"] == "completed"
                continue
            args = {chosen.choice(names): chosen.choice(values) for _ in range(chosen.randrange(4))}
            # Something that no verb takes, so that none of them is right by chance.
            args["nonsense"] = chosen.choice(values)
            with pytest.raises(InputError):
                asked.ask(chosen.choice(verbs), args)


# --- The control process comes to harm. ---


def test_the_run_goes_on_whatever_becomes_of_its_control_process(place: Place) -> None:
    given = ("--snapshot-every", "0.05", "--format", "json", "--out", "out")
    run = place.serving(*QUICK, *given, app="app.py:Ending", verb="run")

    def ticks() -> int:
        numbers = [int(path.stem) for path in (place.folder / "out").glob("*.json")]
        # The newest may be half written.
        path = place.folder / "out" / f"{max(numbers) - 1}.json"
        return int(json.loads(path.read_text())["nodes"]["N1"]["state"]["ticks"])

    wait_until(lambda: len(list((place.folder / "out").glob("*.json"))) > 1, "a snapshot that is whole")

    def goes_on() -> None:
        before = ticks()
        wait_until(lambda: ticks() > before, "the next snapshot to show another state")

    for _ in range(child.MOST_DEATHS):
        waiting = Later(run, "state", node="N1")
        waiting.answer()
        killed = run.control()
        killed.kill()
        wait_until(lambda pid=killed.pid: is_dead(pid), "its death")  # type: ignore[misc]
        goes_on()
        wait_until(run.answers, "another one")
    # It stands still: its clients wait, and nobody else.
    stopped = run.control()
    stopped.suspend()
    goes_on()
    assert run.has_folder
    stopped.kill()
    wait_until(lambda: not run.has_folder, "it to be given up")
    goes_on()
    with pytest.raises(InputError, match="no run of yours"):
        client.find_run(None)
    (place.folder / "done").touch()
    stderr = run.ends(0)
    assert stderr.count("the control process has died and is started anew; the run goes on") == child.MOST_DEATHS
    assert "the control process has died 4 times; the run goes on without it" in stderr


def test_a_control_process_that_stands_still_holds_the_end_up_for_no_longer_than_it_may(place: Place) -> None:
    run = place.serving(*QUICK, "--timeout", "20", app="app.py:Ending", verb="run")
    nodes = [psutil.Process(node["pid"]) for node in run.ask("status")["nodes"]]
    control = run.control()
    control.suspend()
    (place.folder / "done").touch()
    wait_until(lambda: all(not node.is_running() or is_dead(node.pid) for node in nodes), "the nodes' end")
    began = time.monotonic()
    run.ends(0)
    assert time.monotonic() - began < child.END_SECONDS + 2
    assert is_dead(control.pid)


@pytest.mark.parametrize("stopped", [False, True], ids=["", "control process stopped"])
def test_nothing_is_left_of_a_run_whose_supervisor_is_killed(place: Place, stopped: bool) -> None:
    run = place.serving(*QUICK)
    if stopped:
        run.control().suspend()
    run.process.kill()
    run.ends(-signal.SIGKILL)
    assert client.runs() == []


def test_a_viewer_hears_that_the_supervisor_is_gone(place: Place) -> None:
    run = place.serving(*QUICK)
    with run.client() as watching:
        items = watching.watch(60)
        next(items)
        run.process.kill()
        assert list(items)[-1] == ("end", {"error": {"what": "the supervisor is gone", "where": None, "try": None}})
    run.ends(-signal.SIGKILL)


# --- Ends in a row. ---


def _interrupt(run: Served) -> None:
    os.killpg(run.process.pid, signal.SIGINT)


def _kill_both(run: Served) -> None:
    control = run.control()
    os.kill(run.process.pid, signal.SIGSTOP)
    control.kill()
    run.process.kill()


WAYS: list[tuple[bool, Callable[[Served], object], int]] = [
    (True, lambda run: run.ask("stop"), 0),
    (True, _interrupt, 130),
    (False, _interrupt, 130),
    (True, lambda run: run.process.kill(), -9),
    (False, lambda run: run.process.kill(), -9),
    (True, lambda run: os.killpg(run.process.pid, signal.SIGKILL), -9),
    (False, lambda run: os.killpg(run.process.pid, signal.SIGKILL), -9),
    (True, _kill_both, -9),
    (True, lambda run: os.killpg(run.process.pid, signal.SIGTERM), 130),
    (True, lambda run: run.ask("kill", node="N1"), 3),
]


def test_one_after_another_however_the_one_before_has_ended(place: Place) -> None:
    """Twenty of two names, side by side; some are ended as soon as there is a folder, whatever they are doing then."""

    def lane(name: str, order: list[int]) -> None:
        for way in order:
            ready, act, status = WAYS[way]
            run = place.serve(*QUICK, "--topology", "ring:2", name=name)
            wait_until(run.answers if ready else lambda run=run: run.has_begun, f"{name} before {way}", 60)  # type: ignore[misc]
            act(run)
            _, stderr = run.process.communicate(timeout=30)
            assert run.process.returncode == status, (way, stderr)
            assert "Traceback" not in stderr, (way, stderr)
            wait_until(lambda run=run: not members(run.process.pid), f"the end of {name} after {way}", 5)  # type: ignore[misc]

    orders = random.Random(7).sample(range(10), 10), random.Random(8).sample(range(10), 10)
    with ThreadPoolExecutor(2) as lanes:
        for done in [lanes.submit(lane, f"lane{k}", order) for k, order in enumerate(orders)]:
            done.result()
    # What those that were killed with all they had could not remove, whoever looks next does.
    assert client.runs() == []
    assert [each.name for each in (place.runtime / "mpsnap").iterdir()] == [".lock"]
