"""Clipping bounds what one person can do to a sum; the noise on it is Gaussian, as large as accounted for, and unpredictable."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from fl.privacy import dp
from fl.privacy.adaptive import AdaptiveClipping
from fl.privacy.dp import DistributedNoise, PrivacyError
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
    found = dp.noisy_mean(people, bound=bound, noise_multiplier=multiplier, total_weight=3.0, key=KEY)["a.A"]
    assert found.std() * 3 == pytest.approx(multiplier * bound, rel=5 / math.sqrt(2 * size))


def test_the_mean_is_over_the_fixed_weight_whoever_dropped_out():
    people = [(1.0, update(0)), (0.5, update(1)), (0.25, update(2))]
    for answered in (people, people[:2]):
        found = dp.noisy_mean(answered, bound=0.5, noise_multiplier=0.0, total_weight=4.0)
        expected = clipped_sum(answered, "flat", 0.5)
        assert all(found[name] == pytest.approx(expected[name] / 4.0, rel=1e-6, abs=1e-9) for name in SHAPES)


@given(st.integers(1, 500), st.floats(0, 0.9), st.integers(0, 3))
def test_shares_of_noise_suffice_as_long_as_the_assumption_holds(asked, dropouts, colluding):
    remaining = math.ceil(asked * (1 - dropouts) - 1e-6) - colluding
    if remaining < 1:
        return
    noise = DistributedNoise.planned(1.2, 0.5, asked, dropouts=dropouts, colluding=colluding)
    assert noise.honest <= remaining
    assert noise.share * math.sqrt(noise.honest) == pytest.approx(1.2 * 0.5)  # with more devices there is more noise


def test_the_sum_of_shares_is_the_planned_noise():
    noise = DistributedNoise.planned(2.0, 0.5, 10, dropouts=0.3)
    assert noise.honest == 7
    zeros = {"a": np.zeros(20_000)}
    total = np.sum([dp.add_noise(zeros, noise.share, key_from_seed(i))["a"] for i in range(7)], axis=0)
    assert total.std() == pytest.approx(2.0 * 0.5, rel=5 / math.sqrt(2 * 20_000))


def test_a_device_can_add_all_the_noise_itself():
    one = {"a.A": np.full(20_000, 5.0, np.float32)}
    found = dp.privatize(one, 0.5, 3.0 * 0.5, KEY)["a.A"]
    assert found.dtype == np.float32
    assert found.std() == pytest.approx(1.5, rel=5 / math.sqrt(2 * 20_000))
    assert dp.norm({"": found.astype(float) - standard_normal(KEY, 20_000) * 1.5}) <= 0.5 * (1 + 1e-3)


# Adaptive clipping


def test_the_noise_on_bits_and_on_updates_costs_what_one_release_costs():
    setting = AdaptiveClipping(1.0, 1.1, 5.0)
    assert setting.update_multiplier**-2 + (2 * 5.0) ** -2 == pytest.approx(1.1**-2)
    assert setting.update_multiplier > 1.1


def test_a_step_follows_the_paper():
    setting = AdaptiveClipping(0.4, 1.0, 2.0, quantile=0.5, rate=0.2)
    noise = float(standard_normal(KEY, 1)[0]) * 2.0
    found = setting.next(3.0, 20.0, KEY)  # bits of 13 within and 7 beyond
    assert found.bound == pytest.approx(0.4 * math.exp(-0.2 * ((3.0 + noise) / 20 + 0.5 - 0.5)))
    assert (found.noise_multiplier, found.quantile) == (1.0, 0.5)


@pytest.mark.parametrize("quantile", [0.2, 0.5, 0.8])
@pytest.mark.parametrize("start", [0.01, 50.0])
def test_the_bound_settles_at_the_quantile_of_the_norms(quantile, start):
    norms = np.linspace(1.0, 3.0, 100)
    setting = AdaptiveClipping(start, 1.0, 1.0, quantile=quantile)
    for turn in range(200):
        bits = np.where(norms <= setting.bound, 0.5, -0.5).sum()  # what each device adds to the second sum
        setting = setting.next(float(bits), len(norms), key_from_seed(turn))
    assert setting.bound == pytest.approx(np.quantile(norms, quantile), rel=0.1)


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
        dp.noisy_mean([(1.0, update(0)), (1.0, fewer)], bound=1.0, noise_multiplier=1.0, total_weight=2.0)


@pytest.mark.parametrize(
    "change",
    [{"bound": 0.0}, {"bound": np.nan}, {"noise_multiplier": -1.0}, {"total_weight": 0.0}, {"clipping": "soft"}],
)
def test_settings_without_a_guarantee_are_refused(change):
    arguments = {"bound": 1.0, "noise_multiplier": 1.0, "total_weight": 1.0, **change}
    with pytest.raises(PrivacyError):
        dp.noisy_mean([(1.0, update(0))], **arguments)


@pytest.mark.parametrize("weight", [-0.1, 1.5, np.nan, np.inf])
def test_a_weight_without_a_bound_is_refused(weight):
    with pytest.raises(PrivacyError, match="weight"):
        dp.noisy_mean([(weight, update(0))], bound=1.0, noise_multiplier=1.0, total_weight=1.0)


def test_a_round_without_devices_is_no_release():
    with pytest.raises(PrivacyError, match="no device answered"):
        dp.noisy_mean([], bound=1.0, noise_multiplier=1.0, total_weight=1.0)


@pytest.mark.parametrize(
    "make",
    [
        lambda: dp.weight_of(-1, None),
        lambda: dp.weight_of(math.nan, 3),
        lambda: dp.weight_of(1, 0),
        lambda: DistributedNoise(1.0, 1.0, 0),
        lambda: DistributedNoise.planned(1.0, 1.0, 10, dropouts=1.0),
        lambda: DistributedNoise.planned(1.0, 1.0, 10, dropouts=0.5, colluding=5),
        lambda: AdaptiveClipping(1.0, 1.0, 0.5),
        lambda: AdaptiveClipping(1.0, 1.0, 5.0, quantile=1.0),
        lambda: AdaptiveClipping(-1.0, 1.0, 5.0),
        lambda: dp.privatize(update(0), 1.0, 0.0),
        lambda: dp.add_noise({"a": np.zeros(2)}, math.nan),
    ],
)
def test_parameters_without_meaning_are_refused(make):
    with pytest.raises(PrivacyError):
        make()
