"""The tables of growth, from the stored rows: a figure at each size, and the exponent with which it grows. Nothing is measured.

    python -m benchmarks.growth [--write docs/results/many-devices.md]

A row is of growth if its name begins with ``growth_``: its ratio is the exponent, and a condition ``by_<size>`` has the figure, or its
spread, at each size.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterable
from pathlib import Path

from rich.console import Console

from benchmarks._report import BenchmarkRow
from benchmarks.table import footnotes, number, read_rows
from sim.section import ReportTable, markdown_tables, print_tables, write_section

START, END = "<!-- growth: made by python -m benchmarks.growth -->", "<!-- end of growth -->"


def table_of(row: BenchmarkRow) -> ReportTable:
    """The sizes of one row beside its figures."""
    by, sizes = next(item for item in row.conditions.items() if _sizes(item[0]))
    assert isinstance(sizes, dict)
    figures = [number(found["median"] if isinstance(found, dict) else found) for found in sizes.values()]
    title = f"{row.name.removeprefix('growth_').replace('_', ', ')} ({row.unit}); exponent {row.ratio:.2f}"
    size = by.removeprefix("by_").replace("_", " ")
    return ReportTable(title[0].upper() + title[1:], (size, *sizes), (("figure", *figures),))


def tables_of(rows: Iterable[BenchmarkRow]) -> list[ReportTable]:
    """The tables of the rows that are of growth."""
    return [table_of(row) for row in rows if _of_growth(row)]


def _of_growth(row: BenchmarkRow) -> bool:
    return row.name.startswith("growth_") and any(map(_sizes, row.conditions))


def _sizes(condition: str) -> bool:
    return condition.startswith("by_")


def main() -> int:
    """Print the tables, or write them into a page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write", type=Path)
    write = parser.parse_args().write
    rows = [row for row in read_rows().values() if _of_growth(row)]
    tables, machines = tables_of(rows), "\n\n".join(footnotes(rows))
    print_tables(tables, machines, Console())
    if write:
        write_section(write, START, END, markdown_tables(tables, machines))
    return 0


if __name__ == "__main__":
    sys.exit(main())
