"""Find the nodes that wait for each other's full channels, for ever.

This module owns the wait-for graph. A node runs no hook while one of its outbound channels is full, so it waits for
every reader of a full channel to take. If these waits form a cycle at one instant, none of its nodes will ever go on.
Nodes report what they wait for and since when, on the clock that all processes of a host share; a cycle whose waits
overlap in time existed, and a deadlock that existed once exists still. So there is no false alarm, however late reports
are.
"""

from __future__ import annotations

from collections.abc import Mapping

from mpsnap.core.errors import ClusterDeadlock

#: How long a channel must be full before its sender reports it, and between two reports.
REPORT_SECONDS = 1.0
#: How long all waits of a cycle must overlap: a node publishes what it took a moment after it took it.
OVERLAP_SECONDS = 0.1


class Waits:
    """Hold what each node was last known to wait for."""

    def __init__(self) -> None:
        #: Per node, when it reported, and since when each of its full channels has been full, by destination.
        self._reports: dict[str, tuple[float, Mapping[str, float]]] = {}

    def report(self, node: str, now: float, full_since: Mapping[str, float]) -> None:
        """Take a node's report in.

        Raises:
            ClusterDeadlock: A cycle of nodes waits for each other.
        """
        self._reports[node] = (now, full_since)
        cycle = self._cycle_through(node)
        if cycle is not None:
            path = "->".join([*cycle, cycle[0]])
            raise ClusterDeadlock(
                f"each node of {path} waits for the next one to take messages from a full channel",
                where=f"{cycle[0]}->{cycle[1 % len(cycle)]}",
                hint="a larger window, or hooks that send less for each message they take",
            )

    def _cycle_through(self, start: str) -> list[str] | None:
        """Return a cycle that begins at `start` and whose waits overlap; depth first, each node once."""
        # Each entry: a path from `start`, and the time in which all its waits were on.
        paths = [([start], 0.0, float("inf"))]
        visited = {start}
        while paths:
            path, begin, end = paths.pop()
            reported, full_since = self._reports[path[-1]]
            for dst, since in full_since.items():
                overlap = max(begin, since), min(end, reported)
                if overlap[1] - overlap[0] < OVERLAP_SECONDS:
                    continue
                if dst == start:
                    return path
                if dst in self._reports and dst not in visited:
                    visited.add(dst)
                    paths.append(([*path, dst], *overlap))
        return None
