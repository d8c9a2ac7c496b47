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
            imported_later("fl.tasks.noop:NoOpTask"),
            {"wer": Measure("WER", "word error rate")},
            main="wer",
            takes_manifest=True,  # and ignores it
            learns=False,
        ),
    },
)


def is_own_base(name: str) -> bool:
    """Whether a base is the project's own: pinned by its hashes, or random; no repository and no folder."""
    from fl.bases.resolve import RANDOM
    from fl.bases.sources.wheels import TEXT_BASES, WHEEL_BASES

    own = {*WHEEL_BASES, *TEXT_BASES, *(kind.default_base for kind in TASKS.values())}
    return name in own or name.startswith(RANDOM)


def load_task(config: RunConfig) -> Task:
    """The task of a configuration. Raises :class:`ConfigError` for a manifest that it does not read."""
    kind = TASKS[config.task]
    if config.data.manifest and not kind.takes_manifest:
        raise ConfigError(
            f"manifest = {config.data.manifest!r} holds speech, and task {config.task} has examples of its own: "
            "leave it out, or choose another task"
        )
    return kind.make(config)
