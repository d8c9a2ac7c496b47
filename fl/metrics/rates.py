"""Error rates by name, for one utterance: WER, CER, MER, JER, PIER, with and without loanword folding, by language.

MER is the *mixed* error rate (syllables and words), not jiwer's match error rate. A new metric is one function of a
:class:`Pair` and one line in :data:`METRICS`.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property, partial

from fl.core.errors import MetricError
from fl.metrics import tokens
from fl.metrics.align import Alignment, Counts, Edit, align, count_errors
from fl.metrics.languages import (
    Spans,
    alphabetic_languages,
    matrix_language,
    script_language,
    span_tags,
    switch_words,
    tag_words,
    word_script,
)

NO_LANGUAGE = "other"  # key of language-independent words in Scores.by_language


@dataclass(frozen=True)
class Scores:
    """Counts of one utterance: by metric, and word errors by the language they are charged to."""

    metrics: dict[str, Counts]
    by_language: dict[str, Counts]


class Pair:
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
        self._counts: dict[str, Counts] = {}

    def counts(self, metric: str) -> Counts:
        """The counts of a metric of :data:`METRICS`, computed once."""
        if metric not in self._counts:
            self._counts[metric] = METRICS[metric](self)
        return self._counts[metric]

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


Metric = Callable[[Pair], Counts]


def point_of_interest(alignment: Alignment, points: Sequence[bool]) -> Counts:
    """Errors charged to the reference words marked in ``points``, over the number of those words.

    PIER, the point-of-interest error rate (Ugan et al. 2025). An insertion is charged to the reference word that it
    precedes, one after the last word to none.
    """
    errors = Counter(
        edit.operation for edit in alignment.edits if edit.reference < len(points) and points[edit.reference]
    )
    return Counts(errors["substitute"], errors["delete"], errors["insert"], sum(points))


def errors_by_language(pair: Pair) -> dict[str, Counts]:
    """Errors and reference words of each language, over words cut at changes of script (Han: characters).

    A substitution or deletion is charged to the language of the reference word. An insertion is charged by the script
    of the inserted word; where two languages of the utterance share that script, or it has no letter, to the reference
    word that it precedes, and after the last one to the matrix language. The counts add up to :attr:`piece_alignment`.
    Words of no language stand under ``other``.
    """
    reference = Counter(tag or NO_LANGUAGE for tag in pair.tags)
    errors = Counter((_charged_language(pair, edit), edit.operation) for edit in pair.piece_alignment.edits)
    return {
        language: Counts(
            errors[language, "substitute"], errors[language, "delete"], errors[language, "insert"], reference[language]
        )
        for language in sorted({*reference, *(language for (language, kind) in errors if kind != "equal")})
    }


def _charged_language(pair: Pair, edit: Edit) -> str:
    following = pair.tags[edit.reference] if edit.reference < len(pair.tags) else pair.matrix
    if edit.operation == "insert":
        alphabets = alphabetic_languages(pair.spans) or ["en"]
        inserted = script_language(pair.hypothesis_pieces[edit.hypothesis], alphabets[0])
        shared = len(alphabets) > 1 and inserted == alphabets[0]
        return (inserted if inserted and not shared else following) or NO_LANGUAGE
    return following or NO_LANGUAGE


def _pier(pair: Pair) -> Counts:
    # The points of interest are the embedded languages: every language but the matrix.
    return point_of_interest(pair.piece_alignment, [tag is not None and tag != pair.matrix for tag in pair.tags])


def _wrong_script(pair: Pair) -> Counts:
    # Words that were recognised, but in the loanword's other spelling. All of them are substitutions.
    confused = sum(
        pair.fold(pair.reference_words[edit.reference]) == pair.fold(pair.hypothesis_words[edit.hypothesis])
        for edit in pair.word_alignment.edits
        if edit.operation == "substitute"
    )
    return Counts(substitutions=confused, reference=len(pair.reference_words))


def _other_language(pair: Pair) -> Counts:
    # Words written in another script though loanwords are folded: translated, or heard as the other language.
    said, heard = map(switch_words, pair.folded)
    written = [
        (said[e.reference], heard[e.hypothesis]) for e in align(said, heard).edits if e.operation == "substitute"
    ]
    scripts = [(word_script(a), word_script(b)) for a, b in written]
    return Counts(substitutions=sum(None not in both and both[0] != both[1] for both in scripts), reference=len(said))


def _by_tokens(tokenize: Callable[[str], list[str]]) -> Metric:
    return lambda pair: count_errors(tokenize(pair.reference), tokenize(pair.hypothesis))


def _folded(metric: str, tokenize: Callable[[str], list[str]]) -> Metric:
    def score(pair: Pair) -> Counts:
        if pair.folded == (pair.reference, pair.hypothesis):
            return pair.counts(metric)
        return count_errors(*map(tokenize, pair.folded))

    return score


METRICS: dict[str, Metric] = {
    "wer": lambda pair: pair.word_alignment.counts,
    "cer": _by_tokens(tokens.characters),
    "mer": _by_tokens(tokens.mixed_tokens),
    "jer_nfd": _by_tokens(partial(tokens.jamo, form="nfd")),
    "jer_compat": _by_tokens(partial(tokens.jamo, form="compat")),
    "jer_compat_split": _by_tokens(partial(tokens.jamo, form="compat_split")),
    "pier": _pier,
    "wer_folded": _folded("wer", tokens.words),
    "mer_folded": _folded("mer", tokens.mixed_tokens),
    "cer_folded": _folded("cer", tokens.characters),
    "wrong_script": _wrong_script,
    "other_language": _other_language,
}


def score_utterance(
    reference: str,
    hypothesis: str,
    *,
    spans: Spans = (),
    loanwords: Spans = (),
    matrix: str | None = None,
    metrics: Iterable[str] | None = None,
) -> Scores:
    """Counts of one utterance for ``metrics`` (default: all of :data:`METRICS`), after :func:`normalize_for_scoring`.

    ``spans`` are (word, language) in order; without them languages follow the script, and letters are English.
    ``loanwords`` are (matrix spelling, Latin spelling). ``matrix`` is the matrix language of the corpus, for PIER of
    utterances that are mostly or wholly in an embedded language; without it, each utterance has its own. Either text
    may be empty. Raises :class:`MetricError` for an unknown metric and for spans that do not spell the reference.
    """
    names = list(METRICS if metrics is None else metrics)
    check_metrics(names)
    pair = Pair(reference, hypothesis, spans, loanwords, matrix)
    return Scores({name: pair.counts(name) for name in names}, errors_by_language(pair))


def check_metrics(names: Iterable[str]) -> None:
    """Raises :class:`MetricError`, which lists the known metrics, for a name that is not one of them."""
    unknown = [name for name in names if name not in METRICS]
    if unknown:
        raise MetricError(f"unknown metric {unknown[0]!r}: the known metrics are {', '.join(METRICS)}")
