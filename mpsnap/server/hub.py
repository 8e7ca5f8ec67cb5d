"""The hub of the control process: it asks the supervisor, and brings many viewers what a few questions have answered.

This module owns the requests that can be made, their limits, and what viewers are told by themselves. It must not know
how requests arrive, nor how answers are shown.

Rules a maintainer keeps:

- However many ask, the supervisor is asked little: a status is asked for once for all who want it, and no more often
  than `STATUS_SECONDS`; at most `MOST_REQUESTS` requests are under way.
- A viewer that is slow costs nobody else anything: what waits for it is bounded, and what does not fit is left out.
- What takes long, reading and comparing snapshots, is done in another thread: the loop goes on answering.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import time
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

from mpsnap.core.codec import Codec
from mpsnap.core.errors import ClusterError, InputError, MpsnapError
from mpsnap.core.jsonform import to_json
from mpsnap.core.topology import Topology
from mpsnap.core.words import shown, suggestion
from mpsnap.server import stacks
from mpsnap.server.link import Splitter, frame
from mpsnap.server.looking import Snapshots
from mpsnap.server.picture import Picture
from mpsnap.server.why import why_document

T = TypeVar("T")

#: Between two questions for the status; one that takes long is asked for so many times more seldom than it takes, but
#: not more seldom than that.
STATUS_SECONDS, STATUS_FACTOR, MOST_STATUS_SECONDS = 0.1, 4.0, 1.0
#: Between two looks for what is new of snapshots.
CHANGES_SECONDS = 0.05
#: How often states are summed up, and of which snapshots: of so many bytes, and messages, at most.
SUMMARIES_SECONDS = 1.0
SMALL_BYTES, SMALL_MESSAGES = 1 << 18, 10_000
MOST_REQUESTS = 64
#: Snapshots that are looked into at once.
READERS = 2
#: Viewers at once, and what may wait for each.
MOST_VIEWERS = 64
MOST_WAITING = 100
#: How often a viewer may want the status.
FASTEST, SLOWEST = 0.1, 3600.0

_OPEN = object()
#: What can be asked for, with its arguments, their kinds, and what they are if they are not given.
_REQUESTS: Mapping[str, Mapping[str, tuple[str, Any]]] = {
    "hello": {},
    "status": {},
    "why": {},
    "snapshot": {"nodes": ("nodes", ()), "wait": ("bool", False)},
    "content": {"number": ("number", _OPEN), "short": ("bool", False)},
    "diff": {"old": ("number", _OPEN), "new": ("number", _OPEN), "short": ("bool", False)},
    "state": {"node": ("node", _OPEN)},
    "command": {"node": ("node", _OPEN), "command": ("any", _OPEN)},
    "pause": {"nodes": ("nodes", ())},
    "unpause": {"nodes": ("nodes", ())},
    "stop": {"node": ("node or null", None)},
    "kill": {"node": ("node", _OPEN)},
}


class Hub:
    """Stand between a supervisor and those who look at its cluster.

    Args:
        reader: What comes from the supervisor.
        writer: What goes to it.
    """

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._incoming = reader
        self._outgoing = writer
        self._numbers: Iterator[int]
        self._waiting: dict[int, asyncio.Future[Any]] = {}
        self._viewers: set[_Viewer] = set()
        #: Whether there is something new of a snapshot, and whether anybody looks on.
        self._changed = asyncio.Event()
        self._viewed = asyncio.Event()
        self._status_task: asyncio.Task[tuple[float, dict[str, Any]]] | None = None
        #: The last status, when it was asked for, and until when it will do.
        self._status: tuple[float, float, dict[str, Any]] = (-1.0, -1.0, {})
        #: When something was last done to the cluster from here: no status from before that will do.
        self._acted = 0.0
        #: Of which snapshot, when, and a few words on each node's state.
        self._summaries: tuple[int | None, float, Mapping[str, str]] = (None, -SUMMARIES_SECONDS, {})
        self._looking_at_stacks = asyncio.Lock()
        #: Of their own: those who look into large snapshots keep one another waiting, and no status.
        self._readers = ThreadPoolExecutor(READERS, "reader")
        #: How the run has ended, once it has.
        self.end: dict[str, Any] | None = None
        self._ended: asyncio.Future[bool] = asyncio.get_running_loop().create_future()
        self.token = ""
        self.name = ""
        self._topology: Topology
        self._picture: Picture
        self._snapshots: Snapshots

    # ---------------------------------------------------------- with the supervisor

    async def begin(self) -> None:
        """Wait for what the supervisor says first, and begin to listen to it.

        Raises:
            ConnectionError: It is gone without a word.
        """
        self._notes = self._read()
        hello = await anext(self._notes, None)
        if hello is None:
            raise ConnectionError("the supervisor is gone")
        self._adopt(hello[1])
        self._tasks = [asyncio.create_task(self._listen()), asyncio.create_task(self._tell_of_changes())]
        for task in self._tasks:
            task.add_done_callback(self._on_done)

    def _on_done(self, task: asyncio.Task[None]) -> None:
        if not task.cancelled() and task.exception() is not None:
            # Deaf or dumb it is of no use; the supervisor starts another.
            self.fail(task.exception())

    def _adopt(self, told: Mapping[str, Any]) -> None:
        facts = dict(told)
        self.token, self.name = facts.pop("token"), facts["name"]
        self._numbers = itertools.count(facts.pop("first"))
        shape = facts.pop("topology")
        self._topology = Topology(shape["nodes"], [(src, dst) for src, dst in shape["channels"]], None, shape["name"])
        facts["topology"] = shape["name"]
        self._picture = Picture(facts, self._topology.nodes, [(c.src, c.dst) for c in self._topology.channels])
        self._snapshots = Snapshots(self._topology, facts["store"])

    async def _read(self) -> AsyncIterator[tuple[Any, ...]]:
        splitter = Splitter()
        while data := await self._incoming.read(1 << 18):
            for note in splitter.feed(data):
                yield note

    async def _listen(self) -> None:
        orderly = False
        try:
            async for kind, *content in self._notes:
                if kind == "end":
                    orderly, self.end = True, {"error": content[0]}
                elif kind == "changed":
                    self._changed.set()
                else:
                    self._settle(kind, *content)
        except ConnectionError:
            pass  # The supervisor is dead: that is its end.
        self.end = self.end or {"error": {"what": "the supervisor is gone", "where": None, "try": None}}
        for viewer in self._viewers:
            viewer.put("end", self.end)
        for waiting in self._waiting.values():
            if not waiting.done():
                waiting.set_exception(ClusterError("the run has ended"))
        if not self._ended.done():
            self._ended.set_result(orderly)

    def _settle(self, kind: str, request: int, result: Any) -> None:
        waiting = self._waiting.pop(request, None)
        if waiting is None or waiting.done():
            return  # Whoever asked has gone.
        if kind == "answer":
            waiting.set_result(result)
        else:
            error = InputError if result["usage"] else ClusterError
            waiting.set_exception(error(result["what"], where=result["where"], hint=result["try"]))

    async def _supervisor(self, do: str, **args: Any) -> Any:
        if self.end is not None:
            raise ClusterError("the run has ended")
        if len(self._waiting) >= MOST_REQUESTS:
            raise ClusterError(f"{MOST_REQUESTS} requests are under way already", hint="again, a little later")
        number = next(self._numbers)
        waiting = self._waiting[number] = asyncio.get_running_loop().create_future()
        try:
            self._outgoing.write(frame((number, do, args)))
            return await waiting
        finally:
            self._waiting.pop(number, None)

    async def run(self) -> bool:
        """Return when the run has ended; whether in good order, or the supervisor has just gone."""
        return await self._ended

    async def ended(self) -> None:
        """Return when the run has ended, however that was."""
        await asyncio.wait([self._ended])

    def fail(self, error: BaseException | None) -> None:
        """End this process, since it cannot go on."""
        if not self._ended.done():
            self._ended.set_exception(error or ClusterError("a server has ended"))

    async def seen_off(self) -> None:
        """Return when every viewer has taken the end in, or is gone."""
        while self._viewers:
            await asyncio.sleep(0.01)

    # ------------------------------------------------------------------- requests

    async def ask(self, do: str, args: Mapping[str, Any]) -> Any:
        """Carry a request out and return its result, plain JSON.

        Raises:
            InputError: There is no such request, or its arguments are not what it takes.
            MpsnapError: It could not be done.
        """
        checked = self._checked(do, args)
        try:
            return await _ANSWERS[do](self, **checked)
        finally:
            if do in _ACTS:
                self._acted = time.monotonic()

    def _checked(self, do: str, args: Mapping[str, Any]) -> dict[str, Any]:
        if do not in _REQUESTS:
            raise InputError(f"there is no request {shown(do)}", hint=suggestion(str(do), [*_REQUESTS, "watch"]))
        known = _REQUESTS[do]
        for name in args:
            if name not in known:
                raise InputError(
                    f"{do} takes no {shown(name)}", hint=suggestion(str(name), known, otherwise=f"{do} alone")
                )
        return {name: self._argument(do, name, args, *rule) for name, rule in known.items()}

    def _argument(self, do: str, name: str, args: Mapping[str, Any], kind: str, otherwise: Any) -> Any:
        value = args.get(name, otherwise)
        if value is _OPEN:
            raise InputError(f"{do} needs {name!r}")
        if kind == "any" or (kind == "bool" and type(value) is bool) or (kind == "node or null" and value is None):
            return value
        if kind == "number" and type(value) is int and 0 <= value < 1 << 63:
            return value
        if kind.startswith("node") and kind != "nodes" and isinstance(value, str):
            return self._known(value)
        if kind == "nodes" and isinstance(value, (list, tuple)) and all(isinstance(node, str) for node in value):
            return [self._known(node) for node in value]
        raise InputError(f"{name!r} of {do} is {shown(value)}, which is no {kind}")

    def _known(self, node: str) -> str:
        if node not in self._topology.tokens:
            raise InputError(f"there is no node {shown(node)}", hint=suggestion(node, self._topology.nodes))
        return node

    async def _hello(self) -> dict[str, Any]:
        return {"name": self.name}

    async def status(self) -> dict[str, Any]:
        """Return the status document, in which all is seen that was done from here before; see `Picture`."""
        return await self._status_since(self._acted)

    async def _status_since(self, acted: float) -> dict[str, Any]:
        while True:
            asked, until, document = self._status
            if time.monotonic() < until and asked > acted:
                return document
            if self._status_task is None:
                self._status_task = asyncio.create_task(self._ask_status())
            # Also one that was asked for too early: a second question would be answered behind it. And whoever gives up
            # waiting must not take it from the others.
            asked, document = await asyncio.shield(self._status_task)
            if asked > acted:
                return document

    async def _ask_status(self) -> tuple[float, dict[str, Any]]:
        try:
            asked = time.monotonic()
            told = await self._supervisor("status")
            now = time.monotonic()
            pause = min(MOST_STATUS_SECONDS, max(STATUS_SECONDS, STATUS_FACTOR * (now - asked)))
            document = self._picture.document(told, await asyncio.to_thread(self._snapshots.kept))
            summaries = await self._summaries_of(document["snapshots"])
            for node in document["nodes"]:
                node["summary"] = summaries.get(node["name"])
            self._status = asked, now + pause, document
            return asked, document
        finally:
            self._status_task = None

    async def _summaries_of(self, digests: Sequence[Mapping[str, Any]]) -> Mapping[str, str]:
        """Return a few words on each node's state in the newest snapshot, or in one not much older.

        So no node is asked for them, and a large snapshot is not looked into.
        """
        number = next((each["number"] for each in reversed(digests) if _is_small(each)), None)
        shown_now, when, _ = self._summaries
        if number not in (None, shown_now) and time.monotonic() - when >= SUMMARIES_SECONDS:
            try:
                words = await asyncio.to_thread(self._snapshots.summaries, number, await self._told(number))
            except MpsnapError:
                words = {}  # It has gone meanwhile, and a newer one comes.
            self._summaries = number, time.monotonic(), words
        return self._summaries[2]

    async def _why(self) -> dict[str, Any]:
        status = await self.status()
        busy = [node for node in status["nodes"] if node["status"] == "running" or node["phase"] == "setup"]
        async with self._looking_at_stacks:
            found = await asyncio.gather(*(self._stack(node["name"], node["pid"]) for node in busy))
        return why_document(status, {node["name"]: stack for node, stack in zip(busy, found, strict=True)})

    async def _stack(self, node: str, pid: int) -> str | None:
        path = stacks.find(pid)
        if path is None:
            return None
        # What was read before is of no use any more, and a node that is often asked would fill its memory with it.
        stacks.clear(path)
        try:
            await self._supervisor("stack", node=node)
        except MpsnapError:
            return None  # It has died meanwhile, which is no news of its stack.
        return await stacks.read(path)

    async def _snapshot(self, nodes: list[str], wait: bool) -> dict[str, Any]:
        answer = await self._supervisor("snapshot", nodes=nodes, wait=wait)
        digest = answer["digest"]
        if not wait:
            return {"digest": digest}
        return {"digest": digest, "snapshot": await self._document(digest["number"], False, answer)}

    async def _content(self, number: int, short: bool) -> dict[str, Any]:
        told = await self._told(number)
        return {"digest": told["digest"], "snapshot": await self._document(number, short, told)}

    async def _told(self, number: int) -> Mapping[str, Any]:
        answer: Mapping[str, Any] = await self._supervisor("content", number=number)
        return answer

    async def _document(self, number: int, short: bool, told: Mapping[str, Any]) -> dict[str, Any]:
        return await self._looked(self._snapshots.document, number, short, told)

    async def _looked(self, look: Callable[..., T], *args: Any) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._readers, look, *args)

    async def _diff(self, old: int, new: int, short: bool) -> dict[str, Any]:
        both = await self._told(old), await self._told(new)
        return await self._looked(self._snapshots.diff, (old, new), short, both)

    async def _state(self, node: str) -> dict[str, Any]:
        answer = await self._supervisor("state", node=node)
        state = await self._looked(lambda: to_json(Codec().decode(answer["state"])))
        return {"node": node, "state": state, "bytes": len(answer["state"])}

    async def _command(self, node: str, command: Any) -> dict[str, Any]:
        # By the codec: the link makes tuples of lists, and has no form for large numbers.
        answer = await self._supervisor("command", node=node, command=Codec().encode(command, "command"))
        return {"node": node, "reply": json.loads(answer["reply"])}

    # -------------------------------------------------------------------- viewers

    async def watch(self, every: float) -> AsyncGenerator[tuple[str, Any], None]:
        """Yield what happens, until the run ends.

        ("status", document) at once and then every so many seconds, ("snapshot", digest) when there is something new of
        one, ("lost", {}) when this viewer was too slow and something was left out, ("end", {"error": ...}) at the end.

        Raises:
            InputError: `every` is no number of seconds.
            ClusterError: There are too many viewers.
        """
        if type(every) not in (int, float) or not FASTEST <= every <= SLOWEST:
            raise InputError(f"'every' of watch is {shown(every)}, not {FASTEST} to {SLOWEST:g} seconds")
        if len(self._viewers) >= MOST_VIEWERS:
            raise ClusterError(f"{MOST_VIEWERS} viewers are there already")
        viewer = _Viewer()
        if self.end is not None:
            viewer.put("end", self.end)
        self._viewers.add(viewer)
        self._viewed.set()
        try:
            async with contextlib.aclosing(self._items(viewer, every)) as items:
                async for item in items:
                    yield item
        finally:
            self._viewers.discard(viewer)
            if not self._viewers:
                self._viewed.clear()

    async def _items(self, viewer: _Viewer, every: float) -> AsyncGenerator[tuple[str, Any], None]:
        due = 0.0
        while True:
            if self.end is None and time.monotonic() >= due:
                with contextlib.suppress(ClusterError):  # it ends, or is asked enough: the next one comes
                    # Not a fresh one for whatever others do: they may do a lot.
                    yield "status", await self._status_since(-1.0)
                due = time.monotonic() + every
            await viewer.wait(due - time.monotonic())
            while viewer.items:
                kind, value = viewer.items.popleft()
                yield kind, value
                if kind == "end":
                    return
                due = 0.0 if kind == "lost" else due

    async def _tell_of_changes(self) -> None:
        while self.end is None:
            # As long as nobody looks, nothing is asked, and then the supervisor tells of no further change.
            await self._changed.wait()
            await self._viewed.wait()
            await asyncio.sleep(CHANGES_SECONDS)
            self._changed.clear()
            try:
                digests = await self._supervisor("news")
            except ClusterError:
                self._changed.set()  # The run ends, or is asked enough: soon again.
                continue
            kept = await asyncio.to_thread(self._snapshots.kept)
            for digest in digests:
                if kept is not None:
                    digest["kept"] = digest["number"] in kept
                for viewer in self._viewers:
                    viewer.put("snapshot", digest)


def _is_small(digest: Mapping[str, Any]) -> bool:
    """Whether a look into a snapshot costs next to nothing."""
    known = digest["phase"] == "completed" and digest["kept"]
    return bool(known and digest["bytes"] <= SMALL_BYTES and digest["in_flight"] <= SMALL_MESSAGES)


class _Viewer:
    """Hold what one viewer has not taken in yet; nothing waits for it."""

    def __init__(self) -> None:
        self.items: deque[tuple[str, Any]] = deque()
        self._there = asyncio.Event()

    def put(self, kind: str, value: Any) -> None:
        """Give it something; if there is no room it loses what waits, and is told so."""
        if len(self.items) >= MOST_WAITING:
            self.items.clear()
            self.items.append(("lost", {}))
        self.items.append((kind, value))
        self._there.set()

    async def wait(self, seconds: float) -> None:
        """Return when there is something for it, or the time is over."""
        if not self.items:
            self._there.clear()
            with contextlib.suppress(asyncio.TimeoutError):
                await asyncio.wait_for(self._there.wait(), max(0.0, seconds))


def _passed_on(do: str) -> Callable[..., Awaitable[Any]]:
    async def ask(hub: Hub, **args: Any) -> Any:
        return await hub._supervisor(do, **args)

    return ask


_ANSWERS: Mapping[str, Callable[..., Awaitable[Any]]] = {
    "hello": Hub._hello,
    "status": Hub.status,
    "why": Hub._why,
    "snapshot": Hub._snapshot,
    "content": Hub._content,
    "diff": Hub._diff,
    "state": Hub._state,
    "command": Hub._command,
    **{do: _passed_on(do) for do in ("pause", "unpause", "stop", "kill")},
}
#: What changes something that a status tells of.
_ACTS = frozenset({"snapshot", "command", "pause", "unpause", "stop", "kill"})
