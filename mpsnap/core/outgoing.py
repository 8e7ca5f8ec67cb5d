"""What hooks send: which outboxes a hook may fill now, and what a payload becomes when its user lets go of it.

This module owns the fixing of payloads that are not fixed already, and the words for a send that cannot be. It must not
know hooks, or what empties an outbox.

`Context.send` is the shortest way to an outbox and looks in here. It runs once per message, in a time in which a call
of a method is felt: so what it looks at are attributes in slots, and whether the hook may send is not asked at all.
While it may not, there is no outbox to be found.
"""

from __future__ import annotations

from collections.abc import Mapping

from mpsnap.core.codec import Codec
from mpsnap.core.driver import Driver
from mpsnap.core.errors import CodecError, ProtocolError
from mpsnap.core.protocol import Outbox
from mpsnap.core.rows import ENCODED

_NONE: Mapping[str, Outbox] = {}


class Outgoing:
    """Hold where one node's messages go.

    Args:
        name: The node's name.
        outboxes: What the node sends, by destination.
        codec: Of the node's class.
        driver: Is offered an outbox that has reached its limit.
    """

    __slots__ = ("_all", "_codec", "_name", "driver", "layers", "outboxes")

    def __init__(self, name: str, outboxes: Mapping[str, Outbox], codec: Codec, driver: Driver) -> None:
        self._name = name
        self._all = outboxes
        self._codec = codec
        self.driver = driver
        #: What lays out the values of a type, see `Rows`.
        self.layers = codec.rows.layers
        #: Where a message can be put now: all outboxes while a hook runs that may send, none otherwise.
        self.outboxes = _NONE

    def allow(self, allowed: bool) -> None:
        """Let the hook that begins now send, or not."""
        self.outboxes = self._all if allowed else _NONE

    def encoded(self, dst: str, payload: object) -> object:
        """Return a payload as the codec's bytes.

        Raises:
            CodecError: It is not plain data; names the place in it.
        """
        try:
            return [ENCODED, self._codec.encode(payload, "payload")]
        except CodecError as error:
            raise CodecError(error.what, where=f"{self._name}->{dst}: {error.where}", hint=error.hint) from None

    def no_channel(self, dst: str) -> ProtocolError:
        """Return the error for a message to whom nothing leads from here."""
        known = ", ".join(self._all) or "nobody"
        return ProtocolError(f"{self._name} has no channel to {dst!r}; it can send to {known}", where=self._name)
