"""What browsers and scrapers are served: the page, the API behind it, a stream of events, and the metrics.

This module owns the paths and what answers at each. It must not know who is let in (`guard`), how connections are held
to limits (`connections`), nor how what is asked for is done: the hub does that, and checks every argument.

    GET  /, /page/NAME                    the page: files, the same for everybody
    GET  /api/status, /api/why            documents
    GET  /api/state/NODE
    GET  /api/snapshots/N?short=1
    GET  /api/diff/OLD/NEW?short=1
    GET  /api/events?every=1.0            server-sent events: status, snapshot, lost, end
    POST /api/snapshot, command, pause, unpause, stop, kill
    GET  /metrics                         for Prometheus

A POST has the arguments of the request as a JSON object for its body. Every error is {"error": {what, where, try}}.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
from collections.abc import AsyncGenerator, AsyncIterator, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, cast

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route, Router

from mpsnap.core.errors import InputError
from mpsnap.core.words import shown
from mpsnap.server.connections import serve_connections
from mpsnap.server.guard import OBJECT, Gone, Guard, Refused, Rules, Way
from mpsnap.server.metrics import Metrics

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Receive, Scope, Send

#: Where the page's files are, and of which kinds they may be.
PAGE = Path(__file__).parent / "page"
KINDS: Mapping[str, str] = {
    ".html": "text/html; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".svg": "image/svg+xml",
    ".png": "image/png",
}
#: What is posted, each a request of the hub.
ORDERS = ("snapshot", "command", "pause", "unpause", "stop", "kill")
#: Streams of events at once.
MOST_STREAMS = 16
#: How often a stream tells its status, unless it is asked to do so at other times; and how soon one that has nothing to
#: tell says that it lives.
EVERY_SECONDS = 1.0
ALIVE_SECONDS = 10.0
#: When a page that has lost its stream comes again.
RETRY_MS = 1000


class Hub(Protocol):
    """What this needs of `mpsnap.server.hub.Hub`."""

    async def ask(self, do: str, args: dict[str, Any]) -> Any:
        """Carry a request out and return its result, plain JSON."""

    def watch(self, every: float) -> AsyncIterator[tuple[str, Any]]:
        """Yield what happens, until the run ends."""


async def serve(hub: Hub, token: str, sock: socket.socket) -> None:
    """Serve until the task is cancelled.

    Args:
        hub: Does what is asked for.
        token: What everybody must know who asks for more than the page's files.
        sock: Bound to 127.0.0.1 and listening; it is closed in the end.
    """
    await serve_connections(app(hub, token, sock.getsockname()[1]), sock)


def app(hub: Hub, token: str, port: int) -> ASGIApp:
    """Return the application that answers at a port."""
    site = _Site(hub)
    routes, ways = [], []
    for method, path, answer, more in site.ways():
        route = Route(path, answer, methods=[method])
        routes.append(route)
        ways.append(Way(route.path_regex, method, **more))
    # A path with a slash too many is none of these, and nobody is sent elsewhere.
    return Guard(Router(routes, redirect_slashes=False), Rules(port, token, ways))


class _Site:
    """Answer what was let in."""

    def __init__(self, hub: Hub) -> None:
        self._hub = hub
        self._files = dict(_files())
        self._metrics = Metrics()
        self._streams = 0

    def ways(self) -> Iterator[tuple[str, str, Any, dict[str, Any]]]:
        """Yield the method, the path, what answers, and what else is to be known at the door."""
        short, every = {"query": frozenset(("short",))}, {"query": frozenset(("every",))}
        for path in self._files:
            yield "GET", path, self._file, {"free": True}
        yield "GET", "/api/status", self._status, {}
        yield "GET", "/api/why", self._why, {}
        yield "GET", "/api/state/{node}", self._state, {}
        yield "GET", "/api/snapshots/{number}", self._content, short
        yield "GET", "/api/diff/{old}/{new}", self._diff, short
        yield "GET", "/api/events", self._events, every
        yield "GET", "/metrics", self._metrics_text, {}
        for order in ORDERS:
            yield "POST", f"/api/{order}", self._order, {}

    async def _file(self, request: Request) -> Response:
        content, kind = self._files[request.scope["path"]]
        return Response(content, media_type=kind)

    # ----------------------------------------------------------------- documents

    async def _status(self, request: Request) -> Response:
        return await self._asked(request, "status", {})

    async def _why(self, request: Request) -> Response:
        return await self._asked(request, "why", {})

    async def _state(self, request: Request) -> Response:
        return await self._asked(request, "state", {"node": request.path_params["node"]})

    async def _content(self, request: Request) -> Response:
        number = _number(request.path_params["number"])
        return await self._asked(request, "content", {"number": number, "short": _short(request)})

    async def _diff(self, request: Request) -> Response:
        old, new = (_number(request.path_params[name]) for name in ("old", "new"))
        return await self._asked(request, "diff", {"old": old, "new": new, "short": _short(request)})

    async def _order(self, request: Request) -> Response:
        return await self._asked(request, request.scope["path"].rpartition("/")[2], request.scope[OBJECT])

    async def _metrics_text(self, request: Request) -> Response:
        status = await self._ask(request, "status", {})
        text, kind = self._metrics.text(status, request.headers.get("accept", ""))
        return Response(text, media_type=kind)

    async def _asked(self, request: Request, do: str, args: dict[str, Any]) -> Response:
        return Response(_json(await self._ask(request, do, args)), media_type="application/json")

    async def _ask(self, request: Request, do: str, args: dict[str, Any]) -> Any:
        """Ask the hub, unless whoever asks goes meanwhile: who comes and goes must not fill it with requests."""
        asked = asyncio.ensure_future(self._hub.ask(do, args))
        gone = asyncio.ensure_future(_gone(request.receive))
        try:
            await asyncio.wait({asked, gone}, return_when=asyncio.FIRST_COMPLETED)
            if not asked.done():
                raise Gone
            return asked.result()
        finally:
            await _without(asked, gone)

    # -------------------------------------------------------------------- events

    async def _events(self, request: Request) -> Response:
        if request.method == "HEAD":
            return Response(media_type=_Stream.media_type)
        every = _seconds(request.query_params.get("every", str(EVERY_SECONDS)))
        return _Stream(self._watch(every))

    async def _watch(self, every: float) -> AsyncGenerator[tuple[str, Any], None]:
        if self._streams >= MOST_STREAMS:
            raise Refused(503, f"{MOST_STREAMS} streams of events are open", hint="later", headers=_LATER)
        self._streams += 1
        try:
            # Closed here: else what the hub keeps for it would be kept until somebody collects the garbage.
            async with contextlib.aclosing(
                cast("AsyncGenerator[tuple[str, Any], None]", self._hub.watch(every))
            ) as all_:
                async for item in all_:
                    yield item
        finally:
            self._streams -= 1


_LATER = ((b"retry-after", b"5"),)


class _Stream(Response):
    """Send events as they come, until they end or whoever listens is gone."""

    media_type = "text/event-stream"

    def __init__(self, items: AsyncGenerator[tuple[str, Any], None]) -> None:
        super().__init__()
        self._items = items

    def init_headers(self, headers: Mapping[str, str] | None = None) -> None:
        # Without a length, which nobody knows.
        self.raw_headers = [(b"content-type", b"text/event-stream; charset=utf-8")]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        gone = asyncio.ensure_future(_gone(receive))
        coming = asyncio.ensure_future(_next(self._items))
        try:
            # What is wrong with the request is found out by the first item, before an answer has begun.
            await asyncio.wait({coming, gone}, return_when=asyncio.FIRST_COMPLETED)
            if coming.done() and coming.exception() is None:
                await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
                await _send(send, f"retry: {RETRY_MS}\n\n")
            while not gone.done():
                if not coming.done():
                    await _send(send, ": alive\n\n")
                elif (item := coming.result()) is None:
                    await send({"type": "http.response.body", "body": b"", "more_body": False})
                    return
                else:
                    coming = asyncio.ensure_future(_next(self._items))
                    await _send(send, f"event: {item[0]}\ndata: {_json(item[1]).decode()}\n\n")
                await asyncio.wait({coming, gone}, timeout=ALIVE_SECONDS, return_when=asyncio.FIRST_COMPLETED)
        finally:
            await _without(coming, gone)
            await self._items.aclose()


async def _send(send: Send, text: str) -> None:
    await send({"type": "http.response.body", "body": text.encode(), "more_body": True})


async def _next(items: AsyncIterator[tuple[str, Any]]) -> tuple[str, Any] | None:
    return await anext(items, None)


async def _gone(receive: Receive) -> None:
    """Return when whoever asked is gone; its body was read before, or is none."""
    while (await receive())["type"] != "http.disconnect":
        pass


async def _without(*tasks: asyncio.Future[Any]) -> None:
    """Give tasks up."""
    for task in tasks:
        task.cancel()
    # What they have raised was looked at before, or is nobody's business any more.
    await asyncio.gather(*tasks, return_exceptions=True)


def _files() -> Iterator[tuple[str, tuple[bytes, str]]]:
    """Yield the path, the content and the kind of each of the page's files; whatever is added later is not served."""
    for path in sorted(PAGE.iterdir() if PAGE.is_dir() else ()):
        if path.suffix in KINDS:
            yield "/" if path.name == "index.html" else f"/page/{path.name}", (path.read_bytes(), KINDS[path.suffix])


def _json(document: Any) -> bytes:
    return json.dumps(document, allow_nan=False, separators=(",", ":")).encode()


def _number(text: str) -> int:
    if not (text.isascii() and text.isdigit() and len(text) < 20):
        raise InputError(f"{shown(text)} is not the number of a snapshot")
    return int(text)


def _short(request: Request) -> bool:
    given = request.query_params.get("short", "0")
    if given not in ("0", "1"):
        raise Refused(400, f"short is {shown(given)}", hint="0 or 1")
    return given == "1"


def _seconds(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise Refused(400, f"every is {shown(text)}", hint="a number of seconds") from None
