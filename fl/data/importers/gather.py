"""Findings of an importer, sorted: records that can be used, what is left out and why, what is broken, what would leak."""

import re
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from fl.core.errors import CorpusError, TextError
from fl.core.printing import first_of
from fl.data.checked import CheckText
from fl.data.importers.marks import remaining
from fl.data.importers.names import with_readable_names
from fl.data.importers.places import leads_out
from fl.data.importers.records import Finding, Record, UnusableError, file_of
from fl.data.importers.texts import REPLACEMENT
from fl.data.manifest import MAX_UTTERANCES, SPLITS
from fl.metrics.languages import SCRIPT_LANGUAGES, language_tags, matrix_language
from fl.metrics.tokens import normalize_for_scoring
from fl.speech.audio import SUFFIXES
from fl.speech.text import fold_text, normalize_text

ODD = {
    REPLACEMENT: "U+FFFD, from bytes that are no text or a wrong decoding before",
    "\r": "a carriage return in its middle, so that two lines may have become one",
}
"""Characters that no name and no text has, and what they are a sign of."""
_ENDINGS = "|".join(map(re.escape, (*SUFFIXES, ".pcm", ".sph")))
_FILE_NAME = re.compile(rf"\w+({_ENDINGS})(?![a-z0-9])", re.IGNORECASE)
Progress = Callable[[str, int, int], None]


@dataclass
class ImportTally:
    """What was not taken, and why; ``people`` are all speakers that were named."""

    left_out: Counter[str] = field(default_factory=Counter)
    examples: dict[str, str] = field(default_factory=dict)
    problems: list[UnusableError] = field(default_factory=list)
    people: set[str] = field(default_factory=set)
    notes: list[str] = field(default_factory=list)

    def add(self, found: UnusableError | str) -> None:
        """Keep what is no record."""
        if isinstance(found, str):
            self.notes.append(found)
        elif found.fault:
            self.problems.append(found)
        else:
            self.leave_out(found.where, found.reason)

    def leave_out(self, where: str, reason: str) -> None:
        """Count an utterance under ``reason``."""
        self.left_out[reason] += 1
        self.examples.setdefault(reason, where)

    def reasons(self) -> str:
        """What was left out, in one line."""
        return ", ".join(f"{count} {reason}" for reason, count in self.left_out.most_common()) or "no labels were found"

    def settle(self, drop_bad: bool) -> None:
        """Raise :class:`CorpusError` for the problems so far, or count them as left out."""
        if self.problems and not drop_bad:
            what = f"{len(self.problems)} utterances cannot be used:"
            shown = "\n  ".join([what, *first_of(self.problems)])
            raise CorpusError(f"{shown}\n--drop-bad leaves them out")
        for problem in self.problems:
            self.leave_out(problem.where, problem.reason)
        self.problems.clear()


def usable_records(findings: Iterable[Finding], plain: bool, tally: ImportTally, show: Progress) -> list[Record]:
    """Records with a usable text and its language, names as people read them, none twice; all else goes to ``tally``."""
    records: dict[tuple[object, ...], Record] = {}
    contested: dict[tuple[object, ...], None] = {}
    for number, found in enumerate(findings, 1):
        if number > MAX_UTTERANCES:
            raise CorpusError(f"more than {MAX_UTTERANCES:,} utterances; import the corpus in parts, with --part")
        if isinstance(found, Record):
            found = with_readable_names(found)
            tally.people |= {found.speaker or ""}
            found = _with_clean_text(found, plain)
        if not isinstance(found, Record):
            tally.add(found)
        elif (other := records.get(key := (found.audio, found.start, found.end))) is not None:
            fault = f"{_called(found)} was already used in {other.where}"
            tally.add(UnusableError(found.where, "recording twice", fault))
            if (other.text, other.speaker) != (found.text, found.speaker):
                contested[key] = None
        else:
            records[key] = replace(found, lang=spoken_languages(found)[1])
        if number % 500 == 0:
            show("labels", number, number)
    show("labels", len(records), len(records))
    for record in map(records.pop, contested):
        fault = f"{_called(record)} has another text or speaker further down"
        tally.add(UnusableError(record.where, "recording twice", fault))
    tally.notes.extend(remaining(records.values()))
    return list(records.values())


def _called(record: Record) -> str:
    return f"the recording of id {record.id!r} ({file_of(record.audio).name})"


def _with_clean_text(record: Record, plain: bool) -> Finding:
    """``record`` with its text in NFC, or why it has none that can be learned."""
    names = (record.text, record.id, record.speaker, record.session, str(file_of(record.audio)))
    if odd := next((sign for sign in ODD if any(name and sign in name for name in names)), ""):
        return UnusableError(record.where, "damaged text", f"the line holds {ODD[odd]}: get the original")
    if named := _FILE_NAME.search(record.text):
        fault = f"the text holds the file name {named.group()!r}: rows may have run together, look for a stray quotation mark"
        return UnusableError(record.where, "suspect text", fault)
    if not fold_text(record.text) or (plain and not normalize_for_scoring(record.text)):
        return UnusableError(record.where, "no words in the text")
    try:
        text = normalize_text(normalize_for_scoring(record.text) if plain else record.text)
        pairs = tuple((normalize_text(matrix), normalize_text(latin)) for matrix, latin in record.loanwords)
    except TextError as error:
        return UnusableError(record.where, "damaged text", str(error))
    if plain:
        return replace(record, text=text, spans=(), loanwords=tuple((m.lower(), latin.lower()) for m, latin in pairs))
    return replace(record, text=text, loanwords=pairs)


def spoken_languages(record: Record) -> tuple[str, str | None]:
    """The languages in a text, joined by "+" with the one of most words first, and that one: the corpus's own word for it, else
    by script (alphabets count as English unless the corpus says otherwise)."""
    alphabetic = record.lang if record.lang and record.lang not in SCRIPT_LANGUAGES.values() else "en"
    tags = language_tags(record.text, alphabetic=alphabetic)
    counts = Counter(tag for tag in tags if tag is not None)
    matrix = record.lang or matrix_language(tags)
    ordered = sorted(counts, key=lambda tag: (tag != matrix, -counts[tag], tag))
    return "+".join(ordered) or (matrix or "none"), matrix


def find_leaks(records: Sequence[Record]) -> list[tuple[Record, Record]]:
    """Records whose text stands in a later split too (train before validation before test), each with the last that has it.

    Texts are compared by :func:`fl.speech.text.fold_text`: case, punctuation and the spelling of loanwords make no difference.
    Records without a split leak into none: they are divided later, by text.
    """
    divided = [record for record in records if record.split]
    said = [(SPLITS.index(str(one.split)), fold_text(one.text, one.loanwords), one) for one in divided]
    latest: dict[str, tuple[int, Record]] = {}
    for rank, text, record in said:
        if text not in latest or rank > latest[text][0]:
            latest[text] = rank, record
    return [(record, latest[text][1]) for rank, text, record in said if latest[text][0] > rank]


def without_leaks(records: Sequence[Record], drop: bool, tally: ImportTally) -> list[Record]:
    """Records whose text is in no later split. Raises :class:`CorpusError` if there are others, unless ``drop`` leaves them out."""
    leaks = find_leaks(records)
    if leaks and not drop:
        what = f"{len(leaks)} of {len(records)} utterances say what a later split says too, so a test would be known:"
        shown = [f"{one.where} ({one.split}) and {o.where} ({o.split}): {one.text[:60]!r}" for one, o in leaks]
        remedy = "--drop-leaking leaves them out of the earlier split; --splits own divides every device anew, by text"
        raise CorpusError("\n  ".join([what, *first_of(shown)]) + f"\n{remedy}")
    for record, other in leaks:
        tally.leave_out(record.where, f"the text is in {other.split} too")
    leaking = {record.id for record, _ in leaks}
    return [record for record in records if record.id not in leaking]


def with_audio(records: Sequence[Record], roots: Sequence[Path], tally: ImportTally) -> list[Record]:
    """Records whose audio, or the table that holds it, exists and lies below one of ``roots``; the others are problems.

    Whatever a corpus uses to lead elsewhere (a link, ``..``, an absolute path) comes by here.
    """
    reasons = dict.fromkeys((path for record in records for path in record.files), "")
    for path in reasons:
        if not path.is_file():
            reasons[path] = "missing audio"
        elif leads_out(path, roots):
            reasons[path] = "audio outside the corpus"
    for record in records:
        for path in [path for path in record.files if reasons[path]][:1]:
            reason = reasons[path]
            fault = f"no such audio file: {path}" if reason == "missing audio" else f"{path} leads out of {roots[0]}"
            tally.add(UnusableError(record.where, reason, f"{fault}; --audio DIR names a further folder"))
    return [record for record in records if not any(reasons[path] for path in record.files)]


def fits(record: Record, seconds: float, check_text: CheckText | None, tally: ImportTally) -> bool:
    """Whether a base can be taught to write the text for so many seconds of speech; one that it cannot is a problem."""
    try:
        if check_text is not None:
            check_text(record.text, seconds)
    except TextError as error:
        tally.add(UnusableError(record.where, "a text that the base cannot write", str(error)))
        return False
    return True
