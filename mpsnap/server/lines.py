"""The control socket: JSON lines between this process and clients of the same user.

This module owns the connections of the Unix socket: who is let in, how much each may ask for at once, and when it is
put out. It must not know what requests mean.

    -> {"id": 1, "do": "status", "args": {}}
    <- {"id": 1, "result": ...}  or  {"id": 1, "error": {"what", "where", "try", "usage"}}
    -> {"id": 2, "do": "watch", "args": {"every": 1.0}}
    <- {"id": 2, "push": ["status", ...]}, and more of them until ["end", ...]
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import select
import socket
import struct
import sys
import time
import traceback
from typing import Any, NoReturn

from mpsnap.core.errors import ClusterError, InputError, MpsnapError
from mpsnap.server.hub import Hub
from mpsnap.views.document import error_document

#: Bytes of one request, and how long it may take to arrive once it has begun.
MOST_LINE_BYTES = 64 * 1024
LINE_SECONDS = 10.0
#: Connections at once, and requests under way on each.
MOST_CONNECTIONS = 64
MOST_REQUESTS = 8
#: How long a client may leave what is written to it unread before it is put out.
UNREAD_SECONDS = 10.0
#: How often it is looked whether a client that asks no more is still there.
GONE_SECONDS = 0.2
_CREDENTIALS = struct.Struct("3i")


async def serve_lines(hub: Hub, listening: socket.socket) -> None:
    """Serve the control socket until the run has ended and everybody has been told, or the task is cancelled."""
    connections: dict[_Connection, None] = {}

    async def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        connection = _Connection(hub, reader, writer)
        if not _is_ours(writer):
            connection.put_out()
            return
        if len(connections) >= MOST_CONNECTIONS and not _put_out_an_idle_one(connections):
            await connection.refuse(ClusterError(f"{MOST_CONNECTIONS} connections are open", hint="fewer at once"))
            return
        connections[connection] = None
        try:
            await connection.serve()
        finally:
            connections.pop(connection, None)

    server = await asyncio.start_unix_server(connected, sock=listening, limit=MOST_LINE_BYTES)
    try:
        await hub.ended()
        await asyncio.gather(*(connection.farewell() for connection in connections))
    finally:
        server.close()
        # Or it would be for the clients to end them, and from 3.12 on for this to wait for that.
        for connection in connections:
            connection.close()


def _put_out_an_idle_one(connections: dict[_Connection, None]) -> bool:
    """Make room by putting out the one that has asked nothing for longest, if there is one with nothing under way."""
    idle = [connection for connection in connections if connection.is_idle]
    if not idle:
        return False
    oldest = min(idle, key=lambda connection: connection.heard)
    oldest.put_out()
    del connections[oldest]
    return True


def _is_ours(writer: asyncio.StreamWriter) -> bool:
    """Whether the same user is at the other end: the folder lets nobody else through, but may be moved or bound."""
    connection: socket.socket = writer.get_extra_info("socket")
    found = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
    return bool(_CREDENTIALS.unpack(found)[1] == os.getuid())


def _has_gone(writer: asyncio.StreamWriter) -> bool:
    """Return whether nobody is at the other end, rather than somebody who has closed one direction."""
    poll = select.poll()
    poll.register(writer.get_extra_info("socket").fileno(), 0)
    return any(mask & select.POLLHUP for _, mask in poll.poll(0))


class _Connection:
    """Serve one client."""

    def __init__(self, hub: Hub, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._hub = hub
        self._incoming = reader
        self._outgoing = writer
        # All that the kernel does not take counts as unread; and what is drained is on its way.
        writer.transport.set_write_buffer_limits(0)
        self._writing = asyncio.Lock()
        self._requests: set[asyncio.Task[None]] = set()
        #: When it was heard last.
        self.heard = time.monotonic()

    @property
    def is_idle(self) -> bool:
        """Whether nothing that it has asked for is under way."""
        return not self._requests

    async def serve(self) -> None:
        """Read requests until the client goes, or breaks a rule."""
        try:
            while line := await self._line():
                self.heard = time.monotonic()
                if len(self._requests) >= MOST_REQUESTS:
                    await self.refuse(ClusterError(f"{MOST_REQUESTS} requests are under way on this connection"))
                    return
                task = asyncio.create_task(self._carry_out(line))
                self._requests.add(task)
                task.add_done_callback(self._requests.discard)
            await self._answer_the_rest()
        except (ConnectionError, TimeoutError, asyncio.TimeoutError):
            pass  # It has gone, or does not read, or write to the end what it has begun.
        except asyncio.CancelledError:
            pass  # This process ends. asyncio would complain of one that is cancelled.
        finally:
            for task in self._requests:
                task.cancel()
            self.close()

    async def _answer_the_rest(self) -> None:
        """Go on for whoever asks no more and still listens, as `nc -N` does; not for whoever has gone."""
        while self._requests and not (self._outgoing.is_closing() or _has_gone(self._outgoing)):
            # Nothing tells when it goes: its end of the connection was read before.
            await asyncio.wait(self._requests, timeout=GONE_SECONDS)

    async def refuse(self, error: MpsnapError) -> None:
        """Say why there is no more to be had here, and end the connection."""
        with contextlib.suppress(ConnectionError, TimeoutError, asyncio.TimeoutError):
            await self._write({"id": None, "error": _told(error)})
        self.close()

    def close(self) -> None:
        """End the connection; what is not written by now is lost."""
        if self._outgoing.transport.get_write_buffer_size():
            self.put_out()
        else:
            self._outgoing.close()

    def put_out(self) -> None:
        """End the connection at once. To close it would wait until all was read that is written, which may be never."""
        self._outgoing.transport.abort()

    async def farewell(self) -> None:
        """Return when all that was asked for is answered."""
        if self._requests:
            await asyncio.wait(self._requests)

    async def _line(self) -> bytes:
        try:
            first = await self._incoming.read(1)
            # It may be silent for as long as it likes, but not in the middle of a request.
            rest = b"" if first in (b"", b"\n") else await asyncio.wait_for(self._incoming.readline(), LINE_SECONDS)
            if len(rest) > MOST_LINE_BYTES:
                raise ValueError
        except ValueError:
            await self.refuse(InputError(f"a request of more than {MOST_LINE_BYTES} bytes"))
            return b""
        # What has no end came to one because the client has gone.
        return first + rest if (first + rest).endswith(b"\n") else b""

    async def _carry_out(self, line: bytes) -> None:
        number = None
        try:
            number, do, args = _parsed(line)
            if do == "watch":
                await self._watch(number, args)
            else:
                await self._write({"id": number, "result": await self._hub.ask(do, args)})
        except MpsnapError as error:
            await self._refuse(number, _told(error))
        except (ConnectionError, TimeoutError, asyncio.TimeoutError):
            self.put_out()
        except Exception as error:
            traceback.print_exception(error, file=sys.stderr)
            await self._refuse(number, _told(ClusterError(f"{type(error).__name__} in the control process")))

    async def _watch(self, number: Any, args: dict[str, Any]) -> None:
        if args.keys() != {"every"}:
            raise InputError("watch needs 'every' and takes nothing else")
        # Closed here: else what the hub keeps for it would be kept until somebody collects the garbage.
        async with contextlib.aclosing(self._hub.watch(args["every"])) as items:
            async for kind, value in items:
                await self._write({"id": number, "push": [kind, value]})

    async def _refuse(self, number: Any, told: dict[str, Any]) -> None:
        try:
            await self._write({"id": number, "error": told})
        except (ConnectionError, TimeoutError, asyncio.TimeoutError):
            self.put_out()

    async def _write(self, answer: dict[str, Any]) -> None:
        # One after the other: `drain` by two tasks at once was an error before 3.11.
        async with self._writing:
            self._outgoing.write(json.dumps(answer, allow_nan=False).encode() + b"\n")
            await asyncio.wait_for(self._outgoing.drain(), UNREAD_SECONDS)


def _parsed(line: bytes) -> tuple[Any, str, dict[str, Any]]:
    try:
        request = json.loads(line, parse_constant=_no_number)
    except (ValueError, RecursionError):
        raise InputError("a request that is no JSON") from None
    if not isinstance(request, dict) or not request.keys() <= {"id", "do", "args"}:
        raise InputError("a request is an object of 'id', 'do' and 'args'")
    number, do, args = request.get("id"), request.get("do"), request.get("args", {})
    if type(number) not in (int, str) or not isinstance(do, str) or not isinstance(args, dict):
        raise InputError("a request has an 'id', a name to 'do', and 'args' in an object")
    return number, do, args


def _no_number(constant: str) -> NoReturn:
    raise ValueError(f"{constant} is no number of JSON")


def _told(error: MpsnapError) -> dict[str, Any]:
    return {**(error_document(error) or {}), "usage": isinstance(error, InputError)}
