"""What every request passes first, before a byte of its body is read: room, token, rate, size and time.

Plain ASGI, outside of everything else: it also turns what nobody expected into a problem document, and logs where that came
from without what it said. A request line in the log has method, route template, status and seconds.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from urllib.parse import urlsplit

from starlette.datastructures import Headers
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from fl.serving.http.auth import TokenFile, bearer_of
from fl.serving.http.limits import Rate, Settings
from fl.serving.http.metrics import Metrics
from fl.serving.http.problems import ROOT, ProblemError, log_fault

logger = logging.getLogger(__name__)

ANYBODY = "anybody"  # who it is where there are no tokens
FREE = frozenset({"/healthz"})  # answered however much is going on
PUBLIC = FREE | {"/", "/openapi.json"}  # hold no secret
LOOPBACK = frozenset({"localhost", "127.0.0.1", "::1"})
GONE = 499  # no status that is sent: the client hung up


class Room:
    """How many requests are open, and the bytes of their bodies."""

    def __init__(self) -> None:
        self.open = 0
        self.buffered = 0


class Gate:
    """The middleware. ``tokens`` None: everybody on this machine, and nobody whose browser was sent here by a web page."""

    def __init__(
        self,
        app: ASGIApp,
        settings: Settings,
        tokens: TokenFile | None,
        room: Room,
        metrics: Metrics,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.app = app
        self.settings = settings
        self.tokens = tokens
        self.room = room
        self.metrics = metrics
        self._clock = clock
        self._rate = Rate("requests", settings.requests_per_minute if tokens else 0.0, clock)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Let the request through, or answer with a problem."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        started, answer, body = self._clock(), _Answer(send), _Body(self, receive)
        free = scope["path"] in FREE
        self.room.open += not free
        try:
            if not free:
                self._admit(scope, body)
            async with asyncio.timeout(self.settings.answer_seconds(scope["path"])):
                await self.app(scope, body.receive, answer.send)
        except ProblemError as problem:
            await self._refuse(answer, problem, scope, receive)
        except ClientDisconnect:
            answer.status = answer.status or GONE
        except TimeoutError:
            await self._refuse(answer, ProblemError("deadline", "not answered in time", close=True), scope, receive)
        except Exception as error:
            log_fault(error)
            await self._refuse(answer, ProblemError("internal", "the server failed on this request"), scope, receive)
        finally:
            self.room.open -= not free
            body.release()
            self._note(scope, answer.status or GONE, self._clock() - started)

    async def _refuse(self, answer: _Answer, problem: ProblemError, scope: Scope, receive: Receive) -> None:
        self.metrics.count_problem(problem.slug)
        if not answer.status:  # else it broke off in the middle of an answer, and the connection ends
            await problem.response()(scope, receive, answer.send)

    def _note(self, scope: Scope, status: int, seconds: float) -> None:
        route = getattr(scope.get("route"), "path", "unmatched")
        self.metrics.count_request(route, status, seconds)
        logger.info("%s %s %d %.3f s", scope["method"], route, status, seconds)

    def _admit(self, scope: Scope, body: _Body) -> None:
        if self.room.open > self.settings.max_open_requests:
            raise ProblemError("busy", f"{self.settings.max_open_requests} requests are open", retry_after=1.0)
        headers, path = Headers(scope=scope), scope["path"]
        principal = ANYBODY
        if self.tokens is None:
            _require_local(headers)
        elif path not in PUBLIC and not path.startswith(ROOT):
            principal = self._owner(headers)
            self._rate.take(principal)
        scope.setdefault("state", {})["principal"] = principal
        length = headers.get("content-length", "0")
        if not (length.isascii() and length.isdecimal()):
            raise ProblemError("bad-request", "Content-Length is no number", close=True)
        if len(length) > 18 or int(length) > self.settings.max_body_bytes:
            raise body.too_large()

    def _owner(self, headers: Headers) -> str:
        assert self.tokens is not None
        token = bearer_of(headers.get("authorization", ""))
        if token is None:
            raise ProblemError("unauthorized", "the request has no bearer token")
        owner = self.tokens.owner(token)
        if owner is None:
            raise ProblemError("unauthorized", "this server does not know the token")
        return owner


def _require_local(headers: Headers) -> None:
    """Without tokens, a page of another site must not use the server through its visitor's browser, by whatever name."""
    for name in ("host", "origin"):
        value = headers.get(name)
        if value is not None and _host_of(value, name) not in LOOPBACK:
            raise ProblemError("forbidden-origin", f"the {name.title()} header is not of this machine")


def _host_of(value: str, name: str) -> str:
    try:
        return urlsplit(value if name == "origin" else f"//{value}").hostname or ""
    except ValueError:
        return ""


class _Answer:
    """The way back, which remembers the status that was sent."""

    def __init__(self, send: Send) -> None:
        self._send = send
        self.status = 0

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.status = message["status"]
        await self._send(message)


class _Body:
    """The way in, which counts bytes and seconds. A body that is too large or too slow raises where it is read."""

    def __init__(self, gate: Gate, receive: Receive) -> None:
        self._gate = gate
        self._receive = receive
        self._deadline = gate._clock() + gate.settings.body_seconds
        self._bytes = 0
        self._complete = False

    async def receive(self) -> Message:
        if self._complete:
            return await self._receive()  # which now waits for the client to hang up
        try:
            async with asyncio.timeout(max(0.0, self._deadline - self._gate._clock())):
                message = await self._receive()
        except TimeoutError:
            seconds = self._gate.settings.body_seconds
            raise ProblemError("slow-body", f"the body was not here after {seconds:g} s", close=True) from None
        self._complete = message["type"] != "http.request" or not message.get("more_body", False)
        size = len(message.get("body", b""))
        self._bytes += size
        self._gate.room.buffered += size
        if self._bytes > self._gate.settings.max_body_bytes:
            raise self.too_large()
        if self._gate.room.buffered > self._gate.settings.max_buffered_bytes:
            raise ProblemError("busy", "the server holds as many bytes as it may", retry_after=2.0, close=True)
        return message

    def too_large(self) -> ProblemError:
        limit = self._gate.settings.max_body_bytes
        return ProblemError("too-large", f"the body has more than the {limit:,} bytes that are taken", close=True)

    def release(self) -> None:
        self._gate.room.buffered -= self._bytes
        self._bytes = 0
