"""Transcripts as training targets: one Unicode form, one kind of space, and which script a character belongs to."""

import re
import unicodedata
from collections.abc import Iterable
from functools import lru_cache
from typing import Literal

from fl.core.errors import TextError

Script = Literal["hangul", "latin", "han", "kana", "digit", "other"]

_SCRIPTS: dict[Script, re.Pattern[str]] = {
    # Jamo (conjoining, compatibility, extended), syllables and the second block of old jamo; half width.
    "hangul": re.compile(r"[\u1100-\u11FF\u3130-\u318F\uA960-\uA97F\uAC00-\uD7FF\uFFA0-\uFFDC]"),
    "kana": re.compile(r"[\u3040-\u30FF\u31F0-\u31FF\uFF66-\uFF9F]"),  # the last are half width
    "han": re.compile(r"[\u2E80-\u2FDF\u3005-\u3007\u3400-\u4DBF\u4E00-\u9FFF\uF900-\uFAFF\U00020000-\U000323AF]"),
    # The last two are full width.
    "latin": re.compile(r"[A-Za-z\xAA\xBA\xC0-\xD6\xD8-\xF6\xF8-\u024F\u1E00-\u1EFF\uFF21-\uFF3A\uFF41-\uFF5A]"),
}


def normalize_text(text: str) -> str:
    """``text`` in NFC with every run of white space, also Unicode's, as one space and none at the ends.

    NFC and not NFKC: the compatibility form would break compatibility jamo (ㅋㅋ) and full-width text. Raises TextError
    when nothing is left or when the text holds control characters, which no tokenizer maps to anything meant.
    """
    folded = " ".join(unicodedata.normalize("NFC", text).split())
    if not folded:
        raise TextError("the transcript is empty; give it text or leave the utterance out")
    for char in folded:
        if unicodedata.category(char) in ("Cc", "Cs"):
            raise TextError(f"the transcript holds the control character U+{ord(char):04X}; remove it from the text")
    return folded


@lru_cache(maxsize=4096)
def script(char: str) -> Script:
    """Script of one character. ``digit`` is any decimal digit, ``other`` punctuation, spaces and all other scripts."""
    for name, characters in _SCRIPTS.items():
        if characters.match(char):
            return name
    return "digit" if char.isdecimal() else "other"


def fold_text(text: str, loanwords: Iterable[tuple[str, str]] = ()) -> str:
    """A key under which two transcripts of the same words agree: NFC, lower case, no punctuation, and each Latin
    spelling of ``loanwords`` (matrix spelling, latin spelling) replaced by the matrix one. May be empty.

    It is for comparing texts between speakers, not for scoring (see ``fl.metrics``).
    """
    folded = unicodedata.normalize("NFC", text).lower()
    for matrix, latin in sorted(loanwords, key=lambda pair: -len(pair[1])):
        # a particle may follow at once (coffee를), another Latin letter may not (coffees)
        pattern = rf"(?<![a-z0-9]){re.escape(unicodedata.normalize('NFC', latin).lower())}(?![a-z0-9])"
        replacement = unicodedata.normalize("NFC", matrix).lower()
        folded = re.sub(pattern, lambda _match, value=replacement: value, folded)  # type: ignore[misc]
    kept = "".join(char if unicodedata.category(char)[0] in "LMN" else " " for char in folded)
    return " ".join(kept.split())
