"""Korean text as the symbols that a recognizer writes, in four forms, and exactly back.

``syllables``: 한 is one symbol. ``jamo``: the conjoining letters of U+11xx (ᄒ ᅡ ᆫ), where a lead and a tail are different symbols,
so that Unicode's own composition (NFC) is the inverse. ``compat-jamo``: the compatibility letters of U+31xx (ㅎ ㅏ ㄴ), the
letters of a keyboard, where a lead and a tail share a symbol. They carry no syllable borders: those come from the
automaton of a Korean input method (:func:`compose`). Text of whole syllables comes back without help; letters that stand
alone beside a syllable (가ㅋㅋ) would be drawn into it, and :data:`BREAK` stands between.
"""

import unicodedata
from collections.abc import Iterable, Sequence

from fl.core.errors import ConfigError

SYLLABLES, ALL_SYLLABLES, JAMO, COMPAT_JAMO = "syllables", "all-syllables", "jamo", "compat-jamo"
FORMS = (SYLLABLES, ALL_SYLLABLES, JAMO, COMPAT_JAMO)
BREAK = "<break>"  # between two letters that do not belong to one syllable; never part of a text

FIRST, LAST = 0xAC00, 0xD7A3
LEADS = "ㄱㄲㄴㄷㄸㄹㅁㅂㅃㅅㅆㅇㅈㅉㅊㅋㅌㅍㅎ"  # 19, in the order of U+1100
VOWELS = "ㅏㅐㅑㅒㅓㅔㅕㅖㅗㅘㅙㅚㅛㅜㅝㅞㅟㅠㅡㅢㅣ"  # 21, U+1161
TAILS = "ㄱㄲㄳㄴㄵㄶㄷㄹㄺㄻㄼㄽㄾㄿㅀㅁㅂㅄㅅㅆㅇㅈㅊㅋㅌㅍㅎ"  # 27, U+11A8; clusters are one letter
_LEADS, _VOWELS, _TAILS = (frozenset(letters) for letters in (LEADS, VOWELS, TAILS))
COMPATIBILITY = tuple(chr(code) for code in range(0x3131, 0x3164))  # 51: every lead, vowel and tail
CONJOINING = tuple(
    chr(first + index)
    for first, letters in ((0x1100, LEADS), (0x1161, VOWELS), (0x11A8, TAILS))
    for index in range(len(letters))
)


def is_syllable(char: str) -> bool:
    """Whether ``char`` is one of the 11,172 precomposed syllables."""
    return FIRST <= ord(char) <= LAST


def standard_syllables() -> tuple[str, ...]:
    """The 2,350 syllables of KS X 1001, which is what Korean text mostly consists of, in their order there."""
    return tuple(bytes((row, cell)).decode("euc_kr") for row in range(0xB0, 0xC9) for cell in range(0xA1, 0xFF))


def inventory(form: str) -> tuple[str, ...]:
    """The symbols of a form, in a fixed order. Letters that stand alone (ㅋㅋ) are part of each.

    Raises :class:`ConfigError` for an unknown form.
    """
    if form == SYLLABLES:
        return (*standard_syllables(), *COMPATIBILITY)
    if form == ALL_SYLLABLES:
        return (*map(chr, range(FIRST, LAST + 1)), *COMPATIBILITY)
    if form == JAMO:
        return (*CONJOINING, *COMPATIBILITY)
    if form == COMPAT_JAMO:
        return (*COMPATIBILITY, BREAK)
    raise ConfigError(f"form {form!r} of Korean text is unknown: one of {', '.join(FORMS)}")


def split(text: str, form: str) -> list[str]:
    """The symbols of ``text`` (brought to NFC), of which Korean is in ``form``. Other characters are themselves."""
    composed = unicodedata.normalize("NFC", text)
    if form == JAMO:
        return [
            letter
            for char in composed
            for letter in (unicodedata.normalize("NFD", char) if is_syllable(char) else char)
        ]
    if form != COMPAT_JAMO:
        return list(composed)
    symbols: list[str] = []
    for index, char in enumerate(composed):
        if index and _draws(composed[index - 1], char):
            symbols.append(BREAK)
        symbols.extend(letters_of(char) if is_syllable(char) else char)
    return symbols


def join(symbols: Iterable[str], form: str) -> str:
    """The NFC text of ``symbols``: the inverse of :func:`split`, and defined for any sequence that a model may write."""
    text = compose(list(symbols)) if form == COMPAT_JAMO else "".join(s for s in symbols if s != BREAK)
    return unicodedata.normalize("NFC", text)


def letters_of(syllable: str) -> str:
    """The two or three compatibility letters of a syllable (Unicode 3.12: (lead * 21 + vowel) * 28 + tail)."""
    rest, tail = divmod(ord(syllable) - FIRST, 28)
    lead, vowel = divmod(rest, 21)
    return LEADS[lead] + VOWELS[vowel] + (TAILS[tail - 1] if tail else "")


def compose(symbols: Sequence[str]) -> str:
    """Compatibility letters as syllables, as a Korean input method groups them.

    A consonant before a vowel is its lead, always; a consonant behind an open syllable that is no lead in this sense is its
    tail, if it can be one. What fits nowhere stays as it is. :data:`BREAK` ends a group and is dropped. With one symbol for
    each compound vowel and each cluster no two syllables have the same letters, so whole syllables are found again.
    """
    out: list[str] = []
    index, count = 0, len(symbols)

    def at(position: int) -> str:
        return symbols[position] if position < count else ""

    while index < count:
        symbol = symbols[index]
        if symbol in _LEADS and at(index + 1) in _VOWELS:
            code = (LEADS.index(symbol) * 21 + VOWELS.index(at(index + 1))) * 28
            index += 2
            taken_by_next = at(index) in _LEADS and at(index + 1) in _VOWELS
            if at(index) in _TAILS and not taken_by_next:
                code += TAILS.index(at(index)) + 1
                index += 1
            out.append(chr(FIRST + code))
            continue
        if symbol != BREAK:
            out.append(symbol)
        index += 1
    return "".join(out)


def _draws(before: str, char: str) -> bool:
    """Whether the automaton would draw ``char``, a letter that stands alone, together with what is before it."""
    last = letters_of(before)[-1] if is_syllable(before) else before
    if char in _VOWELS:
        return last in _LEADS
    return char in _TAILS and is_syllable(before) and last in _VOWELS
