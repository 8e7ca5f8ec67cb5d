"""The folders of runs: who gets in, and when they go."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
import shutil
import signal
import socket
import stat
import time
from pathlib import Path

import pytest

from mpsnap.core.errors import ClusterError, InputError
from mpsnap.server import client, rundir
from mpsnap.server.rundir import RunDir

# --- Folders of runs. ---


@pytest.fixture
def base(runs: Path) -> Path:
    return runs / "mpsnap"


def modes(path: Path) -> list[tuple[str, int]]:
    return [(each.name, stat.S_IMODE(each.stat().st_mode)) for each in sorted(path.iterdir())]


@pytest.mark.parametrize("umask", [0o000, 0o022, 0o077])
def test_nobody_else_gets_in_whatever_the_umask(base: Path, umask: int) -> None:
    before = os.umask(umask)
    try:
        made = RunDir("one")
    finally:
        os.umask(before)
    assert stat.S_IMODE(base.stat().st_mode) == 0o700
    assert modes(base) == [(".lock", 0o600), ("one", 0o700)]
    assert modes(base / "one") == [("control", 0o600), ("run.json", 0o600)]
    assert [(each.name, each.pid) for each in rundir.living()] == [("one", os.getpid())]
    made.close()
    assert modes(base) == [(".lock", 0o600)]


@pytest.mark.parametrize("mode", [0o701, 0o710, 0o722, 0o777])
def test_a_folder_that_others_may_enter_is_refused(base: Path, mode: int) -> None:
    base.mkdir()
    base.chmod(mode)
    with pytest.raises(InputError, match="not a folder of yours that nobody else may enter"):
        RunDir("one")
    with pytest.raises(InputError, match=f"chmod 700 {base}"):
        rundir.living()


def test_no_link_is_followed(base: Path, tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir(mode=0o700)
    base.symlink_to(elsewhere)
    with pytest.raises(InputError, match="not a folder of yours"):
        RunDir("one")
    base.unlink()
    base.mkdir(mode=0o700)
    (base / "one").symlink_to(elsewhere)
    with pytest.raises(InputError, match="there is a run called one already"):
        RunDir("one")
    assert rundir.living() == []
    (base / ".lock").unlink()
    (base / ".lock").symlink_to(elsewhere / "lock")
    with pytest.raises(ClusterError, match="cannot be opened"):
        RunDir("two")
    assert list(elsewhere.iterdir()) == []


@pytest.mark.parametrize("name", ["", ".", "..", "a/b", "-a", ".a", "a b", "a\n", "ä", "x" * 41, "a\x00", "../up"])
def test_names_that_are_none(base: Path, name: str) -> None:
    with pytest.raises(InputError, match="is no name of a run"):
        RunDir(name)
    assert not base.exists()


def test_a_path_that_is_too_long_for_a_socket(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    long_ = tmp_path / ("x" * 100)
    long_.mkdir(mode=0o700)
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(long_))
    with pytest.raises(InputError, match="longer than 100 bytes"):
        RunDir("one")
    assert [name for name, _ in modes(long_ / "mpsnap")] == [".lock"]


def test_what_the_dead_have_left_is_swept_and_the_living_never(base: Path) -> None:
    alive = RunDir("alive")
    dead = RunDir("dead")
    dead.socket.close()
    (base / "empty").mkdir()
    (base / "odd").mkdir()
    (base / "odd" / "control").write_text("no socket")
    (base / "file").write_text("somebody's")
    with pytest.raises(InputError, match="there is a run called alive already"):
        RunDir("alive")
    assert [name for name, _ in modes(base)] == [".lock", "alive", "file"]
    # Not even if nobody accepts, and no more can wait.
    waiting = []
    with contextlib.suppress(BlockingIOError):
        for _ in range(rundir.BACKLOG + 10):
            waiting.append(socket.socket(socket.AF_UNIX))
            waiting[-1].setblocking(False)
            waiting[-1].connect(alive.socket_path)
    assert [each.name for each in rundir.living()] == ["alive"]
    RunDir("dead").close()
    for each in waiting:
        each.close()
    alive.close()


def test_runs_are_found_in_both_places_that_are_usual(runs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One begun by cron, which sets no XDG_RUNTIME_DIR, and one begun in a shell, which does."""
    session, plain, own = runs / "session", runs / "plain", runs / "own"
    for folder in (session, own):
        folder.mkdir(0o700)
    monkeypatch.setattr(rundir, "_USUAL", (f"{session}/mpsnap", f"{plain}-{{uid}}"))

    def made(runtime: str, name: str) -> RunDir:
        monkeypatch.setenv("XDG_RUNTIME_DIR", runtime)
        return RunDir(name)

    def seen(runtime: str) -> list[str]:
        monkeypatch.setenv("XDG_RUNTIME_DIR", runtime)
        return [each.name for each in rundir.living()]

    with contextlib.ExitStack() as stack:
        for run in (made(str(session), "shell"), made("", "cron"), made(str(own), "apart")):
            stack.callback(run.close)
        assert (runs / f"plain-{os.getuid()}" / "cron").is_dir()
        assert seen(str(session)) == seen("") == ["cron", "shell"]
        assert seen(str(own)) == ["apart"], "whoever sets another place is by themselves there"
        stack.callback(made("", "shell").close)
        monkeypatch.setenv("XDG_RUNTIME_DIR", str(session))
        with pytest.raises(InputError, match="two runs are called shell"):
            client.find_run("shell")
        # A folder that others may enter is refused where a run would be made, and elsewhere not looked into.
        (runs / f"plain-{os.getuid()}").chmod(0o755)
        assert seen(str(session)) == ["shell"]
        (runs / f"plain-{os.getuid()}").chmod(0o700)
    assert seen("") == []


def test_a_name_is_free_as_soon_as_what_is_left_of_its_run_is_gone(base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A supervisor was killed, and its control process still listens."""
    dying = RunDir("one")
    pid = os.fork()
    if pid == 0:
        os._exit(0)
    os.waitpid(pid, 0)
    (base / "one" / "run.json").write_text(json.dumps({"name": "one", "pid": pid}))
    looks: list[float] = []

    def look(seconds: float) -> None:
        looks.append(seconds)
        dying.close()

    monkeypatch.setattr(time, "sleep", look)
    RunDir("one").close()
    monkeypatch.undo()
    assert len(looks) == 1


def test_a_lock_that_is_never_let_go_keeps_nobody_for_ever(base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rundir, "LOCK_SECONDS", 0.1)
    made = RunDir("one")
    reading, writing = os.pipe()
    pid = os.fork()
    if pid == 0:
        # Record locks are a process's own.
        fd = os.open(base / ".lock", os.O_RDWR)
        fcntl.lockf(fd, fcntl.LOCK_EX)
        os.write(writing, b"x")
        signal.pause()
        os._exit(0)
    try:
        os.read(reading, 1)
        with pytest.raises(ClusterError, match=r"is locked for more than 0\.1 s"):
            RunDir("two")
        made.close()
        assert not (base / "one").exists()
    finally:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        os.close(reading)
        os.close(writing)


@pytest.mark.parametrize("harm", ["gone", "open to others", "moved"])
def test_a_run_ends_well_whatever_has_become_of_its_folder(
    base: Path, harm: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = RunDir("one")
    if harm == "gone":
        shutil.rmtree(base)
    elif harm == "open to others":
        base.chmod(0o777)
    else:
        monkeypatch.setenv("XDG_RUNTIME_DIR", "/nonexistent")
    made.close()
    assert not (base / "one").exists()


@pytest.mark.skipif(os.getuid() != 0, reason="only root can be somebody else")
def test_another_user_gets_nowhere(base: Path) -> None:
    made = RunDir("one")
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            os.setgid(65534)
            os.setuid(65534)
            with socket.socket(socket.AF_UNIX) as stranger:
                try:
                    stranger.connect(made.socket_path)
                except PermissionError as error:
                    status = 0 if error.errno == errno.EACCES else 2
        finally:
            os._exit(status)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    made.close()
