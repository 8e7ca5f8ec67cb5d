"""The command line as its users meet it: a process of its own, with a status, two streams and nothing left behind.

Every command gets a session of its own, so that whatever it starts can be found again; it is bounded in time, and a
test fails if a process of it is left when it has returned. And snapshots made by hand, for what is shown of them.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from conftest import wait_until

import mpsnap as mpsnap_package
from mpsnap.core.codec import Codec, freeze
from mpsnap.core.protocol import ChannelState, LocalSnapshot, SnapshotId
from mpsnap.core.snapshot import Captured, GlobalSnapshot
from mpsnap.core.topology import Topology

COMMAND = (sys.executable, "-m", "mpsnap")
#: A command tests the package that its tests import, wherever it runs and whatever else is installed.
ENVIRONMENT = {
    **os.environ,
    "PYTHONPATH": os.pathsep.join(
        filter(None, [str(Path(mpsnap_package.__file__).parents[1]), os.environ.get("PYTHONPATH")])
    ),
}
#: What any command here may take; they take about a second, and more on a busy machine.
SECONDS = 60.0
#: For what does not depend on how processes are started: the quickest way.
QUICK = ("--start-method", "fork")
PLAIN = Codec()


class Done(NamedTuple):
    """Hold how a command ended and what it said."""

    status: int
    stdout: str
    stderr: str

    @property
    def document(self) -> Any:
        """The one JSON document on stdout; anything before or behind it is an error here."""
        return json.loads(self.stdout)

    @property
    def error(self) -> str:
        """The one line on stderr that says what failed."""
        (line,) = [line for line in self.stderr.splitlines() if line.startswith("mpsnap: error: ")]
        return line.removeprefix("mpsnap: error: ")


def mpsnap(
    *arguments: str, cwd: Path, status: int | None = 0, env: Mapping[str, str] | None = None, seconds: float = SECONDS
) -> Done:
    """Run `python -m mpsnap` with these arguments and return how it ended, which must be with this status."""
    done = run([*COMMAND, *arguments], cwd=cwd, env=env, seconds=seconds)
    assert status in (None, done.status), f"{' '.join(arguments)} -> {done.status}\n{done.stdout}\n{done.stderr}"
    return done


def run(
    command: Sequence[str] | str, *, cwd: Path, env: Mapping[str, str] | None = None, seconds: float = SECONDS
) -> Done:
    """Run any command, a text as one of bash, and return how it ended."""
    started = subprocess.Popen(
        ["bash", "-c", command] if isinstance(command, str) else command,
        cwd=cwd,
        env={**ENVIRONMENT, **(env or {})},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    with started:
        try:
            stdout, stderr = started.communicate(timeout=seconds)
        except subprocess.TimeoutExpired:
            left = [_command_line(pid) for pid in members(started.pid)]
            end(started)
            pytest.fail(f"{command} did not end within {seconds:g} s; running: {left}")
    leaves_nothing(started.pid)
    return Done(started.returncode, stdout, stderr)


@contextlib.contextmanager
def under_way(*arguments: str, cwd: Path, stdout: int = subprocess.PIPE) -> Iterator[subprocess.Popen[str]]:
    """Run `python -m mpsnap` in a session of its own for the time of the block; nothing of it is left behind that."""
    started = subprocess.Popen(
        [*COMMAND, *arguments],
        cwd=cwd,
        env=ENVIRONMENT,
        stdin=subprocess.DEVNULL,
        stdout=stdout,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    with started:
        try:
            yield started
            leaves_nothing(started.pid)
        finally:
            end(started)


def write(path: Path, text: str) -> None:
    """Write a file of Python, indented as it stands in a test."""
    lines = text.strip("\n").splitlines()
    margin = len(lines[0]) - len(lines[0].lstrip())
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(line[margin:] for line in lines) + "\n")


def leaves_nothing(session: int) -> None:
    """Wait until no process of this session is left; the last ones clear up for a moment after the command's end."""
    wait_until(lambda: not members(session), f"the end of {[_command_line(pid) for pid in members(session)]}", 5.0)


def end(started: subprocess.Popen[Any]) -> None:
    """Kill a command with all that it has started."""
    for pid in members(started.pid):
        try:
            os.kill(pid, signal.SIGKILL)
        except ProcessLookupError:
            continue
    started.wait()


def members(session: int) -> list[int]:
    """Return the processes of a session that live; the dead that wait for their parent do not count."""
    found = []
    for name in os.listdir("/proc"):
        if name.isdigit():
            try:
                with open(f"/proc/{name}/stat") as file:
                    # What stands in brackets is the program's name, which may hold anything.
                    state, _, _, number = file.read().rpartition(")")[2].split()[:4]
            except OSError:  # it has just ended
                continue
            if int(number) == session and state not in "ZX":
                found.append(int(name))
    return found


def _command_line(pid: int) -> str:
    try:
        with open(f"/proc/{pid}/cmdline") as file:
            return f"{pid}: {file.read().replace(chr(0), ' ')}"
    except OSError:
        return f"{pid}: ended"


def cut(
    topology: Topology,
    states: Mapping[str, object],
    in_flight: Mapping[tuple[str, str], Sequence[object]],
    *,
    received: Mapping[tuple[str, str], int] | None = None,
    number: int = 0,
    initiators: tuple[str, ...] = (),
    duration: float | None = None,
    passive: Collection[str] = (),
    codec: Codec = PLAIN,
) -> GlobalSnapshot:
    """Make a consistent snapshot of these states and messages by hand; `received` counts what was taken before."""
    snapshot_id = SnapshotId(0, (initiators or topology.nodes)[0], 2 * number + 1)
    taken: dict[tuple[str, str], int] = {**dict.fromkeys(topology.channels, 0), **(received or {})}
    parts = {}
    for node in topology.nodes:
        captured = Captured(codec.encode(states[node]), (), (0, 0), node in passive, False, 0)
        channels = {
            src: ChannelState(
                taken[src, node] + 1, tuple(freeze(message, codec) for message in in_flight.get((src, node), ()))
            )
            for src in topology.inbound(node)
        }
        sent = {dst: taken[node, dst] + len(in_flight.get((node, dst), ())) for dst in topology.outbound(node)}
        seen = {src: taken[src, node] for src in topology.inbound(node)}
        parts[node] = LocalSnapshot(node, snapshot_id, captured, sent, seen, channels)
    codecs = dict.fromkeys(topology.nodes, codec)
    return GlobalSnapshot(number, snapshot_id, initiators or topology.nodes[:1], topology, parts, codecs, duration)
