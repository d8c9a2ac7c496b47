"""The manifest: JSON Lines, one utterance a line, the only form in which speech data enters training and scoring.

Required keys: ``audio`` (path relative to the manifest), ``text``, ``speaker``. Optional: ``id``, ``start`` and ``end``
(seconds), ``lang``, ``spans`` ([[word part, language], ...]), ``level`` (word, phrase or sentence), ``loanwords``
([[matrix spelling, latin spelling], ...]), ``session``, ``split`` (train, validation or test).
"""

import json
import os
from collections.abc import Iterable
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Annotated

from pydantic import AfterValidator, BeforeValidator, Field, TypeAdapter, ValidationError

from fl.core.errors import ManifestError, MetricError, TextError
from fl.core.files import write_atomically
from fl.core.paths import Names, readable
from fl.metrics.languages import check_spans
from fl.speech.text import normalize_text

LEVELS = ("word", "phrase", "sentence")
SPLITS = ("train", "validation", "test")
MAX_LINE_BYTES = 1 << 20
MAX_UTTERANCES = 5_000_000


def _filled(value: object) -> object:
    if isinstance(value, str) and (not value or "\0" in value):
        raise ValueError("is empty or holds a zero character")
    return value


def _numeral(value: object) -> object:
    """A whole number as its numeral: people are numbered."""
    return str(value) if isinstance(value, int) and not isinstance(value, bool) else _filled(value)


def _name(value: str) -> str:
    if not (name := readable(value)):
        raise ValueError("shows nothing to a reader")
    return name


def _transcript(value: str) -> str:
    try:
        return normalize_text(value)
    except TextError as error:
        raise ValueError(str(error)) from error


def _said(value: str) -> str:
    try:
        return normalize_text(value)
    except TextError:
        return value


Text = Annotated[str, AfterValidator(_transcript)]
Name = Annotated[str, BeforeValidator(_numeral), AfterValidator(_name)]
Pairs = tuple[tuple[Text, Text], ...]
Seconds = Annotated[float, Field(strict=True, ge=0, allow_inf_nan=False)]


@dataclass(frozen=True)
class Utterance:
    """One stretch of speech by one person, with its transcript in NFC. ``start`` and ``end`` (seconds) cut it out of a
    longer file; ``spans`` are word parts with their language, in order, () if unknown; ``loanwords`` are pairs of
    spellings (matrix script, latin) of words in the text that could be written either way. A text that is none stays as it is,
    for :mod:`fl.data.checked` to leave out."""

    id: Name
    audio: Annotated[Path, BeforeValidator(_filled)]
    text: Annotated[str, AfterValidator(_said)]
    speaker: Name
    start: Seconds | None = None
    end: Seconds | None = None
    lang: str | None = None
    spans: Pairs = ()
    level: Annotated[str, Field(pattern=f"^({'|'.join(LEVELS)})$")] | None = None
    loanwords: Pairs = ()
    session: Annotated[str, BeforeValidator(_numeral), AfterValidator(readable)] | None = None
    split: Annotated[str, Field(pattern=f"^({'|'.join(SPLITS)})$")] | None = None


FIELDS = tuple(field.name for field in fields(Utterance))
REQUIRED = ("audio", "text", "speaker")
FORMS = {
    "start": "a number of seconds from 0 up",
    "end": "a number of seconds from 0 up",
    "spans": "a list of pairs of strings (a word part and its language)",
    "loanwords": "a list of pairs of strings (a matrix and a latin spelling)",
    "level": f"one of {', '.join(LEVELS)}",
    "split": f"one of {', '.join(SPLITS)}",
}
"""What a key must be, in words; all others are strings."""

_ADAPTER = TypeAdapter(Utterance)
_ONE_A_LINE = "write one object a line, without brackets and commas between them"


def read_manifest(path: str | Path) -> list[Utterance]:
    """All utterances of a manifest, in order: see :func:`read_lines`. Raises :class:`ManifestError` for a text that is none, too."""
    found = read_lines(path)
    for number, utterance in found.items():
        try:
            normalize_text(utterance.text)
        except TextError as error:
            raise ManifestError(f"{path}:{number}: 'text': {error}") from error
    return list(found.values())


def read_lines(path: str | Path) -> dict[int, Utterance]:
    """The utterances of a manifest by their lines, in order; blank lines are skipped, an ``id`` defaults to ``<stem>:<line>``.

    Raises ManifestError ``file:line: what is wrong and what is allowed``. Audio files are not opened.
    """
    path = Path(path)
    if not path.is_file():
        raise ManifestError(f"{path}: no such manifest; make one with `idiolect synth` or list your recordings in it")
    utterances: dict[int, Utterance] = {}
    lines: dict[str, int] = {}
    names = Names()
    with path.open("rb") as file:
        number = 0
        while raw := file.readline(MAX_LINE_BYTES + 1):
            number += 1
            where = f"{path}:{number}"
            if len(raw) > MAX_LINE_BYTES:
                raise ManifestError(f"{where}: the line is longer than {MAX_LINE_BYTES} bytes; one utterance a line")
            if not raw.strip():
                continue
            utterance = parse_line(raw, path, number)
            if utterance.id in lines:
                raise ManifestError(f"{where}: id {utterance.id!r} was already used in line {lines[utterance.id]}")
            if len(utterances) >= MAX_UTTERANCES:
                raise ManifestError(f"{where}: more than {MAX_UTTERANCES} utterances; split the manifest")
            lines[utterance.id] = number
            if not str(utterance.audio).isascii():  # what is ASCII is written in one way
                utterance = replace(utterance, audio=names.find(utterance.audio))
            utterances[number] = utterance
    if not utterances:
        raise ManifestError(f"{path}: holds no utterances")
    return utterances


def write_manifest(path: str | Path, utterances: Iterable[Utterance]) -> None:
    """Write ``utterances`` with audio paths relative to the manifest's folder; complete or not at all."""
    path = Path(path)
    folder = path.parent.resolve()
    rows = []
    for utterance in utterances:
        row = {key: value for key, value in vars(utterance).items() if value is not None and value != ()}
        audio = Path(os.path.relpath(utterance.audio.resolve(), folder)).as_posix()
        rows.append(json.dumps({**row, "audio": audio}, ensure_ascii=False) + "\n")
    write_atomically(path, "".join(rows).encode())


def parse_line(raw: bytes, manifest: Path, number: int) -> Utterance:
    """The utterance of line ``number``. Raises ManifestError as :func:`read_lines`."""
    where = f"{manifest}:{number}"
    try:
        row = json.loads(raw.decode("utf-8-sig"))
    except (UnicodeDecodeError, json.JSONDecodeError, RecursionError) as error:
        hint = "this is UTF-16: save the file as UTF-8" if b"\0" in raw else _ONE_A_LINE
        raise ManifestError(f"{where}: not a JSON object in UTF-8 ({error}); {hint}") from error
    if not isinstance(row, dict):
        raise ManifestError(f"{where}: a line is one JSON object, this is a {type(row).__name__}; {_ONE_A_LINE}")
    if unknown := [key for key in row if key not in FIELDS]:
        raise ManifestError(f"{where}: unknown key {unknown[0]!r}; known: {', '.join(FIELDS)}")
    if missing := [key for key in REQUIRED if row.get(key) is None]:
        raise ManifestError(f"{where}: {missing[0]!r} is missing; required: {', '.join(REQUIRED)}")
    told = {key: value for key, value in row.items() if value is not None and (key, value) != ("id", "")}
    try:
        found = _ADAPTER.validate_python({"id": f"{manifest.stem}:{number}", **told})
    except ValidationError as error:
        fault = error.errors()[0]
        key = str(fault["loc"][0])
        if fault["type"] == "value_error":
            raise ManifestError(f"{where}: {key!r}: {fault['ctx']['error']}") from error
        must = f"must be {FORMS.get(key, 'a string')}, this is {row[key]!r}"
        raise ManifestError(f"{where}: {key!r} {must}") from None
    start = found.start or 0.0
    if found.end is not None and start >= found.end:
        raise ManifestError(f"{where}: 'start' {start} is not before 'end' {found.end} (seconds)")
    try:
        check_spans(found.text, found.spans)  # now, and not when hours of training are to be scored
    except MetricError as error:
        raise ManifestError(f"{where}: 'spans': {error}") from error
    return replace(found, audio=_place(manifest.parent, found.audio))


def _place(folder: Path, audio: Path) -> Path:
    """Where audio lies: ``~`` is the home folder, and ``\\`` separates folders unless a file is called so."""
    name = os.path.expanduser(audio)
    if "\\" in name and not (folder / name).is_file():
        name = name.replace("\\", "/")
    return Path(os.path.abspath(folder / name))
