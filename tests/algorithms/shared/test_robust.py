"""Robust aggregation: exact on cases made by hand, and unmoved by a fifth of hostile devices."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from fl.aggregation.updates import DeviceUpdate
from fl.algorithms.base import Aggregator, Round
from fl.algorithms.hostile import UPDATE_ATTACKS, corrupted, hostile_count
from fl.algorithms.shared.robust import (
    RobustAlgorithm,
    bulyan_choice,
    central_rows,
    geometric_median,
    krum_scores,
    squared_distances,
    too_few,
)
from fl.algorithms.table import ALGORITHMS
from fl.core.errors import AggregationError, ConfigError

After = Callable[..., dict[str, np.ndarray]]
RULES = [name for name, cls in ALGORITHMS.items() if issubclass(cls, RobustAlgorithm)]
START = {"x": np.zeros(1, np.float32)}


def test_all_seven_rules_are_looked_at() -> None:
    assert RULES == ["median", "trimmed-mean", "krum", "multi-krum", "bulyan", "norm-bound", "geometric-median"]


def on_a_line(*values: float) -> dict[str, tuple[float, dict[str, np.ndarray]]]:
    return {f"device {i}": (1.0, {"x": np.float32([v])}) for i, v in enumerate(values)}


@pytest.mark.parametrize(
    ("name", "options", "values", "expected"),
    [
        ("median", {}, (1, 2, 9), 2.0),
        ("median", {}, (1, 2, 4, 1e30), 3.0),
        ("trimmed-mean", {"trim_share": 0.2}, (-100, 1, 2, 6, 100), 3.0),
        ("trimmed-mean", {"trim_share": 0.0}, (1, 2, 6), 3.0),
        ("trimmed-mean", {"trim_share": 0.49}, (1, 5), 3.0),
        # a fifth of 6 devices is 2, rounded up: at each end 2 values go
        ("trimmed-mean", {"trim_share": 0.2}, (-100, -50, 1, 5, 60, 100), 3.0),
        # f = 1, so two neighbours: 2 has 1 and 2.5 beside it (1 + 0.25), nobody has less; 2.5 has 0.25 + 2.25.
        ("krum", {"hostile_share": 0.2}, (1, 2, 2.5, 50, 7), 2.0),
        ("multi-krum", {"hostile_share": 0.2}, (1, 2, 3, 50, 4), (1 + 2 + 3 + 4) / 4),
        # a fifth of 8 devices is 2, rounded up: both far ones are left out
        ("multi-krum", {"hostile_share": 0.2}, (1, 2, 3, 50, 60, 4, 5, 6), (1 + 2 + 3 + 4 + 5 + 6) / 6),
        # f = 1: Krum chooses 5 of 7, without one of each far end; of those the 3 that are closest to their median 3.
        ("bulyan", {"hostile_share": 0.14}, (1, 2, 3, 4, 5, 90, -90), 3.0),
        ("norm-bound", {"bound": 2.0}, (1, -8, 4), (1 - 2 + 2) / 3),
        ("norm-bound", {}, (1, -8, 4), (1 - 4 + 4) / 3),
    ],
)
def test_hand_made_cases(
    after_round: After, name: str, options: dict[str, float], values: tuple[float, ...], expected: float
) -> None:
    assert after_round(name, START, on_a_line(*values), **options)["x"].tolist() == pytest.approx([expected])


def test_the_geometric_median_is_where_the_sum_of_distances_is_smallest(after_round: After) -> None:
    """Of a triangle with all angles under 120 degrees, the point that sees its sides under 120 degrees each."""
    corners = [(0.0, 0.0), (4.0, 0.0), (1.0, 3.0)]
    devices = {f"d{i}": (1.0, {"x": np.float32(c)}) for i, c in enumerate(corners)}
    found = after_round("geometric-median", {"x": np.zeros(2, np.float32)}, devices)["x"].astype(np.float64)
    rays = [(np.array(c) - found) / np.linalg.norm(np.array(c) - found) for c in corners]
    for i in range(3):
        assert rays[i] @ rays[(i + 1) % 3] == pytest.approx(-0.5, abs=2e-3)


def test_the_geometric_median_of_a_majority_that_agrees_is_what_they_say(after_round: After) -> None:
    new = after_round("geometric-median", START, on_a_line(3, 3, 3, 1000, -500))
    assert new["x"].tolist() == pytest.approx([3.0], rel=1e-2)


def test_the_geometric_median_is_finite_beside_an_update_that_is_not() -> None:
    rows = [[0.0, 1.0], [0.0, 2.0], [0.0, 3e9], [np.inf, 0.0]]
    updates = [DeviceUpdate(f"d{i}", {"x": np.float32(row)}) for i, row in enumerate(rows)]
    assert np.isfinite(geometric_median(updates)["x"]).all()


def test_bulyan_drops_who_krum_never_chooses() -> None:
    points = np.array([1.0, 2, 3, 4, 5, 90, -90])
    distances = np.square(points[:, None] - points[None, :])
    assert bulyan_choice(distances, 1) == [0, 1, 2, 3, 4]


def test_krum_scores_are_sums_over_the_nearest_others() -> None:
    points = np.array([0.0, 1.0, 3.0, 7.0, 20.0])
    scores = krum_scores(np.square(points[:, None] - points[None, :]), 1)  # 5 - 1 - 2 = 2 neighbours
    assert scores.tolist() == [1 + 9, 1 + 4, 4 + 9, 16 + 36, 169 + 289]


@given(arrays(np.float64, (9,), elements=st.floats(-100, 100)), st.integers(1, 9))
def test_central_values_are_the_closest_to_the_median(values: np.ndarray, keep: int) -> None:
    ordered = np.sort(values)[None]
    away = np.sort(np.abs(values - np.median(values)))[:keep]
    found = central_rows(ordered, keep)[0]
    windows = [np.sort(values)[i : i + keep] for i in range(9 - keep + 1)]
    fitting = [w.mean() for w in windows if np.abs(w - np.median(values)).max() <= away.max() + 1e-12]
    assert any(found == pytest.approx(mean, abs=1e-9) for mean in fitting)


# Properties of all of them

SHAPES = {"m.gated_lora_A": (2, 6), "m.gated_lora_B": (5, 2)}
ZERO = {name: np.zeros(shape, np.float32) for name, shape in SHAPES.items()}


def cloud(count: int, seed: int = 0, spread: float = 0.1) -> tuple[DeviceUpdate, ...]:
    """Updates of devices that all went one way, with a little of their own."""
    generator = np.random.default_rng(seed)

    def draw() -> dict[str, np.ndarray]:
        return {name: generator.standard_normal(shape).astype(np.float32) for name, shape in SHAPES.items()}

    way = draw()
    updates = []
    for i in range(count):
        own = draw()
        tensors = {n: (way[n] + spread * own[n]).astype(np.float32) for n in SHAPES}
        updates.append(DeviceUpdate(f"device {i:02d}", tensors, {}, {"examples": 1.0 + i, "steps": 1.0}))
    return tuple(updates)


def flat(values: Any) -> np.ndarray:
    return np.concatenate([np.ravel(values[name]).astype(np.float64) for name in sorted(values)])


def aggregate(half: Callable[..., Aggregator], name: str, updates: tuple[DeviceUpdate, ...]) -> dict[str, np.ndarray]:
    return half(name).aggregate(Round(1, ZERO, updates))


def centre(updates: tuple[DeviceUpdate, ...]) -> np.ndarray:
    """The mean of updates, each device once."""
    return np.mean([flat(update.tensors) for update in updates], axis=0)


@pytest.mark.parametrize("name", RULES)
def test_one_device_alone_gives_its_own_update_back(half: Callable[..., Aggregator], name: str) -> None:
    options = {"hostile_share": 0.0} if "hostile_share" in ALGORITHMS[name].model_fields else {}
    (mine,) = cloud(1)
    found = half(name, **options).aggregate(Round(1, ZERO, (mine,)))
    np.testing.assert_allclose(flat(found), flat(mine.tensors), rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("name", RULES)
def test_what_devices_say_of_their_size_changes_nothing(half: Callable[..., Aggregator], name: str) -> None:
    updates = cloud(15)
    boasting = tuple(DeviceUpdate(u.device_id, u.tensors, {}, {"examples": 1e9 * u.examples}) for u in updates)
    one, other = (aggregate(half, name, given) for given in (updates, boasting))
    assert all(one[tensor].tobytes() == other[tensor].tobytes() for tensor in one)


@pytest.mark.parametrize("name", RULES)
def test_equal_updates_come_back(half: Callable[..., Aggregator], name: str) -> None:
    (mine,) = cloud(1)
    same = tuple(DeviceUpdate(f"device {i:02d}", mine.tensors, {}, {"examples": 1.0}) for i in range(15))
    np.testing.assert_allclose(flat(aggregate(half, name, same)), flat(mine.tensors), rtol=1e-6)


@pytest.mark.parametrize("name", RULES)
@pytest.mark.parametrize("attack", UPDATE_ATTACKS)
def test_a_fifth_of_hostile_devices_moves_the_result_little(
    half: Callable[..., Aggregator], name: str, attack: str
) -> None:
    """Against the plain mean under the same attack, and against the spread of the honest devices."""
    updates = cloud(15)
    attacked = corrupted(updates, attack, [update.device_id for update in updates[:3]], seed=1)
    truth = centre(updates[3:])
    error = np.linalg.norm(flat(aggregate(half, name, attacked)) - truth)
    plain = np.linalg.norm(centre(attacked) - truth)
    bounded = name == "norm-bound"  # which bounds length, and a flipped sign is not longer
    assert error < 0.95 * plain or bounded
    assert error < (0.5 if bounded else 0.15) * np.linalg.norm(truth)


@pytest.mark.parametrize("name", RULES)
def test_a_huge_finite_update_does_not_drown_the_others(half: Callable[..., Aggregator], name: str) -> None:
    updates = cloud(15)
    honest = centre(updates[1:])
    far = {n: np.full(shape, 3e38, np.float32) for n, shape in SHAPES.items()}
    found = aggregate(half, name, (DeviceUpdate("device 00", far, {}, {"examples": 1.0}), *updates[1:]))
    assert np.linalg.norm(flat(found) - honest) < 0.5 * np.linalg.norm(honest)


def test_distances_are_those_of_the_whole_vectors() -> None:
    updates = cloud(4)
    points = [flat(update.tensors) for update in updates]
    expected = [[np.sum(np.square(a - b)) for b in points] for a in points]
    np.testing.assert_allclose(squared_distances(updates), expected, rtol=1e-5)


# Too few


@pytest.mark.parametrize(("name", "needed"), [("krum", 7), ("multi-krum", 7), ("bulyan", 11)])
def test_too_few_devices_are_refused_before_the_first_round_and_in_a_later_one(
    half: Callable[..., Aggregator], name: str, needed: int
) -> None:
    """Two hostile ones need 2 f + 3 or 4 f + 3 devices."""
    share = 1.99 / (needed - 1)
    assert hostile_count(share, needed - 1) == 2
    rule = half(name, hostile_share=share)
    assert too_few(name, needed, 2, rule.factor) == ""  # type: ignore[attr-defined]
    with pytest.raises(
        ConfigError, match=f"{name} needs at least {needed} devices .* lower algorithm.krum.hostile-share"
    ):
        rule.require_fit({"x": (1,)}, needed - 1)
    left = tuple(DeviceUpdate(f"d{i}", {"x": np.float32([1.0])}, {}, {"examples": 1.0}) for i in range(needed - 1))
    with pytest.raises(AggregationError, match=f"at least {needed} devices"):
        rule.aggregate(Round(1, START, left))


@pytest.mark.parametrize("name", ["krum", "multi-krum", "bulyan"])
def test_a_rule_that_assumes_no_hostile_device_takes_any_number(half: Callable[..., Aggregator], name: str) -> None:
    for devices in (1, 2, 5):
        half(name, hostile_share=0.0).require_fit({"x": (1,)}, devices)
