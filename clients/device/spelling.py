"""A device's spelling table: learned here from what its person wrote, kept here, and applied to what the server answers.

It says how the person spells, so it is never sent. How a table is made and applied: :mod:`fl.speech.spelling`.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from unicodedata import normalize

from clients.device.seal import Seal, SealedFolder
from fl.core.errors import StoreError
from fl.speech.spelling import SPELLING_NAME, SpellingTable, Written

MAX_SPELLING_BYTES = 16 * 2**20
FOLDS = 3


@dataclass(frozen=True)
class LearnedSpelling:
    """The table of all sentences; the transcripts of some, by place, as a table of other sentences respells them; and how many
    words that makes ``right`` and ``wrong``."""

    table: SpellingTable
    respelled: Mapping[int, str]
    right: int
    wrong: int

    @classmethod
    def of(cls, said: Sequence[str], heard: Mapping[int, str], known: Sequence[Written]) -> "LearnedSpelling":
        """Learn from what was ``said``, check with what was ``heard`` of it, by place; ``known`` is the lexicon."""
        respelled: dict[int, str] = {}
        right = wrong = 0
        for fold in range(FOLDS):
            others = SpellingTable.of_texts([text for i, text in enumerate(said) if i % FOLDS != fold], known)
            for i in (i for i in range(fold, len(said), FOLDS) if i in heard):
                respelled[i] = others.respell(heard[i])
                in_text = f" {' '.join(normalize('NFC', said[i]).split())} "
                for word in normalize("NFC", heard[i]).split():
                    before, after = (f" {one} " in in_text for one in (word, others.respell(word)))
                    right, wrong = right + (after and not before), wrong + (before and not after)
        return cls(SpellingTable.of_texts(said, known), respelled, right, wrong)

    @property
    def helps(self) -> bool:
        """Whether it makes no more words wrong than right in sentences that it was not learned from."""
        return self.wrong <= self.right


class SpellingStore:
    """The one table of a device, in ``folder``."""

    def __init__(self, folder: Path, seal: Seal | None = None) -> None:
        self._files = SealedFolder(folder, seal or Seal())

    def load(self) -> SpellingTable | None:
        """The table; None without one. :class:`fl.core.errors.AdapterError` or :class:`StoreError` for a damaged file."""
        path = self._files.folder / SPELLING_NAME
        if not path.exists():
            return None
        return SpellingTable.from_json(self._files.read(SPELLING_NAME, "spelling", MAX_SPELLING_BYTES), str(path))

    def set(self, table: SpellingTable) -> None:
        """Keep ``table`` from now on. Raises :class:`StoreError` for one that is too large, or on a full disk; the old one then stays."""
        if len(data := table.to_json()) > MAX_SPELLING_BYTES:
            raise StoreError(
                f"the spelling table would take {len(data):,} bytes of {MAX_SPELLING_BYTES:,}: give a smaller lexicon"
            )
        self._files.write(SPELLING_NAME, "spelling", data, "free some space; the old table is kept")
