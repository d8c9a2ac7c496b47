"""A node's answer for many devices: rows are checked one by one, a sum as a whole, and both give the same average."""

import re
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, Context, Message, MetricRecord, RecordDict
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fl.protocol.wire import COUNTS, DEVICES, IDS, JOB, SHARED, SUM, TOTALS, Job, device_key
from fl.settings.names import EDGE
from sim.backends.serial import SerialGrid
from strategies.averaging import average
from strategies.base import SharedFedAvg
from strategies.replies import Replies, read_replies

SHAPES = {"layer.A": (2, 3), "layer.B": (4,)}
Reply = Callable[[dict[str, Any]], Message]


def tensors(seed: int) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    return {name: rng.standard_normal(shape).astype(np.float32) for name, shape in SHAPES.items()}


def record(values: dict[str, np.ndarray]) -> ArrayRecord:
    return ArrayRecord({name: Array(value) for name, value in values.items()})


def head(people: dict[str, int], **columns: Any) -> dict[str, Any]:
    """The list of devices and their numbers; ``people`` are device -> examples."""
    numbers = {"examples": list(people.values()), "loss": [0.5] * len(people), **columns}
    return {DEVICES: ConfigRecord({IDS: list(people)}), COUNTS: MetricRecord(numbers)}


def stacked(people: dict[str, int], updates: dict[str, dict[str, np.ndarray]], **columns: Any) -> dict[str, Any]:
    stacks = {name: np.stack([updates[d][name] for d in people]) for name in SHAPES}
    return {**head(people, **columns), SHARED: record(stacks)}


def summed(people: dict[str, int], updates: dict[str, dict[str, np.ndarray]], **totals: Any) -> dict[str, Any]:
    sums = {n: sum(w * updates[d][n].astype(np.float64) for d, w in people.items()) for n in SHAPES}
    numbers = {"weight": float(sum(people.values())), "devices": len(people), **totals}
    return {**head(people), SUM: record(sums), TOTALS: MetricRecord(numbers)}


EXAMPLES = {"ann": 3, "bob": 1, "cho": 5, "dan": 2}
UPDATES = {name: tensors(seed) for seed, name in enumerate(EXAMPLES)}


def some(*names: str) -> dict[str, int]:
    return {name: EXAMPLES[name] for name in names}


def averaged(replies: Replies) -> dict[str, np.ndarray]:
    result = average(replies.parts, {part.device_id: part.examples for part in replies.parts})
    return {name: array.numpy() for name, array in result.items()}


def textbook(*names: str) -> dict[str, np.ndarray]:
    weights = [EXAMPLES[n] for n in names]
    return {t: np.average([UPDATES[n][t].astype(np.float64) for n in names], axis=0, weights=weights) for t in SHAPES}


def close(found: dict[str, np.ndarray], wanted: dict[str, np.ndarray]) -> bool:
    return all(np.allclose(found[name], wanted[name], rtol=1e-6, atol=1e-7) for name in SHAPES)


def test_columns_say_what_records_of_single_devices_say(message_with: Reply) -> None:
    alone: dict[str, Any] = {}
    for name, examples in EXAMPLES.items():
        alone[device_key(COUNTS, name)] = MetricRecord({"examples": examples, "loss": 0.5})
        alone[device_key(SHARED, name)] = record(UPDATES[name])
    single = read_replies([message_with(alone)], tuple(EXAMPLES), SHAPES)
    together = read_replies([message_with(stacked(EXAMPLES, UPDATES))], tuple(EXAMPLES), SHAPES)
    assert [(r.device_id, r.numbers) for r in together.sound] == [(r.device_id, r.numbers) for r in single.sound]
    assert together.left_out == single.left_out == {}
    one, other = averaged(single), averaged(together)
    assert all(one[name].tobytes() == other[name].tobytes() for name in SHAPES)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_row_that_is_not_finite_is_left_out_and_its_neighbours_count(message_with: Reply, value: float) -> None:
    bad = {**UPDATES, "bob": {**UPDATES["bob"], "layer.B": np.array([0, 0, value, 0], np.float32)}}
    replies = read_replies([message_with(stacked(EXAMPLES, bad))], tuple(EXAMPLES), SHAPES)
    assert [r.device_id for r in replies.sound] == ["ann", "cho", "dan"]
    assert replies.left_out == {"bob": "tensor 'layer.B' holds NaN or infinity"}
    assert close(averaged(replies), textbook("ann", "cho", "dan"))


def test_a_row_without_weight_is_left_out_and_its_neighbours_count(message_with: Reply) -> None:
    content = stacked({**EXAMPLES, "bob": 0}, UPDATES)
    replies = read_replies([message_with(content)], tuple(EXAMPLES), SHAPES)
    assert list(replies.left_out) == ["bob"]
    assert "not positive" in replies.left_out["bob"]


WHOLE_FAULTS: dict[str, tuple[dict[str, Any], str]] = {
    "a short column": (head(some("ann", "bob"), loss=[0.5]), "column 'loss' has not one number"),
    "a number for a column": (head(some("ann", "bob"), loss=0.5), "column 'loss' has not one number"),
    "columns of nobody": ({COUNTS: MetricRecord({"examples": [1, 2]})}, "not one number for each of its 0"),
    "an odd name": (
        {**head(some("ann")), SHARED: record({**{n: v[None] for n, v in UPDATES["ann"].items()}, "gate": np.ones(1)})},
        "other tensor names",
    ),
    "a stack of one device for two": (
        {**stacked(some("ann"), UPDATES), **head(some("ann", "bob"))},
        r"not float \(2, ",
    ),
}


@pytest.mark.parametrize("fault", WHOLE_FAULTS)
def test_a_message_that_does_not_fit_together_takes_only_its_own_devices_with_it(
    message_with: Reply, fault: str
) -> None:
    content, reason = WHOLE_FAULTS[fault]
    messages = [message_with(content), message_with(stacked(some("cho", "dan"), UPDATES))]
    replies = read_replies(messages, tuple(EXAMPLES), SHAPES)
    assert [r.device_id for r in replies.sound] == ["cho", "dan"]
    assert set(replies.left_out) == {"node 1", "ann", "bob"}
    assert re.search(reason, replies.left_out["node 1"])


def test_a_device_in_two_nodes_columns_does_not_count_at_all(message_with: Reply) -> None:
    messages = [message_with(stacked(some(*names), UPDATES)) for names in (("ann", "bob"), ("bob", "cho"))]
    replies = read_replies(messages, ("ann", "bob", "cho"), SHAPES)
    assert [r.device_id for r in replies.sound] == ["ann", "cho"]
    assert replies.left_out == {"bob": "answered twice"}


def test_a_device_twice_in_one_list_does_not_count_at_all(message_with: Reply) -> None:
    content = stacked(some("ann", "bob"), UPDATES)
    content[DEVICES] = ConfigRecord({IDS: ["ann", "ann"]})
    replies = read_replies([message_with(content)], ("ann", "bob"), SHAPES)
    assert replies.sound == ()
    assert replies.left_out == {"ann": "answered twice", "bob": "did not answer"}


def test_a_stranger_in_the_columns_does_not_count(message_with: Reply) -> None:
    replies = read_replies([message_with(stacked(some("ann", "bob"), UPDATES))], ("ann",), SHAPES)
    assert [r.device_id for r in replies.sound] == ["ann"]
    assert replies.left_out == {"bob": "answered without being asked"}


# Sums of a node


@given(st.permutations(sorted(EXAMPLES)), st.integers(1, 3), st.lists(st.integers(1, 500), min_size=4, max_size=4))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=30)
def test_sums_of_nodes_give_the_average_of_devices_however_they_are_spread(
    message_with: Reply, order: list[str], cut: int, weights: list[int]
) -> None:
    people = dict(zip(order, weights, strict=True))
    parts = [{d: people[d] for d in order[:cut]}, {d: people[d] for d in order[cut:]}]
    by_device = read_replies([message_with(stacked(p, UPDATES)) for p in parts], order, SHAPES)
    by_node = read_replies([message_with(summed(p, UPDATES)) for p in parts], order, SHAPES, edge=True)
    assert [r.device_id for r in by_node.sound] == [r.device_id for r in by_device.sound] == sorted(order)
    one, other = averaged(by_device), averaged(by_node)
    for name in SHAPES:
        np.testing.assert_allclose(other[name], one[name], rtol=1e-6, atol=1e-7)


def test_a_device_that_failed_at_its_node_is_counted_and_not_in_the_sum(message_with: Reply) -> None:
    content = {**summed(some("ann", "cho"), UPDATES), device_key(COUNTS, "bob"): MetricRecord({"failed": 1})}
    replies = read_replies([message_with(content)], ("ann", "bob", "cho"), SHAPES, edge=True)
    assert [r.device_id for r in replies.sound] == ["ann", "cho"]
    assert "failed on the device" in replies.left_out["bob"]
    assert close(averaged(replies), textbook("ann", "cho"))


SUM_FAULTS: dict[str, tuple[Callable[[], dict[str, Any]], str]] = {
    "no sum": (lambda: head(some("ann", "bob")), "sent no sum"),
    "tensors of devices": (lambda: stacked(some("ann", "bob"), UPDATES), "sent no sum"),
    "another weight": (lambda: summed(some("ann", "bob"), UPDATES, weight=99.0), "weight 99.0"),
    "no weight": (lambda: {k: v for k, v in summed(some("ann", "bob"), UPDATES).items() if k != TOTALS}, "weight None"),
    "NaN weight": (lambda: summed(some("ann", "bob"), UPDATES, weight=float("nan")), "weight nan"),
    "another number": (lambda: summed(some("ann", "bob"), UPDATES, devices=3), "names 2"),
    "NaN": (
        lambda: {
            **summed(some("ann", "bob"), UPDATES),
            SUM: record({n: np.full(s, np.nan) for n, s in SHAPES.items()}),
        },
        "NaN or infinity",
    ),
    "float32": (lambda: {**summed(some("ann", "bob"), UPDATES), SUM: record(UPDATES["ann"])}, "float32"),
}


@pytest.mark.parametrize("fault", SUM_FAULTS)
def test_an_unsound_sum_takes_its_node_with_it_and_the_others_count(message_with: Reply, fault: str) -> None:
    content, reason = SUM_FAULTS[fault]
    messages = [message_with(content()), message_with(summed(some("cho", "dan"), UPDATES))]
    replies = read_replies(messages, tuple(EXAMPLES), SHAPES, edge=True)
    assert [r.device_id for r in replies.sound] == ["cho", "dan"]
    assert reason in replies.left_out["node 1"]
    assert close(averaged(replies), textbook("cho", "dan"))


@pytest.mark.parametrize("names", [("ann", "eve"), ("ann", "cho")], ids=["a stranger", "a device of another node"])
def test_a_sum_that_holds_a_device_that_cannot_count_is_left_out_whole(
    message_with: Reply, names: tuple[str, ...]
) -> None:
    updates = {**UPDATES, "eve": tensors(99)}
    people = {name: EXAMPLES.get(name, 4) for name in names}
    messages = [message_with(summed(p, updates)) for p in (people, some("bob", "cho"), some("dan"))]
    replies = read_replies(messages, tuple(EXAMPLES), SHAPES, edge=True)
    kept = ["bob", "cho", "dan"] if "eve" in names else ["dan"]
    assert [r.device_id for r in replies.sound] == kept
    assert "sum holds" in replies.left_out["ann"]
    assert close(averaged(replies), textbook(*kept))


def test_a_strategy_aggregates_sums_through_the_same_hook(make_strategy: Any, devices: Any, start: ArrayRecord) -> None:
    def node(message: Message, context: Context) -> Message:
        asked = Job.from_record(message.content.config_records[JOB]).devices
        shared = message.content.array_records[SHARED]
        people = {d: devices.examples[d] for d in asked}
        sums = {
            n: sum(w * (a.numpy() + devices.steps[d]).astype(float) for d, w in people.items())
            for n, a in shared.items()
        }
        totals = {"weight": float(sum(people.values())), "devices": len(people)}
        content = {**head(people), SUM: record(sums), TOTALS: MetricRecord(totals)}  # type: ignore[arg-type]
        return Message(RecordDict(content), reply_to=message)

    strategy: SharedFedAvg = make_strategy(devices, aggregation=EDGE)
    grid = SerialGrid(node)  # type: ignore[arg-type]
    replies = grid.send_and_receive(strategy.configure_train(1, start, ConfigRecord(), grid))
    new, metrics = strategy.aggregate_train(1, replies)
    assert new is not None
    assert metrics is not None
    step = (1 * 1.0 + 2 * 2.0 + 5 * 4.0) / 8
    assert all(np.allclose(new[name].numpy(), array.numpy() + step) for name, array in start.items())
    assert (metrics["devices"], metrics["left-out"]) == (3, 0)
    assert [r.device_id for r in strategy.last.sound] == ["ann", "bob", "cho"]
    assert [p.device_id for p in strategy.last.parts] == ["node 1", "node 2"]
