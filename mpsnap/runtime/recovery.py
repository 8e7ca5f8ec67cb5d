"""What a cluster does about a death: whether it goes on, and how soon.

This module owns the settings of a cluster that keeps its snapshots, and the budget of restarts. It must not know
processes.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from mpsnap.runtime.outputs import Sink
from mpsnap.store.contract import SnapshotStore
from mpsnap.store.manifest import Manifest

#: Snapshots that are kept, the one to go on from among them.
KEEP = 10
#: Restarts within so many seconds after which a cluster gives up: it would die of the same thing for ever.
MOST_RESTARTS, BUDGET_SECONDS = 5, 60.0
#: The pause before the second restart in a row, and the longest.
PAUSE_SECONDS, LONGEST_PAUSE_SECONDS = 0.1, 5.0


@dataclass(frozen=True)
class Recovery:
    """Say where a cluster keeps its snapshots, so that it survives the death of its nodes.

    Args:
        store: Where recovery points are committed; stays the caller's to close.
        resume: The recovery point to begin from, None for a fresh start.
        keep: Snapshots kept, the one to go on from among them.
        restarts: After so many within a minute the cluster gives up.
        sink: Where released records go besides being told.
        emit_early: Release records at once, and not with the recovery point that covers them.
        run: Plain data that is kept with each snapshot: how the run was started.
    """

    store: SnapshotStore
    resume: Manifest | None = None
    keep: int = KEEP
    restarts: int = MOST_RESTARTS
    sink: Sink | None = None
    emit_early: bool = False
    run: Mapping[str, Any] = field(default_factory=dict)


class Restarts:
    """Count restarts, and say how long to wait before the next one."""

    def __init__(self, most: int) -> None:
        self.most = most
        self._times: deque[float] = deque()

    def next_pause(self, now: float) -> float | None:
        """Return the seconds until a restart that is wanted at `now`, None if there were too many.

        The first comes at once; each that follows within the budget's time waits twice as long as the one before.
        """
        while self._times and now - self._times[0] > BUDGET_SECONDS:
            self._times.popleft()
        before = len(self._times)
        if before >= self.most:
            return None
        self._times.append(now)
        return min(LONGEST_PAUSE_SECONDS, PAUSE_SECONDS * 2.0 ** (before - 1)) if before else 0.0
