"""A tiny population, and a run of it that takes seconds."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from fl.settings.config import RunConfig, make_config


@pytest.fixture(scope="session")
def tiny_manifest(noise_manifest: Callable[..., Path]) -> Path:
    """Three speakers with five recordings each."""
    return noise_manifest([f"화자 {number}" for number in range(3)], 5)


@pytest.fixture
def tiny_run(
    tiny_manifest: Path, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> Callable[..., RunConfig]:
    """Makes a run of two rounds of the personalized arm, with a cache folder of its own."""
    monkeypatch.setenv("IDIOLECT_HOME", str(tmp_path_factory.getbasetemp() / "tiny-home"))

    def make(output: str = "run", **changes: Any) -> RunConfig:
        values: dict[str, Any] = {
            "base": "random:whisper-nano",
            "manifest": str(tiny_manifest),
            "rounds": 2,
            "local_steps": 2,
            "batch_size": 2,
            "rank": 2,
            "new_people": 1,
            "language": "ko",
            "arms": "personalized,neutral",
            "evaluate_every": 2,
            "output": str(tmp_path / output),
        }
        return make_config({**values, **changes})

    return make
