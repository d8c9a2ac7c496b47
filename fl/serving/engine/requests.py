"""What goes into the engine and what comes out: requests, the adapters they bring, transcripts, and what may go wrong.

Between the two a request is an :class:`EngineJob`: what it has so far.
"""

import logging
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future, InvalidStateError
from dataclasses import dataclass, field
from functools import cached_property
from itertools import takewhile
from typing import Literal

from torch import Tensor

from fl.adapters.files import AdapterInfo
from fl.adapters.stacked import Slot
from fl.adapters.state import State
from fl.adapters.table import Kind
from fl.bases.whisper.alignment import TimedWord
from fl.bases.whisper.decoding import BeamSearch
from fl.bases.whisper.tokenizer import Tokenizer
from fl.core.errors import IdiolectError
from fl.speech.audio import Waveform
from fl.speech.features import Features

logger = logging.getLogger(__name__)
UNFINISHED = "\ufffd"  # what half a character decodes to


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

    @cached_property
    def kind(self) -> Kind:
        """What it needs of a table."""
        return Kind.of(self.slot, self.tensors)

    @property
    def bytes(self) -> int:
        """What it occupies in memory."""
        return sum(tensor.numel() * tensor.element_size() for tensor in self.tensors.values())


@dataclass(frozen=True, eq=False)
class Request:
    """One utterance to transcribe: ``audio`` (samples,) at 16 kHz, at most 29 s, and whose adapter to use (None: the base).

    ``person`` is whose turn it counts as in fair queueing. ``language`` empty means: the adapter's own, else detected.
    ``prompt`` are the ids in front of the prefix (:meth:`fl.bases.whisper.base.WhisperBase.prompt_ids`).
    ``words``: whether the transcript has its words with times. ``deadline`` is on ``time.monotonic``'s clock. ``on_text`` is
    called from the engine's thread, with the whole text so far, whenever there is more of it; it must return at once.
    """

    audio: Waveform
    adapter: ServedAdapter | None = None
    person: str = ""
    language: str = ""
    prompt: Sequence[int] = ()
    words: bool = False
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


@dataclass(frozen=True)
class Transcript:
    """What was said. ``reason`` is why decoding ended: the end token, the guard against loops, or the length.

    ``words`` are there if they were asked for, with times from the beginning of the utterance.
    """

    text: str
    tokens: tuple[int, ...]
    language: str
    log_prob: float
    reason: Literal["end", "loop", "length"]
    stages: Stages
    words: Sequence[TimedWord] = ()


@dataclass(eq=False)
class EngineJob:
    """One request on its way through the engine. Its rows in the batch, one for each beam, are those of its ``search``.

    ``prefix`` is what the decoder read before its first token; ``states`` (1, states, d_model) are kept if words are asked for.
    """

    request: Request
    future: Future[Transcript]
    submitted: float
    started: float = 0.0
    encoded: float = 0.0
    seconds_features: float = 0.0
    features: Features = field(init=False)
    search: BeamSearch = field(init=False)
    prefix: Sequence[int] = ()
    states: Tensor | None = None
    language: str = ""
    _shown: str = ""
    _mute: bool = False

    @property
    def gone(self) -> bool:
        """Whether nobody waits for it any more."""
        return self.future.cancelled()

    def show(self, tokenizer: Tokenizer) -> None:
        """Tell ``on_text`` what is certain so far: the tokens that all open beams begin with."""
        call = self.request.on_text
        if call is None or self._mute:
            return
        columns = zip(*(tokens for tokens, _ in self.search.open), strict=False)
        common = [column[0] for column in takewhile(lambda column: len(set(column)) == 1, columns)]
        text = tokenizer.decode(common).rstrip(UNFINISHED)
        if len(text) <= len(self._shown):
            return
        self._shown = text
        try:
            call(text)
        except Exception as error:  # the engine goes on for everybody else
            self._mute = True
            logger.warning("a listener failed with %s: it gets no more partial texts", type(error).__name__)

    def finish(self, tokenizer: Tokenizer, words: Sequence[TimedWord]) -> bool:
        """:meth:`settle` with what the search found."""
        found, now = self.search.best(), time.monotonic()
        stages = Stages(
            queue=self.started - self.submitted,
            features=self.seconds_features,
            encode=self.encoded - self.started - self.seconds_features,
            decode=now - self.encoded,
        )
        text = tokenizer.decode(found.tokens)
        return self.settle(Transcript(text, found.tokens, self.language, found.log_prob, found.reason, stages, words))

    def settle(self, outcome: Transcript | Exception) -> bool:
        """Hand out a transcript or an error; False if nobody waits for it."""
        try:
            if isinstance(outcome, Exception):
                self.future.set_exception(outcome)
            else:
                self.future.set_result(outcome)
        except InvalidStateError:  # cancelled between two looks
            return False
        return True
