"""What nobody waits for, what must not be asked, and what a program may do to a cluster without harm."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest
from conftest import wait_until
from nodes import Endless, Forking, Puppet, Reporting, Uncapturable, UncapturableAndEnding, WorksOnCommand

from mpsnap import Cluster, GlobalSnapshot, InputError, InvariantError, SnapshotError

pytestmark = [pytest.mark.processes, pytest.mark.timeout(60)]


def test_a_periodic_snapshot_that_fails_is_logged_and_kept(caplog: pytest.LogCaptureFixture) -> None:
    """Nobody waits for it, and still it must not vanish."""
    with Cluster("ring:2", Uncapturable, snapshot_every=0.01) as cluster:
        wait_until(lambda: len(cluster.abandoned) >= 2, "two abandoned snapshots")
        assert all("lock" in str(error) for error in cluster.abandoned)
    assert any("could not be captured" in record.getMessage() for record in caplog.records)


def test_waiting_for_the_end_of_what_cannot_be_captured_is_an_error() -> None:
    with Cluster("ring:2", UncapturableAndEnding) as cluster, pytest.raises(SnapshotError, match="lock"):
        cluster.wait(30)


def test_periodic_snapshots_do_not_pile_up() -> None:
    with Cluster("ring:2", Puppet, snapshot_every=0.001, snapshot_timeout=60) as cluster:
        wait_until(lambda: len(cluster.snapshots) >= 3, "three snapshots")
        for node in cluster.status()["nodes"].values():
            os.kill(node["pid"], signal.SIGSTOP)
        wait_until(lambda: len(cluster.status()["snapshots"]) == 1, "one open snapshot")
        assert len(cluster.status()["snapshots"]) == 1
        for node in cluster.status()["nodes"].values():
            os.kill(node["pid"], signal.SIGCONT)


@pytest.mark.parametrize("raising", [lambda _: sys.exit(0), lambda _: pytest.fail("seeded")])
def test_an_invariant_may_raise_what_is_no_exception(raising: Callable[[GlobalSnapshot], object]) -> None:
    cluster = Cluster("ring:2", Puppet, invariants=[raising]).start()
    with pytest.raises(InvariantError):
        cluster.snapshot()
    cluster.kill()


def test_an_invariant_that_asks_its_own_cluster_is_told_so() -> None:
    """It runs in the thread that would have to answer."""
    clusters: list[Cluster] = []
    clusters.append(Cluster("ring:2", Puppet, invariants=[lambda _: clusters[0].status()]))
    clusters[0].start()
    with pytest.raises(InvariantError, match="cannot ask its own cluster"):
        clusters[0].snapshot()
    clusters[0].kill()


def test_a_proof_of_termination_does_not_outlive_a_command() -> None:
    """A command begins new work; the cut that proves its end holds what it did."""
    with Cluster("ring:2", WorksOnCommand) as cluster:
        first = cluster.wait(30)
        assert first is not None
        assert first.nodes["N1"].state == {"n": 0}
        cluster.command("N1", "work")
        last = cluster.wait(30)
        assert last is not None
        assert (last.nodes["N1"].state, last.nodes["N2"].state) == ({"n": 1}, {"n": 1})


@pytest.mark.parametrize(
    "wrong",
    [
        {"window": 1},
        {"window": 1.5},
        {"snapshot_every": 0},
        {"snapshot_every": "1"},
        {"snapshot_timeout": -1},
        {"snapshot_timeout": None},
        {"handler_deadline": 0},
        {"handler_deadline": float("nan")},
        {"handler_deadline": "5"},
    ],
)
def test_numbers_that_make_no_sense_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(InputError, match=f"^{next(iter(wrong))} is "):
        Cluster("ring:2", Puppet, **wrong)


@pytest.mark.parametrize("topology", [None, 5, Path("net.top")])
def test_what_is_no_topology_is_refused(topology: Any) -> None:
    with pytest.raises(InputError, match="is no topology; try: a specification such as 'ring:4', or a Topology"):
        Cluster(topology, Puppet)


def test_a_window_of_two_messages_is_enough() -> None:
    """Slow, but it never closes for good."""
    with Cluster("ring:2", Endless, window=2) as cluster:
        wait_until(lambda: cluster.snapshot().nodes["N1"].sent["N2"] >= 20, "twenty messages")


def test_a_timer_may_be_months_away() -> None:
    with Cluster("ring:2", Puppet) as cluster:
        cluster.command("N1", ["after", 90 * 86400.0, "later"])
        assert cluster.command("N1", ["echo", 1]) == 1
        assert cluster.snapshot().nodes["N1"].timers[0].remaining > 89 * 86400


def test_a_program_that_ignores_the_end_of_children_can_stop(start_method: str) -> None:
    """The kernel then throws exit statuses away; the pidfd still tells the death."""
    before = signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    try:
        with Cluster("ring:2", Puppet, start_method=start_method) as cluster:
            cluster.snapshot().verify()
    finally:
        signal.signal(signal.SIGCHLD, before)


def test_a_process_that_the_program_forks_leaves_the_nodes_alone(start_method: str, tmp_path: Path) -> None:
    """It has a copy of everything, and exits like any program."""
    script = f"""
    import os
    from mpsnap import Cluster, ClusterError, Node
    class Still(Node):
        pass
    if __name__ == "__main__":
        with Cluster("ring:2", Still, start_method="{start_method}") as cluster:
            child = os.fork()
            if child == 0:
                try:
                    cluster.snapshot()
                except ClusterError:
                    raise SystemExit(7)
            assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7
            cluster.snapshot().verify()
            print("well")
    """
    (tmp_path / "program.py").write_text(textwrap.dedent(script))
    done = subprocess.run([sys.executable, "program.py"], cwd=tmp_path, capture_output=True, text=True, timeout=50)
    assert done.stdout == "well\n", done.stderr


SIGNALLED = """
import os, signal, sys, threading
from mpsnap import Cluster, Node
class Still(Node):
    pass
def leave(number, frame):
    cluster.stop()
    raise SystemExit(7)
if __name__ == "__main__":
    cluster = Cluster("complete:4", Still, start_method=sys.argv[1])
    signal.signal(signal.SIGTERM, leave)
    if sys.argv[2] == "starting":
        threading.Timer(0.01, os.kill, (os.getpid(), signal.SIGTERM)).start()
    cluster.start()
    threading.Timer(0.2, os.kill, (os.getpid(), signal.SIGTERM)).start()
    while True:
        cluster.status()
"""


@pytest.mark.parametrize("moment", ["starting", "running"])
def test_a_signal_handler_may_stop_the_cluster_at_any_moment(start_method: str, moment: str, tmp_path: Path) -> None:
    """It runs in the thread that is just starting the cluster, or just asking it something."""
    (tmp_path / "program.py").write_text(SIGNALLED)
    command = [sys.executable, "program.py", start_method, moment]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=50)
    assert done.returncode in (7, 1), done.stderr
    if done.returncode == 1:
        assert "ClusterError" in done.stderr or "PreflightError" in done.stderr, done.stderr
    assert not [each for each in psutil.process_iter(["cwd"]) if each.info["cwd"] == str(tmp_path)]


def test_what_a_hook_forked_does_not_hold_up_the_end(start_method: str) -> None:
    """It keeps the pipe open by which multiprocessing waits for the end of a child."""
    with Cluster("ring:2", Forking, start_method=start_method) as cluster:
        pids = [cluster.command(node, "fork") for node in cluster.topology.nodes]
        began = time.monotonic()
        cluster.stop()
        # Each of the two would have taken five seconds.
        assert time.monotonic() - began < 4.5
    for pid in pids:
        assert isinstance(pid, int)
        os.kill(pid, signal.SIGKILL)


@pytest.mark.parametrize("closed", ["2>&-", ">&-", ">&- 2>&- <&-"])
def test_a_program_without_standard_streams_runs_and_stops(closed: str, tmp_path: Path) -> None:
    script = """
    from mpsnap import Cluster, Node
    class Talks(Node):
        def on_idle(self, ctx):
            print("in the way", flush=True)
            ctx.broadcast("x" * 1000)
    if __name__ == "__main__":
        with Cluster("ring:2", Talks) as cluster:
            for _ in range(5):
                cluster.snapshot().verify()
        open("well", "w").close()
    """
    (tmp_path / "program.py").write_text(textwrap.dedent(script))
    subprocess.run(f"exec {sys.executable} program.py {closed}", shell=True, cwd=tmp_path, timeout=50, check=True)
    assert (tmp_path / "well").exists()


def test_a_slow_supervisor_is_no_deadlock() -> None:
    """Nodes pause for want of room in their result queues; channels that have opened meanwhile are not called full."""
    waited: list[bool] = []

    def slow(snapshot: GlobalSnapshot) -> bool:
        if not waited:
            waited.append(threading.Event().wait(3))
        return True

    with Cluster("ring:2", Reporting, window=10, invariants=[slow]) as cluster:
        wait_until(lambda: len(cluster.snapshots) >= 4, "four snapshots", seconds=40)
