"""Many clusters in one process, one after the other: nothing piles up."""

from __future__ import annotations

import gc
import multiprocessing
import os
import threading
from collections.abc import Callable

import pytest
from conftest import FORK, FORKSERVER, SPAWN
from nodes import Doomed, Puppet

from mpsnap import Cluster, NodeError, SnapshotError

pytestmark = [pytest.mark.processes, pytest.mark.timeout(60)]


def holdings() -> dict[str, object]:
    """Return what this process holds, counted; shared memory that multiprocessing keeps for later included."""
    prefix = f"sem.{multiprocessing.current_process()._config['semprefix'][1:]}"  # type: ignore[attr-defined]
    return {
        "descriptors": sorted(_targets()),
        "threads": sorted(thread.name for thread in threading.enumerate()),
        "semaphores": [name for name in os.listdir("/dev/shm") if name.startswith(prefix)],
        "children": len(multiprocessing.active_children()),
    }


def _targets() -> list[str]:
    found = []
    for fd in os.listdir("/proc/self/fd"):
        try:
            found.append(os.readlink(f"/proc/self/fd/{fd}").split(":")[0])
        except OSError:  # the listing's own
            continue
    return found


def one_cluster(method: str) -> None:
    """Live the whole life of a cluster."""
    with Cluster("complete:2", Puppet, params={"greeting": "hello"}, start_method=method) as cluster:
        cluster.command("N1", ["fill", "ballast", 2_000_000])
        cluster.snapshot().verify()
        cluster.command("N1", ["echo", 1])


def one_failure(method: str) -> None:
    """Lose a node while a snapshot is open."""
    cluster = Cluster("complete:2", Doomed, params={"moment": "capture:2"}, start_method=method).start()
    with pytest.raises(SnapshotError):
        cluster.snapshot()
    with pytest.raises(NodeError):
        cluster.stop()


@pytest.mark.parametrize(
    ("method", "life", "count"),
    [
        pytest.param(method.values[0], life, count, marks=method.marks, id=f"{life.__name__}-{method.values[0]}")
        for method, life, count in (
            (FORK, one_cluster, 10),
            (FORK, one_failure, 10),
            (FORKSERVER, one_cluster, 10),
            (FORKSERVER, one_failure, 10),
            (SPAWN, one_cluster, 3),
        )
    ],
)
def test_many_clusters_hold_no_more_than_one(method: str, life: Callable[[str], None], count: int) -> None:
    # The first one starts what stays: a forkserver, a resource tracker, an arena of shared memory.
    life(method)
    before = holdings()
    for _ in range(count):
        life(method)
    assert holdings() == before
    gc.collect()
    assert holdings() == before, "something waited for the collector"
