"""Tables of a study or an audit, in a terminal and on a Markdown page, and the part of a page that a command writes.

That part stands between two comments, and nothing else of the page changes.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.table import Table
from rich.text import Text

from fl.core.errors import IdiolectError
from fl.core.files import PUBLIC, write_atomically

BOLD = "**"  # around a cell of a table that is bold; all cells are text


class SectionError(IdiolectError):
    """A page without the two comments between which something is to be written. It is as it was."""


def page_parts(page: Path, start: str, end: str) -> tuple[str, str]:
    """What stands before and after the section of ``page``. Raises :class:`SectionError` where a comment is missing."""
    text = page.read_text(encoding="utf-8") if page.is_file() else ""
    head, found, rest = text.partition(start)
    _, closed, tail = rest.partition(end)
    if not found or not closed:
        raise SectionError(f"{page} needs the comments {start!r} and {end!r} around the part that is written")
    return head, tail


def write_section(page: Path, start: str, end: str, text: str) -> None:
    """Replace what stands between the comments ``start`` and ``end`` of ``page``."""
    head, tail = page_parts(page, start, end)
    write_atomically(page, f"{head}{start}\n\n{text}\n{end}{tail}".encode(), mode=PUBLIC)


def markdown_table(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table with a line for each of ``rows``."""
    lines = [" | ".join(cell.replace("|", "\\|") for cell in row) for row in (heads, *rows)]
    lines.insert(1, " | ".join(["---"] * len(heads)))
    return "".join(f"| {line} |\n" for line in lines)


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
            shown.add_row(*(_text(cell) for cell in row))
        console.print(shown)
    console.print(conditions, highlight=False, markup=False)


def _text(cell: str) -> Text:
    return Text(cell[len(BOLD) : -len(BOLD)], style="bold") if cell.startswith(BOLD) else Text(cell)


def markdown_tables(tables: Sequence[ReportTable], conditions: str) -> str:
    """The same as a section of a page."""
    parts = [f"{table.title}:\n\n{markdown_table(table.heads, table.rows)}\n" for table in tables]
    return "".join([*parts, f"{conditions}\n"])
