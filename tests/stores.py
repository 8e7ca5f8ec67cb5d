"""What tests of stores need: snapshots to commit, and a disk that forgets, fails and keeps a log."""

from __future__ import annotations

import errno
import functools
import os
import random
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from harness import PLAIN
from test_snapshot import TRIANGLE, parts_of

from mpsnap.core.codec import Encoded
from mpsnap.core.part import pack_lasting
from mpsnap.core.protocol import ChannelState, LocalSnapshot
from mpsnap.core.snapshot import Captured, GlobalSnapshot
from mpsnap.runtime.staging import STAGING_BYTES
from mpsnap.store.contents import Output
from mpsnap.store.contract import Place, SnapshotStore
from mpsnap.store.directory import DirectoryStore
from mpsnap.store.disk import Disk, Found
from mpsnap.store.manifest import Manifest, NodeEntry, Receipt, describe

#: Encoded; its bytes are more than a part may hold.
LARGE_STATE = PLAIN.encode({"block": b"x" * (1 << 20)})
OUTPUTS = (Output("A", 1, PLAIN.encode("first")), Output("C", 7, PLAIN.encode({"seventh"})))


@functools.cache
def _recorded() -> Mapping[str, LocalSnapshot]:
    # Once: tests commit the same cut thousands of times, and nothing in it can change.
    return parts_of(TRIANGLE)


def parts(large: str | None = None) -> dict[str, LocalSnapshot]:
    """Return the parts of a cut with three messages in flight, one of them encoded; one node's state may be large."""
    made = dict(_recorded())
    flying = ChannelState(3, (3, Encoded(PLAIN.encode([4])), ("five", 5.0)))
    made["B"] = made["B"]._replace(channels={"A": flying})
    if large is not None:
        captured = made[large].captured
        assert isinstance(captured, Captured)
        made[large] = made[large]._replace(captured=captured._replace(state=LARGE_STATE))
    return made


def cut(number: int, large: str | None = None) -> GlobalSnapshot:
    """Return that cut as a driver would, before it is stored."""
    made = parts(large)
    return GlobalSnapshot(
        number, made["A"].snapshot_id, ("A", "B"), TRIANGLE, made, dict.fromkeys(TRIANGLE.nodes, PLAIN), duration=0.25
    )


def stage(place: Place, node: int, local: LocalSnapshot) -> tuple[Receipt, Receipt | None]:
    """Stage a node's part as `runtime.parts` does, without what a supervisor gets; return both receipts."""
    captured = local.captured
    assert isinstance(captured, Captured)
    assert isinstance(captured.state, bytes)
    large = len(captured.state) > STAGING_BYTES
    state = place.write(node, captured.state) if large else None
    return place.write(node, pack_lasting(local, apart=large)), state


def staged(place: Place, number: int, large: str | None = None, **told: Any) -> Manifest:
    """Stage that cut and return its manifest."""
    entries = {}
    made = parts(large)
    for index, node in enumerate(TRIANGLE.nodes):
        part = made[node]
        receipt, state = stage(place, index, part)
        params = {"tokens": 10, "pair": (index, {index})}
        entries[node] = NodeEntry("bank:Branch", params, "plain", part.sent, part.received, receipt, state)
    return describe(cut(number, large), entries, wall_time=1.7e9, **{"recovery_point": True, **told})


def commit(store: SnapshotStore, place: Place, large: str | None = None, **told: Any) -> int:
    """Commit one more snapshot; return its number."""
    outputs: Iterable[Output] = told.pop("outputs", ())
    number = store.begin()
    assert store.commit(staged(place, number, large, **told), outputs).number == number
    return number


def seen(snapshot: GlobalSnapshot) -> object:
    """Return all that a snapshot shows."""
    nodes = {
        name: (node.state, node.sent, node.received, node.passive, node.finished, node.timers)
        for name, node in snapshot.nodes.items()
    }
    head = snapshot.number, snapshot.id, snapshot.initiators, snapshot.topology, snapshot.duration, snapshot.in_flight
    return head, nodes, dict(snapshot.channels)


# --- What a supervisor does, and what may be left of it. ---


class Note(NamedTuple):
    """Say how far a supervisor got."""

    what: str
    number: int


Tell = Callable[[str, int], None]


def live(path: str, disk: Disk, tell: Tell) -> None:
    """Do all that a supervisor does to a store, in two lives, and tell each step: what is told has happened."""
    with DirectoryStore(path, disk) as store:
        place = store.next_incarnation()
        tell("incarnation", place.incarnation)
        for kind in (True, True, False):
            _commit(store, place, tell, recovery_point=kind)
        given_up = store.begin()
        tell("begun", given_up)
        staged(place, given_up)
        store.abandon(given_up)
        tell("removing", 0)
        assert store.retain(2) == (0,)
        tell("removed", 0)
        unfinished = store.begin()
        tell("begun", unfinished)
        staged(place, unfinished)
    with DirectoryStore(path, disk) as store:
        place = store.next_incarnation()
        tell("incarnation", place.incarnation)
        _commit(store, place, tell, recovery_point=True, outputs=OUTPUTS)
        tell("removing", 5)
        store.remove(5)
        tell("removed", 5)
        tell("begun", store.begin())


def _commit(store: SnapshotStore, place: Place, tell: Tell, **told: Any) -> None:
    outputs = told.pop("outputs", ())
    number = store.begin()
    tell("begun", number)
    manifest = staged(place, number, **told)
    tell("committing", number)
    store.commit(manifest, outputs)
    tell("committed", number)


def survive(path: str, disk: Disk, notes: Sequence[Note]) -> tuple[int, ...]:
    """Open what is left of a store and hold it against what had been told; return the snapshots that are there."""

    def all_of(what: str) -> set[int]:
        return {note.number for note in notes if note.what == what}

    with DirectoryStore(path, disk) as store:
        there = store.numbers()
        assert all_of("committed") - all_of("removing") <= set(there), "a committed snapshot is lost"
        assert set(there) <= all_of("committing") - all_of("removed"), "there is a snapshot that nobody has committed"
        for number in there:
            store.verify(number)
        assert store.next_incarnation().incarnation > max(all_of("incarnation"), default=-1), (
            "an incarnation is used twice"
        )
        assert store.begin() > max(all_of("begun"), default=-1), "a number is given out twice"
    return there


# --- A disk in memory. ---


class Killed(BaseException):
    """Stand for the end of a process: none of its operations gets through any more."""


class Inode:
    """Hold a file's bytes, or a directory's names."""

    def __init__(self, number: int, is_file: bool) -> None:
        self.number = number
        self.is_file = is_file
        self.data = bytearray()
        self.names: dict[str, Inode] = {}


class Op(NamedTuple):
    """Note one change, or a sync of what had changed before, by the number of the inode."""

    kind: str
    inode: int
    #: Names that are set or, with None, removed, all at once; bytes that are written at a place.
    change: Any


class FakeDisk(Disk):
    """Twin of `Disk`: keep everything in memory, note every change, and fail when told to.

    A rename from one directory to another is two changes here, and what is not synced may reach the disk in any order
    or not at all: kernels are kinder than that, and no store should rely on it.
    """

    TOP = "/disk/store"

    def __init__(self) -> None:
        self.inodes = [Inode(0, False)]
        self.log: list[Op] = []
        self.open_files: dict[int, Inode] = {}
        #: How many operations were asked for; which of them fails and how; and from then on all, if that is wanted.
        self.asked = 0
        self.failing: tuple[int, int] | None = None
        self.for_good = False
        self.failed: str | None = None
        #: Which operation the process that uses this disk does not live to see.
        self.killed_at: int | None = None
        #: Inodes that a failed sync was asked for, and those for which one was asked again.
        self.unsynced: set[int] = set()
        self.synced_again: set[int] = set()

    def _ask(self, what: str) -> None:
        self.asked += 1
        if self.killed_at is not None and self.asked >= self.killed_at:
            raise Killed
        if self.failing is not None:
            at, number = self.failing
            if self.asked == at or (self.for_good and self.asked > at):
                self.failed = self.failed or what
                raise OSError(number, os.strerror(number))

    def _open(self, inode: Inode) -> int:
        fd = next(fd for fd in range(1000, 2000) if fd not in self.open_files)
        self.open_files[fd] = inode
        return fd

    def _change(self, inode: Inode, **names: Inode | None) -> None:
        self.log.append(Op("names", inode.number, {name: kept and kept.number for name, kept in names.items()}))
        _set_names(inode, names)

    def _find(self, name: str, at: int) -> Inode:
        found = self.open_files[at].names.get(name)
        if found is None:
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT))
        return found

    def _new(self, name: str, at: int, is_file: bool) -> Inode:
        directory = self.open_files[at]
        if name in directory.names:
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST))
        made = Inode(len(self.inodes), is_file)
        self.inodes.append(made)
        self._change(directory, **{name: made})
        return made

    def make_top(self, path: str) -> None:
        raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST))

    def open_top(self, path: str) -> int:
        self._ask("open_top")
        inode = self.inodes[0]
        for part in path.removeprefix(self.TOP).split("/")[1:]:
            inode = inode.names[part]
        return self._open(inode)

    def open_directory(self, name: str, at: int) -> int:
        self._ask("open_directory")
        return self._open(self._find(name, at))

    def make_directory(self, name: str, at: int) -> None:
        self._ask("make_directory")
        self._new(name, at, False)

    def create(self, name: str, at: int) -> int:
        self._ask("create")
        return self._open(self._new(name, at, True))

    def open(self, name: str, at: int) -> int:
        self._ask("open")
        return self._open(self._find(name, at))

    def write(self, fd: int, data: memoryview) -> int:
        # Half of it, as a kernel may.
        half = bytes(data[: (len(data) + 1) // 2])
        self._ask("write")
        inode = self.open_files[fd]
        self.log.append(Op("write", inode.number, (len(inode.data), half)))
        inode.data += half
        return len(half)

    def read(self, fd: int, size: int, offset: int) -> bytes:
        self._ask("read")
        return bytes(self.open_files[fd].data[offset : offset + size])

    def sync(self, fd: int) -> None:
        inode = self.open_files[fd].number
        if inode in self.unsynced:
            self.synced_again.add(inode)
        try:
            self._ask("sync")
        except OSError:
            self.unsynced.add(inode)
            raise
        self.log.append(Op("sync", inode, None))

    def rename(self, name: str, at: int, new: str, new_at: int) -> None:
        self._ask("rename")
        moved = self._find(name, at)
        if at == new_at:
            self._change(self.open_files[at], **{name: None, new: moved})
        else:
            self._change(self.open_files[new_at], **{new: moved})
            self._change(self.open_files[at], **{name: None})

    def unlink(self, name: str, at: int) -> None:
        self._ask("unlink")
        assert self._find(name, at).is_file
        self._change(self.open_files[at], **{name: None})

    def remove_directory(self, name: str, at: int) -> None:
        self._ask("remove_directory")
        if self._find(name, at).names:
            raise OSError(errno.ENOTEMPTY, os.strerror(errno.ENOTEMPTY))
        self._change(self.open_files[at], **{name: None})

    def names(self, at: int) -> list[str]:
        self._ask("names")
        return list(self.open_files[at].names)

    def found(self, fd: int) -> Found:
        self._ask("found")
        return self._found(self.open_files[fd])

    def look(self, name: str, at: int) -> Found:
        self._ask("look")
        return self._found(self._find(name, at))

    def _found(self, inode: Inode) -> Found:
        identity = id(self), inode.number
        return Found(inode.is_file, not inode.is_file, len(inode.data), identity, os.geteuid(), 0o700)

    def lock(self, name: str, at: int) -> tuple[int, bool]:
        self._ask("lock")
        there = self.open_files[at].names.get(name)
        return self._open(there or self._new(name, at, True)), True

    def truncate(self, fd: int) -> None:
        self._ask("truncate")
        self.open_files[fd].data.clear()

    def close(self, fd: int) -> None:
        # Closing gives the descriptor back whatever it says, so nothing is gained by having it fail.
        del self.open_files[fd]

    # ------------------------------------------------------------ losing its power

    def pending(self, end: int) -> list[int]:
        """Return which of the first `end` changes no sync has covered by then."""
        covered: set[int] = set()
        left = []
        for place in range(end - 1, -1, -1):
            op = self.log[place]
            if op.kind == "sync":
                covered.add(op.inode)
            elif op.inode not in covered:
                left.append(place)
        return left[::-1]

    def after_power_loss(self, end: int, lost: frozenset[int]) -> FakeDisk:
        """Return a disk on which the first `end` changes happened, but for those that are lost."""
        again = FakeDisk()
        again.inodes = [Inode(inode.number, inode.is_file) for inode in self.inodes]
        for place, op in enumerate(self.log[:end]):
            if place in lost or op.kind == "sync":
                continue
            inode = again.inodes[op.inode]
            if op.kind == "names":
                _set_names(inode, {name: kept and again.inodes[kept] for name, kept in op.change.items()})
            else:
                at, data = op.change
                # What was lost in front of it is a hole.
                inode.data += bytes(max(0, at - len(inode.data)))
                inode.data[at : at + len(data)] = data
        return again

    def tree(self) -> object:
        """Return all that is there, to be compared."""

        def of(inode: Inode) -> object:
            names = frozenset((name, of(kept)) for name, kept in inode.names.items())
            return bytes(inode.data) if inode.is_file else names

        return of(self.inodes[0])


def _set_names(inode: Inode, names: Mapping[str, Inode | None]) -> None:
    for name, kept in names.items():
        if kept is None:
            inode.names.pop(name, None)
        else:
            inode.names[name] = kept


def losses(pending: Sequence[int], rng: random.Random) -> Iterator[frozenset[int]]:
    """Yield which changes a loss of power may take: of few every set, of many none, all, each of the last and others.

    The older ones are leftovers that nobody relies on, names in the folder of staged files above all.
    """
    if len(pending) <= 4:
        for bits in range(1 << len(pending)):
            yield frozenset(place for k, place in enumerate(pending) if bits >> k & 1)
        return
    whole = frozenset(pending)
    yield frozenset()
    yield whole
    for place in pending[-8:]:
        yield frozenset({place})
        yield whole - {place}
    for _ in range(6):
        yield frozenset(place for place in pending if rng.random() < 0.5)
