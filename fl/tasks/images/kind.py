"""Reading digits in the table of tasks, and the score of a digit."""

from fl.metrics import Counts, Scores
from fl.tasks.kind import Measure, TaskKind, imported_later

ERROR = "error"  # the metric: images that were read as another digit, over all images


def score_digit(reference: str, prediction: str) -> Scores:
    """One image, read right or wrong."""
    return Scores({ERROR: Counts(substitutions=int(reference != prediction), reference=1)}, {})


DIGITS = TaskKind(
    imported_later("fl.tasks.images.task:DigitsTask"),
    {ERROR: Measure("Error rate", "images that were read as another digit, over all images")},
    main=ERROR,
    score=score_digit,
    prepare=imported_later("fl.tasks.images.task:load_base"),
    default_base="vit-digits",
    field="Reading digits",
    model="reader",
    example="image",
    person="writer",
)
