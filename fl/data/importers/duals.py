"""Dual transcripts of AI Hub, ``(A)/(B)``: how a word is spelled and how it was said, and the marks around them.

Which of the two comes first differs between corpora, so it is told and never guessed. A dual of an English word is a loanword
with both of its spellings, for free.
"""

import re
from collections.abc import Iterator

from fl.core.errors import CorpusError, TextError
from fl.data.importers.marks import Marks
from fl.data.importers.records import Options, Order, UnusableError
from fl.speech.text import normalize_text, script

_DUAL = re.compile(  # typing errors for the slash: ?, |, :, ;, !, \; a second slash marks the whole as a filler
    r"\((?P<first>[^()]*)\)(?:\s*/+\s*|(?P<space>\s*)[?|:;!\\](?P=space))\((?P<second>[^()]*)\)(?:/(?!\s*\())?"
)
_BROKEN = re.compile(r"\)/(?!\))|/\((?!\()")
MAX_NESTED = 4
_NAMES = "이름|상호명?|전화번호|전번|카드번호|계좌번호|주민번호|생년월일|주소|정당|소속|신원|계정|금융"
_SOUNDS = "웃음|목청|박수|노래|잡음|기침|숨소리"
# b/, also glued to words
_LETTER = r"(?<![A-Za-z\d])[{0}]/(?![a-z](?!/))|(?:(?<=[A-Z][A-Z])|(?<=\d))[{0}]/(?![A-Za-z\d])"

# The rules of ETRI, which KsponSpeech and most sets of AI Hub follow, and what other sets add. Signs between Latin letters or
# digits are words (A/S, 1/2, and/or, km/h, 1+1, C++).
BEFORE_DUALS = Marks(
    unusable={
        rf"&[^&\s]+&|#@?[가-힣]+\d*#|@(?:{_NAMES})\d*|[▲△○●□■]{{2,}}": "a masked name",  # silenced in the audio
        r"\(\(\s*x*\s*\)\)|" + _LETTER.format("u"): "unintelligible speech",
    },
    rules=(
        (r"(?<=/)\(\(([^()]*)\)\)|\(\(([^()]*)\)\)(?=/)", r"(\1\2)"),  # heard with doubt: half of a dual
        (r"\(\(([^()]*)\)\)", r"\1"),  # and elsewhere
        (r"\(([^()]*)\)\s*/\s*\(idiom\)|\(idiom\)\s*/\s*\(([^()]*)\)|\(@([^()/]+)\)", r"\1\2\3"),  # a technical term
        (r"\([A-Z]{2}:\s*([^()]*)\)", r" \1 "),  # (NO:), (SN:word): a noise, a word in noise
        (r"\{[^{}]*\}|(?<!\))/\((?:noise|bgm)\)|" + f"@(?:{_SOUNDS})", " "),
        (_LETTER.format("bnloi"), " "),  # breath, noise, laughter, others' voices; i is typed for l
        (r"(?<!\d)\*+|\*+(?!\d)", ""),  # unclear
        (r"\b([A-Za-z]+)\+\s+(?=\1[A-Za-z])", r"\1 "),  # K+ KBS
        (r"(?<=[가-힣)])/*\++/*(?=[가-힣A-Za-z\d(])", " "),  # broken off or repeated, glued to the next word
        (r"(?<=[가-힣)])/*\++/*|(?<!\S)\++(?=[가-힣]|\s|$)", ""),
        (r"(?<=[가-힣])~+(?=[\s.,?!]|$)", ""),  # drawn out
    ),
)
AFTER_DUALS = Marks(
    rules=(
        (r"(?<=[가-힣])/+(?=[가-힣A-Za-z\d(])", " "),  # a filler (아/), glued to the next word
        (r"(?<=[^\s/])/+(?=[\s.,?!]|$)|(?<!\S)/+(?=[가-힣]|\s|$)", ""),
    )
)


def spoken_text(text: str, where: str, options: Options) -> tuple[str, tuple[tuple[str, str], ...]]:
    """The side of every dual that ``options`` ask for, without marks unless they are to be kept, and the (matrix spelling, latin
    spelling) of the English words among the duals; one dual may lie in another.

    Raises :class:`CorpusError` where there are duals and no ``options.order``; :class:`UnusableError` for a dual that is not
    closed and for speech that nobody can transcribe.
    """
    keep = options.events == "keep"
    text = BEFORE_DUALS.clean(text, where, keep=keep)
    if (shown := _DUAL.search(text)) and not options.order:
        raise CorpusError(
            f"{where}: dual transcript {shown.group()!r}: does the spelling or the pronunciation come first? It differs between "
            "corpora; give --order spelling-first or --order pronunciation-first"
        )
    loanwords: dict[tuple[str, str], None] = {}
    for _ in range(MAX_NESTED):
        duals = list(_duals(text, options.order))
        loanwords.update((pair, None) for spelling, sound in duals if (pair := _loanword(spelling, sound)))
        chosen = iter(spelling if options.transcript == "spelling" else sound for spelling, sound in duals)
        text = _DUAL.sub(lambda match, chosen=chosen: next(chosen), text)  # type: ignore[misc]
    if unclosed := _BROKEN.search(text):
        start = max(0, unclosed.start() - 12)
        fault = f"a dual transcript is not closed near {text[start : unclosed.end() + 12]!r}; write (A)/(B)"
        raise UnusableError(where, "broken dual", fault)
    return AFTER_DUALS.clean(text, where, keep=keep), tuple(loanwords)


def _duals(text: str, order: Order) -> Iterator[tuple[str, str]]:
    """(spelling, pronunciation) of every innermost dual in ``text``."""
    for match in _DUAL.finditer(text):
        first, second = match["first"], match["second"]
        yield (first, second) if order == "spelling-first" else (second, first)


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


def reversed_votes(text: str, order: Order) -> int:
    """In how many duals more, of which one half has digits, signs or Latin letters, ``order`` takes that one, which people
    would write, for the pronunciation; negative where it takes it for the spelling."""
    return sum(_written(sound) - _written(spelling) for spelling, sound in _duals(text, order))


def _written(text: str) -> bool:
    return any(script(char) in ("latin", "digit") for char in text)
