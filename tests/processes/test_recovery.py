"""Deaths of nodes at named moments: the cluster goes on from its last recovery point, and all happens exactly once."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from conftest import FORK, FORKSERVER, SPAWN
from drill import drill

from mpsnap.runtime.failpoints import Failpoint

pytestmark = [pytest.mark.processes, pytest.mark.timeout(60)]


class Case(NamedTuple):
    """Say where nodes come to harm, and how many recoveries that takes."""

    name: str
    plan: dict[str, tuple[Failpoint, ...]]
    recoveries: int = 1
    topology: str = "ring:3"

    @property
    def at_the_end(self) -> bool:
        """Whether nobody comes to harm before the cluster is asked to stop."""
        late = ("on_stop", "after_halt", "last_record", "leaving")
        return any(point.name in late for plan in self.plan.values() for point in plan)


def at(name: str, action: str = "kill9", hit: int = 1, incarnation: int | None = 0) -> tuple[Failpoint, ...]:
    return (Failpoint(name, action, hit, incarnation),)


CASES = [
    Case("after-go", {"N2": at("after_go")}),
    # It is the one that the initial cut begins at.
    Case("after-go-first", {"N1": at("after_go")}),
    Case("mid-handler", {"N2": at("mid_handler", hit=50)}),
    # The first three messages are those of `setup`.
    Case("mid-send-1", {"N2": at("mid_send", hit=4)}, topology="complete:3"),
    Case("mid-send-60", {"N2": at("mid_send", hit=60)}),
    Case("mid-send-140", {"N1": at("mid_send", hit=140)}, topology="line:3"),
    # The first record is the initial cut's: there is nothing yet to go on from.
    Case("before-record", {"N2": at("before_record", hit=2)}),
    Case("after-record", {"N2": at("after_record", hit=2)}),
    Case("mid-markers", {"N2": at("mid_markers", hit=3)}, topology="complete:3"),
    Case("before-report", {"N2": at("before_report", hit=2)}, topology="complete:3"),
    Case("after-stage", {"N3": at("after_stage", hit=2)}),
    Case("after-report", {"N3": at("after_report", hit=2)}),
    Case("on-stop", {"N2": at("on_stop")}),
    Case("after-halt", {"N2": at("after_halt")}),
    Case("last-record", {"N2": at("last_record")}),
    # What it has done is durable, and all that it still had to do was to go.
    Case("leaving", {"N2": at("leaving")}, 0),
    Case("in-restore", {"N1": at("mid_send", hit=30), "N2": at("restore", incarnation=1)}),
    Case("twice", {"N1": at("mid_send", hit=30), "N2": at("mid_handler", hit=20, incarnation=1)}, 2),
]


def with_actions(actions: Sequence[str], spawned: str) -> list[Any]:
    """Return each action with fork and with forkserver, and one of them with spawn, where a start takes longest."""
    wanted = [(method, action) for method in (FORK, FORKSERVER) for action in actions] + [(SPAWN, spawned)]
    return [pytest.param(method.values[0], action, marks=method.marks) for method, action in wanted]


@pytest.mark.parametrize(
    ("case", "method"),
    [
        pytest.param(case, method.values[0], marks=method.marks, id=f"{case.name}-{method.values[0]}")
        for method in (FORK, FORKSERVER, SPAWN)
        for case in CASES
    ],
)
def test_a_death_at_a_named_moment_costs_nothing(tmp_path: Path, case: Case, method: str) -> None:
    suffer(tmp_path, case, method)


@pytest.mark.parametrize("action", ["raise", "exit0"])
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
@pytest.mark.timeout(60, method="signal")
def test_however_it_dies(tmp_path: Path, case: Case, action: str) -> None:
    plan = {node: tuple(point._replace(action=action) for point in points) for node, points in case.plan.items()}
    suffer(tmp_path, case._replace(plan=plan), "fork")


def suffer(folder: Path, case: Case, method: str) -> None:
    """Live through a case."""
    params = {"tokens": 100_000 if case.topology.startswith("line") else 10}
    with drill(folder, method, case.plan, topology=case.topology, params=params) as it:
        it.live(0 if case.at_the_end else case.recoveries)
        it.check(case.recoveries)
