"""Whole runs with methods that are not adapters of low rank: the same loop, store, guard and report."""

import json
from pathlib import Path

import pytest
import torch

from clients.worker import Worker, get_worker, kept
from fl.methods.files import load_method
from fl.methods.table import METHODS
from fl.settings.config import RunConfig, make_config
from sim.backends.run import run_simulation

ARMS = "zero-shot,local,global,centralized"


def settings(output: Path, method: str, **changes) -> RunConfig:
    values = {
        "task": "digits", "devices": 2, "new-people": 1, "sentences": 12, "rounds": 2, "local-steps": 2, "evaluate-every": 2,
        "sites": "encoder.self", "rank": 4, "arms": ARMS, "method": method, "output": str(output), **changes,
    }  # fmt: skip
    return make_config(values)


def rows_of(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "results.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module", params=["bottleneck", "full"])
def run(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory):
    folder = tmp_path_factory.mktemp(request.param) / "run"
    config = settings(folder, request.param)
    kept.worker.cache_clear()
    run_simulation(config, serial=True)
    yield request.param, folder, get_worker(config, folder / "devices")
    kept.worker.cache_clear()


def test_every_arm_is_trained_and_tested(run) -> None:
    _, folder, _ = run
    rows = rows_of(folder)
    assert {row["arm"] for row in rows if row["split"] == "test" and row["metrics"]} == set(ARMS.split(","))
    assert all(row["seconds_evaluate"] > 0 for row in rows if row["split"] == "test")
    trained = {(row["arm"], row["round"], row["device"]) for row in rows if row["steps"]}
    assert {(1, "everyone"), (2, "everyone")} == {key[1:] for key in trained if key[0] == "centralized"}


def test_bytes_are_those_of_what_travels(run) -> None:
    method, folder, worker = run
    tensors = worker.initial("none")
    size = sum(4 * t.numel() + 128 for t in tensors.values())  # each tensor has NumPy's header
    up = {
        arm: {row["bytes_up"] for row in rows_of(folder) if row["arm"] == arm and row["steps"]}
        for arm in ARMS.split(",")
    }
    assert up == {"zero-shot": set(), "local": {0}, "global": {size}, "centralized": {size}}
    costs = json.loads((folder / "costs.json").read_text())
    parameters = sum(t.numel() for t in tensors.values())
    assert costs["method"] == method
    assert costs["arms"]["global"] == {
        "parameters": parameters,
        "bytes": 4 * parameters,
        "shared_bytes": 4 * parameters,
    }
    assert costs["arms"]["local"]["shared_bytes"] == 0
    assert (parameters == costs["base_parameters"]) == (method == "full")


def test_the_base_is_as_it_was(run) -> None:
    _, _, worker = run
    fresh = worker.task.new_model().state_dict()
    assert all(torch.equal(tensor, fresh[name]) for name, tensor in worker.task.model.state_dict().items())


def test_a_device_keeps_what_it_trained_unless_that_is_a_whole_model(run) -> None:
    method, folder, worker = run
    device = worker.task.device_ids()[0]
    kept = folder / "devices"
    found = sorted(path.parent for path in kept.rglob("adapter_config.json"))
    if method == "full":
        assert not found
        return
    tensors, info = load_method(next(path for path in found if "local" in str(path)), worker.active("none").shapes())
    assert (info.recipe.method, info.split) == (method, "all-private")
    assert info.base_fingerprint == worker.task.fingerprint
    assert device
    assert any(not torch.equal(tensors[n], t) for n, t in worker.initial("none").items())


def test_a_resumed_run_gives_the_same_rows(tmp_path: Path) -> None:
    def numbers(folder: Path) -> list[tuple]:
        return sorted(
            (r["arm"], r["round"], r["split"], r["device"], str(r["metrics"]), r["train_loss"]) for r in rows_of(folder)
        )

    def interrupt(what: str, done: int, total: int) -> None:
        if done == 1:
            raise KeyboardInterrupt

    whole, stopped = (settings(tmp_path / name, "prefix", arms="global") for name in ("whole", "stopped"))
    run_simulation(whole, serial=True)
    with pytest.raises(KeyboardInterrupt):
        run_simulation(stopped, serial=True, progress=interrupt)
    assert (tmp_path / "stopped" / "checkpoints" / "global.safetensors").exists()
    run_simulation(stopped, serial=True)
    assert numbers(tmp_path / "stopped") == numbers(tmp_path / "whole")


@pytest.mark.parametrize("method", [m for m in METHODS if m not in ("gated-lora",)])
def test_every_method_fits_a_task_that_is_not_speech(method: str, tmp_path: Path) -> None:
    config = settings(tmp_path, method, arms="global")
    worker = Worker(config, tmp_path)
    assert worker.active("scalar" if method == "scalar-gate" else "none").shapes()
    head = [name for name in worker.active("none").parameters if "head" in name]
    assert head
