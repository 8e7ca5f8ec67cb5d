"""The file of `--emit`: what nodes emit, a JSON line each; with a store, each record exactly once."""

from __future__ import annotations

import json
import os
import stat
from collections.abc import Iterable
from typing import BinaryIO

from mpsnap.cli.show import writing
from mpsnap.core.errors import InputError
from mpsnap.core.events import Emitted
from mpsnap.runtime.outputs import Sink
from mpsnap.views.document import output_document


class EmitFile(Sink):
    """Append records to a file.

    Nothing in it is changed before the first use as a context manager: until then a run may still be refused.

    Args:
        path: Of the file.
        length: How many bytes of it stay, None for a file that begins anew.

    Raises:
        InputError: There is no such file, it is shorter, or it is no plain file.
    """

    def __init__(self, path: str, length: int | None) -> None:
        self.path = os.path.abspath(path)
        self._length = length
        self._file: BinaryIO | None = None
        try:
            found = os.stat(self.path)
        except FileNotFoundError:
            if length is not None:
                raise InputError(
                    "the file of what was emitted is not there", where=self.path, hint="--emit FILE, where it is now"
                ) from None
            return
        except OSError as error:
            raise InputError(f"cannot be read: {error.strerror}", where=self.path) from error
        if not stat.S_ISREG(found.st_mode):
            raise InputError("with --store this must be a plain file", where=f"--emit {path}")
        if length is not None and found.st_size < length:
            raise InputError(
                f"it has {found.st_size} bytes and had {length} at that snapshot",
                where=self.path,
                hint="--emit FILE, where it is whole",
            )

    def __enter__(self) -> EmitFile:
        try:
            # By the byte: what follows is written once more.
            self._file = open(self.path, "wb" if self._length is None else "r+b")
            self._file.truncate(self._length or 0)
            self._file.seek(self._length or 0)
            folder = os.open(os.path.dirname(self.path), os.O_RDONLY | os.O_DIRECTORY)
            try:
                # A file without a name is none when the power comes back.
                os.fsync(folder)
            finally:
                os.close(folder)
        except OSError as error:
            if self._file is not None:
                self._file.close()
            raise InputError(f"cannot be written: {error.strerror}", where=self.path) from error
        return self

    def __exit__(self, *_: object) -> None:
        assert self._file is not None
        with writing(self.path):
            self._file.close()

    def write(self, records: Iterable[Emitted]) -> None:
        """See `Sink`."""
        assert self._file is not None
        lines = [json.dumps(output_document(*record), allow_nan=False) + "\n" for record in records]
        with writing(self.path):
            self._file.write("".join(lines).encode("utf-8"))
            # So that it can be followed while it grows.
            self._file.flush()

    def sync(self) -> int:
        """See `Sink`."""
        assert self._file is not None
        with writing(self.path):
            os.fsync(self._file.fileno())
            return self._file.tell()
