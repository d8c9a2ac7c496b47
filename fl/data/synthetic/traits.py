"""The table of traits: what else than loanwords people say or write each in their own way, to a degree of their own.

A trait is drawn once for a person. What is *heard* is the same for both of a matched pair, what is *written* the opposite, so
that again nothing in the speech tells how it is written. Words that a trait adds are in the sound and in the text.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from random import Random

from fl.core.errors import ConfigError
from fl.core.rng import derive_random
from fl.data.synthetic.grammar import Pair, Sentence, TraitWords
from fl.data.synthetic.morphology import Kind, Part, Phrase, matrix_words

Change = Callable[[Sentence, TraitWords, float, Random, Random], Sentence]
"""``(sentence, words of the pair, degree, the person's own draws, the sentence's draws)`` -> the sentence as this person says it."""

NUMBER_SHARE = (
    0.4  # of the sentences, for everybody: the degree decides how numbers are written, not how often they are said
)
OWN_WORDS = 2  # names, and terms, of one person


@dataclass(frozen=True)
class Trait:
    """``degree`` draws a person's in [0, 1]. ``change`` alters sentences; ``own`` names the parts and the slot of words that a
    person alone uses, with the share of that slot they take. ``needs`` is the entry of ``[traits]`` in a pair file that it uses."""

    degree: Callable[[Random], float]
    written: bool = False
    change: Change | None = None
    own: tuple[Kind, str, float] | None = None
    needs: str = ""


def _filler(sentence: Sentence, words: TraitWords, degree: float, own: Random, random: Random) -> Sentence:
    favourite = own.choice(words.fillers)
    if random.random() >= degree:
        return sentence
    return replace(sentence, words=(*matrix_words(favourite), *sentence.words))


def _number(sentence: Sentence, words: TraitWords, degree: float, own: Random, random: Random) -> Sentence:
    if random.random() >= NUMBER_SHARE:
        return sentence
    spelled, digits = random.choice(words.numbers)
    before, _, after = words.number_frame.partition("{}")
    number = (Part(spelled, "number", digits), *((Part(after, "matrix"),) if after else ()))
    return replace(sentence, words=(*matrix_words(before), number, *sentence.words))


def _either(random: Random) -> float:
    return float(random.randrange(2))


def _any(random: Random) -> float:
    return round(random.random(), 2)


TRAITS: Mapping[str, Trait] = {
    "accent": Trait(degree=_any),
    "numbers": Trait(degree=_either, written=True, change=_number, needs="numbers"),
    "spacing": Trait(degree=_either, written=True, needs="joined"),
    "fillers": Trait(degree=lambda random: round(random.uniform(0.1, 0.6), 2), change=_filler, needs="fillers"),
    "names": Trait(degree=lambda _: 1.0, own=("matrix", "person", 1.0), needs="names"),
    "jargon": Trait(degree=lambda _: 1.0, own=("embedded", "object", 0.5), needs="jargon"),
}


def check_traits(names: str, pair: Pair) -> tuple[str, ...]:
    """The traits of a list such as ``"accent,numbers"``, in the order of the table.

    Raises ConfigError for an unknown one and for one of which the pair file says nothing.
    """
    wanted = {name.strip() for name in names.split(",") if name.strip()}
    if unknown := sorted(wanted - set(TRAITS)):
        raise ConfigError(f"unknown trait {unknown[0]!r}; known: {', '.join(TRAITS)}")
    for name in wanted:
        if TRAITS[name].needs and not getattr(pair.traits, TRAITS[name].needs):
            raise ConfigError(f"{pair.id} has no trait {name!r}: give {TRAITS[name].needs} under [traits] of its file")
    return tuple(name for name in TRAITS if name in wanted)


def with_own_words(pair: Pair, traits: Mapping[str, float], place: int, seed: int) -> Pair:
    """``pair`` with the names and terms that nobody but person ``place`` of the population uses."""
    for name in traits:
        if (own := TRAITS[name].own) is None:
            continue
        kind, category, share = own
        firsts, lasts = getattr(pair.traits, TRAITS[name].needs)
        every = [_joined(first, last, kind) for first in firsts for last in lasts]
        derive_random(seed, "trait", name).shuffle(every)
        mine = tuple(every[number % len(every)] for number in range(OWN_WORDS * place, OWN_WORDS * (place + 1)))
        topics = []
        for topic in pair.topics:
            frames = []
            for frame in topic.frames:
                others = frame[kind, category]
                repeated = mine * round(len(others) * share / (1 - share) / len(mine)) if share < 1 else mine
                frames.append({**frame, (kind, category): (*(others if share < 1 else ()), *repeated)})
            topics.append(replace(topic, frames=tuple(frames)))
        pair = replace(pair, topics=tuple(topics))
    return pair


def _joined(first: Phrase, last: Phrase, kind: Kind) -> Phrase:
    word = (Part(first.words[0][0].text + last.words[0][0].text, kind),)
    return Phrase((word,), first.sound + last.sound, last.mark)


def as_said(
    sentence: Sentence, pair: Pair, traits: Mapping[str, float], likeness: str, seed: int, random: Random
) -> Sentence:
    """``sentence`` as a person with these traits says it."""
    for name, degree in traits.items():
        if (change := TRAITS[name].change) is not None:
            own = derive_random(seed, "trait", name, likeness, "own")
            sentence = change(sentence, pair.traits, degree, own, random)
    return sentence


def degree_of(traits: Mapping[str, float], name: str) -> float:
    """The degree of trait ``name``, 0 for a person without it."""
    return traits.get(name, 0.0)
