"""Rows, and a population of two people with a tiny random base."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks._report import BenchmarkRow
from fl.data.manifest import Utterance, write_manifest
from fl.settings.config import RunConfig, make_config
from fl.speech.audio import save_audio

MakeRow = Callable[..., BenchmarkRow]


@pytest.fixture
def make_row() -> MakeRow:
    def make(name: str = "speed", **changes: Any) -> BenchmarkRow:
        values = {"value": 2.5, "unit": "rounds/s", "ratio": 15.0, "target": 12.0, "conditions": {}, **changes}
        return BenchmarkRow(name, **values)

    return make


@pytest.fixture(scope="session")
def two_people(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunConfig]:
    """Two speakers of six short noises each, and a Whisper of random numbers."""
    folder = tmp_path_factory.mktemp("people")
    noise = np.random.default_rng(0)
    rows: list[Utterance] = []
    for speaker in ("ann", "민수"):
        for number in range(6):
            path = folder / f"{len(rows)}.wav"
            save_audio(path, (0.1 * noise.standard_normal(8_000 + 800 * number)).clip(-1, 1).astype(np.float32))
            text = f"오늘 meeting {len(rows)}"
            rows.append(
                Utterance(f"{speaker}-{number}", path, text, speaker, None, None, "ko", (), None, (), None, None)
            )
    manifest: Path = folder / "manifest.jsonl"
    write_manifest(manifest, rows)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("IDIOLECT_HOME", str(tmp_path_factory.mktemp("home")))
        yield make_config(
            {
                "base": "random:whisper-nano",
                "manifest": str(manifest),
                "language": "ko",
                "new_people": 0,
                "rank": 2,
                "arms": "global",
                "rounds": 2,
                "local_steps": 3,
                "batch_size": 2,
            }
        )
