"""Which nodes there are and which channels join them: the value and its file format.

This module owns `Channel`, `Topology` and the `.top` format. It must not know what runs on a topology, how many nodes a
machine can hold, or how bytes come out of a file.

Rules for maintainers:

1. A `Topology` is valid and never changes. Every way to make one goes through `_Draft`, so each rule stands there once.
2. All that is handed out has a fixed order: nodes as declared, the rest sorted by text. Sets are asked, never iterated.
3. No recursion, and no work that is more than linear (sorting aside): a million channels take seconds.
4. Bad input raises `TopologyError` and nothing else; its `where` is file:line or the specification.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from hashlib import sha256
from types import MappingProxyType
from typing import Final, NamedTuple, NoReturn

from mpsnap.core.errors import TopologyError
from mpsnap.core.words import WHOLE, shortened, shown, significant_lines, suggestion, whole_number

#: What a node holds when nothing else is said.
DEFAULT_TOKENS: Final = 10
_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_NAME_RULE: Final = "1 to 64 characters of A-Z a-z 0-9 . _ - that start with a letter or digit"


class Channel(NamedTuple):
    """Name a directed FIFO edge; its text is `src->dst`."""

    src: str
    dst: str

    def __str__(self) -> str:
        return f"{self.src}->{self.dst}"


@dataclass(frozen=True, slots=True, init=False, repr=False)
class Topology:
    """Hold the nodes and channels of a system; immutable, and always valid.

    Equality is that of nodes (in order), channels and tokens; the name is only a label.

    Args:
        nodes: Names, in the order in which they are to be listed.
        channels: (source, destination) pairs, in any order.
        tokens: What nodes hold at the start; 10 for each that is not mentioned.
        name: What people call it, such as `ring:4` or a file's name.

    Raises:
        TopologyError: There is no node, a name is unfit, a node or channel stands twice, a channel joins a node with
            itself or with an unknown one, or tokens are not a whole number >= 0 of a known node.

    >>> ring = Topology(["A", "B"], [("B", "A"), ("A", "B")])
    >>> [str(channel) for channel in ring.channels]
    ['A->B', 'B->A']
    >>> ring.initiators()
    ('A',)
    """

    #: In declaration order.
    nodes: tuple[str, ...]
    #: Sorted by source, then destination, as text.
    channels: tuple[Channel, ...]
    #: Of every node; read-only.
    tokens: Mapping[str, int] = field(hash=False)
    name: str = field(compare=False)
    #: Destinations by source, both sorted; a node without any is not in it.
    _outbound: dict[str, tuple[str, ...]] = field(compare=False)
    #: The same the other way round; None until first asked for.
    _inbound: dict[str, tuple[str, ...]] | None = field(compare=False)
    #: What `neighbours` is; None until first asked for.
    _neighbours: Mapping[str, tuple[tuple[str, ...], tuple[str, ...]]] | None = field(compare=False)
    #: What `source_components` returns; None until first asked for.
    _components: tuple[tuple[str, ...], ...] | None = field(compare=False)

    def __init__(
        self,
        nodes: Iterable[str],
        channels: Iterable[tuple[str, str]],
        tokens: Mapping[str, int] | None = None,
        name: str = "custom",
    ) -> None:
        draft = _Draft(None)
        for node in nodes:
            draft.add_node(node)
        for node, amount in (tokens or {}).items():
            draft.set_tokens(node, amount)
        for src, dst in channels:
            draft.add_channel(src, dst)
        self._adopt(draft, name)

    def _adopt(self, draft: _Draft, name: str) -> None:
        """Take what a draft holds; only for a value that nobody has seen yet."""
        draft.check_complete()
        # Sorted node by node: strings compare several times faster than pairs of them.
        outbound = {src: tuple(sorted(draft.outbound[src])) for src in sorted(draft.outbound)}
        put = object.__setattr__
        put(self, "nodes", tuple(draft.nodes))
        put(self, "channels", tuple(Channel(src, dst) for src, others in outbound.items() for dst in others))
        put(self, "tokens", MappingProxyType({node: draft.tokens.get(node, DEFAULT_TOKENS) for node in draft.nodes}))
        put(self, "name", name)
        put(self, "_outbound", outbound)
        put(self, "_inbound", None)
        put(self, "_neighbours", None)
        put(self, "_components", None)

    def __repr__(self) -> str:
        return f"<Topology {self.name}: {len(self.nodes)} nodes, {len(self.channels)} channels>"

    def __reduce__(self) -> tuple[type[Topology], tuple[object, ...]]:
        return type(self), (self.nodes, [tuple(channel) for channel in self.channels], dict(self.tokens), self.name)

    def with_tokens(self, amount: int) -> Topology:
        """Return the same topology with this many tokens at every node.

        Raises:
            TopologyError: The amount is negative.
        """
        return Topology(self.nodes, self.channels, dict.fromkeys(self.nodes, amount), self.name)

    def inbound(self, node: str) -> tuple[str, ...]:
        """Return the names of the nodes that have a channel to this one, sorted.

        Raises:
            TopologyError: There is no such node.
        """
        self._check_known(node)
        return self._backward().get(node, ())

    def outbound(self, node: str) -> tuple[str, ...]:
        """Return the names of the nodes to which this one has a channel, sorted.

        Raises:
            TopologyError: There is no such node.
        """
        self._check_known(node)
        return self._outbound.get(node, ())

    @property
    def neighbours(self) -> Mapping[str, tuple[tuple[str, ...], tuple[str, ...]]]:
        """By node, `inbound` and `outbound` of it; read-only, for whoever goes through all of them again and again."""
        if self._neighbours is None:
            both = {node: (self.inbound(node), self.outbound(node)) for node in self.nodes}
            object.__setattr__(self, "_neighbours", MappingProxyType(both))
        assert self._neighbours is not None
        return self._neighbours

    def reachable(self, initiators: Iterable[str]) -> frozenset[str]:
        """Return every node that a marker reaches from these nodes, themselves included.

        Raises:
            TopologyError: One of them is not a node.
        """
        starts = list(initiators)
        for node in starts:
            self._check_known(node)
        reached: set[str] = set()
        _spread(starts, self._outbound, reached)
        return frozenset(reached)

    def unreachable_from(self, node: str) -> tuple[str, ...]:
        """Return the nodes that no marker from this one reaches, sorted; empty if it can initiate alone.

        Raises:
            TopologyError: There is no such node.
        """
        reached = self.reachable((node,))
        return tuple(sorted(other for other in self.nodes if other not in reached))

    def source_components(self) -> tuple[tuple[str, ...], ...]:
        """Return the strongly connected components into which no channel leads from outside.

        A marker gets into such a component only if one of its nodes records spontaneously, and from all of them
        together it gets everywhere. Each component is sorted; they are in order of their first names.
        """
        if self._components is None:
            object.__setattr__(self, "_components", self._find_components())
        assert self._components is not None
        return self._components

    def _find_components(self) -> tuple[tuple[str, ...], ...]:
        # Two sweeps instead of all components. In the first, the node of a source component that is visited first
        # must be a start, as nothing outside leads to it; so the starts hold exactly one node of each source
        # component. Any other start is reached by one of those, and that one came later, or else the sweep from it
        # would have visited the other first. So backwards, each start not reached by then is one of them.
        reached: set[str] = set()
        starts = []
        for node in self.nodes:
            if node not in reached:
                starts.append(node)
                _spread((node,), self._outbound, reached)
        reached.clear()
        components = []
        for node in reversed(starts):
            if node not in reached:
                _spread((node,), self._outbound, reached)
                # Nothing leads into the component, so whoever reaches this node belongs to it.
                component: set[str] = set()
                _spread((node,), self._backward(), component)
                components.append(tuple(sorted(component)))
        return tuple(sorted(components))

    def initiators(self, given: Iterable[str] = ()) -> tuple[str, ...]:
        """Return the given nodes, once each and in order, and those that must join them to reach every node.

        These are the first node by name of each source component without a given one: no more than needed.

        Raises:
            TopologyError: A given name is not a node; the hint offers close ones.
        """
        chosen = dict.fromkeys(given)
        for node in chosen:
            self._check_known(node)
        for component in self.source_components():
            if chosen.keys().isdisjoint(component):
                chosen[component[0]] = None
        return tuple(chosen)

    def fingerprint(self) -> str:
        """Return the SHA-256 of nodes and channels, as hex.

        It depends on nothing else: neither on the order of declaration nor on tokens or name. Two topologies of the
        same fingerprint can exchange snapshots.
        """
        # Names hold no white space, so the text can be read in one way only.
        digest = sha256(b"mpsnap topology 1\n")
        digest.update("\n".join(sorted(self.nodes)).encode("ascii"))
        digest.update(b"\n\n")
        digest.update("\n".join(map(" ".join, self.channels)).encode("ascii"))
        return digest.hexdigest()

    def _backward(self) -> dict[str, tuple[str, ...]]:
        inbound = self._inbound
        if inbound is None:
            sources: defaultdict[str, list[str]] = defaultdict(list)
            # In order of the sources, so that each list comes out sorted.
            for src, others in self._outbound.items():
                for dst in others:
                    sources[dst].append(src)
            inbound = {dst: tuple(others) for dst, others in sources.items()}
            object.__setattr__(self, "_inbound", inbound)
        return inbound

    def _check_known(self, node: str) -> None:
        if node not in self.tokens:
            raise TopologyError(f"there is no node {shown(node)}", hint=suggestion(node, self.nodes))


def parse_top(data: bytes, source: str) -> Topology:
    r"""Make a topology of a `.top` file's bytes.

    The first line is the number of nodes, then follow as many lines `name tokens`, then lines `src dst`, one for each
    channel. Blank lines and what follows a `#` do not count. The number of nodes is bounded only by the file's size.

    Args:
        data: What the file holds.
        source: What to call it in errors; it also becomes the topology's name.

    Raises:
        TopologyError: As for `Topology` and `significant_lines`; the file has no lines, a line has too many or too few
            fields, a number is malformed or >= 2**63, or the node lines are not as many as announced. `where` is
            the line, of a missing one the last before.

    >>> parse_top(b"2\nA 5\nB 0\nA B  # one way", "pair.top").outbound("A")
    ('B',)
    """
    draft = _Draft(source)
    announced: int | None = None
    line = 1
    for line, fields in significant_lines(data, source, TopologyError):
        if announced is None:
            if len(fields) != 1:
                raise _expected("the number of nodes alone", fields, draft.where(line))
            announced = _number(fields[0], "the number of nodes", draft.where(line), least=1)
        elif len(draft.nodes) < announced:
            which = f"node {len(draft.nodes) + 1} of {announced}"
            if len(fields) != 2:
                raise _expected(f"`name tokens`, {which}", fields, draft.where(line))
            # The number first: where node lines are missing stands a channel, and its source is a node already.
            amount = _number(fields[1], f"the tokens of {which}", draft.where(line))
            draft.add_node(fields[0], line)
            draft.set_tokens(fields[0], amount, line)
        elif len(fields) != 2:
            raise _expected("`src dst`, a channel", fields, draft.where(line))
        else:
            if fields[0] not in draft.nodes and WHOLE.fullmatch(fields[1]) and fields[1] not in draft.nodes:
                raise TopologyError(
                    f"expected `src dst`, a channel, after the nodes ({announced}); found {shown(' '.join(fields))}",
                    where=draft.where(line),
                    hint="a larger number in the first line, if this is one more node",
                )
            draft.add_channel(fields[0], fields[1], line)
    if announced is None:
        raise TopologyError("the file has no lines but comments: expected the number of nodes", where=draft.where(1))
    if len(draft.nodes) < announced:
        raise TopologyError(
            f"the file ends after {len(draft.nodes)} of {announced} node lines `name tokens`", where=draft.where(line)
        )
    topology = object.__new__(Topology)
    topology._adopt(draft, source)
    return topology


def _expected(what: str, fields: list[str], where: str | None) -> TopologyError:
    return TopologyError(f"expected {what}; found {shown(' '.join(fields))}", where=where)


def _number(text: str, what: str, where: str | None, *, least: int = 0) -> int:
    try:
        return whole_number(text, least=least)
    except ValueError as problem:
        raise TopologyError(f"{what} must be {problem}", where=where) from None


def _spread(starts: Iterable[str], links: Mapping[str, tuple[str, ...]], reached: set[str]) -> None:
    """Add to `reached` the starts and all that follows from them; what is in it already is not followed again."""
    pending = list(starts)
    reached.update(pending)
    while pending:
        for node in links.get(pending.pop(), ()):
            if node not in reached:
                reached.add(node)
                pending.append(node)


class _Draft:
    """Collect nodes and channels and refuse each breach of a rule at the line that commits it."""

    def __init__(self, source: str | None) -> None:
        self._source = source
        #: Each name by itself: a million channels in a file hold two million texts, of which only these are kept.
        self.nodes: dict[str, str] = {}
        #: The line that declares a channel, by source and destination; 0 if there are no lines.
        self.outbound: dict[str, dict[str, int]] = {}
        self._node_lines: dict[str, int] = {}
        #: Only what was said; the default is filled in at the end.
        self.tokens: dict[str, int] = {}

    def where(self, line: int) -> str | None:
        return None if self._source is None else f"{self._source}:{line}"

    def add_node(self, name: str, line: int = 0) -> None:
        if not isinstance(name, str) or not _NAME.fullmatch(name):
            raise TopologyError(f"a node's name must be {_NAME_RULE}, not {shown(name)}", where=self.where(line))
        if name in self.nodes:
            raise TopologyError(
                f"node {name} stands twice{self._first(self._node_lines[name])}", where=self.where(line)
            )
        self.nodes[name] = name
        self._node_lines[name] = line

    def set_tokens(self, node: str, amount: int, line: int = 0) -> None:
        if node not in self.nodes:
            self._refuse_unknown(node, f"tokens are given to {shown(node)}", line)
        if not isinstance(amount, int) or isinstance(amount, bool) or amount < 0:
            what = f"the tokens of {node} must be a whole number >= 0, not {shown(amount)}"
            raise TopologyError(what, where=self.where(line))
        self.tokens[node] = amount

    def add_channel(self, src: str, dst: str, line: int = 0) -> None:
        known_src, known_dst = self.nodes.get(src), self.nodes.get(dst)
        if known_src is None or known_dst is None:
            unknown = src if known_src is None else dst
            self._refuse_unknown(unknown, f"channel {shortened(f'{src}->{dst}')} needs {shown(unknown)}", line)
        if src == dst:
            raise TopologyError(f"channel {src}->{dst} joins a node with itself", where=self.where(line))
        lines = self.outbound.get(known_src)
        if lines is None:
            lines = self.outbound[known_src] = {}
        elif known_dst in lines:
            raise TopologyError(f"channel {src}->{dst} stands twice{self._first(lines[dst])}", where=self.where(line))
        lines[known_dst] = line

    def check_complete(self) -> None:
        if not self.nodes:
            raise TopologyError("a topology needs at least one node", where=self.where(1))

    def _first(self, line: int) -> str:
        return f", first in line {line}" if line else ""

    def _refuse_unknown(self, name: str, problem: str, line: int) -> NoReturn:
        hint = suggestion(name, self.nodes) if isinstance(name, str) else None
        raise TopologyError(f"{problem}, which is not a node", where=self.where(line), hint=hint)
