"""The store in a directory: who may open it, who may read it meanwhile, and what is in it that should not be."""

from __future__ import annotations

import contextlib
import copy
import os
import pickle
import resource
import signal
import stat
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from stores import LARGE_STATE, OUTPUTS, commit, staged

from mpsnap.core.errors import CodecError, InputError, SnapshotCorrupt, StoreError
from mpsnap.core.snapshot import StoredState
from mpsnap.store import manifest as manifests
from mpsnap.store.contract import Place
from mpsnap.store.directory import LOCK, DirectoryStore
from mpsnap.store.disk import Disk
from mpsnap.store.manifest import MANIFEST
from mpsnap.store.reader import MARK, DirectoryReader
from mpsnap.store.staging import STAGING


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "store"


@pytest.fixture
def store(path: Path) -> Iterator[DirectoryStore]:
    with DirectoryStore(path) as store:
        yield store


@pytest.fixture
def place(store: DirectoryStore) -> Place:
    return store.next_incarnation()


# --- Opening. ---


def test_a_second_supervisor_is_refused_at_once_and_told_the_first(path: Path) -> None:
    """And the store is free as soon as the first is gone, though it was killed."""
    program = f"""
import sys
from mpsnap.store.directory import DirectoryStore
with DirectoryStore({str(path)!r}) as store:
    print("open", flush=True)
    sys.stdin.read()
"""
    pipe = subprocess.PIPE
    with subprocess.Popen([sys.executable, "-c", program], stdin=pipe, stdout=pipe, text=True) as first:
        assert first.stdout is not None
        assert first.stdout.readline() == "open\n"
        with pytest.raises(InputError, match=f"the store is in use by process {first.pid}"):
            DirectoryStore(path)
        with DirectoryReader(path) as reader:
            assert reader.numbers() == ()
        # Neither attempt has loosened the lock.
        with pytest.raises(InputError, match=f"the store is in use by process {first.pid}"):
            DirectoryStore(path)
        first.send_signal(signal.SIGKILL)
    with DirectoryStore(path) as store:
        assert store.begin() == 0


@pytest.mark.parametrize("opens", [DirectoryStore, DirectoryReader])
def test_no_path_is_no_store(opens: Callable[[str], object], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It would be the folder that somebody happens to be in."""
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match="the path of a store is empty"):
        opens("")
    assert os.listdir(tmp_path) == []


def test_one_process_opens_it_once(store: DirectoryStore, path: Path) -> None:
    """Which no lock would see to; and the second attempt must not give the first one's lock away."""
    with pytest.raises(InputError, match=rf"in use by this process \({os.getpid()}\)"):
        DirectoryStore(path)
    locked = f"import sys; from mpsnap.store.directory import DirectoryStore; DirectoryStore({str(path)!r})"
    done = subprocess.run([sys.executable, "-c", locked], capture_output=True, text=True, check=False)
    assert f"in use by process {os.getpid()}" in done.stderr
    store.close()
    store.close()
    with DirectoryStore(path) as again:
        assert again.numbers() == ()


class Sweeping(Disk):
    """Fail when anything is removed."""

    def unlink(self, name: str, at: int) -> None:
        raise AssertionError(f"{name} is removed")

    def remove_directory(self, name: str, at: int) -> None:
        raise AssertionError(f"{name} is removed")


def test_who_is_refused_has_removed_nothing(path: Path) -> None:
    program = f"""
import sys
from mpsnap.store.directory import DirectoryStore
with DirectoryStore({str(path)!r}) as store:
    store.next_incarnation().write(0, b"mine")
    print(store.begin(), flush=True)
    sys.stdin.read()
"""
    pipe = subprocess.PIPE
    with subprocess.Popen([sys.executable, "-c", program], stdin=pipe, stdout=pipe, text=True) as first:
        assert first.stdout is not None
        assert first.stdout.readline() == "0\n"
        with pytest.raises(InputError, match="in use"):
            DirectoryStore(path, Sweeping())
        assert (path / ".tmp-00000000").is_dir()
        assert (path / STAGING / "0-0-0").read_bytes() == b"mine"
        first.communicate("")


def test_everything_is_its_owners_alone_whatever_the_umask_says(path: Path) -> None:
    before = os.umask(0)
    try:
        with DirectoryStore(path) as store:
            place = store.next_incarnation()
            commit(store, place, "C", outputs=OUTPUTS)
            store.begin()
            place.write(0, b"x")
            found = {entry: stat.S_IMODE(entry.lstat().st_mode) for entry in [path, *path.rglob("*")]}
    finally:
        os.umask(before)
    assert len(found) > 10
    assert {entry: mode for entry, mode in found.items() if mode != (0o700 if entry.is_dir() else 0o600)} == {}


@pytest.mark.parametrize("mode", [0o777, 0o720, 0o702])
def test_a_store_that_others_can_write_to_is_refused_with_the_remedy(path: Path, mode: int) -> None:
    DirectoryStore(path).close()
    path.chmod(mode)
    with pytest.raises(InputError, match=f"others may write to the store .*; try: chmod go-w {path}"):
        DirectoryStore(path)
    subprocess.run(["chmod", "go-w", path], check=True)
    DirectoryStore(path).close()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a directory away")
def test_a_store_of_somebody_else_is_refused(path: Path) -> None:
    DirectoryStore(path).close()
    os.chown(path, 65534, 65534)
    with pytest.raises(InputError, match="the store belongs to user 65534, this process runs as 0"):
        DirectoryStore(path)


@pytest.mark.parametrize("opening", [DirectoryStore, DirectoryReader])
@pytest.mark.parametrize("ending", ["", "/"])
def test_a_symbolic_link_is_no_store(tmp_path: Path, path: Path, opening: type[DirectoryReader], ending: str) -> None:
    DirectoryStore(path).close()
    (tmp_path / "link").symlink_to(path)
    with pytest.raises(InputError, match="no symbolic link"):
        opening(str(tmp_path / "link") + ending)


@pytest.mark.parametrize("opening", [DirectoryStore, DirectoryReader])
def test_what_is_no_store_is_refused_and_left_alone(tmp_path: Path, opening: type[DirectoryReader]) -> None:
    """A folder may well hold a `.tmp-00000001` of somebody's."""
    (tmp_path / ".tmp-00000001").mkdir()
    (tmp_path / ".tmp-00000001" / "dear").write_text("me")
    with pytest.raises(InputError, match="not a store of snapshots"):
        opening(tmp_path)
    assert (tmp_path / ".tmp-00000001" / "dear").read_text() == "me"
    assert not (tmp_path / LOCK).exists()
    with pytest.raises(InputError, match="a store is a directory"):
        opening(tmp_path / ".tmp-00000001" / "dear")
    with pytest.raises(InputError, match=r"mkdir -p|no such directory"):
        opening(tmp_path / "not" / "there")


def test_a_store_of_another_version_is_refused_by_name(path: Path) -> None:
    path.mkdir()
    (path / "mpsnap-store-2").touch()
    with pytest.raises(InputError, match=r"a store of another version \(mpsnap-store-2\)"):
        DirectoryStore(path)


def test_a_reader_makes_nothing(path: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no such directory"):
        DirectoryReader(path)
    assert list(tmp_path.iterdir()) == []


# --- Going on. ---


def test_who_opens_it_next_sweeps_what_was_left(path: Path) -> None:
    """Numbers are not given out again, though no snapshot bears them; nor are incarnations."""
    with DirectoryStore(path) as store:
        place = store.next_incarnation()
        assert commit(store, place) == 0
        for _ in range(3):
            staged(place, store.begin())
    (path / "snap-00000000").rename(path / ".trash-00000000")
    for expected in (4, 5):
        with DirectoryStore(path) as store:
            names = {entry.name for entry in path.iterdir()}
            # The highest number stays, without anything in it.
            assert names == {MARK, LOCK, STAGING, f"incarnation-{expected - 4}", f".tmp-{expected - 1:08}"}
            assert list((path / f".tmp-{expected - 1:08}").iterdir()) == []
            assert list((path / STAGING).iterdir()) == []
            assert store.next_incarnation().incarnation == expected - 3
            assert store.begin() == expected


def test_strange_things_in_the_directory_are_no_snapshots(path: Path, tmp_path: Path) -> None:
    DirectoryStore(path).close()
    for name in ("snap-1", "snap-0000001", "snap-000000001", "snap-x", "snap-" + "\u0660" * 8, "snap-00000001.bak"):
        (path / name).mkdir()
    (path / "notes").write_text("mine")
    dear = tmp_path / "dear"
    dear.mkdir()
    (dear / "file").touch()
    (path / ".tmp-00000003").symlink_to(dear)
    (path / ".trash-odd").symlink_to(dear / "file")
    with DirectoryStore(path) as store:
        assert store.numbers() == ()
        assert store.begin() == 4
    assert (dear / "file").exists()
    assert (path / "notes").exists()
    assert not (path / ".tmp-00000003").exists()


def test_a_reader_sees_what_a_writer_does(path: Path, store: DirectoryStore, place: Place) -> None:
    with DirectoryReader(path) as reader:
        store.begin()
        assert reader.numbers() == ()
        first = commit(store, place)
        assert reader.numbers() == (first,)
        reader.verify(first)
        second = commit(store, place)
        with pytest.raises(StoreError, match="there is no snapshot 1 in this store"):
            read_late(reader, first, lambda: store.remove(first))
        assert reader.numbers() == (second,)


def read_late(reader: DirectoryReader, number: int, meanwhile: Callable[[], None]) -> None:
    with reader.contents(number) as contents:
        meanwhile()
        contents.read(contents.manifest.nodes["A"].part)


def test_a_removed_store_is_one_clean_error(path: Path, tmp_path: Path, store: DirectoryStore, place: Place) -> None:
    number = store.begin()
    manifest = staged(place, number)
    path.rename(tmp_path / "moved")
    path.mkdir()
    with pytest.raises(StoreError, match="a file cannot be staged"):
        place.write(0, b"x")
    assert list(path.iterdir()) == []
    subprocess.run(["rm", "-r", tmp_path / "moved"], check=True)
    with pytest.raises(StoreError, match="cannot be committed: No such file or directory"):
        store.commit(manifest)
    with pytest.raises(StoreError, match=f"{path}: a snapshot cannot be begun: No such file or directory"):
        store.begin()


def test_a_real_disk_that_is_full_is_one_clean_error(store: DirectoryStore, place: Place, path: Path) -> None:
    """As far as this user may go with one file; the half that was written is gone."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    before = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (5000, hard))
    try:
        with pytest.raises(StoreError, match="a file cannot be staged: File too large; try: a higher limit"):
            place.write(0, bytes(9000))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, before)
    assert list((path / STAGING).iterdir()) == []
    assert place.write(0, bytes(9000)).size == 9000


# --- Staging from other processes. ---


def test_a_place_goes_to_another_process(store: DirectoryStore, place: Place, path: Path) -> None:
    program = """
import pickle, sys
place = pickle.load(sys.stdin.buffer)
sys.stdout.buffer.write(pickle.dumps(place.write(1, b"from afar")))
"""
    done = subprocess.run([sys.executable, "-c", program], input=pickle.dumps(place), capture_output=True, check=True)
    receipt = pickle.loads(done.stdout)
    assert (path / STAGING / receipt.name).read_bytes() == b"from afar"
    store.drop_staged([receipt])
    assert list((path / STAGING).iterdir()) == []


def test_a_forked_child_fills_a_blob(place: Place, path: Path) -> None:
    program = """
import os, pickle, sys
place = pickle.load(sys.stdin.buffer)
blob = place.create(1)
reading, writing = os.pipe()
if os.fork() == 0:
    receipt = blob.fill(memoryview(b"by a child"))
    os.write(writing, pickle.dumps(receipt))
    os._exit(0)
blob.close()
os.wait()
sys.stdout.buffer.write(os.read(reading, 1000))
"""
    done = subprocess.run([sys.executable, "-c", program], input=pickle.dumps(place), capture_output=True, check=True)
    receipt = pickle.loads(done.stdout)
    assert (path / STAGING / receipt.name).read_bytes() == b"by a child"


# --- Files of states. ---


@pytest.fixture
def state(store: DirectoryStore, place: Place) -> Iterator[StoredState]:
    with store.contents(commit(store, place, "C")) as contents:
        receipt = contents.manifest.nodes["C"].state
        assert receipt is not None
        found = contents.state(receipt)
    yield found
    found.close()


def test_a_copy_of_a_stored_state_is_the_same_file_and_a_pickle_its_bytes(state: StoredState) -> None:
    assert copy.copy(state) is copy.deepcopy(state) is state
    assert pickle.loads(pickle.dumps(state)) == LARGE_STATE


def test_a_stored_state_that_was_given_up_is_not_read(state: StoredState) -> None:
    state.close()
    with pytest.raises(CodecError, match="after its snapshot was given up"):
        state.read()


@pytest.mark.parametrize("spoil", [b"x", None, b"", LARGE_STATE + b"x"], ids=["other", "flip", "empty", "longer"])
def test_a_stored_state_is_checked_at_each_look(state: StoredState, path: Path, spoil: bytes | None) -> None:
    assert state.read() == LARGE_STATE
    file = path / "snap-00000000" / "node-2.state"
    file.write_bytes(LARGE_STATE[:-1] + b"y" if spoil is None else spoil)
    with pytest.raises(CodecError, match="this file does not hold what was committed"):
        state.read()


# --- What is no snapshot. ---


def remade(damage: Callable[[Path], object]) -> Callable[[Path], None]:
    def spoil(folder: Path) -> None:
        damage(folder / "node-1.part")

    return spoil


def linked(path: Path) -> None:
    path.rename(path.parent.parent / "elsewhere")
    path.symlink_to(path.parent.parent / "elsewhere")


def piped(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


def in_its_place_a_directory(path: Path) -> None:
    path.unlink()
    path.mkdir()


def whole_directory_linked(folder: Path) -> None:
    folder.rename(folder.parent / "elsewhere")
    folder.symlink_to(folder.parent / "elsewhere")


def in_its_place_a_file(folder: Path) -> None:
    subprocess.run(["rm", "-r", folder], check=True)
    folder.touch()


@pytest.mark.parametrize(
    ("spoil", "told"),
    [
        (remade(linked), "this is no plain file"),
        (remade(piped), "this is no plain file"),
        (remade(in_its_place_a_directory), "this is no plain file"),
        (remade(Path.unlink), "this file is missing"),
        (lambda folder: linked(folder / MANIFEST), "this is no plain file"),
        (lambda folder: (folder / MANIFEST).unlink(), "this file is missing"),
        (lambda folder: (folder / MANIFEST).write_bytes(b""), "not a manifest"),
        (lambda folder: (folder / "x").symlink_to("/etc/passwd"), "the manifest knows no such file"),
        (whole_directory_linked, "no directory with a snapshot"),
        (in_its_place_a_file, "no directory with a snapshot"),
    ],
)
def test_what_does_not_belong_there_is_found(
    store: DirectoryStore, place: Place, path: Path, spoil: Callable[[Path], None], told: str
) -> None:
    """Links are not followed, pipes do not stop anybody; and no older one is taken in its place."""
    older, number = commit(store, place), commit(store, place)
    spoil(path / f"snap-{number:08}")
    with DirectoryReader(path) as reader:
        for ask in (reader.load, reader.verify):
            with pytest.raises(SnapshotCorrupt, match=told) as caught:
                ask(number)
            assert f"snap-{number:08}" in str(caught.value.where)
            assert caught.value.hint is not None
        reader.verify(older)
        with contextlib.suppress(SnapshotCorrupt):
            newest = reader.latest()
            assert newest is not None
            assert newest.number == number


def test_the_newest_that_cannot_be_read_is_not_passed_over(store: DirectoryStore, place: Place, path: Path) -> None:
    """Nor removed, however few are to be kept."""
    numbers = [commit(store, place) for _ in range(3)]
    (path / "snap-00000002" / MANIFEST).write_bytes(b"{}")
    with DirectoryReader(path) as reader, pytest.raises(SnapshotCorrupt):
        reader.latest()
    store.close()
    with DirectoryStore(path) as again:
        assert again.retain(0) == (0,)
        assert again.numbers() == tuple(numbers[1:])


def test_swapped_snapshots_are_told(store: DirectoryStore, place: Place, path: Path) -> None:
    commit(store, place)
    commit(store, place)
    (path / "snap-00000000").rename(path / "x")
    (path / "snap-00000001").rename(path / "snap-00000000")
    (path / "x").rename(path / "snap-00000001")
    for number in (0, 1):
        with pytest.raises(SnapshotCorrupt, match=f"it is the manifest of snapshot {1 - number}"):
            store.load(number)


def test_nothing_larger_than_allowed_is_read_or_written(
    store: DirectoryStore, place: Place, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    number = commit(store, place)
    largest = max(receipt.size for receipt in store.manifest(number).files())
    monkeypatch.setattr(manifests, "MOST_PART_BYTES", largest)
    store.verify(number)
    assert commit(store, place) == number + 1
    monkeypatch.setattr(manifests, "MOST_PART_BYTES", largest - 1)
    with pytest.raises(SnapshotCorrupt, match=f"the most is {largest - 1}"):
        store.load(number)
    with pytest.raises(CodecError, match=f"the most is {largest - 1}"):
        commit(store, place)
    # A file without end, as far as `stat` tells.
    with (path / "snap-00000000" / MANIFEST).open("ab") as file:
        file.truncate(1 << 40)
    with pytest.raises(SnapshotCorrupt, match=f"{1 << 40} bytes are in a file of {64 << 20} at most"):
        store.load(number)
