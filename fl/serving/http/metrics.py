"""What ``/metrics`` tells Prometheus: how much and how long, by route and stage. No label is a person, a token or a text."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from fl.serving.engine.requests import Transcript
from fl.serving.http.formats import add_stages

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 25.0, 60.0)
Gauges = Callable[[], dict[str, float]]


class Metrics:
    """The metrics of one app, in a registry of its own."""

    def __init__(self, gauges: Gauges) -> None:
        self.registry = CollectorRegistry()
        self._requests = Counter(
            "idiolect_requests", "Requests by route and status.", ("route", "status"), registry=self.registry
        )
        self._problems = Counter("idiolect_problems", "Refusals by kind.", ("kind",), registry=self.registry)
        self._seconds = Histogram(
            "idiolect_request_seconds",
            "Seconds from headers to answer.",
            ("route",),
            buckets=SECONDS,
            registry=self.registry,
        )
        self._stages = Histogram(
            "idiolect_stage_seconds",
            "Seconds of one request by stage.",
            ("stage",),
            buckets=SECONDS,
            registry=self.registry,
        )
        self._audio = Counter("idiolect_audio_seconds", "Seconds of audio that were taken.", registry=self.registry)
        self.registry.register(_Gauges(gauges))

    def count_request(self, route: str, status: int, seconds: float) -> None:
        """One answer. ``route`` is a path template, never a path."""
        self._requests.labels(route, str(status)).inc()
        self._seconds.labels(route).observe(seconds)

    def count_problem(self, slug: str) -> None:
        """One refusal."""
        self._problems.labels(slug).inc()

    def count_audio(self, seconds: float) -> None:
        """Audio of one request."""
        self._audio.inc(seconds)

    def observe(self, transcript: Transcript) -> None:
        """The stages of one part."""
        for stage, seconds in add_stages([transcript.stages]).items():
            self._stages.labels(stage).observe(seconds)

    def text(self) -> bytes:
        """All of them in Prometheus' text format."""
        return generate_latest(self.registry)


class _Gauges(Collector):
    """Numbers that are read when they are asked for."""

    def __init__(self, gauges: Gauges) -> None:
        self._gauges = gauges

    def collect(self) -> Iterable[Metric]:
        """One gauge for each number."""
        for name, value in self._gauges().items():
            yield GaugeMetricFamily(f"idiolect_{name}", f"{name.replace('_', ' ')}, now or since the start.", value)
