"""What a language pair is: voices, endings, sentence patterns and a lexicon by topic. ``loader`` reads it from a file."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from fl.data.synthetic.morphology import Kind, Phrase

LEVELS = ("none", "word", "phrase", "sentence")
"""Start symbols of a grammar. "none" switches no language; the others name the largest thing switched."""

KINDS: tuple[Kind, ...] = ("matrix", "loan", "embedded")
Lexicon = Mapping[tuple[Kind, str], tuple[Phrase, ...]]
"""Entries by (kind, category)."""


@dataclass(frozen=True)
class Topic:
    """What people talk about: a lexicon for each *frame*, a set of objects with the verbs that suit them."""

    name: str
    frames: tuple[Lexicon, ...]


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
