"""What ``/metrics`` tells Prometheus: how much and how long, by route and stage. No label is a person, a token or a text."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from prometheus_client import CollectorRegistry, Counter, Histogram
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 25.0, 60.0)  # bounds of the histograms' buckets


class ServerMetrics(Collector):
    """The metrics of one app, in a registry of its own. ``gauges`` gives numbers of the moment when they are asked for.

    The label ``route`` is a path template, never a path, which may hold a handle.
    """

    def __init__(self, gauges: Callable[[], dict[str, float]]) -> None:
        self.registry = own = CollectorRegistry()
        self.requests = Counter("idiolect_requests", "Requests by route and status.", ("route", "status"), registry=own)
        self.problems = Counter("idiolect_problems", "Refusals by kind.", ("kind",), registry=own)
        self.request_seconds = Histogram(
            "idiolect_request_seconds", "Seconds from headers to answer.", ("route",), registry=own, buckets=SECONDS
        )
        self.stage_seconds = Histogram(
            "idiolect_stage_seconds", "Seconds of one request by stage.", ("stage",), registry=own, buckets=SECONDS
        )
        self.audio_seconds = Counter("idiolect_audio_seconds", "Seconds of audio that were taken.", registry=own)
        self._gauges = gauges
        self.registry.register(self)

    def collect(self) -> Iterable[Metric]:
        """One gauge for each number."""
        for name, value in self._gauges().items():
            yield GaugeMetricFamily(f"idiolect_{name}", f"{name.replace('_', ' ')}, now or since the start.", value)
