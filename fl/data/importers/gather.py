"""Findings of an importer, sorted: records that can be used, what is left out and why, what is broken."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace

from fl.core.errors import CorpusError, TextError
from fl.data.importers.leakage import find_leaks
from fl.data.importers.records import Finding, LeftOut, Note, Problem, Record, file_of
from fl.data.importers.texts import REPLACEMENT
from fl.metrics.tokens import normalize_for_scoring
from fl.speech.text import fold_text, normalize_text

SHOWN = 10
Progress = Callable[[str, int, int], None]


@dataclass
class ImportTally:
    """What was not taken, and why."""

    left_out: Counter[str] = field(default_factory=Counter)
    examples: dict[str, str] = field(default_factory=dict)
    problems: list[Problem] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def add(self, found: LeftOut | Problem | Note) -> None:
        """Keep what is no record."""
        if isinstance(found, LeftOut):
            self.leave_out(found.where, found.reason)
        elif isinstance(found, Problem):
            self.problems.append(found)
        else:
            self.notes.append(found.message)

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
            shown = "\n".join(f"  {problem.message}" for problem in self.problems[:SHOWN])
            more = f"\n  and {len(self.problems) - SHOWN} more" if len(self.problems) > SHOWN else ""
            raise CorpusError(
                f"{len(self.problems)} utterances cannot be used:\n{shown}{more}\n--drop-bad leaves them out"
            )
        for problem in self.problems:
            self.leave_out(problem.where, problem.kind)
        self.problems.clear()


def gather(findings: Iterable[Finding], plain: bool, tally: ImportTally, show: Progress) -> list[Record]:
    """Records with a usable text and a unique id; all else goes to ``tally``."""
    records: list[Record] = []
    places: dict[str, str] = {}
    for number, found in enumerate(findings, 1):
        if isinstance(found, Record):
            found = with_clean_text(found, plain)
        if isinstance(found, Record) and found.id in places:
            found = Problem(found.where, "id twice", f"id {found.id!r} was already used in {places[found.id]}")
        if isinstance(found, Record):
            records.append(found)
            places[found.id] = found.where
        else:
            tally.add(found)
        if number % 500 == 0:
            show("labels", number, number)
    show("labels", len(records), len(records))
    return records


def with_clean_text(record: Record, plain: bool = False) -> Finding:
    """``record`` with its text in NFC, or why it has none that can be learned."""
    if REPLACEMENT in record.text:
        fault = "the text holds U+FFFD, left by a wrong decoding before: get the original text"
        return Problem(record.where, "damaged text", fault)
    if not fold_text(record.text) or (plain and not normalize_for_scoring(record.text)):
        return LeftOut(record.where, "no words in the text")
    try:
        text = normalize_text(normalize_for_scoring(record.text) if plain else record.text)
        pairs = tuple((normalize_text(matrix), normalize_text(latin)) for matrix, latin in record.loanwords)
    except TextError as error:
        return Problem(record.where, "damaged text", str(error))
    if plain:
        return replace(record, text=text, spans=(), loanwords=tuple((m.lower(), latin.lower()) for m, latin in pairs))
    return replace(record, text=text, loanwords=pairs)


def without_leaks(records: Sequence[Record], drop: bool, tally: ImportTally) -> list[Record]:
    """Records whose text is in no later split. Raises :class:`CorpusError` if there are others, unless ``drop`` leaves them out."""
    leaks = find_leaks(records)
    if leaks and not drop:
        shown = "\n".join(
            f"  {leak.record.where} ({leak.record.split}) and {leak.other.where} ({leak.other.split}): {leak.record.text[:60]!r}"
            for leak in leaks[:SHOWN]
        )
        raise CorpusError(
            f"{len(leaks)} of {len(records)} utterances say what a later split says too, so that a test would be known:\n{shown}\n"
            "--drop-leaking leaves them out of the earlier split; --splits own divides every device anew, by text"
        )
    for leak in leaks:
        tally.leave_out(leak.record.where, f"the text is in {leak.other.split} too")
    leaking = {leak.record.id for leak in leaks}
    return [record for record in records if record.id not in leaking]


def with_audio(records: Sequence[Record], tally: ImportTally) -> list[Record]:
    """Records whose audio, or the table that holds it, exists; the others are problems."""
    there = {path: path.is_file() for path in {file_of(record.audio) for record in records}}
    for record in records:
        if not there[file_of(record.audio)]:
            fault = f"no such audio file: {file_of(record.audio)}; --audio DIR names a further folder"
            tally.problems.append(Problem(record.where, "missing audio", fault))
    return [record for record in records if there[file_of(record.audio)]]
