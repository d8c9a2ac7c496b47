"""What the routes of one app share: engine, base, limits, handles; and how they wait for work without blocking or leaking."""

import asyncio
from collections import defaultdict
from collections.abc import Callable, Coroutine, Iterable, Sequence
from functools import partial
from typing import Annotated, Any, TypeVar

import anyio
from anyio import to_thread
from fastapi import Depends
from prometheus_client import CollectorRegistry, Counter, Histogram
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector
from starlette.requests import ClientDisconnect, Request

from fl.bases.whisper.base import WhisperBase
from fl.core.errors import ConfigError
from fl.serving.engine.adapters import admit
from fl.serving.engine.engine import BatchEngine
from fl.serving.engine.requests import ServedAdapter
from fl.serving.http.audio import decode_audio
from fl.serving.http.handles import Handles
from fl.serving.http.limits import Places, RateLimit, ServerLimits
from fl.serving.http.problems import ProblemError
from fl.speech.audio import MAX_SECONDS, Waveform
from fl.speech.decode import Decoder
from fl.speech.languages import AUTO, language_code

Result = TypeVar("Result")
ALIASES = frozenset({"", "whisper-1"})  # what OpenAI's clients call a model that they do not choose
NO_STORE = {"cache-control": "no-store"}
SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 25.0, 60.0)  # bounds of the histograms' buckets


class ServerMetrics(Collector):
    """What ``/metrics`` tells of one app, in a registry of its own. ``gauges`` gives numbers of the moment when they are asked for.

    No label is a person, a token or a text; ``route`` is a path template, never a path, which may hold a handle.
    """

    def __init__(self, gauges: Callable[[], dict[str, float]]) -> None:
        self.registry = own = CollectorRegistry()
        self.requests = Counter("idiolect_requests", "Requests by route and status.", ("route", "status"), registry=own)
        self.problems = Counter("idiolect_problems", "Refusals by kind.", ("kind",), registry=own)
        histogram = partial(Histogram, registry=own, buckets=SECONDS)
        self.request_seconds = histogram("idiolect_request_seconds", "Seconds from headers to answer.", ("route",))
        self.stage_seconds = histogram("idiolect_stage_seconds", "Seconds of one request by stage.", ("stage",))
        self.audio_seconds = Counter("idiolect_audio_seconds", "Seconds of audio that were taken.", registry=own)
        self._gauges = gauges
        self.registry.register(self)

    def collect(self) -> Iterable[Metric]:
        """One gauge for each number."""
        for name, value in self._gauges().items():
            yield GaugeMetricFamily(f"idiolect_{name}", f"{name.replace('_', ' ')}, now or since the start.", value)


class Service:
    """Everything behind the routes. ``rated`` is whether tokens have budgets by the minute, and shares. The base answers to
    ``aliases`` too, or, with ``any_model``, to whatever a program calls it."""

    def __init__(
        self,
        engine: BatchEngine,
        base: WhisperBase,
        limits: ServerLimits,
        *,
        rated: bool,
        aliases: Sequence[str] = (),
        any_model: bool = False,
    ) -> None:
        self.engine, self.base, self.limits = engine, base, limits
        self.models, self.any_model = tuple(dict.fromkeys((base.name, *aliases))), any_model
        self.share = limits.token_share if rated else 1.0
        self.open_requests = Places("requests", limits.max_open_requests, self.share)
        self.body_bytes = Places("bytes of bodies", limits.max_buffered_bytes, self.share, retry_after=2.0)
        self.handles = Handles(limits.handle_bytes, limits.handle_seconds, limits.handles_per_token)
        self.metrics = ServerMetrics(self.gauges)
        self.request_rate = RateLimit("requests", limits.requests_per_minute if rated else 0.0)
        self.audio_rate = RateLimit("seconds of audio", limits.audio_seconds_per_minute if rated else 0.0)
        self._threads = anyio.CapacityLimiter(limits.threads)
        self._turns = defaultdict[str, asyncio.Lock](asyncio.Lock)  # of each token
        self._decoders: list[Decoder] = []  # those that are idle, so there are no more than threads

    async def off_loop(self, function: Callable[..., Result], *args: Any, **options: Any) -> Result:
        """Run a computation in one of a few threads, so that the event loop goes on serving others."""
        return await to_thread.run_sync(partial(function, *args, **options), limiter=self._threads)

    async def admit(self, data: bytes, principal: str) -> ServedAdapter:
        """A packed adapter from a request, checked against the base; one of a token at a time."""
        async with self._turns[principal]:
            return await self.off_loop(admit, data, self.base, max_bytes=self.limits.max_adapter_bytes)

    async def decode(self, data: bytes, principal: str, max_seconds: float, source: str = "file") -> Waveform:
        """Audio of a request as samples, one file of a token at a time; the token's budget pays before anything is decoded."""

        def charge(seconds: float) -> None:
            self.audio_rate.take(principal, seconds)
            self.metrics.audio_seconds.inc(seconds)

        def work() -> Waveform:
            limits = self.limits
            longest = max(limits.max_audio_seconds, MAX_SECONDS)
            decoder = self._decoders.pop() if self._decoders else Decoder(limits.max_body_bytes, longest)
            try:
                return decode_audio(decoder, data, max_seconds, charge, source)
            finally:
                self._decoders.append(decoder)

        async with self._turns[principal]:
            self.audio_rate.take(principal, 0.0)  # nothing is even opened for who has nothing left
            return await self.off_loop(work)

    def close(self) -> None:
        """Forget the adapters, and end the processes that decode."""
        self.handles.clear()
        for decoder in self._decoders:
            decoder.close()

    def check_model(self, name: str) -> None:
        """Raise :class:`ProblemError` ``unknown-model`` for another model than the one that is served."""
        if not (self.any_model or name in ALIASES or name in self.models):
            served = ", ".join(map(repr, self.models))
            raise ProblemError("unknown-model", f"model: {name[:80]!r} is not served, only {served} and 'whisper-1'")

    def check_language(self, language: str) -> str:
        """The code of a language that a request names in any way, empty for detection.

        Raises :class:`ProblemError` for one that the base does not know.
        """
        known = self.base.languages or ("en",)
        try:
            code = language_code(language)
        except ConfigError as error:
            raise ProblemError("invalid-field", str(error)) from None
        if code in ("", AUTO):
            return ""
        if code not in known:
            raise ProblemError("invalid-field", f"language: {language[:40]!r} is none of {', '.join(sorted(known))}")
        return code

    def gauges(self) -> dict[str, float]:
        """Numbers of now, for the metrics."""
        return {
            **{f"engine_{name}": float(value) for name, value in self.engine.stats().items()},
            "open_requests": self.open_requests.held,
            "buffered_bytes": self.body_bytes.held,
            "handles": len(self.handles),
            "handle_bytes": self.handles.bytes,
            "handles_evicted": self.handles.evicted,
        }


async def _service(request: Request) -> Any:
    return request.app.state.service


async def _principal(request: Request) -> Any:
    return request.state.principal


ServiceOf = Annotated[Service, Depends(_service)]
PrincipalOf = Annotated[str, Depends(_principal)]
"""Whose token a request came with."""


async def unless_gone(request: Request, work: Coroutine[Any, Any, Result]) -> Result:
    """The result of ``work``, which is cancelled when the client hangs up (:class:`ClientDisconnect`). Read the body before."""
    task, gone = asyncio.ensure_future(work), asyncio.ensure_future(_hung_up(request))
    try:
        await asyncio.wait({task, gone}, return_when=asyncio.FIRST_COMPLETED)
        if task.done():
            return task.result()
        raise ClientDisconnect
    finally:
        task.cancel()
        gone.cancel()
        await asyncio.gather(task, gone, return_exceptions=True)


async def _hung_up(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass
