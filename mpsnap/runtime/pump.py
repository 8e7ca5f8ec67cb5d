"""Wait for everything at once: descriptors, a bell that others ring, deadlines.

This module owns the one place where a supervisor's thread waits. It must not know what is waited for.
"""

from __future__ import annotations

import os
import select
import threading
from collections.abc import Callable
from operator import attrgetter
from typing import NamedTuple

from mpsnap.runtime import lifeline
from mpsnap.runtime.deadlines import Deadlines


class _Watched(NamedTuple):
    fd: int
    act: Callable[[], None]
    #: Whether it is attended to behind all else that is ready.
    last: bool


_comes_last = attrgetter("last")


class Pump:
    """Call what is to be called when a descriptor is ready, and what is due.

    One that was never opened holds nothing that has to be given back.
    """

    def __init__(self) -> None:
        self.deadlines = Deadlines()
        self._epoll: select.epoll
        self._watched: dict[int, _Watched] = {}
        self._bell = -1
        self._bell_lock = threading.RLock()

    def open(self) -> None:
        """Begin."""
        lifeline.forget_in_children(self)
        self._epoll = select.epoll()
        self._bell = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self.watch(self._bell, self._hear)

    def wait(self, seconds: float) -> None:
        """Wait at most so long for anything, and see to it."""
        ready = self._epoll.poll(max(0.0, min(seconds, self.deadlines.seconds_left())))
        attended = [self._watched[fd] for fd, _ in ready]
        if len(attended) > 1:
            attended.sort(key=_comes_last)
        for watched in attended:
            # What came before may have given this one up, and its number may belong to another by now.
            if self._watched.get(watched.fd) is watched:
                watched.act()
        self.deadlines.keep()

    def watch(self, fd: int, act: Callable[[], None], mask: int = select.EPOLLIN, *, last: bool = False) -> None:
        """Have `act` called whenever `fd` is ready, behind the others if it comes `last`."""
        self._epoll.register(fd, mask)
        self._watched[fd] = _Watched(fd, act, last)

    def unwatch(self, fd: int) -> None:
        """Stop that."""
        self._epoll.unregister(fd)
        del self._watched[fd]

    def is_watched(self, fd: int) -> bool:
        """Return whether it is waited for."""
        return fd in self._watched

    def ring(self) -> None:
        """Make `wait` return soon; safe at any time from any thread and signal handler."""
        # Held by `close` too: the number of a closed descriptor soon belongs to another file. Reentrant, since a signal
        # handler may ring while its thread rings.
        with self._bell_lock:
            if self._bell >= 0:
                os.eventfd_write(self._bell, 1)

    def _hear(self) -> None:
        os.eventfd_read(self._bell)

    def close(self) -> None:
        """Give back what it holds; nothing is waited for any more."""
        with self._bell_lock:
            self.forget()

    def forget(self) -> None:
        """Close this process's bell and what waits for it; a forked child, which inherits both, does that alone.

        There it takes no lock: another thread may have held that, and there is none to let go of it.
        """
        if self._bell >= 0:
            self._epoll.close()
            self._watched.clear()
            bell, self._bell = self._bell, -1
            os.close(bell)
