"""Phonemes as espeak-ng writes them, in the signs that Kokoro was trained with.

Kokoro knows English, Spanish and Japanese among others; Korean is approximated by its Japanese and aspirated consonants.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass

from fl.core.rng import derive_random

_LANGUAGE_MARK = re.compile(r"\([a-z-]+\)")  # where espeak-ng changes its voice for a foreign word

# Kokoro writes a diphthong and an affricate with one sign each
_COMMON = {"eɪ": "A", "aɪ": "I", "aʊ": "W", "ɔɪ": "Y", "oʊ": "O", "tʃ": "ʧ", "dʒ": "ʤ", "ts": "ʦ", "dz": "ʣ"}
_SIGNS: Mapping[str, Mapping[str, str]] = {
    "en": {**_COMMON, "ɚɹ": "əɹ", "ɚ": "əɹ", "ɜːɹ": "ɜɹ", "ɜː": "ɜɹ", "ɐ": "ə", "r": "ɹ", "ː": "", "ʲ": ""},
    "es": {"tʃ": "ʧ"},
    "ja": {"tɕ": "ʨ", "dʑ": "ʥ", "ts": "ʦ", "dz": "ʣ", "ɯᵝ": "ɯ", "ä": "a", "e̞": "e", "o̞": "o", "ɽ": "ɾ", "ũ": "ɴ",
           "ĩ": "ɴ", "ˈ": "", "ˌ": ""},
    "ko": {
        **{"tʃh": "ʨʰ", "tɕh": "ʨʰ", "tɕ": "ʨ", "tʃ": "ʨ", "dʑ": "ʥ", "dʒ": "ʥ", "ph": "pʰ", "th": "tʰ", "kh": "kʰ"},
        **{"qk-": "kk", "k-": "kk", "q-": "k", "q": "ɡ", "ɐ": "a", "ɫ": "l", "ˈ": "", "ˌ": "", "-": ""},
    },
}  # fmt: skip
_KOREAN_INITIAL = {"ɡ": "k", "d": "t"}  # lax stops have no voice at the beginning of a word


def kokoro_phonemes(ipa: str, language: str) -> str:
    """``ipa`` of espeak-ng's voice ``language`` ("ko", "en-us", "es-419", "ja") in the signs of Kokoro."""
    family = language.partition("-")[0]
    signs = _SIGNS.get(family, {})
    if signs:
        longest_first = "|".join(map(re.escape, sorted(signs, key=len, reverse=True)))
        ipa = re.sub(longest_first, lambda found: signs[found[0]], _LANGUAGE_MARK.sub("", ipa))
    if family == "ko":
        ipa = " ".join(_KOREAN_INITIAL.get(word[0], word[0]) + word[1:] for word in ipa.split())
    return ipa


_ACCENTS: Mapping[str, tuple[tuple[str, str], ...]] = {
    "ko": (
        ("f", "pʰ"), ("v", "b"), ("z", "ʥ"), ("ʒ", "ʥ"), ("θ", "s"), ("ð", "d"), ("æ", "ɛ"), ("ɔ", "o"),
        (r"(?<=[pbtdkɡfsʃθ])[ɹl]", "ɯɾ"), (r"s(?=[ptkmn])", "sɯ"),
        (r"(?<=[aɑɒeɛiɪoɔuʊʌəæɜ])ɹ", ""), ("ɹ", "ɾ"), (r"(?<=[ʧʤʃ])$", "i"), (r"(?<=[ptkbdɡs])$", "ɯ"),
    ),
    "ja": (
        ("f", "ɸ"), ("v", "b"), ("θ", "s"), ("ð", "z"), ("[æʌəɜ]", "a"), ("ɪ", "i"), ("ʊ", "ɯ"), (r"(?<=a)ɹ(?![aeiou])", ""),
        ("[lɹ]", "ɾ"), (r"([td])(?![aɑeɛiɪoɔuʊɯʌIAOWYjˈˌ])", r"\1o"), (r"([pbkɡszʃmɸɾ])(?![aɑeɛiɪoɔuʊɯʌIAOWYjˈˌ])", r"\1ɯ"),
    ),
    "es": (
        ("v", "b"), ("z", "s"), ("ʤ", "ʝ"), ("ʃ", "ʧ"), ("ɪ", "i"), ("ʊ", "u"), ("[æʌ]", "a"), ("ə", "e"), ("θ", "t"),
        ("ð", "d"), ("h", "x"), ("ɔ", "o"), ("ɹ", "ɾ"), (r"^s(?=[ptkmnl])", "es"), ("[mŋ]$", "n"),
    ),
}  # fmt: skip
"""How speakers of a first language say English: ``(pattern, replacement)`` on the phonemes of a word, in order. Korean has no f,
v, z, th and no clusters, Japanese none of them and one liquid, Spanish five vowels and no s before a consonant at the start
(Swan and Smith, Learner English, 2001)."""


@dataclass(frozen=True)
class Accent:
    """How one person says words of the other language: each rule of the first language changes a ``degree`` of the words, for
    ``person`` always the same ones."""

    first_language: str
    degree: float
    person: str

    def __call__(self, phonemes: str, language: str) -> str:
        """``phonemes`` of a run in ``language``; those of the first language stay."""
        if language.partition("-")[0] == self.first_language:
            return phonemes
        return " ".join(self._word(word) for word in phonemes.split())

    def _word(self, word: str) -> str:
        said = word
        for pattern, replacement in _ACCENTS.get(self.first_language, ()):
            if derive_random("accent", self.person, word, pattern).random() < self.degree:
                said = re.sub(pattern, replacement, said)
        return said
