"""The weighted average and nothing but the average; and what a mean of factors loses of a mean of products."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays as numpy_arrays

from fl.aggregation.mean import GAP, average, mean, product_gaps
from fl.aggregation.updates import DeviceUpdate, moved
from fl.core.errors import AggregationError

A, B = "map.gated_lora_A", "map.gated_lora_B"


def update(device_id: str, examples: float = 1, **tensors: Any) -> DeviceUpdate:
    values = {name: np.asarray(v, np.float32) for name, v in tensors.items()}
    return DeviceUpdate(device_id, values, {}, {"examples": examples})


def test_the_mean_is_weighted_by_training_examples() -> None:
    result = mean(
        (
            update("ann", 1, A=[[0.0, 8.0]], B=[1.0]),
            update("bob", 2, A=[[4.0, 0.0]], B=[2.5]),
            update("cho", 5, A=[[8.0, -8.0]], B=[-2.0]),
        )
    )
    assert result["A"].tolist() == [[(1 * 0 + 2 * 4 + 5 * 8) / 8, (1 * 8 + 2 * 0 + 5 * -8) / 8]]
    assert result["B"].tolist() == [(1 * 1 + 2 * 2.5 + 5 * -2) / 8]
    assert result["A"].dtype == np.float64


def test_only_the_tensors_that_are_named_are_averaged() -> None:
    assert list(mean([update("ann", 1, A=[1.0], B=[2.0])], ["B"])) == ["B"]


def test_one_device_alone_gives_its_own_update_back_bit_for_bit() -> None:
    mine = np.random.default_rng(0).standard_normal((5, 7)).astype(np.float32)
    for examples in (1, 3, 7, 1_000_003):
        assert mean([update("ann", examples, A=mine)])["A"].astype(np.float32).tobytes() == mine.tobytes()


def test_small_updates_are_not_lost_beside_large_ones_that_cancel() -> None:
    large = 2.0**24  # a quarter of it plus a quarter is no float32
    parts = [update(f"device {i}", 1, A=[value]) for i, value in enumerate((large, 1.0, -large, 1.0))]
    assert mean(parts)["A"].tolist() == [(1.0 + 1.0) / 4]


def test_nothing_to_average_is_an_error() -> None:
    for nothing in ((), (update("ann", 0, A=[1.0]),)):
        with pytest.raises(AggregationError, match="no device"):
            mean(nothing)


finite = st.floats(-1e6, 1e6, width=32)
parts_of_a_round = st.lists(
    st.tuples(st.integers(1, 1_000), numpy_arrays(np.float32, (3,), elements=finite)), min_size=1, max_size=6
)


@given(parts_of_a_round)
def test_the_mean_lies_between_the_smallest_and_the_largest_and_matches_the_textbook(
    parts: list[tuple[int, np.ndarray]],
) -> None:
    found = [update(f"device {i}", n, A=values) for i, (n, values) in enumerate(parts)]
    result = average(found, [n for n, _ in parts])["A"]
    stacked = np.stack([values.astype(np.float64) for _, values in parts])
    expected = np.average(stacked, axis=0, weights=[n for n, _ in parts])
    np.testing.assert_allclose(result, expected, rtol=1e-12, atol=1e-9)
    assert (result <= stacked.max(axis=0) + 1e-9).all()
    assert (result >= stacked.min(axis=0) - 1e-9).all()


@given(parts_of_a_round)
def test_equal_updates_average_to_themselves(parts: list[tuple[int, np.ndarray]]) -> None:
    same = parts[0][1]
    result = mean([update(f"device {i}", n, A=same) for i, (n, _) in enumerate(parts)])["A"]
    np.testing.assert_allclose(result, same.astype(np.float64), rtol=1e-6)  # 1e-6 of a subnormal float32 is zero


def test_an_update_leads_from_the_start_and_what_has_none_stays_bit_for_bit() -> None:
    start = {"x": np.float32([1.0, 0.1]), "y": np.float32([0.3])}
    new = moved(start, {"x": np.array([0.5, 1e300])})
    assert new["x"].tolist() == [1.5, np.inf]
    assert new["x"].dtype == np.float32
    assert new["y"].tobytes() == start["y"].tobytes()


# What a mean of factors loses


def test_the_gap_is_that_of_the_products_after_training_and_not_of_the_updates() -> None:
    generator = np.random.default_rng(0)
    start = {name: generator.standard_normal(shape).astype(np.float32) for name, shape in ((A, (2, 6)), (B, (5, 2)))}
    trained = [
        {n: v + generator.standard_normal(v.shape).astype(np.float32) for n, v in start.items()} for _ in range(3)
    ]
    weights = np.array([1, 3, 4]) / 8
    updates = [
        update(f"device {i}", 8 * weights[i], **{n: tensors[n] - start[n] for n in start})
        for i, tensors in enumerate(trained)
    ]
    product = sum(w * tensors[B].astype(np.float64) @ tensors[A] for w, tensors in zip(weights, trained, strict=True))
    factors = {n: sum(w * tensors[n] for w, tensors in zip(weights, trained, strict=True)) for n in start}
    expected = np.linalg.norm(product - factors[B] @ factors[A]) / np.linalg.norm(product)
    assert product_gaps(updates, start) == pytest.approx({GAP: expected, f"{GAP}:map": expected}, rel=1e-5)


def test_what_is_no_pair_has_no_gap() -> None:
    start = {"x.weight": np.ones(3, np.float32)}
    assert product_gaps([update("ann", 1, **{"x.weight": np.ones(3)})], start) == {}
