"""Replies are checked before any arithmetic: what is not sound is named and left out, and never stops the others.

Rows are checked one by one, a sum as a whole, and both give the same average.
"""

import re
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, MessageType, MetricRecord, RecordDict
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fl.aggregation.mean import mean
from fl.algorithms.arms import trained_arm
from fl.algorithms.plan import Phase
from fl.codecs.tensors import encode_all, join
from fl.metrics import Counts
from fl.protocol.reply import Exchange, ReplySchema
from fl.protocol.wire import COUNTS, DEVICES, ENCODED, IDS, PAYLOAD, SUM, TOTALS, UPDATES, device_key
from fl.settings.config import make_config
from sim.backends.serial import SerialGrid
from strategies.replies import Replies, read_replies

SHAPES = {"layer.A": (2, 3), "layer.B": (4,)}
Reply = Callable[[dict[str, Any]], Message]
Tensors = dict[str, np.ndarray]


def schema(**values: Any) -> ReplySchema:
    config = make_config(values)
    return ReplySchema(SHAPES, Exchange.of(config, trained_arm("global", config), Phase.FEDERATE))


PLAIN, EDGE = schema(), schema(aggregation="edge")
EXAMPLES = {"ann": 3, "bob": 1, "cho": 5, "dan": 2}


def tensors(seed: int) -> Tensors:
    rng = np.random.default_rng(seed)
    return {name: rng.standard_normal(shape).astype(np.float32) for name, shape in SHAPES.items()}


UPDATES_OF = {name: tensors(seed) for seed, name in enumerate(EXAMPLES)}


def record(values: dict[str, Any]) -> ArrayRecord:
    return ArrayRecord({n: v if isinstance(v, Array) else Array(v) for n, v in values.items() if v is not None})


def some(*names: str) -> dict[str, int]:
    return {name: EXAMPLES[name] for name in names}


def head(people: dict[str, Any], **columns: Any) -> dict[str, Any]:
    """The list of devices and their numbers; ``people`` are device -> examples."""
    numbers = {"examples": list(people.values()), "loss": [0.5] * len(people), **columns}
    return {DEVICES: ConfigRecord({IDS: list(people)}), COUNTS: MetricRecord(numbers)}


def stacked(
    people: dict[str, Any],
    updates: dict[str, Tensors] = UPDATES_OF,
    changes: dict[str, Any] | None = None,
    **columns: Any,
) -> dict[str, Any]:
    """A proper reply with single updates; ``changes`` are other arrays by name, None for none."""
    stacks = {name: np.stack([updates[d][name] for d in people]) for name in SHAPES}
    return {**head(people, **columns), UPDATES: record({**stacks, **(changes or {})})}


def summed(people: dict[str, int], updates: dict[str, Tensors] = UPDATES_OF, **totals: Any) -> dict[str, Any]:
    sums = {n: sum(w * updates[d][n].astype(np.float64) for d, w in people.items()) for n in SHAPES}
    numbers = {"weight": float(sum(people.values())), "devices": len(people), **totals}
    return {**head(people), SUM: record(sums), TOTALS: MetricRecord(numbers)}


def read(*messages: Message, asked: Any = tuple(EXAMPLES), schema: ReplySchema = PLAIN) -> Replies:
    return read_replies(messages, dict.fromkeys(asked, 1), schema, trains=True)


def names(replies: Replies) -> list[str]:
    return [update.device_id for update in replies.sound]


def textbook(*people: str) -> Tensors:
    weights = [EXAMPLES[n] for n in people]
    return {
        t: np.average([UPDATES_OF[n][t].astype(np.float64) for n in people], axis=0, weights=weights) for t in SHAPES
    }


def assert_mean(replies: Replies, *people: str) -> None:
    found = mean(replies.parts)
    for name, wanted in textbook(*people).items():
        np.testing.assert_allclose(found[name], wanted, rtol=1e-6, atol=1e-7)


def test_sound_replies_come_in_the_order_of_device_ids_wherever_they_came_from(message_with: Reply) -> None:
    messages = [message_with(stacked(some("cho", "ann"))), message_with(stacked(some("bob")))]
    for order in (messages, messages[::-1]):
        replies = read(*order, asked=("bob", "ann", "cho"))
        assert names(replies) == ["ann", "bob", "cho"]
        assert replies.left_out == {}
        assert all((u.tensors[n] == UPDATES_OF[u.device_id][n]).all() for u in replies.sound for n in SHAPES)  # type: ignore[index]
        assert_mean(replies, "ann", "bob", "cho")


TWO = some("ann", "bob")

# One device of a node


COUNTED = {f"wer.{field}": [1, 1, 1] for field in ("substitutions", "deletions", "insertions", "reference")}
BOB = ("ann", "bob", "cho")


ROW_FAULTS: dict[str, tuple[dict[str, Any], str]] = {
    "zero weight": ({"examples": [3, 0, 5]}, "weight 0 is not positive"),
    "negative weight": ({"examples": [3, -3, 5]}, "examples is -3"),
    "NaN weight": ({"examples": [3.0, float("nan"), 5.0]}, "examples is nan"),
    "infinite weight": ({"examples": [3.0, float("inf"), 5.0]}, "examples is inf"),
    "NaN loss": ({"loss": [0.5, float("nan"), 0.5]}, "loss is nan"),
    "infinite errors": ({**COUNTED, "wer.deletions": [1.0, float("inf"), 1.0]}, "unreadable counts"),
    "NaN errors": ({**COUNTED, "wer.deletions": [1.0, float("nan"), 1.0]}, "unreadable counts"),
    "negative errors": ({**COUNTED, "wer.deletions": [1, -1, 1]}, "wer.deletions is -1"),
    "said to have failed": ({"failed": [0, 1, 0]}, "failed on the device"),
}


@pytest.mark.parametrize("fault", ROW_FAULTS)
def test_an_unsound_device_is_named_and_left_out_and_its_neighbours_count(message_with: Reply, fault: str) -> None:
    columns, reason = ROW_FAULTS[fault]
    replies = read(message_with(stacked(some(*BOB), **columns)), asked=BOB)
    assert names(replies) == ["ann", "cho"]
    assert list(replies.left_out) == ["bob"]
    assert re.search(reason, replies.left_out["bob"])
    if "weight" not in fault:
        assert_mean(replies, "ann", "cho")


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_a_row_that_is_not_finite_is_left_out_and_its_neighbours_count(message_with: Reply, value: float) -> None:
    bad = {**UPDATES_OF, "bob": {**UPDATES_OF["bob"], "layer.B": np.array([0, 0, value, 0], np.float32)}}
    replies = read(message_with(stacked(EXAMPLES, bad)))
    assert names(replies) == ["ann", "cho", "dan"]
    assert replies.left_out == {"bob": "tensor 'layer.B' holds NaN or infinity"}
    assert_mean(replies, "ann", "cho", "dan")


def test_devices_that_do_not_say_how_many_examples_they_have_do_not_count(message_with: Reply) -> None:
    content = stacked(TWO)
    del content[COUNTS]["examples"]
    replies = read(message_with(content), asked=("ann", "bob"))
    assert replies.sound == ()
    assert all("weight 0.0 is not positive" in why for why in replies.left_out.values())


ALONE: dict[str, tuple[object, str]] = {
    "failed": (MetricRecord({"failed": 1}), "failed on the device"),
    "no update": (MetricRecord({"examples": 3}), "sent no update"),
    "a list for a count": (MetricRecord({"examples": [1, 2]}), "'examples' is a list"),
    "errors without a reference": (MetricRecord({"wer.deletions": 1}), "unreadable counts"),
    "counts of another kind": (ConfigRecord({"examples": 3}), "unreadable counts"),
}


@pytest.mark.parametrize("fault", ALONE)
def test_a_device_with_a_record_of_its_own_has_no_update_and_does_not_count(message_with: Reply, fault: str) -> None:
    content, reason = ALONE[fault]
    replies = read(message_with({**stacked(some("ann", "cho")), device_key(COUNTS, "bob"): content}), asked=BOB)
    assert names(replies) == ["ann", "cho"]
    assert list(replies.left_out) == ["bob"]
    assert re.search(reason, replies.left_out["bob"])
    assert_mean(replies, "ann", "cho")


def test_a_node_whose_devices_sent_counts_and_no_updates_is_told_so(message_with: Reply) -> None:
    replies = read(message_with(head(some("ann", "bob"))), asked=("ann", "bob"))
    assert replies.left_out == {"ann": "sent no update", "bob": "sent no update"}


# A node's message as a whole


def labelled(values: np.ndarray) -> Array:
    """An array that says one thing and holds another."""
    return Array(dtype="float32", shape=(2, *SHAPES["layer.A"]), stype="numpy.ndarray", data=Array(values).data)


def of_bytes(data: bytes, stype: str = "numpy.ndarray") -> Array:
    return Array(dtype="float32", shape=(2, *SHAPES["layer.A"]), stype=stype, data=data)


PICKLE = b"\x80\x04\x95\x0b\x00\x00\x00\x00\x00\x00\x00\x8c\x07payload\x94."
WHOLE_FAULTS: dict[str, tuple[dict[str, Any], str]] = {
    "a short column": (head(TWO, loss=[0.5]), "column 'loss' has not one number"),
    "a number for a column": (head(TWO, loss=0.5), "column 'loss' has not one number"),
    "columns of nobody": ({COUNTS: MetricRecord({"examples": [1, 2]})}, "not one number for each of its 0"),
    "columns of another kind": ({**head(TWO), COUNTS: ConfigRecord({"examples": [1, 2]})}, "of another kind"),
    "another name": (stacked(TWO, changes={"gate": np.ones((2, 2), np.float32)}), "other tensor names .* 'gate'"),
    "a missing tensor": (stacked(TWO, changes={"layer.B": None}), "other tensor names .* 'layer.B'"),
    "a stack of one device for two": (
        {**stacked(some("ann")), **head(TWO)},
        r"float32 \(1, 2, 3\), not .* \(2, 2, 3\)",
    ),
    "wrong shape": (stacked(TWO, changes={"layer.A": np.ones((2, 3, 2), np.float32)}), r"float32 \(2, 3, 2\)"),
    "wrong dtype": (stacked(TWO, changes={"layer.A": np.ones((2, 2, 3), np.int64)}), "'layer.A' is int64"),
    "under a false shape": (stacked(TWO, changes={"layer.A": labelled(np.ones(1, np.float32))}), "cannot be decoded"),
    "under a false dtype": (stacked(TWO, changes={"layer.A": labelled(np.ones((2, 2, 3)))}), "cannot be decoded"),
    "bytes that are no tensor": (stacked(TWO, changes={"layer.A": of_bytes(b"\x93NUMPY")}), "cannot be decoded"),
    "no bytes": (stacked(TWO, changes={"layer.A": of_bytes(b"")}), "cannot be decoded"),
    "pickled object": (stacked(TWO, changes={"layer.A": of_bytes(PICKLE)}), "cannot be decoded"),
    "another serialization": (stacked(TWO, changes={"layer.A": of_bytes(b"", "pickle")}), "cannot be decoded"),
}


@pytest.mark.parametrize("fault", WHOLE_FAULTS)
def test_a_message_that_does_not_fit_together_takes_only_its_own_devices_with_it(
    message_with: Reply, fault: str
) -> None:
    content, reason = WHOLE_FAULTS[fault]
    replies = read(message_with(content), message_with(stacked(some("cho", "dan"))))
    assert names(replies) == ["cho", "dan"]
    assert set(replies.left_out) == {"node 1", "ann", "bob"}
    assert re.search(reason, replies.left_out["node 1"])


def test_a_node_that_fails_takes_only_its_own_devices_with_it(message_with: Reply) -> None:
    def crash(*_: object) -> Message:
        raise ValueError("out of luck")

    request = Message(RecordDict(), dst_node_id=2, message_type=MessageType.TRAIN)
    (failed,) = SerialGrid(crash, nodes=2).send_and_receive([request])  # type: ignore[arg-type]
    replies = read(message_with(stacked(some("ann"))), failed, asked=("ann", "bob"))
    assert names(replies) == ["ann"]
    assert set(replies.left_out) == {"node 2", "bob"}
    assert "out of luck" in replies.left_out["node 2"]


def test_records_that_nobody_asked_for_are_passed_over(message_with: Reply) -> None:
    extra = {"note": ConfigRecord({"text": "hello"}), "updates:eve": record(tensors(9)), "shared": record(tensors(9))}
    replies = read(message_with({**stacked(some("ann")), **extra}), asked=("ann",))
    assert (names(replies), replies.left_out) == (["ann"], {})
    assert_mean(replies, "ann")


# Who was asked


def test_a_device_that_was_not_asked_does_not_count(message_with: Reply) -> None:
    replies = read(message_with(stacked(some("ann", "bob"))), asked=("ann",))
    assert names(replies) == ["ann"]
    assert list(replies.left_out) == ["node 1"]
    assert "rows for 'bob' are passed over: it was not asked" in replies.left_out["node 1"]


def test_a_device_that_does_not_answer_is_named(message_with: Reply) -> None:
    assert read(message_with(stacked(some("ann"))), asked=("ann", "bob")).left_out == {"bob": "did not answer"}


@pytest.mark.parametrize("times", [2, 3])
def test_a_device_that_answers_twice_does_not_count_at_all(message_with: Reply, times: int) -> None:
    messages = [message_with(stacked(some("bob"))) for _ in range(times)]
    replies = read(message_with(stacked(some("ann", "bob"))), *messages, asked=("ann", "bob"))
    assert names(replies) == ["ann"]
    assert replies.left_out == {"bob": "answered twice"}


def test_a_device_twice_in_one_list_does_not_count_at_all(message_with: Reply) -> None:
    content = {**stacked(TWO), DEVICES: ConfigRecord({IDS: ["ann", "ann"]})}
    replies = read(message_with(content), asked=("ann", "bob"))
    assert replies.sound == ()
    assert replies.left_out == {"ann": "answered twice", "bob": "did not answer"}


def test_a_device_id_may_hold_any_sign(message_with: Reply) -> None:
    for device_id in ("a:b", "김민수", "../x", "counts:ann"):
        replies = read(message_with(stacked({device_id: 3}, {device_id: tensors(1)})), asked=(device_id,))
        assert names(replies) == [device_id]


# Without tensors


def test_an_evaluation_needs_counts_and_neither_tensors_nor_weight(message_with: Reply) -> None:
    counts = {"wer.substitutions": 1, "wer.deletions": 2, "wer.insertions": 3, "wer.reference": 10}
    numbers = {**counts, "seconds-evaluate": 0.5}
    columns = {DEVICES: ConfigRecord({IDS: ["ann"]}), COUNTS: MetricRecord({n: [v] for n, v in numbers.items()})}
    for content in (columns, {device_key(COUNTS, "ann"): MetricRecord(numbers)}):  # other counts than its neighbours'
        (update,) = read_replies([message_with(content)], {"ann": 1}, ReplySchema()).sound
        assert update.metrics == {"wer": Counts(1, 2, 3, 10)}
        assert update.numbers == {"seconds-evaluate": 0.5}
        assert update.tensors is None


def test_a_phase_without_exchange_needs_a_weight_and_no_tensor(message_with: Reply) -> None:
    replies = read(message_with(head({"ann": 3, "bob": 0})), asked=("ann", "bob"), schema=ReplySchema())
    assert names(replies) == ["ann"]
    assert "not positive" in replies.left_out["bob"]


# Encodings


def test_encodings_are_decoded_row_by_row_and_an_unsound_one_is_left_out(message_with: Reply) -> None:
    agreed = schema(codec="fp16")
    assert agreed.exchange is not None
    rows = np.stack([join(encode_all(UPDATES_OF[d], agreed.exchange.codec)) for d in BOB])
    rows[1] = 0xFF  # a NaN
    content = {**head(some(*BOB)), ENCODED: record({PAYLOAD: rows})}
    replies = read(message_with(content), asked=BOB, schema=agreed)
    assert names(replies) == ["ann", "cho"]
    assert replies.left_out["bob"]
    for update in replies.sound:
        for name, values in UPDATES_OF[update.device_id].items():
            assert (update.tensors or {})[name] == pytest.approx(values.astype(np.float16))


def test_encodings_of_another_length_take_their_node_with_them(message_with: Reply) -> None:
    content = {**head(TWO), ENCODED: record({PAYLOAD: np.zeros((2, 7), np.uint8)})}
    replies = read(message_with(content), asked=("ann", "bob"), schema=schema(codec="fp16"))
    assert replies.sound == ()
    assert re.search(r"uint8 \(2, 7\), not uint8 \(2, 20\)", replies.left_out["node 1"])


# Sums of a node


@given(st.permutations(sorted(EXAMPLES)), st.integers(1, 3), st.lists(st.integers(1, 500), min_size=4, max_size=4))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=30)
def test_sums_of_nodes_give_the_average_of_devices_however_they_are_spread(
    message_with: Reply, order: list[str], cut: int, weights: list[int]
) -> None:
    people = dict(zip(order, weights, strict=True))
    parts = [{d: people[d] for d in order[:cut]}, {d: people[d] for d in order[cut:]}]
    by_device = read(*(message_with(stacked(p)) for p in parts), asked=order)
    by_node = read(*(message_with(summed(p)) for p in parts), asked=order, schema=EDGE)
    assert names(by_node) == names(by_device) == sorted(order)
    one, other = mean(by_device.parts), mean(by_node.parts)
    for name in SHAPES:
        np.testing.assert_allclose(other[name], one[name], rtol=1e-6, atol=1e-7)


def test_a_device_that_failed_at_its_node_is_counted_and_not_in_the_sum(message_with: Reply) -> None:
    content = {**summed(some("ann", "cho")), device_key(COUNTS, "bob"): MetricRecord({"failed": 1})}
    replies = read(message_with(content), asked=BOB, schema=EDGE)
    assert names(replies) == ["ann", "cho"]
    assert "failed on the device" in replies.left_out["bob"]
    assert_mean(replies, "ann", "cho")


def test_a_node_that_answers_in_two_messages_has_two_sums(message_with: Reply) -> None:
    replies = read(*(message_with(summed(some(*p))) for p in (("ann", "bob"), ("cho",))), asked=BOB, schema=EDGE)
    assert names(replies) == list(BOB)
    assert len({part.device_id for part in replies.parts}) == 2
    assert_mean(replies, *BOB)


NOT_A_NUMBER = {n: np.full(s, np.nan) for n, s in SHAPES.items()}
SUM_FAULTS: dict[str, tuple[dict[str, Any], str]] = {
    "no sum": (head(TWO), "sent no sum"),
    "tensors of devices": (stacked(TWO), "sent no sum"),
    "another weight": (summed(TWO, weight=99.0), "weight 99.0"),
    "no weight": ({k: v for k, v in summed(TWO).items() if k != TOTALS}, "weight None"),
    "NaN weight": (summed(TWO, weight=float("nan")), "weight nan"),
    "another number": (summed(TWO, devices=3), "names 2"),
    "more within the norm than there are": (summed(TWO, within=3), "3 of its 2 devices"),
    "NaN": ({**summed(TWO), SUM: record(NOT_A_NUMBER)}, "NaN or infinity"),
    "float32": ({**summed(TWO), SUM: record(UPDATES_OF["ann"])}, "float32"),
}


@pytest.mark.parametrize("fault", SUM_FAULTS)
def test_an_unsound_sum_takes_its_node_with_it_and_the_others_count(message_with: Reply, fault: str) -> None:
    content, reason = SUM_FAULTS[fault]
    replies = read(message_with(content), message_with(summed(some("cho", "dan"))), schema=EDGE)
    assert names(replies) == ["cho", "dan"]
    assert reason in replies.left_out["node 1"]
    assert_mean(replies, "cho", "dan")


@pytest.mark.parametrize("inside", [("ann", "eve"), ("ann", "cho")], ids=["not asked", "of another node"])
def test_a_sum_that_holds_a_device_that_cannot_count_is_left_out_whole(
    message_with: Reply, inside: tuple[str, ...]
) -> None:
    updates = {**UPDATES_OF, "eve": tensors(99)}
    people = {name: EXAMPLES.get(name, 4) for name in inside}
    replies = read(*(message_with(summed(p, updates)) for p in (people, some("bob", "cho"), some("dan"))), schema=EDGE)
    kept = ["bob", "cho", "dan"] if "eve" in inside else ["dan"]
    assert names(replies) == kept
    assert "sum holds" in replies.left_out["ann"]
    assert_mean(replies, *kept)
