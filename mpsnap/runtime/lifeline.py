"""A node dies with its supervisor: the kernel kills it, whatever it is doing.

This module owns the life pipe. The supervisor alone keeps the write end and never writes; when the supervisor is gone,
however it went, the kernel closes that end, and a node that has tied itself to the read end gets SIGKILL from the
kernel: inside a C loop, with every signal blocked, or stopped. Ways that fail, each tried:

- `daemon=True` is an exit handler of the parent; a killed parent runs none.
- PR_SET_PDEATHSIG follows the thread that forked: under forkserver that is the wrong process, and a node started by a
  thread dies with that thread.
- a watching thread in the node does not run while C code holds the interpreter.

Between the start of a process and its own tie lies the import of the user's code, which may take long, and hang. So the
supervisor ties each node too, right after its start: to the open file that the node has inherited, which lives as long
as one of the two holds it. A forked node that is stopped within the microseconds before it has closed what it inherited
is beyond all this: it holds write ends itself.

Rules a maintainer keeps: no process but the supervisor may hold a write end, so every fork of it closes them at once
(`forget_in_children`). A process that the user's program starts by other means inherits none: the ends are
close-on-exec.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import select
import signal
import weakref
from typing import Protocol


class _Forgettable(Protocol):
    def forget(self) -> None:
        """Close in this process, a fork, what only the original may hold."""


_held: weakref.WeakSet[_Forgettable] = weakref.WeakSet()


def _forget_all() -> None:
    for holder in list(_held):
        holder.forget()


os.register_at_fork(after_in_child=_forget_all)


def forget_in_children(holder: _Forgettable) -> None:
    """Have `holder.forget()` called in every process forked from this one, for as long as `holder` lives."""
    _held.add(holder)


def tie(fd: int, number: int = signal.SIGKILL) -> int:
    """Tie this process's life to the pipe whose read end is `fd`; return the descriptor that holds the tie.

    The pipe is opened anew through /proc: owner and signal belong to the open file, which a forked `fd` shares with the
    supervisor and its other nodes. The caller closes `fd`. `number` is the signal that comes; SIGKILL for nodes.
    """
    own = os.open(f"/proc/self/fd/{fd}", os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    tie_other(own, os.getpid(), number)
    # The supervisor may have died before the tie was made; no signal comes for that, so look once.
    poll = select.poll()
    poll.register(own, 0)
    if poll.poll(0):
        os.kill(os.getpid(), number)
    return own


def tie_other(fd: int, pid: int, number: int = signal.SIGKILL) -> None:
    """Have the kernel send `pid` this signal when the other end of the pipe `fd` is closed.

    That holds for as long as anybody has this open file. The kernel remembers the process, not its number: when it is
    dead, no other process of that number gets the signal.
    """
    fcntl.fcntl(fd, fcntl.F_SETSIG, number)
    fcntl.fcntl(fd, fcntl.F_SETOWN, pid)
    fcntl.fcntl(fd, fcntl.F_SETFL, fcntl.fcntl(fd, fcntl.F_GETFL) | os.O_ASYNC)


def tie_child(fd: int, pid: int, pidfd: int) -> None:
    """Tie a process that was just started to the pipe whose read end is `fd`; nothing happens if it is dead."""
    with contextlib.suppress(ProcessLookupError):
        tie_other(fd, pid)
    poll = select.poll()
    poll.register(pidfd, select.POLLIN)
    if poll.poll(0):
        # Somebody, such as a forkserver, may have reaped it before, and then its number may have been another's.
        fcntl.fcntl(fd, fcntl.F_SETFL, fcntl.fcntl(fd, fcntl.F_GETFL) & ~os.O_ASYNC)
