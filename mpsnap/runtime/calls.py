"""The calls that wait for a snapshot or for an answer, also over a recovery.

This module owns what becomes of such a call. It must not know threads: everything here happens in the one that pumps
the supervisor, but for `refuse`, which may be called by several at once when that has ended.

A call that comes during a recovery waits for its end. A snapshot that a death takes along is taken again, as long as
its time lasts. A command is not given again: whoever gave it has to know that what it had changed may be undone.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from functools import partial
from typing import NamedTuple, TypeVar

from mpsnap.core.errors import ClusterError, MpsnapError, SnapshotError, SnapshotLost
from mpsnap.core.events import CommandLost, Replied, SnapshotAbandoned
from mpsnap.core.protocol import SnapshotId
from mpsnap.core.snapshot import GlobalSnapshot
from mpsnap.runtime.supervisor import Supervisor

T = TypeVar("T")


class _Wish(NamedTuple):
    """A snapshot that somebody waits for."""

    initiators: tuple[str, ...]
    seconds: float
    until: float
    future: Future[GlobalSnapshot]


class Calls:
    """Hold what is waited for.

    Args:
        supervisor: Who is asked for it.
        timeout: Seconds a snapshot may take unless the call says otherwise.
    """

    def __init__(self, supervisor: Supervisor, timeout: float) -> None:
        self._supervisor = supervisor
        self._timeout = timeout
        self._snapshots: dict[SnapshotId, _Wish] = {}
        self._answers: dict[int, Future[object]] = {}
        #: What is asked for when the cluster runs again, and who waits for it.
        self._postponed: deque[tuple[Future[GlobalSnapshot] | Future[object], Callable[[], None]]] = deque()

    def snapshot(self, initiators: tuple[str, ...], timeout: float | None) -> Future[GlobalSnapshot]:
        """Ask for a snapshot; raises as `Supervisor.trigger`, unless that has to wait for the end of a recovery."""
        seconds = self._timeout if timeout is None else timeout
        wish = _Wish(initiators, seconds, time.monotonic() + seconds, Future())
        if self._supervisor.state == "recovering":
            self._postponed.append((wish.future, partial(self._trigger, wish)))
        else:
            self._snapshots[self._supervisor.trigger(initiators, timeout)] = wish
        return wish.future

    def command(self, node: str, command: object) -> Future[object]:
        """Give a command; raises as `Supervisor.command`, unless that has to wait for the end of a recovery."""
        future: Future[object] = Future()
        give = partial(self._give, node, command, future)
        if self._supervisor.state == "recovering":
            self._postponed.append((future, give))
        else:
            give()
        return future

    def go_on(self) -> None:
        """Ask for what was postponed, if the cluster runs."""
        while self._postponed and self._supervisor.state == "running":
            future, act = self._postponed.popleft()
            try:
                act()
            except MpsnapError as error:
                future.set_exception(error)

    def completed(self, snapshot: GlobalSnapshot, error: MpsnapError | None) -> None:
        """Answer whoever waits for this snapshot: with it, or with what is wrong with it."""
        wish = self._snapshots.pop(snapshot.id, None)
        if wish is not None:
            wish.future.set_result(snapshot) if error is None else wish.future.set_exception(error)

    def abandoned(self, event: SnapshotAbandoned) -> bool:
        """Answer whoever waits for this snapshot, or have it taken again; return whether somebody does wait."""
        wish = self._snapshots.pop(event.snapshot_id, None)
        if wish is None:
            return False
        if isinstance(event.error, SnapshotLost) and not self._supervisor.ended:
            self._postponed.append((wish.future, partial(self._trigger, wish)))
        else:
            wish.future.set_exception(event.error)
        return True

    def replied(self, event: Replied) -> None:
        """Answer whoever has given this command."""
        self._answers.pop(event.ticket).set_result(event.value)

    def lost(self, event: CommandLost) -> None:
        """Tell whoever has given this command that nobody will answer."""
        future = self._answers.pop(event.ticket, None)
        if future is not None:
            future.set_exception(
                ClusterError(
                    f"the command to {event.node} was lost: a node died before it was answered",
                    where=event.node,
                    hint="giving it again, what it had changed is undone",
                )
            )

    def refuse(self, reason: MpsnapError) -> None:
        """Answer everything that is still waited for, now that the cluster has ended."""
        # Taken out one by one: another thread may be at it too.
        while (wished := taken(self._snapshots.popitem)) is not None:
            wished[1].future.set_exception(reason)
        while (answer := taken(self._answers.popitem)) is not None:
            answer[1].set_exception(reason)
        while (postponed := taken(self._postponed.popleft)) is not None:
            postponed[0].set_exception(reason)

    def _trigger(self, wish: _Wish) -> None:
        left = wish.until - time.monotonic()
        if left <= 0:
            raise SnapshotError(
                f"the snapshot did not complete within {wish.seconds:g} s: a node died meanwhile",
                hint="a longer timeout",
            )
        self._snapshots[self._supervisor.trigger(wish.initiators, left)] = wish

    def _give(self, node: str, command: object, future: Future[object]) -> None:
        self._answers[self._supervisor.command(node, command)] = future


def taken(take: Callable[[], T]) -> T | None:
    """Return what `take` finds, None if there is nothing left."""
    try:
        return take()
    except LookupError:
        return None
