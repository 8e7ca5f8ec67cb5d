"""Scripted tokens in discrete time by the letter of the rules: a few lines, slow and plain, with no core at all.

What the simulator does is compared with this, to the byte. It scans every channel at every tick and knows one app,
tokens that move as a script says.

    python tests/reference.py NAME   # prints the snapshots of tests/scenarios/NAME with the delays of NAME.delays
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mpsnap import Topology
from mpsnap.core.script import Script, Send, Snapshot, parse_events
from mpsnap.core.topology import parse_top

SCENARIOS = Path(__file__).parent / "scenarios"
#: Ticks after which a script's `send` gives up waiting for tokens.
PATIENCE = 500


class Reference:
    """Tokens, markers and snapshots by the letter of the tick semantics, slow and plain."""

    def __init__(self, topology: Topology, delays: Iterator[int]) -> None:
        self.topology = topology
        self.delays = delays
        self.time = 0
        self.tokens = dict(topology.tokens)
        self.channels: dict[tuple[str, str], list[tuple[int, str, int]]] = {}
        for channel in topology.channels:
            self.channels[channel] = []
        self.snapshots: list[dict[str, Any]] = []

    def push(self, src: str, dst: str, kind: str, value: int) -> None:
        self.channels[src, dst].append((self.time + 1 + next(self.delays), kind, value))

    def send(self, src: str, dst: str, amount: int) -> bool:
        if self.tokens[src] < amount:
            return False
        self.tokens[src] -= amount
        self.push(src, dst, "token", amount)
        return True

    def snapshot(self, node: str) -> None:
        self.snapshots.append({"tokens": {}, "open": set(), "messages": []})
        for initiator in self.topology.initiators([node]):
            self.record(len(self.snapshots) - 1, initiator, None)

    def record(self, number: int, node: str, marked: str | None) -> None:
        snapshot = self.snapshots[number]
        if node in snapshot["tokens"]:
            return
        snapshot["tokens"][node] = self.tokens[node]
        snapshot["open"] |= {(src, node) for src in self.topology.inbound(node) if src != marked}
        for dst in self.topology.outbound(node):
            self.push(node, dst, "marker", number)

    def tick(self) -> None:
        self.time += 1
        for src in sorted(self.topology.nodes):
            for dst in self.topology.outbound(src):
                items = self.channels[src, dst]
                if items and items[0][0] <= self.time:
                    self.deliver(src, dst, *items.pop(0)[1:])
                    break

    def deliver(self, src: str, dst: str, kind: str, value: int) -> None:
        if kind == "marker":
            if dst in self.snapshots[value]["tokens"]:
                self.snapshots[value]["open"].remove((src, dst))
            else:
                self.record(value, dst, src)
            return
        for snapshot in self.snapshots:
            if (src, dst) in snapshot["open"]:
                snapshot["messages"].append((src, dst, value))
        self.tokens[dst] += value

    def finish(self) -> None:
        while any(s["open"] or len(s["tokens"]) < len(self.topology.nodes) for s in self.snapshots):
            self.tick()

    def texts(self) -> list[str]:
        return [
            "\n".join(
                [str(number)]
                + [f"{node} {s['tokens'][node]}" for node in sorted(s["tokens"])]
                + [f"{src} {dst} token({n})" for src, dst, n in sorted(s["messages"], key=lambda m: m[:2])]
            )
            + "\n"
            for number, s in enumerate(self.snapshots)
        ]


def play_reference(topology: Topology, script: Script, delays: Iterator[int]) -> tuple[list[str], int]:
    world = Reference(topology, delays)
    for step in script.steps:
        if isinstance(step, Send):
            for _ in range(PATIENCE):
                if world.send(step.src, step.dst, step.amount):
                    break
                world.tick()
            else:
                raise AssertionError(f"line {step.line} is never satisfied")
        elif isinstance(step, Snapshot):
            world.snapshot(step.node)
        else:
            for _ in range(step.count):
                world.tick()
    world.finish()
    return world.texts(), world.time


def listed(name: str) -> Iterator[int]:
    """Yield the delays of a scenario."""
    return iter(map(int, (SCENARIOS / f"{name}.delays").read_text().split()))


def scenario(name: str) -> tuple[Topology, Script]:
    """Return the topology and the script of a scenario."""
    topology = parse_top((SCENARIOS / f"{name}.top").read_bytes(), name)
    return topology, parse_events((SCENARIOS / f"{name}.events").read_bytes(), topology, name)


if __name__ == "__main__":
    sys.stdout.write("".join(play_reference(*scenario(sys.argv[1]), listed(sys.argv[1]))[0]))
