"""The contract of a store: one body of tests, run over every implementation.

Who brings another store adds it to `STORES` and has to pass what is written here.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest
from harness import PLAIN, graph
from stores import LARGE_STATE, OUTPUTS, commit, cut, parts, seen, stage, staged

from mpsnap.core.codec import Codec, Pickled
from mpsnap.core.errors import CodecError, ProtocolError, SnapshotCorrupt, SnapshotIncompatible, StoreError
from mpsnap.core.snapshot import Captured, StoredState
from mpsnap.core.topology import Topology
from mpsnap.store.contents import Output
from mpsnap.store.contract import Place, SnapshotStore, is_recovery_point
from mpsnap.store.directory import DirectoryStore
from mpsnap.store.manifest import Manifest, Receipt, check_compatible, content
from mpsnap.store.memory import MemoryStore

STORES: dict[str, Callable[[Path], SnapshotStore]] = {
    "directory": lambda folder: DirectoryStore(folder / "store"),
    "memory": lambda folder: MemoryStore(),
}


@pytest.fixture(params=STORES)
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[SnapshotStore]:
    with STORES[request.param](tmp_path) as store:
        yield store


@pytest.fixture
def place(store: SnapshotStore) -> Place:
    return store.next_incarnation()


# --- What is committed comes back. ---


def test_a_new_store_is_empty(store: SnapshotStore) -> None:
    assert store.numbers() == ()
    assert store.latest() is None


def test_a_snapshot_comes_back_as_it_was(store: SnapshotStore, place: Place) -> None:
    number = commit(store, place, run={"seed": 7, "top": "ring:3", "pairs": [(1, 2)]}, emitted_bytes=812)
    assert store.numbers() == (number,)
    again = store.load(number)
    assert seen(again) == seen(cut(number))
    assert again.verified
    store.verify(number)


def test_a_manifest_says_how_the_snapshot_came_about(store: SnapshotStore, place: Place) -> None:
    """Exactly by type, whether or not JSON has the type."""
    run = {"seed": 7, "top": "ring:3", "pairs": [(1, 2)], "limits": {"x": 0.5, "deep": [None, True]}, "$odd": {1}}
    number = commit(store, place, run=run, emitted_bytes=812, recovery_point=False)
    manifest = store.manifest(number)
    assert repr(manifest.run) == repr(run)
    assert (manifest.number, manifest.id, manifest.incarnation) == (number, cut(0).id, 0)
    assert (manifest.wall_time, manifest.duration, manifest.initiators) == (1.7e9, 0.25, ("A", "B"))
    assert (manifest.verified, manifest.recovery_point, manifest.emitted_bytes) == (True, False, 812)
    assert manifest.topology == cut(0).topology
    assert list(manifest.nodes) == ["A", "B", "C"]
    node = manifest.nodes["B"]
    assert (node.program, node.codec, node.state) == ("bank:Branch", "plain", None)
    assert repr(node.params) == "{'tokens': 10, 'pair': (1, {1})}"
    assert (node.sent, node.received) == ({"C": 0}, {"A": 2})


def test_what_commit_returns_is_what_is_read(store: SnapshotStore, place: Place) -> None:
    number = store.begin()
    made = store.commit(staged(place, number, "C"), OUTPUTS)
    assert made == store.manifest(number)
    assert [receipt.name for receipt in made.files()] == [
        *("node-0.part", "node-1.part", "node-2.part", "node-2.state", "outputs")
    ]


def test_a_large_state_stays_where_it_is_until_somebody_looks(store: SnapshotStore, place: Place) -> None:
    number = commit(store, place, "C")
    entry = store.manifest(number).nodes["C"]
    assert entry.state is not None
    assert (entry.state.size, entry.part.size < 1000) == (len(LARGE_STATE), True)
    snapshot = store.load(number)
    assert snapshot.stored == [len(LARGE_STATE)]
    assert snapshot.nodes["C"].state == PLAIN.decode(LARGE_STATE)
    store.verify(number)


def test_what_was_loaded_outlives_its_removal(store: SnapshotStore, place: Place) -> None:
    number = commit(store, place, "C")
    commit(store, place)
    snapshot = store.load(number)
    store.remove(number)
    assert snapshot.nodes["C"].state == PLAIN.decode(LARGE_STATE)


@pytest.mark.parametrize("outputs", [(), OUTPUTS, (Output("A", 0, b""),) * 3])
def test_outputs_that_were_not_released_come_back_in_order(
    store: SnapshotStore, place: Place, outputs: tuple[Output, ...]
) -> None:
    number = commit(store, place, outputs=iter(outputs))
    assert store.outputs(number) == outputs
    assert (store.manifest(number).outputs is None) is (outputs == ())


class Evil:
    """Do harm when it is unpickled."""

    def __reduce__(self) -> tuple[object, ...]:
        return pytest.fail, ("it was unpickled",)


def test_a_pickle_is_kept_and_never_loaded(store: SnapshotStore, place: Place) -> None:
    """In a state, in a message and in an output."""
    evil = Codec(pickle=True).encode(Evil())
    number = store.begin()
    manifest = staged(place, number)
    local = parts()["A"]
    assert isinstance(local.captured, Captured)
    part, _ = stage(place, 0, local._replace(captured=local.captured._replace(state=evil)))
    node = manifest.nodes["A"]._replace(part=part, codec="pickle")
    store.commit(manifest._replace(nodes={**manifest.nodes, "A": node}), [Output("A", 1, evil)])
    store.verify(number)
    assert isinstance(store.load(number).nodes["A"].state, Pickled)
    assert store.manifest(number).nodes["A"].codec == "pickle"
    assert store.outputs(number) == (Output("A", 1, evil),)


def test_a_seal_is_made_of_what_the_store_says_in_the_end(store: SnapshotStore, place: Place) -> None:
    """With the names that files have there, and the outputs, which no one has told it before."""
    sealed: list[bytes] = []

    def seal(told: bytes) -> str:
        sealed.append(told)
        return sha256(told).hexdigest()

    number = store.begin()
    manifest = staged(place, number)
    pickling = {node: entry._replace(codec="pickle") for node, entry in manifest.nodes.items()}
    made = store.commit(manifest._replace(nodes=pickling, seal="f" * 64), OUTPUTS, seal)
    there = store.manifest(number)
    assert made == there
    assert sealed == [content(there)]
    assert there.seal == sha256(content(there)).hexdigest()
    assert b'"outputs"' in sealed[0]
    assert there.outputs is not None
    assert there.outputs.sha256.encode() in sealed[0]
    store.verify(number)


def test_a_store_seals_nothing_by_itself(store: SnapshotStore, place: Place) -> None:
    assert store.manifest(commit(store, place)).seal is None


# --- Numbers. ---


def test_numbers_grow_and_none_is_given_twice(store: SnapshotStore, place: Place) -> None:
    """Neither that of a snapshot that was given up, nor that of one that was removed."""
    first = commit(store, place)
    given_up = store.begin()
    store.abandon(given_up)
    store.abandon(given_up)
    second = commit(store, place)
    store.remove(second)
    third = commit(store, place)
    assert (first, given_up, second, third) == (0, 1, 2, 3)
    assert store.numbers() == (first, third)


def test_several_may_be_open_and_end_in_any_order(store: SnapshotStore, place: Place) -> None:
    a, b, c = store.begin(), store.begin(), store.begin()
    store.commit(staged(place, c))
    assert store.numbers() == (c,)
    store.abandon(b)
    store.commit(staged(place, a))
    assert store.numbers() == (a, c)
    assert store.latest() == store.manifest(c)


def test_only_what_was_begun_can_be_committed_and_only_once(store: SnapshotStore, place: Place) -> None:
    given_up, done = store.begin(), commit(store, place)
    store.abandon(given_up)
    for number in (given_up, done, 99):
        with pytest.raises(ProtocolError, match=f"snapshot {number} is committed and was not begun, or has ended"):
            store.commit(staged(place, number))
    assert store.numbers() == (done,)


@pytest.mark.parametrize("number", [1, 7, -1, 10**30])
def test_a_snapshot_that_is_not_there_is_an_error_that_says_so(store: SnapshotStore, place: Place, number: int) -> None:
    commit(store, place)
    asked: list[Callable[[int], object]] = [
        *(store.manifest, store.load, store.outputs, store.verify, store.remove),
    ]
    for ask in asked:
        with pytest.raises(StoreError, match=f"there is no snapshot {number} in this store"):
            ask(number)


# --- Staging. ---


def test_incarnations_grow_and_what_older_ones_staged_is_gone(store: SnapshotStore) -> None:
    old = store.next_incarnation()
    early = old.write(0, b"old")
    new = store.next_incarnation()
    assert new.incarnation > old.incarnation
    # By a process that should be dead.
    late = old.write(0, b"old")
    for receipt in (early, late):
        number = store.begin()
        manifest = staged(new, number)
        node = manifest.nodes["A"]._replace(part=receipt)
        with pytest.raises(StoreError):
            store.commit(manifest._replace(nodes={**manifest.nodes, "A": node}))
    assert store.numbers() == ()


def test_a_blob_is_opened_and_filled_later(store: SnapshotStore, place: Place) -> None:
    """The second step may be another process's."""
    number = store.begin()
    manifest = staged(place, number)
    blob, unused = place.create(0), place.create(0)
    local = parts()["A"]
    assert isinstance(local.captured, Captured)
    part, _ = stage(place, 0, local._replace(captured=local.captured._replace(state=LARGE_STATE)))
    state = blob.fill(memoryview(LARGE_STATE))
    blob.close()
    unused.drop()
    unused.drop()
    node = manifest.nodes["A"]._replace(part=part, state=state)
    store.commit(manifest._replace(nodes={**manifest.nodes, "A": node}))
    assert store.load(number).nodes["A"].state == PLAIN.decode(LARGE_STATE)


def test_names_of_staged_files_never_meet(place: Place) -> None:
    names = [place.write(node, b"").name for node in (0, 1, 0, 11, 1)]
    assert len(set(names)) == len(names)


def without(manifest: Manifest, store: SnapshotStore) -> Manifest:
    store.drop_staged([manifest.nodes["B"].part])
    return manifest


def renamed(name: str) -> Callable[[Manifest, SnapshotStore], Manifest]:
    def rename(manifest: Manifest, _: SnapshotStore) -> Manifest:
        node = manifest.nodes["B"]
        return manifest._replace(nodes={**manifest.nodes, "B": node._replace(part=node.part._replace(name=name))})

    return rename


def resized(manifest: Manifest, _: SnapshotStore) -> Manifest:
    node = manifest.nodes["B"]
    part = node.part._replace(size=node.part.size + 1)
    return manifest._replace(nodes={**manifest.nodes, "B": node._replace(part=part)})


@pytest.mark.parametrize(
    "spoil",
    [without, resized, *map(renamed, ["", "..", "/etc/passwd", "0-1-77", "../LOCK", "LOCK", "0-1-0\0", "x" * 300])],
)
def test_only_what_was_staged_is_committed(
    store: SnapshotStore, place: Place, spoil: Callable[[Manifest, SnapshotStore], Manifest]
) -> None:
    """Whoever tells a name is not asked to be believed; the number is used up, and the store goes on."""
    kept = commit(store, place)
    number = store.begin()
    with pytest.raises(StoreError):
        store.commit(spoil(staged(place, number), store))
    assert store.numbers() == (kept,)
    assert commit(store, place) == number + 1
    assert store.numbers() == (kept, number + 1)


def test_what_could_not_be_read_again_is_not_committed(store: SnapshotStore, place: Place) -> None:
    for wrong in ({"run": {"x": object()}}, {"emitted_bytes": -1}, {"wall_time": 5}):
        number = store.begin()
        manifest = staged(place, number)
        with pytest.raises(CodecError):
            store.commit(manifest._replace(**wrong))
        assert store.numbers() == ()


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"part": "another node's"}, "its node is not what the manifest says"),
        ({"sent": {"B": 6}}, "its messages sent is not what the manifest says"),
        ({"received": {"C": 1}}, "its messages received is not what the manifest says"),
    ],
)
def test_a_part_that_its_manifest_does_not_describe_is_no_part(
    store: SnapshotStore, place: Place, changes: dict[str, Any], told: str
) -> None:
    """Though every file holds what was committed."""
    number = store.begin()
    manifest = staged(place, number)
    if "part" in changes:
        changes = {"part": stage(place, 0, parts()["B"])[0]}
    node = manifest.nodes["A"]._replace(**changes)
    store.commit(manifest._replace(nodes={**manifest.nodes, "A": node}))
    with pytest.raises(SnapshotCorrupt, match=told):
        store.load(number)


def test_dropping_what_is_gone_is_no_error(store: SnapshotStore, place: Place) -> None:
    receipt = place.write(0, b"x")
    store.drop_staged([receipt, receipt, Receipt("../LOCK", 1, "")])
    assert commit(store, place) == 0


# --- Which to keep. ---


def test_the_newest_are_kept(store: SnapshotStore, place: Place) -> None:
    numbers = [commit(store, place) for _ in range(5)]
    assert store.retain(2) == tuple(numbers[:3])
    assert store.retain(2) == ()
    assert store.numbers() == tuple(numbers[3:])


def test_the_newest_recovery_point_is_never_removed(store: SnapshotStore, place: Place) -> None:
    """One that was proven: a cut that was not is none to go back to."""
    old, point = commit(store, place), commit(store, place)
    number = store.begin()
    store.commit(staged(place, number)._replace(verified=False))
    others = [commit(store, place, recovery_point=False) for _ in range(3)]
    assert store.retain(1) == (old, number, *others[:2])
    assert store.numbers() == (point, others[2])
    newest = store.latest(is_recovery_point)
    assert newest is not None
    assert newest.number == point
    assert store.retain(0) == (others[2],)
    assert store.numbers() == (point,)


def test_only_some_may_be_chosen_from(store: SnapshotStore, place: Place) -> None:
    asked = [commit(store, place, recovery_point=False, run={"asked": True}) for _ in range(3)]
    points = [commit(store, place) for _ in range(3)]
    assert store.retain(1, among=lambda manifest: manifest.recovery_point) == tuple(points[:2])
    assert store.numbers() == (*asked, points[2])


# --- Another cluster. ---


@pytest.mark.parametrize(
    ("topology", "program", "told"),
    [
        (graph("A->B B->C C->A A->C"), "bank:Branch", "no channel A->C in the snapshot"),
        (graph("A->B B->C"), "bank:Branch", "no channel C->A here"),
        (graph("A->B B->C C->A D"), "bank:Branch", "no node D in the snapshot"),
        (cut(0).topology, "bank:Office", "A ran bank:Branch and would run bank:Office"),
    ],
)
def test_another_cluster_is_refused_with_what_differs(
    store: SnapshotStore, place: Place, topology: Topology, program: str, told: str
) -> None:
    manifest = store.manifest(commit(store, place))
    with pytest.raises(SnapshotIncompatible, match=told):
        check_compatible(manifest, topology, dict.fromkeys(topology.nodes, program))
    check_compatible(manifest, cut(0).topology.with_tokens(3), dict.fromkeys("ABC", "bank:Branch"))


def test_states_are_stored_states(store: SnapshotStore, place: Place) -> None:
    with store.contents(commit(store, place, "C")) as contents:
        entry = contents.manifest.nodes["C"]
        assert entry.state is not None
        state = contents.state(entry.state)
        assert isinstance(state, StoredState)
        assert state.read() == LARGE_STATE
        state.close()
        state.close()
