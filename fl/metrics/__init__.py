"""Error rates for mixed-language speech, and bootstrap intervals.

Knows texts, tokens and languages of words; not audio, models or who spoke.
"""

from fl.metrics.align import Counts
from fl.metrics.intervals import macro_rate, paired_difference, rate_interval
from fl.metrics.languages import corpus_matrix_language
from fl.metrics.rates import METRICS, Scores, score_utterance

__all__ = [
    "METRICS",
    "Counts",
    "Scores",
    "corpus_matrix_language",
    "macro_rate",
    "paired_difference",
    "rate_interval",
    "score_utterance",
]
