"""The table of tasks: what can be federated, and what is known of each before its base is loaded."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from fl.core.errors import ConfigError
from fl.settings.config import RunConfig
from fl.settings.names import DIGITS, LANGUAGE_ID, NO_OP, SPEECH

if TYPE_CHECKING:
    from fl.metrics import Scores
    from fl.tasks.task import Task

Progress = Callable[[int, int], None]  # done, total


@dataclass(frozen=True)
class Measure:
    """How a report calls a metric of :meth:`fl.tasks.task.Task.score`: ``MER``, and what that is."""

    label: str
    meaning: str


@dataclass(frozen=True)
class TaskKind:
    """One row of :data:`TASKS`.

    ``measures`` are the metrics that a report shows, by name; ``main`` is the one that decides who is better. ``score`` counts
    the errors of a prediction against its reference as :meth:`fl.tasks.task.Task.score` does, for the report, which has only texts;
    None where the report itself aligns what was said with what was written. ``prepare`` makes what all processes of a run
    need once, before they start. The last three are words: the field as a title, what a model is, and what an example is.
    """

    make: Callable[[RunConfig], Task]
    measures: Mapping[str, Measure]
    main: str
    score: Callable[[str, str], Scores] | None = None
    prepare: Callable[[RunConfig, Progress], None] = lambda config, progress: None
    field: str = "Learning"
    model: str = "model"
    example: str = "example"

    @property
    def logged(self) -> tuple[str, ...]:
        """The metrics that a log line has room for, the main one first."""
        return (self.main, *(name for name in self.measures if name != self.main))[:3]


def _speech(config: RunConfig) -> Task:
    from fl.tasks.speech import (
        SpeechTask,
    )  # torch and transformers load when a task is made, not when the table is read

    return SpeechTask(config)


def _speech_population(config: RunConfig, progress: Progress) -> None:
    from fl.tasks.speech import population_manifest

    if not config.data.manifest:
        population_manifest(config, progress)


def _language_id(config: RunConfig) -> Task:
    from fl.tasks.text.task import LanguageIdTask

    return LanguageIdTask(config)


def _text_base(config: RunConfig, progress: Progress) -> None:
    from fl.tasks.classifier import own_base
    from fl.tasks.text.encoder import DEFAULT, load_encoder

    load_encoder(own_base(config, DEFAULT))


def _tag_scores(reference: str, prediction: str) -> Scores:
    from fl.tasks.text.tags import score_tags

    return score_tags(reference, prediction)


def _digits(config: RunConfig) -> Task:
    from fl.tasks.images.task import DigitsTask

    return DigitsTask(config)


def _image_base(config: RunConfig, progress: Progress) -> None:
    from fl.tasks.classifier import own_base
    from fl.tasks.images.base import DEFAULT, load_reader

    load_reader(own_base(config, DEFAULT), progress)


def _digit_score(reference: str, prediction: str) -> Scores:
    from fl.tasks.images.scores import score_digit

    return score_digit(reference, prediction)


def _no_op(config: RunConfig) -> Task:
    from fl.tasks.noop import NoOpTask

    return NoOpTask(config)


SPEECH_MEASURES = {
    "wer": Measure("WER", "word error rate"),
    "cer": Measure("CER", "character error rate"),
    "mer": Measure("MER", "mixed error rate: Hangul syllables and other words"),
    "jer_compat": Measure("JER", "jamo error rate: Hangul taken apart into letters"),
    "pier": Measure("PIER", "error rate at the embedded-language words only"),
    "mer_folded": Measure("Folded MER", "MER with both spellings of a loanword counted as right"),
}

TASKS: dict[str, TaskKind] = {
    SPEECH: TaskKind(
        _speech,
        SPEECH_MEASURES,
        main="mer",
        prepare=_speech_population,
        field="Speech recognition",
        model="recognizer",
        example="sentence",
    ),
    LANGUAGE_ID: TaskKind(
        _language_id,
        {"error": Measure("Error rate", "words that were given the wrong language, over all words")},
        main="error",
        score=_tag_scores,
        prepare=_text_base,
        field="Language identification",
        model="tagger",
        example="sentence",
    ),
    DIGITS: TaskKind(
        _digits,
        {"error": Measure("Error rate", "images that were read as another digit, over all images")},
        main="error",
        score=_digit_score,
        prepare=_image_base,
        field="Reading digits",
        model="reader",
        example="image",
    ),
    NO_OP: TaskKind(_no_op, {"wer": SPEECH_MEASURES["wer"]}, main="wer"),
}


def task_kind(name: str) -> TaskKind:
    """The row of :data:`TASKS` called ``name``; :class:`ConfigError` lists the known ones."""
    if name not in TASKS:
        raise ConfigError(f"unknown task {name!r}: known tasks are {', '.join(TASKS)}")
    return TASKS[name]


def load_task(config: RunConfig, name: str = "") -> Task:
    """The task ``name``, by default that of this configuration; :class:`ConfigError` lists the known ones."""
    return task_kind(name or config.data.task).make(config)
