"""What a node answers when it is asked how it stands.

This module owns what a node tells about itself besides its work: its state now, how far it is with each snapshot, and
when it recorded. It must not know who asks, and nothing of a cut rests on it.
"""

from __future__ import annotations

from collections.abc import Callable

from mpsnap.core.blame import blame
from mpsnap.core.errors import MpsnapError
from mpsnap.core.nodecore import NodeCore
from mpsnap.core.protocol import SnapshotId

#: Bytes of a state that is told at once; a larger one is for a snapshot, which stages it.
MOST_STATE_BYTES = 16 << 20


class Answers:
    """Answer for one node.

    Args:
        core: Of the node.
        tell: Gives the supervisor a note.
    """

    def __init__(self, core: NodeCore, tell: Callable[..., None]) -> None:
        self._core = core
        self._tell = tell
        #: When the node recorded, and when it had seen all markers, on the clock of all processes; by snapshot, as long
        #: as the part is not reported. The driver's to write.
        self.times: dict[SnapshotId, list[float]] = {}
        self.on_note: dict[object, Callable[..., None]] = {
            "state": self.state,
            "inspect": self.inspect,
            "finish": core.finish,
        }

    def forget(self, snapshot_id: SnapshotId) -> None:
        """Forget one that is given up; right for one never heard of."""
        self.times.pop(snapshot_id, None)

    def state(self, ticket: int) -> None:
        """Tell the local state as it is now."""
        try:
            data = self._core.look()
        except MpsnapError as error:
            self._tell("told", ticket, None, *blame(error)[:3])
            return
        if len(data) > MOST_STATE_BYTES:
            what = f"its state is {len(data)} bytes, and more than {MOST_STATE_BYTES} are not told at once"
            self._tell("told", ticket, None, what, self._core.name, "a snapshot")
            return
        self._tell("told", ticket, data, None, None, None)

    def inspect(self) -> None:
        """Tell when each open snapshot was recorded here, and which sources' markers it still awaits."""
        awaited = self._core.protocol.open_channels()
        # One that is closed and not reported waits for its state to be encoded, and for no marker.
        told = [(each, times[0], awaited.get(each, ())) for each, times in self.times.items()]
        self._tell("inspected", told)
