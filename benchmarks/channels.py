"""What a channel carries and how soon, over queues, a pipe, pyzmq and MPI: `python -m benchmarks.channels`.

Both sides of a ratio run the same program and build the same payloads; counts are read from the receiver, by its own
clock, in a window that begins after a warm-up. Every run of mpsnap ends with a snapshot, which is verified, and its
states and channels must hold every message exactly once, in order. A peer that is not installed gives a row that says
so.

Where a producer sends without end, `multiprocessing.Queue` has the bound that a channel of mpsnap has. Without one it
would be no contender: the producer starves its own feeder thread, and a window may pass in which hardly anything
arrives.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import psutil

from benchmarks import peers
from benchmarks.measure import Benchmark, Row, Scale, absent, main, ratio, row
from benchmarks.peers import BOUND, BURST, COMPUTE_SECONDS, PAYLOADS, QUIET_SECONDS, Reading, Sample
from mpsnap import Cluster, Context, GlobalSnapshot, Node, Topology, parse_topology
from mpsnap.core.program import NodeSpec

#: How often, and for how long, memory and idle nodes are looked at: these have no contender to take turns with.
MEMORY_ROUNDS, MEMORY_SECONDS, MEMORY_WARM_UP_SECONDS = 3, 4.0, 1.5
IDLE_SECONDS = 2.0

# ------------------------------------------------------------------- one way


class Producer(Node):
    """Send without end."""

    types = (Sample,)

    def setup(self, ctx: Context, payload: str) -> None:
        """Begin with message 0."""
        self.payload = payload
        self.sent = 0

    def on_idle(self, ctx: Context) -> bool:
        """Send a burst, one message at a time."""
        for each in PAYLOADS[self.payload](self.sent):
            ctx.send("N2", each)
        self.sent += BURST
        return True


class Counter(Node):
    """Count what comes."""

    types = (Sample,)

    def setup(self, ctx: Context) -> None:
        """Begin at nothing."""
        self.count = 0

    def on_message(self, ctx: Context, sender: str, payload: Any) -> None:
        """Count it."""
        self.count += 1

    def on_command(self, ctx: Context, command: Any) -> tuple[int, ...]:
        """Tell the count and the time."""
        return tuple(peers.reading(self.count))


class SlowCounter(Counter):
    """Take a millisecond for each message."""

    def on_message(self, ctx: Context, sender: str, payload: Any) -> None:
        """Count it, and do something for a while."""
        time.sleep(0.001)
        self.count += 1


def mpsnap_rate(payload: str, seconds: float) -> float:
    """Return messages per second from one node to another."""
    with _producing(payload, Counter) as cluster:
        found = peers.rate(lambda: [_read(cluster, "N2")], seconds)
        snapshot = cluster.snapshot()
    _check_one_way(snapshot, payload)
    return found


def _producing(payload: str, consumer: type[Node]) -> Cluster:
    nodes: dict[str, NodeSpec] = {"N1": (Producer, {"payload": payload}), "N2": consumer}
    return Cluster("line:2", nodes, start_method="fork", window=BOUND)


def _read(cluster: Cluster, node: str) -> Reading:
    told = cluster.command(node, None)
    assert isinstance(told, tuple)
    return Reading(*told)


def _check_one_way(snapshot: GlobalSnapshot, payload: str) -> None:
    snapshot.verify()
    sent, taken = snapshot.nodes["N1"].state["sent"], snapshot.nodes["N2"].state["count"]
    begin = taken - taken % BURST
    expected = [each for first in range(begin, sent, BURST) for each in PAYLOADS[payload](first)]
    moving = list(snapshot.channels["N1", "N2"])
    assert sent == taken + len(moving), "a message was lost or doubled"
    assert moving == expected[taken - begin :], "messages in flight are not those that were sent"


class Contender(NamedTuple):
    """Name another way to carry messages, how to measure it, what its row has to be, and what has to be installed."""

    name: str
    run: Callable[[], float]
    bounds: dict[str, float]
    needs: str = ""


def _one_way(scale: Scale, payload: str, theirs: Sequence[Contender]) -> Iterable[Row]:
    """Return one row per contender, all of them over the same runs of mpsnap."""
    lacking = {each.name: peers.missing(each.needs) if each.needs else None for each in theirs}
    present = [each for each in theirs if lacking[each.name] is None]
    ours = partial(mpsnap_rate, payload, scale.seconds)
    turns = scale.turns(payload, ours, *(each.run for each in present))
    for each in theirs:
        title = f"one way, {payload}: over {each.name}"
        why = lacking[each.name]
        if why is None:
            at = 1 + present.index(each)
            yield _of_rates(title, [(turn[0], turn[at]) for turn in turns], **each.bounds)
        else:
            yield absent(title, why, **each.bounds)


def _of_rates(title: str, pairs: Sequence[Sequence[float]], **about: Any) -> Row:
    ours, theirs = (statistics.median(each) for each in zip(*pairs, strict=True))
    return ratio(title, pairs, notes={"messages/s": round(ours), "theirs": round(theirs)}, **about)


def _over_queue(scale: Scale, payload: str, **bounds: float) -> Contender:
    return Contender("multiprocessing.Queue", partial(peers.queue_rate, payload, scale.seconds), bounds)


def _over_everything(scale: Scale, payload: str) -> Iterable[Row]:
    pipe, zmq, mpi = (partial(run, payload, scale.seconds) for run in (peers.pipe_rate, peers.zmq_rate, peers.mpi_rate))
    theirs = [
        _over_queue(scale, payload, floor=16, goal=25),
        Contender(f"a pipe, lists of {BURST}", pipe, {"floor": 0.4, "goal": 0.6}),
        Contender("pyzmq ipc PUSH/PULL", zmq, {"floor": 2.5, "goal": 4}, needs="pyzmq"),
        Contender("mpi4py isend/recv", mpi, {"floor": 2.5, "goal": 4}, needs="mpi4py"),
    ]
    return _one_way(scale, payload, theirs)


def one_way_tuples(scale: Scale) -> Iterable[Row]:
    """Measure single `(int, int)` from node to node."""
    return _over_everything(scale, "(int, int)")


def one_way_bytes(scale: Scale) -> Iterable[Row]:
    """Measure single messages of 100 bytes from node to node."""
    return _over_everything(scale, "100 bytes")


def one_way_large(scale: Scale) -> Iterable[Row]:
    """Measure single messages of 10 kB from node to node."""
    return _one_way(scale, "10 kB", [_over_queue(scale, "10 kB", floor=2, goal=3)])


def one_way_encoded(scale: Scale) -> Iterable[Row]:
    """Measure payloads that `send` has to encode."""
    for payload in ("list", "dict", "dataclass"):
        yield from _one_way(scale, payload, [_over_queue(scale, payload, floor=4, goal=8)])


# -------------------------------------------------------------------- tokens


class Forwarder(Node):
    """Pass each token on to a random neighbour."""

    def setup(self, ctx: Context, tokens: int) -> None:
        """Send this node's tokens on their way; no two tokens of a cluster are the same."""
        self.taken = 0
        mine = int(ctx.name[1:]) - 1
        for token in range(mine * tokens, (mine + 1) * tokens):
            ctx.send(ctx.outbound[token % len(ctx.outbound)], token)

    def on_message(self, ctx: Context, sender: str, payload: int) -> None:
        """Pass it on."""
        self.taken += 1
        ctx.send(ctx.random.choice(ctx.outbound), payload)

    def on_command(self, ctx: Context, command: Any) -> tuple[int, ...]:
        """Tell the count and the time."""
        return tuple(peers.reading(self.taken))


def forwarding_rate(topology: Topology, tokens: int, seconds: float) -> float:
    """Return messages taken per second by all nodes."""
    with Cluster(topology, Forwarder, params={"tokens": tokens}, start_method="fork") as cluster:
        found = peers.rate(lambda: [_read(cluster, node) for node in topology.nodes], seconds)
        snapshot = cluster.snapshot()
    snapshot.verify()
    # Between two hooks no token is at a node.
    moving = sorted(token for tokens in snapshot.channels.values() for token in tokens)
    assert moving == list(range(tokens * len(topology.nodes))), "a token was lost or doubled"
    for name, node in snapshot.nodes.items():
        assert node.state["taken"] == sum(node.received.values()), f"{name} was not given what it received"
    return found


def _forwarding(scale: Scale, spec: str, tokens: int, **bounds: float) -> Iterable[Row]:
    topology = parse_topology(spec)
    channels = [(channel.src, channel.dst) for channel in topology.channels]
    turns = scale.turns(
        spec,
        partial(forwarding_rate, topology, tokens, scale.seconds),
        partial(peers.tokens_rate, channels, tokens, scale.seconds),
    )
    return [_of_rates(f"{spec}, {tokens:,} tokens a node: over multiprocessing.Queue", turns, **bounds)]


def tokens_complete(scale: Scale) -> Iterable[Row]:
    """Measure many channels with few messages each."""
    return _forwarding(scale, "complete:8", 64, floor=9, goal=14)


def tokens_ring(scale: Scale) -> Iterable[Row]:
    """Measure few channels with many messages each."""
    return _forwarding(scale, "ring:4", 1024, floor=18, goal=28)


# ------------------------------------------------------------------- latency


class Timed(Node):
    """Keep how long messages took, until told; one that starts sends what is to come back."""

    def setup(self, ctx: Context, starts: bool) -> None:
        """Begin the first round."""
        self.times: list[int] = []
        self.began = time.perf_counter_ns()
        if starts:
            ctx.send(ctx.outbound[0], 0)

    def on_message(self, ctx: Context, sender: str, payload: int) -> None:
        """End a round and begin the next."""
        now = time.perf_counter_ns()
        self.times.append(now - self.began)
        self.began = time.perf_counter_ns()
        ctx.send(sender, payload)

    def on_command(self, ctx: Context, command: Any) -> list[int]:
        """Tell the times since this was last asked."""
        times, self.times = self.times, []
        return times


class Echo(Node):
    """Return what comes."""

    def on_message(self, ctx: Context, sender: str, payload: int) -> None:
        """Return it."""
        ctx.send(sender, payload)


def _median(cluster: Cluster, node: str, seconds: float) -> float:
    def take() -> list[int]:
        times = cluster.command(node, None)
        assert isinstance(times, list)
        return times

    return peers.median_after_warm_up(take, seconds)


def mpsnap_round_trip(seconds: float) -> float:
    """Return the median time, in nanoseconds, of a lone message to another node and back."""
    with Cluster("complete:2", {"N1": (Timed, {"starts": True}), "N2": Echo}, start_method="fork") as cluster:
        found = _median(cluster, "N1", seconds)
        snapshot = cluster.snapshot()
    snapshot.verify()
    assert snapshot.in_flight == 1, "the message was lost or doubled"
    return found


def round_trip(scale: Scale) -> Iterable[Row]:
    """Measure one message that goes to and fro."""
    turns = scale.turns(
        "round trip", partial(mpsnap_round_trip, scale.seconds), partial(peers.round_trip, scale.seconds)
    )
    return [_of_times("round trip of a lone message: over two queues", turns, floor=0.85, goal=0.6)]


def _of_times(title: str, pairs: Sequence[Sequence[float]], **about: Any) -> Row:
    ours, theirs = (statistics.median(each) / 1e3 for each in zip(*pairs, strict=True))
    return ratio(title, pairs, sense="at most", notes={"us": ours, "theirs": theirs}, **about)


class Calculator(Node):
    """Send on a channel that was quiet, and compute right after."""

    def setup(self, ctx: Context) -> None:
        """Leave the channel quiet at first."""
        self.sent = 0
        ctx.after(QUIET_SECONDS, "speak")

    def speak(self, ctx: Context) -> None:
        """Send the time of now and compute."""
        self.sent += 1
        ctx.send("N2", time.perf_counter_ns())
        peers.compute(COMPUTE_SECONDS)
        ctx.after(QUIET_SECONDS, "speak")


class Listener(Node):
    """Keep how long messages took that hold the time of their sending, until told."""

    def setup(self, ctx: Context) -> None:
        """Begin at nothing."""
        self.times: list[int] = []
        self.count = 0

    def on_message(self, ctx: Context, sender: str, payload: int) -> None:
        """Look at the clock."""
        self.times.append(time.perf_counter_ns() - payload)
        self.count += 1

    def on_command(self, ctx: Context, command: Any) -> list[int]:
        """Tell the times since this was last asked."""
        times, self.times = self.times, []
        return times


def mpsnap_first_delivery(seconds: float) -> float:
    """Return the median time, in nanoseconds, until a message arrives whose sender computes right after `send`."""
    with Cluster("line:2", {"N1": Calculator, "N2": Listener}, start_method="fork") as cluster:
        found = _median(cluster, "N2", seconds)
        snapshot = cluster.snapshot()
    snapshot.verify()
    sent, taken = snapshot.nodes["N1"].state["sent"], snapshot.nodes["N2"].state["count"]
    assert sent == taken + snapshot.in_flight, "a message was lost or doubled"
    return found


def first_delivery(scale: Scale) -> Iterable[Row]:
    """Measure how soon a message leaves a node that goes on computing for 20 ms."""
    turns = scale.turns(
        "first delivery", partial(mpsnap_first_delivery, scale.seconds), partial(peers.first_delivery, scale.seconds)
    )
    return [_of_times("delivery while the sender computes: over multiprocessing.Queue", turns, floor=0.2, goal=0.1)]


# -------------------------------------------------------------------- upkeep


class Idler(Node):
    """Send to every neighbour once, and then wait."""

    def setup(self, ctx: Context) -> None:
        """Use every channel once."""
        self.taken = 0
        ctx.broadcast(0)

    def on_message(self, ctx: Context, sender: str, payload: int) -> None:
        """Count it."""
        self.taken += 1


def idle(scale: Scale) -> Iterable[Row]:
    """Measure the processor time of nodes with 16 channels in and 16 out that have nothing to do: the busiest node."""
    seconds = scale.seconds if scale.quick else IDLE_SECONDS
    shares = []
    with Cluster("complete:17", Idler, start_method="fork") as cluster:
        # This takes every message that was sent before.
        cluster.snapshot()
        processes = [node["pid"] for node in cluster.status()["nodes"].values()]
        for k in range(scale.rounds):
            scale.told(f"idle, round {k + 1} of {scale.rounds}")
            before, began = [_cpu_ns(pid) for pid in processes], time.perf_counter_ns()
            peers.pause(seconds)
            after, ended = [_cpu_ns(pid) for pid in processes], time.perf_counter_ns()
            spent = [end - begin for begin, end in zip(before, after, strict=True)]
            shares.append(100 * max(spent) / (ended - began))
        snapshot = cluster.snapshot()
    snapshot.verify()
    assert all(node.state["taken"] == 16 for node in snapshot.nodes.values()), "a message was lost or doubled"
    return [row("an idle node with 32 channels, of a core", shares, unit="%", sense="at most", floor=1, goal=0.2)]


def _cpu_ns(pid: int) -> int:
    # `stat` counts in hundredths of a second, more than an idle node takes. A node has this one thread.
    return int(Path(f"/proc/{pid}/schedstat").read_text().split()[0])


def slow_consumer(scale: Scale) -> Iterable[Row]:
    """Measure what the memory of an endless producer and of a node that takes 1 ms a message grows by: the larger."""
    payload, seconds, warm_up = "100 bytes", MEMORY_SECONDS, MEMORY_WARM_UP_SECONDS
    if scale.quick:
        seconds = warm_up = 4 * scale.seconds
    rounds = min(scale.rounds, MEMORY_ROUNDS)
    grown = []
    for k in range(rounds):
        scale.told(f"slow consumer, round {k + 1} of {rounds}")
        with _producing(payload, SlowCounter) as cluster:
            processes = [psutil.Process(node["pid"]) for node in cluster.status()["nodes"].values()]
            peers.pause(warm_up)
            before = [process.memory_info().rss for process in processes]
            peers.pause(seconds)
            after = [process.memory_info().rss for process in processes]
            snapshot = cluster.snapshot()
        _check_one_way(snapshot, payload)
        grown.append(max(end - begin for begin, end in zip(before, after, strict=True)) / 1e6)
    title = f"memory of a producer or its slow consumer, in {seconds:g} s"
    return [row(title, grown, unit="MB", sense="at most", floor=20, goal=5)]


BENCHMARKS: tuple[Benchmark, ...] = (
    one_way_tuples,
    one_way_bytes,
    one_way_large,
    one_way_encoded,
    tokens_complete,
    tokens_ring,
    round_trip,
    first_delivery,
    idle,
    slow_consumer,
)

if __name__ == "__main__":
    main("benchmarks.channels", __doc__, BENCHMARKS)
