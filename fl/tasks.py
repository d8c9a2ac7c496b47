"""The table of tasks: what can be federated."""

from __future__ import annotations

from collections.abc import Callable

from fl.config import NO_OP, SPEECH, RunConfig
from fl.errors import ConfigError
from fl.task import Task


def _speech(config: RunConfig) -> Task:
    from fl.speech.task import SpeechTask  # torch and transformers load when a task is made, not when the table is read

    return SpeechTask(config)


def _no_op(config: RunConfig) -> Task:
    from fl.noop import NoOpTask

    return NoOpTask(config)


TASKS: dict[str, Callable[[RunConfig], Task]] = {SPEECH: _speech, NO_OP: _no_op}


def load_task(config: RunConfig, name: str = "") -> Task:
    """The task ``name``, by default that of this configuration; :class:`ConfigError` lists the known ones."""
    name = name or config.data.task
    if name not in TASKS:
        raise ConfigError(f"unknown task {name!r}: known tasks are {', '.join(TASKS)}")
    return TASKS[name](config)
