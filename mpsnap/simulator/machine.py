"""A cluster without time: from each state, every step that could come next.

This module owns what a step is and what it does. It must not choose between steps: the explorer tries all of them, a
schedule names them one by one.

A state is a value: what each node is, and what stands on each channel. The steps from it:

    take SRC->DST    DST's code gets the oldest message on the channel
    mark SRC->DST    DST sees the first marker on the channel, also when messages stand in front of it: they join the
                     inbox and wait (a marker acts when it is seen, not when the messages before it are handled)
    plan NODE        the next command or initiation that the plan has for this node
    idle NODE        `on_idle`
    timer NODE       the timer that is due next; without time, any may ring at any moment, in the order set
    die NODE         the node dies: all nodes end, and a new incarnation of them goes on from the last complete cut

Nodes are the user's own, run by the real `NodeCore` and the real protocol. As a node does the same whenever it is the
same and the same happens to it, each such pair is run once and then looked up: a node is brought into a state by
repeating its own history from the start, so that nothing of the user's is ever copied.

**A recovery** depends on the cut it goes back to, and on nothing else that was: every node is restored from its part,
its inbox holds what was in flight to it, the channels are empty, and so all messages and markers of before are gone.
The cut is the last one that was complete; before any is, the *initial cut*, of all nodes after their setups with the
messages they sent there. What no part of a snapshot holds goes back too: how far each node had come in its plan, and
how many idle calls and timers it had had. So a command behind the cut is carried out again, as by a supervisor that
knows which of them a cut holds. A snapshot of the plan that nobody had begun at the cut is begun, under an id of the
new incarnation; one that somebody had begun is begun by nobody any more: open snapshots are abandoned.

Rules a maintainer keeps: everything that decides what a node does next is in its fingerprint; what two nodes do
commutes unless one sends to the other, so only the order of the steps of one node, and what channels hold, is state;
while a node may still die, the last complete cut is too.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple, TypeAlias

from mpsnap.core.blame import blame, node_error
from mpsnap.core.codec import Codec
from mpsnap.core.errors import MpsnapError, SnapshotError
from mpsnap.core.program import Program, codec_of
from mpsnap.core.protocol import ChannelState, LocalSnapshot, Marker, SnapshotId
from mpsnap.core.topology import Topology
from mpsnap.simulator.actor import EXACT, Actor, Command, Initiation, Note, Place, Plan, basic_of, error_of

#: The n of the id of the initial cut; those of snapshots count from 1.
INITIAL = 0
#: How many live nodes are kept, so that following one path repeats no histories.
_LIVE = 256


class NotRepeatable(SnapshotError):
    """Report a node that does not do the same when the same happens to it: nothing can be said of its schedules."""


class Step(NamedTuple):
    """One step: a kind, of those in the module's table, and the channel (src, dst) or the node ("", node)."""

    kind: str
    src: str
    node: str

    def __str__(self) -> str:
        return f"{self.kind} {self.src}->{self.node}" if self.src else f"{self.kind} {self.node}"

    @classmethod
    def parse(cls, text: str) -> Step:
        """Read the text form back; ValueError if it is none."""
        kind, _, place = text.partition(" ")
        src, arrow, node = place.rpartition("->")
        if (
            kind not in ("take", "mark", "plan", "idle", "timer", "die")
            or not node
            or bool(arrow) != (kind in ("take", "mark"))
        ):
            raise ValueError(f"not a step: {text!r}")
        return cls(kind, src, node)


class State(NamedTuple):
    """What the cluster is: by rank of the node its `Local`, by rank of the channel the items on it, oldest first.

    `incarnation` counts the recoveries; `cut` is the rank of the last complete cut, 0 once no node may die any more.
    """

    locals: tuple[int, ...]
    channels: tuple[tuple[int, ...], ...]
    incarnation: int = 0
    cut: int = 0


#: What the program itself is: by rank, nodes as bytes, and on the channels numbers and payloads.
Plain: TypeAlias = tuple[tuple[bytes, ...], tuple[tuple[tuple[int, bytes], ...], ...]]


class Part(NamedTuple):
    """What one node of the next incarnation goes on from: its local snapshot, by rank, and its place."""

    report: int
    place: Place


class Complete(NamedTuple):
    """A complete cut, by rank of the node."""

    snapshot_id: SnapshotId
    parts: tuple[Part, ...]


class Outcome(NamedTuple):
    """What a step did to its node: the `Local` it becomes, what it sent (channel, item), what happened, and the error.

    With an error, `local` is that of before. If a node has died, `others` has what happened then at all nodes, and at
    the supervisor, which is None.
    """

    local: int
    sent: tuple[tuple[int, int], ...]
    notes: tuple[Note, ...]
    error: MpsnapError | None
    others: tuple[tuple[str | None, tuple[Note, ...]], ...] = ()


class _Recovered(NamedTuple):
    """The nodes of a new incarnation, what happened when they began, and the error if one could not."""

    locals: tuple[int, ...]
    notes: tuple[tuple[str, tuple[Note, ...]], ...]
    error: MpsnapError | None


class Local:
    """One state of one node. Equal ones are one object, known by `rank`."""

    __slots__ = (
        *("basic", "cause", "exact", "idle", "incarnation", "node", "open", "origin", "parent"),
        *("places", "planned", "rank", "reports", "sources", "timer", "waiting"),
    )

    def __init__(
        self,
        node: str,
        rank: int,
        parent: Local | None,
        cause: Any,
        actor: Actor,
        exact: bytes,
        origin: Part | None = None,
    ) -> None:
        self.node = node
        self.rank = rank
        #: The state before, and what happened in it; None for the first.
        self.parent = parent
        self.cause = cause
        #: The incarnation; and of its first state, what it goes on from.
        self.incarnation = actor.incarnation
        self.origin = origin
        #: The fingerprint; and of it the user's state, timers, random numbers and count of records: what snapshots are
        #: about.
        self.exact = exact
        self.basic = actor.basic()
        #: What the plan has next for this node, and how many idle calls and timers have run.
        self.planned = actor.planned
        self.sources = actor.sources
        self.idle = actor.core.idle_wanted
        self.timer = actor.core.next_timer is not None
        #: Sources of messages that were seen and wait.
        protocol = actor.core.protocol
        self.waiting = frozenset(src for src in protocol.inbound if protocol.waiting(src))
        #: By snapshot id, the ranks of the local snapshots reported so far; and the ids of those still recording.
        self.reports = dict(actor.reports)
        self.places = dict(actor.places)
        self.open = tuple(protocol.open_channels())


class Machine:
    """All states of a cluster and the steps between them.

    Args:
        topology: Nodes and channels.
        programs: What each node runs.
        plan: Commands and initiations, by node.
        seed: Of the nodes' random numbers.
        sources: How many idle calls and timers a node gets at most; without a bound, many programs have no end.
        crashes: How many times a node may die.
    """

    def __init__(
        self,
        topology: Topology,
        programs: Mapping[str, Program],
        plan: Plan,
        *,
        seed: int = 0,
        sources: int | None = None,
        crashes: int = 0,
    ) -> None:
        self.topology = topology
        self.programs = programs
        self.plan = plan
        self.seed = seed
        self.crashes = crashes
        self._sources = sources
        self.names = tuple(sorted(topology.nodes))
        self.channels = tuple((channel.src, channel.dst) for channel in topology.channels)
        self._rank = {name: rank for rank, name in enumerate(self.names)}
        self._channel = {channel: rank for rank, channel in enumerate(self.channels)}
        classes = {program.reference: program.load() for program in programs.values()}
        by_class = {reference: codec_of(each, classes.values()) for reference, each in classes.items()}
        self.codecs: dict[str, Codec] = {name: by_class[programs[name].reference] for name in self.names}
        by_reader = {reference: codec.reader() for reference, codec in by_class.items()}
        #: For whoever looks at snapshots: as in every driver, pickles of nodes stay pickles there.
        self.readers: dict[str, Codec] = {name: by_reader[programs[name].reference] for name in self.names}
        self._unreachable: dict[str, tuple[str, ...]] = {}
        #: Items and local states, each once; and what was run.
        self._items: list[tuple[int, object]] = []
        self._item_of: dict[bytes, int] = {}
        self.reports: list[LocalSnapshot] = []
        self._report_of: dict[bytes, int] = {}
        self.locals: list[Local] = []
        self._local_of: dict[tuple[str, bytes], int] = {}
        self._outcomes: dict[tuple[int, str, str, tuple[int, ...]], Outcome | None] = {}
        self._live: OrderedDict[int, Actor] = OrderedDict()
        #: Steps that a node can take without an item, by its local state.
        self._own_steps: dict[int, tuple[Step, ...]] = {}
        #: The numbers of the snapshots: those of the plan in each incarnation, then others as they are heard of.
        begun = [item for items in plan.values() for item in items if isinstance(item, Initiation)]
        planned = max((item.number for item in begun), default=-1) + 1
        self.numbers = {
            item.snapshot_id._replace(incarnation=incarnation): item.number + incarnation * planned
            for incarnation in range(crashes + 1)
            for item in begun
        }
        #: Complete cuts, each once, the initial one first; and the nodes that go on from one.
        self.complete: list[Complete] = []
        self._complete_of: dict[Complete, int] = {}
        self._recoveries: dict[tuple[int, int], _Recovered] = {}
        self._silent: tuple[tuple[int, ...], ...] = ((),) * len(self.channels)
        #: What happened in the setup of each node.
        self.beginning: list[tuple[str, tuple[Note, ...]]] = []
        self.start = self._start()

    def unreachable(self, node: str) -> tuple[str, ...]:
        """Return the nodes that markers from this one cannot reach."""
        if node not in self._unreachable:
            self._unreachable[node] = tuple(self.topology.unreachable_from(node))
        return self._unreachable[node]

    def rank(self, node: str) -> int:
        """Return the place of a node among all, by name."""
        return self._rank[node]

    # --------------------------------------------------------------------- steps

    def enabled(self, state: State) -> list[Step]:
        """Return every step that can be taken, in a fixed order; a command may still be refused when its turn comes.

        Deaths apart: nothing in a program leads to them, so a state without other steps is an end.
        """
        steps: list[Step] = []
        for (src, dst), items in zip(self.channels, state.channels, strict=True):
            waits = src in self.locals[state.locals[self._rank[dst]]].waiting
            if waits or (items and self._items[items[0]][0]):
                steps.append(Step("take", src, dst))
            if any(not self._items[item][0] for item in items):
                steps.append(Step("mark", src, dst))
        for local in state.locals:
            steps += self._own(local)
        return steps

    def deaths(self, state: State) -> tuple[Step, ...]:
        """Return the death that may come now, if one may; which node dies makes no difference, for all end with it."""
        return (Step("die", "", self.names[0]),) if state.incarnation < self.crashes else ()

    def _own(self, rank: int) -> tuple[Step, ...]:
        steps = self._own_steps.get(rank)
        if steps is None:
            local = self.locals[rank]
            kinds = []
            if local.planned is not None:
                kinds.append("plan")
            if self._sources is None or local.sources < self._sources:
                # As in every driver: no idle call while a message waits to be taken.
                kinds += ["idle"] * (local.idle and not local.waiting) + ["timer"] * local.timer
            steps = self._own_steps[rank] = tuple(Step(kind, "", local.node) for kind in kinds)
        return steps

    def after(self, state: State, step: Step) -> tuple[State, Outcome] | None:
        """Return the state after a step and what happened in it; None if the step cannot be taken."""
        rank = self._rank.get(step.node)
        moved: tuple[int, ...] = ()
        channels = state.channels
        if rank is None or (step.src and (step.src, step.node) not in self._channel):
            return None
        if step.kind == "die":
            return self._after_death(state, rank)
        if step.src:
            at = self._channel[step.src, step.node]
            count = self._moved(state, step, channels[at])
            if count is None:
                return None
            moved, rest = channels[at][:count], channels[at][count:]
            channels = (*channels[:at], rest, *channels[at + 1 :])
        elif step not in self._own(state.locals[rank]):
            return None
        outcome = self._outcome(state.locals[rank], step, moved)
        if outcome is None:
            return None
        locals_ = (*state.locals[:rank], outcome.local, *state.locals[rank + 1 :])
        cut = self._last_cut(state, locals_, rank) if state.incarnation < self.crashes else 0
        return State(locals_, self._with_sent(channels, outcome.sent), state.incarnation, cut), outcome

    def told(self, state: State, step: Step) -> str:
        """Return in words what a step is, as far as its events do not say it."""
        local = self.locals[state.locals[self._rank[step.node]]]
        if step.kind == "plan":
            planned = local.planned
            assert planned is not None
            return f"carries out {planned.text}" if isinstance(planned, Command) else f"initiates {planned.snapshot_id}"
        if step.kind == "mark":
            items = state.channels[self._channel[step.src, step.node]]
            in_front = next(k for k, item in enumerate(items) if not self._items[item][0])
            return f", in front of {in_front} not yet taken" if in_front or step.src in local.waiting else ""
        return "dies, and all nodes end with it" if step.kind == "die" else "is idle"

    def only_closes(self, state: State, step: Step) -> bool:
        """Whether a step is the seeing of a marker, and of nothing else, whose snapshot its node has recorded already.

        Messages in front of it would be seen too, and while they wait there are no idle calls: that is no mere closing.
        """
        if step.kind != "mark":
            return False
        local = self.locals[state.locals[self._rank[step.node]]]
        number, marker = self._items[state.channels[self._channel[step.src, step.node]][0]]
        if number:
            return False
        assert isinstance(marker, Marker)
        return marker.snapshot_id in local.open or marker.snapshot_id in local.reports

    def _moved(self, state: State, step: Step, items: tuple[int, ...]) -> int | None:
        """Return how many items of its channel a step moves; None if it cannot be taken."""
        if step.kind == "take":
            if step.src in self.locals[state.locals[self._rank[step.node]]].waiting:
                return 0
            return 1 if items and self._items[items[0]][0] else None
        for k, item in enumerate(items):
            if not self._items[item][0]:
                return k + 1
        return None

    def _with_sent(
        self, channels: tuple[tuple[int, ...], ...], sent: Iterable[tuple[int, int]]
    ) -> tuple[tuple[int, ...], ...]:
        if not sent:
            return channels
        changed = list(channels)
        for at, item in sent:
            changed[at] = (*changed[at], item)
        return tuple(changed)

    # ------------------------------------------------------------------ recovery

    def _after_death(self, state: State, rank: int) -> tuple[State, Outcome] | None:
        if state.incarnation >= self.crashes:
            return None
        incarnation, node = state.incarnation + 1, self.names[rank]
        recovered = self._recovered(state.cut, incarnation)
        cut = str(self.complete[state.cut].snapshot_id)
        open_ids = {each for local in state.locals for each in self.locals[local].open}
        reported = {each for local in state.locals for each in self.locals[local].reports}
        lost = sorted(open_ids | {each for each in reported if not self._is_complete(each, state.locals)})
        death = {"what": f"{node} died", "where": node, "try": None}
        notes = [
            Note(
                "abandoned",
                {"number": self.numbers.setdefault(each, len(self.numbers)), "snapshot": str(each), "error": death},
            )
            for each in lost
        ]
        notes.append(Note("recovered", {"incarnation": incarnation, "snapshot": cut}))
        outcome = Outcome(
            state.locals[rank],
            (),
            (Note("died", {"error": death}),),
            recovered.error,
            ((None, tuple(notes)), *recovered.notes),
        )
        if recovered.error is not None:
            return state, outcome
        kept = state.cut if incarnation < self.crashes else 0
        return State(recovered.locals, self._silent, incarnation, kept), outcome

    def _recovered(self, cut: int, incarnation: int) -> _Recovered:
        """Return all nodes of a new incarnation that goes on from a cut."""
        key = cut, incarnation
        if key not in self._recoveries:
            self._recoveries[key] = self._recover(self._origins(cut), incarnation)
        return self._recoveries[key]

    def _recover(self, origins: Iterable[Part], incarnation: int) -> _Recovered:
        locals_: list[int] = []
        notes: list[tuple[str, tuple[Note, ...]]] = []
        for name, origin in zip(self.names, origins, strict=True):
            try:
                actor = self._new_actor(name, incarnation, origin)
            except MpsnapError as error:
                return _Recovered((), tuple(notes), error)
            notes.append((name, tuple(actor.notes)))
            locals_.append(self._local(name, None, None, actor, origin).rank)
        return _Recovered(tuple(locals_), tuple(notes), None)

    def _origins(self, cut: int) -> tuple[Part, ...]:
        """Return what each node goes on from: its part of a cut, and of its plan what nobody had begun there."""
        parts = self.complete[cut].parts
        begun = {
            planned.snapshot_id
            for name, part in zip(self.names, parts, strict=True)
            for at, planned in enumerate(self.plan.get(name, ()))
            if isinstance(planned, Initiation) and at not in part.place.todo
        }
        found = []
        for name, part in zip(self.names, parts, strict=True):
            plan = self.plan.get(name, ())
            left = [at for at in part.place.todo if getattr(plan[at], "snapshot_id", None) not in begun]
            found.append(part._replace(place=part.place._replace(todo=tuple(left))))
        return tuple(found)

    def _last_cut(self, state: State, locals_: tuple[int, ...], rank: int) -> int:
        """Return the rank of the last complete cut after a step of one node."""
        was, now = self.locals[state.locals[rank]], self.locals[locals_[rank]]
        last = state.cut
        if len(was.reports) != len(now.reports):
            for snapshot_id in now.reports:
                if snapshot_id not in was.reports and self._is_complete(snapshot_id, locals_):
                    each = [self.locals[local] for local in locals_]
                    parts = tuple(Part(local.reports[snapshot_id], local.places[snapshot_id]) for local in each)
                    last = self._keep_cut(Complete(snapshot_id, parts))
        return last

    def _is_complete(self, snapshot_id: SnapshotId, locals_: tuple[int, ...]) -> bool:
        return all(snapshot_id in self.locals[local].reports for local in locals_)

    def _keep_cut(self, cut: Complete) -> int:
        rank = self._complete_of.setdefault(cut, len(self.complete))
        if rank == len(self.complete):
            self.complete.append(cut)
        return rank

    def cut_of(self, state: State, snapshot_id: SnapshotId) -> dict[str, LocalSnapshot]:
        """Return a state as if every node recorded in it: what it is, and what stands on the channels to it."""
        found = {}
        for name, rank in zip(self.names, state.locals, strict=True):
            core = self._actor(self.locals[rank]).core
            captured, (protocol, *_) = core.fingerprint()  # type: ignore[misc]
            sent, received, inboxes = protocol[:3]  # type: ignore[has-type]
            channels = {}
            for src in core.protocol.inbound:
                items = state.channels[self._channel[src, name]]
                messages = [self._items[item][1] for item in items if self._items[item][0]]
                channels[src] = ChannelState(received[src] + 1, (*inboxes.get(src, ()), *messages))
            found[name] = LocalSnapshot(name, snapshot_id, captured, dict(sent), dict(received), channels)
        return found

    # --------------------------------------------------------- without snapshots

    def plain_after(self, state: State, step: Step) -> State | None:
        """Return the state after a step of the program itself, as if nobody ever took a snapshot; None if it cannot be.

        Initiations are passed over, and markers of a node that begins snapshots by itself are thrown away.
        """
        rank = self._rank[step.node]
        local = self.locals[state.locals[rank]]
        while step.kind == "plan" and isinstance(local.planned, Initiation):
            passed = self._outcome(local.rank, Step("pass", "", step.node), ())
            assert passed is not None
            state = state._replace(locals=(*state.locals[:rank], passed.local, *state.locals[rank + 1 :]))
            local = self.locals[passed.local]
        following = self.after(state, step)
        if following is None or following[1].error is not None:
            return None
        channels = tuple(tuple(item for item in items if self._items[item][0]) for items in following[0].channels)
        return following[0]._replace(channels=channels)

    def plain(self, state: State) -> Plain:
        """Return what the program itself is in a state: nodes, and all messages that are sent and not yet taken."""
        nodes = tuple(self.locals[rank].basic for rank in state.locals)
        return nodes, tuple(
            (*self._waiting(state, channel), *(self._plain_item(item) for item in items if self._items[item][0]))
            for channel, items in zip(self.channels, state.channels, strict=True)
        )

    def plain_cut(self, parts: Mapping[str, LocalSnapshot]) -> Plain:
        """Return what the program itself is in a recorded cut, in the form of `plain`."""
        nodes = tuple(basic_of(parts[name].captured) for name in self.names)
        channels = []
        for src, dst in self.channels:
            first, payloads = parts[dst].channels[src]
            channels.append(tuple((first + k, EXACT.encode(payload)) for k, payload in enumerate(payloads)))
        return nodes, tuple(channels)

    def _plain_item(self, item: int) -> tuple[int, bytes]:
        number, payload = self._items[item]
        return number, EXACT.encode(payload)

    def _waiting(self, state: State, channel: tuple[str, str]) -> list[tuple[int, bytes]]:
        src, dst = channel
        local = self.locals[state.locals[self._rank[dst]]]
        if src not in local.waiting:
            return []
        protocol = self._actor(local).core.protocol
        inbox: Any = protocol.fingerprint()[2]
        first = protocol.received(src) + 1
        return [(first + k, EXACT.encode(payload)) for k, payload in enumerate(inbox[src])]

    # ------------------------------------------------------------- running a node

    def _start(self) -> State:
        locals_, sent = [], []
        for name in self.names:
            actor = self._new_actor(name)
            self.beginning.append((name, tuple(actor.notes)))
            sent += self._sent(name, actor)
            locals_.append(self._local(name, None, None, actor).rank)
        start = State(tuple(locals_), self._with_sent(self._silent, sent))
        if self.crashes:
            places = [Place(tuple(range(len(self.plan.get(name, ())))), 0) for name in self.names]
            initial = SnapshotId(0, self.names[0], INITIAL)
            reports = [self.keep_report(part) for part in self.cut_of(start, initial).values()]
            self._keep_cut(Complete(initial, tuple(map(Part, reports, places))))
        return start

    def _new_actor(self, name: str, incarnation: int = 0, origin: Part | None = None) -> Actor:
        try:
            return Actor(
                name,
                self.programs[name],
                self.topology,
                self.plan.get(name, ()),
                incarnation=incarnation,
                place=None if origin is None else origin.place,
                restored=None if origin is None else self.reports[origin.report],
                keeps_places=incarnation < self.crashes,
                unreachable=self.unreachable(name),
                codec=self.codecs[name],
                seed=self.seed,
                keep_report=self.keep_report,
            )
        except (MpsnapError, KeyboardInterrupt):
            raise
        except BaseException as error:  # `sys.exit` raises what is no Exception
            phase = "setup" if origin is None else "restore"
            raise node_error(name, phase, blame(error), "raised") from error

    def _outcome(self, rank: int, step: Step, moved: tuple[int, ...]) -> Outcome | None:
        key = (rank, step.kind, step.src, moved)
        if key not in self._outcomes:
            self._outcomes[key] = self._run(self.locals[rank], step, moved)
        return self._outcomes[key]

    def _run(self, local: Local, step: Step, moved: tuple[int, ...]) -> Outcome | None:
        actor = self._actor(local)
        del self._live[local.rank]
        cause = (step.kind, step.src, tuple(self._items[item] for item in moved))
        try:
            if not self._act(actor, cause):
                return None
        except KeyboardInterrupt:
            raise
        except BaseException as raised:  # `sys.exit` raises what is no Exception
            return Outcome(local.rank, (), tuple(actor.notes), error_of(actor.core, raised))
        sent = tuple(self._sent(local.node, actor))
        return Outcome(self._local(local.node, local, cause, actor).rank, sent, tuple(actor.notes), None)

    @staticmethod
    def _act(actor: Actor, cause: tuple[str, str, Any]) -> bool:
        actor.notes, actor.sent_items = [], []
        if cause[0] == "pass":
            actor.todo = actor.todo[1:]
            return True
        return actor.act(*cause)

    def _actor(self, local: Local) -> Actor:
        """Return a live node in this state: one that is in it, or a new one that repeats its history."""
        actor = self._live.get(local.rank)
        if actor is not None:
            return actor
        causes = []
        ancestor: Local = local
        while ancestor.parent is not None:
            causes.append(ancestor.cause)
            ancestor = ancestor.parent
        try:
            actor = self._new_actor(local.node, ancestor.incarnation, ancestor.origin)
            for cause in reversed(causes):
                self._act(actor, cause)
            exact = actor.fingerprint()
        except KeyboardInterrupt:
            raise
        except BaseException as error:
            raise self._not_repeatable(local, f"now: {blame(error).what}") from error
        if exact != local.exact:
            raise self._not_repeatable(local, self._difference(local, exact))
        self._keep(local.rank, actor)
        return actor

    def check_repeatable(self, state: State) -> None:
        """Let every node go through its history once more.

        Raises:
            NotRepeatable: One is then in another state than this.
        """
        for rank in state.locals:
            self._live.pop(rank, None)
            self._actor(self.locals[rank])

    def _difference(self, local: Local, exact: bytes) -> str:
        was, now = (EXACT.decode(each) for each in (local.exact, exact))
        states = [self.readers[local.node].decode(each[0].state) for each in (was, now)]  # type: ignore[index]
        if states[0] == states[1]:
            return "its snapshots differ"
        first, second = (state if isinstance(state, dict) else {"state": state} for state in states)
        return "different: " + ", ".join(
            sorted(str(k) for k in first.keys() | second.keys() if first.get(k) != second.get(k))
        )

    def _not_repeatable(self, local: Local, what: str) -> NotRepeatable:
        return NotRepeatable(
            f"the same steps do not lead {local.node} to the same state again ({what})",
            where=local.node,
            hint="ctx.random and ctx.after for random numbers and clocks; state in attributes, not in modules",
        )

    def _keep(self, rank: int, actor: Actor) -> None:
        self._live[rank] = actor
        if len(self._live) > _LIVE:
            self._live.popitem(last=False)

    def _sent(self, name: str, actor: Actor) -> list[tuple[int, int]]:
        return [(self._channel[name, dst], self._item(number, payload)) for dst, number, payload in actor.sent_items]

    def keep_report(self, local: LocalSnapshot) -> int:
        """Return the rank of a local snapshot among all; equal ones have one."""
        # Plain data, in whichever way the channels are told.
        exact = EXACT.encode(local._replace(channels=dict(local.channels)))
        rank = self._report_of.setdefault(exact, len(self.reports))
        if rank == len(self.reports):
            # A copy: a protocol that goes on changing what it has reported must not change it here.
            copy = EXACT.decode(exact)
            assert isinstance(copy, LocalSnapshot)
            self.reports.append(copy)
        return rank

    def _item(self, number: int, payload: object) -> int:
        exact = EXACT.encode((number, tuple(payload) if isinstance(payload, Marker) else payload))
        if exact not in self._item_of:
            self._item_of[exact] = len(self._items)
            self._items.append((number, payload))
        return self._item_of[exact]

    def _local(self, name: str, parent: Local | None, cause: Any, actor: Actor, origin: Part | None = None) -> Local:
        exact = actor.fingerprint()
        rank = self._local_of.setdefault((name, exact), len(self.locals))
        if rank == len(self.locals):
            self.locals.append(Local(name, rank, parent, cause, actor, exact, origin))
        self._keep(rank, actor)
        return self.locals[rank]
