"""The timers of one node: which is the next, and what a snapshot holds of them.

This module owns their order. It must not know the clock, hooks, or what a timer calls.
"""

from __future__ import annotations

import heapq
from typing import NamedTuple

from mpsnap.core.snapshot import Timer


class SetTimer(NamedTuple):
    """Call `method` when `due`, on the driver's clock, and then every `period` unless that is None.

    `order` counts the timers of a node: those that are due at once ring in the order in which they were set. `args` are
    frozen.
    """

    due: float
    order: int
    period: float | None
    method: str
    args: object


class Timers:
    """Hold timers that are set."""

    __slots__ = ("_set", "heap")

    def __init__(self) -> None:
        #: The next one stands first; for looking only.
        self.heap: list[SetTimer] = []
        self._set = 0

    def push(self, due: float, period: float | None, method: str, args: object) -> None:
        """Set one, behind all that are due then."""
        heapq.heappush(self.heap, SetTimer(due, self._set, period, method, args))
        self._set += 1

    def pop(self, now: float) -> SetTimer:
        """Take the next one, of which there must be one; one with a period is set again."""
        timer = heapq.heappop(self.heap)
        if timer.period is not None:
            # A node that was busy for several periods catches up with this one call, not with a burst.
            following = timer.due + timer.period if timer.due + timer.period > now else now + timer.period
            # As if it were set anew, behind others that are due then: when a timer was set first, no cut says.
            self.push(following, timer.period, timer.method, timer.args)
        return timer

    def clear(self) -> None:
        """Forget all."""
        self.heap.clear()

    def remaining(self, now: float) -> tuple[Timer, ...]:
        """Return them as a snapshot holds them, the next one first."""
        if not self.heap:
            return ()
        in_order = sorted(self.heap, key=lambda timer: timer[:2])
        return tuple([Timer(max(0.0, due - now), period, method, args) for due, _, period, method, args in in_order])
