"""Dual transcripts of AI Hub, ``(A)/(B)``: how a word is spelled and how it was said, and the marks around them.

Which of the two comes first differs between corpora, so it is told and never guessed. A dual of an English word is a loanword
with both of its spellings, for free.
"""

import re

from fl.core.errors import CorpusError, TextError
from fl.data.importers.records import Options, Order, UnusableError
from fl.speech.text import normalize_text, script

_DUAL = re.compile(r"\(([^()]*)\)\s*/\s*\(([^()]*)\)")
_BROKEN = re.compile(r"\)/(?!\))|/\((?!\()")
_NOISE = re.compile(r"(?<![^\s])[bnlou]/(?![^\s])")  # breath, noise, laughter, others' voices: words of their own
_EVENT = re.compile(r"\{[^{}]*\}|@[가-힣]+")  # {laughing}, @웃음
_MASKED = re.compile(r"&[^&\s]+&")  # &name1&: the audio is silenced there
_UNHEARD = re.compile(r"\(\(\s*\)\)")
_GUESSED = re.compile(r"\(\(([^()]*)\)\)")  # heard with doubt
_MARKS = re.compile(
    r"(?<=[^\s])[/+*]+(?=[\s.,?!]|$)|(?<![^\s])[/+*]+(?![^\s])"
)  # 아/ filler, 모+ broken off, 뭐* unclear


def spoken_text(text: str, where: str, options: Options) -> tuple[str, tuple[tuple[str, str], ...]]:
    """The side of every dual that ``options`` ask for, without marks unless they are to be kept, and the (matrix spelling, latin
    spelling) of the English words among the duals.

    Raises :class:`CorpusError` where there are duals and no ``options.order``, :class:`UnusableError` for one that is not closed
    and for speech that nobody can transcribe.
    """
    if (shown := _DUAL.search(text)) and not options.order:
        raise CorpusError(
            f"{where}: dual transcript {shown.group()!r}: does the spelling or the pronunciation come first? It differs between "
            "corpora; give --order spelling-first or --order pronunciation-first"
        )
    duals = _duals(text, options.order)
    loanwords = tuple(dict.fromkeys(pair for spelling, sound in duals if (pair := _loanword(spelling, sound))))
    chosen = iter(spelling if options.transcript == "spelling" else sound for spelling, sound in duals)
    text = _DUAL.sub(lambda match: next(chosen), text)
    if unclosed := _BROKEN.search(text):
        start = max(0, unclosed.start() - 12)
        fault = f"a dual transcript is not closed near {text[start : unclosed.end() + 12]!r}; write (A)/(B)"
        raise UnusableError(where, "unclosed dual", fault)
    return text if options.events == "keep" else _without_marks(text, where), loanwords


def _duals(text: str, order: Order) -> list[tuple[str, str]]:
    """(spelling, pronunciation) of every dual in ``text``."""
    found = _DUAL.findall(text)
    return found if order == "spelling-first" else [(second, first) for first, second in found]


def _loanword(spelling: str, sound: str) -> tuple[str, str] | None:
    """(Hangul, Latin) of a dual of which one side is English in Latin letters and the other its sound in Hangul."""
    try:
        spelling, sound = normalize_text(spelling), normalize_text(sound)
    except TextError:
        return None
    scripts = {script(char) for char in spelling} - {"other"}
    if scripts == {"latin"} and {script(char) for char in sound} - {"other"} == {"hangul"}:
        return sound, spelling
    return None


def _without_marks(text: str, where: str) -> str:
    """``text`` without AI Hub's marks of noise and hesitation."""
    if _MASKED.search(text):
        raise UnusableError(where, "a masked name")
    if _UNHEARD.search(text):
        raise UnusableError(where, "unintelligible speech")
    text = _GUESSED.sub(r"\1", text)
    text = _EVENT.sub(" ", _NOISE.sub(" ", text))
    return " ".join(_MARKS.sub("", text).split())


def reversed_votes(text: str, order: Order) -> int:
    """In how many duals more, of which one half has digits, signs or Latin letters, ``order`` takes that one, which people
    would write, for the pronunciation; negative where it takes it for the spelling."""
    return sum(_written(sound) - _written(spelling) for spelling, sound in _duals(text, order))


def _written(text: str) -> bool:
    return any(script(char) in ("latin", "digit") for char in text)
