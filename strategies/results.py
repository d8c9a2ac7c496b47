"""The files of a run folder that the aggregator writes: one row per round, arm and device, and what it cost."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from fl.errors import RunError
from fl.files import write_atomically
from strategies.replies import DeviceReply

SCHEMA = 1
RESULTS_NAME, TRANSCRIPTS_NAME, COSTS_NAME, CONFIG_NAME = (
    "results.jsonl",
    "transcripts.jsonl",
    "costs.json",
    "config.toml",
)


def make_row(
    arm: str, server_round: int, split: str, evaluated: DeviceReply, trained: DeviceReply | None, new_person: bool
) -> dict[str, Any]:
    """One row of ``results.jsonl``: counts of the evaluation, and the training of the same round where there was one."""
    numbers = {**evaluated.numbers, **(trained.numbers if trained else {})}
    return {
        "schema": SCHEMA,
        "arm": arm,
        "round": server_round,
        "device": evaluated.device_id,
        "new_person": new_person,
        "split": split,
        "metrics": {name: counts.as_dict() for name, counts in evaluated.metrics.items()},
        "train_loss": numbers.get("loss"),
        "examples": int(numbers.get("examples", 0)),
        "steps": int(numbers.get("steps", 0)),
        "bytes_up": int(numbers.get("bytes-up", 0)),
        "bytes_down": int(numbers.get("bytes-down", 0)),
        "seconds_train": numbers.get("seconds-train", 0.0),
        "seconds_evaluate": evaluated.numbers.get("seconds-evaluate", 0.0),
    }


class ResultsFile:
    """``results.jsonl``, keyed by arm, round, split and device: a resumed round replaces its rows instead of repeating them."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / RESULTS_NAME
        self._rows: dict[tuple[str, int, str, str], dict[str, Any]] = {}
        if self.path.exists():
            for number, line in enumerate(self.path.read_text(encoding="utf-8").splitlines(), 1):
                try:
                    self.add(json.loads(line))
                except (ValueError, KeyError, TypeError) as error:
                    raise RunError(
                        f"{self.path}:{number}: not a result row ({error}): remove the folder or the line"
                    ) from error

    def add(self, row: dict[str, Any]) -> None:
        """Add or replace one row, in memory."""
        self._rows[(row["arm"], row["round"], row["split"], row["device"])] = row

    def flush(self) -> None:
        """Write all rows, whole or not at all."""
        lines = (json.dumps(row, ensure_ascii=False, sort_keys=True) + "\n" for row in self._rows.values())
        _write(self.path, "".join(lines))

    def rows(self) -> list[dict[str, Any]]:
        """All rows in the order of their first writing."""
        return list(self._rows.values())


def gather_transcripts(folder: Path, arms: tuple[str, ...], devices: tuple[str, ...]) -> int:
    """Collect the transcripts that devices wrote under ``folder/devices`` into ``transcripts.jsonl``; returns their number.

    Only a simulation has them: a deployed device writes to its own disk, and its transcripts stay there.
    """
    found = sorted((folder / "devices").glob(f"*/*/{TRANSCRIPTS_NAME}"))
    rows: list[str] = []
    for path in found:
        for line in path.read_text(encoding="utf-8").splitlines():
            row = json.loads(line)
            if row["arm"] in arms and row["device"] in devices:
                rows.append(line)
    _write(folder / TRANSCRIPTS_NAME, "".join(line + "\n" for line in rows))
    return len(rows)


def write_costs(folder: Path, costs: dict[str, Any]) -> None:
    """Write ``costs.json``."""
    _write(folder / COSTS_NAME, json.dumps(costs, indent=2, sort_keys=True) + "\n")


def _write(path: Path, text: str) -> None:
    try:
        write_atomically(path, text.encode())
    except OSError as error:
        raise RunError(
            f"{path} could not be written: {error}; what was there is intact, free some space and run again"
        ) from error
