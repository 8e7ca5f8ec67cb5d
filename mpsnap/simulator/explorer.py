"""Every schedule of a small cluster, or many random ones of a larger: is each cut right in each of them?

This module owns which steps are tried, what must hold, and how a schedule that breaks it is made short. It must not
know what a step does: that is the machine's business.

*Always*, in every schedule:

- each snapshot completes, on every node, whatever is taken first;
- each cut is consistent (`GlobalSnapshot.verify`) and every invariant is true of it;
- each cut is *reachable*: the program's own steps, those before the cut first and the others after them, lead from the
  start through exactly the recorded state to exactly the state of when the snapshot was complete. (Paper: section 3,
  theorem 1. So the recorded state is one that might have been seen, though it may never have occurred.)
- no hook raises, and every command of the plan is carried out sooner or later.

And if nodes may die:

- a recovery restores its cut, exactly: each node's timers, random numbers and count of records, its state unless the
  program itself does something to it in `restore` or `on_start`, and the messages in flight;
- what follows is judged as above, *reachable* from what was restored. As the cut was reachable from the start, or from
  the recovery before, every state after a crash is one that a run without the crash could have been in: each message is
  received exactly once, as far as what is left of the run can tell;
- the end of a schedule with a crash is looked at as if it were a cut, whether a snapshot came that late or not.

*Sometimes*, in one schedule at least: a cut holds messages in flight, and if nodes may die a recovery goes back to such
a cut. An exploration in which none ever does would show nothing, so it fails.

The exhaustive search is breadth-first over states, so that what it finds is a shortest schedule; states that several
schedules lead to are looked at once, and schedules are counted without being walked. A random schedule that breaks
something is made short by leaving out steps for as long as it still does.
"""

from __future__ import annotations

from array import array
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from typing import NamedTuple

from mpsnap.core.errors import ConsistencyError, InvariantError, MpsnapError, SnapshotError
from mpsnap.core.node import Node
from mpsnap.core.protocol import LocalSnapshot, SnapshotId
from mpsnap.core.rng import CounterRandom
from mpsnap.core.snapshot import GlobalSnapshot, Invariant, check_invariants
from mpsnap.simulator.actor import EXACT, Command, Initiation, Note
from mpsnap.simulator.machine import INITIAL, Machine, NotRepeatable, State, Step


class Violation(NamedTuple):
    """Say what does not hold, and the steps from the start that show it."""

    error: MpsnapError
    steps: tuple[Step, ...]


class Findings(NamedTuple):
    """Say what an exploration has seen.

    `schedules` counts complete schedules, all of them or those that were drawn; `depth` is the longest; `cuts` counts
    the different cuts, `in_flight` those of them that hold messages; `exhausted` says that nothing is left to try.
    `recoveries` counts the different ones, `restoring` those that restore messages; None if no node may die.
    """

    states: int
    steps: int
    schedules: int
    depth: int
    cuts: int
    in_flight: int
    exhausted: bool
    violation: Violation | None
    #: Why nothing can be said, None if something can.
    trouble: MpsnapError | None = None
    recoveries: int | None = None
    restoring: int = 0

    @property
    def verdict(self) -> MpsnapError | None:
        """The error that the exploration ends with, None if all is well."""
        if self.trouble is not None:
            return self.trouble
        if self.violation is not None:
            return self.violation.error
        if not self.in_flight:
            return ConsistencyError(
                f"no cut of {self.cuts} held a message in flight, so this shows nothing",
                hint="more messages, or snapshots begun while they are on their way",
            )
        if self.recoveries is not None and not self.restoring:
            return ConsistencyError(
                f"no recovery of {self.recoveries} restored a message in flight, so this shows nothing of crashes",
                hint="more schedules, or snapshots begun while messages are on their way",
            )
        return None


class Followed(NamedTuple):
    """Say what one step of a schedule did: its events, the snapshots that it completed, and what does not hold.

    `others` has the events of a recovery, at the supervisor (None) and at each node.
    """

    step: Step
    notes: tuple[Note, ...]
    completed: tuple[GlobalSnapshot, ...]
    error: MpsnapError | None
    others: tuple[tuple[str | None, tuple[Note, ...]], ...] = ()


#: Hears how many states or schedules are done; true ends the exploration where it is.
Progress = Callable[[int], bool]
#: How many states pass between two calls of `Progress`.
_STATES_A_LOOK = 256


class Explorer:
    """Look for a schedule in which something does not hold.

    Args:
        machine: The cluster.
        invariants: Must be true of every cut.

    Example:
        >>> Explorer(machine, [conserved]).exhaust().violation is None   # doctest: +SKIP
        True
    """

    def __init__(self, machine: Machine, invariants: Iterable[Invariant] = ()) -> None:
        self._machine = machine
        self._invariants = tuple(invariants)
        #: By id and ranks of the local snapshots, the cuts seen so far.
        self.cuts: dict[tuple[SnapshotId, tuple[int, ...]], GlobalSnapshot] = {}
        #: Those on which an invariant is false.
        self._false: dict[tuple[SnapshotId, tuple[int, ...]], InvariantError] = {}
        self.in_flight = 0
        #: The beginnings of new incarnations seen so far, with what does not hold of each; and those with messages.
        self._recoveries: dict[State, MpsnapError | None] = {}
        self._restoring = 0

    def exhaust(self, most: int = 10_000_000, progress: Progress = lambda states: False) -> Findings:
        """Try every schedule; give up beyond `most` states."""
        search = _Search(self, self._machine)
        try:
            return search.run(most, progress)
        except NotRepeatable as trouble:
            return search.findings(False, None)._replace(trouble=trouble)

    def walk(self, schedules: int, seed: int, progress: Progress = lambda schedules: False) -> Findings:
        """Try random schedules: at each state, each possible step is equally likely."""
        states = steps = depth = done = 0
        for k in range(schedules):
            if progress(done):
                break
            try:
                taken, violation = self._walk_one(CounterRandom(f"explore:{seed}:{k}"), depth)
            except NotRepeatable as trouble:
                return self.findings(states, steps, done, depth, False, None)._replace(trouble=trouble)
            done, steps, depth = done + 1, steps + len(taken), max(depth, len(taken))
            states += len(taken) + 1
            if violation is not None:
                return self.findings(states, steps, done, depth, False, self.shrunk(violation))
        return self.findings(states, steps, done, depth, False, None)

    def _walk_one(self, draw: CounterRandom, longest: int) -> tuple[list[Step], Violation | None]:
        """Take random steps to the end; nodes die at any moments, up to where the longest schedule so far ended."""
        machine, state, taken = self._machine, self._machine.start, list[Step]()
        deaths = sorted((draw.randrange(longest) for _ in range(machine.crashes if longest else 0)), reverse=True)
        possible = machine.enabled(state)
        while possible:
            if deaths and len(taken) >= deaths[-1]:
                deaths.pop()
                possible = list(machine.deaths(state))
            following = self._take(state, possible.pop(draw.randrange(len(possible))), taken)
            if following is None:
                continue
            state, error = following
            if error is not None:
                return taken, Violation(error, tuple(taken))
            possible = machine.enabled(state)
        error = self.broken_at_end(state)
        return taken, None if error is None else Violation(error, tuple(taken))

    def _take(self, state: State, step: Step, taken: list[Step]) -> tuple[State, MpsnapError | None] | None:
        """Add a step to those taken, and return where it leads and what does not hold; None if it cannot be taken."""
        following = self._machine.after(state, step)
        if following is None:
            return None
        taken.append(step)
        after, outcome = following
        return after, outcome.error or self.broken_by(lambda: taken, state, after)

    def follow(self, steps: Iterable[Step]) -> Iterator[Followed]:
        """Take these steps one by one, and look at each as an exploration does.

        Raises:
            SnapshotError: One cannot be taken.
        """
        machine, state, taken = self._machine, self._machine.start, list[Step]()
        for step in steps:
            following = machine.after(state, step)
            if following is None:
                raise SnapshotError(
                    f"step {len(taken) + 1}, `{step}`, cannot be taken",
                    hint="the app, and the version of mpsnap, that the schedule was made with",
                )
            taken.append(step)
            after, outcome = following
            known = len(self.cuts)
            error = outcome.error or self.broken_by(lambda: taken, state, after)
            ended = not any(machine.after(after, possible) for possible in machine.enabled(after))
            if error is None and ended:
                error = self.broken_at_end(after)
            yield Followed(step, outcome.notes, tuple(self.cuts.values())[known:], error, outcome.others)
            state = after

    def findings(
        self, states: int, steps: int, schedules: int, depth: int, exhausted: bool, violation: Violation | None
    ) -> Findings:
        """Return what was found, with what this explorer has seen of cuts."""
        cuts, recoveries = len(self.cuts), len(self._recoveries) if self._machine.crashes else None
        found = Findings(states, steps, schedules, depth, cuts, self.in_flight, exhausted, violation)
        return found._replace(recoveries=recoveries, restoring=self._restoring)

    # ------------------------------------------------------------- what must hold

    def broken_by(self, path: Callable[[], Sequence[Step]], before: State, after: State) -> MpsnapError | None:
        """Return what does not hold of what the last step completed or recovered; `path` leads to `after`."""
        if before.incarnation != after.incarnation:
            return self._not_restored(before, after)
        for snapshot_id in self.completed(before, after):
            error = self._judge(snapshot_id, after) or self._unreachable(path(), snapshot_id, after)
            if error is not None:
                return error
        return None

    def broken_at_end(self, state: State) -> MpsnapError | None:
        """Return what a state without further steps leaves undone."""
        machine = self._machine
        locals_ = [machine.locals[rank] for rank in state.locals]
        for local in locals_:
            planned = local.planned
            if planned is not None:
                what = planned.text if isinstance(planned, Command) else f"the initiation of {planned.snapshot_id}"
                return SnapshotError(f"{what} is never carried out", where=local.node)
        known = sorted({snapshot_id for local in locals_ for snapshot_id in (*local.reports, *local.open)})
        for snapshot_id in known:
            missing = [local.node for local in locals_ if snapshot_id not in local.reports]
            if missing:
                return ConsistencyError(
                    f"snapshot {snapshot_id} never completes: no local snapshot of {', '.join(missing)}",
                    where=missing[0],
                )
        return self._wrong_in_the_end(state) if state.incarnation else None

    def _wrong_in_the_end(self, state: State) -> MpsnapError | None:
        """Return what does not hold of an end, looked at as if it were a cut."""
        machine = self._machine
        snapshot_id = SnapshotId(state.incarnation, machine.names[0], INITIAL)
        parts = machine.cut_of(state, snapshot_id)
        end = GlobalSnapshot(0, snapshot_id, (), machine.topology, parts, machine.readers)
        try:
            end.verify()
            check_invariants(end, self._invariants)
        except ConsistencyError as error:
            what = error.what.replace(f"snapshot 0 ({snapshot_id})", "the end").replace(
                f"snapshot {snapshot_id}", "end"
            )
            return type(error)(f"{what}, after a crash", where=error.where)
        return None

    def _not_restored(self, before: State, after: State) -> MpsnapError | None:
        """Return an error unless a recovery restored the cut that it goes back to, and nothing else."""
        if after not in self._recoveries:
            self._recoveries[after] = error = self._differs(before, after)
            self._restoring += error is None and any(self._machine.plain(after)[1])
        return self._recoveries[after]

    def _differs(self, before: State, after: State) -> MpsnapError | None:
        machine = self._machine
        cut = machine.complete[before.cut]
        parts = {name: machine.reports[part.report] for name, part in zip(machine.names, cut.parts, strict=True)}
        (nodes, channels), (nodes_now, channels_now) = machine.plain_cut(parts), machine.plain(after)
        wrong = None
        for name, was, now in zip(machine.names, nodes, nodes_now, strict=True):
            own = self._changes_its_state(name)
            if was != now and not (own and _all_but_state(was) == _all_but_state(now)):
                wrong = wrong or ("another state than was recorded", name)
        for (src, dst), held, held_now in zip(machine.channels, channels, channels_now, strict=True):
            if held != held_now:
                wrong = wrong or (f"{len(held_now)} of {len(held)} messages in flight", f"{src}->{dst}")
        if wrong is None:
            return None
        what, where = wrong
        return ConsistencyError(f"the recovery from {cut.snapshot_id} restores {what}", where=where)

    def _changes_its_state(self, name: str) -> bool:
        """Whether a program has a say in what its state is after a restart."""
        program = self._machine.programs[name].load()
        return program.on_start is not Node.on_start or program.restore is not Node.restore

    def parts(self, snapshot_id: SnapshotId, state: State) -> Mapping[str, LocalSnapshot]:
        """Return the local snapshots of a complete snapshot, by node."""
        machine = self._machine
        ranks = (machine.locals[rank].reports[snapshot_id] for rank in state.locals)
        return {name: machine.reports[rank] for name, rank in zip(machine.names, ranks, strict=True)}

    def completed(self, before: State, after: State) -> Iterator[SnapshotId]:
        """Yield the snapshots that are complete after a step and were not before it."""
        for was, now in zip(before.locals, after.locals, strict=True):
            if was == now:
                continue
            machine = self._machine
            for snapshot_id in machine.locals[now].reports.keys() - machine.locals[was].reports.keys():
                if all(snapshot_id in machine.locals[rank].reports for rank in after.locals):
                    yield snapshot_id

    def merged(self, snapshot_id: SnapshotId, state: State) -> GlobalSnapshot:
        """Return a complete snapshot, not yet verified."""
        machine = self._machine
        number = machine.numbers.setdefault(snapshot_id, len(machine.numbers))
        initiators = (snapshot_id.initiator,)
        parts = self.parts(snapshot_id, state)
        return GlobalSnapshot(number, snapshot_id, initiators, machine.topology, parts, machine.readers)

    def _judge(self, snapshot_id: SnapshotId, state: State) -> MpsnapError | None:
        key = snapshot_id, tuple(self._machine.locals[rank].reports[snapshot_id] for rank in state.locals)
        if key in self.cuts:
            return self._false.get(key)
        snapshot = self.merged(snapshot_id, state)
        try:
            snapshot.verify()
            self.cuts[key] = snapshot
            self.in_flight += snapshot.in_flight > 0
            check_invariants(snapshot, self._invariants)
        except InvariantError as error:
            self._false[key] = error
            return error
        except ConsistencyError as error:
            return error
        return None

    def _unreachable(self, path: Sequence[Step], snapshot_id: SnapshotId, final: State) -> MpsnapError | None:
        """Return an error unless the recorded state lies between the start and the final one; by trying it."""
        machine = self._machine
        begun, before, after = self._split(path, str(snapshot_id))
        state: State | None = begun
        start = "recovery" if final.incarnation else "start"
        for steps, expected, place in (
            (before, machine.plain_cut(self.parts(snapshot_id, final)), f"from the {start} to the recorded state"),
            (after, machine.plain(final), "from the recorded state to the final one"),
        ):
            for step in steps:
                state = None if state is None else machine.plain_after(state, step)
            if state is None or machine.plain(state) != expected:
                machine.check_repeatable(final)
                return ConsistencyError(f"snapshot {snapshot_id} records what cannot be reached: no way {place}")
        return None

    def _split(self, path: Sequence[Step], snapshot_id: str) -> tuple[State, list[Step], list[Step]]:
        """Return the start or last recovery, and the program's own steps since, before and after the cut, in order."""
        machine, state = self._machine, self._machine.start
        begun = state
        recorded: set[str] = set()
        before: list[Step] = []
        after: list[Step] = []
        for step in path:
            local = machine.locals[state.locals[machine.names.index(step.node)]]
            following = machine.after(state, step)
            assert following is not None
            if step.kind == "die":
                begun = state = following[0]
                before, after = [], []
                recorded.clear()
                continue
            initiation = step.kind == "plan" and isinstance(local.planned, Initiation)
            if step.kind != "mark" and not initiation:
                (after if step.node in recorded else before).append(step)
            if any(note.event == "recorded" and note.fields["snapshot"] == snapshot_id for note in following[1].notes):
                recorded.add(step.node)
            state = following[0]
        return begun, before, after

    # ------------------------------------------------------------------- shrinking

    def shrunk(self, violation: Violation) -> Violation:
        """Leave steps out, by halves and then one by one, for as long as the same kind of thing does not hold."""
        best = violation
        size = len(best.steps)
        while size:
            at = 0
            while at < len(best.steps):
                shorter = self._tried([*best.steps[:at], *best.steps[at + size :]], violation.error, len(best.steps))
                if shorter is None:
                    at += size
                else:
                    best = shorter
            size //= 2
        return best

    def _tried(self, steps: Sequence[Step], error: MpsnapError, below: int) -> Violation | None:
        """Take those of the steps that can be taken, then any others to the end; return a shorter violation like it."""
        machine, state, taken = self._machine, self._machine.start, list[Step]()
        remaining = list(reversed(steps))
        while len(taken) < below:
            step = remaining.pop() if remaining else None
            for choice in machine.enabled(state) if step is None else [step]:
                following = self._take(state, choice, taken)
                if following is None:
                    continue
                state, found = following
                if found is not None:
                    good = _same(found, error) and len(taken) < below
                    return Violation(found, tuple(taken)) if good else None
                break
            else:
                if step is None:
                    found = self.broken_at_end(state)
                    return Violation(found, tuple(taken)) if found is not None and _same(found, error) else None
        return None


def _all_but_state(basic: bytes) -> object:
    decoded = EXACT.decode(basic)
    assert isinstance(decoded, tuple)
    return decoded[1:]


def _same(one: MpsnapError, other: MpsnapError) -> bool:
    """Whether two violations are of one kind: a shorter schedule must not end in another problem."""
    return type(one) is type(other) and one.what.split(" ")[:1] == other.what.split(" ")[:1]


class _Search:
    """One breadth-first search through all states.

    A marker that only closes a channel, of a snapshot that its node has recorded already and with no message in front,
    changes nothing for what else the node may do, now or later: it commutes with every other step there. So where one
    can be seen, seeing it is the one step tried. That it commutes is not taken on trust: with each other step possible
    there, both orders are compared. Besides, a node may die there as anywhere: a recovery depends on the last complete
    cut alone, which this step may change.
    """

    def __init__(self, explorer: Explorer, machine: Machine) -> None:
        self._explorer = explorer
        self._machine = machine
        self._rank: dict[State, int] = {machine.start: 0}
        self._states = [machine.start]
        #: How each state was found first.
        self._found: list[tuple[int, Step | None]] = [(-1, None)]
        #: Where the steps of each state that was looked at lead, one after another, and where its own begin.
        self._leads = array("q")
        self._begins = array("q")
        self._ends: list[int] = []

    def run(self, most: int, progress: Progress) -> Findings:
        at = 0
        violation = None
        while at < len(self._states) and violation is None:
            if at % _STATES_A_LOOK == 0 and (progress(at) or at >= most):
                break
            violation = self._expand(at)
            at += 1
        return self.findings(violation is None and at == len(self._states), violation)

    def findings(self, exhausted: bool, violation: Violation | None) -> Findings:
        """Return what was found so far."""
        schedules, depth = self._counted()
        states, steps = len(self._states), len(self._leads)
        return self._explorer.findings(states, steps, schedules, depth, exhausted, violation)

    def _counted(self) -> tuple[int, int]:
        """Return how many schedules there are, as far as they were followed to an end, and how long the longest is.

        A recovery leads to one state from many, early and late, so ways are counted only when all states are known.
        """
        leads, begins = self._leads, [*self._begins, len(self._leads)]
        awaited = [0] * len(self._states)
        for at in leads:
            awaited[at] += 1
        ways, depth = [0] * len(awaited), [0] * len(awaited)
        ways[0] = 1
        ready = [0]
        for at in ready:
            if at >= len(self._begins):
                continue
            for to in leads[begins[at] : begins[at + 1]]:
                ways[to] += ways[at]
                depth[to] = max(depth[to], depth[at] + 1)
                awaited[to] -= 1
                if not awaited[to]:
                    ready.append(to)
        return sum(ways[at] for at in self._ends), max(depth)

    def _expand(self, at: int) -> Violation | None:
        machine, state = self._machine, self._states[at]
        ended = True
        possible = machine.enabled(state)
        closing = next((step for step in possible if machine.only_closes(state, step)), None)
        if closing is not None and self._commutes(state, closing, possible):
            possible = [closing]
        self._begins.append(len(self._leads))
        for step in (*possible, *machine.deaths(state)):
            following = machine.after(state, step)
            if following is None:
                continue
            ended = ended and step.kind == "die"
            path = partial(self._path, at, step)
            error = following[1].error or self._explorer.broken_by(path, state, following[0])
            if error is not None:
                return self._explorer.shrunk(Violation(error, tuple(path())))
            self._reach(at, step, following[0])
        if ended:
            self._ends.append(at)
            error = self._explorer.broken_at_end(state)
            return None if error is None else self._explorer.shrunk(Violation(error, tuple(self._path(at))))
        return None

    def _reach(self, at: int, step: Step, state: State) -> None:
        rank = self._rank.setdefault(state, len(self._states))
        if rank == len(self._states):
            self._states.append(state)
            self._found.append((at, step))
        self._leads.append(rank)

    def _commutes(self, state: State, closing: Step, possible: Sequence[Step]) -> bool:
        """Whether a step can change places with each other step of its node."""
        machine = self._machine
        one = machine.after(state, closing)
        if one is None or one[1].error is not None:
            return False
        for step in possible:
            if step.node != closing.node or step == closing:
                continue
            other = machine.after(state, step)
            if other is None:
                continue
            both = machine.after(one[0], step), machine.after(other[0], closing)
            if both[0] is None or both[1] is None or both[0][0] != both[1][0]:
                return False
        return True

    def _path(self, at: int, last: Step | None = None) -> list[Step]:
        """Return the steps to a state, and one more."""
        steps: list[Step] = [] if last is None else [last]
        while True:
            at, step = self._found[at]
            if step is None:
                return steps[::-1]
            steps.append(step)
