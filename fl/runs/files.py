"""Reading and writing the files of a run folder as :mod:`fl.runs.schema` defines them.

Every size is bounded before anything is allocated, and every fault is a :class:`~fl.core.errors.RunError` that starts with
``file:line:``.
"""

from __future__ import annotations

import json
import re
import reprlib
import tomllib
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

from pydantic import TypeAdapter, ValidationError

from fl.core.errors import RunError
from fl.core.files import PRIVATE, write_atomically
from fl.runs import schema
from fl.runs.schema import Costs, LeftOutRow, PredictionRow, PrivacyRecord, ResultRow
from fl.settings.names import DEFAULT_TASK

MAX_FILE_BYTES = 1 << 30
MAX_WHOLE_BYTES = 1 << 24  # of a file that is read in one piece
MAX_LINE_BYTES = 1 << 20
CHECKSUM = re.compile(rb', "crc32": "([0-9a-f]{8})"}\s*\Z')

Record = TypeVar("Record")
Row = TypeVar("Row", ResultRow, PredictionRow, LeftOutRow)
_ADAPTERS: dict[type, TypeAdapter[Any]] = {
    kind: TypeAdapter(kind) for kind in (ResultRow, PredictionRow, LeftOutRow, Costs, PrivacyRecord)
}


def with_checksum(line: str) -> str:
    """A JSON object as a line, its last field the CRC-32 of what comes before it: numbers are not damaged in silence."""
    return f'{line[:-1]}, "crc32": "{zlib.crc32(line[:-1].encode()):08x}"}}\n'


def parse(kind: type[Record], text: str | bytes, where: str) -> Record:
    """The record that ``text`` is the JSON of. Raises :class:`RunError` that starts with ``where`` and names the field.

    A line with a checksum must have that one; earlier versions wrote none.
    """
    data = text.encode() if isinstance(text, str) else text
    said = CHECKSUM.search(data)
    if said is not None and int(said[1], 16) != zlib.crc32(data[: said.start()]):
        raise RunError(
            f"{where}: is not what was written (its CRC-32 is another): put back a copy, or run again in a new folder"
        )
    try:
        found: Record = _ADAPTERS[kind].validate_json(text)
    except ValidationError as error:
        raise RunError(_explain(error, where)) from None
    return found


def dump(row: ResultRow | LeftOutRow) -> str:
    """The row as a line."""
    values = _ADAPTERS[type(row)].dump_python(row, mode="json")
    return with_checksum(json.dumps(values, ensure_ascii=False, sort_keys=True))


def _explain(error: ValidationError, where: str) -> str:
    fault = error.errors(include_url=False)[0]
    field, found = ".".join(map(str, fault["loc"])), reprlib.repr(fault["input"])
    if fault["type"] == "json_invalid":
        line = re.search(r"line ([2-9]|\d\d+) column", fault["msg"])  # of a document; a row has one line
        place = re.sub(r"\d+$", line[1], where) if line else where
        return f"{place}: not JSON ({fault['ctx']['error']}); a run that was killed here can be resumed"
    if not field:
        return f"{where}: expected a JSON object, found {found}"
    if field == "schema":
        return f"{where}: schema {found} is not {schema.SCHEMA}; read it with the version of Idiolect that wrote it"
    if fault["type"] == "missing":
        return f"{where}: field {field!r} is missing"
    return f"{where}: field {field!r}: {fault['msg'].removeprefix('Value error, ')}, found {found}"


def write_whole(path: Path, text: str, *, mode: int = PRIVATE) -> None:
    """UTF-8 ``text`` to ``path``, whole or not at all. Raises :class:`RunError` if it cannot be written."""
    try:
        write_atomically(path, text.encode(), mode=mode)
    except OSError as error:
        raise RunError(
            f"{path} cannot be written ({error}); what was there is intact: free some space, or choose another folder"
        ) from error


def write_document(
    kind: type[Costs | PrivacyRecord], path: Path, values: Mapping[str, Any], *, mode: int = PRIVATE
) -> None:
    """Write ``values``, which must be those of a ``kind``, as JSON with sorted keys."""
    text = json.dumps({"schema": schema.SCHEMA, **values}, indent=2, sort_keys=True) + "\n"
    parse(kind, text, f"{path}:1")
    write_whole(path, text, mode=mode)


def write_costs(folder: Path, costs: Mapping[str, Any]) -> None:
    """Write ``costs.json``, by which a run is known to be finished."""
    write_document(Costs, folder / schema.COSTS_NAME, costs)


def note_left_out(folder: Path, rows: Sequence[LeftOutRow]) -> None:
    """Write ``left-out.jsonl`` if there are any. Raises :class:`RunError` where a run that goes on left out others: devices would
    train on what they were tested on."""
    path = folder / schema.LEFT_OUT_NAME
    before = read_rows(path, LeftOutRow) if path.exists() else ()
    if (folder / schema.CHECKPOINTS).exists() and {row.key for row in before} != {row.key for row in rows}:
        raise RunError(
            f"{path}: {len(before)} examples were left out when this run began, {len(rows)} are now, and not the same ones: put the "
            "data back as they were, or start the run again in a new output folder"
        )
    if rows:
        write_whole(path, "".join(map(dump, rows)))


def is_finished(folder: Path) -> bool:
    """Whether the run in ``folder`` came to its end."""
    return (folder / schema.COSTS_NAME).exists()


@dataclass(frozen=True)
class RunFiles:
    """The files of one run. ``config`` is config.toml as it stands, ``final`` costs.json: None where the run is not finished."""

    folder: Path
    config: Mapping[str, Any]
    results: tuple[ResultRow, ...]
    transcripts: tuple[PredictionRow, ...]
    final: Costs | None
    left_out: tuple[LeftOutRow, ...] = ()

    @property
    def costs(self) -> Costs:
        """costs.json. :class:`RunError` where the run is not finished."""
        if self.final is None:
            raise RunError(f"{self.folder}: the run is unfinished, resume it: start it again with the same settings")
        return self.final

    @property
    def task(self) -> str:
        """The name of the task, from config.toml."""
        return str(self.config.get("task", DEFAULT_TASK))

    @property
    def seed(self) -> int:
        """The run's seed."""
        return self.final.seed if self.final else int(self.config.get("seed", 0))

    def renamed(self, prefix: str) -> RunFiles:
        """The same run with every device called ``prefix + name``, so that several runs can lie side by side."""
        return replace(
            self,
            results=tuple(replace(row, device=prefix + row.device) for row in self.results),
            transcripts=tuple(replace(row, device=prefix + row.device) for row in self.transcripts),
            left_out=tuple(replace(row, device=prefix + row.device) for row in self.left_out),
        )


def read_run(folder: Path) -> RunFiles:
    """The files of one finished run. :class:`RunError` names the file, the line and what is missing."""
    if not folder.is_dir():
        raise RunError(f"{folder}: no such run folder; make one with `idiolect run` or `idiolect demo`")
    path = folder / schema.PREDICTIONS_NAME
    transcripts = read_rows(path, PredictionRow)
    if not transcripts:
        if is_finished(folder):
            raise RunError(
                f"{folder}: there are no sentences to report on: no device has one to be tested on (give each two or more, "
                "and some the split test where lines have one), or what deployed devices transcribe stays with them, or a no-op run "
                "transcribes nothing; adapters lie there, the counts of each device in results.jsonl, and the log of a deployed run "
                "ends with the rates of all"
            )
        raise RunError(f"{path}:1: no transcripts; the run did not reach its final evaluation")
    config, results = read_config(folder / schema.CONFIG_NAME), read_rows(folder / schema.RESULTS_NAME, ResultRow)
    named = folder / schema.LEFT_OUT_NAME
    left_out = read_rows(named, LeftOutRow) if named.exists() else ()
    return RunFiles(folder, config, results, transcripts, read_costs(folder), left_out)


def read_costs(folder: Path) -> Costs:
    """costs.json of a run folder."""
    return _read_document(Costs, folder / schema.COSTS_NAME)


def read_privacy(folder: Path) -> PrivacyRecord | None:
    """privacy.json of a run folder; None for a run without noise and secure sums."""
    path = folder / schema.PRIVACY_NAME
    return _read_document(PrivacyRecord, path) if path.exists() else None


def _read_document(kind: type[Record], path: Path) -> Record:
    _check_size(path, MAX_WHOLE_BYTES)
    return parse(kind, path.read_bytes(), f"{path}:1")


def read_rows(path: Path, kind: type[Row], *, growing: bool = False) -> tuple[Row, ...]:
    """The rows of a file in their order; a second row with the key of another is refused.

    ``growing``: a run may still write the file, or was killed as it did; a last line without its end is not read.
    """
    rows: list[Row] = []
    seen: dict[object, int] = {}
    for number, line in _lines(path):
        if growing and not line.endswith(b"\n"):
            break
        row = parse(kind, line, f"{path}:{number}")
        first = seen.setdefault(row.key, number)
        if first != number:
            raise RunError(f"{path}:{number}: repeats line {first}: {row.key}")
        rows.append(row)
    return tuple(rows)


def predictions_of_devices(folder: Path) -> Iterator[tuple[PredictionRow, str]]:
    """What the devices of a simulation have predicted so far, as rows and as the lines that they are in the files."""
    for path in sorted((folder / schema.DEVICES).glob(f"*/*/{schema.PREDICTIONS_NAME}")):
        for number, line in enumerate(path.read_bytes().split(b"\n"), 1):
            if line:
                yield parse(PredictionRow, line, f"{path}:{number}"), line.decode() + "\n"


def _lines(path: Path) -> Iterator[tuple[int, bytes]]:
    """Non-empty lines with their numbers, none longer than ``MAX_LINE_BYTES``."""
    _check_size(path, MAX_FILE_BYTES)
    with path.open("rb") as file:
        number = 0
        while line := file.readline(MAX_LINE_BYTES + 1):
            number += 1
            if len(line) > MAX_LINE_BYTES:
                raise RunError(f"{path}:{number}: line longer than {MAX_LINE_BYTES} bytes; this is not a results file")
            if line.strip():
                yield number, line


def _check_size(path: Path, limit: int) -> None:
    try:
        size = path.stat().st_size
    except OSError as error:
        raise RunError(f"{path}:1: cannot be read ({error.strerror}); the run is unfinished, resume it") from None
    if size > limit:
        raise RunError(f"{path}:1: {size} bytes, more than the {limit} that a report reads")


def read_config(path: Path) -> dict[str, Any]:
    """config.toml where there is one: shown on the page, never interpreted."""
    if not path.is_file():
        return {}
    _check_size(path, MAX_WHOLE_BYTES)
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise RunError(f"{path}:1: not TOML ({error})") from None
