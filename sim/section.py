"""Markdown pages: tables, and the part of a page that a command writes between two comments, so that nothing else changes."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

from fl.core.errors import IdiolectError
from fl.core.files import PUBLIC, write_atomically


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
