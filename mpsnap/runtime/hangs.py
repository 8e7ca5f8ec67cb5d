"""Hooks that do not return, and processes that are stopped.

This module owns how a node is found to hang. It must not know what is done about it.

A node writes down when a turn begins and which hook runs, both into memory that others can read, since whoever hangs
answers no question: a thread that says it lives says nothing of the hook, and one loop in C keeps even that from it.
"""

from __future__ import annotations

import contextlib
import os

from mpsnap.runtime.board import Board

#: Phases that end by themselves only if the user's code does.
_HOOKS = frozenset({"on_message", "on_idle", "on_timer", "on_command", "on_stop", "capture"})


class Hangs:
    """Know since when nodes stand still."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        #: By pid, since when a process was seen to be stopped.
        self._stopped_since: dict[int, float] = {}

    def reason(self, node: str, pid: int, board: Board, now: float) -> str | None:
        """Return why a node counts as hung, None if it does not."""
        phase, began = board.phase(node), board.turn_began(node)
        if phase in _HOOKS and began and now - began > self.seconds:
            return f"{phase} has not returned for {now - began:.1f} s"
        if not _is_stopped(pid):
            self._stopped_since.pop(pid, None)
            return None
        since = self._stopped_since.setdefault(pid, now)
        return f"its process has been stopped for {now - since:.1f} s" if now - since > self.seconds else None


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
