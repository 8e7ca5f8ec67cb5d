"""Clusters that suffer at random, for as long as wanted: nothing may be lost, unexpected or doubled.

    python -m tests.soak --minutes 10 --seed 1

In each round a random cluster lives several lives on one store. Nodes are killed, some at once, or frozen, for a while
or until they are taken for dead, and while they are being restored too; the disk fails, once or for a while; and each
life but the last ends with kill -9 of its supervisor, at any moment, or with a stop. After each, the nodes are dead and
the store is whole; after the last, every record of every node has come exactly once, and all tokens are there.

What comes when is drawn from the seed; what it meets is up to the machine. A round that fails can be begun again with
its own number: the command is printed.
"""

from __future__ import annotations

import argparse
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

sys.path.insert(0, str(Path(__file__).parent / "processes"))
sys.path.insert(0, str(Path(__file__).parent))

from drill import Drill, FailingDisk, File
from ledger import Busy, Forking, Ledger, Slow
from lives import end, look

from mpsnap.runtime import recovery
from mpsnap.store.contract import is_recovery_point
from mpsnap.store.reader import DirectoryReader

TOPOLOGIES = (
    "ring:2",
    "ring:3",
    "ring:5",
    "biring:4",
    "complete:3",
    "complete:5",
    "star:4",
    "line:3",
    "random:5:0.3:7",
)
#: Of calamities, about so many seconds lie between two.
CALM_SECONDS = 0.15
#: How long nodes may outlive their supervisor here, where many processes die at once.
PATIENCE_SECONDS = 5.0


class World(NamedTuple):
    """Say what kind of cluster lives in a round."""

    topology: str
    method: str
    node: type[Ledger]
    params: dict[str, Any]
    window: int
    handler_deadline: float | None

    @classmethod
    def drawn(cls, rng: random.Random) -> World:
        """Draw one."""
        node = rng.choice((Ledger, Ledger, Busy, Slow, Forking))
        topology = rng.choice(TOPOLOGIES)
        if node is Busy and topology.startswith("line"):
            # It begins snapshots by itself, and nobody but the first of a line reaches all.
            node = Slow
        tokens = 100_000 if topology.startswith("line") else 10
        # Each of these begins a snapshot every few milliseconds: of large states they would come to nothing else.
        most = 100_000 if node is Busy else 3_000_000
        return cls(
            topology,
            rng.choice(("fork",) * 8 + ("forkserver", "forkserver", "spawn")),
            node,
            {
                "tokens": tokens,
                "ballast": min(most, rng.choice((0, 100_000, 3_000_000))),
                "tick": rng.choice((0.0, 0.002, 0.02)),
            },
            # All messages of a cycle may stand in one channel; fewer, and they would wait for each other for ever.
            rng.choice((2, 3, 16) if topology.startswith("line") else (16, 256, 4096)),
            rng.choice((0.5, 0.5, 1.0)),
        )

    def drill(self, folder: Path, disk: FailingDisk | None = None, **settings: Any) -> Drill:
        """Return the cluster of one life."""
        return Drill(
            folder,
            self.method,
            topology=self.topology,
            node=self.node,
            params=self.params,
            window=self.window,
            handler_deadline=self.handler_deadline,
            disk=disk,
            resume=True,
            recovery={"restarts": 1000, "keep": 3},
            **settings,
        )


class Life:
    """Be one life: a cluster to which things happen."""

    def __init__(self, world: World, folder: Path, seed: str) -> None:
        # Deaths come one after another here: with pauses that grow there would be little else.
        recovery.PAUSE_SECONDS, recovery.LONGEST_PAUSE_SECONDS = 0.001, 0.05
        self.method = world.method
        self.rng = random.Random(seed)
        self.disk = FailingDisk()
        self.it = world.drill(folder, self.disk)
        #: What is to happen, and when: a frozen node goes on, a disk gets well.
        self.later: list[tuple[float, Callable[[], None]]] = []
        self.suffered: Counter[str] = Counter()

    def live(self, tell: int) -> None:
        """Live until the end that is drawn; tell how it was."""
        rng, it = self.rng, self.it
        it.supervisor.start()
        ends = time.monotonic() + rng.uniform(0.2, 3.0)
        calamity = 0.0
        told: dict[str, int] = {}
        while time.monotonic() < ends and not it.supervisor.ended:
            it.pump(0.005)
            now = time.monotonic()
            it.pause = rng.choice((0.0, 0.01, 0.1))
            pids = {node: each["pid"] for node, each in it.supervisor.status()["nodes"].items()}
            if pids != told:
                told = pids
                os.write(tell, " ".join(["", *map(str, pids.values())]).encode())
            for due, act in [each for each in self.later if each[0] <= now]:
                self.later.remove((due, act))
                act()
            if it.supervisor.state == "running" and it.supervisor.open_snapshots < rng.choice((1, 1, 3)):
                it.supervisor.trigger([rng.choice(it.topology.nodes)] if rng.random() < 0.3 else ())
            if now > calamity and it.supervisor.state in ("running", "recovering"):
                calamity = now + rng.expovariate(1 / CALM_SECONDS)
                self.suffer(now)
        self.finish()

    def suffer(self, now: float) -> None:
        """Have something bad happen."""
        kind = self.rng.choice(("kill", "kill", "kill several", "freeze", "hang", "disk once", "disk", "nothing"))
        self.suffered[kind] += 1
        nodes = list(self.it.topology.nodes)
        if kind == "kill":
            self.signal(self.rng.choice(nodes), signal.SIGKILL)
        elif kind == "kill several":
            for node in self.rng.sample(nodes, self.rng.randint(2, len(nodes))):
                self.signal(node, signal.SIGKILL)
        elif kind in ("freeze", "hang"):
            node = self.rng.choice(nodes)
            if not self.tied(node):
                return
            self.signal(node, signal.SIGSTOP)
            if kind == "freeze":
                self.later.append((now + self.rng.uniform(0.0, 0.3), partial(self.signal, node, signal.SIGCONT)))
        elif kind == "disk once":
            self.disk.failing, self.disk.for_good = self.disk.asked + self.rng.randint(1, 80), False
        elif kind == "disk":
            self.disk.failing, self.disk.for_good = self.disk.asked + 1, True
            self.later.append((now + self.rng.uniform(0.0, 0.3), self.heal))

    def heal(self) -> None:
        """Have the disk work again."""
        self.disk.failing, self.disk.for_good = None, False

    def tied(self, node: str) -> bool:
        """Return whether a node would die with its supervisor: who is forked and stopped at once does not."""
        return self.method != "fork" or bool(
            self.it.supervisor.status()["nodes"].get(node, {"phase": "starting"})["phase"] != "starting"
        )

    def signal(self, node: str, number: int) -> None:
        """Send a signal to the present process of a node, if there is one; in any state."""
        incarnation = self.it.supervisor._incarnation
        if incarnation is not None and node in incarnation.nodes:
            incarnation.signal(node, number)

    def finish(self) -> None:
        """Come to the end that is drawn."""
        it = self.it
        if it.supervisor.ended:
            self.judge()
        how = self.rng.choice(("kill9", "kill9", "kill", "stop", "stop and kill9"))
        if how == "kill9":
            os.kill(os.getpid(), signal.SIGKILL)
        elif how == "kill":
            it.supervisor.kill()
        else:
            it.supervisor.stop(5.0)
            until = time.monotonic() + (self.rng.uniform(0.0, 0.1) if how == "stop and kill9" else 20.0)
            while time.monotonic() < until and not it.supervisor.ended:
                it.pump(0.01)
                if how == "stop" and self.rng.random() < 0.02:
                    self.suffer(time.monotonic())
                for due, act in [each for each in self.later if each[0] <= time.monotonic()]:
                    self.later.remove((due, act))
                    act()
            if how == "stop and kill9":
                os.kill(os.getpid(), signal.SIGKILL)
        self.judge()
        it.close()

    def judge(self) -> None:
        """Raise unless an end with an error is one that had to be."""
        it = self.it
        assert it.supervisor.ended, it.story()
        # The disk failed where there was nothing to go on from, or at the last cut; or somebody was frozen at the end.
        excused = any(word in str(it.error) for word in ("initial cut", "No space left", "did not stop"))
        assert it.error is None or excused, f"{it.error!r} {getattr(it.error, 'traceback', '')}\n{it.story()}"


def round_of(seed: int, number: int, deadline: float, tell: Callable[[str], None]) -> Counter[str]:
    """Live one round; return what was lost, unexpected or doubled, and what there was in all."""
    rng = random.Random(f"{seed}:{number}")
    world = World.drawn(rng)
    folder = Path(tempfile.mkdtemp(prefix="mpsnap-soak-"))
    counts: Counter[str] = Counter()
    newest = -1
    lives = rng.randint(1, 4)
    kind = f"{world.topology} of {world.node.__name__} by {world.method}, window {world.window}, {world.params}"
    tell(f"round {number}: {lives} lives of {kind}")
    try:
        for k in range(lives):
            life = partial(be, world, folder, f"{seed}:{number}:{k}")
            end(f"round {number}, life {k}", life, PATIENCE_SECONDS)
            newest = look(folder, newest)
            counts["lives"] += 1
            if time.monotonic() > deadline:
                break
        end(f"round {number}, last life", partial(be_calm, world, folder), PATIENCE_SECONDS)
        counts += counted(folder)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    return counts


def be(world: World, folder: Path, seed: str, tell: int) -> None:
    Life(world, folder, seed).live(tell)


def be_calm(world: World, folder: Path, tell: int) -> None:
    """Go on once more, without calamities, to an orderly end."""
    it = world.drill(folder)
    it.start()
    triggered: list[str] = []

    def snapshots() -> bool:
        # Whatever the nodes begin by themselves, which some do without a pause.
        open_now = [each["id"] for each in it.supervisor.status()["snapshots"]]
        if it.supervisor.state == "running" and not set(triggered) & set(open_now):
            triggered.append(str(it.supervisor.trigger()))
        return bool(it.since > 1)

    it.until(snapshots, "a snapshot", snapshots=False)
    it.stop(20.0)
    it.check(it.recoveries)
    it.close()


def counted(folder: Path) -> Counter[str]:
    """Hold all records against the last cut."""
    counts: Counter[str] = Counter()
    with DirectoryReader(folder / "store") as reader:
        last = reader.latest(is_recovery_point)
        assert last is not None
        due = {name: node.emitted for name, node in reader.load(last.number).nodes.items()}
    came = Counter((record.node, record.n) for record in File(folder / "outputs").records())
    counts["records"] = came.total()
    counts["doubled"] = sum(count - 1 for count in came.values())
    counts["unexpected"] = sum(n >= due[node] for node, n in came)
    counts["lost"] = sum(due.values()) - (len(came) - counts["unexpected"])
    return counts


def main() -> int:
    """Run rounds until the time is over; return 1 if one fails."""
    parser = argparse.ArgumentParser(prog="python -m tests.soak", description=__doc__.splitlines()[0])
    parser.add_argument("--minutes", type=float, default=1.0, help="how long (default 1)")
    parser.add_argument("--seed", type=int, default=None, help="what happens; drawn if it is not given")
    parser.add_argument("--round", type=int, default=None, help="live this one round only, however long it takes")
    options = parser.parse_args()
    seed = random.randrange(10**6) if options.seed is None else options.seed
    whole = options.round is not None
    deadline = float("inf") if whole else time.monotonic() + 60 * options.minutes
    counts: Counter[str] = Counter()
    number = options.round or 0
    while time.monotonic() < deadline and not (whole and counts["rounds"]):
        try:
            counts += round_of(seed, number, deadline, partial(print, flush=True))
        except Exception as error:
            print(f"{type(error).__name__}: {error}\nagain: python -m tests.soak --seed {seed} --round {number}")
            return 1
        counts["rounds"] += 1
        if counts["lost"] or counts["unexpected"] or counts["doubled"]:
            print(f"again: python -m tests.soak --seed {seed} --round {number}")
            break
        number += 1
    said = ", ".join(
        f"{counts[what]} {what}" for what in ("rounds", "lives", "records", "lost", "unexpected", "doubled")
    )
    print(f"seed {seed}: {said}")
    return 1 if counts["lost"] or counts["unexpected"] or counts["doubled"] else 0


if __name__ == "__main__":
    sys.exit(main())
