"""A private mean on replies made by hand: whatever a device sends, it moves the mean by at most C / W."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, MetricRecord

from fl.algorithms.arms import trained_arm
from fl.privacy.plan import PrivacyPlan, make_plan
from fl.protocol.wire import COUNTS, DEVICES, IDS, UPDATES, Job
from fl.settings.config import make_config
from sim.backends.serial import SerialGrid
from strategies.private import PrivateMean
from strategies.roster import Roster

Round = Callable[..., dict[str, np.ndarray]]
START = {"q.gated_lora_A": np.full((2, 3), 0.5, np.float32), "q.gated_lora_B": np.zeros((4, 2), np.float32)}
SIZE = sum(value.size for value in START.values())
BOUND = 0.1
NOISE = {"dp": "server", "noise-multiplier": 5.0, "update-norm": BOUND}


def private_mean(*devices: str, algorithm: str = "fedavg", **changes: Any) -> PrivateMean:
    """Clipping and the fixed divisor without noise, so that results are exact; ``dp`` none divides by who answered."""
    config = make_config({**NOISE, "algorithm": algorithm})
    made, arm = make_plan(config, len(devices), 1), trained_arm("global", config)
    assert made is not None
    assert arm is not None
    plan: PrivacyPlan = replace(made, **{"noise_multiplier": 0.0, **changes})
    roster = Roster(dict.fromkeys(devices, 1), dict.fromkeys(devices, 3))
    return PrivateMean(config, arm, roster, Job("global", 0, devices), plan=plan)


def update(step: float) -> dict[str, np.ndarray]:
    return {name: np.full(value.shape, step, np.float32) for name, value in START.items()}


def clipped(step: float) -> float:
    return step * min(1.0, BOUND / (abs(step) * SIZE**0.5))


def test_one_device_alone_gives_its_clipped_update_back(round_of: Round) -> None:
    for step in (0.01, 0.5):
        found = round_of(private_mean("ann"), START, {"ann": (3, update(step))})
        for name, value in START.items():
            np.testing.assert_allclose(found[name], value + clipped(step), rtol=1e-5)


def test_the_order_of_the_devices_changes_nothing(round_of: Round) -> None:
    people = {"ann": (1, update(0.01)), "bob": (7, update(-0.02)), "cho": (2, update(0.3))}
    found = [
        round_of(private_mean("ann", "bob", "cho"), START, {name: people[name] for name in order})
        for order in (("ann", "bob", "cho"), ("cho", "ann", "bob"))
    ]
    for name in START:
        assert found[0][name].tobytes() == found[1][name].tobytes()
        wanted = sum(map(clipped, (0.01, -0.02, 0.3))) / 3
        np.testing.assert_allclose(found[0][name] - START[name], wanted, atol=1e-6)


def test_without_noise_the_divisor_is_the_weight_of_who_answered(round_of: Round) -> None:
    people = {"ann": (1, update(0.01)), "bob": (7, update(0.02))}
    found = round_of(private_mean("ann", "bob", dp="none", cap=4), START, people)
    for name in START:
        np.testing.assert_allclose(found[name] - START[name], (0.25 * 0.01 + 0.02) / 1.25, atol=1e-6)


def test_the_frozen_factor_of_rolora_gets_neither_update_nor_noise(round_of: Round) -> None:
    found = round_of(private_mean("ann", algorithm="rolora", noise_multiplier=1.0), START, {"ann": (3, update(0.01))})
    assert found["q.gated_lora_A"].tobytes() == START["q.gated_lora_A"].tobytes()
    assert (found["q.gated_lora_B"] != START["q.gated_lora_B"]).all()


def arrays(values: Mapping[str, np.ndarray]) -> ArrayRecord:
    return ArrayRecord({name: Array(value) for name, value in values.items()})


def answer(values: Mapping[str, np.ndarray | None], examples: int = 3) -> dict[str, Any]:
    """A node's answer for devices with their updates; one without any is not in the columns."""
    sound = {device: tensors for device, tensors in values.items() if tensors is not None}
    stacks = {name: np.stack([tensors[name] for tensors in sound.values()]) for name in START}  # type: ignore[index]
    columns = {"examples": [examples] * len(sound), "loss": [1.0] * len(sound)}
    return {
        DEVICES: ConfigRecord({IDS: list(sound)}),
        COUNTS: MetricRecord(columns),  # type: ignore[arg-type]
        UPDATES: arrays(stacks),
    }


BAD: dict[str, tuple[dict[str, Any], str]] = {
    "NaN": (answer({"bob": {**update(0.01), "q.gated_lora_A": np.full((2, 3), np.nan, np.float32)}}), "bob"),
    "infinity": (answer({"bob": update(np.inf)}), "bob"),
    "no weight": (answer({"bob": update(0.01)}, examples=0), "bob"),
    "another rank": (answer({"bob": {**update(0.01), "q.gated_lora_A": np.ones((3, 3), np.float32)}}), "node 1"),
    "not asked": (answer({"eve": update(0.01)}), "node 1"),
    "nothing": ({}, "bob"),
}


@pytest.mark.parametrize("fault", BAD)
def test_what_is_not_sound_is_named_and_left_out_and_the_divisor_stays(
    message_with: Callable[[Mapping[str, Any]], Message], fault: str
) -> None:
    content, named = BAD[fault]
    strategy = private_mean("ann", "bob", "cho")
    list(strategy.configure_train(1, arrays(START), ConfigRecord(), SerialGrid(None, nodes=1)))  # type: ignore[arg-type]
    good = answer({"ann": update(0.01), "cho": update(0.02)})
    new, metrics = strategy.aggregate_train(1, [message_with(good), message_with(content)])
    assert new is not None
    assert metrics is not None
    assert named in strategy.last.left_out
    assert metrics["left-out"] == len(strategy.last.left_out)
    for name, value in START.items():
        np.testing.assert_allclose(new[name].numpy() - value, (clipped(0.01) + clipped(0.02)) / 3, atol=1e-6)


def test_numbers_whose_squares_no_float_holds_move_the_mean_by_no_more_than_the_norm(round_of: Round) -> None:
    huge = {name: np.full(value.shape, 3e38, np.float32) for name, value in START.items()}
    found = round_of(private_mean("ann", "bob"), START, {"ann": (3, huge), "bob": (3, update(0.0))})
    length = sum(float(np.square(found[name] - START[name], dtype=np.float64).sum()) for name in START) ** 0.5
    assert length == pytest.approx(BOUND / 2, rel=1e-4)


def test_with_noise_each_arm_draws_devices_of_its_own() -> None:
    devices = [f"d{i:02d}" for i in range(40)]
    one = private_mean(*devices, size=10)
    other = private_mean(*devices, size=10)
    other.job = replace(other.job, arm="personalized")
    assert [len(one.sampled(r)) for r in (1, 2)] == [10, 10]
    assert one.sampled(1) != other.sampled(1)
    assert one.sampled(1) == private_mean(*devices, size=10).sampled(1) != one.sampled(2)
