"""Label files as text: decoded strictly, with the file, the line and the likely encoding named where that fails."""

import csv
import io
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from fl.core.encoding import decode_text
from fl.core.errors import CorpusError
from fl.data.importers.records import UnusableError

MAX_TEXT_BYTES = 2 << 30
"""A label file is read as a whole; the largest list of Common Voice has a third of this."""

_POINTER = b"version https://git-lfs"
REPLACEMENT = "\ufffd"
DAMAGED = 0.2
"""Where more of the letters beyond ASCII do not decode, the file is in another encoding."""


def is_pointer(path: Path) -> bool:
    """Whether ``path`` is what Git leaves in place of a large file that was not fetched."""
    with path.open("rb") as file:
        return file.read(len(_POINTER)) == _POINTER


def read_text(path: Path, encoding: str = "") -> str:
    """The text of a label file in ``encoding`` ("" is UTF-8, or what its byte order mark says).

    A few bytes that are none of it become U+FFFD, which makes a bad utterance of their line. Raises :class:`CorpusError` for a
    missing or too large file, and with line and likely encoding for one in another.
    """
    if not path.is_file():
        raise CorpusError(f"{path}: no such file; check the folder that you gave, or the layout in docs/corpora.md")
    size = path.stat().st_size
    if size > MAX_TEXT_BYTES:
        raise CorpusError(f"{path}: {size:,} bytes of labels are more than {MAX_TEXT_BYTES:,}; split the file")
    return decode_text(path.read_bytes(), str(path), CorpusError, encoding, damaged=DAMAGED)


def numbered_lines(path: Path, encoding: str = "") -> Iterator[tuple[int, str]]:
    """Line number (from 1) and line without its end, blank lines left out."""
    for number, line in enumerate(read_text(path, encoding).split("\n"), 1):
        if line.strip():
            yield number, line.rstrip("\r")


Rows = list[tuple[int, Mapping[str, Any] | UnusableError]]
"""Lines of a table: each line's number in the file, and its values by column, or what is wrong with it."""


def read_table(path: Path, encoding: str = "", *, delimiter: str, quoted: bool) -> tuple[Sequence[str], Rows]:
    """Columns and rows of a table with a header. Unless ``quoted``, a quotation mark is a character like any other.

    Raises :class:`CorpusError` with file and line for a missing header and a column twice.
    """
    csv.field_size_limit(1 << 20)
    lines = io.StringIO(read_text(path, encoding), newline="")
    style: Literal[0, 3] = csv.QUOTE_MINIMAL if quoted else csv.QUOTE_NONE
    reader = csv.reader(lines, delimiter=delimiter, quoting=style, strict=True)
    rows: Rows = []
    try:
        header = next(([cell.strip() for cell in cells] for cells in reader if cells), [])
    except csv.Error as error:
        raise CorpusError(f"{path}:{reader.line_num}: {error}; check the quotation marks") from error
    while (cells := _next_row(reader, path)) is not None:
        where = f"{path}:{reader.line_num}"
        if isinstance(cells, UnusableError):
            rows.append((reader.line_num, cells))
        elif len(cells) == len(header):
            rows.append((reader.line_num, dict(zip(header, cells, strict=True))))
        elif any(cell.strip() for cell in cells):
            fault = f"{len(cells)} values where the header has {len(header)} columns; check delimiter ({delimiter!r}) and quotation marks"
            rows.append((reader.line_num, UnusableError(where, "broken line", fault)))
    if not header:
        raise CorpusError(f"{path}:1: is empty; the first line names the columns")
    if doubled := sorted({name for name in header if header.count(name) > 1}):
        raise CorpusError(f"{path}:1: column {doubled[0]!r} stands twice; rename one")
    return header, rows


def _next_row(reader: Any, path: Path) -> list[str] | UnusableError | None:
    try:
        return next(reader, None)
    except csv.Error as error:  # the next line begins anew
        return UnusableError(f"{path}:{reader.line_num}", "broken line", f"{error}; check the quotation marks")


def read_objects(path: Path, encoding: str = "") -> tuple[Sequence[str], Rows]:
    """Columns and rows of JSON Lines: one object a line, whose keys are columns."""
    rows: Rows = []
    for number, line in numbered_lines(path, encoding):
        try:
            row = parse_json(line, str(path), number)
            if not isinstance(row, dict):
                fault = f"a line is one JSON object, this is a {type(row).__name__}"
                row = UnusableError(f"{path}:{number}", "broken line", fault)
        except UnusableError as refusal:
            row = refusal.with_traceback(None)
        rows.append((number, row))
    return list(dict.fromkeys(key for _, row in rows if isinstance(row, dict) for key in row)), rows


def parse_json(text: str, source: str, line: int = 1) -> Any:
    """The JSON value of ``text``, which begins in ``line`` of its file. Raises :class:`UnusableError` with file and line."""
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        fault = f"not JSON ({error.msg}); repair it or leave it out"
        raise UnusableError(f"{source}:{line + error.lineno - 1}", "not JSON", fault) from error
    except RecursionError as error:
        raise UnusableError(f"{source}:{line}", "not JSON", "nested too deeply to be labels") from error


def line_of(text: str, value: str) -> int:
    """The line of ``text`` in which the JSON string ``value`` stands, 1 where it is not found."""
    for form in (json.dumps(value, ensure_ascii=False), json.dumps(value)):
        position = text.find(form)
        if position >= 0:
            return text.count("\n", 0, position) + 1
    return 1
