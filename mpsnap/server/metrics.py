"""What Prometheus is told of a run, made from its status document.

This module owns the names, units and labels of the metrics; dashboards and alerts of others are written against them.
It must not know how the document came about, nor how it is asked for.

Nothing is counted here that the document counts already. The one exception: a recovery takes the counts of messages
back to those of a snapshot, and a counter that goes back would be read as one that began anew at zero. So of these,
what they have grown by is added up; what was taken back and is sent again is counted again, as it is sent again.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from prometheus_client import CollectorRegistry
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    InfoMetricFamily,
    Metric,
    StateSetMetricFamily,
)
from prometheus_client.exposition import generate_latest
from prometheus_client.openmetrics import exposition as openmetrics
from prometheus_client.utils import floatToGoString

#: Every state of a run, and every status of a node, in the order of a life.
RUN_STATES = ("starting", "running", "recovering", "stopping", "ended")
NODE_STATUSES = ("starting", "running", "waiting", "blocked", "paused", "frozen", "dead")
#: What is sent, of which the first is understood by everything that scrapes.
PLAIN = "text/plain; version=0.0.4; charset=utf-8"
OPENMETRICS = "application/openmetrics-text; version=1.0.0; charset=utf-8"

Status = Mapping[str, Any]


class Metrics:
    """Turn status documents of one run into metrics, each also out of what the last ones held."""

    def __init__(self) -> None:
        self._grown: dict[tuple[str, str, str], _Grown] = {}

    def text(self, status: Status, accept: str = "") -> tuple[bytes, str]:
        """Return the metrics and their content type; `accept` is what whoever scrapes can read."""
        registry = CollectorRegistry()
        registry.register(_Families([*self._of_channels(status["channels"]), *_families(status)]))
        if "application/openmetrics-text" in accept:
            return openmetrics.generate_latest(registry), OPENMETRICS  # type: ignore[no-untyped-call]
        return generate_latest(registry), PLAIN

    def _of_channels(self, channels: Iterable[Mapping[str, Any]]) -> Iterator[Metric]:
        labels = ("src", "dst")
        sent = CounterMetricFamily("mpsnap_messages_sent", "Messages sent on a channel.", labels=labels)
        handled = CounterMetricFamily(
            "mpsnap_messages_handled", "Messages of a channel taken by its destination.", labels=labels
        )
        flying = GaugeMetricFamily(
            "mpsnap_messages_in_flight", "Messages of a channel sent and not yet taken.", labels=labels
        )
        full = GaugeMetricFamily("mpsnap_channel_full", "Whether a channel takes no more messages.", labels=labels)
        for each in channels:
            channel = (each["src"], each["dst"])
            sent.add_metric(channel, self._total("sent", channel, each["sent"]))
            handled.add_metric(channel, self._total("handled", channel, each["handled"]))
            flying.add_metric(channel, each["in_flight"])
            full.add_metric(channel, each["full"])
        yield from (sent, handled, flying, full)

    def _total(self, what: str, channel: tuple[str, str], now: int) -> int:
        return self._grown.setdefault((what, *channel), _Grown()).by(now)


class _Grown:
    """Add up what a count has grown by, though it may be taken back."""

    def __init__(self) -> None:
        self._last = 0
        self._total = 0

    def by(self, now: int) -> int:
        self._total += max(0, now - self._last)
        self._last = now
        return self._total


class _Families:
    """Hand families to a registry, which asks for them once."""

    def __init__(self, families: Sequence[Metric]) -> None:
        self._families = families

    def collect(self) -> Iterable[Metric]:
        return self._families


def _families(status: Status) -> Iterator[Metric]:
    yield from _of_run(status["run"])
    yield from _of_nodes(status["nodes"])
    yield from _of_snapshots(status["snapshot_counts"], status["snapshots"])
    totals = status["totals"]
    yield CounterMetricFamily("mpsnap_node_deaths", "Deaths of nodes.", value=totals["deaths"])
    yield CounterMetricFamily("mpsnap_recoveries", "Recoveries of the cluster.", value=totals["recoveries"])


def _of_run(run: Mapping[str, Any]) -> Iterator[Metric]:
    about = {key: str(run[key]) for key in ("name", "app", "topology", "start_method", "seed")}
    yield InfoMetricFamily("mpsnap_run", "What is run.", value=about)
    states = {state: run["state"] == state for state in RUN_STATES}
    yield StateSetMetricFamily("mpsnap_run_state", "How far the run is.", value=states)
    yield GaugeMetricFamily("mpsnap_run_start_time", "When the run began.", value=run["began"], unit="seconds")
    window = "Messages that a channel takes before its sender waits."
    yield GaugeMetricFamily("mpsnap_window_messages", window, value=run["window"])


def _of_nodes(nodes: Sequence[Mapping[str, Any]]) -> Iterator[Metric]:
    labels = ("node",)
    up = GaugeMetricFamily("mpsnap_node_up", "Whether a node has started and is not dead.", labels=labels)
    statuses = StateSetMetricFamily("mpsnap_node_status", "What a node is doing.", labels=labels)
    busy = CounterMetricFamily(
        "mpsnap_node_handler", "Time that a node's process has spent in its handlers.", labels=labels, unit="seconds"
    )
    cpu = GaugeMetricFamily("mpsnap_node_cpu", "Share of one processor that a node uses.", labels=labels, unit="ratio")
    memory = GaugeMetricFamily(
        "mpsnap_node_resident_memory", "Memory of a node's process.", labels=labels, unit="bytes"
    )
    for each in nodes:
        name = (each["name"],)
        up.add_metric(name, each["status"] not in ("starting", "dead"))
        statuses.add_metric(name, {status: each["status"] == status for status in NODE_STATUSES})
        busy.add_metric(name, each["busy_s"])
        # What is not known is left out: a zero would be a measurement.
        if each["cpu_percent"] is not None:
            cpu.add_metric(name, each["cpu_percent"] / 100)
        if each["memory_bytes"] is not None:
            memory.add_metric(name, each["memory_bytes"])
    yield from (up, statuses, busy, cpu, memory)


def _of_snapshots(counts: Mapping[str, Any], digests: Sequence[Mapping[str, Any]]) -> Iterator[Metric]:
    outcomes = CounterMetricFamily("mpsnap_snapshots", "Snapshots that have ended, by how.", labels=("outcome",))
    for outcome, count in counts["outcomes"].items():
        outcomes.add_metric((outcome,), count)
    yield outcomes
    still = sum(digest["phase"] not in ("completed", "abandoned") for digest in digests)
    yield GaugeMetricFamily("mpsnap_snapshots_open", "Snapshots that have begun and not ended.", value=still)
    lasted = "What a snapshot took from its beginning to its end, of completed ones."
    yield _histogram("mpsnap_snapshot_duration", lasted, "seconds", counts["duration_s"])
    held = "Bytes of the states in a snapshot, of completed ones."
    yield _histogram("mpsnap_snapshot_size", held, "bytes", counts["bytes"])


def _histogram(name: str, told: str, unit: str, counted: Mapping[str, Any]) -> Metric:
    bounds = [*counted["buckets"], [float("inf"), counted["count"]]]
    buckets = [(floatToGoString(bound), below) for bound, below in bounds]  # type: ignore[no-untyped-call]
    return HistogramMetricFamily(name, told, buckets=buckets, sum_value=counted["sum"], unit=unit)
