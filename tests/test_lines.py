"""The socket of JSON lines: what is let in, and who is put out."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import socket
import tempfile
from collections.abc import AsyncIterator
from typing import Any

import pytest
from upstream import Upstream, no_answer, run, told, until

from mpsnap.core.codec import Codec
from mpsnap.core.errors import InputError
from mpsnap.server import client, lines
from mpsnap.server.hub import Hub
from mpsnap.server.lines import serve_lines

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


def test_who_asks_no_more_is_answered_all_the_same() -> None:
    """A shell's `echo ... | nc -N -U` closes its direction at once; whoever has gone altogether is not waited for."""

    async def test() -> None:
        upstream = Upstream()
        upstream.answers["state"] = no_answer
        async with served(upstream) as at:
            reader, writer = await at.connect()
            writer.write(line("state", node="N1"))
            writer.write_eof()
            await until(lambda: upstream.times("state") == 1, "a question")
            _, gone = await at.connect()
            gone.write(line("state", node="N2"))
            await until(lambda: upstream.times("state") == 2, "another one")
            assert len(at.hub._waiting) == 2
            gone.close()
            await until(lambda: len(at.hub._waiting) == 1, "that of the client that has gone to be given up")
            upstream.post("answer", upstream.numbers[0], {"state": Codec().encode(7)})
            assert json.loads(await reader.readline())["result"] == {"node": "N1", "state": 7, "bytes": 1}
            assert await reader.read() == b""

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
