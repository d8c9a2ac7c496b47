"""Every task in its smallest form, made once for all tests of this folder."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from fl.settings.config import RunConfig, make_config
from fl.tasks.table import load_task
from fl.tasks.task import Task

TINY: dict[str, dict[str, Any]] = {
    "language-id": {"base": "random:bert-nano", "pair": "es-en", "sentences": 24},
    "digits": {"base": "random:vit-nano", "sentences": 30},
}
Tiny = Callable[..., Task]


@pytest.fixture(scope="package", autouse=True)
def cache(own_home: Path) -> Path:
    """A cache folder of the tests' own."""
    return own_home


@pytest.fixture(scope="package", params=sorted(TINY))
def name(request: pytest.FixtureRequest) -> str:
    """Each task's name in turn."""
    return str(request.param)


@pytest.fixture(scope="package")
def tiny_config() -> Callable[..., RunConfig]:
    """``tiny_config(name, **settings)``: the configuration of a tiny task."""

    def make(name: str, **changes: Any) -> RunConfig:
        fixed = {"task": name, "devices": 4, "new_people": 1, "rank": 4, "seed": 3}
        return make_config({**fixed, **TINY[name], **changes})

    return make


@pytest.fixture(scope="package")
def tiny(tiny_config: Callable[..., RunConfig]) -> Tiny:
    """``tiny(name, **settings)``: a task; the same object for the same settings."""
    made: dict[tuple[Any, ...], Task] = {}

    def make(name: str, **changes: Any) -> Task:
        key = (name, *sorted(changes.items()))
        if key not in made:
            made[key] = load_task(tiny_config(name, **changes))
        return made[key]

    return make
