"""The end of a supervisor, however it comes: no node outlives it, and nobody gets a traceback for a Ctrl-C.

Each program here runs in a session of its own, so that signals to its process group reach it and its nodes alone.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import psutil
import pytest
from conftest import is_dead, wait_until

pytestmark = [pytest.mark.processes, pytest.mark.timeout(60)]

HERE = Path(__file__).parent
METHODS = ["fork", "forkserver", "spawn"]

#: How long a node may outlive its supervisor, and how long an interrupted command may take, hanging nodes and all.
ORPHAN_SECONDS = 2.0
INTERRUPTED_SECONDS = 2.5

#: A program with a cluster, told how to behave by its arguments.
SCRIPT = """
import sys
from mpsnap import Cluster
from nodes import Doomed

if __name__ == "__main__":
    method, topology, moment, action, witness = sys.argv[1:]
    params = {"moment": moment, "action": action, "witness": witness}
    with Cluster(topology, Doomed, params=params, start_method=method) as cluster:
        print("started", flush=True)
        if moment == "capture:2":
            cluster.snapshot("N1", timeout=50)
        cluster.wait(timeout=50)
"""


class Run(NamedTuple):
    """Hold a program that runs, and the file that appears once its node has come to harm."""

    process: subprocess.Popen[str]
    witness: Path

    def everyone(self) -> list[psutil.Process]:
        """Return the program's process and all below it: nodes, a forkserver, a resource tracker."""
        root = psutil.Process(self.process.pid)
        return [root, *root.children(recursive=True)]

    def has_printed(self, line: str) -> None:
        """Wait for the next line on stdout."""
        assert self.process.stdout is not None
        assert self.process.stdout.readline() == line

    def ends(self) -> tuple[int, str]:
        """Wait for the end; return exit status and stderr."""
        _, err = self.process.communicate(timeout=30)
        return self.process.returncode, err


@contextlib.contextmanager
def running(command: list[str], witness: Path) -> Iterator[Run]:
    """Run a program in a session of its own; whatever happens, nothing of it is left."""
    paths = [str(HERE), *filter(None, [os.environ.get("PYTHONPATH")])]
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(paths)}
    # A shell starts what it runs in the background with Ctrl-C ignored, and that is inherited; a handler is not.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        process = subprocess.Popen(
            command, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
        )
    finally:
        signal.signal(signal.SIGINT, before)
    try:
        yield Run(process, witness)
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.communicate()


@contextlib.contextmanager
def script(folder: Path, method: str, moment: str, action: str, topology: str = "ring:3") -> Iterator[Run]:
    path, witness = folder / "program.py", folder / "witness"
    path.write_text(SCRIPT)
    with running([sys.executable, str(path), method, topology, moment, action, str(witness)], witness) as run:
        yield run


@contextlib.contextmanager
def command(folder: Path, *arguments: str, moment: str = "never", action: str = "kill9") -> Iterator[Run]:
    witness = folder / "witness"
    app = ["nodes:Doomed", "--topology", "ring:3", "--duration", "50"]
    params = [f"--param={name}={value}" for name, value in (("moment", moment), ("action", action))]
    line = [sys.executable, "-m", "mpsnap", "run", *app, *params, f"--param=witness={witness}", *arguments]
    with running(line, witness) as run:
        yield run


def semaphores(pid: int) -> set[str]:
    """Return the files in /dev/shm that this process uses as semaphores."""
    # By inode: glibc maps each under another name than the one it has in the end.
    maps = Path(f"/proc/{pid}/maps").read_text()
    inodes = set(map(int, re.findall(r"(\d+) +/dev/shm/sem\.", maps)))
    return {entry.path for entry in os.scandir("/dev/shm") if entry.inode() in inodes}


def ignores_ctrl_c(process: psutil.Process) -> bool:
    (ignored,) = re.findall(r"SigIgn:\s*(\w+)", Path(f"/proc/{process.pid}/status").read_text())
    return bool(int(ignored, 16) & (1 << (signal.SIGINT - 1)))


def all_dead(processes: list[psutil.Process]) -> bool:
    # By pid and time of creation, which `is_running` compares.
    return all(not process.is_running() or is_dead(process.pid) for process in processes)


# --- The supervisor is killed. ---

#: A program that its nodes never get through importing.
ENDLESS = """
import os, signal, sys

from mpsnap import Cluster
from nodes import Doomed

if __name__ == "__mp_main__":
    open(f"{sys.argv[2]}-{os.getpid()}", "w").close()
    if sys.argv[3] == "sigstop":
        os.kill(os.getpid(), signal.SIGSTOP)
    while True:
        pass

if __name__ == "__main__":
    with Cluster("ring:2", Doomed, start_method=sys.argv[1]):
        pass
"""


@pytest.mark.parametrize("method", ["forkserver", "spawn"])
@pytest.mark.parametrize("action", ["sigstop", "loop"])
def test_nodes_that_do_not_get_through_their_imports_die_with_it_too(tmp_path: Path, method: str, action: str) -> None:
    """There they have not yet seen to that themselves; a forked node has nothing to import."""
    path, witness = tmp_path / "program.py", tmp_path / "witness"
    path.write_text(ENDLESS)
    with running([sys.executable, str(path), method, str(witness), action], witness) as run:
        wait_until(lambda: len(list(tmp_path.glob("witness-*"))) == 2, "both nodes import")
        everyone = run.everyone()
        assert len(everyone) >= 3
        run.process.kill()
        wait_until(lambda: all_dead(everyone), "nobody is left", seconds=ORPHAN_SECONDS)


@pytest.mark.parametrize(
    ("method", "moment", "action"),
    [
        *[(method, "never", "kill9") for method in METHODS],
        *[(method, "on_message:50", "c_loop") for method in METHODS],
        ("fork", "setup", "c_loop"),
        ("fork", "on_message:50", "sigstop"),
        ("fork", "capture:2", "c_loop"),
        ("forkserver", "setup", "sigstop"),
        ("spawn", "capture:2", "c_loop"),
    ],
)
def test_no_node_outlives_a_killed_supervisor(tmp_path: Path, method: str, moment: str, action: str) -> None:
    with script(tmp_path, method, moment, action) as run:
        if moment != "setup":
            run.has_printed("started\n")
        if moment != "never":
            wait_until(run.witness.exists, "the moment")
        # Held still, so that nothing is made between the look and the kill.
        os.kill(run.process.pid, signal.SIGSTOP)
        everyone = run.everyone()
        assert len(everyone) >= (3 if moment == "setup" else 4)
        named = semaphores(run.process.pid)
        assert bool(named) == (method != "fork")
        os.kill(run.process.pid, signal.SIGKILL)
        wait_until(lambda: all_dead(everyone), "the nodes to follow their supervisor", ORPHAN_SECONDS)
        wait_until(lambda: not any(map(os.path.exists, named)), "the semaphores to be cleared away")


@pytest.mark.parametrize("method", METHODS)
def test_no_node_outlives_a_supervisor_that_is_killed_while_it_starts_them(tmp_path: Path, method: str) -> None:
    """At the first sign of a child, whatever that is doing then."""
    with script(tmp_path, method, "never", "kill9") as run:
        root = psutil.Process(run.process.pid)
        wait_until(root.children, "a first child")
        os.kill(run.process.pid, signal.SIGSTOP)
        everyone = run.everyone()
        os.kill(run.process.pid, signal.SIGKILL)
        wait_until(lambda: all_dead(everyone), "the children to follow", ORPHAN_SECONDS)


TIED = """
import os
from mpsnap.runtime import lifeline

reading, writing = os.pipe()
{before}
lifeline.tie(reading)
print("tied", flush=True)
{after}
print("alive", flush=True)
"""


@pytest.mark.parametrize(
    ("before", "after", "printed"),
    [
        ("", "", "tied\nalive\n"),
        ("", "os.close(writing)", "tied\n"),
        # The supervisor is gone before the tie is made; no signal comes for that.
        ("os.close(writing)", "", ""),
    ],
)
def test_a_tied_process_dies_as_soon_as_nobody_can_write(before: str, after: str, printed: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", TIED.format(before=before, after=after)], capture_output=True, text=True
    )
    assert done.stdout == printed
    assert done.returncode == (0 if "alive" in printed else -signal.SIGKILL)


CHILD = """
import os, sys
from mpsnap.runtime import lifeline

reading, writing = os.pipe()
pid = os.fork()
if pid == 0:
    os._exit(0)
pidfd = os.pidfd_open(pid)
os.waitid(os.P_PIDFD, pidfd, os.WEXITED | ({reaped} and 0 or os.WNOWAIT))
lifeline.tie_child(reading, pid, pidfd)
os.close(writing)
print("alive", flush=True)
"""


@pytest.mark.parametrize("reaped", [True, False])
def test_a_child_that_is_dead_already_is_not_tied(reaped: bool) -> None:
    done = subprocess.run([sys.executable, "-c", CHILD.format(reaped=reaped)], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, "alive\n"), done.stderr


def test_no_node_outlives_a_killed_command(tmp_path: Path) -> None:
    with command(tmp_path, moment="on_message:50", action="c_loop") as run:
        wait_until(run.witness.exists, "the moment")
        everyone = run.everyone()
        os.kill(run.process.pid, signal.SIGKILL)
        wait_until(lambda: all_dead(everyone), "the nodes to follow their supervisor", ORPHAN_SECONDS)


@pytest.mark.parametrize("method", METHODS)
def test_a_process_started_by_the_program_does_not_keep_nodes_alive(tmp_path: Path, method: str) -> None:
    """Not one it forks, nor one it runs: neither may hold what ties the nodes to their supervisor."""
    path = tmp_path / "program.py"
    path.write_text(
        """
import os, signal, subprocess, sys
from mpsnap import Cluster
from nodes import Puppet

if __name__ == "__main__":
    with Cluster("ring:2", Puppet, start_method=sys.argv[1]) as cluster:
        reading, writing = os.pipe()
        forked = os.fork()
        if not forked:
            os.fork()  # as many generations as it likes
            os.write(writing, b"x")
            signal.pause()
        os.read(reading, 1), os.read(reading, 1)
        run = subprocess.Popen(["cat"], stdin=subprocess.PIPE)
        print(forked, run.pid, *[node["pid"] for node in cluster.status()["nodes"].values()], flush=True)
        cluster.wait()
"""
    )
    line = [sys.executable, "-W", "ignore:This process:DeprecationWarning", str(path), method]
    with running(line, tmp_path) as run:
        assert run.process.stdout is not None
        forked, _, *nodes = map(int, run.process.stdout.readline().split())
        everyone = run.everyone()
        generations = [psutil.Process(forked), *psutil.Process(forked).children(recursive=True)]
        run.process.kill()
        wait_until(lambda: all(map(is_dead, nodes)), "the nodes to follow their supervisor", ORPHAN_SECONDS)
        assert not is_dead(forked)
        for process in generations:
            process.kill()
        wait_until(lambda: all_dead(everyone), "everything to end")
        _, err = run.ends()
        # The resource tracker says that it has cleared up; no process had anything to complain of.
        assert "Traceback" not in err
        assert "Exception ignored" not in err


@pytest.mark.parametrize("method", METHODS)
def test_a_program_that_exits_without_stopping_its_cluster_leaves_no_node(tmp_path: Path, method: str) -> None:
    """Also when a node is stopped, which the exit of multiprocessing would wait for."""
    path = tmp_path / "program.py"
    path.write_text(
        """
import os, signal, sys
from mpsnap import Cluster
from nodes import Puppet

if __name__ == "__main__":
    cluster = Cluster("ring:2", Puppet, start_method=sys.argv[1]).start()
    pids = [node["pid"] for node in cluster.status()["nodes"].values()]
    print(*pids)
    os.kill(pids[0], signal.SIGSTOP)
"""
    )
    with running([sys.executable, str(path), method], tmp_path) as run:
        out, err = run.process.communicate(timeout=20)
        assert (run.process.returncode, err) == (0, "")
        assert all(map(is_dead, map(int, out.split())))


# --- Ctrl-C and SIGTERM. ---


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=["SIGINT", "SIGTERM"])
def test_a_signal_to_the_group_ends_a_command_in_order(tmp_path: Path, method: str, number: int) -> None:
    """The terminal sends Ctrl-C to every process; the nodes leave the answer to the supervisor."""
    with command(tmp_path, "--start-method", method, "--format", "json", moment="on_message:50", action="note") as run:
        wait_until(run.witness.exists, "the nodes to run")
        everyone = run.everyone()
        os.killpg(run.process.pid, number)
        out, err = run.process.communicate(timeout=INTERRUPTED_SECONDS)
        assert run.process.returncode == 130, err
        assert "Traceback" not in err
        # A SIGTERM ends a node by itself, so that it may be dead before it is asked to stop.
        assert json.loads(out)["error"] is None or number == signal.SIGTERM
        wait_until(lambda: all_dead(everyone), "everything to end")


@pytest.mark.parametrize(
    ("method", "moment", "action"),
    [
        ("fork", "on_message:50", "loop"),
        ("fork", "capture:2", "c_loop"),
        ("forkserver", "setup", "c_loop"),
        ("forkserver", "on_message:50", "sigstop"),
        ("spawn", "capture:2", "sigstop"),
    ],
)
def test_a_hanging_node_does_not_hold_up_a_ctrl_c(tmp_path: Path, method: str, moment: str, action: str) -> None:
    arguments = ["--start-method", method, "--snapshot-every", "0.05"]
    with command(tmp_path, *arguments, moment=moment, action=action) as run:
        wait_until(run.witness.exists, "the moment")
        everyone = run.everyone()
        began = time.monotonic()
        os.killpg(run.process.pid, signal.SIGINT)
        status, err = run.ends()
        assert time.monotonic() - began < INTERRUPTED_SECONDS
        assert status == 130, err
        assert "Traceback" not in err
        wait_until(lambda: all_dead(everyone), "everything to end")


def test_a_second_signal_kills_at_once(tmp_path: Path) -> None:
    with command(tmp_path, moment="on_message:50", action="loop") as run:
        wait_until(run.witness.exists, "the moment")
        hanging = psutil.Process(int(run.witness.read_text().split()[0]))
        everyone = run.everyone()
        others = [node for node in everyone if node.ppid() == hanging.ppid() and node != hanging]
        os.killpg(run.process.pid, signal.SIGINT)
        # The others stop as asked; from then on the supervisor waits for the one that hangs.
        wait_until(lambda: all_dead(others), "the other nodes to stop", 0.9)
        os.killpg(run.process.pid, signal.SIGINT)
        status, err = run.ends()
        assert status == 130
        assert "did not stop within" not in err, "it was not killed at once but after its time"
        assert "Traceback" not in err
        wait_until(lambda: all_dead(everyone), "everything to end")


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=["SIGINT", "SIGTERM"])
def test_a_signal_while_nodes_are_being_started_shows_no_traceback(tmp_path: Path, method: str, number: int) -> None:
    """As soon as there is one: whatever it imports just then, it does not complain of the interruption."""
    with command(tmp_path, "--start-method", method) as run:
        root = psutil.Process(run.process.pid)
        # Except under fork, the first child is a resource tracker.
        first = 1 if method == "fork" else 2
        wait_until(lambda: len(root.children()) >= first, "a first node")
        os.killpg(run.process.pid, number)
        status, err = run.ends()
        assert status == 130, err
        assert "Traceback" not in err


def test_a_signal_while_the_app_is_imported_shows_no_traceback(tmp_path: Path) -> None:
    app = tmp_path / "interrupted_app.py"
    app.write_text("import os, signal\nos.kill(os.getpid(), signal.SIGINT)\nfrom nodes import *\n")
    with running([sys.executable, "-m", "mpsnap", "run", f"{app}:Doomed"], tmp_path) as run:
        status, err = run.ends()
        assert status == 130, err
        assert "Traceback" not in err


@pytest.mark.parametrize(("method", "action"), [("fork", "c_loop"), ("forkserver", "note"), ("spawn", "note")])
def test_ctrl_c_in_a_program_is_the_program_s_own_and_no_node_s(tmp_path: Path, method: str, action: str) -> None:
    """Python's own traceback of the program is all that is to be seen; a hanging node does not hold it up for long."""
    with script(tmp_path, method, "on_message:50", action) as run:
        run.has_printed("started\n")
        wait_until(run.witness.exists, "the moment")
        everyone = run.everyone()
        began = time.monotonic()
        os.killpg(run.process.pid, signal.SIGINT)
        _, err = run.ends()
        assert time.monotonic() - began < INTERRUPTED_SECONDS
        assert err.count("Traceback") == 1, err
        assert err.splitlines()[-1] == "KeyboardInterrupt"
        wait_until(lambda: all_dead(everyone), "everything to end")


@pytest.mark.parametrize("method", METHODS)
def test_ctrl_c_while_a_program_starts_its_cluster_leaves_no_node(tmp_path: Path, method: str) -> None:
    # With so many, some have not even begun to import when the second one is in its setup.
    with script(tmp_path, method, "setup", "c_loop", "ring:6") as run:
        wait_until(run.witness.exists, "the moment")
        everyone = run.everyone()
        if method == "forkserver":
            # Until a node of a forkserver has come as far as this, Python's own answer to a Ctrl-C cannot be changed.
            wait_until(lambda: all(map(ignores_ctrl_c, everyone[1:])), "every node to be past its start")
        began = time.monotonic()
        os.killpg(run.process.pid, signal.SIGINT)
        _, err = run.ends()
        assert time.monotonic() - began < INTERRUPTED_SECONDS
        assert err.count("Traceback") == 1, err
        assert err.splitlines()[-1] == "KeyboardInterrupt"
        wait_until(lambda: all_dead(everyone), "everything to end")
