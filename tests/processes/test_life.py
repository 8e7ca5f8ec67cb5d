"""The life of a cluster of real processes, under every start method: start, messages, snapshots, commands, stop."""

from __future__ import annotations

import gc
import json
import multiprocessing.queues
import multiprocessing.util
import os
import resource
import signal
import subprocess
import sys
import tempfile
import textwrap
import threading
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass
from datetime import date
from decimal import Decimal
from enum import Enum
from functools import partial
from pathlib import Path
from typing import Any, TypeVar
from uuid import SafeUUID

import pytest
from conftest import FORK, is_dead, wait_until
from nodes import (
    Amplifier,
    Colour,
    Countdown,
    Doubler,
    Keeper,
    Parcel,
    Point,
    Producer,
    Puppet,
    SlowConsumer,
    always_false,
    always_true,
    raises,
)

from mpsnap import (
    AppError,
    Cluster,
    ClusterDeadlock,
    ClusterError,
    CodecError,
    Context,
    GlobalSnapshot,
    InvariantError,
    Node,
    NodeError,
    PreflightError,
    SnapshotError,
    TopologyError,
    parse_topology,
)
from mpsnap.apps.tokens import Tokens, conserved
from mpsnap.core.program import assign
from mpsnap.runtime import preflight
from mpsnap.runtime.supervisor import Supervisor

pytestmark = [pytest.mark.processes, pytest.mark.timeout(60)]

HERE = Path(__file__).parent
T = TypeVar("T")


def at_once(*calls: Callable[[], T]) -> list[T]:
    """Make these calls at the same time, each in a thread of its own, and return what they return."""
    results: list[T] = []
    threads = [threading.Thread(target=lambda call=call: results.append(call())) for call in calls]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(results) == len(calls), "one of them raised"
    return results


def heard(cluster: Cluster, node: str) -> list[Any]:
    found = cluster.command(node, ["heard"])
    assert isinstance(found, list)
    return found


# --- Start and stop. ---


def test_a_cluster_starts_and_stops(start_method: str) -> None:
    cluster = Cluster("ring:3", Puppet, start_method=start_method)
    assert cluster.status()["state"] == "new"
    with cluster as entered:
        assert entered is cluster
        pids = [node["pid"] for node in cluster.status()["nodes"].values()]
        assert len({*pids, os.getpid()}) == 4
        assert not any(map(is_dead, pids))
    assert cluster.status()["state"] == "ended"
    assert all(map(is_dead, pids))


def test_a_stopped_cluster_says_so(start_method: str) -> None:
    with Cluster("ring:2", Puppet, start_method=start_method) as cluster:
        cluster.snapshot()
    calls: list[Callable[[], object]] = [
        cluster.snapshot,
        lambda: cluster.command("N1", ["heard"]),
        cluster.start,
    ]
    for call in calls:
        with pytest.raises(ClusterError, match="ended"):
            call()
    assert cluster.wait(timeout=0) is None
    assert len(cluster.snapshots) == 1
    cluster.stop()
    cluster.kill()


def test_a_cluster_that_is_not_started_says_so() -> None:
    cluster = Cluster("ring:2", Puppet)
    with pytest.raises(ClusterError, match="not started"):
        cluster.snapshot()
    cluster.stop()


def test_a_cluster_that_is_never_started_holds_nothing() -> None:
    """The guard of every test looks for descriptors that were left open."""
    Cluster("ring:2", Puppet)


def test_killing_a_cluster_leaves_no_process(start_method: str) -> None:
    cluster = Cluster("ring:3", Puppet, start_method=start_method).start()
    pids = [node["pid"] for node in cluster.status()["nodes"].values()]
    cluster.kill()
    assert all(map(is_dead, pids))
    assert cluster.status()["state"] == "ended"


def test_an_error_in_the_body_is_the_one_seen(start_method: str) -> None:
    with pytest.raises(LookupError, match="mine"), Cluster("ring:2", Puppet, start_method=start_method):
        raise LookupError("mine")


def test_two_clusters_run_side_by_side() -> None:
    with Cluster("ring:2", Puppet) as one, Cluster("ring:2", Puppet) as other:
        one.command("N1", ["send", "N2", "to one"])
        other.command("N1", ["send", "N2", "to other"])
        wait_until(lambda: heard(one, "N2") and heard(other, "N2"), "both messages")
        assert (heard(one, "N2"), heard(other, "N2")) == ([("N1", "to one")], [("N1", "to other")])


@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_nodes_do_not_depend_on_the_thread_that_started_them(start_method: str) -> None:
    cluster = Cluster("ring:2", Puppet, start_method=start_method, allow_threads=True)
    (started,) = at_once(cluster.start)
    assert started is cluster
    cluster.snapshot().verify()
    (snapshot,) = at_once(cluster.snapshot)
    snapshot.verify()
    cluster.stop()


class ResetAfterFork:
    """Count, as multiprocessing's own queues and locks do, how often they were made new in a forked process."""

    count = 0

    def reset(self) -> None:
        self.count += 1


USERS_OWN = ResetAfterFork()


class Forked(Puppet):
    def do_resets(self, ctx: Context) -> int:
        return USERS_OWN.count

    def do_count_frozen(self, ctx: Context) -> int:
        return gc.get_freeze_count()

    def do_descriptors(self, ctx: Context) -> list[str]:
        return descriptors()


def descriptors() -> list[str]:
    """Return what this process's descriptors are."""
    paths = [f"/proc/self/fd/{fd}" for fd in os.listdir("/proc/self/fd")]
    return [os.readlink(path) for path in paths if os.path.lexists(path)]


@pytest.mark.parametrize("method", [FORK])
def test_a_forked_node_holds_nothing_of_the_supervisor_or_of_nodes_before_it(method: str) -> None:
    inherited = descriptors()
    with Cluster("ring:6", Forked, start_method=method) as cluster:
        held: list[Any] = [cluster.command(node, ["descriptors"]) for node in cluster.topology.nodes]
    assert [len(each) for each in held] == [len(held[0])] * 6
    assert held[5].count("anon_inode:[eventfd]") == inherited.count("anon_inode:[eventfd]")
    assert held[5].count("anon_inode:[eventpoll]") == inherited.count("anon_inode:[eventpoll]") + 1


@pytest.mark.parametrize("method", [FORK])
def test_a_forked_node_leaves_the_memory_alone_that_it_shares(monkeypatch: pytest.MonkeyPatch, method: str) -> None:
    def reset(queue: object) -> None:
        os._exit(9)  # an exception would be swallowed

    monkeypatch.setattr(multiprocessing.queues.Queue, "_after_fork", reset)
    multiprocessing.util.register_after_fork(USERS_OWN, ResetAfterFork.reset)
    # Nothing is frozen here, so that whatever a node freezes shows, and that nothing is when it has ended.
    gc.unfreeze()
    with Cluster("complete:3", Forked, start_method=method) as cluster:
        assert cluster.command("N2", ["resets"]) == 1
        assert cluster.command("N2", ["count_frozen"]) != 0
    assert gc.get_freeze_count() == 0


def test_a_child_of_the_program_ends_without_touching_the_cluster() -> None:
    """What a fork inherits is not its own to end, however it exits."""
    done = run_script(
        """
        import os
        from mpsnap import Cluster
        from nodes import Puppet

        if __name__ == "__main__":
            with Cluster("ring:2", Puppet, start_method="spawn") as cluster:
                child = os.fork()
                if not child:
                    sys.exit(7)
                print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
                print(cluster.snapshot().verified)
        """
    )
    assert done.stdout == "7\nTrue\n", done.stderr


def test_the_status_tells_without_asking_the_nodes(start_method: str) -> None:
    with Cluster("line:2", Puppet, start_method=start_method) as cluster:
        cluster.command("N1", ["send", "N2", "x", "y"])
        wait_until(lambda: len(heard(cluster, "N2")) == 2, "both messages")
        wait_until(lambda: cluster.status()["channels"]["N1->N2"]["taken"] == 2, "the count of what was taken")
        status = cluster.status()
        assert status.keys() == {"state", "nodes", "channels", "snapshots"}
        assert status["state"] == "running"
        assert {name: set(node) for name, node in status["nodes"].items()} == {
            "N1": {"pid", "phase", "turn_s", "busy_s", "paused"},
            "N2": {"pid", "phase", "turn_s", "busy_s", "paused"},
        }
        assert status["channels"] == {"N1->N2": {"sent": 2, "taken": 2}}
        assert status["snapshots"] == []
        assert json.loads(json.dumps(status)) == status
        wait_until(lambda: cluster.status()["nodes"]["N1"]["phase"] == "waiting", "N1 to have nothing to do")


def test_the_status_shows_an_open_snapshot_and_who_is_missing() -> None:
    with Cluster("ring:3", Puppet) as cluster:
        pid = cluster.status()["nodes"]["N2"]["pid"]
        os.kill(pid, signal.SIGSTOP)
        taking = threading.Thread(target=cluster.snapshot, args=["N1"])
        taking.start()
        wait_until(lambda: [s["missing"] for s in cluster.status()["snapshots"]] == [["N1", "N2", "N3"]], "the status")
        (shown,) = cluster.status()["snapshots"]
        assert (shown["id"], shown["number"]) == ("0-N1-1", 0)
        assert 0 <= shown["seconds"] < 10
        os.kill(pid, signal.SIGCONT)
        taking.join()
        assert cluster.status()["snapshots"] == []


# --- Messages. ---


def test_messages_sent_in_setup_arrive(start_method: str) -> None:
    with Cluster("complete:3", Puppet, params={"greeting": ["hello"]}, start_method=start_method) as cluster:
        snapshot = cluster.snapshot()
        in_flight = sum(len(messages) for messages in snapshot.channels.values())
        at_nodes = sum(len(node.state["heard"]) for node in snapshot.nodes.values())
        assert in_flight + at_nodes == 6
        for node, others in {"N1": ("N2", "N3"), "N2": ("N1", "N3"), "N3": ("N1", "N2")}.items():
            wait_until(partial(_has_heard, cluster, node, 2), f"the greetings to {node}")
            assert sorted(heard(cluster, node)) == [(other, ["hello"]) for other in others]


def _has_heard(cluster: Cluster, node: str, count: int) -> bool:
    return len(heard(cluster, node)) >= count


def test_messages_of_a_channel_keep_their_order(start_method: str) -> None:
    payloads = [*range(2000), b"x" * 300_000, "last"]
    with Cluster("line:2", Puppet, start_method=start_method) as cluster:
        cluster.command("N1", ["send", "N2", *payloads])
        wait_until(lambda: len(heard(cluster, "N2")) == len(payloads), "all messages")
        assert [payload for _, payload in heard(cluster, "N2")] == payloads


def test_a_payload_is_fixed_when_it_is_sent() -> None:
    with Cluster("line:2", Fickle) as cluster:
        wait_until(lambda: len(cluster.snapshot().nodes["N2"].state["got"]) == 2, "both messages")
        assert cluster.snapshot().nodes["N2"].state["got"] == [[1], [1, 2]]


class Fickle(Node):
    """Change a payload after it was sent."""

    def setup(self, ctx: Context) -> None:
        self.got: list[list[int]] = []
        payload = [1]
        for number in (2, 3):
            ctx.broadcast(payload)
            payload.append(number)

    def on_message(self, ctx: Context, sender: str, payload: list[int]) -> None:
        self.got.append(payload)


# --- Snapshots. ---


def test_a_snapshot_can_begin_at_any_node(start_method: str) -> None:
    with Cluster("ring:3", Tokens, start_method=start_method) as cluster:
        for number, node in enumerate(cluster.topology.nodes):
            snapshot = cluster.snapshot(node)
            snapshot.verify()
            assert conserved(snapshot)
            assert (snapshot.number, snapshot.initiators, snapshot.id.initiator) == (number, (node,), node)
        assert [snapshot.number for snapshot in cluster.snapshots] == [0, 1, 2]


def test_several_nodes_can_begin_one_snapshot(start_method: str) -> None:
    with Cluster("complete:3", Tokens, start_method=start_method) as cluster:
        snapshot = cluster.snapshot("N3", "N1", "N2")
        snapshot.verify()
        assert conserved(snapshot)
        assert sorted(snapshot.initiators) == ["N1", "N2", "N3"]


def test_initiators_are_added_until_every_node_is_reached(start_method: str) -> None:
    with Cluster("line:3", Puppet, start_method=start_method) as cluster:
        assert cluster.snapshot().initiators == ("N1",)
        assert set(cluster.snapshot("N3").initiators) == {"N1", "N3"}


def test_a_snapshot_of_one_node_without_channels(start_method: str) -> None:
    with Cluster("line:1", Puppet, start_method=start_method) as cluster:
        snapshot = cluster.snapshot()
        snapshot.verify()
        assert list(snapshot.nodes) == ["N1"]
        assert len(snapshot.channels) == 0


def test_an_initiator_that_does_not_exist_is_refused(start_method: str) -> None:
    with Cluster("ring:2", Puppet, start_method=start_method) as cluster:
        with pytest.raises(TopologyError, match="N7"):
            cluster.snapshot("N7")
        cluster.snapshot("N1").verify()


def test_snapshots_can_be_taken_by_several_threads_at_once(start_method: str) -> None:
    with Cluster("complete:3", Tokens, start_method=start_method) as cluster:

        def take(initiator: str) -> list[GlobalSnapshot]:
            return [cluster.snapshot(initiator) for _ in range(5)]

        calls = [lambda node=node: take(node) for node in ("N1", "N2", "N3", "N1")]
        taken = [snapshot for snapshots in at_once(*calls) for snapshot in snapshots]
        assert sorted(snapshot.number for snapshot in taken) == list(range(20))
        assert len({snapshot.id for snapshot in taken}) == 20
        for snapshot in taken:
            snapshot.verify()
            assert conserved(snapshot)


def test_a_cut_contains_messages_in_flight_now_and_then() -> None:
    """A check that never saw a message in flight would not have checked much."""
    with Cluster("complete:3", Tokens) as cluster:
        wait_until(lambda: cluster.snapshot().in_flight > 0, "a snapshot with messages in flight")


def test_a_node_can_begin_a_snapshot_itself(start_method: str) -> None:
    with Cluster("ring:3", Puppet, start_method=start_method) as cluster:
        snapshot_id = cluster.command("N2", ["snapshot"])
        assert snapshot_id == "0-N2-2"
        wait_until(lambda: cluster.snapshots, "the snapshot that N2 began")
        (snapshot,) = cluster.snapshots
        snapshot.verify()
        assert str(snapshot.id) == snapshot_id
        assert snapshot.initiators == ("N2",)
        assert cluster.snapshot("N2").number == 1


def test_a_node_whose_markers_cannot_reach_all_is_told_which(start_method: str) -> None:
    with Cluster("line:3", Puppet, start_method=start_method) as cluster:
        refusal = cluster.command("N2", ["try_snapshot"])
        assert isinstance(refusal, str)
        assert refusal.startswith("SnapshotError")
        assert "N1" in refusal
        assert "N3" not in refusal
        cluster.snapshot().verify()


def test_snapshots_are_taken_at_intervals_by_the_nodes_in_turn(start_method: str) -> None:
    with Cluster("ring:2", Tokens, snapshot_every=0.02, start_method=start_method) as cluster:
        wait_until(lambda: len(cluster.snapshots) >= 4, "four snapshots")
        first = cluster.snapshots[:4]
    assert [snapshot.initiators for snapshot in first] == [("N1",), ("N2",), ("N1",), ("N2",)]
    assert all(map(conserved, first))


@pytest.mark.parametrize("size", [100_000, 5_000_000])
def test_big_states_arrive_whole(start_method: str, size: int) -> None:
    """Of several frames, and, above a megabyte, by way of a file without a name."""
    # No child: whether there is one depends on the speed of the machine, and its pipe is open a moment longer.
    with Cluster("ring:2", Puppet, start_method=start_method, fork_captures=False) as cluster:
        cluster.command("N1", ["fill", "ballast", size])
        # One that was read may be kept for the next.
        cluster.snapshot("N2")
        open_before = cluster.command("N1", ["count_descriptors"])
        for _ in range(2):
            state = cluster.snapshot("N2").nodes["N1"].state
            assert state["ballast"] == bytes(range(256)) * (size // 256)
        # The word that a file was read is on its way before this question.
        assert cluster.command("N1", ["count_descriptors"]) == open_before


def test_big_states_of_all_nodes_in_several_snapshots_at_once() -> None:
    with Cluster("complete:3", Puppet) as cluster:
        for node in cluster.topology.nodes:
            cluster.command(node, ["fill", "ballast", 3_000_000])
        snapshots = at_once(*[lambda node=node: cluster.snapshot(node) for node in cluster.topology.nodes * 2])
        for snapshot in snapshots:
            assert {len(node.state["ballast"]) for node in snapshot.nodes.values()} == {3_000_000 // 256 * 256}


def test_messages_in_flight_are_in_the_cut_with_their_values() -> None:
    """N2 stands still, so what N1 sent it is in flight for certain."""
    with Cluster("ring:2", Puppet) as cluster:
        pid = cluster.status()["nodes"]["N2"]["pid"]
        os.kill(pid, signal.SIGSTOP)
        payloads = [1, "two", (3.0, None), [4], {"five": {6}}, b"7" * 100_000]
        cluster.command("N1", ["send", "N2", *payloads])
        with Released(pid):
            snapshot = cluster.snapshot("N1")
        heard_then = [payload for _, payload in snapshot.nodes["N2"].state["heard"]]
        assert heard_then + list(snapshot.channels["N1", "N2"]) == payloads
        assert snapshot.channels["N2", "N1"] == ()


class Released:
    """Let a stopped process go on as soon as the body has begun to wait for it."""

    def __init__(self, pid: int) -> None:
        self._timer = threading.Timer(0.1, os.kill, (pid, signal.SIGCONT))

    def __enter__(self) -> None:
        self._timer.start()

    def __exit__(self, *_: object) -> None:
        self._timer.join()


# --- Invariants. ---


def test_a_true_invariant_lets_everything_pass(start_method: str) -> None:
    with Cluster("ring:2", Tokens, invariants=[conserved, always_true], start_method=start_method) as cluster:
        cluster.snapshot().verify()


@pytest.mark.parametrize(("invariant", "words"), [(always_false, "always_false is false"), (raises, "no such thing")])
def test_an_invariant_that_does_not_hold_ends_the_cluster(
    start_method: str, invariant: Callable[[GlobalSnapshot], bool], words: str
) -> None:
    cluster = Cluster("ring:2", Tokens, invariants=[conserved, invariant], start_method=start_method).start()
    with pytest.raises(InvariantError, match=words):
        cluster.snapshot()
    with pytest.raises(InvariantError, match=words):
        cluster.stop()
    assert cluster.status()["state"] == "ended"


def test_an_invariant_is_checked_on_snapshots_that_nobody_waits_for() -> None:
    with (
        pytest.raises(InvariantError, match="always_false"),
        Cluster("ring:2", Tokens, invariants=[always_false], snapshot_every=0.02) as cluster,
    ):
        cluster.wait(timeout=20)


# --- Programs that end. ---


def test_a_program_that_ends_by_itself_is_waited_for(start_method: str) -> None:
    with Cluster("ring:3", Countdown, start_method=start_method) as cluster:
        cut = cluster.wait(timeout=30)
        assert cut is not None
        cut.verify()
        assert cut.terminated
        assert min(node.state["last"] for node in cut.nodes.values()) == 0
        assert cluster.wait() is cut


def test_waiting_for_an_endless_program_ends_with_the_time(start_method: str) -> None:
    with Cluster("ring:2", Tokens, start_method=start_method) as cluster:
        assert cluster.wait(timeout=0.05) is None
        cluster.snapshot().verify()


def test_waiting_ends_when_another_thread_stops_the_cluster() -> None:
    with Cluster("ring:2", Tokens) as cluster:
        stopper = threading.Thread(target=cluster.stop)
        stopper.start()
        assert cluster.wait(timeout=30) is None
        stopper.join()


# --- Commands. ---

VALUES: list[Any] = [
    None,
    True,
    2**70,
    -0.5,
    "text \ud800",
    b"bytes",
    bytearray(b"mutable"),
    [1, [2]],
    (1, (2,)),
    {"a": {1: 2}},
    {3, 4},
    frozenset({5}),
    Decimal("1.50"),
    date(2024, 2, 29),
    Path("/tmp"),
]


def test_a_command_is_answered_with_values_kept_exactly(start_method: str) -> None:
    with Cluster("ring:2", Puppet, start_method=start_method) as cluster:
        for value in VALUES:
            reply = cluster.command("N2", ["echo", value])
            assert (type(reply), reply) == (type(value), value)
            assert cluster.command("N1", ["kind", value]) == type(value).__name__


def test_big_commands_and_replies_go_both_ways(start_method: str) -> None:
    with Cluster("ring:2", Puppet, start_method=start_method) as cluster:
        value = {"big": os.urandom(700_000)}
        assert cluster.command("N1", ["echo", value]) == value


def test_commands_of_several_threads_get_their_own_answers(start_method: str) -> None:
    with Cluster("ring:3", Puppet, start_method=start_method) as cluster:

        def ask(n: int) -> bool:
            node = f"N{1 + n % 3}"
            return all(cluster.command(node, ["echo", (n, k)]) == (n, k) for k in range(20))

        assert all(at_once(*[lambda n=n: ask(n) for n in range(6)]))


def test_what_cannot_be_sent_as_a_command_is_refused_and_the_cluster_goes_on(start_method: str) -> None:
    with Cluster("ring:2", Puppet, start_method=start_method) as cluster:
        with pytest.raises(CodecError, match="command"):
            cluster.command("N1", ["echo", object()])
        with pytest.raises(ClusterError, match="N9"):
            cluster.command("N9", ["heard"])
        assert cluster.command("N1", ["echo", 1]) == 1


def test_a_reply_that_is_no_plain_data_is_the_node_s_failure() -> None:
    cluster = Cluster("ring:2", Puppet).start()
    with pytest.raises(NodeError, match="Fraction") as caught:
        cluster.command("N1", ["reply_oddly"])
    assert (caught.value.node, caught.value.phase) == ("N1", "on_command")
    cluster.kill()


# --- Timers, records, words. ---


def test_timers_fire_in_order_and_periodic_ones_again(start_method: str) -> None:
    with Cluster("ring:2", Puppet, start_method=start_method) as cluster:
        cluster.command("N1", ["after", 0.04, "later"])
        cluster.command("N1", ["after", 0.01, "sooner", [1]])
        cluster.command("N2", ["every", 0.005, "again"])
        wait_until(lambda: len(heard(cluster, "N1")) == 2, "both timers")
        assert heard(cluster, "N1") == [("timer", "sooner", [1]), ("timer", "later")]
        wait_until(lambda: heard(cluster, "N2").count(("timer", "again")) >= 3, "three periods")


def test_timers_are_part_of_the_cut(start_method: str) -> None:
    with Cluster("ring:2", Puppet, start_method=start_method) as cluster:
        cluster.command("N1", ["after", 3600, "some day"])
        cluster.command("N1", ["every", 7200, "yearly"])
        one, other = cluster.snapshot().nodes["N1"].timers
        assert (one.method, one.args, one.period) == ("note", ("some day",), None)
        assert (other.method, other.args, other.period) == ("note", ("yearly",), 7200)
        assert 3500 < one.remaining <= 3600
        assert 7100 < other.remaining <= 7200


def test_a_finished_node_handles_messages_and_markers_but_no_timers(start_method: str) -> None:
    with Cluster("ring:2", Puppet, start_method=start_method) as cluster:
        cluster.command("N2", ["every", 0.005, "again"])
        cluster.command("N2", ["finish"])
        cluster.command("N1", ["send", "N2", "still there?"])
        wait_until(lambda: ("N1", "still there?") in heard(cluster, "N2"), "the message")
        snapshot = cluster.snapshot("N1")
        assert (snapshot.nodes["N1"].finished, snapshot.nodes["N2"].finished) == (False, True)
        assert snapshot.nodes["N2"].timers == ()


def test_records_come_out_numbered_per_node(start_method: str) -> None:
    with Cluster("ring:2", Puppet, start_method=start_method) as cluster:
        cluster.command("N1", ["emit", "a", {"b": (1, 2)}])
        cluster.command("N2", ["emit", "c"])
        cluster.command("N1", ["emit", "d"])
        cluster.command("N2", ["emit_at_stop"])
    by_node = {node: [(n, record) for other, n, record in cluster.outputs if other == node] for node in ("N1", "N2")}
    assert by_node == {"N1": [(0, "a"), (1, {"b": (1, 2)}), (2, "d")], "N2": [(0, "c"), (1, "stopping")]}


def test_many_records_come_out_complete(start_method: str) -> None:
    """More than the pipe holds: the node pauses until the supervisor has read, and nothing is lost."""
    with Cluster("ring:2", Puppet, start_method=start_method) as cluster:
        cluster.command("N1", ["emit", *(f"{n}".ljust(500) for n in range(4000))])
    assert [n for _, n, _ in cluster.outputs] == list(range(4000))
    assert [int(str(record)) for _, _, record in cluster.outputs] == list(range(4000))


def test_random_numbers_come_from_the_seed_and_the_node() -> None:
    def draw(seed: int) -> list[object]:
        with Cluster("ring:2", Puppet, seed=seed) as cluster:
            return [cluster.command(node, ["random"]) for node in ("N1", "N1", "N2", "N2")]

    first = draw(1)
    assert first == draw(1)
    assert len({*first, *draw(2)}) == 8


def run_script(text: str, *, stdin: bool = False, arguments: tuple[str, ...] = ()) -> subprocess.CompletedProcess[str]:
    """Run a script, from a file or from stdin, that finds the nodes of these tests."""
    text = f"import sys\nsys.path.insert(0, {str(HERE)!r})\n" + textwrap.dedent(text)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "script.py")
        path.write_text(text)
        command = [sys.executable, *arguments] if stdin else [sys.executable, *arguments, str(path)]
        # Nodes must not depend on this one to get their words out.
        env = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}
        given = text if stdin else ""
        return subprocess.run(command, input=given, capture_output=True, text=True, timeout=50, env=env)


def test_what_nodes_log_and_print_stays_off_stdout(start_method: str) -> None:
    """A print in a hook must not get between the lines of a document on stdout."""
    done = run_script(
        f"""
        from mpsnap import Cluster
        from nodes import Chatty

        if __name__ == "__main__":
            with Cluster("ring:2", Chatty, params={{"greeting": "x"}}, start_method={start_method!r}) as cluster:
                cluster.snapshot()
                print("the document")
        """
    )
    assert (done.returncode, done.stdout) == (0, "the document\n")
    for place in ("setup", "descriptor 1", "on_message", "on_stop"):
        assert f"CHATTER {'on' if 'desc' in place else 'in'} {place}" in done.stderr


@pytest.mark.parametrize(
    ("method", "end"),
    [
        ("fork", "raise RuntimeError"),
        ("fork", "os._exit(0)"),
        ("forkserver", "os.kill(os.getpid(), 9)"),
        ("spawn", "raise RuntimeError"),
    ],
)
def test_what_a_node_printed_before_its_death_is_seen(method: str, end: str) -> None:
    done = run_script(
        f"""
        import os
        from mpsnap import Cluster, Node, NodeError

        class Dying(Node):
            def setup(self, ctx):
                print("the last thing it did")
                {end}

        if __name__ == "__main__":
            try:
                Cluster("line:1", Dying, start_method={method!r}).start()
            except NodeError:
                print("the document")
        """
    )
    assert (done.returncode, done.stdout) == (0, "the document\n")
    assert done.stderr.count("the last thing it did") == 1


def test_what_nodes_log_goes_to_whoever_watches() -> None:
    done = run_script(
        """
        from mpsnap import Context, Node
        from mpsnap.cli import main

        class Logging(Node):
            def setup(self, ctx: Context) -> None:
                ctx.log("one\\nline\\x1b[2J of " + ctx.name)

        if __name__ == "__main__":
            sys.exit(main(["run", "__main__:Logging", "--topology", "ring:2", "--snapshots", "1", "--format", "json"]))
        """
    )
    assert done.returncode == 0, done.stderr
    assert "mpsnap: N2: one\\nline\\x1b[2J of N2\n" in done.stderr
    assert json.loads(done.stdout)["error"] is None


# --- Flow control. ---


def test_an_endless_producer_waits_for_a_slow_consumer(start_method: str) -> None:
    """What is in flight stays within the window plus what one hook sends, and snapshots complete all the same."""
    window, burst = 64, 5
    nodes: Any = {"N1": (Producer, {"burst": burst}), "N2": SlowConsumer}
    with Cluster("line:2", nodes, window=window, start_method=start_method) as cluster:
        wait_until(lambda: cluster.status()["channels"]["N1->N2"]["taken"] >= window, "a first window full")
        for _ in range(5):
            snapshot = cluster.snapshot(timeout=5)
            assert 0 < snapshot.in_flight <= window + burst
            channel = cluster.status()["channels"]["N1->N2"]
            assert channel["sent"] - channel["taken"] <= window + burst
        before = cluster.snapshot().nodes["N2"].state["got"]
        wait_until(lambda: cluster.snapshot().nodes["N2"].state["got"] >= before + window, "another window")


def test_a_node_in_the_middle_waits_for_a_slow_consumer_too(start_method: str) -> None:
    """It handles no message whose answers would find no room, and so those wait that send to it."""
    window = 60
    nodes: Any = {"N1": (Producer, {"burst": 1}), "N2": Amplifier, "N3": SlowConsumer}
    with Cluster("line:3", nodes, window=window, start_method=start_method) as cluster:
        wait_until(lambda: cluster.status()["channels"]["N2->N3"]["taken"] >= 3 * window, "three windows")
        for _ in range(3):
            snapshot = cluster.snapshot(timeout=5)
            assert len(snapshot.channels["N1", "N2"]) <= window + 1
            assert 0 < len(snapshot.channels["N2", "N3"]) <= window + 3


def test_one_hook_may_overshoot_the_window_and_everything_arrives(start_method: str) -> None:
    with Cluster("ring:2", Puppet, window=8, start_method=start_method) as cluster:
        cluster.command("N1", ["send", "N2", *range(5000)])
        wait_until(lambda: len(heard(cluster, "N2")) == 5000, "all messages")


def test_nodes_that_wait_for_each_other_are_named() -> None:
    with pytest.raises(ClusterDeadlock) as caught, Cluster("ring:2", Doubler, window=8) as cluster:
        cluster.wait(timeout=30)
    assert {"N1->N2->N1", "N2->N1->N2"} & set(caught.value.what.split())
    assert caught.value.hint


# --- Values of the user's own classes. ---


class Mood(Enum):
    GOOD = 1


@dataclass
class Thought:
    mood: Mood
    words: tuple[str, ...]


class Thinker(Node):
    """Live in a test module, which every node process has to import by its name."""

    def setup(self, ctx: Context) -> None:
        self.thought = Thought(Mood.GOOD, ("at", "first"))
        ctx.broadcast(Thought(Mood.GOOD, (ctx.name,)))
        self.got: list[Thought] = []

    def on_message(self, ctx: Context, sender: str, payload: Thought) -> None:
        assert isinstance(payload, Thought)
        self.got.append(payload)


def test_a_class_in_a_test_module_works(start_method: str) -> None:
    with Cluster("ring:2", Thinker, start_method=start_method) as cluster:
        snapshot = cluster.snapshot()
        assert snapshot.nodes["N1"].state["thought"] == Thought(Mood.GOOD, ("at", "first"))
        arrived = [*snapshot.nodes["N2"].state["got"], *snapshot.channels["N1", "N2"]]
        assert arrived == [Thought(Mood.GOOD, ("N1",))]


def test_objects_of_known_classes_come_out_as_objects(start_method: str) -> None:
    with Cluster("ring:2", Keeper, start_method=start_method) as cluster:
        snapshot = cluster.snapshot()
        state = snapshot.nodes["N1"].state
        assert state["parcel"] == Parcel("first", Colour.RED, Point(1, 2), {3})
        assert type(state["parcel"].at) is Point
        assert state["colours"] == {Colour.BLUE: "sky"}
        assert state["safety"] is SafeUUID.unknown
        messages = [payload for _, payload in snapshot.nodes["N2"].state["heard"]]
        messages += snapshot.channels["N1", "N2"]
        assert messages == [Parcel("N1", Colour.BLUE, Point(0, 0))]
        reply = cluster.command("N1", ["echo", Parcel("mine", Colour.RED, Point(3, 4))])
        assert reply == Parcel("mine", Colour.RED, Point(3, 4))


def test_a_class_local_to_a_function_is_refused_for_every_start_method(start_method: str) -> None:
    class Hidden(Node):
        pass

    with pytest.raises(AppError, match="local"):
        Cluster("ring:2", Hidden, start_method=start_method)


# --- What is refused before anything starts. ---


def test_too_many_descriptors_are_refused_with_the_numbers(start_method: str) -> None:
    done = run_script(
        f"""
        import resource
        from mpsnap import Cluster, PreflightError
        import psutil

        if __name__ == "__main__":
            resource.setrlimit(resource.RLIMIT_NOFILE, (128, 128))
            try:
                Cluster("complete:8", "nodes:Puppet", start_method={start_method!r})
            except PreflightError as error:
                print(error)
            print(psutil.Process().children())
        """
    )
    assert done.returncode == 0, done.stderr
    refusal, children = done.stdout.splitlines()
    assert "56 channels and 8 nodes" in refusal
    assert "may have 128" in refusal
    assert "try: " in refusal
    assert children == "[]"


def test_the_soft_limit_of_descriptors_is_raised_if_that_is_enough() -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (len(os.listdir("/proc/self/fd")) + 40, hard))
    try:
        with Cluster("complete:3", Puppet) as cluster:
            cluster.snapshot().verify()
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_a_node_of_too_many_channels_for_forkserver_is_refused_there_and_given_to_spawn() -> None:
    with pytest.raises(PreflightError, match="120 channels of N1") as caught:
        Cluster("star:61", Puppet, start_method="forkserver")
    assert "spawn" in str(caught.value.hint)
    context, notice = preflight.choose_context(None, parse_topology("star:61"))
    assert context.get_start_method() == "spawn"
    assert notice is not None
    assert "120 channels of N1" in notice
    assert preflight.choose_context(None, parse_topology("star:50"))[1] is None


def test_a_cluster_given_to_spawn_says_so_once(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(preflight, "FORKSERVER_FDS", 10)
    with Cluster("ring:2", Puppet) as cluster:
        assert cluster.notice == "using spawn: the 2 channels of N1 need 12 descriptors, forkserver has 10"
        cluster.snapshot().verify()
    assert [(r.name, r.levelname, r.getMessage()) for r in caplog.records] == [("mpsnap", "WARNING", cluster.notice)]


def test_a_cluster_run_as_asked_says_nothing(caplog: pytest.LogCaptureFixture, start_method: str) -> None:
    with Cluster("ring:2", Puppet, start_method=start_method) as cluster:
        assert cluster.notice is None
    assert not caplog.records


def test_a_start_method_that_does_not_exist_is_refused() -> None:
    with pytest.raises(PreflightError, match="'thread'"):
        Cluster("ring:2", Puppet, start_method="thread")


def test_a_long_temporary_folder_is_given_to_spawn(monkeypatch: pytest.MonkeyPatch) -> None:
    """The socket of a forkserver lives there, and a socket's path has a limit."""
    monkeypatch.setattr(tempfile, "tempdir", "/tmp/" + "x" * 100)
    with pytest.raises(PreflightError, match="xxx"):
        preflight.choose_context("forkserver", parse_topology("ring:2"))
    context, notice = preflight.choose_context(None, parse_topology("ring:2"))
    assert (context.get_start_method(), notice is None) == ("spawn", False)


def test_more_processes_than_memory_are_refused() -> None:
    with pytest.raises(PreflightError, match="MB"):
        Cluster("ring:30000", Puppet)


def test_an_idle_node_needs_no_more_memory_than_is_reckoned_with(start_method: str) -> None:
    done = run_script(
        f"""
        from mpsnap import Cluster
        from mpsnap.runtime.preflight import NODE_BYTES
        import psutil

        if __name__ == "__main__":
            with Cluster("complete:6", "nodes:Puppet", start_method={start_method!r}) as cluster:
                for node in cluster.status()["nodes"].values():
                    memory = psutil.Process(node["pid"]).memory_full_info()
                    print(memory.pss / NODE_BYTES[{start_method!r}])
        """
    )
    assert done.returncode == 0, done.stderr
    parts = [float(part) for part in done.stdout.split()]
    assert len(parts) == 6
    # Sharing with a few others costs more than with many.
    assert max(parts) < 1.25, parts


def test_a_machine_without_semaphores_is_told_from_others(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse() -> None:
        raise OSError(38, "Function not implemented")

    context = multiprocessing.get_context("spawn")
    monkeypatch.setattr(context, "Lock", refuse, raising=False)
    with pytest.raises(PreflightError, match="semaphores") as caught:
        preflight.check(context, parse_topology("ring:2"), allow_threads=False)
    assert "/dev/shm" in str(caught.value.hint)


@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_fork_beside_other_threads_is_refused_unless_allowed() -> None:
    done = threading.Event()
    other = threading.Thread(target=done.wait, name="another")
    other.start()
    try:
        with pytest.raises(PreflightError, match="another") as caught:
            Cluster("ring:2", Puppet, start_method="fork")
        assert "allow_threads" in str(caught.value.hint)
        with Cluster("ring:2", Puppet, start_method="fork", allow_threads=True) as cluster:
            cluster.snapshot().verify()
    finally:
        done.set()
        other.join()


# --- Scripts. ---

UNGUARDED = """
    from mpsnap import Cluster, Node

    class Plain(Node):
        def setup(self, ctx):
            self.x = 1

    with Cluster("ring:3", Plain, start_method={method!r}) as cluster:
        print(cluster.snapshot())
"""
FROM_A_MODULE = """
    from mpsnap import Cluster

    with Cluster("ring:2", "nodes:Puppet", start_method={method!r}) as cluster:
        print(cluster.snapshot())
"""


@pytest.mark.parametrize("method", ["forkserver", "spawn"])
def test_a_script_without_a_main_guard_gets_one_clear_error(method: str) -> None:
    done = run_script(UNGUARDED.format(method=method))
    assert done.returncode == 1
    assert done.stdout == ""
    assert done.stderr.count("Traceback") == 1, done.stderr
    last = done.stderr.splitlines()[-1]
    assert "NodeError" in last
    assert "if __name__ == '__main__':" in last


def test_fork_needs_no_main_guard_and_no_file() -> None:
    for stdin in (False, True):
        done = run_script(UNGUARDED.format(method="fork"), stdin=stdin)
        assert (done.returncode, done.stderr) == (0, "")
        assert "3 nodes" in done.stdout


@pytest.mark.parametrize(("method", "arguments"), [("forkserver", ()), ("forkserver", ("-i",)), ("spawn", ("-",))])
def test_a_class_typed_into_a_session_is_refused_before_anything_starts(
    method: str, arguments: tuple[str, ...]
) -> None:
    # Without blank lines, which end a block where Python reads line by line.
    text = "\n".join(line for line in textwrap.dedent(UNGUARDED.format(method=method)).splitlines() if line)
    text = text.replace("\nwith", "\n\nwith") + "\n\n"
    done = run_script(text, stdin=True, arguments=arguments)
    assert done.stdout == ""
    assert done.stderr.count("Traceback") == 1, done.stderr
    (error,) = [line for line in done.stderr.splitlines() if "AppError:" in line]
    assert f"{method} cannot import" in error
    assert "start_method='fork'" in error


@pytest.mark.parametrize("method", ["forkserver", "spawn"])
def test_a_script_from_stdin_is_refused_since_no_process_could_run_it_again(method: str) -> None:
    """Python gives such a script the file name "<stdin>", and every new process would look for it."""
    done = run_script(FROM_A_MODULE.format(method=method), stdin=True)
    assert done.returncode == 1
    last = done.stderr.splitlines()[-1]
    assert "AppError" in last
    assert "stdin" in last
    assert "nodes:Puppet" not in last, "nothing is wrong with that class"


@pytest.mark.parametrize("method", ["forkserver", "spawn"])
def test_a_session_can_run_classes_of_modules(method: str) -> None:
    code = f"import sys; sys.path.insert(0, {str(HERE)!r})\n" + textwrap.dedent(FROM_A_MODULE.format(method=method))
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=50)
    assert (done.returncode, done.stderr) == (0, "")
    assert "2 nodes" in done.stdout


# --- The supervisor by itself. ---


def test_a_supervisor_that_fails_leaves_nobody_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever goes wrong in the thread of a cluster, who waits is told, and no process is left."""
    cluster = Cluster("ring:2", Puppet).start()
    pids = [node["pid"] for node in cluster.status()["nodes"].values()]

    late: list[Future[Future[GlobalSnapshot]]] = []

    def pump(timeout: float) -> list[object]:
        # A request of this very moment, by another thread: nobody will look at it in the usual way.
        asking = threading.Thread(
            target=lambda: late.append(cluster._request(lambda: cluster._calls.snapshot((), None)))
        )
        asking.start()
        asking.join()
        raise RuntimeError("seeded")

    monkeypatch.setattr(cluster._supervisor, "pump", pump)
    with pytest.raises(ClusterError, match="seeded"):
        cluster.snapshot()
    with pytest.raises(ClusterError, match="seeded"):
        cluster.stop()
    with pytest.raises(ClusterError, match="seeded"):
        late[0].result(timeout=0)
    assert all(map(is_dead, pids))


def test_a_supervisor_is_pumped_without_any_thread() -> None:
    topology, programs = assign(parse_topology("ring:2"), Puppet)
    supervisor = Supervisor(topology, programs)
    supervisor.start()
    threads = threading.active_count()
    seen: list[str] = []

    def pump_until(kind: str) -> None:
        def arrived() -> bool:
            seen.extend(type(event).__name__ for event in supervisor.pump(0.1))
            return kind in seen

        wait_until(arrived, kind)

    pump_until("ClusterStarted")
    supervisor.command("N1", ["log", "hear, hear"])
    pump_until("Logged")
    pump_until("Replied")
    supervisor.trigger(["N1"])
    pump_until("SnapshotCompleted")
    assert "Initiated" not in seen
    seen.clear()
    supervisor.trigger(["N2"], acknowledged=True)
    pump_until("SnapshotCompleted")
    assert seen.index("SnapshotInitiated") < seen.index("Initiated") < seen.index("SnapshotCompleted")
    supervisor.stop()
    pump_until("ClusterStopped")
    assert supervisor.ended
    assert supervisor.error is None
    assert threading.active_count() == threads
    supervisor.close()


def test_a_snapshot_that_a_stop_overtakes_is_abandoned() -> None:
    """Whoever waits for it is told, and the stop itself is in order."""
    with Cluster("ring:3", Puppet) as cluster:
        pid = cluster.status()["nodes"]["N2"]["pid"]
        os.kill(pid, signal.SIGSTOP)
        caught: list[BaseException] = []

        def take() -> None:
            try:
                cluster.snapshot("N1")
            except SnapshotError as error:
                caught.append(error)

        taking = threading.Thread(target=take)
        taking.start()
        wait_until(lambda: cluster.status()["snapshots"], "the snapshot to be open")
        with Released(pid):
            cluster.stop()
        taking.join()
    (error,) = caught
    assert "stopped" in str(error)
