"""A plain CSV or TSV file with a header, in any order of columns."""

from collections.abc import Iterator
from pathlib import Path

from fl.core.errors import CorpusError
from fl.data.importers.places import AudioFolders
from fl.data.importers.records import Finding, Importer, Options
from fl.data.importers.tables import DELIMITERS, ColumnNames, list_rows


def read(source: Path, options: Options) -> Iterator[Finding]:
    """Records of one file; audio paths are relative to its folder or to ``--audio``."""
    if source.suffix.lower() not in DELIMITERS or not source.is_file():
        raise CorpusError(f"{source}: give a file that ends in {', '.join(DELIMITERS)}")
    reader, rows = list_rows(source, options, ColumnNames(), AudioFolders(source, options))
    for line, row in rows:
        yield reader.read(row, f"{source}:{line}", None)


IMPORTER = Importer(
    title="your own CSV or TSV",
    layout="a header, one utterance a line: audio, text, speaker; session, topic, lang, split, start, end, id if there are any",
    speakers="the column speaker",
    licence="yours",
    get="write it; --field text=COLUMN names a column that is called otherwise",
    read=read,
)
