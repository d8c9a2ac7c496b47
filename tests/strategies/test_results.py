"""The rows of a run: keyed, replaced whole, and honest about what is not a row."""

import json
import os
from pathlib import Path
from typing import Any

import pytest

from fl.core.errors import RunError
from fl.metrics import Counts
from strategies.replies import DeviceReply
from strategies.results import ResultsFile, gather_predictions, make_row


def row(arm: str = "global", server_round: int = 1, device: str = "ann", **changes: Any) -> dict[str, Any]:
    return {"arm": arm, "round": server_round, "split": "validation", "device": device, "train_loss": 1.0, **changes}


def test_a_row_joins_what_a_device_learned_and_how_it_was_scored() -> None:
    counts = Counts(1, 2, 3, 10)
    scored = DeviceReply("ann", None, {"wer": counts}, {"examples": 4, "seconds-evaluate": 0.5, "bytes-down": 7})
    trained = DeviceReply(
        "ann", None, {}, {"examples": 9, "steps": 5, "loss": 2.5, "bytes-up": 8, "bytes-down": 6, "seconds-train": 1.5}
    )
    assert make_row("personalized", 3, "validation", scored, trained, False) == {
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
    alone = make_row("personalized", 3, "test", scored, None, True)
    assert (alone["train_loss"], alone["steps"], alone["examples"], alone["new_person"]) == (None, 0, 4, True)


def test_a_test_on_the_split_of_the_last_round_keeps_what_its_training_cost(tmp_path: Path) -> None:
    results = ResultsFile(tmp_path)
    trained = DeviceReply("ann", None, {}, {"steps": 5, "loss": 2.5, "bytes-up": 8, "seconds-train": 1.5})
    scored = DeviceReply("ann", None, {"wer": Counts(1, 2, 3, 10)}, {"seconds-evaluate": 0.5})
    results.add(make_row("global", 3, "validation", DeviceReply("ann", None, {}, {}), trained, False))
    results.add(make_row("global", 3, "validation", scored, None, False))
    (kept,) = results.rows()
    assert (kept["steps"], kept["train_loss"], kept["bytes_up"], kept["seconds_train"]) == (5, 2.5, 8, 1.5)
    assert (kept["metrics"]["wer"]["reference"], kept["seconds_evaluate"]) == (10, 0.5)


def test_a_repeated_round_replaces_its_rows_in_their_place(tmp_path: Path) -> None:
    results = ResultsFile(tmp_path)
    for device in ("ann", "bob"):
        results.add(row(device=device))
    results.flush()
    again = ResultsFile(tmp_path)
    again.add(row(device="ann", train_loss=0.5))
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
    results.add(row(device="ann", train_loss=0.5))
    results.flush()
    assert [(r["device"], r["train_loss"]) for r in ResultsFile(tmp_path).rows()] == [("cho", 1.0), ("ann", 0.5)]


@pytest.mark.parametrize("line", ["{", "[]", "3", '"row"', '{"arm": "global"}', "null"])
def test_a_line_that_is_no_row_is_named(tmp_path: Path, line: str) -> None:
    (tmp_path / "results.jsonl").write_text(json.dumps(row()) + "\n" + line + "\n", encoding="utf-8")
    with pytest.raises(RunError, match=r"results\.jsonl:2: not a result row"):
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
        line = json.dumps({"arm": arm, "device": device, "hypothesis": "회의 bug"}, ensure_ascii=False)
        (folder / "transcripts.jsonl").write_text(line + "\n", encoding="utf-8")
    assert gather_predictions(tmp_path, ("global",), ("ann", "김민수")) == 2
    rows = [json.loads(line) for line in (tmp_path / "transcripts.jsonl").read_text(encoding="utf-8").splitlines()]
    assert [(r["arm"], r["device"]) for r in rows] == [("global", "ann"), ("global", "김민수")]
