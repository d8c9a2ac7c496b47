"""Rows with named columns, of text files and of Parquet and Arrow as ``datasets`` writes them, and the records they become.

Labels are read at once, audio inside a table when it is asked for.
"""

import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fl.core.apart import Apart
from fl.core.errors import CorpusError
from fl.core.paths import files_below, readable
from fl.data.importers.places import AudioFolders
from fl.data.importers.records import Embedded, Finding, Options, Record, UnusableError, attempt, seconds, split_name
from fl.data.importers.texts import MAX_TEXT_BYTES, Rows, is_pointer, read_objects, read_table
from fl.data.manifest import LEVELS
from fl.metrics.languages import SCRIPT_LANGUAGES

DELIMITERS = {".csv": ",;\t", ".tsv": "\t,;", ".txt": "\t,;"}
"""Of tables by the ending of their files, the likeliest first; ``.jsonl`` holds one object a line."""
MISSING = frozenset({"nan", "NaN", "<NA>", "None", "NULL", "#N/A", "#NAME?", "#REF!", "#VALUE!"})
"""What pandas, databases and Excel write for a value that is not there."""
_WHOLE = re.compile(r"(\d+)\.0")  # a number of a column with gaps, as pandas writes it
_ROUNDED = re.compile(r"\d(\.\d+)?E\+\d+", re.IGNORECASE)  # a long number, as Excel writes it

LABEL_ROWS, AUDIO_ROWS = 4096, 16
TABLE_SUFFIXES = (".parquet", ".arrow")


class Tables:
    """What is read of Arrow tables apart (:mod:`fl.core.apart`): their library follows the offsets of a crafted file anywhere."""

    def read(self, path: str) -> Iterator[list[Any]]:
        """The names of all columns and of those that hold audio, then the rows of each batch.

        Raises :class:`CorpusError` for more labels than a corpus has.
        """
        table, size = ArrowTable(Path(path)), 0
        yield [table.columns, table.audio]
        for rows in table.rows():
            size += sum(len(str(row)) for row in rows)
            if size > MAX_TEXT_BYTES:
                raise CorpusError(f"{path}: its labels are more than {MAX_TEXT_BYTES:,} characters; split the file")
            yield rows


class ArrowTable:
    """One file. ``columns`` are its names, ``audio`` those that hold audio as bytes or a path."""

    def __init__(self, path: Path) -> None:
        try:
            import pyarrow
            import pyarrow.parquet
        except ImportError as error:
            raise CorpusError("Parquet and Arrow files need pyarrow: pip install 'idiolect-fl[import]'") from error
        self._pa: Any = pyarrow
        self._parquet: Any = None
        self.path = path
        if is_pointer(path):
            raise CorpusError(f"{path}:1: is a Git LFS pointer, not the data; run `git lfs pull` in the corpus")
        try:
            if path.suffix.lower() == ".parquet":
                self._parquet = self._pa.parquet.ParquetFile(path, memory_map=True)
            schema = self._stream().schema if self._parquet is None else self._parquet.schema_arrow
        except (self._pa.ArrowInvalid, OSError) as error:
            raise CorpusError(f"{path}: is not a {path.suffix[1:]} file ({error}); fetch it again") from error
        structs = {field.name: field.type for field in schema if self._pa.types.is_struct(field.type)}
        self.columns: list[str] = list(schema.names)
        self.audio = [name for name, kind in structs.items() if kind.get_field_index("bytes") >= 0]
        paths = [f"{name}.path" for name in self.audio if structs[name].get_field_index("path") >= 0]
        self._labels = [name for name in self.columns if name not in structs] + paths
        self._names = _class_names(schema.metadata or {})

    def _stream(self) -> Any:
        return self._pa.ipc.open_stream(self._pa.memory_map(str(self.path)))

    def rows(self) -> Iterator[list[dict[str, Any]]]:
        """The rows of each batch without the bytes of their audio: of an audio column ``NAME`` only ``NAME.path`` is read, and as
        ``NAME.bytes`` whether there are any, unless the file says that all rows have them."""
        hollow = [f"{name}.bytes" for name in self.audio if not self._is_whole(f"{name}.bytes")]
        for batch in self._batches(AUDIO_ROWS if hollow else LABEL_ROWS, self._labels + hollow):
            for name in hollow:
                batch = batch.set_column(batch.schema.get_field_index(name), name, batch.column(name).is_valid())
            rows = batch.to_pylist()
            for row in rows:
                for name, names in self._names.items():
                    value = row.get(name)
                    if isinstance(value, int) and 0 <= value < len(names):
                        row[name] = names[value]
            yield rows

    def _is_whole(self, column: str) -> bool:
        """Whether no row lacks ``column``, as the statistics of a Parquet file tell without reading it."""
        found = self._parquet and self._parquet.metadata
        groups = [found.row_group(index) for index in range(found.num_row_groups)] if found else []
        chunks = [group.column(index) for group in groups for index in range(group.num_columns)]
        told = [chunk.statistics for chunk in chunks if chunk.path_in_schema == column]
        return bool(told) and all(one is not None and one.has_null_count and not one.null_count for one in told)

    def audio_bytes(self, column: str) -> Iterator[bytes | None]:
        """The bytes of ``column`` in every row, in order."""
        for batch in self._batches(AUDIO_ROWS, [f"{column}.bytes"]):
            yield from batch.column(0).to_pylist()

    def _batches(self, size: int, columns: list[str]) -> Iterator[Any]:
        """The rows with only ``columns``, of which ``name.part`` is one part of a structure."""
        try:
            parquet = self._parquet
            for batch in self._stream() if parquet is None else parquet.iter_batches(batch_size=size, columns=columns):
                batch.validate(full=True)  # offsets, UTF-8 and indices, before any of them is followed
                for start in range(0, batch.num_rows, size):
                    part = self._pa.Table.from_batches([batch.slice(start, size)])
                    yield part.flatten().select(columns)
        except (self._pa.ArrowInvalid, OSError) as error:
            raise CorpusError(f"{self.path}: is damaged ({error}); fetch it again") from error


def _class_names(metadata: dict[bytes, bytes]) -> dict[str, list[str]]:
    """Columns of whole numbers that stand for names (``ClassLabel``), by what ``datasets`` notes in the schema."""
    try:
        noted = json.loads(metadata[b"huggingface"])["info"]["features"]
        return {name: feature["names"] for name, feature in noted.items() if feature.get("_type") == "ClassLabel"}
    except (KeyError, ValueError, TypeError, AttributeError):
        return {}


@dataclass(frozen=True)
class ColumnNames:
    """For each field the columns that may hold it, the first that exists is taken; ``Options.fields`` goes before all."""

    text: tuple[str, ...] = ("text", "sentence", "transcription", "transcript")
    audio: tuple[str, ...] = ("audio", "path", "file", "file_name", "wav")
    id: tuple[str, ...] = ("id", "utterance_id")
    speaker: tuple[str, ...] = ("speaker", "speaker_id", "original_speaker_id", "client_id", "spk_id")
    session: tuple[str, ...] = ("session", "session_id", "chapter_id")
    topic: tuple[str, ...] = ("topic", "category", "domain")
    lang: tuple[str, ...] = ("lang", "language", "locale")
    start: tuple[str, ...] = ("start", "start_time", "begin_time")
    end: tuple[str, ...] = ("end", "end_time")
    split: tuple[str, ...] = ("split",)
    level: tuple[str, ...] = ("level", "cs_level")

    def choose(self, columns: Sequence[str], options: Options, where: str) -> dict[str, str]:
        """Field -> column. Raises :class:`CorpusError` for a column that was named and is missing, and without text."""
        known = {_folded(column): column for column in reversed(columns)} | {column: column for column in columns}
        chosen = {}
        for field, wanted in options.fields.items():
            chosen[field] = known.get(wanted) or known.get(_folded(wanted), "")
            if field != "utterances" and not chosen[field]:
                raise CorpusError(f"{where}: --field {field}={wanted}: no such column; there are {', '.join(columns)}")
        for field, names in vars(self).items():
            for name in names:
                if field not in chosen and name in known:
                    chosen[field] = known[name]
        for field in ("text", "audio"):
            if field not in chosen:
                raise CorpusError(
                    f"{where}: no column for the {field}; there are {', '.join(columns)}; name it with --field {field}=COLUMN"
                )
        return chosen


def _folded(column: str) -> str:
    """``speaker_id`` for ``Speaker ID``."""
    return re.sub(r"[\s-]+", "_", readable(column)).casefold()


def plain(value: Any) -> str | None:
    """A cell as a string, None where it is empty."""
    if value is None or isinstance(value, dict | list):
        return None
    return str(value).strip() or None


def language(value: str | None) -> str | None:
    """``zh`` for ``zh-CN``; None for what names no single language, such as ASCEND's ``mixed``."""
    code = (value or "").replace("_", "-").split("-")[0].lower()
    return code if code.isalpha() and (len(code) in (2, 3) or code in SCRIPT_LANGUAGES.values()) else None


@dataclass(frozen=True)
class RowReader:
    """Rows as records: ``chosen`` says which column holds a field, ``folders`` where audio files lie, ``beside`` them or not."""

    chosen: Mapping[str, str]
    folders: AudioFolders
    beside: Path | None = None

    def audio_name(self, row: Mapping[str, Any]) -> str | None:
        """What the row calls its audio: the column, or the path in it where it holds bytes and a path."""
        column = self.chosen["audio"]
        return plain(row.get(f"{column}.path", row.get(column)))

    def read(
        self, row: Mapping[str, Any] | UnusableError, where: str, split: str | None, inside: Embedded | None = None
    ) -> Finding:
        """The record of a row that names an audio file, or has it ``inside`` its table; its id defaults to the file's stem."""
        if isinstance(row, UnusableError):
            return row
        return attempt(self._record, row, where, split, inside)

    def _record(self, row: Mapping[str, Any], where: str, split: str | None, inside: Embedded | None) -> Record:
        """Raises :class:`UnusableError` without audio, for times that are no numbers and a split that has no name."""

        def cell(field: str) -> str | None:
            value = plain(row.get(self.chosen[field])) if field in self.chosen else None
            if value is None or field == "text":
                return value
            if field in ("id", "speaker", "session"):
                if _ROUNDED.fullmatch(value):
                    fault = f"{field} {value!r} was rounded by a spreadsheet; format the column as text"
                    raise UnusableError(where, f"rounded {field}", fault)
                value = _WHOLE.sub(r"\1", value) if _WHOLE.fullmatch(value) else value
            return None if value in MISSING else value

        name = self.audio_name(row) or ""
        if not name and inside is None:
            raise UnusableError(where, "missing audio", f"column {self.chosen['audio']!r} is empty")
        text = cell("text") or ""
        if text in MISSING or "\t" in text:
            fault = (
                f"the text {text[:60]!r} is what programs write for a missing value, or holds a tab; write what is said"
            )
            raise UnusableError(where, "suspect text", fault)
        stem = Path(name.replace("\\", "/")).stem
        if inside is not None:
            stem = stem or f"{inside.path.stem}-{inside.row + 1}"
        own = cell("split")
        if own is not None and split_name(own) is None:
            raise UnusableError(where, "unknown split", f"split {own!r} is not one of train, validation, test")
        return Record(
            where=where,
            id=cell("id") or stem,
            audio=inside or self.folders.at(name, where, beside=self.beside),
            text=text,
            speaker=cell("speaker"),
            session=cell("session"),
            topic=cell("topic"),
            split=split_name(own) if own else split,
            lang=language(cell("lang")),
            level=cell("level") if cell("level") in LEVELS else None,
            start=seconds(cell("start"), where),
            end=seconds(cell("end"), where),
        )


def list_rows(path: Path, options: Options, names: ColumnNames, folders: AudioFolders) -> tuple[RowReader, Rows]:
    """The rows of a list of audio files, by the ending of ``path``, and what makes records of them."""
    if path.suffix.lower() == ".jsonl":
        columns, rows = read_objects(path, options.encoding)
    else:
        delimiters = DELIMITERS[path.suffix.lower()]
        columns, rows = read_table(path, options.encoding, delimiters=delimiters, quoted=options.quoted)
    return RowReader(names.choose(columns, options, f"{path}:1"), folders), rows


def parts_of(path: Path, source: Path) -> tuple[str, ...]:
    """The names of a file and its folders below ``source``, for ``Options.parts``."""
    return path.relative_to(source if source.is_dir() else path.parent).parts


def split_of(path: Path, source: Path) -> str | None:
    """The split that the name of a file or of its folders says: ``data/train-00000-of-00005.parquet``, ``test/0000.parquet``."""
    relative = Path(*parts_of(path, source))
    return next(filter(None, map(split_name, (relative.stem, *reversed(relative.parent.parts)))), None)


def tables_below(source: Path) -> list[Path]:
    """All Parquet files below ``source``, or where there are none all Arrow files, in the order of their names."""
    if source.is_file():
        return [source]
    found = ([p for p in files_below(source, f"*{s}") if not p.name.startswith("cache-")] for s in TABLE_SUFFIXES)
    return next(filter(None, found), [])


def _wanted_tables(source: Path, options: Options) -> list[tuple[Path, str | None]]:
    """The tables below ``source`` that ``Options.parts`` wants, each with its split."""
    found = [(path, split_of(path, source)) for path in tables_below(source)]
    if not found:
        raise CorpusError(f"{source}: holds no Parquet or Arrow files; give the folder that was downloaded")
    kept = [(path, split) for path, split in found if options.wants(split or "", *parts_of(path, source))]
    if not kept:
        raise CorpusError(
            f"{source}: --part {', '.join(options.parts)} fits none of its {len(found)} tables, like {found[0][0]}"
        )
    return kept


def table_records(
    source: Path,
    options: Options,
    names: ColumnNames,
    mend: Callable[[Record, Mapping[str, Any]], Record] = lambda record, row: record,
) -> Iterator[Finding]:
    """Every row of the tables below ``source`` as a record; ``mend`` adds to it what only this corpus has in its rows,
    or raises :class:`UnusableError`."""
    folders = AudioFolders(source, options)
    with Apart(f"{__name__}:Tables", CorpusError) as tables:
        for path, split in _wanted_tables(source, options):
            batches = tables.ask(path, "read", str(path))
            columns, audio = next(batches)
            reader = RowReader(names.choose(columns, options, str(path)), folders, path.parent)
            column = reader.chosen["audio"]
            for index, row in enumerate(row for batch in batches for row in batch):
                there = column in audio and row.get(f"{column}.bytes", True)
                inside = Embedded(path, column, index) if there else None
                found = reader.read(row, f"{path}:{index + 1}", split, inside)
                yield attempt(mend, found, row) if isinstance(found, Record) else found
