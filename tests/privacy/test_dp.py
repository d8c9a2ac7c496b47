"""Clipping bounds what one person can do to a sum; the noise on it is Gaussian, as large as accounted for, and unpredictable."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from fl.privacy import dp
from fl.privacy.dp import PrivacyError, honest_devices, next_norm, noise_share
from fl.privacy.plan import WITH_BIT
from fl.privacy.randomness import CHUNK_BYTES, fresh_key, key_from_seed, keystream, standard_normal

SHAPES = {"encoder.0.q.gated_lora_A": (2, 5), "encoder.0.q.gated_lora_B": (4, 2), "decoder.1.v.gated_lora_A": (2, 3)}
KEY = key_from_seed("test")


def update(seed: int, scale: float = 1.0) -> dict[str, np.ndarray]:
    generator = np.random.default_rng(seed)
    return {name: generator.normal(0, scale, shape).astype(np.float32) for name, shape in SHAPES.items()}


def clipped_sum(
    people: list[tuple[float, dict[str, np.ndarray]]], clipping: str, bound: float
) -> dict[str, np.ndarray]:
    parts = [(weight, dp.clip(one, bound, clipping)) for weight, one in people]
    return {name: np.sum([w * part[name].astype(np.float64) for w, part in parts], axis=0) for name in SHAPES}


def distance(a: dict[str, np.ndarray], b: dict[str, np.ndarray]) -> float:
    return dp.norm({name: a[name] - b[name] for name in a})


# Clipping


def test_an_update_is_new_minus_old():
    old, new = update(0), update(1)
    found = dp.difference(new, old)
    assert list(found) == sorted(SHAPES)
    assert all(np.array_equal(found[name], (new[name].astype(float) - old[name]).astype(np.float32)) for name in SHAPES)


def test_the_norm_is_over_all_tensors_together():
    assert dp.norm({"a.A": np.array([[3.0]]), "b.A": np.array([4.0])}) == 5.0
    assert dp.norm({"a": np.full(4, 2.0**-70, np.float32)}) == 2.0**-69  # squares would vanish in float32


@given(st.integers(0, 2**31), st.floats(1e-6, 1e6), st.floats(1e-6, 1e6), st.sampled_from(sorted(dp.CLIPPING)))
@settings(max_examples=100, deadline=None)
def test_a_clipped_update_is_never_longer_than_the_bound(seed, scale, bound, clipping):
    assert dp.norm(dp.clip(update(seed, scale), bound, clipping)) <= bound


def test_an_update_within_the_bound_stays_bit_for_bit():
    one = update(2)
    found = dp.clip(one, dp.norm(one) * 1.001)
    assert all(np.array_equal(found[name], one[name]) for name in SHAPES)


def test_flat_clipping_keeps_the_direction():
    one = update(3)
    found = dp.clip(one, 0.25)
    assert dp.norm(found) == pytest.approx(0.25, rel=1e-5)
    for name in SHAPES:
        assert found[name] == pytest.approx(one[name] * 0.25 / dp.norm(one), rel=1e-5)


def test_per_layer_clipping_gives_each_layer_its_part_and_leaves_quiet_ones_alone():
    one = update(4)
    one["decoder.1.v.gated_lora_A"] *= np.float32(1e-3)
    found = dp.clip(one, 1.0, "per-layer")
    loud = {name: found[name] for name in SHAPES if name.startswith("encoder.0.q")}  # A and B of one map are one layer
    assert dp.norm(loud) == pytest.approx(1 / math.sqrt(2), rel=1e-5)
    assert np.array_equal(found["decoder.1.v.gated_lora_A"], one["decoder.1.v.gated_lora_A"])


@given(
    st.integers(0, 2**31),
    st.integers(1, 6),
    st.floats(1e-3, 1e3),
    st.sampled_from(sorted(dp.CLIPPING)),
    st.one_of(st.none(), st.floats(1, 100)),
)
@settings(max_examples=60, deadline=None)
def test_one_person_moves_the_sum_by_at_most_the_bound_and_another_in_its_place_by_twice(
    seed, others, bound, clipping, cap
):
    examples = np.random.default_rng(seed).integers(0, 200, others + 2)
    people = [(dp.weight_of(int(count), cap), update(seed + i, 10.0**i)) for i, count in enumerate(examples)]
    *rest, one, another = people
    without = clipped_sum(rest, clipping, bound)
    slack = 1e-12 * bound * len(people)  # of adding in float64
    assert distance(clipped_sum([*rest, one], clipping, bound), without) <= bound + slack
    replaced = clipped_sum([*rest, another], clipping, bound)
    assert distance(clipped_sum([*rest, one], clipping, bound), replaced) <= 2 * bound + slack


def test_the_bounds_are_reached_so_no_smaller_one_holds():
    loud = {"a.A": np.array([100.0], np.float32)}
    moved = dp.clip(loud, 1.0)["a.A"] - dp.clip({"a.A": -loud["a.A"]}, 1.0)["a.A"]
    assert moved == pytest.approx([2.0], rel=1e-5)


def test_weights_are_equal_or_capped():
    assert [dp.weight_of(examples, None) for examples in (0, 1, 1000)] == [1.0, 1.0, 1.0]
    assert [dp.weight_of(examples, 20) for examples in (0, 5, 20, 1000)] == [0.0, 0.25, 1.0, 1.0]


# Noise


def test_the_keystream_is_chacha20():
    """Test vector 1 of RFC 8439, appendix A.1: key, nonce and counter of zero."""
    first = next(keystream(bytes(32), 32))
    assert first.tobytes().hex() == "76b8e0ada0f13d90405d6ae55386bd28bdd219b8a08ded1aa836efcc8b770dc7"


def test_a_longer_stream_begins_with_the_shorter_one():
    size = CHUNK_BYTES + 40
    long = np.concatenate([chunk.copy() for chunk in keystream(KEY, size)])
    assert len(long) == size
    assert np.array_equal(next(keystream(KEY, 24)), long[:24])
    assert not np.array_equal(long[CHUNK_BYTES:], long[:40])


def test_the_noise_is_standard_normal():
    values = standard_normal(KEY, 200_000)
    assert stats.kstest(values, "norm").pvalue > 1e-3
    assert abs(values.mean()) < 5 / math.sqrt(len(values))
    assert values.std() == pytest.approx(1.0, abs=5 / math.sqrt(2 * len(values)))
    assert abs(np.corrcoef(values[:-1], values[1:])[0, 1]) < 5 / math.sqrt(len(values))


def test_noise_is_deterministic_with_its_key_and_never_without():
    assert np.array_equal(standard_normal(KEY, 100), standard_normal(KEY, 100))
    assert key_from_seed(1, "ab") != key_from_seed(1, "a", "b") != key_from_seed("1", "ab")
    zeros = {"a": np.zeros(50)}
    assert not np.array_equal(dp.add_noise(zeros, 1.0)["a"], dp.add_noise(zeros, 1.0)["a"])
    assert len({fresh_key() for _ in range(10)}) == 10


def test_noise_at_the_server_has_the_multiplier_times_the_bound():
    size, bound, multiplier = 50_000, 0.3, 1.7
    people = [(1.0, {"a.A": np.zeros(size, np.float32)})] * 3
    found = dp.add_noise(dp.clipped_sum(people, bound), multiplier * bound, KEY)["a.A"]
    assert found.std() == pytest.approx(multiplier * bound, rel=5 / math.sqrt(2 * size))


@pytest.mark.parametrize("clipping", sorted(dp.CLIPPING))
def test_the_sum_is_of_clipped_and_weighted_updates_of_those_who_answered(clipping):
    people = [(1.0, update(0)), (0.5, update(1)), (0.25, update(2))]
    for answered in (people, people[:2]):
        found = dp.clipped_sum(iter(answered), 0.5, clipping)
        expected = clipped_sum(answered, clipping, 0.5)
        assert all(found[name] == pytest.approx(expected[name], rel=1e-6, abs=1e-9) for name in SHAPES)
    assert dp.clipped_sum([], 0.5) == {}


@given(st.integers(1, 500), st.floats(0, 0.9), st.integers(0, 3))
def test_shares_of_noise_suffice_as_long_as_the_assumption_holds(asked, dropouts, colluding):
    remaining = math.ceil(asked * (1 - dropouts) - 1e-6) - colluding
    if remaining < 1:
        return
    honest = honest_devices(asked, dropouts, colluding)
    assert honest <= remaining
    assert noise_share(1.2, 0.5, honest) * math.sqrt(honest) == pytest.approx(1.2 * 0.5)  # more with more devices


def test_the_sum_of_shares_is_the_planned_noise():
    assert honest_devices(10, dropouts=0.3) == 7
    share, zeros = noise_share(2.0, 0.5, 7), {"a": np.zeros(20_000)}
    total = np.sum([dp.add_noise(zeros, share, key_from_seed(i))["a"] for i in range(7)], axis=0)
    assert total.std() == pytest.approx(2.0 * 0.5, rel=5 / math.sqrt(2 * 20_000))


def test_a_device_can_add_all_the_noise_itself():
    one = {"a.A": np.full(20_000, 5.0, np.float32)}
    found = dp.add_noise(dp.clip(one, 0.5), 3.0 * 0.5, KEY)["a.A"]
    assert found.std() == pytest.approx(1.5, rel=5 / math.sqrt(2 * 20_000))
    assert dp.norm({"": found - standard_normal(KEY, 20_000) * 1.5}) <= 0.5 * (1 + 1e-3)


# Adaptive clipping


def test_the_noise_on_bits_and_on_updates_costs_what_one_release_costs():
    both = 1.1 * WITH_BIT  # of the updates and of the bits: Andrew et al., theorem 1
    assert both**-2 + (2 * both) ** -2 == pytest.approx(1.1**-2)


def test_a_step_follows_the_paper():
    noise = float(standard_normal(KEY, 1)[0]) * 2.0
    found = next_norm(0.4, 3.0, 20, 0.5, 2.0, KEY)  # bits of 13 within and 7 beyond
    assert found == pytest.approx(0.4 * math.exp(-0.2 * ((3.0 + noise) / 20 + 0.5 - 0.5)))
    assert next_norm(0.4, 3.0, 20, 0.5) == pytest.approx(0.4 * math.exp(-0.2 * 3.0 / 20))  # noisy already


@pytest.mark.parametrize("quantile", [0.2, 0.5, 0.8])
@pytest.mark.parametrize("start", [0.01, 50.0])
def test_the_bound_settles_at_the_quantile_of_the_norms(quantile, start):
    norms = np.linspace(1.0, 3.0, 100)
    bound = start
    for turn in range(200):
        bits = np.where(norms <= bound, 0.5, -0.5).sum()  # what each device adds to the second sum
        bound = next_norm(bound, float(bits), len(norms), quantile, 1.0, key_from_seed(turn))
    assert bound == pytest.approx(np.quantile(norms, quantile), rel=0.1)


# Bad input


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("clipping", sorted(dp.CLIPPING))
def test_an_update_that_is_not_finite_is_refused_by_name(bad, clipping):
    one = update(0)
    one["encoder.0.q.gated_lora_B"][1, 1] = bad
    with pytest.raises(PrivacyError, match=r"encoder\.0\.q\.gated_lora_B.*NaN or infinity"):
        dp.clip(one, 1.0, clipping)


def test_updates_of_other_tensors_are_refused():
    with pytest.raises(PrivacyError, match="on one side only"):
        dp.difference(update(0), {**update(0), "gate": np.zeros(1)})
    with pytest.raises(PrivacyError, match=r"\(2, 5\) after and \(5, 2\) before"):
        dp.difference(update(0), {**update(0), "encoder.0.q.gated_lora_A": np.zeros((5, 2))})
    fewer = {"encoder.0.q.gated_lora_A": np.zeros((2, 5), np.float32)}
    with pytest.raises(PrivacyError, match="other names or shapes"):
        dp.clipped_sum([(1.0, update(0)), (1.0, fewer)], 1.0)


@pytest.mark.parametrize("weight", [-0.1, 1.5, np.nan, np.inf])
def test_a_weight_without_a_bound_is_refused(weight):
    with pytest.raises(PrivacyError, match="weight"):
        dp.clipped_sum([(weight, update(0))], 1.0)


@pytest.mark.parametrize(
    "make",
    [
        lambda: dp.weight_of(-1, None),
        lambda: dp.weight_of(math.nan, 3),
        lambda: dp.weight_of(1, 0),
        lambda: dp.clipped_sum([(1.0, update(0))], 0.0),
        lambda: dp.clip(update(0), math.nan),
        lambda: dp.clip(update(0), 1.0, "soft"),
        lambda: noise_share(0.0, 1.0, 5),
        lambda: noise_share(1.0, math.inf, 5),
        lambda: noise_share(1.0, 1.0, honest_devices(10, dropouts=0.5, colluding=5)),
        lambda: dp.add_noise({"a": np.zeros(2)}, -1.0),
        lambda: dp.add_noise({"a": np.zeros(2)}, math.nan),
    ],
)
def test_parameters_without_meaning_are_refused(make):
    with pytest.raises(PrivacyError):
        make()
