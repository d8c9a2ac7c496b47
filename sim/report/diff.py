"""What a recognizer wrote against what was said, as segments that a page can mark.

Deals in texts only. A token is one Hangul syllable, Han or kana character, one run of other letters (a Latin word), or
one run of white space, so that a wrong particle does not mark the whole word and ``coffee`` against ``커피`` is one change.
"""

import re
import unicodedata
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from difflib import SequenceMatcher
from html import escape
from itertools import groupby

KINDS = ("equal", "substitution", "insertion", "deletion", "spelling", "spacing")
_SYLLABIC = "\\u1100-\\u11ff\\u3040-\\u30ff\\u3130-\\u318f\\u3400-\\u9fff\\uac00-\\ud7a3"  # Hangul, kana, Han
_TOKEN = rf"\s+|[{_SYLLABIC}]|[^\W{_SYLLABIC}]+|[^\w\s]"
_HANGUL = re.compile(r"[\u1100-\u11ff\u3130-\u318f\uac00-\ud7a3]")
_SYMBOLS = {"insertion": "+", "deletion": "−", "spacing": "␣"}
_TITLES = {
    "substitution": "said: {reference}",
    "insertion": "not said",
    "deletion": "missing: {reference}",
    "spelling": "same word, the speaker writes: {reference}",
    "spacing": "only spacing or punctuation differs",
}


@dataclass(frozen=True)
class Segment:
    """A stretch of the alignment. ``spelling``: the right word in the script that this speaker does not use."""

    kind: str
    reference: str
    hypothesis: str


class _Tokenizer:
    """Cuts text into tokens; both spellings of a loanword are one token each, with one key for the alignment."""

    def __init__(self, loanwords: Iterable[tuple[str, str]]) -> None:
        self._keys: dict[str, str] = {}
        for pair in loanwords:
            for spelling in pair:
                self._keys[spelling.casefold()] = pair[0].casefold()
        longest_first = sorted(self._keys, key=lambda word: (-len(word), word))
        words = "".join(rf"(?<![a-z])(?i:{re.escape(word)})(?![a-z])|" for word in longest_first if word)
        self._pattern = re.compile(words + _TOKEN)

    def cut(self, text: str) -> list[str]:
        return self._pattern.findall(unicodedata.normalize("NFC", text.strip()))

    def key(self, token: str) -> str:
        return self._keys.get(token.casefold(), token.casefold())


def tokens(text: str, loanwords: Iterable[tuple[str, str]] = ()) -> list[str]:
    """The text in NFC, cut so that joining the tokens gives it back (less outer white space)."""
    return _Tokenizer(loanwords).cut(text)


def align(reference: str, hypothesis: str, loanwords: Iterable[tuple[str, str]] = ()) -> list[Segment]:
    """Segments whose references join to the reference and whose hypotheses join to the hypothesis (both in NFC)."""
    tokenizer = _Tokenizer(loanwords)
    said, written = tokenizer.cut(reference), tokenizer.cut(hypothesis)
    matcher = SequenceMatcher(None, [*map(tokenizer.key, said)], [*map(tokenizer.key, written)], autojunk=False)
    segments: list[Segment] = []
    for tag, i0, i1, j0, j1 in matcher.get_opcodes():
        if tag == "equal":
            segments += _same_words(said[i0:i1], written[j0:j1])
        else:
            left, right = "".join(said[i0:i1]), "".join(written[j0:j1])
            segments.append(Segment(_kind(left, right), left, right))
    return segments


def _same_words(said: list[str], written: list[str]) -> Iterator[Segment]:
    """Tokens with the same key: runs of equal texts (case aside), between them loanwords in the other spelling."""
    for equal, pairs in groupby(zip(said, written, strict=True), key=lambda pair: _same(*pair)):
        both = list(pairs)
        if equal:
            yield Segment("equal", "".join(one for one, _ in both), "".join(other for _, other in both))
        else:
            yield from (Segment("spelling", one, other) for one, other in both)


def _same(one: str, other: str) -> bool:
    return one.casefold() == other.casefold()


def _kind(reference: str, hypothesis: str) -> str:
    if not any(map(str.isalnum, reference + hypothesis)):
        return "spacing"
    if not hypothesis.strip():
        return "deletion"
    return "substitution" if reference.strip() else "insertion"


def diff_html(reference: str, hypothesis: str, loanwords: Iterable[tuple[str, str]] = ()) -> str:
    """The hypothesis as escaped HTML with every difference in an element that shape, sign and words tell apart."""
    if not hypothesis.strip():
        return '<span class="d d-empty">(nothing)</span>'
    return "".join(_segment_html(segment) for segment in align(reference, hypothesis, loanwords))


def _segment_html(segment: Segment) -> str:
    if segment.kind == "equal":
        return hangul_html(segment.hypothesis)
    title = escape(_TITLES[segment.kind].format(reference=segment.reference.strip()))
    sign = _SYMBOLS.get(segment.kind, "")
    signed = f'<span class="sign" aria-hidden="true">{sign}</span>' if sign else ""
    said, written = hangul_html(segment.reference.strip()), hangul_html(segment.hypothesis.strip())
    before, after = _outer_space(segment.hypothesis or ("" if segment.kind == "spacing" else segment.reference))
    if segment.kind == "spacing":
        return f'{before}<span class="d d-spacing" title="{title}">{written or signed}</span>{after}'
    if segment.kind == "deletion":
        return f'{before}<del class="d d-deletion" title="{title}">{signed}{said}</del>{after}'
    if segment.kind == "insertion":
        return f'{before}<ins class="d d-insertion" title="{title}">{signed}{written}</ins>{after}'
    return f'{before}<span class="d d-{segment.kind}" title="{title}">{written}</span>{after}'


def _outer_space(text: str) -> tuple[str, str]:
    return (" " if text[:1].isspace() else ""), (" " if text.strip() and text[-1:].isspace() else "")


def hangul_html(text: str) -> str:
    """Escaped text in which every stretch of Hangul carries ``lang="ko"``, so that a browser takes a Korean font."""
    return "".join(f'<span lang="ko">{escape(part)}</span>' if hangul else escape(part) for hangul, part in _runs(text))


def _runs(text: str) -> Iterator[tuple[bool, str]]:
    """Stretches with and without Hangul; white space stays with the stretch before it."""
    current, korean = "", False
    for char in text:
        is_hangul = bool(_HANGUL.match(char))
        if current and is_hangul != korean and not char.isspace():
            yield korean, current
            current = ""
        if not current or not char.isspace():
            korean = is_hangul
        current += char
    if current:
        yield korean, current
