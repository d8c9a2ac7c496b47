"""A study's rows as a table: Rich for the terminal, Markdown for a page."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich.console import Console
from rich.table import Table

from sim.study.rows import StudyResult, StudyRow

HEADS = (
    "{metric}, %",
    "loanwords folded",
    "WER, %",
    "CER, %",
    "JER, %",
    "against {baseline}, points",
    "against global, points",
    "inserted, %",
    "other language, %",
    "worst tenth",
    "harmed, %",
    "parameters",
    "KiB up",
    "training, s",
    "audio s / s",
)


ON_PAGES = ("WER, %", "inserted, %", "other language, %", "audio s / s")
WIDE = 240  # characters
METRICS = ("mer_folded", "wer", "cer", "jer_nfd")  # beside the main one, where a task has them


def cells(row: StudyRow) -> tuple[str, ...]:
    """The texts of one row, as many as :data:`HEADS`; a failed row says why in the first."""
    if row.failed:
        return (f"no result: {row.failed.splitlines()[0][:90]}", *[""] * (len(HEADS) - 1))
    return (
        _interval(row.rates[row.metric]),
        *(_percent(row.rates[metric]["rate"] if metric in row.rates else None) for metric in METRICS),
        _difference(row.against_baseline),
        _difference(row.against_global),
        _percent(row.facts.get("insertions_per_word")),
        _percent(row.rates["other_language"]["rate"] if "other_language" in row.rates else None),
        _percent(row.facts["worst_tenth"]),
        _percent(row.facts.get("harmed"), 0),
        f"{row.costs['parameters']:,.0f}",
        f"{row.costs['bytes_up'] / 1024:,.0f}",
        f"{row.costs['seconds_train']:.1f}",
        f"{row.costs['audio_per_second']:.1f}" if row.costs["audio_per_second"] else "-",
    )


def table(result: StudyResult) -> tuple[tuple[str, ...], list[tuple[str, ...]]]:
    """Heads and rows, without the columns that say nothing in any row."""
    metrics = {row.metric.upper() for row in result.rows if row.metric}
    main = metrics.pop() if len(metrics) == 1 else "errors"
    several = len({row.arm for row in result.rows}) > 1
    heads = (
        "cell",
        *(["arm"] if several else []),
        *(h.format(baseline=result.conditions["baseline"], metric=main) for h in HEADS),
    )
    rows = [(row.cell, *([row.arm] if several else []), *cells(row)) for row in result.rows]
    kept = [i for i in range(len(heads)) if i < 2 + several or any(row[i] not in ("", "-") for row in rows)]
    return tuple(heads[i] for i in kept), [tuple(row[i] for i in kept) for row in rows]


def markdown(result: StudyResult) -> str:
    """The table with the conditions under it."""
    heads, rows = table(result)
    lines = [f"| {' | '.join(heads)} |", "| --- |" + " --- |" * (len(heads) - 1)]
    lines += [f"| {' | '.join(cell.replace('|', '/') for cell in row)} |" for row in rows]
    return "\n".join([*lines, "", conditions(result)]) + "\n"


def print_result(result: StudyResult, console: Console) -> None:
    """The table in a terminal; where that is narrow without the columns of :data:`ON_PAGES`, which pages and JSON have."""
    heads, rows = table(result)
    if console.width < WIDE:
        kept = [i for i, head in enumerate(heads) if head not in ON_PAGES]
        heads, rows = tuple(heads[i] for i in kept), [tuple(row[i] for i in kept) for row in rows]
    shown = Table(title=result.question, box=None, title_justify="left")
    for i, head in enumerate(heads):
        shown.add_column(head, justify="left" if i == 0 else "right", overflow="fold")
    for row in rows:
        shown.add_row(*row)
    console.print(shown)
    console.print(conditions(result), highlight=False, style="dim")


def conditions(result: StudyResult) -> str:
    """Under what the rows were made, in one paragraph."""
    found = result.conditions
    sizes = ""
    if "base" in found:
        sizes = (
            f"{found['base']}; {found['devices']} devices, {found['rounds']} rounds of {found['local_steps']} steps of "
            f"{found['batch_size']} unless the cell says otherwise, {found['sentences']} test sentences; "
        )
    return (
        f"Size {result.size}, seeds {', '.join(map(str, found['seeds']))}; {sizes}{_machines(result)}; "
        + ", ".join(f"{name} {version}" for name, version in found["versions"].items())
        + ". 95 % bootstrap intervals, sentences within people. Against another: paired, negative is better; * excludes zero."
    )


def _machines(result: StudyResult) -> str:
    """Which cells were run on which machine, the one with most of them first and, if there are several, without their names."""
    cells: dict[str, list[str]] = {}
    for row in result.rows:
        names = cells.setdefault(_machine(row.machine), [])
        if row.cell not in names:
            names.append(row.cell)
    first, *others = sorted(cells, key=lambda machine: -len(cells[machine]))
    return "; ".join(
        [first, *(f"{machine} ({'; '.join(cells[machine])}){_beside(result, machine)}" for machine in others)]
    )


def _machine(found: Mapping[str, Any]) -> str:
    cores = found["cores"]
    return f"{found['processor']}, {cores} {'core' if str(cores) == '1' else 'cores'}, Python {found['python']}"


def _beside(result: StudyResult, machine: str) -> str:
    """What the baseline had where it was run for cells of ``machine``, if that is not what its own row says."""
    name = result.conditions["baseline"]
    stated = [row.rates[row.metric]["rate"] for row in result.rows if row.cell == name and not row.failed]
    again = [
        row.rates[row.metric]["rate"] - row.against_baseline["difference"]
        for row in result.rows
        if row.against_baseline is not None and _machine(row.machine) == machine
    ]
    others = sorted({_percent(rate) for rate in again if all(abs(rate - one) > 1e-9 for one in stated)})
    return f", set beside a run of {name} there: {' and '.join(others)} %" if others else ""


def _percent(value: float | None, digits: int = 1) -> str:
    return "-" if value is None else f"{100 * value:.{digits}f}"


def _interval(rate: Mapping[str, Any]) -> str:
    return f"{_percent(rate['rate'])} ({_percent(rate['low'])} to {_percent(rate['high'])})"


def _difference(found: Mapping[str, Any] | None) -> str:
    if found is None:
        return "-"
    star = "*" if found["excludes_zero"] else ""
    return f"{100 * found['difference']:+.1f} ({100 * found['low']:+.1f} to {100 * found['high']:+.1f}){star}"
