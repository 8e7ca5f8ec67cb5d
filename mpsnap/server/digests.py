"""What is told of a run's snapshots: a digest of each, the newest in full, and counts of all.

This module owns the history of snapshots as people see it. It must not know who looks, nor how it gets there.

A snapshot that takes a millisecond is followed by the next one: so events are taken note of as they come, which costs
next to nothing, and put into words only for whoever asks.
"""

from __future__ import annotations

import time
from bisect import bisect_left
from collections import OrderedDict
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from mpsnap.core.batch import PackedBatch
from mpsnap.core.errors import InputError, MpsnapError
from mpsnap.core.events import Event, Progress, SnapshotAbandoned, SnapshotCompleted, SnapshotInitiated
from mpsnap.core.part import pack
from mpsnap.core.protocol import Chained, LocalSnapshot, SnapshotId
from mpsnap.core.snapshot import Captured, GlobalSnapshot, StoredState
from mpsnap.runtime.staging import StagedFile
from mpsnap.views.document import error_document

#: Snapshots that are told of.
REMEMBERED = 200
#: Of a run without a store: snapshots that can be looked into, and how many bytes of states and messages they may hold.
KEPT = 20
KEPT_BYTES = 64 << 20
#: Upper bounds of the buckets in which durations (seconds) and sizes (bytes) are counted.
DURATIONS = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)
SIZES = tuple(4.0**k for k in range(4, 17))


class Histogram:
    """Count values in buckets, each with an upper bound."""

    def __init__(self, bounds: Sequence[float]) -> None:
        self._bounds = bounds
        self._counts = [0] * (len(bounds) + 1)
        self._sum = 0.0

    def add(self, value: float) -> None:
        """Count one."""
        self._counts[bisect_left(self._bounds, value)] += 1
        self._sum += value

    def document(self) -> dict[str, Any]:
        """Return how many values were at most each bound, how many there were, and their sum."""
        below, buckets = 0, []
        for bound, count in zip(self._bounds, self._counts, strict=False):
            below += count
            buckets.append([bound, below])
        return {"buckets": buckets, "count": sum(self._counts), "sum": self._sum}


class _Told:
    """Hold what is known of one snapshot."""

    def __init__(self, number: int | None, snapshot_id: SnapshotId, initiators: tuple[str, ...]) -> None:
        self.number = number
        self.id = snapshot_id
        self.initiators = initiators
        self.began = time.time()
        #: The same on a clock that nobody sets.
        self._started = time.monotonic()
        self.phase = "recording"
        self.duration: float | None = None
        self.in_flight: int | None = None
        self.bytes: int | None = None
        self.verified: bool | None = None
        self.recovery_point = False
        self.error: MpsnapError | None = None
        self.progress: Mapping[str, Progress] = {}
        #: What is told of it, once nothing of that changes any more.
        self.document: dict[str, Any] | None = None

    @property
    def seconds(self) -> float:
        """For how long it has been known."""
        return time.monotonic() - self._started


class Digests:
    """Take note of snapshots, and tell of them."""

    def __init__(self) -> None:
        self._told: OrderedDict[SnapshotId, _Told] = OrderedDict()
        self._kept: OrderedDict[int, GlobalSnapshot] = OrderedDict()
        self._kept_bytes = 0
        #: Of a run with a store, which keeps them better.
        self.keeps = True
        self._outcomes = {"completed": 0, "abandoned": 0}
        self._durations = Histogram(DURATIONS)
        self._sizes = Histogram(SIZES)

    def attend(self, event: Event) -> SnapshotId | None:
        """Take note of an event; return the snapshot of which there is something new."""
        if isinstance(event, SnapshotInitiated):
            self._told_of(event.snapshot_id, event.number, event.initiators)
            return event.snapshot_id
        if isinstance(event, SnapshotCompleted):
            self._on_completed(event)
            return event.snapshot.id
        if isinstance(event, SnapshotAbandoned):
            # One for which a store has no room does not begin; others can be open for so long that they are forgotten.
            told = self._told_of(event.snapshot_id, event.number, ())
            told.phase, told.error, told.progress = "abandoned", event.error, event.progress
            told.duration = told.seconds
            self._outcomes["abandoned"] += 1
            return event.snapshot_id
        return None

    def _on_completed(self, event: SnapshotCompleted) -> None:
        snapshot = event.snapshot
        # The cut that proves the end of a program completes without having been told to begin.
        told = self._told_of(snapshot.id, snapshot.number, snapshot.initiators)
        told.phase, told.duration, told.progress = "completed", snapshot.duration, event.progress
        told.in_flight, told.verified, told.bytes = snapshot.in_flight, snapshot.verified, size_of(snapshot)
        told.recovery_point = event.recovery_point
        self._outcomes["completed"] += 1
        self._durations.add(snapshot.duration or 0.0)
        self._sizes.add(told.bytes)
        if self.keeps:
            self._kept[snapshot.number] = snapshot
            self._kept_bytes += told.bytes + messages_of(snapshot)
            # The newest is always kept, or nobody could look at a snapshot of large states.
            while len(self._kept) > 1 and (len(self._kept) > KEPT or self._kept_bytes > KEPT_BYTES):
                _, oldest = self._kept.popitem(last=False)
                self._kept_bytes -= size_of(oldest) + messages_of(oldest)

    def _told_of(self, snapshot_id: SnapshotId, number: int | None, initiators: tuple[str, ...]) -> _Told:
        """Return what is known of a snapshot, from now on if nothing was; of so many, the oldest is forgotten."""
        told = self._told.get(snapshot_id)
        if told is None:
            told = self._told[snapshot_id] = _Told(number, snapshot_id, initiators)
            if len(self._told) > REMEMBERED:
                self._told.popitem(last=False)
        return told

    # ------------------------------------------------------------------ telling

    def digest(self, snapshot_id: SnapshotId) -> dict[str, Any] | None:
        """Return what is known of a snapshot, None if it was too long ago."""
        told = self._told.get(snapshot_id)
        return None if told is None else self._document(told, told.progress)

    def digest_of_number(self, number: int) -> dict[str, Any] | None:
        """Return what is known of the snapshot with this number, None if it was too long ago, or never taken."""
        return next(
            (self._document(each, each.progress) for each in self._told.values() if each.number == number), None
        )

    def documents(self, open_now: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
        """Return the digests of all that are remembered; `open_now` is what the supervisor says of open ones."""
        progress = {each["id"]: {node: Progress(*p) for node, p in each["progress"].items()} for each in open_now}
        return [self._document(told, progress.get(str(told.id), told.progress)) for told in self._told.values()]

    def counts(self) -> dict[str, Any]:
        """Return how many snapshots ended how, how long they took, and how large they were, since the run began."""
        return {
            "outcomes": dict(self._outcomes),
            "duration_s": self._durations.document(),
            "bytes": self._sizes.document(),
        }

    def _document(self, told: _Told, progress: Mapping[str, Progress]) -> dict[str, Any]:
        if told.phase == "recording":
            return self._made(told, progress)
        # Once: of a large cluster it takes longer to tell of two hundred snapshots than of all its channels.
        if told.document is None:
            told.document = self._made(told, progress)
        return {**told.document, "kept": told.number in self._kept}

    def _made(self, told: _Told, progress: Mapping[str, Progress]) -> dict[str, Any]:
        open_still = told.phase == "recording"
        awaited = [
            [src, node] for node, each in progress.items() if each.awaits and not each.closed for src in each.awaits
        ]
        return {
            "number": told.number,
            "id": str(told.id),
            "initiators": list(told.initiators),
            "phase": told.phase,
            "began": told.began,
            "duration_s": told.seconds if open_still else told.duration,
            "verified": told.verified,
            "in_flight": told.in_flight,
            "bytes": told.bytes,
            "kept": told.number in self._kept,
            "recovery_point": told.recovery_point,
            "error": error_document(told.error),
            "nodes": {
                node: {
                    "recorded_s": each.recorded,
                    "closed_s": each.closed,
                    "awaits": each.awaits and list(each.awaits),
                }
                for node, each in progress.items()
            },
            "waiting": {
                "nodes": []
                if told.phase == "completed"
                else [n for n, each in progress.items() if each.closed is None],
                "channels": [] if told.phase == "completed" else awaited,
            },
        }

    def content(self, number: int) -> dict[str, Any]:
        """Return what a snapshot holds: its parts, packed, with the files of large states.

        Raises:
            InputError: It is not held here.
        """
        snapshot = self._kept.get(number)
        if snapshot is None:
            raise InputError(
                f"snapshot {number} is not held any more, or was never taken",
                hint=f"one of {', '.join(map(str, self._kept))}" if self._kept else "a snapshot first",
            )
        return {
            "id": str(snapshot.id),
            "initiators": snapshot.initiators,
            "duration": snapshot.duration,
            "parts": [(node, *_packed(part)) for node, part in parts_of(snapshot).items()],
        }


def _packed(part: LocalSnapshot) -> tuple[bytes, tuple[Any, ...] | None]:
    assert isinstance(part.captured, Captured)
    state = part.captured.state
    if isinstance(state, StagedFile):
        return pack(part, apart=True), state.place
    return pack(part), None


def parts_of(snapshot: GlobalSnapshot) -> Mapping[str, LocalSnapshot]:
    """Return the local snapshots of a global one."""
    return snapshot._locals


def messages_of(snapshot: GlobalSnapshot) -> int:
    """Return how many bytes the messages in flight have, as they travel; none is looked at."""
    size = 0
    for part in parts_of(snapshot).values():
        for state in part.channels.values():
            batches = state.payloads.batches if isinstance(state.payloads, Chained) else (state.payloads,)
            size += sum(len(batch.data) for batch in batches if isinstance(batch, PackedBatch))
    return size


def size_of(snapshot: GlobalSnapshot) -> int:
    """Return how many bytes the states in a snapshot have; messages are left aside, as they are counted."""
    size = 0
    for part in parts_of(snapshot).values():
        assert isinstance(part.captured, Captured)
        state = part.captured.state
        size += state.size if isinstance(state, StoredState) else len(state) if isinstance(state, bytes) else 0
    return size
