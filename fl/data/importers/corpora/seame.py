"""SEAME: Mandarin-English from Singapore and Malaysia, as the LDC ships it or as a Kaldi recipe left it.

The name of a recording says who speaks: ``01NC01FBX_0101`` is conversation 01, place N, style C (conversation), speaker 01,
female, B (Singaporean), and a part; ``NI01MAX_0101`` is an interview. Numbers of speakers begin anew in each place and style, so
a device is called by place, style, number, sex and nationality: ``NC01FB``, ``NI01MA``.
"""

import re
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from fl.core.errors import CorpusError
from fl.core.paths import files_below
from fl.data.importers.formats import kaldi
from fl.data.importers.marks import Marks
from fl.data.importers.places import AudioFolders
from fl.data.importers.records import Finding, Importer, Options, Record, UnusableError, attempt, file_of
from fl.data.importers.texts import numbered_lines

_NAME = re.compile(r"(?:\d{2})?([A-Z][CI]\d{2}[MF][A-Z])[A-Z]_(\d{4})(?!\d)", re.IGNORECASE)
_MILLISECONDS = re.compile(r"[-_](\d+)-(\d+)$")
MARKS = Marks(
    unusable={r"(?i)<\s*un[kl][^<>]*>": "unintelligible speech"},  # <unk>, < unk >, <unl>
    rules=(
        (r"(?i)[(<]\s*pp[a-z]+\s*[)>]|(?<!\S)pp[lcbo](?!\S)", " "),  # paralinguistic: laughter, cough, breath, others
        (r"<[^<>]*>|(?i:\[(?:laugh\w*|cough\w*|breath\w*|noise|sniff|sigh)\])", " "),
        (r"[\[\]()#＃~～=]+", " "),  # said: particles ([ah], [啊]), hesitations ((er)), other languages (#nasi-lemak#)
    ),
    half_width=True,
)
LANGUAGES = {"EN": "en", "ZH": "zh", "CS": None}
LAST_PHASE = "phaseII"
"""It holds what phaseI holds, corrected, and only its lines name the language."""


def read(source: Path, options: Options) -> Iterator[Finding]:
    """Records of the LDC's tree or of Kaldi directories, whichever ``source`` is."""
    ldc = [path for path in files_below(source, "*.txt") if path.parts[-3:-1] == ("transcript", LAST_PHASE)]
    for found in _ldc(ldc, source, options) if ldc else kaldi.read(source, options, MARKS):
        yield found if ldc or not isinstance(found, Record) else _named(found)


def _named(record: Record) -> Finding:
    """``record`` with the speaker and the session that its id says, which recipes write into utt2spk in several ways."""
    match = _NAME.search(record.id)
    if match is None:
        fault = f"id {record.id!r} names no speaker of SEAME (like 01NC01FBX_0101-0-6010); use kaldi instead"
        return UnusableError(record.where, "unknown speaker", fault)
    speaker = match.group(1).upper()
    session = match.group(0).upper()
    if record.start is None and file_of(record.audio).stem.upper() == session and _MILLISECONDS.search(record.id):
        # several utterances of one recording, and no segments to say where: the times in ids have two units
        raise CorpusError(
            f"{record.where}: utterances of one recording, but no file segments beside it; ids give times in milliseconds or "
            "hundredths, depending on the recipe: write segments"
        )
    return replace(record, speaker=speaker, session=session)


def _ldc(paths: Sequence[Path], source: Path, options: Options) -> Iterator[Finding]:
    audio = AudioFolders(source, options)
    for path in paths:
        style = path.parents[2].name  # conversation, interview
        if options.wants(style):
            for number, line in numbered_lines(path, options.encoding):
                yield attempt(_line, path, number, line, style, audio, options)


def _line(path: Path, number: int, line: str, style: str, audio: AudioFolders, options: Options) -> Record:
    """A line of recording, start and end in milliseconds, language and text, with tabs between them."""
    where = f"{path}:{number}"
    match = _NAME.fullmatch(path.stem)
    if match is None:
        fault = f"{path.stem!r} names no speaker of SEAME; a name is like 01NC01FBX_0101"
        raise UnusableError(where, "unknown speaker", fault)
    _, start, end, language, text = parts if len(parts := line.split("\t", 4)) == 5 else [""] * 5
    if not (start.isdigit() and end.isdigit()) or language not in LANGUAGES:
        fault = "a line is recording, start, end (milliseconds), EN, ZH or CS, and text, with tabs between"
        raise UnusableError(where, "broken line", fault)
    return Record(
        where=where,
        id=f"{path.stem}-{int(start)}-{int(end)}",
        audio=audio.called(path.stem, where),
        text=MARKS.clean(text, where, keep=options.events == "keep"),
        speaker=match.group(1).upper(),
        session=path.stem.upper(),
        topic=style,
        lang=LANGUAGES[language],
        start=int(start) / 1000,
        end=int(end) / 1000,
    )


IMPORTER = Importer(
    title="SEAME, Mandarin-English, LDC2015S04",
    layout="the LDC's data/{conversation,interview}/{audio,transcript/phaseII}, or Kaldi directories of a recipe",
    speakers="in the name of the recording: place, style, number, sex, nationality",
    licence="LDC user agreement",
    get="the Linguistic Data Consortium, LDC2015S04; convert .sph or .flac as it comes",
    read=read,
)
