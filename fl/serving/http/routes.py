"""The small routes: adapters that are held for a while, the model that is served, health, metrics, and what a problem means."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Request, Response
from fastapi.responses import JSONResponse, PlainTextResponse

from fl.serving.engine.requests import ServedAdapter
from fl.serving.http import metrics
from fl.serving.http.forms import read_body
from fl.serving.http.problems import KINDS, ROOT, ProblemError
from fl.serving.http.service import Service, principal_of, service_of

CREATED = 1_663_718_400  # 21 September 2022, when Whisper's weights were published; the API wants a date
_PACKED = {
    "required": True,
    "content": {"application/octet-stream": {"schema": {"type": "string", "format": "binary"}}},
}
_NO_STORE = {"cache-control": "no-store"}


def adapter_router() -> APIRouter:
    """``/v1/adapters``: put, look at, and drop an adapter that later requests name by its handle."""
    routes = APIRouter(tags=["adapters"])

    @routes.put("/v1/adapters", openapi_extra={"requestBody": _PACKED})
    async def put(request: Request) -> JSONResponse:
        """Hold a packed adapter in memory; the same one again keeps its handle."""
        service, principal = service_of(request), principal_of(request)
        adapter = await service.admit(await read_body(request, service.settings.max_adapter_bytes))
        handle = service.handles.put(principal, adapter)
        return JSONResponse(_held(service, principal, handle, adapter), headers=_NO_STORE)

    @routes.get("/v1/adapters/{handle}")
    async def look(request: Request, handle: str) -> JSONResponse:
        """Whether an adapter is still here; asking does not prolong its stay."""
        service, principal = service_of(request), principal_of(request)
        adapter = service.handles.look(principal, handle)
        return JSONResponse(_held(service, principal, handle, adapter), headers=_NO_STORE)

    @routes.head("/v1/adapters/{handle}")
    async def head(request: Request, handle: str) -> Response:
        """As GET, without the answer's body."""
        service_of(request).handles.look(principal_of(request), handle)
        return Response(headers=_NO_STORE, media_type="application/json")

    @routes.delete("/v1/adapters/{handle}", status_code=204, response_class=Response)
    async def drop(request: Request, handle: str) -> Response:
        """Forget an adapter."""
        service_of(request).handles.drop(principal_of(request), handle)
        return Response(status_code=204)

    return routes


def _held(service: Service, principal: str, handle: str, adapter: ServedAdapter) -> dict[str, Any]:
    return {
        "handle": handle,
        "expires_in": round(service.handles.expires_in(principal, handle), 3),
        "bytes": adapter.bytes,
        "digest": adapter.digest,
    }


def info_router(tokenizer: str) -> APIRouter:
    """Models, health, metrics, problems. ``tokenizer`` is the digest of the served tokenizer."""
    routes = APIRouter(tags=["server"])

    def model(service: Service) -> dict[str, Any]:
        base = service.base
        return {
            "id": base.name,
            "object": "model",
            "created": CREATED,
            "owned_by": "idiolect",
            "fingerprint": base.fingerprint,
            "tokenizer": tokenizer,
            "languages": list(base.languages),
        }

    @routes.get("/v1/models")
    async def models(request: Request) -> dict[str, Any]:
        """The base that is served."""
        return {"object": "list", "data": [model(service_of(request))]}

    @routes.get("/v1/models/{name:path}")
    async def one_model(request: Request, name: str) -> dict[str, Any]:
        """The same, by name."""
        service = service_of(request)
        service.check_model(name or "?")
        return model(service)

    @routes.get("/healthz")
    async def health(request: Request) -> dict[str, Any]:
        """Whether the server answers."""
        return {"status": "ok", "base": service_of(request).base.name}

    @routes.get("/metrics", response_class=PlainTextResponse)
    async def prometheus(request: Request) -> Response:
        """Metrics in Prometheus' text format."""
        return Response(service_of(request).metrics.text(), media_type=metrics.CONTENT_TYPE)

    @routes.get(ROOT + "{slug}")
    async def problem(slug: str) -> dict[str, Any]:
        """What a problem's type means."""
        if slug not in KINDS:
            raise ProblemError("not-found", "there is no problem of that name")
        kind = KINDS[slug]
        return {"type": ROOT + slug, "title": kind.title, "status": kind.status, "remedy": kind.remedy}

    return routes
