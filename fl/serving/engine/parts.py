"""One recording in the engine: its parts are requests of their own, some of them at once, whose transcripts come in order."""

import asyncio
import time
from collections import deque
from collections.abc import AsyncIterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any

from fl.serving.engine.engine import BatchEngine
from fl.serving.engine.requests import BusyError, ClosedError, DeadlineError, Request, Transcript


@dataclass(frozen=True)
class PartUpdate:
    """Part ``index`` of a recording: its text so far, or, when it is done, its transcript."""

    index: int
    text: str
    transcript: Transcript | None = None


def look_at(future: asyncio.Future[Any]) -> None:
    """Of a future that is done: look at its exception, which asyncio would log with its message where nobody waits any more."""
    if not future.cancelled():
        future.exception()


async def listen(
    engine: BatchEngine, requests: Sequence[Request], *, ahead: int, partial: bool = False
) -> AsyncIterator[PartUpdate]:
    """The transcripts of ``requests`` in order, with ``partial`` texts between them; at most ``ahead`` are in the engine.

    Whoever stops listening cancels what is left. Raises what the engine raises: :class:`BusyError` only before anything
    was taken, since a recording that was begun waits for room until its deadline.
    """
    loop, changed = asyncio.get_running_loop(), asyncio.Event()
    newest: dict[int, str] = {}  # text of each part

    def tell(index: int, text: str) -> None:  # in the engine's thread
        newest[index] = text
        with suppress(RuntimeError):  # the loop is closed: nobody listens
            loop.call_soon_threadsafe(changed.set)

    def submit(index: int, request: Request) -> asyncio.Future[Transcript]:
        asked = replace(request, on_text=lambda text: tell(index, text)) if partial else request
        future = asyncio.wrap_future(engine.submit(asked))
        future.add_done_callback(look_at)
        future.add_done_callback(lambda _: changed.set())
        return future

    waiting = deque(enumerate(requests))
    running: deque[tuple[int, asyncio.Future[Transcript]]] = deque()
    begun = False
    try:
        while waiting or running:
            while waiting and len(running) < ahead:
                index, request = waiting[0]
                try:
                    running.append((index, submit(index, request)))
                except BusyError as error:
                    if not begun:
                        raise
                    if not running:
                        await _pause(error.retry_after, request.deadline)
                    break
                waiting.popleft()
                begun = True
            if not running:
                continue
            index, future = running[0]
            told = ""
            while not future.done():
                await changed.wait()
                changed.clear()
                text = newest.get(index, "")
                if text != told and not future.done():
                    told = text
                    yield PartUpdate(index, text)
            running.popleft()
            newest.pop(index, None)
            if future.cancelled():
                raise ClosedError("the engine gave the request up: ask again")
            transcript = future.result()
            yield PartUpdate(index, transcript.text, transcript)
    finally:
        for _, future in running:
            future.cancel()


async def _pause(seconds: float, deadline: float | None) -> None:
    if deadline is not None and time.monotonic() + seconds > deadline:
        raise DeadlineError("not done by its deadline: the server was busy; ask again later")
    await asyncio.sleep(seconds)
