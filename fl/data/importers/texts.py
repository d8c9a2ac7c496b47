"""Label files as text: decoded strictly, with the file, the line and the likely encoding named where that fails."""

import codecs
import csv
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from fl.core.errors import CorpusError
from fl.core.paths import readable
from fl.data.importers.records import UnusableError

MAX_TEXT_BYTES = 2 << 30
"""A label file is read as a whole; the largest list of Common Voice has a third of this."""

_BYTE_ORDER_MARKS = {codecs.BOM_UTF8: "utf-8-sig", codecs.BOM_UTF16_LE: "utf-16", codecs.BOM_UTF16_BE: "utf-16"}
_POINTER = b"version https://git-lfs"
REPLACEMENT = "\ufffd"


def is_pointer(path: Path) -> bool:
    """Whether ``path`` is what Git leaves in place of a large file that was not fetched."""
    with path.open("rb") as file:
        return file.read(len(_POINTER)) == _POINTER


def read_text(path: Path, encoding: str = "") -> str:
    """The text of a label file in the encoding that its byte order mark says, else in ``encoding`` ("" is UTF-8).

    Raises :class:`CorpusError` for a missing or too large file, and with line and likely encoding for one in another.
    """
    if not path.is_file():
        raise CorpusError(f"{path}: no such file; check the folder that you gave, or the layout in docs/corpora.md")
    size = path.stat().st_size
    if size > MAX_TEXT_BYTES:
        raise CorpusError(f"{path}: {size:,} bytes of labels are more than {MAX_TEXT_BYTES:,}; split the file")
    data = path.read_bytes()
    for mark, declared in _BYTE_ORDER_MARKS.items():
        encoding = declared if data.startswith(mark) else encoding
    if not encoding and (wide := _utf16(data)):
        raise CorpusError(f"{path}:1: this is UTF-16, not UTF-8; give --encoding {wide}")
    try:
        return data.decode(encoding or "utf-8")
    except LookupError as error:
        raise CorpusError(f"--encoding {encoding!r} is unknown; for instance cp949, utf-16, gb18030") from error
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        guess = _guess_encoding(data)
        looks = f"it looks like {guess}: give --encoding {guess}" if guess else "give --encoding, or convert the file"
        raise CorpusError(f"{path}:{line}: not {encoding or 'UTF-8'}; {looks}") from error


def _guess_encoding(data: bytes) -> str:
    """The encoding that text which is not UTF-8 most likely has, "" where none is likely.

    CP949 and GB18030 accept much of each other's bytes; Korean text in CP949 is nearly all Hangul, Chinese text read as
    CP949 is Hangul and Hanja mixed.
    """
    if wide := _utf16(data):
        return wide
    for encoding, first, last in (("cp949", "\uac00", "\ud7a3"), ("gb18030", "\u4e00", "\u9fff")):
        wide_letters = [char for char in _decoded(data, encoding) or "" if ord(char) > 0x7F]
        if wide_letters and sum(first <= char <= last for char in wide_letters) >= 0.8 * len(wide_letters):
            return encoding
    return "" if _decoded(data, "cp1252") is None else "cp1252"


def _utf16(data: bytes) -> str:
    head = data[: 1 << 16]
    even, odd = head[0::2].count(0), head[1::2].count(0)  # of Latin letters and spaces every second byte is zero
    if max(even, odd) * 10 <= len(head) or min(even, odd) * 4 > max(even, odd):
        return ""
    return "utf-16-le" if odd > even else "utf-16-be"


def _decoded(data: bytes, encoding: str) -> str | None:
    try:
        return data.decode(encoding)
    except UnicodeDecodeError:
        return None


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
    try:
        header = [readable(cell) for cell in _cells(head, delimiter, quoted, f"{path}:{first}")]
    except UnusableError as error:
        raise CorpusError(str(error)) from error
    if doubled := sorted({name for name in header if name and header.count(name) > 1}):
        raise CorpusError(f"{path}:1: column {doubled[0]!r} stands twice; rename one")
    rows: Rows = []
    for number, line in lines:
        where = f"{path}:{number}"
        try:
            cells = _cells(line, delimiter, quoted, where)
            while len(cells) > len(header) and not cells[-1].strip():
                del cells[-1]
            if len(cells) != len(header):
                counts = f"{len(cells)} values where the header has {len(header)} columns"
                fault = f"{counts}; check the delimiter ({delimiter!r}) and the quotation marks"
                raise UnusableError(where, "broken line", fault)
        except UnusableError as refusal:
            rows.append((number, refusal))
        else:
            if any(cell.strip() for cell in cells):
                rows.append((number, dict(zip(header, cells, strict=True))))
    return header, rows


def _cells(line: str, delimiter: str, quoted: bool, where: str) -> list[str]:
    """Raises :class:`UnusableError` for a quotation mark that is not closed in its line, and a carriage return inside it."""
    try:
        if quoted and line.count('"') % 2:
            raise csv.Error("a quotation mark is not closed in its line")
        style: Literal[0, 3] = csv.QUOTE_MINIMAL if quoted else csv.QUOTE_NONE
        cells = next(csv.reader([line], delimiter=delimiter, quoting=style, strict=True))
    except csv.Error as error:
        raise UnusableError(
            where, "broken line", f'{error}; write an utterance into one line, and " as "" in a CSV'
        ) from error
    return cells if quoted else [_QUOTED.sub(lambda m: m.group(1).replace('""', '"'), cell) for cell in cells]


_QUOTED = re.compile(r'"(?=.*"".*")((?:[^"]|"")*)"')
"""The whole cell of a TSV that was quoted as in a CSV: marks within are doubled."""


def read_objects(path: Path, encoding: str = "") -> tuple[Sequence[str], Rows]:
    """Columns and rows of JSON Lines: one object a line, whose keys are columns."""
    rows: Rows = []
    for number, line in numbered_lines(path, encoding):
        where = f"{path}:{number}"
        try:
            row = parse_json(line, str(path), number)
            fault = "" if isinstance(row, dict) else f"a line is one JSON object, this is a {type(row).__name__}"
        except CorpusError as error:
            fault = str(error).removeprefix(f"{where}: ")
        rows.append((number, UnusableError(where, "broken line", fault) if fault else row))
    columns = (key for _, row in rows if not isinstance(row, UnusableError) for key in row)
    return list(dict.fromkeys(columns)), rows


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
