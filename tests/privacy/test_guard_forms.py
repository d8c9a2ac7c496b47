"""The guard where updates leave encoded or masked: the agreed form and nothing beside it."""

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, MetricRecord, RecordDict

from fl.core.errors import GuardError
from fl.privacy.secure_sum.messages import Masked
from fl.privacy.secure_sum.server import Client, new_setup
from fl.protocol.guard import check_reply, check_secure_step
from fl.protocol.wire import COUNTS, DEVICES, ENCODED, IDS, SHARED, SUM, TOTALS

SHAPES = {"q.gated_lora_A": (2, 3)}
SIZES = {"q.gated_lora_A": 10}
GATE = "q.gated_lora_gate_weight"


def reply(**records):
    columns = {DEVICES: ConfigRecord({IDS: ["ann"]}), COUNTS: MetricRecord({"examples": [3]})}
    return RecordDict(
        {**columns, **{key.replace("__", ":").replace("_", "-"): value for key, value in records.items()}}
    )


def stack(name="q.gated_lora_A", shape=(1, 10), dtype=np.uint8):
    return ArrayRecord({name: Array(np.ones(shape, dtype))})


def check(content, **options):
    check_reply(content, **{"shapes": SHAPES, "private": {GATE}, "devices": ("ann",), **options})


def test_encodings_of_the_agreed_length_pass():
    check(reply(encoded=stack()), payloads=SIZES)


@pytest.mark.parametrize(
    ("record", "why"),
    [
        (stack(GATE), "private tensor"),
        (stack("q.other"), "not a shared tensor"),
        (stack(shape=(1, 11)), "has shape"),
        (stack(shape=(2, 10)), "has shape"),
        (stack(dtype=np.float32), "dtype float32"),
        (ArrayRecord(), "lacks 1 shared"),
        (ConfigRecord({"a": 1}), "not asked"),
    ],
)
def test_any_other_encoding_is_stopped(record, why):
    with pytest.raises(GuardError, match=why):
        check(reply(**{ENCODED: record}), payloads=SIZES)


def test_encodings_are_stopped_where_tensors_were_agreed_and_tensors_where_encodings_were():
    with pytest.raises(GuardError):
        check(reply(encoded=stack()))
    plain = ArrayRecord({"q.gated_lora_A": Array(np.ones((1, 2, 3), np.float32))})
    for key in (SHARED, f"{SHARED}:ann", SUM):
        content = reply()
        content[key] = plain
        for agreed in ({"payloads": SIZES}, {"masked": {"ann": 7}}, {"masked": {"ann": 7}, "edge": True}):
            with pytest.raises(GuardError, match="as they are"):
                check(content, **agreed)


def masked(device="ann", words=28, **extra):
    record = Masked(bytes(16), device, bytes(words), bytes(32)).to_record()
    record.update(extra)
    return record


def test_a_masked_vector_of_the_agreed_length_passes():
    content = reply()
    content["secure-sum:ann"] = masked()
    check(content, masked={"ann": 7})


@pytest.mark.parametrize(
    ("key", "record", "why"),
    [
        ("secure-sum:eve", masked("eve"), "not asked"),
        ("secure-sum:ann", masked("eve"), "another participant"),
        ("secure-sum:ann", masked(words=32), "7 masked numbers"),
        ("secure-sum:ann", masked(note="hello"), "more than its message"),
        ("secure-sum:ann", ConfigRecord({"kind": "Masked"}), "missing or malformed"),
        ("secure-sum:ann", ConfigRecord({"text": "hello"}), "none of the messages"),
        ("secure-sum:ann", Client("ann", new_setup(["ann", "bob"], 7, 1.0)).to_record(), "none of the messages"),
    ],
)
def test_any_other_masked_vector_is_stopped(key, record, why):
    content = reply()
    content[key] = record
    with pytest.raises(GuardError, match=why) as error:
        check(content, masked={"ann": 7})
    assert "hello" not in str(error.value)


def test_a_masked_vector_is_stopped_where_none_was_agreed():
    content = reply()
    content["secure-sum:ann"] = masked()
    with pytest.raises(GuardError):
        check(content)


def test_steps_of_a_secure_sum_are_keys_and_shares_of_the_asked_participants():
    client = Client("ann", new_setup(["ann", "bob"], 7, 1.0))
    keys = client.advertise().to_record()
    check_secure_step(RecordDict({"secure-sum:ann": keys}), ("ann",))
    for key, record in (
        ("secure-sum:bob", keys),
        ("counts:ann", MetricRecord({"examples": 3})),
        ("secure-sum:ann", client.to_record()),
        ("secure-sum:ann", masked()),
        ("secure-sum:ann", ArrayRecord({"A": Array(np.ones(3, np.float32))})),
    ):
        with pytest.raises(GuardError, match="nothing was sent"):
            check_secure_step(RecordDict({key: record}), ("ann",))


@pytest.mark.parametrize(("within", "sound"), [(1, True), (0, True), (2, False), (-1, False), (0.5, False)])
def test_a_count_of_those_within_the_norm_may_stand_beside_a_sum(within, sound):
    content = reply()
    content[SUM] = ArrayRecord({"q.gated_lora_A": Array(np.ones((2, 3)))})
    content[TOTALS] = MetricRecord({"weight": 1.0, "devices": 1, "within": within})
    if sound:
        check(content, edge=True)
    else:
        with pytest.raises(GuardError, match="is not a weight"):
            check(content, edge=True)
