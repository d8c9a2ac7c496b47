"""The manifest: JSON Lines, one utterance a line, the only form in which speech data enters training and scoring.

Required keys: ``audio`` (path relative to the manifest), ``text``, ``speaker``. Optional: ``id``, ``start`` and ``end``
(seconds), ``lang``, ``spans`` ([[word part, language], ...]), ``level`` (word, phrase or sentence), ``loanwords``
([[matrix spelling, latin spelling], ...]), ``session``, ``split`` (train, validation or test).
"""

import json
import math
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from fl.core.errors import ManifestError, MetricError, TextError
from fl.core.files import PUBLIC, write_atomically
from fl.metrics.languages import check_spans
from fl.speech.text import normalize_text

LEVELS = ("word", "phrase", "sentence")
SPLITS = ("train", "validation", "test")
MAX_LINE_BYTES = 1 << 20
MAX_UTTERANCES = 5_000_000

REQUIRED_KEYS = ("audio", "text", "speaker")
OPTIONAL_KEYS = ("id", "start", "end", "lang", "spans", "level", "loanwords", "session", "split")


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
            utterance = _Line(where, _decode(raw, where)).utterance(path, number)
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
    for key in ("start", "end", "lang", "spans", "level", "loanwords", "session", "split"):
        value = getattr(utterance, key)
        if value is not None and value != ():
            row[key] = value
    return row


def _decode(raw: bytes, where: str) -> dict[str, Any]:
    try:
        value = json.loads(raw.decode("utf-8-sig"))
    except (UnicodeDecodeError, json.JSONDecodeError, RecursionError) as error:
        raise ManifestError(f"{where}: not a JSON object in UTF-8 ({error})") from error
    if not isinstance(value, dict):
        raise ManifestError(f"{where}: a line is one JSON object, this is a {type(value).__name__}")
    return value


class _Line:
    """Typed access to the fields of one line; every error names the file and the line."""

    def __init__(self, where: str, row: dict[str, Any]) -> None:
        self._where, self._row = where, row
        for key in row:
            if key not in (*REQUIRED_KEYS, *OPTIONAL_KEYS):
                self._fail(f"unknown key {key!r}; known: {', '.join((*REQUIRED_KEYS, *OPTIONAL_KEYS))}")
        for key in REQUIRED_KEYS:
            if row.get(key) is None:
                self._fail(f"{key!r} is missing; required: {', '.join(REQUIRED_KEYS)}")

    def utterance(self, manifest: Path, number: int) -> Utterance:
        """The line as an Utterance, checked as a whole."""
        start, end = self._seconds("start"), self._seconds("end")
        if end is not None and (start or 0.0) >= end:
            self._fail(f"'start' {start or 0.0} is not before 'end' {end} (seconds)")
        text, spans = self._transcript(), self._pairs("spans", "a word part and its language")
        try:
            check_spans(text, spans)  # now, and not when hours of training are to be scored
        except MetricError as error:
            self._fail(f"'spans': {error}")
        return Utterance(
            id=self._string("id") or f"{manifest.stem}:{number}",
            audio=Path(os.path.abspath(manifest.parent / self._required("audio"))),
            text=text,
            speaker=self._required("speaker"),
            start=start,
            end=end,
            lang=self._string("lang"),
            spans=spans,
            level=self._choice("level", LEVELS),
            loanwords=self._pairs("loanwords", "a matrix and a latin spelling"),
            session=self._string("session"),
            split=self._choice("split", SPLITS),
        )

    def _transcript(self) -> str:
        try:
            return normalize_text(self._string("text") or "")
        except TextError as error:
            self._fail(f"'text': {error}")

    def _required(self, key: str) -> str:
        value = self._string(key)
        if not value or "\0" in value:
            self._fail(f"{key!r} is empty or holds a zero character")
        return value

    def _string(self, key: str) -> str | None:
        value = self._row.get(key)
        if value is not None and not isinstance(value, str):
            self._fail(f"{key!r} must be a string, this is {value!r}")
        return value

    def _seconds(self, key: str) -> float | None:
        value = self._row.get(key)
        if value is None:
            return None
        if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value) or value < 0:
            self._fail(f"{key!r} must be a number of seconds from 0 up, this is {value!r}")
        return float(value)

    def _choice(self, key: str, allowed: Sequence[str]) -> str | None:
        value = self._string(key)
        if value is not None and value not in allowed:
            self._fail(f"{key!r} must be one of {', '.join(allowed)}, this is {value!r}")
        return value

    def _pairs(self, key: str, meaning: str) -> tuple[tuple[str, str], ...]:
        value = self._row.get(key)
        if value is None:
            return ()
        if not isinstance(value, list) or not all(
            isinstance(pair, list) and len(pair) == 2 and all(isinstance(item, str) for item in pair) for pair in value
        ):
            self._fail(f"{key!r} must be a list of pairs of strings ({meaning}), this is {value!r}")
        try:
            return tuple((normalize_text(first), normalize_text(second)) for first, second in value)
        except TextError as error:
            self._fail(f"{key!r}: {error}")

    def _fail(self, message: str) -> NoReturn:
        raise ManifestError(f"{self._where}: {message}")
