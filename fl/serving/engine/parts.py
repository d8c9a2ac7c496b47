"""One recording in the engine: its parts are requests of their own, some of them at once, whose transcripts come in order."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import AsyncIterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace

from fl.serving.engine.engine import BatchEngine
from fl.serving.engine.requests import BusyError, ClosedError, DeadlineError, Request, Transcript


@dataclass(frozen=True)
class PartUpdate:
    """Part ``index`` of a recording: its text so far, or, when it is done, its transcript."""

    index: int
    text: str
    transcript: Transcript | None = None


class _PartTexts:
    """The newest text of each part, told by the engine's thread and read in the event loop."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._event = asyncio.Event()
        self.newest: dict[int, str] = {}

    def tell(self, index: int, text: str) -> None:
        with suppress(RuntimeError):  # the loop is closed: nobody listens
            self._loop.call_soon_threadsafe(self._take, index, text)

    def _take(self, index: int, text: str) -> None:
        self.newest[index] = text
        self._event.set()

    def done(self, future: asyncio.Future[Transcript]) -> None:
        if not future.cancelled():
            future.exception()  # looked at, so that asyncio does not log it with its message
        self._event.set()

    async def wait(self) -> None:
        await self._event.wait()
        self._event.clear()


async def listen(
    engine: BatchEngine, requests: Sequence[Request], *, ahead: int, partial: bool = False
) -> AsyncIterator[PartUpdate]:
    """The transcripts of ``requests`` in order, with ``partial`` texts between them; at most ``ahead`` are in the engine.

    Whoever stops listening cancels what is left. Raises what the engine raises: :class:`BusyError` only before anything
    was taken, since a recording that was begun waits for room until its deadline.
    """
    texts = _PartTexts()
    waiting = deque(enumerate(requests))
    running: deque[tuple[int, asyncio.Future[Transcript]]] = deque()
    begun = False
    try:
        while waiting or running:
            while waiting and len(running) < ahead:
                try:
                    running.append(_submit(engine, *waiting[0], texts, partial))
                except BusyError as error:
                    if not begun:
                        raise
                    if not running:
                        await _pause(error.retry_after, waiting[0][1].deadline)
                    break
                waiting.popleft()
                begun = True
            if not running:
                continue
            index, future = running[0]
            told = ""
            while not future.done():
                await texts.wait()
                text = texts.newest.get(index, "")
                if text != told and not future.done():
                    told = text
                    yield PartUpdate(index, text)
            running.popleft()
            texts.newest.pop(index, None)
            if future.cancelled():
                raise ClosedError("the engine gave the request up: ask again")
            transcript = future.result()
            yield PartUpdate(index, transcript.text, transcript)
    finally:
        for _, future in running:
            future.cancel()


def _submit(
    engine: BatchEngine, index: int, request: Request, texts: _PartTexts, partial: bool
) -> tuple[int, asyncio.Future[Transcript]]:
    if partial:
        request = replace(request, on_text=lambda text: texts.tell(index, text))
    future = asyncio.wrap_future(engine.submit(request))
    future.add_done_callback(texts.done)
    return index, future


async def _pause(seconds: float, deadline: float | None) -> None:
    if deadline is not None and time.monotonic() + seconds > deadline:
        raise DeadlineError("not done by its deadline: the server was busy; ask again later")
    await asyncio.sleep(seconds)
