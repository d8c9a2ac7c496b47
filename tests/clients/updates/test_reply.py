"""Many devices' answers in one reply: what each of them said can be read back, or their exact sum."""

import numpy as np
import pytest
import torch
from flwr.app import ArrayRecord, RecordDict

from clients.updates.reply import DeviceFailure, DeviceResult, ReplyWriter
from fl.algorithms.arms import trained_arm
from fl.algorithms.plan import Phase
from fl.core.errors import AudioError
from fl.metrics import Counts
from fl.protocol.reply import Exchange, ReplySchema
from fl.protocol.wire import COUNTS, DEVICES, SUM, TOTALS, UPDATES
from fl.settings.config import make_config


def result(device_id: str, value: float, examples: int = 1) -> DeviceResult:
    shared = {"A": torch.full((2, 3), value), "B": torch.arange(4) * value}
    return DeviceResult(device_id, {"examples": examples, "loss": value}, shared=shared)


def schema(*, edge: bool = False) -> ReplySchema:
    config = make_config({"aggregation": "edge" if edge else "device"})
    return ReplySchema({"A": (2, 3), "B": (4,)}, Exchange.of(config, trained_arm("global", config), Phase.FEDERATE))


def written(*results: DeviceResult | DeviceFailure, edge: bool = False) -> RecordDict:
    writer = ReplyWriter(len(results), schema(edge=edge))
    for one in results:
        writer.add(one)
    return writer.content()


def test_numbers_are_columns_and_tensors_are_stacked_in_the_order_of_the_devices() -> None:
    reply = written(result("bob", 2.0, 5), result("ann", 1.0, 3))
    assert set(reply) == {DEVICES, COUNTS, UPDATES}
    assert list(reply.config_records[DEVICES]["ids"]) == ["bob", "ann"]  # type: ignore[arg-type]
    assert dict(reply.metric_records[COUNTS]) == {"examples": [5, 3], "loss": [2.0, 1.0]}
    stack = reply.array_records[UPDATES]["A"].numpy()
    assert stack.tolist() == [np.full((2, 3), 2.0).tolist(), np.full((2, 3), 1.0).tolist()]


def test_tensors_are_copied_when_they_are_added() -> None:
    shared = {"A": torch.ones(2)}
    writer = ReplyWriter(2)
    for value in (1.0, 2.0):
        shared["A"].fill_(value)
        writer.add(DeviceResult(f"device {value}", {"examples": 1}, shared=shared))
    assert writer.content().array_records[UPDATES]["A"].numpy().tolist() == [[1.0, 1.0], [2.0, 2.0]]


@pytest.mark.parametrize("edge", [False, True])
def test_a_device_that_failed_is_counted_and_in_no_row(edge: bool) -> None:
    error = AudioError("오늘 meeting.wav is silent")
    reply = written(result("ann", 1.0), DeviceFailure("bob", error), result("cho", 3.0), edge=edge)
    assert list(reply.config_records[DEVICES]["ids"]) == ["ann", "cho"]  # type: ignore[arg-type]
    assert dict(reply.metric_records["counts:bob"]) == {"failed": 1}
    if edge:
        assert reply.array_records[SUM]["A"].numpy().tolist() == np.full((2, 3), 4.0).tolist()
        assert dict(reply.metric_records[TOTALS]) == {"weight": 2.0, "devices": 2}
    else:
        assert reply.array_records[UPDATES]["A"].shape == (2, 2, 3)


def test_a_sum_is_weighted_by_examples_and_loses_nothing_that_float32_would() -> None:
    large, small = 2.0**24, 1.0  # the one plus the other is no float32
    reply = written(result("ann", large, 1), result("bob", small, 1), result("cho", -large, 1), edge=True)
    assert set(reply) == {DEVICES, COUNTS, SUM, TOTALS}
    assert reply.array_records[SUM]["A"].numpy().tolist() == np.full((2, 3), small).tolist()
    weighted = written(result("ann", 1.0, 2), result("bob", 10.0, 3), edge=True)
    assert weighted.array_records[SUM]["B"].numpy().tolist() == [32.0 * i for i in range(4)]
    assert weighted.metric_records[TOTALS]["weight"] == 5


def test_a_device_with_other_counts_than_the_first_has_a_record_of_its_own() -> None:
    scored = DeviceResult("ann", {"examples": 2}, {"wer": Counts(1, 0, 0, 9)})
    reply = written(scored, DeviceResult("bob", {"examples": 0}))
    assert reply.metric_records[COUNTS]["wer.reference"] == [9]
    assert dict(reply.metric_records["counts:bob"]) == {"examples": 0}


def test_a_column_that_mixes_whole_and_other_numbers_is_one_of_floats() -> None:
    reply = written(DeviceResult("ann", {"loss": 0}), DeviceResult("bob", {"loss": 0.5}))
    assert reply.metric_records[COUNTS]["loss"] == [0.0, 0.5]


def test_nobody_answers_with_nothing() -> None:
    assert not written()
    assert not isinstance(written().get(UPDATES), ArrayRecord)
