"""The nodes of the process tests: one that does what commands say, some that run by themselves, one that comes to harm.

They live in a module of their own because every node process imports it; the tests themselves import pytest.
"""

from __future__ import annotations

import ctypes
import faulthandler
import os
import resource
import signal
import sys
import tempfile
import threading
import time
from dataclasses import dataclass, field
from enum import Enum
from fractions import Fraction
from typing import Any, ClassVar, NamedTuple
from uuid import SafeUUID

from mpsnap import Context, GlobalSnapshot, Node

# --------------------------------------------------------------------- values


class Colour(Enum):
    RED = "red"
    BLUE = "blue"


class Point(NamedTuple):
    x: int
    y: int


@dataclass
class Parcel:
    label: str
    colour: Colour
    at: Point
    marks: set[int] = field(default_factory=set)


class Unspeakable(Exception):
    """Fail also when asked what it says, and be called by no harmless name."""

    def __str__(self) -> str:
        raise ValueError("no words")


Unspeakable.__qualname__ = "Unspeakable\x1b[2J\n"


# ---------------------------------------------------------------------- nodes


class Puppet(Node):
    """Do nothing but what commands say, and remember what arrived."""

    def setup(self, ctx: Context, greeting: object = None) -> None:
        self.heard: list[object] = []
        self.emits_at_stop = False
        if greeting is not None:
            ctx.broadcast(greeting)

    def on_message(self, ctx: Context, sender: str, payload: object) -> None:
        self.heard.append((sender, payload))

    def on_command(self, ctx: Context, command: list[Any]) -> Any:
        verb, *args = command
        return getattr(self, f"do_{verb}")(ctx, *args)

    def on_stop(self, ctx: Context) -> None:
        if self.emits_at_stop:
            ctx.emit("stopping")

    def note(self, ctx: Context, *what: object) -> None:
        """Be the method of a timer."""
        self.heard.append(("timer", *what))

    def do_echo(self, ctx: Context, value: object) -> object:
        return value

    def do_kind(self, ctx: Context, value: object) -> str:
        return type(value).__name__

    def do_send(self, ctx: Context, dst: str, *payloads: object) -> None:
        for payload in payloads:
            ctx.send(dst, payload)

    def do_keep(self, ctx: Context, name: str, value: object) -> None:
        setattr(self, name, value)

    def do_fill(self, ctx: Context, name: str, size: int) -> None:
        setattr(self, name, bytes(range(256)) * (size // 256))

    def do_spoil(self, ctx: Context) -> None:
        self.odd = {"inner": [0, Fraction(1, 2)]}

    def do_repair(self, ctx: Context) -> None:
        del self.odd

    def do_heard(self, ctx: Context) -> list[object]:
        return self.heard

    def do_snapshot(self, ctx: Context) -> str:
        return ctx.snapshot()

    def do_try_snapshot(self, ctx: Context) -> str:
        try:
            return ctx.snapshot()
        except Exception as error:
            return f"{type(error).__name__}: {error}"

    def do_after(self, ctx: Context, seconds: float, *what: object) -> None:
        ctx.after(seconds, "note", *what)

    def do_every(self, ctx: Context, seconds: float, *what: object) -> None:
        ctx.every(seconds, "note", *what)

    def do_finish(self, ctx: Context) -> None:
        ctx.finish()

    def do_emit(self, ctx: Context, *records: object) -> None:
        for record in records:
            ctx.emit(record)

    def do_emit_and_fail(self, ctx: Context, count: int) -> None:
        for n in range(count):
            ctx.emit(f"{n}".ljust(1000))
        raise RuntimeError("after the last one")

    def do_emit_at_stop(self, ctx: Context) -> None:
        self.emits_at_stop = True

    def do_log(self, ctx: Context, text: str) -> None:
        ctx.log(text)

    def do_random(self, ctx: Context) -> int:
        return ctx.random.randint(0, 10**9)

    def do_limit_files(self, ctx: Context, size: int) -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))

    def do_lift_limit(self, ctx: Context) -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))

    def do_stop_process(self, ctx: Context) -> None:
        os.kill(os.getpid(), signal.SIGSTOP)

    def do_count_descriptors(self, ctx: Context) -> int:
        return len(os.listdir("/proc/self/fd"))

    def do_use_folder(self, ctx: Context, path: str) -> None:
        tempfile.tempdir = path

    def do_raise_unspeakable(self, ctx: Context) -> None:
        raise Unspeakable

    def do_send_oddly(self, ctx: Context, dst: str) -> None:
        ctx.send(dst, [Fraction(1, 2)])

    def do_emit_oddly(self, ctx: Context) -> None:
        ctx.emit(Fraction(1, 2))

    def do_reply_oddly(self, ctx: Context) -> object:
        return Fraction(1, 2)


class Keeper(Puppet):
    """Hold and send values of classes that live in this module or that `types` names."""

    types: ClassVar[tuple[type, ...]] = (SafeUUID,)

    def setup(self, ctx: Context, greeting: object = None) -> None:
        super().setup(ctx, greeting)
        self.parcel = Parcel("first", Colour.RED, Point(1, 2), {3})
        self.colours = {Colour.BLUE: "sky"}
        self.safety = SafeUUID.unknown
        for dst in ctx.outbound:
            ctx.send(dst, Parcel(ctx.name, Colour.BLUE, Point(0, 0)))


class Countdown(Node):
    """End by itself: a number goes round and gets smaller."""

    endless = False

    def setup(self, ctx: Context, rounds: int = 30) -> None:
        self.last = -1
        if ctx.name == "N1":
            ctx.broadcast(rounds)

    def on_message(self, ctx: Context, sender: str, payload: int) -> None:
        self.last = payload
        if payload > 0:
            ctx.broadcast(payload - 1)


class Producer(Node):
    """Send without end, a few messages per idle call."""

    def setup(self, ctx: Context, burst: int = 5) -> None:
        self.n = 0
        self.burst = burst

    def on_idle(self, ctx: Context) -> bool:
        for _ in range(self.burst):
            self.n += 1
            ctx.broadcast(self.n)
        return True


class Doubler(Node):
    """Send two messages for each one taken: more than any window holds."""

    def setup(self, ctx: Context) -> None:
        ctx.broadcast("x")

    def on_message(self, ctx: Context, sender: str, payload: str) -> None:
        ctx.broadcast(payload)
        ctx.broadcast(payload)


class Amplifier(Node):
    """Send three messages for each one taken."""

    def setup(self, ctx: Context) -> None:
        self.n = 0

    def on_message(self, ctx: Context, sender: str, payload: int) -> None:
        for _ in range(3):
            self.n += 1
            ctx.broadcast(self.n)


class SlowConsumer(Node):
    """Take much longer over a message than it takes to make one."""

    def setup(self, ctx: Context) -> None:
        self.got = 0

    def on_message(self, ctx: Context, sender: str, payload: int) -> None:
        # Work, not sleep: a consumer that uses its processor is the worse neighbour.
        until = time.monotonic() + 0.001
        while time.monotonic() < until:
            pass
        assert payload == self.got + 1, "a message is missing or came twice"
        self.got = payload


class Chatty(Puppet):
    """Print in every hook."""

    def setup(self, ctx: Context, greeting: object = None) -> None:
        super().setup(ctx, greeting)
        print("CHATTER in setup")  # noqa: T201 - what this class is for
        os.write(1, b"CHATTER on descriptor 1\n")

    def on_message(self, ctx: Context, sender: str, payload: object) -> None:
        print("CHATTER in on_message")  # noqa: T201

    def on_stop(self, ctx: Context) -> None:
        print("CHATTER in on_stop")  # noqa: T201


# ----------------------------------------------------------- coming to harm


def suffer(action: str) -> None:
    """Come to harm in this process, in the way named."""
    if action == "kill9":
        os.kill(os.getpid(), signal.SIGKILL)
    elif action == "raise":
        raise RuntimeError("as told")  # the user's line
    elif action == "exit0":
        os._exit(0)
    elif action == "sys.exit":
        sys.exit()
    elif action == "segfault":
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        faulthandler.disable()  # a fork has pytest's, which would tell the terminal
        ctypes.string_at(0)
    elif action == "sigstop":
        os.kill(os.getpid(), signal.SIGSTOP)
    elif action == "note":
        return  # come to no harm
    elif action == "loop":
        while True:
            pass
    elif action == "c_loop":
        sum(range(10**11))  # holds the interpreter
    else:
        raise AssertionError(action)


class Doomed(Node):
    """Pass a token round a ring, and come to harm at a named moment.

    `moment` is "NAME" or "NAME:k" for the k-th time; before it happens, pid and time are written to the file `witness`.
    """

    def setup(
        self, ctx: Context, victim: str = "N2", moment: str = "never", action: str = "kill9", witness: str = ""
    ) -> None:
        self.moment, _, nth = moment.partition(":")
        self.nth = int(nth or 1)
        self.action = action if ctx.name == victim else ""
        self.witness = witness
        self.reached = 0
        self.rounds = 0
        self.captured = 0
        self._reach("setup")
        ctx.every(0.005, "tick")
        if ctx.name == "N1":
            ctx.broadcast(0)

    def on_start(self, ctx: Context) -> None:
        self._reach("on_start")

    def on_message(self, ctx: Context, sender: str, payload: int | str) -> None:
        if payload == "and on":
            return
        self._reach("on_message")
        if self.captured > 1:  # the first is the dry one at the start
            self._reach("after_snapshot")
        assert isinstance(payload, int)
        self.rounds = payload
        ctx.broadcast(payload + 1)
        self._reach("between_sends")
        ctx.broadcast("and on")

    def on_idle(self, ctx: Context) -> None:
        self._reach("on_idle")

    def on_command(self, ctx: Context, command: str) -> str:
        if command == "snapshot":
            snapshot_id = ctx.snapshot()
            self._reach("before_snapshot")
            return snapshot_id
        self._reach("on_command")
        return command

    def tick(self, ctx: Context) -> None:
        self._reach("on_timer")

    def on_stop(self, ctx: Context) -> None:
        self._reach("on_stop")

    def capture(self) -> Any:
        self.captured += 1
        self._reach("capture")
        return super().capture()

    def _reach(self, moment: str) -> None:
        if self.action and moment == self.moment:
            self.reached += 1
            if self.reached == self.nth:
                witness(self.witness)
                suffer(self.action)


def witness(path: str) -> None:
    """Write down, whole or not at all, which process came here and when."""
    if path:
        with open(f"{path}.part", "w") as file:
            file.write(f"{os.getpid()} {time.monotonic()}")
        os.replace(f"{path}.part", path)


# -------------------------------------------------------------- invariants


def always_true(snapshot: GlobalSnapshot) -> bool:
    return True


def always_false(snapshot: GlobalSnapshot) -> bool:
    return False


def raises(snapshot: GlobalSnapshot) -> bool:
    raise LookupError("no such thing")


class Uncapturable(Node):
    """Hold something that no codec can keep, from the first idle call on."""

    def on_idle(self, ctx: Context) -> None:
        self.lock = threading.Lock()


class UncapturableAndEnding(Uncapturable):
    """Nobody can prove that it has ended."""

    endless = False


class WorksOnCommand(Node):
    """Do nothing but what a command says: add one here and at every neighbour."""

    endless = False

    def setup(self, ctx: Context) -> None:
        self.n = 0

    def on_command(self, ctx: Context, command: str) -> None:
        self.n += 1
        ctx.broadcast(1)

    def on_message(self, ctx: Context, sender: str, payload: int) -> None:
        self.n += payload


class Endless(Node):
    """Send as long as there is room."""

    def on_idle(self, ctx: Context) -> bool:
        ctx.broadcast(0)
        return True


class Forking(Node):
    """Leave a process behind that lives on; it is not multiprocessing's and nobody's child in the end."""

    def on_command(self, ctx: Context, command: str) -> int:
        pid = os.fork()
        if pid == 0:
            signal.pause()
            os._exit(0)
        return pid


class Reporting(Node):
    """Pass messages back and forth and take snapshots of a large state."""

    def setup(self, ctx: Context) -> None:
        self.ballast = b"x" * 900_000
        self.n = 0
        for _ in range(4):
            ctx.broadcast(0)

    def on_message(self, ctx: Context, sender: str, payload: int) -> None:
        self.n += 1
        ctx.send(sender, payload)
        if ctx.name == "N1" and self.n in (10, 20, 30, 40):
            ctx.snapshot()
