"""The app: admission, and behind it the routes, of which the small ones are here: adapters that are held for a while, the model
that is served, health, metrics, and what a problem means.
"""

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any

from fastapi import APIRouter, FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, PlainTextResponse
from prometheus_client import generate_latest
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware

from fl import __version__
from fl.bases.whisper.base import WhisperBase
from fl.serving import page
from fl.serving.engine.adapters import served_tokenizer
from fl.serving.engine.engine import BatchEngine
from fl.serving.http import adapt as training
from fl.serving.http import transcriptions
from fl.serving.http.admission import AdmissionMiddleware
from fl.serving.http.auth import TokenFile
from fl.serving.http.limits import ADAPTERS_PATH, ServerLimits
from fl.serving.http.problems import KINDS, OPENAPI, ROOT, ProblemError
from fl.serving.http.service import NO_STORE, PrincipalOf, Service, ServiceOf

CREATED = 1_663_718_400  # 21 September 2022, when Whisper's weights were published; the API wants a date
METRICS_TYPE = "text/plain; version=0.0.4; charset=utf-8"
HANDLE_PATH = ADAPTERS_PATH + "/{handle}"
_PACKED = {"application/octet-stream": {"schema": {"type": "string", "format": "binary"}}}

adapters = APIRouter(tags=["adapters"])
server = APIRouter(tags=["server"])


@adapters.put(ADAPTERS_PATH, openapi_extra={"requestBody": {"required": True, "content": _PACKED}})
async def put(request: Request, service: ServiceOf, principal: PrincipalOf) -> JSONResponse:
    """Hold a packed adapter in memory; the same one again keeps its handle."""
    adapter = await service.admit(await request.body(), principal)
    service.engine.check_adapter(adapter)
    return await look(service, principal, service.handles.put(principal, adapter))


@adapters.head(HANDLE_PATH, name="head", description="As GET, without the answer's body.")
@adapters.get(HANDLE_PATH)
async def look(service: ServiceOf, principal: PrincipalOf, handle: str) -> JSONResponse:
    """Whether an adapter is still here; asking does not prolong its stay."""
    adapter, seconds = service.handles.look(principal, handle)
    found = {"handle": handle, "expires_in": round(seconds, 3), "bytes": adapter.bytes, "digest": adapter.digest}
    return JSONResponse(found, headers=NO_STORE)


@adapters.delete(HANDLE_PATH, status_code=204, response_class=Response)
async def drop(service: ServiceOf, principal: PrincipalOf, handle: str) -> Response:
    """Forget an adapter."""
    service.handles.drop(principal, handle)
    return Response(status_code=204)


def _model(service: Service, name: str) -> dict[str, Any]:
    base = service.base
    return {
        "id": name,
        "object": "model",
        "created": CREATED,
        "owned_by": "idiolect",
        "root": base.name,  # what an alias stands for
        "fingerprint": base.fingerprint,
        "tokenizer": served_tokenizer(base),
        "languages": list(base.languages),
    }


@server.head("/v1/models", include_in_schema=False)
@server.get("/v1/models")
async def models(service: ServiceOf) -> dict[str, Any]:
    """The base that is served, and the other names that it has here."""
    return {"object": "list", "data": [_model(service, name) for name in service.models]}


@server.head("/v1/models/{name:path}", include_in_schema=False)
@server.get("/v1/models/{name:path}")
async def one_model(service: ServiceOf, name: str) -> dict[str, Any]:
    """The same, by name."""
    service.check_model(name or "?")
    return _model(service, name)


@server.head("/health", include_in_schema=False)
@server.get("/health", include_in_schema=False)
@server.head("/healthz", include_in_schema=False)
@server.get("/healthz")
async def health(service: ServiceOf) -> dict[str, Any]:
    """Whether the server answers."""
    return {"status": "ok", "base": service.base.name}


@server.post("/v1/audio/translations", include_in_schema=False)
async def translations() -> None:
    """Adapters are trained to write what was said, in the languages in which it was said."""
    raise ProblemError("not-found", "this server transcribes and does not translate: use /v1/audio/transcriptions")


@server.get("/metrics", response_class=PlainTextResponse)
async def prometheus(service: ServiceOf) -> Response:
    """Metrics in Prometheus' text format."""
    return Response(generate_latest(service.metrics.registry), media_type=METRICS_TYPE)


@server.get(ROOT + "{slug}")
async def problem(slug: str) -> dict[str, Any]:
    """What a problem's type means."""
    if slug not in KINDS:
        raise ProblemError("not-found", "there is no problem of that name")
    kind = KINDS[slug]
    return {"type": ROOT + slug, "title": kind.title, "status": kind.status, "remedy": kind.remedy}


def create_app(
    engine: BatchEngine,
    base: WhisperBase,
    limits: ServerLimits | None = None,
    *,
    tokens: TokenFile | None = None,
    adapt: training.Adapt | None = None,
    aliases: Sequence[str] = (),
    any_model: bool = False,
    origins: Sequence[str] = (),
) -> FastAPI:
    """The server on ``engine`` and ``base``. The caller closes the engine.

    Without ``tokens`` it answers everybody whose request names this machine: bind it to a loopback address. ``adapt`` runs
    the local steps of ``POST /v1/adapt``; without it there is no such route. ``aliases`` and ``any_model`` as of :class:`Service`.
    Pages of ``origins`` may use the server from their visitors' browsers.
    """
    service = Service(
        engine, base, limits or ServerLimits(), rated=tokens is not None, aliases=aliases, any_model=any_model
    )
    served_tokenizer(base)  # computed here, not in the first request
    queue = None if adapt is None else training.AdaptQueue(adapt, service.limits.adapts_waiting, service.share)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        try:
            yield
        finally:
            service.close()
            if queue is not None:
                queue.close()

    app = FastAPI(
        title="Idiolect",
        version=__version__,
        summary="Speech recognition with everybody's own adapter on one frozen base.",
        docs_url=None,  # FastAPI's pages load scripts from elsewhere
        redoc_url=None,
        redirect_slashes=False,  # such a redirect goes to whatever Host the request names
        lifespan=lifespan,
        responses={"default": OPENAPI},
    )
    app.state.service, app.state.adapts = service, queue
    for router in (transcriptions.router, adapters, server, page.router):
        app.include_router(router)
    if queue is not None:
        app.include_router(training.router)
    for kind in (HTTPException, RequestValidationError):
        app.add_exception_handler(kind, _leave_to_admission)
    app.add_middleware(AdmissionMiddleware, service=service, tokens=tokens, origins=origins)
    if origins:  # outermost: a preflight has no token, and refusals are to be read by the page too
        app.add_middleware(
            CORSMiddleware,
            allow_origins=origins,
            allow_methods=("DELETE", "GET", "HEAD", "POST", "PUT"),
            allow_headers=("*",),
            allow_private_network=True,
            expose_headers=("*",),
        )
    return app


async def _leave_to_admission(_: Request, error: Exception) -> Response:
    raise error  # FastAPI would answer it in a form of its own
