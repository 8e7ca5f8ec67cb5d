"""Schedules as files: everything that is needed to take the same steps again.

This module owns the format, one JSON object: the nodes with their channels, what each runs, the plan, the seed, the
invariants that were asked, the steps, and for the reader what was violated and the steps in words.
"""

from __future__ import annotations

import json
from base64 import b64decode, b64encode
from collections.abc import Sequence
from typing import Any, NamedTuple

from mpsnap.cli.apps import App, read_file
from mpsnap.cli.options import Work, find_invariant
from mpsnap.core.codec import Codec
from mpsnap.core.errors import CodecError, InputError, MpsnapError
from mpsnap.core.program import Program
from mpsnap.core.protocol import SnapshotId
from mpsnap.core.topology import Topology
from mpsnap.simulator.actor import Command, Initiation, Plan
from mpsnap.simulator.machine import Step

FORMAT = 1
#: Names the bytes of parameters that JSON cannot keep; no parameter can have this name.
_ENCODED = "$codec"
#: Parameters are plain data, whatever class a node has.
_CODEC = Codec()


class Schedule(NamedTuple):
    """Hold what is to be run, and the steps; `idle` is how many idle calls and timers a node gets, None for any.

    `crashes` is how many times a node may die in these steps.
    """

    work: Work
    plan: Plan
    seed: int
    idle: int | None
    steps: tuple[Step, ...]
    crashes: int = 0


def schedule_text(schedule: Schedule, invariants: Sequence[str], error: MpsnapError, told: Sequence[str]) -> str:
    """Return a schedule as the text of a file."""
    topology = schedule.work.topology
    plain = {
        "schedule": FORMAT,
        "violated": str(error),
        "story": list(told),
        "app": schedule.work.app.name,
        "topology": topology.name,
        "nodes": {
            name: {"class": program.reference, "params": _params_text(program.params), "tokens": topology.tokens[name]}
            for name, program in schedule.work.programs.items()
        },
        "channels": [[channel.src, channel.dst] for channel in topology.channels],
        "seed": schedule.seed,
        "idle": schedule.idle,
        "crashes": schedule.crashes,
        "invariants": list(invariants),
        "plan": {
            name: [
                {"snapshot": str(planned.snapshot_id), "number": planned.number}
                if isinstance(planned, Initiation)
                else {"command": planned.value, "text": planned.text}
                for planned in items
            ]
            for name, items in schedule.plan.items()
        },
        "steps": [str(step) for step in schedule.steps],
    }
    return json.dumps(plain, indent=1) + "\n"


def _params_text(params: dict[str, Any]) -> dict[str, Any]:
    """Return parameters as they are, or if JSON would lose or change anything, in the codec's bytes."""
    exact = _CODEC.encode(params)
    try:
        kept = _CODEC.encode(json.loads(json.dumps(params))) == exact
    except (TypeError, ValueError):
        kept = False
    return params if kept else {_ENCODED: b64encode(exact).decode()}


def _params(plain: dict[str, Any]) -> dict[str, Any]:
    params = _CODEC.decode(b64decode(plain[_ENCODED], validate=True)) if plain.keys() == {_ENCODED} else plain
    return dict(params)  # type: ignore[call-overload, no-any-return] # TypeError if it is none


def read_schedule(path: str) -> Schedule:
    """Read a schedule and import what it runs.

    Raises:
        InputError: It cannot be read or is none, or an app or invariant of it is not there.
    """
    data = read_file(path)
    try:
        plain = json.loads(data)
        if plain["schedule"] != FORMAT:
            raise InputError(f"a schedule of format {plain['schedule']!r}, this version reads {FORMAT}", where=path)
        return _schedule(plain)
    except InputError:
        raise
    except (CodecError, ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise InputError(
            f"not a schedule: {type(error).__name__}: {error}", where=path, hint="a file that `explore` wrote"
        ) from error


def _schedule(plain: Any) -> Schedule:
    nodes = plain["nodes"]
    tokens = {name: node["tokens"] for name, node in nodes.items()}
    topology = Topology(list(nodes), [tuple(channel) for channel in plain["channels"]], tokens, name=plain["topology"])
    programs = {name: Program(node["class"], _params(node["params"])) for name, node in nodes.items()}
    for program in programs.values():
        program.load()
    invariants = tuple(find_invariant(reference) for reference in plain["invariants"])
    plan = {name: tuple(map(_planned, items)) for name, items in plain["plan"].items()}
    work = Work(App(plain["app"], {}, topology), topology, programs, None, invariants, False)
    idle = None if plain["idle"] is None else int(plain["idle"])
    steps = tuple(Step.parse(text) for text in plain["steps"])
    # A file of before there were crashes says nothing of them.
    return Schedule(work, plan, int(plain["seed"]), idle, steps, int(plain.get("crashes", 0)))


def _planned(item: Any) -> Command | Initiation:
    if "snapshot" in item:
        return Initiation(SnapshotId.parse(item["snapshot"]), int(item["number"]))
    return Command(item["command"], item["text"])
