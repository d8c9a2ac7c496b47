"""What goes into the engine and what comes out: requests, the adapters they bring, transcripts, and what may go wrong."""

from __future__ import annotations

import time
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Literal, Protocol

from fl.adapters.files import AdapterInfo
from fl.adapters.stacked import Slot
from fl.adapters.state import State
from fl.core.errors import IdiolectError
from fl.speech.audio import Waveform


class BusyError(IdiolectError):
    """The engine has as much work waiting as it may hold. ``retry_after`` is in seconds."""

    def __init__(self, message: str, retry_after: float) -> None:
        super().__init__(message)
        self.retry_after = retry_after


class DeadlineError(IdiolectError):
    """A request that was not done by its deadline. What it had so far is dropped."""


class ClosedError(IdiolectError):
    """A request to an engine that is shutting down."""


@dataclass(frozen=True, eq=False)
class ServedAdapter:
    """An adapter that was checked against the base and is ready for a row of a batch.

    ``tensors`` are float32 by PEFT's names; ``digest`` is the hexadecimal SHA-256 of the bytes that it came in.
    """

    tensors: State
    slot: Slot
    info: AdapterInfo
    digest: str

    @property
    def bytes(self) -> int:
        """What it occupies in memory."""
        return sum(tensor.numel() * tensor.element_size() for tensor in self.tensors.values())


@dataclass(frozen=True, eq=False)
class Request:
    """One utterance to transcribe: ``audio`` (samples,) at 16 kHz, at most 29 s, and whose adapter to use (None: the base).

    ``person`` is whose turn it counts as in fair queueing. ``language`` empty means: the adapter's own, else detected.
    ``deadline`` is on ``time.monotonic``'s clock. ``on_text`` is called from the engine's thread, with the whole text
    so far, whenever there is more of it; it must return at once.
    """

    audio: Waveform
    adapter: ServedAdapter | None = None
    person: str = ""
    language: str = ""
    beams: int = 1
    max_new_tokens: int | None = None
    deadline: float | None = None
    on_text: Callable[[str], None] | None = None

    @property
    def late(self) -> bool:
        """Whether the deadline has passed."""
        return self.deadline is not None and time.monotonic() > self.deadline


@dataclass(frozen=True)
class Stages:
    """Where the seconds of a request went."""

    queue: float
    features: float
    encode: float
    decode: float

    @property
    def total(self) -> float:
        """All of them."""
        return self.queue + self.features + self.encode + self.decode


@dataclass(frozen=True)
class Transcript:
    """What was said. ``reason`` is why decoding ended: the end token, the guard against loops, or the length."""

    text: str
    tokens: tuple[int, ...]
    language: str
    log_prob: float
    reason: Literal["end", "loop", "length"]
    stages: Stages


class Engine(Protocol):
    """Transcribes requests of many people at once. :class:`fl.serving.engine.engine.BatchEngine` is the real one."""

    def submit(self, request: Request) -> Future[Transcript]:
        """Queue a request; from any thread. The future's exception is a typed error: :class:`DeadlineError` when it is late,
        :class:`fl.core.errors.AdapterError` when the adapter makes numbers that are not finite, :class:`ClosedError` at shutdown.
        ``future.cancel()`` works at any time, also in the middle of decoding: the row is then freed at the next step.

        Raises :class:`BusyError` when the queue is full, :class:`fl.core.errors.IdiolectError` for a request that cannot be served.
        """
        ...

    def stats(self) -> dict[str, float]:
        """Gauges and counters by name: ``queued``, ``running``, ``rows``, ``steps``, ``finished``, ``failed``, ..."""
        ...

    def close(self) -> None:
        """Fail what is waiting with :class:`ClosedError`, finish what runs, and stop the thread."""
        ...
