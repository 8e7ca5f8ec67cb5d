"""What nodes put out, held back until nothing can take it back.

This module owns when a record is released. It must not know how records are shown or written.

With a store, a record is released when a recovery point that covers it is committed: until then a recovery would have
its node put it out again, or something else in its place. Such a recovery point brings the records along that it
releases, and says how long the file of outputs was before: whoever goes on from it cuts the file there and writes them
once more. So each record stands in that file exactly once, whatever is killed.

Without a store, or if somebody cannot wait, records are released at once; then one may come again after a recovery, and
its node and number tell it.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping

from mpsnap.core.codec import Codec
from mpsnap.core.events import Emitted
from mpsnap.store.contents import Output


class Sink(ABC):
    """Be where released records go for good."""

    @abstractmethod
    def write(self, records: Iterable[Emitted]) -> None:
        """Append records.

        Raises:
            OutputError: They could not be written.
        """

    @abstractmethod
    def sync(self) -> int:
        """Have all that was written on the disk, and return how many bytes that is.

        Raises:
            OutputError: It could not be brought there.
        """


class Outputs:
    """Hold the records of all nodes until they are released.

    Args:
        codecs: How to read each node's values.
        happened: Is told each released record.
        sink: Where released records go besides, None for nowhere.
        holds: Whether records wait for `release`.
    """

    def __init__(
        self,
        codecs: Mapping[str, Codec],
        happened: Callable[[Emitted], None],
        sink: Sink | None = None,
        *,
        holds: bool = False,
    ) -> None:
        self._codecs = codecs
        self._happened = happened
        self._sink = sink
        self._holds = holds
        #: In the order in which they came.
        self._pending: list[Output] = []

    def put(self, node: str, n: int, record: bytes) -> None:
        """Take a record in, and release it if nothing is to be waited for."""
        output = Output(node, n, record)
        if self._holds:
            self._pending.append(output)
        else:
            self.release([output])

    def covered(self, emitted: Mapping[str, int]) -> list[Output]:
        """Return the records that wait and were put out before the cut, at which each node had put out so many."""
        return [output for output in self._pending if output.n < emitted[output.node]]

    def release(self, outputs: Iterable[Output]) -> None:
        """Let records go; raises as `Sink.write`."""
        released = [Emitted(node, n, self._codecs[node].decode(record)) for node, n, record in outputs]
        if self._sink is not None:
            self._sink.write(released)
        for event in released:
            self._happened(event)
        gone = {(event.node, event.n) for event in released}
        self._pending = [output for output in self._pending if (output.node, output.n) not in gone]

    def sync(self) -> int | None:
        """Return how long the file of outputs is on the disk, None if there is none; raises as `Sink.sync`."""
        return None if self._sink is None else self._sink.sync()

    def take_back(self) -> None:
        """Forget what waits: the nodes that put it out are gone, and others will put it out again."""
        self._pending.clear()
