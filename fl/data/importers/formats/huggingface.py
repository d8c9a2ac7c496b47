"""Any dataset of Hugging Face's ``datasets``: Parquet with audio inside, ``save_to_disk``, or a folder of audio with a list."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from fl.core.errors import CorpusError
from fl.data.importers.columns import tables_below
from fl.data.importers.places import roots_of
from fl.data.importers.records import Finding, Format, Options
from fl.data.importers.tables import Names, file_record, only, split_of, table_records
from fl.data.importers.texts import numbered_lines, parse_json, read_table

COLUMNS = Names()
LISTS = ("metadata.csv", "metadata.jsonl")


def read(source: Path, options: Options) -> Iterator[Finding]:
    """Records of a folder of Parquet or Arrow files, else of its ``metadata.csv`` or ``metadata.jsonl`` files."""
    if tables_below(source):
        yield from only(table_records(source, options, COLUMNS))
        return
    lists = [path for name in LISTS for path in sorted(source.rglob(name))] if source.is_dir() else []
    if not lists:
        raise CorpusError(
            f"{source}: holds no Parquet or Arrow files and no {' or '.join(LISTS)}; give the downloaded folder"
        )
    for path in lists:
        yield from _audio_folder(path, source, options)


def _audio_folder(path: Path, source: Path, options: Options) -> Iterator[Finding]:
    columns, rows = _csv(path, options) if path.suffix == ".csv" else _jsonl(path, options)
    chosen = COLUMNS.choose(columns, options, f"{path}:1")
    roots = roots_of(path, options.audio)
    for line, row in rows:
        name = Path(str(row.get(chosen["audio"]) or ""))
        # a split is in the folder's name, of the list or of the audio below it
        split = split_of(path, source) or split_of(path.parent / name, path.parent)
        if options.wants(split or "", *path.relative_to(source).parts):
            yield file_record(row, chosen, f"{path}:{line}", roots, split)


def _csv(path: Path, options: Options) -> tuple[list[str], list[tuple[int, Any]]]:
    columns, rows = read_table(path, options.encoding, delimiter=",", quoted=True)
    return list(columns), [(row.line, row.values) for row in rows]


def _jsonl(path: Path, options: Options) -> tuple[list[str], list[tuple[int, Any]]]:
    rows: list[tuple[int, Any]] = []
    for number, line in numbered_lines(path, options.encoding):
        row = parse_json(line, str(path), number)
        if not isinstance(row, dict):
            raise CorpusError(f"{path}:{number}: a line is one JSON object, this is a {type(row).__name__}")
        rows.append((number, row))
    return list(dict.fromkeys(key for _, row in rows for key in row)), rows


FORMAT = Format(
    name="huggingface",
    title="any speech dataset of the Hugging Face Hub",
    layout="Parquet with audio inside; save_to_disk (Arrow); a folder of audio with metadata.csv or metadata.jsonl",
    speakers="speaker, speaker_id, original_speaker_id or client_id; else topic or session",
    licence="its own",
    get="hf download OWNER/NAME --repo-type dataset --revision REVISION",
    read=read,
)
