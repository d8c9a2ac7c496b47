"""Tables of a study or an audit: in a terminal, and as the section of a Markdown page. Cells are text; ``**text**`` is bold."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from rich.console import Console
from rich.table import Table
from rich.text import Text

BOLD = "**"


@dataclass(frozen=True)
class ReportTable:
    """One table: its title, the heads of its columns and its rows; the first ``names`` columns say what a row is about."""

    title: str
    heads: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    names: int = 1


def print_tables(tables: Sequence[ReportTable], conditions: str, console: Console) -> None:
    """Tables for a person, with a rule where the first of several names changes, then under what they were measured."""
    for table in tables:
        shown = Table(title=table.title, title_justify="left", title_style="bold")
        for number, head in enumerate(table.heads):
            shown.add_column(head, justify="left" if number < table.names else "right", overflow="fold")
        for number, row in enumerate(table.rows):
            if table.names > 1 and number and row[0] != table.rows[number - 1][0]:
                shown.add_section()
            shown.add_row(*(Text(cell.strip("*"), style="bold" if cell.startswith(BOLD) else "") for cell in row))
        console.print(shown)
    console.print(conditions, highlight=False, markup=False)


def markdown_tables(tables: Sequence[ReportTable], conditions: str) -> str:
    """The same as a section of a page."""
    lines: list[str] = []
    for table in tables:
        lines += [f"{table.title}:", ""]
        lines += [f"| {' | '.join(row)} |" for row in (table.heads, ["---"] * len(table.heads), *table.rows)]
        lines.append("")
    return "\n".join([*lines, conditions]) + "\n"
