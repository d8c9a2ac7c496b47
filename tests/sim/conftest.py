"""A tiny population, and a run of it that takes seconds."""

from collections.abc import Callable
from itertools import permutations
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fl.config import RunConfig, make_config
from fl.data.manifest import Utterance, write_manifest
from fl.speech.audio import save_audio


@pytest.fixture(scope="session")
def tiny_manifest(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three speakers with five recordings of noise each, 0.6 to 1.2 s."""
    folder = tmp_path_factory.mktemp("speech")
    rng = np.random.default_rng(0)
    texts = list(
        permutations(["나는", "커피를", "마셨어", "meeting", "있어", "deadline", "오늘", "내일", "bug", "고쳤어"], 4)
    )
    chosen = iter(rng.choice(len(texts), 3 * 5, replace=False))  # no text twice: none is dropped as a leak
    utterances = []
    for number in range(15):
        path = folder / f"{number}.wav"
        noise = 0.1 * rng.standard_normal(int(16_000 * rng.uniform(0.6, 1.2)))
        save_audio(path, noise.clip(-1, 1).astype(np.float32))
        spoken = texts[next(chosen)]
        spans = tuple((w, "en" if w.isascii() else "ko") for w in spoken)
        utterances.append(
            Utterance(
                str(number),
                path,
                " ".join(spoken),
                f"화자 {number % 3}",
                None,
                None,
                None,
                spans,
                "word",
                (),
                None,
                None,
            )
        )
    write_manifest(folder / "manifest.jsonl", utterances)
    return folder / "manifest.jsonl"


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
