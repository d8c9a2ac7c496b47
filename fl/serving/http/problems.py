"""What the server answers when it does not do what was asked: problem documents of RFC 9457, and which error is which.

A document has ``type`` (ends in a slug of :data:`KINDS`), ``title``, ``status``, ``detail`` (what was wrong this time) and
``remedy`` (what to do). It goes to the sender alone; nothing of it is logged but the slug.
"""

import logging
import math
import traceback
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse

from fl.core.errors import (
    AdapterError,
    AdapterMismatchError,
    AudioError,
    IdiolectError,
    RunError,
    TextError,
    TooShortError,
)
from fl.serving.engine.requests import BusyError, ClosedError, DeadlineError

logger = logging.getLogger(__name__)

MEDIA_TYPE = "application/problem+json"
ROOT = "/problems/"  # a reference relative to the server, which explains each kind there
_MEMBERS: dict[str, Any] = {name: {"type": "string"} for name in ("type", "title", "detail", "remedy")}
_MEMBERS["status"] = {"type": "integer"}
OPENAPI: dict[str, Any] = {
    "description": "A problem document of RFC 9457.",
    "content": {MEDIA_TYPE: {"schema": {"type": "object", "required": list(_MEMBERS), "properties": _MEMBERS}}},
}


@dataclass(frozen=True)
class Refusal:
    """What is the same every time: the HTTP status, a title, what to do, the typed error, the least ``Retry-After`` in seconds."""

    status: int
    title: str
    remedy: str
    error: type[Exception] | None = None
    retry_after: float = 0.0


KINDS: dict[str, Refusal] = {
    "bad-request": Refusal(400, "The request cannot be read", "Send multipart/form-data as docs/serving.md shows."),
    "audio-too-short": Refusal(400, "Too short to hold a word", "Record for longer.", TooShortError),
    "unauthorized": Refusal(401, "No valid token", "Send 'Authorization: Bearer TOKEN' with a token of this server."),
    "forbidden-origin": Refusal(
        403, "Not from this machine", "It answers its own machine; 'serve --cors-origin' adds a page."
    ),
    "not-found": Refusal(404, "There is nothing here", "GET /openapi.json lists what there is."),
    "unknown-handle": Refusal(404, "The adapter is not here", "Put it again with PUT /v1/adapters, or send it along."),
    "unknown-model": Refusal(
        404, "That model is not served", "GET /v1/models lists what is; 'serve --alias' adds a name."
    ),
    "method-not-allowed": Refusal(405, "Not the method of this path", "Use one that the Allow header names."),
    "deadline": Refusal(408, "Not done in time", "Retry later, or send shorter audio.", DeadlineError),
    "slow-body": Refusal(408, "The body did not arrive in time", "Send smaller audio (FLAC, Opus) or a handle."),
    "too-large": Refusal(413, "More bytes than this server takes", "Send FLAC or Opus, an int8 adapter, a handle."),
    "audio-too-long": Refusal(413, "More seconds than this server takes", "Cut the recording and send the parts."),
    "invalid-field": Refusal(422, "A field has a wrong value", "Correct the field that the detail names."),
    "unusable-audio": Refusal(
        422, "The audio cannot be used", "Send speech as WAV, FLAC, MP3, M4A, OGG or WebM.", AudioError
    ),
    "unusable-adapter": Refusal(422, "The adapter cannot be used", "Export it again or an earlier one.", AdapterError),
    "adapter-mismatch": Refusal(
        422, "The adapter belongs to another base", "GET /v1/models says which base is served.", AdapterMismatchError
    ),
    "unusable-text": Refusal(422, "A text cannot be learned from", "Correct or leave out that utterance.", TextError),
    "unservable": Refusal(422, "The request cannot be served", "Correct what the detail names.", IdiolectError),
    "busy": Refusal(429, "As much work is open as may be", "Retry after the seconds of Retry-After.", BusyError, 1.0),
    "rate-limited": Refusal(429, "Too much for one token", "Retry after the seconds of Retry-After.", None, 1.0),
    "internal": Refusal(500, "A fault of the server", "Retry; if it stays, report it with the time of day.", RunError),
    "closing": Refusal(503, "The server is shutting down", "Retry after the seconds of Retry-After.", ClosedError, 5.0),
}


class ProblemError(IdiolectError):
    """A request that is refused. ``slug`` is a key of :data:`KINDS`; ``retry_after`` is in seconds; ``close`` ends the connection."""

    def __init__(
        self,
        slug: str,
        detail: str,
        *,
        retry_after: float = 0.0,
        close: bool = False,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(detail)
        self.slug, self.kind = slug, KINDS[slug]
        self.retry_after = max(retry_after, self.kind.retry_after)
        self.close = close
        self.extra_headers = headers or {}

    def document(self) -> dict[str, Any]:
        """The members of RFC 9457, section 3.1, ``remedy``, and ``error``, of which OpenAI's clients show the message."""
        return {
            "type": ROOT + self.slug,
            "title": self.kind.title,
            "status": self.kind.status,
            "detail": str(self),
            "remedy": self.kind.remedy,
            "error": {"message": str(self), "code": self.slug},
        }

    def response(self) -> JSONResponse:
        """The answer on the wire: ``Retry-After`` in whole seconds, ``WWW-Authenticate`` where a token is missing, ``Connection``
        where it ends."""
        headers = {"cache-control": "no-store", **self.extra_headers}
        if self.retry_after > 0:
            headers["retry-after"] = str(math.ceil(self.retry_after))
        if self.slug == "unauthorized":
            headers["www-authenticate"] = 'Bearer realm="idiolect"'
        if self.close:
            headers["connection"] = "close"
        return JSONResponse(self.document(), self.kind.status, headers=headers, media_type=MEDIA_TYPE)


_SLUGS = {kind.error: slug for slug, kind in KINDS.items() if kind.error is not None}
_NOWHERE = "there is nothing at this path: give programs the address that ends with /v1, as of /v1/audio/transcriptions"
_HTTP_SLUGS = {404: "not-found", 405: "method-not-allowed"}


def problem_of(error: Exception) -> ProblemError:
    """The problem that an exception is. An unexpected one is logged, and answered as a fault of the server."""
    if isinstance(error, ProblemError):
        return error
    if isinstance(error, HTTPException):
        slug = _HTTP_SLUGS.get(error.status_code, "bad-request")
        detail = _NOWHERE if slug == "not-found" else str(error.detail)
        return ProblemError(slug, detail, headers=error.headers)
    if isinstance(error, RequestValidationError):
        return ProblemError("invalid-field", describe_invalid(error.errors()))
    slug = next((_SLUGS[kind] for kind in type(error).__mro__ if kind in _SLUGS), "")
    if slug:
        return ProblemError(slug, str(error), retry_after=getattr(error, "retry_after", 0.0))
    log_fault(error)
    return ProblemError("internal", "the server failed on this request")


def describe_invalid(errors: Sequence[Any]) -> str:
    """``field: reason`` of at most five errors of pydantic."""
    return "; ".join(f"{'.'.join(map(str, error['loc']))}: {error['msg']}" for error in errors[:5])


def log_fault(error: Exception) -> None:
    """Log where an unexpected exception came from, and not its message: that may quote what a person said."""
    frames = traceback.extract_tb(error.__traceback__)[:-9:-1]  # the innermost eight
    places = " < ".join(f"{Path(frame.filename).name}:{frame.lineno} {frame.name}" for frame in frames)
    logger.error("%s at %s", type(error).__name__, places)
