"""Chaos on purpose: nodes are killed and stopped at random while a run goes on, to see that it goes on.

This module owns whom it meets, when and how. It must not know what a cluster does about it.

What comes is decided by the seed alone: which node is met by what, one after the other, and the seconds in between.
They count while the cluster runs and begin anew after each recovery, or a rate above what it can recover from would
never let it come to anything.
"""

from __future__ import annotations

import math
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

from mpsnap.core.rng import CounterRandom
from mpsnap.runtime.recovering import RecoveringSupervisor

#: How long a node that is stopped stays so, at least and at most.
STOPPED_SECONDS = (0.05, 0.5)


class Rates(NamedTuple):
    """Say how many nodes a second are killed and stopped, on average, and the seed that decides which and when."""

    kill: float = 0.0
    stop: float = 0.0
    seed: int = 0


class Blow(NamedTuple):
    """Say what comes `after` so many seconds: `node` is killed, or stopped for so many seconds."""

    after: float
    node: str
    #: None for a node that is killed.
    stopped: float | None


def blows(rates: Rates, nodes: Sequence[str]) -> Iterator[Blow]:
    """Yield what comes, without end: at random moments, each node equally likely."""
    random = CounterRandom(f"chaos {rates.seed}")
    total = rates.kill + rates.stop
    while True:
        # One minus: the logarithm of 0 has no value, and 1 is never drawn.
        after = -math.log(1.0 - random.random()) / total
        kills = random.random() * total < rates.kill
        yield Blow(after, random.choice(nodes), None if kills else random.uniform(*STOPPED_SECONDS))


class Chaos:
    """Deal blows to the nodes of a supervisor whenever whoever pumps it comes by.

    Args:
        supervisor: Whose nodes.
        rates: How often.
        tell: Is told each blow in words.
    """

    def __init__(self, supervisor: RecoveringSupervisor, rates: Rates, tell: Callable[[str], None]) -> None:
        self._supervisor = supervisor
        self._blows = blows(rates, supervisor.topology.nodes)
        self._next = next(self._blows)
        self._tell = tell
        #: When the next one comes, None while the cluster does not run; and when who is stopped may go on.
        self._comes: float | None = None
        self._wakes: dict[str, float] = {}

    @property
    def due(self) -> float:
        """When there is something to do, on the monotonic clock; infinity while the cluster does not run."""
        return min((math.inf if self._comes is None else self._comes, *self._wakes.values()))

    def act(self) -> None:
        """Do what is due; to be called between any two pumps."""
        now = time.monotonic()
        if self._supervisor.state != "running":
            self._comes = None
            self._wakes.clear()
        elif self._comes is None:
            self._comes = now + self._next.after
        else:
            for node in [node for node, when in self._wakes.items() if when <= now]:
                self._wake(node)
            if self._comes <= now:
                self._deal(self._next, now)
                self._next = next(self._blows)
                self._comes = now + self._next.after

    def end(self) -> None:
        """Let whoever is stopped go on, and come no more."""
        if self._supervisor.state == "running":
            for node in tuple(self._wakes):
                self._wake(node)

    def _deal(self, blow: Blow, now: float) -> None:
        self._supervisor.excused.add(blow.node)
        if blow.stopped is None:
            self._tell(f"chaos kills {blow.node}")
            self._supervisor.signal(blow.node, signal.SIGKILL)
        else:
            self._tell(f"chaos stops {blow.node} for {blow.stopped:.2f} s")
            self._supervisor.signal(blow.node, signal.SIGSTOP)
            self._wakes[blow.node] = now + blow.stopped

    def _wake(self, node: str) -> None:
        del self._wakes[node]
        self._supervisor.signal(node, signal.SIGCONT)
        self._supervisor.excused.discard(node)
