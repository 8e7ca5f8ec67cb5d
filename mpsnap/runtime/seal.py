"""The seal by which users know what their own runs have kept.

This module owns the user's key, where it lies, and how a seal is made and compared. It must not know what is sealed.

    $XDG_DATA_HOME/mpsnap, or ~/.local/share/mpsnap       0700, of this user
        key                                               0600, 32 random bytes

To take pickles back runs code from a store. A checksum is no help there: whoever changes a store makes it right again.
A seal is made with the key alone, and the key is in no store.

Rules a maintainer keeps:

- The key goes nowhere: not into a store, a log, a message or the arguments of a process.
- Whoever has read the key can seal what they like, and whoever has put it there has read it. So one that others may
  read, or have made, is refused and not replaced: its user decides what becomes of what it has sealed.
- The key is there whole or not at all, under a name that it gets once: of two processes that make one at the same time
  both go on with that of the first, or what the other seals could never be taken back.
"""

from __future__ import annotations

import contextlib
import errno
import hmac
import os
import secrets
from collections.abc import Iterator
from hashlib import blake2b
from typing import Final

from mpsnap.core.errors import InputError
from mpsnap.store.disk import DIRECTORY_MODE, FILE_MODE, Disk, Found
from mpsnap.store.staging import fill

KEY_BYTES: Final = 32
_SEAL_BYTES: Final = 32
#: Keeps these seals apart from whatever else a key might come to be used for; another form of seal gets another number.
_PERSON: Final = b"mpsnap.seal.1"
_NAME: Final = "key"
_DISK: Final = Disk()


class Key:
    """Make seals, and tell them from those that were made with another key."""

    def __init__(self, secret: bytes) -> None:
        self._secret = secret

    def seal(self, content: bytes) -> str:
        """Return the seal of a content, as hexadecimal digits."""
        return blake2b(content, digest_size=_SEAL_BYTES, key=self._secret, person=_PERSON).hexdigest()

    def has_sealed(self, content: bytes, seal: str) -> bool:
        """Return whether this is the seal of that content, in a time that does not tell how nearly."""
        return hmac.compare_digest(self.seal(content), seal)


def key_path() -> str:
    """Return where this user's key lies, or would.

    Raises:
        InputError: There is no home to keep it in.
    """
    base = os.environ.get("XDG_DATA_HOME", "")
    if not os.path.isabs(base):
        # As its specification has it; and a run is gone on with in another folder than where that is asked for.
        base = os.path.join(os.path.expanduser("~"), ".local", "share")
    if not os.path.isabs(base):
        raise InputError(
            "there is no home folder for the key that pickles are sealed with", hint="XDG_DATA_HOME, an absolute path"
        )
    return os.path.join(base, "mpsnap", _NAME)


def own_key() -> Key:
    """Return this user's key, which is made if there is none.

    Raises:
        InputError: It cannot be made or read, or it is not this user's alone.
    """
    path = key_path()
    # Whoever makes one takes what is there afterwards, be it another's.
    while (key := read_key()) is None:
        with _telling("the key that pickles are sealed with cannot be made", path):
            _make(os.path.dirname(path))
    return key


def read_key() -> Key | None:
    """Return this user's key, None if there is none.

    Raises:
        InputError: It cannot be read, or it is not this user's alone.
    """
    path = key_path()
    with _telling("the key that pickles are sealed with cannot be read", path):
        try:
            at = _DISK.open_top(os.path.dirname(path))
        except FileNotFoundError:
            return None
        try:
            _check(_DISK.found(at), os.path.dirname(path), "the folder of the key", DIRECTORY_MODE)
            return _read(at, path)
        finally:
            _DISK.close(at)


def _read(at: int, path: str) -> Key | None:
    try:
        fd = _DISK.open(_NAME, at)
    except FileNotFoundError:
        return None
    except OSError as error:
        if error.errno != errno.ELOOP:
            raise
        raise _no_file(path) from None
    try:
        return _checked(fd, path)
    finally:
        _DISK.close(fd)


def _checked(fd: int, path: str) -> Key:
    found = _DISK.found(fd)
    if not found.is_file:
        raise _no_file(path)
    _check(found, path, "the key that pickles are sealed with", FILE_MODE)
    secret = _DISK.read(fd, KEY_BYTES + 1, 0)
    if len(secret) != KEY_BYTES:
        raise InputError(
            f"the key that pickles are sealed with has {found.size} bytes and not {KEY_BYTES}",
            where=path,
            hint="a copy of it; without it, what it has sealed cannot be resumed",
        )
    return Key(secret)


def _check(found: Found, path: str, what: str, mode: int) -> None:
    """Refuse what is not this user's, and what others can read or write."""
    if found.owner != os.geteuid():
        raise InputError(
            f"{what} belongs to user {found.owner}, this process runs as {os.geteuid()}",
            where=path,
            hint="XDG_DATA_HOME, a folder of your own",
        )
    if found.mode & 0o077:
        raise InputError(
            f"{what} is not for you alone (its mode is {found.mode:o})",
            where=path,
            hint=f"chmod {mode:o} {path}, if nobody else has been at it",
        )


def _make(folder: str) -> None:
    """Make a key, unless another process has; raises `OSError`."""
    os.makedirs(os.path.dirname(folder), DIRECTORY_MODE, exist_ok=True)
    with contextlib.suppress(FileExistsError):
        _DISK.make_top(folder)
    at = _DISK.open_top(folder)
    try:
        draft = f".{_NAME}-{secrets.token_hex(8)}"
        fd = _DISK.create(draft, at)
        try:
            fill(_DISK, fd, draft, secrets.token_bytes(KEY_BYTES))
            with contextlib.suppress(FileExistsError):
                # Not by renaming, which would take the place of a key that somebody may have sealed with by now.
                os.link(draft, _NAME, src_dir_fd=at, dst_dir_fd=at, follow_symlinks=False)
        finally:
            _DISK.close(fd)
            _DISK.unlink(draft, at)
        # What is sealed before a loss of power is to be known after it.
        _DISK.sync(at)
    finally:
        _DISK.close(at)


def _no_file(path: str) -> InputError:
    return InputError(
        "the key that pickles are sealed with is no plain file",
        where=path,
        hint="the key itself in its place, and no link to one",
    )


@contextlib.contextmanager
def _telling(what: str, path: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise InputError(
            f"{what}: {error.strerror}", where=path, hint="XDG_DATA_HOME, a folder that you can write to"
        ) from error
