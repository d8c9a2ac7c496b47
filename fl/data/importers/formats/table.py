"""A plain CSV or TSV file with a header, in any order of columns."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from fl.core.errors import CorpusError
from fl.data.importers.places import AudioFolders
from fl.data.importers.records import Finding, Importer, Options
from fl.data.importers.tables import ColumnNames, RowReader
from fl.data.importers.texts import read_table

COLUMNS = ColumnNames()
DELIMITERS = {".csv": ",", ".tsv": "\t", ".txt": "\t"}


def read(source: Path, options: Options) -> Iterator[Finding]:
    """Records of one file; audio paths are relative to its folder or to ``--audio``."""
    if source.suffix.lower() not in DELIMITERS or not source.is_file():
        raise CorpusError(
            f"{source}: give a file that ends in {', '.join(DELIMITERS)} (a tab separates in the last two)"
        )
    columns, rows = read_table(source, options.encoding, delimiter=DELIMITERS[source.suffix.lower()], quoted=True)
    reader = RowReader(COLUMNS.choose(columns, options, f"{source}:1"), AudioFolders(source, options))
    for line, row in rows:
        yield reader.from_file(row, f"{source}:{line}", None)


IMPORTER = Importer(
    title="your own CSV or TSV",
    layout="a header, one utterance a line: audio, text, speaker; session, topic, lang, split, start, end, id if there are any",
    speakers="the column speaker",
    licence="yours",
    get="write it; --field text=COLUMN names a column that is called otherwise",
    read=read,
)
