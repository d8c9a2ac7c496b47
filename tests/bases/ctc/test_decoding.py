"""CTC decoding against what it is defined by: all paths."""

from collections import defaultdict
from itertools import product

import numpy as np
import pytest
import torch
from torch.nn import functional

from fl.bases.ctc.decoding import beam_ctc, collapse, greedy_ctc


def log_probs(frames: int, symbols: int, seed: int, scale: float = 1.5) -> np.ndarray:
    scores = scale * np.random.default_rng(seed).normal(size=(frames, symbols))
    return (scores - np.log(np.exp(scores).sum(axis=1, keepdims=True))).astype(np.float32)


def labellings(rows: np.ndarray, blank: int) -> dict[tuple[int, ...], float]:
    """The probability of every labelling, by enumeration of every path."""
    found: dict[tuple[int, ...], float] = defaultdict(float)
    for path in product(range(rows.shape[1]), repeat=len(rows)):
        found[collapse(path, blank)] += float(np.exp(sum(float(rows[i, s]) for i, s in enumerate(path))))
    return found


@pytest.mark.parametrize("blank", [0, 2])
@pytest.mark.parametrize("seed", range(4))
def test_a_wide_beam_finds_the_probability_of_every_labelling(seed: int, blank: int) -> None:
    rows = log_probs(6, 3, seed)
    expected = labellings(rows, blank)
    found = beam_ctc(rows, blank, beams=10_000)
    assert {one.tokens for one in found} == set(expected)
    for one in found:
        assert np.exp(one.log_prob) == pytest.approx(expected[one.tokens], rel=1e-5)
    assert found[0].tokens == max(expected, key=lambda tokens: expected[tokens])
    assert sum(np.exp(one.log_prob) for one in found) == pytest.approx(1.0, rel=1e-4)


def test_the_probability_of_a_labelling_is_that_of_the_loss() -> None:
    rows = log_probs(7, 4, 9)
    best = beam_ctc(rows, 0, beams=5_000)[0]
    target = torch.tensor([best.tokens])
    loss = functional.ctc_loss(
        torch.from_numpy(rows)[:, None], target, torch.tensor([7]), torch.tensor([len(best.tokens)]), reduction="none"
    )
    assert best.log_prob == pytest.approx(-float(loss), rel=1e-5)


def test_greedy_takes_the_best_path_which_need_not_be_the_best_labelling() -> None:
    rows = np.log(np.array([[0.4, 0.6], [0.4, 0.6]], np.float32))  # symbol 0 twice: 0.16 of it alone, blank is 1
    best = greedy_ctc(rows, 1)
    assert best.tokens == ()
    assert np.exp(best.log_prob) == pytest.approx(0.36, rel=1e-5)
    assert labellings(rows, 1)[(0,)] == pytest.approx(0.64)
    assert beam_ctc(rows, 1, beams=4)[0].tokens == (0,)


def test_repetitions_are_dropped_and_blanks_keep_them_apart() -> None:
    assert collapse([1, 1, 0, 1, 2, 2, 0], 0) == (1, 1, 2)
    assert collapse([0, 0], 0) == ()


def test_a_narrow_beam_with_few_candidates_is_a_lower_bound() -> None:
    rows = log_probs(12, 30, 3)
    narrow = beam_ctc(rows, 0, beams=4, candidates=6)
    wide = beam_ctc(rows, 0, beams=64)
    assert len(narrow) == 4
    assert narrow[0].log_prob <= wide[0].log_prob + 1e-9
    assert [one.log_prob for one in narrow] == sorted((one.log_prob for one in narrow), reverse=True)
