"""A store that fails while a cluster runs: it costs the snapshot, the cluster goes on, and the next one succeeds."""

from __future__ import annotations

import errno
import os
import resource
import signal
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from conftest import is_dead
from drill import Drill, FailingDisk, HalfDisk, drill
from ledger import Asking, Ending, Forking
from nodes import Puppet
from test_recovery import at, with_actions

from mpsnap.core.errors import ClusterError, OutputError, SnapshotCorrupt, StoreError
from mpsnap.core.events import ClusterStarted, Emitted, NodeDied, Recovered, SnapshotAbandoned, SnapshotCompleted
from mpsnap.runtime import recovery
from mpsnap.store.contract import is_recovery_point

pytestmark = [
    pytest.mark.processes,
    pytest.mark.timeout(60, method="signal"),
    pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning"),
]


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have restarts follow each other without pauses to speak of."""
    monkeypatch.setattr(recovery, "PAUSE_SECONDS", 0.001)


def recovered(it: Drill, count: int) -> bool:
    return it.recoveries == count


def completed(it: Drill) -> SnapshotCompleted:
    done = it.snapshot()
    assert isinstance(done, SnapshotCompleted), done
    return done


def abandoned(it: Drill) -> SnapshotAbandoned:
    done = it.snapshot()
    assert isinstance(done, SnapshotAbandoned), done
    return done


# --- The supervisor's operations. ---


def test_whichever_operation_fails_the_cluster_goes_on_and_the_next_snapshot_succeeds(tmp_path: Path) -> None:
    """Each operation of a commit fails once, and what was to be released is released by the next one."""
    disk = FailingDisk(errno.EIO)
    with drill(tmp_path, disk=disk, recovery={"keep": 3}) as it:
        it.start()
        lost = 0
        for failing in range(1, 200):
            disk.failing = disk.asked + failing
            done = it.snapshot()
            if not disk.failed or disk.asked < disk.failing:
                break
            if isinstance(done, SnapshotAbandoned):
                lost += 1
                assert isinstance(done.error, StoreError)
                assert os.strerror(errno.EIO) in done.error.what
            disk.failing = None
            completed(it)
        assert {"make_directory", "sync", "open_directory", "look", "rename", "create", "write", "names"} <= set(
            disk.failed
        )
        assert lost > 12
        disk.failing = None
        it.supervisor.signal("N2", signal.SIGKILL)
        it.until(lambda: it.recoveries and it.since, "the recovery")
        it.stop()
        it.check(1)


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EROFS], ids=errno.errorcode.get)
def test_a_store_that_fails_for_a_while_costs_what_is_taken_meanwhile(tmp_path: Path, number: int) -> None:
    """A recovery goes back further then, and nothing was released that it takes back."""
    disk = FailingDisk(number)
    with drill(tmp_path, disk=disk) as it:
        it.start()
        kept = completed(it).snapshot.number
        released = len(it.file.records())
        disk.failing, disk.for_good = disk.asked + 1, True
        for _ in range(3):
            abandoned(it)
        it.until(lambda: it.supervisor.totals()[1] > 200, "more to happen", snapshots=False)
        assert len(it.file.records()) == released
        disk.failing = None
        it.supervisor.signal("N2", signal.SIGKILL)
        it.until(lambda: it.recoveries, "the recovery", snapshots=False)
        assert it.told(Recovered)[0].number == kept
        completed(it)
        it.stop()
        it.check(1)


def test_a_store_that_is_full_when_the_cluster_recovers_is_asked_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(recovery, "PAUSE_SECONDS", 0.1)
    disk = FailingDisk()
    with drill(tmp_path, disk=disk) as it:
        it.start()
        completed(it)
        disk.failing, disk.for_good = disk.asked + 1, True
        it.supervisor.signal("N2", signal.SIGKILL)
        it.until(lambda: len(disk.failed) > 1, "a second attempt", snapshots=False)
        assert it.supervisor.state == "recovering"
        disk.failing = None
        it.until(lambda: it.recoveries and it.since, "the recovery")
        assert len(it.told(NodeDied)) == 1
        it.stop()
        it.check(1)


def test_nobody_goes_on_from_an_older_point_because_the_newest_is_damaged(tmp_path: Path) -> None:
    """That would repeat what was released since; it is for people to decide."""
    with drill(tmp_path) as it:
        it.start()
        number = [completed(it).snapshot.number for _ in range(2)][-1]
        manifest = it.path / f"snap-{number:08}" / "MANIFEST.json"
        manifest.write_bytes(manifest.read_bytes()[:-1])
        it.supervisor.signal("N2", signal.SIGKILL)
        it.until(lambda: False, "the end", snapshots=False)
        assert isinstance(it.error, SnapshotCorrupt)
        assert it.error.where == str(manifest)
        assert not it.recoveries


def test_a_store_that_stays_full_ends_the_cluster_when_it_has_to_recover(tmp_path: Path, quick: None) -> None:
    disk = FailingDisk()
    with drill(tmp_path, disk=disk, recovery={"restarts": 3}) as it:
        it.start()
        completed(it)
        disk.failing, disk.for_good = disk.asked + 1, True
        it.supervisor.signal("N2", signal.SIGKILL)
        it.until(lambda: False, "the end", snapshots=False)
        assert isinstance(it.error, StoreError)
        assert os.strerror(errno.ENOSPC) in it.error.what
        disk.failing = None
        assert it.store.latest(is_recovery_point) is not None


@pytest.mark.parametrize("failing", [1, 2, 3, 4, 9])
def test_an_initial_cut_that_cannot_be_kept_ends_the_start(tmp_path: Path, failing: int) -> None:
    """There would be nothing to go on from. Where the number cannot be given out, too."""
    disk = FailingDisk()
    with drill(tmp_path, disk=disk) as it:
        it.supervisor.start()
        disk.failing = disk.asked + failing
        it.until(lambda: it.told(ClusterStarted), "the start", snapshots=False)
        assert isinstance(it.error, ClusterError)
        assert "the initial cut could not be kept" in it.error.what
        assert it.supervisor.ended
        assert it.store.numbers() == ()
        assert it.file.records() == []


@pytest.mark.parametrize("failing", [1, 3, 12])
def test_a_last_cut_that_cannot_be_kept_is_told_and_the_end_comes_all_the_same(tmp_path: Path, failing: int) -> None:
    disk = FailingDisk()
    with drill(tmp_path, disk=disk) as it:
        it.start()
        completed(it)
        disk.failing = disk.asked + failing
        it.stop(5.0)
        assert isinstance(it.error, StoreError), it.story()
        assert it.supervisor.ended
    with drill(tmp_path, resume=True) as it:
        it.live(recoveries=0)
        it.check(0)


def test_a_cluster_that_ends_by_itself_does_so_though_its_store_fails(tmp_path: Path) -> None:
    """The cut that was to keep the proof is lost, and another one is taken."""
    for failing in ("make_directory", "rename"):
        disk = FailingDisk()
        folder = tmp_path / failing
        folder.mkdir()
        with drill(folder, disk=disk, node=Ending, until_terminated=True) as it:
            it.start()
            disk.next = failing
            it.until(lambda: it.supervisor.terminated, "the proof", snapshots=False)
            assert disk.failed == [failing]
            it.stop()
            it.check(0)


def test_outputs_that_cannot_be_written_end_the_cluster(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with drill(tmp_path) as it:
        it.start()

        def full(records: Any) -> None:
            raise OutputError("the file of outputs cannot be written")

        monkeypatch.setattr(it.file, "write", full)
        it.until(lambda: False, "the end")
        assert isinstance(it.error, OutputError)
    monkeypatch.undo()
    with drill(tmp_path, resume=True) as it:
        it.live(recoveries=0)
        it.check(0)


def test_the_point_to_go_on_from_stays_however_many_others_come(tmp_path: Path) -> None:
    """Those that a node begins by itself are no recovery points, and push none out."""
    with drill(tmp_path, recovery={"keep": 1}, node=Asking) as it:
        it.start()
        completed(it)
        point = it.store.numbers()[-1]
        for _ in range(3):
            seen = len(it.told(SnapshotCompleted))
            it.ask("N1", "snapshot")
            it.until(lambda seen=seen: len(it.told(SnapshotCompleted)) > seen, "a snapshot", snapshots=False)  # type: ignore[misc]
        assert point in it.store.numbers()
        it.supervisor.signal("N1", signal.SIGKILL)
        it.until(lambda: it.recoveries and it.since, "the recovery")
        assert it.told(Recovered)[0].number == point


# --- The nodes' operations. ---


@pytest.mark.parametrize("every", [17, 29])
def test_a_node_that_cannot_stage_costs_the_snapshot(tmp_path: Path, every: int) -> None:
    """Each operation of theirs fails in its turn."""
    with drill(tmp_path, disk=FailingDisk(errno.EIO, every)) as it:
        it.supervisor.start()
        it.until(lambda: it.told(ClusterStarted), "the start", snapshots=False)
        if it.supervisor.ended:
            # The initial cut was hit.
            assert "the initial cut could not be kept" in str(it.error)
            return
        done = [it.snapshot() for _ in range(30)]
        lost = [each for each in done if isinstance(each, SnapshotAbandoned)]
        assert 0 < len(lost) < 30
        assert all("a file cannot be staged" in each.error.what for each in lost)
        it.until(lambda: not os.listdir(it.path / "staging"), "what was staged to be gone", snapshots=False)


def test_a_limit_on_the_size_of_files_costs_the_snapshot(tmp_path: Path) -> None:
    """A real one: half a file is written, and then no more."""
    with drill(tmp_path, node=Puppet) as it:
        it.start()
        it.ask("N2", ["fill", "ballast", 3_000_000])
        it.ask("N2", ["limit_files", 1_500_000])
        lost = abandoned(it)
        assert os.strerror(errno.EFBIG) in lost.error.what
        # Another node may have staged its part before it hears of that.
        it.until(lambda: not os.listdir(it.path / "staging"), "what was staged to be gone", snapshots=False)
        it.ask("N2", ["lift_limit"])
        completed(it)
        soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (600, hard))
        try:
            lost = abandoned(it)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        assert os.strerror(errno.EFBIG) in lost.error.what
        completed(it)
        it.stop()
        assert it.error is None


@pytest.mark.parametrize(("start_method", "action"), with_actions(["kill9", "raise", "exit0"], "kill9"))
def test_half_a_staged_file_is_swept(tmp_path: Path, start_method: str, action: str) -> None:
    with drill(tmp_path, start_method, {"N2": at("mid_stage", action, 40)}, disk=HalfDisk()) as it:
        it.live()
        it.check(1)


# --- Forked captures. ---


def test_forked_captures_are_kept_and_recovered_from(tmp_path: Path) -> None:
    params = {"ballast": 2_000_000}
    with drill(tmp_path, plan={"N2": at("mid_handler", hit=200)}, node=Forking, params=params) as it:
        it.live()
        it.check(1)


def test_a_child_that_is_killed_while_it_stages_costs_the_snapshot_only(tmp_path: Path) -> None:
    with drill(tmp_path, node=Forking, params={"ballast": 2_000_000}, disk=HalfDisk()) as it:
        it.start()
        it.ask("N2", "arm")
        for _ in range(2):
            lost = abandoned(it)
            assert "the process that encoded its state was killed by SIGKILL" in lost.error.what
            it.until(lambda: not os.listdir(it.path / "staging"), "half a file to be gone", snapshots=False)
        it.ask("N2", "disarm")
        completed(it)
        it.stop()
        it.check(0)


def test_a_death_while_children_encode_leaves_none_of_them(tmp_path: Path, quick: None) -> None:
    params = {"ballast": 5_000_000}
    with drill(tmp_path, node=Forking, params=params) as it:
        it.start()
        children: list[int] = []
        for count in range(1, 4):
            it.supervisor.trigger()
            found: list[int] = []
            while not found and it.supervisor.open_snapshots:
                found = it.ask("N2", "children")
            children += found
            it.supervisor.signal("N2", signal.SIGKILL)
            it.until(partial(recovered, it, count), "the recovery", snapshots=False)
        assert children
        it.until(lambda: all(map(is_dead, children)), "their end", snapshots=False)
        completed(it)
        it.stop(20.0)
        it.check(3)
        assert it.told(Emitted)
