"""What a run folder tells others: whether the run goes on, is finished, failed or was killed."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from fl.core.errors import RunError
from fl.runs.kept import kept_progress
from fl.runs.schema import CONFIG_NAME, COSTS_NAME, PREDICTIONS_NAME, PROGRESS_NAME, REPORT_NAME
from fl.runs.status import RunState, read_status
from sim.cli.app import app


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A run that has only begun."""
    run = tmp_path / "run"
    run.mkdir()
    (run / CONFIG_NAME).write_text("", encoding="utf-8")
    return run


def begun(folder: Path) -> None:
    with kept_progress(folder) as kept:
        kept("local", 0, 4)
        kept("test: local", 0, 1)
        kept("local", 2, 4)
        kept.write()


def invoke(*words: object):
    return CliRunner().invoke(app, [str(word) for word in words])


def test_a_run_of_this_process_runs(folder: Path) -> None:
    begun(folder)
    run = read_status(folder)
    assert (run.state, run.process, run.current) == (RunState.RUNNING, os.getpid(), "local")
    assert (run.done, run.total) == (2, 5)
    shown = invoke("status", folder)
    assert shown.exit_code == 0
    assert "local, 2 of 4 done" in shown.output


def test_a_run_whose_process_is_gone_was_stopped_and_says_how_to_go_on(folder: Path) -> None:
    code = f"from pathlib import Path; from tests.runs.test_status import begun; begun(Path({str(folder)!r}))"
    subprocess.run([sys.executable, "-c", code], check=True)
    assert read_status(folder).state is RunState.STOPPED
    shown = invoke("status", folder)
    assert shown.exit_code == 3
    assert f"idiolect run --config {folder}/config.toml" in shown.output


def test_another_process_with_the_same_number_is_not_the_run(folder: Path) -> None:
    begun(folder)
    values = json.loads((folder / PROGRESS_NAME).read_text())
    (folder / PROGRESS_NAME).write_text(json.dumps({**values, "started": values["started"] - 100}))
    assert read_status(folder).state is RunState.STOPPED


def test_what_another_machine_wrote_is_not_judged(folder: Path) -> None:
    begun(folder)
    values = json.loads((folder / PROGRESS_NAME).read_text())
    (folder / PROGRESS_NAME).write_text(json.dumps({**values, "machine": "0"}))
    assert read_status(folder).state is RunState.ELSEWHERE


def test_a_run_that_failed_says_why(folder: Path) -> None:
    def fail() -> None:
        with kept_progress(folder) as kept:
            kept("local", 0, 4)
            raise RunError("the disk is full: free some space")

    with pytest.raises(RunError):
        fail()
    shown = invoke("status", folder, "--json")
    assert shown.exit_code == 3
    told = json.loads(shown.stdout)
    assert (told["state"], told["error"]) == ("failed", "the disk is full: free some space")
    assert "--config" in told["next"]


def test_a_run_that_was_refused_leaves_no_progress(tmp_path: Path) -> None:
    def refuse() -> None:
        with kept_progress(tmp_path):
            (tmp_path / PROGRESS_NAME).unlink()  # as the folder is freed
            raise RunError("refused")

    with pytest.raises(RunError):
        refuse()
    assert not (tmp_path / PROGRESS_NAME).exists()


def test_a_finished_run_is_finished_whoever_runs_now(folder: Path) -> None:
    begun(folder)
    (folder / COSTS_NAME).write_text("{}", encoding="utf-8")
    assert "use its adapters" in invoke("status", folder).output  # no sentence to be tested on, so none to report
    (folder / PREDICTIONS_NAME).write_text("{}", encoding="utf-8")
    assert "idiolect report" in invoke("status", folder).output
    (folder / REPORT_NAME).write_text("", encoding="utf-8")
    assert "open" in invoke("status", folder).output
    assert read_status(folder).state is RunState.FINISHED


def test_a_run_of_an_earlier_version_has_a_state_too(folder: Path) -> None:
    assert read_status(folder).state is RunState.STOPPED


def test_a_folder_that_is_no_run_says_what_to_give(folder: Path) -> None:
    for command in ("status", "report"):
        refused = invoke(command, folder.parent)
        assert isinstance(refused.exception, RunError)
        assert f"did you mean {folder}?" in str(refused.exception)
    with pytest.raises(RunError, match="no such run folder; make one with `idiolect run`"):
        read_status(folder / "nothing")


def test_a_damaged_progress_is_named_with_what_to_do(folder: Path) -> None:
    (folder / PROGRESS_NAME).write_text('{"parts": 3}', encoding="utf-8")
    with pytest.raises(RunError, match="remove it"):
        read_status(folder)


def test_a_report_of_a_run_that_died_says_how_to_go_on(folder: Path) -> None:
    told = " ".join(invoke("report", folder).output.split())
    assert "Unfinished run" in told
    assert "Start the same command again and it resumes" in told
    assert (folder / REPORT_NAME).is_file()
