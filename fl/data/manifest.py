"""The manifest: JSON Lines, one utterance a line, the only form in which speech data enters training and scoring.

Required keys: ``audio`` (path relative to the manifest), ``text``, ``speaker``. Optional: ``id``, ``start`` and ``end``
(seconds), ``lang``, ``spans`` ([[word part, language], ...]), ``level`` (word, phrase or sentence), ``loanwords``
([[matrix spelling, latin spelling], ...]), ``session``, ``split`` (train, validation or test).
"""

import json
import math
import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from fl.core.errors import ManifestError, MetricError, TextError
from fl.core.files import PUBLIC, write_atomically
from fl.metrics.languages import check_spans
from fl.speech.text import normalize_text

LEVELS = ("word", "phrase", "sentence")
SPLITS = ("train", "validation", "test")
MAX_LINE_BYTES = 1 << 20
MAX_UTTERANCES = 5_000_000


@dataclass(frozen=True)
class Utterance:
    """One stretch of speech by one person, with its transcript in NFC. ``start`` and ``end`` (seconds) cut it out of a
    longer file; ``spans`` are word parts with their language, in order, () if unknown; ``loanwords`` are pairs of
    spellings (matrix script, latin) of words in the text that could be written either way."""

    id: str
    audio: Path
    text: str
    speaker: str
    start: float | None = None
    end: float | None = None
    lang: str | None = None
    spans: tuple[tuple[str, str], ...] = ()
    level: str | None = None
    loanwords: tuple[tuple[str, str], ...] = ()
    session: str | None = None
    split: str | None = None


def read_manifest(path: str | Path) -> list[Utterance]:
    """All utterances of a manifest, in order; blank lines are skipped, an ``id`` defaults to ``<stem>:<line>``.

    Raises ManifestError ``file:line: what is wrong and what is allowed``. Audio files are not opened.
    """
    path = Path(path)
    if not path.is_file():
        raise ManifestError(f"{path}: no such manifest; make one with `idiolect synth` or list your recordings in it")
    utterances: list[Utterance] = []
    lines: dict[str, int] = {}
    with path.open("rb") as file:
        number = 0
        while raw := file.readline(MAX_LINE_BYTES + 1):
            number += 1
            where = f"{path}:{number}"
            if len(raw) > MAX_LINE_BYTES:
                raise ManifestError(f"{where}: the line is longer than {MAX_LINE_BYTES} bytes; one utterance a line")
            if not raw.strip():
                continue
            utterance = _utterance(_decode(raw, where), where, path, number)
            if utterance.id in lines:
                raise ManifestError(f"{where}: id {utterance.id!r} was already used in line {lines[utterance.id]}")
            if len(utterances) >= MAX_UTTERANCES:
                raise ManifestError(f"{where}: more than {MAX_UTTERANCES} utterances; split the manifest")
            lines[utterance.id] = number
            utterances.append(utterance)
    if not utterances:
        raise ManifestError(f"{path}: holds no utterances")
    return utterances


def write_manifest(path: str | Path, utterances: Iterable[Utterance]) -> None:
    """Write ``utterances`` with audio paths relative to the manifest's folder; complete or not at all."""
    path = Path(path)
    lines = (json.dumps(_row(utterance, path.parent), ensure_ascii=False) + "\n" for utterance in utterances)
    write_atomically(path, "".join(lines).encode(), mode=PUBLIC)


def _row(utterance: Utterance, folder: Path) -> dict[str, Any]:
    """The JSON object of one utterance, without the keys that hold nothing."""
    row: dict[str, Any] = {
        "id": utterance.id,
        "audio": Path(os.path.relpath(utterance.audio.resolve(), folder.resolve())).as_posix(),
        "text": utterance.text,
        "speaker": utterance.speaker,
    }
    rest = {key: getattr(utterance, key) for key in FIELDS if key not in row}
    return row | {key: value for key, value in rest.items() if value is not None and value != ()}


def _decode(raw: bytes, where: str) -> dict[str, Any]:
    try:
        value = json.loads(raw.decode("utf-8-sig"))
    except (UnicodeDecodeError, json.JSONDecodeError, RecursionError) as error:
        raise ManifestError(f"{where}: not a JSON object in UTF-8 ({error})") from error
    if not isinstance(value, dict):
        raise ManifestError(f"{where}: a line is one JSON object, this is a {type(value).__name__}")
    return value


def _utterance(row: dict[str, Any], where: str, manifest: Path, number: int) -> Utterance:
    """The utterance of one line; every error names the file and the line."""
    if unknown := [key for key in row if key not in FIELDS]:
        raise ManifestError(f"{where}: unknown key {unknown[0]!r}; known: {', '.join(FIELDS)}")
    if missing := [key for key in REQUIRED if row.get(key) is None]:
        raise ManifestError(f"{where}: {missing[0]!r} is missing; required: {', '.join(REQUIRED)}")
    found: dict[str, Any] = {}
    for key in (key for key in FIELDS if row.get(key) is not None):
        try:
            found[key] = FIELDS[key](row[key])
        except ValueError as error:
            raise ManifestError(f"{where}: {key!r} {error}, this is {row[key]!r}") from None
        except TextError as error:
            raise ManifestError(f"{where}: {key!r}: {error}") from error
    start, end = found.get("start", 0.0), found.get("end")
    if end is not None and start >= end:
        raise ManifestError(f"{where}: 'start' {start} is not before 'end' {end} (seconds)")
    try:
        check_spans(found["text"], found.get("spans", ()))  # now, and not when hours of training are to be scored
    except MetricError as error:
        raise ManifestError(f"{where}: 'spans': {error}") from error
    audio = Path(os.path.abspath(manifest.parent / found["audio"]))
    return Utterance(**{**found, "id": found.get("id") or f"{manifest.stem}:{number}", "audio": audio})


# One value each, as JSON has it; ValueError says what it must be.


def _string(value: object) -> str:
    if not isinstance(value, str):
        raise ValueError("must be a string")
    return value


def _filled(value: object) -> str:
    if not (text := _string(value)) or "\0" in text:
        raise ValueError("is empty or holds a zero character")
    return text


def _transcript(value: object) -> str:
    return normalize_text(_string(value))


def _seconds(value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value) or value < 0:
        raise ValueError("must be a number of seconds from 0 up")
    return float(value)


def _choice(allowed: Sequence[str], value: object) -> str:
    if _string(value) not in allowed:
        raise ValueError(f"must be one of {', '.join(allowed)}")
    return str(value)


def _pairs(meaning: str, value: object) -> tuple[tuple[str, str], ...]:
    if not isinstance(value, list) or not all(
        isinstance(pair, list) and len(pair) == 2 and all(isinstance(item, str) for item in pair) for pair in value
    ):
        raise ValueError(f"must be a list of pairs of strings ({meaning})")
    return tuple((normalize_text(first), normalize_text(second)) for first, second in value)


FIELDS: dict[str, Callable[[Any], Any]] = {
    "audio": _filled,
    "text": _transcript,
    "speaker": _filled,
    "id": _string,
    "start": _seconds,
    "end": _seconds,
    "lang": _string,
    "spans": partial(_pairs, "a word part and its language"),
    "level": partial(_choice, LEVELS),
    "loanwords": partial(_pairs, "a matrix and a latin spelling"),
    "session": _string,
    "split": partial(_choice, SPLITS),
}
REQUIRED = ("audio", "text", "speaker")
