"""Who the people of a synthetic population are: voice, room, topics and habits, drawn from a seed and a name."""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from random import Random

from fl.core.rng import derive_random
from fl.data.synthetic.acoustics import Acoustics
from fl.data.synthetic.espeak import Voice
from fl.data.synthetic.grammar import Pair

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
_LEVEL_WEIGHTS = {"word": 0.5, "phrase": 0.3, "sentence": 0.2}


@dataclass(frozen=True)
class DeviceProfile:
    """Everything that is one person's own. ``switching_rate`` is the share of sentences with English in their sound;
    ``level_weights`` say how far a switch reaches; ``register`` is 0 casual, 1 polite; ``latin_share`` see
    SPELLING_HABITS."""

    name: str
    new_person: bool
    voice: Voice
    acoustics: Acoustics
    topics: tuple[str, ...]
    switching_rate: float
    level_weights: Mapping[str, float]
    register: int
    habit: str
    latin_share: float

    def writes_latin(self, matrix: str, latin: str) -> bool:
        """This person's habit, a ``Spelling``: the same answer for the same word, always, and it depends on nothing else."""
        digest = hashlib.sha256(f"{self.name}\0{matrix}\0{latin}".encode()).digest()
        return int.from_bytes(digest[:8], "little") / 2**64 < self.latin_share

    def draw_level(self, random: Random) -> str:
        """How far the next sentence switches: one of ``grammar.LEVELS``."""
        if random.random() >= self.switching_rate:
            return "none"
        levels = sorted(self.level_weights)
        return random.choices(levels, [self.level_weights[level] for level in levels])[0]

    def draw_topics(self, pair: Pair, random: Random) -> tuple[str, ...]:
        """The topics of which the next sentence has one: mostly this person's."""
        return self.topics if random.random() < PREFERRED_TOPICS else tuple(topic.name for topic in pair.topics)


def draw_profiles(pair: Pair, *, devices: int, new_people: int, seed: int) -> tuple[DeviceProfile, ...]:
    """Profiles of ``devices`` people named ``<pair>-00``... and ``new_people`` named ``<pair>-new-00``..., each with
    another espeak variant as long as the pair has any left."""
    names = [f"{pair.id}-{index:02d}" for index in range(devices)]
    names += [f"{pair.id}-new-{index:02d}" for index in range(new_people)]
    return tuple(_draw(pair, index, name, index >= devices, seed) for index, name in enumerate(names))


def _draw_topics(pair: Pair, couple: int, seed: int) -> tuple[str, ...]:
    """Two or three topics of two people who know each other."""
    random = derive_random(seed, "topics", couple)
    topics = [topic.name for topic in pair.topics]
    return tuple(sorted(random.sample(topics, min(len(topics), random.choice((2, 3))))))


def _draw(pair: Pair, index: int, name: str, new_person: bool, seed: int) -> DeviceProfile:
    habit, latin_share = SPELLING_HABITS[index % len(SPELLING_HABITS)]
    random = derive_random(seed, "profile", name)
    voice = Voice(
        variant=pair.variants[index % len(pair.variants)],
        rate=random.randint(172, 212),
        pitch=random.randint(38, 62),
        pitch_range=random.randint(30, 70),
    )
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
    )
