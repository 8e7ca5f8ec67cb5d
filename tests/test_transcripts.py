"""Transcripts: what the protocol does, step by step, for anyone to read. They stand in `transcripts/*.txt`.

A line that begins at the margin is a command, the indented lines under it are what came of it, and `#` begins a
comment. `pytest tests/test_transcripts.py --rewrite` writes down what comes of the commands now; commit the difference
only if you understand it.

    nodes A B=5          these nodes, with 10 tokens each or as many as are given
    channel A B          a channel from A to B
    send A B 3           A sends 3 tokens to B; they are on the wire
    deliver A B          B sees what stands first on the wire from A
    deliver all          ... until nothing is on the wire, channel by channel
    take A B             B takes the oldest message from A that it has seen
    initiate 0-A-1 A B   A and B record spontaneously for this snapshot
    abandon 0-A-1 A      A gives the snapshot up; all nodes, if none is named
    overtake A B         on the wire from A to B, the second item overtakes the first
    show                 what every node and channel holds now
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from harness import TokenWorld

from mpsnap.core.errors import ProtocolError
from mpsnap.core.protocol import Effect, Marker, Message, SendMarkers, SnapshotId
from mpsnap.core.topology import Topology

FOLDER = Path(__file__).parent / "transcripts"
INDENT = "    "


class Teller:
    """Carry out commands and tell what came of them."""

    def __init__(self) -> None:
        self._tokens: dict[str, int] = {}
        self._channels: list[tuple[str, str]] = []
        self._made: TokenWorld | None = None
        self._told: set[SnapshotId] = set()

    @property
    def _world(self) -> TokenWorld:
        # Made at the first step, when all nodes and channels are known.
        if self._made is None:
            self._made = TokenWorld(Topology(self._tokens, self._channels, self._tokens))
        return self._made

    def tell(self, line: str) -> list[str]:
        """Carry out one command; return the lines that it leads to."""
        name, *words = line.split()
        command: Callable[..., Iterator[str]] = getattr(self, f"_{name}")
        lines: list[str] = []
        try:
            lines.extend(command(*words))
        except ProtocolError as error:
            lines.append(f"refused: {error}")
        return lines + [told for snapshot_id in self._new_snapshots() for told in self._snapshot(snapshot_id)]

    def _nodes(self, *words: str) -> Iterator[str]:
        for word in words:
            name, _, amount = word.partition("=")
            self._tokens[name] = int(amount or 10)
        yield from ()

    def _channel(self, src: str, dst: str) -> Iterator[str]:
        self._channels.append((src, dst))
        yield from ()

    def _send(self, src: str, dst: str, amount: str) -> Iterator[str]:
        self._world.send(src, dst, int(amount))
        yield f"{src} has {self._world.state[src]} left"

    def _deliver(self, src: str, dst: str = "") -> Iterator[str]:
        if src == "all":
            while busy := [channel for channel, items in self._world.wire.items() if items]:
                for channel in busy:
                    yield from self._deliver(*channel)
            return
        item = self._world.wire[src, dst][0]
        effects = self._world.deliver(src, dst)
        if isinstance(item, Message):
            yield f"{dst} sees message {item.number} from {src}: {item.payload}"
        else:
            yield f"{dst} sees the marker {item.snapshot_id} from {src}"
            yield from self._effects(dst, item.snapshot_id, effects)

    def _take(self, src: str, dst: str) -> Iterator[str]:
        amount = self._world.take(src, dst)
        yield f"{dst} takes {amount} from {src} and has {self._world.state[dst]}"

    def _initiate(self, text: str, *nodes: str) -> Iterator[str]:
        snapshot_id = SnapshotId.parse(text)
        for node in nodes:
            yield from self._effects(node, snapshot_id, self._world.initiate(snapshot_id, node))

    def _abandon(self, text: str, *nodes: str) -> Iterator[str]:
        for node in nodes or self._tokens:
            awaited = self._world.open(node).get(SnapshotId.parse(text))
            self._world.abandon(SnapshotId.parse(text), node)
            sources = "no longer awaits " + " ".join(awaited) if awaited else "was not recording"
            yield f"{node} {sources}"

    def _overtake(self, src: str, dst: str) -> Iterator[str]:
        wire = self._world.wire[src, dst]
        wire[0], wire[1] = wire[1], wire[0]
        yield from self._wire(src, dst)

    def _show(self) -> Iterator[str]:
        for node, amount in self._world.state.items():
            yield f"{node} has {amount}"
        for src, dst in self._channels:
            yield from self._wire(src, dst)

    def _wire(self, src: str, dst: str) -> Iterator[str]:
        def text(item: Message | Marker) -> str:
            return str(item.payload) if isinstance(item, Message) else f"marker {item.snapshot_id}"

        on_the_wire = ", ".join(map(text, self._world.wire[src, dst])) or "nothing"
        seen = self._world.waiting(src, dst)
        yield f"{src}->{dst}: {on_the_wire}" + (f"; {seen} seen and not taken" if seen else "")

    def _effects(self, node: str, snapshot_id: SnapshotId, effects: tuple[Effect, ...]) -> Iterator[str]:
        cut = self._world.cuts[snapshot_id].get(node)
        if not effects and cut is None:
            yield f"{node} ignores it"
        for effect in effects:
            if isinstance(effect, SendMarkers):
                for dst, sent in effect.sent.items():
                    yield f"{node} sends the marker to {dst}: {sent} sent before it"
                continue
            local = effect.local
            yield f"{node} reports"
            for src, state in local.channels.items():
                payloads = ", ".join(map(str, state.payloads)) or "nothing"
                yield f"{INDENT}{src}->{node}: {local.received[src]} taken before the cut, in flight {payloads}"
        awaited = self._world.open(node).get(snapshot_id)
        if awaited:
            yield f"{node} awaits markers from {' '.join(awaited)}"
        elif not effects and cut is not None:
            yield f"{node} has recorded already"

    def _new_snapshots(self) -> list[SnapshotId]:
        if self._made is None:
            return []
        new = [snapshot_id for snapshot_id in self._made.snapshots if snapshot_id not in self._told]
        self._told.update(new)
        return new

    def _snapshot(self, snapshot_id: SnapshotId) -> Iterator[str]:
        snapshot = self._world.snapshots[snapshot_id]
        yield f"snapshot {snapshot_id} is complete and consistent"
        for name, node in snapshot.nodes.items():
            yield f"{INDENT}{name} has {node.state}"
        for (src, dst), amounts in snapshot.channels.items():
            if amounts:
                yield f"{INDENT}{src}->{dst}: {', '.join(map(str, amounts))}"


def performed(script: str) -> str:
    """Return a transcript with what comes of its commands now, in place of what stood there."""
    teller = Teller()
    lines: list[str] = []
    for line in script.splitlines():
        if line.startswith(INDENT):
            continue
        lines.append(line)
        command = line.partition("#")[0].strip()
        if command:
            lines += [INDENT + told for told in teller.tell(command)]
    return "\n".join(lines) + "\n"


@pytest.mark.parametrize("path", sorted(FOLDER.glob("*.txt")), ids=lambda path: path.stem)
def test_transcript(path: Path, request: pytest.FixtureRequest) -> None:
    """It happens word for word as it is written."""
    now = performed(path.read_text())
    if request.config.getoption("--rewrite", default=False):
        path.write_text(now)
    assert now == path.read_text()


def test_there_are_transcripts() -> None:
    assert len(list(FOLDER.glob("*.txt"))) >= 6


def test_a_transcript_that_is_not_true_is_noticed() -> None:
    """The comparison is made, and only what is indented is exchanged."""
    text = "nodes A B  # a comment\nchannel A B\n\nsend A B 3\n    A has 8 left\n"
    assert performed(text) == text.replace("8 left", "7 left")
