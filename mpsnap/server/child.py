"""The control process as its supervisor has it: started, fed, replaced when it dies, ended.

This module owns the life of that process, and the link to it. It must not know what is asked and answered.

Rules a maintainer keeps:

- Whatever becomes of it, the run goes on: a dead one is replaced a few times and then given up, one that has stopped
  reading is killed.
- It is a fresh interpreter, never a fork: a fork would take along the supervisor's threads' locks and everything that
  is open. It is given sockets, and its secrets over the link: arguments can be read by every user.
- Nothing here waits, but for a process that is killed, and at the end, for as long as `END_SECONDS`.
"""

from __future__ import annotations

import json
import os
import select
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from typing import Any

from mpsnap.core.errors import ClusterError
from mpsnap.runtime import lifeline
from mpsnap.runtime.pump import Pump
from mpsnap.server.link import Link
from mpsnap.server.rundir import RunDir

#: How often a control process that has died is replaced, and within which time.
MOST_DEATHS = 3
DEATHS_SECONDS = 60.0
#: How long it may take to bring its viewers the end, before it is killed.
END_SECONDS = 2.0
#: A request is its number, what is asked for, and with what.
REQUEST_ITEMS = 3
#: How many requests of one control process have numbers of their own.
REQUESTS_OF_ONE = 1 << 40
#: What `python -c` runs: with the paths of this interpreter, and nothing of the folder it happens to be started in.
_PROGRAM = (
    "import json, sys; given = json.loads(sys.argv[1]); sys.path[:] = given['path']; "
    "from mpsnap.server.plane import main; main(given)"
)


class Child:
    """Hold the control process, and what it serves: the folder of the run, and the port of its page.

    Args:
        pump: Of the supervisor, open when this is started.
        folder: With the socket that it serves.
        http: The socket of the page, None without one.
        hello: Returns what a new one is told first.
        attend: Is given each note that comes from it.
        lost: Is called when one is gone: nobody waits for answers any more.
        tell: Is told what its user should know, in words.
    """

    def __init__(
        self,
        pump: Pump,
        folder: RunDir,
        http: socket.socket | None,
        *,
        hello: Callable[[], Mapping[str, Any]],
        attend: Callable[..., None],
        lost: Callable[[], None],
        tell: Callable[[str], None],
    ) -> None:
        self._pump = pump
        self._folder = folder
        self._http = http
        self._hello = hello
        self._attend = attend
        self._on_lost = lost
        self._tell = tell
        self._process: subprocess.Popen[bytes] | None = None
        self._link: Link
        self._life = -1
        #: How many there have been.
        self._lives = 0
        self._deaths: list[float] = []
        self._closed = False
        lifeline.forget_in_children(self)

    @property
    def waiting_bytes(self) -> int:
        """How many bytes wait to be read by it."""
        return 0 if self._process is None else self._link.waiting_bytes

    def start(self) -> None:
        """Start one.

        Raises:
            ClusterError: It could not be started.
        """
        ours, theirs = socket.socketpair()
        reading, self._life = os.pipe()
        given = {
            "path": [each for each in sys.path if isinstance(each, str)],
            "link": theirs.fileno(),
            "lines": self._folder.socket.fileno(),
            "http": None if self._http is None else self._http.fileno(),
            "life": reading,
            "folder": self._folder.path,
        }
        try:
            self._process = _run(given)
        except OSError as error:
            ours.close()
            os.close(self._life)
            raise ClusterError(f"the control process could not be started: {error}") from error
        finally:
            theirs.close()
            os.close(reading)
        self._link = Link(ours)
        self._pump.watch(ours.fileno(), self._read)
        # What is still answered to the one before is no answer to this one.
        first = self._lives * REQUESTS_OF_ONE + 1
        self._lives += 1
        self.post("hello", {**self._hello(), "first": first})

    def post(self, *note: Any) -> None:
        """Give it a note, if there is one; what it does not take now goes later.

        Raises:
            OverflowError, TypeError, ValueError: The link has no form for this note; nothing was written.
        """
        if self._process is None:
            return
        try:
            self._link.post(note)
        except ConnectionError:
            self._lost()
            return
        if self._link.waits:
            self._watch(self._write_and_read, select.EPOLLIN | select.EPOLLOUT)

    def _watch(self, act: Callable[[], None], mask: int) -> None:
        fd = self._link.fileno()
        self._pump.unwatch(fd)
        self._pump.watch(fd, act, mask)

    def _read(self) -> None:
        link = self._link
        try:
            notes = link.read()
        except ConnectionError:
            self._lost()
            return
        for note in notes:
            # An answer may find the process gone: nobody waits for the rest.
            if self._process is None or self._link is not link:
                return
            if len(note) != REQUEST_ITEMS:
                self._lost()
                return
            self._attend(*note)

    def _write_and_read(self) -> None:
        try:
            self._link.flush()
        except ConnectionError:
            self._lost()
            return
        if not self._link.waits:
            self._watch(self._read, select.EPOLLIN)
        self._read()

    # ----------------------------------------------------------------------- ends

    def _lost(self) -> None:
        """It is gone, or no good: replace it, or give it up."""
        self._drop()
        now = time.monotonic()
        self._deaths = [when for when in self._deaths if now - when < DEATHS_SECONDS] + [now]
        if len(self._deaths) > MOST_DEATHS:
            self._tell(f"the control process has died {len(self._deaths)} times; the run goes on without it")
            self._give_back()
            return
        self._tell("the control process has died and is started anew; the run goes on")
        try:
            self.start()
        except ClusterError as error:
            self._tell(f"{error}; the run goes on without it")
            self._give_back()

    def _drop(self) -> None:
        """Kill it, if there still is one, and reap it."""
        process, self._process = self._process, None
        if process is None:
            return
        if self._pump.is_watched(self._link.fileno()):
            self._pump.unwatch(self._link.fileno())
        self._link.close()
        process.kill()
        process.wait()
        os.close(self._life)
        self._on_lost()

    def _give_back(self) -> None:
        self._closed = True
        self._folder.close()
        if self._http is not None:
            self._http.close()

    def close(self, *last: Any) -> None:
        """Give it a last note, and leave nothing behind; also right twice."""
        if self._closed:
            return
        if self._process is not None:
            process, deadline = self._process, time.monotonic() + END_SECONDS
            try:
                self._link.end(last, END_SECONDS)
                process.wait(max(0.0, deadline - time.monotonic()))
            except (ConnectionError, TimeoutError, subprocess.TimeoutExpired):
                pass  # Then it does not hear it; it ends all the same, by a signal.
            self._drop()
        self._give_back()

    def forget(self) -> None:
        """Close, in a forked child, what only the supervisor may hold."""
        self._folder.socket.close()
        if self._http is not None:
            self._http.close()
        if self._process is not None:
            self._link.close()
            os.close(self._life)
            # It is no child of this process, which must not wait for it.
            self._process.returncode = 0
            self._process = None


def _run(given: Mapping[str, Any]) -> subprocess.Popen[bytes]:
    # A Ctrl-C must not end it while it is still importing; it lets signals through when it has seen to them.
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGTERM})
    try:
        return subprocess.Popen(
            [sys.executable, "-I", "-c", _PROGRAM, json.dumps(given)],
            pass_fds=[fd for fd in given.values() if isinstance(fd, int)],
            stdin=subprocess.DEVNULL,
            # The run's is for its document, and whoever reads that waits for the last one who could write to it.
            stdout=subprocess.DEVNULL,
        )
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
