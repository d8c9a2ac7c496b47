"""What the server answers when it does not do what was asked: problem documents of RFC 9457, and which error is which.

A document has ``type`` (ends in a slug of :data:`KINDS`), ``title``, ``status``, ``detail`` (what was wrong this time) and
``remedy`` (what to do). It goes to the sender alone; nothing of it is logged but the slug.
"""

from __future__ import annotations

import logging
import math
import traceback
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from starlette.responses import JSONResponse

from fl.core.errors import AdapterError, AdapterMismatchError, AudioError, IdiolectError, RunError, TextError
from fl.serving.engine.requests import BusyError, ClosedError, DeadlineError

logger = logging.getLogger(__name__)

MEDIA_TYPE = "application/problem+json"
ROOT = "/problems/"  # a reference relative to the server, which explains each kind there


@dataclass(frozen=True)
class Kind:
    """What is the same every time: the HTTP status, a title, and what to do."""

    status: int
    title: str
    remedy: str


KINDS: dict[str, Kind] = {
    "bad-request": Kind(400, "The request cannot be read", "Send multipart/form-data as docs/serving.md shows."),
    "unauthorized": Kind(401, "No valid token", "Send 'Authorization: Bearer TOKEN' with a token of this server."),
    "forbidden-origin": Kind(403, "Not from this machine", "Without tokens the server only answers its own machine."),
    "not-found": Kind(404, "There is nothing here", "GET /openapi.json lists what there is."),
    "unknown-handle": Kind(404, "The adapter is not here", "Put it again with PUT /v1/adapters, or send it along."),
    "unknown-model": Kind(404, "That model is not served", "GET /v1/models says which one is."),
    "method-not-allowed": Kind(405, "That method is not for this path", "Use a method that the Allow header names."),
    "deadline": Kind(
        408, "Not done in time", "Send less audio or an own, longer-lived job; try when less is going on."
    ),
    "slow-body": Kind(408, "The body did not arrive in time", "Send smaller audio (FLAC, Opus) or a handle."),
    "too-large": Kind(413, "More bytes than this server takes", "Send less: FLAC, Opus, an int8 adapter, a handle."),
    "audio-too-long": Kind(413, "More seconds than this server takes", "Cut the recording and send the parts."),
    "invalid-field": Kind(422, "A field has a value that is not allowed", "Correct the field that the detail names."),
    "unusable-audio": Kind(422, "The audio cannot be used", "Send speech as WAV, FLAC, OGG or MP3."),
    "unusable-adapter": Kind(422, "The adapter cannot be used", "Export it again, or use an earlier one."),
    "adapter-mismatch": Kind(422, "The adapter belongs to another base", "GET /v1/models says which base is served."),
    "unusable-text": Kind(422, "A text cannot be learned from", "Correct or leave out the utterance that is named."),
    "unservable": Kind(422, "The request cannot be served", "Correct what the detail names."),
    "busy": Kind(429, "As much work is open as the server may hold", "Try again after the seconds of Retry-After."),
    "rate-limited": Kind(429, "Too much for one token", "Try again after the seconds of Retry-After."),
    "internal": Kind(500, "A fault of the server", "Try again; if it stays, report it with the time of day."),
    "closing": Kind(503, "The server is shutting down", "Try again after the seconds of Retry-After."),
}

_SLUGS: tuple[tuple[type[IdiolectError], str], ...] = (  # a subclass before its base
    (BusyError, "busy"),
    (DeadlineError, "deadline"),
    (ClosedError, "closing"),
    (AdapterMismatchError, "adapter-mismatch"),
    (AdapterError, "unusable-adapter"),
    (AudioError, "unusable-audio"),
    (TextError, "unusable-text"),
    (RunError, "internal"),
)


class ProblemError(IdiolectError):
    """A request that is refused. ``slug`` is a key of :data:`KINDS`; ``retry_after`` is in seconds."""

    def __init__(self, slug: str, detail: str, *, retry_after: float = 0.0, close: bool = False) -> None:
        super().__init__(detail)
        self.slug = slug
        self.kind = KINDS[slug]
        self.retry_after = retry_after
        self.close = close

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

    def headers(self) -> dict[str, str]:
        """``Retry-After`` in whole seconds, ``WWW-Authenticate`` where a token is missing, ``Connection`` where it ends."""
        headers = {"cache-control": "no-store"}
        if self.retry_after > 0:
            headers["retry-after"] = str(math.ceil(self.retry_after))
        if self.slug == "unauthorized":
            headers["www-authenticate"] = 'Bearer realm="idiolect"'
        if self.close:
            headers["connection"] = "close"
        return headers

    def response(self, extra: Mapping[str, str] | None = None) -> JSONResponse:
        """The answer on the wire."""
        headers = {**self.headers(), **(extra or {})}
        return JSONResponse(self.document(), self.kind.status, headers=headers, media_type=MEDIA_TYPE)


def problem_of(error: IdiolectError) -> ProblemError:
    """The problem that a typed error of the engine or of the checks is."""
    if isinstance(error, ProblemError):
        return error
    slug = next((slug for kind, slug in _SLUGS if isinstance(error, kind)), "unservable")
    retry_after = error.retry_after if isinstance(error, BusyError) else 5.0 if slug == "closing" else 0.0
    return ProblemError(slug, str(error), retry_after=max(retry_after, 1.0) if slug in ("busy", "closing") else 0.0)


def log_fault(error: BaseException) -> None:
    """Log where an unexpected exception came from, and not its message: that may quote what a person said."""
    frames = traceback.extract_tb(error.__traceback__)[-8:]
    places = " < ".join(
        f"{frame.filename.rpartition('/')[2]}:{frame.lineno} {frame.name}" for frame in reversed(frames)
    )
    logger.error("%s at %s", type(error).__name__, places)
