"""Nodes whose states and records show whether everything happened exactly once, and what has to hold of them.

They live in a module of their own because every node process imports it.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterable
from typing import Any

from mpsnap import Context, GlobalSnapshot, Node
from mpsnap.core.events import Emitted
from mpsnap.runtime.capture import Costs
from mpsnap.runtime.failpoints import Failpoint, arm

#: One message in so many is put out as a record: all of them would keep the supervisor busy with nothing else.
EVERY = 8


class Ledger(Node):
    """Pass numbered messages with tokens in them on; put out every eighth of a channel, and each call of a timer.

    A message that is missing, comes twice or out of turn fails the node. A node without inbound channels makes messages
    out of its tokens as long as it has any.
    """

    def setup(self, ctx: Context, tokens: int = 10, packets: int = 3, ballast: int = 0, tick: float = 0.005) -> None:
        self.tokens = tokens
        self.sent = dict.fromkeys(ctx.outbound, 0)
        self.got = dict.fromkeys(ctx.inbound, 0)
        self.ticks = 0
        self.ballast = b"x" * ballast
        ctx.emit(["setup", 0, 0])
        if ctx.inbound:
            for _ in range(packets):
                self.pass_on(ctx, 1)
        if tick:
            ctx.every(tick, "tick")

    def on_message(self, ctx: Context, sender: str, payload: Any) -> None:
        n, amount = payload if isinstance(payload, tuple) else (payload["n"], payload["amount"][0])
        expected = self.got[sender] + 1
        assert n == expected, f"message {n} of {sender}->{ctx.name} where {expected} was due"
        self.got[sender] = n
        self.tokens += amount
        if n % EVERY == 0:
            ctx.emit([sender, n, self.tokens])
        self.pass_on(ctx, ctx.random.randint(0, self.tokens))

    def on_idle(self, ctx: Context) -> bool:
        if ctx.inbound or not self.tokens:
            return False
        self.pass_on(ctx, 1)
        return True

    def tick(self, ctx: Context) -> None:
        self.ticks += 1
        ctx.emit(["tick", self.ticks, 0])

    def on_stop(self, ctx: Context) -> None:
        ctx.emit(["stop", self.ticks, self.tokens])

    def on_command(self, ctx: Context, command: Any) -> Any:
        return command

    def pass_on(self, ctx: Context, amount: int) -> None:
        """Send some tokens to some neighbour; at the end of a line they stay."""
        if not ctx.outbound:
            return
        dst = ctx.outbound[0] if len(ctx.outbound) == 1 else ctx.random.choice(ctx.outbound)
        n = self.sent[dst] = self.sent[dst] + 1
        self.tokens -= amount
        # Both kinds of payload: what cannot change, and what has to be encoded.
        ctx.send(dst, (n, amount) if n % 4 else {"n": n, "amount": [amount]})


class Poisoned(Ledger):
    """Fail at one message, every time that it comes."""

    def setup(self, ctx: Context, poison: int = 40, **params: Any) -> None:  # type: ignore[override]
        super().setup(ctx, **params)
        self.poison = poison

    def on_message(self, ctx: Context, sender: str, payload: Any) -> None:
        if ctx.name == "N2" and self.got[sender] + 1 == self.poison:
            raise ValueError(f"poison: message {self.poison} of {sender}")
        super().on_message(ctx, sender, payload)


class Busy(Ledger):
    """Be called whenever there is nothing else to do, and snapshot now and then."""

    def on_idle(self, ctx: Context) -> bool:
        super().on_idle(ctx)
        return True

    def tick(self, ctx: Context) -> None:
        super().tick(ctx)
        # A node at an end of a line may not reach everybody.
        if self.ticks % 16 == 0 and ctx.inbound and ctx.outbound:
            ctx.snapshot()


class Asking(Ledger):
    """Begin a snapshot when told to: one that is no recovery point."""

    def on_command(self, ctx: Context, command: Any) -> Any:
        return ctx.snapshot()


class Forking(Ledger):
    """Fork at every capture, as a large state does."""

    def on_start(self, ctx: Context) -> None:
        Costs.fork_wins = lambda self, resident: True  # type: ignore[method-assign]
        Costs.negligible = lambda self, now: False  # type: ignore[method-assign]

    def on_command(self, ctx: Context, command: Any) -> Any:
        if command != "children":
            # Also for the children of this process, and before it stages anything itself.
            arm([Failpoint("mid_stage", "kill9", 5)] if command == "arm" else [], 0)
            return None
        with open(f"/proc/self/task/{os.getpid()}/children") as file:
            return [int(pid) for pid in file.read().split()]


def check_conserved(snapshot: GlobalSnapshot, total: int) -> None:
    """See that no token is lost or doubled, and that each node's own counts are those of the cut."""
    snapshot.verify()
    tokens = 0
    for name, node in snapshot.nodes.items():
        tokens += node.state["tokens"]
        assert node.state["sent"] == node.sent, name
        assert node.state["got"] == node.received, name
    for channel, payloads in snapshot.channels.items():
        for payload in payloads:
            tokens += payload[1] if isinstance(payload, tuple) else payload["amount"][0]
        numbers = [payload[0] if isinstance(payload, tuple) else payload["n"] for payload in payloads]
        first = snapshot.nodes[channel[1]].received[channel[0]] + 1
        assert numbers == list(range(first, first + len(numbers))), channel
    assert tokens == total, f"{tokens} tokens in snapshot {snapshot.number}, there are {total}"


def check_records(records: Iterable[Emitted], final: GlobalSnapshot | None) -> None:
    """See that each record came once and in its turn; with the last cut, that none is missing."""
    by_node: dict[str, list[Emitted]] = {}
    for record in records:
        by_node.setdefault(record.node, []).append(record)
    for node, own in by_node.items():
        assert [record.n for record in own] == list(range(len(own))), f"the records of {node}"
        due = {"setup": 0}
        for record in own:
            assert isinstance(record.record, list)
            kind, n, _ = record.record
            step = 1 if kind in ("tick", "setup", "alarm") else EVERY
            # A run that goes on from the last cut of another puts things out behind the end.
            if kind != "stop":
                assert n == due.setdefault(kind, step), f"{kind} of {node}"
                due[kind] += step
    if final is not None:
        for name, last in final.nodes.items():
            own = by_node[name]
            assert len(own) == last.emitted, f"{name} has put out {last.emitted}, {len(own)} came"
            kinds = [record.record[0] for record in own if isinstance(record.record, list)]
            assert {src: kinds.count(src) for src in last.received} == {
                src: got // EVERY for src, got in last.received.items()
            }


class Slow(Ledger):
    """Take long over each message, so that many wait."""

    def on_message(self, ctx: Context, sender: str, payload: Any) -> None:
        until = time.monotonic() + 0.0005
        while time.monotonic() < until:
            pass
        super().on_message(ctx, sender, payload)


class Alarm(Ledger):
    """Put out one record, a moment after the start and never again."""

    def setup(self, ctx: Context, seconds: float = 0.3, **params: Any) -> None:  # type: ignore[override]
        super().setup(ctx, tick=0.0, **params)
        ctx.after(seconds, "alarm", ctx.name)

    def alarm(self, ctx: Context, name: str) -> None:
        assert name == ctx.name
        ctx.emit(["alarm", 1, 0])


class Ending(Ledger):
    """Pass as many messages on as its tokens last, and then nothing more happens."""

    endless = False

    def setup(self, ctx: Context, tokens: int = 10, packets: int = 300) -> None:  # type: ignore[override]
        super().setup(ctx, tokens=tokens, packets=1, tick=0.0)
        self.packets = packets

    def pass_on(self, ctx: Context, amount: int) -> None:
        if self.sent and min(self.sent.values()) < getattr(self, "packets", 1):
            super().pass_on(ctx, amount)
