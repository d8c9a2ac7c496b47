"""Text to tokens: what a word, a character, a mixed token and a jamo are when errors are counted.

Every function brings its text to NFC first, because the same Korean sentence in NFD shares no code point with it.
NFKC is never applied: it fuses compatibility jamo into syllables and loses the coda. Nothing here knows about
alignment, rates or languages.
"""

import re
import unicodedata
from collections.abc import Sequence
from typing import Literal

from fl.speech.hangul import is_syllable, letters_of
from fl.speech.text import script

JamoForm = Literal["nfd", "compat", "compat_split"]
JAMO_FORMS: tuple[JamoForm, ...] = ("nfd", "compat", "compat_split")

_CLUSTERS = {
    **{"ㄳ": "ㄱㅅ", "ㄵ": "ㄴㅈ", "ㄶ": "ㄴㅎ", "ㅄ": "ㅂㅅ"},
    **{"ㄺ": "ㄹㄱ", "ㄻ": "ㄹㅁ", "ㄼ": "ㄹㅂ", "ㄽ": "ㄹㅅ", "ㄾ": "ㄹㅌ", "ㄿ": "ㄹㅍ", "ㅀ": "ㄹㅎ"},
}

_BRACKETED_EVENT = re.compile(r"\[[^\[\]]*\]")
_THOUSANDS_COMMA = re.compile(r"(?<=\d),(?=\d{3}(?!\d))")
_DECIMAL_POINT = re.compile(r"(?<=\d)\.(?=\d)")
_POINT_HOLDER = "\ue000"  # a private-use character that stands for a decimal point while punctuation is removed
_SPOKEN_SIGNS = frozenset("%&@#")  # read aloud as words, although Unicode calls them punctuation
_JOINING_SIGNS = frozenset("\"'`´")  # no space where they stood: don't, "bug"는
_SPACING_SIGNS = frozenset("~～")


def nfc(text: str) -> str:
    """``text`` with canonical composition, and nothing else changed."""
    return unicodedata.normalize("NFC", text)


def normalize_for_scoring(text: str) -> str:
    """The form in which references and hypotheses are compared.

    In this order: NFC; events in square brackets removed; commas between thousands removed; apostrophes, quotation
    marks and brackets removed without a space (``"bug"는`` -> ``bug는``); every other punctuation mark becomes a space,
    except the decimal point and the signs that are read aloud (``% & @ #``); pictograms and invisible format
    characters removed; lower case; white space folded; NFC. Idempotent. English contractions are not expanded. The
    result may be empty.
    """
    text = _BRACKETED_EVENT.sub(" ", nfc(text).replace(_POINT_HOLDER, ""))
    text = _DECIMAL_POINT.sub(_POINT_HOLDER, _THOUSANDS_COMMA.sub("", text))
    kept = "".join(map(_without_punctuation, text)).replace(_POINT_HOLDER, ".")
    return nfc(" ".join(kept.lower().split()))


def _without_punctuation(char: str) -> str:
    if char.isalnum() or char in _SPOKEN_SIGNS:
        return char
    category = unicodedata.category(char)
    if char in _JOINING_SIGNS or category in ("Ps", "Pe", "Pi", "Pf", "So", "Sk", "Cf"):
        return ""
    return " " if category.startswith("P") or char in _SPACING_SIGNS else char


def words(text: str) -> list[str]:
    """Runs between white space."""
    return nfc(text).split()


def characters(text: str) -> list[str]:
    """Code points of the NFC text with white space folded; a space between words is one character."""
    return list(" ".join(words(text)))


def mixed_tokens(text: str) -> list[str]:
    """Tokens of the mixed error rate: each Hangul syllable, each Han character and each kana, and every other run.

    ``이번 bug는`` -> ``이 번 bug 는``; ``bugを見た`` -> ``bug を 見 た``, as Japanese writes no spaces.
    """
    tokens: list[str] = []
    for word in words(text):
        run = ""
        for char in word:
            if is_syllable(char) or script(char) in ("han", "kana"):
                tokens.extend([run, char] if run else [char])
                run = ""
            else:
                run += char
        if run:
            tokens.append(run)
    return tokens


def jamo(text: str, form: JamoForm) -> list[str]:
    """Letters of the text, spaces included, with Hangul syllables taken apart.

    ``nfd``: conjoining jamo (U+11xx). ``compat``: compatibility jamo (U+31xx), a final cluster such as ㅄ is one letter.
    ``compat_split``: the same, a final cluster is two. Other scripts stay composed, so that the three forms differ in
    Hangul alone.
    """
    letters: list[str] = []
    for char in characters(text):
        if is_syllable(char):
            char = unicodedata.normalize("NFD", char) if form == "nfd" else letters_of(char)
        letters.extend(char)
    return [part for letter in letters for part in _CLUSTERS.get(letter, letter)] if form == "compat_split" else letters


def fold_loanwords(text: str, pairs: Sequence[tuple[str, str]]) -> str:
    """``text`` (NFC) with each loanword in its other spelling: ``(커피, coffee)`` turns ``커피는`` into ``coffee는``.

    Spellings are case-sensitive substrings, found in one pass, longest first, so a pair never rewrites what another
    has just written. A spelling that begins or ends with an alphabetic letter other than Hangul, Han or kana must begin
    or end a run of such letters there: ``mall`` is not folded inside ``small``.
    """
    table = {nfc(source): nfc(target) for source, target in reversed(pairs) if source.strip()}
    if not table:
        return nfc(text)
    pattern = "|".join(_bounded(source) for source in sorted(table, key=len, reverse=True))
    return re.sub(pattern, lambda match: table[match.group()], nfc(text))


def _bounded(source: str) -> str:
    # U+0041-U+2FFF holds every alphabet with spaces between words; Hangul, Han and kana lie above it
    letter = "[^\\W\\d_\u2fff-\U0010ffff]"
    before = f"(?<!{letter})" if re.match(letter, source[0]) else ""
    after = f"(?!{letter})" if re.match(letter, source[-1]) else ""
    return before + re.escape(source) + after
