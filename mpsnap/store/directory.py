"""The store in a directory, as the supervisor of a run uses it.

This module owns the order in which things get to the disk. It must not know how they are read back (`reader`).

Rules a maintainer keeps:

- A file is on the disk before a name leads to it, and a name before anybody relies on it: parts, then the manifest,
  then the directory that holds them, then its new name, then the directory that holds that.
- Numbers are names too: `.tmp-N` is made, and is on the disk, before N is given out. The directory with the highest
  number is never removed, only emptied, so that the next store to be opened knows where to go on.
- A snapshot that is to go is renamed first, and emptied when its new name is on the disk: half a snapshot never has the
  name of one.
- Nothing is removed before the lock is held: it may be somebody's work.
- What fsync has failed on is given up, and never asked again: another answer would be worth nothing. The store's own
  directory is the exception, since the next snapshot changes it anew.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable
from hashlib import sha256
from typing import Final

from mpsnap.core.errors import InputError, ProtocolError, StoreError
from mpsnap.core.snapshot import StoredState
from mpsnap.store.contents import Output, encode_outputs
from mpsnap.store.contract import Place, SnapshotStore
from mpsnap.store.disk import Disk, Found
from mpsnap.store.manifest import MANIFEST, MOST_MANIFEST_BYTES, OUTPUTS, Manifest, Receipt, Seal, committed, write
from mpsnap.store.reader import MARK, SNAP, TEMPORARY, TRASH, DirectoryReader, StoredFile, named, parsed
from mpsnap.store.staging import STAGING, DirectoryPlace, fill, incarnation_of, telling

LOCK: Final = "LOCK"
_INCARNATION: Final = "incarnation-"

#: Stores that this process has locked: a lock keeps other processes out, not this one.
_held: set[tuple[int, int]] = set()


class DirectoryStore(DirectoryReader, SnapshotStore):
    """Keep snapshots in a directory, which is made if there is none.

    Args:
        path: The directory.
        disk: Does what is asked of the disk.

    Raises:
        InputError: It is in use, by the process that is named; it is no store, or one that others can write to.
        StoreError: It cannot be written to.
    """

    def __init__(self, path: str | os.PathLike[str], disk: Disk | None = None) -> None:
        self._lock = self._staging = -1
        self._identity: tuple[int, int] | None = None
        self._incarnation = -1
        #: The highest number whose name is on the disk, -1 if there is none; and the next one to give out.
        self._durable = -1
        self._next = 0
        #: Numbers begun, and neither committed nor abandoned.
        self._begun: set[int] = set()
        #: Directories to be emptied and removed.
        self._litter: set[str] = set()
        #: Snapshots that look committed and are not.
        self._refused: set[int] = set()
        #: What manifests say, of snapshots that were committed or looked at here.
        self._known: dict[int, Manifest] = {}
        super().__init__(path, disk)
        try:
            with telling("the store cannot be opened", self.path):
                self._take_lock()
                self._staging = self._open_staging()
                # What is found from here on may be in memory only, left by a process that was killed.
                self._disk.sync(self._root)
                self._start()
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        lock, self._lock = self._lock, -1
        staging, self._staging = self._staging, -1
        for fd in (lock, staging):
            if fd >= 0:
                self._disk.close(fd)
        if lock >= 0 and self._identity is not None:
            _held.discard(self._identity)
        super().close()

    # ------------------------------------------------------------------------- opening

    def _open_root(self) -> int:
        try:
            with telling("the store cannot be made", self.path), contextlib.suppress(FileExistsError):
                self._disk.make_top(self.path)
        except StoreError as error:
            if not isinstance(error.__cause__, FileNotFoundError):
                raise
            folder = os.path.dirname(self.path)
            raise InputError("no folder to make the store in", where=folder, hint=f"mkdir -p {folder}") from None
        return super()._open_root()

    def _check_root(self, names: list[str]) -> None:
        found = self._disk.found(self._root)
        self._check_owner(found)
        self._identity = found.identity
        if not names:
            with contextlib.suppress(FileExistsError):
                self._disk.close(self._disk.create(MARK, self._root))
            self._disk.sync(self._root)
            names = [MARK]
        super()._check_root(names)

    def _check_owner(self, found: Found) -> None:
        if found.owner != os.geteuid():
            raise InputError(
                f"the store belongs to user {found.owner}, this process runs as {os.geteuid()}",
                where=self.path,
                hint="that user, or another store",
            )
        if found.mode & 0o022:
            raise InputError(
                f"others may write to the store (its mode is {found.mode:o})",
                where=self.path,
                hint=f"chmod go-w {self.path}",
            )

    def _take_lock(self) -> None:
        assert self._identity is not None
        if self._identity in _held:
            raise self._in_use(f"this process ({os.getpid()})")
        fd, locked = self._disk.lock(LOCK, self._root)
        if not locked:
            holder = self._disk.read(fd, 32, 0).decode("ascii", "replace").strip()
            self._disk.close(fd)
            raise self._in_use(f"process {holder}" if holder.isdigit() else "another process")
        self._lock = fd
        _held.add(self._identity)
        # For people to read, and nobody to kill by: it may be another process's by then.
        self._disk.truncate(fd)
        self._disk.write(fd, memoryview(f"{os.getpid()}\n".encode("ascii")))

    def _in_use(self, holder: str) -> InputError:
        return InputError(
            f"the store is in use by {holder}", where=self.path, hint="another store, or the end of that run"
        )

    def _open_staging(self) -> int:
        with contextlib.suppress(FileExistsError):
            self._disk.make_directory(STAGING, self._root)
        return self._disk.open_directory(STAGING, self._root)

    def _start(self) -> None:
        """Find out where to go on, and remove what others have left."""
        names = self._disk.names(self._root)
        self._incarnation = max(map(_incarnation, names))
        self._durable = max(self._numbers(SNAP, TEMPORARY, TRASH), default=-1)
        self._next = self._durable + 1
        self._litter = {name for name in names if name.startswith((TEMPORARY, TRASH))}
        self._clear()
        self._sweep_staging()

    # ------------------------------------------------------------------------- reading

    def numbers(self) -> tuple[int, ...]:
        return tuple(number for number in super().numbers() if number not in self._refused)

    def summary(self, number: int) -> Manifest:
        if number not in self._known:
            self._known[number] = self.manifest(number)
        return self._known[number]

    # ------------------------------------------------------------------------- writing

    def next_incarnation(self) -> Place:
        older = self._incarnation
        self._incarnation += 1
        with telling("the incarnation cannot be raised", self.path):
            self._disk.close(self._disk.create(f"{_INCARNATION}{self._incarnation}", self._root))
            self._disk.sync(self._root)
            identity = self._disk.found(self._staging).identity
        for incarnation in range(older, -1, -1):
            try:
                self._disk.unlink(f"{_INCARNATION}{incarnation}", self._root)
            except OSError:
                break
        self._sweep_staging()
        return DirectoryPlace(os.path.join(self.path, STAGING), identity, self._incarnation, self._disk)

    def begin(self) -> int:
        number = self._next
        self._next += 1
        with telling("a snapshot cannot be begun", self.path):
            self._litter.add(named(TEMPORARY, number))
            self._disk.make_directory(named(TEMPORARY, number), self._root)
            self._disk.sync(self._root)
        self._litter.remove(named(TEMPORARY, number))
        self._durable = number
        self._begun.add(number)
        self._clear()
        return number

    def commit(self, manifest: Manifest, outputs: Iterable[Output] = (), seal: Seal | None = None) -> Manifest:
        number = manifest.number
        if number not in self._begun:
            raise ProtocolError(f"snapshot {number} is committed and was not begun, or has ended", where=self.path)
        manifest = manifest._replace(outputs=None)
        try:
            with telling(f"snapshot {number} cannot be committed", self.path):
                made = self._commit(manifest, tuple(outputs), seal)
        except BaseException:
            self.abandon(number)
            self.drop_staged(manifest.files())
            raise
        self._begun.remove(number)
        self._known[number] = made
        return made

    def abandon(self, number: int) -> None:
        if number in self._begun:
            self._begun.remove(number)
            self._litter.add(named(TEMPORARY, number))
            self._clear()

    def staged(self, receipt: Receipt) -> StoredState:
        where = os.path.join(self.path, STAGING, receipt.name)
        if incarnation_of(receipt.name) != self._incarnation:
            # Not only for its own sake: the name of the lock's file, opened and closed here, would undo the lock.
            raise StoreError("no file that was staged in this incarnation", where=where)
        with telling("a staged file is not there", where):
            fd = self._disk.open(receipt.name, self._staging)
            found = self._disk.found(fd)
        if not found.is_file or found.size != receipt.size:
            self._disk.close(fd)
            raise StoreError(f"a staged file of {found.size} bytes is not the one of the receipt", where=where)
        return StoredFile(self._disk, fd, receipt, where)

    def drop_staged(self, receipts: Iterable[Receipt]) -> None:
        for receipt in receipts:
            if incarnation_of(receipt.name) is not None:
                with contextlib.suppress(OSError):
                    self._disk.unlink(receipt.name, self._staging)

    def remove(self, number: int) -> None:
        if number not in self.numbers():
            raise self._absent(number)
        self._known.pop(number, None)
        with telling(f"snapshot {number} cannot be removed", self.path):
            self._disk.rename(named(SNAP, number), self._root, named(TRASH, number), self._root)
            # If this fails, the snapshot may be back after a loss of power, and then it must be whole: whoever opens
            # the store next removes it.
            self._disk.sync(self._root)
        self._litter.add(named(TRASH, number))
        self._clear()

    # ---------------------------------------------------------------------- committing

    def _commit(self, manifest: Manifest, outputs: tuple[Output, ...], seal: Seal | None) -> Manifest:
        records = encode_outputs(outputs) if outputs else None
        pending = None if records is None else Receipt(OUTPUTS, len(records), sha256(records).hexdigest())
        made = committed(manifest, pending, seal)
        # Before anything is touched, since it refuses what could not be read again.
        text = write(made)
        if len(text) > MOST_MANIFEST_BYTES:
            raise StoreError(f"its manifest has {len(text)} bytes, the most is {MOST_MANIFEST_BYTES}", where=self.path)
        at = self._disk.open_directory(named(TEMPORARY, manifest.number), self._root)
        try:
            for staged, final in zip(manifest.files(), committed(manifest, None).files(), strict=True):
                self._take_in(staged, final.name, at)
            if records is not None:
                self._write_file(OUTPUTS, records, at)
            self._write_file(MANIFEST, text, at)
            self._disk.sync(at)
        finally:
            self._disk.close(at)
        self._publish(manifest.number)
        return made

    def _take_in(self, staged: Receipt, name: str, at: int) -> None:
        """Move a staged file to where it stays; that its bytes are on the disk, its receipt says."""
        where = os.path.join(self.path, STAGING, staged.name)
        if incarnation_of(staged.name) != self._incarnation:
            raise StoreError("no file that was staged in this incarnation", where=where)
        with telling("a staged file is not there", where):
            found = self._disk.look(staged.name, self._staging)
        if not found.is_file or found.size != staged.size:
            raise StoreError(f"a staged file of {found.size} bytes is not the one of the receipt", where=where)
        self._disk.rename(staged.name, self._staging, name, at)

    def _write_file(self, name: str, data: bytes, at: int) -> None:
        fd = self._disk.create(name, at)
        try:
            fill(self._disk, fd, name, data)
        finally:
            self._disk.close(fd)

    def _publish(self, number: int) -> None:
        """Give a complete snapshot its name, which makes it one."""
        old, new = named(TEMPORARY, number), named(SNAP, number)
        if new in self._disk.names(self._root):
            raise StoreError(f"there is a snapshot {number} already", where=self.path)
        try:
            self._disk.rename(old, self._root, new, self._root)
            self._disk.sync(self._root)
        except OSError:
            # It may be there after a loss of power, and then whole: so it is hidden, and emptied by whoever opens the
            # store next.
            self._refused.add(number)
            with contextlib.suppress(OSError):
                self._disk.rename(new, self._root, named(TRASH, number), self._root)
            raise

    # ------------------------------------------------------------------------ clearing

    def _clear(self) -> None:
        """Empty and remove what nobody wants, as far as the disk allows: what is left is tried again later."""
        for name in tuple(self._litter):
            with contextlib.suppress(OSError):
                try:
                    gone = self._remove_directory(name)
                except FileNotFoundError:
                    gone = True
                if gone:
                    self._litter.remove(name)

    def _remove_directory(self, name: str) -> bool:
        """Empty a directory and remove it, unless it bears the highest number; return whether it is gone."""
        if not self._disk.look(name, self._root).is_directory:
            self._disk.unlink(name, self._root)
            return True
        at = self._disk.open_directory(name, self._root)
        try:
            for file in self._disk.names(at):
                self._disk.unlink(file, at)
        finally:
            self._disk.close(at)
        numbered = parsed(name)
        if numbered is not None and numbered[1] >= self._durable:
            return False
        self._disk.remove_directory(name, self._root)
        return True

    def _sweep_staging(self) -> None:
        with contextlib.suppress(OSError):
            for name in self._disk.names(self._staging):
                with contextlib.suppress(OSError):
                    self._disk.unlink(name, self._staging)


def _incarnation(name: str) -> int:
    """Return the incarnation that a name tells, -1 if it tells none."""
    digits = name.removeprefix(_INCARNATION)
    plain = name.startswith(_INCARNATION) and digits.isascii() and digits.isdigit() and len(digits) <= 18
    return int(digits) if plain else -1
