"""The rule of a private mean on replies made by hand: whatever a device sends, it moves the mean by at most C / W."""

import re
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, MetricRecord

from fl.privacy.plan import Plan, make_plan
from fl.protocol.wire import COUNTS, SHARED, Job, device_key
from fl.settings.config import make_config
from sim.backends.serial import SerialGrid
from strategies.base import Roster
from strategies.private import PrivateMean, PrivateRoLora

Reply = Callable[[Mapping[str, Any]], Message]
START = {"q.gated_lora_A": np.full((2, 3), 0.5, np.float32), "q.gated_lora_B": np.zeros((4, 2), np.float32)}
SIZE = sum(value.size for value in START.values())
BOUND = 0.1


def plan(devices: int, **changes: Any) -> Plan:
    """Clipping and the fixed divisor without noise, so that results are exact; ``dp`` none divides by who answered."""
    made = make_plan(make_config({"dp": "server", "noise-multiplier": 5.0, "update-norm": BOUND}), devices, 1)
    assert made is not None
    return replace(made, **{"noise_multiplier": 0.0, **changes})


def moved(step: float) -> dict[str, np.ndarray]:
    return {name: value + np.float32(step) for name, value in START.items()}


def clipped(step: float) -> float:
    return step * min(1.0, BOUND / (abs(step) * SIZE**0.5))


def test_one_device_alone_gives_its_clipped_update_back(round_of: Callable[..., dict[str, np.ndarray]]) -> None:
    for step in (0.01, 0.5):
        found = round_of(PrivateMean, START, {"ann": (3, moved(step))}, plan=plan(1))
        for name, value in START.items():
            np.testing.assert_allclose(found[name], value + clipped(step), rtol=1e-5)


def test_the_order_of_the_devices_changes_nothing(round_of: Callable[..., dict[str, np.ndarray]]) -> None:
    people = {"ann": (1.0, moved(0.01)), "bob": (7.0, moved(-0.02)), "cho": (2.0, moved(0.3))}
    found = [
        round_of(PrivateMean, START, {name: people[name] for name in order}, plan=plan(3))
        for order in (("ann", "bob", "cho"), ("cho", "ann", "bob"))
    ]
    for name in START:
        assert found[0][name].tobytes() == found[1][name].tobytes()
        wanted = sum(map(clipped, (0.01, -0.02, 0.3))) / 3
        np.testing.assert_allclose(found[0][name] - START[name], wanted, atol=1e-6)


def test_without_noise_the_divisor_is_the_weight_of_who_answered(
    round_of: Callable[..., dict[str, np.ndarray]],
) -> None:
    people = {"ann": (1.0, moved(0.01)), "bob": (7.0, moved(0.02))}
    found = round_of(PrivateMean, START, people, plan=plan(2, dp="none", cap=4))
    for name in START:
        np.testing.assert_allclose(found[name] - START[name], (0.25 * 0.01 + 0.02) / 1.25, atol=1e-6)


def test_the_resting_factor_of_rolora_gets_neither_update_nor_noise(
    round_of: Callable[..., dict[str, np.ndarray]],
) -> None:
    noisy = plan(1, noise_multiplier=1.0)
    found = round_of(PrivateRoLora, START, {"ann": (3, moved(0.01))}, plan=noisy, server_round=1)
    assert found["q.gated_lora_A"].tobytes() == START["q.gated_lora_A"].tobytes()
    assert (found["q.gated_lora_B"] != START["q.gated_lora_B"]).all()


def arrays(values: Mapping[str, np.ndarray]) -> ArrayRecord:
    return ArrayRecord({name: Array(value) for name, value in values.items()})


def answer(device_id: str, values: Mapping[str, np.ndarray] | None, **numbers: Any) -> dict[str, Any]:
    said = {key: value for key, value in {"examples": 3, "loss": 1.0, **numbers}.items() if value is not None}
    content: dict[str, Any] = {device_key(COUNTS, device_id): MetricRecord(said)}
    return content if values is None else {**content, device_key(SHARED, device_id): arrays(values)}


NAN = {**moved(0.01), "q.gated_lora_A": np.full((2, 3), np.nan, np.float32)}
BAD: dict[str, tuple[dict[str, Any], str]] = {
    "other keys": (answer("bob", {**moved(0.01), "q.gated_lora_gate": np.ones(2, np.float32)}), "other tensor names"),
    "another rank": (answer("bob", {**moved(0.01), "q.gated_lora_A": np.ones((3, 3), np.float32)}), r"\(3, 3\)"),
    "another dtype": (answer("bob", {**moved(0.01), "q.gated_lora_A": np.ones((2, 3), np.int32)}), "int32"),
    "NaN": (answer("bob", NAN), "NaN"),
    "infinity": (answer("bob", {n: v * np.float32(np.inf) for n, v in moved(1.0).items()}), "infinity"),
    "zero weight": (answer("bob", moved(0.01), examples=0), "weight 0"),
    "negative weight": (answer("bob", moved(0.01), examples=-1), "weight -1"),
    "no weight": (answer("bob", moved(0.01), examples=None), "weight"),
    "no tensors": (answer("bob", None), "no shared tensors"),
    "nothing": ({}, "did not answer"),
    "not sampled": (answer("eve", moved(0.01)), "without being asked"),
}


@pytest.mark.parametrize("fault", [*BAD, "twice"])
def test_what_is_not_sound_is_named_and_left_out_and_the_divisor_stays(message_with: Reply, fault: str) -> None:
    devices = ("ann", "bob", "cho")
    roster = Roster(dict.fromkeys(devices, 1), dict.fromkeys(devices, 3))
    job = Job(arm="global", round=0, devices=devices)
    strategy = PrivateMean(roster=roster, settings=ConfigRecord(), job=job, plan=plan(3))
    list(strategy.configure_train(1, arrays(START), ConfigRecord(), SerialGrid(lambda m, c: m, nodes=1)))  # type: ignore[arg-type]
    good = [message_with({**answer("ann", moved(0.01)), **answer("cho", moved(0.02))})]
    if fault == "twice":
        content, reason, named = answer("bob", moved(0.01)), "answered twice", "bob"
        good.append(message_with(content))
    else:
        (content, reason), named = BAD[fault], "eve" if fault == "not sampled" else "bob"
    new, metrics = strategy.aggregate_train(1, [*good, message_with(content)])
    assert new is not None
    assert metrics is not None

    assert re.search(reason, strategy.last.left_out[named])
    assert metrics["left-out"] == len(strategy.last.left_out)
    for name, value in START.items():
        np.testing.assert_allclose(new[name].numpy() - value, (clipped(0.01) + clipped(0.02)) / 3, atol=1e-6)


def test_numbers_whose_squares_no_float_holds_move_the_mean_by_no_more_than_the_norm(
    round_of: Callable[..., dict[str, np.ndarray]],
) -> None:
    huge = {name: np.full(value.shape, 3e38, np.float32) for name, value in START.items()}
    found = round_of(PrivateMean, START, {"ann": (3, huge), "bob": (3, START)}, plan=plan(2))
    length = sum(float(np.square(found[name] - START[name], dtype=np.float64).sum()) for name in START) ** 0.5
    assert length == pytest.approx(BOUND / 2, rel=1e-4)
