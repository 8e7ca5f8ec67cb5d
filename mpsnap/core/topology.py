"""Which nodes there are and which channels join them: the value, its notation and its file format.

This module owns `Channel`, `Topology`, the short specifications (`ring:4`), the `.top` format, and how a line-based
input file is read (`significant_lines`), which `.events` scripts share. It must not know what runs on a topology, how
many nodes a machine can hold, or how bytes come out of a file.

Rules for maintainers:

1. A `Topology` is valid and never changes. Every way to make one goes through `_Draft`, so each rule stands there once.
2. All that is handed out has a fixed order: nodes as declared, the rest sorted by text. Sets are asked, never iterated.
3. No recursion, and no work that is more than linear (sorting aside): a million channels take seconds.
4. Bad input raises `TopologyError` and nothing else; its `where` is file:line or the specification.
"""

from __future__ import annotations

import math
import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from difflib import get_close_matches
from hashlib import sha256
from types import MappingProxyType
from typing import Final, NamedTuple, NoReturn

from mpsnap.core.errors import InputError, TopologyError
from mpsnap.core.rng import CounterRandom

#: What a node holds when nothing else is said.
DEFAULT_TOKENS: Final = 10
#: Largest specification accepted. A file is bounded by its size alone, a short text could ask for anything.
MAX_SPEC_NODES: Final = 1_000_000
MAX_SPEC_CHANNELS: Final = 2_000_000
#: Largest input file, in bytes, and longest line, in characters.
MAX_FILE_BYTES: Final = 64 << 20
MAX_LINE: Final = 4096
#: Numbers in files are below this, so that any program can hold them.
MAX_NUMBER: Final = 1 << 63

_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_NAME_RULE: Final = "1 to 64 characters of A-Z a-z 0-9 . _ - that start with a letter or digit"
_WHOLE: Final = re.compile(r"0|[1-9][0-9]*")
_DECIMAL: Final = re.compile(r"(?:0|[1-9][0-9]*)(?:\.[0-9]+)?(?:[eE][+-]?[0-9]{1,3})?")
_LONE_CR: Final = re.compile(r"\r(?!\n)")
_ODD_SPACE: Final = re.compile(r"[^\S \t]")
_BOMS: Final = (
    (b"\xef\xbb\xbf", "UTF-8"),
    (b"\xff\xfe\x00\x00", "UTF-32"),
    (b"\x00\x00\xfe\xff", "UTF-32"),
    (b"\xff\xfe", "UTF-16"),
    (b"\xfe\xff", "UTF-16"),
)
# Comparing a word with this many names takes about a tenth of a second; an error may not take longer than the parsing.
_MAX_COMPARED: Final = 10_000


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


def parse_topology(spec: str) -> Topology:
    """Make a topology of a specification such as `ring:4`, `grid:2x3` or `random:20:0.1:7`.

    The nodes are N1, N2 and so on with 10 tokens each; a grid is numbered row by row. `random` is the same for the same
    text, always: a cycle through all nodes in random order, and each other ordered pair with probability P. One node
    alone has no channels in any form.

    Raises:
        TopologyError: The form is unknown, a number is missing, malformed or out of range, or there would be more than
            1,000,000 nodes or 2,000,000 channels (of `random`: on average). Nothing is built before this is clear.

    >>> [str(channel) for channel in parse_topology("line:3").channels]
    ['N1->N2', 'N2->N3']
    """
    word, colon, rest = spec.partition(":")
    form = _FORMS.get(word)
    where = _shortened(spec)
    if form is None:
        hint = suggestion(word, _FORMS, otherwise="one of these, or a .top file")
        raise TopologyError(f"unknown topology {shown(word)}; the forms are {', '.join(FORMS)}", where=where, hint=hint)
    texts = rest.split(form.separator) if colon else []
    if len(texts) != len(form.parameters):
        raise TopologyError(f"this is not of the form {form.syntax}", where=where, hint=form.example)
    values: dict[str, float] = {}
    for parameter, text in zip(form.parameters, texts, strict=True):
        try:
            values[parameter] = _PARAMETERS[parameter](text)
        except ValueError as problem:
            raise TopologyError(f"{parameter} must be {problem}", where=where, hint=form.example) from None
    size = int(values["R"] * values["C"] if "R" in values else values["N"])
    if size > MAX_SPEC_NODES:
        raise TopologyError(f"{size:,} nodes are more than the {MAX_SPEC_NODES:,} of a specification", where=where)
    count = form.total(*values.values())
    if count > MAX_SPEC_CHANNELS:
        raise TopologyError(
            f"{round(count):,} channels are more than the {MAX_SPEC_CHANNELS:,} of a specification", where=where
        )
    names = [f"N{number}" for number in range(1, size + 1)]
    return Topology(names, ((names[src], names[dst]) for src, dst in form.edges(*values.values())), name=spec)


def is_spec(text: str) -> bool:
    """Tell whether a command-line argument means a specification rather than a file's name.

    It does if it begins with the name of a form, or has a colon but no slash, so that a misspelt form is told as such
    and not as a missing file. A name that ends in `.top` is a file; `./` in front makes a file of anything.
    """
    if text.endswith(".top"):
        return False
    word, colon, _ = text.partition(":")
    return word in _FORMS or (bool(colon) and "/" not in text)


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
            if fields[0] not in draft.nodes and _WHOLE.fullmatch(fields[1]) and fields[1] not in draft.nodes:
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


def significant_lines(data: bytes, source: str, error: type[InputError]) -> Iterator[tuple[int, list[str]]]:
    """Yield the number and the fields of each line that has any, comments left out.

    Lines end in LF or CRLF and are numbered from 1; fields are separated by spaces and tabs; a comment goes from `#` to
    the end of its line. The whole file is looked at before the first line comes out.

    Args:
        data: What the file holds.
        source: What to call it in errors.
        error: The class to raise.

    Raises:
        InputError: As `error`. The file is larger than 64 MiB, starts with a byte order mark, is not UTF-8, holds a NUL
            or a CR that ends no line, a line is longer than 4096 characters, or fields are separated by anything else.
            `where` is file:line, except for a file too large.
    """
    if len(data) > MAX_FILE_BYTES:
        raise error(f"the file has {len(data):,} bytes, more than the {MAX_FILE_BYTES:,} allowed", where=source)
    for mark, encoding in _BOMS:
        if data.startswith(mark):
            raise error(
                f"the file starts with a byte order mark (BOM) of {encoding}",
                where=f"{source}:1",
                hint="saving it as plain UTF-8 without BOM",
            )
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError as problem:
        line = data.count(b"\n", 0, problem.start) + 1
        raise error(
            f"the file is not UTF-8: byte 0x{data[problem.start]:02x}",
            where=f"{source}:{line}",
            hint="saving it as plain UTF-8",
        ) from None
    nul = text.find("\0")
    if nul >= 0:
        raise error("the line holds a NUL character", where=f"{source}:{text.count(chr(10), 0, nul) + 1}")
    # Also in a comment: what such a file shows as its next line would silently be part of it.
    if lone := _LONE_CR.search(text):
        line = text.count("\n", 0, lone.start()) + 1
        raise error("the line holds a CR that ends no line", where=f"{source}:{line}", hint="line ends of LF or CR LF")
    # One line at a time: a list of all would take 8 bytes per line of a file of nothing but line ends.
    start, number = 0, 0
    while start < len(text):
        end = text.find("\n", start)
        if end < 0:
            end = len(text)
        number += 1
        if end - start > MAX_LINE:
            raise error(
                f"the line has {end - start:,} characters, more than the {MAX_LINE:,} allowed",
                where=f"{source}:{number}",
            )
        body = text[start:end].partition("#")[0].removesuffix("\r")
        start = end + 1
        # `split` separates at any white space of Unicode, which nobody can tell from a space by looking.
        if not body.isprintable() and (odd := _ODD_SPACE.search(body)):
            raise error(
                f"the line holds the white space U+{ord(odd[0]):04X}",
                where=f"{source}:{number}",
                hint="spaces or tabs between the fields",
            )
        if fields := body.split():
            yield number, fields


def whole_number(text: str, *, least: int = 0, most: int = MAX_NUMBER - 1) -> int:
    """Return the number that a text of ASCII digits stands for.

    Raises:
        ValueError: It is anything else or out of range. The message is what the number must be, and what it is, to be
            put behind "... must be".
    """
    rule = "a whole number" + (f" >= {least}" if least else "")
    if not _WHOLE.fullmatch(text):
        if re.fullmatch(r"0[0-9]+", text):
            rule += " without leading zeros"
        elif re.fullmatch(r"-[0-9]+", text):
            rule = f"a whole number >= {least}"
        raise ValueError(f"{rule}, not {shown(text)}")
    # By length first: a number of a million digits takes long to convert, and Python refuses it in another way.
    if len(text) > len(str(most)) or int(text) > most:
        raise ValueError(f"at most {most}, not {_shortened(text)}")
    if int(text) < least:
        raise ValueError(f"{rule}, not {text}")
    return int(text)


def suggestion(word: str, known: Iterable[str], *, otherwise: str | None = None) -> str | None:
    """Return a hint for a word that is not among the known ones: the closest of them, or the first few.

    Args:
        word: What was found.
        known: What could have been meant.
        otherwise: The hint if nothing is close; without it, the first few known ones.
    """
    names = tuple(known)
    if len(word) <= 64 and len(names) <= _MAX_COMPARED:
        # In another case first: to difflib, n1 and N1 have nothing in common.
        folded = word.casefold()
        close = [name for name in names if name.casefold() == folded] or get_close_matches(word, names)
        if close:
            return " or ".join(close)
    return listed(names) if otherwise is None else otherwise


def listed(names: Iterable[str]) -> str:
    """Return the first few names as text, and how many more there are."""
    every = tuple(names)
    more = f" and {len(every) - 8} more" if len(every) > 8 else ""
    return ", ".join(every[:8]) + more


def shown(value: object) -> str:
    """Return a value found in the input as it can stand in an error: quoted, on one line, not too long."""
    return repr(value if not isinstance(value, str) else _shortened(value))


def _shortened(text: str) -> str:
    return text if len(text) <= 80 else text[:77] + "..."


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
            self._refuse_unknown(unknown, f"channel {_shortened(f'{src}->{dst}')} needs {shown(unknown)}", line)
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


class _Form(NamedTuple):
    """Describe one form of specification; the functions take its parameters' values in order."""

    syntax: str
    separator: str
    parameters: tuple[str, ...]
    example: str
    #: How many channels there will be, or on average.
    total: Callable[..., float]
    #: The channels, as pairs of places in the list of nodes.
    edges: Callable[..., Iterator[tuple[int, int]]]


def _ring(size: int) -> Iterator[tuple[int, int]]:
    return ((place, (place + 1) % size) for place in range(size) if size > 1)


def _biring(size: int) -> Iterator[tuple[int, int]]:
    for src, dst in _ring(size):
        yield src, dst
        # A ring of two already has both directions.
        if size > 2:
            yield dst, src


def _line(size: int) -> Iterator[tuple[int, int]]:
    return ((place, place + 1) for place in range(size - 1))


def _star(size: int) -> Iterator[tuple[int, int]]:
    for place in range(1, size):
        yield 0, place
        yield place, 0


def _grid(rows: int, columns: int) -> Iterator[tuple[int, int]]:
    for row in range(rows):
        for column in range(columns):
            place = row * columns + column
            if column + 1 < columns:
                yield place, place + 1
                yield place + 1, place
            if row + 1 < rows:
                yield place, place + columns
                yield place + columns, place


def _complete(size: int) -> Iterator[tuple[int, int]]:
    return ((src, dst) for src in range(size) for dst in range(size) if src != dst)


def _random(size: int, probability: float, seed: int) -> Iterator[tuple[int, int]]:
    rng = CounterRandom(seed)
    cycle = list(range(size))
    rng.shuffle(cycle)
    for src, dst in _ring(size):
        yield cycle[src], cycle[dst]
    # What is left of each node are the size - 2 others that come later in the cycle than its successor. Numbered
    # through, all these pairs are tossed for; the next one that wins is a geometrically distributed number of pairs
    # ahead, so that a sparse graph takes as many draws as it has channels.
    pairs = size * (size - 2)
    if probability == 0 or pairs <= 0:
        return
    pair = -1
    while True:
        # 1 - random() is in (0, 1], of which there is always a logarithm.
        skipped = math.log(1 - rng.random()) / math.log1p(-probability) if probability < 1 else 0.0
        if skipped >= pairs - pair - 1:
            return
        pair += int(skipped) + 1
        src, ahead = divmod(pair, size - 2)
        yield cycle[src], cycle[(src + 2 + ahead) % size]


def _size(text: str) -> int:
    return whole_number(text, least=1, most=MAX_SPEC_NODES)


def _probability(text: str) -> float:
    if not _DECIMAL.fullmatch(text) or not 0 <= float(text) <= 1:
        raise ValueError(f"a number from 0 to 1 such as 0.25, not {shown(text)}")
    return float(text)


_PARAMETERS: Final[Mapping[str, Callable[[str], float]]] = {
    "N": _size,
    "R": _size,
    "C": _size,
    "P": _probability,
    "SEED": whole_number,
}

_FORMS: Final[Mapping[str, _Form]] = {
    "ring": _Form("ring:N", ":", ("N",), "ring:4", lambda n: n if n > 1 else 0, _ring),
    "biring": _Form("biring:N", ":", ("N",), "biring:4", lambda n: 2 * n if n > 2 else 2 * (n - 1), _biring),
    "line": _Form("line:N", ":", ("N",), "line:4", lambda n: n - 1, _line),
    "star": _Form("star:N", ":", ("N",), "star:5", lambda n: 2 * (n - 1), _star),
    "grid": _Form("grid:RxC", "x", ("R", "C"), "grid:2x3", lambda r, c: 2 * (r * (c - 1) + c * (r - 1)), _grid),
    "complete": _Form("complete:N", ":", ("N",), "complete:4", lambda n: n * (n - 1), _complete),
    "random": _Form(
        "random:N:P:SEED",
        ":",
        ("N", "P", "SEED"),
        "random:20:0.1:7",
        lambda n, p, _seed: n + p * n * (n - 2) if n > 1 else 0,
        _random,
    ),
}

#: The forms of a specification, for help texts.
FORMS: Final[tuple[str, ...]] = tuple(form.syntax for form in _FORMS.values())
