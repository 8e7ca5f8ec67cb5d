"""What a node hands over of a snapshot, and what becomes of it in a store: without processes, a store in memory."""

from __future__ import annotations

from collections.abc import Sequence
from hashlib import sha256
from typing import Any

import pytest
from stores import commit, cut, parts, stage

from mpsnap.core.errors import StoreError
from mpsnap.core.events import Emitted, SurplusKept
from mpsnap.core.program import Program
from mpsnap.core.protocol import LocalSnapshot
from mpsnap.core.snapshot import Captured
from mpsnap.runtime.commits import StoreCommits
from mpsnap.runtime.outputs import Outputs
from mpsnap.runtime.parts import HandedOver, Parts
from mpsnap.runtime.staging import STAGING_BYTES
from mpsnap.store.contract import Blob, Place
from mpsnap.store.manifest import Receipt, Seal, content
from mpsnap.store.memory import MemoryStore

# --- Parts. ---


def part_with(state: bytes) -> LocalSnapshot:
    local = parts()["A"]
    assert isinstance(local.captured, Captured)
    return local._replace(captured=local.captured._replace(state=state))


def handed_over(of: Parts, local: LocalSnapshot) -> HandedOver:
    """Return what a node tells, once the supervisor has opened what has no name."""
    nobody: Any = None  # is asked, where no child has made a state
    told = of.hand_over(local, nobody)
    if isinstance(told, bytes):
        return HandedOver(told, None, None, None)
    for where in (told.rest, told.ticket):
        if isinstance(where, tuple):
            of.staging.release(where[0])
    of.staging.close()
    return told


@pytest.mark.parametrize("over", [0, 1])
def test_a_state_that_is_large_is_staged_apart_and_once(over: int) -> None:
    """It serves the supervisor too; without a store it goes to a file without a name."""
    local = part_with(bytes(STAGING_BYTES + over))
    kept = handed_over(Parts(MemoryStore().next_incarnation(), 0), local)
    assert (kept.ticket, kept.state is not None, kept.part is not None) == (None, over == 1, True)
    there = handed_over(Parts(None, 0), local)
    assert (there.ticket is not None, there.state, there.part) == (over == 1, None, None)


def test_of_a_snapshot_that_passes_nothing_is_staged_and_of_the_next_one_all() -> None:
    store = MemoryStore()
    of = Parts(store.next_incarnation(), 0)
    local = part_with(b"state")
    of.let_pass(local.snapshot_id)
    assert handed_over(of, local)[1:] == (None, None, None)
    assert handed_over(of, local).part is not None


class Full(Place):
    """Have room for one file, and none for the next."""

    incarnation = 0

    def __init__(self) -> None:
        self.left: list[str] = []

    def create(self, node: int) -> Blob:
        return FullBlob(self.left)


class FullBlob(Blob):
    def __init__(self, left: list[str]) -> None:
        self._left = left

    def fill(self, data: bytes | memoryview) -> Receipt:
        if self._left:
            raise StoreError("no room")
        self._left.append("a file")
        return Receipt("a file", len(data), "")

    def close(self) -> None:
        pass

    def drop(self) -> None:
        self._left.clear()


def test_where_there_is_no_room_for_the_part_its_state_does_not_stay_either() -> None:
    place = Full()
    with pytest.raises(StoreError, match="no room"):
        handed_over(Parts(place, 0), part_with(bytes(STAGING_BYTES + 1)))
    assert place.left == []


def test_a_state_for_a_child_goes_where_the_parts_go() -> None:
    file = Parts(MemoryStore().next_incarnation(), 0).open_file()
    assert isinstance(file, Blob)


# --- Commits. ---


class Stubborn(MemoryStore):
    """Remove nothing for a while."""

    stubborn = False

    def remove(self, number: int) -> None:
        if self.stubborn:
            raise StoreError(f"snapshot {number} stays")
        super().remove(number)


def committing(
    store: MemoryStore,
    keep: int,
    on: int | None,
    told: list[object],
    pickling: frozenset[str] = frozenset(),
    seal: Seal | None = None,
) -> StoreCommits:
    programs = {node: Program("mpsnap.apps.tokens:Tokens", {}) for node in cut(0).topology.nodes}
    outputs = Outputs({}, told.append)
    last = None if on is None else store.manifest(on)
    return StoreCommits(
        store, programs, pickling, outputs, seal=seal, keep=keep, run={}, last=last, happened=told.append
    )


def take(commits: StoreCommits, place: Place, *, recovery_point: bool) -> int:
    """Have every node stage its part of one more snapshot, and commit it."""
    number = commits.begin()
    snapshot = cut(number)
    for index, (node, part) in enumerate(parts().items()):
        receipt, state = stage(place, index, part)
        commits.stage(snapshot.id, node, state, receipt)
    commits.commit(snapshot, recovery_point=recovery_point, final=False)
    return number


@pytest.mark.parametrize("keep", [1, 2])
def test_the_snapshot_to_go_on_from_is_not_removed_though_it_is_old_and_others_could_be_gone_on_from(keep: int) -> None:
    """Somebody has chosen it over newer recovery points, and a death comes back to it."""
    store = MemoryStore()
    place = store.next_incarnation()
    older, *_ = [commit(store, place, recovery_point=True) for _ in range(3)]
    commits = committing(store, keep, older, [])
    for _ in range(3):
        take(commits, place, recovery_point=False)
        assert older in store.numbers()
    point = take(commits, place, recovery_point=True)
    assert commits.last is not None
    assert commits.last.number == point
    assert older not in store.numbers()


def test_what_cannot_be_removed_is_told_once_until_it_can() -> None:
    store = Stubborn()
    place = store.next_incarnation()
    told: list[object] = []
    commits = committing(store, 1, None, told)

    def taken(count: int) -> Sequence[object]:
        for _ in range(count):
            take(commits, place, recovery_point=True)
        return [event for event in told if not isinstance(event, Emitted)]

    assert taken(2) == []
    store.stubborn = True
    (event,) = taken(3)
    assert isinstance(event, SurplusKept)
    assert "stays" in event.error.what
    store.stubborn = False
    assert len(taken(1)) == 1
    store.stubborn = True
    assert len(taken(1)) == 2


@pytest.mark.parametrize("recovery_point", [True, False])
def test_what_holds_pickles_is_sealed_as_it_is_in_the_store(recovery_point: bool) -> None:
    """One node that keeps them is enough: what it has sent is with the others too."""
    store = MemoryStore()
    commits = committing(store, 3, None, [], frozenset({"B"}), lambda told: sha256(told).hexdigest())
    manifest = store.manifest(take(commits, store.next_incarnation(), recovery_point=recovery_point))
    assert [entry.codec for entry in manifest.nodes.values()] == ["plain", "pickle", "plain"]
    assert manifest.pickling == ("B",)
    assert manifest.seal == sha256(content(manifest)).hexdigest()
