"""What is known of a task before its base is loaded: settings and reports read it without torch."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib import import_module
from typing import TYPE_CHECKING, Any

from fl.settings.config import SETTINGS, RunConfig

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
    """One row of :data:`fl.tasks.table.TASKS`.

    ``measures`` are the metrics that a report shows, by name; ``main`` is the one that decides who is better. ``score`` counts
    the errors of a prediction against its reference as :meth:`fl.tasks.task.Task.score` does, for the report, which has only texts;
    None where the report itself aligns what was said with what was written. ``prepare`` makes what all processes of a run
    need once, before they start. ``default_base`` is taken where the setting ``base`` was left as it is ("": that one).

    ``takes_manifest``: a manifest of speech may be named. ``augments``: training examples can be augmented. ``learns``: there
    is something to train and to evaluate. The last four are words: the field as a title, what a model is, what an example is, and who
    has a device.
    """

    make: Callable[[RunConfig], Task]
    measures: Mapping[str, Measure]
    main: str
    score: Callable[[str, str], Scores] | None = None
    prepare: Callable[[RunConfig, Progress], object] = lambda config, progress: None
    default_base: str = ""
    takes_manifest: bool = False
    augments: bool = False
    learns: bool = True
    field: str = "Learning"
    model: str = "model"
    example: str = "example"
    person: str = "person"

    @property
    def logged(self) -> tuple[str, ...]:
        """The metrics that a log line has room for, the main one first."""
        return (self.main, *(name for name in self.measures if name != self.main))[:3]

    def base_of(self, config: RunConfig) -> str:
        """The name of the base that a run trains."""
        asked = config.base.name
        return self.default_base if self.default_base and asked == SETTINGS["base.name"].default else asked


def imported_later(place: str) -> Callable[..., Any]:
    """The class or function at ``module:name``, imported when it is first called: torch and transformers load with it."""
    module, _, name = place.partition(":")
    return lambda *arguments: getattr(import_module(module), name)(*arguments)
