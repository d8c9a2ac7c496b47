"""What an import did, for a person, for a script and beside the manifest."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from fl.data.importers.records import Record
from fl.metrics.languages import SCRIPT_LANGUAGES, language_tags, matrix_language

SPEAKERS = "speakers"


@dataclass(frozen=True)
class ImportSummary:
    """``devices`` holds utterances and minutes by name, and ``devices_are`` says what one is: a speaker or a stand-in for one.

    ``languages`` counts utterances by the languages in them (``ko+en``), ``left_out`` by the reason, of which ``examples`` has
    the first place. ``tables`` are the SHA-256 of the tables that held the audio: which revision of the corpus this is.
    """

    format: str
    source: str
    manifest: str
    utterances: int
    hours: float
    devices_are: str
    devices: Mapping[str, Mapping[str, float]]
    splits_are: str
    splits: Mapping[str, int]
    languages: Mapping[str, int]
    loanwords: int
    shared_texts: int
    left_out: Mapping[str, int]
    examples: Mapping[str, str]
    notes: Sequence[str]
    tables: Mapping[str, str] = field(default_factory=dict)


def spoken_languages(record: Record) -> tuple[str, str | None]:
    """The languages in a text, joined by "+" with the one of most words first, and that one: the corpus's own word for it, else
    by script (alphabets count as English unless the corpus says otherwise)."""
    alphabetic = record.lang if record.lang and record.lang not in SCRIPT_LANGUAGES.values() else "en"
    tags = language_tags(record.text, alphabetic=alphabetic)
    counts = Counter(tag for tag in tags if tag is not None)
    matrix = record.lang or matrix_language(tags)
    ordered = sorted(counts, key=lambda tag: (tag != matrix, -counts[tag], tag))
    return "+".join(ordered) or (matrix or "none"), matrix
