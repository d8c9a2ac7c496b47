"""Marks: what a corpus writes into its transcripts beside words. Each corpus has a table of its own; here is what one means."""

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field

from fl.data.importers.records import Record, UnusableError

HALF_WIDTH = {
    code: code - 0xFEE0 for first, last in ("０９", "ＡＺ", "ａｚ") for code in range(ord(first), ord(last) + 1)
}
_SIGNS = re.compile(r"[<>\[\]{}()|\\~=_^*]|(?<![A-Za-z\d])[+/#@&]|[+/#@&](?![A-Za-z\d])")
SHOWN_SIGNS, SHOWN_LETTERS = 10, 40


@dataclass(frozen=True)
class Marks:
    """``unusable`` are patterns of what makes a text no whole one, each with the reason under which the utterance is left out;
    ``rules`` are patterns and what stands in their place, in order; with ``half_width`` full-width letters and digits become
    ASCII."""

    unusable: Mapping[str, str] = field(default_factory=dict)
    rules: tuple[tuple[str, str], ...] = ()
    half_width: bool = False

    def clean(self, text: str, where: str, *, keep: bool = False) -> str:
        """``text`` without marks, or with them to ``keep``. Raises :class:`UnusableError` for one that is not whole."""
        for pattern, reason in self.unusable.items():
            if re.search(pattern, text):
                raise UnusableError(where, reason)
        text = text.translate(HALF_WIDTH) if self.half_width else text
        if keep:
            return text
        for pattern, instead in self.rules:
            text = re.sub(pattern, instead, text)
        return re.sub(r"[^\S\r]+", " ", text).strip()  # a carriage return stays: a fault, for whoever reads it


def remaining(records: Iterable[Record]) -> Iterator[str]:
    """A note for each sign that corpora use as a mark and that texts still hold, not counted between Latin letters and digits
    (``A/S``, ``R&D``): with how many texts, and the first."""
    counts: Counter[str] = Counter()
    first: dict[str, Record] = {}
    for record in records:
        for sign in sorted(set(_SIGNS.findall(record.text))):
            counts[sign] += 1
            first.setdefault(sign, record)
    for sign, count in counts.most_common(SHOWN_SIGNS):
        text = first[sign].text
        shown = text[: SHOWN_LETTERS - 1] + "…" if len(text) > SHOWN_LETTERS else text
        texts = "1 text still holds" if count == 1 else f"{count:,} texts still hold"
        yield f"{texts} {sign!r}, first in {first[sign].where}: {shown!r}; is it said?"
