"""A request while it is being decoded: what it has so far, and what its rows do next."""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from concurrent.futures import Future, InvalidStateError
from dataclasses import dataclass, field

from torch import Tensor

from fl.bases.whisper.decoding import BeamSearch, Hypothesis, advance
from fl.bases.whisper.tokenizer import Tokenizer
from fl.serving.engine.requests import Request, Stages, Transcript
from fl.speech.features import Features

log = logging.getLogger("idiolect.serving")
UNFINISHED = "�"  # what half a character decodes to


@dataclass(eq=False)
class Job:
    """One request on its way through the engine. ``rows`` are its rows in the batch, one for each beam."""

    request: Request
    future: Future[Transcript]
    submitted: float
    started: float = 0.0
    encoded: float = 0.0
    seconds_features: float = 0.0
    features: Features | None = None
    language: str = ""
    rows: list[int] = field(default_factory=list)
    search: BeamSearch | None = None
    tokens: list[int] = field(default_factory=list)
    log_prob: float = 0.0
    limit: int = 0
    end: int = 0
    found: Hypothesis | None = None
    _shown: str = ""
    _mute: bool = False

    @property
    def gone(self) -> bool:
        """Whether nobody waits for it any more."""
        return self.future.cancelled()

    def begin(self, limit: int, end: int) -> None:
        """Start decoding: at most ``limit`` tokens, up to the token ``end``."""
        self.limit, self.end, self.encoded = limit, end, time.monotonic()
        if self.request.beams > 1:
            self.search = BeamSearch(self.request.beams, limit, end, [([], 0.0)], [])

    def take_best(self, value: float, token: int) -> int:
        """Go on with the most probable token of its only row; what to feed to the row next."""
        self.log_prob += value
        self.found = advance(self.tokens, token, self.log_prob, self.limit, self.end)
        return token

    def take_beams(self, log_probs: Tensor) -> tuple[list[int], list[int]]:
        """Go on from log-probabilities (beams, vocabulary) of its rows: for each row the beam that it continues, and a token.

        At the first step all rows are alike, and only the first one counts.
        """
        search = self.search
        assert search is not None
        width, vocabulary = log_probs.shape
        totals = log_probs.new_full((width, 1), float("-inf"))
        for beam, (_, total) in enumerate(search.open):
            totals[beam] = total
        values, flat = (log_probs + totals).view(-1).topk(2 * width)
        found = [(v, i // vocabulary, i % vocabulary) for v, i in zip(values.tolist(), flat.tolist(), strict=True)]
        sources, tokens = search.step(found)
        if search.done:
            self.found = search.best(1.0)
        spare = width - len(sources)
        return [*sources, *[0] * spare], [*tokens, *[self.end] * spare]

    def show(self, tokenizer: Tokenizer) -> None:
        """Tell ``on_text`` what is certain so far: all tokens, or those that all beams begin with."""
        call = self.request.on_text
        if call is None or self._mute:
            return
        tokens = self.tokens if self.search is None else _common([tokens for tokens, _ in self.search.open])
        text = tokenizer.decode(tokens).rstrip(UNFINISHED)
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
        assert self.found is not None
        now = time.monotonic()
        stages = Stages(
            queue=self.started - self.submitted,
            features=self.seconds_features,
            encode=self.encoded - self.started - self.seconds_features,
            decode=now - self.encoded,
        )
        found = self.found
        text = tokenizer.decode(found.tokens)
        return self._settle(
            Transcript(text, found.tokens, self.language, found.log_prob, found.reason, stages),
        )

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
