"""A supervisor that is none, for tests of what stands between one and those who look at its cluster."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

from mpsnap.core.errors import InputError, MpsnapError
from mpsnap.core.forms import parse_topology
from mpsnap.server.hub import Hub
from mpsnap.server.link import Splitter, frame

RING = parse_topology("ring:3")
FACTS = {
    **{"name": "tokens-1", "pid": 1, "began": 0.0, "url": None, "app": "tokens", "start_method": "fork"},
    **{"seed": 0, "store": None},
}


def run(test: Awaitable[None]) -> None:
    """Run a test in a loop of its own, within a time limit."""

    async def limited() -> None:
        await asyncio.wait_for(test, 30)

    asyncio.run(limited())


async def until(condition: Callable[[], object], what: str) -> None:
    """Let everything else in the loop go on until this is true."""
    deadline = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < deadline, f"waited 10 s for {what}"
        await asyncio.sleep(0.001)


def told(counts: int = 0, **changed: Any) -> dict[str, Any]:
    """Return what a supervisor says when it is asked for its status: so many messages sent on each channel."""
    node = {"pid": os.getpid(), "phase": "waiting", "turn_s": 0.5, "busy_s": 0.1, "paused": False}
    plain = {
        **{"state": "running", "nodes": dict.fromkeys(RING.nodes, node), "snapshots": [], "digests": []},
        "channels": {str(channel): {"sent": counts + 1, "taken": counts} for channel in RING.channels},
        **{"counts": {}, "deaths": [], "recoveries": [], "death_count": 0, "recovery_count": 0, "error": None},
        **{"incarnation": 0, "uptime_s": 12.3, "window": 4096},
    }
    return {**plain, **changed}


class Upstream:
    """Be the supervisor at the other end of the link: it answers as a test says, and notes what it is asked."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, dict[str, Any]]] = []
        #: By request: what is answered, made of its arguments; None is no answer, an error a refusal.
        self.answers: dict[str, Callable[[dict[str, Any]], Any]] = {"status": lambda args: told()}
        self._numbers: list[int] = []

    @contextlib.asynccontextmanager
    async def hub(self, first: int = 1) -> AsyncIterator[Hub]:
        """Yield a hub that asks this."""
        ours, theirs = socket.socketpair()
        self._reader, self._writer = await asyncio.open_unix_connection(sock=ours)
        made = Hub(*await asyncio.open_unix_connection(sock=theirs))
        shape = {"name": "ring:3", "nodes": list(RING.nodes), "channels": list(map(list, RING.channels))}
        self.post("hello", {**FACTS, "token": "secret", "topology": shape, "first": first})
        await made.begin()
        self._task = asyncio.create_task(self._answer())
        try:
            yield made
        finally:
            self.go()
            await made.ended()
            for task in (self._task, *made._tasks):
                task.cancel()
            await asyncio.gather(self._task, *made._tasks, return_exceptions=True)
            made._outgoing.close()
            made._readers.shutdown()

    def go(self) -> None:
        """End without a word."""
        self._writer.close()

    def post(self, *note: Any) -> None:
        self._writer.write(frame(note))

    def times(self, do: str) -> int:
        """How often this was asked."""
        return [each for each, _ in self.asked].count(do)

    async def _answer(self) -> None:
        splitter = Splitter()
        while data := await self._reader.read(1 << 16):
            for number, do, args in splitter.feed(data):
                self._numbers.append(number)
                self.asked.append((do, args))
                self._settle(number, do, args)

    def _settle(self, number: int, do: str, args: dict[str, Any]) -> None:
        try:
            result = self.answers[do](args) if do in self.answers else {}
        except MpsnapError as error:
            document = {"what": error.what, "where": error.where, "try": error.hint}
            self.post("refusal", number, {**document, "usage": isinstance(error, InputError)})
        else:
            if result is not None:
                self.post("answer", number, result)

    @property
    def numbers(self) -> list[int]:
        return self._numbers


def no_answer(args: dict[str, Any]) -> None:
    """Leave a request waiting."""
