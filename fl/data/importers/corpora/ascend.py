"""ASCEND: spontaneous Mandarin-English conversations, Parquet files below ``main``."""

from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from typing import Any

from fl.data.importers.marks import Marks
from fl.data.importers.records import Importer, Record
from fl.data.importers.tables import ColumnNames, table_records

COLUMNS = ColumnNames(text=("transcription",), audio=("audio",), speaker=("original_speaker_id",), lang=("language",))
MARKS = Marks(unusable={r"(?i)[\[<]unk[\]>]": "unintelligible speech"}, half_width=True)


def mend(record: Record, row: Mapping[str, Any]) -> Record:
    """Speaker ids are whole numbers, unique over the corpus; a transcript with ``[UNK]`` is not whole."""
    text = MARKS.clean(record.text, record.where)
    return replace(record, text=text, speaker=record.speaker and f"ascend-{record.speaker}")


IMPORTER = Importer(
    title="ASCEND, Mandarin-English, 10.6 h",
    layout="Parquet with audio inside (configuration main)",
    speakers="original_speaker_id",
    licence="CC-BY-SA-4.0",
    get="hf download CAiRE/ASCEND --repo-type dataset --local-dir DIR",
    read=partial(table_records, names=COLUMNS, mend=mend),
)
