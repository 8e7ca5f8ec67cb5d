"""What nodes are asked while they run, and who has not answered.

This module owns the questions that somebody has put to the nodes of one incarnation: commands, which a node's own code
answers, its state as it is now, and how far it is with the open snapshots. It must not know who asks, or whether the
cluster is in a state to be asked.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping

from mpsnap.core.codec import Codec
from mpsnap.core.errors import SnapshotError
from mpsnap.core.events import CommandLost, Event, Replied, StateTold
from mpsnap.runtime.frames import ToldId
from mpsnap.runtime.snapshots import Snapshots


class Questions:
    """Ask the nodes of one incarnation.

    Args:
        tickets: A number for each question, never given to another one, not even in a later incarnation.
        readers: How to read each node's values; they leave pickles alone.
        snapshots: Has to know of the commands that are on their way.
        tell: Gives a node a note.
        happened: Is told each answer, or that there will be none.
    """

    def __init__(
        self,
        tickets: Iterator[int],
        readers: Mapping[str, Codec],
        snapshots: Snapshots,
        *,
        tell: Callable[..., None],
        happened: Callable[[Event], None],
    ) -> None:
        self._tickets = tickets
        self._readers = readers
        self._snapshots = snapshots
        self._tell = tell
        self._happened = happened
        #: Who is to answer, by the ticket of a command or of a wish for a state.
        self._unanswered: dict[int, str] = {}
        #: The nodes that are asked how far they are and have not answered.
        self._inspected: set[str] = set()
        #: What to do about each kind of answer.
        self.on_note: dict[object, Callable[..., None]] = {
            "replied": self._on_replied,
            "told": self._on_told,
            "inspected": self._on_inspected,
        }

    def command(self, node: str, encoded: bytes) -> int:
        """Give a command to a node's `on_command`; `Replied` follows with the ticket returned."""
        self._snapshots.disturb()
        return self._ask(node, "command", encoded)

    def state(self, node: str) -> int:
        """Ask a node for its state as it is now; `StateTold` follows with the ticket returned."""
        return self._ask(node, "state")

    def _ask(self, node: str, kind: str, *content: object) -> int:
        ticket = next(self._tickets)
        self._unanswered[ticket] = node
        self._tell(node, kind, ticket, *content)
        return ticket

    def inspect(self, nodes: Iterable[str]) -> None:
        """Ask nodes how far they are with the open snapshots; what they answer is noted with these."""
        for node in nodes:
            # Not again before it has answered: for one that hangs, questions would pile up.
            if node not in self._inspected:
                self._inspected.add(node)
                self._tell(node, "inspect")

    def lose_all(self) -> None:
        """Tell of each question that its answer will not come, since a node has died."""
        for ticket, node in self._unanswered.items():
            self._happened(CommandLost(ticket, node))
        self._unanswered.clear()

    def _on_replied(self, node: str, ticket: int, value: bytes) -> None:
        del self._unanswered[ticket]
        self._snapshots.settle()
        self._happened(Replied(ticket, node, self._readers[node].decode(value)))

    def _on_told(
        self, node: str, ticket: int, state: bytes | None, what: str, where: str | None, hint: str | None
    ) -> None:
        del self._unanswered[ticket]
        error = None if state is not None else SnapshotError(what, where=where, hint=hint)
        self._happened(StateTold(ticket, node, state, error))

    def _on_inspected(self, node: str, about: Iterable[tuple[ToldId, float, tuple[str, ...]]]) -> None:
        self._inspected.discard(node)
        self._snapshots.inspected(node, about)
