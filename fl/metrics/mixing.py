"""How much a text mixes languages: CMI (2014 and 2016), switch points, I-index, M-index.

A text is a sequence of language tags, one per word, ``None`` for a language-independent word (a number, a name).
Below, n is the number of words, u of them language-independent, N = n - u, w those of the largest language, P the
switches between neighbouring language words (language-independent ones are skipped).
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

Tags = Sequence[str | None]


@dataclass(frozen=True)
class MixingIndices:
    """All indices of one text, see the functions of the same names."""

    cmi_2014: float
    cmi_2016: float
    switch_points: int
    i_index: float
    m_index: float


def mixing_indices(tags: Tags) -> MixingIndices:
    """All indices of one text. Tags come from spans or from :func:`fl.metrics.languages.language_tags`."""
    return MixingIndices(cmi_2014(tags), cmi_2016(tags), switch_points(tags), i_index(tags), m_index(tags))


def cmi_2014(tags: Tags) -> float:
    """Code-Mixing Index, 100 (1 - w / (n - u)), in 0..100 (Das and Gambäck 2014); 0 without language words."""
    counts = _counts(tags)
    return 100 * (1 - max(counts.values()) / counts.total()) if counts else 0.0


def cmi_2016(tags: Tags) -> float:
    """Code-Mixing Index with switches, 100 ((N - w) + P) / (2 N) (Gambäck and Das 2016); 0 without language words."""
    counts = _counts(tags)
    if not counts:
        return 0.0
    total = counts.total()
    return 100 * (total - max(counts.values()) + switch_points(tags)) / (2 * total)


def switch_points(tags: Tags) -> int:
    """P: neighbouring language words of different languages."""
    return sum(left != right for left, right in pairwise(tag for tag in tags if tag is not None))


def i_index(tags: Tags) -> float:
    """Probability of switching, P / (N - 1) (Guzmán et al. 2017); 0 for fewer than two language words."""
    total = _counts(tags).total()
    return switch_points(tags) / (total - 1) if total > 1 else 0.0


def m_index(tags: Tags) -> float:
    """Multilingual index (1 - sum p^2) / ((k - 1) sum p^2) over the k languages that occur (Barnett et al. 2000).

    0 for one language, 1 for equal shares.
    """
    counts = _counts(tags)
    if len(counts) < 2:
        return 0.0
    squares = sum((count / counts.total()) ** 2 for count in counts.values())
    return (1 - squares) / ((len(counts) - 1) * squares)


def _counts(tags: Tags) -> Counter[str]:
    return Counter(tag for tag in tags if tag is not None)
