"""A request while it is being decoded: what it has so far, and what its rows do next."""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from concurrent.futures import Future, InvalidStateError
from dataclasses import dataclass

from fl.bases.whisper.decoding import BeamSearch
from fl.bases.whisper.tokenizer import Tokenizer
from fl.serving.engine.requests import Request, Stages, Transcript
from fl.speech.features import Features

log = logging.getLogger("idiolect.serving")
UNFINISHED = "�"  # what half a character decodes to


@dataclass(eq=False)
class EngineJob:
    """One request on its way through the engine. Its rows in the batch, one for each beam, are those of its ``search``."""

    request: Request
    future: Future[Transcript]
    submitted: float
    started: float = 0.0
    encoded: float = 0.0
    seconds_features: float = 0.0
    features: Features | None = None
    language: str = ""
    search: BeamSearch | None = None
    _shown: str = ""
    _mute: bool = False

    @property
    def gone(self) -> bool:
        """Whether nobody waits for it any more."""
        return self.future.cancelled()

    @property
    def beams(self) -> BeamSearch:
        """The search, which has begun."""
        assert self.search is not None
        return self.search

    def show(self, tokenizer: Tokenizer) -> None:
        """Tell ``on_text`` what is certain so far: the tokens that all open beams begin with."""
        call = self.request.on_text
        if call is None or self._mute:
            return
        text = tokenizer.decode(_common([tokens for tokens, _ in self.beams.open])).rstrip(UNFINISHED)
        if len(text) <= len(self._shown):
            return
        self._shown = text
        try:
            call(text)
        except Exception as error:  # the engine goes on for everybody else
            self._mute = True
            log.warning("a listener failed with %s: it gets no more partial texts", type(error).__name__)

    def finish(self, tokenizer: Tokenizer) -> bool:
        """Hand out the transcript; False if nobody waits for it."""
        found, now = self.beams.best(), time.monotonic()
        stages = Stages(
            queue=self.started - self.submitted,
            features=self.seconds_features,
            encode=self.encoded - self.started - self.seconds_features,
            decode=now - self.encoded,
        )
        text = tokenizer.decode(found.tokens)
        return self._settle(Transcript(text, found.tokens, self.language, found.log_prob, found.reason, stages))

    def fail(self, error: Exception) -> None:
        """Hand out an error."""
        self._settle(error)

    def _settle(self, outcome: Transcript | Exception) -> bool:
        try:
            if isinstance(outcome, Exception):
                self.future.set_exception(outcome)
            else:
                self.future.set_result(outcome)
        except InvalidStateError:  # cancelled between two looks
            return False
        return True


def _common(rows: Sequence[Sequence[int]]) -> list[int]:
    """What all rows begin with."""
    shared: list[int] = []
    for column in zip(*rows, strict=False):
        if len(set(column)) > 1:
            break
        shared.append(column[0])
    return shared
