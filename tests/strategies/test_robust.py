"""Robust aggregation: exact on cases made by hand, and unmoved by a fifth of hostile devices."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from flwr.app import ConfigRecord
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from fl.core.errors import AggregationError, ConfigError
from fl.protocol.wire import Job
from strategies.base import Roster, SharedFedAvg
from strategies.columns import Updates, by_coordinate
from strategies.hostile import ATTACKS, corrupted
from strategies.replies import DeviceReply
from strategies.robust import (
    Bulyan,
    CoordinateMedian,
    GeometricMedian,
    Krum,
    MultiKrum,
    NormBound,
    TrimmedMean,
    bulyan_choice,
    central_rows,
    geometric_median,
    hostile_count,
    krum_scores,
    squared_distances,
    too_few,
)

Round = Callable[..., dict[str, np.ndarray]]
RULES = [CoordinateMedian, TrimmedMean, Krum, MultiKrum, Bulyan, NormBound, GeometricMedian]
BEFORE = {"x": np.zeros(1, np.float32)}


def on_a_line(*values: float) -> dict[str, tuple[float, dict[str, np.ndarray]]]:
    return {f"device {i}": (1.0, {"x": np.float32([v])}) for i, v in enumerate(values)}


@pytest.mark.parametrize(
    ("kind", "options", "values", "expected"),
    [
        (CoordinateMedian, {}, (1, 2, 9), 2.0),
        (CoordinateMedian, {}, (1, 2, 4, 1e30), 3.0),
        (TrimmedMean, {"trim_share": 0.2}, (-100, 1, 2, 6, 100), 3.0),
        (TrimmedMean, {"trim_share": 0.0}, (1, 2, 6), 3.0),
        (TrimmedMean, {"trim_share": 0.49}, (1, 5), 3.0),
        # f = 1, so two neighbours: 2 has 1 and 2.5 beside it (1 + 0.25), nobody has less; 2.5 has 0.25 + 2.25.
        (Krum, {"hostile_share": 0.2}, (1, 2, 2.5, 50, 7), 2.0),
        (MultiKrum, {"hostile_share": 0.2}, (1, 2, 3, 50, 4), (1 + 2 + 3 + 4) / 4),
        # f = 1: Krum chooses 5 of 7, without one of each far end; of those the 3 that are closest to their median 3.
        (Bulyan, {"hostile_share": 0.15}, (1, 2, 3, 4, 5, 90, -90), 3.0),
        (NormBound, {"norm_bound": 2.0}, (1, -8, 4), (1 - 2 + 2) / 3),
        (NormBound, {}, (1, -8, 4), (1 - 4 + 4) / 3),
    ],
)
def test_hand_made_cases(
    round_of: Round, kind: type[SharedFedAvg], options: dict[str, float], values: tuple[float, ...], expected: float
) -> None:
    new = round_of(kind, BEFORE, on_a_line(*values), **options)
    assert new["x"].tolist() == pytest.approx([expected])


def test_the_geometric_median_is_where_the_sum_of_distances_is_smallest(round_of: Round) -> None:
    """Of a triangle with all angles under 120 degrees, the point that sees its sides under 120 degrees each."""
    corners = [(0.0, 0.0), (4.0, 0.0), (1.0, 3.0)]
    devices = {f"d{i}": (1.0, {"x": np.float32(c)}) for i, c in enumerate(corners)}
    found = round_of(GeometricMedian, {"x": np.zeros(2, np.float32)}, devices)["x"].astype(np.float64)
    rays = [(np.array(c) - found) / np.linalg.norm(np.array(c) - found) for c in corners]
    for i in range(3):
        assert rays[i] @ rays[(i + 1) % 3] == pytest.approx(-0.5, abs=2e-3)


def test_the_geometric_median_of_a_majority_that_agrees_is_what_they_say(round_of: Round) -> None:
    new = round_of(GeometricMedian, BEFORE, on_a_line(3, 3, 3, 1000, -500))
    assert new["x"].tolist() == pytest.approx([3.0], rel=1e-2)


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


def cloud(count: int, seed: int = 0, spread: float = 0.1) -> tuple[dict[str, np.ndarray], tuple[DeviceReply, ...]]:
    """Shared tensors, and devices that all went one way with a little of their own."""
    generator = np.random.default_rng(seed)

    def draw() -> dict[str, np.ndarray]:
        return {name: generator.standard_normal(shape).astype(np.float32) for name, shape in SHAPES.items()}

    before, way = draw(), draw()
    replies = []
    for i in range(count):
        own = draw()
        shared = {n: (before[n] + way[n] + spread * own[n]).astype(np.float32) for n in SHAPES}
        replies.append(DeviceReply(f"device {i:02d}", shared, {}, {"examples": 1.0 + i, "steps": 1.0}))
    return before, tuple(replies)


def as_devices(replies: tuple[DeviceReply, ...]) -> dict[str, tuple[float, Any]]:
    return {reply.device_id: (reply.examples, reply.shared) for reply in replies}


def flat(values: dict[str, np.ndarray]) -> np.ndarray:
    return np.concatenate([values[name].ravel().astype(np.float64) for name in sorted(values)])


@pytest.mark.parametrize("kind", RULES)
def test_one_device_alone_gives_its_own_update_back(round_of: Round, kind: type[SharedFedAvg]) -> None:
    before, replies = cloud(1)
    new = round_of(kind, before, as_devices(replies))
    np.testing.assert_allclose(flat(new), flat(dict(replies[0].shared or {})), rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("kind", RULES)
def test_neither_order_nor_what_devices_say_of_their_size_changes_anything(
    round_of: Round, kind: type[SharedFedAvg]
) -> None:
    before, replies = cloud(11)
    one = round_of(kind, before, as_devices(replies))
    turned = round_of(kind, before, as_devices(replies[::-1]))
    boasting = round_of(kind, before, {d: (1e9 * n, t) for d, (n, t) in as_devices(replies).items()})
    for name in one:
        assert one[name].tobytes() == turned[name].tobytes() == boasting[name].tobytes()


@pytest.mark.parametrize("kind", RULES)
def test_equal_updates_come_back(round_of: Round, kind: type[SharedFedAvg]) -> None:
    before, replies = cloud(1)
    devices = {f"device {i}": (1.0, replies[0].shared) for i in range(11)}
    np.testing.assert_allclose(flat(round_of(kind, before, devices)), flat(dict(replies[0].shared or {})), rtol=1e-6)


@pytest.mark.parametrize("kind", RULES)
@pytest.mark.parametrize("attack", ATTACKS)
def test_a_fifth_of_hostile_devices_moves_the_result_little(
    round_of: Round, kind: type[SharedFedAvg], attack: str
) -> None:
    """Held against the plain mean under the same attack, and against the spread of the honest devices."""
    before, replies = cloud(15)
    hostile = [reply.device_id for reply in replies[:3]]
    attacked = corrupted(replies, before, attack, hostile, seed=1)
    truth = flat({n: np.mean([r.shared[n] for r in replies[3:]], axis=0) for n in SHAPES})  # type: ignore[index]
    error = np.linalg.norm(flat(round_of(kind, before, as_devices(attacked))) - truth)
    equal = {d: (1.0, values) for d, (_, values) in as_devices(attacked).items()}
    plain = np.linalg.norm(flat(round_of(SharedFedAvg, before, equal)) - truth)
    moved = np.linalg.norm(truth - flat(before))
    assert error < 0.95 * plain or kind is NormBound  # which bounds length, and a flipped sign is not longer
    assert error < (0.5 if kind is NormBound else 0.15) * moved


@pytest.mark.parametrize("kind", RULES)
def test_a_huge_finite_update_does_not_drown_the_others(round_of: Round, kind: type[SharedFedAvg]) -> None:
    before, replies = cloud(11)
    honest = flat({n: np.mean([r.shared[n] for r in replies[1:]], axis=0) for n in SHAPES})  # type: ignore[index]
    devices = as_devices(replies)
    devices["device 00"] = (1.0, {n: np.full(shape, 3e38, np.float32) for n, shape in SHAPES.items()})
    error = np.linalg.norm(flat(round_of(kind, before, devices)) - honest)
    assert error < 0.5 * np.linalg.norm(honest - flat(before))


def test_distances_are_those_of_the_whole_vectors() -> None:
    before, replies = cloud(4)
    points = [flat(dict(reply.shared or {})) for reply in replies]
    expected = [[np.sum(np.square(a - b)) for b in points] for a in points]
    np.testing.assert_allclose(squared_distances(replies, before), expected, rtol=1e-5)


def test_a_far_row_is_shortened_and_one_that_overflows_is_zero() -> None:
    before = {"x": np.float32([-3e38, 0.0])}
    rows = [[-3e38, 1.0], [-3e38, 2.0], [-3e38, 3e9], [3e38, 0.0]]
    replies = [DeviceReply(f"d{i}", {"x": np.float32(row)}, {}, {"examples": 1.0}) for i, row in enumerate(rows)]
    updates = Updates.of(replies, before, keep=True)
    (matrix,) = updates.matrices(np.float32)
    assert updates.norms[:3] == pytest.approx([1.0, 2.0, 3e9])
    assert updates.factors.tolist() == pytest.approx([1.0, 1.0, 2e6 / 3e9, 0.0])
    assert matrix[:, 1].tolist() == pytest.approx([1.0, 2.0, 2e6, 0.0])
    assert np.isfinite(geometric_median(replies, before)["x"]).all()


def test_coordinates_are_cut_into_blocks_and_put_together_again() -> None:
    generator = np.random.default_rng(0)
    stack = generator.standard_normal((5, 3, 321)).astype(np.float16)
    replies = [DeviceReply(f"d{i}", {"x": row}, {}, {"examples": 1.0}) for i, row in enumerate(stack)]
    found = by_coordinate(replies, lambda ordered: ordered[:, 1])["x"].numpy()
    assert (found == np.sort(stack, axis=0)[1].astype(np.float32)).all()


# Too few


@pytest.mark.parametrize(
    ("share", "devices", "count"), [(0.2, 10, 2), (0.2, 9, 1), (0.29, 100, 29), (0.2, 1, 0), (0.0, 9, 0)]
)
def test_a_share_of_devices_is_rounded_down(share: float, devices: int, count: int) -> None:
    assert hostile_count(share, devices) == count


@pytest.mark.parametrize(("kind", "needed"), [(Krum, 7), (MultiKrum, 7), (Bulyan, 11)])
def test_too_few_devices_are_refused_before_the_first_round_and_in_a_later_one(
    round_of: Round, kind: type[Krum], needed: int
) -> None:
    """Two hostile ones need 2 f + 3 or 4 f + 3 devices."""
    assert too_few("krum", needed, 2, kind.factor) == ""
    assert "at least" in too_few("krum", needed - 1, 2, kind.factor)
    names = tuple(f"d{i}" for i in range(needed - 1))
    roster = Roster(dict.fromkeys(names, 1), dict.fromkeys(names, 1))
    job = Job(arm="global", round=0, devices=names)
    share = 2.01 / (needed - 1)
    strategy = kind(roster=roster, settings=ConfigRecord(), job=job, hostile_share=share)
    with pytest.raises(ConfigError, match=f"at least {needed} devices .* lower hostile-share"):
        strategy.require_fit({"x": (1,)})
    left = tuple(DeviceReply(n, {"x": np.float32([1.0])}, {}, {"examples": 1.0}) for n in names)
    with pytest.raises(AggregationError, match=f"at least {needed} devices"):
        strategy.aggregate(left)


# The attacks themselves


def test_attacks_do_what_their_names_say_and_leave_honest_devices_alone() -> None:
    before, replies = cloud(6)
    updates = [{n: r.shared[n] - before[n] for n in SHAPES} for r in replies]  # type: ignore[index]
    hostile = ["device 01", "device 04"]
    for attack in ATTACKS:
        found = corrupted(replies, before, attack, hostile, seed=3)
        assert [r is f for r, f in zip(replies, found, strict=True)] == [True, False, True, True, False, True]
        again = corrupted(replies, before, attack, hostile, seed=3)
        assert all((a.shared[n] == b.shared[n]).all() for a, b in zip(found, again, strict=True) for n in SHAPES)  # type: ignore[index]
        one, two = ({n: found[i].shared[n] - before[n] for n in SHAPES} for i in (1, 4))  # type: ignore[index]
        if attack == "sign-flip":
            np.testing.assert_allclose(flat(one), -flat(updates[1]), atol=1e-6)
        elif attack == "scale":
            np.testing.assert_allclose(flat(one), 100 * flat(updates[1]), rtol=1e-4, atol=1e-4)
        elif attack == "random":
            assert np.linalg.norm(flat(one)) == pytest.approx(np.linalg.norm(flat(updates[1])), rel=1e-3)
            assert abs(flat(one) @ flat(two)) < np.linalg.norm(flat(one)) * np.linalg.norm(flat(two))
        else:
            assert (flat(one) == flat(two)).all()
            honest = np.mean([flat(u) for i, u in enumerate(updates) if i not in (1, 4)], axis=0)
            assert flat(one) @ honest < 0


def test_an_unknown_attack_names_the_known_ones() -> None:
    before, replies = cloud(2)
    with pytest.raises(ConfigError, match="sign-flip"):
        corrupted(replies, before, "flip", [], seed=0)
