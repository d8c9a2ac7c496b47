"""A reference and a hypothesis with what several metrics need of them, each computed once: what a metric is a function of."""

from collections.abc import Callable

from fl.metrics import tokens
from fl.metrics.align import Counts, align
from fl.metrics.languages import Spans, matrix_language, span_tags, switch_words, tag_words

Tokenize = Callable[[str], list[str]]


class ScoredPair:
    """A reference and a hypothesis in scoring form, and both ``folded``: with loanwords in their Latin spelling.

    ``spans`` are (word, language) in the order of the reference, ``loanwords`` are (matrix spelling, Latin spelling). Pieces are
    words cut at changes of script (``bug 는``); ``tags`` are the languages of the reference's. ``matrix`` is the matrix language
    that was given, else that of most spans (of most pieces where there are no spans).
    """

    def __init__(
        self, reference: str, hypothesis: str, spans: Spans = (), loanwords: Spans = (), matrix: str | None = None
    ) -> None:
        normal = tokens.normalize_for_scoring
        self.reference, self.hypothesis = normal(reference), normal(hypothesis)
        self.spans = spans
        self.loanwords = [(normal(source), normal(target)) for source, target in loanwords]
        self.folded = self.fold(self.reference), self.fold(self.hypothesis)
        self.reference_pieces, self.hypothesis_pieces = switch_words(self.reference), switch_words(self.hypothesis)
        self.piece_alignment = align(self.reference_pieces, self.hypothesis_pieces)
        self.tags = tag_words(self.reference, spans, self.reference_pieces)
        self.matrix = matrix or matrix_language(span_tags(spans) if spans else self.tags)
        self._counts: dict[tuple[Tokenize, str, str], Counts] = {}

    def counts(self, tokenize: Tokenize, *, folded: bool = False) -> Counts:
        """The errors over tokens, of both texts or of both folded; computed once for the same texts."""
        reference, hypothesis = self.folded if folded else (self.reference, self.hypothesis)
        key = (tokenize, reference, hypothesis)
        if key not in self._counts:
            self._counts[key] = align(tokenize(reference), tokenize(hypothesis)).counts
        return self._counts[key]

    def fold(self, text: str) -> str:
        """``text`` (scoring form) with the utterance's loanwords in their Latin spelling."""
        return tokens.fold_loanwords(text, self.loanwords) if self.loanwords else text
