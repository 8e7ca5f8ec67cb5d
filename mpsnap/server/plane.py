"""The control process: what runs in it from its first line to its end.

This module owns the life of that process. It must not know what is asked and answered.

It ends when the supervisor says so, or is gone: then it removes the run's folder, since nobody else will.
"""

from __future__ import annotations

import asyncio
import os
import select
import signal
import socket
import sys
import traceback
from collections.abc import Callable, Mapping
from types import FrameType
from typing import Any, NoReturn

from mpsnap.runtime import lifeline
from mpsnap.server import rundir
from mpsnap.server.hub import Hub
from mpsnap.server.lines import serve_lines

#: How long it may go on without its supervisor before the kernel ends it.
ORPHAN_SECONDS = 3
#: How long viewers have to take in the end.
FAREWELL_SECONDS = 1.0


def main(given: Mapping[str, Any]) -> NoReturn:
    """Be the control process; never returns. `given` says which descriptors are what."""
    # Ctrl-C, the end of a terminal, a service manager's SIGTERM reach every process: the supervisor alone answers them.
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT, signal.SIGTERM})
    link = socket.socket(fileno=given["link"])
    signal.signal(signal.SIGCONT, _orphaned(link.fileno()))
    # Not SIGKILL, as for nodes: this process has a folder to remove. If it is stopped, this wakes it.
    lifeline.tie(given["life"], signal.SIGCONT)
    os.close(given["life"])
    asyncio.run(_live_and_die(link, given))
    raise AssertionError("it has not died")


def _orphaned(link: int) -> Callable[[int, FrameType | None], None]:
    def on_continue(number: int, frame: FrameType | None) -> None:
        poll = select.poll()
        poll.register(link, 0)
        if poll.poll(0):
            # Whatever this process does then, and however it hangs.
            signal.alarm(ORPHAN_SECONDS)

    return on_continue


async def _live_and_die(link: socket.socket, given: Mapping[str, Any]) -> NoReturn:
    # At once: nobody waits for threads that are still reading, and nothing is closed in good order. From 3.13 on, that
    # would remove the socket, through which whoever takes this one's place is to be reached.
    try:
        await _live(link, given)
        os._exit(0)
    except BaseException as error:
        traceback.print_exception(error, file=sys.stderr)
    finally:
        os._exit(1)


async def _live(link: socket.socket, given: Mapping[str, Any]) -> None:
    """Serve until the run has ended."""
    reader, writer = await asyncio.open_unix_connection(sock=link)
    hub = Hub(reader, writer)
    try:
        await hub.begin()
    except ConnectionError:
        rundir.remove(given["folder"])
        return
    servers = [asyncio.create_task(serve_lines(hub, socket.socket(fileno=given["lines"])))]
    if given["http"] is not None:
        from mpsnap.server.web import serve  # only where a page is asked for: it takes longer than all the rest

        servers.append(asyncio.create_task(serve(hub, hub.token, socket.socket(fileno=given["http"]))))
    for server in servers:
        server.add_done_callback(_told(hub))
    orderly = await hub.run()
    if not orderly:
        rundir.remove(given["folder"])
    await asyncio.wait([servers[0], asyncio.ensure_future(hub.seen_off())], timeout=FAREWELL_SECONDS)


def _told(hub: Hub) -> Callable[[asyncio.Task[None]], None]:
    def done(server: asyncio.Task[None]) -> None:
        if not server.cancelled() and hub.end is None:
            # Without its servers this process is of no use; the supervisor starts another.
            hub.fail(server.exception())

    return done
