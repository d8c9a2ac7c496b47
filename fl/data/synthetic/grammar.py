"""Sentences from a pair's grammar: expansion of patterns, then spelling. Nothing here knows of sound or of devices."""

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from random import Random
from typing import cast

from fl.data.synthetic.morphology import Agreement, Kind, Part, Phrase, Word, matrix_words
from fl.data.synthetic.pairs import Lexicon, Pair, function_of
from fl.errors import ConfigError

_TOKEN = re.compile(r"\{(?P<slot>[^}]*)\}|\[(?P<embedded>[^\]]*)\]|(?P<space>\s+)|(?P<literal>[^\s{\[]+)")
_SLOT = re.compile(
    r"(?:(?P<kind>matrix|loan|embedded):)?(?P<name>\w+)(?:\|(?P<function>\w+)(?::(?P<argument>[^|]+))?)?"
)

Spelling = Callable[[str, str], bool]
"""``(matrix spelling, latin spelling) -> True`` when this person writes the Latin one."""


@dataclass(frozen=True)
class Written:
    """A sentence as one person writes it. ``spans`` are its word parts with their language, in order; a loanword counts
    as the language of its spelling. ``loanwords`` are the (matrix, latin) spellings of those it holds."""

    text: str
    spans: tuple[tuple[str, str], ...]
    loanwords: tuple[tuple[str, str], ...]


@dataclass(frozen=True)
class Sentence:
    """Words before anyone has spelled them. ``level`` is one of ``pairs.LEVELS``."""

    words: tuple[Word, ...]
    level: str
    topic: str

    def key(self) -> str:
        """The sentence without its spelling: equal for two people who write the same words differently."""
        return " ".join("".join(part.text for part in word) for word in self.words).lower()

    def write(self, pair: Pair, latin: Spelling) -> Written:
        """Spell it: each loanword as ``latin`` decides."""
        words, spans, loans = [], [], []
        for word in self.words:
            pieces = []
            for part in word:
                use_latin = part.latin is not None and latin(part.text, part.latin)
                text = part.latin if part.latin is not None and use_latin else part.text
                pieces.append(text)
                spans.append((text, pair.embedded if use_latin or part.kind == "embedded" else pair.matrix))
                if part.latin is not None:
                    loans.append((part.text, part.latin))
            words.append("".join(pieces))
        return Written(" ".join(words), tuple(_join(self.words, spans, pair)), tuple(dict.fromkeys(loans)))

    def segments(self, pair: Pair) -> list[tuple[str, str]]:
        """Runs of one voice: ``(voice language, text to read)``. Loanwords are read in their matrix spelling by the
        matrix voice whatever the writer does, so that nothing in the sound tells the spelling."""
        runs: list[tuple[str, str]] = []
        for word in self.words:
            for index, part in enumerate(word):
                language = pair.embedded_voice if part.kind == "embedded" else pair.matrix_voice
                gap = "" if index else " "
                if runs and runs[-1][0] == language:
                    runs[-1] = (language, runs[-1][1] + gap + part.text)
                else:
                    runs.append((language, part.text))
        return runs


def generate(pair: Pair, *, level: str, topic: str, register: int, random: Random) -> Sentence:
    """One sentence of ``level`` about ``topic``; ConfigError when the pair's rules name something it does not define."""
    chosen = next((candidate for candidate in pair.topics if candidate.name == topic), None)
    if chosen is None:
        raise ConfigError(f"unknown topic {topic!r}; {pair.id} knows: {', '.join(t.name for t in pair.topics)}")
    lexicon = random.choice(chosen.frames)
    agreement = Agreement(register=register, endings=pair.endings)
    phrase = _Expansion(pair, lexicon, agreement, random).rule(level)
    return Sentence(phrase.words, level, topic)


class _Expansion:
    """The state of one sentence being made: which entries were used, and what must agree with them."""

    def __init__(self, pair: Pair, lexicon: Lexicon, agreement: Agreement, random: Random) -> None:
        self._pair, self._lexicon, self._agreement, self._random = pair, lexicon, agreement, random
        self._used: set[str] = set()

    def rule(self, name: str) -> Phrase:
        """Expand a random pattern of rule ``name``."""
        words: list[Word] = []
        sound, glue = "", False
        for token in _TOKEN.finditer(self._random.choice(self._pair.rules[name])):
            if token["space"]:
                glue = False
                continue
            phrase = self._token(token)
            if glue and words:
                words[-1] = words[-1] + phrase.words[0]
                words.extend(phrase.words[1:])
            else:
                words.extend(phrase.words)
            sound, glue = phrase.sound, True
        return Phrase(tuple(words), sound)

    def _token(self, token: re.Match[str]) -> Phrase:
        if token["slot"] is not None:
            return self._slot(token["slot"])
        if token["embedded"] is not None:
            words = tuple((Part(word, "embedded"),) for word in token["embedded"].split())
            return Phrase(words, token["embedded"].split()[-1])
        return Phrase(matrix_words(token["literal"]), token["literal"])

    def _slot(self, text: str) -> Phrase:
        match = _SLOT.fullmatch(text)
        if match is None:
            raise ConfigError(f"cannot read the slot {{{text}}}: write {{kind:category|function:argument}}")
        name = match["name"]
        is_rule = match["kind"] is None and name in self._pair.rules
        phrase = self.rule(name) if is_rule else self._pick(cast(Kind, match["kind"] or "matrix"), name)
        if match["function"] is not None:
            phrase = function_of(match["function"])(phrase, match["argument"] or "", self._agreement)
        return phrase

    def _pick(self, kind: Kind, category: str) -> Phrase:
        entries = self._lexicon.get((kind, category))
        if not entries:
            known = ", ".join(sorted(f"{k}:{c}" for k, c in self._lexicon))
            raise ConfigError(
                f"the patterns of {self._pair.id} name {kind}:{category}, which this topic lacks; it has {known}"
            )
        fresh = [entry for entry in entries if entry.sound not in self._used] or list(entries)
        entry = self._random.choice(fresh)
        self._used.add(entry.sound)
        return entry


def _join(words: Iterable[Word], spans: list[tuple[str, str]], pair: Pair) -> list[tuple[str, str]]:
    """Merge neighbouring parts of one word that are in one language (커피 + 를), so that only real switches split it."""
    merged: list[tuple[str, str]] = []
    position = 0
    for word in words:
        start = len(merged)
        for _ in word:
            text, language = spans[position]
            position += 1
            if len(merged) > start and merged[-1][1] == language:
                merged[-1] = (merged[-1][0] + text, language)
            else:
                merged.append((text, language))
    return merged
