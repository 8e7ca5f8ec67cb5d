"""What looking on costs the cluster that is looked at: `python -m benchmarks.server`.

A cluster under full load is served, and the messages it handles in a while are counted with nobody looking on and with
viewers: its page open in a browser, with `top` on a terminal beside it. All of them run on the processors of the
cluster. Another row has strangers knock meanwhile: requests without the secret, and connections that say nothing.
Each row also triggers snapshots through the control socket, which are proven, and the run must end in good order.
"""

from __future__ import annotations

import contextlib
import os
import pty
import random
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import TracebackType
from typing import Any

from benchmarks.measure import Benchmark, Row, Scale, absent, main, ratio
from mpsnap.server.client import Client, find_run

#: The full load, as in the benchmarks of snapshots.
LOADED, APP, TOKENS = "complete:8", "benchmarks.snapshots:Forwarder", 64
#: How long messages are counted, and how long whatever has just begun or ended has to settle before that.
COUNTED_SECONDS, QUICK_COUNTED_SECONDS = 4.0, 0.5
SETTLING_SECONDS, QUICK_SETTLING_SECONDS = 1.5, 0.25
#: How many requests strangers make in a second, in a full run thousands in all, and how many connections say nothing.
KNOCKS, SILENT = 100, 20
CHROMIUM = os.environ.get("MPSNAP_CHROMIUM") or shutil.which("chromium") or shutil.which("chromium-browser")
_STARTED_WITHIN = 30.0


class Served:
    """Hold a cluster that is served, and count what it handles."""

    def __init__(self) -> None:
        self._folder, self._before = tempfile.mkdtemp(prefix="mpsnap-"), os.environ.get("XDG_RUNTIME_DIR")
        os.environ["XDG_RUNTIME_DIR"] = self._folder
        self._said = Path(self._folder, "stderr")
        command = [sys.executable, "-m", "mpsnap", "serve", APP, "--topology", LOADED, "--param", f"tokens={TOKENS}"]
        with self._said.open("w") as errors:
            self._process = subprocess.Popen(
                [*command, "--name", "measured"],
                cwd=Path(__file__).parent.parent,
                stdout=subprocess.DEVNULL,
                stderr=errors,
                start_new_session=True,
            )
        self.address = self._wait_for_address()
        self._client = Client(find_run("measured"))

    def _wait_for_address(self) -> str:
        deadline = time.monotonic() + _STARTED_WITHIN
        while time.monotonic() < deadline and self._process.poll() is None:
            said = self._said.read_text()
            if "Ctrl-C stops it" in said:
                return next(word for word in said.split() if word.startswith("http://"))
            time.sleep(0.05)
        raise RuntimeError(f"it was not served: {self._said.read_text()}")

    def rate(self, seconds: float) -> float:
        """Return how many messages a second were handled in the next seconds."""
        before = self._counted()
        time.sleep(seconds)
        # A status may be as old as an answer takes: on a slow machine the same one may come again.
        while (after := self._counted())[0] <= before[0]:
            time.sleep(0.05)
        digest = self._client.ask("snapshot", {"nodes": ["N3"], "wait": True})["digest"]
        assert digest["verified"]
        return (after[1] - before[1]) / (after[0] - before[0])

    def _counted(self) -> tuple[float, int]:
        status = self._client.ask("status")
        # On the clock of the status: it may be a tenth of a second old.
        return status["run"]["uptime_s"], status["totals"]["handled"]

    def __enter__(self) -> Served:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._client.ask("stop")
        self._client.close()
        status = self._process.wait(_STARTED_WITHIN)
        if self._before is None:
            del os.environ["XDG_RUNTIME_DIR"]
        else:
            os.environ["XDG_RUNTIME_DIR"] = self._before
        shutil.rmtree(self._folder)
        assert status == 0 or error is not None, f"exit status {status}"


@contextlib.contextmanager
def top() -> Iterator[None]:
    """Have `top` on a terminal of its own."""
    ours, theirs = pty.openpty()
    environment = {**os.environ, "TERM": "xterm-256color", "LINES": "40", "COLUMNS": "120"}
    process = subprocess.Popen(
        [sys.executable, "-m", "mpsnap", "top"], stdin=theirs, stdout=theirs, stderr=theirs, env=environment
    )
    os.close(theirs)
    reading = threading.Thread(target=_read_all, args=(ours,))
    reading.start()
    try:
        yield
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(_STARTED_WITHIN)
        reading.join()
        os.close(ours)


def _read_all(fd: int) -> None:
    with contextlib.suppress(OSError):  # a terminal whose other end is closed
        while os.read(fd, 1 << 16):
            pass


@contextlib.contextmanager
def browser() -> Iterator[Callable[[str], Any]]:
    """Yield what opens a page and returns it; raises ImportError where there is no browser to drive."""
    from playwright.sync_api import sync_playwright

    if CHROMIUM is None:
        raise ImportError("there is no chromium")
    with sync_playwright() as playwright:
        started = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox", "--disable-gpu"])
        context = started.new_context(viewport={"width": 1280, "height": 800})

        def opened(address: str) -> Any:
            page = context.new_page()
            page.goto(address)
            return page

        yield opened
        started.close()


def looking_on(scale: Scale) -> Iterator[Row]:
    """The page in a browser and `top` on a terminal, both at once, against nobody."""
    name = f"throughput with the page and top open, {LOADED}, over without"
    counted = QUICK_COUNTED_SECONDS if scale.quick else COUNTED_SECONDS
    settling = QUICK_SETTLING_SECONDS if scale.quick else SETTLING_SECONDS
    about: dict[str, Any] = {"floor": 0.95, "goal": 0.98}
    try:
        with browser() as opened, Served() as served:

            def watched() -> float:
                page = opened(served.address)
                with top():
                    time.sleep(settling)
                    rate = served.rate(counted)
                page.close()
                return rate

            def alone() -> float:
                time.sleep(settling)
                return served.rate(counted)

            turns = scale.turns(name, watched, alone)
    except ImportError as error:
        yield absent(name, str(error), **about)
        return
    yield ratio(name, turns, **about, notes={"messages/s without": sorted(each for _, each in turns)[len(turns) // 2]})


def strangers(scale: Scale) -> Iterator[Row]:
    """Requests that nobody should have made, while messages are counted."""
    name = f"throughput while strangers knock, {LOADED}, over without"
    counted = QUICK_COUNTED_SECONDS if scale.quick else COUNTED_SECONDS
    with Served() as served:
        port = int(served.address.rsplit(":", 1)[1].partition("/")[0])

        def knocked() -> float:
            with Strangers(port):
                return served.rate(counted)

        turns = scale.turns(name, knocked, lambda: served.rate(counted))
    yield ratio(name, turns, floor=0.9, notes={"knocks a second": KNOCKS})


class Strangers:
    """Knock, in a thread of this process, so often a second; keep some connections that say nothing."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._knock)

    def _knock(self) -> None:
        rng = random.Random(7)
        silent = [socket.create_connection(("127.0.0.1", self._port)) for _ in range(SILENT)]
        while not self._ended.wait(1 / KNOCKS):
            path = rng.choice(["/api/status", "/api/kill", "/metrics", "/api/../etc/passwd", "/" + "x" * 500])
            method = rng.choice(["GET", "POST", "PUT", "BREW"])
            head = f"{method} {path} HTTP/1.1\r\nHost: {rng.choice(['127.0.0.1', 'evil.example'])}\r\n\r\n"
            # It may be turned away at any moment, which is right.
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", self._port)) as connection:
                connection.settimeout(1.0)
                connection.sendall(head.encode())
                answer = connection.recv(64)
                assert not answer.startswith(b"HTTP/1.1 2"), (head, answer)
        for connection in silent:
            connection.close()

    def __enter__(self) -> Strangers:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join()


BENCHMARKS: tuple[Benchmark, ...] = (looking_on, strangers)

if __name__ == "__main__":
    main("benchmarks.server", __doc__, BENCHMARKS)
