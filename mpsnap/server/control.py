"""The supervisor's end of the control plane: it starts the control process, and does what that asks for.

This module owns what others may have done to a running cluster, and the life of the process through which they ask. It
must not know sockets of clients, nor how anything is shown.

Rules a maintainer keeps:

- Everything here runs between two steps of the supervisor's thread, so nothing here waits: what takes its time, a
  snapshot or a node's answer, is answered when the event comes.
- Whatever becomes of the control process, the run goes on: a dead one is replaced a few times and then given up, one
  that has stopped reading is killed.
- The control process is a fresh interpreter, never a fork: a fork would take along the supervisor's threads' locks and
  everything that is open. It is given sockets, and its secrets over the link: arguments can be read by every user.
"""

from __future__ import annotations

import json
import os
import secrets
import select
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from importlib.util import find_spec
from typing import Any

from mpsnap.core.errors import ClusterError, InputError, MpsnapError
from mpsnap.core.events import (
    ClusterStopped,
    CommandLost,
    Event,
    NodeDied,
    Recovered,
    Replied,
    SnapshotAbandoned,
    SnapshotCompleted,
    SnapshotInitiated,
    StateTold,
)
from mpsnap.core.jsonform import to_json
from mpsnap.core.protocol import SnapshotId
from mpsnap.runtime import lifeline
from mpsnap.runtime.recovering import RecoveringSupervisor
from mpsnap.runtime.supervisor import Supervisor
from mpsnap.server.digests import Digests
from mpsnap.server.link import Link
from mpsnap.server.rundir import RunDir
from mpsnap.views.document import error_document

#: How often a control process that has died is replaced, and within which time.
MOST_DEATHS = 3
DEATHS_SECONDS = 60.0
#: How long it may take to bring its viewers the end, before it is killed.
END_SECONDS = 2.0
#: Deaths and recoveries that are told of.
REMEMBERED = 100
#: What `python -c` runs: with the paths of this interpreter, and nothing of the folder it happens to be started in.
_PROGRAM = (
    "import json, sys; given = json.loads(sys.argv[1]); sys.path[:] = given['path']; "
    "from mpsnap.server.plane import main; main(given)"
)
#: What of the extra `web` has to be there for a page to be served.
_WEB = ("starlette", "uvicorn", "prometheus_client")


class Control:
    """Let others see and steer a cluster while it runs.

    Args:
        supervisor: Of the cluster, not yet started.
        facts: What is told of the run and does not change: plain JSON.
        name: Of the run; `--run` asks for it.
        port: Of the page on 127.0.0.1, 0 for any that is free, None for no page.
        stop: Brings the run to an orderly end.
        tell: Is told what its user should know, in words.

    Raises:
        InputError: The name is taken, or the port.
    """

    def __init__(
        self,
        supervisor: Supervisor,
        facts: Mapping[str, Any],
        *,
        name: str,
        port: int | None,
        stop: Callable[[], None],
        tell: Callable[[str], None],
    ) -> None:
        self._supervisor = supervisor
        self._stop = stop
        self._tell = tell
        self._token = secrets.token_urlsafe(24)
        #: Where the page is, with the token; None without one.
        self.url: str | None = None
        missing = [name for name in _WEB if find_spec(name) is None]
        if port is not None and missing:
            tell(f"no page is served, since {', '.join(missing)} is not installed; try: pip install 'mpsnap[web]'")
            port = None
        self._http = None if port is None else _listen(port)
        try:
            self._folder = RunDir(name)
        except BaseException:
            if self._http is not None:
                self._http.close()
            raise
        if self._http is not None:
            self.url = f"http://127.0.0.1:{self._http.getsockname()[1]}/"
        self._facts = {**facts, "name": name, "pid": os.getpid(), "began": time.time(), "url": self.url}
        self._digests = Digests()
        self._digests.keeps = facts["store"] is None
        self._process: subprocess.Popen[bytes] | None = None
        self._link: Link
        self._life = -1
        self._deaths: list[float] = []
        self._closed = False
        #: Requests that wait: for the beginning of snapshots, and for the end of snapshots or the answers to tickets.
        self._begun: dict[SnapshotId, list[int]] = {}
        self._awaited: dict[SnapshotId | int, list[int]] = {}
        #: The newest deaths and recoveries, and how many there ever were.
        self._deaths_of_nodes = self._recoveries = 0
        self._told_deaths: list[dict[str, Any]] = []
        self._told_recoveries: list[dict[str, Any]] = []
        lifeline.forget_in_children(self)

    @property
    def address(self) -> str | None:
        """Where the page is, with the secret that opens it; None without a page."""
        return None if self.url is None else f"{self.url}#t={self._token}"

    @property
    def name(self) -> str:
        """What the run is called."""
        return self._folder.name

    # --------------------------------------------------------------- its process

    def start(self) -> None:
        """Start the control process; to be called when the supervisor has begun to pump."""
        ours, theirs = socket.socketpair()
        reading, self._life = os.pipe()
        given = {
            "path": sys.path,
            "link": theirs.fileno(),
            "lines": self._folder.socket.fileno(),
            "http": None if self._http is None else self._http.fileno(),
            "life": reading,
            "folder": self._folder.path,
        }
        descriptors = [fd for fd in given.values() if isinstance(fd, int)]
        try:
            self._process = subprocess.Popen(
                [sys.executable, "-I", "-c", _PROGRAM, json.dumps(given)],
                pass_fds=descriptors,
                stdin=subprocess.DEVNULL,
            )
        except OSError as error:
            ours.close()
            os.close(self._life)
            raise ClusterError(f"the control process could not be started: {error}") from error
        finally:
            theirs.close()
            os.close(reading)
        self._link = Link(ours)
        self._supervisor.pump_with.watch(ours.fileno(), self._read)
        self._post("hello", {**self._facts, "token": self._token, "topology": self._topology(), "paths": self._paths()})

    def _topology(self) -> dict[str, Any]:
        topology = self._supervisor.topology
        return {"name": topology.name, "nodes": list(topology.nodes), "channels": list(map(list, topology.channels))}

    def _paths(self) -> dict[str, Any]:
        return {"store": self._facts["store"]}

    def _read(self) -> None:
        try:
            notes = self._link.read()
        except ConnectionError:
            self._lost()
            return
        for note in notes:
            self._answer(*note)

    def _post(self, *note: Any) -> None:
        if self._process is None:
            return
        try:
            self._link.post(note)
        except ConnectionError:
            self._lost()
            return
        if self._link.waits:
            pump, fd = self._supervisor.pump_with, self._link.fileno()
            pump.unwatch(fd)
            pump.watch(fd, self._write_and_read, select.EPOLLIN | select.EPOLLOUT)

    def _write_and_read(self) -> None:
        try:
            self._link.flush()
        except ConnectionError:
            self._lost()
            return
        if not self._link.waits:
            pump, fd = self._supervisor.pump_with, self._link.fileno()
            pump.unwatch(fd)
            pump.watch(fd, self._read)
        self._read()

    def _lost(self) -> None:
        """The control process is gone, or no good: replace it, or give it up."""
        self._drop()
        now = time.monotonic()
        self._deaths = [when for when in self._deaths if now - when < DEATHS_SECONDS] + [now]
        if len(self._deaths) > MOST_DEATHS:
            self._tell(f"the control process has died {len(self._deaths)} times; the run goes on without it")
            self._give_back()
            return
        self._tell("the control process has died and is started anew; the run goes on")
        try:
            self.start()
        except ClusterError as error:
            self._tell(f"{error}; the run goes on without it")
            self._give_back()

    def _drop(self) -> None:
        """Kill the control process, if there still is one, and reap it."""
        process, self._process = self._process, None
        if process is None:
            return
        if self._supervisor.pump_with.is_watched(self._link.fileno()):
            self._supervisor.pump_with.unwatch(self._link.fileno())
        self._link.close()
        process.kill()
        process.wait()
        os.close(self._life)
        self._begun.clear()
        self._awaited.clear()

    def _give_back(self) -> None:
        self._closed = True
        self._folder.close()
        if self._http is not None:
            self._http.close()

    def close(self) -> None:
        """Tell all viewers the end, and leave nothing behind; also right twice."""
        if self._closed:
            return
        if self._process is not None:
            process = self._process
            try:
                self._link.end(("end", error_document(self._supervisor.error)), END_SECONDS)
                process.wait(END_SECONDS)
            except (ConnectionError, TimeoutError, subprocess.TimeoutExpired):
                pass  # Then it does not hear it; it ends all the same, by a signal.
            self._drop()
        self._give_back()

    def forget(self) -> None:
        """Close, in a forked child, what only the supervisor may hold."""
        self._folder.socket.close()
        if self._http is not None:
            self._http.close()
        if self._process is not None:
            self._link.close()
            os.close(self._life)
            # It is no child of this process, which must not wait for it.
            self._process.returncode = 0
            self._process = None

    # ------------------------------------------------------------------ requests

    def _answer(self, request: int, do: str, args: Mapping[str, Any]) -> None:
        try:
            result = _ANSWERS[do](self, request, **args)
        except MpsnapError as error:
            self._refuse(request, error)
        else:
            if result is not None:
                self._post("answer", request, result)

    def _refuse(self, request: int, error: MpsnapError) -> None:
        told = error_document(error) or {}
        self._post("refusal", request, {**told, "usage": isinstance(error, InputError)})

    def _status(self, request: int) -> dict[str, Any]:
        supervisor = self._supervisor
        status = supervisor.status()
        if status["snapshots"] and supervisor.state == "running":
            # For the next one who asks: those who answer are not waited for.
            supervisor.inspect()
        return {
            **status,
            "digests": self._digests.documents(status["snapshots"]),
            "counts": self._digests.counts(),
            "deaths": self._told_deaths,
            "recoveries": self._told_recoveries,
            "death_count": self._deaths_of_nodes,
            "recovery_count": self._recoveries,
            "error": error_document(supervisor.error),
            "incarnation": supervisor.incarnation,
            "window": supervisor.window,
        }

    def _snapshot(self, request: int, nodes: tuple[str, ...], wait: bool) -> None:
        waiting: dict[Any, list[int]] = self._awaited if wait else self._begun
        waiting.setdefault(self._supervisor.trigger(nodes), []).append(request)

    def _of(self, request: int, ids: tuple[str, ...]) -> list[dict[str, Any]]:
        found = [self._digests.digest(SnapshotId.parse(each)) for each in ids]
        return [digest for digest in found if digest is not None]

    def _content(self, request: int, number: int) -> dict[str, Any]:
        return self._digests.content(number)

    def _state(self, request: int, node: str) -> None:
        self._awaited[self._supervisor.ask_state(node)] = [request]

    def _command(self, request: int, node: str, command: Any) -> None:
        self._awaited[self._supervisor.command(node, command)] = [request]

    def _pause(self, request: int, nodes: tuple[str, ...]) -> dict[str, Any]:
        self._supervisor.pause(nodes or self._supervisor.topology.nodes)
        return {"paused": sorted(self._supervisor.paused)}

    def _unpause(self, request: int, nodes: tuple[str, ...]) -> dict[str, Any]:
        self._supervisor.unpause(nodes or self._supervisor.topology.nodes)
        return {"paused": sorted(self._supervisor.paused)}

    def _end(self, request: int, node: str | None) -> dict[str, Any]:
        if node is None:
            self._stop()
        else:
            self._supervisor.finish(node)
        return {}

    def _kill(self, request: int, node: str) -> dict[str, Any]:
        supervisor = self._supervisor
        supervisor.signal(node, signal.SIGKILL)
        if isinstance(supervisor, RecoveringSupervisor):
            # It was asked for, so it is no sign that the node would die for ever.
            supervisor.excused.add(node)
        return {"node": node, "pid": supervisor.status()["nodes"][node]["pid"]}

    def _stack(self, request: int, node: str) -> dict[str, Any]:
        return {"pid": self._supervisor.ask_stack(node)}

    # -------------------------------------------------------------------- events

    def attend(self, event: Event) -> None:
        """Take note of what happened to the cluster, and answer those who waited for it."""
        changed = self._digests.attend(event)
        if changed is not None:
            self._post("changed", str(changed))
        if isinstance(event, SnapshotInitiated):
            for request in self._begun.pop(event.snapshot_id, ()):
                self._post("answer", request, {"digest": self._digests.digest(event.snapshot_id)})
        elif isinstance(event, SnapshotCompleted):
            for request in self._awaited.pop(event.snapshot.id, ()):
                # With what it holds: when that were asked for, other snapshots might have taken its place.
                content = self._digests.content(event.snapshot.number) if self._digests.keeps else {}
                self._post("answer", request, {**content, "digest": self._digests.digest(event.snapshot.id)})
        elif isinstance(event, SnapshotAbandoned):
            # One for which the store has no room does not even begin.
            for request in (*self._begun.pop(event.snapshot_id, ()), *self._awaited.pop(event.snapshot_id, ())):
                self._refuse(request, event.error)
        elif isinstance(event, Replied):
            for request in self._awaited.pop(event.ticket, ()):
                self._post("answer", request, {"node": event.node, "reply": to_json(event.value)})
        elif isinstance(event, StateTold):
            for request in self._awaited.pop(event.ticket, ()):
                self._on_state(request, event)
        elif isinstance(event, CommandLost):
            for request in self._awaited.pop(event.ticket, ()):
                self._refuse(request, ClusterError(f"{event.node} died before it answered", where=event.node))
        elif isinstance(event, NodeDied):
            self._deaths_of_nodes += 1
            died = {"node": event.node, **(error_document(event.error) or {}), "time": time.time()}
            self._told_deaths = [*self._told_deaths, died][-REMEMBERED:]
        elif isinstance(event, Recovered):
            self._recoveries += 1
            self._told_recoveries = [*self._told_recoveries, {**event._asdict(), "time": time.time()}][-REMEMBERED:]
        elif isinstance(event, ClusterStopped):
            for requests in (*self._begun.values(), *self._awaited.values()):
                for request in requests:
                    self._refuse(request, event.error or ClusterError("the cluster has stopped"))
            self._begun.clear()
            self._awaited.clear()

    def _on_state(self, request: int, event: StateTold) -> None:
        if event.error is not None:
            self._refuse(request, event.error)
        else:
            self._post("answer", request, {"node": event.node, "state": event.state})


_ANSWERS: Mapping[str, Callable[..., Any]] = {
    "status": Control._status,
    "snapshot": Control._snapshot,
    "digests": Control._of,
    "content": Control._content,
    "state": Control._state,
    "command": Control._command,
    "pause": Control._pause,
    "unpause": Control._unpause,
    "stop": Control._end,
    "kill": Control._kill,
    "stack": Control._stack,
}


def _listen(port: int) -> socket.socket:
    try:
        # By number, and nowhere else: a name may stand for an address that others reach.
        return socket.create_server(("127.0.0.1", port), backlog=64)
    except OSError as error:
        raise InputError(
            f"cannot be listened at: {error.strerror}", where=f"--port {port}", hint="another --port"
        ) from error
