"""Counts of errors that add up, and the alignment (jiwer) that they come from."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field

if TYPE_CHECKING:
    import jiwer

Operation = Literal["equal", "substitute", "delete", "insert"]
MAX_COUNT = 1 << 40  # no number of errors, bytes or steps is near a tera
Count = Annotated[int, Field(ge=0, le=MAX_COUNT)]  # checked where a file is read


@dataclass(frozen=True)
class Counts:
    """Errors over reference tokens. Counts add up (``+``, ``sum``); a rate is formed only when it is shown."""

    substitutions: Count = 0
    deletions: Count = 0
    insertions: Count = 0
    reference: Count = 0

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
    """A shortest edit path between two token sequences: its counts, and jiwer's chunks of it."""

    counts: Counts
    chunks: "Sequence[jiwer.AlignmentChunk]"

    @property
    def edits(self) -> Iterator[Edit]:
        """The path step by step."""
        for chunk in self.chunks:
            reference_length = chunk.ref_end_idx - chunk.ref_start_idx
            hypothesis_length = chunk.hyp_end_idx - chunk.hyp_start_idx
            for step in range(max(reference_length, hypothesis_length)):
                yield Edit(
                    chunk.type,
                    chunk.ref_start_idx + min(step, reference_length),
                    chunk.hyp_start_idx + min(step, hypothesis_length),
                )


def align(reference: Sequence[str], hypothesis: Sequence[str]) -> Alignment:
    """Aligns tokens with jiwer. Either side may be empty, and a token may hold anything, spaces included."""
    # Tokens go in ready-made, one sentence a side: the transforms, which would split strings again, do nothing.
    import jiwer  # which who only counts need not load

    output = jiwer.process_words(
        [list(reference)], [list(hypothesis)], reference_transform=list, hypothesis_transform=list
    )
    counts = Counts(output.substitutions, output.deletions, output.insertions, len(reference))
    return Alignment(counts, output.alignments[0])
