"""ASCEND: spontaneous Mandarin-English conversations, Parquet files below ``main``."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from fl.data.importers.records import Finding, Importer, LeftOut, Options, Record
from fl.data.importers.tables import ColumnNames, table_records

COLUMNS = ColumnNames(text=("transcription",), audio=("audio",), speaker=("original_speaker_id",), lang=("language",))
UNKNOWN = "[UNK]"


def read(source: Path, options: Options) -> Iterator[Finding]:
    """Records of ASCEND. Its speaker ids are whole numbers, unique over the corpus; a transcript with ``[UNK]`` is not whole."""
    for found, _ in table_records(source, options, COLUMNS):
        if not isinstance(found, Record):
            yield found
        elif UNKNOWN in found.text:
            yield LeftOut(found.where, "unintelligible speech")
        else:
            yield replace(found, speaker=found.speaker and f"ascend-{found.speaker}")


IMPORTER = Importer(
    title="ASCEND, Mandarin-English, 10.6 h",
    layout="Parquet with audio inside (configuration main)",
    speakers="original_speaker_id",
    licence="CC-BY-SA-4.0",
    get="hf download CAiRE/ASCEND --repo-type dataset",
    read=read,
)
