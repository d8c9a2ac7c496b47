"""From encoder states to token ids: greedy and beam search, with a guard against loops.

Works on ids only; which ids steer, end or are forbidden comes in :class:`DecodingRules`. A search over ``b`` beams has ``b`` rows
of a batch. :func:`expand` makes the same step for all searches of a batch, whether it is a closed one (:func:`search`) or rows
come and go as in the server's engine.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from transformers.cache_utils import DynamicCache, EncoderDecoderCache

from fl.bases.base import Hypothesis
from fl.bases.whisper import forward
from fl.bases.whisper.decoder import DecodingRules, RowDecoder

LONGEST_LOOP = 16  # tokens
MIN_REPEATS = 3
MIN_LOOP_TOKENS = 8
TOKENS_PER_SECOND = 20  # fast Korean is under 10 syllables a second, one or two tokens each
SPARE_TOKENS = 16


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


def token_limit(frames: int, prompt: int, positions: int, max_new_tokens: int | None) -> int:
    """The most tokens for ``frames`` (10 ms) of speech: what they can hold, the decoder's positions, the caller's limit."""
    room = positions - prompt if max_new_tokens is None else min(positions - prompt, max_new_tokens)
    return min(room, SPARE_TOKENS + TOKENS_PER_SECOND * frames // 100)


def detect_languages(
    model: nn.Module,
    states: Tensor,
    mask: Tensor | None,
    start: int,
    candidates: Sequence[int],
    heard: DynamicCache | None = None,
) -> list[int]:
    """For each row the most probable of the language tokens ``candidates`` behind the start token.

    An empty ``heard`` takes the keys and values of the speech, for :meth:`fl.bases.whisper.decoder.RowDecoder.read`.
    """
    ids = torch.full((states.shape[0], 1), start, dtype=torch.long, device=states.device)
    cache = None if heard is None else EncoderDecoderCache(DynamicCache(), heard)
    hidden = forward.decode(model, ids, states, mask, cache)[:, -1]
    chosen = torch.tensor(candidates, dtype=torch.long, device=states.device)
    logits = forward.unwrap(model).proj_out(hidden)[:, chosen]
    return [int(index) for index in chosen[logits.argmax(-1)].tolist()]


@dataclass(eq=False)
class BeamSearch:
    """The search for one utterance's transcript: open beams (tokens, log-probability), finished hypotheses, and rows of a batch.

    One beam is greedy search. ``broken``: log-probabilities were not numbers.
    """

    width: int
    limit: int
    end: int
    rows: list[int] = field(default_factory=list)
    open: list[tuple[list[int], float]] = field(default_factory=lambda: [([], 0.0)])
    finished: list[Hypothesis] = field(default_factory=list)
    broken: bool = False

    def step(self, candidates: Sequence[tuple[float, int, int]]) -> tuple[list[int], list[int]]:
        """Take ``candidates`` (log-probability, beam, token) from best to worst; the beams to go on from, and with what.

        A candidate that ends counts only among the best ``width``, as in an ordinary beam search.
        """
        kept: list[tuple[list[int], float]] = []
        beams: list[int] = []
        self.broken = candidates[0][0] != candidates[0][0]
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

    def best(self, length_penalty: float = 1.0) -> Hypothesis:
        """The best finished hypothesis; one that loops only if there is no other."""
        return max(self.finished, key=lambda found: (found.reason != "loop", found.score(length_penalty)))


def advance(tokens: list[int], token: int, log_prob: float, limit: int, end: int) -> Hypothesis | None:
    """Append ``token`` to ``tokens`` in place; the hypothesis if that finishes it."""
    if token == end:
        return Hypothesis(tuple(tokens), log_prob, "end")
    tokens.append(token)
    kept = loop_length(tokens)
    if kept is not None:
        return Hypothesis(tuple(tokens[:kept]), log_prob, "loop")
    return Hypothesis(tuple(tokens), log_prob, "length") if len(tokens) >= limit else None


def expand(searches: Sequence[BeamSearch], log_probs: Tensor, first: int = 0) -> tuple[list[int], list[int]]:
    """One step of all ``searches`` that are not done, from ``log_probs`` (rows, vocabulary) of the rows from ``first`` on.

    Returns for each of these rows the row whose tokens it goes on from, and its next token.
    """
    sources, tokens = list(range(first, first + len(log_probs))), [0] * len(log_probs)
    running = [one for one in searches if not one.done]
    for width in {one.width for one in running}:
        group = [one for one in running if one.width == width]
        for one, candidates in zip(group, _candidates(group, log_probs, first), strict=True):
            for row, beam, token in zip(one.rows, *one.step(candidates), strict=False):
                sources[row - first], tokens[row - first] = one.rows[beam], token
    return sources, tokens


def _candidates(group: Sequence[BeamSearch], log_probs: Tensor, first: int) -> list[list[tuple[float, int, int]]]:
    """The best continuations (log-probability, beam, token) of searches of one width: twice as many as there are beams.

    Of one beam only the best, whose log-probability is added up in double precision.
    """
    width = group[0].width
    if width == 1:
        values, chosen = (tensor.tolist() for tensor in log_probs.max(dim=-1))
        return [[(one.open[0][1] + values[row - first], 0, chosen[row - first])] for one in group for row in one.rows]
    totals = torch.full((len(group), width), -torch.inf)
    for index, one in enumerate(group):
        totals[index, : len(one.open)] = torch.tensor([log_prob for _, log_prob in one.open])
    scores = log_probs[[row - first for one in group for row in one.rows]].view(len(group), width, -1)
    vocabulary = scores.shape[-1]
    best, places = (scores + totals.to(scores.device)[:, :, None]).flatten(1).topk(2 * width, dim=-1)
    return [
        [(value, place // vocabulary, place % vocabulary) for value, place in zip(*row, strict=True)]
        for row in zip(best.tolist(), places.tolist(), strict=True)
    ]


def search(
    model: nn.Module,
    states: Tensor,
    mask: Tensor | None,
    prompts: Sequence[Sequence[int]],
    limits: Sequence[int],
    rules: DecodingRules,
    *,
    beams: int = 1,
    length_penalty: float = 1.0,
    heard: DynamicCache | None = None,
) -> list[Hypothesis]:
    """The best hypothesis of each row by ``log_prob / length ** length_penalty``; greedy with one beam.

    ``prompts`` are rows of one length, ``limits`` the most new tokens of each. The number of rows stays the same from the first
    token to the last, finished or not, so that modules which know "row i is person i" stay right; the ``beams`` rows of an
    utterance are next to each other. ``heard`` see :meth:`fl.bases.whisper.decoder.RowDecoder.read`.
    """
    decoder = RowDecoder(model, rules, beams * len(limits))
    prompted = decoder.read(prompts, states, mask, heard)
    counts = [states.shape[1]] * len(limits) if mask is None else mask.sum(dim=1).tolist()
    decoder.cache.fill(prompted.own, prompted.speech, counts, beams)
    log_probs = prompted.log_probs.repeat_interleave(beams, dim=0)
    del prompted
    searches = [
        BeamSearch(beams, limit, rules.end, list(range(row * beams, (row + 1) * beams)))
        for row, limit in enumerate(limits)
    ]
    while True:
        sources, tokens = expand(searches, log_probs)
        if all(one.done for one in searches):
            return [one.best(length_penalty) for one in searches]
        decoder.cache.reorder(range(len(sources)), sources)
        log_probs = decoder.next(tokens)
