"""The nodes of the tests of recovery: a pipeline whose order can be checked, and nodes that die when they are told.

What happens once only, and not again after a recovery, leaves a file behind: that is all a new incarnation can tell.
"""

from __future__ import annotations

import itertools
import os
import signal
from pathlib import Path
from typing import Any, ClassVar

from mpsnap import Context, Node


def first_time(path: str) -> bool:
    """Return whether this was never asked before, by any process."""
    try:
        os.close(os.open(path, os.O_CREAT | os.O_EXCL))
    except FileExistsError:
        return False
    return True


class Stage(Node):
    """Pass 1, 2, ... on from the first node to the last, which emits them; each checks that none is lost or doubled."""

    endless: ClassVar[bool] = False

    def setup(self, ctx: Context, most: int = 200, deadly: int = 0, mark: str = "", sure: bool = False) -> None:
        self.most = most
        self.deadly = deadly
        self.mark = mark
        self.sure = sure
        self.sent = 0
        self.got = 0

    def on_idle(self, ctx: Context) -> bool:
        if ctx.inbound or self.sent >= self.most:
            return False
        self.sent += 1
        ctx.send(ctx.outbound[0], self.sent)
        return True

    def on_message(self, ctx: Context, sender: str, payload: Any) -> None:
        assert payload == self.got + 1, f"{payload} after {self.got}"
        if payload == self.deadly and (self.sure or first_time(self.mark)):
            os.kill(os.getpid(), signal.SIGKILL)
        self.got = payload
        if ctx.outbound:
            ctx.send(ctx.outbound[0], payload)
        else:
            ctx.emit(payload)


class Obedient(Node):
    """Do what a command says; count the commands."""

    def setup(self, ctx: Context) -> None:
        self.count = 0

    def on_command(self, ctx: Context, command: Any) -> Any:
        self.count += 1
        what, *rest = command if isinstance(command, list) else [command]
        if what == "die":
            os.kill(os.getpid(), signal.SIGKILL)
        if what == "emit":
            ctx.emit(rest[0])
        if what == "hang":
            Path(rest[0]).touch()
            while True:
                pass
        return self.count


class AtTheEnd(Obedient):
    """Die in `on_stop`, the first time only or each time; or do not come back from it."""

    def setup(self, ctx: Context, how: str = "once", mark: str = "", node: str = "N2") -> None:
        super().setup(ctx)
        self.how, self.mark, self.node = how, mark, node

    def on_stop(self, ctx: Context) -> None:
        if ctx.name != self.node:
            return
        if self.how == "hang":
            while True:
                pass
        if self.how == "always" or first_time(self.mark):
            os.kill(os.getpid(), signal.SIGKILL)
        ctx.emit("the end")


class AtTheCut(Obedient):
    """Die while a state is captured: the `nth` time that any process of the run is asked for it."""

    def setup(self, ctx: Context, folder: str = "", nth: int = 0) -> None:
        super().setup(ctx)
        self.folder, self.nth = folder, nth

    def capture(self) -> Any:
        # One number for each, although several processes ask at the same time.
        if next(k for k in itertools.count() if first_time(f"{self.folder}/{k}")) == self.nth:
            os.kill(os.getpid(), signal.SIGKILL)
        return super().capture()


class AtRestore(Obedient):
    """Fail when a state is taken back."""

    def restore(self, state: Any) -> None:
        raise RuntimeError("this state is of no use")


class Pickling(Obedient):
    """Keep what nothing but pickle can keep."""

    pickle: ClassVar[bool] = True

    def setup(self, ctx: Context) -> None:
        super().setup(ctx)
        self.held = range(3)
