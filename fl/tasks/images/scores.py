"""The score of a digit that was read. Needs no torch."""

from __future__ import annotations

from fl.metrics import Counts, Scores

ERROR = "error"  # the metric: images that were read as another digit, over all images


def score_digit(reference: str, prediction: str) -> Scores:
    """One image, read right or wrong."""
    return Scores({ERROR: Counts(substitutions=int(reference != prediction), reference=1)}, {})
