"""How long a snapshot of a large state stops its node: `python -m benchmarks.capture`.

A node holds a state and is asked all the time for its next step (`on_idle`), so that the longest gap between two hooks
while a snapshot is taken is the pause that the snapshot makes, together with whatever else the machine was busy with.
It is divided by the time that the same process takes to encode the same state with the same codec, which is what the
pause would be at least without a fork. Both alternate, and so does a stretch without a snapshot, for orientation.

Every snapshot is proven, and its state compared with what the node was given.
"""

from __future__ import annotations

import contextlib
import os
import statistics
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from hashlib import sha256
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import psutil

from benchmarks.measure import Benchmark, Row, Scale, main, ratio, row
from mpsnap import Cluster, Context, GlobalSnapshot, Node
from mpsnap.core.codec import Codec

MB = 1 << 20
#: Rounds at a gigabyte, each of which takes seconds; and how long a snapshot of one may take on a busy machine.
LARGE_ROUNDS, LARGE_SECONDS = 3, 300.0
#: A stretch without a snapshot lasts as long as the snapshot before it, but no longer than this.
QUIET_SECONDS = 2.0
#: How often the memory of a child is looked at.
WATCH_SECONDS = 0.01

#: What a state can be, by name.
STATES: dict[str, Callable[[], object]] = {
    "1 MB": lambda: bytes(range(256)) * (MB // 256),
    "64 MB": lambda: bytes(range(256)) * (64 * MB // 256),
    "1 GB": lambda: bytes(range(256)) * (1024 * MB // 256),
    "10^6 keys, str to int": lambda: {str(key): key for key in range(10**6)},
    "10^6 keys, int to tuple": lambda: {key: (key, -key) for key in range(10**6)},
}


class Holder(Node):
    """Hold a state, and note how long it was not asked for its next step."""

    transient: ClassVar[tuple[str, ...]] = ("asked", "longest", "forks")

    def setup(self, ctx: Context, kind: str) -> None:
        """Make the state."""
        self.value = STATES[kind]()

    def on_start(self, ctx: Context) -> None:
        """Begin to count."""
        self.forks = 0
        os.register_at_fork(before=self._count)
        self._reset()

    def _count(self) -> None:
        self.forks += 1

    def _reset(self) -> None:
        self.longest, self.asked = 0.0, time.perf_counter()

    def on_idle(self, ctx: Context) -> bool:
        """Note the gap."""
        now = time.perf_counter()
        self.longest, self.asked = max(self.longest, now - self.asked), now
        return True

    def on_command(self, ctx: Context, command: str) -> object:
        """Forget the gaps so far, tell the longest, encode in place, or tell how often this process has forked."""
        found: object = None
        if command == "gap":
            self.on_idle(ctx)
            found = self.longest
        elif command == "encode":
            codec, began = Codec(), time.perf_counter()
            codec.encode(self.capture())
            found = time.perf_counter() - began
        elif command == "forks":
            found = self.forks
        self._reset()
        return found


class Taken(NamedTuple):
    """Hold what a snapshot was like: seconds of the pause and of the snapshot, and MB that it cost the supervisor."""

    pause: float
    seconds: float
    growth: float


class Held:
    """Run a node with a state beside one without any, while the `with` lasts."""

    def __init__(self, kind: str) -> None:
        self.kind = kind
        self._cluster = Cluster(
            "ring:2",
            {"N1": (Holder, {"kind": kind}), "N2": Node},
            start_method="fork",
            allow_threads=True,
            snapshot_timeout=LARGE_SECONDS,
        )
        self._last = 0.0

    def __enter__(self) -> Held:
        self._cluster.start()
        return self

    def __exit__(self, *error: Any) -> None:
        self._cluster.__exit__(*error)

    @property
    def pid(self) -> int:
        """The process with the state."""
        return int(self._cluster.status()["nodes"]["N1"]["pid"])

    def ask(self, command: str) -> float:
        """Return what the node answers."""
        found = self._cluster.command("N1", command)
        assert isinstance(found, int | float), found
        return found

    def take(self, look: Callable[[GlobalSnapshot], None]) -> Taken:
        """Take a snapshot and have `look` look at it."""
        before = _reset_peak(os.getpid())
        self._cluster.command("N1", "reset")
        began = time.perf_counter()
        snapshot = self._cluster.snapshot("N2")
        self._last = time.perf_counter() - began
        taken = Taken(self.ask("gap"), self._last, _peak(os.getpid()) - before)
        snapshot.verify()
        look(snapshot)
        return taken

    def encode(self) -> float:
        """Return how long the node takes to encode its state, by itself."""
        return self.ask("encode")

    def rest(self) -> float:
        """Return the longest gap in a stretch without a snapshot."""
        self._cluster.command("N1", "reset")
        threading.Event().wait(min(QUIET_SECONDS, self._last))
        return self.ask("gap")


def pause(scale: Scale) -> Iterator[Row]:
    """The pause that a snapshot makes, over the time that its state takes to be encoded.

    And what the supervisor's process, this one, grows by at most while the largest of these states is captured.
    """
    kinds = [kind for kind in STATES if not (scale.quick and kind not in ("1 MB", "64 MB"))]
    for kind in kinds:
        rounds = replace(scale, rounds=min(scale.rounds, LARGE_ROUNDS)) if kind == "1 GB" else scale
        small = kind == "1 MB"
        name = f"pause, {kind}"
        with Held(kind) as held:
            look = partial(_compare, kind)
            turns: list[Any] = rounds.turns(name, partial(held.take, look), held.encode, held.rest)
            forks = held.ask("forks")
            # A node that did not fork would be measured all the same, and it would not be what the row says.
            assert small or forks == rounds.rounds, f"{forks} forks in {rounds.rounds} rounds"
            memory = {} if small else _memory(held)
        notes = {
            "pause ms": 1000 * statistics.median(taken.pause for taken, _, _ in turns),
            "encoding ms": 1000 * statistics.median(encoding for _, encoding, _ in turns),
            "longest gap without ms": 1000 * statistics.median(gap for _, _, gap in turns),
            "snapshot ms": 1000 * statistics.median(taken.seconds for taken, _, _ in turns),
            **memory,
        }
        bounds: dict[str, Any] = {} if small else {"floor": 0.1, "goal": 0.03}
        pairs = [(taken.pause, encoding) for taken, encoding, _ in turns]
        yield ratio(name, pairs, sense="at most", notes=notes, **bounds)
        if kind == ("64 MB" if scale.quick else "1 GB"):
            growth = [taken.growth for taken, _, _ in turns]
            yield row(f"memory of the supervisor, {kind}", growth, unit="MB", sense="at most", floor=64)


def _compare(kind: str, snapshot: GlobalSnapshot) -> None:
    """Compare the state of the snapshot with what the node was given."""
    value = snapshot.nodes["N1"].state["value"]
    if kind != "1 GB":
        assert value == STATES[kind](), "the snapshot holds another state"
        return
    digest = sha256()
    for _ in range(1024):
        digest.update(bytes(range(256)) * (MB // 256))
    assert sha256(value).digest() == digest.digest(), "the snapshot holds another state"


# --------------------------------------------------------------------------- memory


def _memory(held: Held) -> dict[str, float]:
    """Return the most memory, in MB, that the node has during a snapshot, and its child has for itself alone.

    In a snapshot of its own: to look at the memory of a process keeps it from getting any.
    """
    done = threading.Event()
    own = [0.0]
    before = _reset_peak(held.pid)
    watch = threading.Thread(target=_watch_children, args=(held.pid, own, done))
    watch.start()
    try:
        held.take(lambda snapshot: None)
    finally:
        done.set()
        watch.join()
    return {"node MB before": before, "node MB at most": _peak(held.pid), "child's own MB at most": own[0]}


def _watch_children(pid: int, own: list[float], done: threading.Event) -> None:
    node = psutil.Process(pid)
    while not done.wait(WATCH_SECONDS):
        for child in node.children():
            with contextlib.suppress(psutil.Error):  # it has just ended
                own[0] = max(own[0], child.memory_full_info().uss / MB)


def _reset_peak(pid: int) -> float:
    """Have the kernel forget a process's peak; return what it has now, in MB."""
    Path(f"/proc/{pid}/clear_refs").write_text("5")
    return float(psutil.Process(pid).memory_info().rss) / MB


def _peak(pid: int) -> float:
    """Return the peak of a process since it was forgotten, in MB."""
    (line,) = [line for line in Path(f"/proc/{pid}/status").read_text().splitlines() if line.startswith("VmHWM")]
    return int(line.split()[1]) / 1024


BENCHMARKS: list[Benchmark] = [pause]

if __name__ == "__main__":
    main("benchmarks.capture", __doc__, BENCHMARKS)
