"""A reference and a hypothesis with what several metrics need of them, each computed once: what a metric is a function of."""

from collections.abc import Callable
from functools import cached_property

from fl.metrics import tokens
from fl.metrics.align import Alignment, Counts, align, count_errors
from fl.metrics.languages import Spans, matrix_language, span_tags, switch_words, tag_words

Tokenize = Callable[[str], list[str]]


class ScoredPair:
    """A reference and a hypothesis in scoring form, with the alignments that several metrics share.

    ``spans`` are (word, language) in the order of the reference, ``loanwords`` are (matrix spelling, Latin spelling).
    """

    def __init__(
        self, reference: str, hypothesis: str, spans: Spans = (), loanwords: Spans = (), matrix: str | None = None
    ) -> None:
        self.reference = tokens.normalize_for_scoring(reference)
        self.hypothesis = tokens.normalize_for_scoring(hypothesis)
        self.spans = spans
        self._matrix = matrix
        normal = tokens.normalize_for_scoring
        self.loanwords = [(normal(source), normal(target)) for source, target in loanwords]
        self._counts: dict[tuple[Tokenize, str, str], Counts] = {}

    def counts(self, tokenize: Tokenize, *, folded: bool = False) -> Counts:
        """The errors over tokens, of both texts or of both folded; computed once for the same texts."""
        reference, hypothesis = self.folded if folded else (self.reference, self.hypothesis)
        key = (tokenize, reference, hypothesis)
        if key not in self._counts:
            self._counts[key] = count_errors(tokenize(reference), tokenize(hypothesis))
        return self._counts[key]

    def fold(self, text: str) -> str:
        """``text`` (scoring form) with the utterance's loanwords in their Latin spelling."""
        return tokens.fold_loanwords(text, self.loanwords) if self.loanwords else text

    @cached_property
    def folded(self) -> tuple[str, str]:
        """Reference and hypothesis with loanwords in their Latin spelling."""
        return self.fold(self.reference), self.fold(self.hypothesis)

    @cached_property
    def reference_words(self) -> list[str]:
        """White-space words of the reference."""
        return tokens.words(self.reference)

    @cached_property
    def hypothesis_words(self) -> list[str]:
        """White-space words of the hypothesis."""
        return tokens.words(self.hypothesis)

    @cached_property
    def word_alignment(self) -> Alignment:
        """Alignment of white-space words."""
        return align(self.reference_words, self.hypothesis_words)

    @cached_property
    def reference_pieces(self) -> list[str]:
        """Reference words cut at changes of script (``bug 는``)."""
        return switch_words(self.reference)

    @cached_property
    def hypothesis_pieces(self) -> list[str]:
        """Hypothesis words cut alike."""
        return switch_words(self.hypothesis)

    @cached_property
    def piece_alignment(self) -> Alignment:
        """Alignment of the words cut at changes of script."""
        return align(self.reference_pieces, self.hypothesis_pieces)

    @cached_property
    def tags(self) -> list[str | None]:
        """The language of each reference piece."""
        return tag_words(self.reference, self.spans, self.reference_pieces)

    @cached_property
    def matrix(self) -> str | None:
        """The matrix language that was given, else that of most spans (of most pieces where there are no spans)."""
        return self._matrix or matrix_language(span_tags(self.spans) if self.spans else self.tags)
