"""The status document: what a supervisor tells, what the kernel knows of the processes, and what both mean.

This module owns the fields of that document; others script against it. It must not know who asks for it.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Any

import psutil

#: Rates are taken over at least so many seconds, and processes looked at no more often.
SAMPLE_SECONDS = 0.5
_STARTING = frozenset({"starting", "importing", "setup", "on_start"})


class Picture:
    """Make status documents, each also out of what the last ones held.

    Args:
        facts: What is told of the run and does not change.
        nodes: Of the topology.
        channels: Of the topology.
    """

    def __init__(self, facts: Mapping[str, Any], nodes: Sequence[str], channels: Sequence[tuple[str, str]]) -> None:
        self._facts = facts
        self._nodes = nodes
        self._channels = channels
        #: When rates were last taken, the counts of then by channel, and the rates.
        self._sampled = 0.0
        self._counts: dict[tuple[str, str], int] = {}
        self._rates: dict[tuple[str, str], float] = {}
        self._processes: dict[int, psutil.Process | None] = {}
        #: By pid: share of one processor in percent, bytes of memory, whether it is stopped.
        self._usage: dict[int, tuple[float | None, int | None, bool]] = {}

    def document(self, told: Mapping[str, Any], kept: frozenset[int] | None) -> dict[str, Any]:
        """Return the status document.

        Args:
            told: What the supervisor has answered.
            kept: The numbers of the snapshots that are in the store; None without one.
        """
        now = time.monotonic()
        counts = {(src, dst): told["channels"].get(f"{src}->{dst}", _NONE) for src, dst in self._channels}
        if now - self._sampled >= SAMPLE_SECONDS:
            self._sample(now, counts, {each["pid"] for each in told["nodes"].values()})
        digests = [_with_kept(digest, kept) for digest in told["digests"]]
        done = [digest["number"] for digest in digests if digest["phase"] == "completed"]
        channels = [self._channel(channel, each, told["window"]) for channel, each in counts.items()]
        handled_per_s = sum(self._rates.values()) if self._rates else None
        return {
            "run": self._run(told),
            "nodes": self._node_documents(told, channels, done[-1] if done else None),
            "channels": channels,
            "snapshots": digests,
            "snapshot_counts": told["counts"],
            "deaths": list(told["deaths"]),
            "recoveries": list(told["recoveries"]),
            "totals": {
                "sent": sum(each["sent"] for each in channels),
                "handled": sum(each["handled"] for each in channels),
                "in_flight": sum(each["in_flight"] for each in channels),
                "handled_per_s": handled_per_s,
                "deaths": told["death_count"],
                "recoveries": told["recovery_count"],
            },
        }

    def _run(self, told: Mapping[str, Any]) -> dict[str, Any]:
        return {
            **self._facts,
            "state": told["state"],
            "incarnation": told["incarnation"],
            "uptime_s": told["uptime_s"],
            "window": told["window"],
            "error": told["error"],
        }

    def _sample(self, now: float, counts: Mapping[tuple[str, str], Mapping[str, int]], pids: set[int]) -> None:
        taken = {channel: each["taken"] for channel, each in counts.items()}
        if self._counts:
            passed = now - self._sampled
            # A recovery takes counts back; nothing was handled backwards.
            self._rates = {c: max(0, n - self._counts.get(c, 0)) / passed for c, n in taken.items()}
        self._counts, self._sampled = taken, now
        self._processes = {pid: self._processes.get(pid) or _process(pid) for pid in pids}
        self._usage = {pid: _usage(process) for pid, process in self._processes.items()}

    def _channel(self, channel: tuple[str, str], counts: Mapping[str, int], window: int) -> dict[str, Any]:
        in_flight = max(0, counts["sent"] - counts["taken"])
        return {
            "src": channel[0],
            "dst": channel[1],
            "sent": counts["sent"],
            "handled": counts["taken"],
            "in_flight": in_flight,
            "handled_per_s": self._rates.get(channel),
            "full": in_flight >= window,
        }

    def _node_documents(
        self, told: Mapping[str, Any], channels: Sequence[Mapping[str, Any]], last: int | None
    ) -> list[dict[str, Any]]:
        sums = {node: {"handled": 0, "sent": 0, "backlog": 0, "rate": 0.0, "full": 0} for node in self._nodes}
        for each in channels:
            src, dst = sums[each["src"]], sums[each["dst"]]
            src["sent"] += each["sent"]
            src["full"] += each["full"]
            dst["handled"] += each["handled"]
            dst["backlog"] += each["in_flight"]
            dst["rate"] += each["handled_per_s"] or 0.0
        return [self._node(node, told, sums[node], last) for node in self._nodes]

    def _node(self, name: str, told: Mapping[str, Any], sums: Mapping[str, float], last: int | None) -> dict[str, Any]:
        node = told["nodes"].get(name, {})
        pid = node.get("pid")
        cpu, memory, stopped = self._usage.get(pid, (None, None, False))
        return {
            "name": name,
            "pid": pid,
            "status": _status(node, told["state"], sums, stopped),
            "phase": node.get("phase"),
            "phase_s": node.get("turn_s"),
            "busy_s": node.get("busy_s", 0.0),
            "handled": sums["handled"],
            "sent": sums["sent"],
            "backlog": sums["backlog"],
            "handled_per_s": sums["rate"] if self._rates else None,
            "cpu_percent": cpu,
            "memory_bytes": memory,
            "paused": node.get("paused", False),
            "last_snapshot": last,
        }


_NONE: Mapping[str, int] = {"sent": 0, "taken": 0}


def _status(node: Mapping[str, Any], state: str, sums: Mapping[str, float], stopped: bool) -> str:
    if not node:
        return "starting" if state == "starting" else "dead"
    if stopped:
        return "frozen"
    if node["phase"] in _STARTING:
        return "starting"
    if node["paused"]:
        return "paused"
    if node["phase"] != "waiting":
        return "running"
    if sums["full"]:
        return "blocked"
    return "running" if sums["backlog"] else "waiting"


def _with_kept(digest: Mapping[str, Any], kept: frozenset[int] | None) -> dict[str, Any]:
    return dict(digest) if kept is None else {**digest, "kept": digest["number"] in kept}


def _process(pid: int) -> psutil.Process | None:
    try:
        return psutil.Process(pid)
    except psutil.Error:
        return None


def _usage(process: psutil.Process | None) -> tuple[float | None, int | None, bool]:
    if process is None:
        return None, None, False
    try:
        with process.oneshot():
            stopped = process.status() in (psutil.STATUS_STOPPED, psutil.STATUS_TRACING_STOP)
            return process.cpu_percent(None), process.memory_info().rss, stopped
    except psutil.Error:
        # It has died since; the supervisor will tell.
        return None, None, False
