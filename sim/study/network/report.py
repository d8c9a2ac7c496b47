"""The network study as tables, and with what it was measured."""

import math
from collections.abc import Iterator, Sequence
from statistics import median

import numpy as np

from sim.section import ReportTable
from sim.study.network.latency import MODES, Latency
from sim.study.network.study import NetworkStudy

START, END = "<!-- network: made by idiolect study network -->", "<!-- end of network -->"


def _seconds(values: Sequence[float]) -> str:
    """Median and 95th percentile of repeated measurements."""
    return f"{median(values):.2f} ({np.percentile(values, 95):.2f})"


def _rtt(rtt: float | None) -> str:
    return "never" if rtt is None else "any" if rtt == math.inf else f"{1e3 * rtt:.0f} ms"


def _rate(rate: float | None) -> str:
    if rate is None:
        return "never"
    return "any" if rate == 0 else f"{rate / 1e6:.2f} Mbit/s" if rate >= 1e5 else f"{rate / 1e3:.1f} kbit/s"


def _mib(size: int) -> str:
    return f"{size / 2**20:.0f} MiB"


def tables(study: NetworkStudy) -> list[ReportTable]:
    """The study as four tables; the last one is left out where nothing was measured at a threshold."""
    local, reference = median(study.local.seconds), study.conditions["reference"]
    devices = [
        (f"base on a {name} ({slowdown:g} times slower)", f"{slowdown * local:.2f}", _mib(study.local.peak_bytes))
        for name, slowdown in study.conditions["devices"].items()
    ]
    thresholds = [(row.device, row.mode, _rtt(row.rtt), _rate(row.rate_up)) for row in study.thresholds]
    confirmed = [
        (row.profile, row.device, row.mode, f"{row.local_seconds:.2f}", _seconds(row.seconds),
         f"{median(row.seconds) / row.local_seconds:.2f}")
        for row in study.confirmed
    ]  # fmt: skip
    made = (
        ReportTable(
            "Seconds from the request to its answer: median (95th percentile)",
            ("link", *(f"{mode.name}{': first word' if mode.stream else ''}" for mode in MODES), "model / measured"),
            tuple(_latencies((*study.direct, *study.latencies))),
        ),
        ReportTable(
            "The device",
            ("what", "seconds", "memory of its process"),
            (*devices, ("asking a server", "see above", _mib(study.asking.peak_bytes))),
        ),
        ReportTable(
            "Asking is faster than the base on the device",
            ("device", "asking", f"round trip up to, at the rates of {reference}", "rate up from, at its round trip"),
            tuple(thresholds),
        ),
        ReportTable(
            "Thresholds that were measured",
            ("link at the threshold", "device", "asking", "base on it, s", "asking, s", "ratio"),
            tuple(confirmed),
        ),
    )
    return [table for table in made if table.rows]


def _latencies(measured: Sequence[Latency]) -> Iterator[tuple[str, ...]]:
    """A row for each link, in which every way of asking was measured."""
    for profile in dict.fromkeys(row.profile for row in measured):
        found = {row.mode: row for row in measured if row.profile == profile}
        times = [found[mode.name].first_word if mode.stream else found[mode.name].seconds for mode in MODES]
        ratios = [row.modelled / median(row.seconds) for row in found.values() if row.modelled]
        yield profile, *map(_seconds, times), f"{min(ratios):.2f}-{max(ratios):.2f}" if ratios else ""


def conditions_text(study: NetworkStudy) -> str:
    """With what it was measured, in a sentence."""
    found, machine = study.conditions, study.conditions["machine"]
    up = {row.mode: row.bytes_up for row in study.latencies}
    sent = "; ".join(f"{mode} {size:,}" for mode, size in up.items())
    return (
        f"Base {found['base']}, {found['audio_seconds']} s of speech, adapter of {found['adapter_bytes']:,} bytes "
        f"({found['precision']}); {found['repeats']} repetitions, seeds from {found['seed']}. Bytes up: {sent}. "
        f"Server, device and links on one machine: {machine['processor']}, {machine['cores']} cores, Python {machine['python']}."
    )
