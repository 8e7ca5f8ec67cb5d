"""What a store withstands: a disk that fails, a loss of power, kill -9; and that no damage goes unseen."""

from __future__ import annotations

import errno
import json
import os
import random
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import pytest
from stores import OUTPUTS, FakeDisk, Killed, Note, commit, live, losses, staged, survive

from mpsnap.core.errors import SnapshotCorrupt, StoreError
from mpsnap.store.directory import DirectoryStore
from mpsnap.store.manifest import MANIFEST

# --- Losing its power. ---


def lived(disk: FakeDisk) -> tuple[list[tuple[int, Note]], StoreError | None]:
    """Do what a supervisor does; return its notes, each with how much the disk had done by then, and how it failed."""
    notes: list[tuple[int, Note]] = []
    try:
        live(disk.TOP, disk, lambda what, number: notes.append((len(disk.log), Note(what, number))))
    except StoreError as error:
        return notes, error
    return notes, None


@pytest.mark.slow
def test_whatever_a_loss_of_power_takes_the_store_opens_with_what_was_committed() -> None:
    """After each operation, and with every set of changes lost that were not synced by then, or many of them."""
    disk = FakeDisk()
    notes, error = lived(disk)
    assert error is None
    rng = random.Random(7)
    tried = set()
    outcomes = set()
    for end in range(len(disk.log) + 1):
        told = tuple(note for at, note in notes if at <= end)
        for lost in losses(disk.pending(end), rng):
            left = disk.after_power_loss(end, lost)
            case = told, left.tree()
            if case not in tried:
                tried.add(case)
                try:
                    outcomes.add(survive(disk.TOP, left, told))
                except Exception as error:
                    pytest.fail(f"after {end} of {len(disk.log)} changes, {sorted(lost)} of them lost: {error}")
    # Every stage was met.
    assert {(), (0,), (0, 1), (0, 1, 2), (1, 2), (1, 2, 5)} <= outcomes
    assert len(tried) > 500


@pytest.mark.slow
def test_a_loss_of_power_after_a_kill_takes_nothing_either() -> None:
    """What a killed process has left in memory alone is no ground to remove anything on."""
    rng = random.Random(11)
    tried = set()
    for last in range(1, operations() + 1):
        disk, notes = FakeDisk(), list[Note]()
        disk.killed_at = last
        with pytest.raises(Killed):
            live(disk.TOP, disk, noting(notes))
        disk.killed_at = None
        if (left := disk.tree()) in tried:
            continue
        tried.add(left)
        DirectoryStore(disk.TOP, disk).close()
        end = len(disk.log)
        pending = disk.pending(end)
        for _ in range(10):
            lost = frozenset(place for place in pending if rng.random() < 0.5)
            try:
                survive(disk.TOP, disk.after_power_loss(end, lost), notes)
            except Exception as error:
                pytest.fail(f"killed at operation {last}, opened, and {sorted(lost)} of {end} changes lost: {error}")
    assert len(tried) > 150


def noting(notes: list[Note]) -> Callable[[str, int], None]:
    return lambda what, number: notes.append(Note(what, number))


# --- A disk that fails. ---


def operations() -> int:
    disk = FakeDisk()
    lived(disk)
    return disk.asked


@pytest.mark.parametrize(
    ("number", "for_good"), [(errno.ENOSPC, True), (errno.EIO, False)], ids=["ENOSPC-for good", "EIO-once"]
)
def test_whichever_operation_fails_it_is_one_clean_error_and_nothing_is_lost(number: int, for_good: bool) -> None:
    """It names the store, leaves no descriptor open, and the store goes on when the disk does."""
    errors = 0
    for failing in range(1, operations() + 1):
        disk = FakeDisk()
        disk.failing, disk.for_good = (failing, number), for_good
        notes, error = lived(disk)
        if error is not None:
            errors += 1
            assert error.where is not None
            assert error.where.startswith(disk.TOP)
            assert os.strerror(number) in error.what
        assert disk.failed is not None
        assert not disk.open_files, f"operation {failing}, {disk.failed}, has left descriptors open"
        # The store's own directory is asked for each snapshot anew.
        assert disk.synced_again <= {0}, f"operation {failing}: a failed sync was asked again"
        disk.failing = None
        survive(disk.TOP, disk, [note for _, note in notes])
    assert errors > 60


@pytest.mark.parametrize("for_good", [False, True], ids=["once", "for good"])
@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EIO], ids=["ENOSPC", "EIO"])
def test_a_commit_that_fails_leaves_no_trace_and_the_next_one_succeeds(number: int, for_good: bool) -> None:
    failed = set()
    for failing in range(1, 200):
        disk = FakeDisk()
        with DirectoryStore(disk.TOP, disk) as store:
            place = store.next_incarnation()
            first = commit(store, place)
            doomed = store.begin()
            manifest = staged(place, doomed)
            disk.failing, disk.for_good = (disk.asked + failing, number), for_good
            told = ""
            try:
                store.commit(manifest, OUTPUTS)
            except StoreError as error:
                told = error.what
            disk.failing = None
            if disk.failed is None:
                assert store.numbers() == (first, doomed)
                break
            assert f"snapshot {doomed} cannot be committed" in told or "a staged file is not there" in told
            failed.add(disk.failed)
            assert store.numbers() == (first,)
            again = commit(store, place, outputs=OUTPUTS)
            assert again == doomed + 1
            assert store.numbers() == (first, again)
            store.verify(again)
            root = disk.inodes[0].names
            assert ".tmp-00000001" not in root
            # What could not be taken away any more is left to whoever opens the store next.
            if not for_good:
                assert "snap-00000001" not in root
                assert not root["staging"].names
    else:
        pytest.fail("the commit never came through")
    assert failed == {"open_directory", "look", "rename", "create", "write", "sync", "names"}


def test_a_node_that_cannot_stage_is_told_and_leaves_nothing() -> None:
    for failing in range(1, 12):
        disk = FakeDisk()
        with DirectoryStore(disk.TOP, disk) as store:
            place = store.next_incarnation()
            disk.failing = disk.asked + failing, errno.ENOSPC
            caught = None
            try:
                place.write(3, b"some bytes")
            except StoreError as error:
                caught = error
            disk.failing = None
            if disk.failed is None:
                break
            assert caught is not None
            assert "a file cannot be staged" in caught.what
            assert caught.hint == "room on that file system"
            assert not disk.inodes[0].names["staging"].names
            assert place.write(3, b"some bytes").size == 10
    assert failing > 5


# --- kill -9. ---

KILLED = """
import os, signal, sys
from stores import Note, live, survive
from mpsnap.store.disk import Disk

class Killing(Disk):
    asked, last = 0, 0

def deadly(name):
    whole = getattr(Disk, name)
    def asked(self, *args):
        Killing.asked += 1
        if Killing.asked == Killing.last:
            if name == "write":  # torn in the middle
                os.write(args[0], bytes(args[1][: len(args[1]) // 2]))
            os.kill(os.getpid(), signal.SIGKILL)
        return whole(self, *args)
    return asked

for name in [name for name in vars(Disk) if not name.startswith("_")]:
    setattr(Killing, name, deadly(name))

outcomes = set()
for last in range(1, 10_000):
    path = os.path.join(sys.argv[1], f"store-{last}")
    reading, writing = os.pipe()
    pid = os.fork()
    if pid == 0:
        Killing.last = last
        live(path, Killing(), lambda what, number: os.write(writing, f"{what} {number}\\n".encode()))
        os._exit(0)
    os.close(writing)
    with open(reading) as pipe:
        notes = [Note(what, int(number)) for what, number in map(str.split, pipe)]
    _, status = os.waitpid(pid, 0)
    outcomes.add(survive(path, Disk(), notes))
    if status == 0:
        break
    assert os.WTERMSIG(status) == signal.SIGKILL, status
print(last, sorted(outcomes))
"""


@pytest.mark.slow
def test_kill_9_at_any_operation_leaves_what_was_committed() -> None:
    """Each operation on the disk is the last one of a process once, a write also in the middle."""
    # In memory: what a killed process has written is there, whatever has reached a disk.
    with tempfile.TemporaryDirectory(prefix="kill-9-", dir="/dev/shm") as folder:
        done = subprocess.run(
            [sys.executable, "-c", KILLED, folder],
            cwd=Path(__file__).parent,
            capture_output=True,
            text=True,
            check=False,
        )
    assert done.returncode == 0, done.stderr
    operations, outcomes = done.stdout.split(" ", 1)
    assert int(operations) > 150
    assert outcomes.strip() == "[(), (0,), (0, 1), (0, 1, 2), (1, 2), (1, 2, 5)]"


# --- Damage. ---


def damage(folder: Path, rng: random.Random) -> str:
    """Damage one snapshot in one of many ways; say how."""
    files = sorted(folder.iterdir())
    path = rng.choice(files)
    data = bytearray(path.read_bytes())
    how = rng.choice(["flip", "cut", "extend", "delete", "swap", "add", "zero"])
    if how == "flip":
        data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
    elif how == "cut":
        del data[rng.randrange(len(data)) :]
    elif how == "extend":
        data += rng.randbytes(rng.randint(1, 9))
    elif how == "zero":
        at = rng.randrange(len(data))
        if not any(data[at : at + 64]):
            data[at] = 1
        else:
            data[at : at + 64] = bytes(len(data[at : at + 64]))
    elif how == "add":
        (folder / rng.choice(["node-9.part", "x", "MANIFEST.json.bak", ".hidden"])).write_bytes(b"")
    elif how == "delete":
        path.unlink()
    elif how == "swap":
        other = rng.choice([file for file in files if file.read_bytes() != bytes(data)])
        path.write_bytes(other.read_bytes())
        other.write_bytes(bytes(data))
    if how in ("flip", "cut", "extend", "zero"):
        path.write_bytes(bytes(data))
    return f"{how} {path.name}"


def test_400_random_damages_are_all_found(tmp_path: Path) -> None:
    """And told with the file that shows them, by `verify`; by `load` too, unless it is in a state that nobody read."""
    with DirectoryStore(tmp_path / "store") as store:
        place = store.next_incarnation()
        number = commit(store, place, "C", outputs=OUTPUTS)
        folder = tmp_path / "store" / f"snap-{number:08}"
        whole = {path.name: path.read_bytes() for path in folder.iterdir()}
        assert sorted(whole) == [MANIFEST, "node-0.part", "node-1.part", "node-2.part", "node-2.state", "outputs"]
        for seed in range(400):
            how = damage(folder, random.Random(seed))
            with pytest.raises(SnapshotCorrupt) as caught:
                store.verify(number)
            assert caught.value.where is not None, how
            assert Path(caught.value.where).parent == folder, how
            assert caught.value.hint is not None
            if "node-2.state" not in how and "outputs" not in how:
                with pytest.raises(SnapshotCorrupt):
                    store.load(number)
            for path in folder.iterdir():
                path.unlink()
            for name, data in whole.items():
                (folder / name).write_bytes(data)
        store.verify(number)


def test_json_is_what_a_manifest_is(tmp_path: Path) -> None:
    """For people and their tools; the sums are those of `sha256sum`."""
    with DirectoryStore(tmp_path / "store") as store:
        commit(store, store.next_incarnation(), "C", outputs=OUTPUTS)
    folder = tmp_path / "store" / "snap-00000000"
    plain = json.loads((folder / MANIFEST).read_text())
    receipts = [node[kind] for node in plain["nodes"].values() for kind in ("part", "state") if node[kind]]
    receipts.append(plain["outputs"])
    listing = "".join(f"{receipt['sha256']}  {receipt['name']}\n" for receipt in receipts)
    assert len(receipts) == 5
    subprocess.run(["sha256sum", "--check", "--status"], cwd=folder, input=listing, text=True, check=True)
