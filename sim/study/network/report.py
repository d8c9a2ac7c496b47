"""The network study as tables: in a terminal, and as the section of a Markdown page between two comments."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from statistics import median

import numpy as np
from rich.console import Console

from sim.section import write_section
from sim.study.network.latency import MODES
from sim.study.network.study import NetworkStudy
from sim.tables import ReportTable, markdown_tables, print_tables

START, END = "<!-- network: made by idiolect study network -->", "<!-- end of network -->"


def seconds_text(values: Sequence[float]) -> str:
    """Median and 95th percentile of repeated measurements."""
    return f"{median(values):.2f} ({np.percentile(values, 95):.2f})"


def rtt_text(rtt: float | None) -> str:
    """A threshold of the round trip."""
    return "never" if rtt is None else "any" if rtt == math.inf else f"{1e3 * rtt:.0f} ms"


def rate_text(rate: float | None) -> str:
    """A threshold of the rate up."""
    if rate is None:
        return "never"
    return "any" if rate == 0 else f"{rate / 1e6:.2f} Mbit/s" if rate >= 1e5 else f"{rate / 1e3:.1f} kbit/s"


def tables(study: NetworkStudy) -> list[ReportTable]:
    """The study as four tables; the last one is left out where nothing was measured at a threshold."""
    made = (_latencies(study), _devices(study), _thresholds(study), _confirmed(study))
    return [table for table in made if table.rows]


def _latencies(study: NetworkStudy) -> ReportTable:
    heads = ("link", *(f"{mode.name}{': first word' if mode.stream else ''}" for mode in MODES), "model / measured")
    rows = []
    measured = (*study.direct, *study.latencies)
    for profile in dict.fromkeys(row.profile for row in measured):
        found = {row.mode: row for row in measured if row.profile == profile}
        times = [found[mode.name].first_word if mode.stream else found[mode.name].seconds for mode in MODES]
        ratios = [row.modelled / median(row.seconds) for row in found.values() if row.modelled]
        span = f"{min(ratios):.2f}-{max(ratios):.2f}" if ratios else ""
        rows.append((profile, *map(seconds_text, times), span))
    return ReportTable("Seconds from the request to its answer: median (95th percentile)", heads, tuple(rows))


def _devices(study: NetworkStudy) -> ReportTable:
    local = median(study.local.seconds)
    rows = [
        (f"base on a {name} ({slowdown:g} times slower)", f"{slowdown * local:.2f}", _mib(study.local.peak_bytes))
        for name, slowdown in study.conditions["devices"].items()
    ]
    rows.append(("asking a server", "see above", _mib(study.asking.peak_bytes)))
    return ReportTable("The device", ("what", "seconds", "memory of its process"), tuple(rows))


def _mib(size: int) -> str:
    return f"{size / 2**20:.0f} MiB"


def _thresholds(study: NetworkStudy) -> ReportTable:
    reference = study.conditions["reference"]
    heads = ("device", "asking", f"round trip up to, at the rates of {reference}", "rate up from, at its round trip")
    rows = [(row.device, row.mode, rtt_text(row.rtt), rate_text(row.rate_up)) for row in study.thresholds]
    return ReportTable("Asking is faster than the base on the device", heads, tuple(rows))


def _confirmed(study: NetworkStudy) -> ReportTable:
    rows = [
        (row.profile, row.device, row.mode, f"{row.local_seconds:.2f}", seconds_text(row.seconds),
         f"{median(row.seconds) / row.local_seconds:.2f}")
        for row in study.confirmed
    ]  # fmt: skip
    heads = ("link at the threshold", "device", "asking", "base on it, s", "asking, s", "ratio")
    return ReportTable("Thresholds that were measured", heads, tuple(rows))


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


def print_study(study: NetworkStudy, console: Console) -> None:
    """Print the study for a person."""
    print_tables(tables(study), conditions_text(study), console)


def markdown(study: NetworkStudy) -> str:
    """The study as a section of a page."""
    return markdown_tables(tables(study), conditions_text(study))


def write_study(study: NetworkStudy, page: Path) -> None:
    """Replace what stands between the two comments of ``page``."""
    write_section(page, START, END, markdown(study))
