"""The contract between mpsnap and the people who write nodes: `Node`, which they subclass, and `Context`.

This module owns the names and meanings of the hooks. It must not know which driver runs a node: the same class runs
unchanged in every one.

Rules a maintainer keeps: a hook's meaning is fixed, since users' code relies on it; `Context` offers only what every
driver can do; everything a node keeps between hooks is either in its state (so that a snapshot holds it) or named in
`transient`.
"""

from __future__ import annotations

import inspect
import sys
from typing import TYPE_CHECKING, Any, ClassVar

from mpsnap.core.kinds import NATIVE
from mpsnap.core.rng import CounterRandom
from mpsnap.core.rows import is_fixed

if TYPE_CHECKING:
    from mpsnap.core.nodecore import NodeCore
    from mpsnap.core.outgoing import Outgoing

#: What a node can be doing, as errors and the status say it. The order is part of the runtime's shared memory.
PHASES = (
    "starting",
    "importing",
    "setup",
    "on_start",
    "capture",
    "waiting",
    "on_message",
    "on_idle",
    "on_timer",
    "on_command",
    "on_stop",
    "stopped",
    "restore",
)


class Node:
    """Subclass this to write a node; every hook is optional.

    A node is constructed without arguments. Its state is its attributes: `capture` returns them, `restore` puts them
    back. Between two hooks a snapshot may be taken, never inside one, so a hook may leave its attributes half-changed
    while it runs.

    Example:
        >>> class Counter(Node):
        ...     def setup(self, ctx, start=0):
        ...         self.count = start
        ...
        ...     def on_message(self, ctx, sender, payload):
        ...         self.count += payload
    """

    #: Attributes that are not part of the state: open files, caches. `on_start` makes them anew.
    transient: ClassVar[tuple[str, ...]] = ()
    #: Enum, dataclass and NamedTuple classes from other modules that states and payloads may hold.
    types: ClassVar[tuple[type, ...]] = ()
    #: Keep values that are not plain data as pickles. Such a value is shown by its size and hash alone.
    pickle: ClassVar[bool] = False
    #: False for a program that ends by itself: it runs until a cut proves that nothing can happen any more.
    endless: ClassVar[bool] = True

    def setup(self, ctx: Context, *args: Any, **params: Any) -> None:
        """Begin afresh with the parameters of the run; may send and emit. Not called after a recovery."""

    def on_start(self, ctx: Context) -> None:
        """Open files and the like, at every start and restart; `send`, `emit` and `snapshot` raise here."""

    def on_message(self, ctx: Context, sender: str, payload: Any) -> None:
        """Handle one message from the node `sender`."""

    def on_command(self, ctx: Context, command: Any) -> Any:
        """Handle a command from outside, plain data; what is returned, plain data too, is the reply."""

    def on_idle(self, ctx: Context) -> Any:
        """Use the time while there is nothing to take.

        Return True to be called again at once. Anything else means: not until the next message, timer or command.
        """

    def on_stop(self, ctx: Context) -> None:
        """Take leave in an orderly end; may emit."""

    def capture(self) -> Any:
        """Return the state: by default a dict of the attributes without the `transient` ones."""
        return {name: value for name, value in vars(self).items() if name not in self.transient}

    def restore(self, state: Any) -> None:
        """Replace the state by one that `capture` returned."""
        vars(self).clear()
        vars(self).update(state)


def looked_up_by_place(node: Node) -> Node:
    """Return a node whose attributes stay as quick as any, though a capture looks at them all.

    Until Python 3.12, `vars` makes of an object's attributes a dict that shares its keys with others of the class, in
    which the interpreter no longer remembers where an attribute stands: each then takes three times as long, in hooks
    that run a million times a second. In a dict of the object's own it does remember. (3.10 remembers nothing, and 3.13
    also in the shared one.)
    """
    held = vars(node)
    # One that is kept elsewhere too (three: the node, the name here, the call) has to stay the node's.
    unshared = type(held) is dict and sys.getrefcount(held) == 3
    if (3, 11) <= sys.version_info < (3, 13) and unshared:
        # Not by way of the node's `__setattr__`, which is the user's.
        object.__setattr__(node, "__dict__", {**held})
    return node


class Context:
    """What a node may do from inside a hook. Drivers make it; users get it as `ctx`."""

    # The interpreter finds what is in a slot, and a method of an object that has no dict, in a tenth of the time.
    __slots__ = ("_core", "_outgoing", "inbound", "name", "outbound", "random")

    _core: NodeCore
    _outgoing: Outgoing
    #: This node's name.
    name: str
    #: Names of the nodes this one can send to, sorted.
    outbound: tuple[str, ...]
    #: Names of the nodes that can send to this one, sorted.
    inbound: tuple[str, ...]
    #: Seeded random numbers, part of the snapshot: a restored node draws what it would have drawn.
    random: CounterRandom

    def __init__(self, core: NodeCore, outgoing: Outgoing, random: CounterRandom) -> None:
        keep = super().__setattr__
        keep("_core", core)
        keep("_outgoing", outgoing)
        keep("name", core.name)
        keep("inbound", core.protocol.inbound)
        keep("outbound", core.protocol.outbound)
        keep("random", random)

    def __setattr__(self, name: str, value: object) -> None:
        # It would be in no snapshot.
        raise AttributeError(f"a context keeps nothing: {name} belongs to the node's own attributes")

    def send(self, dst: str, payload: Any) -> None:
        """Send `payload` to the node `dst`; it is fixed now, so changing it afterwards does no harm. Never blocks.

        Raises:
            ProtocolError: There is no channel to `dst`, or this hook may not send.
            CodecError: The payload is not plain data; names the place in it.
        """
        outgoing = self._outgoing
        try:
            outbox = outgoing.outboxes[dst]
        except KeyError:
            raise self._core.refusal(dst) from None
        # `freeze` written out, so that what cannot change costs no further call. Anything else is fixed before it is
        # counted: a payload that is refused leaves no trace.
        kind = type(payload)
        if kind is tuple:
            if len(payload) == 2:
                # Without a loop, and without a look into a set for the commonest: half the time.
                a, b = payload
                if (type(a) is not int and type(a) not in NATIVE) or (type(b) is not int and type(b) not in NATIVE):
                    payload = payload if is_fixed(payload) else outgoing.encoded(dst, payload)
            else:
                for item in payload:
                    if type(item) not in NATIVE:
                        payload = payload if is_fixed(payload) else outgoing.encoded(dst, payload)
                        break
        elif kind is not int and kind is not bytes and kind not in NATIVE:
            payload = outgoing.layers[kind](payload) or outgoing.encoded(dst, payload)
        waiting = outbox.payloads
        waiting.append(payload)
        if len(waiting) >= outbox.limit:
            outgoing.driver.offer(outbox)

    def broadcast(self, payload: Any) -> None:
        """Send `payload` to every outbound neighbour."""
        for dst in self.outbound:
            self.send(dst, payload)

    def snapshot(self) -> str:
        """Begin a global snapshot from this node and return its id at once; it records when this hook returns.

        Raises:
            SnapshotError: Markers from here cannot reach every node; names those left out.
            ProtocolError: This hook may not begin one.
        """
        return str(self._core.wish_snapshot())

    def after(self, seconds: float, method: str, *args: Any) -> None:
        """Call `self.method(ctx, *args)` once, `seconds` from now. Timers are part of the snapshot.

        Raises:
            ValueError: `seconds` is negative or not a number, or the node has no such method.
            CodecError: An argument is not plain data.
        """
        self._core.set_timer(seconds, None, method, args)

    def every(self, seconds: float, method: str, *args: Any) -> None:
        """Call `self.method(ctx, *args)` every `seconds`, the first time after that long; otherwise as `after`."""
        self._core.set_timer(seconds, seconds, method, args)

    def emit(self, record: Any) -> None:
        """Put a record out of the cluster, plain data; records of a node are numbered 0, 1, 2...

        Raises:
            CodecError: The record is not plain data.
            ProtocolError: This hook may not emit.
        """
        self._core.emit(record)

    def finish(self) -> None:
        """Declare this node finished: no more idle calls and timers; messages and markers are still handled."""
        self._core.finish()

    def log(self, text: str) -> None:
        """Say something to whoever watches the run; one line."""
        self._core.log(text)

    def __repr__(self) -> str:
        return f"<Context of {self.name}>"


def parameters(node_class: type[Node]) -> tuple[frozenset[str], frozenset[str], bool]:
    """Return which parameters `node_class.setup` takes: all names, those it requires, and whether any other goes.

    Checked before anything starts, so that a mistyped parameter is bad input and not a node that dies.
    """
    if node_class.setup is Node.setup:
        return frozenset(), frozenset(), False
    named = list(inspect.signature(node_class.setup).parameters.values())[2:]
    keyword = [p for p in named if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)]
    return (
        frozenset(p.name for p in keyword),
        frozenset(p.name for p in keyword if p.default is p.empty),
        any(p.kind is p.VAR_KEYWORD for p in named),
    )
