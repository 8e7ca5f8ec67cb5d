"""Nodes that die, fail, hang or cannot be captured: what is said of them, how soon, and what is left."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import select
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import nodes
import psutil
import pytest
from conftest import FORK, FORKSERVER, SPAWN, is_dead, wait_until
from nodes import Doomed, Puppet

from mpsnap import AppError, Cluster, ClusterError, Context, MpsnapError, NodeError, SnapshotError, parse_topology
from mpsnap.core.errors import CodecError
from mpsnap.core.events import ClusterStopped
from mpsnap.core.program import assign
from mpsnap.runtime import deadlines, hangs, snapshots, supervisor
from mpsnap.runtime.incarnation import _open_pidfd

pytestmark = [pytest.mark.processes, pytest.mark.timeout(60)]

#: From a node's death to the error in the program, at most. It takes milliseconds; deadlines here are 5 s and more.
PROMPT_SECONDS = 1.0

#: The line of `nodes.suffer` that raises.
RAISING = next(
    f"{nodes.__file__}:{number}"
    for number, line in enumerate(Path(nodes.__file__).read_text().splitlines(), 1)
    if "# the user's line" in line
)

# --- The crash matrix. ---


class Moment(NamedTuple):
    """Say when a node comes to harm, in which phase that is, and what brings it about."""

    name: str
    phase: str
    provoke: Callable[[Cluster], object]


def wait(cluster: Cluster) -> object:
    return cluster.wait(timeout=30)


def stop(cluster: Cluster) -> None:
    cluster.stop(timeout=30)


def snapshot(cluster: Cluster) -> object:
    return cluster.snapshot("N1", timeout=30)


def snapshot_then_wait(cluster: Cluster) -> object:
    with contextlib.suppress(SnapshotError):  # the death may come before all have reported
        cluster.snapshot("N1", timeout=30)
    return cluster.wait(timeout=30)


def command(text: str) -> Callable[[Cluster], object]:
    return lambda cluster: cluster.command("N2", text)


MOMENTS = {
    moment.name: moment
    for moment in (
        Moment("setup", "setup", wait),
        Moment("on_start", "on_start", wait),
        Moment("capture", "capture", wait),  # the dry one at the start
        Moment("on_message:1", "on_message", wait),
        Moment("on_message:100", "on_message", wait),
        Moment("between_sends:20", "on_message", wait),
        Moment("on_idle", "on_idle", wait),
        Moment("on_timer:2", "on_timer", wait),
        Moment("on_command", "on_command", command("anything")),
        Moment("before_snapshot", "on_command", command("snapshot")),
        Moment("capture:2", "capture", snapshot),
        Moment("after_snapshot", "on_message", snapshot_then_wait),
        Moment("on_stop", "on_stop", stop),
    )
}

#: How each way to die is told: as an exit status, or as what the exception says.
DEATHS = {
    "kill9": "killed by SIGKILL",
    "segfault": "killed by SIGSEGV",
    "exit0": "exit status 0",
    "raise": "RuntimeError: as told",
    "sys.exit": "SystemExit",
}

MATRIX = [
    *[(moment, action, FORK) for moment in MOMENTS for action in DEATHS],
    *[(moment, action, FORKSERVER) for moment in MOMENTS for action in ("kill9", "raise")],
    *[("on_message:100", action, FORKSERVER) for action in ("segfault", "exit0", "sys.exit")],
    *[(moment, "kill9", SPAWN) for moment in ("setup", "on_message:100", "capture:2", "on_stop")],
    *[(moment, "raise", SPAWN) for moment in ("setup", "on_message:100", "on_stop")],
]


@pytest.mark.parametrize(
    ("moment", "action", "method"),
    [
        pytest.param(moment, action, method.values[0], marks=method.marks, id=f"{moment}-{action}-{method.values[0]}")
        for moment, action, method in MATRIX
        # An exception in a capture costs the snapshot and not the node; that has its own tests below.
        if (moment, action) != ("capture:2", "raise")
    ],
)
def test_a_death_is_told_at_once_with_node_phase_and_status(
    tmp_path: Path, moment: str, action: str, method: str
) -> None:
    _, phase, provoke = MOMENTS[moment]
    witness = tmp_path / "witness"
    params = {"moment": moment, "action": action, "witness": str(witness)}
    cluster = Cluster("ring:3", Doomed, params=params, start_method=method)
    caught: list[MpsnapError] = []
    try:
        cluster.start()
        provoke(cluster)
    except MpsnapError as error:
        caught.append(error)
    raised = time.monotonic()
    pid, died = _testimony(witness)
    assert raised - died < PROMPT_SECONDS

    # The snapshot that was open is abandoned and says why; whoever asks later is told of the node itself.
    if moment == "capture:2":
        assert isinstance(caught[0], SnapshotError)
        assert "N2" in caught[0].what
    with pytest.raises(NodeError) as later:
        cluster.stop()
    for told in (*caught, later.value):
        if isinstance(told, NodeError):
            _check(told, phase, action)

    assert cluster.status()["state"] == "ended"
    assert is_dead(pid)


def _testimony(witness: Path) -> tuple[int, float]:
    wait_until(witness.exists, "the moment")
    pid, when = witness.read_text().split()
    return int(pid), float(when)


def _check(error: NodeError, phase: str, action: str) -> None:
    assert error.node == "N2"
    assert error.phase == phase
    assert DEATHS[action] in error.what
    assert "N2" in error.what
    if action not in ("raise", "sys.exit"):
        assert DEATHS[action] in error.status
        assert error.traceback == ""
        return
    assert error.status == "exit status 1"
    assert error.traceback.startswith("Traceback")
    assert DEATHS[action] in error.traceback
    assert Path(nodes.__file__).name in error.traceback
    if action == "raise":
        assert RAISING in str(error)


@pytest.mark.parametrize(
    ("end", "words"),
    [
        ("os.kill(os.getpid(), 9)", "killed by SIGKILL"),
        ("os._exit(0)", "exit status 0"),
        ("raise RuntimeError('as told')", "RuntimeError: as told"),
        ("import no_such_module", "no_such_module"),
    ],
)
@pytest.mark.parametrize("method", ["forkserver", "spawn"])
def test_a_death_in_the_import_of_the_app_is_told(tmp_path: Path, method: str, end: str, words: str) -> None:
    """The program can import it and the nodes cannot; under fork they do not import anything."""
    file = tmp_path / "app_of_this_test.py"
    file.write_text(
        "import multiprocessing, os, mpsnap\n"
        f"if multiprocessing.parent_process() is not None: {end}\n"
        "class Brittle(mpsnap.Node): pass\n"
    )
    with _forgetting(file.stem):
        cluster = Cluster("ring:2", f"{file}:Brittle", start_method=method)
        with pytest.raises(NodeError) as caught:
            cluster.start()
    assert caught.value.phase == "importing"
    assert words in caught.value.what
    if "kill" not in end and "exit" not in end:
        assert f"{file}:2" in str(caught.value)


@pytest.mark.parametrize("reused", [False, True], ids=["number free", "number given to another"])
def test_a_node_that_its_forkserver_has_reaped_before_it_is_looked_at_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, reused: bool
) -> None:
    """Its last words are in its queue; whose number it had before is left alone."""
    another = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    open_now = os.pidfd_open

    def open_late(pid: int) -> int:
        with contextlib.suppress(ProcessLookupError):
            while True:
                os.close(open_now(pid))
                os.sched_yield()
        return open_now(another.pid if reused else pid)

    file = tmp_path / "app_reaped_early.py"
    file.write_text(
        "import multiprocessing, mpsnap\n"
        "if multiprocessing.parent_process() is not None: import no_such_module\n"
        "class Brittle(mpsnap.Node): pass\n"
    )
    with _forgetting(file.stem):
        cluster = Cluster("ring:2", f"{file}:Brittle", start_method="forkserver")
        monkeypatch.setattr(os, "pidfd_open", open_late)
        with pytest.raises(NodeError, match="no_such_module") as caught:
            cluster.start()
    assert caught.value.phase == "importing"
    another.communicate(b"\n")
    assert another.returncode == 0


def test_a_part_that_cannot_be_read_is_an_error_for_who_looks_at_it_and_for_nobody_else(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Its counts are right, and so the cut is proven; of the rest a byte has changed on its way."""
    report = snapshots.Snapshots.report

    def damaged(self: Any, node: str, told: Any, times: Any, data: bytes, *rest: Any) -> None:
        report(self, node, told, times, data[:-1] + b"\xc1" if node == "N1" else data, *rest)

    with Cluster("ring:2", Puppet) as cluster:
        with monkeypatch.context() as changed:
            changed.setattr(snapshots.Snapshots, "report", damaged)
            broken = cluster.snapshot()
        with pytest.raises(CodecError, match="N1: "):
            assert broken.nodes
        assert sorted(cluster.snapshot().nodes) == ["N1", "N2"]


def test_a_child_that_somebody_has_reaped_is_dead_whatever_it_has_left_behind() -> None:
    """A process of its own making holds the pipe that would tell its end."""
    reading, writing = os.pipe()

    def leave_a_child() -> None:
        if os.fork() == 0:
            os.read(reading, 1)
            os._exit(0)

    process = multiprocessing.get_context("fork").Process(target=leave_a_child)
    process.start()
    process.join()
    stand_in = _open_pidfd(process)
    try:
        assert select.select([stand_in, process.sentinel], [], [], 0)[0] == [stand_in]
    finally:
        os.write(writing, b"x")
        assert select.select([process.sentinel], [], [], 10)[0]
        for fd in (stand_in, reading, writing):
            os.close(fd)
        process.close()


@contextlib.contextmanager
def _forgetting(module: str) -> Iterator[None]:
    path = list(sys.path)
    try:
        yield
    finally:
        sys.modules.pop(module, None)
        sys.path[:] = path


def test_an_exception_that_cannot_be_shown_is_told_all_the_same() -> None:
    cluster = Cluster("ring:2", Puppet).start()
    with pytest.raises(NodeError, match="Unspeakable") as caught:
        cluster.command("N1", ["raise_unspeakable"])
    assert "\n" not in str(caught.value)
    assert "\x1b" not in str(caught.value)
    cluster.kill()


def test_what_a_node_put_out_before_it_failed_is_there(start_method: str) -> None:
    """Several pipes full, and the last words behind them."""
    cluster = Cluster("ring:2", Puppet, start_method=start_method).start()
    with pytest.raises(NodeError, match="after the last one"):
        cluster.command("N1", ["emit_and_fail", 300])
    assert [int(str(record)) for _, _, record in cluster.outputs] == list(range(300))


def test_a_kill_from_outside_while_idle_is_told(start_method: str) -> None:
    cluster = Cluster("ring:3", Puppet, start_method=start_method).start()
    os.kill(cluster.status()["nodes"]["N2"]["pid"], signal.SIGKILL)
    began = time.monotonic()
    with pytest.raises(NodeError, match="N2 died waiting for messages: killed by SIGKILL"):
        cluster.wait(timeout=30)
    assert time.monotonic() - began < PROMPT_SECONDS
    with pytest.raises(NodeError, match="N2"):
        cluster.snapshot()
    with pytest.raises(NodeError, match="N2"):
        cluster.command("N1", ["heard"])


def test_all_nodes_killed_at_once_are_one_failure(start_method: str) -> None:
    cluster = Cluster("ring:3", Puppet, start_method=start_method).start()
    for node in cluster.status()["nodes"].values():
        os.kill(node["pid"], signal.SIGKILL)
    with pytest.raises(NodeError, match="killed by SIGKILL"):
        cluster.wait(timeout=30)


def test_every_thread_that_waits_is_told_of_a_death() -> None:
    cluster = Cluster("ring:3", Puppet).start()
    pids = {name: node["pid"] for name, node in cluster.status()["nodes"].items()}
    os.kill(pids["N3"], signal.SIGSTOP)
    caught: dict[str, BaseException] = {}

    def wait_in(name: str, call: Callable[[], object]) -> None:
        try:
            call()
        except MpsnapError as error:
            caught[name] = error

    calls: dict[str, Callable[[], object]] = {
        "snapshot": lambda: cluster.snapshot("N1"),
        "other snapshot": lambda: cluster.snapshot("N2"),
        "command": lambda: cluster.command("N3", ["heard"]),
        "wait": cluster.wait,
    }
    threads = [threading.Thread(target=wait_in, args=call) for call in calls.items()]
    for thread in threads:
        thread.start()
    wait_until(lambda: len(cluster.status()["snapshots"]) == 2, "both snapshots to be open")
    os.kill(pids["N2"], signal.SIGKILL)
    for thread in threads:
        thread.join()
    assert caught.keys() == calls.keys()
    assert {name for name, error in caught.items() if isinstance(error, SnapshotError)} == {
        "snapshot",
        "other snapshot",
    }
    assert all("N2" in str(error) for error in caught.values())
    with pytest.raises(NodeError, match="N2"):
        cluster.stop()


def test_nodes_live_on_without_their_forkserver_and_their_deaths_are_still_seen() -> None:
    """It takes their exit statuses along, and nothing else."""
    cluster = Cluster("ring:2", Puppet).start()
    pids = [node["pid"] for node in cluster.status()["nodes"].values()]
    server = psutil.Process(pids[0]).parent()
    assert server is not None
    assert server.pid != os.getpid()
    server.kill()
    wait_until(lambda: is_dead(server.pid), "the forkserver's end")
    cluster.snapshot().verify()
    cluster.command("N1", ["echo", 1])
    os.kill(pids[1], signal.SIGKILL)
    with pytest.raises(NodeError, match="N2 died waiting for messages: exit status unknown"):
        cluster.wait(timeout=30)
    assert all(map(is_dead, pids))
    with Cluster("ring:2", Puppet) as cluster:
        cluster.snapshot().verify()


# --- Nodes that do not come back. ---


@pytest.mark.parametrize(
    ("method", "action"),
    [
        pytest.param(method.values[0], action, marks=method.marks, id=f"{action}-{method.values[0]}")
        for method, action in (
            *[(FORK, action) for action in ("loop", "c_loop", "sigstop")],
            (FORKSERVER, "c_loop"),
            (SPAWN, "sigstop"),
        )
    ],
)
def test_a_snapshot_that_a_node_holds_up_names_it_and_who_waits(tmp_path: Path, method: str, action: str) -> None:
    witness = tmp_path / "witness"
    params = {"moment": "on_message:50", "action": action, "witness": str(witness)}
    cluster = Cluster("ring:3", Doomed, params=params, start_method=method).start()
    wait_until(witness.exists, "the moment")
    began = time.monotonic()
    with pytest.raises(SnapshotError) as caught:
        cluster.snapshot("N1", timeout=0.5)
    assert 0.5 <= time.monotonic() - began < 5
    said = str(caught.value)
    assert "within 0.5 s" in said
    assert "N2 does not answer (in on_message" in said
    assert "N3 has not recorded" in said
    assert "N1 awaits the marker on N3->N1" in said
    assert caught.value.where == "N2"

    with pytest.raises(NodeError, match=r"N2 did not stop within 0\.3 s and was killed, in on_message"):
        cluster.stop(timeout=0.3)
    assert is_dead(_testimony(witness)[0])


def test_a_node_that_comes_back_goes_on(start_method: str) -> None:
    """The snapshot it held up is lost; the cluster is not, and the next one is whole."""
    with Cluster("ring:3", Doomed, start_method=start_method) as cluster:
        pid = cluster.status()["nodes"]["N2"]["pid"]
        for initiator in ("N1", "N2", "N3"):
            os.kill(pid, signal.SIGSTOP)
            with pytest.raises(SnapshotError, match="N2 does not answer"):
                cluster.snapshot(initiator, timeout=0.1)
            os.kill(pid, signal.SIGCONT)
            cluster.snapshot(initiator).verify()
        assert [snapshot.number for snapshot in cluster.snapshots] == [1, 3, 5]
        rounds = cluster.snapshot().nodes["N2"].state["rounds"]
        wait_until(lambda: cluster.snapshot().nodes["N2"].state["rounds"] > rounds, "the token to go round")


def test_late_markers_of_a_lost_snapshot_disturb_no_other() -> None:
    """Several snapshots are given up while a node stands still; then all its markers come at once."""
    with Cluster("complete:3", Doomed) as cluster:
        pid = cluster.status()["nodes"]["N3"]["pid"]
        os.kill(pid, signal.SIGSTOP)
        for initiator in ("N1", "N2", "N3", "N1"):
            with pytest.raises(SnapshotError):
                cluster.snapshot(initiator, timeout=0.05)
        os.kill(pid, signal.SIGCONT)
        for initiator in ("N1", "N2", "N3"):
            cluster.snapshot(initiator).verify()


def test_a_snapshot_that_completes_while_it_is_given_up_is_whole() -> None:
    """Its time is over the moment it begins, but every node answers."""
    with Cluster("ring:3", Puppet) as cluster:
        outcomes = set()
        for _ in range(20):
            try:
                cluster.snapshot(timeout=0.0).verify()
                outcomes.add("whole")
            except SnapshotError as error:
                assert "did not complete within 0 s" in error.what  # noqa: PT017 - either may happen
                outcomes.add("lost")
        assert outcomes
        cluster.snapshot().verify()


def test_a_node_that_is_slow_to_stop_is_given_its_time(tmp_path: Path) -> None:
    witness = tmp_path / "witness"
    params = {"moment": "on_stop", "action": "sigstop", "witness": str(witness)}
    cluster = Cluster("ring:3", Doomed, params=params).start()
    helper = threading.Thread(target=_release, args=[witness])
    helper.start()
    cluster.stop(timeout=30)
    helper.join()


def _release(witness: Path) -> None:
    pid, _ = _testimony(witness)
    wait_until(lambda: psutil.Process(pid).status() == "stopped", "the node to be stopped")
    os.kill(pid, signal.SIGCONT)


@pytest.mark.parametrize("method", [FORK])
@pytest.mark.parametrize(("moment", "action"), [("setup", "c_loop"), ("on_start", "loop"), ("capture", "sigstop")])
def test_a_node_that_never_gets_ready_is_named(
    monkeypatch: pytest.MonkeyPatch, method: str, moment: str, action: str
) -> None:
    monkeypatch.setattr(hangs, "READY_SECONDS", 0.4)
    with pytest.raises(ClusterError, match=rf"N2 is in {moment}") as caught:
        Cluster("ring:2", Doomed, params={"moment": moment, "action": action}, start_method=method).start()
    assert "within 0.4 s" in caught.value.what
    assert caught.value.where == "N2"


class StopsInSetup(Puppet):
    def setup(self, ctx: Context, greeting: object = None) -> None:
        os.kill(os.getpid(), signal.SIGSTOP)


@pytest.mark.parametrize("method", [FORK])
def test_nodes_may_take_long_to_get_ready_while_any_of_them_gets_further(
    monkeypatch: pytest.MonkeyPatch, method: str
) -> None:
    now = time.monotonic()
    for module in (hangs, deadlines):
        monkeypatch.setattr(module, "time", SimpleNamespace(monotonic=lambda: now))
    topology, programs = assign(parse_topology("ring:3"), StopsInSetup, None)
    cluster = supervisor.Supervisor(topology, programs, start_method=method)
    cluster.start()
    try:
        pids = {node: told["pid"] for node, told in cluster.status()["nodes"].items()}
        wait_until(lambda: all(psutil.Process(pid).status() == "stopped" for pid in pids.values()), "them to stop")
        for node in ("N1", "N3"):
            assert cluster.pump(0) == []
            now += 0.7 * hangs.READY_SECONDS
            assert cluster.pump(0) == []
            os.kill(pids[node], signal.SIGCONT)
            wait_until(partial(_is_ready, cluster, node), f"{node} to be ready")
            now += 0.2 * hangs.READY_SECONDS
            assert cluster.pump(0) == []
        now += 1.1 * hangs.READY_SECONDS
        (end,) = cluster.pump(0)
        assert isinstance(end, ClusterStopped)
        assert isinstance(end.error, ClusterError)
        assert end.error.what == "1 of 3 nodes not ready, and none any further within 60 s: N2 is in setup"
        assert end.error.where == "N2"
    finally:
        cluster.close()


def _is_ready(cluster: supervisor.Supervisor, node: str) -> bool:
    return bool(cluster.status()["nodes"][node]["phase"] == "waiting")


# --- Processes that cannot be started. ---


def test_a_process_that_cannot_be_started_ends_those_that_were(
    monkeypatch: pytest.MonkeyPatch, start_method: str
) -> None:
    cluster = Cluster("ring:3", Puppet, start_method=start_method)
    process_class: Any = cluster._supervisor._context.Process  # type: ignore[attr-defined]
    start = process_class.start
    started: list[int] = []

    def refuse_the_third(process: Any) -> None:
        if len(started) == 2:
            raise BlockingIOError(11, "Resource temporarily unavailable")
        start(process)
        started.append(process.pid)

    monkeypatch.setattr(process_class, "start", refuse_the_third)
    with pytest.raises(ClusterError, match=r"N3 could not be started: .*temporarily unavailable"):
        cluster.start()
    assert len(started) == 2
    assert all(map(is_dead, started))


# --- States that cannot be kept. ---


def test_a_state_that_cannot_be_kept_costs_the_snapshot_and_not_the_cluster(start_method: str) -> None:
    with Cluster("ring:3", Puppet, start_method=start_method) as cluster:
        cluster.snapshot("N2").verify()
        cluster.command("N2", ["spoil"])
        for initiator in ("N1", "N2", "N3"):
            with pytest.raises(SnapshotError) as caught:
                cluster.snapshot(initiator)
            assert "N2" in str(caught.value)
            assert "odd.inner[1]" in str(caught.value)
            assert "Fraction" in str(caught.value)
        assert cluster.command("N2", ["echo", 1]) == 1
        cluster.command("N2", ["repair"])
        for initiator in ("N1", "N2", "N3"):
            cluster.snapshot(initiator).verify()


def test_a_state_that_cannot_be_kept_at_the_start_is_told_before_anything_runs() -> None:
    with pytest.raises(NodeError) as caught:
        Cluster("ring:2", Spoilt).start()
    assert caught.value.phase == "capture"
    assert "handle" in str(caught.value)
    assert "transient" in str(caught.value), "the remedy"


class Spoilt(Puppet):
    """Hold what is no plain data from the first moment on."""

    def setup(self, ctx: Any, greeting: object = None) -> None:
        self.handle = threading.Lock()


def test_a_capture_that_raises_costs_the_snapshot_and_not_the_cluster(start_method: str) -> None:
    params = {"moment": "capture:2", "action": "raise"}
    with Cluster("ring:3", Doomed, params=params, start_method=start_method) as cluster:
        with pytest.raises(SnapshotError, match="RuntimeError: as told") as caught:
            cluster.snapshot("N1")
        assert "N2" in str(caught.value)
        assert RAISING in str(caught.value)
        cluster.snapshot("N1").verify()


def test_a_capture_that_raises_in_the_node_that_began_it_costs_the_snapshot_alone() -> None:
    with Cluster("ring:3", Doomed, params={"moment": "capture:2", "action": "raise"}) as cluster:
        cluster.command("N2", "snapshot")
        snapshot_id = cluster.command("N2", "snapshot")
        wait_until(lambda: cluster.snapshots, "the second snapshot that N2 began")
        assert [str(snapshot.id) for snapshot in cluster.snapshots] == [snapshot_id]


def test_no_room_for_a_big_state_costs_the_snapshot_and_not_the_cluster() -> None:
    """Its file grows beyond what the process may write, as it would on a full disk."""
    with Cluster("ring:2", Puppet) as cluster:
        cluster.command("N2", ["fill", "ballast", 3_000_000])
        cluster.command("N2", ["limit_files", 1_000_000])
        with pytest.raises(SnapshotError, match="staging") as caught:
            cluster.snapshot()
        assert "N2" in str(caught.value)
        cluster.command("N2", ["lift_limit"])
        cluster.snapshot().verify()


def test_no_folder_for_a_big_state_costs_the_snapshot_and_not_the_cluster() -> None:
    with Cluster("ring:2", Puppet) as cluster:
        cluster.command("N2", ["fill", "ballast", 3_000_000])
        cluster.command("N2", ["use_folder", "/nowhere"])
        with pytest.raises(SnapshotError, match="staging") as caught:
            cluster.snapshot()
        assert "N2" in str(caught.value)
        cluster.command("N2", ["use_folder", tempfile.gettempdir()])
        cluster.snapshot().verify()


# --- Hooks that do what they must not. ---


@pytest.mark.parametrize(
    ("what", "words"),
    [
        (["send", "N9", 1], "no channel to 'N9'"),
        (["send_oddly", "N2"], "Fraction"),
        (["emit_oddly"], "Fraction"),
        (["after", -1.0], "cannot wait for -1"),
        (["unknown"], "do_unknown"),
    ],
)
def test_a_hook_s_mistake_is_told_with_its_line(what: list[Any], words: str) -> None:
    cluster = Cluster("ring:2", Puppet).start()
    with pytest.raises(NodeError) as caught:
        cluster.command("N1", what)
    assert words in str(caught.value)
    assert f"{nodes.__file__}:" in str(caught.value)
    assert caught.value.phase == "on_command"
    cluster.kill()


def test_an_app_error_is_no_node_error() -> None:
    with pytest.raises(AppError, match="nobody takes"):
        Cluster("ring:2", Puppet, params={"nobody takes": 1})
