"""What an importer finds in a corpus, before any of it is checked, and what it is told about the corpus.

An importer is a generator of findings. It opens label files only; audio is looked at later, when all texts are known to be
usable, so that a bad corpus is refused before hours are spent.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

FIELDS = ("id", "audio", "text", "speaker", "session", "topic", "lang", "start", "end", "split", "level", "utterances")
"""What ``Options.fields`` may rename; ``utterances`` is where a JSON document keeps its list."""

Order = Literal["", "spelling-first", "pronunciation-first"]
Transcript = Literal["spelling", "pronunciation"]


@dataclass(frozen=True)
class Embedded:
    """Audio as the encoded bytes of a file in row ``row`` (from 0) of ``column`` of a Parquet or Arrow table."""

    table: Path
    column: str
    row: int


@dataclass(frozen=True)
class RawPcm:
    """Audio without a header: 16-bit little-endian samples, 16 kHz, one channel, as AI Hub ships them."""

    path: Path


Audio = Path | Embedded | RawPcm


@dataclass(frozen=True)
class Record:
    """One utterance as the corpus has it. ``where`` is ``file:line``; ``start`` and ``end`` are seconds in ``audio``.

    ``split`` is the corpus's own; ``loanwords`` are pairs (matrix spelling, latin spelling), as in a manifest.
    """

    where: str
    id: str
    audio: Audio
    text: str
    speaker: str | None = None
    session: str | None = None
    topic: str | None = None
    split: str | None = None
    lang: str | None = None
    level: str | None = None
    start: float | None = None
    end: float | None = None
    loanwords: tuple[tuple[str, str], ...] = ()
    spans: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True)
class LeftOut:
    """An utterance that is sound but of no use here, such as one without words. ``reason`` is a heading to count under."""

    where: str
    reason: str


@dataclass(frozen=True)
class Problem:
    """An utterance that is broken. One of them stops the import unless bad ones are to be left out, under ``kind``."""

    where: str
    kind: str
    message: str


@dataclass(frozen=True)
class Note:
    """Something a person should know about the corpus as a whole; it goes into the summary."""

    message: str


Finding = Record | LeftOut | Problem | Note


@dataclass(frozen=True)
class Options:
    """What a person knows about a corpus and an importer must not guess.

    ``encoding`` of text files ("" is UTF-8); ``audio`` a further folder in which audio may lie; ``fields`` our name of a field
    -> the corpus's; ``parts`` read only these splits, lists or folders; ``order`` and ``transcript`` of dual transcripts;
    ``events`` whether marks of noise and hesitation are removed; ``local_speakers`` speaker ids count from the start in
    each file.
    """

    encoding: str = ""
    audio: Path | None = None
    fields: Mapping[str, str] = field(default_factory=dict)
    parts: tuple[str, ...] = ()
    order: Order = ""
    transcript: Transcript = "spelling"
    events: Literal["remove", "keep"] = "remove"
    local_speakers: bool = False

    def wants(self, *names: str) -> bool:
        """Whether a part with any of these names is to be read."""
        return not self.parts or any(name in self.parts for name in names)


@dataclass(frozen=True)
class Format:
    """A line of the table of importers. ``speakers`` says what becomes a device, ``get`` where the corpus comes from."""

    name: str
    title: str
    layout: str
    speakers: str
    licence: str
    get: str
    read: Callable[[Path, Options], Iterator[Finding]]


_SPLIT_NAMES = (
    (r"train(ing)?(?![a-z])", "train"),
    (r"(test|eval(uation)?|dev_?man|dev_?sge)(?![a-z])", "test"),
    (r"(val|valid(ation)?|dev(elopment)?)(?![a-z])", "validation"),
)


def split_name(name: str) -> str | None:
    """``train``, ``validation`` or ``test`` for the many names that corpora give them, None for any other.

    SEAME's ``devman`` and ``devsge`` are its test sets: its validation set is cut from the training set.
    """
    low = name.lower().replace("-", "_")
    return next((split for pattern, split in _SPLIT_NAMES if re.match(pattern, low)), None)
