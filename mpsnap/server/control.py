"""The supervisor's end of the control plane: it does what the control process asks for, and tells it what happens.

This module owns what others may have done to a running cluster. It must not know sockets of clients, nor how anything
is shown, nor how the process lives through which they ask (`child`).

Rules a maintainer keeps:

- Everything here runs between two steps of the supervisor's thread, so nothing here waits: what takes its time, a
  snapshot or a node's answer, is answered when the event comes.
- What is asked for, or an answer to it, must not raise here: that would end the run.
- What is asked for is bounded here, and not only where it is asked: who asks and goes leaves it behind.
"""

from __future__ import annotations

import json
import os
import secrets
import signal
import socket
import time
from collections.abc import Callable, Iterable, Mapping
from importlib.util import find_spec
from typing import Any

from mpsnap.core.codec import Codec
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
from mpsnap.runtime.recovering import RecoveringSupervisor
from mpsnap.runtime.supervisor import Supervisor
from mpsnap.server.child import Child
from mpsnap.server.digests import Digests
from mpsnap.server.rundir import RunDir
from mpsnap.views.document import error_document

#: Deaths and recoveries that are told of.
REMEMBERED = 100
#: Snapshots that are asked for here and open at once, and questions that nodes have not answered.
MOST_OPEN, MOST_QUESTIONS = 16, 256
#: Snapshots of which something new is told at once; of those before them the status tells.
MOST_CHANGES = 50
#: Bytes of one answer, and how many may be on their way for a large one to follow them.
MOST_ANSWER_BYTES, CROWDED_BYTES, LARGE_BYTES = 128 << 20, 64 << 20, 1 << 20
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
        #: When it began, on a clock that nobody sets.
        self._since = time.monotonic()
        self._digests = Digests()
        self._digests.keeps = facts["store"] is None
        self._child = Child(
            supervisor.pump_with,
            self._folder,
            self._http,
            hello=self._hello,
            attend=self._answer,
            lost=self._forget_requests,
            tell=tell,
        )
        #: Requests that wait: for the beginning of snapshots, and for the end of snapshots or the answers to tickets.
        self._begun: dict[SnapshotId, list[int]] = {}
        self._awaited: dict[SnapshotId | int, list[int]] = {}
        #: Snapshots that were asked for here and are open.
        self._asked_for: set[SnapshotId] = set()
        #: Those of which there is something new, the newest last: that there is, is told once, until somebody asks.
        self._changed: dict[SnapshotId, None] = {}
        #: The newest deaths and recoveries, and how many there ever were.
        self._deaths_of_nodes = self._recoveries = 0
        self._told_deaths: list[dict[str, Any]] = []
        self._told_recoveries: list[dict[str, Any]] = []

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
        self._child.start()

    def _hello(self) -> dict[str, Any]:
        topology = self._supervisor.topology
        shape = {"name": topology.name, "nodes": list(topology.nodes), "channels": list(map(list, topology.channels))}
        return {**self._facts, "token": self._token, "topology": shape}

    def _forget_requests(self) -> None:
        self._begun.clear()
        self._awaited.clear()
        self._changed.clear()

    def close(self, error: MpsnapError | None = None) -> None:
        """Tell all viewers the end, and why, and leave nothing behind; also right twice."""
        self._child.close("end", error_document(error or self._supervisor.error))

    # ------------------------------------------------------------------ requests

    def asked_for(self, snapshot_id: SnapshotId) -> bool:
        """Return whether somebody has asked for this snapshot here, and it is open."""
        return snapshot_id in self._asked_for

    def _answer(self, request: int, do: str, args: Mapping[str, Any]) -> None:
        self._settle([request], lambda: _ANSWERS[do](self, request, **args))

    def _settle(self, requests: Iterable[int], make: Callable[[], Any]) -> None:
        """Answer requests with what `make` returns, unless that is None: then the answer comes later."""
        for request in requests:
            try:
                result = make()
                if result is not None:
                    self._child.post("answer", request, result)
            except MpsnapError as error:
                self._refuse(request, error)
            except Exception as error:
                # It would end the run, which it is no fault of.
                self._stumbled(error)
                self._refuse(request, ClusterError(f"{type(error).__name__} in the supervisor"))

    def _stumbled(self, error: Exception) -> None:
        self._tell(f"an error in the control plane, the run goes on: {type(error).__name__}: {error}")

    def _refuse(self, request: int, error: MpsnapError) -> None:
        told = error_document(error) or {}
        self._child.post("refusal", request, {**told, "usage": isinstance(error, InputError)})

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
            "uptime_s": time.monotonic() - self._since,
            "window": supervisor.window,
        }

    def _snapshot(self, request: int, nodes: tuple[str, ...], wait: bool) -> None:
        if len(self._asked_for) >= MOST_OPEN:
            raise ClusterError(f"{MOST_OPEN} snapshots are asked for and not complete", hint="again, a little later")
        snapshot_id = self._supervisor.trigger(nodes)
        self._asked_for.add(snapshot_id)
        waiting: dict[Any, list[int]] = self._awaited if wait else self._begun
        waiting.setdefault(snapshot_id, []).append(request)

    def _news(self, request: int) -> list[dict[str, Any]]:
        changed, self._changed = self._changed, {}
        found = map(self._digests.digest, changed)
        return [digest for digest in found if digest is not None]

    def _content(self, request: int, number: int) -> dict[str, Any]:
        """Return the digest of a snapshot, and what it holds, if no store does."""
        content = self._digests.content(number) if self._digests.keeps else {}
        self._make_sure_of_room(sum(len(packed) for _, packed, _ in content.get("parts", ())))
        return {**content, "digest": self._digests.digest_of_number(number)}

    def _make_sure_of_room(self, size: int) -> None:
        if size > MOST_ANSWER_BYTES:
            raise ClusterError(f"{size} bytes are more than is shown at once", hint="a run with --store, and `show`")
        if size > LARGE_BYTES and self._child.waiting_bytes > CROWDED_BYTES:
            raise ClusterError("too much is on its way to be shown already", hint="again, a little later")

    def _state(self, request: int, node: str) -> None:
        self._make_sure_of_questions()
        self._awaited[self._supervisor.ask_state(node)] = [request]

    def _command(self, request: int, node: str, command: bytes) -> None:
        self._make_sure_of_questions()
        self._awaited[self._supervisor.command(node, _PLAIN.decode(command))] = [request]

    def _make_sure_of_questions(self) -> None:
        if len(self._awaited) >= MOST_QUESTIONS:
            raise ClusterError(
                f"{len(self._awaited)} questions wait for an answer of a node", hint="`why` says what it is doing"
            )

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
        try:
            changed = self._digests.attend(event)
            if changed is not None:
                self._note_change(changed)
            self._answer_waiting(event)
        except Exception as error:
            self._stumbled(error)

    def _note_change(self, snapshot_id: SnapshotId) -> None:
        # Not one by one: whoever takes snapshots without a pause would keep two processes busy for nobody.
        if not self._changed:
            self._child.post("changed")
        self._changed.pop(snapshot_id, None)
        self._changed[snapshot_id] = None
        if len(self._changed) > MOST_CHANGES:
            del self._changed[next(iter(self._changed))]

    def _answer_waiting(self, event: Event) -> None:
        if isinstance(event, SnapshotInitiated):
            requests = self._begun.pop(event.snapshot_id, ())
            self._settle(requests, lambda: {"digest": self._digests.digest(event.snapshot_id)})
        elif isinstance(event, SnapshotCompleted):
            self._asked_for.discard(event.snapshot.id)
            # With what it holds: when that were asked for, other snapshots might have taken its place.
            requests = self._awaited.pop(event.snapshot.id, ())
            self._settle(requests, lambda: self._content(0, event.snapshot.number))
        elif isinstance(event, SnapshotAbandoned):
            self._asked_for.discard(event.snapshot_id)
            # One for which the store has no room does not even begin.
            for waiting in (self._begun, self._awaited):
                self._refuse_all(waiting.pop(event.snapshot_id, ()), event.error)
        elif isinstance(event, Replied):
            # As text: it may hold numbers, and be of a depth, that the link has no form for.
            requests = self._awaited.pop(event.ticket, ())
            self._settle(requests, lambda: self._sized({"node": event.node, "reply": json.dumps(to_json(event.value))}))
        elif isinstance(event, StateTold):
            self._settle(self._awaited.pop(event.ticket, ()), lambda: self._told_state(event))
        elif isinstance(event, CommandLost):
            lost = ClusterError(f"{event.node} died before it answered", where=event.node)
            self._refuse_all(self._awaited.pop(event.ticket, ()), lost)
        elif isinstance(event, NodeDied):
            self._deaths_of_nodes += 1
            died = {"node": event.node, **(error_document(event.error) or {}), "time": time.time()}
            self._told_deaths = [*self._told_deaths, died][-REMEMBERED:]
        elif isinstance(event, Recovered):
            self._recoveries += 1
            self._told_recoveries = [*self._told_recoveries, {**event._asdict(), "time": time.time()}][-REMEMBERED:]
        elif isinstance(event, ClusterStopped):
            waiting_all = [*self._begun.values(), *self._awaited.values()]
            self._begun.clear()
            self._awaited.clear()
            for requests in waiting_all:
                self._refuse_all(requests, event.error or ClusterError("the cluster has stopped"))

    def _refuse_all(self, requests: Iterable[int], error: MpsnapError) -> None:
        for request in requests:
            self._refuse(request, error)

    def _told_state(self, event: StateTold) -> dict[str, Any]:
        if event.state is None:
            raise event.error or ClusterError("it was not told", where=event.node)
        self._make_sure_of_room(len(event.state))
        return {"node": event.node, "state": event.state}

    def _sized(self, answer: dict[str, Any]) -> dict[str, Any]:
        self._make_sure_of_room(len(answer["reply"]))
        return answer


_ANSWERS: Mapping[str, Callable[..., Any]] = {
    "status": Control._status,
    "snapshot": Control._snapshot,
    "news": Control._news,
    "content": Control._content,
    "state": Control._state,
    "command": Control._command,
    "pause": Control._pause,
    "unpause": Control._unpause,
    "stop": Control._end,
    "kill": Control._kill,
    "stack": Control._stack,
}


#: What a command travels in from the control process to here.
_PLAIN = Codec()


def _listen(port: int) -> socket.socket:
    try:
        # By number, and nowhere else: a name may stand for an address that others reach.
        return socket.create_server(("127.0.0.1", port), backlog=64)
    except OSError as error:
        raise InputError(
            f"cannot be listened at: {error.strerror}", where=f"--port {port}", hint="another --port"
        ) from error
