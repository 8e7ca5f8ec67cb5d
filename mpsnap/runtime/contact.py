"""Contact with the nodes of one incarnation: what is said to them and by them, and the news of their deaths.

This module owns when the supervisor reads and writes the pipes of its nodes. It must not know what a note means, nor
what follows a death.

Rules a maintainer keeps:

- A death is learned from the process, never from a queue; what the dead node still had to say is read first.
- Nothing is heard of nodes that are given up, though it was read already: they are fenced, and their word is void.
"""

from __future__ import annotations

import select
from collections.abc import Callable, Mapping
from functools import partial

from mpsnap.runtime.frames import Note
from mpsnap.runtime.incarnation import Endpoints
from mpsnap.runtime.pump import Pump


class Contact:
    """Read from nodes and write to them.

    Args:
        nodes: The supervisor's side of each.
        pump: Waits for them.
        on_note: What to do about each kind of note; called with the node and what the note holds.
        died: Is told which node is dead, when all that it had to say is heard.
    """

    def __init__(
        self,
        nodes: Mapping[str, Endpoints],
        pump: Pump,
        on_note: Mapping[object, Callable[..., None]],
        died: Callable[[str], None],
    ) -> None:
        self._nodes = nodes
        self._pump = pump
        self._on_note = on_note
        self._died = died
        self._broken_off = False

    def begin(self) -> None:
        """Listen to all nodes."""
        for node, endpoints in self._nodes.items():
            self._pump.watch(endpoints.results.fd, partial(self._read_results, node))
            # Results before deaths: the last words of a node that died explain its death.
            self._pump.watch(endpoints.pidfd, partial(self._read_last_words, node), last=True)

    def tell(self, node: str, *note: object) -> None:
        """Give a node a note; what its pipe does not take now follows when it does."""
        control = self._nodes[node].control
        try:
            control.post(note)
        except BrokenPipeError:
            return  # It is dead; its pidfd says so, and says more.
        if control.backlog:
            self._write(node)

    def break_off(self) -> None:
        """Neither listen nor write any more; to be called as long as the pipes are still there."""
        self._broken_off = True
        for endpoints in self._nodes.values():
            for fd in (endpoints.results.fd, endpoints.pidfd, endpoints.control.fd):
                if self._pump.is_watched(fd):
                    self._pump.unwatch(fd)

    def _read_results(self, node: str) -> None:
        self._hear(node, self._nodes[node].results.read())

    def _read_last_words(self, node: str) -> None:
        endpoints = self._nodes[node]
        self._hear(node, endpoints.results.drain())
        if not self._broken_off:
            self._pump.unwatch(endpoints.pidfd)
            self._pump.unwatch(endpoints.results.fd)
            self._died(node)

    def _hear(self, node: str, notes: list[Note]) -> None:
        for note in notes:
            if self._broken_off:
                return
            self._on_note[note[0]](node, *note[1:])

    def _write(self, node: str) -> None:
        control = self._nodes[node].control
        try:
            done = control.flush()
        except BrokenPipeError:
            done = True  # As above: the pidfd tells.
        watched = self._pump.is_watched(control.fd)
        if done and watched:
            self._pump.unwatch(control.fd)
        elif not done and not watched:
            self._pump.watch(control.fd, partial(self._write, node), select.EPOLLOUT)
