"""The tables of ``docs/compatibility.md``: what people's files and programs get, from the tests that try them.

A test of ``tests/cases`` carries the cell that it proves, ``@pytest.mark.case(table, row, column, answer)``. ``make cases`` runs
them all and, where all pass, writes the tables from these marks.
"""

from collections.abc import Iterable
from pathlib import Path

from sim.section import markdown_table, write_section

PAGE = Path(__file__).parent.parent / "docs" / "compatibility.md"
# Of each table: what a row is, then its columns.
TABLES = {
    "audio": ("container and codec", "import", "run", "transcribe", "serve", "device"),
    "manifests": ("what a manifest holds", "import", "run"),
    "folders": ("what a folder or table holds", "import", "device"),
    "corpora": ("what a transcript holds", "what is done"),
    "clients": ("what a program sends", "answer"),
    "programs": ("program", "request", "answer"),
    "devices": ("what `idiolect device` is given", "answer"),
    "bases": ("what a base holds", "answer"),
}
Cell = tuple[str, str, str, str]  # table, row, column, answer


def section(table: str, cells: Iterable[Cell]) -> str:
    """A table of Markdown, rows in the order of the tests. Raises ValueError for a cell without a place, or with two answers."""
    columns = TABLES[table][1:]
    rows: dict[str, dict[str, str]] = {}
    for name, row, column, answer in cells:
        if name != table:
            continue
        if column not in columns or rows.setdefault(row, {}).setdefault(column, answer) != answer:
            raise ValueError(f"{table}: {row!r}, {column!r} has no column, or another answer than {answer!r}")
    return markdown_table(
        TABLES[table], [(row, *(found.get(name, "") for name in columns)) for row, found in rows.items()]
    )


def comments(table: str) -> tuple[str, str]:
    """The comments between which ``table`` stands on the page."""
    return f"<!-- {table}: made by make cases -->", f"<!-- end of {table} -->"


def write(cells: Iterable[Cell], page: Path = PAGE) -> None:
    """Write all tables anew."""
    cells = list(cells)
    for table in TABLES:
        write_section(page, *comments(table), section(table, cells).strip())
