"""Whether a base can write the texts of a corpus at all."""

import unicodedata
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Protocol

from fl.core.errors import IdiolectError, VocabularyError

SHOWN = 20


class TextIds(Protocol):
    """What is asked of a tokenizer or a vocabulary: ids of a text, and the text of ids."""

    def encode(self, text: str) -> list[int]:
        """Ids of ``text``."""
        ...

    def decode(self, ids: Sequence[int]) -> str:
        """The text of ``ids``."""
        ...


@dataclass(frozen=True)
class MissingCharacter:
    """A character that a vocabulary cannot write: how often it stands in the texts, and where it stands first."""

    char: str
    count: int
    where: str


def missing_characters(texts: Iterable[tuple[str, str]], writer: TextIds) -> list[MissingCharacter]:
    """Characters of ``texts`` (where, text) that do not come back from encoding and decoding, the most frequent first.

    Case makes no difference: a vocabulary of one case writes every word.
    """
    counts: dict[str, int] = {}
    first: dict[str, str] = {}
    for where, text in texts:
        for char in unicodedata.normalize("NFC", text):
            if not char.isspace():
                counts[char] = counts.get(char, 0) + 1
                first.setdefault(char, where)
    lacking = [
        MissingCharacter(char, count, first[char]) for char, count in counts.items() if not _writes(writer, char)
    ]
    return sorted(lacking, key=lambda missing: (-missing.count, missing.char))


def _writes(writer: TextIds, char: str) -> bool:
    try:
        back = unicodedata.normalize("NFC", writer.decode(writer.encode(char)))
    except (IdiolectError, KeyError, ValueError):
        return False
    return char.casefold() in back.casefold()


def check_vocabulary(texts: Iterable[tuple[str, str]], writer: TextIds, base: str) -> None:
    """Raises :class:`VocabularyError` that lists the characters which ``base`` cannot write, with counts, if there are any."""
    missing = missing_characters(texts, writer)
    if not missing:
        return
    listed = ", ".join(f"{each.char} (U+{ord(each.char):04X}) {each.count}x" for each in missing[:SHOWN])
    more = f" and {len(missing) - SHOWN} more" if len(missing) > SHOWN else ""
    raise VocabularyError(
        f"{missing[0].where}: base {base!r} cannot write {len(missing)} characters of these texts: {listed}{more}; choose a base "
        "that has them, extend its vocabulary, import with --plain (no punctuation, lower case), or leave the utterances out"
    )
