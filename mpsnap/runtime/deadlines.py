"""What is to be done at which time."""

from __future__ import annotations

import time
from collections.abc import Callable, Hashable


class Deadlines:
    """Hold named things to do, each once, on the monotonic clock: a changed wall clock moves none of them."""

    def __init__(self) -> None:
        self._todo: dict[Hashable, tuple[float, Callable[[], None]]] = {}
        #: Nothing is due before: all of them are looked through only then, and not each time somebody waits.
        self._quiet_until = float("inf")

    def set(self, name: Hashable, seconds: float, act: Callable[[], None]) -> None:
        """Have `act` called `seconds` from now; replaces what has the same name."""
        due = time.monotonic() + seconds
        self._todo[name] = (due, act)
        self._quiet_until = min(self._quiet_until, due)

    def cancel(self, name: Hashable) -> None:
        """Forget one; nothing happens if there is none."""
        self._todo.pop(name, None)

    def holds(self, name: Hashable) -> bool:
        """Return whether there is something of this name to do."""
        return name in self._todo

    def clear(self) -> None:
        """Forget all."""
        self._todo.clear()

    def seconds_left(self) -> float:
        """Return the seconds until the next one may be due: 0 if it may be now, infinity if there is none."""
        return max(0.0, self._quiet_until - time.monotonic()) if self._todo else float("inf")

    def keep(self) -> None:
        """Do what is due."""
        now = time.monotonic()
        if now < self._quiet_until:
            return
        for name in [name for name, (when, _) in self._todo.items() if when <= now]:
            # One that is due may have been cancelled by the one before it.
            if name in self._todo:
                _, act = self._todo.pop(name)
                act()
        self._quiet_until = min((when for when, _ in self._todo.values()), default=float("inf"))
