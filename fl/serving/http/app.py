"""The app: its routes, and the admission before them."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from fastapi import FastAPI
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response

from fl import __version__
from fl.bases.whisper.base import WhisperBase
from fl.serving import page
from fl.serving.engine.adapters import served_tokenizer
from fl.serving.engine.engine import BatchEngine
from fl.serving.http import adapt as training
from fl.serving.http import problems, routes, transcriptions
from fl.serving.http.admission import AdmissionMiddleware
from fl.serving.http.auth import TokenFile
from fl.serving.http.limits import ServerLimits
from fl.serving.http.service import Service


def create_app(
    engine: BatchEngine,
    base: WhisperBase,
    limits: ServerLimits | None = None,
    *,
    tokens: TokenFile | None = None,
    adapt: training.Adapt | None = None,
) -> FastAPI:
    """The server on ``engine`` and ``base``. The caller closes the engine.

    Without ``tokens`` it answers everybody whose request names this machine: bind it to a loopback address. ``adapt`` runs
    the local steps of ``POST /v1/adapt``; without it there is no such route.
    """
    service = Service(engine, base, limits or ServerLimits(), rated=tokens is not None)
    served_tokenizer(base)  # computed here, not in the first request
    queue = None if adapt is None else training.AdaptQueue(adapt, service.limits.adapts_waiting)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        try:
            yield
        finally:
            service.handles.clear()
            if queue is not None:
                queue.close()

    app = FastAPI(
        title="Idiolect",
        version=__version__,
        summary="Speech recognition with everybody's own adapter on one frozen base.",
        docs_url=None,  # FastAPI's pages load scripts from elsewhere
        redoc_url=None,
        lifespan=lifespan,
        responses={"default": problems.OPENAPI},
    )
    app.state.service, app.state.adapts = service, queue
    for router in (transcriptions.router, routes.adapters, routes.server, page.router):
        app.include_router(router)
    if queue is not None:
        app.include_router(training.router)
    for kind in (HTTPException, RequestValidationError):
        app.add_exception_handler(kind, _leave_to_admission)
    app.add_middleware(AdmissionMiddleware, service=service, tokens=tokens)
    return app


async def _leave_to_admission(_: Request, error: Exception) -> Response:
    raise error  # FastAPI would answer it in a form of its own
