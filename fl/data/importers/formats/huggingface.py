"""Any dataset of Hugging Face's ``datasets``: Parquet with audio inside, ``save_to_disk``, or a folder of audio with a list."""

from collections.abc import Iterator
from pathlib import Path

from fl.core.errors import CorpusError
from fl.core.paths import files_below
from fl.data.importers.places import AudioFolders
from fl.data.importers.records import Finding, Importer, Options, UnusableError
from fl.data.importers.tables import ColumnNames, list_rows, parts_of, split_of, table_records, tables_below

COLUMNS = ColumnNames()
LISTS = ("metadata.csv", "metadata.jsonl")


def read(source: Path, options: Options) -> Iterator[Finding]:
    """Records of a folder of Parquet or Arrow files, else of its ``metadata.csv`` or ``metadata.jsonl`` files."""
    if tables_below(source):
        yield from table_records(source, options, COLUMNS)
        return
    lists = [path for name in LISTS for path in files_below(source, name)] if source.is_dir() else []
    if not lists:
        raise CorpusError(
            f"{source}: holds no Parquet or Arrow files and no {' or '.join(LISTS)}; give the downloaded folder"
        )
    for path in lists:
        reader, rows = list_rows(path, options, COLUMNS, AudioFolders(path, options))
        for line, row in rows:
            name = "" if isinstance(row, UnusableError) else reader.audio_name(row) or ""
            # a split is in the folder's name, of the list or of the audio below it
            split = split_of(path, source) or split_of(path.parent / name, path.parent)
            if options.wants(split or "", *parts_of(path, source)):
                yield reader.read(row, f"{path}:{line}", split)


IMPORTER = Importer(
    title="any speech dataset of the Hugging Face Hub",
    layout="Parquet with audio inside; save_to_disk (Arrow); a folder of audio with metadata.csv or metadata.jsonl",
    speakers="speaker, speaker_id, original_speaker_id or client_id; else topic or session",
    licence="its own",
    get="hf download OWNER/NAME --repo-type dataset --local-dir DIR --revision REVISION",
    read=read,
)
