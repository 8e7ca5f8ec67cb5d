"""The parts of a snapshot as they come in, without processes: what is made of them, and what of those that are none."""

from __future__ import annotations

from collections.abc import Mapping

import pytest
from harness import PLAIN
from test_part import Elsewhere
from test_snapshot import TRIANGLE, S, parts_of

from mpsnap.core.errors import CodecError, ConsistencyError, MpsnapError, ProtocolError
from mpsnap.core.events import Event, SnapshotAbandoned, SnapshotCompleted
from mpsnap.core.part import pack
from mpsnap.runtime.commits import Commits
from mpsnap.runtime.deadlines import Deadlines
from mpsnap.runtime.snapshots import Snapshots


class Desk:
    """Collect one snapshot of a triangle, and keep what is told of it."""

    def __init__(self) -> None:
        self.told: list[Event] = []
        self.notes: list[tuple[object, ...]] = []
        self.snapshots = Snapshots(
            TRIANGLE,
            dict.fromkeys(TRIANGLE.nodes, PLAIN),
            0,
            30.0,
            Commits(),
            deadlines=Deadlines(),
            tell=lambda *note: self.notes.append(note),
            happened=self.told.append,
            doing=lambda node: "waiting",
        )

    def take(self, packed: Mapping[str, bytes], apart: Mapping[str, Elsewhere] | None = None) -> None:
        """Let parts come in, with those states that came apart."""
        for node, data in packed.items():
            self.snapshots.report(node, S, (), data, (apart or {}).get(node))

    def error(self) -> MpsnapError:
        """Return why the snapshot was given up."""
        (given_up,) = (event for event in self.told if isinstance(event, SnapshotAbandoned))
        assert self.snapshots.open == []
        return given_up.error


def packed_parts() -> dict[str, bytes]:
    return {node: pack(part) for node, part in parts_of(TRIANGLE).items()}


def test_a_snapshot_is_complete_with_its_last_part() -> None:
    desk = Desk()
    parts = packed_parts()
    last = parts.popitem()
    desk.take(parts)
    assert not any(isinstance(event, SnapshotCompleted) for event in desk.told)
    desk.take(dict([last]))
    (done,) = (event for event in desk.told if isinstance(event, SnapshotCompleted))
    assert done.snapshot.verified
    assert done.snapshot.flight("A", "B") == (3, 3)
    assert tuple(done.snapshot.channels["A", "B"]) == (3, 4, 5)


def test_a_part_that_cannot_be_read_costs_the_snapshot_and_names_its_node() -> None:
    desk = Desk()
    stored = Elsewhere(b"")
    parts = packed_parts()
    parts["A"] = pack(parts_of(TRIANGLE)["A"], apart=True)
    desk.take(parts | {"B": parts["B"][:-1]}, {"A": stored})
    error = desk.error()
    assert isinstance(error, CodecError)
    assert error.where == "B"
    assert stored.asked == ["close"]


def test_a_part_of_another_node_is_no_part_of_this_one() -> None:
    desk = Desk()
    parts = packed_parts()
    desk.take(parts | {"C": parts["B"]})
    error = desk.error()
    assert isinstance(error, ConsistencyError)
    assert error.where == "C"


def test_a_node_reports_once() -> None:
    desk = Desk()
    parts = packed_parts()
    desk.take({"A": parts["A"]})
    with pytest.raises(ProtocolError, match="second report"):
        desk.take({"A": parts["A"]})


def test_what_comes_after_the_end_is_closed_and_not_looked_at() -> None:
    desk = Desk()
    desk.take(packed_parts())
    late = Elsewhere(b"")
    desk.snapshots.report("A", S, (), b"no part", late)
    assert late.asked == ["close"]
    assert len([event for event in desk.told if isinstance(event, SnapshotCompleted)]) == 1
