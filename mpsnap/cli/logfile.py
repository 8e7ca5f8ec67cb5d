"""The file of `--log`: entries as they come, up to a limit."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import IO

from mpsnap.cli.options import Work, positive
from mpsnap.cli.show import open_output, writing
from mpsnap.core.history import Entry, Head, entry_line, head_line

DEFAULT_LIMIT = 1_000_000


def add_log(parser: argparse.ArgumentParser) -> None:
    """Add the options of the event log."""
    log = parser.add_argument_group("the event log")
    log.add_argument(
        "--log", metavar="FILE", help="write what happened there, a JSON line an event; see `export --help`"
    )
    log.add_argument(
        "--log-limit",
        type=positive,
        default=DEFAULT_LIMIT,
        metavar="N",
        help=f"keep about so many events and say how many more there were (default {DEFAULT_LIMIT:,})",
    )


def head_of(work: Work, driver: str) -> Head:
    """Return the first line of a log of this work."""
    unit = "ticks" if driver == "simulator" else "seconds"
    channels = tuple((channel.src, channel.dst) for channel in work.topology.channels)
    return Head(driver, unit, work.app.name, work.topology.name, tuple(work.topology.nodes), channels)


class LogFile:
    """Write entries to a file as they come; without a path, nothing.

    What a simulator writes can be had again from the beginning, so the first entries are kept and the last dropped.
    """

    def __init__(self, path: str | None, head: Head, limit: int) -> None:
        self._path = path or ""
        self._limit = limit
        self._count = 0
        self._dropped = 0
        self._last: Entry | None = None
        self._file: IO[str] | None = None
        if path is not None:
            self._file = open_output(path)
            self._file.write(head_line(head) + "\n")

    @classmethod
    def of(cls, options: argparse.Namespace, work: Work, driver: str) -> LogFile:
        """Return the log that the options name."""
        return cls(options.log, head_of(work, driver), options.log_limit)

    @property
    def keep(self) -> Callable[[Entry], None] | None:
        """What writes an entry; None if there is no log."""
        return None if self._file is None else self._write

    def _write(self, entry: Entry) -> None:
        assert self._file is not None
        if self._count >= self._limit:
            self._dropped += 1
            self._last = entry
            return
        self._count += 1
        with writing(self._path):
            self._file.write(entry_line(entry) + "\n")

    def __enter__(self) -> LogFile:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Write the last of it; more often does nothing.

        Raises:
            OutputError: It cannot be written.
        """
        file, self._file = self._file, None
        if file is None:
            return
        with writing(self._path):
            try:
                if self._last is not None:
                    entry = Entry(None, self._last.index, self._last.time, "dropped", {"count": self._dropped})
                    file.write(entry_line(entry) + "\n")
            finally:
                file.close()
