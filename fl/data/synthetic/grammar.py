"""A language pair and its sentences: expansion of patterns, then spelling. Nothing here knows of sound or of devices."""

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from graphlib import CycleError, TopologicalSorter
from itertools import product
from random import Random
from typing import cast

from fl.core.errors import ConfigError
from fl.core.rng import derive_random
from fl.data.synthetic.morphology import MORPHOLOGY, Agreement, Kind, Part, Phrase, Word, matrix_words

_TOKEN = re.compile(r"\{(?P<slot>[^}]*)\}|\[(?P<embedded>[^\]]*)\]|(?P<space>\s+)|(?P<literal>[^\s{\[]+)")
_SLOT = re.compile(
    r"(?:(?P<kind>matrix|loan|embedded):)?(?P<name>\w+)(?:\|(?P<function>\w+)(?::(?P<argument>[^|]+))?)?"
)

LEVELS = ("none", "word", "phrase", "sentence")
"""Start symbols of a grammar. "none" switches no language; the others name the largest thing switched."""

Lexicon = Mapping[tuple[Kind, str], tuple[Phrase, ...]]
"""Entries by (kind, category)."""


@dataclass(frozen=True)
class Topic:
    """What people talk about: a lexicon for each *frame*, a set of objects with the verbs that suit them."""

    name: str
    frames: tuple[Lexicon, ...]


@dataclass(frozen=True)
class TraitWords:
    """What the traits of people need of a pair: fillers; numbers (spelled, in digits) and where they stand ({}); words that
    some write without a space before them; parts of which names, and terms, are made."""

    fillers: tuple[str, ...] = ()
    numbers: tuple[tuple[str, str], ...] = ()
    number_frame: str = "{}"
    joined: frozenset[str] = frozenset()
    names: tuple[tuple[Phrase, ...], ...] = ()
    jargon: tuple[tuple[Phrase, ...], ...] = ()


@dataclass(frozen=True)
class Pair:
    """A matrix language, an embedded one, and a grammar that mixes them."""

    id: str
    matrix: str
    embedded: str
    matrix_voice: str
    embedded_voice: str
    variants: tuple[str, ...]
    endings: Mapping[str, tuple[str, ...]]
    rules: Mapping[str, tuple[str, ...]]
    topics: tuple[Topic, ...]
    # not in the digest of populations without traits, nor in that of pairs without readings
    traits: TraitWords = field(default=TraitWords(), repr=False)
    readings: Mapping[str, str] = field(default_factory=dict, repr=False)

    def entries(self) -> Iterator[tuple[Kind, Phrase]]:
        """Every lexicon entry with its kind; an entry that several frames share comes once for each."""
        for topic in self.topics:
            for frame in topic.frames:
                for (kind, _), phrases in frame.items():
                    for phrase in phrases:
                        yield kind, phrase

    def loanwords(self) -> dict[str, str]:
        """Matrix spelling -> Latin spelling of all loanwords."""
        parts = (phrase.words[0][0] for kind, phrase in self.entries() if kind == "loan")
        return {part.text: part.latin for part in parts if part.latin is not None}


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
    """Words before anyone has spelled them. ``level`` is one of LEVELS."""

    words: tuple[Word, ...]
    level: str

    def key(self) -> str:
        """The sentence without its spelling: equal for two people who write the same words differently."""
        return " ".join("".join(part.text for part in word) for word in self.words).lower()

    def write(self, pair: Pair, latin: Spelling, *, joining: bool = False) -> Written:
        """Spell it: each loanword and number as ``latin`` decides; ``joining`` leaves the space before some words out."""
        words: list[str] = []
        spans, loans = [], []
        for word in self.words:
            runs: list[tuple[str, str]] = []  # 커피 + 를 is one: only real switches split a word
            for part in word:
                use_latin = part.latin is not None and latin(part.text, part.latin)
                text = part.latin if part.latin is not None and use_latin else part.text
                foreign = part.kind == "embedded" or (use_latin and part.kind == "loan")
                _extend(runs, text, pair.embedded if foreign else pair.matrix)
                if part.latin is not None:
                    loans.append((part.text, part.latin))
            text = "".join(text for text, _ in runs)
            if joining and words and text in pair.traits.joined:
                words[-1] += text
            else:
                words.append(text)
            spans += runs
        return Written(" ".join(words), tuple(spans), tuple(dict.fromkeys(loans)))

    def segments(self, pair: Pair) -> list[tuple[str, str]]:
        """Runs of one voice: ``(text to read, voice language)``. Loanwords are read in their matrix spelling by the
        matrix voice whatever the writer does, so that nothing in the sound tells the spelling."""
        runs: list[tuple[str, str]] = []
        for word in self.words:
            for index, part in enumerate(word):
                language = pair.embedded_voice if part.kind == "embedded" else pair.matrix_voice
                _extend(runs, part.text, language, gap="" if index else " ")
        return [(_read(text, pair.readings), language) for text, language in runs] if pair.readings else runs


def _read(text: str, readings: Mapping[str, str]) -> str:
    """``text`` as it is read: the longest entries of ``readings`` replaced."""
    longest_first = "|".join(map(re.escape, sorted(readings, key=len, reverse=True)))
    return re.sub(longest_first, lambda found: readings[found[0]], text)


def _extend(runs: list[tuple[str, str]], text: str, language: str, gap: str = "") -> None:
    """Add ``text``, to the last run if that is in the same language."""
    if runs and runs[-1][1] == language:
        runs[-1] = (runs[-1][0] + gap + text, language)
    else:
        runs.append((text, language))


def generate(pair: Pair, *, level: str, topic: str, register: int, random: Random) -> Sentence:
    """One sentence of ``level`` about ``topic``; ConfigError when the pair's rules name something it does not define."""
    chosen = next((candidate for candidate in pair.topics if candidate.name == topic), None)
    if chosen is None:
        raise ConfigError(f"unknown topic {topic!r}; {pair.id} knows: {', '.join(t.name for t in pair.topics)}")
    lexicon = random.choice(chosen.frames)
    return Sentence(_Expansion(pair, lexicon, register, random).rule(level).words, level)


class _Expansion:
    """The state of one sentence being made: which entries were used, and what must agree with them."""

    def __init__(self, pair: Pair, lexicon: Lexicon, register: int, random: Random) -> None:
        self._pair, self._lexicon, self._random = pair, lexicon, random
        self.agreement = Agreement(register=register, endings=pair.endings)
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
            slot = _read_slot(token["slot"])
            phrase = self.rule(slot.name) if slot.is_rule(self._pair) else self._pick(slot)
            return slot.apply(phrase, self.agreement)
        if token["embedded"] is not None:
            words = tuple((Part(word, "embedded"),) for word in token["embedded"].split())
            return Phrase(words, token["embedded"].split()[-1])
        return Phrase(matrix_words(token["literal"]), token["literal"])

    def _pick(self, slot: "_GrammarSlot") -> Phrase:
        entries = slot.entries(self._pair, self._lexicon)
        fresh = [entry for entry in entries if entry.sound not in self._used] or list(entries)
        entry = self._random.choice(fresh)
        self._used.add(entry.sound)
        return entry


@dataclass(frozen=True)
class _GrammarSlot:
    """``{kind:name|function:argument}``; without a kind, the name of a rule comes before one of a category."""

    kind: Kind | None
    name: str
    function: str | None
    argument: str

    def is_rule(self, pair: Pair) -> bool:
        return self.kind is None and self.name in pair.rules

    def entries(self, pair: Pair, lexicon: Lexicon) -> tuple[Phrase, ...]:
        kind: Kind = self.kind or "matrix"
        entries = lexicon.get((kind, self.name))
        if not entries:
            known = ", ".join(sorted(f"{k}:{c}" for k, c in lexicon))
            raise ConfigError(f"the patterns of {pair.id} name {kind}:{self.name}, which a topic lacks; it has {known}")
        return entries

    def apply(self, phrase: Phrase, agreement: Agreement) -> Phrase:
        if self.function is None:
            return phrase
        if self.function not in MORPHOLOGY:
            raise ConfigError(f"unknown function {self.function!r} in a pattern; known: {', '.join(MORPHOLOGY)}")
        return MORPHOLOGY[self.function](phrase, self.argument, agreement)


def _read_slot(text: str) -> _GrammarSlot:
    match = _SLOT.fullmatch(text)
    if match is None:
        raise ConfigError(f"cannot read the slot {{{text}}}: write {{kind:category|function:argument}}")
    return _GrammarSlot(cast(Kind | None, match["kind"]), match["name"], match["function"], match["argument"] or "")


def check_grammar(pair: Pair) -> None:
    """Try every slot of every pattern with every entry that it can take, in each register.

    Raises ConfigError for a slot that cannot be read or filled, a rule that leads back to itself, and an entry that its
    function cannot inflect.
    """
    slots = {
        name: {_read_slot(token["slot"]) for pattern in patterns for token in _TOKEN.finditer(pattern) if token["slot"]}
        for name, patterns in pair.rules.items()
    }
    try:
        TopologicalSorter({name: {s.name for s in found if s.is_rule(pair)} for name, found in slots.items()}).prepare()
    except CycleError as error:
        raise ConfigError(f"rule {error.args[1][0]!r} leads back to itself, so a sentence would never end") from None
    frames = [frame for topic in pair.topics for frame in topic.frames]
    registers = range(max((len(forms) for forms in pair.endings.values()), default=1))
    for slot, lexicon, register in product(sorted(set().union(*slots.values()), key=repr), frames, registers):
        expansion = _Expansion(pair, lexicon, register, derive_random("check", pair.id, slot.name))
        for phrase in (expansion.rule(slot.name),) if slot.is_rule(pair) else slot.entries(pair, lexicon):
            slot.apply(phrase, expansion.agreement)
