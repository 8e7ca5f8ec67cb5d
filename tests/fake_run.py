"""A run that is none: it can be found and talked to like any other, and says what a test has it say.

It has a folder of its own under the test's `XDG_RUNTIME_DIR` and speaks the JSON lines of the control socket from a
thread. And documents made by hand, as the control plane makes them.
"""

from __future__ import annotations

import contextlib
import json
import os
import queue
import socket
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from mpsnap.core.errors import InputError, MpsnapError
from mpsnap.server.rundir import RunDir

Document = dict[str, Any]
Answer = Callable[[dict[str, Any]], Any]


class FakeRun:
    """Answer whoever connects, for a `with` block.

    Args:
        folder: The `XDG_RUNTIME_DIR` of those who look for it; of this process too, while the block lasts.
        status: What it says of itself.
        name: What it is called.
    """

    def __init__(self, folder: Path, status: Document, name: str = "tokens-4711") -> None:
        self._folder = folder
        self._name = name
        self.status = status
        #: What it was asked, in order, without greetings and watchers.
        self.asked: list[tuple[str, dict[str, Any]]] = []
        #: What it answers, by verb; an error that is raised is told.
        self.answers: dict[str, Answer] = {}
        #: How often each watcher wants to hear.
        self.intervals: list[float] = []
        #: What every watcher is told after the first status.
        self.on_watch: list[list[Any]] = []
        self._watchers: list[queue.SimpleQueue[list[Any] | None]] = []
        self._sockets: list[socket.socket] = []
        self._threads: list[threading.Thread] = []
        self._lock = threading.Lock()

    def __enter__(self) -> FakeRun:
        self._stack = contextlib.ExitStack()
        before = os.environ.get("XDG_RUNTIME_DIR")
        os.environ["XDG_RUNTIME_DIR"] = str(self._folder)
        self._stack.callback(self._restore, before)
        self._dir = RunDir(self._name)
        self._stack.callback(self._dir.close)
        self._start(self._accept)
        return self

    def _restore(self, before: str | None) -> None:
        if before is None:
            del os.environ["XDG_RUNTIME_DIR"]
        else:
            os.environ["XDG_RUNTIME_DIR"] = before

    def __exit__(self, *_: object) -> None:
        with contextlib.suppress(OSError):
            self._dir.socket.shutdown(socket.SHUT_RDWR)
        self.vanish()
        for thread in self._threads:
            thread.join(10.0)
        self._stack.close()

    def push(self, kind: str, value: Any) -> None:
        """Tell all who watch."""
        with self._lock:
            for watcher in self._watchers:
                watcher.put([kind, value])

    def show(self, status: Document) -> None:
        """Be in another state from now on, and tell all who watch."""
        self.status = status
        self.push("status", status)

    def vanish(self) -> None:
        """Close every connection without a word."""
        with self._lock:
            for watcher in self._watchers:
                watcher.put(None)
            for connection in self._sockets:
                with contextlib.suppress(OSError):
                    connection.shutdown(socket.SHUT_RDWR)

    @property
    def watchers(self) -> int:
        """How many have begun to watch."""
        return len(self._watchers)

    # ------------------------------------------------------------------- threads

    def _start(self, target: Callable[..., None], *args: Any) -> None:
        thread = threading.Thread(target=target, args=args, name=f"fake run: {target.__name__}", daemon=True)
        self._threads.append(thread)
        thread.start()

    def _accept(self) -> None:
        while True:
            try:
                connection, _ = self._dir.socket.accept()
            except OSError:
                return
            with self._lock:
                self._sockets.append(connection)
            self._start(self._serve, connection)

    def _serve(self, connection: socket.socket) -> None:
        with connection, connection.makefile("rb") as lines, contextlib.suppress(OSError):
            for line in lines:
                request = json.loads(line)
                if request["do"] == "watch":
                    self._watch(connection, request)
                    return
                reply = {"id": request["id"], **self._reply(request["do"], request["args"])}
                connection.sendall(json.dumps(reply).encode() + b"\n")

    def _watch(self, connection: socket.socket, request: Document) -> None:
        news: queue.SimpleQueue[list[Any] | None] = queue.SimpleQueue()
        for first in (["status", self.status], *self.on_watch):
            news.put(first)
        with self._lock:
            self.intervals.append(request["args"]["every"])
            self._watchers.append(news)
        while (push := news.get()) is not None:
            connection.sendall(json.dumps({"id": request["id"], "push": push}).encode() + b"\n")
            if push[0] == "end":
                return

    def _reply(self, do: str, args: dict[str, Any]) -> dict[str, Any]:
        if do == "hello":
            return {"result": {}}
        if do != "status":
            self.asked.append((do, args))
        try:
            return {"result": self.answers[do](args) if do in self.answers else self.status}
        except MpsnapError as error:
            told = {"what": error.what, "where": error.where, "try": error.hint}
            return {"error": {**told, "usage": isinstance(error, InputError)}}


# ------------------------------------------------------------------------ documents


def status_of(
    nodes: Sequence[Document] | int,
    channels: Sequence[Document] = (),
    snapshots: Sequence[Document] = (),
    deaths: Sequence[Document] = (),
    **run: Any,
) -> Document:
    """Return a status document; of so many nodes, if only their number matters."""
    if isinstance(nodes, int):
        nodes = [node_of(f"N{k + 1}") for k in range(nodes)]
    return {
        "run": {
            "name": "tokens-4711",
            "pid": 4711,
            "app": "tokens",
            "topology": f"ring:{len(nodes)}",
            "start_method": "forkserver",
            "seed": 0,
            "state": "running",
            "incarnation": 0,
            "began": 1790000000.1,
            "uptime_s": 12.3,
            "window": 4096,
            "store": None,
            "url": None,
            "error": None,
            **run,
        },
        "nodes": list(nodes),
        "channels": list(channels),
        "snapshots": list(snapshots),
        "deaths": list(deaths),
        "recoveries": [],
        "totals": {
            "sent": sum(channel["sent"] for channel in channels),
            "handled": sum(channel["handled"] for channel in channels),
            "in_flight": sum(channel["in_flight"] for channel in channels),
            "handled_per_s": 1200.5,
        },
    }


def node_of(
    name: str, status: str = "waiting", phase: str = "waiting", phase_s: float | None = 0.01, **facts: Any
) -> Document:
    """Return a node of a status document."""
    return {
        "name": name,
        "pid": 4712,
        "status": status,
        "phase": phase,
        "phase_s": phase_s,
        "handled": 12345,
        "sent": 12300,
        "backlog": 0,
        "handled_per_s": 150.5,
        "cpu_percent": 12.3,
        "memory_bytes": 12_345_678,
        "paused": status == "paused",
        "last_snapshot": None,
        "summary": None,
        **facts,
    }


def channel_of(src: str, dst: str, in_flight: int = 0, full: bool = False, **facts: Any) -> Document:
    """Return a channel of a status document."""
    return {
        "src": src,
        "dst": dst,
        "sent": 100 + in_flight,
        "handled": 100,
        "in_flight": in_flight,
        "handled_per_s": 3.2,
        "full": full,
        **facts,
    }


def ring_of(*nodes: Document, **facts: Any) -> Document:
    """Return the status of these nodes on a ring of empty channels."""
    names = [node["name"] for node in nodes]
    return status_of(
        nodes, [channel_of(src, dst) for src, dst in zip(names, names[1:] + names[:1], strict=True)], **facts
    )


def digest_of(number: int | None = 0, phase: str = "completed", **facts: Any) -> Document:
    """Return a snapshot of a status document."""
    done = phase == "completed"
    return {
        "number": number,
        "id": f"0-N3-{2 * (number or 0) + 1}",
        "initiators": ["N3"],
        "phase": phase,
        "began": 1790000001.5,
        "duration_s": 0.0013 if done else None,
        "verified": True if done else None,
        "in_flight": 7 if done else None,
        "bytes": 4321 if done else None,
        "kept": done,
        "recovery_point": False,
        "error": None,
        "nodes": {
            "N1": {"recorded_s": 0.0002, "closed_s": 0.0011 if done else None, "awaits": [] if done else ["N2"]},
            "N2": {"recorded_s": 0.0003 if done else None, "closed_s": 0.001 if done else None, "awaits": None},
        },
        "waiting": {"nodes": [] if done else ["N2"], "channels": [] if done else [["N2", "N1"]]},
        **facts,
    }


@contextlib.contextmanager
def fake_runs(*runs: FakeRun) -> Iterator[None]:
    """Hold several for one `with` block."""
    with contextlib.ExitStack() as stack:
        for run in runs:
            stack.enter_context(run)
        yield
