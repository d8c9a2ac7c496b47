"""Error rates for mixed-language speech, code-mixing indices, and bootstrap intervals."""

from fl.metrics.align import Alignment, Counts, Edit, align, count_errors
from fl.metrics.intervals import Interval, PairedDifference, macro_rate, paired_difference, rate_interval
from fl.metrics.languages import check_spans, language_tags, matrix_language, switch_words
from fl.metrics.mixing import MixingIndices, mixing_indices
from fl.metrics.rates import METRICS, Pair, Scores, check_metrics, point_of_interest, score_utterance
from fl.metrics.tokens import (
    characters,
    fold_loanwords,
    jamo,
    mixed_tokens,
    normalize_for_scoring,
    words,
)

__all__ = [
    "METRICS",
    "Alignment",
    "Counts",
    "Edit",
    "Interval",
    "MixingIndices",
    "Pair",
    "PairedDifference",
    "Scores",
    "align",
    "characters",
    "check_metrics",
    "check_spans",
    "count_errors",
    "fold_loanwords",
    "jamo",
    "language_tags",
    "macro_rate",
    "matrix_language",
    "mixed_tokens",
    "mixing_indices",
    "normalize_for_scoring",
    "paired_difference",
    "point_of_interest",
    "rate_interval",
    "score_utterance",
    "switch_words",
    "words",
]
