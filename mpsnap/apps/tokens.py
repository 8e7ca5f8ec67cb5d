"""Tokens that move about and never get lost: the app that `mpsnap run` starts when none is named."""

from typing import Any

from mpsnap import Context, GlobalSnapshot, Node


class Tokens(Node):
    """Pass random amounts of tokens to random neighbours."""

    def setup(self, ctx: Context, tokens: int = 10) -> None:
        self.tokens = tokens

    def on_message(self, ctx: Context, sender: str, payload: int) -> None:
        self.tokens += payload

    def on_idle(self, ctx: Context) -> bool:
        if not self.tokens or not ctx.outbound:
            return False
        self._pass_on(ctx, ctx.random.choice(ctx.outbound), ctx.random.randint(1, self.tokens))
        return True

    def on_command(self, ctx: Context, command: dict[str, Any]) -> bool:
        """Answer `{"send": dst, "amount": n}`: whether so many tokens were here and are now on their way."""
        if command["amount"] > self.tokens:
            return False
        self._pass_on(ctx, command["send"], command["amount"])
        return True

    def _pass_on(self, ctx: Context, dst: str, amount: int) -> None:
        self.tokens -= amount
        ctx.send(dst, amount)


class ScriptedTokens(Tokens):
    """Pass only the tokens that commands say: with `--events`, this takes the place of `Tokens`."""

    #: That of a class which has none: it is not even called.
    on_idle = Node.on_idle


def conserved(snapshot: GlobalSnapshot) -> bool:
    """Return whether there are as many tokens as at first, at the nodes and in flight together."""
    held: int = sum(node.state["tokens"] for node in snapshot.nodes.values())
    in_flight: int = sum(sum(messages) for messages in snapshot.channels.values())
    return held + in_flight == sum(snapshot.topology.tokens.values())
