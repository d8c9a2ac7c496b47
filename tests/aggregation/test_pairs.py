"""Products of low-rank pairs: what a mean of factors loses, and the best pair for a mean of products."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fl.adapters.pairs import LowRankPair, aligned, pair_names, resized, truncated
from fl.aggregation import pairs as pairs_module
from fl.aggregation.pairs import mean_and_residual, plus, product_gap, product_norms, shares, stacked

D_OUT, D_IN = 7, 9
UNIT = 2.0**-24  # by how much a float32 rounds


def zero(rank: int, d_out: int = D_OUT, d_in: int = D_IN) -> LowRankPair:
    return LowRankPair(np.zeros((rank, d_in)), np.zeros((d_out, rank)))


def draw(rank: int, seed: int, d_out: int = D_OUT, d_in: int = D_IN) -> LowRankPair:
    generator = np.random.default_rng(seed)
    return LowRankPair(generator.standard_normal((rank, d_in)), generator.standard_normal((d_out, rank)))


def products(pairs: list[LowRankPair], weights: np.ndarray) -> np.ndarray:
    """The slow, trusted mean of products."""
    return sum(w * (pair.b @ pair.a) for w, pair in zip(weights, pairs, strict=True))


def test_layers_have_both_factors_and_shapes_that_fit() -> None:
    shapes = {
        "x.q.gated_lora_A": (2, 9),
        "x.q.gated_lora_B": (7, 2),
        "x.q.gated_lora_gate_weight": (2, 9),
        "x.v.gated_lora_A": (2, 9),
        "x.k.gated_lora_A": (2, 9),
        "x.k.gated_lora_B": (7, 3),
    }
    assert pair_names(shapes) == {"x.q": ("x.q.gated_lora_A", "x.q.gated_lora_B")}


def test_a_hand_made_gap() -> None:
    """Two devices that learned along different axes: half of each product is lost, and half of a cross product is made up."""
    one, two = (
        LowRankPair(np.array([[1.0, 0.0]]), np.array([[1.0], [0.0]])),
        LowRankPair(np.array([[0.0, 1.0]]), np.array([[0.0], [1.0]])),
    )
    half = np.array([0.5, 0.5])
    mean = np.array([[0.5, 0.0], [0.0, 0.5]])
    of_means = np.array([[0.25, 0.25], [0.25, 0.25]])
    np.testing.assert_allclose(mean_and_residual([one, two], half)[1], mean - of_means)
    lost, whole = product_gap([one, two], half, zero(1, 2, 2))
    assert (lost, whole) == (pytest.approx(4 * 0.25**2), pytest.approx(2 * 0.5**2))


ranks = st.lists(st.integers(1, 4), min_size=1, max_size=5)


@given(ranks, st.integers(0, 2**20))
def test_a_stack_is_the_mean_of_products_whatever_the_ranks(sizes: list[int], seed: int) -> None:
    pairs = [draw(rank, seed + i) for i, rank in enumerate(sizes)]
    weights = shares([i + 1 for i in range(len(sizes))])
    whole = stacked(pairs, weights)
    assert whole.rank == sum(sizes)
    np.testing.assert_allclose(whole.product(), products(pairs, weights), atol=1e-12)


@given(st.integers(1, 5), st.integers(1, 4), st.integers(0, 2**20))
def test_mean_factors_and_residual_make_up_the_mean_product(count: int, rank: int, seed: int) -> None:
    pairs = [draw(rank, seed + i) for i in range(count)]
    weights = shares(list(range(1, count + 1)))
    mean, lost = mean_and_residual(pairs, weights)
    np.testing.assert_allclose(mean.product() + lost, products(pairs, weights), atol=1e-12)
    start = draw(rank, seed + count)
    moved = [plus(start, pair) for pair in pairs]
    np.testing.assert_allclose(plus(start, mean).product() + lost, products(moved, weights), atol=1e-12)
    if count == 1:
        assert np.abs(lost).max() < 1e-12


@pytest.mark.parametrize("dense", [False, True])
@pytest.mark.parametrize("rank", [1, 3])
def test_a_truncation_is_the_best_that_the_rank_can_hold(rank: int, dense: bool) -> None:
    pair = draw(D_OUT + 4 if dense else 5, seed=3)
    found = truncated(pair, rank)
    u, values, vt = np.linalg.svd(pair.b @ pair.a)
    np.testing.assert_allclose(found.product(), (u[:, :rank] * values[:rank]) @ vt[:rank], atol=1e-10)
    np.testing.assert_allclose(found.a @ found.a.T, np.eye(rank), atol=1e-10)


def test_a_large_matrix_is_truncated_by_a_few_directions_and_to_the_same_result() -> None:
    pair = draw(120, seed=5, d_out=100, d_in=110)
    found, again = truncated(pair, 4), truncated(pair, 4)
    u, values, vt = np.linalg.svd(pair.b @ pair.a)
    np.testing.assert_allclose(found.product(), (u[:, :4] * values[:4]) @ vt[:4], atol=1e-8 * values[0])
    assert (found.a == again.a).all()


@given(st.integers(1, 4), st.integers(0, 2**20))
def test_one_device_alone_gets_its_own_factors_back_and_not_only_its_product(rank: int, seed: int) -> None:
    pair = draw(rank, seed)
    found = aligned(truncated(pair, rank), pair.a)
    np.testing.assert_allclose(found.a, pair.a, rtol=1e-6, atol=1e-6)
    np.testing.assert_allclose(found.b, pair.b, rtol=1e-4, atol=1e-4)


def test_a_basis_that_spans_too_little_is_only_turned() -> None:
    pair = truncated(draw(2, seed=1), 2)
    found = aligned(pair, np.zeros((2, D_IN)))
    np.testing.assert_allclose(found.product(), pair.product(), atol=1e-12)
    np.testing.assert_allclose(found.a @ found.a.T, np.eye(2), atol=1e-12)


def test_filling_up_keeps_the_product_and_cutting_keeps_the_first_directions() -> None:
    pair = draw(2, seed=2)
    wide = resized(pair, 4)
    assert (wide.a.shape, wide.b.shape) == ((4, D_IN), (D_OUT, 4))
    np.testing.assert_allclose(wide.product(), pair.product())
    assert (resized(wide, 2).a == pair.a).all()
    assert (resized(wide, 1).b == pair.b[:, :1]).all()


def test_the_norm_of_a_product_needs_no_product(monkeypatch: pytest.MonkeyPatch) -> None:
    start, moves = draw(3, seed=9), [draw(3, seed=i) for i in range(20)]
    expected = [np.linalg.norm(pair.b @ pair.a) for pair in (plus(start, move) for move in moves)]
    np.testing.assert_allclose(product_norms(moves, start), expected)
    monkeypatch.setattr(pairs_module, "EXACT_RANK", 16)
    np.testing.assert_allclose(product_norms(moves, start), expected, rtol=1e-6)


@given(st.lists(st.floats(1e-3, 1e6), min_size=1, max_size=6), st.floats(1e-3, 1e200))
def test_only_the_proportions_of_weights_count(weights: list[float], factor: float) -> None:
    np.testing.assert_allclose(shares([factor * w for w in weights]), shares(weights), rtol=1e-9)
    assert shares(weights).sum() == pytest.approx(1.0)


def test_the_gap_of_many_devices_is_estimated_within_its_stated_error(monkeypatch: pytest.MonkeyPatch) -> None:
    start = draw(4, seed=0, d_out=96, d_in=80)
    moves = [LowRankPair(*(0.5 * factor for factor in draw(4, seed=i, d_out=96, d_in=80))) for i in range(1, 20)]
    weights = shares(list(range(1, 20)))
    exact = product_gap(moves, weights, start)
    monkeypatch.setattr(pairs_module, "EXACT_RANK", 16)
    estimated = product_gap(moves, weights, start)
    assert exact != estimated
    for found, true in zip(np.sqrt(estimated), np.sqrt(exact), strict=True):
        assert found == pytest.approx(true, rel=2 * 0.13)


def test_many_devices_are_added_up_within_the_error_of_float32(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of which every element is off by at most as much as the terms of its sum can be rounded."""
    moves = [LowRankPair(*(x.astype(np.float32) for x in draw(3, seed=i))) for i in range(400)]
    weights = shares(list(range(1, 401)))
    wide = [LowRankPair(*(x.astype(np.float64) for x in move)) for move in moves]
    terms = sum(w * np.abs(pair.b) @ np.abs(pair.a) for w, pair in zip(weights, wide, strict=True))
    mean, lost = mean_and_residual(moves, weights)
    bound = (pairs_module.INNER + 2) * UNIT * terms
    assert (np.abs(lost + mean.product() - products(wide, weights)) <= bound).all()
    monkeypatch.setattr(pairs_module, "EXACT_RANK", 3 * 400)
    exact, lost_exactly = mean_and_residual(moves, weights)
    assert (lost != lost_exactly).any()  # another path
    for one, other in zip(mean, exact, strict=True):
        np.testing.assert_allclose(one, other, atol=1e-7)
