"""Error rates by name, for one utterance: WER, CER, MER, JER, PIER, with and without loanword folding, by language.

MER is the *mixed* error rate (syllables and words), not jiwer's match error rate. A new metric is one function of a
:class:`ScoredPair` and one line in :data:`METRICS`.
"""

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from fl.core.registry import Registry
from fl.metrics import tokens
from fl.metrics.align import Counts, Edit, align
from fl.metrics.languages import Spans, alphabetic_languages, script_language, switch_words, word_script
from fl.metrics.pair import ScoredPair

NO_LANGUAGE = "other"  # key of language-independent words in Scores.by_language
Metric = Callable[[ScoredPair], Counts]


@dataclass(frozen=True)
class Scores:
    """Counts of one utterance: by metric, and word errors by the language they are charged to."""

    metrics: dict[str, Counts]
    by_language: dict[str, Counts]


def errors_by_language(pair: ScoredPair) -> dict[str, Counts]:
    """Errors and reference words of each language, over words cut at changes of script (Han: characters).

    A substitution or deletion is charged to the language of the reference word. An insertion is charged by the script
    of the inserted word; where two languages of the utterance share that script, or it has no letter, to the reference
    word that it precedes, and after the last one to the matrix language. The counts add up to
    :attr:`fl.metrics.pair.ScoredPair.piece_alignment`. Words of no language stand under ``other``.
    """
    reference = Counter(tag or NO_LANGUAGE for tag in pair.tags)
    errors = Counter((_charged_language(pair, edit), edit.operation) for edit in pair.piece_alignment.edits)
    return {
        language: Counts(
            errors[language, "substitute"], errors[language, "delete"], errors[language, "insert"], reference[language]
        )
        for language in sorted({*reference, *(language for (language, kind) in errors if kind != "equal")})
    }


def _charged_language(pair: ScoredPair, edit: Edit) -> str:
    following = pair.tags[edit.reference] if edit.reference < len(pair.tags) else pair.matrix
    if edit.operation == "insert":
        alphabets = alphabetic_languages(pair.spans) or ["en"]
        inserted = script_language(pair.hypothesis_pieces[edit.hypothesis], alphabets[0])
        shared = len(alphabets) > 1 and inserted == alphabets[0]
        return (inserted if inserted and not shared else following) or NO_LANGUAGE
    return following or NO_LANGUAGE


def _pier(pair: ScoredPair) -> Counts:
    # The point-of-interest error rate (Ugan et al. 2025): errors charged to the words of the embedded languages (all but the
    # matrix), over their number. An insertion is charged to the reference word that it precedes, one after the last to none.
    points = [tag is not None and tag != pair.matrix for tag in pair.tags]
    edits = [edit for edit in pair.piece_alignment.edits if edit.reference < len(points) and points[edit.reference]]
    errors = Counter(edit.operation for edit in edits)
    return Counts(errors["substitute"], errors["delete"], errors["insert"], sum(points))


def _wrong_script(pair: ScoredPair) -> Counts:
    # Words that were recognised, but in the loanword's other spelling. All of them are substitutions.
    said, heard = tokens.words(pair.reference), tokens.words(pair.hypothesis)
    edits = [edit for edit in align(said, heard).edits if edit.operation == "substitute"] if pair.loanwords else ()
    confused = sum(pair.fold(said[edit.reference]) == pair.fold(heard[edit.hypothesis]) for edit in edits)
    return Counts(substitutions=confused, reference=len(said))


def _other_language(pair: ScoredPair) -> Counts:
    # Words written in another script though loanwords are folded: translated, or heard as the other language.
    said, heard = map(switch_words, pair.folded)
    edits = [edit for edit in align(said, heard).edits if edit.operation == "substitute"]
    scripts = [(word_script(said[edit.reference]), word_script(heard[edit.hypothesis])) for edit in edits]
    return Counts(substitutions=sum(None not in both and both[0] != both[1] for both in scripts), reference=len(said))


_JAMO = {form: partial(tokens.jamo, form=form) for form in tokens.JAMO_FORMS}

METRICS: Registry[Metric] = Registry(
    "metric",
    {
        "wer": lambda pair: pair.counts(tokens.words),
        "cer": lambda pair: pair.counts(tokens.characters),
        "mer": lambda pair: pair.counts(tokens.mixed_tokens),
        "jer_nfd": lambda pair: pair.counts(_JAMO["nfd"]),
        "jer_compat": lambda pair: pair.counts(_JAMO["compat"]),
        "jer_compat_split": lambda pair: pair.counts(_JAMO["compat_split"]),
        "pier": _pier,
        "wer_folded": lambda pair: pair.counts(tokens.words, folded=True),
        "mer_folded": lambda pair: pair.counts(tokens.mixed_tokens, folded=True),
        "cer_folded": lambda pair: pair.counts(tokens.characters, folded=True),
        "wrong_script": _wrong_script,
        "other_language": _other_language,
    },
)


def score_utterance(
    reference: str,
    hypothesis: str,
    *,
    spans: Spans = (),
    loanwords: Spans = (),
    matrix: str | None = None,
) -> Scores:
    """Counts of one utterance for all of :data:`METRICS`, after :func:`fl.metrics.tokens.normalize_for_scoring`.

    ``spans`` are (word, language) in order; without them languages follow the script, and letters are English.
    ``loanwords`` are (matrix spelling, Latin spelling). ``matrix`` is the matrix language of the corpus, for PIER of
    utterances that are mostly or wholly in an embedded language; without it, each utterance has its own. Either text
    may be empty. Raises :class:`fl.core.errors.MetricError` for spans that do not spell the reference.
    """
    pair = ScoredPair(reference, hypothesis, spans, loanwords, matrix)
    return Scores({name: metric(pair) for name, metric in METRICS.items()}, errors_by_language(pair))
