"""From frame-wise log-probabilities to symbols: best path, and prefix beam search.

A CTC path gives a symbol or the blank to each frame; the labelling of a path drops repetitions, then blanks (Graves et al. 2006).
Works on ids only.
"""

from collections.abc import Sequence
from itertools import groupby

import numpy as np
import numpy.typing as npt

from fl.bases.base import Hypothesis

CANDIDATES = 40  # symbols that are looked at in a frame by a beam search over a large vocabulary

# By prefix, the log-probability of its paths that end in the blank, and of those that end in its last symbol.
_Beam = dict[tuple[int, ...], tuple[float, float]]


def collapse(path: Sequence[int], blank: int) -> tuple[int, ...]:
    """The labelling of a path."""
    return tuple(symbol for symbol, _ in groupby(path) if symbol != blank)


def greedy_ctc(log_probs: npt.NDArray[np.float32], blank: int) -> Hypothesis:
    """The labelling of the most probable path through ``log_probs`` (frames, symbols)."""
    path = log_probs.argmax(axis=1)
    return Hypothesis(collapse(path.tolist(), blank), float(log_probs.max(axis=1).sum(dtype=np.float64)))


def beam_ctc(
    log_probs: npt.NDArray[np.float32], blank: int, *, beams: int, candidates: int | None = None
) -> list[Hypothesis]:
    """Labellings by the probability of all their paths, best first: prefix beam search (Hannun et al. 2014, arXiv 1408.2873).

    A prefix holds the probability of its paths that end in the blank apart from that of the others, since a symbol that
    repeats the last one needs a blank between. With as many ``beams`` as there are prefixes, and all symbols as
    ``candidates`` (None), the result is exact. Otherwise both prune: ``candidates`` the symbols of each frame.
    """
    beam: _Beam = {(): (0.0, -np.inf)}
    for frame in np.asarray(log_probs, np.float64):
        symbols = _likely(frame, blank, candidates)
        grown: _Beam = {}
        for prefix, (in_blank, in_symbol) in beam.items():
            total = _add(in_blank, in_symbol)
            last = prefix[-1] if prefix else blank
            stays = in_symbol + frame[last] if prefix else -np.inf
            _merge(grown, prefix, total + frame[blank], stays)
            for symbol in symbols:
                _merge(grown, (*prefix, symbol), -np.inf, (in_blank if symbol == last else total) + frame[symbol])
        best = sorted(grown.items(), key=lambda item: (-_add(*item[1]), item[0]))
        beam = dict(best[:beams])
    return [Hypothesis(prefix, _add(*parts)) for prefix, parts in beam.items()]


def _likely(frame: npt.NDArray[np.float64], blank: int, candidates: int | None) -> list[int]:
    if candidates is None or candidates >= len(frame):
        return [symbol for symbol in range(len(frame)) if symbol != blank]
    best = np.argpartition(-frame, candidates)[:candidates]
    return [int(symbol) for symbol in sorted(best) if symbol != blank]


def _merge(grown: _Beam, prefix: tuple[int, ...], in_blank: float, in_symbol: float) -> None:
    if in_blank == in_symbol == -np.inf:
        return  # no path leads there
    before = grown.get(prefix, (-np.inf, -np.inf))
    grown[prefix] = (_add(before[0], in_blank), _add(before[1], in_symbol))


def _add(one: float, other: float) -> float:
    """log(exp(one) + exp(other))."""
    return float(np.logaddexp(one, other))
