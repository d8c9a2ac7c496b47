"""Label files as text: decoded strictly, with the file, the line and the likely encoding named where that fails."""

import csv
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from fl.core.encoding import decode_text
from fl.core.errors import CorpusError
from fl.core.paths import readable
from fl.data.importers.records import UnusableError, attempt

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
    """The text of a label file in the encoding that its byte order mark says, else in ``encoding`` ("" is UTF-8).

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
    """Line number (from 1) and line without its end (which in old files of the Mac is a carriage return), blank lines left out."""
    text = read_text(path, encoding)
    for number, line in enumerate(text.split("\n" if "\n" in text else "\r"), 1):
        if line.strip():
            yield number, line.rstrip("\r")


Rows = list[tuple[int, Mapping[str, Any] | UnusableError]]
"""Lines of a table: each line's number in the file, and its values by column or what is wrong with it."""


def read_table(
    path: Path, encoding: str = "", *, delimiters: str = "\t,;", quoted: bool = False
) -> tuple[Sequence[str], Rows]:
    """Columns and rows of a table with a header, a line a row: a stray quotation mark spoils its own line and no other.

    Of ``delimiters`` the one that stands most in the header is taken, or what Excel's ``sep=;`` says. Between tabs a quotation mark
    is a character like any other unless the table is ``quoted``. Raises :class:`CorpusError` without a header, for a column twice.
    """
    csv.field_size_limit(1 << 20)
    lines = numbered_lines(path, encoding)
    first, head = next(lines, (1, ""))
    if told := re.fullmatch(r'"?sep=(.)"?', head, re.IGNORECASE):
        delimiters, (first, head) = told.group(1), next(lines, (1, ""))
    delimiter = max(delimiters, key=head.count)
    quoted = quoted or delimiter != "\t"
    if not head:
        raise CorpusError(f"{path}:1: is empty; the first line names the columns")
    named = attempt(_cells, head, delimiter, quoted, f"{path}:{first}")
    if isinstance(named, UnusableError):
        raise CorpusError(str(named))
    header = [readable(cell) for cell in named]
    if doubled := sorted({name for name in header if name and header.count(name) > 1}):
        raise CorpusError(f"{path}:1: column {doubled[0]!r} stands twice; rename one")
    rows = ((number, attempt(_row, line, header, delimiter, quoted, f"{path}:{number}")) for number, line in lines)
    return header, [(n, row) for n, row in rows if isinstance(row, UnusableError) or any(map(str.strip, row.values()))]


def _row(line: str, header: Sequence[str], delimiter: str, quoted: bool, where: str) -> dict[str, str]:
    cells = _cells(line, delimiter, quoted, where)
    while len(cells) > len(header) and not cells[-1].strip():
        del cells[-1]
    if len(cells) != len(header):
        counts = f"{len(cells)} values where the header has {len(header)} columns"
        fault = f"{counts}; check the delimiter ({delimiter!r}) and the quotation marks"
        raise UnusableError(where, "broken line", fault)
    return dict(zip(header, cells, strict=True))


def _cells(line: str, delimiter: str, quoted: bool, where: str) -> list[str]:
    """Raises :class:`UnusableError` for a quotation mark that is not closed in its line, and a carriage return inside it."""
    try:
        if "\r" in line:
            raise csv.Error("a carriage return stands inside the line")
        if quoted and line.count('"') % 2:
            raise csv.Error("a quotation mark is not closed in its line")
        style: Literal[0, 3] = csv.QUOTE_MINIMAL if quoted else csv.QUOTE_NONE
        cells = next(csv.reader([line], delimiter=delimiter, quoting=style, strict=True))
    except csv.Error as error:
        fault = f'{error}; write an utterance into one line, and " as "" in a CSV'
        raise UnusableError(where, "broken line", fault) from error
    return cells if quoted else [_QUOTED.sub(lambda m: m.group(1).replace('""', '"'), cell) for cell in cells]


_QUOTED = re.compile(r'"(?=.*"".*")((?:[^"]|"")*)"')
"""The whole cell of a TSV that was quoted as in a CSV: marks within are doubled."""


def read_objects(path: Path, encoding: str = "") -> tuple[Sequence[str], Rows]:
    """Columns and rows of JSON Lines: one object a line, whose keys are columns."""
    rows: Rows = [(n, attempt(_object, line, str(path), n)) for n, line in numbered_lines(path, encoding)]
    return list(dict.fromkeys(key for _, row in rows if isinstance(row, dict) for key in row)), rows


def _object(line: str, source: str, number: int) -> dict[str, Any]:
    row = parse_json(line, source, number)
    if not isinstance(row, dict):
        fault = f"a line is one JSON object, this is a {type(row).__name__}"
        raise UnusableError(f"{source}:{number}", "broken line", fault)
    return row


def parse_json(text: str, source: str, line: int = 1) -> Any:
    """The JSON value of ``text``, which begins in ``line`` of its file. Raises :class:`UnusableError` with file and line."""
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        fault = f"not JSON ({error.msg}); repair it or leave it out"
        raise UnusableError(f"{source}:{line + error.lineno - 1}", "broken line", fault) from error
    except RecursionError as error:
        raise UnusableError(f"{source}:{line}", "broken line", "nested too deeply to be labels") from error


def line_of(text: str, value: str) -> int:
    """The line of ``text`` in which the JSON string ``value`` stands, 1 where it is not found."""
    for form in (json.dumps(value, ensure_ascii=False), json.dumps(value)):
        position = text.find(form)
        if position >= 0:
            return text.count("\n", 0, position) + 1
    return 1
