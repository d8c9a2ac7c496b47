"""What goes to a server and what comes back: multipart/form-data (RFC 7578) as far as a device writes it, documents, events
as they come, and problems, as types that say whether trying again can help. Never more of an answer than its limit.
"""

from __future__ import annotations

import http.client
import json
import math
import os
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from typing import Any

from fl.core.errors import IdiolectError
from fl.core.printing import harmless

BINARY = "application/octet-stream"
MAX_ANSWER_BYTES = 16 * 2**20
MAX_PROBLEM_BYTES = 64 * 2**10
MAX_DETAIL = 400  # characters of a server's text that a message repeats
_CHUNK = 64 * 2**10
RETRIED = frozenset({408, 425, 429, 500, 502, 503, 504})  # statuses after which the same request may well succeed


class UnreachableError(IdiolectError):
    """No answer after all attempts, or none that is of use now (busy, shutting down). Later may work; nothing is lost."""


class RefusedError(IdiolectError):
    """The server refused the request. ``status`` is HTTP's; ``slug`` is the end of the problem's type, or empty."""

    def __init__(self, message: str, status: int, slug: str = "") -> None:
        super().__init__(message)
        self.status = status
        self.slug = slug


class RetryableError(Exception):
    """An answer after which the same request may well succeed. Never leaves :mod:`clients.device.http`."""

    def __init__(self, reason: str, retry_after: float | None) -> None:
        super().__init__(reason)
        self.retry_after = retry_after


def unexpected(fault: str) -> RefusedError:
    """A good status with an answer that has a ``fault``, as ``is no JSON``: it does not come from such a server."""
    return RefusedError(f"the server's answer {fault}: is this the right address?", 200)


@dataclass(frozen=True)
class FormPart:
    """A field, or a file where it has a ``filename``. Names and types are ours, never those of a person's files."""

    name: str
    content: bytes
    filename: str = ""
    content_type: str = ""

    @classmethod
    def adapter(cls, packed: bytes) -> FormPart:
        """A packed adapter as a file."""
        return cls("adapter", packed, "adapter.safetensors", BINARY)

    @classmethod
    def texts(cls, **texts: str) -> list[FormPart]:
        """A field for each text that is not empty."""
        return [cls(name, text.encode()) for name, text in texts.items() if text]


@dataclass(frozen=True)
class RequestBody:
    """Parts that are sent one after the other, as often as it takes."""

    parts: tuple[bytes, ...]
    content_type: str = BINARY

    @classmethod
    def form(cls, parts: Sequence[FormPart]) -> RequestBody:
        """The parts as a form. No content is copied, and the boundary is 128 random bits."""
        boundary = os.urandom(16).hex()
        pieces: list[bytes] = []
        for part in parts:
            head = f'--{boundary}\r\nContent-Disposition: form-data; name="{part.name}"'
            if part.filename:
                head += f'; filename="{part.filename}"\r\nContent-Type: {part.content_type}'
            pieces += [f"{head}\r\n\r\n".encode(), part.content, b"\r\n"]
        pieces.append(f"--{boundary}--\r\n".encode())
        return cls(tuple(pieces), f"multipart/form-data; boundary={boundary}")


def _problem(document: dict[str, Any], status: int, reason: str, retry_after: str | None = None) -> Exception:
    """RFC 9457's members, where there are some, as an error."""
    found = {key: value for key, value in document.items() if isinstance(value, str)}
    slug = found.get("type", "").rpartition("/")[2]
    said = "; ".join(found[key] for key in ("detail", "remedy") if key in found) or found.get("title", reason)
    text = f"the server refused ({status} {printable(slug or reason)}): {printable(said)}"
    if status in RETRIED:
        return RetryableError(text, parse_retry_after(retry_after))
    return RefusedError(text, status, slug)


def printable(text: str) -> str:
    """A server's text as a message may repeat it: short, on one line, and without characters that steer a terminal."""
    return harmless(text[:MAX_DETAIL], kept="")


def _object(data: bytes) -> dict[str, Any]:
    try:
        found = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise unexpected(f"is no JSON ({type(error).__name__})") from error
    if not isinstance(found, dict):
        raise unexpected("is no JSON object")
    return found


class ServerAnswer:
    """An answer that is being read: never more of it than its limit, never for longer than ``late`` allows."""

    def __init__(self, response: http.client.HTTPResponse, late: Callable[[], bool]) -> None:
        self._response, self._late = response, late

    def check_status(self) -> None:
        """Raise :class:`RefusedError`, or :class:`RetryableError`, for a status that is not one of success."""
        response = self._response
        if 200 <= response.status < 300:
            return
        try:
            document = _object(response.read(MAX_PROBLEM_BYTES))
        except RefusedError:
            document = {}
        raise _problem(document, response.status, response.reason, response.headers.get("Retry-After"))

    def content(self, limit: int = MAX_ANSWER_BYTES) -> bytes:
        """All of it. Raises ConnectionError, after which another attempt is made, for one that was cut off."""
        data = b"".join(self._bounded(lambda: self._response.read1(_CHUNK), limit))
        if self._response.length:
            raise ConnectionError("the answer was cut off")
        self._response.read()  # at the end already; the connection is now free for the next request
        return data

    def _bounded(self, read: Callable[[], bytes], limit: int) -> Iterator[bytes]:
        total = 0
        while piece := read():
            total += len(piece)
            if total > limit:
                raise unexpected(f"has more than {limit:,} bytes")
            if self._late():
                raise UnreachableError("the server's answer came too slowly: try again later")
            yield piece

    def json(self, limit: int = MAX_ANSWER_BYTES) -> dict[str, Any]:
        """A JSON object."""
        return _object(self.content(limit))

    def events(self) -> Iterator[dict[str, Any]]:
        """The data of server-sent events, as JSON objects; ``[DONE]`` and comments are left out.

        An event of the type ``error`` raises what the same problem raises before an answer has begun.
        """
        data: list[bytes] = []
        for line in self._bounded(lambda: self._response.readline(MAX_ANSWER_BYTES), MAX_ANSWER_BYTES):
            if line.startswith(b"data:"):
                data.append(line[5:].removeprefix(b" ").rstrip(b"\r\n"))
            elif not line.rstrip(b"\r\n") and data:
                found, data = b"\n".join(data), []
                if found == b"[DONE]":
                    continue
                event = _object(found)
                if event.get("type") == "error":
                    problem = event.get("problem")
                    document = problem if isinstance(problem, dict) else {}
                    status = document.get("status")
                    raise _problem(document, status if isinstance(status, int) else 500, "error")
                yield event


def parse_retry_after(text: str | None, now: float | None = None) -> float | None:
    """Seconds of a Retry-After header, given in seconds or as a date; None for none and for nonsense."""
    if not text or len(text) > 64:
        return None
    if text.strip().isdecimal() and text.isascii():
        return float(text)
    try:
        moment = parsedate_to_datetime(text).timestamp()
    except (TypeError, ValueError, OverflowError):
        return None
    seconds = moment - (time.time() if now is None else now)
    return max(0.0, seconds) if math.isfinite(seconds) else None
