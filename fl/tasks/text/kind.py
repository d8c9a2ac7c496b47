"""Word-level language identification in the table of tasks."""

from fl.tasks.kind import Measure, TaskKind, imported_later
from fl.tasks.text.tags import ERROR, score_tags

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
)
