"""Topologies by a short specification: `ring:4`, `grid:2x3`, `random:20:0.1:7`.

This module owns the forms and what their numbers mean. It must not know what else a topology may be made of.

Rules for maintainers:

1. Nothing is built before it is clear how large it becomes: a short text could ask for anything.
2. The same text gives the same topology, in every version.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator, Mapping
from typing import Final, NamedTuple

from mpsnap.core.errors import TopologyError
from mpsnap.core.rng import CounterRandom
from mpsnap.core.topology import Topology
from mpsnap.core.words import shortened, shown, suggestion, whole_number

#: Largest specification accepted. A file is bounded by its size alone, a short text could ask for anything.
MAX_SPEC_NODES: Final = 1_000_000
MAX_SPEC_CHANNELS: Final = 2_000_000

_DECIMAL: Final = re.compile(r"(?:0|[1-9][0-9]*)(?:\.[0-9]+)?(?:[eE][+-]?[0-9]{1,3})?")


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
    where = shortened(spec)
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
