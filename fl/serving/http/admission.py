"""What every request passes first, before a byte of its body is read: room, token, rate, size and time.

Plain ASGI, outside of everything else: it also turns every exception into a problem document. A request's line in the log has
method, route template, status and seconds.
"""

from __future__ import annotations

import asyncio
import logging
import re
import time
from collections.abc import Collection
from urllib.parse import urlsplit

from starlette.datastructures import Headers
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from fl.serving.http.auth import TokenFile, bearer_of
from fl.serving.http.problems import ROOT, ProblemError, problem_of
from fl.serving.http.service import Service

logger = logging.getLogger(__name__)

ANYBODY = "anybody"  # who it is where there are no tokens
PUBLIC = frozenset({"/healthz", "/health", "/", "/openapi.json"})  # hold no secret, and are answered whatever the load
LOOPBACK = frozenset({"localhost", "127.0.0.1", "::1"})
GONE = 499  # no status that is sent: the client hung up


class AdmissionMiddleware:
    """Without ``tokens`` every program on this machine is let in, but no web page in its browser of another site than ``origins``."""

    def __init__(self, app: ASGIApp, service: Service, tokens: TokenFile | None, origins: Collection[str] = ()) -> None:
        self.app, self.service, self.tokens, self.origins = app, service, tokens, origins

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Let the request through, or answer with a problem."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        if scope["path"].startswith("/v1/"):  # an address that ends with a slash, and a path that begins with one
            scope["path"] = re.sub("//+", "/", scope["path"]).rstrip("/")
        exchange = _MeteredRequest(self.service, scope, receive, send)
        try:
            self._admit(scope, exchange)
            async with asyncio.timeout(self.service.limits.answer_seconds(scope["path"])):
                await self.app(scope, exchange.receive, exchange.send)
        except ClientDisconnect:
            pass
        except TimeoutError:
            await exchange.refuse(ProblemError("deadline", "not answered in time", close=True))
        except Exception as error:
            await exchange.refuse(problem_of(error))
        finally:
            exchange.end()

    def _admit(self, scope: Scope, exchange: _MeteredRequest) -> None:
        limits = self.service.limits
        headers, path = Headers(scope=scope), scope["path"]
        if self.tokens is None:
            _require_local(headers, self.origins)
        if not is_public(path):  # what is public takes nobody's place, and has its own seconds to be read
            principal = ANYBODY if self.tokens is None else _owner(headers, self.tokens)
            if self.tokens is not None:
                self.service.request_rate.take(principal)
            exchange.enter(principal)
        length = headers.get("content-length", "0")
        if not (length.isascii() and length.isdecimal()):
            raise ProblemError("bad-request", "Content-Length is no number", close=True)
        if len(length) > 18 or int(length) > limits.body_bytes(path):
            raise exchange.too_large()


def is_public(path: str) -> bool:
    """Whether a path is answered without a token."""
    return path in PUBLIC or path.startswith(ROOT)


def _owner(headers: Headers, tokens: TokenFile) -> str:
    token = bearer_of(headers.get("authorization", ""))
    if token is None:
        raise ProblemError(
            "unauthorized", "the request has no bearer token: send the header 'Authorization: Bearer TOKEN'"
        )
    owner = tokens.owner(token)
    if owner is None:
        raise ProblemError("unauthorized", "this server does not know the token")
    return owner


def _require_local(headers: Headers, origins: Collection[str]) -> None:
    """Without tokens, a page of another site must not use the server through its visitor's browser, by whatever name."""
    for name, before in (("host", "//"), ("origin", "")):
        value = headers.get(name)
        try:
            local = value is None or urlsplit(before + value).hostname in LOOPBACK
            local = local or (name == "origin" and value in origins)
        except ValueError:
            local = False
        if not local:
            raise ProblemError("forbidden-origin", f"the {name.title()} header is not of this machine")


class _MeteredRequest:
    """One request and its answer: counts bytes and seconds of the body as it is read, and remembers the status that was sent.

    A body that is too large or too slow raises where it is read.
    """

    def __init__(self, service: Service, scope: Scope, receive: Receive, send: Send) -> None:
        self._service, self._scope, self._receive, self._send = service, scope, receive, send
        self._started = time.monotonic()
        self._principal: str | None = None
        self._status = 0
        self._bytes = 0
        self._complete = False

    def enter(self, principal: str) -> None:
        """Take a place for a request of ``principal``, which :meth:`end` gives back."""
        self._service.open_requests.take(principal)
        self._principal = self._scope.setdefault("state", {})["principal"] = principal

    async def receive(self) -> Message:
        if self._complete:
            return await self._receive()  # which now waits for the client to hang up
        limits = self._service.limits
        try:
            async with asyncio.timeout(max(0.0, self._started + limits.body_seconds - time.monotonic())):
                message = await self._receive()
        except TimeoutError:
            reason = f"the body was not here after {limits.body_seconds:g} s"
            raise ProblemError("slow-body", reason, close=True) from None
        self._complete = message["type"] != "http.request" or not message.get("more_body", False)
        size = len(message.get("body", b""))
        if self._bytes + size > limits.body_bytes(self._scope["path"]):
            raise self.too_large()
        if self._principal is not None:
            self._service.body_bytes.take(self._principal, size)
            self._bytes += size
        return message

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self._status = message["status"]
        await self._send(message)

    def too_large(self) -> ProblemError:
        most = self._service.limits.body_bytes(self._scope["path"])
        return ProblemError("too-large", f"the body has more than the {most:,} bytes that are taken here", close=True)

    async def refuse(self, problem: ProblemError) -> None:
        """Answer with ``problem``, unless the answer has begun: then the connection ends."""
        self._service.metrics.problems.labels(problem.slug).inc()
        if not self._status:
            await problem.response()(self._scope, self._receive, self.send)

    def end(self) -> None:
        """Give the body's bytes back, count the request and log it."""
        if self._principal is not None:
            self._service.open_requests.give_back(self._principal)
            self._service.body_bytes.give_back(self._principal, self._bytes)
        route = getattr(self._scope.get("route"), "path", "unmatched")
        status, seconds = self._status or GONE, time.monotonic() - self._started
        self._service.metrics.requests.labels(route, str(status)).inc()
        self._service.metrics.request_seconds.labels(route).observe(seconds)
        logger.info("%s %s %d %.3f s", self._scope["method"], route, status, seconds)
