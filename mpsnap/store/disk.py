"""The disk, as a store uses it: a dozen operations, each one system call or nearly.

This module owns the flags and modes with which files and directories are opened. It must not know what is in them.

Everything is named by one plain name and the descriptor of the directory that it stands in, and no operation follows a
symbolic link. So nobody who may write somewhere on the way to a store can turn it elsewhere, and deleting stays inside.

Whoever tests what happens when a disk fails gives the store a twin of `Disk`.
"""

from __future__ import annotations

import fcntl
import os
import stat
from typing import Final, NamedTuple

#: Read and written by their owner and nobody else, whatever the umask says.
FILE_MODE: Final = 0o600
DIRECTORY_MODE: Final = 0o700

_DIRECTORY: Final = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
#: A named pipe in place of a file would stop whoever opens it, but for the last flag.
_READ: Final = os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK
_CREATE: Final = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
_LOCK: Final = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC


class Found(NamedTuple):
    """Say what stands under a name: whether it is a plain file or a directory, its size, and whose it is."""

    is_file: bool
    is_directory: bool
    size: int
    #: Equal for what is the same file, and for nothing else.
    identity: tuple[int, int]
    owner: int
    mode: int


class Disk:
    """Do what is asked of the disk; every method raises `OSError` as the kernel does."""

    def open_top(self, path: str) -> int:
        """Open a directory by its path, of which only the last part must not be a symbolic link."""
        return os.open(path, _DIRECTORY)

    def make_top(self, path: str) -> None:
        """Make a directory by its path, durably."""
        os.mkdir(path, DIRECTORY_MODE)
        os.chmod(path, DIRECTORY_MODE)
        above = os.open(os.path.dirname(path), os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(above)
        finally:
            os.close(above)

    def open_directory(self, name: str, at: int) -> int:
        """Open a directory."""
        return os.open(name, _DIRECTORY, dir_fd=at)

    def make_directory(self, name: str, at: int) -> None:
        """Make a directory; it must not exist."""
        os.mkdir(name, DIRECTORY_MODE, dir_fd=at)
        os.chmod(name, DIRECTORY_MODE, dir_fd=at)

    def create(self, name: str, at: int) -> int:
        """Make a file and open it for writing; it must not exist."""
        fd = os.open(name, _CREATE, FILE_MODE, dir_fd=at)
        os.fchmod(fd, FILE_MODE)
        return fd

    def open(self, name: str, at: int) -> int:
        """Open a file for reading."""
        return os.open(name, _READ, dir_fd=at)

    def write(self, fd: int, data: memoryview) -> int:
        """Write some of `data` and return how much."""
        return os.write(fd, data)

    def read(self, fd: int, size: int, offset: int) -> bytes:
        """Return up to so many bytes from a place on; the descriptor's own place is left alone."""
        return os.pread(fd, size, offset)

    def sync(self, fd: int) -> None:
        """Return when the file's bytes, or the directory's names, are on the disk."""
        os.fsync(fd)

    def rename(self, name: str, at: int, new: str, new_at: int) -> None:
        """Give a file or a directory another name and place."""
        os.rename(name, new, src_dir_fd=at, dst_dir_fd=new_at)

    def unlink(self, name: str, at: int) -> None:
        """Remove a file."""
        os.unlink(name, dir_fd=at)

    def remove_directory(self, name: str, at: int) -> None:
        """Remove a directory, which must be empty."""
        os.rmdir(name, dir_fd=at)

    def names(self, at: int) -> list[str]:
        """Return what is in a directory, in no order."""
        # A duplicate would share the place in the listing with other readers of `at`.
        fd = os.open(".", _DIRECTORY, dir_fd=at)
        try:
            return os.listdir(fd)
        finally:
            os.close(fd)

    def found(self, fd: int) -> Found:
        """Return what is open there."""
        return _found(os.fstat(fd))

    def look(self, name: str, at: int) -> Found:
        """Return what stands under a name."""
        return _found(os.stat(name, dir_fd=at, follow_symlinks=False))

    def lock(self, name: str, at: int) -> tuple[int, bool]:
        """Open a file, made if need be, and return it with whether it could be locked.

        The lock ends with this process, however that ends; and when *any* descriptor of the file is closed here.
        """
        fd = os.open(name, _LOCK, FILE_MODE, dir_fd=at)
        try:
            fcntl.lockf(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except (BlockingIOError, PermissionError):
            return fd, False
        except OSError:
            os.close(fd)
            raise
        return fd, True

    def truncate(self, fd: int) -> None:
        """Empty a file that was opened to be locked."""
        os.ftruncate(fd, 0)

    def close(self, fd: int) -> None:
        """Give a descriptor back."""
        os.close(fd)


def _found(status: os.stat_result) -> Found:
    return Found(
        is_file=stat.S_ISREG(status.st_mode),
        is_directory=stat.S_ISDIR(status.st_mode),
        size=status.st_size,
        identity=(status.st_dev, status.st_ino),
        owner=status.st_uid,
        mode=stat.S_IMODE(status.st_mode),
    )
