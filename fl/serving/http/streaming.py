"""Server-sent events in the form of OpenAI's streaming transcriptions: ``transcript.text.delta``, ``transcript.text.done``.

Deltas only ever add. While the model reconsiders (a beam search, half a Hangul syllable) nothing is sent, and the ``done``
event has the whole text in any case: where it differs from the deltas, it is right.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from typing import Any

from fl.core.errors import IdiolectError
from fl.serving.engine.parts import Heard
from fl.serving.http.problems import ProblemError, log_fault, problem_of

MEDIA_TYPE = "text/event-stream"
HEADERS = {"cache-control": "no-store", "x-accel-buffering": "no"}  # a proxy that collects first defeats the purpose
KEEP_ALIVE_SECONDS = 10.0
UNFINISHED = "\ufffd"  # what half a character decodes to


def event(document: dict[str, Any]) -> bytes:
    """One event whose name is the document's ``type``."""
    return f"event: {document['type']}\ndata: {json.dumps(document, ensure_ascii=False)}\n\n".encode()


def error_event(problem: ProblemError) -> bytes:
    """A problem after the answer has begun. ``error`` is where OpenAI's clients look."""
    document = problem.document()
    return event({"type": "error", "error": document["error"], "problem": document})


class Deltas:
    """From whole texts so far to what is new in them, over the parts of a recording."""

    def __init__(self) -> None:
        self._sent = ""  # of the part at hand
        self._part = 0
        self._space = ""

    def next(self, heard: Heard) -> str:
        """What to send for this news; empty where nothing is certain to be new."""
        if heard.index != self._part:
            self._part, self._sent = heard.index, ""
        text = heard.text if heard.transcript is not None else heard.text.rstrip(UNFINISHED)
        new = text[len(self._sent) :] if text.startswith(self._sent) else ""
        if new:
            new = new if self._sent else self._space + new
            self._sent = text
        if heard.transcript is not None and text:
            self._space = " "
        return new


async def events(
    first: Heard | None, rest: AsyncIterator[Heard], finish: Callable[[list[Heard]], dict[str, Any]]
) -> AsyncIterator[bytes]:
    """The events of a recording: ``first`` and ``rest`` are its news, ``finish`` makes the last document of what was heard."""
    deltas, done, heard = Deltas(), [], first
    upcoming: asyncio.Task[Heard | None] | None = None
    try:
        while heard is not None:
            new = deltas.next(heard)
            if new:
                yield event({"type": "transcript.text.delta", "delta": new})
            if heard.transcript is not None:
                done.append(heard)
            upcoming = asyncio.create_task(next_of(rest))
            while not (await asyncio.wait({upcoming}, timeout=KEEP_ALIVE_SECONDS))[0]:
                yield b": still working\n\n"
            heard = upcoming.result()
        yield event(finish(done))
    except IdiolectError as error:
        yield error_event(problem_of(error))
    except Exception as error:
        log_fault(error)
        yield error_event(ProblemError("internal", "the server failed on this request"))
    finally:
        if upcoming is not None and not upcoming.done():
            upcoming.cancel()
            await asyncio.wait({upcoming})
        close = getattr(rest, "aclose", None)
        if close is not None:
            await close()


async def next_of(source: AsyncIterator[Heard]) -> Heard | None:
    """The next of ``source``, None at its end (a task may not raise StopAsyncIteration)."""
    async for heard in source:
        return heard
    return None
