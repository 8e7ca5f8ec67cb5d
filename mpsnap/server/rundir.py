"""Where a run can be found: a folder with its control socket.

This module owns the folders, what they are called, who may enter them, and when they go. It must not know what is said
over the sockets.

    $XDG_RUNTIME_DIR/mpsnap, or /tmp/mpsnap-UID       0700, of this user
        .lock                                         held while a folder is made or swept
        NAME/                                         0700
            control                                   the socket, 0600
            run.json                                  {"name", "pid"}

Rules a maintainer keeps:

- A folder is dead when nobody listens at its socket any more: the kernel says so, and no file can be wrong about it.
- Folders are made and swept under one lock, or a sweep would take a folder whose socket is about to be bound.
- A name is unique in one such place. Runs are looked for in both of those that are usual.
- Nothing here is followed that is a link, and a folder that others may write to is refused: they could put a socket of
  their own there.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
import re
import shutil
import socket
import stat
import threading
import time
from collections.abc import Iterator
from typing import NamedTuple

from mpsnap.core.errors import ClusterError, InputError, MpsnapError

#: Longest path of a Unix socket that every kernel takes, with a little room.
PATH_BYTES = 100
#: Clients that may wait to be let in.
BACKLOG = 64
#: How long others may hold the lock, and how often it is tried.
LOCK_SECONDS, LOCK_POLL_SECONDS = 5.0, 0.005
#: How long a run without a supervisor may take to be gone.
ORPHAN_SECONDS = 4.0
#: Where runs are, with what most have for XDG_RUNTIME_DIR and without any.
_USUAL = ("/run/user/{uid}/mpsnap", "/tmp/mpsnap-{uid}")
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,39}")
_SOCKET, _FACTS, _LOCK = "control", "run.json", ".lock"
#: Locks between processes do not hold between the threads of one.
_threads = threading.Lock()


class Found(NamedTuple):
    """Say what a folder tells of a run that lives."""

    name: str
    pid: int
    socket: str


class RunDir:
    """Hold the folder of a run that is about to begin, and its socket, which listens already; `close` removes both.

    Args:
        name: Of the run, unique on this host for this user.

    Raises:
        InputError: The name is none, or taken; or the folder cannot be what it has to be.
    """

    def __init__(self, name: str) -> None:
        if not _NAME.fullmatch(name):
            raise InputError(
                f"{name!r} is no name of a run: letters, digits, '.', '_' and '-', at most 40", where="--name"
            )
        self.name = name
        self._pid = os.getpid()
        deadline = time.monotonic() + ORPHAN_SECONDS
        while not self._claim():
            # Its supervisor was killed, and what is left of it is about to remove the folder.
            if time.monotonic() >= deadline:
                raise self._taken()
            time.sleep(LOCK_POLL_SECONDS)

    def _claim(self) -> bool:
        """Make the folder; return False if it is that of a run whose supervisor is dead."""
        with _locked() as base:
            self.path = os.path.join(base, self.name)
            self.socket_path = os.path.join(self.path, _SOCKET)
            if len(os.fsencode(self.socket_path)) > PATH_BYTES:
                raise InputError(
                    f"the path of the control socket is longer than {PATH_BYTES} bytes",
                    where=self.socket_path,
                    hint="a shorter --name, or a shorter XDG_RUNTIME_DIR",
                )
            _sweep(base)
            try:
                os.mkdir(self.path, 0o700)
            except FileExistsError:
                if _is_alive(_pid_in(self.path)):
                    raise self._taken() from None
                return False
            except OSError as error:
                raise ClusterError(f"cannot be made: {error.strerror}", where=self.path) from error
            try:
                self.socket = self._make()
            except BaseException as error:
                shutil.rmtree(self.path, ignore_errors=True)
                if isinstance(error, OSError):
                    raise ClusterError(f"cannot be made: {error.strerror}", where=self.path) from error
                raise
        return True

    def _taken(self) -> InputError:
        return InputError(f"there is a run called {self.name} already", where=self.path, hint="another --name")

    def _make(self) -> socket.socket:
        path = os.path.join(self.path, _FACTS)
        fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        with open(fd, "w", encoding="utf-8") as file:
            json.dump({"name": self.name, "pid": self._pid}, file)
        made = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            made.bind(self.socket_path)
            # Nobody else gets through the folder; and before it listens nobody gets in at all.
            os.chmod(self.socket_path, 0o600)
            made.listen(BACKLOG)
        except BaseException:
            made.close()
            raise
        return made

    def close(self) -> None:
        """Remove the folder, and give the socket back."""
        self.socket.close()
        remove(self.path)


def remove(path: str) -> None:
    """Remove the folder of a run; right if it is gone, and whatever has become of what it is in."""
    with contextlib.ExitStack() as stack:
        with contextlib.suppress(MpsnapError):
            # If somebody holds it for ever: what is removed is dead, and a sweep that goes on meanwhile removes it too.
            stack.enter_context(_holding(os.path.dirname(path)))
        shutil.rmtree(path, ignore_errors=True)


def living() -> list[Found]:
    """Return the runs of this user on this host, by name; what dead ones have left is removed."""
    with _locked() as base:
        found = _sweep(base)
    usual = [place.format(uid=os.getuid()) for place in _USUAL]
    # A job of cron's has no XDG_RUNTIME_DIR, and a shell has. Whoever has set another one wants to be by themselves.
    for other in usual if base in usual else ():
        if other != base and _is_ours(other):
            with _holding(other):
                found += _sweep(other)
    return sorted(found)


@contextlib.contextmanager
def _locked() -> Iterator[str]:
    """Hold the lock of the base folder, which is made if need be; yield its path."""
    base = _base()
    with _holding(base):
        yield base


@contextlib.contextmanager
def _holding(base: str) -> Iterator[None]:
    path = os.path.join(base, _LOCK)
    with _threads:
        try:
            fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise ClusterError(f"cannot be opened: {error.strerror}", where=path) from error
        try:
            _lock(fd, path)
            yield
        finally:
            os.close(fd)


def _lock(fd: int, path: str) -> None:
    deadline = time.monotonic() + LOCK_SECONDS
    while True:
        try:
            fcntl.lockf(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return
        except OSError as error:
            if error.errno not in (errno.EACCES, errno.EAGAIN):
                raise ClusterError(f"cannot be locked: {error.strerror}", where=path) from error
        if time.monotonic() >= deadline:
            # Whoever holds it was stopped in the middle of it: it takes milliseconds.
            raise ClusterError(f"is locked for more than {LOCK_SECONDS:g} s", where=path, hint=f"fuser {path}")
        time.sleep(LOCK_POLL_SECONDS)


def _base() -> str:
    runtime = os.environ.get("XDG_RUNTIME_DIR", "")
    base = os.path.join(runtime, "mpsnap") if _is_ours(runtime) else _USUAL[-1].format(uid=os.getuid())
    with contextlib.suppress(FileExistsError):
        try:
            os.mkdir(base, 0o700)
        except FileExistsError:
            raise
        except OSError as error:
            raise ClusterError(f"cannot be made: {error.strerror}", where=base) from error
    if not _is_ours(base):
        raise InputError(
            "this folder is not a folder of yours that nobody else may enter, so no socket is put there",
            where=base,
            hint=f"chmod 700 {base}, if you own it, or XDG_RUNTIME_DIR",
        )
    return base


def _is_ours(path: str) -> bool:
    try:
        found = os.lstat(path)
    except OSError:
        return False
    return stat.S_ISDIR(found.st_mode) and found.st_uid == os.getuid() and not stat.S_IMODE(found.st_mode) & 0o077


def _sweep(base: str) -> list[Found]:
    """Remove the folders of dead runs, and return what the others tell."""
    found = []
    for entry in sorted(os.scandir(base), key=lambda entry: entry.name):
        if not entry.is_dir(follow_symlinks=False):
            continue
        path = os.path.join(entry.path, _SOCKET)
        if not _is_listened_at(path):
            shutil.rmtree(entry.path, ignore_errors=True)
            continue
        found.append(Found(entry.name, _pid_in(entry.path), path))
    return found


def _is_listened_at(path: str) -> bool:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        # A queue that is full is one at which somebody listens.
        probe.setblocking(False)
        try:
            probe.connect(path)
        except OSError as error:
            return error.errno not in (errno.ECONNREFUSED, errno.ENOENT, errno.ENOTSOCK)
    return True


def _is_alive(pid: int) -> bool:
    """Return whether there is such a process; 0, where nobody knows which one it was, counts as one."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:
        pass  # Somebody else's: its number is in use again.
    return True


def _pid_in(folder: str) -> int:
    try:
        with open(os.path.join(folder, _FACTS), encoding="utf-8") as file:
            facts = json.load(file)
        return int(facts["pid"])
    except (OSError, ValueError, KeyError, TypeError):
        return 0
