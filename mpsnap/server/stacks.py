"""The Python stacks of running nodes, also of one that hangs.

This module owns the files in memory that nodes write their stacks into when they get a signal. It must not know who
sends that. A node has no thread that could answer, and one in a loop in C could not even run it: so it is the signal
handler of `faulthandler`, which needs no interpreter, that writes.
"""

from __future__ import annotations

import asyncio
import contextlib
import os

from mpsnap.runtime.process import STACK_FILE

#: How long a stack may take, and how often it is looked for.
STACK_SECONDS = 1.0
LOOK_SECONDS = 0.005
_LINK = f"/memfd:{STACK_FILE} (deleted)"


def find(pid: int) -> str | None:
    """Return the path of a node's file, None if it has none or is gone."""
    folder = f"/proc/{pid}/fd"
    with contextlib.suppress(OSError):
        for name in os.listdir(folder):
            path = os.path.join(folder, name)
            with contextlib.suppress(OSError):
                if os.readlink(path) == _LINK:
                    return path
    return None


def clear(path: str) -> None:
    """Remove what earlier signals have written; what comes next stands at the beginning."""
    with contextlib.suppress(OSError):
        os.truncate(path, 0)


async def read(path: str) -> str | None:
    """Return what is written, once it is whole; None if nothing comes."""
    found = b""
    for _ in range(round(STACK_SECONDS / LOOK_SECONDS)):
        try:
            with open(path, "rb") as file:
                now = file.read()
        except OSError:
            return None
        # It is written line by line, by a process that may be interrupted: whole is what has not grown meanwhile.
        if now and now == found and now.endswith(b"\n"):
            return now.decode(errors="backslashreplace")
        found = now
        await asyncio.sleep(LOOK_SECONDS)
    return None
