"""A server for the dashboard's tests: the page's own files, and documents that the test writes.

It is as strict as a real one where the page has to be right: without the token, with a foreign origin or with a body
that is not JSON it refuses, and says in `refused` what it refused. It knows nothing of a cluster; `Fake.status` and the
like are what a test makes of them.
"""

from __future__ import annotations

import copy
import json
import queue
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, cast
from urllib.parse import quote, unquote

import mpsnap
from mpsnap.core.forms import parse_topology

Document = dict[str, Any]

PAGE = Path(mpsnap.__file__).parent / "server" / "page"
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src 'self' data:; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
KINDS = {".html": "text/html", ".css": "text/css", ".js": "text/javascript"}
BEGAN = 1_790_000_000.0
#: A stream that is to break, as if the server had gone.
BREAK = ("break", None)


class Fake:
    """What the server says. A test changes it and calls `push`; what the page asked for stands in `posts`."""

    def __init__(self, topology: str = "complete:8", token: str = "t0k/en+&=", **run: Any) -> None:
        self.token = token
        self.status = status_document(topology, **run)
        self.contents: dict[int, Document] = {}
        self.diffs: dict[tuple[int, int], Document] = {}
        self.states: dict[str, Any] = {}
        self.why: Document = {}
        #: What `POST /api/NAME` answers, by its name, if not as below; an exception is a refusal.
        self.answers: dict[str, Callable[[Document], Document]] = {}
        #: A snapshot that is asked for stays open.
        self.hold = False
        self.posts: list[tuple[str, Document]] = []
        self.refused: list[str] = []
        self.streams = 0
        self.down = False
        self._queues: list[queue.SimpleQueue[tuple[str, Any]]] = []
        self._lock = threading.Lock()

    @property
    def listening(self) -> int:
        """How many pages listen to the events."""
        return len(self._queues)

    # --- What happens. ---

    def push(self, event: str = "status", data: Any = None) -> None:
        """Send an event to every page; without data, the status as it is now."""
        data = copy.deepcopy(self.status if data is None and event == "status" else data)
        with self._lock:
            for stream in self._queues:
                stream.put((event, data))

    def tick(self, seconds: float = 1.0) -> None:
        """Let time go on by the status's clock, and push it."""
        self.status["run"]["uptime_s"] += seconds
        self.push()

    def break_streams(self, down: bool = False) -> None:
        """End all streams in the middle; with `down` nobody is let in again until `down` is taken back."""
        self.down = down
        with self._lock:
            for stream in self._queues:
                stream.put(BREAK)

    def begin(self, nodes: list[str]) -> Document:
        """Begin a snapshot, and end it too unless snapshots are held."""
        digest = digest_document(self.status, nodes or ["N1"])
        self.status["snapshots"].append(digest)
        self.push("snapshot", digest)
        begun = copy.deepcopy(digest)
        if not self.hold:
            self.complete(digest)
        return begun

    def complete(self, digest: Document) -> None:
        """Complete a snapshot: its nodes record one after another."""
        spread(digest)
        self.contents[digest["number"]] = content_document(self.status, digest)
        for node in self.status["nodes"]:
            node["last_snapshot"] = digest["number"]
        self.push("snapshot", digest)

    # --- What is asked. ---

    def get(self, path: list[str]) -> Document:
        match path:
            case ["status"]:
                return self.status
            case ["why"]:
                return self.why
            case ["state", node]:
                state = self.states.get(node, {"balance": 95, "name": node})
                return {"node": node, "state": state, "bytes": len(json.dumps(state))}
            case ["snapshots", number] if int(number) in self.contents:
                return self.contents[int(number)]
            case ["diff", old, new] if (int(old), int(new)) in self.diffs:
                return {"diff": self.diffs[int(old), int(new)]}
        raise Refusal(404, {"what": "there is no such thing", "where": "/".join(path), "try": None})

    def post(self, what: str, body: Document) -> Document:
        self.posts.append((what, body))
        if what in self.answers:
            return self.answers[what](body)
        if what == "snapshot":
            return {"digest": self.begin(body["nodes"])}
        if what in ("pause", "unpause"):
            for node in self.status["nodes"]:
                if not body["nodes"] or node["name"] in body["nodes"]:
                    node["paused"] = what == "pause"
                    node["status"] = "paused" if what == "pause" else "running"
            self.push()
            return {"paused": [node["name"] for node in self.status["nodes"] if node["paused"]]}
        if what == "command":
            return {"node": body["node"], "reply": {"heard": body["command"]}}
        return {"node": body.get("node"), "pid": 1}

    @contextmanager
    def stream(self) -> Iterator[queue.SimpleQueue[tuple[str, Any]]]:
        mine: queue.SimpleQueue[tuple[str, Any]] = queue.SimpleQueue()
        mine.put(("status", copy.deepcopy(self.status)))
        with self._lock:
            self._queues.append(mine)
            self.streams += 1
        try:
            yield mine
        finally:
            with self._lock:
                self._queues.remove(mine)


class Refusal(Exception):
    """An answer that is an error."""

    def __init__(self, code: int, error: Document) -> None:
        super().__init__(code, error)
        self.code, self.error = code, error


# --- Documents. ---


def status_document(topology: str, **run: Any) -> Document:
    graph = parse_topology(topology)
    nodes = [
        {
            **{"name": name, "pid": 4712 + place, "status": "running", "phase": "on_message", "phase_s": 0.001},
            **{"handled": 12345, "sent": 12300, "backlog": place % 5, "handled_per_s": 1200.5 + 10 * place},
            **{
                "cpu_percent": 12.3,
                "memory_bytes": 23_456_789,
                "paused": False,
                "last_snapshot": None,
                "summary": None,
            },
        }
        for place, name in enumerate(graph.nodes)
    ]
    channels = [
        {
            **{"src": channel.src, "dst": channel.dst, "sent": 5000, "handled": 4990 + place % 11},
            **{"in_flight": 10 - place % 11, "handled_per_s": 120.5 + place % 7, "full": False},
        }
        for place, channel in enumerate(graph.channels)
    ]
    return {
        "run": {
            **{"name": "tokens-4711", "pid": 4711, "app": "tokens", "topology": topology, "start_method": "forkserver"},
            **{"seed": 0, "state": "running", "incarnation": 0, "began": BEGAN, "uptime_s": 12.3, "window": 4096},
            **{"store": None, "url": None, "error": None},
            **run,
        },
        "nodes": nodes,
        "channels": channels,
        "snapshots": [],
        "deaths": [],
        "recoveries": [],
        "totals": {"sent": 98_400, "handled": 98_760, "in_flight": 12, "handled_per_s": 9800.0},
    }


def digest_document(status: Document, initiators: list[str]) -> Document:
    """Return a snapshot that has just begun: its initiators have recorded and wait for all others."""
    number, names = len(status["snapshots"]), [node["name"] for node in status["nodes"]]
    channels = [[channel["src"], channel["dst"]] for channel in status["channels"]]
    waiting = [pair for pair in channels if pair[1] in initiators]
    nodes: Document = {}
    for name in names:
        recorded = name in initiators
        awaits = [src for src, dst in waiting if dst == name] if recorded else None
        nodes[name] = {"recorded_s": 0.0 if recorded else None, "closed_s": None, "awaits": awaits}
    return {
        **{"number": number, "id": f"0-{initiators[0]}-{number}", "initiators": initiators, "phase": "recording"},
        **{"began": status["run"]["began"] + status["run"]["uptime_s"], "duration_s": None, "verified": None},
        **{"in_flight": None, "bytes": None, "kept": False, "recovery_point": False, "error": None, "nodes": nodes},
        "waiting": {"nodes": [name for name in names if name not in initiators], "channels": waiting},
    }


def spread(digest: Document) -> None:
    """Make a complete one of an open snapshot."""
    for place, (name, node) in enumerate(digest["nodes"].items()):
        recorded = 0.0 if name in digest["initiators"] else 0.0008 * (place + 1) / len(digest["nodes"])
        node.update(recorded_s=recorded, closed_s=0.0009 + 0.0001 * (place % 4), awaits=[])
    digest.update(phase="completed", duration_s=0.0013, verified=True, in_flight=7, bytes=4321, kept=True)
    digest["waiting"] = {"nodes": [], "channels": []}


def content_document(status: Document, digest: Document) -> Document:
    names = [node["name"] for node in status["nodes"]]
    nodes: Document = {
        name: {
            **{"state": {"tokens": place, "note": f"state of {name}"}, "sent": {}, "received": {}},
            **{"passive": False, "finished": False},
        }
        for place, name in enumerate(names)
    }
    channels: list[Document] = []
    for place, channel in enumerate(status["channels"]):
        messages = [{"amount": place * 10 + k} for k in range(3 if place in (0, 5) else 0)]
        nodes[channel["dst"]]["received"][channel["src"]] = 40 + place
        nodes[channel["src"]]["sent"][channel["dst"]] = 40 + place + len(messages)
        channels.append({"src": channel["src"], "dst": channel["dst"], "messages": messages})
    fields = ("number", "id", "initiators", "verified", "duration_s")
    return {
        "digest": copy.deepcopy(digest),
        "snapshot": {**{name: digest[name] for name in fields}, "nodes": nodes, "channels": channels},
    }


def diff_document(old: int, new: int) -> Document:
    unchanged: Document = {"sent": {}, "received": {}, "timers": [], "passive": None, "finished": None, "emitted": None}
    changes = [
        {"path": "tokens", "what": "changed", "old": 10, "new": 3},
        {"path": "seen[2]", "what": "added", "new": {"$tuple": [1, "x"]}},
        {"path": "late", "what": "removed", "old": None},
    ]
    return {
        **{"old": {"number": old, "id": f"0-N1-{old}"}, "new": {"number": new, "id": f"0-N2-{new}"}, "differ": True},
        "nodes": {
            "N1": {**unchanged, "state": changes, "sent": {"N2": [3, 48]}, "passive": [False, True]},
            "N2": {**unchanged, "state": [], "received": {"N1": [2, 40]}},
        },
        "channels": [
            {
                **{"src": "N1", "dst": "N2", "left": [{"number": 3, "message": {"amount": 1}}], "changed": []},
                "entered": [{"number": 41, "message": {"amount": 99}}, {"number": 42, "message": "last"}],
            }
        ],
        "only_in_old": {"nodes": [], "channels": []},
        "only_in_new": {"nodes": [], "channels": []},
    }


def with_snapshots(count: int = 3, topology: str = "complete:8") -> Fake:
    """Return a run that has taken some snapshots, each from another node."""
    fake = Fake(topology)
    names = [node["name"] for node in fake.status["nodes"]]
    for number in range(count):
        digest = digest_document(fake.status, [names[number % len(names)]])
        digest["began"] = BEGAN + number
        fake.status["snapshots"].append(digest)
        fake.complete(digest)
        fake.diffs.update({(old, number): diff_document(old, number) for old in range(number)})
    return fake


# --- The server. ---


class _Server(ThreadingHTTPServer):
    fake: Fake
    daemon_threads = True

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A page that has gone away is no error."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    @property
    def fake(self) -> Fake:
        return cast(_Server, self.server).fake

    def log_message(self, *args: Any) -> None:
        pass

    def do_GET(self) -> None:
        path = self.path.split("?")[0]
        if path == "/" or path.startswith("/page/"):
            self._file("index.html" if path == "/" else path.removeprefix("/page/"))
        elif self._allowed():
            parts = [unquote(part) for part in path.removeprefix("/api/").split("/")]
            if parts == ["events"]:
                self._events()
            else:
                self._answer(lambda: self.fake.get(parts))

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        own = f"http://{self.headers['Host']}"
        right = self.headers["Content-Type"] == "application/json" and self.headers.get("Origin", own) == own
        if not right:
            self.fake.refused.append(f"POST {self.path}")
        if self._allowed():
            self._answer(lambda: self.fake.post(self.path.removeprefix("/api/"), json.loads(body)))

    def _allowed(self) -> bool:
        if self.fake.down:
            self.close_connection = True
            return False
        if self.headers.get("Authorization") == f"Bearer {self.fake.token}":
            return True
        self.fake.refused.append(f"{self.command} {self.path}")
        self._send(401, json.dumps({"error": {"what": "the token is wrong", "where": None, "try": None}}))
        return False

    def _answer(self, question: Callable[[], Document]) -> None:
        try:
            self._send(200, json.dumps(question()))
        except Refusal as refusal:
            self._send(refusal.code, json.dumps({"error": refusal.error}))

    def _file(self, name: str) -> None:
        if name not in {path.name for path in PAGE.iterdir()}:
            self._send(404, "{}")
            return
        path = PAGE / name
        self._send(200, path.read_text(), f"{KINDS[path.suffix]}; charset=utf-8")

    def _send(self, code: int, text: str, kind: str = "application/json") -> None:
        data = text.encode()
        self._head(code, kind, ("Content-Length", str(len(data))))
        self.wfile.write(data)

    def _head(self, code: int, kind: str, *more: tuple[str, str]) -> None:
        self.send_response(code)
        for name, value in (
            *(("Content-Type", kind), ("Cache-Control", "no-store"), ("Content-Security-Policy", POLICY)),
            *(("X-Content-Type-Options", "nosniff"), ("Referrer-Policy", "no-referrer"), *more),
        ):
            self.send_header(name, value)
        self.end_headers()

    def _events(self) -> None:
        self.close_connection = True
        with self.fake.stream() as events:
            self._head(200, "text/event-stream", ("Connection", "close"))
            self.wfile.write(b"retry: 500\n\n: hello\n\n")
            while (item := events.get()) != BREAK:
                event, data = item
                # In two pieces, as a network may cut it.
                whole = f"event: {event}\ndata: {json.dumps(data)}\n\n".encode()
                for piece in (whole[:7], whole[7:]):
                    self.wfile.write(piece)
                    self.wfile.flush()


@contextmanager
def serving(fake: Fake) -> Iterator[str]:
    """Serve until the end of the block; gives the page's address, with the token in it."""
    server = _Server(("127.0.0.1", 0), _Handler)
    server.fake = fake
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/#t={quote(fake.token, safe='')}"
    finally:
        deadline = time.monotonic() + 5
        server.shutdown()
        thread.join()
        while fake.listening and time.monotonic() < deadline:
            fake.break_streams()
            threading.Event().wait(0.005)
        server.server_close()
