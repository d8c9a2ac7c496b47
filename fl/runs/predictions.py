"""What a device's model predicted, as lines of a file that stays on the device's own disk."""

from __future__ import annotations

import json
from collections.abc import Sequence

from fl.tasks.task import Example

SCHEMA = 1
PREDICTIONS_NAME = "transcripts.jsonl"  # whatever the task: the format is older than the second one


def prediction_lines(
    arm: str, device_id: str, examples: Sequence[Example], predictions: Sequence[str], *, new_person: bool
) -> str:
    """One JSON line for each example: what was wanted, what was predicted, and the example's own details."""
    rows = (
        {
            "schema": SCHEMA,
            "arm": arm,
            "device": device_id,
            "new_person": new_person,
            "utterance": example.key,
            "reference": example.target,
            "hypothesis": prediction,
            **example.details,
        }
        for example, prediction in zip(examples, predictions, strict=True)
    )
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
