"""Sentences of people who mix two languages, each word with the language that this person counts it as.

Texts come from the grammar of the synthetic speakers (:mod:`fl.data.synthetic`), without a voice. Every loanword stands in the
spelling of the matrix language, so nothing in a text tells its writer's habit; whether it counts as a word of the matrix or of
the embedded language is the person's own, as its spelling is in the speech population. All other words are what they are.
"""

from collections.abc import Iterator
from dataclasses import dataclass

from fl.core.errors import ConfigError
from fl.core.rng import derive_random
from fl.data.synthetic.grammar import Pair, Sentence, Spelling, generate
from fl.data.synthetic.morphology import Word
from fl.data.synthetic.pairs import load_pair
from fl.data.synthetic.voices import DeviceProfile, draw_profiles
from fl.settings.tables import DataTable
from fl.tasks.classifier import example_counts

TRIES = 200  # sentences drawn for each that is wanted, before the grammar is said to have no more


@dataclass(frozen=True)
class Tagged:
    """A sentence: its words, the language of each, the largest thing that is switched (None: nothing), a name for it."""

    key: str
    words: tuple[str, ...]
    languages: tuple[str, ...]
    level: str | None


@dataclass(frozen=True)
class TaggedPopulation:
    """Everybody's sentences, each person's made when they are asked for.

    A sentence belongs to a split by its own text and the seed, whoever says it: what anyone is tested on, nobody trained on.
    """

    pair: Pair
    people: dict[str, DeviceProfile]
    sentences: int
    sizes: dict[bool, dict[str, int]]  # of each split, of ``sentences`` together; True: of a held-out person
    seed: int

    @property
    def languages(self) -> tuple[str, str]:
        """The matrix language and the embedded one."""
        return self.pair.matrix, self.pair.embedded

    def split(self, sentence: Sentence) -> str:
        """The split to which a sentence belongs."""
        place = derive_random(self.seed, "split", sentence.key()).random() * self.sentences
        for name in ("test", "validation"):
            if place < self.sizes[False][name]:
                return name
            place -= self.sizes[False][name]
        return "train"

    def of(self, name: str) -> dict[str, list[Tagged]]:
        """The sentences of one person by split, none twice; a held-out person has only a test split.

        Raises :class:`ConfigError` if the grammar cannot make as many.
        """
        profile = self.people[name]
        wanted = self.sizes[profile.new_person]
        found: dict[str, list[Tagged]] = {split: [] for split in wanted}
        said: set[str] = set()
        decide = profile.writes_latin
        for sentence in self._drawn(profile, TRIES * sum(wanted.values())):
            split = self.split(sentence)
            if sentence.key() not in said and len(found[split]) < wanted[split]:
                said.add(sentence.key())
                found[split].append(self._tagged(f"{name}-{len(said) - 1:03d}", sentence, decide))
            if len(said) == sum(wanted.values()):
                return found
        raise ConfigError(
            f"the grammar of {self.pair.id} has not {sum(wanted.values())} sentences of {name!r} for these splits: "
            "lower sentences, or make validation-share and test-share more alike"
        )

    def _drawn(self, profile: DeviceProfile, count: int) -> Iterator[Sentence]:
        random = derive_random(self.seed, "sentences", profile.name)
        for _ in range(count):
            topics, level = profile.draw_topics(self.pair, random), profile.draw_level(random)
            topic = random.choice(topics)
            yield generate(self.pair, level=level, topic=topic, register=profile.register, random=random)

    def _tagged(self, key: str, sentence: Sentence, latin: Spelling) -> Tagged:
        return Tagged(
            key,
            tuple("".join(part.text for part in word) for word in sentence.words),
            tuple(self.pair.embedded if _embedded(word, latin) else self.pair.matrix for word in sentence.words),
            None if sentence.level == "none" else sentence.level,
        )


def _embedded(word: Word, latin: Spelling) -> bool:
    """Whether the word's stem is of the embedded language; endings and particles follow it."""
    stem = word[0]
    return stem.kind == "embedded" or (stem.latin is not None and latin(stem.text, stem.latin))


def make_population(data: DataTable, seed: int) -> TaggedPopulation:
    """The population that the settings under ``[data]`` describe.

    Raises :class:`ConfigError` for an unknown pair and for shares that leave nothing to train on.
    """
    grammar = load_pair(data.synthetic.pair)
    profiles = draw_profiles(grammar, devices=data.devices, new_people=data.new_people, seed=seed)
    sizes = {new: example_counts(data, new) for new in (False, True)}
    return TaggedPopulation(grammar, {p.name: p for p in profiles}, data.synthetic.sentences, sizes, seed)
