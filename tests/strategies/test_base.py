"""Shared-subset FedAvg: the weighted average and nothing but the average, of the devices that were drawn."""

import re
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord
from flwr.serverapp.strategy import Strategy
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays as numpy_arrays

from fl.core.errors import AggregationError
from fl.protocol.wire import JOB, SHARED, Job, from_arrays, to_arrays
from sim.backends.serial import SerialGrid
from strategies.averaging import average
from strategies.base import Roster, SharedFedAvg, weighted_mean
from strategies.replies import DeviceReply

Make = Callable[..., SharedFedAvg]


def reply(device_id: str, examples: float = 1, **tensors: Any) -> DeviceReply:
    values = {name: np.asarray(v, np.float32) for name, v in tensors.items()}
    return DeviceReply(device_id, values, {}, {"examples": examples})


def averaged(*replies: DeviceReply) -> dict[str, np.ndarray]:
    result = average(replies, {r.device_id: r.examples for r in replies})
    return {name: array.numpy() for name, array in result.items()}


def test_the_average_is_weighted_by_training_examples() -> None:
    result = averaged(
        reply("ann", 1, A=[[0.0, 8.0]], B=[1.0]),
        reply("bob", 2, A=[[4.0, 0.0]], B=[2.5]),
        reply("cho", 5, A=[[8.0, -8.0]], B=[-2.0]),
    )
    assert result["A"].tolist() == [[(1 * 0 + 2 * 4 + 5 * 8) / 8, (1 * 8 + 2 * 0 + 5 * -8) / 8]]
    assert result["B"].tolist() == [(1 * 1 + 2 * 2.5 + 5 * -2) / 8]
    assert result["A"].dtype == np.float32


def test_one_device_alone_gives_its_own_update_back_bit_for_bit() -> None:
    mine = np.random.default_rng(0).standard_normal((5, 7)).astype(np.float32)
    for examples in (1, 3, 7, 1_000_003):
        assert averaged(reply("ann", examples, A=mine))["A"].tobytes() == mine.tobytes()


def test_small_updates_are_not_lost_beside_large_ones_that_cancel() -> None:
    large = 2.0**24  # a quarter of it plus a quarter is no float32
    parts = [reply(f"device {i}", 1, A=[value]) for i, value in enumerate((large, 1.0, -large, 1.0))]
    assert averaged(*parts)["A"].tolist() == [(1.0 + 1.0) / 4]


def test_nothing_to_average_is_an_error() -> None:
    with pytest.raises(AggregationError, match="no device"):
        averaged()
    with pytest.raises(AggregationError, match="no device"):
        averaged(reply("ann", 0, A=[1.0]))


finite = st.floats(-1e6, 1e6, width=32)
updates = st.lists(
    st.tuples(st.integers(1, 1_000), numpy_arrays(np.float32, (3,), elements=finite)), min_size=1, max_size=6
)


@given(updates)
def test_the_average_lies_between_the_smallest_and_the_largest_and_matches_the_textbook(
    parts: list[tuple[int, np.ndarray]],
) -> None:
    result = averaged(*(reply(f"device {i}", n, A=values) for i, (n, values) in enumerate(parts)))["A"]
    stacked = np.stack([values.astype(np.float64) for _, values in parts])
    expected = np.average(stacked, axis=0, weights=[n for n, _ in parts])
    # Computed in float64, rounded once: half a step of float32 at the largest value on the way.
    np.testing.assert_allclose(result, expected, rtol=0, atol=float(np.spacing(np.float32(abs(stacked).max()))))
    assert (result <= stacked.max(axis=0) * (1 + 1e-6 * np.sign(stacked.max(axis=0)))).all()


@given(updates, st.randoms())
def test_equal_updates_average_to_themselves(parts: list[tuple[int, np.ndarray]], random: Any) -> None:
    same = parts[0][1]
    result = averaged(*(reply(f"device {i}", n, A=same) for i, (n, _) in enumerate(parts)))["A"]
    np.testing.assert_allclose(result, same, rtol=1e-6)


def train(devices: Any, strategy: SharedFedAvg, start: ArrayRecord, server_round: int = 1) -> dict[str, np.ndarray]:
    grid = SerialGrid(devices)
    replies = list(grid.send_and_receive(strategy.configure_train(server_round, start, ConfigRecord(), grid)))
    new, _ = strategy.aggregate_train(server_round, replies[::-1])
    assert new is not None
    return {name: array.numpy() for name, array in new.items()}


def test_a_round_moves_the_shared_tensors_by_the_weighted_steps(
    devices: Any, make_strategy: Make, start: ArrayRecord
) -> None:
    new = train(devices, make_strategy(devices), start)
    step = (1 * 1.0 + 2 * 2.0 + 5 * 4.0) / 8
    assert set(new) == set(start)
    for name, array in start.items():
        assert (new[name] == array.numpy() + step).all()


def test_where_devices_live_and_in_which_order_they_are_named_changes_nothing(
    devices: Any, make_strategy: Make, start: ArrayRecord
) -> None:
    one = train(devices, make_strategy(devices), start)
    moved = Roster({"ann": 2, "bob": 2, "cho": 1}, devices.examples)
    job = Job(arm="global", round=0, devices=("cho", "ann", "bob"))
    other = train(devices, make_strategy(devices, roster=moved, job=job), start)
    assert all(one[name].tobytes() == other[name].tobytes() for name in one)


def test_a_failing_device_is_left_out_of_the_average(devices: Any, make_strategy: Make, start: ArrayRecord) -> None:
    devices.failing = {"cho": 1}
    strategy = make_strategy(devices)
    new = train(devices, strategy, start)
    assert np.allclose(new["layer.A"], (1 * 1.0 + 2 * 2.0) / 3)
    assert set(strategy.last.left_out) == {"cho"}


def test_without_a_sound_reply_there_is_no_new_state(devices: Any, make_strategy: Make, start: ArrayRecord) -> None:
    devices.failing = dict.fromkeys(devices.steps, 1)
    strategy = make_strategy(devices)
    grid = SerialGrid(devices)
    replies = grid.send_and_receive(strategy.configure_train(1, start, ConfigRecord(), grid))
    assert strategy.aggregate_train(1, replies) == (None, None)


def test_each_node_gets_one_message_with_its_own_devices(devices: Any, make_strategy: Make, start: ArrayRecord) -> None:
    strategy = make_strategy(devices)
    grid = SerialGrid(devices)
    messages = list(strategy.configure_train(3, start, ConfigRecord(), grid))
    jobs = {m.metadata.dst_node_id: Job.from_record(m.content.config_records[JOB]) for m in messages}
    assert {node: job.devices for node, job in jobs.items()} == {1: ("ann", "cho"), 2: ("bob",)}
    assert {job.round for job in jobs.values()} == {3}
    assert {job.parallel for job in jobs.values()} == {2}


def test_a_finetuning_sends_tensors_and_expects_none(devices: Any, make_strategy: Make, start: ArrayRecord) -> None:
    job = Job(arm="global+finetune", round=0, devices=("ann",), phase="finetune")
    strategy = make_strategy(devices, job=job)
    grid = SerialGrid(devices)
    replies = list(grid.send_and_receive(strategy.configure_train(1, start, ConfigRecord(), grid)))
    assert strategy.aggregate_train(1, replies) == (None, None)  # these devices send their tensors all the same
    assert "other tensor names" in strategy.last.left_out["ann"]


def test_it_is_an_ordinary_strategy_of_flower(devices: Any, make_strategy: Make, start: ArrayRecord) -> None:
    strategy = make_strategy(devices)
    assert isinstance(strategy, Strategy)
    result = strategy.start(SerialGrid(devices), start, num_rounds=2)
    step = (1 * 1.0 + 2 * 2.0 + 5 * 4.0) / 8
    assert (result.arrays["layer.A"].numpy() == 2 * step).all()
    assert sorted(result.train_metrics_clientapp) == [1, 2]
    final = result.evaluate_metrics_clientapp[2]
    assert [final[f"wer.{f}"] for f in ("substitutions", "insertions", "reference")] == [3, 6, 30]
    assert result.train_metrics_clientapp[1]["loss"] == step


# Sampling


def drawn(make_strategy: Make, devices: Any, count: int = 20, **changes: Any) -> list[tuple[str, ...]]:
    names = [f"device {i:02}" for i in range(count)]
    job = Job(arm=changes.pop("arm", "global"), round=0, devices=tuple(changes.pop("order", names)))
    strategy = make_strategy(devices, job=job, **{"sample": 0.25, **changes})
    return [strategy.sampled(r) for r in range(1, 40)]


def test_sampling_depends_on_the_seed_and_the_round_alone(devices: Any, make_strategy: Make) -> None:
    import random

    first = drawn(make_strategy, devices)
    random.seed(99)
    backwards = [f"device {i:02}" for i in range(19, -1, -1)]
    assert drawn(make_strategy, devices, order=backwards) == first
    assert drawn(make_strategy, devices, seed=2) != first
    strategy = make_strategy(devices, job=Job(arm="global", round=0, devices=tuple(backwards)), sample=0.25)
    assert strategy.sampled(17) == first[16]  # whatever was drawn before


def test_every_arm_draws_the_same_devices_in_a_round(devices: Any, make_strategy: Make) -> None:
    assert drawn(make_strategy, devices, arm="personalized") == drawn(make_strategy, devices, arm="global")


def test_a_sample_has_the_size_asked_for_and_reaches_everybody(devices: Any, make_strategy: Make) -> None:
    rounds = drawn(make_strategy, devices)
    assert {len(chosen) for chosen in rounds} == {5}
    assert all(len(set(chosen)) == 5 for chosen in rounds)
    assert len({d for chosen in rounds for d in chosen}) == 20


@pytest.mark.parametrize(("sample", "size"), [(1.0, 20), (1e-9, 1), (0.5, 10), (2.0, 2), (19.0, 19), (1000.0, 20)])
def test_a_sample_is_a_share_or_a_number_of_at_least_one_and_at_most_all(
    devices: Any, make_strategy: Make, sample: float, size: int
) -> None:
    assert {len(chosen) for chosen in drawn(make_strategy, devices, sample=sample)} == {size}


def test_a_number_of_devices_draws_the_same_ones_as_the_share_that_it_is(devices: Any, make_strategy: Make) -> None:
    assert drawn(make_strategy, devices, sample=5.0) == drawn(make_strategy, devices, sample=0.25)


def test_a_device_that_was_not_drawn_is_not_asked(devices: Any, make_strategy: Make, start: ArrayRecord) -> None:
    strategy = make_strategy(devices, sample=0.3)
    train(devices, strategy, start)
    (chosen,) = strategy.sampled(1)
    assert [job.devices for _, job in devices.jobs] == [(chosen,)]


def test_the_roster_divides_people_into_those_who_train_and_those_who_only_test() -> None:
    roster = Roster({"new": 1, "bob": 2, "ann": 1}, {"ann": 3, "bob": 1, "new": 0})
    assert (roster.training, roster.new_people) == (("ann", "bob"), ("new",))


def test_a_mean_loss_is_weighted() -> None:
    assert weighted_mean([(1.0, 3), (5.0, 1)]) == 2.0
    assert weighted_mean([]) == 0.0


def test_tensors_survive_the_records_of_the_wire() -> None:
    values = {"b": np.arange(6, dtype=np.float32).reshape(2, 3), "a": np.ones(1, np.float32)}
    record = ArrayRecord({name: Array(value) for name, value in values.items()})
    back = to_arrays(from_arrays(record))
    assert list(back) == ["a", "b"]
    assert all(re.fullmatch("float32", array.dtype) for array in back.values())
    assert all((back[name].numpy() == value).all() for name, value in values.items())


def test_a_shared_part_that_rests_goes_out_stays_as_it_is_and_is_not_sent_back(
    devices: Any, start: ArrayRecord, make_strategy: Make
) -> None:
    strategy = make_strategy(devices, rests_from=2)
    grid = SerialGrid(devices, nodes=2)
    moved, _ = strategy.aggregate_train(
        1, grid.send_and_receive(strategy.configure_train(1, start, ConfigRecord(), grid))
    )
    assert moved is not None
    answer = devices.answer

    def keep_to_itself(device_id: str, job: Job, message: Any) -> dict[str, Any]:
        assert message.content.array_records[SHARED] == moved
        return {key: part for key, part in answer(device_id, job, message).items() if not key.startswith(SHARED)}

    devices.answer = keep_to_itself
    kept, metrics = strategy.aggregate_train(
        2, grid.send_and_receive(strategy.configure_train(2, moved, ConfigRecord(), grid))
    )
    assert [job.phase for _, job in devices.jobs] == ["federate"] * 2 + ["personalize"] * 2
    assert kept is moved
    assert metrics is not None
    assert metrics["devices"] == 3
