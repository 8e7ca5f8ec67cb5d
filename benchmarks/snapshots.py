"""What snapshots cost and how long they take: `python -m benchmarks.snapshots`.

The latency of a snapshot is the time from the wish until it is merged, proven and in the hands of whoever wished it; a
figure for a round is the median over as many as fit into the round's seconds, taken one after the other. Every snapshot
is verified, and at the end of a run every message is accounted for.
"""

from __future__ import annotations

import contextlib
import math
import multiprocessing
import os
import select
import statistics
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from multiprocessing.queues import Queue
from typing import NamedTuple

from benchmarks.measure import Benchmark, Row, Scale, main, ratio, row
from benchmarks.pumped import Pumped
from mpsnap import Context, GlobalSnapshot, Node

#: Snapshots a second of the row that says what one costs, and of the one that says what they leave of the throughput.
OFTEN, NOW_AND_THEN = 40, 10
#: What those rows run for at least: a rate takes more time than a latency.
STEADY_SECONDS, QUICK_STEADY_SECONDS = 1.0, 0.25
#: Stretches, of each kind, that make a round of throughput; of a quick one few, so that each has room for snapshots.
STRETCHES, QUICK_STRETCHES = 10, 2
#: The moderate load: each node sends one message so often.
PERIOD = 0.005
#: The full load.
LOADED, TOKENS = "complete:8", 64
#: The backlog: so many messages wait for one node, whose hook takes this long for each.
BACKLOG, HOOK_SECONDS = 100_000, 0.001
#: What must still wait when the last snapshot of a round is taken.
BACKLOG_LEFT = 90_000
#: Sizes of the growth rows; linearity is judged from the first that is big enough for fixed costs not to hide it.
COMPLETE_SIZES, RING_SIZES, BIG_ENOUGH = (4, 8, 16, 32), (4, 8, 16, 32, 64), 8
#: How many of them a quick run looks at.
QUICK_SIZES = 3
#: How long a process of the busy wave computes before it looks again: as long as hooks of a busy node run in one turn.
BUSY_SECONDS = 0.001
#: Bytes of a frame of the bare wave, about those of a marker.
FRAME = b"m" * 24


class Ticker(Node):
    """Send one message every few milliseconds to each neighbour in turn."""

    def setup(self, ctx: Context) -> None:
        """Begin."""
        self.sent = self.handled = 0
        ctx.every(PERIOD, "tick")

    def tick(self, ctx: Context) -> None:
        """Send one."""
        ctx.send(ctx.outbound[self.sent % len(ctx.outbound)], self.sent)
        self.sent += 1

    def on_message(self, ctx: Context, sender: str, payload: int) -> None:
        """Count it."""
        self.handled += 1


class Forwarder(Node):
    """Pass each token on to a random neighbour."""

    def setup(self, ctx: Context, tokens: int) -> None:
        """Send the tokens on their way."""
        for k in range(tokens):
            ctx.send(ctx.outbound[k % len(ctx.outbound)], k)

    def on_message(self, ctx: Context, sender: str, payload: int) -> None:
        """Pass it on."""
        ctx.send(ctx.random.choice(ctx.outbound), payload)


class Buried(Node):
    """Send many messages to one node, which takes its time over each."""

    def setup(self, ctx: Context, slow: str, messages: int) -> None:
        """Send them all, unless this is the slow one."""
        self.handled = 0
        if ctx.name != slow:
            for k in range(messages):
                ctx.send(slow, (k, "waiting"))

    def on_message(self, ctx: Context, sender: str, payload: tuple[int, str]) -> None:
        """Take that long, without keeping a core from the others."""
        time.sleep(HOOK_SECONDS)
        self.handled += 1


def cost(scale: Scale) -> Iterator[Row]:
    """CPU time of one snapshot, as a share of one second of one core.

    All nodes send 200 messages a second, which leaves the machine mostly idle. The CPU time is that of all nodes and of
    the supervisor's process together, read from their CPU clocks. Within a round the same cluster runs once with 40
    snapshots a second and once without. The difference of CPU seconds a second, over the snapshots a second that were
    really completed, is the CPU time of one: what a cluster pays that takes one snapshot a second.
    """
    for spec in ("ring:4", "complete:8"):
        name = f"CPU of one snapshot, {spec}"
        with Pumped(spec, Ticker) as cluster:
            cluster.snapshot().verify()
            rounds = scale.turns(name, partial(_cpu, cluster, scale, OFTEN), partial(_cpu, cluster, scale, 0))
            _account_for_ticks(cluster.snapshot())
        shares = [100 * (busy - calm) / taken for (busy, taken), (calm, _) in rounds]
        notes = {
            "CPU % without": 100 * statistics.median(calm for _, (calm, _) in rounds),
            "CPU % with": 100 * statistics.median(busy for (busy, _), _ in rounds),
            "snapshots/s": statistics.median(taken for (_, taken), _ in rounds),
        }
        yield row(name, shares, unit="%", sense="at most", floor=2, goal=0.5, notes=notes)


def _cpu(cluster: Pumped, scale: Scale, often: int) -> tuple[float, float]:
    """Return the CPU seconds and the snapshots of one second."""
    before = _cpu_seconds(cluster.pids)
    stretch = cluster.run(_steady(scale), 1 / often if often else math.inf)
    used = _cpu_seconds(cluster.pids) - before
    for snapshot in stretch.snapshots:
        snapshot.verify()
    return used / stretch.seconds, len(stretch.snapshots) / stretch.seconds


def _cpu_seconds(pids: Iterable[int]) -> float:
    # The clock ids of clock_getcpuclockid(3): unlike the ticks of /proc/PID/stat they do not round to 10 ms.
    return sum(time.clock_gettime(~pid << 3 | 2) for pid in pids) + time.process_time()


def _steady(scale: Scale) -> float:
    return max(scale.seconds, QUICK_STEADY_SECONDS if scale.quick else STEADY_SECONDS)


def _account_for_ticks(snapshot: GlobalSnapshot) -> None:
    snapshot.verify()
    states = [node.state for node in snapshot.nodes.values()]
    sent, handled = sum(state["sent"] for state in states), sum(state["handled"] for state in states)
    assert sent == handled + snapshot.in_flight, "a message was lost or doubled"


def throughput(scale: Scale) -> Iterator[Row]:
    """Messages a second with 10 snapshots a second, over the same cluster without, at full load.

    A round is many short stretches by turns: what else the machine does changes from one second to the next.
    """
    name = f"throughput with {NOW_AND_THEN} snapshots/s, {LOADED}"
    with Pumped(LOADED, Forwarder, tokens=TOKENS) as cluster:
        _account_for_tokens(cluster.snapshot())
        rounds = [both for (both,) in scale.turns(name, partial(_stretches, cluster, scale))]
        _account_for_tokens(cluster.snapshot())
    notes = {
        "messages/s without": statistics.median(calm.rate for _, calm in rounds),
        "snapshots/s": statistics.median(busy.snapshots for busy, _ in rounds),
    }
    yield ratio(name, ((busy.rate, calm.rate) for busy, calm in rounds), floor=0.9, goal=0.97, notes=notes)


class Rates(NamedTuple):
    """Hold the messages taken, and the snapshots, of one second."""

    rate: float
    snapshots: float


def _stretches(cluster: Pumped, scale: Scale) -> tuple[Rates, Rates]:
    """Return the rates with snapshots and without, over stretches of both by turns."""
    taken: dict[int, list[Rates]] = {NOW_AND_THEN: [], 0: []}
    stretches = QUICK_STRETCHES if scale.quick else STRETCHES
    for k in range(stretches):
        for often in (NOW_AND_THEN, 0) if k % 2 else (0, NOW_AND_THEN):
            taken[often].append(_rates(cluster, 2 * _steady(scale) / stretches, often))
    busy, calm = (Rates(*map(statistics.fmean, zip(*rates, strict=True))) for rates in taken.values())
    return busy, calm


def _rates(cluster: Pumped, seconds: float, often: int) -> Rates:
    before = cluster.supervisor.totals()[1]
    stretch = cluster.run(seconds, 1 / often if often else math.inf)
    rate = (cluster.supervisor.totals()[1] - before) / stretch.seconds
    for snapshot in stretch.snapshots:
        _account_for_tokens(snapshot)
    return Rates(rate, len(stretch.snapshots) / stretch.seconds)


def _account_for_tokens(snapshot: GlobalSnapshot) -> None:
    snapshot.verify()
    assert snapshot.in_flight == TOKENS * len(snapshot.nodes), "a token was lost or doubled"


def latency_at_full_load(scale: Scale) -> Iterator[Row]:
    """Latency at full load, over the round trip of a message between two processes on idle queues.

    With more busy processes than cores, each step of a snapshot waits for the scheduler, and so does a bare wave
    between processes that never wait: the notes say how long that takes.
    """
    name = f"latency at full load, {LOADED}, over a round trip of queues"
    rounds = scale.turns(name, partial(_loaded_latency, scale), partial(_round_trip, scale), partial(_busy_wave, scale))
    notes = _in_ms(rounds, "round trip") | {"bare busy wave ms": 1e3 * statistics.median(wave for _, _, wave in rounds)}
    yield ratio(name, rounds, sense="at most", floor=100, goal=50, notes=notes)


def _loaded_latency(scale: Scale) -> float:
    with Pumped(LOADED, Forwarder, tokens=TOKENS) as cluster:
        _account_for_tokens(cluster.snapshot())
        seconds = cluster.latency(scale.seconds)
        _account_for_tokens(cluster.snapshot())
    return seconds


def _round_trip(scale: Scale) -> float:
    context = multiprocessing.get_context("fork")
    there: Queue[int | None] = context.Queue()
    back: Queue[int | None] = context.Queue()
    process = context.Process(target=_echo, args=(there, back), daemon=True)
    process.start()

    def once() -> None:
        there.put(1)
        back.get()

    seconds = _median_seconds(once, scale.seconds)
    there.put(None)
    process.join()
    for queue in (there, back):
        queue.close()
        queue.join_thread()
    return seconds


def _busy_wave(scale: Scale) -> float:
    with BareWave(8, busy=BUSY_SECONDS) as bare:
        return _median_seconds(bare.wave, scale.seconds)


def _echo(there: Queue[int | None], back: Queue[int | None]) -> None:
    while (item := there.get()) is not None:
        back.put(item)


def _median_seconds(act: Callable[[], object], seconds: float) -> float:
    """Repeat `act` for a while, after a first time that does not count; return the median of what it took."""
    act()
    taken: list[float] = []
    until = time.perf_counter() + seconds
    while not taken or time.perf_counter() < until:
        began = time.perf_counter()
        act()
        taken.append(time.perf_counter() - began)
    return statistics.median(taken)


def _in_ms(rounds: Sequence[Sequence[float]], other: str) -> dict[str, float]:
    """Return notes: the medians of a latency in ms and of what it is compared with in µs."""
    return {
        "snapshot ms": 1e3 * statistics.median(pair[0] for pair in rounds),
        f"{other} µs": 1e6 * statistics.median(pair[1] for pair in rounds),
    }


def latency_idle(scale: Scale) -> Iterator[Row]:
    """Latency when nothing moves, over a bare wave of frames between as many processes on as many pipes.

    Both stay alive all the time and wait in the kernel while the other is measured. Snapshots are verified a few at a
    time, so that mostly nothing happens between two of them, as nothing does between two waves.
    """
    name = "latency when idle, complete:8, over a bare marker wave"
    with Pumped("complete:8") as cluster, BareWave(8) as bare:
        cluster.snapshot().verify()
        rounds = scale.turns(
            name, partial(cluster.latency, scale.seconds), partial(_median_seconds, bare.wave, scale.seconds)
        )
    yield ratio(name, rounds, sense="at most", floor=5, goal=3, notes=_in_ms(rounds, "wave"))


class BareWave:
    """Send marker waves between processes, each connected to each by a pipe, with nothing that could be left out.

    The parent pokes one process. On its poke or first frame, a process writes one frame to each other one; when it has
    read one from each other one, it tells the parent, who waits for all. One epoll a process is the fastest way: poll,
    and reading the later frames without waiting for them together, are the same within the noise.

    Args:
        count: How many processes.
        busy: Seconds that each process computes whenever it finds nothing to read, instead of waiting; 0 to wait.
    """

    def __init__(self, count: int, busy: float = 0.0) -> None:
        self._count = count
        self._busy = busy

    def __enter__(self) -> BareWave:
        count = self._count
        pipes = {(src, dst): os.pipe() for src in range(count) for dst in range(count) if src != dst}
        self._poke = os.pipe()
        self._done = [os.pipe() for _ in range(count)]
        self._fds = [fd for pipe in [*pipes.values(), self._poke, *self._done] for fd in pipe]
        context = multiprocessing.get_context("fork")
        self._processes = []
        for k in range(count):
            inbound = [read for (_, dst), (read, _) in pipes.items() if dst == k]
            outbound = [write for (src, _), (_, write) in pipes.items() if src == k]
            poke = [self._poke[0]] if k == 0 else []
            args = (inbound, outbound, poke, self._done[k][1], self._busy)
            process = context.Process(target=_wave_node, args=args, daemon=True)
            process.start()
            self._processes.append(process)
        return self

    def __exit__(self, *error: object) -> None:
        for process in self._processes:
            process.kill()
            process.join()
        for fd in self._fds:
            os.close(fd)

    def wave(self) -> None:
        """Have one wave go through."""
        os.write(self._poke[1], b"p")
        for read, _ in self._done:
            os.read(read, 1)


def _wave_node(inbound: Sequence[int], outbound: Sequence[int], poke: Sequence[int], done: int, busy: float) -> None:
    epoll = select.epoll()
    for fd in (*inbound, *poke):
        epoll.register(fd, select.EPOLLIN)
    while True:
        awaited, sent = set(inbound), False
        while awaited:
            ready = epoll.poll(0 if busy else None)
            if not ready:
                _compute(busy)
                continue
            for fd, _ in ready:
                os.read(fd, len(FRAME))
                awaited.discard(fd)
            if not sent:
                sent = True
                for fd in outbound:
                    os.write(fd, FRAME)
        os.write(done, b"d")


def _compute(seconds: float) -> None:
    until = time.perf_counter() + seconds
    while time.perf_counter() < until:
        pass


def latency_with_backlog(scale: Scale) -> Iterator[Row]:
    """Latency while 100,000 messages wait for one node, less one hook of it, over the idle one.

    The slow node sleeps for a millisecond over each, so that the cores are free for the snapshot, and a snapshot may
    have to wait for one such hook.
    """
    name = f"latency behind {BACKLOG:,} messages less one hook, complete:8, over idle"
    rounds = scale.turns(name, partial(_buried_latency, scale), partial(_idle_latency, scale))
    yield ratio(
        name,
        ((buried - HOOK_SECONDS, idle) for buried, idle in rounds),
        sense="at most",
        floor=5,
        goal=2,
        notes={
            "buried ms": 1e3 * statistics.median(buried for buried, _ in rounds),
            "idle ms": 1e3 * statistics.median(idle for _, idle in rounds),
        },
    )


def _idle_latency(scale: Scale) -> float:
    with Pumped("complete:8") as cluster:
        cluster.snapshot().verify()
        return cluster.latency(scale.seconds)


def _buried_latency(scale: Scale) -> float:
    each = -(-BACKLOG // 7)
    with Pumped("complete:8", Buried, window=2 * each, slow="N1", messages=each) as cluster:
        # Its markers come behind all messages: when it is done, all of them have left the pipes and stand in line.
        cluster.snapshot().verify()
        seconds = cluster.latency(scale.seconds, in_a_row=1)
        last = cluster.snapshot()
        last.verify()
        assert last.in_flight + last.nodes["N1"].state["handled"] == 7 * each, "a message was lost or doubled"
        assert last.in_flight >= BACKLOG_LEFT, f"only {last.in_flight:,} messages waited"
    return seconds


def growth_complete(scale: Scale) -> Iterator[Row]:
    """Latency when nothing moves against the number of channels, and whether it is linear in it."""
    yield from _growth("complete", COMPLETE_SIZES, "channel", lambda n: n * (n - 1), scale)


def growth_ring(scale: Scale) -> Iterator[Row]:
    """Latency when nothing moves against the hops that the last marker takes, and whether it is linear in it."""
    yield from _growth("ring", RING_SIZES, "hop", lambda n: n, scale)


def _growth(kind: str, sizes: Sequence[int], unit: str, units: Callable[[int], int], scale: Scale) -> Iterator[Row]:
    sizes = sizes[:QUICK_SIZES] if scale.quick else sizes
    with contextlib.ExitStack() as stack:
        clusters = [stack.enter_context(Pumped(f"{kind}:{n}")) for n in sizes]
        for cluster in clusters:
            cluster.snapshot().verify()
        rounds = scale.turns(f"growth of {kind}", *(partial(cluster.latency, scale.seconds) for cluster in clusters))
    for k, n in enumerate(sizes):
        taken = [latencies[k] for latencies in rounds]
        notes = {f"{unit}s": units(n), f"µs per {unit}": 1e6 * statistics.median(taken) / units(n)}
        yield row(f"latency when idle, {kind}:{n}", (1e3 * seconds for seconds in taken), unit="ms", notes=notes)
    first = sizes.index(BIG_ENOUGH)
    small, large = units(sizes[first]), units(sizes[-1])
    name = f"latency per {unit}, {kind}:{sizes[-1]} over {kind}:{BIG_ENOUGH}"
    pairs = ((latencies[-1] / large, latencies[first] / small) for latencies in rounds)
    yield ratio(name, pairs, sense="at most", floor=2)


BENCHMARKS: tuple[Benchmark, ...] = (
    cost,
    throughput,
    latency_at_full_load,
    latency_idle,
    latency_with_backlog,
    growth_complete,
    growth_ring,
)

if __name__ == "__main__":
    main("benchmarks.snapshots", __doc__, BENCHMARKS)
