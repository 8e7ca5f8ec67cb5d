"""What Prometheus is told: read back by its own parsers, and counted once."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable
from typing import Any

import pytest
from fake_run import channel_of, digest_of, node_of, status_of
from prometheus_client.openmetrics.parser import text_string_to_metric_families as parsed_openmetrics
from prometheus_client.parser import text_string_to_metric_families as parsed_plain

from mpsnap.server.digests import DURATIONS, SIZES, Histogram
from mpsnap.server.metrics import NODE_STATUSES, OPENMETRICS, PLAIN, RUN_STATES, Metrics

N2 = frozenset({("node", "N2")})
#: A sample by its name and labels.
Samples = dict[tuple[str, frozenset[tuple[str, str]]], float]


def histogram(bounds: Iterable[float], *values: float) -> dict[str, Any]:
    counted = Histogram(tuple(bounds))
    for value in values:
        counted.add(value)
    return counted.document()


def a_status(sent: int = 5, handled: int = 4, **run: Any) -> dict[str, Any]:
    """Return a status document with something of everything."""
    status = status_of(
        [
            node_of("N1", "running", busy_s=2.5, cpu_percent=12.5, memory_bytes=1 << 20),
            node_of("N2", "dead", busy_s=0.0, cpu_percent=None, memory_bytes=None, pid=None),
        ],
        [
            channel_of("N1", "N2", sent=sent, handled=handled, in_flight=sent - handled),
            channel_of("N2", "N1", sent=4096, handled=0, in_flight=4096, full=True),
        ],
        [digest_of(0), digest_of(1, "abandoned"), digest_of(None, "recording")],
        **run,
    )
    counts = {
        "outcomes": {"completed": 3, "abandoned": 1},
        "duration_s": histogram(DURATIONS, 0.0004, 0.003, 60.0),
        "bytes": histogram(SIZES, 0, 256, 1e12),
    }
    return {**status, "snapshot_counts": counts, "totals": {**status["totals"], "deaths": 2, "recoveries": 1}}


def samples(text: bytes, is_openmetrics: bool = False) -> Samples:
    families = (parsed_openmetrics if is_openmetrics else parsed_plain)(text.decode())
    found = [sample for family in families for sample in family.samples]
    named = {(sample.name, frozenset(sample.labels.items())): float(sample.value) for sample in found}
    assert len(named) == len(found), "no sample comes twice"
    return named


def one(found: Samples, name: str, /, **labels: str) -> float:
    return found[name, frozenset(labels.items())]


@pytest.mark.parametrize("accept", ["", "text/plain", "application/openmetrics-text; version=1.0.0,text/plain;q=0.5"])
def test_every_metric_is_read_back(accept: str) -> None:
    text, kind = Metrics().text(a_status(), accept)
    is_openmetrics = "openmetrics" in accept
    assert kind == (OPENMETRICS if is_openmetrics else PLAIN)
    found = samples(text, is_openmetrics)
    for name, labels, value in (
        ("mpsnap_messages_sent_total", {"src": "N1", "dst": "N2"}, 5),
        ("mpsnap_messages_handled_total", {"src": "N1", "dst": "N2"}, 4),
        ("mpsnap_messages_in_flight", {"src": "N1", "dst": "N2"}, 1),
        ("mpsnap_channel_full", {"src": "N1", "dst": "N2"}, 0),
        ("mpsnap_channel_full", {"src": "N2", "dst": "N1"}, 1),
        ("mpsnap_node_up", {"node": "N1"}, 1),
        ("mpsnap_node_up", {"node": "N2"}, 0),
        ("mpsnap_node_status", {"node": "N1", "mpsnap_node_status": "running"}, 1),
        ("mpsnap_node_status", {"node": "N2", "mpsnap_node_status": "running"}, 0),
        ("mpsnap_node_handler_seconds_total", {"node": "N1"}, 2.5),
        ("mpsnap_node_cpu_ratio", {"node": "N1"}, 0.125),
        ("mpsnap_node_resident_memory_bytes", {"node": "N1"}, 1 << 20),
        ("mpsnap_snapshots_total", {"outcome": "completed"}, 3),
        ("mpsnap_snapshots_total", {"outcome": "abandoned"}, 1),
        ("mpsnap_snapshots_open", {}, 1),
        ("mpsnap_node_deaths_total", {}, 2),
        ("mpsnap_recoveries_total", {}, 1),
        ("mpsnap_window_messages", {}, 4096),
        ("mpsnap_run_start_time_seconds", {}, 1790000000.1),
        ("mpsnap_run_state", {"mpsnap_run_state": "running"}, 1),
        ("mpsnap_run_state", {"mpsnap_run_state": "ended"}, 0),
    ):
        assert one(found, name, **labels) == value, name
    about = {"name": "tokens-4711", "app": "tokens", "topology": "ring:2", "start_method": "forkserver", "seed": "0"}
    assert one(found, "mpsnap_run_info", **about) == 1
    unknown = {("mpsnap_node_cpu_ratio", N2), ("mpsnap_node_resident_memory_bytes", N2)}
    assert not unknown & found.keys(), "of what is not known there is no sample"


@pytest.mark.parametrize("accept", ["", "application/openmetrics-text"])
def test_histograms_are_cumulative_and_whole(accept: str) -> None:
    found = samples(Metrics().text(a_status(), accept)[0], bool(accept))
    for name, total in (("mpsnap_snapshot_duration_seconds", 60.0034), ("mpsnap_snapshot_size_bytes", 256 + 1e12)):
        # A parser may write a bound in another way than it was written.
        buckets = sorted(
            (float(dict(labels)["le"]), value)
            for (sample, labels), value in found.items()
            if sample == f"{name}_bucket"
        )
        assert [value for _, value in buckets] == sorted(value for _, value in buckets)
        bound, count = buckets[-1]
        assert (math.isinf(bound), count) == (True, 3)
        assert one(found, f"{name}_count") == 3
        assert one(found, f"{name}_sum") == pytest.approx(total)
        assert buckets[-2][1] == 2, "the largest is beyond all bounds"
    assert [bound for bound, _ in buckets[:-1]] == list(SIZES)
    assert buckets[0] == (256.0, 2), "a bucket holds its own bound"


def test_names_follow_the_conventions() -> None:
    """As Prometheus' own linter has them: base units, which stand last; counters end in _total, and others do not."""
    text = Metrics().text(a_status())[0].decode()
    units = "seconds|bytes|ratio|messages"
    for family in parsed_plain(text):
        assert re.fullmatch(r"mpsnap(_[a-z]+)+", family.name)
        assert family.documentation.endswith(".")
        assert (family.type == "counter") == (f"# TYPE {family.name}_total counter" in text)
        assert not re.search(r"milliseconds|percent|kilobytes|_(counter|gauge|histogram)$", family.name)
        if re.search(rf"_({units})(_|$)", family.name) and family.name not in (
            "mpsnap_messages_sent",
            "mpsnap_messages_handled",
            "mpsnap_messages_in_flight",
        ):
            assert re.search(rf"_({units})$", family.name)


def test_every_state_is_told_and_only_known_ones() -> None:
    for state in RUN_STATES:
        found = samples(Metrics().text(a_status(state=state))[0])
        assert [name for name in RUN_STATES if one(found, "mpsnap_run_state", mpsnap_run_state=name)] == [state]
    status = a_status()
    for word in NODE_STATUSES:
        status["nodes"][0]["status"] = word
        found = samples(Metrics().text(status)[0])
        told = [name for name in NODE_STATUSES if one(found, "mpsnap_node_status", node="N1", mpsnap_node_status=name)]
        assert told == [word]
        assert one(found, "mpsnap_node_up", node="N1") == (word not in ("starting", "dead"))


def test_what_is_asked_for_twice_is_counted_once() -> None:
    metrics, status = Metrics(), a_status()
    assert metrics.text(status) == metrics.text(status)
    assert metrics.text(status)[0] != metrics.text(a_status(sent=6))[0]


def test_messages_that_a_recovery_takes_back_are_not_taken_for_new_ones() -> None:
    """A counter that falls would be read as one that began anew at zero, and all of it be counted once more."""
    metrics = Metrics()

    def sent(count: int) -> float:
        return one(samples(metrics.text(a_status(sent=count))[0]), "mpsnap_messages_sent_total", src="N1", dst="N2")

    assert sent(1000) == 1000
    assert sent(900) == 1000, "back to the snapshot"
    assert sent(950) == 1050, "what is sent again was sent"
    assert sent(1100) == 1200


def test_labels_may_hold_anything() -> None:
    hostile = 'a"b\\c\nd{e="f"} 1\n# HELP x y\u2028<img>'
    for accept in ("", "application/openmetrics-text"):
        found = samples(Metrics().text(a_status(app=hostile, name=hostile), accept)[0], bool(accept))
        (labels,) = [dict(labels) for name, labels in found if name == "mpsnap_run_info"]
        assert labels["app"] == labels["name"] == hostile
