"""A study's rows as a table: Rich for the terminal, Markdown for a page."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from rich.console import Console
from rich.table import Table

from sim.section import markdown_table
from sim.study.rows import StudyResult, StudyRow

WIDE = 240  # characters
ON_PAGES = ("WER, %", "inserted, %", "other language, %", "audio s / s")  # no room in a narrow terminal


def _percent(value: float | None, digits: int = 1) -> str:
    return "-" if value is None else f"{100 * value:.{digits}f}"


def _rate(metric: str) -> Callable[[StudyRow], str]:
    return lambda row: _percent(row.rates[metric]["rate"]) if metric in row.rates else "-"


def _interval(row: StudyRow) -> str:
    found = row.rates[row.metric]
    return f"{_percent(found['rate'])} ({_percent(found['low'])} to {_percent(found['high'])})"


def _difference(found: Mapping[str, Any] | None) -> str:
    if found is None:
        return "-"
    star = "*" if found["excludes_zero"] else ""
    return f"{100 * found['difference']:+.1f} ({100 * found['low']:+.1f} to {100 * found['high']:+.1f}){star}"


COLUMNS: Mapping[str, Callable[[StudyRow], str]] = {
    "{metric}, %": _interval,
    "loanwords folded": _rate("mer_folded"),
    "WER, %": _rate("wer"),
    "CER, %": _rate("cer"),
    "JER, %": _rate("jer_nfd"),
    "against {baseline}, points": lambda row: _difference(row.against_baseline),
    "against global, points": lambda row: _difference(row.against_global),
    "inserted, %": lambda row: _percent(row.facts.get("insertions_per_word")),
    "other language, %": _rate("other_language"),
    "worst tenth": lambda row: _percent(row.facts["worst_tenth"]),
    "harmed, %": lambda row: _percent(row.facts.get("harmed"), 0),
    "parameters": lambda row: f"{row.costs['parameters']:,.0f}",
    "KiB up": lambda row: f"{row.costs['bytes_up'] / 1024:,.0f}",
    "training, s": lambda row: f"{row.costs['seconds_train']:.1f}",
    "audio s / s": lambda row: f"{speed:.1f}" if (speed := row.costs["audio_per_second"]) else "-",
}


def cells(row: StudyRow) -> tuple[str, ...]:
    """The texts of one row, one for each of :data:`COLUMNS`; a failed row says why in the first."""
    if row.failed:
        return (f"no result: {row.failed.splitlines()[0][:90]}", *[""] * (len(COLUMNS) - 1))
    return tuple(column(row) for column in COLUMNS.values())


def table(result: StudyResult) -> tuple[tuple[str, ...], list[tuple[str, ...]]]:
    """Heads and rows, without the columns that say nothing in any row."""
    metrics = {row.metric.upper() for row in result.rows if row.metric}
    main = metrics.pop() if len(metrics) == 1 else "errors"
    several = len({row.arm for row in result.rows}) > 1
    columns = (head.format(baseline=result.conditions["baseline"], metric=main) for head in COLUMNS)
    heads = ("cell", *(["arm"] if several else []), *columns)
    rows = [(row.cell, *([row.arm] if several else []), *cells(row)) for row in result.rows]
    kept = [i for i in range(len(heads)) if i < 2 + several or any(row[i] not in ("", "-") for row in rows)]
    return tuple(heads[i] for i in kept), [tuple(row[i] for i in kept) for row in rows]


def markdown(result: StudyResult) -> str:
    """The table with the conditions under it."""
    return f"{markdown_table(*table(result))}\n{conditions(result)}\n"


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
        + ". 95 % bootstrap CI, sentences resampled within people. Differences are paired, negative is better; * excludes zero."
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
    return f", where the baseline {name} has {' and '.join(others)} %" if others else ""
