"""What may come together with a death: others, hangs, full windows, a stop, a poisoned message, no end of them."""

from __future__ import annotations

import gc
import multiprocessing
import os
import re
import select
import signal
import warnings
from collections.abc import Callable
from functools import partial
from multiprocessing import forkserver, resource_tracker
from pathlib import Path
from typing import Any

import pytest
from conftest import is_dead, wait_until
from drill import Drill, drill
from ledger import Alarm, Asking, Ending, Poisoned, Slow
from nodes import Puppet
from test_leaks import holdings
from test_recovery import at, with_actions

from mpsnap.core.errors import ClusterError, NodeError, SnapshotLost
from mpsnap.core.events import (
    CommandLost,
    Emitted,
    NodeDied,
    Recovered,
    SnapshotAbandoned,
    SnapshotCompleted,
    SnapshotInitiated,
)
from mpsnap.runtime import hangs, recovery
from mpsnap.runtime.incarnation import Incarnation
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


def pids(it: Drill) -> dict[str, int]:
    return {node: each["pid"] for node, each in it.supervisor.status()["nodes"].items()}


def recovered(it: Drill, count: int) -> bool:
    return it.recoveries == count


def died(it: Drill, count: int) -> bool:
    return len(it.told(NodeDied)) == count


def kill(it: Drill, *nodes: str) -> None:
    """Kill nodes, and see them dead before anybody is told."""
    doomed = [pids(it)[node] for node in nodes]
    for node in nodes:
        it.supervisor.signal(node, signal.SIGKILL)
    wait_until(lambda: all(map(is_dead, doomed)), "their death")


# --- At the start. ---


@pytest.mark.parametrize(("start_method", "action"), with_actions(["kill9", "raise", "exit0"], "kill9"))
@pytest.mark.parametrize("name", ["import", "setup", "ready"])
def test_who_dies_on_the_way_to_the_start_ends_it(tmp_path: Path, start_method: str, name: str, action: str) -> None:
    """There is nothing to go on from, and it would happen again."""
    with drill(tmp_path, start_method, {"N2": at(name, action, incarnation=None)}) as it:
        it.supervisor.start()
        it.until(lambda: False, "the end", snapshots=False)
        assert isinstance(it.error, NodeError)
        assert it.error.node == "N2"
        assert ("failpoint" in it.error.traceback) == (action == "raise")
        assert not it.told(NodeDied)
        assert not it.told(Recovered)
        assert it.store.numbers() == ()


@pytest.mark.parametrize("action", ["kill9", "raise"])
def test_who_dies_on_the_way_back_at_the_start_of_a_run_ends_it_too(tmp_path: Path, action: str) -> None:
    with drill(tmp_path) as it:
        it.live(recoveries=0)
    with drill(tmp_path, plan={"N2": at("restore", action, incarnation=None)}, resume=True) as it:
        it.supervisor.start()
        it.until(lambda: False, "the end", snapshots=False)
        assert isinstance(it.error, NodeError)
        assert not it.told(NodeDied)


def test_each_node_dies_on_the_way_back_in_turn(tmp_path: Path, quick: None) -> None:
    plan = {
        "N1": at("mid_send", hit=30),
        **{f"N{k}": at("restore", incarnation=k - 1) for k in (2, 3)},
    }
    with drill(tmp_path, plan=plan) as it:
        it.live()
        it.check(1)
        assert [death.node for death in it.told(NodeDied)] == ["N1", "N2", "N3"]
        assert it.told(Recovered)[0].incarnation == 3


def test_who_gets_no_further_on_the_way_back_counts_as_dead(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hangs, "READY_SECONDS", 0.5)
    with drill(tmp_path, plan={"N1": at("mid_send", hit=30), "N2": at("restore", "stop", incarnation=1)}) as it:
        it.live()
        it.check(1)
        assert [death.node for death in it.told(NodeDied)] == ["N1", "N2"]
        assert "1 of 3 nodes not ready" in it.told(NodeDied)[1].error.what


# --- Deaths from outside. ---


def test_an_idle_cluster_notices_a_death_and_goes_on(tmp_path: Path, start_method: str) -> None:
    with drill(tmp_path, start_method, node=Puppet) as it:
        it.start()
        it.ask("N2", ["keep", "value", 7])
        it.snapshot()
        it.ask("N2", ["keep", "value", 8])
        it.supervisor.signal("N2", signal.SIGKILL)
        it.until(lambda: it.recoveries, "the recovery", snapshots=False)
        (recovered,) = it.told(Recovered)
        assert recovered.seconds < 2.0 if start_method != "spawn" else 10.0
        assert (recovered.incarnation, recovered.number) == (1, 1)
        done = it.snapshot()
        assert isinstance(done, SnapshotCompleted)
        assert done.snapshot.nodes["N2"].state["value"] == 7
        it.stop()
        assert it.error is None


@pytest.mark.parametrize("victims", [("N1", "N2"), ("N1", "N2", "N3")])
def test_deaths_at_once_are_one_recovery(tmp_path: Path, victims: tuple[str, ...]) -> None:
    with drill(tmp_path) as it:
        it.start()
        it.until(lambda: it.since > 1, "snapshots")
        kill(it, *victims)
        it.until(lambda: it.recoveries and it.since, "the recovery")
        it.stop()
        it.check(1)
        assert len(it.told(NodeDied)) == 1
        assert it.told(Recovered)[0].incarnation == 1


def test_the_last_words_of_a_node_that_is_dead_by_then_are_its_death(tmp_path: Path) -> None:
    """They and the end of its process are found at once."""
    with drill(tmp_path, node=Puppet) as it:
        it.start()
        doomed = pids(it)["N2"]
        ticket = it.supervisor.command("N2", ["raise_unspeakable"])
        wait_until(lambda: is_dead(doomed), "its death")
        it.until(lambda: it.recoveries, "the recovery", snapshots=False)
        (death,) = it.told(NodeDied)
        assert death.error.phase == "on_command"
        assert [(lost.ticket, lost.node) for lost in it.told(CommandLost)] == [(ticket, "N2")]
        it.stop()
        assert it.error is None


def test_a_death_takes_the_open_snapshots_along_and_says_so(tmp_path: Path) -> None:
    with drill(tmp_path) as it:
        it.start()
        it.supervisor.signal("N3", signal.SIGSTOP)
        ids = [it.supervisor.trigger(), it.supervisor.trigger(["N2"])]
        it.pump()
        it.supervisor.signal("N3", signal.SIGKILL)
        it.until(lambda: it.recoveries and it.since, "the recovery")
        lost = it.told(SnapshotAbandoned)
        assert [event.snapshot_id for event in lost] == ids
        assert all(isinstance(event.error, SnapshotLost) and "N3 died" in event.error.what for event in lost)
        it.stop()
        it.check(1)


@pytest.mark.parametrize(("start_method", "action"), with_actions(["loop", "c_loop", "stop"], "c_loop"))
def test_a_node_that_hangs_is_killed_and_the_cluster_goes_on(
    tmp_path: Path, start_method: str, action: str, capfd: pytest.CaptureFixture[str]
) -> None:
    with drill(tmp_path, start_method, {"N2": at("mid_handler", action, 40)}, handler_deadline=0.4) as it:
        it.start()
        old = set(pids(it).values())
        it.until(lambda: it.recoveries and it.since, "the recovery")
        assert all(map(is_dead, old)), "fenced before anybody else began"
        it.stop()
        it.check(1)
        (death,) = it.told(NodeDied)
        assert "hangs" in death.error.what
        if action != "stop" and start_method != "forkserver":
            # A forkserver writes to where stderr was when it began.
            assert "in _suffer" in capfd.readouterr().err, "its stack"


def test_a_killed_forkserver_is_replaced(tmp_path: Path) -> None:
    """And so is the process that tracks semaphores."""
    with drill(tmp_path, "forkserver") as it:
        it.start()
        server: Any = forkserver._forkserver
        tracker: Any = resource_tracker._resource_tracker
        old = set(pids(it).values())
        for pid in (server._forkserver_pid, tracker._pid):
            os.kill(pid, signal.SIGKILL)
        it.since = 0
        it.until(lambda: it.since > 1, "snapshots without them")
        with warnings.catch_warnings(record=True):
            warnings.simplefilter("always")
            it.supervisor.signal("N2", signal.SIGKILL)
            it.until(lambda: it.recoveries and it.since, "the recovery")
        assert all(map(is_dead, old))
        it.stop()
        it.check(1)


# --- What waits. ---


def test_what_waits_at_a_restored_node_is_in_the_next_cut(tmp_path: Path, start_method: str, quick: None) -> None:
    """Snapshots begin before it is taken, and the cluster goes back to them again and again."""
    params = {"tokens": 100_000}
    with drill(tmp_path, start_method, topology="line:2", node=Slow, params=params, window=200) as it:
        it.start()
        it.until(lambda: it.since > 2, "snapshots")
        in_flight = []
        for count in range(1, 3 if start_method == "spawn" else 5):
            it.supervisor.signal("N2", signal.SIGKILL)
            it.until(partial(recovered, it, count), "the recovery", snapshots=False)
            done = it.snapshot()
            assert isinstance(done, SnapshotCompleted)
            in_flight.append(done.snapshot.in_flight)
        assert min(in_flight) > 50
        it.stop(30.0)
        it.check(len(in_flight))


def test_more_may_wait_than_the_window_of_the_next_run_holds(tmp_path: Path) -> None:
    params = {"tokens": 3_000}
    with drill(tmp_path, topology="line:2", node=Slow, params=params, window=2000) as it:
        it.start()
        it.until(lambda: it.since > 2, "snapshots")
        it.stop(30.0)
        waiting = it.check(0).in_flight
    assert waiting > 500
    with drill(tmp_path, topology="line:2", node=Slow, params=params, window=4, resume=True) as it:
        it.start()
        it.until(lambda: it.told(SnapshotCompleted) and it.told(SnapshotCompleted)[-1].snapshot.in_flight < 10, "room")
        it.supervisor.signal("N2", signal.SIGKILL)
        it.until(lambda: it.recoveries and it.since, "the recovery")
        it.stop(30.0)
        last = it.store.load(it.store.numbers()[-1])
        assert last.nodes["N2"].received["N1"] > waiting


def test_a_cluster_with_full_windows_ends_in_good_order(tmp_path: Path) -> None:
    with drill(tmp_path, topology="line:3", node=Slow, params={"tokens": 1_000_000}, window=4) as it:
        it.start()
        it.until(lambda: it.since > 3, "snapshots")
        it.stop()
        it.check(0)


def test_a_timer_goes_off_once_whatever_dies_before_it(tmp_path: Path, quick: None) -> None:
    with drill(tmp_path, node=Alarm) as it:
        it.start()
        for count in range(1, 4):
            assert isinstance(it.snapshot(), SnapshotCompleted)
            it.supervisor.signal("N1", signal.SIGKILL)
            it.until(partial(recovered, it, count), "the recovery", snapshots=False)

        def rung() -> list[str]:
            return sorted(event.node for event in it.told(Emitted) if event.record[0] == "alarm")

        it.until(lambda: len(rung()) == 3, "three alarms")
        it.supervisor.signal("N1", signal.SIGKILL)
        it.until(lambda: it.recoveries == 4 and it.since > 1, "the recovery")
        it.stop()
        it.check(4)
        assert rung() == ["N1", "N2", "N3"]


# --- Asking for things meanwhile. ---


def test_while_it_recovers_nothing_can_be_asked_and_a_stop_waits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(recovery, "PAUSE_SECONDS", 0.2)
    with drill(tmp_path) as it:
        it.start()
        for count in (1, 2):
            it.supervisor.signal("N2", signal.SIGKILL)
            it.until(partial(died, it, count), "the death")
            if count == 1:
                it.until(lambda: it.recoveries == 1, "the recovery")
        status = it.supervisor.status()
        assert status == {"state": "recovering", "nodes": {}, "channels": {}, "snapshots": []}
        assert it.supervisor.totals() >= (0, 0)
        assert it.supervisor.terminated is None
        for ask in (
            it.supervisor.trigger,
            lambda: it.supervisor.command("N1", 1),
            lambda: it.supervisor.signal("N1", 9),
        ):
            with pytest.raises(ClusterError, match="recovering"):
                ask()
        it.stop()
        it.check(2)


def test_a_cluster_that_recovers_can_be_killed(tmp_path: Path) -> None:
    with drill(tmp_path, plan={"N2": at("restore", "stop", incarnation=1)}) as it:
        it.start()
        it.supervisor.signal("N2", signal.SIGKILL)
        it.until(lambda: it.supervisor.status()["nodes"] and it.supervisor.state == "recovering", "it recovers")
        it.supervisor.kill()
        assert it.supervisor.ended
        it.pump()
        assert it.error is None


def test_snapshots_that_overlap_are_all_kept_and_one_at_a_time_is_a_recovery_point(tmp_path: Path) -> None:
    with drill(tmp_path, recovery={"keep": 100}) as it:
        it.start()
        for _ in range(3):
            for initiator in ("N1", "N2", "N3", "N1"):
                it.supervisor.trigger([initiator])
            it.until(lambda: not it.supervisor.open_snapshots, "four snapshots", snapshots=False)
        kinds = [it.store.manifest(number).recovery_point for number in it.store.numbers()]
        assert kinds.count(True) >= 3
        assert kinds.count(False) >= 3
        it.supervisor.signal("N1", signal.SIGKILL)
        it.until(lambda: it.recoveries and it.since, "the recovery")
        it.stop()
        it.check(1)


def test_a_snapshot_that_takes_too_long_costs_itself_only(tmp_path: Path) -> None:
    with drill(tmp_path, topology="line:2", node=Slow, params={"tokens": 100_000}) as it:
        it.start()
        it.supervisor.signal("N2", signal.SIGSTOP)
        late = it.snapshot(timeout=0.05)
        assert isinstance(late, SnapshotAbandoned)
        assert "N2 does not answer" in late.error.what
        it.supervisor.signal("N2", signal.SIGCONT)
        done = it.snapshot()
        assert isinstance(done, SnapshotCompleted)
        assert late.number is not None
        assert done.snapshot.number == late.number + 1
        it.stop()
        it.check(0)


def test_a_cluster_that_ends_by_itself_does_so_after_deaths(tmp_path: Path, quick: None) -> None:
    plan = {"N2": at("mid_handler", hit=100), "N3": at("mid_handler", hit=120, incarnation=1)}
    with drill(tmp_path, plan=plan, node=Ending, until_terminated=True) as it:
        it.start()
        it.until(lambda: it.supervisor.terminated, "the proof")
        it.stop()
        it.check(2)
        assert it.store.manifest(it.store.numbers()[-2]).recovery_point


# --- The end. ---


def test_a_snapshot_that_begins_when_the_end_is_asked_for_is_given_up(tmp_path: Path) -> None:
    """Nodes that begin many would otherwise stage them all before the last cut."""
    with drill(tmp_path, node=Asking, params={"packets": 0, "tick": 0.0}) as it:
        it.start()
        it.supervisor.command("N2", "snapshot")
        # It has begun one, and nobody has read that yet.
        assert it.supervisor._incarnation is not None
        told, _, _ = select.select([it.supervisor._incarnation.nodes["N2"].results.fd], [], [], 10.0)
        assert told
        it.stop()
        it.check(0)
        begun = [event.snapshot_id for event in it.told(SnapshotInitiated)]
        assert len(begun) == 2, "the first cut and the last"


def test_a_death_when_all_is_kept_takes_nothing_back(tmp_path: Path) -> None:
    """It is told, and is no failure: nothing of the program's would have run any more."""
    # The first report is that of the initial cut, the second that of the last one.
    with drill(tmp_path, plan={"N2": at("after_report", "stop", 2)}) as it:
        it.start()
        doomed = pids(it)["N2"]
        it.supervisor.stop(10.0)
        it.until(lambda: len(it.told(SnapshotCompleted)) == 2, "the last cut", snapshots=False)
        os.kill(doomed, signal.SIGKILL)
        it.until(lambda: False, "the end", snapshots=False)
        assert it.error is None
        assert [death.node for death in it.told(NodeDied)] == ["N2"]
        assert not it.recoveries
        last = it.store.latest(is_recovery_point)
        assert last is not None
        assert last.run["final"]


def test_who_does_not_stop_is_named_and_what_is_kept_stays(tmp_path: Path) -> None:
    with drill(tmp_path, plan={"N2": at("on_stop", "loop")}) as it:
        it.start()
        it.until(lambda: it.since > 1, "snapshots")
        number = it.store.numbers()[-1]
        it.stop(0.3)
        assert isinstance(it.error, NodeError)
        assert "N2 did not stop within 0.3 s" in it.error.what
        assert it.store.numbers()[-1] >= number
    with drill(tmp_path, resume=True) as it:
        it.start()
        it.until(lambda: it.since > 1, "snapshots")
        it.stop()
        it.check(0)


def test_on_stop_that_fails_each_time_is_the_end(tmp_path: Path, quick: None) -> None:
    with drill(tmp_path, plan={"N2": at("on_stop", "raise", incarnation=None)}, recovery={"restarts": 2}) as it:
        it.live(recoveries=0)
        assert isinstance(it.error, NodeError)
        assert "after 2 recoveries" in it.error.what
        assert it.recoveries == 2


# --- Again and again. ---


def test_a_poisoned_message_ends_the_cluster_when_the_budget_is_spent(tmp_path: Path) -> None:
    with drill(tmp_path, node=Poisoned, recovery={"restarts": 2}) as it:
        it.start()
        it.until(lambda: False, "the end")
        assert isinstance(it.error, NodeError)
        assert it.recoveries == 2
        assert len(it.told(NodeDied)) == 3
        assert "poison: message 40 of N1" in it.error.what
        assert re.search(r"; it had message 40 of N1->N2 in hand$", it.error.what)
        assert "after 2 recoveries within 60 s" in it.error.what
        assert "poison" in it.error.traceback
        seconds = [recovered.seconds for recovered in it.told(Recovered)]
        assert seconds[1] > recovery.PAUSE_SECONDS
        kept = it.store.latest(is_recovery_point)
        assert kept is not None


@pytest.mark.parametrize("method", ["fork", "forkserver"])
def test_ten_recoveries_hold_no_more_than_none(tmp_path: Path, method: str, quick: None) -> None:
    with drill(tmp_path, method, recovery={"restarts": 100}) as it:
        it.start()

        def once(count: int) -> dict[str, object]:
            it.supervisor.signal("N2", signal.SIGKILL)
            it.until(lambda: it.recoveries == count and it.since, "a recovery")
            it.until(lambda: not it.supervisor.open_snapshots, "its snapshots", snapshots=False)
            gc.collect()
            held = holdings()
            # Their names are new each time.
            semaphores = held["semaphores"]
            assert isinstance(semaphores, list)
            return held | {"semaphores": len(semaphores)}

        before = once(1)
        for count in range(2, 12):
            after = once(count)
        assert after == before
        assert len(multiprocessing.active_children()) == 3
        it.stop()
        it.check(11)


def test_a_process_that_no_signal_ends_is_the_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole: Callable[[Incarnation], None] = Incarnation.kill

    def unkillable(self: Incarnation) -> None:
        whole(self)
        raise ClusterError("N1 did not end after SIGKILL", where="N1")

    with drill(tmp_path) as it:
        it.start()
        monkeypatch.setattr(Incarnation, "kill", unkillable)
        it.supervisor.signal("N2", signal.SIGKILL)
        it.until(lambda: False, "the end")
        assert it.error is not None
        assert "did not end after SIGKILL" in it.error.what
        assert not it.recoveries
    monkeypatch.undo()
    folder = tmp_path / "again"
    folder.mkdir()
    with drill(folder) as it:
        it.start()
        monkeypatch.setattr(Incarnation, "kill", unkillable)
        it.supervisor.kill()
        assert it.supervisor.ended
        assert "did not end after SIGKILL" in str(it.error)
