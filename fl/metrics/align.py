"""Counts of errors that add up, and the alignment (jiwer) that they come from."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Literal

import jiwer

from fl.core.errors import MetricError

Operation = Literal["equal", "substitute", "delete", "insert"]


@dataclass(frozen=True)
class Counts:
    """Errors over reference tokens. Counts add up (``+``, ``sum``); a rate is formed only when it is shown."""

    substitutions: int = 0
    deletions: int = 0
    insertions: int = 0
    reference: int = 0

    @property
    def errors(self) -> int:
        """Substitutions, deletions and insertions together."""
        return self.substitutions + self.deletions + self.insertions

    @property
    def rate(self) -> float | None:
        """Errors per reference token: 0 is perfect, insertions can take it above 1, ``None`` without a reference."""
        return self.errors / self.reference if self.reference else None

    def __add__(self, other: "Counts | int") -> "Counts":
        if isinstance(other, Counts):
            return Counts(
                self.substitutions + other.substitutions,
                self.deletions + other.deletions,
                self.insertions + other.insertions,
                self.reference + other.reference,
            )
        return self if other == 0 else NotImplemented  # sum() starts from 0

    __radd__ = __add__

    def as_dict(self) -> dict[str, int]:
        """The four numbers by name, as results.jsonl holds them."""
        return asdict(self)

    @classmethod
    def from_dict(cls, row: Mapping[str, object]) -> "Counts":
        """The inverse of :meth:`as_dict`. Raises :class:`MetricError` for a name that is missing or not a count."""
        values: list[int] = []
        for name in ("substitutions", "deletions", "insertions", "reference"):
            value = row.get(name)
            if not isinstance(value, int) or isinstance(value, bool) or value < 0:
                raise MetricError(
                    f"counts need a non-negative integer {name!r}, got {value!r}: write them with as_dict"
                )
            values.append(value)
        return cls(*values)


@dataclass(frozen=True)
class Edit:
    """One step of an alignment.

    ``reference`` and ``hypothesis`` are token positions. For an insertion ``reference`` is the position of the
    token that it precedes (the number of reference tokens where it follows the last), for a deletion
    ``hypothesis`` is defined likewise.
    """

    operation: Operation
    reference: int
    hypothesis: int


@dataclass(frozen=True)
class Alignment:
    """A shortest edit path between two token sequences."""

    counts: Counts
    edits: tuple[Edit, ...]


def align(reference: Sequence[str], hypothesis: Sequence[str]) -> Alignment:
    """Aligns tokens with jiwer. Either side may be empty, and a token may hold anything, spaces included."""
    output = _process(reference, hypothesis)
    return Alignment(_counts(output), tuple(_edits(output)))


def count_errors(reference: Sequence[str], hypothesis: Sequence[str]) -> Counts:
    """The counts of :func:`align` without the path."""
    return _counts(_process(reference, hypothesis))


def _process(reference: Sequence[str], hypothesis: Sequence[str]) -> jiwer.WordOutput:
    # Tokens go in ready-made, one sentence a side: the transforms, which would split strings again, do nothing.
    return jiwer.process_words(
        [list(reference)], [list(hypothesis)], reference_transform=_as_is, hypothesis_transform=_as_is
    )


def _as_is(sentences: list[list[str]]) -> list[list[str]]:
    return sentences


def _counts(output: jiwer.WordOutput) -> Counts:
    return Counts(output.substitutions, output.deletions, output.insertions, len(output.references[0]))


def _edits(output: jiwer.WordOutput) -> Iterator[Edit]:
    for chunk in output.alignments[0]:
        reference_length = chunk.ref_end_idx - chunk.ref_start_idx
        hypothesis_length = chunk.hyp_end_idx - chunk.hyp_start_idx
        for step in range(max(reference_length, hypothesis_length)):
            yield Edit(
                chunk.type,
                chunk.ref_start_idx + min(step, reference_length),
                chunk.hyp_start_idx + min(step, hypothesis_length),
            )
