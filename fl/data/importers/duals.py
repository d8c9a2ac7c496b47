"""Dual transcripts of AI Hub, ``(A)/(B)``: how a word is spelled and how it was said, and the marks around them.

Which of the two comes first differs between corpora, so it is told and never guessed. A dual of an English word is a loanword
with both of its spellings, for free.
"""

import re
from dataclasses import dataclass, replace
from typing import Literal

from fl.core.errors import CorpusError, TextError
from fl.data.importers.records import Options, Order, Transcript, UnusableError
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


@dataclass(frozen=True)
class DualText:
    """A transcript without marks, and (matrix spelling, latin spelling) of the English words that are in it."""

    text: str
    loanwords: tuple[tuple[str, str], ...]


def has_dual(text: str) -> bool:
    """Whether a dual transcript stands in ``text``."""
    return _DUAL.search(text) is not None


def spoken_text(text: str, where: str, options: Options) -> DualText:
    """The side that ``options`` ask for, without marks unless they are to be kept.

    Raises :class:`fl.data.importers.records.UnusableError` for speech that nobody can transcribe, and :func:`read_dual`'s.
    """
    found = read_dual(text, where, options.order, options.transcript)
    if options.events == "keep":
        return found
    clean, reason = remove_marks(found.text)
    if reason:
        raise UnusableError(where, reason)
    return replace(found, text=clean)


def read_dual(text: str, where: str, order: Order, transcript: Transcript) -> DualText:
    """One side of every dual in ``text``, and the loanwords among them.

    Raises :class:`CorpusError` where there are duals and no ``order``, and for one that is not closed.
    """
    if (shown := _DUAL.search(text)) and not order:
        raise CorpusError(
            f"{where}: dual transcript {shown.group()!r}: does the spelling or the pronunciation come first? It differs between "
            "corpora; give --order spelling-first or --order pronunciation-first"
        )
    loanwords: list[tuple[str, str]] = []

    def choose(match: re.Match[str]) -> str:
        first, second = match.group(1), match.group(2)
        spelling, sound = (first, second) if order == "spelling-first" else (second, first)
        if pair := _loanword(spelling, sound):
            loanwords.append(pair)
        return spelling if transcript == "spelling" else sound

    chosen = _DUAL.sub(choose, text)
    if broken := _BROKEN.search(chosen):
        start = max(0, broken.start() - 12)
        raise CorpusError(
            f"{where}: a dual transcript is not closed near {chosen[start : broken.end() + 12]!r}; write (A)/(B)"
        )
    return DualText(chosen, tuple(dict.fromkeys(loanwords)))


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


def remove_marks(text: str) -> tuple[str, Literal["", "a masked name", "unintelligible speech"]]:
    """``text`` without AI Hub's marks of noise and hesitation, and why it is no transcript of its audio, if it is not."""
    if _MASKED.search(text):
        return text, "a masked name"
    if _UNHEARD.search(text):
        return text, "unintelligible speech"
    text = _GUESSED.sub(r"\1", text)
    text = _EVENT.sub(" ", _NOISE.sub(" ", text))
    return " ".join(_MARKS.sub("", text).split()), ""


def looks_reversed(texts: list[str], order: Order) -> bool:
    """Whether what ``order`` takes for the pronunciation is what people write in most duals: digits, signs, Latin letters."""
    votes = 0
    for text in texts:
        for first, second in _DUAL.findall(text):
            spelling, sound = (first, second) if order == "spelling-first" else (second, first)
            votes += _written(sound) - _written(spelling)
    return votes > 0


def _written(text: str) -> int:
    return int(any(script(char) in ("latin", "digit") for char in text))
