"""The symbols that a CTC head writes: which there are, text to their ids and exactly back."""

from __future__ import annotations

import hashlib
import json
import unicodedata
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from fl.bases.files import read_json
from fl.core.errors import BaseModelError, ConfigError, VocabularyError
from fl.settings.names import LATIN, OWN, TOKENS
from fl.speech import hangul

BLANK, SPACE = "<pad>", "|"  # the names of Wav2Vec2's own vocabularies
VOCABULARY_NAME, SETTINGS_NAME = "vocab.json", "tokenizer_config.json"
COMMON = tuple(  # printable ASCII without the word delimiter, and the letters of western European languages
    chr(code) for code in (*range(0x21, 0x7F), 0xA1, 0xBF, *range(0xC0, 0x100)) if chr(code) not in f"{SPACE}×÷"
)
MOST_LISTED = 20
MAX_SYMBOLS = 200_000


def tokens_inventory(tokens: str) -> tuple[str, ...]:
    """The symbols of a setting ``tokens``, the word delimiter included. Raises :class:`ConfigError` for an unknown one."""
    if tokens not in TOKENS or tokens == OWN:
        raise ConfigError(f"tokens {tokens!r} name no inventory: one of {', '.join(t for t in TOKENS if t != OWN)}")
    return (SPACE, *COMMON, *(() if tokens == LATIN else hangul.inventory(tokens)))


@dataclass(frozen=True)
class CtcVocabulary:
    """Symbol i is what output i of the head writes; ``form`` is that of Korean (:mod:`fl.speech.hangul`).

    ``special`` symbols (blank, unknown, start, end) are never part of a text. ``case`` is ``upper`` or ``lower`` where a
    vocabulary has Latin letters of one case only: text is then brought to it, which is the one thing that does not come back.
    """

    symbols: tuple[str, ...]
    blank: int
    form: str
    space: str = SPACE
    special: frozenset[str] = frozenset((BLANK,))
    case: str = ""

    @cached_property
    def _ids(self) -> dict[str, int]:
        ids = {symbol: index for index, symbol in enumerate(self.symbols) if symbol not in self.special}
        if self.space in ids:
            ids[" "] = ids.pop(self.space)
        return ids

    @property
    def digest(self) -> str:
        """Hexadecimal SHA-256 of what every id stands for."""
        facts = [self.symbols, self.blank, self.form, self.space, sorted(self.special), self.case]
        return hashlib.sha256(json.dumps(facts).encode()).hexdigest()

    def __len__(self) -> int:
        return len(self.symbols)

    def written(self, text: str) -> list[str]:
        """``text`` as symbols, a space as a space, whether the vocabulary has them or not."""
        return hangul.split(self._cased(text), self.form)

    def _cased(self, text: str) -> str:
        return text.upper() if self.case == "upper" else text.lower() if self.case == "lower" else text

    def missing(self, texts: Iterable[str]) -> Counter[str]:
        """The symbols of ``texts`` that the vocabulary lacks, with how often they occur."""
        found: Counter[str] = Counter()
        for text in texts:
            found.update(symbol for symbol in self.written(text) if symbol not in self._ids)
        return found

    def require(self, texts: Iterable[str], source: str = "the text") -> None:
        """Raise :class:`VocabularyError`, which lists what is missing with counts, unless all ``texts`` can be written."""
        missing = self.missing(texts)
        if not missing:
            return
        listed = [
            f"{symbol!r} ({' '.join(f'U+{ord(char):04X}' for char in symbol)}) {count}x"
            for symbol, count in missing.most_common(MOST_LISTED)
        ]
        more = f" and {len(missing) - MOST_LISTED} more" if len(missing) > MOST_LISTED else ""
        raise VocabularyError(
            f"{source} has {missing.total()} characters that the vocabulary of {len(self)} symbols lacks: {', '.join(listed)}{more}. "
            f"Normalize the text, or extend the vocabulary with tokens = {', '.join(t for t in TOKENS if t != OWN)}."
        )

    def encode(self, text: str) -> list[int]:
        """Ids of ``text``. Raises :class:`VocabularyError` for characters that are missing."""
        ids = [self._ids.get(symbol, -1) for symbol in self.written(text)]
        if -1 in ids:
            self.require([text], f"the text {text[:40]!r}")
        return ids

    def decode(self, ids: Sequence[int]) -> str:
        """The NFC text of ``ids`` (blanks and repetitions taken out before), with single spaces and none at the ends."""
        symbols = [self.symbols[index] for index in ids]
        text = hangul.join((" " if s == self.space else s for s in symbols if s not in self.special), self.form)
        return " ".join(text.split())

    def extended(self, tokens: str) -> CtcVocabulary:
        """This vocabulary with the symbols of ``tokens`` that it lacks behind its own, and Korean in their form."""
        form = self.form if tokens == LATIN else tokens
        known = set(self.symbols)
        # A symbol whose other case is more than one letter, as of ß, stays as it is; so does the break.
        wanted = [cased if len(cased := self._cased(s)) == 1 else s for s in tokens_inventory(tokens)]
        added = [s for s in dict.fromkeys(wanted) if s not in known and not (s == SPACE and self.space in known)]
        return CtcVocabulary((*self.symbols, *added), self.blank, form, self.space, self.special, self.case)

    def save(self, folder: Path) -> None:
        """Write ``vocab.json`` and ``tokenizer_config.json`` as transformers' Wav2Vec2CTCTokenizer reads them."""
        ids = {symbol: index for index, symbol in enumerate(self.symbols)}
        settings = {
            "tokenizer_class": "Wav2Vec2CTCTokenizer",
            "pad_token": self.symbols[self.blank],
            "unk_token": self.symbols[self.blank],
            "word_delimiter_token": self.space,
            "do_lower_case": False,
        }
        (folder / VOCABULARY_NAME).write_text(json.dumps(ids, ensure_ascii=False, indent=0), encoding="utf-8")
        (folder / SETTINGS_NAME).write_text(json.dumps(settings, ensure_ascii=False, indent=1), encoding="utf-8")


def make_vocabulary(tokens: str) -> CtcVocabulary:
    """A vocabulary of the project's own: the blank, and the inventory of ``tokens``."""
    return CtcVocabulary((BLANK, *tokens_inventory(tokens)), 0, hangul.SYLLABLES if tokens == LATIN else tokens)


def load_vocabulary(folder: Path, *, size: int, blank: int) -> CtcVocabulary:
    """The vocabulary of a folder in the layout of Wav2Vec2CTCTokenizer, for a head of ``size`` outputs.

    Its form of Korean is read off what it holds. Raises :class:`BaseModelError` that names the file at fault.
    """
    path = folder / VOCABULARY_NAME
    if not path.is_file():
        raise BaseModelError(
            f"{folder} has no {VOCABULARY_NAME}: a CTC base needs the vocabulary of its head. A Wav2Vec2 that was only pretrained "
            "without text has none: fine-tune it with a CTC head first, or take another base."
        )
    ids = read_json(path)
    if not 0 < len(ids) <= MAX_SYMBOLS or not all(type(index) is int and 0 <= index < size for index in ids.values()):
        raise BaseModelError(f"{path} does not give each symbol an output of the head, from 0 to {size - 1}.")
    symbols = [f"<unused{index}>" for index in range(size)]
    for symbol, index in ids.items():
        symbols[int(str(index))] = unicodedata.normalize("NFC", symbol) if len(symbol) == 1 else symbol
    if len(set(symbols)) != size or not 0 <= blank < size:
        raise BaseModelError(f"{path} names an output twice, or the blank {blank} is none of its {size} outputs.")
    settings = read_json(folder / SETTINGS_NAME) if (folder / SETTINGS_NAME).is_file() else {}
    space = str(settings.get("word_delimiter_token") or SPACE)
    special = frozenset(s for s in symbols if len(s) > 1 and s not in (space, hangul.BREAK)) | {symbols[blank]}
    letters = [s for s in symbols if len(s) == 1 and s.isascii()]
    upper, lower = any(map(str.isupper, letters)), any(map(str.islower, letters))
    case = "upper" if upper and not lower else "lower" if lower and not upper else ""
    return CtcVocabulary(tuple(symbols), blank, _form(symbols), space, special, case)


def _form(symbols: Sequence[str]) -> str:
    """Conjoining letters, else whole syllables, else compatibility letters; syllables where there is no Korean."""
    if any(symbol in hangul.CONJOINING for symbol in symbols):
        return hangul.JAMO
    if any(len(symbol) == 1 and hangul.is_syllable(symbol) for symbol in symbols):
        return hangul.SYLLABLES
    return hangul.COMPAT_JAMO if hangul.COMPATIBILITY[0] in symbols else hangul.SYLLABLES
