"""Korean morphology by Hangul arithmetic: particles chosen by the final consonant, verbs conjugated from their stem.

A precomposed syllable is ``0xAC00 + (lead * 21 + vowel) * 28 + tail`` (The Unicode Standard, chapter 3.12).
"""

import re

from fl.core.errors import ConfigError

_ENDING = re.compile(r"([SAU])(?:\(([^()])\))?([^()]*)")
_BASE, _VOWELS, _TAILS = 0xAC00, 21, 28
_VOWEL = {letter: index for index, letter in enumerate("ㅏㅐㅑㅒㅓㅔㅕㅖㅗㅘㅙㅚㅛㅜㅝㅞㅟㅠㅡㅢㅣ")}
_TAIL = {"": 0, "ㄴ": 4, "ㄷ": 7, "ㄹ": 8, "ㅂ": 17, "ㅅ": 19, "ㅆ": 20}

# after a consonant, after a vowel
PARTICLES = {
    "은": ("은", "는"), "이": ("이", "가"), "을": ("을", "를"), "과": ("과", "와"), "으로": ("으로", "로"),
    "이랑": ("이랑", "랑"), "이나": ("이나", "나"), "이야": ("이야", "야"), "이에요": ("이에요", "예요"),
    "이라서": ("이라서", "라서"), "에서": ("에서", "에서"), "에": ("에", "에"), "도": ("도", "도"), "만": ("만", "만"),
    "부터": ("부터", "부터"), "까지": ("까지", "까지"), "보다": ("보다", "보다"), "한테": ("한테", "한테"),
    "의": ("의", "의"),
}  # fmt: skip


def decompose(syllable: str) -> tuple[int, int, int]:
    """Indices (lead, vowel, tail) of one precomposed syllable; ConfigError for anything else."""
    code = ord(syllable) - _BASE
    if not 0 <= code < 19 * _VOWELS * _TAILS:
        raise ConfigError(f"{syllable!r} is not a Hangul syllable, so no particle or ending can follow it")
    return code // (_VOWELS * _TAILS), code // _TAILS % _VOWELS, code % _TAILS


def compose(lead: int, vowel: int, tail: int) -> str:
    """The syllable with these indices."""
    return chr(_BASE + (lead * _VOWELS + vowel) * _TAILS + tail)


def particle(sound: str, name: str) -> str:
    """The allomorph of particle ``name`` (a key of PARTICLES) after a word that sounds like ``sound`` in Hangul.

    ``으로`` becomes ``로`` after ㄹ as well as after a vowel.
    """
    if name not in PARTICLES:
        raise ConfigError(f"unknown Korean particle {name!r}; known: {', '.join(PARTICLES)}")
    after_consonant, after_vowel = PARTICLES[name]
    tail = decompose(sound[-1])[2]
    if name == "으로" and tail == _TAIL["ㄹ"]:
        return after_vowel
    return after_consonant if tail else after_vowel


def conjugate(entry: str, ending: str) -> str:
    """Attach ``ending`` to a verb or adjective in dictionary form, ``entry`` = ``"듣다"`` or ``"듣다/ㄷ"`` (irregular
    class ㅂ, ㄷ, ㅅ or 르). The first letter of ``ending`` names the form it attaches to: ``S`` the plain stem, ``A`` the
    아/어 form, ``U`` the 으 form; a following letter in parentheses joins the last syllable: ``A(ㅆ)어요``, ``U(ㄹ)게요``.
    """
    word, _, irregular = entry.partition("/")
    if not word.endswith("다") or len(word) < 2:
        raise ConfigError(f"{entry!r} is not a Korean dictionary form in -다")
    if irregular not in ("", "ㅂ", "ㄷ", "ㅅ", "르"):
        raise ConfigError(f"unknown irregular class {irregular!r} of {entry!r}; known: ㅂ, ㄷ, ㅅ, 르")
    if (parts := _ENDING.fullmatch(ending)) is None:
        raise ConfigError(f"ending {ending!r} must begin with S, A or U, and may join one letter: A(ㅆ)어요")
    form, joined, rest = parts.groups("")
    stem = word[:-1]
    if form == "S":
        body = stem
    elif form == "A":
        body = infinitive(stem, irregular)
    else:
        body = _eu_form(stem, irregular, before=joined or rest[:1])
    return _with_tail(body, joined) + rest


def infinitive(stem: str, irregular: str = "") -> str:
    """The 아/어 form with the contractions of speech: 마시 -> 마셔, 보 -> 봐, 맵/ㅂ -> 매워, 고르/르 -> 골라."""
    if stem.endswith("하"):
        return stem[:-1] + "해"
    lead, vowel, tail = decompose(stem[-1])
    letter = "ㅏㅐㅑㅒㅓㅔㅕㅖㅗㅘㅙㅚㅛㅜㅝㅞㅟㅠㅡㅢㅣ"[vowel]
    if irregular == "ㅂ":
        # only the one-syllable stems 돕 and 곱 keep vowel harmony
        return _before_vowel(stem, irregular) + ("와" if stem in ("돕", "곱") else "워")
    if irregular == "르":
        return stem[:-2] + _with_tail(stem[-2], "ㄹ") + ("라" if _is_bright(stem[-2]) else "러")
    if tail:
        return _before_vowel(stem, irregular) + ("아" if letter in "ㅏㅑㅗ" else "어")
    if letter == "ㅡ":
        bright = len(stem) > 1 and _is_bright(stem[-2])
        return stem[:-1] + compose(lead, _VOWEL["ㅏ" if bright else "ㅓ"], 0)
    contracted = {"ㅗ": "ㅘ", "ㅜ": "ㅝ", "ㅣ": "ㅕ", "ㅚ": "ㅙ"}.get(letter)
    if contracted:
        return stem[:-1] + compose(lead, _VOWEL[contracted], 0)
    return stem if letter in "ㅏㅐㅓㅔㅕ" else stem + "어"


def _eu_form(stem: str, irregular: str, before: str) -> str:
    """Stem before an ending in (으): 먹으-, 가-, 만들- (which loses ㄹ before ㄴ, ㅅ, ㅂ and another ㄹ)."""
    tail = decompose(stem[-1])[2]
    if tail == _TAIL["ㄹ"] and not irregular:
        return _opened(stem) if before in ("ㄹ", "ㄴ", "ㅂ", "니", "세", "시") else stem
    return _before_vowel(stem, irregular) + ("우" if irregular == "ㅂ" else "으" if tail else "")


def _before_vowel(stem: str, irregular: str) -> str:
    """The stem as irregular verbs have it before a vowel: 맵/ㅂ -> 매, 듣/ㄷ -> 들, 낫/ㅅ -> 나."""
    if irregular not in ("ㅂ", "ㄷ", "ㅅ"):
        return stem
    return _with_tail(_opened(stem), "ㄹ" if irregular == "ㄷ" else "")


def _opened(text: str) -> str:
    """``text`` without the final consonant of its last syllable."""
    lead, vowel, _ = decompose(text[-1])
    return text[:-1] + compose(lead, vowel, 0)


def _is_bright(syllable: str) -> bool:
    return decompose(syllable)[1] in (_VOWEL["ㅏ"], _VOWEL["ㅑ"], _VOWEL["ㅗ"])


def _with_tail(text: str, letter: str) -> str:
    """``text`` with ``letter`` as the final consonant of its last, open syllable; ConfigError for one that is closed."""
    if not letter:
        return text
    lead, vowel, tail = decompose(text[-1])
    if tail or letter not in _TAIL:
        raise ConfigError(f"({letter}) cannot join {text!r}: one of {', '.join(filter(None, _TAIL))} after a vowel can")
    return text[:-1] + compose(lead, vowel, _TAIL[letter])
