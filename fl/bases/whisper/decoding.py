"""From encoder states to token ids: greedy and beam search over a batch, with a guard against loops.

Works on ids only; which ids steer, end or are forbidden comes in :class:`Rules`. The number of rows stays the same from
the first token to the last, finished or not, so that modules which know "row i is person i" stay right; a beam search
over ``b`` rows runs ``b * beams`` rows, those of one utterance next to each other.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn
from transformers.cache_utils import DynamicCache, EncoderDecoderCache

from fl.bases.whisper import forward

LONGEST_LOOP = 16  # tokens
MIN_REPEATS = 3
MIN_LOOP_TOKENS = 8
TOKENS_PER_SECOND = 20  # fast Korean is under 10 syllables a second, one or two tokens each
SPARE_TOKENS = 16


@dataclass(frozen=True)
class Rules:
    """Which token ends a transcript, which never occur in it, and which do not begin it."""

    end: int
    suppress: tuple[int, ...]
    begin_suppress: tuple[int, ...]


@dataclass(frozen=True)
class Hypothesis:
    """A transcript as ids without prefix and end; ``log_prob`` is the sum over all of them, the end included.

    ``reason``: "end" (the end token), "loop" (the guard: one copy of what was repeated is kept) or "length".
    """

    tokens: tuple[int, ...]
    log_prob: float
    reason: Literal["end", "loop", "length"]

    def score(self, length_penalty: float) -> float:
        """``log_prob / length ** length_penalty``: 1 is the mean over tokens, 0 the plain sum."""
        length = len(self.tokens) + (self.reason == "end")
        return self.log_prob / float(max(length, 1) ** length_penalty)


def loop_length(tokens: Sequence[int]) -> int | None:
    """How many tokens to keep if ``tokens`` end in a loop, else None.

    A loop is an n-gram of up to 16 tokens that is said at least 3 times in a row and over at least 8 tokens in all
    (so "no no no" is speech). What is kept includes the first copy.
    """
    for size in range(1, min(LONGEST_LOOP, len(tokens) // MIN_REPEATS) + 1):
        repeats = max(MIN_REPEATS, -(-MIN_LOOP_TOKENS // size))
        span = size * repeats
        if span <= len(tokens) and all(tokens[-i] == tokens[-i - size] for i in range(1, span - size + 1)):
            start = len(tokens) - span
            while start > 0 and tokens[start - 1] == tokens[start - 1 + size]:
                start -= 1
            return start + size
    return None


def token_limits(frames: Sequence[int], prefix: int, positions: int, max_new_tokens: int | None) -> list[int]:
    """The most tokens that each row may produce: what its seconds can hold, the decoder's positions, the caller's."""
    room = positions - prefix
    if max_new_tokens is not None:
        room = min(room, max_new_tokens)
    return [min(room, SPARE_TOKENS + TOKENS_PER_SECOND * count // 100) for count in frames]


class _Steps:
    """The decoder with its key-value cache: token ids in, log-probabilities (rows, vocabulary) of the next one out."""

    def __init__(self, model: nn.Module, states: Tensor, mask: Tensor | None, rules: Rules) -> None:
        self.model, self.states, self.mask = model, states, mask
        self.cache = EncoderDecoderCache(DynamicCache(), DynamicCache())
        self.head = forward.unwrap(model).proj_out
        device = states.device
        self.suppress = torch.tensor(rules.suppress, dtype=torch.long, device=device)
        self.begin = torch.tensor(rules.begin_suppress, dtype=torch.long, device=device)

    def start(self, prefix: Tensor) -> Tensor:
        return self._log_probs(prefix).index_fill(1, self.begin, -torch.inf)

    def next(self, tokens: Tensor) -> Tensor:
        return self._log_probs(tokens[:, None])

    def reorder(self, rows: Tensor) -> None:
        """Row i continues what row ``rows[i]`` was; only within an utterance, so the speech side stays."""
        self.cache.self_attention_cache.reorder_cache(rows)

    def _log_probs(self, ids: Tensor) -> Tensor:
        hidden = forward.decode(self.model, ids, self.states, self.mask, self.cache)[:, -1]
        logits = self.head(hidden).float()
        return torch.log_softmax(logits, dim=-1).index_fill(1, self.suppress, -torch.inf)


def detect_languages(
    model: nn.Module, states: Tensor, mask: Tensor | None, start: int, candidates: Sequence[int]
) -> list[int]:
    """For each row the most probable of the language tokens ``candidates`` behind the start token."""
    ids = torch.full((states.shape[0], 1), start, dtype=torch.long, device=states.device)
    hidden = forward.decode(model, ids, states, mask)[:, -1]
    chosen = torch.tensor(candidates, dtype=torch.long, device=states.device)
    logits = forward.unwrap(model).proj_out(hidden)[:, chosen]
    return [int(index) for index in chosen[logits.argmax(-1)].tolist()]


def greedy(
    model: nn.Module, states: Tensor, mask: Tensor | None, prefix: Tensor, limits: Sequence[int], rules: Rules
) -> list[Hypothesis]:
    """The most probable token at each step. ``prefix`` is (rows, prefix tokens); ``limits`` the most new ones a row."""
    steps = _Steps(model, states, mask, rules)
    tokens: list[list[int]] = [[] for _ in limits]
    totals = [0.0] * len(limits)
    done: dict[int, Hypothesis] = {}
    log_probs = steps.start(prefix)
    while True:
        best, choice = log_probs.max(dim=-1)
        for row, (value, token) in enumerate(zip(best.tolist(), choice.tolist(), strict=True)):
            if row in done:
                continue
            totals[row] += value
            finished = advance(tokens[row], token, totals[row], limits[row], rules.end)
            if finished:
                done[row] = finished
        if len(done) == len(limits):
            return [done[row] for row in range(len(limits))]
        log_probs = steps.next(choice)


def advance(tokens: list[int], token: int, log_prob: float, limit: int, end: int) -> Hypothesis | None:
    """Append ``token`` to ``tokens`` in place; the hypothesis if that finishes it."""
    if token == end:
        return Hypothesis(tuple(tokens), log_prob, "end")
    tokens.append(token)
    kept = loop_length(tokens)
    if kept is not None:
        return Hypothesis(tuple(tokens[:kept]), log_prob, "loop")
    return Hypothesis(tuple(tokens), log_prob, "length") if len(tokens) >= limit else None


@dataclass
class BeamSearch:
    """The beams of one utterance: open ones (tokens, log-probability) and finished hypotheses."""

    width: int
    limit: int
    end: int
    open: list[tuple[list[int], float]]
    finished: list[Hypothesis]

    def step(self, candidates: Sequence[tuple[float, int, int]]) -> tuple[list[int], list[int]]:
        """Take ``candidates`` (log-probability, beam, token) from best to worst; the beams to go on from, and with what.

        A candidate that ends counts only among the best ``width``, as in an ordinary beam search.
        """
        kept: list[tuple[list[int], float]] = []
        beams: list[int] = []
        for rank, (log_prob, beam, token) in enumerate(candidates):
            if len(kept) == self.width or log_prob == -torch.inf:
                break
            tokens = list(self.open[beam][0])
            hypothesis = advance(tokens, token, log_prob, self.limit, self.end)
            if hypothesis is None:
                kept.append((tokens, log_prob))
                beams.append(beam)
            elif rank < self.width:
                self.finished.append(hypothesis)
        self.open = kept
        return beams, [tokens[-1] for tokens, _ in kept]

    @property
    def done(self) -> bool:
        """Whether as many hypotheses ended as there are beams, or none is open."""
        return len(self.finished) >= self.width or not self.open

    def best(self, length_penalty: float) -> Hypothesis:
        """The best finished hypothesis; one that loops only if there is no other."""
        return max(self.finished, key=lambda found: (found.reason != "loop", found.score(length_penalty)))


def beam(
    model: nn.Module,
    states: Tensor,
    mask: Tensor | None,
    prefix: Tensor,
    limits: Sequence[int],
    rules: Rules,
    *,
    beams: int,
    length_penalty: float = 1.0,
) -> list[Hypothesis]:
    """Beam search with ``beams`` per row; hypotheses compete by ``log_prob / length ** length_penalty``."""
    rows = len(limits)
    wide_mask = None if mask is None else mask.repeat_interleave(beams, dim=0)
    steps = _Steps(model, states.repeat_interleave(beams, dim=0), wide_mask, rules)
    searches = [BeamSearch(beams, limit, rules.end, [([], 0.0)], []) for limit in limits]
    log_probs = steps.start(prefix.repeat_interleave(beams, dim=0))
    while True:
        totals = torch.full((rows, beams), -torch.inf)
        for row, search in enumerate(searches):
            totals[row, : len(search.open)] = torch.tensor([log_prob for _, log_prob in search.open])
        scores = log_probs.view(rows, beams, -1) + totals.to(log_probs.device)[:, :, None]
        vocabulary = scores.shape[-1]
        values, flat = scores.view(rows, -1).topk(2 * beams, dim=-1)
        origin, chosen = list(range(rows * beams)), [rules.end] * (rows * beams)
        for row, search in enumerate(searches):
            if search.done:
                continue
            found = [
                (v, i // vocabulary, i % vocabulary)
                for v, i in zip(values[row].tolist(), flat[row].tolist(), strict=True)
            ]
            sources, tokens = search.step(found)
            for slot, (source, token) in enumerate(zip(sources, tokens, strict=True)):
                origin[row * beams + slot] = row * beams + source
                chosen[row * beams + slot] = token
        if all(search.done for search in searches):
            return [search.best(length_penalty) for search in searches]
        steps.reorder(torch.tensor(origin, device=states.device))
        log_probs = steps.next(torch.tensor(chosen, device=states.device))
