"""What a stored snapshot says of itself: the manifest, as a value and as text.

This module owns what a manifest holds, its JSON text, and what makes one right. It must not know where it is kept.

Rules a maintainer keeps:

- There is one text for each manifest: reading writes what it has read once more and compares. So white space, a second
  key of the same name, a number in another notation and whatever else a reader might overlook are damage too.
- Nothing in a text is believed before it is checked: types exactly (a bool is no int), counts in bounds, the topology
  by its own rules, the names of files by making them once more, from numbers. No name in a text is ever opened.
- A value that JSON has no exact form for stands there as the plain codec's bytes.
- A seal is over `content`, all that the text says but for the seal itself and the checksum; the checksum covers it too.
  Only a manifest of nodes that keep pickles may have one. Whose it is, and whether it is right, is not asked here.
"""

from __future__ import annotations

import base64
import json
import math
from collections.abc import Callable, Iterator, Mapping
from hashlib import sha256
from typing import Any, Final, NamedTuple

from mpsnap.core.codec import Codec
from mpsnap.core.errors import CodecError, SnapshotIncompatible, TopologyError
from mpsnap.core.kinds import told
from mpsnap.core.protocol import SnapshotId
from mpsnap.core.snapshot import GlobalSnapshot
from mpsnap.core.topology import Topology
from mpsnap.core.words import listed

#: Version of the text and of the files beside it; a reader refuses any other.
FORMAT: Final = 1
#: The name of the file that holds the text.
MANIFEST: Final = "MANIFEST.json"

#: The most bytes each kind of file may have, asked before one is read.
MOST_MANIFEST_BYTES = 64 << 20
MOST_PART_BYTES = 1 << 30
MOST_STATE_BYTES = 8 << 30
MOST_OUTPUT_BYTES = 1 << 30

_MOST_COUNT = (1 << 63) - 1
_SHA256_DIGITS = _SEAL_DIGITS = 64
_HEX_DIGITS: Final = frozenset("0123456789abcdef")
_CODECS = ("plain", "pickle")
#: The key of an object that holds the codec's bytes in place of a value.
_CODED = "$codec"
#: How deep a value may be to stand in JSON; far from what recursion allows.
_MOST_LEVELS = 20
_PLAIN = Codec()

#: Makes the seal of a content: hexadecimal digits, as many as a SHA-256 has.
Seal = Callable[[bytes], str]


class Receipt(NamedTuple):
    """Say what is in a file: its name, how many bytes, and their SHA-256 as `sha256sum` prints it."""

    name: str
    size: int
    sha256: str


class NodeEntry(NamedTuple):
    """Say what a manifest says of one node.

    `program` is the import string of its class and `params` what `setup` was given, plain data; `codec` is "pickle"
    if its bytes may hold pickles, else "plain". `sent` and `received` count messages per neighbour at the cut. `part`
    is the file of its part, `state` that of its state, if it is too large to be in the part.
    """

    program: str
    params: Mapping[str, Any]
    codec: str
    sent: Mapping[str, int]
    received: Mapping[str, int]
    part: Receipt
    state: Receipt | None


class Manifest(NamedTuple):
    """Say all of a stored snapshot but what is in its parts.

    Before `commit` the receipts are those of staged files; the store gives the files the names that they have in it.
    """

    #: Given out by the store's `begin`.
    number: int
    id: SnapshotId
    initiators: tuple[str, ...]
    #: Seconds of the wall clock since 1970, for people: nothing is ordered or decided by it.
    wall_time: float
    #: Seconds from the wish to the merge.
    duration: float | None
    topology: Topology
    #: Of every node.
    nodes: Mapping[str, NodeEntry]
    #: Whether the cut was proven consistent.
    verified: bool
    #: Whether a cluster may go on from it.
    recovery_point: bool
    #: Bytes in the file of outputs when this was committed; None if there is no such file.
    emitted_bytes: int | None
    #: Plain data: how the run was started, for whoever goes on from here.
    run: Mapping[str, Any]
    #: The file of the outputs that had not been released then; the store's own, None if there are none.
    outputs: Receipt | None = None
    #: By which whoever has taken it knows it again; the store's own, None if it holds no pickles.
    seal: str | None = None

    @property
    def pickling(self) -> tuple[str, ...]:
        """The nodes whose bytes may hold pickles."""
        return tuple(node for node, entry in self.nodes.items() if entry.codec == "pickle")

    @property
    def incarnation(self) -> int:
        """The generation of processes that took it."""
        return self.id.incarnation

    @property
    def size(self) -> int:
        """How many bytes there are in its files, this one aside."""
        return sum(receipt.size for receipt in self.files())

    @property
    def in_flight(self) -> int:
        """How many messages were in flight at the cut: of what was sent before it, that which was not received."""
        nodes = self.nodes.values()
        return sum(sum(node.sent.values()) - sum(node.received.values()) for node in nodes)

    def files(self) -> Iterator[Receipt]:
        """Yield every file but the one that holds the manifest."""
        for node in self.topology.nodes:
            entry = self.nodes[node]
            yield entry.part
            if entry.state is not None:
                yield entry.state
        if self.outputs is not None:
            yield self.outputs


def describe(
    snapshot: GlobalSnapshot,
    nodes: Mapping[str, NodeEntry],
    *,
    wall_time: float,
    recovery_point: bool = False,
    emitted_bytes: int | None = None,
    run: Mapping[str, Any] | None = None,
) -> Manifest:
    """Return the manifest of a snapshot, to be committed under the snapshot's own number."""
    return Manifest(
        number=snapshot.number,
        id=snapshot.id,
        initiators=snapshot.initiators,
        wall_time=wall_time,
        duration=snapshot.duration,
        topology=snapshot.topology,
        nodes=nodes,
        verified=snapshot.verified,
        recovery_point=recovery_point,
        emitted_bytes=emitted_bytes,
        run=run or {},
    )


def committed(manifest: Manifest, outputs: Receipt | None, seal: Seal | None = None) -> Manifest:
    """Return a manifest with the names that its files have in a store, and sealed if there is something to seal with.

    The numbers in these names are the places of the nodes.
    """
    nodes = {}
    for place, node in enumerate(manifest.topology.nodes):
        entry = manifest.nodes[node]
        state = None if entry.state is None else entry.state._replace(name=state_name(place))
        nodes[node] = entry._replace(part=entry.part._replace(name=part_name(place)), state=state)
    made = manifest._replace(nodes=nodes, outputs=outputs, seal=None)
    return made if seal is None else made._replace(seal=seal(content(made)))


def part_name(place: int) -> str:
    """Return the name of the file with the part of the node at this place in the topology."""
    return f"node-{place}.part"


def state_name(place: int) -> str:
    """Return the name of the file with that node's state."""
    return f"node-{place}.state"


#: The name of the file with the outputs.
OUTPUTS: Final = "outputs"


def check_compatible(manifest: Manifest, topology: Topology, programs: Mapping[str, str]) -> None:
    """Refuse a snapshot from which a cluster of this topology, running these classes, cannot go on.

    Args:
        manifest: The snapshot's.
        topology: Of the cluster.
        programs: The import string of each node's class.

    Raises:
        SnapshotIncompatible: Nodes, channels or classes differ; says which.
    """
    stored = manifest.topology
    there = {"node": set(stored.nodes), "channel": set(map(str, stored.channels))}
    here = {"node": set(topology.nodes), "channel": set(map(str, topology.channels))}
    differences = []
    for kind in there:
        differences += [f"no {kind} {name} here" for name in sorted(there[kind] - here[kind])]
        differences += [f"no {kind} {name} in the snapshot" for name in sorted(here[kind] - there[kind])]
    if stored.fingerprint() == topology.fingerprint():
        for node in topology.nodes:
            then, now = manifest.nodes[node].program, programs[node]
            if then != now:
                differences.append(f"{node} ran {then} and would run {now}")
    if differences:
        raise SnapshotIncompatible(
            f"snapshot {manifest.number} is of another cluster: {listed(differences)}",
            hint="the topology and the program that it was taken with",
        )


# ------------------------------------------------------------------------ the text


def content(manifest: Manifest) -> bytes:
    """Return what a seal is over: the text of a committed manifest without its checksum, and without a seal."""
    return _dumped(_plain(manifest._replace(seal=None)))


def write(manifest: Manifest) -> bytes:
    """Return the text of a committed manifest.

    Raises:
        CodecError: Something in it could not be read again; `params` and `run` may hold plain data only.
    """
    text = _render(_plain(manifest))
    # What cannot be read is not to be found out after a crash.
    read(text)
    return text


def read(text: bytes) -> Manifest:
    """Read what `write` made.

    Raises:
        CodecError: It is something else.
    """
    try:
        plain = json.loads(text, parse_constant=_refuse_constant)
        _check(plain, _SHAPE, "manifest")
        manifest = _made(plain)
        same = _render(_plain(manifest)) == text
    except CodecError:
        raise
    except TopologyError as error:
        raise CodecError(f"not a manifest: {error.what}") from error
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        raise CodecError(f"not a manifest: {told(error)}") from error
    if not same:
        raise CodecError("not a manifest: its checksum, or its form, is not the one that it was written with")
    return manifest


def _plain(manifest: Manifest) -> dict[str, Any]:
    topology = manifest.topology
    shape = {
        "name": topology.name,
        "nodes": list(topology.nodes),
        "channels": list(map(str, topology.channels)),
        "tokens": dict(topology.tokens),
        "fingerprint": topology.fingerprint(),
    }
    nodes = {}
    for node, entry in manifest.nodes.items():
        nodes[node] = entry._asdict() | {
            "params": _lowered(entry.params, f"{node}: params"),
            "sent": dict(entry.sent),
            "received": dict(entry.received),
            "part": entry.part._asdict(),
            "state": entry.state and entry.state._asdict(),
        }
    plain = manifest._asdict() | {
        "format": FORMAT,
        "id": str(manifest.id),
        "initiators": list(manifest.initiators),
        "topology": shape,
        "nodes": nodes,
        "run": _lowered(manifest.run, "run"),
        "outputs": manifest.outputs and manifest.outputs._asdict(),
    }
    if manifest.seal is None:
        # Without the name too: so is the text of all that hold no pickles, and of those from before there were seals.
        del plain["seal"]
    return plain


def _render(plain: dict[str, Any]) -> bytes:
    digest = sha256(_dumped(plain)).hexdigest()
    return _dumped(plain | {"checksum": digest})


def _dumped(plain: dict[str, Any]) -> bytes:
    return json.dumps(plain, ensure_ascii=True, allow_nan=False, indent=1).encode("ascii")


def _made(plain: dict[str, Any]) -> Manifest:
    shape = plain["topology"]
    channels = [tuple(text.split("->")) for text in shape["channels"]]
    topology = Topology(shape["nodes"], channels, shape["tokens"], shape["name"])
    if plain["nodes"].keys() != set(topology.nodes):
        raise ValueError("its nodes are not those of its topology")
    if not topology.tokens.keys() >= set(plain["initiators"]):
        raise ValueError("an initiator is not one of its nodes")
    manifest = Manifest(
        number=plain["number"],
        id=SnapshotId.parse(plain["id"]),
        initiators=tuple(plain["initiators"]),
        wall_time=plain["wall_time"],
        duration=plain["duration"],
        topology=topology,
        nodes={node: _entry(plain["nodes"][node]) for node in topology.nodes},
        verified=plain["verified"],
        recovery_point=plain["recovery_point"],
        emitted_bytes=plain["emitted_bytes"],
        run=_raised(plain["run"]),
        outputs=_receipt(plain["outputs"]),
        seal=plain.get("seal"),
    )
    _check_receipts(manifest)
    _check_seal(manifest)
    return manifest


def _entry(plain: dict[str, Any]) -> NodeEntry:
    part = _receipt(plain["part"])
    assert part is not None
    return NodeEntry(
        program=plain["program"],
        params=_raised(plain["params"]),
        codec=plain["codec"],
        sent=plain["sent"],
        received=plain["received"],
        part=part,
        state=_receipt(plain["state"]),
    )


def _receipt(plain: dict[str, Any] | None) -> Receipt | None:
    return None if plain is None else Receipt(plain["name"], plain["size"], plain["sha256"])


def _check_receipts(manifest: Manifest) -> None:
    """Refuse names that are not those which the store gives, and sizes beyond what is read."""
    named = committed(manifest, manifest.outputs and manifest.outputs._replace(name=OUTPUTS))
    for found, wanted in zip(manifest.files(), named.files(), strict=True):
        if found.name != wanted.name:
            raise ValueError(f"it names a file {found.name[:80]!r} in place of {wanted.name}")
        if found.size > most_bytes(found.name):
            raise ValueError(
                f"it names a file {found.name} of {found.size} bytes, the most is {most_bytes(found.name)}"
            )
        if len(found.sha256) != _SHA256_DIGITS or not set(found.sha256) <= _HEX_DIGITS:
            raise ValueError(f"the SHA-256 of {found.name} is none")


def _check_seal(manifest: Manifest) -> None:
    seal = manifest.seal
    if seal is None:
        return
    if len(seal) != _SEAL_DIGITS or not set(seal) <= _HEX_DIGITS:
        raise ValueError("its seal is none")
    if not manifest.pickling:
        raise ValueError("it has a seal, and no node that keeps pickles")


def most_bytes(name: str) -> int:
    """Return how many bytes a file of a snapshot may have."""
    if name == OUTPUTS:
        return MOST_OUTPUT_BYTES
    return MOST_STATE_BYTES if name.endswith(".state") else MOST_PART_BYTES


# ----------------------------------------------------------------------- its values


def _lowered(values: Mapping[str, Any], where: str) -> dict[str, Any]:
    """Return values in such a form that JSON gives each back exactly."""
    return {
        key: value
        if _is_json(value, _MOST_LEVELS)
        else {_CODED: base64.b64encode(_PLAIN.encode(value, f"{where}: {key}")).decode("ascii")}
        for key, value in values.items()
    }


def _raised(plain: dict[str, Any]) -> dict[str, Any]:
    return {key: _decoded(value) for key, value in plain.items()}


def _decoded(value: Any) -> Any:
    if type(value) is dict and value.keys() == {_CODED}:
        return _PLAIN.decode(base64.b64decode(value[_CODED], validate=True))
    if not _is_json(value, _MOST_LEVELS):
        raise ValueError("a value is not written as it should be")
    return value


def _is_json(value: Any, levels: int) -> bool:
    """Return whether JSON gives a value back as it is."""
    kind = type(value)
    if kind in (bool, str, type(None)):
        return True
    if kind is int:
        return bool(abs(value) <= _MOST_COUNT)
    if kind is float:
        return math.isfinite(value)
    if levels and kind is list:
        return all(_is_json(item, levels - 1) for item in value)
    if levels and kind is dict:
        return all(
            type(key) is str and not key.startswith("$") and _is_json(item, levels - 1) for key, item in value.items()
        )
    return False


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is no number")


# ------------------------------------------------------------------------ its shape

_COUNT: Final = object()
_ANY: Final = object()


class _Or(NamedTuple):
    """Allow None in place of what has this shape."""

    shape: Any


class _Maybe(NamedTuple):
    """Allow an object to lack what has this shape."""

    shape: Any


class _All(NamedTuple):
    """Ask this shape of every item of a list or every value of an object."""

    kind: type
    shape: Any


_RECEIPT = {"name": str, "size": _COUNT, "sha256": str}
_COUNTS = _All(dict, _COUNT)
_VALUES = _All(dict, _ANY)
_NODE = {
    "program": str,
    "params": _VALUES,
    "codec": _CODECS,
    "sent": _COUNTS,
    "received": _COUNTS,
    "part": _RECEIPT,
    "state": _Or(_RECEIPT),
}
_SHAPE = {
    "format": (FORMAT,),
    "checksum": str,
    "number": _COUNT,
    "id": str,
    "initiators": _All(list, str),
    "wall_time": float,
    "duration": _Or(float),
    "topology": {
        "name": str,
        "nodes": _All(list, str),
        "channels": _All(list, str),
        "tokens": _All(dict, _COUNT),
        "fingerprint": str,
    },
    "nodes": _All(dict, _NODE),
    "verified": bool,
    "recovery_point": bool,
    "emitted_bytes": _Or(_COUNT),
    "run": _VALUES,
    "outputs": _Or(_RECEIPT),
    "seal": _Maybe(str),
}


def _check(value: Any, shape: Any, where: str) -> None:
    """Raise a ValueError, naming the place, unless a value has a shape; types are exact, and nothing may be over."""
    if isinstance(shape, _Or):
        if value is not None:
            _check(value, shape.shape, where)
    elif isinstance(shape, _All):
        _expect(type(value) is shape.kind, where)
        for key, item in value.items() if shape.kind is dict else enumerate(value):
            _check(item, shape.shape, f"{where}.{key}")
    elif isinstance(shape, dict):
        needed = {key for key, item_shape in shape.items() if not isinstance(item_shape, _Maybe)}
        _expect(type(value) is dict and needed <= value.keys() <= shape.keys(), where)
        for key, item in value.items():
            _check(item, shape[key], f"{where}.{key}")
    elif isinstance(shape, _Maybe):
        _check(value, shape.shape, where)
    elif shape is _COUNT:
        _expect(type(value) is int and 0 <= value <= _MOST_COUNT, where)
    elif isinstance(shape, tuple):
        _expect(any(type(value) is type(one) and value == one for one in shape), where)
    else:
        _expect(shape is _ANY or type(value) is shape, where)


def _expect(right: bool, where: str) -> None:
    if not right:
        raise ValueError(f"something is wrong with {where[:200]}")
