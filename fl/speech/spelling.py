"""The spelling table: how a person spells loanwords, as that person's own transcripts show, applied to any transcript.

``커피`` or ``coffee``? Both are right, and a recognizer cannot hear which one a person writes. The table is private, as gates are: it
says what somebody wrote. It needs a lexicon: sentences of others, with the loanwords in both spellings.
"""

import json
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence, Set
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from unicodedata import category, normalize

from fl.core.encoding import likely_encoding
from fl.core.errors import AdapterError, ManifestError
from fl.core.files import write_atomically

SPELLING_NAME = "spelling.json"
CERTAIN = 0.75  # how likely a habit has to be to spell words by it that the person has not shown (python -m benchmarks.habits)
Spelled = tuple[str, str]  # a loanword in the matrix script and in Latin
Written = tuple[str, Sequence[Spelled]]  # a text, and the loanwords in it


@dataclass(frozen=True)
class SpellingTable:
    """Pairs ``(other spelling, the person's spelling)`` of every loanword that is known, the longest first.

    A word is respelled where it is a loanword with one of ``endings``, as particles are, and none of ``words``, which are other words.
    A capital at its beginning and the punctuation around it play no role.
    """

    pairs: tuple[Spelled, ...]
    endings: frozenset[str]
    words: frozenset[str]

    @classmethod
    def of(cls, own: Sequence[Written], known: Iterable[Written], certain: float = CERTAIN) -> "SpellingTable":
        """The table of a person's ``own`` sentences: words that were seen as they were written, others of ``known`` by the habit that
        they show, where it is ``certain``."""
        lexicon, endings, words = _words_of((*known, *own))
        latin: Counter[Spelled] = Counter()
        for text, loanwords in own:
            for matrix, other in loanwords:
                latin[matrix, other] += _vote(text, (matrix, other), endings)
        habit = _habit(latin.values(), certain)
        # What was seen outranks the habit where two pairs have a spelling in common.
        chosen = sorted(((pair, latin[pair] or habit) for pair in lexicon), key=lambda one: (-abs(latin[one[0]]), one))
        pairs = [pair if vote > 0 else pair[::-1] for pair, vote in chosen if vote]
        return cls(tuple(sorted(pairs, key=lambda pair: -len(pair[0]))), frozenset(endings), frozenset(words))

    @classmethod
    def of_texts(cls, own: Sequence[str], known: Sequence[Written]) -> "SpellingTable":
        """The same of texts alone: their loanwords are those of ``known`` that stand in them, in either spelling."""
        lexicon, endings, words = _words_of(known)
        spelled: dict[str, set[Spelled]] = {}
        for pair in lexicon:
            for one in pair:
                spelled.setdefault(_folded(one), set()).add(pair)

        def loanwords(text: str) -> list[Spelled]:
            each = _forms(text) - words
            cuts = ((word[:end], word[end:]) for word in each for end in range(1, len(word) + 1))
            return sorted({pair for one, ending in cuts if ending.lower() in endings for pair in spelled.get(one, ())})

        return cls.of([(text, loanwords(text)) for text in own], known)

    def respell(self, text: str) -> str:
        """``text`` with every known loanword as the person spells it."""
        return " ".join(
            self._respelled("".join(parts)) or parts[0] + (self._respelled(parts[1]) or parts[1]) + parts[2]
            for parts in _words(text)
        )

    @cached_property
    def _known(self) -> list[Spelled]:
        return [(_folded(other), own) for other, own in self.pairs]

    def _respelled(self, word: str) -> str:
        """``word`` as the person spells it, "" where that is not known."""
        folded = _folded(word)
        if folded not in self.words:
            for other, own in self._known:
                if folded.startswith(other) and (ending := folded[len(other) :].lower()) in self.endings:
                    return own + word[len(word) - len(ending) :]
        return ""

    def to_json(self) -> bytes:
        """The table as a file holds it."""
        content = {"schema": 1, "pairs": self.pairs, "endings": sorted(self.endings), "words": sorted(self.words)}
        return json.dumps(content, ensure_ascii=False, indent=1).encode()

    @classmethod
    def from_json(cls, data: bytes, source: str) -> "SpellingTable":
        """The inverse of :meth:`to_json`; :class:`AdapterError`, which names ``source``, for what is no table."""
        with suppress(ValueError, TypeError, KeyError, RecursionError):
            content = json.loads(data)
            pairs = tuple((str(other), str(own)) for other, own in content["pairs"])
            if content["schema"] == 1:
                endings, words = (map(str, content[key]) for key in ("endings", "words"))
                return cls(pairs, frozenset(map(str.lower, endings)), frozenset(map(_folded, words)))
        raise AdapterError(f"{source} is no spelling table: enrol again, or delete the file")

    def write(self, folder: Path) -> None:
        """Write the table beside an adapter."""
        write_atomically(folder / SPELLING_NAME, self.to_json())

    @classmethod
    def read(cls, folder: Path) -> "SpellingTable | None":
        """The table beside an adapter, if there is one. :class:`AdapterError` for a file that is none."""
        path = folder / SPELLING_NAME
        return cls.from_json(path.read_bytes(), str(path)) if path.exists() else None


def _habit(votes: Iterable[int], certain: float) -> int:
    """1 for somebody who writes loanwords in Latin, -1 in the matrix script, 0 where the words that were seen do not tell.

    How likely the next word is spelled as most were is its mean under Jeffreys' prior, by which people rather write all words one way.
    """
    signs = [(vote > 0) - (vote < 0) for vote in votes if vote]
    most = max(signs.count(1), signs.count(-1))
    return (sum(signs) > 0) - (sum(signs) < 0) if most + 0.5 >= certain * (len(signs) + 1) else 0


def _words(text: str) -> Iterator[tuple[str, str, str]]:
    """Each word of ``text`` between the punctuation around it."""
    for word in normalize("NFC", text).split():
        inner = [i for i, char in enumerate(word) if category(char)[0] in "LMN"] or [0, -1]
        yield word[: inner[0]], word[inner[0] : inner[-1] + 1], word[inner[-1] + 1 :]


def _folded(word: str) -> str:
    """``word`` in lower case, unless it is in capitals: ``IT`` is another word than ``it``."""
    return word if word.isupper() else word.lower()


def _forms(text: str) -> set[str]:
    """The folded words of ``text``, without the punctuation around them and with it, which may be a loanword's (``C++``)."""
    return {_folded(form) for before, core, after in _words(text) for form in (core, before + core + after)}


def _begins(word: str, pair: Spelled) -> str:
    """The spelling of ``pair`` with which a folded word begins, the longer of two; "" for neither."""
    return max((one for one in pair if word.startswith(_folded(one))), key=len, default="")


def _ending(word: str, one: str) -> str:
    """What follows a loanword in a folded word."""
    return word.removeprefix(_folded(one)).lower()


def _vote(text: str, pair: Spelled, endings: Set[str]) -> int:
    """1 where ``text`` has a loanword in Latin, -1 in the matrix script, 0 in both."""
    forms = _forms(text)
    begins = {one for word in forms if (one := _begins(word, pair)) and _ending(word, one) in endings}
    found = begins or {one for one in pair if one.lower() in text.lower()}  # scripts without spaces
    return (pair[1] in found) - (pair[0] in found)


def _words_of(sentences: Iterable[Written]) -> tuple[set[Spelled], set[str], set[str]]:
    """The loanwords of sentences, what follows one within a word in lower case, and all other words, folded."""
    lexicon, endings, others = set[Spelled](), {""}, set[str]()
    for text, loanwords in sentences:
        lexicon |= {(matrix, other) for matrix, other in loanwords}
        for before, core, _ in _words(text):
            forms = {_folded(core), _folded(before + core)}
            after = {_ending(word, one) for word in forms for pair in loanwords if (one := _begins(word, pair))}
            endings |= after
            others |= set() if after else {_folded(core)}
    return lexicon, endings, others


def read_lexicon(path: Path) -> list[Written]:
    """The sentences of a manifest with their loanwords; the recordings need not be there.

    Raises :class:`ManifestError` for a file without a loanword, or a line that is none of a manifest.
    """
    found: list[Written] = []
    data = path.read_bytes()
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        guess = (likely_encoding(data) or "cp949").upper()
        raise ManifestError(
            f"{path} is not UTF-8: convert it, for instance with 'iconv -f {guess} -t UTF-8'"
        ) from error
    for number, line in enumerate(text.split("\n"), 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
            pairs = [_pair(one) for one in row.get("loanwords", ())]
            # Spellings that differ in capitals alone tell no habit.
            found.append((_string(row["text"]), [(a, b) for a, b in pairs if a.lower() != b.lower()]))
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
            raise ManifestError(
                f"{path}:{number} is no line of a manifest with 'text' and 'loanwords': {error}"
            ) from error
    if not any(loanwords for _, loanwords in found):
        raise ManifestError(f'{path} has no loanwords: give a manifest whose lines name them, as [["커피", "coffee"]]')
    return found


def _string(value: object) -> str:
    if not isinstance(value, str):
        raise ValueError(f"{value!r} is no text")
    return normalize("NFC", value.strip())


def _pair(value: object) -> Spelled:
    if not isinstance(value, list) or len(value) != 2 or not all(map(_string, value)):
        raise ValueError(f"{value!r} is no pair of two spellings")
    return _string(value[0]), _string(value[1])
