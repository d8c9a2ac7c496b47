"""The table of tasks: what can be federated. Reading it loads no base and no torch."""

from __future__ import annotations

from typing import TYPE_CHECKING

from fl.core.errors import ConfigError
from fl.core.registry import Registry
from fl.settings.config import RunConfig
from fl.tasks.images.kind import DIGITS
from fl.tasks.kind import Measure, TaskKind, imported_later
from fl.tasks.speech.kind import SPEECH
from fl.tasks.text.kind import LANGUAGE_ID

if TYPE_CHECKING:
    from fl.tasks.task import Task

TASKS: Registry[TaskKind] = Registry(
    "task",
    {
        "speech": SPEECH,
        "language-id": LANGUAGE_ID,
        "digits": DIGITS,
        "no-op": TaskKind(
            imported_later("fl.tasks.noop.task:NoOpTask"),
            {"wer": Measure("WER", "word error rate")},
            main="wer",
            takes_manifest=True,  # and ignores it
            learns=False,
        ),
    },
)


def task_kind(name: str) -> TaskKind:
    """The row of :data:`TASKS` called ``name``; :class:`ConfigError` lists the known ones."""
    return TASKS.find(name)


def load_task(config: RunConfig, name: str = "") -> Task:
    """The task ``name``, by default that of this configuration.

    Raises :class:`ConfigError` for an unknown task, with the known ones, and for a manifest that the task does not read.
    """
    name = name or config.task
    kind = task_kind(name)
    if config.data.manifest and not kind.takes_manifest:
        raise ConfigError(
            f"manifest = {config.data.manifest!r} holds speech, and task {name} has examples of its own: "
            "leave it out, or choose another task"
        )
    return kind.make(config)
