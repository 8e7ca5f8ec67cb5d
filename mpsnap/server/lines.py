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
import json
import os
import socket
import struct
import sys
import traceback
from typing import Any

from mpsnap.core.errors import ClusterError, InputError, MpsnapError
from mpsnap.server.hub import Hub
from mpsnap.views.document import error_document

#: Bytes of one request.
MOST_LINE_BYTES = 64 * 1024
#: Connections at once, and requests under way on each.
MOST_CONNECTIONS = 64
MOST_REQUESTS = 8
#: How long a client may leave answers unread, while something waits to be written to it, before it is put out.
UNREAD_SECONDS = 10.0
_CREDENTIALS = struct.Struct("3i")


async def serve_lines(hub: Hub, listening: socket.socket) -> None:
    """Serve the control socket until the task is cancelled."""
    connections: set[asyncio.Task[None]] = set()

    async def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        connections.add(task)
        try:
            if len(connections) <= MOST_CONNECTIONS and _is_ours(writer):
                await _Connection(hub, reader, writer).serve()
        finally:
            connections.discard(task)
            writer.close()

    server = await asyncio.start_unix_server(connected, sock=listening, limit=MOST_LINE_BYTES)
    async with server:
        await server.serve_forever()


def _is_ours(writer: asyncio.StreamWriter) -> bool:
    """Whether the same user is at the other end: the folder lets nobody else through, but may be moved or bound."""
    connection: socket.socket = writer.get_extra_info("socket")
    found = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
    return bool(_CREDENTIALS.unpack(found)[1] == os.getuid())


class _Connection:
    """Serve one client."""

    def __init__(self, hub: Hub, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._hub = hub
        self._incoming = reader
        self._outgoing = writer
        self._writing = asyncio.Lock()
        self._requests: set[asyncio.Task[None]] = set()

    async def serve(self) -> None:
        """Read requests until the client goes, or breaks a rule."""
        try:
            while line := await self._line():
                if len(self._requests) >= MOST_REQUESTS:
                    await self._write({"id": None, "error": _told(ClusterError("too many requests at once"))})
                    return
                task = asyncio.create_task(self._carry_out(line))
                self._requests.add(task)
                task.add_done_callback(self._requests.discard)
        except (ConnectionError, TimeoutError, asyncio.TimeoutError):
            pass  # It has gone, or does not read.
        finally:
            for task in self._requests:
                task.cancel()

    async def _line(self) -> bytes:
        try:
            return await self._incoming.readline()
        except ValueError:
            error = InputError(f"a request of more than {MOST_LINE_BYTES} bytes")
            await self._write({"id": None, "error": _told(error)})
            return b""

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
            self._outgoing.close()
        except Exception as error:
            traceback.print_exception(error, file=sys.stderr)
            await self._refuse(number, _told(ClusterError(f"{type(error).__name__} in the control process")))

    async def _watch(self, number: Any, args: dict[str, Any]) -> None:
        if args.keys() != {"every"}:
            raise InputError("watch needs 'every' and takes nothing else")
        async for kind, value in self._hub.watch(args["every"]):
            await self._write({"id": number, "push": [kind, value]})

    async def _refuse(self, number: Any, told: dict[str, Any]) -> None:
        try:
            await self._write({"id": number, "error": told})
        except (ConnectionError, TimeoutError, asyncio.TimeoutError):
            self._outgoing.close()

    async def _write(self, answer: dict[str, Any]) -> None:
        # One after the other: `drain` by two tasks at once was an error before 3.11.
        async with self._writing:
            self._outgoing.write(json.dumps(answer, allow_nan=False).encode() + b"\n")
            await asyncio.wait_for(self._outgoing.drain(), UNREAD_SECONDS)


def _parsed(line: bytes) -> tuple[Any, str, dict[str, Any]]:
    try:
        request = json.loads(line)
    except (ValueError, RecursionError):
        raise InputError("a request that is no JSON") from None
    if not isinstance(request, dict) or not request.keys() <= {"id", "do", "args"}:
        raise InputError("a request is an object of 'id', 'do' and 'args'")
    number, do, args = request.get("id"), request.get("do"), request.get("args", {})
    if type(number) not in (int, str) or not isinstance(do, str) or not isinstance(args, dict):
        raise InputError("a request has an 'id', a name to 'do', and 'args' in an object")
    return number, do, args


def _told(error: MpsnapError) -> dict[str, Any]:
    return {**(error_document(error) or {}), "usage": isinstance(error, InputError)}
