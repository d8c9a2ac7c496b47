"""A manifest of ours, to check it against a base, to copy its audio beside it, or to name devices another way.

It may name audio anywhere; what lies outside its folder is taken only from ``--audio``, as in every corpus.
"""

from collections.abc import Iterator
from pathlib import Path

from fl.data.importers.records import Finding, Importer, Options, Record
from fl.data.importers.texts import numbered_lines
from fl.data.manifest import read_manifest


def read(source: Path, options: Options) -> Iterator[Finding]:
    """Records of a manifest; :func:`fl.data.manifest.read_manifest` says what is wrong with it."""
    for (number, _), spoken in zip(numbered_lines(source), read_manifest(source), strict=True):
        yield Record(where=f"{source}:{number}", **vars(spoken))


IMPORTER = Importer(
    title="a manifest of Idiolect",
    layout="manifest.jsonl",
    speakers="speaker",
    licence="the corpus's own",
    get="idiolect synth, or another import",
    read=read,
)
