"""`Cluster` with a store: calls last over a recovery, what is lost is told, and each record comes once."""

from __future__ import annotations

import itertools
import os
import select
import shutil
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import pytest
from conftest import wait_until
from recoverable import Obedient, Pickling, Stage

import mpsnap
from mpsnap import Cluster, ClusterError, GlobalSnapshot, InputError, NodeError
from mpsnap.runtime.seal import key_path
from mpsnap.store.directory import DirectoryStore
from mpsnap.store.manifest import MANIFEST, read, write

pytestmark = [pytest.mark.processes, pytest.mark.timeout(60)]


def kill(cluster: Cluster, node: str) -> None:
    """Kill a node, and return when the cluster has seen that."""
    deaths = len(cluster.deaths)
    os.kill(cluster.status()["nodes"][node]["pid"], signal.SIGKILL)
    wait_until(lambda: len(cluster.deaths) > deaths, "the death", 30)


def test_a_cluster_with_a_store_survives_the_death_of_a_node(tmp_path: Path, start_method: str) -> None:
    with Cluster("ring:3", Obedient, store=tmp_path / "kept", start_method=start_method, allow_threads=True) as cluster:
        assert cluster.command("N2", "count") == 1
        cluster.snapshot()
        assert cluster.command("N2", "count") == 2
        kill(cluster, "N1")
        assert cluster.command("N2", "count") == 2, "what was answered after the snapshot is undone"
        snapshot = cluster.snapshot()
        snapshot.verify()
        assert snapshot.nodes["N2"].state["count"] == 2
    (death,) = cluster.deaths
    assert death.node == "N1"
    assert isinstance(death.error, NodeError)
    (recovery,) = cluster.recoveries
    assert recovery.number == 1
    assert recovery.seconds > 0
    assert [snapshot.number for snapshot in cluster.snapshots] == [0, 1, 2, 3], "the initial one and the last too"
    cluster.deaths.clear()
    assert len(cluster.deaths) == 1, "a copy"


def test_calls_during_a_recovery_wait_for_its_end(tmp_path: Path) -> None:
    with Cluster("ring:3", Obedient, store=tmp_path / "kept") as cluster:
        answers: list[Any] = []
        for _ in range(3):
            kill(cluster, "N3")
            asking = [
                threading.Thread(target=lambda: answers.append(cluster.snapshot().number)),
                threading.Thread(target=lambda: answers.append(cluster.command("N1", "count"))),
            ]
            for thread in asking:
                thread.start()
            for thread in asking:
                thread.join()
        assert len(answers) == 6
    assert len(cluster.recoveries) == 3


def test_a_command_that_a_death_takes_along_says_so(tmp_path: Path) -> None:
    with Cluster("ring:2", Obedient, store=tmp_path / "kept") as cluster:
        with pytest.raises(ClusterError) as caught:
            cluster.command("N2", "die")
        assert str(caught.value) == (
            "N2: the command to N2 was lost: a node died before it was answered; "
            "try: giving it again, what it had changed is undone"
        )
        assert cluster.command("N2", "count") == 1


def test_a_snapshot_that_a_death_takes_along_is_taken_again(tmp_path: Path) -> None:
    """The hook that hangs keeps the snapshot open until the deadline finds it; then its node dies."""
    mark = tmp_path / "hangs"
    with Cluster("ring:3", Obedient, store=tmp_path / "kept", handler_deadline=0.5) as cluster:
        failed: list[BaseException] = []

        def hang() -> None:
            try:
                cluster.command("N2", ["hang", str(mark)])
            except ClusterError as error:
                failed.append(error)

        thread = threading.Thread(target=hang)
        thread.start()
        wait_until(mark.exists, "the hook", 30)
        cluster.snapshot().verify()
        thread.join()
        assert len(failed) == 1
    assert "N2 hangs: on_command has not returned for" in cluster.deaths[0].error.what


def test_a_snapshot_that_is_not_taken_again_in_time_says_so(tmp_path: Path) -> None:
    """It is asked for when a node is dead and that is not yet seen, and lost with it."""
    with Cluster("ring:3", Obedient, store=tmp_path / "kept") as cluster:
        pid = cluster.status()["nodes"]["N3"]["pid"]

        def ask() -> Future[GlobalSnapshot]:
            end = os.pidfd_open(pid)
            os.kill(pid, signal.SIGKILL)
            assert select.select([end], [], [], 30)[0]
            os.close(end)
            return cluster._calls.snapshot((), 1e-6)

        error = cluster._request(ask).result().exception(timeout=30)
    assert error is not None
    assert "did not complete within 1e-06 s" in str(error)


def test_each_record_comes_once(tmp_path: Path) -> None:
    params = {"most": 500, "deadly": 300, "mark": str(tmp_path / "mark")}
    with Cluster("line:3", Stage, params=params, store=tmp_path / "kept", snapshot_every=0.01) as cluster:
        assert cluster.wait(timeout=50) is not None
    assert [record for _, _, record in cluster.outputs] == list(range(1, 501))
    assert len(cluster.deaths) == 1


def test_a_cluster_that_dies_for_ever_fails_after_its_restarts(tmp_path: Path) -> None:
    params = {"most": 10, "deadly": 5, "sure": True}
    cluster = Cluster("line:2", Stage, params=params, store=tmp_path / "kept", restarts=1)
    with pytest.raises(NodeError, match="and that after 1 recovery within 60 s"), cluster:
        cluster.wait(timeout=50)
    assert len(cluster.deaths) == 2


def test_a_store_is_of_one_cluster_and_of_one_run(tmp_path: Path) -> None:
    path = tmp_path / "kept"
    used = pytest.raises(InputError, match="the store is in use by this process")
    with Cluster("ring:2", Obedient, store=path), used:
        Cluster("ring:2", Obedient, store=path)
    with pytest.raises(InputError, match="the store holds the snapshots of a run already, the newest is 1"):
        Cluster("ring:2", Obedient, store=path)
    with pytest.raises(InputError, match="keep is 0"):
        Cluster("ring:2", Obedient, store=tmp_path / "other", keep=0)
    Cluster("ring:2", Obedient, store=tmp_path / "never started").stop()
    refused: dict[str, Any]
    for refused in ({"start_method": "thread"}, {"window": 0}, {"start_method": "fork"}):
        with pytest.raises((InputError, ValueError)):
            Cluster("ring:2", Obedient, store=tmp_path / "other", **refused)
    with DirectoryStore(tmp_path / "other"):
        pass


PROGRAM = """
import time
from mpsnap import Cluster
from recoverable import Obedient
if __name__ == "__main__":
    cluster = Cluster("ring:2", Obedient, store="kept", resume=True).start()
    while not cluster.snapshots:
        time.sleep(0.001)  # of two that overlap, only the first is one to go on from
    print(cluster.command("N1", "count"), flush=True)
    cluster.snapshot()
    print("taken", flush=True)
    input()
"""


def test_a_program_that_was_killed_goes_on_where_its_cluster_was(tmp_path: Path) -> None:
    (tmp_path / "program.py").write_text(PROGRAM)
    folders = [str(Path(__file__).parent), str(Path(mpsnap.__file__).parents[1])]
    for count in (1, 2, 3):
        started = subprocess.Popen(
            [sys.executable, "program.py"],
            cwd=tmp_path,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(folders)},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        with started:
            assert started.stdout is not None
            assert started.stdout.readline() == f"{count}\n"
            assert started.stdout.readline() == "taken\n"
            started.kill()
    with pytest.raises(InputError, match="is of another cluster: no node N2 here"):
        Cluster("line:1", Obedient, store=tmp_path / "kept", resume=True)
    with Cluster("ring:2", Obedient, store=tmp_path / "kept", resume=True) as cluster:
        assert cluster.command("N1", "count") == 4
    with pytest.raises(InputError, match="this run has ended, snapshot"):
        Cluster("ring:2", Obedient, store=tmp_path / "kept", resume=True)
    with Cluster("ring:2", Obedient, store=tmp_path / "new", resume=True):
        pass


def test_a_program_can_go_on_from_an_older_snapshot(tmp_path: Path) -> None:
    """What was done since is done again; and when the newest one is damaged, the error says which one there is."""
    kept = tmp_path / "kept"
    counts: dict[int, Any] = {}
    with Cluster("ring:2", Obedient, store=kept) as cluster:
        for _ in range(3):
            count = cluster.command("N1", "count")
            counts[cluster.snapshot().number] = count
        # Killed, as far as the store can tell: what it holds in the end is taken away below.
    with mpsnap.open_store(kept) as store:
        final = store.numbers()[-1]
    with pytest.raises(InputError, match=f"this run has ended, .* try: resume_from={max(counts)} to go on from before"):
        Cluster("ring:2", Obedient, store=kept, resume=True)
    older, newer = sorted(counts)[-2:]
    shutil.rmtree(kept / f"snap-{final:08}")
    blob = kept / f"snap-{newer:08}" / "node-0.part"
    blob.write_bytes(b"?" + blob.read_bytes()[1:])
    with pytest.raises(InputError, match=f"snap-{newer:08}/node-0.part.* try: resume_from={older}, an older one"):
        Cluster("ring:2", Obedient, store=kept, resume=True)
    with pytest.raises(InputError, match="there is no snapshot 99"):
        Cluster("ring:2", Obedient, store=kept, resume_from=99)
    with Cluster("ring:2", Obedient, store=kept, resume_from=older) as cluster:
        assert cluster.command("N1", "count") == counts[older] + 1
        assert cluster.snapshot().number > final


HOLDING = """
from dataclasses import dataclass
from mpsnap import Node

@dataclass
class Parcel:
    label: str

class Holds(Node):
    def setup(self, ctx):
        self.parcel = Parcel("one")
"""


def test_a_program_whose_classes_have_changed_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What stands for an instance of a class that is not there is for who looks on, and never a node's state."""
    (tmp_path / "holding_parcels.py").write_text(HOLDING)
    monkeypatch.syspath_prepend(tmp_path)
    kept = tmp_path / "kept"
    with Cluster("ring:2", "holding_parcels:Holds", store=kept):
        pass
    shutil.rmtree(kept / "snap-00000001")
    monkeypatch.delattr("holding_parcels.Parcel")
    with pytest.raises(InputError, match=r"what N1 held in snapshot 0 does not fit .*no class holding_parcels:Parcel"):
        Cluster("ring:2", "holding_parcels:Holds", store=kept, resume=True)
    monkeypatch.undo()
    monkeypatch.syspath_prepend(tmp_path)
    with Cluster("ring:2", "holding_parcels:Holds", store=kept, resume=True) as cluster:
        assert cluster.snapshot().nodes["N1"].state["parcel"].label == "one"


@pytest.mark.parametrize("resuming", [{"resume": True}, {"resume_from": 1}])
def test_without_a_store_there_is_nothing_to_go_on_from(resuming: dict[str, Any]) -> None:
    with pytest.raises(InputError, match="goes on from what is in its store, and has none; try: store=DIRECTORY"):
        Cluster("ring:2", Obedient, **resuming)


def test_a_clock_that_is_set_to_another_day_changes_labels_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither deadlines nor numbers nor what is the newest go by the clock on the wall."""
    began = time.time()
    days = itertools.cycle((1, -1, 2, -3, 0))
    monkeypatch.setattr(time, "time", lambda: began + 86_400 * next(days))
    kept = tmp_path / "kept"
    for life in (1, 2):
        with Cluster("ring:2", Obedient, store=kept, resume=True, snapshot_every=0.01) as cluster:
            for count in range(1, 6):
                assert cluster.command("N1", "count") == count + 5 * (life - 1)
                snapshot = cluster.snapshot()
                snapshot.verify()
                assert snapshot.duration is not None
                assert 0 <= snapshot.duration < 60
        with mpsnap.open_store(kept) as store:
            numbers = store.numbers()
            times = [store.manifest(number).wall_time for number in numbers]
            assert list(numbers) == sorted(numbers)
            assert times != sorted(times), "the clock went backwards"
            newest = store.latest()
            assert newest is not None
            assert newest.number == numbers[-1]
        shutil.rmtree(kept / f"snap-{numbers[-1]:08}")


def test_a_handler_deadline_without_a_store_ends_the_cluster(tmp_path: Path) -> None:
    cluster = Cluster("ring:2", Obedient, handler_deadline=0.3)
    with pytest.raises(NodeError, match="N1 hangs: on_command has not returned for"), cluster:
        cluster.command("N1", ["hang", str(tmp_path / "hangs")])


# --- Pickles. ---


def test_nodes_that_keep_pickles_are_recovered_without_a_key(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever recovers them has taken the snapshot: nothing is asked of a file, which may be gone."""
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))
    with Cluster("ring:2", Pickling, store=tmp_path / "kept") as cluster:
        shutil.rmtree(tmp_path / "data")
        assert cluster.command("N1", "count") == 1
        cluster.snapshot()
        kill(cluster, "N2")
        assert cluster.command("N1", "count") == 2
        cluster.snapshot()
    with mpsnap.open_store(tmp_path / "kept") as store:
        assert all(store.manifest(number).seal for number in store.numbers())
    assert not (tmp_path / "data").exists()


def test_a_cluster_that_could_not_seal_does_not_begin(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_DATA_HOME", "/proc/nowhere")
    with pytest.raises(InputError, match=r"/proc/nowhere/mpsnap/key: .* cannot be made: .*; try: XDG_DATA_HOME, "):
        Cluster("ring:2", Pickling, store=tmp_path / "kept")
    with DirectoryStore(tmp_path / "kept") as store:
        assert store.numbers() == ()
    Cluster("ring:2", Obedient, store=tmp_path / "plain").stop()
    Cluster("ring:2", Pickling).stop()


@pytest.mark.parametrize("resuming", [{"resume": True}, {"resume_from": 0}])
def test_a_cluster_takes_no_pickles_back_whatever_the_store_says(tmp_path: Path, resuming: dict[str, Any]) -> None:
    """Whoever changes a store can have it say that it holds none."""
    kept = tmp_path / "kept"
    with Cluster("ring:2", Pickling, store=kept):
        pass
    assert Path(key_path()).exists()
    shutil.rmtree(kept / "snap-00000001")
    with pytest.raises(InputError, match="snapshot 0 holds pickles of N1, N2, and to take them back runs code"):
        Cluster("ring:2", Pickling, store=kept, **resuming)
    path = kept / "snap-00000000" / MANIFEST
    manifest = read(path.read_bytes())
    nodes = {node: entry._replace(codec="plain") for node, entry in manifest.nodes.items()}
    path.write_bytes(write(manifest._replace(nodes=nodes, seal=None)))
    with pytest.raises(InputError, match="N1, N2 would take pickles back, and to take them back runs code"):
        Cluster("ring:2", Pickling, store=kept, **resuming)
