"""Common Voice: one folder a language with lists (``train.tsv``, ``validated.tsv``) and ``clips``."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from fl.core.errors import CorpusError
from fl.core.paths import files_below
from fl.data.importers.marks import Marks
from fl.data.importers.places import AudioFolders
from fl.data.importers.records import Finding, Importer, Options, Record, split_name
from fl.data.importers.tables import ColumnNames, list_rows

COLUMNS = ColumnNames(
    text=("sentence",), audio=("path",), speaker=("client_id",), lang=("locale",), id=(), session=(), topic=()
)
# Some releases quote whole sentences as a CSV does, so that quotation marks within are doubled.
MARKS = Marks(rules=(('^"((?:[^"]|"")*)"$', r"\1"), ('""', '"'), ('^"([^"]*)"$', r"\1")))
LISTS = ("train", "dev", "test")
SPEAKER_DIGITS = 16
"""Of the 128 hexadecimal digits of a ``client_id``: enough that two people of a hundred thousand share them never."""


def read(source: Path, options: Options) -> Iterator[Finding]:
    """Records of the lists named in ``Options.parts``, of train, dev and test where none is.

    The lists are tab-separated and quote nothing: a sentence may begin with a quotation mark.
    """
    source = _language_folder(source)
    folders = AudioFolders(source / "clips", options)
    for name in options.parts or LISTS:
        path = source / f"{name}.tsv"
        if not path.is_file():
            there = ", ".join(p.stem for p in files_below(source, "*.tsv")) or "none"
            raise CorpusError(f"{path}: no such list; there are {there}: choose with --part")
        reader, rows = list_rows(path, options, COLUMNS, folders)
        for line, row in rows:
            found = reader.read(row, f"{path}:{line}", split_name(name))
            yield _named(found) if isinstance(found, Record) else found


def _language_folder(source: Path) -> Path:
    """``source``, or the one folder below it that has lists and clips, as in an archive that was just unpacked."""
    found = sorted({path.parent for path in files_below(source, "*.tsv") if (path.parent / "clips").is_dir()})
    if len(found) > 1:
        raise CorpusError(f"{source}: holds several languages ({', '.join(p.name for p in found)}); give one folder")
    return found[0] if found else source


def _named(record: Record) -> Record:
    audio = record.audio
    if isinstance(audio, Path) and not audio.suffix:  # the first releases leave the ending away
        audio = audio.with_suffix(".mp3")
    speaker = record.speaker[:SPEAKER_DIGITS] if record.speaker else None
    return replace(record, audio=audio, speaker=speaker, text=MARKS.clean(record.text, record.where))


IMPORTER = Importer(
    title="Common Voice, one language at a time",
    layout="LANGUAGE/train.tsv, dev.tsv, test.tsv, validated.tsv and clips/*.mp3",
    speakers="client_id (its first 16 digits); train, dev and test have different people: --part validated mixes them",
    licence="CC0-1.0",
    get="Mozilla Data Collective, after signing in; unpack, then give the folder of the language",
    read=read,
)
