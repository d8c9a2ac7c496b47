"""Small corpora of the exact layouts, made by the tests: 0.5 s of noise an utterance."""

import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile

from fl.data.importers.build import ImportPlan, ImportSummary, import_corpus
from fl.data.importers.records import Options
from fl.data.manifest import Utterance, read_manifest

RATE = 16_000


def samples(seconds: float = 0.5, seed: int = 0, rate: int = RATE) -> np.ndarray:
    """Noise well above the threshold of silence, on the grid of 16 bits."""
    noise = np.random.default_rng(seed).integers(-3000, 3000, int(seconds * rate))
    return (noise / 32768).astype(np.float32)


def wav_bytes(seconds: float = 0.5, seed: int = 0, rate: int = RATE) -> bytes:
    buffer = io.BytesIO()
    soundfile.write(buffer, samples(seconds, seed, rate), rate, format="WAV", subtype="PCM_16")
    return buffer.getvalue()


def write_wav(path: Path, seconds: float = 0.5, seed: int = 0, rate: int = RATE) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(wav_bytes(seconds, seed, rate))
    return path


def write_text(path: Path, text: str, encoding: str = "utf-8") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(text.encode(encoding))
    return path


def write_json(path: Path, value: Any) -> Path:
    return write_text(path, json.dumps(value, ensure_ascii=False, indent=1))


def write_parquet(path: Path, rows: list[dict[str, Any]], features: dict[str, Any] | None = None) -> Path:
    """A table as ``datasets`` writes one: audio as a structure of bytes and path, its features noted in the schema."""
    pa = pytest.importorskip("pyarrow")
    import pyarrow.parquet as pq

    table = pa.Table.from_pylist(rows)
    noted = {b"huggingface": json.dumps({"info": {"features": features or {}}}).encode()}
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(table.replace_schema_metadata(noted), path, row_group_size=3)
    return path


@pytest.fixture
def take(tmp_path: Path) -> Callable[..., tuple[ImportSummary, list[Utterance]]]:
    """Import a corpus to ``tmp_path/out``: the summary, and the manifest read back."""

    def run(
        name: str, source: Path, *, plan: dict[str, Any] | None = None, **options: Any
    ) -> tuple[ImportSummary, list[Utterance]]:
        out = tmp_path / "out"
        summary = import_corpus(name, source, Options(**options), ImportPlan(out=out, **(plan or {})))
        return summary, read_manifest(out / "manifest.jsonl")

    return run
