"""From which round trip and rate on the device should rather hold the base itself: the model of the network, solved.

Asking the server takes its own seconds, which were measured without a network, and what the model says of the bytes that
were counted. That grows with the round trip and falls with the rate, so each threshold is found by bisection.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

from sim.study.network.links import BOUNDS, LinkProfile, transfer_seconds

HALVINGS = 60  # of an interval: beyond the precision of a float
MAX_RTT = BOUNDS["rtt"][1]
MIN_RATE, MAX_RATE = BOUNDS["rate_up"]


@dataclass(frozen=True)
class RequestCost:
    """One way of asking: the bytes that went each way, and the seconds that it takes where the network takes none."""

    bytes_up: int
    bytes_down: int
    seconds: float


def request_seconds(cost: RequestCost, profile: LinkProfile) -> float:
    """Mean seconds of an exchange over a link, on a new connection."""
    return cost.seconds + transfer_seconds(profile, cost.bytes_up, cost.bytes_down)


def with_rtt(profile: LinkProfile, rtt: float) -> LinkProfile:
    """The link at another round trip, its jitter no wider than that."""
    return replace(profile, name=f"{profile.name},rtt={rtt:.4g}", rtt=rtt, jitter=min(profile.jitter, rtt))


def with_rate(profile: LinkProfile, rate_up: float) -> LinkProfile:
    """The link at another rate up; the rate down keeps its ratio to it, within what a link can have."""
    down = min(max(rate_up * profile.rate_down / profile.rate_up, MIN_RATE), MAX_RATE)
    return replace(profile, name=f"{profile.name},rate_up={rate_up:.4g}", rate_up=rate_up, rate_down=down)


def largest_rtt(cost: RequestCost, profile: LinkProfile, local_seconds: float) -> float | None:
    """The round trip in seconds up to which asking is faster than ``local_seconds`` at the rates of ``profile``.

    None where it is slower at any round trip, infinity where it is faster at the longest that a link can have.
    """

    def faster(rtt: float) -> bool:
        return request_seconds(cost, with_rtt(profile, rtt)) <= local_seconds

    if not faster(0.0):
        return None
    return math.inf if faster(MAX_RTT) else _last(faster, 0.0, MAX_RTT)


def least_rate(cost: RequestCost, profile: LinkProfile, local_seconds: float) -> float | None:
    """The rate up in bit/s from which asking is faster than ``local_seconds`` at the round trip of ``profile``.

    The rate down keeps its ratio. None where it is slower at any rate, 0 where it is faster at the lowest that a link can have.
    """

    def faster(exponent: float) -> bool:
        return request_seconds(cost, with_rate(profile, 10**-exponent)) <= local_seconds

    most, least = -math.log10(MAX_RATE), -math.log10(MIN_RATE)
    if not faster(most):
        return None
    return 0.0 if faster(least) else 10 ** -_last(faster, most, least)


def _last(holds: Callable[[float], bool], low: float, high: float) -> float:
    """The largest value at which ``holds``, which is so at ``low`` and no more at ``high``."""
    for _ in range(HALVINGS):
        middle = (low + high) / 2
        low, high = (middle, high) if holds(middle) else (low, middle)
    return low
