"""zeroth_korean: read Korean. Its sentences are read by several people, also of both splits."""

from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from typing import Any

from fl.data.importers.records import Importer, Record
from fl.data.importers.tables import ColumnNames, table_records

COLUMNS = ColumnNames(
    text=("text",), audio=("audio",), speaker=("speaker_id",), session=("chapter_id",), topic=(), lang=()
)


def mend(record: Record, row: Mapping[str, Any]) -> Record:
    """``record`` in Korean, its speaker told from those of other corpora."""
    return replace(record, lang="ko", speaker=record.speaker and f"zeroth-{record.speaker}")


IMPORTER = Importer(
    title="zeroth_korean, Korean, 52.8 h",
    layout="Parquet with audio inside: id, speaker_id, chapter_id, path, audio, text",
    speakers="speaker_id (105 in train, 10 others in test)",
    licence="CC-BY-4.0",
    get="hf download kresnik/zeroth_korean --repo-type dataset --local-dir DIR",
    read=partial(table_records, names=COLUMNS, mend=mend),
)
