"""A finished run of one sentence and three people as it lies on disk."""

import json
from pathlib import Path

import pytest

from fl.settings.names import ARMS

COUNTS = {"substitutions": 12, "deletions": 3, "insertions": 5, "reference": 200}


def write_rows(path: Path, rows: list[dict]) -> None:
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")


@pytest.fixture
def finished(tmp_path) -> Path:
    """A run folder that a test may damage."""
    folder = tmp_path / "run"
    folder.mkdir()
    said = {"utterance": "u1", "audio": "/a.wav", "reference": "커피 마셔", "hypothesis": "커피 마서", "start": None}
    said |= {"spans": [["커피", "ko"], ["마셔", "ko"]], "loanwords": [["커피", "coffee"]], "level": "word"}
    numbers = {
        "examples": 20,
        "steps": 5,
        "bytes_up": 900,
        "bytes_down": 900,
        "seconds_train": 1.5,
        "seconds_evaluate": 1,
    }
    predictions, results = [], []
    for arm in ARMS:
        for device in ("ann", "bob", "김민수"):
            whose = {"schema": 1, "arm": arm, "device": device, "new_person": device == "bob"}
            predictions.append({**whose, **said, "seconds_audio": 0.6})
            results.append(
                {**whose, **numbers, "round": 1, "split": "test", "metrics": {"mer": COUNTS}, "train_loss": None}
            )
    write_rows(folder / "transcripts.jsonl", predictions)
    write_rows(folder / "results.jsonl", results)
    sizes = ("base_bytes", "base_parameters", "adapter_bytes", "adapter_parameters", "shared_bytes", "private_bytes")
    costs = dict.fromkeys((*sizes, "bytes_up_per_device_round", "bytes_down_per_device_round"), 1000)
    costs |= {"base": "whisper-base", "rounds": 1, "local_steps": 5, "batch_size": 4, "devices": 2, "seed": 7}
    costs |= {"seconds": {"global": 2.5}, "machine": {"cores": 2}, "versions": {"torch": "2.13.0"}}
    (folder / "costs.json").write_text(json.dumps(costs, indent=2), encoding="utf-8")
    (folder / "config.toml").write_text('seed = 7\n[model]\nbase = "whisper-base"\n', encoding="utf-8")
    return folder


@pytest.fixture
def edit_rows():
    """``edit_rows(path, change)``: rewrites a JSONL file with ``change(row)`` in the place of each row."""

    def edit(path, change):
        write_rows(path, [change(json.loads(line)) for line in path.read_text(encoding="utf-8").splitlines()])

    return edit
