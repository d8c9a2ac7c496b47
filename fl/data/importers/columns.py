"""Rows of Parquet and Arrow files, as Hugging Face's ``datasets`` writes them: labels now, audio bytes when they are asked for."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from fl.core.errors import CorpusError
from fl.data.importers.records import Embedded
from fl.data.importers.texts import is_pointer

LABEL_ROWS, AUDIO_ROWS = 4096, 16
SUFFIXES = (".parquet", ".arrow")


def _arrow() -> Any:
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError as error:
        raise CorpusError("Parquet and Arrow files need pyarrow: pip install 'idiolect-fl[import]'") from error
    return pyarrow


class ArrowTable:
    """One file. ``columns`` are its names, ``audio`` those that hold audio as bytes or a path."""

    def __init__(self, path: Path) -> None:
        self._pa, self.path = _arrow(), path
        self._parquet: Any = None
        if is_pointer(path):
            raise CorpusError(f"{path}:1: is a Git LFS pointer, not the data; run `git lfs pull` in the corpus")
        try:
            if path.suffix == ".parquet":
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

    def rows(self) -> Iterator[dict[str, Any]]:
        """Every row without the bytes of its audio: of an audio column ``NAME`` only ``NAME.path`` is read."""
        for batch in self._batches(LABEL_ROWS, self._labels):
            for row in batch.to_pylist():
                for name, names in self._names.items():
                    value = row.get(name)
                    if isinstance(value, int) and 0 <= value < len(names):
                        row[name] = names[value]
                yield row

    def audio_bytes(self, column: str) -> Iterator[bytes | None]:
        """The bytes of ``column`` in every row, in order."""
        for batch in self._batches(AUDIO_ROWS, [f"{column}.bytes"]):
            yield from batch.column(0).to_pylist()

    def _batches(self, size: int, columns: list[str]) -> Iterator[Any]:
        """The rows with only ``columns``, of which ``name.part`` is one part of a structure."""
        try:
            parquet = self._parquet
            for batch in self._stream() if parquet is None else parquet.iter_batches(batch_size=size, columns=columns):
                yield self._pa.Table.from_batches([batch]).flatten().select(columns)
        except (self._pa.ArrowInvalid, OSError) as error:
            raise CorpusError(f"{self.path}: is damaged ({error}); fetch it again") from error


def _class_names(metadata: dict[bytes, bytes]) -> dict[str, list[str]]:
    """Columns of whole numbers that stand for names (``ClassLabel``), by what ``datasets`` notes in the schema."""
    try:
        noted = json.loads(metadata[b"huggingface"])["info"]["features"]
        return {name: feature["names"] for name, feature in noted.items() if feature.get("_type") == "ClassLabel"}
    except (KeyError, ValueError, TypeError, AttributeError):
        return {}


class ColumnReader:
    """Audio bytes by row, asked for in the order of the file."""

    def __init__(self) -> None:
        self._place: tuple[Path, str] | None = None
        self._next = 0
        self._values: Iterator[bytes | None] = iter(())

    def value(self, audio: Embedded) -> bytes | None:
        """The bytes of ``audio``; the same row may be asked for twice."""
        if self._place != (audio.path, audio.column) or audio.row < self._next - 1:
            self._place, self._next = (audio.path, audio.column), 0
            self._values = ArrowTable(audio.path).audio_bytes(audio.column)
        while self._next <= audio.row:
            self._last = next(self._values, None)
            self._next += 1
        return self._last


def tables_below(source: Path) -> list[Path]:
    """All Parquet files below ``source``, or where there are none all Arrow files, in the order of their names."""
    if source.is_file():
        return [source]
    found = ([p for p in sorted(source.rglob(f"*{s}")) if not p.name.startswith((".", "cache-"))] for s in SUFFIXES)
    return next(filter(None, found), [])
