"""The network study as tables: in a terminal, and as the section of a Markdown page between two comments."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median

import numpy as np
from rich.console import Console
from rich.table import Table

from sim.network.command import Study
from sim.network.measure import MODES
from sim.section import write_section

START, END = "<!-- network: made by idiolect study network -->", "<!-- end of network -->"


@dataclass(frozen=True)
class Lines:
    """One table: its title, the heads of its columns and its rows, all text."""

    title: str
    heads: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]


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


def tables(study: Study) -> tuple[Lines, ...]:
    """The study as four tables."""
    return _latencies(study), _devices(study), _thresholds(study), _confirmed(study)


def _latencies(study: Study) -> Lines:
    heads = ["link", *(f"{mode.name}{': first word' if mode.stream else ''}" for mode in MODES), "model / measured"]
    rows = []
    for profile in dict.fromkeys(row.profile for row in (*study.direct, *study.latencies)):
        found = {row.mode: row for row in (*study.direct, *study.latencies) if row.profile == profile}
        times = [found[mode.name].first_word if mode.stream else found[mode.name].seconds for mode in MODES]
        ratios = [row.modelled / median(row.seconds) for row in found.values() if row.modelled]
        span = f"{min(ratios):.2f}-{max(ratios):.2f}" if ratios else ""
        rows.append((profile, *map(seconds_text, times), span))
    return Lines("Seconds from the request to its answer: median (95th percentile)", tuple(heads), tuple(rows))


def _devices(study: Study) -> Lines:
    local = median(study.local.seconds)
    rows = [
        (f"base on a {name} ({slowdown:g} times slower)", f"{slowdown * local:.2f}", _mib(study.local.peak_bytes))
        for name, slowdown in study.conditions["devices"].items()
    ]
    rows.append(("asking a server", "see above", _mib(study.asking.peak_bytes)))
    return Lines("The device", ("what", "seconds", "memory of its process"), tuple(rows))


def _mib(size: int) -> str:
    return f"{size / 2**20:.0f} MiB"


def _thresholds(study: Study) -> Lines:
    reference = study.conditions["reference"]
    heads = ("device", "asking", f"round trip up to, at the rates of {reference}", "rate up from, at its round trip")
    rows = [(row.device, row.mode, rtt_text(row.rtt), rate_text(row.rate_up)) for row in study.thresholds]
    return Lines("Asking is faster than the base on the device", heads, tuple(rows))


def _confirmed(study: Study) -> Lines:
    rows = [
        (row.profile, row.device, row.mode, f"{row.local_seconds:.2f}", seconds_text(row.seconds),
         f"{median(row.seconds) / row.local_seconds:.2f}")
        for row in study.confirmed
    ]  # fmt: skip
    heads = ("link at the threshold", "device", "asking", "base on it, s", "asking, s", "ratio")
    return Lines("Thresholds that were measured", heads, tuple(rows))


def conditions_text(study: Study) -> str:
    """With what it was measured, in a sentence."""
    found, machine = study.conditions, study.conditions["machine"]
    up = {row.mode: row.bytes_up for row in study.latencies}
    sent = "; ".join(f"{mode} {size:,}" for mode, size in up.items())
    return (
        f"Base {found['base']}, {found['audio_seconds']} s of speech, adapter of {found['adapter_bytes']:,} bytes "
        f"({found['precision']}); {found['repeats']} repetitions, seeds from {found['seed']}. Bytes up: {sent}. "
        f"Server, device and links on one machine: {machine['processor']}, {machine['cores']} cores, Python {machine['python']}."
    )


def print_study(study: Study, console: Console) -> None:
    """Print the study for a person."""
    for lines in tables(study):
        if not lines.rows:
            continue
        table = Table(title=lines.title, title_justify="left", title_style="bold")
        for number, head in enumerate(lines.heads):
            table.add_column(head, justify="left" if number == 0 else "right", overflow="fold")
        for row in lines.rows:
            table.add_row(*row)
        console.print(table)
    console.print(conditions_text(study), highlight=False)


def markdown(study: Study) -> str:
    """The study as a section of a page."""
    out = []
    for lines in tables(study):
        if lines.rows:
            out += [f"{lines.title}:", ""]
            out += [f"| {' | '.join(row)} |" for row in (lines.heads, ("---",) * len(lines.heads), *lines.rows)]
            out.append("")
    return "\n".join([*out, conditions_text(study)]) + "\n"


def write_study(study: Study, page: Path) -> None:
    """Replace what stands between the two comments of ``page``."""
    write_section(page, START, END, markdown(study))
