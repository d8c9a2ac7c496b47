import json
import os

import pytest

from fl.core.errors import RunError
from fl.metrics import Counts
from sim.report import rows


def refused(action, *parts):
    with pytest.raises(RunError) as caught:
        action()
    for part in parts:
        assert part in str(caught.value)


def test_a_finished_run_is_read_completely(finished_run):
    run = rows.read_run(finished_run)
    assert {row.arm for row in run.transcripts} == set(rows.ARMS)
    assert len({row.device for row in run.transcripts}) == 10
    assert run.results[0].metrics["mer"].reference == 200
    assert isinstance(run.results[0].metrics["mer"], Counts)
    assert run.seed == 0
    assert run.config["model"]["base"] == "whisper-base"


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"arm": "best"}, "'best'; known: zero-shot, local"),
        ({"new_person": "no"}, "'new_person' must be true or false"),
        ({"hypothesis": None}, "'hypothesis' must be text"),
        ({"spans": [["only one"]]}, "'spans' must hold pairs"),
        ({"schema": 2}, "schema 2 is not 1"),
        ({"seconds_audio": True}, "'seconds_audio' must be a finite number"),
    ],
)
def test_a_wrong_transcript_is_named_by_file_line_and_field(run_copy, change, complaint):
    path = run_copy / "transcripts.jsonl"
    lines = path.read_text(encoding="utf-8").splitlines()
    lines[4] = json.dumps(json.loads(lines[4]) | change)
    path.write_text("\n".join(lines), encoding="utf-8")
    refused(lambda: rows.read_transcripts(path), f"{path}:5:", complaint)


def test_a_negative_count_is_refused(run_copy, edit_rows):
    path = run_copy / "results.jsonl"
    bad = {"wer": {"substitutions": -1, "deletions": 0, "insertions": 0, "reference": 3}}
    edit_rows(path, lambda row: row | {"metrics": bad})
    refused(lambda: rows.read_results(path), f"{path}:1:", "'metrics'", "'wer'", "substitutions", "-1")


def test_a_missing_field_is_named(run_copy, edit_rows):
    path = run_copy / "results.jsonl"
    edit_rows(path, lambda row: {name: value for name, value in row.items() if name != "bytes_up"})
    refused(lambda: rows.read_results(path), f"{path}:1:", "'bytes_up' is missing")


def test_a_row_cut_off_by_a_crash_is_named_with_the_remedy(run_copy):
    path = run_copy / "results.jsonl"
    count = len(path.read_text(encoding="utf-8").splitlines())
    with path.open("a", encoding="utf-8") as file:
        file.write('{"schema": 1, "arm"')
    refused(lambda: rows.read_results(path), f"{path}:{count + 1}:", "not JSON", "resumed")


def test_the_same_row_twice_is_refused_with_both_lines(run_copy):
    path = run_copy / "transcripts.jsonl"
    lines = path.read_text(encoding="utf-8").splitlines()
    path.write_text("\n".join([*lines, lines[2]]), encoding="utf-8")
    refused(lambda: rows.read_transcripts(path), f"{path}:{len(lines) + 1}:", "repeats line 3")


def test_nan_is_not_a_number_a_report_takes(run_copy):
    path = run_copy / "results.jsonl"
    path.write_text(path.read_text(encoding="utf-8").replace('"train_loss": null', '"train_loss": NaN', 1), "utf-8")
    refused(lambda: rows.read_results(path), f"{path}:1:", "NaN")


@pytest.mark.parametrize("content", [b'"' + b"x" * rows.MAX_LINE_BYTES + b'"', b"\xff\xfe{}", b"[" * 200_000])
def test_a_file_that_is_no_results_file_is_refused_at_its_line(run_copy, content):
    path = run_copy / "results.jsonl"
    path.write_bytes(content + b"\n")
    refused(lambda: rows.read_results(path), f"{path}:1:")


def test_a_file_beyond_the_bound_is_refused_before_it_is_read(run_copy):
    path = run_copy / "results.jsonl"
    os.truncate(path, rows.MAX_FILE_BYTES + 1)  # sparse: takes no room
    refused(lambda: rows.read_results(path), str(path), "more than")


@pytest.mark.parametrize("name", ["transcripts.jsonl", "results.jsonl", "costs.json"])
def test_an_unfinished_run_says_which_file_is_missing(run_copy, name):
    (run_copy / name).unlink()
    refused(lambda: rows.read_run(run_copy), name, "resume")


def test_a_folder_that_does_not_exist_says_how_to_make_one(tmp_path):
    refused(lambda: rows.read_run(tmp_path / "none"), "no such run folder", "idiolect run")


def test_a_run_without_transcripts_is_refused(run_copy):
    (run_copy / "transcripts.jsonl").write_text("", "utf-8")
    refused(lambda: rows.read_run(run_copy), "stays with them")
    (run_copy / "costs.json").unlink()
    refused(lambda: rows.read_run(run_copy), "no transcripts", "did not reach its final evaluation")


def test_costs_with_a_wrong_value_are_refused(run_copy):
    path = run_copy / "costs.json"
    path.write_text(json.dumps(json.loads(path.read_text("utf-8")) | {"adapter_bytes": "2 MB"}), "utf-8")
    refused(lambda: rows.read_costs(path), f"{path}:1:", "'adapter_bytes'")
