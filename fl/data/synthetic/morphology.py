"""The table of agreement functions that sentence patterns may name, ``{slot|function:argument}``.

A function takes the expanded slot (a :class:`Phrase`), the argument and the :class:`Agreement` of the sentence so far,
and returns a new phrase. A new language pair needs a function here only for morphology that is not yet in the table.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Literal

from fl.core.errors import ConfigError
from fl.data.synthetic import korean, spanish

Kind = Literal["matrix", "loan", "embedded", "number"]


@dataclass(frozen=True)
class Part:
    """A piece of a word in one language. ``text`` is the matrix-script spelling (of an embedded word: its own), which
    is also what the voice reads; ``latin`` is the other spelling of a loanword, or a number in digits."""

    text: str
    kind: Kind
    latin: str | None = None


Word = tuple[Part, ...]


@dataclass(frozen=True)
class Phrase:
    """Words in order; ``sound`` is how the last one sounds in the matrix language (agreement follows it), ``mark`` what
    the lexicon notes about it (irregular class, gender)."""

    words: tuple[Word, ...]
    sound: str
    mark: str = ""

    def append(self, suffix: str) -> "Phrase":
        """The phrase with matrix text attached to its last word; spaces in it start new words."""
        first, *rest = suffix.split(" ")
        words = (*self.words[:-1], (*self.words[-1], Part(first, "matrix")), *matrix_words(" ".join(rest)))
        return replace(self, words=words)


@dataclass
class Agreement:
    """What later words of a sentence must agree with: speech register (0 casual, 1 polite), gender of the last noun."""

    register: int = 0
    gender: str = "m"
    endings: Mapping[str, tuple[str, ...]] = field(default_factory=dict)

    def ending(self, name: str) -> str:
        """The ending that the pair file gives for ``name`` in the current register."""
        if name not in self.endings:
            raise ConfigError(f"unknown ending {name!r}; the pair file defines: {', '.join(self.endings)}")
        forms = self.endings[name]
        return forms[min(self.register, len(forms) - 1)]


def matrix_words(text: str) -> tuple[Word, ...]:
    """Plain matrix-language text as words of one part each."""
    return tuple((Part(word, "matrix"),) for word in text.split())


def _particle(phrase: Phrase, argument: str, agreement: Agreement) -> Phrase:
    return phrase.append(korean.particle(phrase.sound, argument))


def _copula(phrase: Phrase, argument: str, agreement: Agreement) -> Phrase:
    return phrase.append(korean.particle(phrase.sound, agreement.ending("copula")))


def _ending(phrase: Phrase, argument: str, agreement: Agreement) -> Phrase:
    form = korean.conjugate(phrase.words[-1][0].text + phrase.mark, agreement.ending(argument))
    return replace(phrase, words=(*phrase.words[:-1], *matrix_words(form)))


def _light(phrase: Phrase, argument: str, agreement: Agreement) -> Phrase:
    return phrase.append(korean.conjugate("하다", agreement.ending(argument)))


def _article(phrase: Phrase, argument: str, agreement: Agreement) -> Phrase:
    agreement.gender = spanish.gender(phrase.sound, phrase.mark[1:])
    return replace(phrase, words=(*matrix_words(spanish.article(argument, agreement.gender)), *phrase.words))


def _agree(phrase: Phrase, argument: str, agreement: Agreement) -> Phrase:
    return replace(phrase, words=matrix_words(spanish.agree(phrase.words[-1][0].text, agreement.gender)))


def _verb(phrase: Phrase, argument: str, agreement: Agreement) -> Phrase:
    return replace(phrase, words=matrix_words(spanish.conjugate(phrase.words[-1][0].text, argument)))


def _a(phrase: Phrase, argument: str, agreement: Agreement) -> Phrase:
    """English indefinite article, by the first letter (the lexicons hold no exceptions such as *hour*)."""
    name = "an" if phrase.words[0][0].text[0] in "aeiou" else "a"
    return replace(phrase, words=((Part(name, "embedded"),), *phrase.words))


MORPHOLOGY: dict[str, Callable[[Phrase, str, Agreement], Phrase]] = {
    "particle": _particle,
    "copula": _copula,
    "ending": _ending,
    "light": _light,
    "article": _article,
    "agree": _agree,
    "verb": _verb,
    "a": _a,
}
