"""Named moments at which a process comes to harm by its own hand: how tests have it die exactly there.

This module owns the names, the ways to come to harm, and the counting of how often a moment was met. It must not know
what anybody expects of it.

A plan is given to processes with their other arguments, for what a forkserver starts does not see this process's
environment. Nobody else acts: a signal from outside comes too early or too late.

    import          a node is about to import its class
    setup           it is about to run `setup`
    restore         it has read its part of a snapshot, and is about to take its state back
    ready           it has told that it is ready
    after_go        it has been told that hooks may run
    mid_send        a hook has sent one message more, and goes on
    mid_handler     `on_message` has done what it does, and has not returned
    before_record   it is about to fix its state
    after_record    its state is fixed, and no marker has left
    mid_markers     one marker more has left
    before_report   its part is complete, and nothing of it is staged
    after_stage     what is to be kept of its part is staged, and nobody knows
    after_report    it has told its part
    on_stop         it has been asked to stop, and is about to run `on_stop`
    after_halt      it has run `on_stop` and told so, and awaits the last cut
    last_record     it is about to fix its state for the last cut
    leaving         it has been told to end; with a store, the last cut is durable

A process without a plan pays for a look at an empty dict, and nothing of this stands where messages pass: who meets
`mid_send` or `mid_handler` runs another class.
"""

from __future__ import annotations

import os
import signal
from collections import Counter
from collections.abc import Iterable
from typing import Any, NamedTuple, NoReturn

from mpsnap.core.node import Context, Node
from mpsnap.core.nodecore import NodeCore


class Failpoint(NamedTuple):
    """Come to harm at the `hit`-th time that a moment is met in this incarnation, None for any.

    Actions: "kill9", "exit0", "raise", "stop" (by SIGSTOP), "loop", "c_loop" (which holds the interpreter).
    """

    name: str
    action: str = "kill9"
    hit: int = 1
    incarnation: int | None = 0


#: What this process has yet to suffer, by name, and how often each moment was met.
_armed: dict[str, list[Failpoint]] = {}
_met: Counter[str] = Counter()


def arm(plan: Iterable[Failpoint], incarnation: int) -> None:
    """Take a plan over, in place of one that a forked process has inherited."""
    _armed.clear()
    _met.clear()
    for point in plan:
        if point.incarnation in (None, incarnation):
            _armed.setdefault(point.name, []).append(point)


def fail_at(name: str) -> None:
    """Come to harm if the plan says so."""
    if _armed:
        _meet(name)


def stumbling(core: type[NodeCore], node: type[Node]) -> tuple[type[NodeCore], type[Node]]:
    """Return classes that also meet the moments inside hooks, or these if the plan has none there."""
    if "mid_send" in _armed:
        core = type(core.__name__, (_Sending, core), {})
    if "mid_handler" in _armed:
        node = type(node.__name__, (_Handling, node), {"__module__": node.__module__})
    return core, node


class _StumblingContext(Context):
    """Meet a moment after each message that is sent."""

    __slots__ = ()

    def send(self, dst: str, payload: Any) -> None:
        super().send(dst, payload)
        fail_at("mid_send")


class _Sending(NodeCore):
    """Give hooks such a context."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._ctx = _StumblingContext(self, self._outgoing, self.random)


class _Handling(Node):
    """Meet a moment at the end of `on_message`."""

    def on_message(self, ctx: Context, sender: str, payload: Any) -> None:
        super().on_message(ctx, sender, payload)
        fail_at("mid_handler")


def _meet(name: str) -> None:
    _met[name] += 1
    for point in _armed.get(name, ()):
        if point.hit == _met[name]:
            _suffer(point.action, name)


def _suffer(action: str, name: str) -> None:
    if action == "kill9":
        os.kill(os.getpid(), signal.SIGKILL)
    elif action == "exit0":
        os._exit(0)
    elif action == "raise":
        raise RuntimeError(f"failpoint {name}")
    elif action == "stop":
        os.kill(os.getpid(), signal.SIGSTOP)
    elif action == "loop":
        _loop()
    elif action == "c_loop":
        sum(range(1 << 62))
    else:
        raise ValueError(f"there is no way to come to harm called {action}")


def _loop() -> NoReturn:
    while True:
        pass
