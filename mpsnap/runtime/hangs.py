"""Nodes that stand still: on their way to being ready, in a hook that does not return, when they are to end.

This module owns how that is found, and the failure that it is. It must not know what follows a failure.

A node writes down when a turn begins and which hook runs, both into memory that others can read, since whoever hangs
answers no question: a thread that says it lives says nothing of the hook, and one loop in C keeps even that from it.
"""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Callable
from functools import partial

from mpsnap.core.errors import NodeError
from mpsnap.runtime.board import in_phase
from mpsnap.runtime.deadlines import Deadlines
from mpsnap.runtime.incarnation import Incarnation

#: How long all nodes may stand still on their way to being ready, in the import of their code or in `setup`. It is no
#: limit of the whole way: hundreds of processes on a busy machine take minutes.
READY_SECONDS = 60.0
#: How long a node that hangs has to write its stack down.
STACK_SECONDS = 0.1
#: Phases that end by themselves only if the user's code does.
_HOOKS = frozenset({"on_message", "on_idle", "on_timer", "on_command", "on_stop", "capture"})


class Readiness:
    """Know which nodes of an incarnation are ready, and see that the others get there.

    Args:
        incarnation: Whose nodes.
        deadlines: Where what is due later is noted.
        fail: Is told the failure, once.
    """

    def __init__(self, incarnation: Incarnation, deadlines: Deadlines, fail: Callable[[NodeError], None]) -> None:
        self._board = incarnation.board
        self._nodes = incarnation.topology.nodes
        self._deadlines = deadlines
        self._fail = fail
        self._ready: set[str] = set()
        #: Each node's phase, and since when none has changed.
        self._phases: list[str] = []
        self._unchanged_since = 0.0

    def ready(self, node: str) -> bool:
        """Note that a node is ready; return whether all are."""
        self._ready.add(node)
        if len(self._ready) < len(self._nodes):
            return False
        self._deadlines.cancel("ready")
        return True

    def watch(self) -> None:
        """See whether any node gets further, from now on until all are ready."""
        phases, now = [self._board.phase(node) for node in self._nodes], time.monotonic()
        if phases != self._phases:
            self._phases, self._unchanged_since = phases, now
        if now - self._unchanged_since < READY_SECONDS:
            # Nothing rings for a change of phase; this often is enough to know how old the last one is.
            self._deadlines.set("ready", READY_SECONDS / 20, self.watch)
        else:
            self._give_up()

    def _give_up(self) -> None:
        late = [node for node in self._nodes if node not in self._ready]
        doing = "; ".join(f"{node} is {self._board.doing(node)}" for node in late[:3])
        what = f"{len(late)} of {len(self._nodes)} nodes not ready, and none any further within {READY_SECONDS:g} s"
        self._fail(_stands_still(late[0], self._phases[self._nodes.index(late[0])], f"{what}: {doing}"))


class Hangs:
    """See whether the nodes of an incarnation come back from their hooks.

    Args:
        incarnation: Whose nodes.
        seconds: How long a hook may take.
        deadlines: Where what is due later is noted.
        fail: Is told the failure, once.
    """

    def __init__(
        self, incarnation: Incarnation, seconds: float, deadlines: Deadlines, fail: Callable[[NodeError], None]
    ) -> None:
        self._incarnation = incarnation
        self._seconds = seconds
        self._deadlines = deadlines
        self._fail = fail
        #: By pid, since when a process was seen to be stopped.
        self._stopped_since: dict[int, float] = {}

    def watch(self) -> None:
        """Look every now and then, from now on."""
        self._deadlines.set("hang", self._seconds / 4, self._look)

    def _look(self) -> None:
        for node, endpoints in self._incarnation.nodes.items():
            reason = self._reason(node, endpoints.pid, time.monotonic())
            if reason is not None:
                # Its stack says more than any word of ours; it needs a moment to write it down.
                self._incarnation.signal(node, signal.SIGUSR1)
                self._deadlines.set("hang", STACK_SECONDS, partial(self._give_up_on, node, reason))
                return
        self.watch()

    def _reason(self, node: str, pid: int, now: float) -> str | None:
        """Return why a node counts as hung, None if it does not."""
        phase, began = self._incarnation.board.phase(node), self._incarnation.board.turn_began(node)
        if phase in _HOOKS and began and now - began > self._seconds:
            return f"{phase} has not returned for {now - began:.1f} s"
        if not _is_stopped(pid):
            self._stopped_since.pop(pid, None)
            return None
        since = self._stopped_since.setdefault(pid, now)
        return f"its process has been stopped for {now - since:.1f} s" if now - since > self._seconds else None

    def _give_up_on(self, node: str, reason: str) -> None:
        phase = self._incarnation.board.phase(node)
        what = f"{node} hangs: {reason}, the deadline is {self._seconds:g} s"
        self._fail(_stands_still(node, phase, what, "a look at its stack, on stderr"))


def did_not_stop(incarnation: Incarnation, awaited: set[str], seconds: float) -> NodeError | None:
    """Return the failure of the first of these nodes that is alive still, `seconds` after it was asked to end."""
    for node in incarnation.alive():
        if node in awaited:
            phase = incarnation.board.phase(node)
            what = f"{node} did not stop within {seconds:g} s and was killed, {in_phase(phase)}"
            return _stands_still(node, phase, what)
    return None


def _stands_still(node: str, phase: str, what: str, hint: str | None = None) -> NodeError:
    """Return the failure of a node that is killed because it gets no further."""
    return NodeError(what, node=node, phase=phase, status="killed", where=node, hint=hint)


def _is_stopped(pid: int) -> bool:
    # It may have died since; its pidfd tells that.
    with contextlib.suppress(OSError):
        fd = os.open(f"/proc/{pid}/stat", os.O_RDONLY | os.O_CLOEXEC)
        try:
            stat = os.read(fd, 512)
        finally:
            os.close(fd)
        # Behind the name, which may hold any character.
        return stat[stat.rindex(b")") + 2 : stat.rindex(b")") + 3] in (b"T", b"t")
    return False
