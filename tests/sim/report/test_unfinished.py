"""The report of a run that is not finished: made all the same, and said to be so before anything else."""

import json
import re

import pytest
from typer.testing import CliRunner

from fl.core.errors import RunError
from fl.runs.unfinished import read_unfinished
from fl.settings.names import ARMS
from sim.cli.app import app
from sim.report.page import write_report

CONFIG = f'seed = 3\n[base]\nname = "whisper-base"\n[federation]\nrounds = 8\narms = "{",".join(ARMS)}"\n'


@pytest.fixture
def died(run_copy, edit_rows):
    """``died(*arms)``: the run killed as it wrote of round 5, these arms being evaluated; the others' devices had begun."""

    def kill(*evaluated):
        (run_copy / "config.toml").write_text(CONFIG, encoding="utf-8")
        for text in (run_copy / "transcripts.jsonl").read_text(encoding="utf-8").splitlines():
            row = json.loads(text)
            folder = run_copy / "devices" / row["arm"].replace("+", "%2b") / row["device"]
            if row["arm"] in evaluated or row["device"] == "speaker-00":
                folder.mkdir(parents=True, exist_ok=True)
                with (folder / "transcripts.jsonl").open("a", encoding="utf-8") as file:
                    file.write(text + "\n")
        edit_rows(run_copy / "results.jsonl", lambda row: row if row["round"] <= 4 else None)
        lines = (run_copy / "results.jsonl").read_text(encoding="utf-8").splitlines()
        tested = [json.dumps(json.loads(lines[0]) | {"arm": arm, "split": "test"}) for arm in evaluated]
        text = "\n".join([*lines, *tested, lines[0][:40]])  # half a row at the end
        (run_copy / "results.jsonl").write_text(text, encoding="utf-8")
        for name in ("costs.json", "transcripts.jsonl"):
            (run_copy / name).unlink()
        return run_copy

    return kill


def page_of(folder):
    summary = write_report([folder], folder)
    return summary, (folder / "report.html").read_text(encoding="utf-8")


def test_a_run_that_died_in_training_says_so_first_and_shows_its_rounds(died):
    summary, page = page_of(died())
    assert re.search(r"<h1>(.*?)</h1>", page)[1] == "Unfinished run: 0 of 7 arms evaluated"
    stand = re.search(r'<p class="stand">(.*?)</p>', page, re.DOTALL)[1]
    assert "stopped" in stand
    assert "global 4" in stand
    assert "of 8" in stand
    assert "Start the same command again" in stand
    assert re.findall(r'<section id="([^"]+)"', page) == ["curves", "conditions"]
    assert max(point["round"] for point in summary["curves"]["global"]) == 4
    assert summary["run"]["devices"] == 8
    assert summary["costs"] == {}


def test_arms_that_are_evaluated_are_compared_and_no_other(died):
    summary, page = page_of(died("global", "personalized"))
    assert list(summary["arms"]) == ["global", "personalized"]
    assert summary["comparisons"]["personalized_vs_global"]["mer"]["difference"] < 0
    assert ">Unfinished run: 2 of 7 arms evaluated<" in page
    assert "costs" not in re.findall(r'<section id="([^"]+)"', page)  # no size is known, none is made up


def test_a_run_that_died_before_its_first_round_has_a_report(died):
    folder = died()
    (folder / "results.jsonl").unlink()
    _, page = page_of(folder)
    assert "No round of 8 is finished" in page


def test_the_command_prints_it_first(died):
    folder = died("local")
    done = CliRunner().invoke(app, ["report", str(folder)])
    assert done.exit_code == 0, done.output
    assert done.output.lstrip().startswith("Unfinished run.")


def test_unfinished_runs_are_not_pooled_and_a_folder_without_a_run_is_refused(died, finished_run, tmp_path):
    with pytest.raises(RunError, match="resume"):
        write_report([finished_run, died()], tmp_path / "out")
    with pytest.raises(RunError, match="no run began"):
        read_unfinished(tmp_path)
