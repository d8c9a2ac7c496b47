import numpy as np
import pytest

from fl.core.errors import MetricError
from fl.core.rng import derive_generator
from fl.metrics.intervals import Interval, macro_rate, paired_difference, rate_interval


@pytest.fixture
def trial():
    """400 utterances of 8 devices, ten words each; errors of two systems, a with half the errors of b."""
    rng = derive_generator("test", "intervals")
    reference = np.full(400, 10)
    return rng.binomial(reference, 0.1), rng.binomial(reference, 0.2), reference, [f"dev{i % 8}" for i in range(400)]


def test_the_rate_is_pooled_and_inside_its_interval(trial):
    a, _, reference, groups = trial
    interval = rate_interval(a, reference, groups, seed=1)
    assert interval.rate == a.sum() / reference.sum()
    assert interval.low < interval.rate < interval.high
    assert (interval.errors, interval.reference) == (a.sum(), reference.sum())


def test_the_interval_is_as_wide_as_the_binomial_error_predicts(trial):
    a, _, reference, groups = trial
    interval = rate_interval(a, reference, groups, seed=1)
    standard_error = np.sqrt(interval.rate * (1 - interval.rate) / reference.sum())
    assert interval.high - interval.low == pytest.approx(2 * 1.96 * standard_error, rel=0.2)


def test_a_nominal_95_percent_interval_covers_the_truth_about_95_times_in_100():
    rng = derive_generator("test", "coverage")
    reference, groups = np.full(60, 10), [f"d{i % 3}" for i in range(60)]
    covered = 0
    for trial_seed in range(200):
        interval = rate_interval(rng.binomial(reference, 0.2), reference, groups, seed=trial_seed, samples=400)
        covered += interval.low <= 0.2 <= interval.high
    assert 178 <= covered <= 199  # 200 binomial(0.95) draws leave this range less than once in 10,000 times


def test_the_same_seed_gives_the_same_interval_and_another_seed_another(trial):
    a, _, reference, groups = trial
    first = rate_interval(a, reference, groups, seed=1)
    assert rate_interval(a, reference, groups, seed=1) == first
    assert rate_interval(a, reference, groups, seed=2) != first


def test_the_order_of_utterances_changes_nothing(trial):
    a, b, reference, groups = trial
    order = derive_generator("test", "order").permutation(len(a))
    shuffled = [groups[i] for i in order]
    assert rate_interval(a, reference, groups, seed=1) == rate_interval(a[order], reference[order], shuffled, seed=1)
    assert paired_difference(a, b, reference, groups, seed=1) == paired_difference(
        a[order], b[order], reference[order], shuffled, seed=1
    )


def test_a_system_compared_with_itself_differs_by_exactly_nothing(trial):
    a, _, reference, groups = trial
    same = paired_difference(a, a, reference, groups, seed=1)
    assert (same.difference, same.low, same.high) == (0, 0, 0)
    assert (same.relative, same.relative_low, same.relative_high) == (0, 0, 0)
    assert not same.excludes_zero


def test_half_the_errors_exclude_zero_and_swapping_the_systems_mirrors_the_difference(trial):
    a, b, reference, groups = trial
    better = paired_difference(a, b, reference, groups, seed=1)
    worse = paired_difference(b, a, reference, groups, seed=1)
    assert better.excludes_zero
    assert better.low < better.difference < better.high < 0 < worse.low
    assert better.relative == pytest.approx(a.sum() / b.sum() - 1)
    assert better.relative_low < better.relative < better.relative_high < 0
    assert better.difference == -worse.difference


def test_pairing_makes_a_small_constant_gain_visible_that_two_intervals_cannot_show():
    rng = derive_generator("test", "paired")
    reference, groups = np.full(100, 20), ["d"] * 100
    b = rng.integers(2, 15, size=100)
    a = b - 1
    assert paired_difference(a, b, reference, groups, seed=0).excludes_zero
    assert rate_interval(a, reference, groups, seed=0).high > rate_interval(b, reference, groups, seed=0).low


def test_devices_that_differ_do_not_widen_the_interval_of_further_sentences_of_theirs():
    groups = [f"d{i // 50}" for i in range(300)]
    within = rate_interval(np.repeat([0, 1, 2, 5, 7, 9], 50), np.full(300, 10), groups, seed=0)
    assert within.low == within.high == within.rate == 0.4  # no utterance differs inside its device


def test_a_device_with_one_utterance_and_one_without_words_are_no_obstacle():
    interval = rate_interval([1, 0, 2], [4, 5, 0], ["a", "b", "c"], seed=0)
    assert interval == Interval(3 / 9, 3 / 9, 3 / 9, 3, 9)


def test_nothing_to_score_has_no_rate_and_no_interval():
    assert rate_interval([0, 2], [0, 0], ["a", "a"], seed=0).rate is None
    assert rate_interval([], [], [], seed=0) == Interval(None, None, None, 0, 0)
    perfect = paired_difference([1, 0], [0, 0], [5, 5], ["a", "b"], seed=0)
    assert perfect.difference == 0.1
    assert (perfect.relative, perfect.relative_low, perfect.relative_high) == (None, None, None)


def test_macro_rates_weigh_utterances_or_devices_equally_and_skip_empty_ones():
    errors, reference, groups = [1, 0, 5, 3], [2, 8, 5, 0], ["a", "a", "b", "c"]
    assert macro_rate(errors, reference) == pytest.approx((1 / 2 + 0 + 1) / 3)
    assert macro_rate(errors, reference, groups) == pytest.approx((1 / 10 + 1) / 2)
    assert macro_rate([1], [0]) is None
    assert macro_rate([], []) is None


@pytest.mark.parametrize(
    ("errors", "reference", "groups", "options"),
    [
        ([1, 2], [3], ["a", "a"], {}),
        ([1, 2], [3, 4], ["a"], {}),
        ([-1], [3], ["a"], {}),
        ([float("nan")], [3], ["a"], {}),
        ([1], [3], ["a"], {"samples": 0}),
    ],
)
def test_what_cannot_be_resampled_is_refused(errors, reference, groups, options):
    with pytest.raises(MetricError):
        rate_interval(errors, reference, groups, seed=0, **options)
