"""SCAFFOLD at the aggregator by hand: x and c after rounds with all devices and with some, from single replies and from sums."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, MetricRecord

from fl.adapters.split import CONTROL
from fl.protocol.wire import COUNTS, DEVICES, IDS, SHARED, SUM, TOTALS, Job, device_key
from fl.settings.names import EDGE
from sim.backends.serial import SerialGrid
from strategies.base import Roster
from strategies.scaffold import Scaffold

X, C = "x", f"{CONTROL}x"
Round = Callable[..., dict[str, np.ndarray]]
EXAMPLES = {"ann": 1, "bob": 3, "cem": 4}
SENT = {"ann": (1.0, 0.5), "bob": (3.0, -0.5), "cem": (-2.0, 1.0)}  # x after training, c moved by the difference


def a_grid() -> SerialGrid:
    return SerialGrid(lambda message, context: message, nodes=1)  # type: ignore[arg-type]


def values(*numbers: float) -> np.ndarray:
    return np.array(numbers, np.float32)


def made(**options: Any) -> Scaffold:
    roster = Roster(dict.fromkeys(EXAMPLES, 1), EXAMPLES)
    return Scaffold(
        roster=roster, settings=ConfigRecord(), job=Job("global", 0, tuple(EXAMPLES)), **{"seed": 1, **options}
    )


def sent_by(strategy: Scaffold, x: float, server_round: int = 1) -> ArrayRecord:
    (message,) = strategy.configure_train(server_round, ArrayRecord({X: Array(values(x))}), ConfigRecord(), a_grid())
    return message.content.array_records[SHARED]


def reply_of(devices: tuple[str, ...], message_with: Callable[..., Message]) -> list[Message]:
    content: dict[str, Any] = {}
    for d in devices:
        content[device_key(COUNTS, d)] = MetricRecord({"examples": EXAMPLES[d], "loss": 1.0, "steps": 2})
        content[device_key(SHARED, d)] = ArrayRecord({X: Array(values(SENT[d][0])), C: Array(values(SENT[d][1]))})
    return [message_with(content)]


def test_two_rounds_by_hand(message_with: Callable[..., Message]) -> None:
    """c starts at 0; in round 1 all answer, in round 2 only ann and bob (half of the examples)."""
    strategy = made()
    assert {n: float(a.numpy()[0]) for n, a in sent_by(strategy, 10.0).items()} == {X: 10.0, C: 0.0}
    new, _ = strategy.aggregate_train(1, reply_of(("ann", "bob", "cem"), message_with))
    x = sum(EXAMPLES[d] / 8 * SENT[d][0] for d in EXAMPLES)
    c = sum(EXAMPLES[d] / 8 * SENT[d][1] for d in EXAMPLES)
    assert new is not None
    assert list(new) == [X]
    assert new[X].numpy() == pytest.approx([x])
    assert strategy.control[X] == pytest.approx([c])
    assert float(sent_by(strategy, x, 2)[C].numpy()[0]) == pytest.approx(c)
    new, _ = strategy.aggregate_train(2, reply_of(("ann", "bob"), message_with))
    assert new is not None
    assert new[X].numpy() == pytest.approx([(1 * 1.0 + 3 * 3.0) / 4])
    assert strategy.control[X] == pytest.approx([c + 1 / 8 * (0.5 - c) + 3 / 8 * (-0.5 - c)])


def test_a_sum_at_the_node_gives_the_same(message_with: Callable[..., Message]) -> None:
    single, summed = made(), made(aggregation=EDGE)
    for strategy in (single, summed):
        sent_by(strategy, 10.0)
    one, _ = single.aggregate_train(1, reply_of(("ann", "bob"), message_with))
    totals = {n: sum(EXAMPLES[d] * np.float64(SENT[d][i]) for d in ("ann", "bob")) for i, n in enumerate((X, C))}
    content = {
        DEVICES: ConfigRecord({IDS: ["ann", "bob"]}),
        COUNTS: MetricRecord({"examples": [1, 3], "loss": [1.0, 1.0], "steps": [2, 2]}),
        SUM: ArrayRecord({n: Array(np.array([total], np.float64)) for n, total in totals.items()}),
        TOTALS: MetricRecord({"weight": 4.0, "devices": 2}),
    }
    other, metrics = summed.aggregate_train(1, [message_with(content)])
    assert one is not None
    assert other is not None
    assert metrics is not None
    assert other[X].numpy() == pytest.approx(one[X].numpy())
    assert summed.control[X] == pytest.approx(single.control[X])


def test_one_device_alone_gives_its_own_and_the_order_of_devices_changes_nothing(
    message_with: Callable[..., Message],
) -> None:
    results = []
    for devices in (("ann", "bob", "cem"), ("cem", "ann", "bob")):
        strategy = made()
        sent_by(strategy, 10.0)
        new, _ = strategy.aggregate_train(1, reply_of(devices, message_with))
        assert new is not None
        results.append((new[X].numpy().tobytes(), strategy.control[X].tobytes()))
    assert results[0] == results[1]
    alone = Scaffold(roster=Roster({"cem": 1}, {"cem": 4}), settings=ConfigRecord(), job=Job("global", 0, ("cem",)))
    sent_by(alone, 10.0)
    new, _ = alone.aggregate_train(1, reply_of(("cem",), message_with))
    assert new is not None
    assert (float(new[X].numpy()[0]), float(alone.control[X][0])) == SENT["cem"]


def test_its_state_continues_and_resting_rounds_send_no_control_variate(message_with: Callable[..., Message]) -> None:
    first = made(rests_from=3)
    sent_by(first, 10.0)
    first.aggregate_train(1, reply_of(("ann", "bob", "cem"), message_with))
    second = made(rests_from=3)
    second.restore(first.server_state())
    assert sent_by(second, 1.0, 2)[C].numpy().tobytes() == sent_by(first, 1.0, 2)[C].numpy().tobytes() != bytes(4)
    assert list(sent_by(second, 1.0, 3)) == [X]


def test_control_variates_are_no_low_rank_pairs(message_with: Callable[..., Message]) -> None:
    strategy = made()
    names = {"m.gated_lora_A": (2, 3), "m.gated_lora_B": (4, 2)}
    start = ArrayRecord({n: Array(np.zeros(shape, np.float32)) for n, shape in names.items()})
    list(strategy.configure_train(1, start, ConfigRecord(), None))  # type: ignore[arg-type]
    content: dict[str, Any] = {}
    for i, d in enumerate(EXAMPLES):
        tensors = {n: Array(np.full(shape, 1.0 + i, np.float32)) for n, shape in names.items()}
        content[device_key(COUNTS, d)] = MetricRecord({"examples": 1, "loss": 1.0, "steps": 2})
        content[device_key(SHARED, d)] = ArrayRecord({**tensors, **{CONTROL + n: a for n, a in tensors.items()}})
    _, metrics = strategy.aggregate_train(1, [message_with(content)])
    assert metrics is not None
    assert {n for n in metrics if n.startswith("product-gap")} == {"product-gap", "product-gap:m"}
