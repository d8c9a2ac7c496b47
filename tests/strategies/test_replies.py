"""Replies are checked before any arithmetic: what is not sound is named and left out, and never stops the others."""

import re
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, MessageType, MetricRecord, RecordDict

from fl.metrics import Counts
from fl.protocol.wire import COUNTS, SHARED, device_key
from sim.backends.serial import SerialGrid
from strategies.replies import read_replies

SHAPES = {"layer.A": (2, 3), "layer.B": (4,)}
Reply = Callable[[dict[str, Any]], Message]


def arrays(**changes: np.ndarray | None) -> ArrayRecord:
    values: dict[str, np.ndarray | None] = {name: np.ones(shape, np.float32) for name, shape in SHAPES.items()}
    values.update({f"layer.{name}": value for name, value in changes.items()})
    return ArrayRecord({name: Array(value) for name, value in values.items() if value is not None})


def sound(device_id: str, *, shared: ArrayRecord | None = None, **numbers: Any) -> dict[str, Any]:
    counts = {"examples": 3, "loss": 1.5, **{name.replace("_", "-"): v for name, v in numbers.items()}}
    content: dict[str, Any] = {
        device_key(COUNTS, device_id): MetricRecord({k: v for k, v in counts.items() if v is not None})
    }
    return {**content, device_key(SHARED, device_id): arrays() if shared is None else shared}


def test_sound_replies_come_in_the_order_of_device_ids_wherever_they_came_from(message_with: Reply) -> None:
    messages = [message_with({**sound("cho"), **sound("ann")}), message_with(sound("bob"))]
    for order in (messages, messages[::-1]):
        replies = read_replies(order, ("bob", "ann", "cho"), SHAPES)
        assert [r.device_id for r in replies.sound] == ["ann", "bob", "cho"]
        assert replies.left_out == {}


def mislabelled(values: np.ndarray) -> ArrayRecord:
    """A tensor that says one thing and holds another."""
    data = Array(values).data
    fake = Array(dtype="float32", shape=SHAPES["layer.A"], stype="numpy.ndarray", data=data)
    return ArrayRecord({"layer.A": fake, "layer.B": Array(np.ones(4, np.float32))})


def damaged(data: bytes, stype: str = "numpy.ndarray") -> ArrayRecord:
    fake = Array(dtype="float32", shape=SHAPES["layer.A"], stype=stype, data=data)
    return ArrayRecord({"layer.A": fake, "layer.B": Array(np.ones(4, np.float32))})


COUNTED = {f"wer.{field}": 1 for field in ("substitutions", "deletions", "insertions", "reference")}

FAULTS: dict[str, tuple[dict[str, Any], str]] = {
    "failed": ({device_key(COUNTS, "bob"): MetricRecord({"failed": 1})}, "failed on the device"),
    "NaN": (sound("bob", shared=arrays(A=np.full((2, 3), np.nan, np.float32))), "'layer.A' holds NaN"),
    "infinity": (sound("bob", shared=arrays(B=np.full(4, np.inf, np.float32))), "'layer.B' holds NaN or infinity"),
    "another name": (sound("bob", shared=arrays(gate=np.ones(2, np.float32))), "other tensor names .* 'layer.gate'"),
    "a missing tensor": (sound("bob", shared=arrays(B=None)), "other tensor names .* 'layer.B'"),
    "wrong shape": (sound("bob", shared=arrays(A=np.ones((3, 2), np.float32))), r"'layer.A' is float32 \(3, 2\)"),
    "wrong dtype": (sound("bob", shared=arrays(A=np.ones((2, 3), np.int64))), "'layer.A' is int64"),
    "no tensors": ({device_key(COUNTS, "bob"): MetricRecord({"examples": 3})}, "sent no shared tensors"),
    "zero weight": (sound("bob", examples=0), "weight 0 is not positive"),
    "negative weight": (sound("bob", examples=-3), "weight -3 is not positive"),
    "no weight": (sound("bob", examples=None), "weight 0.0 is not positive"),
    "NaN weight": (sound("bob", examples=float("nan")), "examples is nan"),
    "infinite weight": (sound("bob", examples=float("inf")), "examples is inf"),
    "NaN loss": (sound("bob", loss=float("nan")), "loss is nan"),
    "a list for a count": (sound("bob", examples=[1, 2]), "'examples' is a list"),
    "infinite errors": (sound("bob", **{**COUNTED, "wer.deletions": float("inf")}), "unreadable counts"),
    "NaN errors": (sound("bob", **{**COUNTED, "wer.deletions": float("nan")}), "unreadable counts"),
    "negative errors": (sound("bob", **{**COUNTED, "wer.deletions": -1}), "a negative one"),
    "errors without a reference": (sound("bob", **{"wer.deletions": 1}), "unreadable counts"),
    "counts of another kind": ({device_key(COUNTS, "bob"): ConfigRecord({"examples": 3})}, "unreadable counts"),
    "tensor under a false shape": (sound("bob", shared=mislabelled(np.ones(1, np.float32))), "under another label"),
    "tensor under a false dtype": (sound("bob", shared=mislabelled(np.ones((2, 3)))), "under another label"),
    "bytes that are no tensor": (sound("bob", shared=damaged(b"\x93NUMPY")), "cannot be decoded"),
    "no bytes": (sound("bob", shared=damaged(b"")), "cannot be decoded"),
    "pickled object": (
        sound("bob", shared=damaged(b"\x80\x04\x95\x0b\x00\x00\x00\x00\x00\x00\x00\x8c\x07payload\x94.")),
        "cannot be decoded",
    ),
    "another serialization": (sound("bob", shared=damaged(b"", stype="pickle")), "cannot be decoded"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_an_unsound_device_is_named_and_left_out_and_its_neighbours_count(message_with: Reply, fault: str) -> None:
    content, reason = FAULTS[fault]
    replies = read_replies([message_with({**sound("ann"), **content, **sound("cho")})], ("ann", "bob", "cho"), SHAPES)
    assert [r.device_id for r in replies.sound] == ["ann", "cho"]
    assert list(replies.left_out) == ["bob"]
    assert re.search(reason, replies.left_out["bob"])


def test_a_device_that_was_not_asked_does_not_count(message_with: Reply) -> None:
    replies = read_replies([message_with({**sound("ann"), **sound("eve")})], ("ann",), SHAPES)
    assert [r.device_id for r in replies.sound] == ["ann"]
    assert replies.left_out == {"eve": "answered without being asked"}


@pytest.mark.parametrize("times", [2, 3])
def test_a_device_that_answers_twice_does_not_count_at_all(message_with: Reply, times: int) -> None:
    messages = [message_with(sound("bob", examples=n + 1)) for n in range(times)]
    replies = read_replies([message_with(sound("ann")), *messages], ("ann", "bob"), SHAPES)
    assert [r.device_id for r in replies.sound] == ["ann"]
    assert replies.left_out == {"bob": "answered twice"}


def test_a_device_that_does_not_answer_is_named(message_with: Reply) -> None:
    replies = read_replies([message_with(sound("ann"))], ("ann", "bob"), SHAPES)
    assert replies.left_out == {"bob": "did not answer"}


def test_a_node_that_fails_takes_only_its_own_devices_with_it(message_with: Reply) -> None:
    def crash(*_: object) -> Message:
        raise ValueError("out of luck")

    request = Message(RecordDict(), dst_node_id=2, message_type=MessageType.TRAIN)
    (failed,) = SerialGrid(crash, nodes=2).send_and_receive([request])  # type: ignore[arg-type]
    replies = read_replies([message_with(sound("ann")), failed], ("ann", "bob"), SHAPES)
    assert [r.device_id for r in replies.sound] == ["ann"]
    assert set(replies.left_out) == {"node 2", "bob"}
    assert "out of luck" in replies.left_out["node 2"]


def test_records_that_are_no_devices_counts_are_passed_over(message_with: Reply) -> None:
    extra = {"note": ConfigRecord({"text": "hello"}), device_key(SHARED, "eve"): arrays()}
    replies = read_replies([message_with({**sound("ann"), **extra})], ("ann",), SHAPES)
    assert ([r.device_id for r in replies.sound], replies.left_out) == (["ann"], {})


def test_an_evaluation_needs_counts_and_neither_tensors_nor_weight(message_with: Reply) -> None:
    counts = {"wer.substitutions": 1, "wer.deletions": 2, "wer.insertions": 3, "wer.reference": 10}
    content = {device_key(COUNTS, "ann"): MetricRecord({**counts, "seconds-evaluate": 0.5})}
    (reply,) = read_replies([message_with(content)], ("ann",), None).sound
    assert reply.metrics == {"wer": Counts(1, 2, 3, 10)}
    assert reply.numbers == {"seconds-evaluate": 0.5}
    assert reply.shared is None


def test_where_nothing_is_shared_tensors_are_refused(message_with: Reply) -> None:
    only_counts = {device_key(COUNTS, "ann"): MetricRecord({"examples": 3})}
    assert read_replies([message_with(only_counts)], ("ann",), {}).sound
    assert "other tensor names" in read_replies([message_with(sound("ann"))], ("ann",), {}).left_out["ann"]


def test_a_device_id_may_hold_any_sign(message_with: Reply) -> None:
    for device_id in ("a:b", "김민수", "../x", "counts:ann"):
        replies = read_replies([message_with(sound(device_id))], (device_id,), SHAPES)
        assert [r.device_id for r in replies.sound] == [device_id]
