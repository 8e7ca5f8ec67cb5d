"""A cluster that keeps its snapshots goes on after any death, at whatever moment, or says why it does not."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import pytest
import recoverable
from conftest import FORK

from mpsnap import ClusterError, Node, NodeError, parse_topology
from mpsnap.core.errors import OutputError, SnapshotLost, StoreError
from mpsnap.core.events import (
    ClusterStarted,
    ClusterStopped,
    CommandLost,
    Emitted,
    Event,
    NodeDied,
    Recovered,
    Replied,
    SnapshotAbandoned,
    SnapshotCompleted,
)
from mpsnap.core.program import assign
from mpsnap.runtime.outputs import Sink
from mpsnap.runtime.recovering import RecoveringSupervisor
from mpsnap.runtime.recovery import Recovery, Restarts
from mpsnap.store.contract import is_recovery_point
from mpsnap.store.directory import DirectoryStore
from mpsnap.store.disk import Disk

# The time limit of a test is kept by a signal: fork wants to be the only thread.
pytestmark = [
    pytest.mark.processes,
    pytest.mark.timeout(60, method="signal"),
    pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning"),
]

E = TypeVar("E")


class Driven:
    """Pump a supervisor, and keep what has happened."""

    def __init__(self, supervisor: RecoveringSupervisor) -> None:
        self.supervisor = supervisor
        self.events: list[Event] = []

    def of(self, kind: type[E]) -> list[E]:
        """Return what has happened of one kind."""
        return [event for event in self.events if isinstance(event, kind)]

    def until(self, condition: Callable[[], object], what: str) -> None:
        """Pump until something holds."""
        deadline = time.monotonic() + 30
        while not condition():
            assert not self.supervisor.ended, f"it ended before {what}: {self.supervisor.error}"
            assert time.monotonic() < deadline, f"waited for {what}; {self.supervisor.state}: {self.events}"
            self.events += self.supervisor.pump(0.1)

    def until_running(self) -> None:
        self.until(lambda: self.supervisor.state == "running", "it ran")

    def to_the_end(self) -> None:
        deadline = time.monotonic() + 40
        while not self.supervisor.ended:
            assert time.monotonic() < deadline, f"it does not end; {self.supervisor.state}: {self.events}"
            self.events += self.supervisor.pump(0.1)
        self.events += self.supervisor.pump(0)

    def stop(self, seconds: float = 20.0) -> None:
        self.supervisor.stop(seconds)
        self.to_the_end()

    @property
    def records(self) -> list[object]:
        return [event.record for event in self.of(Emitted)]


@contextlib.contextmanager
def driven(
    path: Path, node: type[Node], topology: str = "complete:3", disk: Disk | None = None, **given: Any
) -> Iterator[Driven]:
    """Start a cluster with a store; `params` are those of its nodes, all else is for its recovery or the supervisor."""
    settings: dict[str, Any] = {name: given.pop(name) for name in ("handler_deadline", "start_method") if name in given}
    shape, programs = assign(parse_topology(topology), node, given.pop("params", None))
    with DirectoryStore(path / "store", disk) as store:
        if given.pop("resume", False):
            given["resume"] = store.latest(is_recovery_point)
        recovery = Recovery(store, **given)
        settings = {"start_method": "fork", "allow_threads": True, **settings}
        supervisor = RecoveringSupervisor(shape, programs, recovery, **settings)
        try:
            supervisor.start()
            yield Driven(supervisor)
        finally:
            supervisor.close()


def test_two_deaths_at_once_are_one_recovery(tmp_path: Path) -> None:
    with driven(tmp_path, recoverable.Obedient) as cluster:
        cluster.until_running()
        for node in ("N1", "N2", "N3"):
            cluster.supervisor.signal(node, signal.SIGKILL)
        # Unattended until all have ended, so that all three deaths are found at the same time.
        assert cluster.supervisor._incarnation is not None
        nodes = cluster.supervisor._incarnation.nodes
        for node in nodes:
            with contextlib.suppress(ChildProcessError):
                os.waitid(os.P_PIDFD, nodes[node].pidfd, os.WEXITED | os.WNOWAIT)
        cluster.until(lambda: cluster.of(Recovered), "the recovery")
        assert len(cluster.of(NodeDied)) == 1
        cluster.supervisor.command("N2", "count")
        cluster.until(lambda: cluster.of(Replied), "an answer")
        cluster.stop()
    assert cluster.supervisor.error is None
    assert len(cluster.of(Recovered)) == 1


def test_a_failure_and_what_others_say_at_the_same_time_are_no_trouble(tmp_path: Path) -> None:
    """A node that raises tells it on the pipe by which others answer; what comes after it is of the dead."""
    with driven(tmp_path, recoverable.Obedient, restarts=20) as cluster:
        for _ in range(3):
            cluster.until_running()
            for node in ("N1", "N2", "N3"):
                cluster.supervisor.command(node, ["emit", 1])
            cluster.supervisor.signal("N2", signal.SIGKILL)
            cluster.until(lambda: cluster.supervisor.state == "recovering", "the death")
        cluster.until_running()
        cluster.stop()
    assert cluster.supervisor.error is None
    answered, lost = cluster.of(Replied), cluster.of(CommandLost)
    assert len(answered) + len(lost) == 9, "each is answered or said to be lost"


def test_a_death_long_after_the_start_is_recovered_from(tmp_path: Path) -> None:
    """How long nodes may take to be ready is counted anew, not from the start of the first ones."""
    with driven(tmp_path, recoverable.Obedient) as cluster:
        cluster.until_running()
        cluster.supervisor._readiness._unchanged_since -= 1000
        cluster.supervisor._readiness._phases = ["starting"] * 3
        cluster.supervisor.signal("N1", signal.SIGKILL)
        cluster.until(lambda: cluster.of(Recovered), "the recovery")
        cluster.stop()
    assert cluster.supervisor.error is None


@pytest.mark.parametrize("nth", [3, 4, 5])
def test_a_death_while_the_initial_cut_is_taken_fails_the_start(tmp_path: Path, nth: int) -> None:
    """Three captures are dry ones after `setup`, for what cannot be captured; the next three are the initial cut."""
    (tmp_path / "asked").mkdir()
    with driven(tmp_path, recoverable.AtTheCut, params={"folder": str(tmp_path / "asked"), "nth": nth}) as cluster:
        cluster.to_the_end()
    (end,) = cluster.of(ClusterStopped)
    assert isinstance(end.error, NodeError)
    assert "killed by SIGKILL" in end.error.what
    assert not cluster.of(ClusterStarted)
    with DirectoryStore(tmp_path / "store") as store:
        assert store.numbers() == ()


def test_a_death_in_the_last_cut_is_recovered_from_and_it_is_taken_again(tmp_path: Path) -> None:
    (tmp_path / "asked").mkdir()
    with driven(tmp_path, recoverable.AtTheCut, params={"folder": str(tmp_path / "asked"), "nth": 6}) as cluster:
        cluster.until_running()
        cluster.stop()
    assert cluster.supervisor.error is None
    assert len(cluster.of(Recovered)) == 1
    with DirectoryStore(tmp_path / "store") as store:
        newest = store.latest()
        assert newest is not None
        assert newest.run["final"] is True


@pytest.mark.parametrize(("how", "deaths"), [("once", 1), ("always", 3)])
def test_a_death_in_on_stop_is_recovered_from_while_the_budget_lasts(tmp_path: Path, how: str, deaths: int) -> None:
    params = {"how": how, "mark": str(tmp_path / "mark")}
    with driven(tmp_path, recoverable.AtTheEnd, params=params, restarts=2) as cluster:
        cluster.until_running()
        cluster.stop()
    assert len(cluster.of(NodeDied)) == deaths
    if how == "once":
        assert cluster.supervisor.error is None
        assert cluster.records == ["the end"]
    else:
        assert str(cluster.supervisor.error).startswith(
            "N2 died in on_stop: killed by SIGKILL (kill -9, or the kernel out of memory), "
            "and that after 2 recoveries within 60 s; try: a look at what it did last"
        )
        assert cluster.records == []


def test_who_does_not_come_back_from_on_stop_is_blamed_and_nobody_else(tmp_path: Path) -> None:
    with driven(tmp_path, recoverable.AtTheEnd, params={"how": "hang", "node": "N3"}) as cluster:
        cluster.until_running()
        cluster.stop(1.0)
    error = cluster.supervisor.error
    assert isinstance(error, NodeError)
    assert error.what == "N3 did not stop within 1 s and was killed, in on_stop"


def test_a_stop_during_a_recovery_waits_for_its_end_and_leaves_a_last_cut(tmp_path: Path) -> None:
    with driven(tmp_path, recoverable.Obedient) as cluster:
        cluster.until_running()
        cluster.supervisor.signal("N1", signal.SIGKILL)
        cluster.until(lambda: cluster.supervisor.state == "recovering", "the death")
        cluster.stop()
    assert cluster.supervisor.error is None
    with DirectoryStore(tmp_path / "store") as store:
        newest = store.latest()
        assert newest is not None
        assert newest.run["final"] is True


def test_a_kill_during_a_recovery_leaves_nothing(tmp_path: Path) -> None:
    with driven(tmp_path, recoverable.Obedient) as cluster:
        cluster.until_running()
        cluster.supervisor.signal("N1", signal.SIGKILL)
        cluster.until(lambda: cluster.supervisor.state == "recovering", "the death")
        cluster.supervisor.kill()
        cluster.to_the_end()
    assert len(cluster.of(ClusterStopped)) == 1


# --- The disk. ---


class Full(Disk):
    """Have no room as soon as it is told so, for what it is told."""

    def __init__(self) -> None:
        self.refuses = ""

    def make_directory(self, name: str, at: int) -> None:
        if self.refuses and self.refuses in name:
            raise OSError(28, "No space left on device")
        super().make_directory(name, at)

    def create(self, name: str, at: int) -> int:
        if self.refuses and self.refuses in name:
            raise OSError(28, "No space left on device")
        return super().create(name, at)

    def __reduce__(self) -> tuple[object, ...]:
        return Disk, ()


@pytest.mark.parametrize("refuses", [".tmp-", "MANIFEST"])
def test_a_store_without_room_for_the_initial_cut_ends_the_start(tmp_path: Path, refuses: str) -> None:
    disk = Full()
    with driven(tmp_path, recoverable.Obedient, disk=disk) as cluster:
        disk.refuses = refuses
        cluster.to_the_end()
    error = cluster.supervisor.error
    assert isinstance(error, ClusterError)
    assert re.fullmatch(r"the initial cut could not be kept: .*No space left on device.*", error.what)


@pytest.mark.parametrize("refuses", [".tmp-", "MANIFEST"])
def test_a_store_that_is_full_for_a_while_costs_a_snapshot_and_nothing_else(tmp_path: Path, refuses: str) -> None:
    disk = Full()
    with driven(tmp_path, recoverable.Obedient, disk=disk) as cluster:
        cluster.until_running()
        cluster.supervisor.command("N1", ["emit", "kept"])
        cluster.until(lambda: cluster.of(Replied), "the answer")
        disk.refuses = refuses
        cluster.supervisor.trigger()
        cluster.until(lambda: cluster.of(SnapshotAbandoned), "the snapshot that is given up")
        (lost,) = cluster.of(SnapshotAbandoned)
        assert isinstance(lost.error, StoreError)
        assert cluster.records == []
        disk.refuses = ""
        cluster.supervisor.trigger()
        cluster.until(lambda: cluster.records, "the release")
        cluster.stop()
    assert cluster.supervisor.error is None
    assert cluster.records == ["kept"]


@pytest.mark.parametrize("refuses", [".tmp-", "MANIFEST"])
def test_a_last_cut_that_cannot_be_kept_is_told_and_ends_the_cluster_all_the_same(tmp_path: Path, refuses: str) -> None:
    disk = Full()
    with driven(tmp_path, recoverable.Obedient, disk=disk) as cluster:
        cluster.until_running()
        cluster.supervisor.command("N1", ["emit", "not released"])
        cluster.until(lambda: cluster.of(Replied), "the answer")
        disk.refuses = refuses
        cluster.stop()
    assert isinstance(cluster.supervisor.error, StoreError)
    assert cluster.records == []


class Broken(Sink):
    """Take nothing."""

    def __init__(self, at: str) -> None:
        self.at = at

    def write(self, records: object) -> None:
        if self.at == "write" and list(records):  # type: ignore[call-overload]
            raise OutputError("cannot be written: No space left on device", where="records")

    def sync(self) -> int:
        if self.at == "sync":
            raise OutputError("cannot be written: Input/output error", where="records")
        return 0


@pytest.mark.parametrize("at", ["write", "sync"])
def test_outputs_that_cannot_be_written_end_the_cluster_and_stay_in_the_store(tmp_path: Path, at: str) -> None:
    sink = Broken("write")
    with driven(tmp_path, recoverable.Obedient, sink=sink) as cluster:
        cluster.until_running()
        sink.at = at
        cluster.supervisor.command("N1", ["emit", "once"])
        cluster.until(lambda: cluster.of(Replied), "the answer")
        cluster.supervisor.trigger()
        cluster.to_the_end()
    assert isinstance(cluster.supervisor.error, OutputError)
    assert len(cluster.of(ClusterStopped)) == 1
    if at == "write":
        # It was committed before, and whoever goes on from it writes the record.
        with driven(tmp_path, recoverable.Obedient, resume=True) as cluster:
            cluster.until_running()
            cluster.stop()
        assert cluster.supervisor.error is None
        assert cluster.records == ["once"]


# --- The budget. ---


def test_each_restart_in_a_row_waits_twice_as_long_and_a_minute_forgives_all() -> None:
    restarts = Restarts(5)
    assert [restarts.next_pause(float(second)) for second in range(6)] == [0.0, 0.1, 0.2, 0.4, 0.8, None]
    assert restarts.next_pause(60.0) is None, "the first was no more than a minute ago"
    assert restarts.next_pause(60.5) == 0.8
    assert restarts.next_pause(1000.0) == 0.0
    assert Restarts(0).next_pause(0.0) is None
    many = Restarts(100)
    assert max(filter(None, (many.next_pause(0.0) for _ in range(100)))) == 5.0


def test_deaths_that_are_intended_cost_nothing_of_the_budget(tmp_path: Path) -> None:
    with driven(tmp_path, recoverable.Obedient, restarts=1) as cluster:
        for k in range(4):
            cluster.until_running()
            cluster.supervisor.excused.add("N2")
            cluster.supervisor.signal("N2", signal.SIGKILL)
            cluster.until(lambda k=k: len(cluster.of(NodeDied)) == k + 1, "the death")  # type: ignore[misc]
        cluster.until_running()
        assert cluster.supervisor.excused == set()
        cluster.supervisor.signal("N2", signal.SIGKILL)
        cluster.until(lambda: len(cluster.of(Recovered)) == 5, "the recovery")
        cluster.supervisor.signal("N2", signal.SIGKILL)
        cluster.to_the_end()
    assert "and that after 1 recovery within 60 s" in str(cluster.supervisor.error)


def test_a_message_that_kills_whoever_handles_it_ends_the_cluster_after_the_budget(tmp_path: Path) -> None:
    params = {"most": 10, "deadly": 5, "sure": True}
    with driven(tmp_path, recoverable.Stage, "line:3", params=params, restarts=2) as cluster:
        cluster.to_the_end()
    assert len(cluster.of(NodeDied)) == 3
    assert isinstance(cluster.supervisor.error, NodeError)


def test_who_cannot_take_its_state_back_fails_the_start_of_a_resumed_run_at_once(tmp_path: Path) -> None:
    with driven(tmp_path, recoverable.Obedient) as cluster:
        cluster.until_running()
        cluster.supervisor.kill()
    with driven(tmp_path, recoverable.AtRestore, resume=True) as cluster:
        cluster.to_the_end()
    assert "this state is of no use" in str(cluster.supervisor.error)
    assert cluster.of(NodeDied) == []


# --- What was under way. ---


def test_a_snapshot_that_a_death_takes_along_is_lost_and_so_is_a_command(tmp_path: Path) -> None:
    mark = tmp_path / "hangs"
    with driven(tmp_path, recoverable.Obedient, handler_deadline=1.0) as cluster:
        cluster.until_running()
        ticket = cluster.supervisor.command("N2", ["hang", str(mark)])
        cluster.until(mark.exists, "the hook")
        cluster.supervisor.trigger()
        cluster.until(lambda: cluster.of(Recovered), "the recovery")
        cluster.stop()
    assert cluster.supervisor.error is None
    (lost,) = cluster.of(SnapshotAbandoned)
    assert isinstance(lost.error, SnapshotLost)
    assert [event.ticket for event in cluster.of(CommandLost)] == [ticket]
    (death,) = cluster.of(NodeDied)
    assert "N2 hangs: on_command has not returned for" in death.error.what
    assert "the deadline is 1 s" in death.error.what


@pytest.mark.parametrize("method", [FORK, "forkserver", "spawn"])
def test_each_record_comes_once_and_in_order(tmp_path: Path, method: str) -> None:
    params = {"most": 300, "deadly": 150, "mark": str(tmp_path / "mark")}
    with driven(tmp_path, recoverable.Stage, "line:3", params=params, start_method=method) as cluster:
        cluster.until(lambda: cluster.of(NodeDied), "the death")
        cluster.until(lambda: len(cluster.of(SnapshotCompleted)) and cluster.supervisor.state == "running", "it ran")
        while len(cluster.records) < 300:
            cluster.supervisor.trigger()
            done = len(cluster.of(SnapshotCompleted))
            cluster.until(lambda done=done: len(cluster.of(SnapshotCompleted)) > done, "a snapshot")  # type: ignore[misc]
        cluster.stop()
    assert cluster.supervisor.error is None
    assert cluster.records == list(range(1, 301))


def test_the_snapshot_to_go_on_from_is_never_removed_and_so_many_are_kept(tmp_path: Path) -> None:
    with driven(tmp_path, recoverable.Obedient, keep=3) as cluster:
        for k in range(1, 6):
            cluster.until_running()
            cluster.supervisor.trigger()
            cluster.until(lambda k=k: len(cluster.of(SnapshotCompleted)) > k, "a snapshot")  # type: ignore[misc]
        cluster.supervisor.kill()
    with DirectoryStore(tmp_path / "store") as store:
        assert store.numbers() == (3, 4, 5)
