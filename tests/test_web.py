"""The HTTP server of the control plane: who is let in, what answers, and what nobody can do to it.

A hub that is none answers behind the real server, on a real socket, in a thread of its own.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import random
import re
import socket
import struct
import threading
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import httpx
import pytest
from conftest import wait_until
from fake_run import channel_of, digest_of, node_of, status_of

from mpsnap.core.errors import ClusterError, InputError
from mpsnap.server import connections, guard, web
from mpsnap.server.digests import Digests
from mpsnap.server.guard import HEADERS, Head, Refused, Rules, Way

TOKEN = "fMhX-0123_456789abcdefABCDEF"
BEARER = {"Authorization": f"Bearer {TOKEN}"}
#: The page, if it were this small.
FILES = {
    "index.html": "<!doctype html><title>page</title>",
    "main.js": "export const a = 1;",
    "page.css": "body { margin: 0 }",
    "notes.txt": "not for others",
}


def a_status() -> dict[str, Any]:
    """Return a status as the hub has it."""
    status = status_of([node_of("N1", busy_s=1.5), node_of("N2", busy_s=0.0)], [channel_of("N1", "N2", 3)])
    return {
        **status,
        "snapshots": [digest_of(0)],
        "snapshot_counts": Digests().counts(),
        "totals": {**status["totals"], "deaths": 0, "recoveries": 0},
    }


class FakeHub:
    """Answer what it is asked for, and tell watchers what a test pushes."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, dict[str, Any]]] = []
        #: What it answers, by request; an error that is returned is raised.
        self.answers: dict[str, Any] = {"status": a_status()}
        #: Requests that are not answered before this is set, and how many of them were given up.
        self.hung: set[str] = set()
        self.given_up = 0
        self.watchers: set[asyncio.Queue[tuple[str, Any]]] = set()
        #: What each watcher has been told.
        self.told = 0
        self.every: list[float] = []

    async def ask(self, do: str, args: Mapping[str, Any]) -> Any:
        self.asked.append((do, dict(args)))
        if do in self.hung:
            try:
                await asyncio.get_running_loop().create_future()
            except asyncio.CancelledError:
                self.given_up += 1
                raise
        answer = self.answers.get(do, {"did": do})
        if isinstance(answer, Exception):
            raise answer
        return answer

    def is_asked(self, times: int) -> bool:
        return len(self.asked) >= times

    async def watch(self, every: float) -> AsyncIterator[tuple[str, Any]]:
        self.every.append(every)
        if not 0.1 <= every <= 3600:
            raise InputError("'every' of watch is not 0.1 to 3600 seconds")
        queue: asyncio.Queue[tuple[str, Any]] = asyncio.Queue()
        self.watchers.add(queue)
        try:
            item = ("status", await self.ask("status", {}))
            while True:
                self.told += 1
                yield item
                if item[0] == "end":
                    return
                item = await self._next(queue)
        finally:
            self.watchers.discard(queue)

    async def _next(self, queue: asyncio.Queue[tuple[str, Any]]) -> tuple[str, Any]:
        return await queue.get()


class EndlessHub(FakeHub):
    """Have more to tell than anybody takes in."""

    async def _next(self, queue: asyncio.Queue[tuple[str, Any]]) -> tuple[str, Any]:
        await asyncio.sleep(0)
        return "status", {"text": "x" * 100_000}


class Answer(NamedTuple):
    """What came back; `headers` in small letters."""

    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def error(self) -> dict[str, Any]:
        told: dict[str, Any] = json.loads(self.body)["error"]
        assert told.keys() == {"what", "where", "try"}
        return told


class Connection(socket.socket):
    """A connection on which one answer after another is read."""

    _read = b""

    def answer(self, is_head: bool = False) -> Answer:
        """Read one; `is_head` if it is to a HEAD."""
        head, _, self._read = self._until(lambda data: b"\r\n\r\n" in data).partition(b"\r\n\r\n")
        first, *lines = head.decode("latin-1").split("\r\n")
        fields = [(name.lower(), value.strip()) for name, _, value in (line.partition(":") for line in lines)]
        headers = dict(fields)
        assert len(fields) == len(headers), "no header comes twice"
        length = 0 if is_head else int(headers["content-length"])
        body, self._read = (data := self._until(lambda data: len(data) >= length))[:length], data[length:]
        return Answer(int(first.split()[1]), headers, body)

    def _until(self, is_enough: Callable[[bytes], bool]) -> bytes:
        pieces = self._read
        while not is_enough(pieces):
            data = self.recv(1 << 20)
            if not data:
                raise ConnectionResetError("the server has closed the connection")
            pieces += data
        return pieces


class Server:
    """Serve a hub from a thread, for a `with` block."""

    def __init__(self, hub: FakeHub) -> None:
        self.hub = hub

    def __enter__(self) -> Server:
        self._listening = socket.create_server(("127.0.0.1", 0), backlog=64)
        self.port: int = self._listening.getsockname()[1]
        self._thread = threading.Thread(target=lambda: asyncio.run(self._serve()), name="web")
        self._started = threading.Event()
        self._thread.start()
        assert self._started.wait(10)
        return self

    async def _serve(self) -> None:
        self.loop = asyncio.get_running_loop()
        self._task = asyncio.ensure_future(web.serve(self.hub, TOKEN, self._listening))
        # Its first step, in which it reads the page's files, is done before a test's first.
        await asyncio.sleep(0)
        self._started.set()
        with contextlib.suppress(asyncio.CancelledError):
            await self._task
        assert len(asyncio.all_tasks()) == 1, "it leaves tasks behind"

    def __exit__(self, *_: object) -> None:
        self.end()

    def end(self) -> None:
        """Have it end; also right twice."""
        if not self._thread.is_alive():
            return
        self.loop.call_soon_threadsafe(self._task.cancel)
        self._thread.join(20)
        assert not self._thread.is_alive()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def host(self) -> bytes:
        return f"127.0.0.1:{self.port}".encode()

    def push(self, kind: str, value: Any) -> None:
        """Tell all watchers."""

        def tell() -> None:
            for queue in self.hub.watchers:
                queue.put_nowait((kind, value))

        self.loop.call_soon_threadsafe(tell)

    def client(self) -> httpx.Client:
        """Return a client that is let in."""
        return httpx.Client(base_url=self.url, headers=BEARER, trust_env=False, verify=False, timeout=20)

    def connect(self, receive_bytes: int | None = None) -> Connection:
        """Return a connection, to be closed by whoever wants it."""
        connection = Connection()
        if receive_bytes is not None:
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_bytes)
        connection.settimeout(20)
        connection.connect(("127.0.0.1", self.port))
        return connection

    def exchange(self, request: bytes) -> Answer:
        """Send these bytes and return what is answered."""
        with self.connect() as connection:
            connection.sendall(request)
            return connection.answer(request[:4] == b"HEAD")

    def request(self, target: str, *lines: bytes, method: str = "GET", body: bytes = b"") -> bytes:
        """Return a request that has the right Host and token, and these lines."""
        own = [b"Host: " + self.host, f"Authorization: Bearer {TOKEN}".encode()]
        if body:
            own += [b"Content-Type: application/json", f"Content-Length: {len(body)}".encode()]
        return raw(method, target, [*own, *lines], body)


def raw(method: str, target: str, lines: Sequence[bytes], body: bytes = b"", version: str = "1.1") -> bytes:
    first = f"{method} {target} HTTP/{version}".encode()
    return b"\r\n".join((first, *lines, b"", body))


@pytest.fixture(autouse=True)
def page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "page"
    folder.mkdir()
    for name, text in FILES.items():
        (folder / name).write_text(text)
    monkeypatch.setattr(web, "PAGE", folder)
    return folder


@pytest.fixture
def server() -> Iterator[Server]:
    with Server(FakeHub()) as started:
        yield started


#: Every path that there is, with the method that it takes.
GETS = (
    *("/", "/page/main.js", "/page/page.css", "/api/status", "/api/why", "/api/state/N1", "/api/snapshots/3"),
    *("/api/diff/3/4", "/api/events", "/metrics"),
)
POSTS = tuple(f"/api/{order}" for order in web.ORDERS)


def assert_guarded(answer: Answer) -> None:
    """Every answer bears the headers, and permits another origin nothing."""
    for name, value in HEADERS:
        assert answer.headers[name.decode()] == value.decode()
    assert not [name for name in answer.headers if name.startswith("access-control") or name == "server"]


# --- What answers. ---


@pytest.mark.parametrize(
    ("method", "path", "body", "asked"),
    [
        ("GET", "/api/status", None, ("status", {})),
        ("GET", "/api/why", None, ("why", {})),
        ("GET", "/api/state/N%201", None, ("state", {"node": "N 1"})),
        ("GET", "/api/snapshots/12", None, ("content", {"number": 12, "short": False})),
        ("GET", "/api/snapshots/12?short=1", None, ("content", {"number": 12, "short": True})),
        ("GET", "/api/diff/3/12", None, ("diff", {"old": 3, "new": 12, "short": False})),
        ("GET", "/api/diff/3/12?short=1", None, ("diff", {"old": 3, "new": 12, "short": True})),
        ("POST", "/api/snapshot", {"nodes": ["N1"], "wait": True}, ("snapshot", {"nodes": ["N1"], "wait": True})),
        (
            "POST",
            "/api/command",
            {"node": "N1", "command": [1, None]},
            ("command", {"node": "N1", "command": [1, None]}),
        ),
        ("POST", "/api/pause", {"nodes": []}, ("pause", {"nodes": []})),
        ("POST", "/api/unpause", {"nodes": ["N2"]}, ("unpause", {"nodes": ["N2"]})),
        ("POST", "/api/stop", {"node": None}, ("stop", {"node": None})),
        ("POST", "/api/kill", {"node": "N1"}, ("kill", {"node": "N1"})),
    ],
)
def test_every_path_asks_the_hub(server: Server, method: str, path: str, body: Any, asked: tuple[str, Any]) -> None:
    server.hub.answers[asked[0]] = {"did": "café \ud800 \u2028", "number": 2**63}
    with server.client() as client:
        answer = client.request(method, path, json=body)
    assert (answer.status_code, answer.headers["content-type"]) == (200, "application/json")
    assert answer.json() == server.hub.answers[asked[0]]
    assert server.hub.asked == [asked]


def test_the_page_is_files_of_a_fixed_list(server: Server, page: Path) -> None:
    (page / "late.js").write_text("added later")
    for path, name, kind in (
        ("/", "index.html", "text/html; charset=utf-8"),
        ("/page/main.js", "main.js", "text/javascript; charset=utf-8"),
        ("/page/page.css", "page.css", "text/css; charset=utf-8"),
    ):
        answer = server.exchange(raw("GET", path, [b"Host: " + server.host]))
        assert (answer.status, answer.headers["content-type"], answer.body.decode()) == (200, kind, FILES[name])
        assert_guarded(answer)
    missing = (
        "late.js",
        "notes.txt",
        "../web.py",
        "%2e%2e/web.py",
        "..%2fweb.py",
        "",
        "main.js/",
        "main.js%00",
        "//main.js",
    )
    for name in missing:
        assert server.exchange(server.request(f"/page/{name}")).status == 404, name
    assert server.hub.asked == []


def test_metrics_are_for_whoever_scrapes(server: Server) -> None:
    with server.client() as client:
        plain = client.get("/metrics")
        modern = client.get("/metrics", headers={"Accept": "application/openmetrics-text; version=1.0.0"})
    assert plain.headers["content-type"] == "text/plain; version=0.0.4; charset=utf-8"
    assert 'mpsnap_messages_in_flight{dst="N2",src="N1"} 3.0' in plain.text
    assert modern.headers["content-type"].startswith("application/openmetrics-text; version=1.0.0")
    assert modern.text.endswith("# EOF\n")


def test_no_path_leads_elsewhere(server: Server) -> None:
    for path in (
        "/api/status/",
        "//api/status",
        "/api",
        "/api/state/a/b",
        "/docs",
        "/favicon.ico",
        "/api/none",
        "/%2fapi",
    ):
        answer = server.exchange(server.request(path))
        assert answer.status == 404, path
        assert answer.error["what"] == "there is nothing at this path"
    assert server.exchange(server.request(f"http://evil.example:{server.port}/")).status == 404


def test_one_connection_carries_many_requests(server: Server) -> None:
    with server.connect() as connection:
        connection.sendall(server.request("/api/status") + server.request("/api/none"))
        assert [connection.answer().status for _ in range(2)] == [200, 404]
        connection.sendall(server.request("/api/why"))
        assert connection.answer().status == 200


# --- Who is let in: hosts, origins, sites. ---


def hosts(port: int) -> dict[bytes, bool]:
    """Return values of Host, and whether this server is meant."""
    right = [f"127.0.0.1:{port}", f"localhost:{port}"]
    wrong = [
        *("", "evil.example", f"evil.example:{port}", "127.0.0.1", "localhost", f"127.0.0.1:{port + 1}"),
        *(f"LOCALHOST:{port}", f"localhost.:{port}", f"127.1:{port}", f"2130706433:{port}", f"0.0.0.0:{port}"),
        *(f"[::1]:{port}", f"127.0.0.1:{port}.evil.example", f"127.0.0.1:{port}@evil.example", f"127.0.0.1:0{port}"),
        *(f"localhost:{port},evil.example", f"http://127.0.0.1:{port}", f"127.0.0.1:{port}/", f"evil.localhost:{port}"),
    ]
    return {**dict.fromkeys(map(str.encode, right), True), **dict.fromkeys(map(str.encode, wrong), False)}


@pytest.mark.parametrize("target", ["/", "/page/main.js", "/api/status", "/api/none", "/metrics"])
def test_only_this_server_is_meant(server: Server, target: str) -> None:
    bearer = f"Authorization: Bearer {TOKEN}".encode()
    for host, is_right in hosts(server.port).items():
        answer = server.exchange(raw("GET", target, [b"Host: " + host, bearer]))
        assert answer.status == ((404 if target == "/api/none" else 200) if is_right else 403), host
        assert_guarded(answer)
        assert b"evil" not in answer.body, "nothing of it comes back"
    # Without one, or with two, there is no saying who is meant.
    for lines, version in (([], "1.1"), ([b"Host: " + server.host] * 2, "1.1"), ([], "1.0")):
        answer = server.exchange(raw("GET", target, [*lines, bearer], version=version))
        assert answer.status in (400, 403)
        assert_guarded(answer)
    streams = server.exchange(raw("GET", "/api/events", [b"Host: evil.example", bearer]))
    posted = server.exchange(
        raw("POST", "/api/pause", [b"Host: evil.example", bearer, b"Content-Type: application/json"], b"{}")
    )
    assert (streams.status, posted.status) == (403, 403)
    assert [do for do, _ in server.hub.asked if do != "status"] == []


def table(right: Sequence[str | None], wrong: Sequence[str | None]) -> dict[str | None, bool]:
    """Return values of a header, None for its absence, and whether they are right."""
    return {**dict.fromkeys(right, True), **dict.fromkeys(wrong, False)}


ORIGINS = table(
    [None, "http://127.0.0.1:{port}", "http://localhost:{port}"],
    [
        *("null", "", "*", "http://evil.example", "http://127.0.0.1", "https://127.0.0.1:{port}", "http://127.0.0.1:1"),
        *("http://127.0.0.1:{port}/", "http://localhost:{port}.evil.example", "HTTP://127.0.0.1:{port}"),
    ],
)
SITES = table([None, "none", "same-origin"], ["same-site", "cross-site", "", "None"])
TOKENS = table(
    [f"Bearer {TOKEN}", f"bearer {TOKEN}"],
    [
        *(None, "", "Bearer", "Bearer ", TOKEN, f"Basic {TOKEN}", f"Bearer {TOKEN}x", f"Bearer {TOKEN[:-1]}"),
        *(f"Bearer {TOKEN.lower()}", f"Bearer{TOKEN}", f"Bearer {TOKEN} {TOKEN}", "Bearer \u00fc"),
    ],
)
TYPES = table(
    ["application/json", "application/json; charset=utf-8", "Application/JSON;charset=UTF-8"],
    [
        *(None, "", "text/plain", "application/x-www-form-urlencoded", "multipart/form-data", "application/jsonp"),
        *("text/plain; application/json", "application/json, text/plain", "application/json; charset=latin-1"),
    ],
)
METHODS = {"POST": True, **dict.fromkeys(("GET", "HEAD", "OPTIONS", "PUT", "PATCH", "DELETE", "TRACE", "post"), False)}


def some_of(values: Mapping[Any, bool]) -> list[tuple[Any, bool]]:
    """Return two of a table that are right, and three that are not: all of them would be a third of a million."""
    right = [(value, True) for value, is_right in values.items() if is_right]
    wrong = [(value, False) for value, is_right in values.items() if not is_right]
    return right[:2] + wrong[:3]


def test_of_all_combinations_only_the_right_one_passes() -> None:
    """Every column is right, or the request stays outside: the product of all tables, without a network."""
    rules = Rules(4321, TOKEN, [Way(re.compile("^/api/pause$"), "POST")])
    host = {b"127.0.0.1:4321": True, b"localhost:4321": True, b"evil.example": False}
    passed = 0
    tables: list[Any] = [host, METHODS, ORIGINS, SITES, TOKENS, TYPES]
    for row in itertools.product(*(some_of(each) for each in tables)):
        (name, _), (method, _), (origin, _), (site, _), (token, _), (kind, _) = row
        given = {
            b"host": name,
            b"origin": origin,
            b"sec-fetch-site": site,
            b"authorization": token,
            b"content-type": kind,
        }
        headers = [
            (key, value if isinstance(value, bytes) else value.format(port=4321).encode("latin-1"))
            for key, value in given.items()
            if value is not None
        ]
        try:
            guard.check(Head(method, "/api/pause", b"", headers, rules))
        except Refused:
            assert not all(is_right for _, is_right in row), row
        else:
            assert all(is_right for _, is_right in row), row
            passed += 1
    assert passed == 2 * 2 * 2 * 2 * 2


@pytest.mark.parametrize(
    ("name", "values", "status"),
    [
        ("Origin", ORIGINS, 403),
        ("Sec-Fetch-Site", SITES, 403),
        ("Authorization", TOKENS, 401),
        ("Content-Type", TYPES, 415),
    ],
)
def test_one_wrong_header_is_enough(server: Server, name: str, values: Mapping[str | None, bool], status: int) -> None:
    """The tables again, one column at a time, through the server."""
    right = {"Host": server.host.decode(), "Authorization": f"Bearer {TOKEN}", "Content-Type": "application/json"}
    for value, is_right in values.items():
        headers = {**right, name: value and value.format(port=server.port)}
        lines = [f"{key}: {each}".encode("latin-1") for key, each in headers.items() if each is not None]
        answer = server.exchange(raw("POST", "/api/pause", [*lines, b"Content-Length: 2"], b"{}"))
        assert answer.status == (200 if is_right else status), value
        assert_guarded(answer)
        if status == 401 and not is_right:
            assert answer.headers["www-authenticate"].startswith("Bearer ")
            assert TOKEN not in answer.body.decode()
    assert len(server.hub.asked) == sum(values.values())


@pytest.mark.parametrize("name", ["Origin", "Sec-Fetch-Site", "Authorization", "Content-Type"])
def test_a_header_that_comes_twice_must_be_right_twice(server: Server, name: str) -> None:
    lines = {
        "Origin": [f"Origin: {server.url}", "Origin: http://evil.example"],
        "Sec-Fetch-Site": ["Sec-Fetch-Site: same-origin", "Sec-Fetch-Site: cross-site"],
        "Authorization": [f"Authorization: Bearer {TOKEN}"],
        "Content-Type": ["Content-Type: application/json"],
    }[name]
    for order in (lines, lines[::-1]):
        answer = server.exchange(server.request("/api/pause", *map(str.encode, order), method="POST", body=b"{}"))
        assert answer.status in (401, 403, 415)
    assert server.hub.asked == []


def test_every_path_takes_one_method(server: Server) -> None:
    for method, path in itertools.product((*METHODS, "CONNECT", "PROPFIND"), (*GETS, *POSTS)):
        allowed = ("GET", "HEAD") if path in GETS else ("POST",)
        if method in allowed and (path == "/api/events" or method == "POST"):
            continue
        answer = server.exchange(server.request(path, b"Origin: " + server.url.encode(), method=method))
        assert_guarded(answer)
        if method in allowed:
            assert answer.status == 200, (method, path)
        else:
            assert (answer.status, answer.headers["allow"]) == (405, ", ".join(allowed)), (method, path)
    changed = {do for do, _ in server.hub.asked} - {"status", "why", "state", "content", "diff"}
    assert not changed, "nothing but POST changes anything"


def test_head_is_a_get_without_a_body(server: Server) -> None:
    for path in GETS:
        answer = server.exchange(server.request(path, method="HEAD"))
        assert (answer.status, answer.body) == (200, b""), path
    assert server.hub.watchers == set()


def test_the_token_is_only_taken_from_its_header(server: Server) -> None:
    for path in (*GETS, *POSTS):
        is_free = path == "/" or path.startswith("/page/")
        method, body = ("GET", b"") if path in GETS else ("POST", b"{}")
        without = [b"Host: " + server.host, b"Content-Type: application/json", f"Content-Length: {len(body)}".encode()]
        cookie = f"Cookie: token={TOKEN}".encode()
        assert server.exchange(raw(method, path, [*without, cookie], body)).status == (200 if is_free else 401), path
        for name in ("token", "t", "access_token"):
            target = f"{path}?{name}={TOKEN}"
            answer = server.exchange(raw(method, target, without, body))
            assert answer.status == (400 if is_free else 401)
            assert TOKEN not in answer.body.decode()
            # Not even beside the right one, since addresses are kept by browsers and shown to others.
            assert server.exchange(server.request(target, method=method, body=body)).status == 400
    assert server.hub.asked == []


# --- What is sent. ---


@pytest.mark.parametrize(
    "target",
    [
        *("/api/status?x=1", "/api/status?short=1", "/api/snapshots/1?short=2", "/api/snapshots/1?short=1&short=1"),
        *("/api/snapshots/1?short=", "/api/snapshots/1?SHORT=1", "/api/events?every=x", "/api/events?every=nan"),
        *("/api/events?every=0", "/api/events?every=1e99", "/api/events?every=-1", "/?x"),
    ],
)
def test_wrong_parameters_are_refused(server: Server, target: str) -> None:
    answer = server.exchange(server.request(target))
    assert answer.status == 400
    assert answer.error["what"]


@pytest.mark.parametrize("number", ["-1", "1.0", "x", "%31x", "\u0663", "1" * 20, "9" * 5000, "%0a1", "..", "latest"])
def test_what_is_no_number_is_no_snapshot(server: Server, number: str) -> None:
    for path in (f"/api/snapshots/{number}", f"/api/diff/{number}/1", f"/api/diff/1/{number}"):
        with server.client() as client:
            answer = client.get(path)
        assert answer.status_code == 404
    assert server.hub.asked == []


def nested(levels: int) -> bytes:
    return b'{"a":' * levels + b"1" + b"}" * levels


@pytest.mark.parametrize(
    ("body", "status"),
    [
        (b"{}", 200),
        (b' {"nodes": []} \n', 200),
        (nested(64), 200),
        (b'{"a": 18446744073709551615, "b": -9223372036854775808}', 200),
        (b"", 400),
        (b"{", 400),
        (b"{} {}", 400),
        (b"[]", 400),
        (b"null", 400),
        (b'"nodes"', 400),
        (b"17", 400),
        (b"nodes=N1", 400),
        (b"{'a': 1}", 400),
        (b'{"a": NaN}', 400),
        (b'{"a": -Infinity}', 400),
        (b'{"a": 1e999}', 400),
        (b'{"a": 18446744073709551616}', 400),
        (b'{"a": ' + b"9" * 5000 + b"}", 400),
        (b'{"a": "\xff"}', 400),
        (b"\xef\xbb\xbf{}", 400),
        ('{"a": 1}'.encode("utf-16"), 400),
        (nested(65), 400),
        (nested(10_000), 400),
        (b"[" * 65_536, 400),
        (b'{"a":' * 13_000, 400),
        (b" " * 65_536, 400),
        (b" " * 65_537, 413),
        (b"[" * 100_000, 413),
        (b'{"a": "' + b"x" * 200_000 + b'"}', 413),
    ],
    ids=lambda value: value[:20].decode("latin-1") if isinstance(value, bytes) else str(value),
)
def test_a_body_is_a_small_json_object(server: Server, body: bytes, status: int) -> None:
    assert server.exchange(server.request("/api/pause", b"X: y", method="POST", body=body or b" ")).status == status
    # Its length need not be told beforehand.
    chunks = [body[at : at + 30_000] for at in range(0, len(body), 30_000)]
    chunked = b"".join(b"%x\r\n%s\r\n" % (len(chunk), chunk) for chunk in chunks) + b"0\r\n\r\n"
    lines = [b"Host: " + server.host, f"Authorization: Bearer {TOKEN}".encode(), b"Content-Type: application/json"]
    answer = server.exchange(raw("POST", "/api/pause", [*lines, b"Transfer-Encoding: chunked"], chunked))
    assert answer.status == status
    assert_guarded(answer)
    assert len(server.hub.asked) == (2 if status == 200 else 0)


def test_a_compressed_body_is_refused(server: Server) -> None:
    answer = server.exchange(server.request("/api/pause", b"Content-Encoding: gzip", method="POST", body=b"{}"))
    assert answer.status == 415


def test_a_large_body_is_not_waited_for(server: Server) -> None:
    lines = [b"Host: " + server.host, b"Content-Type: application/json", b"Expect: 100-continue"]
    bearer = f"Authorization: Bearer {TOKEN}".encode()
    for more, status in (
        ([b"Content-Length: 1000000", bearer], 413),
        ([b"Content-Length: 99999999999999999999", bearer], 413),
        ([b"Content-Length: 10"], 401),
    ):
        assert server.exchange(raw("POST", "/api/pause", [*lines, *more])).status == status
    # But it is when it may come.
    with server.connect() as connection:
        connection.sendall(raw("POST", "/api/pause", [*lines, bearer, b"Content-Length: 2"]))
        assert connection.recv(100).startswith(b"HTTP/1.1 100 ")
        connection.sendall(b"{}")
        assert connection.answer().status == 200


def test_headers_are_bounded(server: Server) -> None:
    small = [b"A%d: b" % k for k in range(50)]
    assert server.exchange(server.request("/api/status", *small)).status == 200
    for lines in ([b"A%d: b" % k for k in range(100)], [b"A: " + b"x" * 20_000], [b"A: " + b"x" * 15_000] * 2):
        answer = server.exchange(server.request("/api/status", *lines))
        # A head that arrives in one piece is known to be too large only when it is there.
        assert answer.status in (400, 431)
        assert_guarded(answer)
    assert server.exchange(server.request("/api/state/" + "x" * 17_000)).status in (400, 431)


@pytest.mark.parametrize(
    "data",
    [
        *(b"\0" * 100, b"\r\n\r\n\r\nGET\r\n\r\n", b"GET / HTTP/x\r\n\r\n", b"GET  / HTTP/1.1\r\nHost: x\r\n\r\n"),
        *(
            b"GET / HTTP/1.1\r\nHost : x\r\n\r\n",
            b"GET /\0 HTTP/1.1\r\nHost: x\r\n\r\n",
            b"\x16\x03\x01\x02\x00\x01\x00" * 9,
        ),
        *(b"GET / HTTP/1.1\r\nHost: x\r\nContent-Length: -1\r\n\r\n", b"GET \xff HTTP/1.1\r\nHost: x\r\n\r\n"),
        *(b"GET / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: gzip\r\n\r\n", b'{"id": 1, "do": "status"}\n\n'),
    ],
)
def test_what_is_no_http_is_refused(server: Server, data: bytes) -> None:
    with server.connect() as connection:
        connection.sendall(data)
        answer = connection.answer()
        assert (answer.status, answer.headers["connection"]) == (400, "close")
        assert answer.error["what"] == "this is not HTTP"
        assert_guarded(answer)
        assert connection.recv(1) == b""


def test_rubbish_behind_a_request_closes_the_connection(server: Server) -> None:
    server.hub.hung.add("why")
    with server.connect() as connection:
        connection.sendall(server.request("/api/status") + b"\0\0\0\r\n\r\n")
        assert connection.answer().status == 200
        assert connection.answer().status == 400
    with server.connect() as connection:
        head = b"Transfer-Encoding: chunked\r\nContent-Type: application/json"
        connection.sendall(server.request("/api/pause", head, method="POST") + b"no length\r\n")
        # In the midst of the body: the answer is that, or none.
        with contextlib.suppress(ConnectionError):
            assert connection.answer().status == 400
    assert server.exchange(server.request("/api/status")).status == 200


def test_a_flood_is_cut(server: Server) -> None:
    def flood(connection: socket.socket) -> None:
        connection.sendall(server.request("/api/pause", b"Content-Length: 1000000000", method="POST"))
        while True:
            connection.sendall(b" " * 65_536)

    with server.connect() as connection, pytest.raises(OSError, match=r"reset|[Bb]roken pipe"):
        flood(connection)
    assert server.exchange(server.request("/api/status")).status == 200


# --- What goes wrong. ---


def test_errors_of_the_hub_are_told(server: Server) -> None:
    server.hub.answers.update(
        state=InputError("there is no node 'N9'", hint="N1"),
        pause=InputError("there is no node 'N9'", where="pause", hint="N1"),
        snapshot=ClusterError("the snapshot was abandoned", where="N2"),
    )
    with server.client() as client:
        for method, path, status, told in (
            ("GET", "/api/state/N9", 404, {"what": "there is no node 'N9'", "where": None, "try": "N1"}),
            ("POST", "/api/pause", 400, {"what": "there is no node 'N9'", "where": "pause", "try": "N1"}),
            ("POST", "/api/snapshot", 409, {"what": "the snapshot was abandoned", "where": "N2", "try": None}),
        ):
            answer = client.request(method, path, json={} if method == "POST" else None)
            assert (answer.status_code, answer.json()) == (status, {"error": told})


class Unexpected(Exception):
    pass


@pytest.mark.parametrize("path", ["/api/status", "/api/events", "/metrics", "/api/why"])
def test_what_is_unexpected_is_told_on_stderr_only(
    server: Server, path: str, capsys: pytest.CaptureFixture[str]
) -> None:
    secret = "\x1b]0;title\x07 secret of the state"
    server.hub.answers.update(status=Unexpected(secret), why=Unexpected(secret))
    answer = server.exchange(server.request(path))
    assert answer.status == 500
    assert_guarded(answer)
    number = json.loads(answer.body)["id"]
    assert number in answer.error["what"]
    assert "secret" not in answer.body.decode()
    assert "Traceback" not in answer.body.decode()
    text = capsys.readouterr().err
    assert f"unexpected error {number}" in text
    assert "Traceback" in text
    assert "Unexpected: \\x1b]0;title\\x07 secret" in text
    assert all(line.isprintable() for line in text.splitlines())
    assert TOKEN not in text
    server.hub.answers["status"] = a_status()
    assert server.exchange(server.request("/api/status")).status == 200


def test_an_answer_that_is_no_json_is_unexpected(server: Server, capsys: pytest.CaptureFixture[str]) -> None:
    for answer in ({"a": float("nan")}, {"a": b"bytes"}, {"a": object()}):
        server.hub.answers["why"] = answer
        assert server.exchange(server.request("/api/why")).status == 500
    assert capsys.readouterr().err.count("Traceback") == 3


def test_nothing_is_logged(server: Server, capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture) -> None:
    server.exchange(server.request("/api/status"))
    server.exchange(b"\0\0\0\r\n\r\n")
    server.exchange(server.request("/api/none", b"Connection: upgrade", b"Upgrade: websocket"))
    server.connect().close()
    assert server.exchange(server.request("/api/why")).status == 200
    assert capfd.readouterr() == ("", "")
    assert caplog.records == []


def test_whoever_goes_is_not_worked_for(server: Server) -> None:
    server.hub.hung.add("snapshot")
    for count in (1, 2, 3):
        with server.connect() as connection:
            connection.sendall(server.request("/api/snapshot", method="POST", body=b'{"wait": true}'))
            wait_until(partial(server.hub.is_asked, count), "the hub to be asked")
    wait_until(lambda: server.hub.given_up == len(server.hub.asked) == 3, "all of it to be given up")


# --- The stream. ---


class Stream:
    """Read events."""

    def __init__(self, answer: httpx.Response) -> None:
        self._lines = answer.iter_lines()

    def block(self) -> list[str]:
        """Return the lines of the next one."""
        return list(itertools.takewhile(bool, self._lines))

    def event(self) -> tuple[str, Any]:
        """Return the next one that tells something."""
        while True:
            block = self.block()
            if block and block[0].startswith("event: "):
                assert len(block) == 2
                return block[0].removeprefix("event: "), json.loads(block[1].removeprefix("data: "))
            assert block, "the stream has ended"


def test_the_stream_tells_what_happens(server: Server) -> None:
    with server.client() as client, client.stream("GET", "/api/events") as answer:
        assert answer.headers["content-type"] == "text/event-stream; charset=utf-8"
        assert answer.headers["cache-control"] == "no-store"
        stream = Stream(answer)
        assert stream.block() == ["retry: 1000"]
        assert stream.event() == ("status", a_status())
        for kind, value in (
            ("snapshot", digest_of(1, what="a\nb\r\n\ndata: c\u2028\ud800")),
            ("lost", {}),
            ("status", {"run": {}}),
            ("end", {"error": {"what": "N1 died", "where": "N1", "try": None}}),
        ):
            server.push(kind, value)
            assert stream.event() == (kind, value)
        assert stream.block() == [], "it has ended"
    assert server.hub.every == [1.0]
    wait_until(lambda: not server.hub.watchers, "the watcher to end")


def test_a_stream_says_that_it_lives(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(web, "ALIVE_SECONDS", 0.02)
    with server.client() as client, client.stream("GET", "/api/events?every=2.5") as answer:
        stream = Stream(answer)
        stream.event()
        assert [stream.block() for _ in range(3)] == [[": alive"]] * 3
        server.push("lost", {})
        assert stream.event() == ("lost", {})
    assert server.hub.every == [2.5]


def test_there_are_so_many_streams_and_those_that_go_make_room(server: Server) -> None:
    with contextlib.ExitStack() as stack:
        # One connection each, as each tab of a browser has.
        open_ones = [stack.enter_context(server.connect()) for _ in range(web.MOST_STREAMS)]
        for connection in open_ones:
            connection.sendall(server.request("/api/events"))
            assert connection.recv(12) == b"HTTP/1.1 200"
        answer = server.exchange(server.request("/api/events"))
        assert (answer.status, answer.headers["retry-after"]) == (503, "5")
        assert server.exchange(server.request("/api/status")).status == 200
        open_ones[0].close()
        wait_until(lambda: len(server.hub.watchers) == web.MOST_STREAMS - 1, "the watcher to end")
        with server.client() as client, client.stream("GET", "/api/events") as streamed:
            assert streamed.status_code == 200
    wait_until(lambda: not server.hub.watchers, "all watchers to end")


def test_a_stream_that_fails_later_is_cut(server: Server, capsys: pytest.CaptureFixture[str]) -> None:
    with server.client() as client, client.stream("GET", "/api/events") as answer:
        stream = Stream(answer)
        stream.event()
        server.push("status", object())
        with pytest.raises(httpx.RemoteProtocolError):
            stream.event()
    assert "unexpected error" in capsys.readouterr().err
    assert server.hub.watchers == set()


def test_whoever_does_not_read_is_cut(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connections, "UNREAD_SECONDS", 0.05)
    with Server(EndlessHub()) as server, server.connect(receive_bytes=4096) as connection:
        connection.sendall(server.request("/api/events"))
        wait_until(lambda: server.hub.told > 1, "something to be told")
        wait_until(lambda: not server.hub.watchers, "the slow one to be given up")
        # What it was told is what lies in the kernel: nothing grew.
        assert server.hub.told < 50
        # The same if an answer ends, and the connection with it.
        server.hub.answers["why"] = {"text": "x" * 10_000_000}
        with server.connect(receive_bytes=4096) as other:
            other.sendall(server.request("/api/why", b"Connection: close"))
            was_cut(other, reads=False)
        assert server.exchange(server.request("/api/status")).status == 200


def was_cut(connection: socket.socket, reads: bool = True) -> None:
    """Wait until the server has cut a connection, without reading what it has sent."""
    if reads:
        with contextlib.suppress(ConnectionError):
            while connection.recv(65_536):
                pass
        return
    wait_until(lambda: _is_closed(connection), "a connection to be cut")


def _is_closed(connection: socket.socket) -> bool:
    state: int = struct.unpack("B", connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 1))[0]
    return state == 7  # TCP_CLOSE, after a reset


def test_slow_but_steady_readers_are_served(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever takes in enough in time gets all, however long that lasts altogether."""
    monkeypatch.setattr(connections, "UNREAD_SECONDS", 0.2)
    with Server(FakeHub()) as server, server.connect(receive_bytes=65_536) as connection:
        server.hub.answers["why"] = {"text": "x" * 3_000_000}
        connection.sendall(server.request("/api/why"))
        answer = connection.answer()
        assert len(json.loads(answer.body)["text"]) == 3_000_000


# --- Those who hold connections. ---


def test_half_requests_are_cut(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connections, "REQUEST_SECONDS", 0.1)
    whole = server.request("/api/status")
    post = server.request("/api/pause", b"Content-Length: 100", b"Content-Type: application/json", method="POST")
    for begun in (b"", b"\r\n", b"G", whole[:-2], whole[:-20], post, post + b'{"nodes": '):
        with server.connect() as connection:
            connection.sendall(begun)
            was_cut(connection)
    # After an answer the clock begins anew, and is not stopped by a byte now and then.
    with server.connect() as connection:
        connection.sendall(whole)
        assert connection.answer().status == 200
        rest = iter(whole * 1000)

        def drips() -> bool:
            try:
                connection.send(bytes([next(rest)]))
            except OSError:
                return True
            return False

        # Slower than a request of that many bytes may take, whatever the machine does meanwhile.
        connection.settimeout(0)
        wait_until(drips, "the drip to be cut")
    assert server.hub.asked[1:] == [] or {do for do, _ in server.hub.asked} == {"status"}


def test_a_stream_is_no_half_request(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connections, "REQUEST_SECONDS", 0.01)
    monkeypatch.setattr(web, "ALIVE_SECONDS", 0.02)
    with server.connect() as connection:
        connection.sendall(server.request("/api/events"))
        seen = b""
        while seen.count(b": alive") < 5:
            seen += connection.recv(65_536)


def test_two_hundred_who_say_nothing_keep_nobody_out_for_long(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connections, "REQUEST_SECONDS", 0.3)
    with contextlib.ExitStack() as stack:
        silent = [stack.enter_context(server.connect()) for _ in range(200)]
        held, refused = 0, 0
        for connection in silent:
            connection.settimeout(20)
            said = b""
            with contextlib.suppress(ConnectionError):
                while data := connection.recv(65_536):
                    said += data
            refused += said.startswith(b"HTTP/1.1 503 ")
            held += not said
        assert held + refused == 200
        # Those that are held are cut in turn, so that a slow machine sees more than so many, one after the other.
        assert held >= connections.MOST_CONNECTIONS
        assert server.exchange(server.request("/api/status")).status == 200


def test_the_one_too_many_is_told(server: Server) -> None:
    with contextlib.ExitStack() as stack:
        for _ in range(connections.MOST_CONNECTIONS):
            connection = stack.enter_context(server.connect())
            connection.sendall(server.request("/api/status"))
            assert connection.answer().status == 200
        with server.connect() as one_more:
            answer = one_more.answer()
        assert answer.status == 503
        assert_guarded(answer)
        connection.close()
        wait_until(lambda: is_let_in(server), "room for another one")


def is_let_in(server: Server) -> bool:
    with contextlib.suppress(ConnectionError):
        return server.exchange(server.request("/api/status")).status == 200
    return False


def test_the_end_leaves_nothing(server: Server) -> None:
    """With streams open, requests under way and half ones: the fixture sees what is left."""
    server.hub.hung.add("why")
    with contextlib.ExitStack() as stack:
        for target in ("/api/events", "/api/why", "/api/status"):
            stack.enter_context(server.connect()).sendall(server.request(target))
        stack.enter_context(server.connect()).sendall(b"GET")
        wait_until(lambda: len(server.hub.asked) == 3, "all to be asked")
        server.end()
        assert server.hub.given_up == 1
        assert server.hub.watchers == set()


@pytest.mark.parametrize("before", range(6))
@pytest.mark.parametrize("after", range(6))
def test_the_end_closes_what_was_accepted_at_any_moment_before(before: int, after: int) -> None:
    """A socket that was accepted and has no transport yet is nobody's: so many rounds of the loop lie around it."""

    async def serve_and_end(client: socket.socket, listening: socket.socket) -> None:
        serving = asyncio.create_task(web.serve(FakeHub(), TOKEN, listening))
        for _ in range(1 + before):
            await asyncio.sleep(0)
        client.connect(listening.getsockname())
        for _ in range(after):
            await asyncio.sleep(0)
        serving.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await serving

    with socket.create_server(("127.0.0.1", 0)) as listening, socket.socket() as client:
        asyncio.run(serve_and_end(client, listening))
        client.settimeout(5)
        if listening.fileno() == -1:
            # The listening one is closed, and so is whatever it had accepted.
            with contextlib.suppress(ConnectionResetError):
                assert client.recv(1) == b""


# --- Anything at all. ---


class Part(NamedTuple):
    """One thing about a request that may be wrong."""

    right: Sequence[Any]
    wrong: Sequence[Any]


def test_of_two_thousand_random_requests_only_the_right_ones_pass(server: Server) -> None:
    seed = random.randrange(1 << 32)
    dice = random.Random(seed)
    parts = a_request(server.port)
    passed = 0
    connection = server.connect()
    try:
        for k in range(2000):
            if dice.random() < 0.05:
                rubbish(server, dice)
                continue
            # Mostly one thing is wrong, or none: with more, most of the rules would never decide.
            wrong = set(dice.choices(list(parts), k=dice.choice((0, 0, 1, 1, 1, 2))))
            chosen = {name: dice.choice(part.wrong if name in wrong else part.right) for name, part in parts.items()}
            before = len(server.hub.asked)
            data = compose(chosen)
            try:
                connection.sendall(data)
                status: int | None = connection.answer(chosen["method"] == b"HEAD").status
            except OSError:
                status = None
            told = f"seed {seed}, request {k}: {data!r} -> {status}"
            if wrong:
                assert status is None or 400 <= status < 500, told
                assert len(server.hub.asked) == before, told
                connection.close()
                connection = server.connect()
            else:
                assert status == 200, told
                passed += 1
                assert len(server.hub.asked) == before + 1, told
    finally:
        connection.close()
    assert passed > 300
    assert is_let_in(server)


def a_request(port: int) -> dict[str, Part]:
    named = [(host, ok) for host, ok in hosts(port).items()]

    def column(name: str, values: Mapping[str | None, bool], ok: bool) -> list[bytes]:
        lines = [
            value if value is None else f"{name}: {value.format(port=port)}"
            for value, is_ok in values.items()
            if is_ok is ok
        ]
        return [b"" if line is None else line.encode("latin-1") for line in lines]

    def both(name: str, values: Mapping[str | None, bool]) -> Part:
        return Part(column(name, values, True), column(name, values, False))

    return {
        "method": Part([b"POST"], [name.encode() for name, ok in METHODS.items() if not ok]),
        "target": Part(
            [path.encode() for path in POSTS],
            [
                b"/api/statuses",
                b"/api/",
                b"/page/",
                b"/pause/",
                b"/api/pause?x=1",
                b"/API/PAUSE",
                b"/api/pause\0",
                b"*",
            ],
        ),
        "host": Part([b"Host: " + h for h, ok in named if ok], [b"", *(b"Host: " + h for h, ok in named if not ok)]),
        "origin": both("Origin", ORIGINS),
        "site": both("Sec-Fetch-Site", SITES),
        "token": both("Authorization", TOKENS),
        "kind": both("Content-Type", TYPES),
        "more": Part(
            [b"", b"Accept: */*", b"X-Forwarded-Host: evil.example"],
            [b"A: " + b"x" * 17_000, b"A : b", b"Content-Encoding: br"],
        ),
        "body": Part(
            [b"{}", b'{"nodes": []}', b'{"a": "\\u2028"}'], [b"", b"[]", b"{", b"\xff\xfe", b"x" * 66_000, nested(100)]
        ),
    }


def compose(chosen: Mapping[str, bytes]) -> bytes:
    lines = [chosen[name] for name in ("host", "origin", "site", "token", "kind", "more") if chosen[name]]
    lines.append(b"Content-Length: %d" % len(chosen["body"]))
    first = chosen["method"] + b" " + chosen["target"] + b" HTTP/1.1"
    return b"\r\n".join((first, *lines, b"", chosen["body"]))


def rubbish(server: Server, dice: random.Random) -> None:
    """Send what is no request, or only a part of one, and go."""
    whole = server.request("/api/pause", b"X: y", method="POST", body=b"{}")
    choices: list[Callable[[], bytes]] = [
        lambda: dice.randbytes(dice.randrange(1, 300)),
        lambda: whole[: dice.randrange(len(whole) - 1)],
        lambda: whole[: dice.randrange(60)] + dice.randbytes(5) + b"\r\n\r\n",
    ]
    with server.connect() as connection:
        connection.sendall(dice.choice(choices)())
