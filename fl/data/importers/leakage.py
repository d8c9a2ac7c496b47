"""The same words in training and in a test, which no error rate survives."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

from fl.data.importers.records import Record
from fl.speech.text import fold_text

_RANK = {None: -1, "train": 0, "validation": 1, "test": 2}


@dataclass(frozen=True)
class Leak:
    """``record`` is in an earlier split than ``other``, which says the same words."""

    record: Record
    other: Record


def find_leaks(records: Sequence[Record]) -> list[Leak]:
    """Records whose text stands in a later split too (train before validation before test), in the order given.

    Texts are compared by :func:`fl.speech.text.fold_text`: case, punctuation and the spelling of loanwords make no difference.
    Records without a split leak into none: they are divided later, by text.
    """
    keys = {record.id: fold_text(record.text, record.loanwords) for record in records if record.split}
    latest: dict[str, Record] = {}
    for record in records:
        if (
            record.split
            and _RANK[record.split] > _RANK[latest[keys[record.id]].split if keys[record.id] in latest else None]
        ):
            latest[keys[record.id]] = record
    pairs = [(record, latest[keys[record.id]]) for record in records if record.split]
    return [Leak(record, other) for record, other in pairs if _RANK[other.split] > _RANK[record.split]]


def shared_texts(records: Sequence[Record]) -> int:
    """How many texts are said by more than one speaker."""
    who: dict[str, set[str | None]] = defaultdict(set)
    for record in records:
        who[fold_text(record.text, record.loanwords)].add(record.speaker)
    return sum(len(speakers) > 1 for speakers in who.values())
