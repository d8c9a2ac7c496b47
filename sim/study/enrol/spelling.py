"""The spelling table: what a person's transcripts show of how that person spells loanwords, applied to any transcript."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from fl.metrics.tokens import fold_loanwords
from fl.tasks.task import Example

Spelled = tuple[str, str]  # a loanword in the matrix script and in Latin


@dataclass(frozen=True)
class SpellingTable:
    """Pairs ``(other spelling, the person's spelling)`` of every loanword that is known."""

    pairs: tuple[Spelled, ...]

    @classmethod
    def of(cls, own: Sequence[Example], known: Iterable[Example]) -> "SpellingTable":
        """The table of a person's ``own`` sentences: words that were seen as they were written, others of ``known`` as most were."""
        latin: dict[Spelled, int] = {}
        for example in own:
            for matrix, other in example.details["loanwords"]:
                latin[matrix, other] = latin.get((matrix, other), 0) + (1 if other in example.target else -1)
        mostly = sum((count > 0) - (count < 0) for count in latin.values())
        lexicon = {(m, other) for example in (*known, *own) for m, other in example.details["loanwords"]}
        chosen = [(pair, latin.get(pair, 0) or mostly) for pair in sorted(lexicon)]
        return cls(tuple(pair if vote > 0 else pair[::-1] for pair, vote in chosen if vote))

    def respell(self, text: str) -> str:
        """``text`` with every known loanword as the person spells it."""
        return fold_loanwords(text, self.pairs)
