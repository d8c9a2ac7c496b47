"""The rows of a run: keyed, replaced whole, and honest about what is not a row."""

import os
from pathlib import Path

import pytest

from fl.core.errors import RunError
from fl.metrics import Counts
from fl.runs.files import dump, read_rows
from fl.runs.results import ResultsFile, gather_predictions, make_row, prediction_lines
from fl.runs.schema import PredictionRow, ResultRow
from fl.tasks.task import Example


def row(server_round: int = 1, device: str = "ann", loss: float = 1.0) -> ResultRow:
    numbers = {"steps": 5, "loss": loss}
    return make_row("global", server_round, "validation", device, {}, {}, numbers, new_person=False)


def test_a_row_joins_what_a_device_learned_and_how_it_was_scored(tmp_path: Path) -> None:
    metrics = {"wer": Counts(1, 2, 3, 10)}
    scored = {"examples": 4, "seconds-evaluate": 0.5, "bytes-down": 7}
    trained = {"examples": 9, "steps": 5, "loss": 2.5, "bytes-up": 8, "bytes-down": 6, "seconds-train": 1.5}
    results = ResultsFile(tmp_path)
    results.add(make_row("personalized", 3, "validation", "ann", metrics, scored, trained, new_person=False))
    results.add(make_row("personalized", 3, "test", "ann", metrics, scored, new_person=True))
    both, alone = results.rows()
    assert both == {
        "schema": 1,
        "arm": "personalized",
        "round": 3,
        "device": "ann",
        "new_person": False,
        "split": "validation",
        "metrics": {"wer": {"substitutions": 1, "deletions": 2, "insertions": 3, "reference": 10}},
        "train_loss": 2.5,
        "examples": 9,
        "steps": 5,
        "bytes_up": 8,
        "bytes_down": 6,
        "seconds_train": 1.5,
        "seconds_evaluate": 0.5,
    }
    assert (alone["train_loss"], alone["steps"], alone["examples"], alone["new_person"]) == (None, 0, 4, True)


def test_what_was_written_is_what_is_read(tmp_path: Path) -> None:
    counts = {"wer": Counts(1, 2, 3, 10)}
    rows = [row(), make_row("local", 2, "test", "김민수", counts, {"seconds-evaluate": 0.5}, new_person=True)]
    results = ResultsFile(tmp_path)
    for one in rows:
        results.add(one)
    results.flush()
    assert list(read_rows(results.path, ResultRow)) == rows


def test_a_test_on_the_split_of_the_last_round_keeps_what_its_training_cost(tmp_path: Path) -> None:
    results = ResultsFile(tmp_path)
    trained = {"steps": 5, "loss": 2.5, "bytes-up": 8, "seconds-train": 1.5}
    place = "global", 3, "validation", "ann"
    results.add(make_row(*place, {}, {}, trained, new_person=False))
    results.add(make_row(*place, {"wer": Counts(1, 2, 3, 10)}, {"seconds-evaluate": 0.5}, new_person=False))
    (kept,) = results.rows()
    assert (kept["steps"], kept["train_loss"], kept["bytes_up"], kept["seconds_train"]) == (5, 2.5, 8, 1.5)
    assert (kept["metrics"]["wer"]["reference"], kept["seconds_evaluate"]) == (10, 0.5)


def test_a_repeated_round_replaces_its_rows_in_their_place(tmp_path: Path) -> None:
    results = ResultsFile(tmp_path)
    for device in ("ann", "bob"):
        results.add(row(device=device))
    results.flush()
    again = ResultsFile(tmp_path)
    again.add(row(device="ann", loss=0.5))
    again.add(row(device="ann", server_round=2))
    again.flush()
    found = [(r["device"], r["round"], r["train_loss"]) for r in ResultsFile(tmp_path).rows()]
    assert found == [("ann", 1, 0.5), ("bob", 1, 1.0), ("ann", 2, 1.0)]


def test_a_flush_appends_and_leaves_what_was_written_alone(tmp_path: Path) -> None:
    results = ResultsFile(tmp_path)
    for server_round in (1, 2, 3):
        results.add(row(server_round=server_round))
        results.flush()
        if server_round == 1:
            file = os.stat(results.path).st_ino
    assert os.stat(results.path).st_ino == file  # a file that is written as a whole is another one
    assert [r["round"] for r in ResultsFile(tmp_path).rows()] == [1, 2, 3]


def test_half_a_line_of_a_run_that_was_killed_is_dropped(tmp_path: Path) -> None:
    results = ResultsFile(tmp_path)
    for device in ("ann", "bob"):
        results.add(row(device=device))
    results.flush()
    whole = results.path.read_bytes()
    results.path.write_bytes(whole[:-9])
    again = ResultsFile(tmp_path)
    assert [r["device"] for r in again.rows()] == ["ann"]
    again.add(row(device="bob"))
    again.flush()
    assert results.path.read_bytes() == whole


def test_a_row_that_is_changed_before_the_first_flush_is_written_once(tmp_path: Path) -> None:
    results = ResultsFile(tmp_path)
    results.add(row(device="cho"))
    results.flush()
    results.add(row(device="ann"))
    results.add(row(device="ann", loss=0.5))
    results.flush()
    assert [(r["device"], r["train_loss"]) for r in ResultsFile(tmp_path).rows()] == [("cho", 1.0), ("ann", 0.5)]


@pytest.mark.parametrize("line", ["{", "[]", "3", '"row"', '{"arm": "global"}', "null"])
def test_a_line_that_is_no_row_is_named(tmp_path: Path, line: str) -> None:
    (tmp_path / "results.jsonl").write_text(dump(row()) + line + "\n", encoding="utf-8")
    with pytest.raises(RunError, match=r"results\.jsonl:2: "):
        ResultsFile(tmp_path)


def test_a_full_disk_leaves_the_rows_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    results = ResultsFile(tmp_path)
    results.add(row())
    results.flush()
    before = (tmp_path / "results.jsonl").read_bytes()
    results.add(row(server_round=2))

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(RunError, match="No space left"):
        results.flush()
    assert [p.name for p in tmp_path.iterdir()] == ["results.jsonl"]
    assert (tmp_path / "results.jsonl").read_bytes() == before


def test_transcripts_are_gathered_of_the_arms_and_devices_of_the_run_alone(tmp_path: Path) -> None:
    for arm, device in (("global", "ann"), ("global", "gone"), ("local", "ann"), ("global", "김민수")):
        folder = tmp_path / "devices" / arm / device
        folder.mkdir(parents=True)
        examples = [Example("u1", None, "회의 bug", 1, {"level": None})]
        text = prediction_lines(arm, device, examples, ["회의 버그"], new_person=False)
        (folder / "transcripts.jsonl").write_text(text, encoding="utf-8")
    assert gather_predictions(tmp_path, ("global",), ("ann", "김민수")) == 2
    rows = read_rows(tmp_path / "transcripts.jsonl", PredictionRow)
    assert [(r.arm, r.device, r.hypothesis) for r in rows] == [
        (("global", "ann", "회의 버그")),
        ("global", "김민수", "회의 버그"),
    ]
