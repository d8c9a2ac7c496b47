import json
import os

import pytest

from fl.core.errors import RunError
from fl.metrics import Counts
from fl.runs import files
from fl.runs.schema import PredictionRow, PrivacyRecord, ResultRow
from fl.settings.names import ARMS


def refused(action, *parts):
    with pytest.raises(RunError) as caught:
        action()
    for part in parts:
        assert part in str(caught.value)


def test_a_finished_is_read_completely(finished):
    run = files.read_run(finished)
    assert {row.arm for row in run.transcripts} == set(ARMS)
    assert {row.device for row in run.transcripts} == {"ann", "bob", "김민수"}
    assert run.transcripts[0].loanwords == (("커피", "coffee"),)
    assert run.results[0].metrics["mer"].reference == 200
    assert isinstance(run.results[0].metrics["mer"], Counts)
    assert run.seed == run.costs.seed == 7
    assert run.config["model"]["base"] == "whisper-base"


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"arm": "best"}, "'best' is unknown; known: zero-shot, local"),
        ({"new_person": "no"}, "'new_person': Input should be a valid boolean, found 'no'"),
        ({"hypothesis": None}, "'hypothesis': Input should be a valid string, found None"),
        ({"spans": [["only one"]]}, "'spans.0.1' is missing"),
        ({"schema": 2}, "schema 2 is not 1"),
        ({"seconds_audio": True}, "'seconds_audio': Input should be a valid number, found True"),
    ],
)
def test_a_wrong_transcript_is_named_by_file_line_and_field(finished, change, complaint):
    path = finished / "transcripts.jsonl"
    lines = path.read_text(encoding="utf-8").splitlines()
    lines[4] = json.dumps(json.loads(lines[4]) | change)
    path.write_text("\n".join(lines), encoding="utf-8")
    refused(lambda: files.read_rows(path, PredictionRow), f"{path}:5:", complaint)


@pytest.mark.parametrize(
    ("counts", "complaint"),
    [
        ({"substitutions": -1}, "'metrics.wer.substitutions': Input should be greater than or equal to 0, found -1"),
        ({"substitutions": 1.5}, "'metrics.wer.substitutions': Input should be a valid integer, found 1.5"),
        ({"substitutions": True}, "'metrics.wer.substitutions': Input should be a valid integer, found True"),
        ({"reference": 1 << 41}, "'metrics.wer.reference': Input should be less than or equal to 1099511627776"),
        ({"deletion": 1}, "'metrics.wer': deletions missing"),
    ],
)
def test_a_row_whose_counts_are_none_is_refused(finished, edit_rows, counts, complaint):
    path = finished / "results.jsonl"
    sound = {"substitutions": 1, "insertions": 0, "reference": 3} | ({} if "deletion" in counts else {"deletions": 0})
    edit_rows(path, lambda row: row | {"metrics": {"wer": sound | counts}})
    refused(lambda: files.read_rows(path, ResultRow), f"{path}:1:", complaint)


def test_a_missing_field_is_named(finished, edit_rows):
    path = finished / "results.jsonl"
    edit_rows(path, lambda row: {name: value for name, value in row.items() if name != "bytes_up"})
    refused(lambda: files.read_rows(path, ResultRow), f"{path}:1:", "'bytes_up' is missing")


def test_a_row_cut_off_by_a_crash_is_named_with_the_remedy(finished):
    path = finished / "results.jsonl"
    count = len(path.read_text(encoding="utf-8").splitlines())
    with path.open("a", encoding="utf-8") as file:
        file.write('{"schema": 1, "arm"')
    refused(lambda: files.read_rows(path, ResultRow), f"{path}:{count + 1}:", "not JSON", "resumed")


def test_the_same_row_twice_is_refused_with_both_lines(finished):
    path = finished / "transcripts.jsonl"
    lines = path.read_text(encoding="utf-8").splitlines()
    path.write_text("\n".join([*lines, lines[2]]), encoding="utf-8")
    refused(lambda: files.read_rows(path, PredictionRow), f"{path}:{len(lines) + 1}:", "repeats line 3")


def test_nan_is_not_a_number_a_report_takes(finished):
    path = finished / "results.jsonl"
    path.write_text(path.read_text(encoding="utf-8").replace('"train_loss": null', '"train_loss": NaN', 1), "utf-8")
    refused(lambda: files.read_rows(path, ResultRow), f"{path}:1:", "'train_loss'", "nan")


@pytest.mark.parametrize("content", [b'"' + b"x" * files.MAX_LINE_BYTES + b'"', b"\xff\xfe{}", b"[" * 200_000])
def test_a_file_that_is_no_results_file_is_refused_at_its_line(finished, content):
    path = finished / "results.jsonl"
    path.write_bytes(content + b"\n")
    refused(lambda: files.read_rows(path, ResultRow), f"{path}:1:")


def test_a_file_beyond_the_bound_is_refused_before_it_is_read(finished):
    path = finished / "results.jsonl"
    os.truncate(path, files.MAX_FILE_BYTES + 1)  # sparse: takes no room
    refused(lambda: files.read_rows(path, ResultRow), str(path), "more than")


@pytest.mark.parametrize("name", ["transcripts.jsonl", "results.jsonl", "costs.json"])
def test_an_unfinished_says_which_file_is_missing(finished, name):
    (finished / name).unlink()
    refused(lambda: files.read_run(finished), name, "resume")


def test_a_folder_that_does_not_exist_says_how_to_make_one(tmp_path):
    refused(lambda: files.read_run(tmp_path / "none"), "no such run folder", "idiolect run")


def test_a_run_without_transcripts_is_refused(finished):
    (finished / "transcripts.jsonl").write_text("", "utf-8")
    refused(lambda: files.read_run(finished), "stays with them")
    (finished / "costs.json").unlink()
    refused(lambda: files.read_run(finished), "no transcripts", "did not reach its final evaluation")


def test_costs_with_a_wrong_value_are_refused(finished):
    path = finished / "costs.json"
    path.write_text(json.dumps(json.loads(path.read_text("utf-8")) | {"adapter_bytes": "2 MB"}), "utf-8")
    refused(lambda: files.read_costs(finished), f"{path}:1:", "'adapter_bytes'")


def test_costs_cut_off_name_the_line(finished):
    path = finished / "costs.json"
    lines = path.read_text("utf-8").splitlines()
    path.write_text("\n".join(lines[:5]), "utf-8")
    refused(lambda: files.read_costs(finished), f"{path}:5:", "not JSON")


def test_what_is_no_cost_of_a_run_is_not_written(tmp_path):
    refused(lambda: files.write_costs(tmp_path, {"base": "whisper-base"}), "costs.json", "'base_bytes' is missing")
    assert list(tmp_path.iterdir()) == []


def test_a_statement_of_privacy_is_read_as_it_was_written(tmp_path):
    said = {"dp": "server", "secure_sum": "none", "aggregation": "device", "population": 3, "devices_in_round": 3}
    said |= {
        "clipping": "flat",
        "update_norm": 1,
        "simulated": True,
        "statement": "epsilon = 8",
        "assumptions": ["one"],
    }
    assert files.read_privacy(tmp_path) is None
    files.write_document(PrivacyRecord, tmp_path / "privacy.json", said | {"epsilon": 8.0}, mode=0o644)
    found = files.read_privacy(tmp_path)
    assert (found.epsilon, found.delta, found.assumptions) == (8.0, None, ("one",))
    (tmp_path / "privacy.json").write_text("{}", "utf-8")
    refused(lambda: files.read_privacy(tmp_path), "privacy.json:1: field 'dp' is missing")
