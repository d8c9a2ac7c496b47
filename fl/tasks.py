"""The table of tasks: what can be federated. One entry today, speech recognition."""

from __future__ import annotations

from collections.abc import Callable

from fl.config import RunConfig
from fl.errors import ConfigError
from fl.task import Task


def _speech(config: RunConfig) -> Task:
    from fl.speech.task import SpeechTask  # torch and transformers load when a task is made, not when the table is read

    return SpeechTask(config)


TASKS: dict[str, Callable[[RunConfig], Task]] = {"speech": _speech}


def load_task(config: RunConfig, name: str = "speech") -> Task:
    """The task ``name`` for this configuration; :class:`ConfigError` lists the known ones."""
    if name not in TASKS:
        raise ConfigError(f"unknown task {name!r}: known tasks are {', '.join(TASKS)}")
    return TASKS[name](config)
