"""Transcripts as training targets: one Unicode form, one kind of space, and which script a character belongs to."""

import re
import unicodedata
from collections.abc import Iterable
from functools import lru_cache
from typing import Literal

from fl.core.errors import TextError

Script = Literal["hangul", "latin", "han", "kana", "digit", "other"]

_RANGES: tuple[tuple[int, int, Script], ...] = (
    (0x1100, 0x11FF, "hangul"),  # conjoining jamo
    (0x3130, 0x318F, "hangul"),  # compatibility jamo
    (0xA960, 0xA97F, "hangul"),
    (0xAC00, 0xD7FF, "hangul"),  # syllables, and the second block of old jamo
    (0xFFA0, 0xFFDC, "hangul"),  # half width
    (0x3040, 0x30FF, "kana"),
    (0x31F0, 0x31FF, "kana"),
    (0xFF66, 0xFF9F, "kana"),  # half width
    (0x2E80, 0x2FDF, "han"),
    (0x3005, 0x3007, "han"),
    (0x3400, 0x4DBF, "han"),
    (0x4E00, 0x9FFF, "han"),
    (0xF900, 0xFAFF, "han"),
    (0x20000, 0x323AF, "han"),
    (0x41, 0x5A, "latin"),
    (0x61, 0x7A, "latin"),
    (0xAA, 0xAA, "latin"),
    (0xBA, 0xBA, "latin"),
    (0xC0, 0xD6, "latin"),
    (0xD8, 0xF6, "latin"),
    (0xF8, 0x24F, "latin"),
    (0x1E00, 0x1EFF, "latin"),
    (0xFF21, 0xFF3A, "latin"),  # full width
    (0xFF41, 0xFF5A, "latin"),
)


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
    code = ord(char)
    for low, high, name in _RANGES:
        if low <= code <= high:
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
