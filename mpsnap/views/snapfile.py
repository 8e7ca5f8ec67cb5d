"""Snapshots of the tokens app as `.snap` files.

The format: the snapshot's number; a line `name tokens` a node, by name; a line `SRC DST token(N)` a message in flight,
channels by name, the messages of a channel in their order.
"""

from __future__ import annotations

from mpsnap.core.snapshot import GlobalSnapshot


def snap_text(snapshot: GlobalSnapshot) -> str:
    """Return the snapshot as the text of a `.snap` file; its states and messages must be those of the tokens app."""
    lines = [str(snapshot.number)]
    lines += [f"{name} {snapshot.nodes[name].state['tokens']}" for name in sorted(snapshot.nodes)]
    lines += [
        f"{src} {dst} token({amount})"
        for (src, dst) in sorted(snapshot.channels)
        for amount in snapshot.channels[src, dst]
    ]
    return "\n".join(lines) + "\n"
