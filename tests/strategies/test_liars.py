"""One node of five lies. The others' rows, weights, ids and noise stay what they are, whatever its replies say."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, Context, Message, MetricRecord, RecordDict

from fl.protocol.wire import COUNTS, DEVICES, IDS, SUM, TOTALS, UPDATES, device_key
from sim.backends.serial import SerialGrid
from strategies.arm import ArmStrategy
from strategies.roster import Roster

PEOPLE = ("ann", "bob", "cho", "dan", "liar")
HOME = {name: node for node, name in enumerate(PEOPLE, 1)}
LIE = 666.0
Forge = Callable[[Message, RecordDict], None]
Make = Callable[..., ArmStrategy]


class Lying(SerialGrid):
    """A node for each of :data:`PEOPLE`; the last one's replies are as ``forge`` makes them, and come first or last."""

    def __init__(self, devices: Any, forge: Forge, *, first: bool) -> None:
        super().__init__(devices, nodes=len(PEOPLE))
        self.devices, self.forge, self.first = devices, forge, first

    def _handle(self, message: Message) -> Message:
        reply = super()._handle(message)
        if message.metadata.dst_node_id == HOME["liar"]:
            self.forge(message, reply.content)
        return reply

    def send_and_receive(self, messages: Any, *, timeout: float | None = None) -> list[Message]:
        replies = list(super().send_and_receive(messages, timeout=timeout))
        return sorted(replies, key=lambda r: (r.metadata.src_node_id == HOME["liar"]) != self.first)


def rows_for(content: RecordDict, names: tuple[str, ...], shapes: dict[str, tuple[int, ...]], **numbers: float) -> None:
    """Put sound rows of these devices into a reply, each with an update of :data:`LIE`."""
    columns = {"examples": 3, "loss": 1.0, "steps": 2, "bytes-up": 40, **numbers}
    content[DEVICES] = ConfigRecord({IDS: list(names)})
    content[COUNTS] = MetricRecord({name: [value] * len(names) for name, value in columns.items()})  # type: ignore[dict-item]
    if UPDATES in content:
        content[UPDATES] = ArrayRecord(
            {n: Array(np.full((len(names), *shape), LIE, np.float32)) for n, shape in shapes.items()}
        )


@pytest.fixture
def five(devices: Any) -> Any:
    """Five devices that move the shared tensors by 1, 2, 3, 4 and 666."""
    devices.steps = {name: float(place) for place, name in enumerate(PEOPLE, 1)} | {"liar": LIE}
    devices.examples = dict.fromkeys(PEOPLE, 3)
    return devices


@pytest.fixture
def play(five: Any, start: ArrayRecord, make_strategy: Make) -> Callable[..., tuple[ArmStrategy, np.ndarray]]:
    """One round in which the last node lies; the strategy after it and the value to which it moved ``layer.A``."""

    def run(forge: Forge, *, first: bool = True, **settings: Any) -> tuple[ArmStrategy, np.ndarray]:
        strategy = make_strategy(five, roster=Roster(HOME, five.examples), **settings)
        grid = Lying(five, forge, first=first)
        new, _ = strategy.aggregate_train(
            1, grid.send_and_receive(strategy.configure_train(1, start, ConfigRecord(), grid))
        )
        assert new is not None
        return strategy, new["layer.A"].numpy()

    return run


# Rows of devices that live elsewhere


@pytest.mark.parametrize("first", [True, False])
def test_a_node_that_answers_for_others_leaves_their_rows_alone(play: Any, start: ArrayRecord, first: bool) -> None:
    shapes = {name: tuple(array.shape) for name, array in start.items()}
    strategy, moved = play(lambda _, content: rows_for(content, PEOPLE, shapes), first=first, algorithm="median")
    assert np.unique(moved).tolist() == [3.0]  # the median of 1, 2, 3, 4 and 666
    assert [update.device_id for update in strategy.last.sound] == list(PEOPLE)
    assert list(strategy.last.left_out) == ["node 5"]
    assert "rows for 'ann' and 3 more are passed over" in strategy.last.left_out["node 5"]


@pytest.mark.parametrize("first", [True, False])
def test_a_node_cannot_say_that_anothers_device_failed(play: Any, first: bool) -> None:
    def forge(_: Message, content: RecordDict) -> None:
        content[device_key(COUNTS, "ann")] = MetricRecord({"failed": 1})

    strategy, moved = play(forge, first=first, algorithm="median")
    assert np.unique(moved).tolist() == [3.0]
    assert [update.device_id for update in strategy.last.sound] == list(PEOPLE)


@pytest.mark.parametrize("first", [True, False])
def test_a_sum_that_holds_anothers_device_spoils_itself_alone(
    five: Any, start: ArrayRecord, make_strategy: Make, first: bool
) -> None:
    def edge(message: Message, context: Context) -> Message:
        reply = five(message, context)
        rows = reply.content.array_records[UPDATES]
        reply.content[SUM] = ArrayRecord({n: Array(3 * a.numpy().sum(axis=0, dtype=float)) for n, a in rows.items()})
        reply.content[TOTALS] = MetricRecord({"weight": 3.0, "devices": 1})
        del reply.content[UPDATES]
        return reply

    def forge(_: Message, content: RecordDict) -> None:
        rows_for(content, ("ann", "liar"), {})
        content[TOTALS] = MetricRecord({"weight": 6.0, "devices": 2})

    strategy = make_strategy(five, roster=Roster(HOME, five.examples), aggregation="edge")
    grid = Lying(edge, forge, first=first)
    messages = strategy.configure_train(1, start, ConfigRecord(), grid)
    new, _ = strategy.aggregate_train(1, grid.send_and_receive(messages))
    assert new is not None
    assert np.unique(new["layer.A"].numpy()).tolist() == [2.5]  # the mean of 1, 2, 3 and 4
    assert [update.device_id for update in strategy.last.sound] == ["ann", "bob", "cho", "dan"]
    assert set(strategy.last.left_out) == {"liar", "node 5"}


@pytest.mark.parametrize("first", [True, False])
def test_a_node_cannot_evaluate_for_others(five: Any, start: ArrayRecord, make_strategy: Make, first: bool) -> None:
    def forge(_: Message, content: RecordDict) -> None:
        fields = ("substitutions", "deletions", "insertions", "reference")
        rows_for(content, PEOPLE, {}, **{f"wer.{name}": 10 for name in fields})

    strategy = make_strategy(five, roster=Roster(HOME, five.examples))
    grid = Lying(five, forge, first=first)
    strategy.aggregate_evaluate(1, grid.send_and_receive(strategy.configure_evaluate(1, start, ConfigRecord(), grid)))
    said = {update.device_id: update.metrics["wer"].deletions for update in strategy.last.sound}
    assert said == {**dict.fromkeys(PEOPLE, 0), "liar": 10}


def test_no_message_can_be_answered_by_a_node_that_guesses_its_id(
    five: Any, start: ArrayRecord, make_strategy: Make
) -> None:
    strategy = make_strategy(five, roster=Roster(HOME, five.examples))
    sent = [m for _ in range(2) for m in strategy.configure_train(1, start, ConfigRecord(), SerialGrid(five))]
    groups = {message.metadata.group_id for message in sent}  # part of what the id is a hash of
    assert len(groups) == len(sent)
    assert min(map(len, groups)) >= 32
