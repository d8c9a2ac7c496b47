"""What models predicted, as lines of files: each device's own, and in a simulation those of all in the run folder."""

from __future__ import annotations

import json
from collections.abc import Collection, Sequence
from pathlib import Path

from fl.runs.files import parse, write_whole
from fl.runs.schema import DEVICES, PREDICTIONS_NAME, SCHEMA, PredictionRow
from fl.tasks.task import Example


def prediction_lines(
    arm: str, device_id: str, examples: Sequence[Example], predictions: Sequence[str], *, new_person: bool
) -> str:
    """One JSON line for each example: what was wanted, what was predicted, and the example's own details."""
    lines = []
    for example, prediction in zip(examples, predictions, strict=True):
        row = {
            "schema": SCHEMA,
            "arm": arm,
            "device": device_id,
            "new_person": new_person,
            "utterance": example.key,
            "reference": example.target,
            "hypothesis": prediction,
            **example.details,
        }
        lines.append(json.dumps(row, ensure_ascii=False) + "\n")
        parse(PredictionRow, lines[-1], f"prediction for {example.key!r}")
    return "".join(lines)


def gather_predictions(folder: Path, arms: Collection[str], devices: Collection[str]) -> int:
    """Collect the predictions that devices wrote under ``folder/devices`` into one file of ``folder``; returns their number.

    Only a simulation has them: a deployed device writes to its own disk, and its predictions stay there.
    """
    lines: list[str] = []
    for path in sorted((folder / DEVICES).glob(f"*/*/{PREDICTIONS_NAME}")):
        for number, line in enumerate(path.read_text(encoding="utf-8").split("\n"), 1):
            row = parse(PredictionRow, line, f"{path}:{number}") if line else None
            if row and row.arm in arms and row.device in devices:
                lines.append(line + "\n")
    write_whole(folder / PREDICTIONS_NAME, "".join(lines))
    return len(lines)
