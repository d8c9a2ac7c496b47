"""The summary in a terminal: a table of arms, the key comparisons as sentences, what it cost."""

from collections.abc import Mapping
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from sim.report.charts import percent
from sim.report.summary import RunSummary
from sim.report.words import (
    HELD_OUT_COMPARISONS,
    KEY_COMPARISONS,
    comparisons,
    duration,
    harmed,
    label,
    noun,
    people,
    sentences_compared,
    size,
    unfinished,
    unusable,
)


def print_summary(summary: RunSummary, console: Console) -> None:
    """Prints the summary. 100 columns are enough; the best arm is starred as well as bold, nothing is colour alone."""
    run = summary["run"]
    if so_far := unfinished(summary):
        console.print(Text(f"Unfinished run. {so_far}", style="bold"))
    console.print(
        Text(
            f"{', '.join(run['names'])}: {people(summary)}, {sentences_compared(summary)} test {noun(summary, 'example', 2)}"
        )
    )
    if summary["arms"]:
        console.print(_arms(summary, summary["arms"], "Error rates in % with 95 % CI, all devices that took part"))
    if summary["new_people"]:
        console.print(
            _arms(
                summary,
                summary["new_people"],
                f"Held-out {noun(summary, 'person', 2)}: {run['new_people']} who took no part",
            )
        )
    new = comparisons(summary, HELD_OUT_COMPARISONS[:1], held_out=True)
    lines = [
        *comparisons(summary, KEY_COMPARISONS),
        *(f"for held-out {noun(summary, 'person', 2)}, {text}" for text in new),
    ]
    for line in filter(None, (*lines, harmed(summary), unusable(summary))):
        console.print(Text(f"• {line}"))
    if summary["costs"]:
        console.print(Text(_costs(summary)))


def _arms(summary: RunSummary, rows: Mapping[str, Mapping[str, Any]], title: str) -> Table:
    table = Table(title=title, title_justify="left", title_style="bold", caption_justify="left", padding=(0, 1))
    table.add_column("arm", no_wrap=True)
    metrics_shown = list(summary["run"]["measures"])
    for metric in metrics_shown:
        table.add_column(label(summary, metric).replace("Folded MER", "MER folded"), justify="right", no_wrap=True)
    trained = [arm for arm in rows if arm != "centralized"]
    best = {
        metric: min((rows[arm][metric]["rate"] or 0.0 for arm in trained), default=None) for metric in metrics_shown
    }
    for arm, metrics in rows.items():
        cells = []
        for metric in metrics_shown:
            found = metrics[metric]
            if found["rate"] is None:
                cells.append(Text("–"))
                continue
            is_best = arm != "centralized" and found["rate"] == best[metric]
            text = f"{100 * found['rate']:.1f}{'*' if is_best else ''}"
            if found["low"] is not None and found["high"] is not None:
                text += f"\n{100 * found['low']:.1f}–{100 * found['high']:.1f}"
            cells.append(Text(text, style="bold" if is_best else ""))
        table.add_row(Text(arm), *cells)
    table.caption = "* lowest, centralized aside"
    return table


def _costs(summary: RunSummary) -> str:
    costs = summary["costs"]
    seconds = ", ".join(f"{arm} {duration(value)}" for arm, value in costs["seconds"].items())
    share = percent(costs["adapter_share_of_base"], 2)
    return (
        f"Per device and round: {size(costs['bytes_up_per_device_round'])} up, "
        f"{size(costs['bytes_down_per_device_round'])} down. "
        f"On the device: adapter of {size(costs['adapter_bytes'])}, {share} of the base ({size(costs['base_bytes'])}).\n"
        f"Seconds: {seconds}"
    )
