"""A few numbers that every process of a cluster can read at any time, even of one that hangs or is dead.

This module owns the layout of the shared memory. Each slot has exactly one writer, and a slot is one aligned 8-byte
word, so no lock is needed: a reader sees the old number or the new one. Numbers here are for flow control, status and
error texts; nothing about the consistency of a cut rests on them.
"""

from __future__ import annotations

import ctypes
import time
from collections.abc import Sequence
from multiprocessing.context import BaseContext
from typing import Any, NamedTuple

from mpsnap.core.node import PHASES
from mpsnap.core.topology import Channel, Topology

#: What stands in the slot of a node's phase.
PHASE_NUMBER = {phase: number for number, phase in enumerate(PHASES)}

#: Per node: phase, turn, busy.
_NODE_WORDS = 3


class NodeSlots(NamedTuple):
    """Say where a node writes its phase, when its turn has begun and how long hooks have run, both in nanoseconds."""

    phase: int
    turn: int
    busy: int


class Board:
    """Hold per node its phase, when its last turn began, how long hooks ran; per channel, messages sent and taken.

    Made by the supervisor from the one context of the cluster, and handed to every node at its start.
    """

    def __init__(self, context: BaseContext, topology: Topology) -> None:
        self._nodes = {node: k for k, node in enumerate(topology.nodes)}
        self._channels = {channel: k for k, channel in enumerate(topology.channels)}
        words = _NODE_WORDS * len(self._nodes) + 2 * len(self._channels)
        self._memory: Any = context.RawArray(ctypes.c_uint64, words)
        self._open()

    def _open(self) -> None:
        self._words = memoryview(self._memory).cast("B").cast("Q")
        self._sent = _NODE_WORDS * len(self._nodes)
        self._taken = self._sent + len(self._channels)

    def __getstate__(self) -> tuple[object, ...]:
        return (self._nodes, self._channels, self._memory)

    def __setstate__(self, state: Sequence[Any]) -> None:
        self._nodes, self._channels, self._memory = state
        self._open()

    def phase(self, node: str) -> str:
        """Return what the node does, or last did: a word of `PHASES`."""
        return PHASES[self._words[_NODE_WORDS * self._nodes[node]]]

    def turn_began(self, node: str) -> float:
        """Return when the node's last turn began, in seconds of the monotonic clock; 0 before the first."""
        return self._words[_NODE_WORDS * self._nodes[node] + 1] / 1e9

    def busy_seconds(self, node: str) -> float:
        """Return for how long the node's hooks have run, all in all, as of its last turn."""
        return self._words[_NODE_WORDS * self._nodes[node] + 2] / 1e9

    def doing(self, node: str) -> str:
        """Return in words what the node does, or last did, and for how long if its turns have begun."""
        phase, since = in_phase(self.phase(node)), self.turn_began(node)
        return f"{phase}, for {time.monotonic() - since:.1f} s" if since else phase

    def status(self, node: str, now: float) -> dict[str, Any]:
        """Return the same as plain data: `phase`, `turn_s` (None before the first turn) and `busy_s`."""
        began = self.turn_began(node)
        return {
            "phase": self.phase(node),
            "turn_s": now - began if began else None,
            "busy_s": self.busy_seconds(node),
        }

    def counts(self, channel: Channel) -> dict[str, int]:
        """Return how many messages of the channel were `sent`, and how many `taken` by its receiver's code."""
        k = self._channels[channel]
        # First this: never more are taken than were sent by then.
        taken = self._words[self._taken + k]
        return {"sent": self._words[self._sent + k], "taken": taken}

    def go_on(self, channel: Channel, sent: int, taken: int) -> None:
        """Begin with the counts of a restored channel, before any node is there: else its sender would find it full."""
        k = self._channels[channel]
        self._words[self._sent + k], self._words[self._taken + k] = sent, taken

    def totals(self) -> tuple[int, int]:
        """Return messages sent and taken over all channels."""
        # What was taken first: it is never more than what was sent by then.
        taken = sum(self._words[self._taken :])
        return sum(self._words[self._sent : self._taken]), taken

    def node_slots(self, node: str) -> NodeSlots:
        """Return the indices, in `words`, of what the process of `node` writes."""
        first = _NODE_WORDS * self._nodes[node]
        return NodeSlots(first, first + 1, first + 2)

    def sent_slot(self, channel: Channel) -> int:
        """Return the index, in `words`, of what the channel's sender writes."""
        return self._sent + self._channels[channel]

    def taken_slot(self, channel: Channel) -> int:
        """Return the index, in `words`, of what the channel's receiver writes."""
        return self._taken + self._channels[channel]

    @property
    def words(self) -> memoryview:
        """The memory itself, for the node's loop."""
        return self._words


def in_phase(phase: str) -> str:
    """Return where a node is while it is in this phase, in words.

    >>> in_phase("on_message"), in_phase("starting")
    ('in on_message', 'while starting')
    """
    return {"waiting": "waiting for messages", "starting": "while starting"}.get(phase, f"in {phase}")
