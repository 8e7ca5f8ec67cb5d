"""Start so many processes once, with mpsnap or bare, in an interpreter that does nothing else; print figures as JSON.

Run by `benchmarks.startup` as `python -m benchmarks.starter mpsnap|bare KIND:N METHOD`. A process of its own, since the
memory of a forked node is for the most part its parent's, a forkserver that has once been started serves the next ones
faster, and under spawn each process imports this module. So nothing is imported at its top but what a bare start needs.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import time
from collections.abc import Sequence
from multiprocessing.queues import Queue, SimpleQueue
from typing import Any

#: Nodes whose memory is looked at, evenly spread: each look goes through all pages of a process.
LOOKED_AT = 8


def channels(spec: str) -> list[tuple[int, int]]:
    """Return the channels of `ring:N` or `complete:N`.

    >>> channels("ring:3")
    [(0, 1), (1, 2), (2, 0)]
    """
    kind, _, count = spec.partition(":")
    n = int(count)
    if kind == "ring":
        return [(k, (k + 1) % n) for k in range(n)]
    return [(a, b) for a in range(n) for b in range(n) if a != b]


def bare(spec: str, method: str) -> dict[str, Any]:
    """Start processes with one Queue per channel and wait until each has said that it is ready."""
    context: Any = multiprocessing.get_context(method)
    began = time.perf_counter()
    queues: dict[tuple[int, int], Queue[int]] = {channel: context.Queue() for channel in channels(spec)}
    ready: SimpleQueue[int] = context.SimpleQueue()
    processes = []
    for k in sorted({src for src, _ in queues}):
        inbound = [queue for (_, dst), queue in queues.items() if dst == k]
        outbound = [queue for (src, _), queue in queues.items() if src == k]
        processes.append(context.Process(target=_bare_node, args=(k, inbound, outbound, ready), daemon=True))
        processes[-1].start()
    said = {ready.get() for _ in processes}
    seconds = time.perf_counter() - began
    assert len(said) == len(processes)
    for process in processes:
        process.terminate()
    for process in processes:
        process.join()
    return {"ready": seconds}


def _bare_node(k: int, inbound: Sequence[Queue[int]], outbound: Sequence[Queue[int]], ready: SimpleQueue[int]) -> None:
    ready.put(k)
    signal.pause()


def ours(spec: str, method: str | None) -> dict[str, Any]:
    """Start a cluster of nodes that do nothing, look at it, take a snapshot and stop it."""
    from benchmarks.pumped import Pumped
    from mpsnap.core.errors import PreflightError

    before = _descriptors("self")
    began = time.perf_counter()
    try:
        cluster = Pumped(spec, method=method)
    except PreflightError as error:
        return {"refused": str(error)}
    with cluster:
        figures: dict[str, Any] = {"ready": time.perf_counter() - began}
        figures |= _looked_at(cluster.pids)
        figures["fds"] = _descriptors("self") - before
        figures["node fds"] = max(_descriptors(pid) for pid in cluster.pids)
        figures |= {"method": cluster.supervisor.start_method, "notice": cluster.supervisor.notice}
        asked = time.perf_counter()
        cluster.snapshot().verify()
        stopping = time.perf_counter()
        figures["snapshot"] = stopping - asked
    return figures | {"stop": time.perf_counter() - stopping}


def _descriptors(pid: int | str) -> int:
    return len(os.listdir(f"/proc/{pid}/fd"))


def _looked_at(pids: Sequence[int]) -> dict[str, float]:
    """Return the medians of the MB that a node has with its share of shared pages (PSS), and alone (USS)."""
    import statistics

    import psutil

    infos = [psutil.Process(pid).memory_full_info() for pid in pids[:: max(1, len(pids) // LOOKED_AT)]]
    return {which: statistics.median(getattr(info, which) for info in infos) / 1e6 for which in ("pss", "uss")}


def main() -> None:
    """Start what is asked for and print its figures."""
    import json

    what, spec, method = sys.argv[1:]
    print(json.dumps(bare(spec, method) if what == "bare" else ours(spec, None if method == "default" else method)))


if __name__ == "__main__":
    main()
