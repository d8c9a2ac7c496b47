"""What a recognizer wrote against what was said, as segments that a page can mark.

Deals in texts only. A token is one Hangul syllable, Han or kana character, one run of other letters (a Latin word), or
one run of white space, so that a wrong particle does not mark the whole word and ``coffee`` against ``커피`` is one change.
"""

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from difflib import SequenceMatcher
from itertools import groupby
from unicodedata import normalize

_SYLLABIC = "\\u1100-\\u11ff\\u3040-\\u30ff\\u3130-\\u318f\\u3400-\\u9fff\\uac00-\\ud7a3"  # Hangul, kana, Han
_TOKEN = rf"\s+|[{_SYLLABIC}]|[^\W{_SYLLABIC}]+|[^\w\s]"
_HANGUL = "\\u1100-\\u11ff\\u3130-\\u318f\\uac00-\\ud7a3"
_RUN = re.compile(rf"([{_HANGUL}][{_HANGUL}\s]*)|[^{_HANGUL}]+")


@dataclass(frozen=True)
class DiffSegment:
    """A stretch of the alignment: equal, substitution, insertion, deletion, spelling or spacing.

    ``spelling``: the right word in the script that this speaker does not use.
    """

    kind: str
    reference: str
    hypothesis: str


def align(reference: str, hypothesis: str, loanwords: Iterable[tuple[str, str]] = ()) -> list[DiffSegment]:
    """Segments whose references join to the reference and whose hypotheses join to the hypothesis (both in NFC).

    Both spellings of a loanword are one token each, and the same one to the alignment.
    """
    keys = {spelling.casefold(): pair[0].casefold() for pair in loanwords for spelling in pair}
    longest_first = sorted(keys, key=lambda word: (-len(word), word))
    words = "".join(rf"(?<![a-z])(?i:{re.escape(word)})(?![a-z])|" for word in longest_first if word)
    said, written = (re.findall(words + _TOKEN, normalize("NFC", text.strip())) for text in (reference, hypothesis))
    left_keys, right_keys = (
        [keys.get(token.casefold(), token.casefold()) for token in side] for side in (said, written)
    )
    matcher = SequenceMatcher(None, left_keys, right_keys, autojunk=False)
    segments: list[DiffSegment] = []
    for tag, i0, i1, j0, j1 in matcher.get_opcodes():
        if tag == "equal":
            segments += _same_words(said[i0:i1], written[j0:j1])
        else:
            left, right = "".join(said[i0:i1]), "".join(written[j0:j1])
            segments.append(DiffSegment(_kind(left, right), left, right))
    return segments


def _same_words(said: list[str], written: list[str]) -> Iterator[DiffSegment]:
    """Tokens with the same key: runs of equal texts (case aside), between them loanwords in the other spelling."""
    for equal, pairs in groupby(
        zip(said, written, strict=True), key=lambda pair: pair[0].casefold() == pair[1].casefold()
    ):
        both = list(pairs)
        if equal:
            yield DiffSegment("equal", "".join(one for one, _ in both), "".join(other for _, other in both))
        else:
            yield from (DiffSegment("spelling", one, other) for one, other in both)


def _kind(reference: str, hypothesis: str) -> str:
    if not any(map(str.isalnum, reference + hypothesis)):
        return "spacing"
    if not hypothesis.strip():
        return "deletion"
    return "substitution" if reference.strip() else "insertion"


def hangul_runs(text: str) -> Iterator[tuple[bool, str]]:
    """Stretches with and without Hangul; white space stays with the stretch before it."""
    for match in _RUN.finditer(text):
        yield match[1] is not None, match[0]
