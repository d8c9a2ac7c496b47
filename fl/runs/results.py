"""The rows of a run as they are written: results of each round, arm and device, and what the final models predicted.

A run that was stopped resumes with the same results. Predictions are in files of each device's own, and in a simulation those of
all in the run folder too.
"""

import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

from fl.core.errors import RunError
from fl.core.files import append_durably
from fl.metrics import Counts
from fl.runs.files import dump, parse, predictions_of_devices, with_checksum, write_whole
from fl.runs.schema import PREDICTIONS_NAME, RESULTS_NAME, SCHEMA, PredictionRow, ResultRow
from fl.tasks.task import Example

FIELDS = frozenset(field.name for field in fields(ResultRow))
TRAINING = ("train_loss", "examples", "steps", "bytes_up", "bytes_down", "seconds_train")  # what a row says of training


def make_row(
    arm: str,
    server_round: int,
    split: str,
    device: str,
    metrics: Mapping[str, Counts],
    evaluated: Mapping[str, float],
    trained: Mapping[str, float] | None = None,
    *,
    new_person: bool,
) -> ResultRow:
    """One row: the counts of an evaluation, and the training of the same round where there was one.

    ``evaluated`` and ``trained`` are the numbers that the device reported, by the names of the protocol (``bytes-up``).
    """
    numbers = {**evaluated, **(trained or {})}
    return ResultRow(
        arm=arm,
        round=server_round,
        device=device,
        new_person=new_person,
        split=split,
        metrics=dict(metrics),
        train_loss=numbers.get("loss"),
        examples=int(numbers.get("examples", 0)),
        steps=int(numbers.get("steps", 0)),
        bytes_up=int(numbers.get("bytes-up", 0)),
        bytes_down=int(numbers.get("bytes-down", 0)),
        seconds_train=numbers.get("seconds-train", 0.0),
        seconds_evaluate=evaluated.get("seconds-evaluate", 0.0),
    )


class ResultsFile:
    """``results.jsonl``, keyed by arm, round, split and device: a resumed round replaces its rows instead of repeating them.

    Rows are kept as the lines that they are in the file, and a flush appends the new ones: a round costs what its own rows
    cost, however many were written before. Raises :class:`RunError` for a line that is no row.
    """

    def __init__(self, folder: Path) -> None:
        self.path = folder / RESULTS_NAME
        self._lines: dict[tuple[str, int, str, str], str] = {}
        self._new: list[str] = []
        self._appendable = False  # whether the file as it stands is what the first lines say
        try:
            self._read(self.path.read_bytes())
        except FileNotFoundError:
            pass
        except OSError as error:
            raise RunError(
                f"{self.path} cannot be read ({error}): give it back to the user that runs this, or give another output"
            ) from error

    def count(self, arm: str) -> int:
        """How many rows an arm has."""
        return sum(key[0] == arm for key in self._lines)

    def _read(self, data: bytes) -> None:
        complete, _, cut = data.rpartition(b"\n")  # a run that was killed while it appended leaves half a line
        for number, line in enumerate(complete.split(b"\n") if complete else (), 1):
            self._put(parse(ResultRow, line, f"{self.path}:{number}").key, line.decode() + "\n")
        self._new, self._appendable = [], not cut

    def add(self, row: ResultRow) -> None:
        """Add or replace one row, in memory. An evaluation after the last round keeps what was written of that round's training."""
        before = self._lines.get(row.key)
        if before is not None and not row.steps:
            kept = parse(ResultRow, before, str(self.path))
            row = replace(row, **{name: getattr(kept, name) for name in TRAINING})
        self._put(row.key, dump(row))

    def _put(self, key: tuple[str, int, str, str], line: str) -> None:
        self._appendable = self._appendable and self._lines.get(key, line) == line
        if key not in self._lines:
            self._new.append(line)
        self._lines[key] = line

    def flush(self) -> None:
        """Make all rows durable: new ones are appended; where one was replaced, the file is written whole or not at all."""
        if self._appendable:
            _append(self.path, "".join(self._new))
        else:
            write_whole(self.path, "".join(self._lines.values()))
        self._new, self._appendable = [], True

    def rows(self) -> list[dict[str, Any]]:
        """All rows in the order of their first writing, as the dictionaries that they are in the file, without checksums."""
        rows = [json.loads(line) for line in self._lines.values()]
        return [{name: value for name, value in row.items() if name in FIELDS} for row in rows]


def _append(path: Path, text: str) -> None:
    try:
        append_durably(path, text.encode())
    except OSError as error:
        raise RunError(
            f"{path} could not be written: {error}; the rounds before are intact, free some space and run again"
        ) from error


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
        lines.append(with_checksum(json.dumps(row, ensure_ascii=False)))
        parse(PredictionRow, lines[-1], f"prediction for {example.key!r}")
    return "".join(lines)


def gather_predictions(folder: Path, arms: Collection[str], devices: Collection[str]) -> int:
    """Collect the predictions that devices wrote under ``folder/devices`` into one file of ``folder``; returns their number.

    Only a simulation has them: a deployed device writes to its own disk, and its predictions stay there.
    """
    found = predictions_of_devices(folder)
    lines = [line for row, line in found if row.arm in arms and row.device in devices]
    write_whole(folder / PREDICTIONS_NAME, "".join(lines))
    return len(lines)
