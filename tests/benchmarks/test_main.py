"""``python -m benchmarks``: which scripts run, and with which interpreter."""

import io
import sys
from pathlib import Path

import pytest
from rich.console import Console

from benchmarks.__main__ import SCRIPTS, Script, choose, run_script


def test_only_scripts_that_are_there_run() -> None:
    names = [script.name for script in choose([])]
    assert "client_round" in names
    assert all(script.path.is_file() for script in choose([]))


def test_an_unknown_benchmark_lists_those_that_are_there() -> None:
    with pytest.raises(SystemExit, match="client_round"):
        choose(["typo"])


def test_named_scripts_run_in_the_order_of_the_list() -> None:
    assert [script.name for script in choose(["client_round", "local_step"])] == ["local_step", "client_round"]


def test_pfl_runs_in_its_own_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (pfl,) = (script for script in SCRIPTS if script.pfl)
    other = tmp_path / "python"
    other.touch()
    monkeypatch.setenv("PFL_PYTHON", str(other))
    assert pfl.python() == str(other)
    assert Script("local_step").python() == sys.executable


def test_without_its_environment_pfl_is_left_out_with_a_word(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PFL_PYTHON", str(tmp_path / "nothing"))
    monkeypatch.setattr("subprocess.run", lambda *_, **__: pytest.fail("it ran"))
    screen = io.StringIO()
    assert run_script(Script("peers.pfl_round"), True, Console(file=screen))
    assert "make peers" in screen.getvalue()


@pytest.mark.parametrize(("code", "well"), [(0, True), (1, False)])
def test_a_script_that_ends_badly_is_reported(monkeypatch: pytest.MonkeyPatch, code: int, well: bool) -> None:
    asked: list[list[str]] = []

    class Done:
        returncode = code

    def run(call: list[str], **_: object) -> Done:
        asked.append(call)
        return Done()

    monkeypatch.setattr("subprocess.run", run)
    assert run_script(Script("local_step"), True, Console(file=io.StringIO())) is well
    assert asked == [[sys.executable, "-m", "benchmarks.local_step", "--smoke"]]
