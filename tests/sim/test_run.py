"""A run on this machine: the same files whether in this process or on Flower's simulation runtime."""

import io
import json
import os
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from fl.adapters.files import load_adapter
from fl.core.errors import ConfigError, RunError
from fl.core.machine import available_cores
from fl.settings.config import RunConfig, dump_config
from sim.backends.on_ray import _backend, _Notices
from sim.backends.run import run_simulation
from sim.cli.app import app

MakeRun = Callable[..., RunConfig]
ROOT = Path(__file__).parents[2]


def rows(folder: Path, name: str = "results.jsonl") -> list[dict[str, Any]]:
    """Rows without what a clock measured."""
    found = [json.loads(line) for line in (folder / name).read_text(encoding="utf-8").splitlines()]
    return [{k: v for k, v in row.items() if not k.startswith(("seconds_", "crc32"))} for row in found]


def states(folder: Path) -> dict[str, bytes]:
    files = [*(folder / "checkpoints").glob("*.safetensors"), *(folder / "devices").rglob("state-*")]
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


def test_a_run_leaves_a_folder_that_can_be_reported(tiny_run: MakeRun) -> None:
    told: list[tuple[str, int, int]] = []
    config = tiny_run()
    folder = run_simulation(config, serial=True, progress=lambda *what: told.append(what))
    assert folder == Path(config.output)
    assert {"config.toml", "results.jsonl", "transcripts.jsonl", "costs.json", "checkpoints"} <= {
        p.name for p in folder.iterdir()
    }
    parts = {"personalized": 2, "test: personalized": 1, "test: neutral": 1}
    assert told == [
        *((what, 0, total) for what, total in parts.items()),  # all parts are told ahead
        *(("personalized", n, 2) for n in range(3)),
        *((f"test: {arm}", n, 1) for arm in ("personalized", "neutral") for n in range(2)),
    ]


def test_nobody_else_can_read_a_run_and_its_report(tiny_run: MakeRun, tmp_path: Path) -> None:
    folder = run_simulation(tiny_run("runs/one"), serial=True)
    assert CliRunner().invoke(app, ["report", str(folder), "--out", str(tmp_path / "pages")]).exit_code == 0
    made = [path for top in ("runs", "pages") for path in ((tmp_path / top), *(tmp_path / top).rglob("*"))]
    assert len(made) > 20
    assert [path for path in made if path.stat().st_mode & 0o077 and not path.name.endswith(".lock")] == []


def test_the_folder_of_a_run_may_be_given_relative_to_where_one_is(
    tiny_run: MakeRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    folder = run_simulation(tiny_run(rounds=1).changed({"output": "here"}), serial=True)
    assert folder == tmp_path / "here"
    assert (folder / "results.jsonl").exists()


def test_a_locale_is_the_language_of_its_code(tiny_run: MakeRun) -> None:
    folder = run_simulation(tiny_run(rounds=1, language="ko-KR"), serial=True)
    adapters = sorted(folder.glob("devices/*/*/adapter"))
    assert {load_adapter(path)[1].language for path in adapters} == {"ko"}


def test_an_error_of_the_run_reaches_the_caller_as_it_is(tiny_run: MakeRun) -> None:
    with pytest.raises(ConfigError, match="language 'tlh' is unknown"):
        run_simulation(tiny_run(language="tlh"), serial=True)


def test_a_simulation_whose_workers_cannot_start_ends(tiny_run: MakeRun, monkeypatch: pytest.MonkeyPatch) -> None:
    import flwr.simulation  # noqa: F401  (of the same name as its function)

    def no_workers(**_: object) -> None:
        raise RuntimeError("no memory for a worker")

    monkeypatch.setattr(sys.modules["flwr.simulation.run_simulation"].vce, "start_vce", no_workers)
    with pytest.raises(RunError, match="the simulation failed"):
        run_simulation(tiny_run("dead"), workers=2, processes=True)
    for thread in threading.enumerate():  # Flower's own waits for the nodes' answers without end
        if "server_th" in thread.name:
            thread.join(60)
            assert not thread.is_alive()


def test_a_run_joins_no_cluster_that_it_was_not_told_of() -> None:
    assert _backend(2, "")["init_args"]["address"] == "local"
    assert _backend(2, "auto")["init_args"]["address"] == "auto"


def test_there_is_at_least_one_core() -> None:
    assert 1 <= available_cores() <= (os.cpu_count() or 1)


PROGRAM = """
import sys
from pathlib import Path
from fl.settings.config import load_config
from fl.core.errors import IdiolectError
from sim.backends.run import run_simulation

if __name__ == "__main__":
    try:
        print("finished", run_simulation(load_config(Path(sys.argv[1])), workers=2, processes=True))
    except IdiolectError as error:
        print("refused", type(error).__name__, error)
"""


def simulate(config: RunConfig, folder: Path) -> str:
    """Run on Ray in a process of its own, which ends with everything that Ray started; returns what it printed."""
    settings = folder / "settings.toml"
    settings.write_text(dump_config(config), encoding="utf-8")
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(settings)],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        timeout=500,
    )
    assert done.returncode == 0, done.stderr[-2_000:]
    return done.stdout


def test_threads_give_the_bits_of_one_after_the_other(tiny_run: MakeRun) -> None:
    """Without cohorts both have devices of their own to train at the same time."""
    serial = run_simulation(tiny_run("serial", cohort=1), serial=True)
    threads = run_simulation(tiny_run("threads", cohort=1), workers=2)
    assert rows(threads) == rows(serial)
    assert rows(threads, "transcripts.jsonl") == rows(serial, "transcripts.jsonl")
    assert states(threads) == states(serial)


@pytest.mark.slow
def test_flowers_simulation_gives_the_same_numbers_as_one_process(tiny_run: MakeRun, tmp_path: Path) -> None:
    serial = run_simulation(tiny_run("serial"), serial=True)
    printed = simulate(tiny_run("ray"), tmp_path)
    assert f"finished {tmp_path / 'ray'}" in printed
    ray = tmp_path / "ray"
    assert rows(ray) == rows(serial)
    assert rows(ray, "transcripts.jsonl") == rows(serial, "transcripts.jsonl")
    assert states(ray) == states(serial)


@pytest.mark.slow
def test_an_error_in_flowers_simulation_keeps_its_type_and_its_words(tiny_run: MakeRun, tmp_path: Path) -> None:
    run_simulation(tiny_run(rounds=1), serial=True)
    printed = simulate(tiny_run(rounds=2), tmp_path)
    assert "refused RunError" in printed
    assert "rounds was 1, is 2" in printed


def test_notices_of_ray_stay_out_of_results_and_those_about_a_workers_end_are_dropped() -> None:
    behind = io.StringIO()
    notices = _Notices(behind)
    print("Task ClientAppActor.terminate failed. There are 1 retries remaining", file=notices)
    print("a worker", "died", file=notices)
    assert behind.getvalue() == "a worker died\n"
