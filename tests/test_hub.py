"""The pieces of the control plane, each alone: the hub against a supervisor that is none, its socket, its folders."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import fcntl
import json
import os
import shutil
import signal
import socket
import stat
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from cli_harness import cut
from conftest import wait_until

from mpsnap.core.codec import Codec
from mpsnap.core.errors import ClusterError, InputError, MpsnapError, SnapshotError
from mpsnap.core.events import (
    ClusterStopped,
    CommandLost,
    Progress,
    Replied,
    SnapshotAbandoned,
    SnapshotCompleted,
    SnapshotInitiated,
    StateTold,
)
from mpsnap.core.jsonform import to_json
from mpsnap.core.part import pack, unpack
from mpsnap.core.protocol import SnapshotId
from mpsnap.core.topology import parse_topology
from mpsnap.runtime.process import STACK_FILE
from mpsnap.runtime.pump import Pump
from mpsnap.server import child, client, control, hub, lines, link, rundir, stacks
from mpsnap.server.brief import SUMMARY, brief, summary
from mpsnap.server.child import Child
from mpsnap.server.control import Control
from mpsnap.server.digests import KEPT, REMEMBERED, Digests, Histogram
from mpsnap.server.hub import Hub
from mpsnap.server.lines import serve_lines
from mpsnap.server.link import Link, Splitter, frame
from mpsnap.server.looking import Snapshots
from mpsnap.server.picture import Picture
from mpsnap.server.rundir import RunDir
from mpsnap.views.document import diff_document, snapshot_document

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
        **{"incarnation": 0, "window": 4096},
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


# --- The hub: what it lets through, and what it asks. ---

WRONG: list[tuple[str, dict[str, Any], str]] = [
    ("status", {"node": "N1"}, "status takes no 'node'; try: status alone"),
    ("sttus", {}, "there is no request 'sttus'; try: status"),
    ("wach", {}, "there is no request 'wach'; try: watch"),
    ("__init__", {}, "there is no request '__init__'"),
    ("snapshot", {"nodes": "N1"}, "'nodes' of snapshot is 'N1', which is no nodes"),
    ("snapshot", {"nodes": [1]}, "'nodes' of snapshot is [1], which is no nodes"),
    ("snapshot", {"nodes": ["N4"]}, "there is no node 'N4'; try: N"),
    ("snapshot", {"wait": 1}, "'wait' of snapshot is 1, which is no bool"),
    ("snapshot", {"wait": None}, "'wait' of snapshot is None, which is no bool"),
    ("snapshot", {"node": ["N1"]}, "snapshot takes no 'node'; try: nodes"),
    ("content", {}, "content needs 'number'"),
    ("content", {"number": True}, "'number' of content is True, which is no number"),
    ("content", {"number": -1}, "'number' of content is -1, which is no number"),
    ("content", {"number": 1 << 63}, "which is no number"),
    ("content", {"number": "1"}, "'number' of content is '1', which is no number"),
    ("content", {"number": 1.0}, "'number' of content is 1.0, which is no number"),
    ("content", {"number": 1, "short": 0}, "'short' of content is 0, which is no bool"),
    ("diff", {"old": 1}, "diff needs 'new'"),
    ("diff", {"old": [], "new": 1}, "'old' of diff is [], which is no number"),
    ("state", {}, "state needs 'node'"),
    ("state", {"node": None}, "'node' of state is None, which is no node"),
    ("state", {"node": ["N1"]}, "'node' of state is ['N1'], which is no node"),
    ("state", {"node": "n1"}, "there is no node 'n1'; try: N1"),
    ("state", {"node": "N1\n"}, r"there is no node 'N1\n'"),
    ("command", {"node": "N1"}, "command needs 'command'"),
    ("command", {"command": 1}, "command needs 'node'"),
    ("pause", {"nodes": {"N1": 1}}, "which is no nodes"),
    ("pause", {"nodes": None}, "'nodes' of pause is None, which is no nodes"),
    ("unpause", {"nodes": ["N1", None]}, "which is no nodes"),
    ("stop", {"node": 0}, "'node' of stop is 0, which is no node or null"),
    ("stop", {"node": ""}, "there is no node ''"),
    ("kill", {}, "kill needs 'node'"),
    ("kill", {"node": None}, "'node' of kill is None, which is no node"),
]


def test_what_makes_no_sense_is_refused_and_reaches_nobody() -> None:
    async def test() -> None:
        upstream = Upstream()
        async with upstream.hub() as made:
            for do, args, expected in WRONG:
                with pytest.raises(InputError) as caught:
                    await made.ask(do, args)
                assert expected in str(caught.value)
            for every in (0, 0.01, 1e9, float("nan"), "1", None, True):
                with pytest.raises(InputError, match="'every' of watch is"):
                    await anext(made.watch(every))  # type: ignore[arg-type]
        assert upstream.asked == []

    run(test())


def test_what_makes_sense_is_handed_on_with_all_its_arguments() -> None:
    async def test() -> None:
        upstream = Upstream()
        async with upstream.hub() as made:
            upstream.answers["pause"] = lambda args: {"paused": args["nodes"]}
            assert await made.ask("pause", {"nodes": ["N2", "N1"]}) == {"paused": ("N2", "N1")}
            assert await made.ask("unpause", {}) == {}
            assert await made.ask("stop", {}) == {}
            assert await made.ask("stop", {"node": "N3"}) == {}
            assert await made.ask("kill", {"node": "N3"}) == {}
            assert await made.ask("hello", {}) == {"name": "tokens-1"}
        assert upstream.asked == [
            ("pause", {"nodes": ("N2", "N1")}),
            ("unpause", {"nodes": ()}),
            ("stop", {"node": None}),
            ("stop", {"node": "N3"}),
            ("kill", {"node": "N3"}),
        ]

    run(test())


@pytest.mark.parametrize(
    "command",
    [None, [1, [2]], {"list": [1], "deep": {"deeper": [True, 1.5, "x"]}}, 1 << 200, -(1 << 70), "\ud800"],
    ids=["null", "lists", "objects", "a large number", "a small number", "half a character"],
)
def test_a_command_arrives_as_the_json_that_it_is(command: object) -> None:
    async def test() -> None:
        upstream = Upstream()
        upstream.answers["command"] = lambda args: {
            "node": args["node"],
            "reply": json.dumps(Codec().decode(args["command"])),
        }
        async with upstream.hub() as made:
            assert await made.ask("command", {"node": "N1", "command": command}) == {"node": "N1", "reply": command}
            deep: Any = "x"
            for _ in range(500):
                deep = [deep]
            with pytest.raises(MpsnapError, match="more than 100 levels"):
                await made.ask("command", {"node": "N1", "command": deep})
        assert upstream.times("command") == 1

    run(test())


def test_errors_come_back_as_what_they_were() -> None:
    async def test() -> None:
        upstream = Upstream()
        async with upstream.hub() as made:
            for kind in (InputError, ClusterError):

                def refuse(args: dict[str, Any], kind: type[MpsnapError] = kind) -> None:
                    raise kind("no", where="N1", hint="yes")

                upstream.answers["pause"] = refuse
                with pytest.raises(kind) as caught:
                    await made.ask("pause", {})
                assert str(caught.value) == "N1: no; try: yes"

    run(test())


def test_only_so_many_requests_are_under_way() -> None:
    async def test() -> None:
        upstream = Upstream()
        upstream.answers["state"] = no_answer
        async with upstream.hub() as made:
            asked = [asyncio.create_task(made.ask("state", {"node": "N1"})) for _ in range(hub.MOST_REQUESTS)]
            await until(lambda: upstream.times("state") == hub.MOST_REQUESTS, "all of them")
            with pytest.raises(ClusterError, match="64 requests are under way already"):
                await made.ask("state", {"node": "N1"})
            # Whoever goes makes room.
            asked.pop().cancel()
            await asyncio.sleep(0)
            assert await made.ask("pause", {}) == {}
            upstream.go()
            for task in asked:
                with pytest.raises(ClusterError, match="the run has ended"):
                    await task
            with pytest.raises(ClusterError, match="the run has ended"):
                await made.ask("state", {"node": "N1"})

    run(test())


def test_answers_to_somebody_else_are_no_answers() -> None:
    """To one who has given up, or to the control process before this one, whose numbers were others."""

    async def test() -> None:
        upstream = Upstream()
        upstream.answers["pause"] = no_answer
        async with upstream.hub(first=(1 << 40) + 1) as made:
            waiting = asyncio.create_task(made.ask("pause", {}))
            await until(lambda: upstream.asked, "the question")
            assert upstream.numbers == [(1 << 40) + 1]
            upstream.post("answer", 1, {"paused": "wrong"})
            upstream.post("answer", (1 << 40) + 1, {"paused": "right"})
            assert await waiting == {"paused": "right"}

    run(test())


# --- The hub: status. ---


def test_many_viewers_cost_the_supervisor_one_status_an_interval() -> None:
    async def test() -> None:
        upstream = Upstream()
        async with upstream.hub() as made:
            began = time.monotonic()
            seen = [0] * 30

            async def view(k: int) -> None:
                async with contextlib.aclosing(made.watch(0.1)) as items:
                    async for kind, _ in items:
                        seen[k] += kind == "status"
                        if seen[k] == 4:
                            return

            await asyncio.gather(*(view(k) for k in range(30)))
            # Each wait is at least so long; on a slow machine there are fewer, never more.
            assert 4 <= upstream.times("status") <= (time.monotonic() - began) / hub.STATUS_SECONDS + 2
            assert not made._viewers

    run(test())


def test_a_status_shows_what_was_done_before() -> None:
    """Also if another one was asked for just before, and is not there yet."""

    async def test() -> None:
        upstream = Upstream()
        done = 0

        def pause(args: dict[str, Any]) -> dict[str, Any]:
            nonlocal done
            done += 1
            return {"paused": []}

        upstream.answers = {"pause": pause, "status": lambda args: told(done)}
        async with upstream.hub() as made:
            for k in range(1, 50):
                earlier = asyncio.create_task(made.status()) if k % 2 else None
                await made.ask("pause", {})
                assert (await made.ask("status", {}))["channels"][0]["handled"] == k
                if earlier is not None:
                    await earlier
            # Without that, one is asked for no more often than it has to be.
            before = upstream.times("status")
            now = time.monotonic()
            while time.monotonic() - now < 0.02:
                await made.status()
            assert upstream.times("status") <= before + 1

    run(test())


def test_whoever_gives_up_waiting_for_a_status_takes_it_from_nobody() -> None:
    async def test() -> None:
        upstream = Upstream()
        upstream.answers["status"] = no_answer
        async with upstream.hub() as made:
            first, second = (asyncio.create_task(made.status()) for _ in range(2))
            await until(lambda: upstream.asked, "the question")
            first.cancel()
            await asyncio.gather(first, return_exceptions=True)
            upstream.post("answer", upstream.numbers[0], told())
            assert (await second)["run"]["name"] == "tokens-1"
            assert upstream.times("status") == 1

    run(test())


# --- The hub: viewers. ---


def test_viewers_are_told_of_snapshots_and_nothing_is_asked_as_long_as_there_are_none() -> None:
    async def test() -> None:
        upstream = Upstream()
        upstream.answers["news"] = lambda args: [{"number": 7, "phase": "completed"}]
        async with upstream.hub() as made:
            upstream.post("changed")
            await made.ask("pause", {})
            await asyncio.sleep(2 * hub.CHANGES_SECONDS)
            assert upstream.times("news") == 0
            items = made.watch(3600)
            assert (await anext(items))[0] == "status"
            assert await anext(items) == ("snapshot", {"number": 7, "phase": "completed"})
            assert upstream.times("news") == 1
            upstream.post("changed")
            assert await anext(items) == ("snapshot", {"number": 7, "phase": "completed"})
            await items.aclose()
            assert not made._viewers

    run(test())


def test_a_slow_viewer_loses_what_it_has_no_room_for_and_sees_a_status_again() -> None:
    async def test() -> None:
        upstream = Upstream()
        upstream.answers["news"] = lambda args: [{"number": n} for n in range(60)]
        async with upstream.hub() as made:
            slow, quick = made.watch(3600), made.watch(3600)
            for items in (slow, quick):
                assert (await anext(items))[0] == "status"
            got: list[tuple[str, Any]] = []
            while len(got) < 120:
                if len(got) % 60 == 0:
                    upstream.post("changed")
                got.append(await anext(quick))
            assert got == [("snapshot", {"number": n}) for n in range(60)] * 2, "another one's slowness costs nothing"
            rest = [await anext(slow) for _ in range(22)]
            assert rest[0] == ("lost", {})
            assert [value["number"] for _, value in rest[1:21]] == list(range(40, 60))
            assert rest[21][0] == "status"
            for items in (slow, quick):
                await items.aclose()

    run(test())


@pytest.mark.parametrize("orderly", [True, False])
def test_everybody_is_told_the_end(orderly: bool) -> None:
    async def test() -> None:
        upstream = Upstream()
        async with upstream.hub() as made:
            before = made.watch(3600)
            assert (await anext(before))[0] == "status"
            error = {"what": "N1 died", "where": "N1", "try": None}
            if orderly:
                upstream.post("end", error)
            upstream.go()
            assert await made.run() is orderly
            gone = {"what": "the supervisor is gone", "where": None, "try": None}
            for items in (before, made.watch(3600)):
                rest = [item async for item in items]
                assert rest == [("end", {"error": error if orderly else gone})]
            await made.seen_off()

    run(test())


def test_there_are_only_so_many_viewers() -> None:
    async def test() -> None:
        upstream = Upstream()
        async with upstream.hub() as made:
            watching = [made.watch(3600) for _ in range(hub.MOST_VIEWERS)]
            for items in watching:
                await anext(items)
            with pytest.raises(ClusterError, match="64 viewers are there already"):
                await anext(made.watch(3600))
            for items in watching:
                await items.aclose()
            assert [kind async for kind, _ in _first(made.watch(3600))] == ["status"]

    run(test())


async def _first(items: Any) -> AsyncIterator[tuple[str, Any]]:
    async with contextlib.aclosing(items):
        yield await anext(items)


def test_a_hub_that_can_listen_no_more_ends_its_process() -> None:
    async def test() -> None:
        upstream = Upstream()
        async with upstream.hub() as made:
            upstream.post("nonsense")
            with pytest.raises(TypeError):
                await made.run()

    run(test())


def test_a_supervisor_that_is_gone_before_its_first_word() -> None:
    async def test() -> None:
        ours, theirs = socket.socketpair()
        ours.close()
        made = Hub(*await asyncio.open_unix_connection(sock=theirs))
        with pytest.raises(ConnectionError):
            await made.begin()
        made._outgoing.close()

    run(test())


# --- The socket of JSON lines. ---


class Served:
    """Serve a hub at a socket, and hold connections to it."""

    def __init__(self, made: Hub, path: str) -> None:
        self.hub = made
        self.path = path

    async def __aenter__(self) -> Served:
        listening = socket.socket(socket.AF_UNIX)
        listening.bind(self.path)
        listening.listen(128)
        self._task = asyncio.create_task(serve_lines(self.hub, listening))
        self._open: list[asyncio.StreamWriter] = []
        return self

    async def __aexit__(self, *_: object) -> None:
        for writer in self._open:
            writer.transport.abort()
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)
        # Whoever is told of the end of a connection is told in the next round.
        await asyncio.sleep(0.01)

    async def connect(self, limit: int = 1 << 20) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        reader, writer = await asyncio.open_unix_connection(self.path, limit=limit)
        self._open.append(writer)
        return reader, writer

    async def ask(self, *requests: bytes) -> list[dict[str, Any]]:
        """Send lines over a new connection, and return the answers, as many as there are lines."""
        reader, writer = await self.connect()
        writer.write(b"".join(requests))
        found = [json.loads(await reader.readline()) for _ in requests]
        writer.close()
        return found


@contextlib.asynccontextmanager
async def served(upstream: Upstream) -> AsyncIterator[Served]:
    with tempfile.TemporaryDirectory() as folder:
        async with upstream.hub() as made, Served(made, os.path.join(folder, "control")) as at:
            yield at


def line(do: str, number: object = 1, **args: Any) -> bytes:
    return json.dumps({"id": number, "do": do, "args": args}).encode() + b"\n"


@pytest.mark.parametrize(
    ("sent", "what"),
    [
        (b"\n", "a request that is no JSON"),
        (b"{\n", "a request that is no JSON"),
        (b"\x00\xff\xfe\n", "a request that is no JSON"),
        (b"\xff\xfe{\x00}\x00\n", "a request that is no JSON"),
        (b"[" * 60_000 + b"\n", "a request that is no JSON"),
        (b"1" * 5_000 + b"\n", None),
        (b"[]\n", "a request is an object of 'id', 'do' and 'args'"),
        (b'[{"id": 1, "do": "hello"}]\n', "a request is an object of 'id', 'do' and 'args'"),
        (b"null\n", "a request is an object of 'id', 'do' and 'args'"),
        (b'{"id": 1, "do": "hello", "and": 1}\n', "a request is an object of 'id', 'do' and 'args'"),
        (b'{"do": "hello"}\n', "a request has an 'id', a name to 'do', and 'args' in an object"),
        (b'{"id": true, "do": "hello"}\n', "a request has an 'id', a name to 'do', and 'args' in an object"),
        (b'{"id": 1.5, "do": "hello"}\n', "a request has an 'id', a name to 'do', and 'args' in an object"),
        (b'{"id": 1, "do": null}\n', "a request has an 'id', a name to 'do', and 'args' in an object"),
        (b'{"id": 1, "do": ["hello"]}\n', "a request has an 'id', a name to 'do', and 'args' in an object"),
        (b'{"id": 1, "do": "hello", "args": []}\n', "a request has an 'id', a name to 'do', and 'args' in an object"),
        (b'{"id": 1, "do": "command", "args": {"node": "N1", "command": NaN}}\n', "a request that is no JSON"),
        (b'{"id": 1, "do": "watch", "args": {}}\n', "watch needs 'every' and takes nothing else"),
        (b'{"id": 1, "do": "watch", "args": {"every": 1, "more": 1}}\n', "watch needs 'every' and takes nothing else"),
        (b'{"id": 1, "do": "watch", "args": {"every": -1}}\n', "'every' of watch is -1, not 0.1 to 3600 seconds"),
        (b'{"id": 1, "do": "hello", "args": {"\\u0000": 1}}\n', "hello takes no '\\x00'"),
    ],
)
def test_lines_that_are_no_requests(sent: bytes, what: str | None) -> None:
    async def test() -> None:
        upstream = Upstream()
        async with served(upstream) as at:
            # And the connection is as good as before.
            first, second = await at.ask(sent, line("hello", "x"))
            if first["id"] == "x":
                first, second = second, first
            assert first["error"]["usage"] is True
            assert what is None or first["error"]["what"] == what
            assert second == {"id": "x", "result": {"name": "tokens-1"}}
        assert upstream.asked == []

    run(test())


@pytest.mark.parametrize(("size", "fits"), [(lines.MOST_LINE_BYTES, True), (lines.MOST_LINE_BYTES + 1, False)])
def test_a_line_may_be_so_long(size: int, fits: bool) -> None:
    async def test() -> None:
        async with served(Upstream()) as at:
            text = b'{"id": "%s", "do": "hello"}'
            sent = text % (b"x" * (size - len(text) + 2))
            assert len(sent) == size
            (answer,) = await at.ask(sent + b"\n")
            if fits:
                assert answer["result"] == {"name": "tokens-1"}
            else:
                assert answer["error"]["what"] == "a request of more than 65536 bytes"
            # A connection that has gone astray is over; others are not.
            assert (await at.ask(line("hello")))[0]["result"] == {"name": "tokens-1"}

    run(test())


def test_a_client_is_told_why_even_if_it_was_still_sending() -> None:
    """The other end is closed by then, and what is sent meets nobody."""

    def ask(path: str) -> str:
        with (
            client.Client(client.Run("x", 1, path, answers=True)) as asked,
            pytest.raises(InputError, match="more than 65536 bytes") as caught,
        ):
            asked.ask("command", {"node": "N1", "command": "x" * 3_000_000})
        return str(caught.value)

    async def test() -> None:
        async with served(Upstream()) as at:
            await asyncio.to_thread(ask, at.path)

    run(test())


def test_half_a_line_and_then_silence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lines, "LINE_SECONDS", 0.1)

    async def test() -> None:
        async with served(Upstream()) as at:
            silent, _ = await at.connect()
            reader, writer = await at.connect()
            writer.write(line("hello")[:-5])
            assert await reader.read() == b"", "it is put out"
            # One that has said nothing at all may be silent for as long as it likes.
            assert not silent.at_eof()

    run(test())


def test_a_client_that_does_not_read_is_put_out_and_leaves_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lines, "UNREAD_SECONDS", 0.2)

    async def test() -> None:
        upstream = Upstream()
        upstream.answers["status"] = lambda args: told(deaths=["x" * 100_000])
        async with served(upstream) as at:
            descriptors = len(os.listdir("/proc/self/fd"))
            with socket.socket(socket.AF_UNIX) as deaf:
                deaf.connect(at.path)
                deaf.sendall(b"".join(line("watch", k, every=0.1) for k in range(lines.MOST_REQUESTS)))
                await until(lambda: len(at.hub._viewers) == lines.MOST_REQUESTS, "all of them")
                while at.hub._viewers:
                    assert (await at.ask(line("hello")))[0]["result"] == {"name": "tokens-1"}, "nobody else waits"
                await until(lambda: len(os.listdir("/proc/self/fd")) == descriptors + 1, "the other end to be closed")
            await until(lambda: len(os.listdir("/proc/self/fd")) == descriptors, "its descriptor")

    run(test())


def test_the_ninth_request_at_once_is_one_too_many() -> None:
    async def test() -> None:
        upstream = Upstream()
        upstream.answers["state"] = no_answer
        async with served(upstream) as at:
            reader, writer = await at.connect()
            writer.write(b"".join(line("state", k, node="N1") for k in range(lines.MOST_REQUESTS)))
            await until(lambda: upstream.times("state") == lines.MOST_REQUESTS, "all of them")
            writer.write(line("hello", 9))
            answer = json.loads(await reader.readline())
            assert answer["error"]["what"] == "8 requests are under way on this connection"
            assert await reader.read() == b""
            assert (await at.ask(line("hello")))[0]["result"]

    run(test())


def test_of_connections_that_ask_nothing_the_oldest_makes_room() -> None:
    async def test() -> None:
        upstream = Upstream()
        upstream.answers["state"] = no_answer
        async with served(upstream) as at:
            idle = []
            for _ in range(lines.MOST_CONNECTIONS):
                reader, writer = await at.connect()
                writer.write(line("hello"))
                assert await reader.readline()
                idle.append((reader, writer))
            # Not the first any more.
            idle[0][1].write(line("hello"))
            assert await idle[0][0].readline()
            assert (await at.ask(line("hello")))[0]["result"] == {"name": "tokens-1"}
            assert await idle[1][0].read() == b""
            assert not idle[0][0].at_eof()
            # With something under way, all stay.
            busy = [idle[0], *idle[2:], await at.connect()]
            for k, (_, writer) in enumerate(busy):
                writer.write(line("watch" if k % 2 else "hello", 2, **({"every": 3600} if k % 2 else {})))
            for reader, _ in busy:
                assert await reader.readline()

    run(test())


def test_where_all_connections_are_busy_one_more_is_refused() -> None:
    async def test() -> None:
        async with served(Upstream()) as at:
            busy = [await at.connect() for _ in range(lines.MOST_CONNECTIONS)]
            for reader, writer in busy:
                writer.write(line("watch", every=3600))
                assert json.loads(await reader.readline())["push"][0] == "status"
            reader, _ = await at.connect()
            assert json.loads(await reader.readline())["error"]["what"] == "64 connections are open"
            assert await reader.read() == b""
            busy[0][1].close()
            await busy[0][0].read()
            await asyncio.sleep(0.01)
            assert (await at.ask(line("hello")))[0]["result"] == {"name": "tokens-1"}

    run(test())


def test_somebody_else_gets_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    async def test() -> None:
        async with served(Upstream()) as at:
            monkeypatch.setattr(os, "getuid", lambda: os.geteuid() + 1)
            reader, writer = await at.connect()
            writer.write(line("hello"))
            with contextlib.suppress(ConnectionError):
                assert await reader.read() == b""
            monkeypatch.undo()

    run(test())


def test_an_error_of_ours_is_told_without_its_insides(capfd: pytest.CaptureFixture[str]) -> None:
    async def test() -> None:
        upstream = Upstream()
        upstream.answers["status"] = lambda args: {"nonsense": "S3CRET"}
        async with served(upstream) as at:
            (answer,) = await at.ask(line("status"))
            assert answer["error"]["what"] == "KeyError in the control process"
            assert "Traceback" not in json.dumps(answer)

    run(test())
    assert "Traceback" in capfd.readouterr().err


def test_the_end_is_written_to_the_last_byte() -> None:
    """To one that is slow, and behind much else."""

    async def test() -> None:
        upstream = Upstream()
        upstream.answers["status"] = lambda args: told(deaths=["x" * 3_000_000])
        upstream.answers["state"] = no_answer
        with tempfile.TemporaryDirectory() as folder:
            path = os.path.join(folder, "control")
            async with upstream.hub() as made:
                listening = socket.socket(socket.AF_UNIX)
                listening.bind(path)
                listening.listen()
                serving = asyncio.create_task(serve_lines(made, listening))
                reader, writer = await asyncio.open_unix_connection(path, limit=1 << 24)
                writer.write(line("watch", 1, every=3600) + line("state", 2, node="N1"))
                await until(lambda: upstream.times("state"), "both")
                upstream.post("end", None)
                upstream.go()
                await made.ended()
                assert not serving.done()
                answers = [json.loads(await reader.readline()) for _ in range(3)]
                await serving
                writer.close()
        by_id: dict[int, list[dict[str, Any]]] = {1: [], 2: []}
        for answer in answers:
            by_id[answer["id"]].append(answer)
        assert [answer["push"][0] for answer in by_id[1]] == ["status", "end"]
        assert by_id[2][0]["error"]["what"] == "the run has ended"

    run(test())


# --- The link. ---


def test_notes_arrive_however_they_are_cut() -> None:
    notes = [("a", 1, None), ("b", {"x": [1, 2.5, b"\x00" * 100]}), ("c", "\ud800", -(1 << 63), (1 << 64) - 1)]
    data = b"".join(map(frame, notes))
    expected = [("a", 1, None), ("b", {"x": (1, 2.5, b"\x00" * 100)}), notes[2]]
    for size in (1, 3, 7, len(data)):
        splitter = Splitter()
        found = [note for at in range(0, len(data), size) for note in splitter.feed(data[at : at + size])]
        assert found == expected


@pytest.fixture
def ends() -> Iterator[tuple[Link, socket.socket]]:
    ours, theirs = socket.socketpair()
    made = Link(ours)
    yield made, theirs
    made.close()
    theirs.close()


def test_what_has_no_form_leaves_nothing_half_written(ends: tuple[Link, socket.socket]) -> None:
    made, theirs = ends
    deep: Any = ()
    for _ in range(2000):
        deep = (deep,)
    for odd in (1 << 64, deep, object()):
        with pytest.raises((OverflowError, ValueError, TypeError)):
            made.post(("odd", odd))
    made.post(("even",))
    assert Splitter().feed(theirs.recv(1000)) == [("even",)]


def test_whoever_stops_reading_is_given_up_also_if_the_notes_are_small(
    ends: tuple[Link, socket.socket], monkeypatch: pytest.MonkeyPatch
) -> None:
    made, _theirs = ends
    monkeypatch.setattr(link, "MOST_WAITING_BYTES", 1_000_000)
    count = 0
    with pytest.raises(ConnectionError, match="bytes wait to be read"):  # noqa: PT012 - the last of many
        while True:
            made.post(("changed",))
            count += 1
            assert count < 20_000, "what holds a note takes more memory than the note"
    assert made.waits


def test_all_that_waits_is_written_before_the_end(ends: tuple[Link, socket.socket]) -> None:
    made, _theirs = ends
    made.post(("large", b"x" * 1_000_000))
    assert made.waits
    assert made.waiting_bytes > 500_000
    with pytest.raises(TimeoutError):
        made.end(("end",), 0.01)


@pytest.mark.parametrize(
    "garbage", [b"\x00\x00\x00\x01\xc1", b"\x00\x00\x00\x02\xa5x", b"\x00\x00\x00\x03\x81\x80\x01"]
)
def test_garbage_is_the_end_of_a_link(ends: tuple[Link, socket.socket], garbage: bytes) -> None:
    made, theirs = ends
    theirs.sendall(garbage)
    with pytest.raises(ConnectionError, match="no note"):
        made.read()
    theirs.close()
    with pytest.raises(ConnectionError):
        made.read()


# --- The control process, from the supervisor's side. ---

#: In place of the control process: says what it heard first, asks three things, and does as it is told.
CHILD = """
import json, os, signal, socket, sys, time
sys.path[:] = json.loads(sys.argv[1])["path"]
from mpsnap.server.link import Splitter, frame
given = json.loads(sys.argv[1])
link = socket.socket(fileno=given["link"])
splitter = Splitter()
def hear():
    while True:
        for note in splitter.feed(link.recv(65536)):
            yield note
notes = hear()
kind, facts = next(notes)
for k in range(3):
    link.sendall(frame((facts["first"] + k, "ask", {"k": k, "pid": os.getpid()})))
for kind, *content in notes:
    if kind == "die":
        os._exit(1)
    if kind == "end":
        os._exit(0)
"""


@pytest.fixture
def short(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Have the folders of runs in one whose path is short, as sockets have room for a hundred characters."""
    with tempfile.TemporaryDirectory(prefix="mpsnap-", dir="/tmp") as folder:
        monkeypatch.setenv("XDG_RUNTIME_DIR", folder)
        yield Path(folder)


class Parent:
    """Hold a control process as a supervisor does."""

    def __init__(self) -> None:
        self.pump = Pump()
        self.pump.open()
        self.asked: list[tuple[int, int, int]] = []
        self.said: list[str] = []
        self.lost = 0
        self.folder = RunDir("one")
        self.child = Child(
            self.pump, self.folder, None, hello=lambda: {}, attend=self.attend, lost=self._lost, tell=self.said.append
        )

    def attend(self, number: int, do: str, args: Mapping[str, int]) -> None:
        self.asked.append((number, args["k"], args["pid"]))

    def _lost(self) -> None:
        self.lost += 1

    def until(self, condition: Callable[[], object]) -> None:
        deadline = time.monotonic() + 10
        while not condition():
            assert time.monotonic() < deadline
            self.pump.wait(0.1)

    def close(self) -> None:
        self.child.close("end", None)
        self.pump.close()


@pytest.fixture
def parent(short: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Parent]:
    monkeypatch.setattr(child, "_PROGRAM", CHILD)
    held = Parent()
    yield held
    held.close()
    assert not os.path.exists(held.folder.path)


def test_a_control_process_is_replaced_a_few_times_and_then_given_up(parent: Parent) -> None:
    parent.child.start()
    for life in range(child.MOST_DEATHS + 1):
        parent.until(lambda life=life: len(parent.asked) == 3 * (life + 1))  # type: ignore[misc]
        assert [number for number, _, _ in parent.asked[-3:]] == [life * child.REQUESTS_OF_ONE + k for k in (1, 2, 3)]
        assert parent.lost == life
        parent.child.post("die")
        parent.until(lambda life=life: parent.lost == life + 1)  # type: ignore[misc]
    assert len({pid for _, _, pid in parent.asked}) == child.MOST_DEATHS + 1
    assert parent.said[-1] == "the control process has died 4 times; the run goes on without it"
    assert not os.path.exists(parent.folder.path)
    # From now on there is nobody to tell, and nothing to give back; in a forked child neither.
    parent.child.post("whatever", 1 << 100)
    parent.child.forget()
    # Others may use its name.
    RunDir("one").close()


def test_what_a_dead_control_process_has_asked_is_left_aside(parent: Parent, monkeypatch: pytest.MonkeyPatch) -> None:
    """Three requests arrive together; to answer the first, it is found dead, and the next one started."""

    def attend(number: int, do: str, args: Mapping[str, int]) -> None:
        parent.attend(number, do, args)
        if parent.lost == 0:
            monkeypatch.setattr(first, "flush", broken)
            parent.child.post("answer", number, {})

    def broken() -> None:
        raise ConnectionError

    monkeypatch.setattr(parent.child, "_attend", attend)
    parent.child.start()
    first = parent.child._link
    three = len(b"".join(frame((k, "ask", {"k": k, "pid": 1 << 20})) for k in range(3)))
    wait_until(lambda: _arrived(first) >= three - 12, "all three")
    parent.until(lambda: len(parent.asked) >= 4)
    assert [k for _, k, _ in parent.asked[:2]] == [0, 0], "the other two are nobody's any more"
    assert parent.asked[1][0] == child.REQUESTS_OF_ONE + 1


def _arrived(made: Link) -> int:
    with contextlib.suppress(BlockingIOError):
        return len(made._socket.recv(1 << 16, socket.MSG_PEEK))
    return 0


def test_a_control_process_that_does_not_end_is_killed_in_time(parent: Parent, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(child, "END_SECONDS", 0.3)
    parent.child.start()
    parent.until(lambda: parent.asked)
    pid = parent.asked[0][2]
    os.kill(pid, signal.SIGSTOP)
    began = time.monotonic()
    parent.child.close("end", None)
    assert 0.3 <= time.monotonic() - began < 3.0
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)


# --- What others may have done, and what they are told. ---


class Cluster:
    """Stand in for a supervisor: note what is asked of it."""

    def __init__(self) -> None:
        self.pump_with = Pump()
        self.topology = RING
        self.state = "running"
        self.error: MpsnapError | None = None
        self.incarnation, self.window = 0, 4096
        self.paused: set[str] = set()
        self.done: list[tuple[Any, ...]] = []
        self.inspected = 0

    def status(self) -> dict[str, Any]:
        found = told()
        return {key: found[key] for key in ("state", "nodes", "channels", "snapshots")}

    def inspect(self) -> None:
        self.inspected += 1

    def trigger(self, nodes: tuple[str, ...]) -> SnapshotId:
        self.done.append(("trigger", *nodes))
        return SnapshotId(0, "N1", 2 * len(self.done) + 1)

    def ask_state(self, node: str) -> int:
        self.done.append(("state", node))
        return len(self.done)

    def command(self, node: str, command: object) -> int:
        self.done.append(("command", node, command))
        return len(self.done)

    def pause(self, nodes: tuple[str, ...]) -> None:
        if self.state != "running":
            raise ClusterError(f"the cluster is {self.state}")
        self.paused.update(nodes)

    def finish(self, node: str) -> None:
        raise ZeroDivisionError("a flaw")


class Told:
    """Stand in for the control process: hold what it is told."""

    def __init__(self, *args: object, attend: Callable[..., None], lost: Callable[[], None], **_: object) -> None:
        self.ask, self.lost = attend, lost
        self.notes: list[tuple[Any, ...]] = []
        self.waiting_bytes = 0

    def post(self, *note: Any) -> None:
        frame(note)  # which raises what the link would
        self.notes.append(note)

    def close(self, *note: Any) -> None:
        self.notes.append(note)

    def answers(self) -> list[tuple[Any, ...]]:
        """Return what was told since the last look; of refusals the words alone."""
        found = [(kind, *rest) for kind, *rest in self.notes]
        self.notes.clear()
        return [(*note[:2], note[2]["what"]) if note[0] == "refusal" else note for note in found]


class Steered(Control):
    """A control whose control process is none."""

    told: Told
    said: list[str]


@pytest.fixture
def steered(short: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[Steered, Told, Cluster]]:
    monkeypatch.setattr(control, "Child", Told)
    cluster: Any = Cluster()
    made = Steered(cluster, {"store": None}, name="one", port=None, stop=lambda: None, tell=lambda text: None)
    made.said = []
    made._tell = made.said.append
    made.told = made._child  # type: ignore[assignment]
    yield made, made.told, cluster
    made._folder.close()


ID = SnapshotId(0, "N1", 1)


def completed(number: int = 0, in_flight: int = 0, snapshot_id: SnapshotId | None = None) -> SnapshotCompleted:
    snapshot = cut(
        RING, {key: {"n": number} for key in RING.nodes}, {("N1", "N2"): list(range(in_flight))}, number=number
    )
    if snapshot_id is not None:
        snapshot.id = snapshot_id
    return SnapshotCompleted(snapshot, dict.fromkeys(RING.nodes, Progress(0.1, 0.2, ())))


def test_nothing_that_is_asked_raises_where_it_would_end_the_run(steered: tuple[Steered, Told, Cluster]) -> None:
    made, told_, cluster = steered
    for do, args in [
        ("nonsense", {}),
        ("pause", {}),
        ("pause", {"nodes": (), "more": 1}),
        ("content", {"number": "x"}),
        ("command", {"node": "N1", "command": b"no codec's"}),
        ("stop", {"node": "N1"}),
    ]:
        told_.ask(1, do, args)
    words = [what for _, _, what in told_.answers()]
    assert words[:3] == ["KeyError in the supervisor", "TypeError in the supervisor", "TypeError in the supervisor"]
    assert "not held any more" in words[3]
    assert words[5] == "ZeroDivisionError in the supervisor"
    assert "an error in the control plane, the run goes on: ZeroDivisionError: a flaw" in made.said
    cluster.state = "recovering"
    told_.ask(2, "pause", {"nodes": ()})
    assert told_.answers() == [("refusal", 2, "the cluster is recovering")]


def test_no_event_raises_where_it_would_end_the_run(steered: tuple[Steered, Told, Cluster]) -> None:
    made, told_, _ = steered
    broken: Any = SnapshotCompleted(None, {})  # type: ignore[arg-type]
    made.attend(broken)
    assert made.said[0].startswith("an error in the control plane, the run goes on: AttributeError")
    made.attend(completed())
    assert told_.answers() == [("changed",)]


@pytest.mark.parametrize("reply", [1 << 100, {"deep": [[[[(1, {2})]]]]}, float("nan"), "\ud800", b"\xff"])
def test_any_reply_can_be_told(steered: tuple[Steered, Told, Cluster], reply: object) -> None:
    made, told_, cluster = steered
    told_.ask(7, "command", {"node": "N1", "command": Codec().encode([1, (2,)])})
    assert cluster.done == [("command", "N1", [1, (2,)])]
    made.attend(Replied(1, "N1", reply))
    ((kind, number, answer),) = told_.answers()
    assert (kind, number, answer["node"]) == ("answer", 7, "N1")
    assert json.loads(answer["reply"]) == to_json(reply)
    made.attend(Replied(1, "N1", reply))
    assert told_.answers() == []


def test_who_waits_for_a_snapshot_or_an_answer_is_told_how_it_ends(steered: tuple[Steered, Told, Cluster]) -> None:
    made, told_, _ = steered
    told_.ask(1, "snapshot", {"nodes": (), "wait": False})
    told_.ask(2, "snapshot", {"nodes": ("N2",), "wait": True})
    first, second = SnapshotId(0, "N1", 3), SnapshotId(0, "N1", 5)
    assert made.asked_for(first)
    assert told_.answers() == []
    made.attend(SnapshotInitiated(0, first, ("N1",)))
    made.attend(SnapshotInitiated(1, second, ("N1",)))
    kinds = told_.answers()
    assert [kind for kind, *_ in kinds] == ["changed", "answer"], "that there is something new is told once"
    assert kinds[1][2]["digest"]["phase"] == "recording"
    made.attend(SnapshotAbandoned(0, first, SnapshotError("no")))
    assert not made.asked_for(first)
    made.attend(completed(1, snapshot_id=second))
    ((kind, number, answer),) = told_.answers()
    assert (kind, number) == ("answer", 2)
    assert answer["digest"]["number"] == 1
    assert [node for node, *_ in answer["parts"]] == ["N1", "N2", "N3"]
    told_.ask(3, "news", {})
    ((_, _, digests),) = told_.answers()
    assert [digest["phase"] for digest in digests] == ["abandoned", "completed"]
    # And what waits when the run ends.
    for number, (do, args) in enumerate(
        [
            ("snapshot", {"nodes": (), "wait": False}),
            ("snapshot", {"nodes": (), "wait": True}),
            ("state", {"node": "N1"}),
            ("state", {"node": "N2"}),
        ]
    ):
        told_.ask(number, do, args)
    made.attend(StateTold(5, "N1", None, SnapshotError("cannot be captured")))
    made.attend(CommandLost(6, "N2"))
    assert told_.answers() == [("refusal", 2, "cannot be captured"), ("refusal", 3, "N2 died before it answered")]
    made.attend(ClusterStopped(None))
    assert told_.answers() == [("refusal", 0, "the cluster has stopped"), ("refusal", 1, "the cluster has stopped")]


def test_what_is_asked_for_and_left_behind_is_bounded(
    steered: tuple[Steered, Told, Cluster], monkeypatch: pytest.MonkeyPatch
) -> None:
    made, told_, _cluster = steered
    for number in range(control.MOST_OPEN + 1):
        told_.ask(number, "snapshot", {"nodes": (), "wait": False})
    assert told_.answers() == [("refusal", 16, "16 snapshots are asked for and not complete")]
    made.attend(SnapshotAbandoned(0, SnapshotId(0, "N1", 3), SnapshotError("no")))
    told_.answers()
    told_.ask(1, "snapshot", {"nodes": (), "wait": False})
    assert told_.answers() == []
    for number in range(control.MOST_QUESTIONS + 1):
        told_.ask(number, "state", {"node": "N1"})
    assert told_.answers() == [("refusal", 256, "256 questions wait for an answer of a node")]
    # Of snapshots that nobody asks about, the newest are remembered.
    for n in range(1000):
        made.attend(SnapshotInitiated(n, SnapshotId(1, "N2", n), ("N2",)))
    told_.answers()
    told_.ask(9, "news", {})
    ((_, _, digests),) = told_.answers()
    assert [digest["number"] for digest in digests] == list(range(950, 1000))
    # With the process that has asked, its questions are gone, and the next one is told anew.
    told_.lost()
    told_.ask(1, "state", {"node": "N1"})
    made.attend(completed())
    assert told_.answers() == [("changed",)]


def test_what_is_too_large_to_be_told_is_refused_and_kills_nobody(
    steered: tuple[Steered, Told, Cluster], monkeypatch: pytest.MonkeyPatch
) -> None:
    made, told_, _ = steered
    monkeypatch.setattr(control, "LARGE_BYTES", 100)
    monkeypatch.setattr(control, "MOST_ANSWER_BYTES", 1000)
    large = b"x" * 500
    made.attend(completed(in_flight=500))
    told_.answers()
    told_.ask(1, "content", {"number": 0})
    told_.waiting_bytes = control.CROWDED_BYTES + 1
    for state in (b"small", large):
        told_.ask(2, "state", {"node": "N1"})
        made.attend(StateTold(len(made._supervisor.done), "N1", state, None))  # type: ignore[attr-defined]
    first, second, third = told_.answers()
    assert "more than is shown at once" in first[2]
    assert second == ("answer", 2, {"node": "N1", "state": b"small"})
    assert third[2] == "too much is on its way to be shown already"


# --- Digests. ---


def test_an_id_that_fell_out_comes_back_and_nothing_piles_up() -> None:
    digests = Digests()
    for n in range(REMEMBERED + 1):
        digests.attend(SnapshotInitiated(n, SnapshotId(0, "N1", n), ("N1",)))
    assert digests.digest(SnapshotId(0, "N1", 0)) is None
    assert digests.digest_of_number(0) is None
    event = completed(0, snapshot_id=SnapshotId(0, "N1", 0))
    digests.attend(event)
    found = digests.digest(SnapshotId(0, "N1", 0))
    assert found == digests.digest_of_number(0)
    assert found is not None
    assert (found["phase"], found["kept"]) == ("completed", True)
    # A store that has no room for weeks.
    for n in range(1000, 2000):
        digests.attend(SnapshotAbandoned(None, SnapshotId(0, "N2", n), SnapshotError("no room")))
    assert len(digests.documents([])) == REMEMBERED
    assert digests.counts()["outcomes"] == {"completed": 1, "abandoned": 1000}
    assert digests.attend(ClusterStopped(None)) is None


def test_what_is_kept_is_bounded_by_messages_too(monkeypatch: pytest.MonkeyPatch) -> None:
    digests = Digests()
    for n in range(KEPT + 5):
        digests.attend(completed(n))
    kept = [digest["number"] for digest in digests.documents([]) if digest["kept"]]
    assert kept == list(range(5, KEPT + 5))
    with pytest.raises(InputError, match="snapshot 4 is not held any more"):
        digests.content(4)
    monkeypatch.setattr("mpsnap.server.digests.KEPT_BYTES", 5000)
    for n in range(100, 103):
        event = completed(n, in_flight=3000)
        parts = {node: unpack(pack(part)) for node, part in event.snapshot._locals.items()}
        event.snapshot._locals = parts
        digests.attend(event)
        assert [digest["number"] for digest in digests.documents([]) if digest["kept"]] == [n]
    with pytest.raises(InputError, match="a snapshot first"):
        Digests().content(0)


def test_a_digest_names_what_an_open_snapshot_waits_for() -> None:
    digests = Digests()
    digests.attend(SnapshotInitiated(3, ID, ("N1",)))
    progress: dict[str, list[Any]] = {"N1": [0.1, 0.2, ()], "N2": [0.1, None, ("N1", "N3")], "N3": [None, None, None]}
    (digest,) = digests.documents([{"id": str(ID), "progress": progress}])
    assert digest["waiting"] == {"nodes": ["N2", "N3"], "channels": [["N1", "N2"], ["N3", "N2"]]}
    assert digest["nodes"]["N3"] == {"recorded_s": None, "closed_s": None, "awaits": None}
    assert digest["duration_s"] >= 0
    told_ = {node: Progress(*each) for node, each in progress.items()}
    digests.attend(SnapshotAbandoned(3, ID, SnapshotError("too late", where="N3"), told_))
    (digest,) = digests.documents([])
    assert digest["waiting"] == {"nodes": ["N2", "N3"], "channels": [["N1", "N2"], ["N3", "N2"]]}
    assert digest["error"] == {"what": "too late", "where": "N3", "try": None}


def test_a_histogram_counts_up_to_and_with_each_bound() -> None:
    histogram = Histogram((1.0, 2.0))
    for value in (0.5, 1.0, 1.5, 2.0, 9.0):
        histogram.add(value)
    assert histogram.document() == {"buckets": [[1.0, 2], [2.0, 4]], "count": 5, "sum": 14.0}


# --- The status document. ---


def picture() -> Picture:
    return Picture({**FACTS, "topology": "ring:3"}, RING.nodes, [(c.src, c.dst) for c in RING.channels])


def test_a_status_adds_up() -> None:
    document = picture().document(told(41), None)
    for node in document["nodes"]:
        sent = [each for each in document["channels"] if each["src"] == node["name"]]
        handled = [each for each in document["channels"] if each["dst"] == node["name"]]
        assert (node["sent"], node["handled"], node["backlog"]) == (42, 41, 1)
        assert sum(each["sent"] for each in sent) == node["sent"]
        assert sum(each["in_flight"] for each in handled) == node["backlog"]
        assert (node["pid"], node["handled_per_s"]) == (os.getpid(), None)
    assert {name: document["totals"][name] for name in ("sent", "handled", "in_flight")} == {
        **{"sent": 126, "handled": 123, "in_flight": 3}
    }


def test_rates_are_of_the_time_between_and_nothing_is_handled_backwards(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 100.0
    monkeypatch.setattr("mpsnap.server.picture.time.monotonic", lambda: now)
    made = picture()
    assert made.document(told(0), None)["totals"]["handled_per_s"] is None
    now += 2.0
    assert made.document(told(10), None)["totals"]["handled_per_s"] == 15.0
    now += 0.1
    assert made.document(told(1000), None)["totals"]["handled_per_s"] == 15.0, "too soon for a new one"
    now += 1.9
    # A recovery took the counts back.
    assert made.document(told(5), None)["totals"]["handled_per_s"] == 0.0


@pytest.mark.parametrize(
    ("node", "channel", "state", "status"),
    [
        ({"phase": "starting"}, (0, 0), "starting", "starting"),
        ({"phase": "setup"}, (0, 0), "recovering", "starting"),
        ({"phase": "on_message"}, (5, 5), "running", "running"),
        ({"phase": "on_message", "paused": True}, (5, 5), "running", "paused"),
        ({"phase": "waiting", "paused": True}, (5, 0), "running", "paused"),
        ({"phase": "waiting"}, (5, 5), "running", "waiting"),
        ({"phase": "waiting"}, (5, 4), "running", "running"),
        ({"phase": "waiting"}, (4096, 0), "running", "blocked"),
        (None, (0, 0), "starting", "starting"),
        (None, (0, 0), "recovering", "dead"),
    ],
)
def test_what_a_node_is_doing_in_a_word(
    node: dict[str, Any] | None, channel: tuple[int, int], state: str, status: str
) -> None:
    plain = {"pid": os.getpid(), "turn_s": None, "busy_s": 0.0, "paused": False}
    counts = {str(each): {"sent": channel[0], "taken": channel[1]} for each in RING.channels}
    nodes = {} if node is None else {key: {**plain, **node} for key in RING.nodes}
    document = picture().document(told(state=state, nodes=nodes, channels=counts), None)
    assert {each["status"] for each in document["nodes"]} == {status}


def test_what_is_kept_is_what_the_store_still_has() -> None:
    digests = [{"number": n, "phase": "completed", "kept": True} for n in range(3)]
    document = picture().document(told(digests=digests), frozenset({1}))
    assert [digest["kept"] for digest in document["snapshots"]] == [False, True, False]
    assert {node["last_snapshot"] for node in document["nodes"]} == {2}


# --- Looking into snapshots; what is cut. ---


def test_a_snapshot_is_looked_into_whole_and_cut() -> None:
    event = completed(4, in_flight=60)
    digests = Digests()
    digests.attend(event)
    held = Snapshots(RING, None)
    assert held.kept() is None
    content = digests.content(4)
    whole = held.document(4, False, content)
    assert whole == snapshot_document(event.snapshot)
    short_ = held.document(4, True, content)
    channels = {(each["src"], each["dst"]): each["messages"] for each in short_["channels"]}
    assert channels["N1", "N2"] == [{"$more": 60}]
    assert {key: value for key, value in short_.items() if key != "channels"} == {
        key: value for key, value in whole.items() if key != "channels"
    }
    newer = completed(5)
    digests.attend(newer)
    found = held.diff((4, 5), False, (content, digests.content(5)))
    assert found == diff_document(event.snapshot.diff(newer.snapshot))
    assert found["differ"]


def test_of_a_store_that_is_gone_nothing_is_kept(tmp_path: Path) -> None:
    assert Snapshots(RING, str(tmp_path / "gone")).kept() == frozenset()


def test_cuts_say_how_much_they_leave_out() -> None:
    deep: Any = "x"
    for _ in range(12):
        deep = [deep]
    assert json.dumps(brief(deep)) == "[" * 9 + '{"$more": 1}' + "]" * 9
    assert brief({str(k): k for k in range(70)})["$more"] == 10
    assert brief({"a": [1, "b", None, True]}) == {"a": [1, "b", None, True]}
    # Two keys that differ behind the cut alone.
    long_ = "k" * 500
    assert sorted(brief({long_ + "1": 1, long_ + "2": 2}).values()) == [1, 2]


# --- Stacks. ---


def test_the_file_of_stacks_is_found_and_emptied_by_whoever_reads_it() -> None:
    fd = os.memfd_create(STACK_FILE, os.MFD_CLOEXEC)
    try:
        fcntl.fcntl(fd, fcntl.F_SETFL, os.O_APPEND)
        path = stacks.find(os.getpid())
        assert path is not None
        for _ in range(3):
            os.write(fd, b"Stack (most recent call first):\n")
            assert asyncio.run(stacks.read(path)) == "Stack (most recent call first):\n"
            stacks.clear(path)
            assert os.fstat(fd).st_size == 0, "or a node would keep all that it ever wrote"
    finally:
        os.close(fd)
    assert stacks.find(os.getpid()) is None
    assert asyncio.run(stacks.read(path)) is None
    stacks.clear(path)


# --- Folders of runs. ---


@pytest.fixture
def base(short: Path) -> Path:
    return short / "mpsnap"


def modes(path: Path) -> list[tuple[str, int]]:
    return [(each.name, stat.S_IMODE(each.stat().st_mode)) for each in sorted(path.iterdir())]


@pytest.mark.parametrize("umask", [0o000, 0o022, 0o077])
def test_nobody_else_gets_in_whatever_the_umask(base: Path, umask: int) -> None:
    before = os.umask(umask)
    try:
        made = RunDir("one")
    finally:
        os.umask(before)
    assert stat.S_IMODE(base.stat().st_mode) == 0o700
    assert modes(base) == [(".lock", 0o600), ("one", 0o700)]
    assert modes(base / "one") == [("control", 0o600), ("run.json", 0o600)]
    assert [(each.name, each.pid) for each in rundir.living()] == [("one", os.getpid())]
    made.close()
    assert modes(base) == [(".lock", 0o600)]


@pytest.mark.parametrize("mode", [0o701, 0o710, 0o722, 0o777])
def test_a_folder_that_others_may_enter_is_refused(base: Path, mode: int) -> None:
    base.mkdir()
    base.chmod(mode)
    with pytest.raises(InputError, match="not a folder of yours that nobody else may enter"):
        RunDir("one")
    with pytest.raises(InputError, match=f"chmod 700 {base}"):
        rundir.living()


def test_no_link_is_followed(base: Path, tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir(mode=0o700)
    base.symlink_to(elsewhere)
    with pytest.raises(InputError, match="not a folder of yours"):
        RunDir("one")
    base.unlink()
    base.mkdir(mode=0o700)
    (base / "one").symlink_to(elsewhere)
    with pytest.raises(InputError, match="there is a run called one already"):
        RunDir("one")
    assert rundir.living() == []
    (base / ".lock").unlink()
    (base / ".lock").symlink_to(elsewhere / "lock")
    with pytest.raises(ClusterError, match="cannot be opened"):
        RunDir("two")
    assert list(elsewhere.iterdir()) == []


@pytest.mark.parametrize("name", ["", ".", "..", "a/b", "-a", ".a", "a b", "a\n", "ä", "x" * 41, "a\x00", "../up"])
def test_names_that_are_none(base: Path, name: str) -> None:
    with pytest.raises(InputError, match="is no name of a run"):
        RunDir(name)
    assert not base.exists()


def test_a_path_that_is_too_long_for_a_socket(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    long_ = tmp_path / ("x" * 100)
    long_.mkdir(mode=0o700)
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(long_))
    with pytest.raises(InputError, match="longer than 100 bytes"):
        RunDir("one")
    assert [name for name, _ in modes(long_ / "mpsnap")] == [".lock"]


def test_what_the_dead_have_left_is_swept_and_the_living_never(base: Path) -> None:
    alive = RunDir("alive")
    dead = RunDir("dead")
    dead.socket.close()
    (base / "empty").mkdir()
    (base / "odd").mkdir()
    (base / "odd" / "control").write_text("no socket")
    (base / "file").write_text("somebody's")
    with pytest.raises(InputError, match="there is a run called alive already"):
        RunDir("alive")
    assert [name for name, _ in modes(base)] == [".lock", "alive", "file"]
    # Not even if nobody accepts, and no more can wait.
    waiting = []
    with contextlib.suppress(BlockingIOError):
        for _ in range(rundir.BACKLOG + 10):
            waiting.append(socket.socket(socket.AF_UNIX))
            waiting[-1].setblocking(False)
            waiting[-1].connect(alive.socket_path)
    assert [each.name for each in rundir.living()] == ["alive"]
    RunDir("dead").close()
    for each in waiting:
        each.close()
    alive.close()


def test_a_lock_that_is_never_let_go_keeps_nobody_for_ever(base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rundir, "LOCK_SECONDS", 0.1)
    made = RunDir("one")
    reading, writing = os.pipe()
    pid = os.fork()
    if pid == 0:
        # Record locks are a process's own.
        fd = os.open(base / ".lock", os.O_RDWR)
        fcntl.lockf(fd, fcntl.LOCK_EX)
        os.write(writing, b"x")
        signal.pause()
        os._exit(0)
    try:
        os.read(reading, 1)
        with pytest.raises(ClusterError, match=r"is locked for more than 0\.1 s"):
            RunDir("two")
        made.close()
        assert not (base / "one").exists()
    finally:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        os.close(reading)
        os.close(writing)


@pytest.mark.parametrize("harm", ["gone", "open to others", "moved"])
def test_a_run_ends_well_whatever_has_become_of_its_folder(
    base: Path, harm: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = RunDir("one")
    if harm == "gone":
        shutil.rmtree(base)
    elif harm == "open to others":
        base.chmod(0o777)
    else:
        monkeypatch.setenv("XDG_RUNTIME_DIR", "/nonexistent")
    made.close()
    assert not (base / "one").exists()


@pytest.mark.skipif(os.getuid() != 0, reason="only root can be somebody else")
def test_another_user_gets_nowhere(base: Path) -> None:
    made = RunDir("one")
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            os.setgid(65534)
            os.setuid(65534)
            with socket.socket(socket.AF_UNIX) as stranger:
                try:
                    stranger.connect(made.socket_path)
                except PermissionError as error:
                    status = 0 if error.errno == errno.EACCES else 2
        finally:
            os._exit(status)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    made.close()


@pytest.mark.parametrize(
    ("form", "words"),
    [
        ({"tokens": 7, "seen": [1, 2]}, "tokens=7, seen=[1, 2]"),
        ({"$tuple": [1, "x"]}, '{"$tuple": [1, "x"]}'),
        (None, "null"),
        ({}, "{}"),
        ({"text": "\x1b[2J" * 100}, None),
    ],
)
def test_a_state_is_told_in_a_few_words(form: Any, words: str | None) -> None:
    said = summary(form)
    assert len(said) <= SUMMARY
    assert words is None or said == words
