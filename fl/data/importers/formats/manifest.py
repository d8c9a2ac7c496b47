"""A manifest of ours, to check it against a base, to copy its audio beside it, or to name devices another way.

It may name audio anywhere; what lies outside its folder is taken only from ``--audio``, as in every corpus.
"""

from collections.abc import Iterator
from pathlib import Path

from fl.core.errors import ManifestError
from fl.core.paths import Names
from fl.data.importers.records import Finding, Importer, Options, Record, UnusableError
from fl.data.importers.texts import numbered_lines
from fl.data.manifest import parse_line


def read(source: Path, options: Options) -> Iterator[Finding]:
    """Records of a manifest; :func:`fl.data.manifest.parse_line` says what is wrong with a line."""
    names = Names()
    for number, line in numbered_lines(source, options.encoding):
        where = f"{source}:{number}"
        try:
            utterance = parse_line(line.encode(), source, number)
            yield Record(where=where, **{**vars(utterance), "audio": names.find(utterance.audio)})
        except ManifestError as error:
            yield UnusableError(where, "broken line", str(error).removeprefix(f"{where}: "))


IMPORTER = Importer(
    title="a manifest of Idiolect",
    layout="manifest.jsonl",
    speakers="speaker",
    licence="the corpus's own",
    get="idiolect synth, or another import",
    read=read,
)
