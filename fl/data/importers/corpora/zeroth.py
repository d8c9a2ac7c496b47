"""zeroth_korean: read Korean. Its sentences are read by several people, also of both splits."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from fl.data.importers.records import Finding, Importer, Options, Record
from fl.data.importers.tables import ColumnNames, table_records

COLUMNS = ColumnNames(
    text=("text",), audio=("audio",), speaker=("speaker_id",), session=("chapter_id",), topic=(), lang=()
)


def read(source: Path, options: Options) -> Iterator[Finding]:
    """Records of zeroth_korean, in Korean."""
    for found, _ in table_records(source, options, COLUMNS):
        if isinstance(found, Record):
            found = replace(found, lang="ko", speaker=found.speaker and f"zeroth-{found.speaker}")
        yield found


IMPORTER = Importer(
    title="zeroth_korean, Korean, 52.8 h",
    layout="Parquet with audio inside: id, speaker_id, chapter_id, path, audio, text",
    speakers="speaker_id (105 in train, 10 others in test)",
    licence="CC-BY-4.0",
    get="hf download kresnik/zeroth_korean --repo-type dataset",
    read=read,
)
