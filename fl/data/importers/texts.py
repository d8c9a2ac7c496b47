"""Label files as text: decoded strictly, with the file, the line and the likely encoding named where that fails."""

import csv
import io
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from fl.core.encoding import decode_text
from fl.core.errors import CorpusError

MAX_TEXT_BYTES = 2 << 30
"""A label file is read as a whole; the largest list of Common Voice has a third of this."""

_POINTER = b"version https://git-lfs"
REPLACEMENT = "\ufffd"


def is_pointer(path: Path) -> bool:
    """Whether ``path`` is what Git leaves in place of a large file that was not fetched."""
    with path.open("rb") as file:
        return file.read(len(_POINTER)) == _POINTER


def read_text(path: Path, encoding: str = "") -> str:
    """The text of a label file in ``encoding`` ("" is UTF-8, or what its byte order mark says).

    Raises :class:`CorpusError` for a missing or too large file, and with line and likely encoding for one in another.
    """
    if not path.is_file():
        raise CorpusError(f"{path}: no such file; check the folder that you gave, or the layout in docs/corpora.md")
    size = path.stat().st_size
    if size > MAX_TEXT_BYTES:
        raise CorpusError(f"{path}: {size:,} bytes of labels are more than {MAX_TEXT_BYTES:,}; split the file")
    return decode_text(path.read_bytes(), str(path), CorpusError, encoding)


def numbered_lines(path: Path, encoding: str = "") -> Iterator[tuple[int, str]]:
    """Line number (from 1) and line without its end, blank lines left out."""
    for number, line in enumerate(read_text(path, encoding).split("\n"), 1):
        if line.strip():
            yield number, line.rstrip("\r")


Rows = list[tuple[int, Mapping[str, Any]]]
"""Lines of a table: each line's number in the file, and its values by column."""


def read_table(path: Path, encoding: str = "", *, delimiter: str, quoted: bool) -> tuple[Sequence[str], Rows]:
    """Columns and rows of a table with a header. Unless ``quoted``, a quotation mark is a character like any other.

    Raises :class:`CorpusError` with file and line for a missing header, a column twice, a row of another length.
    """
    csv.field_size_limit(1 << 20)
    lines = io.StringIO(read_text(path, encoding), newline="")
    style: Literal[0, 3] = csv.QUOTE_MINIMAL if quoted else csv.QUOTE_NONE
    reader = csv.reader(lines, delimiter=delimiter, quoting=style, strict=True)
    rows: Rows = []
    try:
        header = next(([cell.strip() for cell in cells] for cells in reader if cells), [])
        for cells in reader:
            if not any(cell.strip() for cell in cells):
                continue
            if len(cells) != len(header):
                raise CorpusError(
                    f"{path}:{reader.line_num}: {len(cells)} values where the header has {len(header)} columns; "
                    f"check the delimiter ({delimiter!r}) and the quotation marks"
                )
            rows.append((reader.line_num, dict(zip(header, cells, strict=True))))
    except csv.Error as error:
        raise CorpusError(f"{path}:{reader.line_num}: {error}; check the quotation marks") from error
    if not header:
        raise CorpusError(f"{path}:1: is empty; the first line names the columns")
    if doubled := sorted({name for name in header if header.count(name) > 1}):
        raise CorpusError(f"{path}:1: column {doubled[0]!r} stands twice; rename one")
    return header, rows


def read_objects(path: Path, encoding: str = "") -> tuple[Sequence[str], Rows]:
    """Columns and rows of JSON Lines: one object a line, whose keys are columns. Raises :class:`CorpusError` with file and line."""
    rows: Rows = []
    for number, line in numbered_lines(path, encoding):
        row = parse_json(line, str(path), number)
        if not isinstance(row, dict):
            raise CorpusError(f"{path}:{number}: a line is one JSON object, this is a {type(row).__name__}")
        rows.append((number, row))
    return list(dict.fromkeys(key for _, row in rows for key in row)), rows


def parse_json(text: str, source: str, line: int = 1) -> Any:
    """The JSON value of ``text``, which begins in ``line`` of its file. Raises :class:`CorpusError` with file and line."""
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        raise CorpusError(
            f"{source}:{line + error.lineno - 1}: not JSON ({error.msg}); repair it or leave the file out"
        ) from error
    except RecursionError as error:
        raise CorpusError(f"{source}:{line}: nested too deeply to be labels") from error


def line_of(text: str, value: str) -> int:
    """The line of ``text`` in which the JSON string ``value`` stands, 1 where it is not found."""
    for form in (json.dumps(value, ensure_ascii=False), json.dumps(value)):
        position = text.find(form)
        if position >= 0:
            return text.count("\n", 0, position) + 1
    return 1
