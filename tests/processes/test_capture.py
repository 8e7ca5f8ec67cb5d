"""Large states: encoded by a fork of the node, kept in files, and what becomes of a fork that comes to harm.

A fork is kept from getting on by a gate in the state, which only the test opens: so whatever happens meanwhile happens
while it provably still encodes, however fast or slow anything is.
"""

from __future__ import annotations

import contextlib
import copy
import gc
import json
import os
import pickle
import signal
import subprocess
import sys
import textwrap
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from capturing import Forker, Gated, Thrifty
from conftest import is_dead, wait_until
from nodes import Puppet

from mpsnap import Cluster, GlobalSnapshot, MpsnapError, NodeError, SnapshotError, parse_topology
from mpsnap.core.codec import Pickled
from mpsnap.core.events import Event, Replied
from mpsnap.core.history import Head, parse_log
from mpsnap.core.program import assign
from mpsnap.runtime import cluster as cluster_module
from mpsnap.runtime.journal import RunLog
from mpsnap.runtime.supervisor import Supervisor
from mpsnap.views.document import snapshot_document
from mpsnap.views.tables import snapshot_table

pytestmark = [pytest.mark.processes, pytest.mark.timeout(60)]

HERE = Path(__file__).parent


class Barrier:
    """A gate, seen from the test."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / "gate"
        os.mkfifo(self.path)
        self._reached = folder / "gate.reached"

    @property
    def reached(self) -> bool:
        """Whether a child stands before it."""
        return self._reached.exists()

    def child(self) -> int:
        """Wait for the child that stands before it; return its pid."""
        wait_until(lambda: self.reached, "a child to reach the gate")
        return int(self._reached.read_text())

    def open(self) -> None:
        """Let the child pass."""
        self.path.open("w").close()


@pytest.fixture
def barrier(tmp_path: Path) -> Barrier:
    return Barrier(tmp_path)


@contextlib.contextmanager
def taking(cluster: Cluster, *initiators: str, timeout: float | None = None) -> Iterator[Future[GlobalSnapshot]]:
    """Take a snapshot while the body runs."""
    with ThreadPoolExecutor(1) as pool:
        yield pool.submit(cluster.snapshot, *initiators, timeout=timeout)


def gated(barrier: Barrier, start_method: str | None = None, **options: Any) -> Cluster:
    """Return a cluster, to be started, whose N1 has a gate in its state."""
    return Cluster("ring:2", {"N1": Gated, "N2": Puppet}, start_method=start_method, **options)


def state_of(snapshot: GlobalSnapshot, node: str = "N1") -> Any:
    state = snapshot.nodes[node].state
    return state.load() if isinstance(state, Pickled) else state


def counts(cluster: Cluster, node: str = "N1") -> tuple[int, int]:
    """Return how often a node has forked, and how often its state was captured since the start."""
    found = cluster.command(node, ["counts"])
    assert isinstance(found, list)
    return found[0], found[1]


def no_children(cluster: Cluster) -> bool:
    return cluster.command("N1", ["children"]) == []


# --- The cut. ---


def test_the_node_goes_on_while_its_child_encodes_what_was_there_at_the_cut(
    start_method: str, barrier: Barrier
) -> None:
    with gated(barrier, start_method) as cluster:
        cluster.command("N1", ["gate", str(barrier.path)])
        cluster.command("N1", ["keep", "value", "at the cut"])
        _, captures = counts(cluster)
        with taking(cluster, "N1") as taken:
            barrier.child()
            # Markers have left: the other node has recorded and reported, and only the state is missing.
            wait_until(lambda: [s["missing"] for s in cluster.status()["snapshots"]] == [["N1"]], "N2's part")
            cluster.command("N1", ["keep", "value", "later"])
            cluster.command("N2", ["send", "N1", "hello"])
            wait_until(lambda: cluster.command("N1", ["heard"]) == [("N2", "hello")], "the message to be handled")
            assert not taken.done()
            barrier.open()
            snapshot = taken.result()
        snapshot.verify()
        assert state_of(snapshot)["value"] == "at the cut"
        assert state_of(snapshot)["heard"] == []
        assert counts(cluster) == (1, captures + 1), "one fork, and the user's capture ran once"
        wait_until(lambda: no_children(cluster), "the child to be reaped")
        cluster.command("N1", ["remove_gate"])
        assert state_of(cluster.snapshot("N2"))["value"] == "later"
        assert counts(cluster)[0] == 2


def test_a_snapshot_meanwhile_is_encoded_in_place(barrier: Barrier) -> None:
    with gated(barrier) as cluster:
        cluster.command("N1", ["gate", str(barrier.path)])
        cluster.command("N1", ["keep", "value", 1])
        with taking(cluster, "N1") as taken:
            barrier.child()
            cluster.command("N1", ["keep", "value", 2])
            second = cluster.snapshot("N2")
            assert state_of(second)["value"] == 2
            assert counts(cluster)[0] == 1
            assert not taken.done()
            barrier.open()
            assert state_of(taken.result())["value"] == 1


def test_a_snapshot_of_several_initiators_that_fork_at_once() -> None:
    with Cluster("complete:3", Forker) as cluster:
        for node in cluster.topology.nodes:
            cluster.command(node, ["fill", "ballast", 3_000_000])
        for _ in range(3):
            snapshot = cluster.snapshot(*cluster.topology.nodes)
            snapshot.verify()
            assert len(snapshot.stored) == 3
            assert {len(node.state["ballast"]) for node in snapshot.nodes.values()} == {3_000_000 // 256 * 256}
        assert cluster.command("N1", ["echo", 1]) == 1


# --- When a node forks. ---


def test_a_small_state_is_never_a_reason_to_fork_and_a_large_one_is() -> None:
    """That it has become large is seen from the memory that came: nothing else is known of it yet."""
    with Cluster("ring:2", Thrifty) as cluster:
        for _ in range(3):
            assert cluster.snapshot().stored == []
        assert counts(cluster)[0] == 0
        cluster.command("N1", ["fill", "ballast", 64 << 20])
        snapshot = cluster.snapshot()
        assert (counts(cluster)[0], counts(cluster, "N2")[0]) == (1, 0)
        (size,) = snapshot.stored
        assert size >= 64 << 20
        assert snapshot.nodes["N1"].state["ballast"] == bytes(range(256)) * (1 << 18)


def test_captures_fork_only_where_they_may(barrier: Barrier) -> None:
    with gated(barrier, fork_captures=False) as cluster:
        cluster.command("N1", ["gate", str(barrier.path)])
        cluster.snapshot().verify()
        assert counts(cluster)[0] == 0
        assert not barrier.reached


@pytest.mark.parametrize(("forbid", "permit"), [("start_thread", "end_thread"), ("forbid_forks", None)])
def test_a_node_that_cannot_fork_encodes_in_place(forbid: str, permit: str | None) -> None:
    """A thread may hold a lock that the child needs; and there may be no more processes."""
    with Cluster("ring:2", {"N1": Forker, "N2": Puppet}) as cluster:
        cluster.command("N1", [forbid])
        before = cluster.command("N1", ["count_descriptors"])
        cluster.snapshot().verify()
        assert counts(cluster)[0] == 0
        assert cluster.command("N1", ["count_descriptors"]) == before
        if permit is not None:
            cluster.command("N1", [permit])
            cluster.snapshot().verify()
            assert counts(cluster)[0] == 1


# --- A child comes to harm. ---


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_a_child_that_is_killed_costs_the_snapshot_alone(number: signal.Signals, barrier: Barrier) -> None:
    with gated(barrier) as cluster:
        cluster.command("N1", ["gate", str(barrier.path)])
        with taking(cluster, "N2") as taken:
            os.kill(barrier.child(), number)
            with pytest.raises(SnapshotError, match=f"was killed by {number.name}") as caught:
                taken.result()
        assert caught.value.where == "N1"
        cluster.command("N1", ["remove_gate"])
        assert state_of(cluster.snapshot())["heard"] == []
        assert counts(cluster)[0] == 2
        wait_until(lambda: no_children(cluster), "both children to be reaped")


def test_a_child_whose_end_somebody_else_is_told() -> None:
    """The node's code ignores the ends of its children; how this one ended is not to be known."""
    with Cluster("ring:2", {"N1": Forker, "N2": Puppet}) as cluster:
        cluster.command("N1", ["ignore_children"])
        for _ in range(3):
            cluster.snapshot().verify()
        assert counts(cluster)[0] == 3


def test_what_cannot_be_kept_is_told_by_a_child_as_it_is_in_place() -> None:
    said = []
    for fork_captures in (True, False):
        with Cluster("ring:2", {"N1": Forker, "N2": Puppet}, fork_captures=fork_captures) as cluster:
            cluster.command("N1", ["spoil"])
            with pytest.raises(SnapshotError, match="Fraction") as caught:
                cluster.snapshot()
            said.append((caught.value.what, caught.value.where, caught.value.hint))
            assert counts(cluster)[0] == fork_captures
            cluster.command("N1", ["repair"])
            cluster.snapshot().verify()
    assert said[0] == said[1]
    assert said[0][1] == "N1: state.odd.inner[1]"


def test_no_room_for_what_a_child_writes_costs_the_snapshot_alone() -> None:
    with Cluster("ring:2", {"N1": Forker, "N2": Puppet}) as cluster:
        cluster.command("N1", ["fill", "ballast", 3_000_000])
        cluster.command("N1", ["limit_files", 1_000_000])
        before = cluster.command("N1", ["count_descriptors"])
        with pytest.raises(SnapshotError, match="staging its state failed") as caught:
            cluster.snapshot()
        assert "N1" in str(caught.value)
        wait_until(lambda: no_children(cluster), "the child to be reaped")
        assert cluster.command("N1", ["count_descriptors"]) == before
        cluster.command("N1", ["lift_limit"])
        cluster.snapshot().verify()


def test_an_abandoned_snapshot_takes_its_child_along(barrier: Barrier) -> None:
    with gated(barrier) as cluster:
        before = cluster.command("N1", ["count_descriptors"])
        cluster.command("N1", ["gate", str(barrier.path)])
        with pytest.raises(SnapshotError, match="N1 is still encoding its state"):
            cluster.snapshot("N1", timeout=1.0)
        wait_until(lambda: is_dead(barrier.child()), "the child's end")
        wait_until(lambda: no_children(cluster), "the child to be reaped")
        assert cluster.command("N1", ["count_descriptors"]) == before
        cluster.command("N1", ["remove_gate"])
        cluster.snapshot().verify()
        assert counts(cluster)[0] == 2


def test_an_orderly_stop_does_not_wait_for_a_child(start_method: str, barrier: Barrier) -> None:
    with contextlib.ExitStack() as stack:
        with gated(barrier, start_method) as cluster:
            cluster.command("N1", ["gate", str(barrier.path)])
            taken = stack.enter_context(taking(cluster, "N1"))
            child = barrier.child()
        assert is_dead(child)
        with pytest.raises(SnapshotError, match="the cluster stopped"):
            taken.result()


def test_a_node_that_fails_leaves_no_child(barrier: Barrier) -> None:
    cluster = gated(barrier).start()
    cluster.command("N1", ["gate", str(barrier.path)])
    with taking(cluster, "N1") as taken:
        child = barrier.child()
        with pytest.raises(NodeError, match="do_unknown"):
            cluster.command("N1", ["unknown"])
        with pytest.raises(MpsnapError, match="N1"):
            taken.result()
    wait_until(lambda: is_dead(child), "the child's end")
    cluster.kill()


def test_a_child_dies_with_its_node(start_method: str, barrier: Barrier) -> None:
    cluster = gated(barrier, start_method).start()
    cluster.command("N1", ["gate", str(barrier.path)])
    with taking(cluster, "N1") as taken:
        child = barrier.child()
        os.kill(cluster.status()["nodes"]["N1"]["pid"], signal.SIGKILL)
        with pytest.raises(MpsnapError, match="N1"):
            taken.result()
    wait_until(lambda: is_dead(child), "the child's end")
    cluster.kill()


@pytest.mark.parametrize("method", ["fork", "forkserver", "spawn"])
def test_a_child_dies_with_the_supervisor(method: str, barrier: Barrier) -> None:
    script = f"""
        from mpsnap import Cluster
        from capturing import Gated

        if __name__ == "__main__":
            with Cluster("ring:2", Gated, start_method={method!r}) as cluster:
                cluster.command("N1", ["gate", {str(barrier.path)!r}])
                cluster.snapshot("N1", timeout=50)
    """
    program = barrier.path.with_name("program.py")
    program.write_text(textwrap.dedent(script))
    paths = [str(HERE), *filter(None, [os.environ.get("PYTHONPATH")])]
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(paths)}
    with subprocess.Popen([sys.executable, str(program)], env=env, start_new_session=True) as process:
        try:
            child = barrier.child()
        finally:
            process.kill()
        wait_until(lambda: is_dead(child), "the child's end")


# --- Files. ---


@pytest.mark.parametrize("fork_captures", [True, False])
def test_a_large_state_is_in_a_file_and_looks_like_any_other(fork_captures: bool, start_method: str) -> None:
    nodes = {"N1": Forker, "N2": Puppet}
    with Cluster("ring:2", nodes, start_method=start_method, fork_captures=fork_captures) as cluster:
        before = cluster.command("N1", ["count_descriptors"])
        cluster.command("N1", ["keep", "large", ["x" * 1_000_000, "y" * 1_000_000]])
        snapshot = cluster.snapshot("N2")
        assert counts(cluster)[0] == fork_captures
        wait_until(lambda: cluster.command("N1", ["count_descriptors"]) == before, "the node to close its file")
    # The cluster is gone, and with it the node whose file it was.
    assert [size > 2_000_000 for size in snapshot.stored] == [True]
    state = snapshot.nodes["N1"].state
    assert state["large"] == ["x" * 1_000_000, "y" * 1_000_000]
    assert snapshot.nodes["N1"].state is not state
    assert snapshot_document(snapshot)["nodes"]["N1"]["state"]["large"][1] == "y" * 1_000_000
    assert "N1" in snapshot_table(snapshot)
    assert pickle.loads(pickle.dumps(snapshot)).nodes["N1"].state == state
    for other in (copy.copy(snapshot), copy.deepcopy(snapshot)):
        assert other.nodes["N1"].state == state


def test_a_small_state_that_a_child_has_encoded_is_in_memory() -> None:
    with Cluster("ring:2", Forker) as cluster:
        snapshot = cluster.snapshot()
        assert counts(cluster)[0] == 1
        assert snapshot.stored == []
        assert snapshot.nodes["N1"].state["heard"] == []


@pytest.mark.parametrize("bound", ["files", "bytes"])
def test_kept_snapshots_hold_no_more_files_than_there_may_be(bound: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each of these snapshots has two of 2 MB."""
    name, value = ("MOST_STORED", 5) if bound == "files" else ("KEPT_BYTES", 11_000_000)
    monkeypatch.setattr(cluster_module, name, value)
    with Cluster("ring:2", Puppet) as cluster:
        for node in cluster.topology.nodes:
            cluster.command(node, ["fill", "ballast", 2 << 20])
        for _ in range(4):
            cluster.snapshot()
        assert [snapshot.number for snapshot in cluster.snapshots] == [2, 3]
        monkeypatch.setattr(cluster_module, name, 1)
        cluster.snapshot()
        assert [snapshot.number for snapshot in cluster.snapshots] == [4], "the newest, whatever it holds"


def test_files_are_closed_with_their_snapshot() -> None:
    with Cluster("ring:2", Puppet) as cluster:
        cluster.command("N1", ["fill", "ballast", 2 << 20])
        snapshot = cluster.snapshot()
    del cluster
    gc.collect()
    held = len(os.listdir("/proc/self/fd"))
    del snapshot
    assert len(os.listdir("/proc/self/fd")) == held - 1


@pytest.mark.parametrize("fork_captures", [True, False])
def test_the_log_of_a_run_with_large_states(fork_captures: bool, tmp_path: Path) -> None:
    """Of what is still being encoded it says nothing, of what is too large the size."""
    topology, programs = assign(parse_topology("ring:2"), Forker)
    head = Head("processes", "seconds", "test", topology.name, topology.nodes, (("N1", "N2"), ("N2", "N1")))
    log = RunLog(str(tmp_path / "run.log"), head, 10_000)
    supervisor = Supervisor(topology, programs, journals=log.specs(), fork_captures=fork_captures)
    try:
        supervisor.start()
        _pump_until(supervisor, lambda _: supervisor.state == "running")
        ticket = supervisor.command("N1", ["fill", "ballast", 2 << 20])
        _pump_until(supervisor, lambda events: any(isinstance(e, Replied) and e.ticket == ticket for e in events))
        supervisor.trigger(["N1"])
        _pump_until(supervisor, lambda _: supervisor.open_snapshots == 0)
        supervisor.stop()
        _pump_until(supervisor, lambda _: supervisor.ended)
        log.merge(supervisor.codecs, lambda count: None)
    finally:
        supervisor.close()
        log.close()
    with open(tmp_path / "run.log", "rb") as file:
        history = parse_log(file, "run.log")
    recorded = {entry.node: entry.detail for entry in history.entries if entry.event == "recorded"}
    assert history.flaw is None
    assert recorded.keys() == {"N1", "N2"}
    if fork_captures:
        assert "state" not in recorded["N1"]
    else:
        assert recorded["N1"]["state"]["$size"] > 2 << 20


def _pump_until(supervisor: Supervisor, condition: Callable[[list[Event]], bool]) -> None:
    happened: list[Event] = []

    def pumped() -> bool:
        happened.extend(supervisor.pump(0.01))
        return condition(happened)

    wait_until(pumped, "the supervisor")


@pytest.mark.parametrize("option", [[], ["--no-fork-captures"]])
def test_the_command_line_shows_large_states_whole(option: list[str]) -> None:
    command = [sys.executable, "-m", "mpsnap", "run", "capturing:Filled", "--topology", "ring:2", "--snapshots", "3"]
    paths = [str(HERE), *filter(None, [os.environ.get("PYTHONPATH")])]
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(paths)}
    done = subprocess.run(
        [*command, "--format", "json", "--quiet", *option], env=env, capture_output=True, text=True, timeout=50
    )
    assert done.returncode == 0, done.stderr
    document = json.loads(done.stdout)
    assert [snapshot["number"] for snapshot in document["snapshots"]] == [0, 1, 2]
    assert all(
        node["state"]["ballast"] == "x" * 2_000_000
        for snapshot in document["snapshots"]
        for node in snapshot["nodes"].values()
    )


@pytest.mark.parametrize("fork_captures", [True, False])
def test_the_supervisor_does_not_hold_what_it_collects(fork_captures: bool) -> None:
    """This process, which grows by less than half of the state at any time."""
    with Cluster("ring:2", Puppet, fork_captures=fork_captures) as cluster:
        cluster.command("N1", ["fill", "ballast", 128 << 20])
        Path("/proc/self/clear_refs").write_text("5")  # forget the peak so far
        before = memory_of_this_process("VmRSS")
        snapshot = cluster.snapshot()
        assert memory_of_this_process("VmHWM") - before < 64 << 20
        assert sum(snapshot.stored) > 128 << 20


def memory_of_this_process(what: str) -> int:
    (line,) = [line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(what)]
    return int(line.split()[1]) << 10
