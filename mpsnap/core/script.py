"""What a run is told to do, step by step: the `.events` format.

This module owns the steps and their file format. It must not know who carries a step out, how long a tick is, or
whether a node holds the tokens when its turn comes: who runs the script waits for them or says that they never came.

Rules for maintainers:

1. A `Script` fits the topology it was parsed for: every node is one, every `send` has its channel, and no `send` asks
   for more tokens than there are at all.
2. Bad input raises `ScriptError` with file:line and nothing else.
3. A step keeps its line, so that what goes wrong in a run can be told by file:line too.
"""

from __future__ import annotations

from typing import Final, NamedTuple, TypeAlias

from mpsnap.core.errors import ScriptError
from mpsnap.core.topology import Topology
from mpsnap.core.words import MAX_NUMBER, listed, shown, significant_lines, suggestion, whole_number

#: Most ticks of one step; as milliseconds, eleven days.
MAX_TICKS: Final = 10**9


class Send(NamedTuple):
    """Let `src` send a message of `amount` tokens to `dst`."""

    line: int
    src: str
    dst: str
    amount: int


class Snapshot(NamedTuple):
    """Trigger a snapshot at a node. Several in a row, without a tick between them, are open at once."""

    line: int
    node: str


class Tick(NamedTuple):
    """Let time pass; 0 ticks are allowed and do nothing."""

    line: int
    count: int  # type: ignore[assignment] # hides the method of tuple, which has no meaning for a step


Step: TypeAlias = Send | Snapshot | Tick


class Script(NamedTuple):
    """Hold the steps in order, at least one, and the name of the file they came from."""

    steps: tuple[Step, ...]
    source: str


def parse_events(data: bytes, topology: Topology, source: str) -> Script:
    r"""Make a script of an `.events` file's bytes.

    Each line is `send SRC DST N`, `snapshot NODE` or `tick [N]`; without its number a tick is one. Blank lines and what
    follows a `#` do not count.

    Args:
        data: What the file holds.
        topology: What the script is to run on, with the tokens that its nodes will start with.
        source: What to call the file in errors.

    Raises:
        ScriptError: As for `significant_lines`; there is no step, a verb or node is unknown, a line has too many or too
            few fields, a channel does not exist, a number is malformed or out of range, or a `send` asks for more than
            all nodes hold together. `where` is the line.

    >>> parse_events(b"send A B 2\ntick", Topology(["A", "B"], [("A", "B")]), "pair.events").steps
    (Send(line=1, src='A', dst='B', amount=2), Tick(line=2, count=1))
    """
    reader = _Reader(topology, source)
    steps = tuple(reader.step(line, fields) for line, fields in significant_lines(data, source, ScriptError))
    if not steps:
        raise ScriptError(
            "the script has no steps", where=f"{source}:1", hint="lines like `send SRC DST N` and `snapshot NODE`"
        )
    return Script(steps, source)


#: By verb its form and how many arguments it takes.
_VERBS: Final = {
    "send": ("send SRC DST N", (3,)),
    "snapshot": ("snapshot NODE", (1,)),
    "tick": ("tick [N]", (0, 1)),
}


class _Reader:
    """Turn the fields of a line into a step on one topology."""

    def __init__(self, topology: Topology, source: str) -> None:
        self._topology = topology
        self._source = source
        self._channels = frozenset(topology.channels)
        self._total = sum(topology.tokens.values())

    def step(self, line: int, fields: list[str]) -> Step:
        verb, *arguments = fields
        if verb not in _VERBS:
            raise self._error(f"unknown step {shown(verb)}", line, suggestion(verb, _VERBS))
        form, allowed = _VERBS[verb]
        if len(arguments) not in allowed:
            raise self._error(f"expected `{form}`; found {shown(' '.join(fields))}", line)
        if verb == "send":
            return self._send(line, *arguments)
        if verb == "snapshot":
            return Snapshot(line, self._node(line, arguments[0]))
        return Tick(line, self._number(line, "the ticks", arguments[0], 0, MAX_TICKS) if arguments else 1)

    def _send(self, line: int, src: str, dst: str, text: str) -> Send:
        src, dst = self._node(line, src), self._node(line, dst)
        if (src, dst) not in self._channels:
            others = self._topology.outbound(src)
            hint = f"from {src} to {listed(others)}" if others else f"another source, as no channel leaves {src}"
            raise self._error(f"there is no channel {src}->{dst}", line, hint)
        amount = self._number(line, "the tokens to send", text, 1, MAX_NUMBER - 1)
        if amount > self._total:
            raise self._error(f"{src} can never hold {amount} tokens: all nodes together have {self._total}", line)
        return Send(line, src, dst, amount)

    def _node(self, line: int, name: str) -> str:
        if name not in self._topology.tokens:
            raise self._error(f"there is no node {shown(name)}", line, suggestion(name, self._topology.nodes))
        return name

    def _number(self, line: int, what: str, text: str, least: int, most: int) -> int:
        try:
            return whole_number(text, least=least, most=most)
        except ValueError as problem:
            raise self._error(f"{what} must be {problem}", line) from None

    def _error(self, what: str, line: int, hint: str | None = None) -> ScriptError:
        return ScriptError(what, where=f"{self._source}:{line}", hint=hint)
