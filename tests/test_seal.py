"""The key that pickles are sealed with: made once, its user's alone, and refused by name when it is anything else."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
from hashlib import blake2b
from pathlib import Path
from typing import Any

import pytest
from cli_harness import ENVIRONMENT

from mpsnap.core.errors import InputError
from mpsnap.runtime.seal import KEY_BYTES, Key, key_path, own_key, read_key
from mpsnap.store.disk import Disk, Found

WHAT = "the key that pickles are sealed with"


@pytest.fixture
def data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Give a place for keys that does not exist yet."""
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))
    return tmp_path / "data"


@pytest.fixture
def key(data: Path) -> Path:
    """Give the path of a key that is there and right."""
    own_key()
    return data / "mpsnap" / "key"


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def refusal() -> str:
    """Return why a key is refused: by whoever would seal, as by whoever looks at seals, in the same words."""
    said = set()
    for ask in (read_key, own_key):
        with pytest.raises(InputError) as caught:
            ask()
        said.add(str(caught.value))
    (line,) = said
    return line


# --- Where it lies, and how it is made. ---


def test_tests_leave_the_home_of_whoever_runs_them_alone() -> None:
    home = Path("~").expanduser()
    for there in (os.environ["XDG_DATA_HOME"], ENVIRONMENT["XDG_DATA_HOME"]):
        assert Path(there).name.startswith("ms-data-")
        assert home not in Path(there).parents


def test_the_key_is_made_once_and_for_its_user_alone(data: Path) -> None:
    first = own_key()
    path = data / "mpsnap" / "key"
    assert key_path() == str(path)
    assert (mode(path), mode(path.parent), path.stat().st_size) == (0o600, 0o700, KEY_BYTES)
    assert path.stat().st_uid == os.geteuid()
    assert os.listdir(path.parent) == ["key"], "the draft is gone"
    secret = path.read_bytes()
    second, third = own_key(), read_key()
    assert path.read_bytes() == secret
    assert third is not None
    assert first.seal(b"x") == second.seal(b"x") == third.seal(b"x")


def test_every_key_is_another_one(data: Path) -> None:
    seals = set()
    for _ in range(3):
        seals.add(own_key().seal(b"x"))
        (data / "mpsnap" / "key").unlink()
    assert len(seals) == 3


def test_looking_for_a_key_makes_none(data: Path) -> None:
    assert read_key() is None
    assert not data.exists()
    (data / "mpsnap").mkdir(parents=True, mode=0o700)
    assert read_key() is None
    assert os.listdir(data / "mpsnap") == []


@pytest.mark.parametrize("given", [None, "", "data", "./data"])
def test_where_nothing_else_is_said_it_lies_in_the_home(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, given: str | None
) -> None:
    """And where what is said depends on the folder that one happens to be in."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    if given is None:
        monkeypatch.delenv("XDG_DATA_HOME")
    else:
        monkeypatch.setenv("XDG_DATA_HOME", given)
    own_key()
    assert os.listdir(tmp_path) == ["home"]
    assert mode(tmp_path / "home/.local/share/mpsnap/key") == 0o600


def test_without_a_home_none_is_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", "here")
    monkeypatch.setenv("XDG_DATA_HOME", "")
    assert refusal() == f"there is no home folder for {WHAT}; try: XDG_DATA_HOME, an absolute path"
    assert os.listdir(tmp_path) == []


def test_a_key_that_cannot_be_made_is_told_with_the_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody can make a folder there, whoever it is."""
    monkeypatch.setenv("XDG_DATA_HOME", "/proc/nowhere")
    assert read_key() is None
    with pytest.raises(InputError) as caught:
        own_key()
    assert str(caught.value) == (
        f"/proc/nowhere/mpsnap/key: {WHAT} cannot be made: No such file or directory; "
        "try: XDG_DATA_HOME, a folder that you can write to"
    )


def test_a_key_that_cannot_be_read_is_told(data: Path) -> None:
    data.touch()
    assert refusal() == (
        f"{data}/mpsnap/key: {WHAT} cannot be read: Not a directory; try: XDG_DATA_HOME, a folder that you can write to"
    )


def test_a_key_that_two_make_at_once_is_that_of_the_first(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The other one comes at the worst moment: its key is there when ours is about to get its name."""
    others: list[Key] = []
    link = os.link

    def late(*args: Any, **named: Any) -> None:
        monkeypatch.setattr(os, "link", link)
        others.append(own_key())
        link(*args, **named)

    monkeypatch.setattr(os, "link", late)
    mine = own_key()
    (other,) = others
    assert mine.seal(b"x") == other.seal(b"x") == own_key().seal(b"x")
    assert os.listdir(data / "mpsnap") == ["key"]


RACER = """
import os, sys
from mpsnap.runtime.seal import own_key
for line in sys.stdin:
    os.environ["XDG_DATA_HOME"] = line.strip()
    print(own_key().seal(b"x"), flush=True)
"""


@pytest.mark.processes
def test_processes_that_race_for_the_key_end_with_the_same(tmp_path: Path) -> None:
    command = [sys.executable, "-c", RACER]
    pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True, "env": ENVIRONMENT}
    with subprocess.Popen(command, **pipes) as one, subprocess.Popen(command, **pipes) as two:
        for turn in range(30):
            seals = set()
            for racer in (one, two):
                print(f"{tmp_path}/{turn}", file=racer.stdin, flush=True)
            for racer in (one, two):
                assert racer.stdout is not None
                seals.add(racer.stdout.readline())
            assert len(seals) == 1
            assert os.listdir(tmp_path / str(turn) / "mpsnap") == ["key"]
        for racer in (one, two):
            assert racer.stdin is not None
            racer.stdin.close()


def test_the_key_is_on_the_disk_before_anything_is_sealed(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whole before it has its name, and its name before anybody goes on."""
    done: list[str] = []
    sync, link = Disk.sync, os.link

    def syncing(self: Disk, fd: int) -> None:
        done.append("its bytes" if self.found(fd).is_file else "its name")
        sync(self, fd)

    def linking(*args: Any, **named: Any) -> None:
        done.append("link")
        link(*args, **named)

    monkeypatch.setattr(Disk, "sync", syncing)
    monkeypatch.setattr(os, "link", linking)
    own_key()
    assert done == ["its bytes", "link", "its name"]


def test_a_draft_that_cannot_be_finished_is_not_left(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(self: Disk, fd: int, data: memoryview) -> int:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Disk, "write", full)
    with pytest.raises(InputError, match="cannot be made: No space left on device"):
        own_key()
    assert os.listdir(data / "mpsnap") == []


# --- What is refused. ---


@pytest.mark.parametrize("others", [0o644, 0o640, 0o604, 0o620, 0o602])
def test_a_key_that_others_can_read_or_write_is_refused(key: Path, others: int) -> None:
    secret = key.read_bytes()
    key.chmod(others)
    assert refusal() == (
        f"{key}: {WHAT} is not for you alone (its mode is {others:o}); "
        f"try: chmod 600 {key}, if nobody else has been at it"
    )
    assert (mode(key), key.read_bytes()) == (others, secret), "it is left as it is"


@pytest.mark.parametrize("others", [0o755, 0o770, 0o701])
def test_a_folder_that_others_can_enter_is_refused(key: Path, others: int) -> None:
    """They might have put another key there."""
    key.parent.chmod(others)
    assert refusal() == (
        f"{key.parent}: the folder of the key is not for you alone (its mode is {others:o}); "
        f"try: chmod 700 {key.parent}, if nobody else has been at it"
    )


@pytest.mark.parametrize("of_key", [True, False])
def test_what_belongs_to_somebody_else_is_refused(key: Path, monkeypatch: pytest.MonkeyPatch, of_key: bool) -> None:
    found = Disk.found

    def of_others(self: Disk, fd: int) -> Found:
        there = found(self, fd)
        return there._replace(owner=there.owner + 1) if there.is_file is of_key else there

    monkeypatch.setattr(Disk, "found", of_others)
    what, where = (WHAT, key) if of_key else ("the folder of the key", key.parent)
    me = os.geteuid()
    assert refusal() == (
        f"{where}: {what} belongs to user {me + 1}, this process runs as {me}; try: XDG_DATA_HOME, a folder of your own"
    )


@pytest.mark.parametrize("length", [0, KEY_BYTES - 1, KEY_BYTES + 1, 10_000])
def test_a_key_of_another_length_is_refused(key: Path, length: int) -> None:
    key.write_bytes(b"x" * length)
    assert refusal() == (
        f"{key}: {WHAT} has {length} bytes and not 32; "
        "try: a copy of it; without it, what it has sealed cannot be resumed"
    )
    assert key.stat().st_size == length


def test_what_is_no_plain_file_is_refused(key: Path) -> None:
    """A link to a right key too: it could lead anywhere the next time."""
    elsewhere = key.parent.parent / "elsewhere"
    key.rename(elsewhere)
    line = f"{key}: {WHAT} is no plain file; try: the key itself in its place, and no link to one"
    for target in (elsewhere, "missing"):
        key.symlink_to(target)
        assert refusal() == line
        key.unlink()
    os.mkfifo(key, 0o600)
    assert refusal() == line
    key.unlink()
    key.mkdir(0o700)
    assert refusal() == line


def test_a_folder_that_is_a_link_is_not_followed(key: Path) -> None:
    key.parent.rename(key.parent.parent / "elsewhere")
    key.parent.symlink_to("elsewhere")
    assert refusal().startswith(f"{key}: {WHAT} cannot be read: Not a directory; try: ")


# --- Seals. ---


def test_a_seal_is_of_one_key_and_of_one_content() -> None:
    one, other = Key(b"1" * KEY_BYTES), Key(b"2" * KEY_BYTES)
    seal = one.seal(b"content")
    assert one.has_sealed(b"content", seal)
    assert not one.has_sealed(b"content.", seal)
    assert not other.has_sealed(b"content", seal)
    assert not one.has_sealed(b"content", seal[:-1])
    assert not one.has_sealed(b"content", "")


def test_a_seal_is_as_it_has_always_been() -> None:
    """Or nobody could resume what was kept by an older version; it takes the key, and says what it is for."""
    secret = bytes(range(KEY_BYTES))
    seal = Key(secret).seal(b"content")
    assert seal == "b91d033925278c0655170933ca61555b93caa4ace957551119dad7b20f6e6893"
    assert seal != blake2b(b"content", digest_size=32, key=secret).hexdigest()


def test_a_key_is_not_shown() -> None:
    secret = b"a secret that is not to be shown"
    assert "secret" not in f"{Key(secret)!r} {Key(secret)}"
