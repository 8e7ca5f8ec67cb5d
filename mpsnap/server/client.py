"""Talk to a run from another process: find it, ask it, watch it.

This module owns the client's end of the control socket. It must not print, and it needs nothing of a running cluster.

Over the socket go JSON lines: a request is `{"id", "do", "args"}`, its answer `{"id", "result"}` or `{"id", "error"}`;
to `watch` there are many, `{"id", "push": [kind, value]}`.
"""

from __future__ import annotations

import json
import math
import select
import socket
import time
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from mpsnap.core.errors import ClusterError, InputError, MpsnapError
from mpsnap.server import rundir

#: How long a run may take to say that it is there.
HELLO_SECONDS = 2.0
#: Bytes of one answer; a snapshot that is larger is for `show` of a store.
MOST_BYTES = 1 << 30
_START = "python -m mpsnap serve"


class Run(NamedTuple):
    """Say where a run on this host is found, and whether it answers."""

    name: str
    pid: int
    socket: str
    answers: bool


def runs() -> list[Run]:
    """Return the runs of this user on this host, by name, those that do not answer among them."""
    return [Run(*found, answers=_answers(found)) for found in rundir.living()]


def _answers(found: rundir.Found) -> bool:
    try:
        with Client(Run(*found, answers=True)) as client:
            client.ask("hello", seconds=HELLO_SECONDS)
    except MpsnapError:
        return False
    return True


def find_run(name: str | None) -> Run:
    """Return the run of this name; without one, the only one there is.

    Raises:
        InputError: There is none, or there are several.
    """
    living = [Run(*found, answers=True) for found in rundir.living()]
    if name is not None:
        named = [run for run in living if run.name == name]
        if len(named) == 1:
            return named[0]
        if named:
            where = f"{named[0].socket} and {named[1].socket}"
            raise InputError(f"two runs are called {name}", where=where, hint="XDG_RUNTIME_DIR, set to that of one")
        others = f"; there is {', '.join(run.name for run in living)}" if living else ""
        raise InputError(f"there is no run called {name}{others}", where="--run", hint="python -m mpsnap ps")
    if len(living) == 1:
        return living[0]
    if not living:
        raise InputError("no run of yours can be found on this host", hint=_START)
    names = ", ".join(run.name for run in living)
    raise InputError(f"there are {len(living)} runs: {names}", hint=f"--run {living[0].name}")


class Client:
    """Hold a connection to a run, for a `with` block.

    Args:
        run: Which one.

    Raises:
        ClusterError: It is gone.
    """

    def __init__(self, run: Run) -> None:
        self.run = run
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._buffer = bytearray()
        self._requests = 0
        try:
            self._socket.settimeout(HELLO_SECONDS)
            self._socket.connect(run.socket)
        except OSError as error:
            self._socket.close()
            raise self._silent(HELLO_SECONDS) if isinstance(error, TimeoutError) else self._gone() from error

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Give the connection back."""
        self._socket.close()

    def fileno(self) -> int:
        """Return the descriptor on which answers arrive."""
        return self._socket.fileno()

    def ask(self, do: str, args: Mapping[str, Any] | None = None, *, seconds: float | None = 30.0) -> Any:
        """Ask for something and return the answer.

        Args:
            do: The verb.
            args: What belongs to it, plain JSON.
            seconds: How long to wait for the answer, None for as long as it takes.

        Raises:
            InputError: The question makes no sense.
            MpsnapError: It was not done, or the run is gone, or does not answer in time.
        """
        number = self._send(do, args)
        answer = self._answer_to(number, seconds)
        if "error" in answer:
            raise _error_of(answer["error"])
        return answer.get("result")

    def watch(self, every: float) -> Iterator[tuple[str, Any]]:
        """Yield what happens, ("status", document) at least every so many seconds; see `Hub.watch`.

        Raises:
            MpsnapError: The run is gone without a word.
        """
        number = self._send("watch", {"every": every})
        while True:
            answer = self._answer_to(number, None)
            if "error" in answer:
                raise _error_of(answer["error"])
            kind, value = answer["push"]
            yield kind, value
            if kind == "end":
                return

    def _send(self, do: str, args: Mapping[str, Any] | None) -> int:
        self._requests += 1
        line = json.dumps({"id": self._requests, "do": do, "args": dict(args or {})}, allow_nan=False) + "\n"
        try:
            self._socket.settimeout(HELLO_SECONDS)
            self._socket.sendall(line.encode())
        except TimeoutError as error:
            raise self._silent(HELLO_SECONDS) from error
        except ConnectionError:
            pass  # Before it closed the connection, it may have said why; if not, there is no answer.
        except OSError as error:
            raise self._gone() from error
        return self._requests

    def _answer_to(self, number: int, seconds: float | None) -> dict[str, Any]:
        deadline = math.inf if seconds is None else time.monotonic() + seconds
        while True:
            line = self._line(deadline, seconds)
            answer = json.loads(line)
            if answer.get("id") in (number, None):
                found: dict[str, Any] = answer
                return found

    def _line(self, deadline: float, seconds: float | None) -> bytes:
        searched = 0
        while (end := self._buffer.find(b"\n", searched)) < 0:
            searched = len(self._buffer)
            self._fill(deadline, seconds)
        line = bytes(self._buffer[:end])
        del self._buffer[: end + 1]
        return line

    def _fill(self, deadline: float, seconds: float | None) -> None:
        poll = select.poll()
        poll.register(self._socket, select.POLLIN)
        left = None if deadline == math.inf else max(0.0, 1000 * (deadline - time.monotonic()))
        if not poll.poll(left):
            assert seconds is not None
            raise self._silent(seconds)
        try:
            data = self._socket.recv(1 << 18)
        except OSError as error:
            raise self._gone() from error
        if not data:
            raise self._gone()
        self._buffer += data
        if len(self._buffer) > MOST_BYTES:
            raise ClusterError(f"an answer of more than {MOST_BYTES} bytes", where=self.run.socket)

    def _silent(self, seconds: float) -> ClusterError:
        what = f"{self.run.name} has not answered within {seconds:g} s"
        return ClusterError(what, where=self.run.socket, hint=f"a look at pid {self.run.pid}")

    def _gone(self) -> ClusterError:
        return ClusterError(f"the run {self.run.name} is gone", where=self.run.socket, hint="python -m mpsnap ps")


def _error_of(told: Any) -> MpsnapError:
    kind = InputError if told.get("usage") else ClusterError
    return kind(told["what"], where=told.get("where"), hint=told.get("try"))
