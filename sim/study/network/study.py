"""The network study: every way of asking over every link, where each turns slower than the base on the device, and two checks.

Latencies are measured: a real server, real bytes, and the proxy that delays them. The base on the device is measured on this
machine and multiplied by a slowdown for each device, an assumption that can be set. Thresholds of round trip and rate are
solved from the model (:mod:`sim.study.network.links`) with the server's seconds, measured without a network, and the bytes
that were counted; two of them are then measured.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from statistics import median
from typing import Any

from sim.study.network.latency import MODES, Latency, LatencyProbe, RequestMode
from sim.study.network.links import BOUNDS, PROFILES, LinkProfile, transfer_seconds
from sim.study.network.local import ProcessCost

REFERENCE = "lte"  # the link whose rates the round trip's threshold takes, and the other way round
MIN_RATE, MAX_RATE = BOUNDS["rate_up"]


@dataclass(frozen=True)
class RequestCost:
    """One way of asking: the bytes that went each way, and the seconds that it takes where the network takes none."""

    bytes_up: int
    bytes_down: int
    seconds: float

    def over(self, profile: LinkProfile) -> float:
        """Mean seconds of an exchange over a link, on a new connection."""
        return self.seconds + transfer_seconds(profile, self.bytes_up, self.bytes_down)


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
    return _turning_point(lambda rtt: cost.over(with_rtt(profile, rtt)) - local_seconds, 0.0, BOUNDS["rtt"][1])


def least_rate(cost: RequestCost, profile: LinkProfile, local_seconds: float) -> float | None:
    """The rate up in bit/s from which asking is faster than ``local_seconds`` at the round trip of ``profile``.

    The rate down keeps its ratio. None where it is slower at any rate, 0 where it is faster at the lowest that a link can have.
    """
    fastest, slowest = -math.log10(MAX_RATE), -math.log10(MIN_RATE)
    found = _turning_point(lambda e: cost.over(with_rate(profile, 10**-e)) - local_seconds, fastest, slowest)
    return None if found is None else 10**-found  # 0 for infinity


def _turning_point(slower_by: Callable[[float], float], best: float, worst: float) -> float | None:
    """Where a difference of seconds that grows with a link's value is 0: None below ``best``, infinity beyond ``worst``."""
    from scipy.optimize import brentq  # half a second of loading, which the help does without

    if slower_by(best) > 0:
        return None
    return math.inf if slower_by(worst) <= 0 else float(brentq(slower_by, best, worst))


@dataclass(frozen=True)
class Threshold:
    """Where one device with one way of asking is as fast as with the base on it: at a round trip in seconds and a rate in bit/s."""

    device: str
    mode: str
    local_seconds: float
    rtt: float | None
    rate_up: float | None


@dataclass(frozen=True)
class MeasuredThreshold:
    """A threshold that was measured: at ``profile`` the requests took ``seconds``, the device alone ``local_seconds``."""

    profile: str
    mode: str
    device: str
    local_seconds: float
    seconds: tuple[float, ...]


@dataclass(frozen=True)
class NetworkStudy:
    """All that was measured and solved. ``direct`` is without a link between; ``conditions`` say with what."""

    conditions: Mapping[str, Any]
    local: ProcessCost
    asking: ProcessCost
    direct: tuple[Latency, ...]
    latencies: tuple[Latency, ...]
    thresholds: tuple[Threshold, ...]
    confirmed: tuple[MeasuredThreshold, ...]

    def document(self) -> dict[str, Any]:
        """For JSON: an infinite threshold is the text ``any``."""
        found = asdict(self)
        for row in found["thresholds"]:
            row["rtt"] = "any" if row["rtt"] == math.inf else row["rtt"]
        return found


def run_study(
    probe: LatencyProbe,
    local: ProcessCost,
    asking: ProcessCost,
    profiles: Sequence[LinkProfile],
    conditions: Mapping[str, Any],
    progress: Callable[[str], None] = lambda _: None,
) -> NetworkStudy:
    """Measure each mode over each of ``profiles``, solve the thresholds for the devices of ``conditions``, measure two."""
    direct = {mode.name: probe.measure(mode, None) for mode in MODES}
    latencies: list[Latency] = []
    costs: dict[RequestMode, RequestCost] = {}
    for profile in profiles:
        for mode in MODES:
            progress(f"{profile.name}: {mode.name}")
            row = probe.measure(mode, profile)
            cost = RequestCost(row.bytes_up, row.bytes_down, median(direct[mode.name].seconds))
            costs[mode] = cost
            latencies.append(replace(row, modelled=cost.over(profile)))
    reference = PROFILES[REFERENCE]
    thresholds: list[Threshold] = []
    turning: dict[str, tuple[LinkProfile, RequestMode, Threshold]] = {}
    for device, slowdown in conditions["devices"].items():
        seconds = slowdown * median(local.seconds)
        for mode, cost in costs.items():
            if not mode.stream:  # streamed or not, the last word comes at the same time
                rtt, rate = largest_rtt(cost, reference, seconds), least_rate(cost, reference, seconds)
                thresholds.append(Threshold(device, mode.name, seconds, rtt, rate))
                if rtt is not None and 0 < rtt < math.inf:
                    turning.setdefault("rtt", (with_rtt(reference, rtt), mode, thresholds[-1]))
                if rate:
                    turning.setdefault("rate", (with_rate(reference, rate), mode, thresholds[-1]))
    confirmed = []
    for profile, mode, at in (turning[kind] for kind in ("rtt", "rate") if kind in turning):
        progress(f"at the threshold, {profile.name}: {mode.name}")
        seconds_there = probe.measure(mode, profile).seconds
        confirmed.append(MeasuredThreshold(profile.name, mode.name, at.device, at.local_seconds, seconds_there))
    return NetworkStudy(
        conditions, local, asking, tuple(direct.values()), tuple(latencies), tuple(thresholds), tuple(confirmed)
    )
