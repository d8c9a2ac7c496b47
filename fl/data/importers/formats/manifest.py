"""A manifest of ours, to check it against a base, to copy its audio beside it, or to name devices another way."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from fl.data.importers.records import Finding, Format, Options, Record
from fl.data.importers.texts import numbered_lines
from fl.data.manifest import read_manifest


def read(source: Path, options: Options) -> Iterator[Finding]:
    """Records of a manifest; :func:`fl.data.manifest.read_manifest` says what is wrong with it."""
    spoken_lines = zip(numbered_lines(source), read_manifest(source), strict=True)
    for (number, _), spoken in spoken_lines:
        yield Record(
            where=f"{source}:{number}",
            id=spoken.id,
            audio=spoken.audio,
            text=spoken.text,
            speaker=spoken.speaker,
            session=spoken.session,
            split=spoken.split,
            lang=spoken.lang,
            level=spoken.level,
            start=spoken.start,
            end=spoken.end,
            loanwords=spoken.loanwords,
            spans=spoken.spans,
        )


FORMAT = Format(
    name="manifest",
    title="a manifest of Idiolect",
    layout="manifest.jsonl",
    speakers="speaker",
    licence="the corpus's own",
    get="idiolect synth, or another import",
    read=read,
)
