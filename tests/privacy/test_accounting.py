"""Epsilon and delta against closed forms and against the reference values in the library's own tests."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
from scipy.stats import norm

from fl.privacy.accounting import (
    ADD_REMOVE,
    ALL,
    FIXED,
    LEAST_NOISE,
    PLD,
    POISSON,
    RDP,
    REPLACE_ONE,
    Scheme,
    epsilon,
    noise_multiplier_for,
    statement,
)
from fl.privacy.dp import PrivacyError


def gaussian_delta(ratio: float, eps: float) -> float:
    """Delta of one Gaussian release whose noise is ``ratio`` times its sensitivity (Balle and Wang 2018, theorem 8)."""
    return float(norm.cdf(0.5 / ratio - eps * ratio) - math.exp(eps) * norm.cdf(-0.5 / ratio - eps * ratio))


@pytest.mark.parametrize(("ratio", "eps"), [(1.0, 1.0), (0.7, 3.0), (4.0, 0.5), (2.0, 2.0)])
@pytest.mark.parametrize("rounds", [1, 9])
def test_gaussian_releases_cost_what_the_closed_form_says(ratio, eps, rounds):
    delta = gaussian_delta(ratio, eps)  # rounds releases with sqrt(rounds) times the noise are one of this ratio
    found = epsilon(Scheme(50, 50, ALL), {ratio * math.sqrt(rounds): rounds}, delta)
    assert eps - 1e-6 <= found <= eps * 1.01 + 5e-3  # never below, hardly above
    renyi = epsilon(Scheme(50, 50, ALL, accountant=RDP), {ratio * math.sqrt(rounds): rounds}, delta)
    assert found - 5e-3 <= renyi <= 1.6 * eps + 0.2


def test_a_replaced_person_moves_the_sum_twice_as_far_as_an_absent_one():
    for accountant in (PLD, RDP):
        absent = epsilon(Scheme(50, 50, ALL, ADD_REMOVE, accountant), {1.0: 3}, 1e-5)
        replaced = epsilon(Scheme(50, 50, ALL, REPLACE_ONE, accountant), {2.0: 3}, 1e-5)
        assert replaced == pytest.approx(absent)


def test_the_librarys_reference_values():
    """From pld_privacy_accountant_test.py (sampled Gaussian) and rdp_privacy_accountant_test.py (Gaussian)."""
    assert epsilon(Scheme(5, 1, POISSON), {0.5: 3}, 0.15594) == pytest.approx(1.0, abs=5e-3)
    assert 1.0 - 1e-9 <= epsilon(Scheme(5, 5, ALL, accountant=RDP), {4.530877117: 1}, 1e-6) <= 1.01


def test_sampling_one_device_of_many_costs_less_and_all_of_them_the_same():
    for accountant in (PLD, RDP):
        everybody = epsilon(Scheme(100, 100, ALL, accountant=accountant), {1.0: 10}, 1e-5)
        assert epsilon(Scheme(100, 100, POISSON, accountant=accountant), {1.0: 10}, 1e-5) == pytest.approx(
            everybody, rel=1e-3
        )
        assert epsilon(Scheme(100, 5, POISSON, accountant=accountant), {1.0: 10}, 1e-5) < everybody / 2
    fixed = Scheme(100, 5, FIXED, REPLACE_ONE, RDP)
    assert epsilon(fixed, {2.0: 10}, 1e-5) < epsilon(Scheme(100, 100, FIXED, REPLACE_ONE, RDP), {2.0: 10}, 1e-5) / 2
    assert epsilon(Scheme(100, 100, FIXED, REPLACE_ONE, RDP), {2.0: 10}, 1e-5) == pytest.approx(
        epsilon(Scheme(100, 100, ALL, REPLACE_ONE, RDP), {2.0: 10}, 1e-5)
    )


@pytest.mark.parametrize("scheme", [Scheme(100, 10), Scheme(100, 10, FIXED, REPLACE_ONE, RDP)])
def test_more_rounds_and_less_noise_cost_more(scheme):
    few, many = (epsilon(scheme, {1.5: rounds}, 1e-5) for rounds in (1, 20))
    assert few < many < epsilon(scheme, {1.2: 20}, 1e-5)


def test_rounds_with_different_noise_add_up_as_gaussians_do():
    together = (1.5**-2 + 2 * 3.0**-2) ** -0.5
    for accountant in (PLD, RDP):
        scheme = Scheme(10, 10, ALL, accountant=accountant)
        mixed = epsilon(scheme, {1.5: 1, 3.0: 2}, 1e-5)
        assert mixed == pytest.approx(epsilon(scheme, {together: 1}, 1e-5), rel=2e-3)


def test_no_rounds_cost_nothing_and_a_round_without_noise_everything():
    assert epsilon(Scheme(10, 5), {}, 1e-5) == 0.0
    assert epsilon(Scheme(10, 5), {1.0: 0}, 1e-5) == 0.0
    assert epsilon(Scheme(10, 5), {1.0: 5, 0.0: 1}, 1e-5) == math.inf


@pytest.mark.parametrize("accountant", [PLD, RDP])
@pytest.mark.parametrize("scheme", [Scheme(10, 5), Scheme(10, 10, ALL)], ids=["poisson", "all"])
def test_the_least_noise_is_accounted_and_less_counts_as_none(scheme, accountant):
    scheme = replace(scheme, accountant=accountant)
    least = epsilon(scheme, {LEAST_NOISE: 10}, 1e-5)
    rounds = 10 * scheme.sampled / scheme.population  # with this person
    assert 0.5 * rounds / LEAST_NOISE**2 < least < math.inf  # more than the mean of the Gaussians' losses
    assert epsilon(scheme, {1.0: 5, LEAST_NOISE / 1000: 1}, 1e-5) == math.inf


def test_the_noise_for_a_budget_just_fits():
    scheme = Scheme(100, 100, ALL, accountant=RDP)
    found = noise_multiplier_for(scheme, 4.0, 1e-5, 20)
    assert epsilon(scheme, {found: 20}, 1e-5) <= 4.0 < epsilon(scheme, {found * 0.99: 20}, 1e-5)


def test_the_statement_names_epsilon_delta_and_every_assumption():
    scheme = Scheme(200, 20)
    text = statement(
        scheme, {1.1: 7}, 1e-5, clipping="flat, norm 0.5", trust="distributed", notes=["30 % may drop out"]
    )
    assert text.startswith(
        f"epsilon = {epsilon(scheme, {1.1: 7}, 1e-5):.4g} at delta = 1e-05, for persons, after 7 rounds"
    )
    for part in (
        "not at all in the other",
        "probability 0.1",
        "flat, norm 0.5",
        "secure aggregation",
        "30 % may",
        "7 with 1.1",
    ):
        assert part in text
    assert "WARNING" not in text
    assert "WARNING" in statement(scheme, {1.1: 7}, 0.01, clipping="flat, norm 0.5")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((100, 0), "cannot be sampled"),
        ((100, 101), "cannot be sampled"),
        ((0, 1), "cannot be sampled"),
        ((100, 10, POISSON, REPLACE_ONE), "does not do"),
        ((100, 10, FIXED, ADD_REMOVE), "does not do"),
        ((100, 10, "shuffled"), "does not do"),
        ((100, 10, FIXED, REPLACE_ONE, PLD), "rdp for fixed with replace-one"),
        ((100, 10, POISSON, ADD_REMOVE, "moments"), "pld or rdp for poisson"),
        ((100, 10.5, FIXED, REPLACE_ONE, RDP), "whole number"),
        ((100, 10, ALL), "takes all 100"),
    ],
)
def test_schemes_that_cannot_be_accounted_for_are_refused(arguments, message):
    with pytest.raises(PrivacyError, match=message):
        Scheme(*arguments)


@pytest.mark.parametrize("delta", [0.0, 1.0, -1e-5, math.nan])
def test_a_delta_that_is_no_probability_is_refused(delta):
    with pytest.raises(PrivacyError, match="delta"):
        epsilon(Scheme(10, 5), {1.0: 1}, delta)


@pytest.mark.parametrize("multiplier", [-1.0, math.nan, math.inf])
def test_a_noise_multiplier_that_is_none_is_refused(multiplier):
    with pytest.raises(PrivacyError, match="noise multiplier"):
        epsilon(Scheme(10, 5), {multiplier: 1}, 1e-5)


def test_a_budget_without_rounds_or_epsilon_is_refused():
    for eps, rounds in ((0.0, 5), (-1.0, 5), (1.0, 0)):
        with pytest.raises(PrivacyError, match="both must be positive"):
            noise_multiplier_for(Scheme(10, 5), eps, 1e-5, rounds)


def test_hardly_any_noise_is_accounted_on_a_grid_that_stays_small_and_never_understates():
    scheme, delta, z = Scheme(6, 6, sampling="all"), 1e-3, 0.01
    found = epsilon(scheme, {z: 14}, delta)
    # Fourteen Gaussians are one of z / sqrt(14), whose exact curve is that of Balle and Wang (2018).
    sigma = z / math.sqrt(14)

    def log_delta(eps: float) -> float:
        first = norm.logcdf(1 / (2 * sigma) - eps * sigma)
        second = eps + norm.logcdf(-1 / (2 * sigma) - eps * sigma)
        return float(first + np.log1p(-np.exp(min(second - first, -1e-12))))

    assert log_delta(found) <= math.log(delta)
    assert log_delta(found * (1 - 1e-3)) > math.log(delta)
