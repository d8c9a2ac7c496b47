"""From a row with named columns to a record: what CSV files, Common Voice and the tables of ``datasets`` have in common."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from fl.core.errors import CorpusError
from fl.data.importers.columns import Table, tables_below
from fl.data.importers.places import RAW_SUFFIXES, locate, roots_of
from fl.data.importers.records import Audio, Embedded, Finding, Options, Problem, RawPcm, Record, split_name
from fl.data.importers.texts import seconds
from fl.metrics.languages import SCRIPT_LANGUAGES


@dataclass(frozen=True)
class Names:
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
        chosen: dict[str, str] = {}
        for field, wanted in options.fields.items():
            if field != "utterances" and wanted not in columns:
                raise CorpusError(f"{where}: --field {field}={wanted}: no such column; there are {', '.join(columns)}")
            chosen[field] = wanted
        for field in self.__dataclass_fields__:
            for name in getattr(self, field):
                if field not in chosen and name in columns:
                    chosen[field] = name
        for field in ("text", "audio"):
            if field not in chosen:
                raise CorpusError(
                    f"{where}: no column for the {field}; there are {', '.join(columns)}; name it with --field {field}=COLUMN"
                )
        return chosen


def plain(value: Any) -> str | None:
    """A cell as a string, None where it is empty."""
    if value is None or isinstance(value, dict | list):
        return None
    text = str(value).strip()
    return text or None


def language(value: str | None) -> str | None:
    """``zh`` for ``zh-CN``; None for what names no single language, such as ASCEND's ``mixed``."""
    code = (value or "").replace("_", "-").split("-")[0].lower()
    return code if code.isalpha() and (len(code) in (2, 3) or code in SCRIPT_LANGUAGES.values()) else None


def make_record(
    row: Mapping[str, Any], chosen: Mapping[str, str], where: str, audio: Audio, split: str | None
) -> Finding:
    """The record of a row whose audio is known; a Problem for times that are no numbers or a split that has no name."""

    def cell(field: str) -> str | None:
        return plain(row.get(chosen[field])) if field in chosen else None

    try:
        start, end = seconds(cell("start")), seconds(cell("end"))
    except ValueError as error:
        return Problem(where, "broken times", f"{where}: {error}")
    own = cell("split")
    if own is not None and split_name(own) is None:
        return Problem(where, "unknown split", f"{where}: split {own!r} is not one of train, validation, test")
    return Record(
        where=where,
        id=cell("id") or "",
        audio=audio,
        text=cell("text") or "",
        speaker=cell("speaker"),
        session=cell("session"),
        topic=cell("topic"),
        split=split_name(own) if own else split,
        lang=language(cell("lang")),
        level=cell("level") if cell("level") in ("word", "phrase", "sentence") else None,
        start=start,
        end=end,
    )


def file_record(
    row: Mapping[str, Any], chosen: Mapping[str, str], where: str, roots: Sequence[Path], split: str | None
) -> Finding:
    """The record of a row that names an audio file; its id defaults to the file's stem."""
    name = plain(row.get(chosen["audio"]))
    if name is None:
        return Problem(where, "missing audio", f"{where}: column {chosen['audio']!r} is empty")
    path = locate(name, where, roots)
    found = make_record(row, chosen, where, RawPcm(path) if path.suffix.lower() in RAW_SUFFIXES else path, split)
    return replace(found, id=found.id or Path(name.replace("\\", "/")).stem) if isinstance(found, Record) else found


def split_of(path: Path, source: Path) -> str | None:
    """The split that the name of a file or of its folders says: ``data/train-00000-of-00005.parquet``, ``test/0000.parquet``."""
    relative = path.relative_to(source) if source.is_dir() else Path(path.name)
    for part in (relative.stem, *reversed(relative.parent.parts)):
        if split := split_name(part):
            return split
    return None


def wanted_tables(source: Path, options: Options) -> list[tuple[Path, str | None]]:
    """The tables below ``source`` that ``Options.parts`` wants, each with its split."""
    found = [(path, split_of(path, source)) for path in tables_below(source)]
    if not found:
        raise CorpusError(f"{source}: holds no Parquet or Arrow files; give the folder that was downloaded")
    kept = [
        (p, s)
        for p, s in found
        if options.wants(s or "", *p.relative_to(source if source.is_dir() else p.parent).parts)
    ]
    if not kept:
        raise CorpusError(
            f"{source}: --part {', '.join(options.parts)} fits none of its {len(found)} tables, like {found[0][0]}"
        )
    return kept


def table_records(source: Path, options: Options, names: Names) -> Iterator[tuple[Finding, Mapping[str, Any]]]:
    """Every row of the tables below ``source`` as a record, with the row itself for what only one corpus has."""
    roots = roots_of(source, options.audio)
    for path, split in wanted_tables(source, options):
        table = Table(path)
        chosen = names.choose(table.columns, options, str(path))
        embedded = chosen["audio"] in table.audio
        for index, row in enumerate(table.rows()):
            where = f"{path}:{index + 1}"
            if not embedded:
                yield file_record(row, chosen, where, roots, split), row
                continue
            inside = row.get(chosen["audio"]) or {}
            found = make_record(row, chosen, where, Embedded(path, chosen["audio"], index), split)
            if isinstance(found, Record) and not found.id:
                stem = Path(str(inside.get("path") or "")).stem
                found = replace(found, id=stem or f"{path.stem}-{index + 1}")
            yield found, row


def only(findings: Iterable[tuple[Finding, Mapping[str, Any]]]) -> Iterator[Finding]:
    """The findings alone."""
    for finding, _ in findings:
        yield finding
