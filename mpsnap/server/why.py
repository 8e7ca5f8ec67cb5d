"""Why a run does what it does: what each node is at, what it waits for, and what all of them wait for in the end.

Pure functions from one status document and the stacks of nodes to one document; they ask nobody. A status document is
one instant, put together from numbers that are read one after the other. So what is said is said of that instant, and
what would be alarming is called so only if it has been so for a second: far longer than the reading takes.

Words: a *wait* is an edge of the wait-for graph, of one node for another because of one channel. A node that is blocked
waits for the readers of all its full channels, a node that has nothing to take for any of its sources.
"""

from __future__ import annotations

import os
import re
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from mpsnap.core.errors import one_line
from mpsnap.core.words import listed
from mpsnap.views.running import span_shown
from mpsnap.views.tables import count

#: From when on what a node does is worth a word: much longer than a healthy turn and than the reading of a status.
LONG_SECONDS = 1.0
#: Lines of one stack, the most recent calls first.
STACK_LINES = 60
STACK_LINE_WIDTH = 300

_FRAME = re.compile(r'\s*File "(.*)", line \S+ in .*')
_THREAD = re.compile(r"\S.*\(most recent call first\):")
_PACKAGE = os.path.dirname(os.path.dirname(os.path.abspath(__file__))) + os.sep
#: Programs of ours that are users like any other.
_APPS = os.path.join(_PACKAGE, "apps") + os.sep
_LIBRARY = os.path.dirname(os.path.abspath(os.__file__)) + os.sep
_SITE = (f"{os.sep}site-packages{os.sep}", f"{os.sep}dist-packages{os.sep}")

#: What nodes are that do nothing by themselves, and for how long is not theirs to say.
_STANDING = {
    "dead": "is dead",
    "frozen": "is stopped (SIGSTOP)",
    "paused": "is paused",
    "starting": "is still starting",
}

Wait = dict[str, Any]


def why_document(status: Mapping[str, Any], stacks: Mapping[str, str | None]) -> dict[str, Any]:
    """Return what each node does and for how long, who waits for whom, a cycle if there is one, and the verdict.

    Args:
        status: A status document.
        stacks: Of each node, what `faulthandler` wrote of it; None or nothing if there is no telling.
    """
    scene = _scene(status)
    waits = wait_for(status)
    cycle = find_cycle(waits)
    return {
        "run": dict(status["run"]),
        "nodes": [_node_document(scene, name, stacks.get(name)) for name in scene.nodes],
        "waits": waits,
        "cycle": cycle,
        "verdict": one_line("; ".join(_verdict(status, scene, waits, cycle))),
    }


# ------------------------------------------------------------------- one instant


@dataclass(frozen=True)
class _Scene:
    """Hold a status document by name; channels of unknown nodes are left out."""

    nodes: Mapping[str, Mapping[str, Any]]
    #: What each node is at, in the words of the why document.
    doing: Mapping[str, str]
    #: Of every node the channels that lead to it, and those of its own that are full.
    inbound: Mapping[str, Sequence[Mapping[str, Any]]]
    full: Mapping[str, Sequence[Mapping[str, Any]]]
    #: How each node died last.
    deaths: Mapping[str, str]

    def since(self, name: str) -> float | None:
        """Return for how long at most the node has been at what it is at."""
        found: float | None = self.nodes[name].get("phase_s")
        return found

    def has_been_long(self, names: Iterable[str]) -> bool:
        """Return whether each of these nodes has begun nothing new for long."""
        return all((since := self.since(name)) is not None and since >= LONG_SECONDS for name in names)

    def coming(self, name: str) -> int:
        """Return how many messages a node could take: none any more when it has come to its end."""
        if self.nodes[name].get("phase") == "stopped":
            return 0
        return sum(int(channel["in_flight"]) for channel in self.inbound[name] if channel["in_flight"] > 0)

    def acts(self, name: str) -> bool:
        """Return whether a node does something, or will without anybody's help."""
        doing = self.doing[name]
        if doing == "blocked":
            # Without a full one it has just been let go.
            return not self.full[name]
        return doing == "handler" or (doing == "waiting" and self.coming(name) > 0)

    def is_idle(self, name: str) -> bool:
        """Return whether a node has nothing to take."""
        return self.doing[name] == "waiting" and not self.coming(name) and self.nodes[name].get("phase") != "stopped"


def _scene(status: Mapping[str, Any]) -> _Scene:
    nodes = {str(node["name"]): node for node in status["nodes"]}
    inbound: dict[str, list[Mapping[str, Any]]] = {name: [] for name in nodes}
    full: dict[str, list[Mapping[str, Any]]] = {name: [] for name in nodes}
    for channel in status["channels"]:
        if channel["src"] in nodes and channel["dst"] in nodes:
            inbound[channel["dst"]].append(channel)
            if channel["full"]:
                full[channel["src"]].append(channel)
    deaths = {str(death["node"]): str(death["what"]) for death in status.get("deaths") or ()}
    return _Scene(nodes, {name: _doing(node) for name, node in nodes.items()}, inbound, full, deaths)


def _doing(node: Mapping[str, Any]) -> str:
    status = str(node["status"])
    if status != "running":
        return status
    return "waiting" if node.get("phase") in ("waiting", "stopped") else "handler"


# --------------------------------------------------------------- the wait-for graph


def wait_for(status: Mapping[str, Any]) -> list[Wait]:
    """Return the waits of one instant, by node: of blocked ones for all of these, of idle ones for any of them."""
    scene = _scene(status)
    return [wait for name in scene.nodes for wait in _waits(scene, name)]


def _waits(scene: _Scene, name: str) -> Iterator[Wait]:
    if scene.doing[name] == "blocked":
        for channel in scene.full[name]:
            yield {"node": name, "for": channel["dst"], "channel": [name, channel["dst"]], "kind": "full"}
    elif scene.is_idle(name):
        for channel in scene.inbound[name]:
            yield {"node": name, "for": channel["src"], "channel": [channel["src"], name], "kind": "empty"}


def find_cycle(waits: Iterable[Wait]) -> list[str] | None:
    """Return the nodes of a cycle of full channels, each waiting for the next one and the last for the first.

    Waits for an empty channel make no deadlock: any source ends them.
    """
    after: dict[str, list[str]] = {}
    for wait in waits:
        if wait["kind"] == "full":
            after.setdefault(wait["node"], []).append(wait["for"])
    # Those that wait for nobody cannot be on one, nor can those that wait for none but such: take them away till none
    # is left, and whoever remains waits for somebody who remains.
    rest = dict(after)
    while True:
        kept = {node: [each for each in others if each in rest] for node, others in rest.items()}
        kept = {node: others for node, others in kept.items() if others}
        if len(kept) == len(rest):
            break
        rest = kept
    if not kept:
        return None
    path = [next(iter(kept))]
    while (following := kept[path[-1]][0]) not in path:
        path.append(following)
    return path[path.index(following) :]


def _reaching(waits: Collection[Wait], ends: Collection[str]) -> set[str]:
    """Return the nodes that wait for one of these, by way of others too; without these themselves."""
    before: dict[str, list[str]] = {}
    for wait in waits:
        before.setdefault(wait["for"], []).append(wait["node"])
    found, unseen = set(ends), list(ends)
    while unseen:
        fresh = [node for node in before.get(unseen.pop(), ()) if node not in found]
        found.update(fresh)
        unseen += fresh
    return found.difference(ends)


def _held(scene: _Scene, waits: Collection[Wait], halted: Collection[str]) -> set[str]:
    """Return the nodes that wait and will not go on if these nodes do nothing any more.

    A blocked node goes on when all that it waits for do, an idle one when any does; grown from those that act.
    """
    awaited: dict[str, list[str]] = {}
    for wait in waits:
        awaited.setdefault(wait["node"], []).append(wait["for"])
    live = {name for name in scene.nodes if name not in halted and scene.acts(name)}
    grown = True
    while grown:
        fresh = {
            node
            for node, others in awaited.items()
            if node not in live and (all if scene.doing[node] == "blocked" else any)(each in live for each in others)
        }
        live |= fresh
        grown = bool(fresh)
    return set(awaited) - live


# ------------------------------------------------------------------------ one node


def _node_document(scene: _Scene, name: str, stack: str | None) -> dict[str, Any]:
    node, doing = scene.nodes[name], scene.doing[name]
    channels = [wait["channel"] for wait in _waits(scene, name)]
    return {
        "node": name,
        "doing": doing,
        "phase": node.get("phase"),
        "for_s": scene.since(name),
        "text": one_line(_text(scene, name)),
        "channels": channels,
        "stack": None if stack is None else stack_lines(stack),
    }


def _text(scene: _Scene, name: str) -> str:
    doing, phase, since = scene.doing[name], scene.nodes[name].get("phase"), scene.since(name)
    ago = "" if since is None else f", last turn {span_shown(since)} ago"
    if doing == "handler":
        return f"in {phase}" + ("" if since is None else f" for {span_shown(since)}")
    if doing == "blocked":
        readers = [channel["dst"] for channel in scene.full[name]]
        if not readers:
            return f"was blocked on a full channel and is about to go on{ago}"
        return f"waits for room in the full channel{'s' if readers[1:] else ''} to {listed(readers)}{ago}"
    if doing == "dead":
        # What is said of it begins with its name, which stands before this text already.
        return "dead: " + scene.deaths[name].removeprefix(f"{name} ") if name in scene.deaths else "dead"
    if doing == "frozen":
        return f"frozen: its process is stopped (SIGSTOP), in {phase}{ago}"
    if doing == "waiting":
        return _waiting_text(scene, name) + ago
    return f"{doing}, in {phase}{ago}" if phase not in (None, "waiting", doing) else f"{doing}{ago}"


def _waiting_text(scene: _Scene, name: str) -> str:
    if scene.nodes[name].get("phase") == "stopped":
        return "has come to an orderly end"
    coming, sources = scene.coming(name), [channel["src"] for channel in scene.inbound[name]]
    if coming:
        return f"about to take: {count(coming, 'message')} on the way to it"
    if not sources:
        return "waits for a timer or a command, no channel leads to it"
    channels = "channels from {} are" if sources[1:] else "channel from {} is"
    return f"waits for a message, the {channels.format(listed(sources))} empty"


def stack_lines(text: str) -> list[str] | None:
    """Return the stack of a node's own thread out of what `faulthandler` wrote, None if there is none in it.

    The most recent call comes first. Frames of the user's code begin with `>`, all others with two spaces.
    """
    threads: list[list[str]] = []
    own: list[str] | None = None
    for line in text.splitlines():
        if _THREAD.match(line):
            threads.append([])
            # Others are threads that the user's code has started; that a signal interrupts is the main one.
            own = threads[-1] if line.startswith("Current thread") else own
        elif threads and line.strip():
            threads[-1].append(line)
    running = (thread for thread in threads if any(f"{_PACKAGE}runtime{os.sep}process.py" in line for line in thread))
    found = next(running, None) or own or (threads[-1] if threads else None)
    if not found:
        return None
    lines = [_marked(line) for line in found[:STACK_LINES]]
    return [*lines, f"  and {len(found) - STACK_LINES} more"] if len(found) > STACK_LINES else lines


def _marked(line: str) -> str:
    match = _FRAME.match(line)
    mark = "> " if match is not None and _is_users(match[1]) else "  "
    return mark + one_line(line.strip()[:STACK_LINE_WIDTH])


def _is_users(file: str) -> bool:
    if file.startswith("<"):
        return False
    if file.startswith(_PACKAGE):
        return file.startswith(_APPS)
    return not file.startswith(_LIBRARY) or any(part in file for part in _SITE)


# ---------------------------------------------------------------------- the verdict


def _verdict(status: Mapping[str, Any], scene: _Scene, waits: list[Wait], cycle: list[str] | None) -> list[str]:
    """Return what there is to say, what matters most first."""
    run = status["run"]
    of_the_run = _of_the_run(run, scene)
    if of_the_run:
        return [of_the_run]
    said = []
    lasting = cycle is not None and scene.has_been_long(cycle)
    if cycle and lasting:
        behind = _reaching([wait for wait in waits if wait["kind"] == "full"], cycle)
        more = f", and {_wait(len(behind))} for them" if behind else ""
        said.append(f"deadlock: {_round(cycle)}{more}")
    said += _standing(scene, waits)
    said += _slow(scene, waits)
    said += _crowded(scene, waits)
    if cycle and not lasting:
        said.append(f"at this instant {_round(cycle)}: a deadlock, if it stays so")
    return said or [_quiet(scene) or _well(status, scene)]


def _of_the_run(run: Mapping[str, Any], scene: _Scene) -> str | None:
    """Return what the state of the run explains."""
    state, error = run.get("state"), run.get("error")
    if state == "ended":
        return f"the run has ended: {error['what']}" if error else "the run has ended"
    unready = [name for name in scene.nodes if scene.doing[name] == "starting"]
    if state == "starting":
        at = f": {_with_phase(scene, unready)}" if unready else ""
        return f"the run is starting, {len(scene.nodes) - len(unready)} of {count(len(scene.nodes), 'node')} ready{at}"
    if state == "recovering":
        dead = listed(name for name in scene.nodes if scene.doing[name] == "dead")
        return f"the run is recovering from the death of {dead}" if dead else "the run is recovering from a death"
    if state == "stopping":
        left = [name for name in scene.nodes if scene.doing[name] == "handler"]
        return f"the run is stopping: {_with_phase(scene, left)}" if left else "the run is stopping"
    return None


def _with_phase(scene: _Scene, names: Sequence[str]) -> str:
    return listed(f"{name} ({scene.nodes[name].get('phase')})" for name in names)


def _round(cycle: list[str]) -> str:
    path = " -> ".join([*cycle[:8], *(["..."] if cycle[8:] else ()), cycle[0]])
    return f"each node of {path} waits for the next one to take messages from a full channel"


def _standing(scene: _Scene, waits: list[Wait]) -> Iterator[str]:
    """Yield what is to be said of nodes that do nothing by themselves, and of those that wait for them."""
    standing = [name for name in scene.nodes if scene.doing[name] in _STANDING]
    if standing and len(standing) == len(scene.nodes) and len({scene.doing[name] for name in standing}) == 1:
        doing = scene.doing[standing[0]]
        hint = ": `unpause` lets them go on" if doing == "paused" else ""
        yield f"all nodes are {'stopped (SIGSTOP)' if doing == 'frozen' else doing}{hint}"
        return
    held = _held(scene, waits, ())
    for doing, words in _STANDING.items():
        names = [name for name in standing if scene.doing[name] == doing]
        if not names:
            continue
        waiting = len(_reaching(waits, names) & held)
        if len(names) > 1:
            subject = f"the processes of {listed(names)}" if doing == "frozen" else listed(names)
            yield f"{subject} {words.replace('is', 'are', 1)}{_waited_for(waiting, 'them')}"
        elif doing == "dead" and names[0] in scene.deaths:
            yield f"{scene.deaths[names[0]]}{_waited_for(waiting, 'it')}"
        else:
            subject = f"{names[0]}'s process" if doing == "frozen" else names[0]
            yield f"{subject} {words}{_waited_for(waiting, 'it')}"


def _waited_for(waiting: int, whom: str) -> str:
    return f"; {_wait(waiting)} for {whom}" if waiting else ""


def _wait(number: int) -> str:
    return f"{count(number, 'node')} wait{'s' if number == 1 else ''}"


def _slow(scene: _Scene, waits: list[Wait]) -> Iterator[str]:
    """Yield what is to be said of hooks that have not returned for long: those that others wait for, or else one."""
    slow = [name for name in scene.nodes if scene.doing[name] == "handler" and scene.has_been_long([name])]
    if not slow:
        return
    held = _held(scene, waits, slow) - _held(scene, waits, ())
    behind = {name: len(_reaching(waits, [name]) & held) for name in slow}
    slow.sort(key=lambda name: (behind[name], scene.since(name) or 0.0), reverse=True)
    for name in [name for name in slow if behind[name]][:3] or slow[:1]:
        waiting = f" and {_wait(behind[name])} for it" if behind[name] else "; nobody waits for it"
        yield f"{name} has been in {scene.nodes[name].get('phase')} for {span_shown(scene.since(name) or 0.0)}{waiting}"


def _crowded(scene: _Scene, waits: list[Wait]) -> Iterator[str]:
    """Yield what is to be said of nodes that have long been blocked though those they wait for do take messages."""
    held = _held(scene, waits, ())
    blocked = [name for name in scene.nodes if scene.doing[name] == "blocked" and name not in held]
    long = [name for name in blocked if scene.full[name] and scene.has_been_long([name])]
    if long:
        readers = listed(dict.fromkeys(channel["dst"] for name in long for channel in scene.full[name]))
        verb = "has" if len(long) == 1 else "have"
        least = span_shown(min(scene.since(name) or 0.0 for name in long))
        yield f"{listed(long)} {verb} been blocked for {least}: {readers} cannot take as fast as is sent"


def _quiet(scene: _Scene) -> str | None:
    """Return what is to be said when there is nothing to do, None if there is."""
    if not scene.nodes or not all(scene.is_idle(name) for name in scene.nodes):
        return None
    if scene.has_been_long(scene.nodes):
        least = min(scene.since(name) or 0.0 for name in scene.nodes)
        return (
            f"every node waits and no message is in flight, for {span_shown(least)} now: "
            "nothing happens any more but for timers and commands"
        )
    return (
        "at this instant every node waits and no message is in flight; "
        "if it stays so, nothing happens any more but for timers and commands"
    )


def _well(status: Mapping[str, Any], scene: _Scene) -> str:
    taking = sum(scene.doing[name] == "waiting" and scene.coming(name) > 0 for name in scene.nodes)
    doing = list(scene.doing.values())
    numbers = {
        "in a hook": doing.count("handler"),
        "about to take a message": taking,
        "waiting": doing.count("waiting") - taking,
        "blocked on full channels": doing.count("blocked"),
    }
    parts = [f"{number} {told}" for told, number in numbers.items() if number]
    rate = (status.get("totals") or {}).get("handled_per_s")
    at = "" if rate is None else f", {rate:,.0f} messages/s"
    return f"all is well: {count(len(doing), 'node')}, {', '.join(parts) or 'none of them running'}{at}"
