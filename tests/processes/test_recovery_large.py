"""Much: messages in flight, large states, and no memory left.

`python tests/processes/test_recovery_large.py 1000000` does the first with so many and prints what it takes.
"""

from __future__ import annotations

import re
import resource
import signal
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import pytest
from drill import drill
from ledger import Ledger

from mpsnap import Context, Node
from mpsnap.core.errors import NodeError
from mpsnap.core.events import NodeDied, Recovered, SnapshotAbandoned, SnapshotCompleted

pytestmark = [
    pytest.mark.processes,
    pytest.mark.timeout(90, method="signal"),
    pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning"),
]


class Heap(Node):
    """Send a heap of messages at the start, which the next node takes when it is told to, and not before."""

    def setup(self, ctx: Context, count: int) -> None:
        self.got = 0
        for n in range(count if ctx.outbound else 0):
            ctx.send(ctx.outbound[0], (n + 1, "x"))

    def on_message(self, ctx: Context, sender: str, payload: Any) -> None:
        assert payload == (self.got + 1, "x")
        self.got += 1


def heap(folder: Path, count: int) -> tuple[float, float, int]:
    """Keep so many messages in flight, and go on from there; return seconds of both and the most memory of a node."""
    with drill(folder, topology="line:2", node=Heap, params={"count": count}, window=2, snapshot_timeout=60) as it:
        # The initial cut holds them all: nobody has handled anything.
        began = time.monotonic()
        it.start()
        kept = time.monotonic() - began
        assert it.told(SnapshotCompleted)[0].snapshot.in_flight == count
        it.supervisor.signal("N1", signal.SIGKILL)
        it.until(lambda: it.recoveries, "the recovery", snapshots=False)
        back = it.store.load(it.supervisor._commits.last.number)  # type: ignore[union-attr]
        assert back.in_flight == count
        most = max(high_water(each["pid"]) for each in it.supervisor.status()["nodes"].values())
        it.until(lambda: it.supervisor.totals()[1] == count, "all to be taken", snapshots=False)
        done = it.snapshot()
        assert isinstance(done, SnapshotCompleted)
        assert done.snapshot.nodes["N2"].state["got"] == count
        assert done.snapshot.in_flight == 0
        it.stop()
        assert it.error is None
        return kept, it.told(Recovered)[0].seconds, most


def test_a_hundred_thousand_messages_in_flight_come_back_in_order(tmp_path: Path) -> None:
    kept, back, most = heap(tmp_path, 100_000)
    assert kept + back < 20.0
    assert most < 300 << 20


def high_water(pid: int | str = "self") -> int:
    """Return the most bytes that were resident in a process."""
    status = Path(f"/proc/{pid}/status").read_text()
    return int(re.findall(r"VmHWM:\s*(\d+) kB", status)[0]) << 10


def test_a_large_state_never_comes_into_the_supervisor(tmp_path: Path) -> None:
    with drill(tmp_path, params={"ballast": 32 << 20, "tick": 0.0}, topology="ring:2") as it:
        it.start()
        # Sets the mark back to what there is now.
        Path("/proc/self/clear_refs").write_text("5")
        before = high_water()
        it.ledger = False
        assert isinstance(it.snapshot(), SnapshotCompleted)
        it.supervisor.signal("N2", signal.SIGKILL)
        it.until(lambda: it.recoveries, "the recovery", snapshots=False)
        assert isinstance(it.snapshot(), SnapshotCompleted)
        assert high_water() - before < 16 << 20
        it.stop()
        assert it.error is None


class Greedy(Ledger):
    """Take all the memory there is, when told to."""

    def on_command(self, ctx: Context, command: Any) -> Any:
        self.hoard = [b""]
        resource.setrlimit(resource.RLIMIT_AS, (400 << 20, resource.RLIM_INFINITY))
        while True:
            self.hoard.append(bytes(10 << 20))


def test_a_node_without_memory_is_a_death_like_others(tmp_path: Path) -> None:
    with drill(tmp_path, node=Greedy) as it:
        it.start()
        it.until(lambda: it.since > 1, "snapshots")
        it.supervisor.command("N2", "more")
        it.until(lambda: it.recoveries and it.since, "the recovery")
        (death,) = it.told(NodeDied)
        assert isinstance(death.error, NodeError)
        assert "MemoryError" in death.error.what
        assert "on_command" in death.error.traceback
        it.stop()
        it.check(1)


class Tight(Ledger):
    """Have a state that is captured in more memory than there is."""

    def on_command(self, ctx: Context, command: Any) -> Any:
        self.hoard = bytes(150 << 20) if command == "much" else b""
        limit = (300 << 20) if command == "much" else resource.RLIM_INFINITY
        resource.setrlimit(resource.RLIMIT_AS, (limit, resource.RLIM_INFINITY))


def test_a_state_that_there_is_no_memory_to_capture_costs_the_snapshot(tmp_path: Path) -> None:
    with drill(tmp_path, node=Tight, fork_captures=False) as it:
        it.start()
        it.ask("N2", "much")
        lost = it.snapshot()
        assert isinstance(lost, SnapshotAbandoned)
        assert "MemoryError" in lost.error.what
        it.ask("N2", "little")
        assert isinstance(it.snapshot(), SnapshotCompleted)
        it.stop()
        it.check(0)


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        kept, back, most = heap(Path(folder), int(sys.argv[1]))
    print(f"kept after {kept:.1f} s, back after {back:.1f} s, {most >> 20} MB in a node")  # noqa: T201 - the figures
