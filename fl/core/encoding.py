"""Text of people's files: UTF-8, or what a byte order mark says; of any other the encoding that it most likely has, by name."""

import codecs
from collections.abc import Callable

from fl.core.errors import IdiolectError

_MARKS = {codecs.BOM_UTF8: "utf-8", codecs.BOM_UTF16_LE: "utf-16", codecs.BOM_UTF16_BE: "utf-16"}


def decode_text(data: bytes, source: str, error: type[IdiolectError], encoding: str = "", damaged: float = 0.0) -> str:
    """``data`` in the encoding of its byte order mark, else in ``encoding`` ("" is UTF-8); without the mark.

    Bytes that are none of it become U+FFFD where they are at most the share ``damaged`` of the letters beyond ASCII. Raises ``error``
    with source, line and likely encoding for text in another.
    """
    told = next((name for mark, name in _MARKS.items() if data.startswith(mark)), encoding)
    if not told and (wide := _utf16(data)):
        raise error(f"{source}:1: this is UTF-16, not UTF-8; give --encoding {wide}")
    try:
        return data.decode(told or "utf-8").removeprefix("\ufeff")
    except LookupError as fault:
        raise error(f"--encoding {encoding!r} is unknown; for instance cp949, utf-16, gb18030") from fault
    except UnicodeDecodeError as fault:
        text = data.decode(told or "utf-8", "replace").removeprefix("\ufeff")
        if text.count("\ufffd") <= damaged * sum(char > "\x7f" for char in text):
            return text
        line = data.count(b"\n", 0, fault.start) + 1
        guess = likely_encoding(data)
        looks = f"it looks like {guess}: give --encoding {guess}" if guess else "give --encoding, or convert the file"
        if guess and guess == told:
            looks = "the file is damaged there: save it again"
        raise error(f"{source}:{line}: not {told or 'UTF-8'}; {looks}") from fault


def likely_encoding(data: bytes) -> str:
    """The encoding that text which is not UTF-8 most likely has, "" where none is likely.

    CP949 and GB18030 accept much of each other's bytes, and of others'. Korean text in CP949 is nearly all of the 2,350 syllables
    of KS X 1001; Chinese text read as CP949 is Hangul and Hanja mixed, Japanese has syllables that nobody writes.
    """
    if wide := _utf16(data):
        return wide
    for encoding, is_own in _LETTERS.items():
        text = _decoded(data, encoding)
        letters = [char for char in text if char > "\x7f" and char.isalpha() and char not in _LAUGHTER]
        if letters and sum(map(is_own, letters)) >= 0.8 * len(letters):
            return encoding
    western = [char for char in _decoded(data, "cp1252") if char.isalpha()]
    return "cp1252" if 0 < 3 * sum(char > "\x7f" for char in western) <= len(western) else ""


def _is_usual_syllable(char: str) -> bool:
    return "\uac00" <= char <= "\ud7a3" and len(char.encode("euc_kr")) == 2


_LAUGHTER = "ㅋㅎㅠㅜ"
_LETTERS: dict[str, Callable[[str], bool]] = {
    "cp949": _is_usual_syllable,
    "utf-16-le": _is_usual_syllable,  # Hangul alone, in which no byte is zero
    "gb18030": lambda char: "\u4e00" <= char <= "\u9fff",
}


def _utf16(data: bytes) -> str:
    if data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        return "utf-16"
    head = data[: 1 << 16]
    even, odd = head[0::2].count(0), head[1::2].count(0)  # of Latin letters and spaces every second byte is zero
    if max(even, odd) < max(2, len(head) / 10) or min(even, odd) * 4 > max(even, odd):
        return ""
    return "utf-16-le" if odd > even else "utf-16-be"


def _decoded(data: bytes, encoding: str) -> str:
    try:
        return data.decode(encoding)
    except UnicodeDecodeError:
        return ""
