"""Whether a base can write the texts of a corpus at all."""

import unicodedata
from collections import Counter
from collections.abc import Callable, Iterable

from fl.core.errors import IdiolectError, VocabularyError

SHOWN = 20


Rewriting = Callable[[str], str]
"""What a base makes of a text by turning it into ids and back."""


def missing_characters(texts: Iterable[tuple[str, str]], rewrite: Rewriting) -> list[tuple[str, int, str]]:
    """Characters of ``texts`` (where, text) that ``rewrite`` does not give back, with how often each stands there
    and where it stands first, the most frequent first.

    Case makes no difference: a vocabulary of one case writes every word.
    """
    counts: Counter[str] = Counter()
    first: dict[str, str] = {}
    for where, text in texts:
        for char in "".join(unicodedata.normalize("NFC", text).split()):
            counts[char] += 1
            first.setdefault(char, where)
    missing = [(char, count, first[char]) for char, count in counts.items() if not _writes(rewrite, char)]
    return sorted(missing, key=lambda found: (-found[1], found[0]))


def _writes(rewrite: Rewriting, char: str) -> bool:
    try:
        back = unicodedata.normalize("NFC", rewrite(char))
    except (IdiolectError, KeyError, ValueError):
        return False
    return char.casefold() in back.casefold()


def check_vocabulary(texts: Iterable[tuple[str, str]], rewrite: Rewriting, base: str) -> None:
    """Raises :class:`VocabularyError` that lists the characters which ``base`` cannot write, with counts, if there are any."""
    missing = missing_characters(texts, rewrite)
    if not missing:
        return
    listed = ", ".join(f"{char} (U+{ord(char):04X}) {count}x" for char, count, _ in missing[:SHOWN])
    more = f" and {len(missing) - SHOWN} more" if len(missing) > SHOWN else ""
    raise VocabularyError(
        f"{missing[0][2]}: base {base!r} cannot write {len(missing)} characters of these texts: {listed}{more}; choose a base "
        "that has them, extend its vocabulary, import with --plain (no punctuation, lower case), or leave the utterances out"
    )
