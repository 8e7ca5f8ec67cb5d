"""Ping-pong: how long does one message take, there and back?"""

import time

from mpsnap import Context, Node


class PingPong(Node):
    """Ping each neighbour that can answer, send it the next when its pong is back, and count the time."""

    default_topology = "ring:2"
    #: When each ping left; times of this process's clock mean nothing after a restart.
    transient = ("left",)

    def setup(self, ctx: Context) -> None:
        self.rounds = 0
        self.seconds = 0.0

    def on_start(self, ctx: Context) -> None:
        self.left: dict[str, float] = {}

    def on_idle(self, ctx: Context) -> bool:
        for dst in ctx.outbound:
            # Of two neighbours, the first by name.
            if dst > ctx.name and dst in ctx.inbound and dst not in self.left:
                self.left[dst] = time.perf_counter()
                ctx.send(dst, "ping")
        return False

    def on_message(self, ctx: Context, sender: str, payload: str) -> None:
        if payload == "ping" and sender in ctx.outbound:
            ctx.send(sender, "pong")
        elif payload == "pong" and sender in self.left:
            self.seconds += time.perf_counter() - self.left.pop(sender)
            self.rounds += 1

    def on_stop(self, ctx: Context) -> None:
        if self.rounds:
            ctx.emit({"round_trips": self.rounds, "mean_us": round(1e6 * self.seconds / self.rounds, 1)})
