"""What a server answered: a document, events as they come, or a problem. Never more of it than its limit."""

from __future__ import annotations

import http.client
import json
from collections.abc import Callable, Iterator, Mapping

from clients.device.errors import RefusedError, UnreachableError
from clients.device.retry import RETRIED, parse_retry_after

MAX_ANSWER_BYTES = 16 * 2**20
MAX_PROBLEM_BYTES = 64 * 2**10
MAX_DETAIL = 400  # characters of a server's text that a message repeats
_CHUNK = 64 * 2**10


class AgainError(Exception):
    """An answer after which the same request may well succeed. Never leaves :mod:`clients.device.http`."""

    def __init__(self, reason: str, retry_after: float | None) -> None:
        super().__init__(reason)
        self.retry_after = retry_after


def check_status(response: http.client.HTTPResponse) -> None:
    """Raise :class:`RefusedError`, or :class:`AgainError`, for a status that is not one of success."""
    if 200 <= response.status < 300:
        return
    error = _problem(_document(response.read(MAX_PROBLEM_BYTES)), response.status, response.reason)
    if response.status in RETRIED:
        raise AgainError(str(error), parse_retry_after(response.headers.get("Retry-After")))
    raise error


def _document(data: bytes) -> Mapping[str, object]:
    try:
        found = json.loads(data)
    except (ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


def _problem(document: Mapping[str, object], status: int, reason: str) -> RefusedError:
    """RFC 9457's members, where there are some, as an error."""
    found = {key: value for key, value in document.items() if isinstance(value, str)}
    slug = found.get("type", "").rpartition("/")[2]
    said = "; ".join(found[key] for key in ("detail", "remedy") if key in found) or found.get("title", reason)
    return RefusedError(f"the server refused ({status} {printable(slug or reason)}): {printable(said)}", status, slug)


def printable(text: str) -> str:
    """A server's text as a message may repeat it: short, and nothing that steers a terminal."""
    return "".join(character for character in text if character.isprintable())[:MAX_DETAIL]


class Answer:
    """A good answer that is being read: never more of it than its limit, never for longer than ``late`` allows."""

    def __init__(self, response: http.client.HTTPResponse, late: Callable[[], bool]) -> None:
        self._response = response
        self._late = late
        self.content_type = response.headers.get_content_type()
        self.headers = response.headers

    def content(self, limit: int = MAX_ANSWER_BYTES) -> bytes:
        """All of it. Raises ConnectionError, after which another attempt is made, for one that was cut off."""
        chunks: list[bytes] = []
        total = 0
        while chunk := self._response.read1(_CHUNK):
            chunks.append(chunk)
            total += len(chunk)
            if total > limit:
                raise RefusedError(
                    f"the server's answer has more than {limit:,} bytes: is this the right address?", 200
                )
            self._check_time()
        if self._response.length:
            raise ConnectionError("the answer was cut off")
        self._response.read()  # at the end already; the connection is now free for the next request
        return b"".join(chunks)

    def _check_time(self) -> None:
        if self._late():
            raise UnreachableError("the server's answer came too slowly: try again later")

    def json(self, limit: int = MAX_ANSWER_BYTES) -> dict[str, object]:
        """A JSON object."""
        try:
            found = json.loads(self.content(limit))
        except (ValueError, RecursionError) as error:
            raise RefusedError(
                f"the server's answer is no JSON ({type(error).__name__}): is this the right address?", 200
            ) from error
        if not isinstance(found, dict):
            raise RefusedError("the server's answer is no JSON object: is this the right address?", 200)
        return found

    def events(self) -> Iterator[dict[str, object]]:
        """The data of server-sent events, as JSON objects; ``[DONE]`` and comments are left out."""
        data: list[bytes] = []
        for line in self._lines():
            if line.startswith(b"data:"):
                data.append(line[5:].removeprefix(b" "))
            elif not line and data:
                found = b"\n".join(data)
                data = []
                if found != b"[DONE]":
                    yield _event(found)

    def _lines(self) -> Iterator[bytes]:
        total = 0
        while line := self._response.readline(MAX_ANSWER_BYTES):
            total += len(line)
            self._check_time()
            if total > MAX_ANSWER_BYTES:
                raise RefusedError(f"the server's events have more than {MAX_ANSWER_BYTES:,} bytes", 200)
            yield line.rstrip(b"\r\n")


def _event(text: bytes) -> dict[str, object]:
    """An event. One of the type ``error`` raises what the same problem raises before an answer has begun."""
    try:
        found = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise RefusedError("the server sent an event that is no JSON: is this the right address?", 200) from error
    if not isinstance(found, dict):
        return {}
    if found.get("type") == "error":
        problem = found.get("problem")
        document = problem if isinstance(problem, dict) else {}
        status = document.get("status")
        refused = _problem(document, status if isinstance(status, int) else 500, "error")
        raise AgainError(str(refused), None) if refused.status in RETRIED else refused
    return found
