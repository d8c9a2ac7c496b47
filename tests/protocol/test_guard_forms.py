"""The guard where updates leave encoded or masked: the agreed form and nothing beside it."""

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, MetricRecord, RecordDict

from fl.core.errors import GuardError
from fl.privacy.secure_sum.device import SecureSumClient
from fl.privacy.secure_sum.messages import MaskedInput
from fl.privacy.secure_sum.server import new_setup
from fl.protocol.guard import check_reply, check_secure_step
from fl.protocol.wire import COUNTS, DEVICES, ENCODED, IDS, PAYLOAD, SUM, UPDATES

SHAPES = {"q.gated_lora_A": (2, 3)}
SIZE = 10  # bytes of int8: a scale of 4, and one for each of 6 numbers
NUMBERS = 7  # in a masked vector: those of the tensor, and the weight
GATE = "q.gated_lora_gate_weight"


def reply(records=None):
    columns = {DEVICES: ConfigRecord({IDS: ["ann"]}), COUNTS: MetricRecord({"examples": [3]})}
    return RecordDict({**columns, **(records or {})})


@pytest.fixture
def check(agreed):
    def run(content, **settings):
        schema = agreed(SHAPES, ("ann",), **settings)
        check_reply(content, schema, private={GATE}, devices=("ann",))

    return run


INT8, MASKED = {"codec": "int8"}, {"secure_sum": "pairwise"}


def payload(name=PAYLOAD, shape=(1, SIZE), dtype=np.uint8):
    return ArrayRecord({name: Array(np.ones(shape, dtype))})


def test_encodings_of_the_agreed_length_pass(check):
    check(reply({ENCODED: payload()}), **INT8)


@pytest.mark.parametrize(
    ("record", "why"),
    [
        (payload(GATE), "private tensor"),
        (payload("q.gated_lora_A"), "not a shared tensor"),
        (payload(shape=(1, SIZE + 1)), "is not uint8"),
        (payload(shape=(2, SIZE)), "is not uint8"),
        (payload(dtype=np.float32), "is not uint8"),
        (ArrayRecord(), "lacks 1 shared"),
        (ConfigRecord({"a": 1}), "not asked"),
    ],
)
def test_any_other_encoding_is_stopped(record, why, check):
    with pytest.raises(GuardError, match=why):
        check(reply({ENCODED: record}), **INT8)


def test_encodings_are_stopped_where_tensors_were_agreed_and_tensors_where_another_form_was(check):
    with pytest.raises(GuardError, match="not agreed; updates were"):
        check(reply({ENCODED: payload()}))
    plain = ArrayRecord({"q.gated_lora_A": Array(np.ones((1, 2, 3), np.float32))})
    for key in (UPDATES, f"{UPDATES}:ann", "shared", SUM):
        for settings, form in ((INT8, ENCODED), (MASKED, "none"), ({**MASKED, "aggregation": "edge"}, "none")):
            with pytest.raises(GuardError, match=f"not agreed; {form} were"):
                check(reply({key: plain}), **settings)


# Masked vectors


def masked(device="ann", words=4 * NUMBERS, **extra):
    record = MaskedInput(bytes(16), device, bytes(words), bytes(32)).to_record()
    record.update(extra)
    return record


@pytest.mark.parametrize("words", [4 * NUMBERS, 8 * NUMBERS])
def test_a_masked_vector_of_the_agreed_length_passes(words, check):
    check(reply({"secure-sum:ann": masked(words=words)}), **MASKED)


@pytest.mark.parametrize(
    ("key", "record", "why"),
    [
        ("secure-sum:eve", masked("eve"), "not asked"),
        ("secure-sum:ann", masked("eve"), "another participant"),
        ("secure-sum:ann", masked(words=32), "another length than the 7 numbers"),
        ("secure-sum:ann", masked(note="hello"), "missing or malformed in parts"),
        ("secure-sum:ann", ConfigRecord({"kind": "MaskedInput"}), "missing or malformed"),
        ("secure-sum:ann", ConfigRecord({"text": "hello"}), "none of the messages"),
        ("secure-sum:ann", new_setup(["ann", "bob"], NUMBERS, 1.0).to_record(), "none of the messages"),
    ],
)
def test_any_other_masked_vector_is_stopped(key, record, why, check):
    with pytest.raises(GuardError, match=why) as error:
        check(reply({key: record}), **MASKED)
    assert "hello" not in str(error.value)


def test_a_masked_vector_is_stopped_where_none_was_agreed(check):
    with pytest.raises(GuardError):
        check(reply({"secure-sum:ann": masked()}))


def test_steps_of_a_secure_sum_are_keys_and_shares_of_the_asked_participants():
    client = SecureSumClient("ann", new_setup(["ann", "bob"], NUMBERS, 1.0))
    keys = client.advertise().to_record()
    check_secure_step(RecordDict({"secure-sum:ann": keys}), ("ann",))
    for key, record in (
        ("secure-sum:bob", keys),
        ("counts:ann", MetricRecord({"examples": 3})),
        ("secure-sum:ann", client.setup.to_record()),
        ("secure-sum:ann", masked()),
        ("secure-sum:ann", payload()),
    ):
        with pytest.raises(GuardError, match="nothing was sent"):
            check_secure_step(RecordDict({key: record}), ("ann",))
