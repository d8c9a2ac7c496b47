"""SEAME: Mandarin-English from Singapore and Malaysia, as the LDC ships it or as a Kaldi recipe left it.

The name of a recording says who speaks: ``01NC01FBX_0101`` is conversation 01, place N, style C (conversation), speaker 01,
female, B (Singaporean), and a part; ``NI01MAX_0101`` is an interview. Numbers of speakers begin anew in each place and style, so
a device is called by place, style, number, sex and nationality: ``NC01FB``, ``NI01MA``.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from fl.core.errors import CorpusError
from fl.data.importers.formats import kaldi
from fl.data.importers.places import AudioIndex, roots_of
from fl.data.importers.records import Finding, Format, LeftOut, Options, Problem, Record
from fl.data.importers.texts import numbered_lines

_NAME = re.compile(r"(?:\d{2})?([A-Z][CI]\d{2}[MF][A-Z])[A-Z]_(\d{4})(?!\d)", re.IGNORECASE)
_MILLISECONDS = re.compile(r"[-_](\d+)-(\d+)$")
_EVENT = re.compile(r"<[^<>]*>|\(pp[a-z]\)|\[[^\[\]]*\]")  # <noise>, <unk>; paralinguistic (ppl); events in brackets
_UNKNOWN = "<unk>"
LANGUAGES = {"EN": "en", "ZH": "zh", "CS": None}
LAST_PHASE = "phaseII"
"""It holds what phaseI holds, corrected, and only its lines name the language."""


def read(source: Path, options: Options) -> Iterator[Finding]:
    """Records of the LDC's tree or of Kaldi directories, whichever ``source`` is."""
    found = _ldc(source, options) if any(source.rglob(f"transcript/{LAST_PHASE}")) else _kaldi(source, options)
    for finding in found:
        yield _clean(finding, options) if isinstance(finding, Record) else finding


def _kaldi(source: Path, options: Options) -> Iterator[Finding]:
    for folder in kaldi.data_folders(source):
        if not options.wants(folder.name):
            continue
        whole = not (folder / "segments").is_file()
        for finding in kaldi.read_folder(folder, source, options):
            yield _named(finding, whole) if isinstance(finding, Record) else finding


def _named(record: Record, whole: bool) -> Finding:
    """``record`` with the speaker and the session that its id says, which recipes write into utt2spk in several ways."""
    match = _NAME.search(record.id)
    if match is None:
        message = f"{record.where}: id {record.id!r} names no speaker of SEAME (like 01NC01FBX_0101-0-6010); use kaldi instead"
        return Problem(record.where, "unknown speaker", message)
    speaker = match.group(1).upper()
    session = match.group(0).upper()
    if (
        whole
        and isinstance(record.audio, Path)
        and record.audio.stem.upper() == session
        and _MILLISECONDS.search(record.id)
    ):
        # several utterances of one recording, and no segments to say where: the times in ids have two units
        raise CorpusError(
            f"{record.where}: utterances of one recording, but no file segments beside it; ids give times in milliseconds or "
            "hundredths, depending on the recipe: write segments"
        )
    return replace(record, speaker=speaker, session=session)


def _ldc(source: Path, options: Options) -> Iterator[Finding]:
    index = AudioIndex(roots_of(source, options.audio))
    for folder in sorted(source.rglob(f"transcript/{LAST_PHASE}")):
        style = folder.parent.parent.name  # conversation, interview
        if not options.wants(style):
            continue
        for path in sorted(folder.glob("*.txt")):
            yield from _transcript(path, style, index, options)


def _transcript(path: Path, style: str, index: AudioIndex, options: Options) -> Iterator[Finding]:
    """Lines of recording, start and end in milliseconds, language and text, with tabs between them."""
    match = _NAME.fullmatch(path.stem)
    if match is None:
        raise CorpusError(f"{path}:1: {path.stem!r} names no speaker of SEAME; a name is like 01NC01FBX_0101")
    audio = index.find(path.stem, f"{path}:1")
    for number, line in numbered_lines(path, options.encoding):
        where = f"{path}:{number}"
        if audio is None:
            yield Problem(
                where, "missing audio", f"{where}: no audio file is called {path.stem!r}; give its folder with --audio"
            )
            continue
        parts = line.split("\t", 4)
        if len(parts) < 5 or not (parts[1].isdigit() and parts[2].isdigit()) or parts[3] not in LANGUAGES:
            message = (
                f"{where}: a line is recording, start, end (milliseconds), EN, ZH or CS, and text, with tabs between"
            )
            yield Problem(where, "broken line", message)
            continue
        start, end = int(parts[1]), int(parts[2])
        yield Record(
            where=where,
            id=f"{path.stem}-{start}-{end}",
            audio=audio,
            text=parts[4],
            speaker=match.group(1).upper(),
            session=path.stem.upper(),
            topic=style,
            lang=LANGUAGES[parts[3]],
            start=start / 1000,
            end=end / 1000,
        )


def _clean(record: Record, options: Options) -> Finding:
    if _UNKNOWN in record.text.lower():
        return LeftOut(record.where, "unintelligible speech")
    if options.events == "keep":
        return record
    return replace(record, text=" ".join(_EVENT.sub(" ", record.text).split()))


FORMAT = Format(
    name="seame",
    title="SEAME, Mandarin-English, LDC2015S04",
    layout="the LDC's data/{conversation,interview}/{audio,transcript/phaseII}, or Kaldi directories of a recipe",
    speakers="in the name of the recording: place, style, number, sex, nationality",
    licence="LDC user agreement",
    get="the Linguistic Data Consortium, LDC2015S04; convert .sph or .flac as it comes",
    read=read,
)
