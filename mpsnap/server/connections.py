"""Connections of the HTTP server, held to limits.

This module owns how many there may be, how long a request may take to arrive and an answer to be taken in, and how a
server ends. It must not know what is asked for.

The server is uvicorn, whose protocol waits for ever for the rest of a request and for whoever does not read; what it
lacks is added to it here. Nothing in it is asked for a signal handler, a log or a loop of its own.
"""

from __future__ import annotations

import asyncio
import json
import logging
import socket
import struct
from collections.abc import Iterable
from typing import TYPE_CHECKING

import h11
from uvicorn import Config
from uvicorn.protocols.http.h11_impl import H11Protocol
from uvicorn.server import ServerState

from mpsnap.server.guard import HEADERS, MOST_BODY_BYTES, MOST_HEAD_BYTES

if TYPE_CHECKING:
    from starlette.types import ASGIApp

MOST_CONNECTIONS = 32
#: How long a request may take to arrive, from the connection's beginning or from the last answer on it.
REQUEST_SECONDS = 5.0
#: Within so many seconds whoever is sent something takes in so many bytes of it, or all.
UNREAD_SECONDS = 10.0
LEAST_READ_BYTES = 64 * 1024
#: What of a request is read beyond what is let in, so that its refusal can be read, before the connection is cut.
MOST_REQUEST_BYTES = 16 * (MOST_HEAD_BYTES + MOST_BODY_BYTES)
#: What the kernel holds of an answer; with more, nobody would be seen to be slow for a long time.
UNREAD_BYTES = 256 * 1024
#: Connections that wait to be accepted; each of them is accepted at once, if only to be refused.
BACKLOG = 256

_AT_ONCE = struct.pack("ii", 1, 0)
_BUSY = json.dumps({"error": {"what": f"{MOST_CONNECTIONS} connections are open", "where": None, "try": "later"}})
_NO_HTTP = json.dumps({"error": {"what": "this is not HTTP", "where": None, "try": None}})


class Connection(H11Protocol):
    """One connection."""

    _clock: asyncio.TimerHandle | None = None
    _reading: asyncio.TimerHandle | None = None
    _taken = 0
    _is_unwanted = False

    def __init__(self, config: Config, state: ServerState, loop: asyncio.AbstractEventLoop) -> None:
        super().__init__(config, state, {}, loop)
        #: Done when nothing of this connection is left.
        self.closed: asyncio.Future[None] = loop.create_future()

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Begin, if there is room for one more."""
        super().connection_made(transport)
        if self._is_unwanted:
            transport.abort()
            return
        connection = transport.get_extra_info("socket")
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, UNREAD_BYTES)
        # An answer is its head and its body: the second would wait 40 ms for the first to be acknowledged. asyncio sees
        # to that only if the listening socket was made in one of several ways.
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        # All that does not go at once counts as unread.
        transport.set_write_buffer_limits(0)
        if len(self.connections) > MOST_CONNECTIONS:
            self.connections.discard(self)
            self._answer_and_close(503, _BUSY)
        else:
            self._watch_arrival()

    def connection_lost(self, exc: Exception | None) -> None:
        """End, whoever wanted it."""
        super().connection_lost(exc)
        # Only one of the ways to end does it there.
        self._unset_keepalive_if_required()
        self._stop_clock()
        self._stop_looking()
        self.closed.set_result(None)

    def abort(self) -> None:
        """End at once, or as soon as there is something to end."""
        self._is_unwanted = True
        # A socket that was accepted has its protocol before its transport.
        if self.transport is not None:
            self.transport.abort()

    # ------------------------------------------------------------------ requests

    def data_received(self, data: bytes) -> None:
        """Take in what has arrived, as long as it is not too much."""
        self._taken += len(data)
        if self._taken > MOST_REQUEST_BYTES:
            self.transport.abort()
            return
        super().data_received(data)
        self._watch_arrival()

    def on_response_complete(self) -> None:
        """Wait for the next request."""
        self._taken = 0
        super().on_response_complete()
        self._watch_arrival()

    def _watch_arrival(self) -> None:
        """Have a clock running as long as a request has not arrived as a whole."""
        if self.transport.is_closing() or self.conn.their_state in (h11.DONE, h11.MUST_CLOSE, h11.CLOSED):
            self._stop_clock()
        elif self._clock is None:
            self._clock = self.loop.call_later(REQUEST_SECONDS, self.transport.abort)

    def _stop_clock(self) -> None:
        if self._clock is not None:
            self._clock.cancel()
            self._clock = None

    def send_400_response(self, msg: str) -> None:
        """Refuse what is no HTTP, in the manner of all other answers."""
        self._answer_and_close(400, _NO_HTTP)

    def _answer_and_close(self, status: int, text: str) -> None:
        if self.conn.our_state in (h11.IDLE, h11.SEND_RESPONSE):
            body = text.encode()
            fields = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
            headers = [*fields, *HEADERS, (b"connection", b"close")]
            for event in (h11.Response(status_code=status, headers=headers), h11.Data(data=body), h11.EndOfMessage()):
                self.transport.write(self.conn.send(event) or b"")
        # In the midst of another answer there is no place for this one.
        self.transport.close()

    # ------------------------------------------------------------------- answers

    def pause_writing(self) -> None:
        """Begin to look whether what is sent is taken in."""
        super().pause_writing()
        self._look(None)

    def resume_writing(self) -> None:
        """Rest: everything was taken in."""
        super().resume_writing()
        self._stop_looking()

    def _look(self, before: int | None) -> None:
        left = self.transport.get_write_buffer_size()
        if before is not None and before - left < LEAST_READ_BYTES:
            # With what the kernel holds for it, which would be kept for minutes.
            self.transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _AT_ONCE)
            self.transport.abort()
        else:
            self._reading = self.loop.call_later(UNREAD_SECONDS, self._look, left)

    def _stop_looking(self) -> None:
        if self._reading is not None:
            self._reading.cancel()
            self._reading = None


async def serve_connections(app: ASGIApp, listening: socket.socket) -> None:
    """Serve an application until the task is cancelled; then nothing of it is left."""
    loop = asyncio.get_running_loop()
    config = Config(
        app,
        http=Connection,
        ws="none",
        lifespan="off",
        interface="asgi3",
        log_config=None,
        # Anybody who reaches the port could fill the log.
        log_level=logging.CRITICAL + 1,
        access_log=False,
        # What they say is not believed.
        proxy_headers=False,
        server_header=False,
        date_header=False,
        timeout_keep_alive=int(REQUEST_SECONDS),
        h11_max_incomplete_event_size=MOST_HEAD_BYTES,
    )
    config.load()
    state = ServerState()
    # uvicorn's own set knows a connection only once it was made, which is a while after its socket was accepted.
    opened: set[Connection] = set()

    def connection() -> Connection:
        new = Connection(config, state, loop)
        opened.add(new)
        new.closed.add_done_callback(lambda _: opened.discard(new))
        return new

    server = await loop.create_server(connection, sock=listening, backlog=BACKLOG)
    try:
        await loop.create_future()
    finally:
        # A server that is closed gives no transport to what it has accepted already, and does not close it either. So
        # it accepts no more, and is closed when all that was accepted has its transport: after this round of the loop.
        loop.remove_reader(listening)
        await asyncio.sleep(0)
        await _end(opened, state.tasks)
        server.close()


async def _end(opened: Iterable[Connection], tasks: Iterable[asyncio.Task[None]]) -> None:
    lost = [connection.closed for connection in opened]
    for connection in list(opened):
        connection.abort()
    answering = list(tasks)
    for task in answering:
        task.cancel()
    # Also what they have thrown: there is nobody left to tell it to.
    await asyncio.gather(*answering, *lost, return_exceptions=True)
