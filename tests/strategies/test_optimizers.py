"""Server optimizers against their formulas written out, FedNova by hand, and a run that resumes to the same bytes."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord

from fl.core.errors import ConfigError, RunError
from fl.settings.names import SERVER_OPTIMIZERS
from sim.backends.serial import SerialGrid
from strategies.base import SharedFedAvg
from strategies.checkpoint import Checkpoint, load_checkpoint, save_checkpoint, state_path
from strategies.loop import RoundLoop, Twin
from strategies.optimizers import BETA2, LEARNING_RATES, TAU, ServerOptimizer
from strategies.weighting import FedNova

Make = Callable[..., SharedFedAvg]
Round = Callable[..., dict[str, np.ndarray]]
NAMES = [name for name in SERVER_OPTIMIZERS if name != "none"]


def record(value: float) -> ArrayRecord:
    return ArrayRecord({"x": Array(np.array([value], np.float32))})


def by_hand(name: str, aggregates: list[float], rate: float, momentum: float) -> list[float]:
    """The formulas of Reddi et al. (2021), algorithm 2, on one number that starts at 0."""
    x, m, v, seen = 0.0, 0.0, TAU**2, []
    for aggregate in aggregates:
        d = aggregate - x
        if name == "fedavgm":
            m = momentum * m + d
            x += rate * m
        else:
            m = momentum * m + (1 - momentum) * d
            if name == "fedadagrad":
                v = v + d * d
            elif name == "fedadam":
                v = BETA2 * v + (1 - BETA2) * d * d
            else:
                v = v - (1 - BETA2) * d * d * np.sign(v - d * d)
            x += rate * m / (v**0.5 + TAU)
        seen.append(x)
    return seen


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_three_steps_of_each_optimizer_are_those_of_the_formula(name: str, momentum: float) -> None:
    optimizer = ServerOptimizer(name, 0.25, momentum)
    shared, found = record(0.0), []
    for aggregate in (1.0, -0.5, 0.125):
        shared = optimizer.step(shared, record(aggregate), ("x",))
        found.append(float(shared["x"].numpy()[0]))
    assert found == pytest.approx(by_hand(name, [1.0, -0.5, 0.125], 0.25, momentum), rel=1e-5)


def test_a_momentum_of_zero_at_a_rate_of_one_is_plain_averaging(
    devices: Any, make_strategy: Make, start: ArrayRecord
) -> None:
    plain = one_round(devices, make_strategy(devices), start)
    stepped = one_round(devices, make_strategy(devices, optimizer=ServerOptimizer("fedavgm", 1.0, 0.0)), start)
    assert all((plain[name] == stepped[name]).all() for name in plain)


def one_round(devices: Any, strategy: SharedFedAvg, start: ArrayRecord) -> dict[str, np.ndarray]:
    grid = SerialGrid(devices)
    replies = list(grid.send_and_receive(strategy.configure_train(1, start, {}, grid)))  # type: ignore[arg-type]
    new, _ = strategy.aggregate_train(1, replies)
    assert new is not None
    return {name: array.numpy() for name, array in new.items()}


def test_what_does_not_move_keeps_its_value_and_gets_no_moments() -> None:
    optimizer = ServerOptimizer("fedadam", 0.1)
    after = optimizer.step(record(2.0), record(3.0), ())
    assert after["x"].numpy().tolist() == [2.0]
    assert optimizer.state == {}


def test_an_unknown_optimizer_names_the_known_ones() -> None:
    with pytest.raises(ConfigError, match="fedyogi"):
        ServerOptimizer("adam", 0.1)
    assert set(LEARNING_RATES) == set(NAMES)


# FedNova


def test_fednova_takes_directions_per_step(round_of: Round) -> None:
    """ann took 1 step and moved by 2, bob took 4 steps and moved by 4: a device with many steps does not win by them."""
    new = round_of(
        FedNova,
        {"x": np.zeros(1, np.float32)},
        {"ann": (1.0, {"x": np.float32([2.0])}), "bob": (3.0, {"x": np.float32([4.0])})},
        numbers={"ann": {"steps": 1}, "bob": {"steps": 4}},
    )
    tau = 0.25 * 1 + 0.75 * 4
    assert new["x"].tolist() == pytest.approx([tau * (0.25 * 2.0 / 1 + 0.75 * 4.0 / 4)])


def test_fednova_is_fedavg_where_all_take_as_many_steps(round_of: Round) -> None:
    generator = np.random.default_rng(0)
    devices = {d: (n, {"x": generator.standard_normal(5).astype(np.float32)}) for d, n in (("ann", 1.0), ("bob", 6.0))}
    before = {"x": np.ones(5, np.float32)}
    one, other = round_of(FedNova, before, devices), round_of(SharedFedAvg, before, devices)
    assert one["x"].tobytes() == other["x"].tobytes()
    alone = round_of(FedNova, before, {"ann": devices["ann"]}, numbers={"ann": {"steps": 7}})
    assert alone["x"].tobytes() == devices["ann"][1]["x"].tobytes()


@pytest.mark.parametrize("steps", [0, -1])
def test_a_device_that_says_it_took_no_step_is_left_out_by_name(round_of: Round, steps: int) -> None:
    made: list[Any] = []
    devices = {"ann": (1.0, {"x": np.float32([2.0])}), "bob": (3.0, {"x": np.float32([4.0])})}
    new = round_of(FedNova, {"x": np.float32([0.0])}, devices, numbers={"bob": {"steps": steps}}, made=made)
    assert new["x"].tolist() == [2.0]
    assert "local steps" in made[0].last.left_out["bob"]
    assert [reply.device_id for reply in made[0].last.sound] == ["ann"]


# What survives


class Killed(BaseException):
    """The end of the process."""


def train(
    folder: Path, devices: Any, strategy: SharedFedAvg, start: ArrayRecord, dies_at: int = 0, **more: Any
) -> ArrayRecord:
    def progress(what: str, done: int, total: int) -> None:
        if dies_at and done == dies_at:
            raise Killed

    loop = RoundLoop(SerialGrid(devices), folder, "base", lambda *_: None, progress=progress, **more)
    return loop.train(strategy, start, 4, 0, ())


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("dies_at", [1, 3])
def test_a_killed_run_goes_on_with_its_moments_to_the_same_bytes(
    tmp_path: Path, devices: Any, make_strategy: Make, start: ArrayRecord, name: str, dies_at: int
) -> None:
    def strategy() -> SharedFedAvg:
        return make_strategy(devices, optimizer=ServerOptimizer(name, 0.3))

    whole = train(tmp_path / "whole", devices, strategy(), start)
    with pytest.raises(Killed):
        train(tmp_path / "killed", devices, strategy(), start, dies_at)
    resumed = train(tmp_path / "killed", devices, strategy(), start)
    assert {n: a.data for n, a in resumed.items()} == {n: a.data for n, a in whole.items()}
    files = [{p.name: p.read_bytes() for p in (tmp_path / run).glob("*.safetensors")} for run in ("whole", "killed")]
    assert files[0] == files[1]
    assert set(files[0]) == {"global.safetensors", "global.state-4.safetensors"}


def test_a_twin_gets_the_moments_too(tmp_path: Path, devices: Any, make_strategy: Make, start: ArrayRecord) -> None:
    strategy = make_strategy(devices, optimizer=ServerOptimizer("fedadam", 0.3))
    train(tmp_path, devices, strategy, start, twins={"global": Twin("personalized", 2)})
    found = load_checkpoint(tmp_path, "personalized", "base")
    assert found is not None
    assert found.round == 2
    assert set(found.state) == {f"{kind}:{n}" for kind in ("first", "second") for n in start}


def test_a_checkpoint_is_always_beside_the_state_of_its_own_round(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The process dies when the state of round 2 is on the disk and its checkpoint is not."""
    save_checkpoint(tmp_path, "global", Checkpoint(1, record(1.0), {"first:x": np.ones(1)}), "base")
    with monkeypatch.context() as patch:
        write = save_checkpoint.__globals__["write_atomically"]

        def die(path: Path, data: bytes) -> None:
            if "state" not in path.name:
                raise Killed
            write(path, data)

        patch.setitem(save_checkpoint.__globals__, "write_atomically", die)
        with pytest.raises(Killed):
            save_checkpoint(tmp_path, "global", Checkpoint(2, record(2.0), {"first:x": np.full(1, 2.0)}), "base")
    found = load_checkpoint(tmp_path, "global", "base")
    assert found is not None
    assert (found.round, found.state["first:x"].tolist()) == (1, [1.0])


def test_a_state_that_is_missing_or_damaged_is_named_with_what_to_do(tmp_path: Path) -> None:
    save_checkpoint(tmp_path, "global", Checkpoint(1, record(1.0), {"first:x": np.ones(1)}), "base")
    path = state_path(tmp_path, "global", 1)
    path.write_bytes(path.read_bytes()[:-3])
    with pytest.raises(RunError, match=r"state-1.safetensors is damaged .* remove it"):
        load_checkpoint(tmp_path, "global", "base")
    path.unlink()
    with pytest.raises(RunError, match=r"state-1.safetensors is missing"):
        load_checkpoint(tmp_path, "global", "base")


def test_the_state_of_another_arm_is_not_touched(tmp_path: Path) -> None:
    for arm in ("global", "global+finetune", "personalized"):
        save_checkpoint(tmp_path, arm, Checkpoint(1, record(1.0), {"first:x": np.ones(1)}), "base")
    save_checkpoint(tmp_path, "global", Checkpoint(2, record(1.0), {"first:x": np.ones(1)}), "base")
    assert sorted(p.name for p in tmp_path.glob("*state*")) == [
        "global+finetune.state-1.safetensors",
        "global.state-2.safetensors",
        "personalized.state-1.safetensors",
    ]
