"""The small routes: adapters that are held for a while, the model that is served, health, metrics, and what a problem means."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Request, Response
from fastapi.responses import JSONResponse, PlainTextResponse
from prometheus_client import generate_latest

from fl.serving.engine.adapters import served_tokenizer
from fl.serving.http.limits import ADAPTERS_PATH
from fl.serving.http.problems import KINDS, ROOT, ProblemError
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
    adapter = await service.admit(await request.body())
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


def _model(service: Service) -> dict[str, Any]:
    base = service.base
    return {
        "id": base.name,
        "object": "model",
        "created": CREATED,
        "owned_by": "idiolect",
        "fingerprint": base.fingerprint,
        "tokenizer": served_tokenizer(base),
        "languages": list(base.languages),
    }


@server.get("/v1/models")
async def models(service: ServiceOf) -> dict[str, Any]:
    """The base that is served."""
    return {"object": "list", "data": [_model(service)]}


@server.get("/v1/models/{name:path}")
async def one_model(service: ServiceOf, name: str) -> dict[str, Any]:
    """The same, by name."""
    service.check_model(name or "?")
    return _model(service)


@server.get("/healthz")
async def health(service: ServiceOf) -> dict[str, Any]:
    """Whether the server answers."""
    return {"status": "ok", "base": service.base.name}


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
