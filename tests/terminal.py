"""A terminal for tests: `mpsnap top` on a pseudo-terminal, and what stands on its screen."""

from __future__ import annotations

import contextlib
import fcntl
import os
import pty
import select
import struct
import subprocess
import termios
import time
from collections.abc import Callable
from pathlib import Path

import pyte
from cli_harness import COMMAND, ENVIRONMENT, end

#: What any wait here may take; a second or so, and more on a busy machine.
SECONDS = 40.0
#: Which pyte understands, and has another screen to go to and to come back from.
TERM = "screen-256color"
LEAVES_SCREEN = b"\x1b[?1049l"


class Screen(pyte.Screen):
    """Scroll a region too, which curses does where most of it stays."""

    def scroll_up(self, count: int = 1) -> None:
        self._in_first_line(self.delete_lines, count)

    def scroll_down(self, count: int = 1) -> None:
        self._in_first_line(self.insert_lines, count)

    def _in_first_line(self, do: Callable[[int], None], count: int) -> None:
        line, column = self.cursor.y, self.cursor.x
        self.cursor.y = self.margins.top if self.margins else 0
        do(count)
        self.cursor.y, self.cursor.x = line, column


class Stream(pyte.ByteStream):
    csi = {**pyte.ByteStream.csi, "S": "scroll_up", "T": "scroll_down"}
    events = pyte.ByteStream.events | {"scroll_up", "scroll_down"}


class Terminal:
    """Run `top` on a pseudo-terminal, for a `with` block, and see what stands there."""

    def __init__(self, folder: Path, *arguments: str, rows: int = 24, columns: int = 80, **env: str) -> None:
        self._command = [*COMMAND, "top", "--every", "0.1", *arguments]
        self._env = {**ENVIRONMENT, "XDG_RUNTIME_DIR": str(folder), "TERM": TERM, **env}
        self._size = rows, columns
        self.emulated = Screen(columns, rows)
        self._stream = Stream(self.emulated)
        #: All that was ever written to it.
        self.written = b""

    def __enter__(self) -> Terminal:
        self._ours, theirs = pty.openpty()
        self._set_size(*self._size)
        self.modes = termios.tcgetattr(self._ours)
        self._theirs = theirs
        # Whoever opens a terminal at the beginning of a session is in charge of it: Ctrl-C comes from there.
        shell = ["sh", "-c", 'exec "$@" <>"$0" >&0', os.ttyname(theirs)]
        self.process = subprocess.Popen(
            [*shell, *self._command], stderr=subprocess.PIPE, env=self._env, start_new_session=True
        )
        return self

    def __exit__(self, *_: object) -> None:
        end(self.process)
        assert self.process.stderr is not None
        self.process.stderr.close()
        for fd in (self._ours, self._theirs):
            with contextlib.suppress(OSError):
                os.close(fd)

    def _set_size(self, rows: int, columns: int) -> None:
        fcntl.ioctl(self._ours, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))

    @property
    def lines(self) -> list[str]:
        return [line.rstrip() for line in self.emulated.display]

    def see(self, condition: Callable[[str], object], what: str) -> str:
        """Return what stands on the screen as soon as that is so."""
        deadline = time.monotonic() + SECONDS
        goes_on = True
        while not condition(text := "\n".join(self.lines)):
            # What it wrote last is looked at, too: it may have ended with that.
            if time.monotonic() > deadline or not goes_on:
                raise AssertionError(f"no {what} on the screen:\n{text}")
            goes_on = self._feed()
        return text

    def see_text(self, *texts: str) -> str:
        """Return what stands on the screen as soon as all of these do: one picture may come in several pieces."""
        return self.see(lambda shown: all(text in shown for text in texts), " and ".join(map(repr, texts)))

    def see_none(self, text: str) -> str:
        return self.see(lambda shown: text not in shown, f"end of {text!r}")

    def _feed(self) -> bool:
        if select.select([self._ours], [], [], 0.05)[0]:
            data = os.read(self._ours, 1 << 16)
            self.written += data
            self._stream.feed(data)
        return self.process.poll() is None or bool(select.select([self._ours], [], [], 0)[0])

    def press(self, keys: str) -> None:
        os.write(self._ours, keys.encode())

    def resize(self, rows: int, columns: int) -> None:
        self.emulated.resize(rows, columns)
        self._set_size(rows, columns)

    def end(self) -> tuple[int, str]:
        """Return with which status it ends, and what it says then; the terminal has to be as it was."""
        deadline = time.monotonic() + SECONDS
        while self._feed():
            assert time.monotonic() < deadline, "it does not end"
        assert self.process.stderr is not None
        said = self.process.stderr.read().decode()
        assert (
            self.written.endswith((LEAVES_SCREEN, LEAVES_SCREEN + b"\r\x1b[?1l\x1b>", b"\x1b>"))
            or LEAVES_SCREEN in (self.written[-60:])
        )
        assert termios.tcgetattr(self._theirs) == self.modes
        return self.process.wait(SECONDS), said
