"""What an importer finds in a corpus, before any of it is checked, and what it is told about the corpus.

An importer is a generator of findings. It opens label files only; audio is looked at later, when all texts are known to be
usable, so that a bad corpus is refused before hours are spent.
"""

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, ParamSpec, TypeVar

from fl.core.paths import readable

FIELDS = ("id", "audio", "text", "speaker", "session", "topic", "lang", "start", "end", "split", "level", "utterances")
"""What ``Options.fields`` may rename; ``utterances`` is where a JSON document keeps its list."""

P = ParamSpec("P")
Made = TypeVar("Made")
Order = Literal["", "spelling-first", "pronunciation-first"]
Transcript = Literal["spelling", "pronunciation"]


@dataclass(frozen=True)
class Embedded:
    """Audio as the encoded bytes of a file in row ``row`` (from 0) of ``column`` of the Parquet or Arrow table at ``path``."""

    path: Path
    column: str
    row: int


AudioPlace = Path | Embedded


def file_of(audio: AudioPlace) -> Path:
    """The file that ``audio`` is or lies in."""
    return audio.path if isinstance(audio, Embedded) else audio


@dataclass(frozen=True)
class Record:
    """One utterance as the corpus has it. ``where`` is ``file:line``; ``start`` and ``end`` are seconds in ``audio``.

    ``split`` is the corpus's own; ``loanwords`` are pairs (matrix spelling, latin spelling), as in a manifest. ``then`` are
    recordings that belong to the utterance too, each after a pause.
    """

    where: str
    id: str
    audio: AudioPlace
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
    then: tuple[Path, ...] = ()

    @property
    def files(self) -> tuple[Path, ...]:
        """All that must be there to hear it."""
        return file_of(self.audio), *self.then


class UnusableError(Exception):
    """One utterance that becomes no record: yielded, or raised where it is read, for :func:`attempt` to return.

    Without a ``fault`` it is sound but of no use here, such as one without words, and is counted under ``reason``. With one it
    is broken, which stops the import unless bad utterances are to be left out.
    """

    def __init__(self, where: str, reason: str, fault: str = "") -> None:
        super().__init__(f"{where}: {fault or reason}")
        self.where, self.reason, self.fault = where, reason, fault


Finding = Record | UnusableError | str
"""A string is a note of what a person should know about the corpus as a whole; it goes into the summary."""


def attempt(make: Callable[P, Made], *arguments: P.args, **options: P.kwargs) -> Made | UnusableError:
    """What ``make`` returns, or why the utterance cannot be used."""
    try:
        return make(*arguments, **options)
    except UnusableError as refusal:
        return refusal.with_traceback(None)  # its frames would keep whole label files in memory


def seconds(value: object, where: str) -> float | None:
    """A time in seconds from a number or a numeral, None where there is none. Raises :class:`UnusableError` for anything else."""
    if value is None or (isinstance(value, str) and not value.strip()):
        return None
    try:
        number = float(value) if isinstance(value, int | float | str) and not isinstance(value, bool) else -1.0
    except ValueError:
        number = -1.0
    if not 0 <= number < float("inf"):
        raise UnusableError(where, "broken times", f"{value!r} is not a number of seconds from 0 up")
    return number


@dataclass(frozen=True)
class Options:
    """What a person knows about a corpus and an importer must not guess.

    ``encoding`` of text files ("" is UTF-8); ``audio`` a further folder in which audio may lie; ``fields`` our name of a field
    -> the corpus's; ``parts`` read only these splits, lists or folders; ``order`` and ``transcript`` of dual transcripts;
    ``events`` whether marks of noise and hesitation are removed; ``local_speakers`` speaker ids count from the start in
    each file; ``quoted`` quotation marks enclose cells between tabs too.
    """

    encoding: str = ""
    audio: Path | None = None
    fields: Mapping[str, str] = field(default_factory=dict)
    parts: tuple[str, ...] = ()
    order: Order = ""
    transcript: Transcript = "spelling"
    events: Literal["remove", "keep"] = "remove"
    local_speakers: bool = False
    quoted: bool = False

    def wants(self, *names: str) -> bool:
        """Whether a part with any of these names is to be read."""
        return not self.parts or not {*map(readable, names)}.isdisjoint(map(readable, self.parts))


@dataclass(frozen=True)
class Importer:
    """A row of :data:`fl.data.importers.table.IMPORTERS`: what a person should know, and ``read``, which yields what is found.

    ``speakers`` says what becomes a device, ``get`` where the corpus comes from. ``read`` raises :class:`fl.core.errors.CorpusError` for a
    corpus that cannot be read at all.
    """

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
