"""Word-level language identification in the table of tasks, and the score of its texts, ``커피를/en 마셔/ko``."""

from collections.abc import Iterable, Sequence

from fl.core.errors import MetricError
from fl.metrics import Counts, Scores
from fl.tasks.kind import Measure, TaskKind, imported_later

ERROR = "error"  # the metric: words that were given the wrong language, over all words
SIGN = "/"


def write_tags(words: Sequence[str], languages: Sequence[str]) -> str:
    """``word/language`` for each word, with spaces between."""
    return " ".join(f"{word}{SIGN}{language}" for word, language in zip(words, languages, strict=True))


def read_tags(text: str) -> list[tuple[str, str]]:
    """The words and languages of :func:`write_tags`; a word may hold the sign itself."""
    pairs = (token.rpartition(SIGN) for token in text.split())
    return [(word, language) for word, _, language in pairs]


def score_tags(reference: str, prediction: str) -> Scores:
    """Words with the wrong language, in all and by the language that they are in.

    Raises :class:`MetricError` if the two are not about the same words.
    """
    wanted, found = read_tags(reference), read_tags(prediction)
    if [word for word, _ in wanted] != [word for word, _ in found]:
        raise MetricError(f"the prediction {prediction!r} is not about the words of {reference!r}")
    wrong = [(language, language != other) for (_, language), (_, other) in zip(wanted, found, strict=True)]
    languages = sorted({language for language, _ in wrong})
    by_language = {code: _count(error for language, error in wrong if language == code) for code in languages}
    return Scores({ERROR: _count(error for _, error in wrong)}, by_language)


def _count(errors: Iterable[bool]) -> Counts:
    found = list(errors)
    return Counts(substitutions=sum(found), reference=len(found))


LANGUAGE_ID = TaskKind(
    imported_later("fl.tasks.text.task:LanguageIdTask"),
    {ERROR: Measure("Error rate", "words that were given the wrong language, over all words")},
    main=ERROR,
    score=score_tags,
    prepare=imported_later("fl.tasks.text.task:load_base"),
    default_base="all-minilm-l6-v2",
    field="Language identification",
    model="tagger",
    example="sentence",
    person="writer",
)
