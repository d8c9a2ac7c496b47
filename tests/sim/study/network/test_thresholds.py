"""Where asking a server stops being faster than the base on the device: the model, solved, against the model itself."""

import math

import pytest

from sim.study.network.links import PROFILES, LinkProfile
from sim.study.network.study import RequestCost, largest_rtt, least_rate, with_rate, with_rtt

REQUEST = RequestCost(bytes_up=40_000, bytes_down=400, seconds=0.5)
LTE = PROFILES["lte"]


def test_at_the_threshold_both_take_the_same_time():
    rtt, rate = largest_rtt(REQUEST, LTE, 2.0), least_rate(REQUEST, LTE, 2.0)
    assert rtt is not None
    assert rate is not None
    assert REQUEST.over(with_rtt(LTE, rtt)) == pytest.approx(2.0, abs=1e-6)
    assert REQUEST.over(with_rate(LTE, rate)) == pytest.approx(2.0, abs=1e-6)
    assert REQUEST.over(with_rtt(LTE, 1.1 * rtt)) > 2.0 > REQUEST.over(with_rtt(LTE, 0.9 * rtt))
    assert REQUEST.over(with_rate(LTE, 0.9 * rate)) > 2.0
    assert REQUEST.over(with_rate(LTE, 1.1 * rate)) < 2.0


def test_a_threshold_by_hand():
    """One segment each way on a new connection: two round trips and the bits."""
    small = RequestCost(1_000, 1_000, 0.4)
    link = LinkProfile("plain", 1e6, 1e6, 0.1)
    assert largest_rtt(small, link, 1.0) == pytest.approx((1.0 - 0.4 - 0.016) / 2)
    assert least_rate(small, link, 1.0) == pytest.approx(16_000 / (1.0 - 0.4 - 0.2))


def test_a_slower_device_makes_asking_worth_while_on_worse_links():
    rtts = [largest_rtt(REQUEST, LTE, seconds) for seconds in (1.0, 2.0, 4.0)]
    rates = [least_rate(REQUEST, LTE, seconds) for seconds in (1.0, 2.0, 4.0)]
    assert rtts == sorted(rtts)  # type: ignore[type-var]
    assert rates == sorted(rates, reverse=True)  # type: ignore[type-var]


def test_no_link_helps_a_server_that_is_slower_than_the_device():
    assert largest_rtt(REQUEST, LTE, 0.4) is None
    assert least_rate(REQUEST, LTE, 0.4) is None


def test_any_link_is_good_enough_against_a_device_that_takes_an_hour():
    assert largest_rtt(REQUEST, LTE, 3600.0) == math.inf
    assert least_rate(REQUEST, LTE, 3600.0) == 0.0


def test_a_link_at_another_round_trip_keeps_its_jitter_possible():
    assert with_rtt(LTE, 0.001).jitter == 0.001
    assert with_rtt(LTE, 1.0).jitter == LTE.jitter
