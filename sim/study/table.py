"""A study's rows as a table: Rich for the terminal, Markdown for a page, and how far apart repetitions of one run lie."""

import statistics
from collections.abc import Callable, Mapping
from typing import Any

from rich.console import Console

from sim.section import ReportTable, markdown_table, print_tables
from sim.study.rows import StudyResult, StudyRow

WIDE = 240  # characters
FEWEST = 3  # runs, below which a standard deviation says nothing
ON_PAGES = ("WER, %", "inserted, %", "other language, %")  # no room in a narrow terminal


def _percent(value: float | None, digits: int = 1) -> str:
    return "-" if value is None else f"{100 * value:.{digits}f}"


def _rate(metric: str) -> Callable[[StudyRow], str]:
    return lambda row: _percent(row.rates[metric]["rate"]) if metric in row.rates else "-"


def _interval(found: Mapping[str, Any]) -> str:
    return f"{_percent(found['rate'])} ({_percent(found['low'])} to {_percent(found['high'])})"


def _difference(found: Mapping[str, Any] | None) -> str:
    if found is None:
        return "-"
    star = "*" if found["excludes_zero"] else ""
    return f"{100 * found['difference']:+.1f} ({100 * found['low']:+.1f} to {100 * found['high']:+.1f}){star}"


Columns = Mapping[str, Callable[[StudyRow], str]]
ERRORS: Columns = {
    "{metric}, %": lambda row: _interval(row.rates[row.metric]),
    "loanwords folded": lambda row: _interval(row.rates["mer_folded"]) if "mer_folded" in row.rates else "-",
    "against {baseline}, points": lambda row: _difference(row.against_baseline),
    "against global, points": lambda row: _difference(row.against_global),
    "harmed, %": lambda row: _percent(row.facts.get("harmed"), 0),
}
KINDS_OF_ERRORS: Columns = {
    "WER, %": _rate("wer"),
    "CER, %": _rate("cer"),
    "JER, %": _rate("jer_nfd"),
    "inserted, %": lambda row: _percent(row.facts.get("insertions_per_word")),
    "other language, %": _rate("other_language"),
}
PEOPLE_AND_COSTS: Columns = {
    "worst tenth": lambda row: _percent(row.facts["worst_tenth"]),
    "parameters": lambda row: f"{row.costs['parameters']:,.0f}",
    "KiB up": lambda row: f"{row.costs['bytes_up'] / 1024:,.0f}",
    "training, s": lambda row: f"{row.costs['seconds_train']:.1f}",
}


COLUMNS: Columns = {**ERRORS, **KINDS_OF_ERRORS, **PEOPLE_AND_COSTS}
MORE = "<details>\n<summary>Kinds of errors, the worst tenth of the people, and costs</summary>\n\n{}\n</details>\n"


def cells(row: StudyRow, columns: Columns = COLUMNS) -> tuple[str, ...]:
    """The texts of one row, one for each of ``columns``; a failed row says why in the first of :data:`ERRORS`."""
    if row.failed:
        why = f"no result: {row.failed.splitlines()[0][:90]}"
        return tuple(why if head == next(iter(ERRORS)) else "" for head in columns)
    return tuple(column(row) for column in columns.values())


def table(result: StudyResult, columns: Columns = COLUMNS) -> tuple[tuple[str, ...], list[tuple[str, ...]]]:
    """Heads and rows, without the columns that say nothing in any row."""
    metrics = {row.metric.upper() for row in result.rows if row.metric}
    main = metrics.pop() if len(metrics) == 1 else "errors"
    names = ("cell", "arm") if len({row.arm for row in result.rows}) > 1 else ("cell",)
    heads = (*names, *(head.format(baseline=result.conditions["baseline"], metric=main) for head in columns))
    rows = [(*(getattr(row, name) for name in names), *cells(row, columns)) for row in result.rows]
    kept = [i for i in range(len(heads)) if i < len(names) or any(row[i] not in ("", "-") for row in rows)]
    return tuple(heads[i] for i in kept), [tuple(row[i] for i in kept) for row in rows]


def markdown(result: StudyResult) -> str:
    """The errors with the conditions under them, then what else was measured, folded away: no table is wide."""
    found = [table(result, columns) for columns in (KINDS_OF_ERRORS, PEOPLE_AND_COSTS)]
    rest = "\n".join(markdown_table(*one) for one in found if one[0][-1] not in ("cell", "arm"))
    return f"{markdown_table(*table(result, ERRORS))}\n{conditions(result)}\n\n{MORE.format(rest)}"


def spread_table(result: StudyResult) -> str:
    """Mean, deviation and range of each arm with at least :data:`FEWEST` runs as Markdown; empty where there is none.

    They are the part of a result that is the chance in training.
    """
    rows = []
    for arm in dict.fromkeys(row.arm for row in result.rows):
        own = [row for row in result.rows if row.arm == arm and not row.failed]
        rates = [row.rates[row.metric]["rate"] for row in own]
        differences = [row.against_global["difference"] for row in own if row.against_global]
        if len(own) >= FEWEST:
            rows.append((arm, str(len(own)), *_spread(rates, ".1f"), *_spread(differences, "+.1f")))
    mean = "mean (standard deviation)"
    heads = ("arm", "runs", f"{result.metric.upper()}, %: {mean}", "range", f"against global, points: {mean}", "range")
    return markdown_table(heads, rows) if rows else ""


def _spread(values: list[float], form: str) -> tuple[str, str]:
    if len(values) < FEWEST:
        return "-", "-"
    points = [100 * value for value in values]
    mean, deviation = statistics.mean(points), statistics.stdev(points)
    return f"{mean:{form}} ({deviation:.1f})", f"{min(points):{form}} to {max(points):{form}}"


def print_result(result: StudyResult, console: Console) -> None:
    """The table in a terminal; where that is narrow without the columns of :data:`ON_PAGES`, which pages and JSON have."""
    heads, rows = table(result)
    if console.width < WIDE:
        kept = [i for i, head in enumerate(heads) if head not in ON_PAGES]
        heads, rows = tuple(heads[i] for i in kept), [tuple(row[i] for i in kept) for row in rows]
    print_tables([ReportTable(result.question, heads, tuple(rows))], conditions(result), console)


def conditions(result: StudyResult) -> str:
    """Under what the rows were made, in one paragraph."""
    found = result.conditions
    sizes = ""
    if "base" in found:
        sizes = (
            "{base}; {devices} devices, {rounds} rounds of {local_steps} steps of {batch_size} unless the cell says otherwise, "
            "{sentences} test sentences; "
        ).format_map(found)
    versions = ", ".join(f"{name} {version}" for name, version in found["versions"].items())
    return (
        f"Size {result.size}, seeds {', '.join(map(str, found['seeds']))}; {sizes}{_machines(result)}; {versions}. "
        "95 % bootstrap CI over people. Differences are paired, negative is better; * excludes zero."
    )


def _machines(result: StudyResult) -> str:
    """Which cells were run on which machine, the one with most of them first and, if there are several, without their names."""
    cells: dict[str, list[str]] = {}
    for row in result.rows:
        names = cells.setdefault(_machine(row.machine), [])
        if row.cell not in names:
            names.append(row.cell)
    first, *others = sorted(cells, key=lambda machine: -len(cells[machine]))
    named = [f"{machine} ({'; '.join(cells[machine])}){_beside(result, machine)}" for machine in others]
    return "; ".join([first, *named])


def _machine(found: Mapping[str, Any]) -> str:
    cores, gpu = found["cores"], f"{found['gpu']}; " if "gpu" in found else ""
    return f"{gpu}{found['processor']}, {cores} {'core' if str(cores) == '1' else 'cores'}, Python {found['python']}"


def _beside(result: StudyResult, machine: str) -> str:
    """What the baseline had where it was run for cells of ``machine``, if that is not what its own row says."""
    name = result.conditions["baseline"]
    own = [row.rates[row.metric] for row in result.rows if row.cell == name and not row.failed]
    stated, references = [one["rate"] for one in own], {one["reference"] for one in own}
    again = [
        row.rates[row.metric]["rate"] - row.against_baseline["difference"]
        for row in result.rows
        if row.against_baseline is not None
        and _machine(row.machine) == machine
        and row.rates[row.metric]["reference"] in references  # else its baseline is that of other people
    ]
    others = sorted({_percent(rate) for rate in again if all(abs(rate - one) > 1e-9 for one in stated)})
    return f", where the baseline {name} has {' and '.join(others)} %" if others else ""
