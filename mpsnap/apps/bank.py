"""A bank: every node is a branch with accounts, money moves between branches, and an audit must find all of it."""

from mpsnap import Context, GlobalSnapshot, Node

ACCOUNTS = 5


class Bank(Node):
    """Transfer money between accounts, at random."""

    default_topology = "complete:4"

    def setup(self, ctx: Context, balance: int = 100) -> None:
        self.accounts = [balance] * ACCOUNTS
        self.transfers = 0
        self.opening_balance = balance

    def on_message(self, ctx: Context, sender: str, payload: dict[str, int]) -> None:
        self.accounts[payload["to"]] += payload["amount"]

    def on_idle(self, ctx: Context) -> bool:
        covered = [account for account, balance in enumerate(self.accounts) if balance > 0]
        if not covered or not ctx.outbound:
            return False
        account = ctx.random.choice(covered)
        amount = ctx.random.randint(1, self.accounts[account])
        # A snapshot never falls between these lines: it waits until the hook has returned.
        self.accounts[account] -= amount
        ctx.send(ctx.random.choice(ctx.outbound), {"to": ctx.random.randrange(ACCOUNTS), "amount": amount})
        self.transfers += 1
        return True


def audit(snapshot: GlobalSnapshot) -> bool:
    """Return whether all money is there, in accounts or on its way, and no account is overdrawn."""
    balances: list[int] = [balance for node in snapshot.nodes.values() for balance in node.state["accounts"]]
    on_the_way: int = sum(transfer["amount"] for messages in snapshot.channels.values() for transfer in messages)
    opened: int = sum(node.state["opening_balance"] * ACCOUNTS for node in snapshot.nodes.values())
    return min(balances) >= 0 and sum(balances) + on_the_way == opened
