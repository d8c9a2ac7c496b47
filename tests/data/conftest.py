import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from fl.data.manifest import Utterance


@pytest.fixture
def say() -> Callable[..., Utterance]:
    """An utterance from its speaker, number and what matters to the test."""

    def make(speaker: str, number: int, text: str | None = None, **fields: Any) -> Utterance:
        spoken = text or f"{speaker} says number {number}"
        return Utterance(f"{speaker}-{number}", Path(f"/audio/{speaker}-{number}.wav"), spoken, speaker, **fields)

    return make


@pytest.fixture
def write_lines(tmp_path: Path) -> Callable[..., Path]:
    """A manifest file from rows (objects) or raw lines (strings)."""

    def write(*rows: Any) -> Path:
        path = tmp_path / "people.jsonl"
        path.write_text("\n".join(row if isinstance(row, str) else json.dumps(row) for row in rows), encoding="utf-8")
        return path

    return write
