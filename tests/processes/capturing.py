"""Nodes of the tests of captures: they fork whatever their state costs, and can keep the fork from getting on.

They live in a module of their own because every node process imports it.
"""

from __future__ import annotations

import os
import signal
import threading
from typing import Any, ClassVar

from nodes import Puppet

from mpsnap import Context
from mpsnap.runtime.capture import Costs


class Gate:
    """Stop whoever pickles this in another process than its own, until the test opens the FIFO for writing."""

    def __init__(self, path: str) -> None:
        self.path = path
        self.home = os.getpid()

    def __reduce__(self) -> tuple[Any, ...]:
        if os.getpid() != self.home:
            with open(f"{self.path}.part", "w") as file:
                file.write(str(os.getpid()))
            os.replace(f"{self.path}.part", f"{self.path}.reached")
            with open(self.path) as fifo:
                fifo.read()
        return str, ("gate",)


class Forker(Puppet):
    """Fork at every capture that may, and count forks and captures."""

    transient: ClassVar[tuple[str, ...]] = ("forks", "captures", "thread", "leave")
    always: ClassVar[bool] = True
    forks: int
    captures: int

    def setup(self, ctx: Context, greeting: object = None) -> None:
        super().setup(ctx, greeting)
        if self.always:
            # In this process alone, which is the node's.
            Costs.fork_wins = lambda self, resident: True  # type: ignore[method-assign]
            Costs.negligible = lambda self, now: False  # type: ignore[method-assign]

    def on_start(self, ctx: Context) -> None:
        self.forks = self.captures = 0
        os.register_at_fork(before=self._count)

    def _count(self) -> None:
        self.forks += 1

    def capture(self) -> Any:
        self.captures += 1
        return super().capture()

    def do_counts(self, ctx: Context) -> list[int]:
        return [self.forks, self.captures]

    def do_children(self, ctx: Context) -> list[int]:
        with open(f"/proc/self/task/{os.getpid()}/children") as file:
            return [int(pid) for pid in file.read().split()]

    def do_gate(self, ctx: Context, path: str) -> None:
        self.gate = Gate(path)

    def do_remove_gate(self, ctx: Context) -> None:
        del self.gate

    def do_start_thread(self, ctx: Context) -> None:
        self.leave = threading.Event()
        self.thread = threading.Thread(target=self.leave.wait)
        self.thread.start()

    def do_end_thread(self, ctx: Context) -> None:
        self.leave.set()
        self.thread.join()
        # Python is done with it a moment before the kernel is.
        while len(os.listdir("/proc/self/task")) > 1:
            os.sched_yield()

    def do_forbid_forks(self, ctx: Context) -> None:
        def refuse() -> int:
            raise BlockingIOError("no more processes")

        os.fork = refuse

    def do_ignore_children(self, ctx: Context) -> None:
        signal.signal(signal.SIGCHLD, signal.SIG_IGN)


class Gated(Forker):
    """Pickle its state, so that a `Gate` in it has a say."""

    pickle: ClassVar[bool] = True


class Thrifty(Forker):
    """Fork only when that is worth it."""

    always: ClassVar[bool] = False


class Filled(Forker):
    """Have a large state from the start."""

    def setup(self, ctx: Context, greeting: object = None) -> None:
        super().setup(ctx, greeting)
        self.ballast = "x" * 2_000_000
