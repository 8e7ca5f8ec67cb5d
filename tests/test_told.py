"""Snapshots and values of which only the JSON form is at hand are shown as they would be themselves."""

from __future__ import annotations

import json
from collections import Counter, OrderedDict, defaultdict, deque
from datetime import date, datetime, timedelta, timezone
from decimal import Decimal
from pathlib import PurePosixPath
from typing import Any
from uuid import UUID

import pytest
from cli_harness import cut

from mpsnap.core.forms import parse_topology
from mpsnap.core.jsonform import to_json
from mpsnap.core.kinds import Opaque
from mpsnap.views.document import snapshot_document
from mpsnap.views.tables import shown, snapshot_table
from mpsnap.views.told import from_json, told_snapshot_table

VALUES: list[Any] = [
    *(
        None,
        True,
        10**5000,
        -3,
        2.5,
        float("inf"),
        "text",
        b"\0\xff",
        bytearray(b"x"),
        [],
        (),
        (1,),
        {},
        set(),
        {(1, 2)},
    ),
    *(frozenset({1}), {1: "a", (2, 3): None}, {"$odd": 1}, Decimal("1.50"), UUID(int=7), PurePosixPath("/x")),
    *(
        date(2024, 2, 29),
        datetime(2024, 2, 29, 1, 2, tzinfo=timezone(timedelta(hours=2))),
        timedelta(days=-1, seconds=3),
    ),
    *(
        deque([1, 2], 3),
        Counter("aab"),
        OrderedDict(b=1, a=2),
        defaultdict(list, {"k": [1]}),
        {"deep": [({"x": (b"y",)},)]},
    ),
    *(Opaque("m:Account", {"owner": "x", "sum": 3}), Opaque("m:Pair", [1, (2,)]), Opaque("m:Colour", "RED")),
]


@pytest.mark.parametrize("value", VALUES, ids=lambda value: type(value).__name__)
def test_a_value_that_was_told_is_shown_as_it_would_be_itself(value: Any) -> None:
    told = from_json(json.loads(json.dumps(to_json(value))))
    assert type(told) is type(value)
    assert shown(told) == shown(value)


@pytest.mark.parametrize(
    "form",
    [
        *({"$tuple": 3}, {"$set": [[1]]}, {"$bytes": 3}, {"$map": [1]}, {"$float": "x"}, {"$more": 3}, {"$size": 12}),
        *(
            {"$type": kind, "value": inner}
            for kind in ("datetime", "UUID", "deque", "no kind", "int")
            for inner in (3, "x")
        ),
        {"$type": "defaultdict", "value": {"factory": "print", "items": {}}},
        {"$type": 3, "value": 4},
    ],
    ids=str,
)
def test_a_form_that_makes_no_sense_is_shown_as_it_stands(form: Any) -> None:
    assert from_json(form) == form


def test_a_large_snapshot_that_was_told_is_cut_where_the_other_is() -> None:
    topology = parse_topology("complete:30")
    states = {node: {"text": "x" * 300, "set": set(range(50))} for node in topology.nodes}
    flying: dict[tuple[str, str], list[object]] = {channel: [("a", 1)] * 9 for channel in topology.channels}
    snapshot = cut(topology, states, flying, duration=0.5)
    document = json.loads(json.dumps(snapshot_document(snapshot)))
    for full in (False, True):
        assert told_snapshot_table(document, full) == snapshot_table(snapshot, full=full)
