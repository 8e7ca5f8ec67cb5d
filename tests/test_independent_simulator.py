"""The simulator against a reference of its own, written from the rules of a tick alone and sharing no code with it.

The reference is as plain as can be: every tick it looks at every channel. What is compared is what a user gets:
the files that `simulate --format snap --out DIR` writes, and how many delays it took.
"""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from mpsnap.cli.main import main
from mpsnap.core.topology import Topology

pytestmark = pytest.mark.slow

CASES = 120


class Case(NamedTuple):
    """Hold one random world: what the files of a run say."""

    tokens: dict[str, int]
    channels: list[tuple[str, str]]
    script: list[tuple[Any, ...]]
    delays: list[int]
    most: int


class Never(Exception):
    """Tell that a `send` waits for tokens that cannot come."""


class Reference:
    """Follow one case, tick by tick.

    A message in flight is its amount, a marker is the number of its snapshot as text.
    """

    def __init__(self, case: Case) -> None:
        self.case = case
        self.now = 0
        self.used = 0
        self.received = 0
        self.waits = 0
        self.tokens = dict(case.tokens)
        self.in_flight: dict[tuple[str, str], list[tuple[int, int | str]]] = {c: [] for c in case.channels}
        #: By snapshot: what each node had, and what each channel held; a channel is open while it is in the last.
        self.had: list[dict[str, int]] = []
        self.held: list[dict[tuple[str, str], list[int]]] = []
        self.open: list[set[tuple[str, str]]] = []

    def run(self) -> None:
        for verb, *arguments in self.case.script:
            if verb == "send":
                self.send(*arguments)
            elif verb == "tick":
                for _ in range(arguments[0]):
                    self.tick()
            else:
                self.snapshot(arguments[0])
        while any(self.open) or any(len(had) < len(self.tokens) for had in self.had):
            self.tick()
        for _ in range(self.case.most + 1):
            self.tick()

    def put(self, channel: tuple[str, str], item: int | str) -> None:
        self.in_flight[channel].append((self.now + 1 + self.case.delays[self.used], item))
        self.used += 1

    def send(self, src: str, dst: str, amount: int) -> None:
        while self.tokens[src] < amount:
            if not any(self.in_flight.values()):
                raise Never
            self.waits += 1
            self.tick()
        self.tokens[src] -= amount
        self.put((src, dst), amount)

    def snapshot(self, node: str) -> None:
        number = len(self.had)
        self.had.append({})
        self.held.append({channel: [] for channel in self.case.channels})
        self.open.append(set())
        for initiator in Topology(list(self.tokens), self.case.channels).initiators([node]):
            self.record(number, initiator, None)

    def record(self, number: int, node: str, closed: tuple[str, str] | None) -> None:
        self.had[number][node] = self.tokens[node]
        self.open[number] |= {c for c in self.case.channels if c[1] == node and c != closed}
        for channel in sorted(self.case.channels):
            if channel[0] == node:
                self.put(channel, str(number))

    def tick(self) -> None:
        self.now += 1
        for src in sorted(self.tokens):
            for channel in sorted(self.case.channels):
                if channel[0] == src and self.in_flight[channel] and self.in_flight[channel][0][0] <= self.now:
                    self.deliver(channel, self.in_flight[channel].pop(0)[1])
                    break

    def deliver(self, channel: tuple[str, str], item: int | str) -> None:
        if isinstance(item, int):
            self.received += 1
            self.tokens[channel[1]] += item
            for number, recorded in enumerate(self.open):
                if channel in recorded:
                    self.held[number][channel].append(item)
        elif channel[1] in self.had[int(item)]:
            self.open[int(item)].remove(channel)
        else:
            self.record(int(item), channel[1], channel)

    def snap(self, number: int) -> str:
        lines = [str(number)]
        lines += [f"{node} {held}" for node, held in sorted(self.had[number].items())]
        for channel, amounts in sorted(self.held[number].items()):
            lines += [f"{channel[0]} {channel[1]} token({amount})" for amount in amounts]
        return "\n".join(lines) + "\n"


# ----------------------------------------------------------------- random cases


def random_case(draw: random.Random) -> Case:
    names = random_names(draw, draw.randint(2, 12))
    channels = random_channels(draw, names)
    tokens = {name: draw.randint(0, 9) for name in names}
    tokens[names[0]] += 1
    most = draw.randint(1, 7)
    script = random_script(draw, tokens, channels)
    # Enough for every send and for a marker of each snapshot on each channel.
    items = sum(step[0] == "send" for step in script) + len(channels) * sum(step[0] == "snapshot" for step in script)
    return Case(tokens, channels, script, [draw.randrange(most) for _ in range(items)], most)


def random_names(draw: random.Random, number: int) -> list[str]:
    """Return names in random order; some sort otherwise than a reader counts, or before all letters."""
    start = draw.choice([1, 8, 97])
    names = [f"N{k}" for k in range(start, start + number)]
    if draw.random() < 0.5:
        names = draw.sample(["a", "B", "b", "A-1", "A.1", "A_1", "A", "10", "9", "Z", "N10", "N2", "n2", "aa"], number)
    draw.shuffle(names)
    return names


def random_channels(draw: random.Random, names: list[str]) -> list[tuple[str, str]]:
    """Return channels in random order: a cycle, a tree of any directions, or islands, and some more."""
    kind = draw.choice(["cycle", "tree", "tree", "islands"])
    chosen = {(names[k], names[k - 1]) for k in range(len(names))} if kind == "cycle" else set()
    if kind == "tree":
        for k in range(1, len(names)):
            pair = names[k], names[draw.randrange(k)]
            chosen.add(pair if draw.random() < 0.5 else pair[::-1])
    part = draw.choice([0.0, 0.1, 0.4, 1.0])
    chosen |= {(src, dst) for src in names for dst in names if src != dst and draw.random() < part}
    channels = sorted(chosen) or [(names[0], names[1])]
    draw.shuffle(channels)
    return channels


def random_script(draw: random.Random, tokens: dict[str, int], channels: list[tuple[str, str]]) -> list[Any]:
    names, left = list(tokens), dict(tokens)
    script: list[Any] = [("snapshot", draw.choice(names))]
    for _ in range(draw.randint(3, 30)):
        kind = draw.choice(["send", "send", "send", "snapshot", "snapshots", "tick"])
        if kind == "send":
            src, dst = draw.choice(channels)
            amount = draw.randint(1, min(3, sum(tokens.values())))
            # Mostly what is there at first: who needs more waits until it is sent there, and often that is never.
            if amount <= left[src] or draw.random() < 0.15:
                script.append(("send", src, dst, amount))
                left[src] -= amount
        elif kind == "snapshots":
            script += [("snapshot", draw.choice(names)) for _ in range(draw.randint(2, 4))]
        elif kind == "snapshot":
            script.append(("snapshot", draw.choice(names)))
        elif kind == "tick":
            script.append(("tick", draw.choice([0, 1, 1, 2, 5, 20])))
    draw.shuffle(script)
    return script


# ------------------------------------------------------------------- comparison


def simulate(case: Case, folder: Path, *more: str) -> int:
    """Write a case down and let the command line simulate it."""
    names, channels = case.tokens.items(), case.channels
    top = [str(len(names)), *(f"{name} {held}" for name, held in names), *(f"{src} {dst}" for src, dst in channels)]
    events = [" ".join(map(str, step)) for step in case.script]
    events = [line.replace("tick 1", "tick") if line == "tick 1" else line for line in events]
    for ending, lines in (("top", top), ("events", events), ("delays", list(map(str, case.delays)))):
        (folder / f"case.{ending}").write_text("".join(line + "\n" for line in lines))
    files = [word for ending in ("events", "delays") for word in (f"--{ending}", f"{folder}/case.{ending}")]
    command = ["simulate", "--topology", f"{folder}/case.top", *files, "--max-delay", str(case.most), "--quiet", *more]
    return main(command)


def outcome(case: Case) -> tuple[Reference, bool]:
    """Return the reference at its end, and whether it came to one."""
    reference = Reference(case)
    try:
        reference.run()
    except Never:
        return reference, False
    return reference, True


@pytest.mark.parametrize("part", range(3))
def test_every_snapshot_is_as_the_rules_say(part: int, tmp_path: Path) -> None:
    ended = waited = in_flight = 0
    for seed in range(part, CASES, 3):
        case = random_case(random.Random(f"independent {seed}"))
        reference, ends = outcome(case)
        folder = tmp_path / str(seed)
        folder.mkdir()
        status = simulate(case, folder, "--format", "snap", "--out", f"{folder}/snaps")
        assert status == (0 if ends else 3), f"seed {seed}"
        found = {path.name: path.read_text() for path in (folder / "snaps").iterdir()}
        if ends:
            expected = {f"{number}.snap": reference.snap(number) for number in range(len(reference.had))}
            assert found == expected, f"seed {seed}"
            ended += 1
            waited += reference.waits > 0
            in_flight += any("token(" in text for text in found.values())
    assert ended > CASES / 6, "too many scripts wait for tokens that never come"
    assert waited, "no send has waited"
    assert in_flight > ended / 4, "too few cuts hold messages"


@pytest.mark.parametrize("seed", range(12))
def test_one_delay_is_used_for_each_item_and_time_ends_where_the_rules_say(
    seed: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    case = random_case(random.Random(f"delays {seed}"))
    reference, ends = outcome(case)
    if not ends:
        assert simulate(case, tmp_path) == 3
        return
    assert simulate(case._replace(delays=case.delays[: reference.used]), tmp_path, "--format", "json") == 0
    run = json.loads(capsys.readouterr().out)["run"]
    sends = sum(step[0] == "send" for step in case.script)
    assert (run["messages_sent"], run["messages_received"]) == (sends, reference.received)
    assert run["duration_s"] == reference.now
    assert simulate(case._replace(delays=case.delays[: reference.used - 1]), tmp_path) == 3
    assert f"all {reference.used - 1} delays are used" in capsys.readouterr().err
