"""The same words in training and in a test, which no error rate survives."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

from fl.data.importers.records import Record
from fl.speech.text import fold_text

_RANK = {"train": 0, "validation": 1, "test": 2}


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
    latest: dict[str, Record] = {}
    keys = {record.id: fold_text(record.text, record.loanwords) for record in records if record.split}
    for record in records:
        if record.split and _RANK[record.split] > _rank(latest.get(keys[record.id])):
            latest[keys[record.id]] = record
    return [
        Leak(record, latest[keys[record.id]])
        for record in records
        if record.split and _rank(latest[keys[record.id]]) > _RANK[record.split]
    ]


def shared_texts(records: Sequence[Record]) -> int:
    """How many texts are said by more than one speaker."""
    who: dict[str, set[str | None]] = defaultdict(set)
    for record in records:
        who[fold_text(record.text, record.loanwords)].add(record.speaker)
    return sum(len(speakers) > 1 for speakers in who.values())


def _rank(record: Record | None) -> int:
    return -1 if record is None or record.split is None else _RANK[record.split]
