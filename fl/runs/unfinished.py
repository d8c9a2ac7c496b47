"""What a run that is not finished has left so far, for its report: it is still going, or it was stopped, or it died."""

from collections.abc import Sequence
from pathlib import Path

from fl.core.errors import RunError
from fl.runs.files import RunFiles, predictions_of_devices, read_config, read_rows
from fl.runs.schema import CONFIG_NAME, LEFT_OUT_NAME, RESULTS_NAME, LeftOutRow, PredictionRow, ResultRow


def read_unfinished(folder: Path) -> RunFiles:
    """The files so far, without costs: the rows of finished rounds, and the predictions of arms that are evaluated to the end.

    :class:`RunError` for a folder in which no run began.
    """
    if not (folder / CONFIG_NAME).is_file():
        raise RunError(f"{folder}: no run began here ({CONFIG_NAME} is missing); make one with `idiolect run`")
    config, results, left_out = read_config(folder / CONFIG_NAME), folder / RESULTS_NAME, folder / LEFT_OUT_NAME
    rows = read_rows(results, ResultRow, growing=True) if results.exists() else ()
    final = config.get("federation", {}).get("final-split", "test")
    evaluated = {row.arm for row in rows if row.split == final}
    found = [row for row, _ in predictions_of_devices(folder) if row.arm in evaluated]
    return RunFiles(
        folder, config, rows, _complete(found), None, read_rows(left_out, LeftOutRow) if left_out.exists() else ()
    )


def _complete(rows: Sequence[PredictionRow]) -> tuple[PredictionRow, ...]:
    """The rows of arms that have predicted every example that any arm has, of those who took part: only these compare."""
    examples: dict[str, set[tuple[str, str]]] = {}
    for row in rows:
        if not row.new_person:
            examples.setdefault(row.arm, set()).add((row.device, row.utterance))
    every = set().union(*examples.values())
    return tuple(row for row in rows if examples.get(row.arm) == every)
