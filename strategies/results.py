"""The files of a run folder that the aggregator writes: one row per round, arm and device, and what it cost."""

from __future__ import annotations

import json
import os
from collections.abc import Collection
from pathlib import Path
from typing import Any

from fl.core.errors import RunError
from fl.core.files import write_atomically
from fl.runs.predictions import PREDICTIONS_NAME
from strategies.replies import DeviceReply

SCHEMA = 1
RESULTS_NAME, COSTS_NAME, CONFIG_NAME = "results.jsonl", "costs.json", "config.toml"


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


Key = tuple[str, int, str, str]
TRAINING = ("train_loss", "examples", "steps", "bytes_up", "bytes_down", "seconds_train")  # what a row says of training


def _key(row: dict[str, Any]) -> Key:
    return row["arm"], row["round"], row["split"], row["device"]


class ResultsFile:
    """``results.jsonl``, keyed by arm, round, split and device: a resumed round replaces its rows instead of repeating them.

    Rows are kept as the lines that they are in the file, and a flush appends the new ones: a round costs what its own rows
    cost, however many were written before.
    """

    def __init__(self, folder: Path) -> None:
        self.path = folder / RESULTS_NAME
        self._lines: dict[Key, str] = {}
        self._new: list[str] = []
        self._whole = (
            False  # whether the file as it stands is what the first rows say, so that the new ones may be appended
        )
        if self.path.exists():
            self._read()

    def _read(self) -> None:
        text = self.path.read_text(encoding="utf-8")
        complete, _, cut = text.rpartition("\n")  # a run that was killed while it appended leaves half a line
        for number, line in enumerate(complete.splitlines(), 1):
            try:
                self._put(json.loads(line), line + "\n")
            except (ValueError, KeyError, TypeError) as error:
                raise RunError(
                    f"{self.path}:{number}: not a result row ({error}): remove the folder or the line"
                ) from error
        self._new, self._whole = [], not cut

    def add(self, row: dict[str, Any]) -> None:
        """Add or replace one row, in memory. An evaluation after the last round keeps what was written of that round's training."""
        before = self._lines.get(_key(row))
        if before is not None and row.get("steps") == 0:
            row = row | {name: value for name, value in json.loads(before).items() if name in TRAINING}
        self._put(row, json.dumps(row, ensure_ascii=False, sort_keys=True) + "\n")

    def _put(self, row: dict[str, Any], line: str) -> None:
        key = _key(row)
        self._whole = self._whole and self._lines.get(key, line) == line
        if key not in self._lines:
            self._new.append(line)
        self._lines[key] = line

    def flush(self) -> None:
        """Make all rows durable: new ones are appended; where one was replaced, the file is written whole or not at all."""
        if self._whole:
            _append(self.path, "".join(self._new))
        else:
            _write(self.path, "".join(self._lines.values()))
        self._new, self._whole = [], True

    def rows(self) -> list[dict[str, Any]]:
        """All rows in the order of their first writing."""
        return [json.loads(line) for line in self._lines.values()]


def gather_predictions(folder: Path, arms: Collection[str], devices: Collection[str]) -> int:
    """Collect the predictions that devices wrote under ``folder/devices`` into one file of ``folder``; returns their number.

    Only a simulation has them: a deployed device writes to its own disk, and its predictions stay there.
    """
    found = sorted((folder / "devices").glob(f"*/*/{PREDICTIONS_NAME}"))
    rows: list[str] = []
    for path in found:
        for line in path.read_text(encoding="utf-8").splitlines():
            row = json.loads(line)
            if row["arm"] in arms and row["device"] in devices:
                rows.append(line)
    _write(folder / PREDICTIONS_NAME, "".join(line + "\n" for line in rows))
    return len(rows)


def write_costs(folder: Path, costs: dict[str, Any]) -> None:
    """Write ``costs.json``."""
    _write(folder / COSTS_NAME, json.dumps(costs, indent=2, sort_keys=True) + "\n")


def _append(path: Path, text: str) -> None:
    before = path.stat().st_size
    try:
        with path.open("ab") as file:
            file.write(text.encode())
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        os.truncate(path, before)
        raise RunError(
            f"{path} could not be written: {error}; the rounds before are intact, free some space and run again"
        ) from error


def _write(path: Path, text: str) -> None:
    try:
        write_atomically(path, text.encode())
    except OSError as error:
        raise RunError(
            f"{path} could not be written: {error}; what was there is intact, free some space and run again"
        ) from error
