"""Who the people of a synthetic population are: voice, room, topics and habits, drawn from a seed and a name."""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from random import Random

from fl.core.errors import ConfigError
from fl.core.rng import derive_random
from fl.data.synthetic.acoustics import Acoustics
from fl.data.synthetic.engines import ENGINES
from fl.data.synthetic.espeak import Voice
from fl.data.synthetic.grammar import Pair
from fl.data.synthetic.kokoro import NeuralVoice
from fl.data.synthetic.traits import TRAITS, degree_of

SPELLING_HABITS = (
    ("matrix", 0.03),
    ("latin", 0.97),
    ("matrix", 0.06),
    ("latin", 0.94),
    ("mixed", 0.5),
    ("mixed", 0.35),
    ("latin", 1.0),
    ("matrix", 0.0),
)
"""Habit and share of the loanwords that a person writes in Latin script. People take them in this order, so a population
of any size holds writers of each kind, and about as many of one as of the other: no single spelling suits all.

Neighbours in this order talk about the same topics. If each person had topics alone, most words would be one person's, and a
model could settle the spelling word by word: with topics drawn for each person, the best single spelling of every word
left 5 % of MER to a perfect ear (seed 101), when writing each loanword the other way would cost 28 %."""

PREFERRED_TOPICS = 0.85  # share of the sentences that are about a person's own topics
OPPOSITE = {"matrix": "latin", "latin": "matrix", "mixed": "mixed"}
_LEVEL_WEIGHTS = {"word": 0.5, "phrase": 0.3, "sentence": 0.2}


@dataclass(frozen=True)
class DeviceProfile:
    """Everything that is one person's own. ``switching_rate`` is the share of sentences with English in their sound;
    ``level_weights`` say how far a switch reaches; ``register`` is 0 casual, 1 polite; ``latin_share`` see
    SPELLING_HABITS. ``matched_to`` is the other one of a matched pair, who writes the other way: see :func:`draw_profiles`.
    ``traits`` are the degrees of :data:`fl.data.synthetic.traits.TRAITS`."""

    name: str
    new_person: bool
    voice: Voice | NeuralVoice
    acoustics: Acoustics
    topics: tuple[str, ...]
    switching_rate: float
    level_weights: Mapping[str, float]
    register: int
    habit: str
    latin_share: float
    matched_to: str = ""
    traits: Mapping[str, float] = field(default_factory=dict)

    @property
    def likeness(self) -> str:
        """What everything but writing is drawn from: this person's name, or that of the one whom this person is matched to."""
        return self.matched_to or self.name

    def writes_latin(self, matrix: str, latin: str) -> bool:
        """This person's habit, a ``Spelling``: the same answer for the same word, always, and it depends on nothing else."""
        if latin[0].isdigit():
            return degree_of(self.traits, "numbers") > 0.5
        digest = hashlib.sha256(f"{self.likeness}\0{matrix}\0{latin}".encode()).digest()
        drawn = int.from_bytes(digest[:8], "little") / 2**64
        return drawn >= 1 - self.latin_share if self.matched_to else drawn < self.latin_share

    @property
    def joins_words(self) -> bool:
        """Whether this person leaves out the spaces that may be left out."""
        return degree_of(self.traits, "spacing") > 0.5

    def draw_level(self, random: Random) -> str:
        """How far the next sentence switches: one of ``grammar.LEVELS``."""
        if random.random() >= self.switching_rate:
            return "none"
        levels = sorted(self.level_weights)
        return random.choices(levels, [self.level_weights[level] for level in levels])[0]

    def draw_topics(self, pair: Pair, random: Random) -> tuple[str, ...]:
        """The topics of which the next sentence has one: mostly this person's."""
        return self.topics if random.random() < PREFERRED_TOPICS else tuple(topic.name for topic in pair.topics)


def draw_profiles(
    pair: Pair,
    *,
    devices: int,
    new_people: int,
    seed: int,
    voices: str = "espeak",
    matched: bool = False,
    traits: Sequence[str] = (),
) -> tuple[DeviceProfile, ...]:
    """Profiles of ``devices`` people named ``<pair>-00``... and ``new_people`` named ``<pair>-new-00``..., each with
    another voice as long as the engine has any left.

    With ``matched`` neighbours are a matched pair: the same voice, room, microphone, topics and degrees of what is heard,
    and the opposite habit for every loanword and everything written. Nothing in the speech then tells how it is written.

    Raises ConfigError for an odd number of people to match.
    """
    names = [f"{pair.id}-{index:02d}" for index in range(devices)]
    names += [f"{pair.id}-new-{index:02d}" for index in range(new_people)]
    if not matched:
        return tuple(
            _draw(pair, index, name, index >= devices, seed, voices, traits) for index, name in enumerate(names)
        )
    if devices % 2 or new_people % 2:
        raise ConfigError(
            f"devices={devices} and new_people={new_people}: matched people come in pairs; give even numbers, or matched=False"
        )
    people: list[DeviceProfile] = []
    for couple, (name, other) in enumerate(zip(names[::2], names[1::2], strict=True)):
        one = _draw(pair, couple, name, 2 * couple >= devices, seed, voices, traits)
        people += one, _opposite(one, other)
    return tuple(people)


def _opposite(one: DeviceProfile, name: str) -> DeviceProfile:
    """Somebody who sounds like ``one`` and writes the other way."""
    traits = {key: 1 - degree if TRAITS[key].written else degree for key, degree in one.traits.items()}
    share = 1 - one.latin_share
    return replace(one, name=name, matched_to=one.name, habit=OPPOSITE[one.habit], latin_share=share, traits=traits)


def _draw_topics(pair: Pair, couple: int, seed: int) -> tuple[str, ...]:
    """Two or three topics of two people who know each other."""
    random = derive_random(seed, "topics", couple)
    topics = [topic.name for topic in pair.topics]
    return tuple(sorted(random.sample(topics, min(len(topics), random.choice((2, 3))))))


def _draw(
    pair: Pair, index: int, name: str, new_person: bool, seed: int, voices: str, traits: Sequence[str]
) -> DeviceProfile:
    habit, latin_share = SPELLING_HABITS[index % len(SPELLING_HABITS)]
    random = derive_random(seed, "profile", name)
    voice = ENGINES[voices].draw_voice(pair.variants, index, random)
    acoustics = Acoustics(
        low_hz=round(random.uniform(60, 280)),
        high_hz=round(random.choice((3600, 5000, 6500, 7600)) * random.uniform(0.95, 1.03)),
        snr_db=round(random.uniform(12, 32), 1),
        noise_tilt=random.choice((0.0, 0.5, 0.8)),
        rt60=round(random.uniform(0.12, 0.55), 2),
        direct_db=round(random.uniform(4, 14), 1),
        gain_db=round(random.uniform(-8, 3), 1),
    )
    weights = {level: weight * random.uniform(0.6, 1.4) for level, weight in _LEVEL_WEIGHTS.items()}
    total = sum(weights.values())
    return DeviceProfile(
        name=name,
        new_person=new_person,
        voice=voice,
        acoustics=acoustics,
        topics=_draw_topics(pair, index // 2, seed),
        switching_rate=round(random.uniform(0.45, 0.9), 2),
        level_weights={level: round(weight / total, 3) for level, weight in weights.items()},
        register=random.randrange(2),
        habit=habit,
        latin_share=latin_share,
        traits={trait: TRAITS[trait].degree(derive_random(seed, "trait", trait, name)) for trait in traits},
    )
