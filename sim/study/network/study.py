"""The network study: every way of asking over every link, where each turns slower than the base on the device, and two checks.

Latencies are measured: a real server, real bytes, and the proxy that delays them. The base on the device is measured on this
machine and multiplied by a slowdown for each device, an assumption that can be set. Thresholds of round trip and rate are
solved from the model (:mod:`sim.study.network.thresholds`), and two of them are then measured.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from statistics import median
from typing import Any

from sim.study.network.latency import MODES, Latency, LatencyProbe, RequestMode
from sim.study.network.links import PROFILES, LinkProfile
from sim.study.network.local import ProcessCost
from sim.study.network.thresholds import RequestCost, largest_rtt, least_rate, request_seconds, with_rate, with_rtt

REFERENCE = "lte"  # the link whose rates the round trip's threshold takes, and the other way round


@dataclass(frozen=True)
class Threshold:
    """Where one device with one way of asking is as fast as with the base on it: see :mod:`sim.study.network.thresholds`."""

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
    devices: Mapping[str, float],
    conditions: Mapping[str, Any],
    progress: Callable[[str], None] = lambda _: None,
) -> NetworkStudy:
    """Measure each mode over each of ``profiles``, solve the thresholds for ``devices`` (slowdowns by name), measure two."""
    direct = {mode.name: probe.measure(mode, None) for mode in MODES}
    latencies: list[Latency] = []
    costs: dict[RequestMode, RequestCost] = {}
    for profile in profiles:
        for mode in MODES:
            progress(f"{profile.name}: {mode.name}")
            row = probe.measure(mode, profile)
            cost = RequestCost(row.bytes_up, row.bytes_down, median(direct[mode.name].seconds))
            costs[mode] = cost
            latencies.append(replace(row, modelled=request_seconds(cost, profile)))
    reference = PROFILES[REFERENCE]
    thresholds: list[Threshold] = []
    turning: dict[str, tuple[LinkProfile, RequestMode, Threshold]] = {}
    for device, slowdown in devices.items():
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
