"""The app: routes, the gate before them, and every error as a problem document."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import anyio
from fastapi import FastAPI
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response

from fl import __version__
from fl.bases.whisper.base import WhisperBase
from fl.core.errors import IdiolectError
from fl.serving import page
from fl.serving.engine.adapters import served_tokenizer
from fl.serving.engine.requests import Engine
from fl.serving.http.auth import TokenFile
from fl.serving.http.forms import describe_invalid
from fl.serving.http.gate import Gate, Room
from fl.serving.http.handles import Handles
from fl.serving.http.limits import Rate, Settings
from fl.serving.http.metrics import Metrics
from fl.serving.http.problems import MEDIA_TYPE, ProblemError, problem_of
from fl.serving.http.routes import adapter_router, info_router
from fl.serving.http.service import Service
from fl.serving.http.transcriptions import router as transcription_router
from fl.serving.training.adapt import Adapt, Trainer, adapt_router

_PROBLEM = {
    "description": "A problem document of RFC 9457.",
    "content": {
        MEDIA_TYPE: {
            "schema": {
                "type": "object",
                "required": ["type", "title", "status", "detail", "remedy"],
                "properties": {
                    **{name: {"type": "string"} for name in ("type", "title", "detail", "remedy")},
                    "status": {"type": "integer"},
                },
            }
        }
    },
}
_STATUS_SLUGS = {404: "not-found", 405: "method-not-allowed"}


def create_app(
    engine: Engine,
    base: WhisperBase,
    settings: Settings | None = None,
    *,
    tokens: TokenFile | None = None,
    adapt: Adapt | None = None,
) -> FastAPI:
    """The server on ``engine`` and ``base``. The caller closes the engine.

    Without ``tokens`` it answers everybody whose request names this machine: bind it to a loopback address. ``adapt`` runs
    the local steps of ``POST /v1/adapt``; without it there is no such route.
    """
    settings = settings or Settings()
    room = Room()
    handles = Handles(settings.handle_bytes, settings.handle_seconds, settings.handles_per_token)
    metrics = Metrics(lambda: service.gauges())
    service = Service(
        engine=engine,
        base=base,
        settings=settings,
        handles=handles,
        metrics=metrics,
        room=room,
        audio_rate=Rate("seconds of audio", settings.audio_seconds_per_minute if tokens else 0.0),
        limiter=anyio.CapacityLimiter(settings.threads),
    )
    trainer = Trainer(adapt, settings) if adapt is not None else None

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        try:
            yield
        finally:
            handles.clear()
            if trainer is not None:
                trainer.close()

    app = FastAPI(
        title="Idiolect",
        version=__version__,
        summary="Speech recognition with everybody's own adapter on one frozen base.",
        docs_url=None,  # FastAPI's pages load scripts from elsewhere
        redoc_url=None,
        lifespan=lifespan,
        responses={"default": _PROBLEM},
    )
    app.state.service, app.state.trainer = service, trainer
    app.include_router(transcription_router())
    app.include_router(adapter_router())
    app.include_router(info_router(served_tokenizer(base)))
    if trainer is not None:
        app.include_router(adapt_router(trainer))
    app.include_router(page.router())
    for kind, handler in _handlers(metrics).items():
        app.add_exception_handler(kind, handler)
    app.add_middleware(Gate, settings=settings, tokens=tokens, room=room, metrics=metrics)  # type: ignore[arg-type]
    return app


def _handlers(metrics: Metrics) -> dict[type[Exception], Callable[[Request, Any], Awaitable[Response]]]:
    """An answer for each kind of error that a route may raise; what is left is the gate's."""

    def answer(problem: ProblemError, headers: Any = None) -> Response:
        metrics.count_problem(problem.slug)
        return problem.response(headers)

    async def typed(_: Request, error: IdiolectError) -> Response:
        return answer(problem_of(error))

    async def of_http(_: Request, error: HTTPException) -> Response:
        slug = _STATUS_SLUGS.get(error.status_code, "bad-request")
        return answer(ProblemError(slug, str(error.detail)), error.headers)

    async def invalid(_: Request, error: RequestValidationError) -> Response:
        return answer(ProblemError("invalid-field", describe_invalid(error.errors())))

    return {IdiolectError: typed, HTTPException: of_http, RequestValidationError: invalid}
