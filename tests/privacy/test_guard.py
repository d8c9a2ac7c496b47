"""Nothing but shared tensors and counts of the devices that were asked gets past the guard."""

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, MetricRecord, RecordDict

from fl.errors import GuardError
from fl.metrics import METRICS
from fl.privacy.guard import check_reply
from fl.wire import FIELDS

A, GATE = "q_proj.gated_lora_A", "q_proj.gated_lora_gate_weight"


@pytest.fixture
def guard(shapes):
    def check(content, **options):
        check_reply(content, **{"shapes": shapes, "private": {GATE}, "devices": ("ann", "bob"), **options})

    return check


@pytest.fixture
def refused(guard):
    """Expect a refusal that says so and names ``what``."""

    def check(content, what, **options):
        with pytest.raises(GuardError, match="nothing was sent") as error:
            guard(content, **options)
        assert what in str(error.value)
        return str(error.value)

    return check


def test_shared_tensors_and_counts_pass(guard, reply, arrays):
    guard(reply())
    guard(reply({"shared:bob": arrays(), "counts:bob": MetricRecord({"failed": 1})}))
    guard(RecordDict({"counts:ann": MetricRecord({"examples": 3})}))
    guard(RecordDict())


def test_half_precision_passes(guard, reply, arrays):
    guard(reply({"shared:ann": arrays({A: np.ones((2, 3), np.float16)})}))


@pytest.mark.parametrize("metric", METRICS)
def test_the_counts_of_every_metric_pass(metric, guard):
    guard(RecordDict({"counts:ann": MetricRecord({f"{metric}.{field}": 7 for field in FIELDS})}))


def test_a_private_tensor_is_refused_by_name(refused, reply, arrays):
    message = refused(reply({"shared:ann": arrays({GATE: np.zeros((2, 2), np.float32)})}), GATE)
    assert "gates never leave the device" in message


def test_a_private_tensor_is_refused_even_where_it_was_asked_for(refused, reply, arrays, shapes):
    content = reply({"shared:ann": arrays({GATE: np.zeros((2, 2), np.float32)})})
    refused(content, GATE, shapes={**shapes, GATE: (2, 2)})


def test_a_tensor_nobody_agreed_on_is_refused(refused, reply, arrays):
    refused(reply({"shared:ann": arrays({"k_proj.gated_lora_A": np.zeros((2, 3), np.float32)})}), "k_proj.gated_lora_A")


def test_a_missing_tensor_is_refused(refused, reply, arrays):
    refused(reply({"shared:ann": arrays({A: None})}), A)
    refused(reply({"shared:ann": ArrayRecord()}), "lacks 2")


@pytest.mark.parametrize("shape", [(3, 2), (6,), (2, 3, 1), (2, 4), ()])
def test_another_shape_is_refused(shape, refused, reply, arrays):
    refused(reply({"shared:ann": arrays({A: np.zeros(shape, np.float32)})}), str(shape))


@pytest.mark.parametrize("dtype", ["float64", "int32", "uint8", "bool", "complex64"])
def test_another_dtype_is_refused(dtype, refused, reply, arrays):
    refused(reply({"shared:ann": arrays({A: np.zeros((2, 3), dtype)})}), dtype)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_one_value_that_is_not_finite_is_refused(value, refused, reply, arrays):
    values = np.zeros((2, 3), np.float32)
    values[1, 2] = value
    refused(reply({"shared:ann": arrays({A: values})}), A)


def test_an_array_that_holds_more_than_its_label_says_is_refused(refused, reply, arrays):
    large = Array(np.zeros((200, 3), np.float32))
    mislabelled = Array(dtype="float32", shape=(2, 3), stype=large.stype, data=large.data)
    refused(reply({"shared:ann": arrays({A: mislabelled})}), "under another label")
    doubles = Array(np.zeros((2, 3)))
    mislabelled = Array(dtype="float32", shape=(2, 3), stype=doubles.stype, data=doubles.data)
    refused(reply({"shared:ann": arrays({A: mislabelled})}), "under another label")


@pytest.mark.parametrize("data", [b"", b"a transcript", b"\x93NUMPY"])
def test_an_array_that_is_none_is_refused(data, refused, reply, arrays):
    forged = Array(dtype="float32", shape=(2, 3), stype="numpy.ndarray", data=data)
    assert "transcript" not in refused(reply({"shared:ann": arrays({A: forged})}), "cannot be decoded")


@pytest.mark.parametrize("kind", ["shared", "counts"])
def test_the_record_of_a_device_that_was_not_asked_is_refused(kind, refused, reply, arrays):
    record = arrays() if kind == "shared" else MetricRecord({"examples": 1})
    refused(reply({f"{kind}:eve": record}), "eve")


@pytest.mark.parametrize("key", ["shared", "counts", "shared:", "ann", "ann:shared"])
def test_a_record_of_nobody_is_refused(key, refused, reply, arrays):
    refused(reply({key: arrays()}), key)


def test_text_is_refused_under_any_name(refused, reply):
    for key in ("counts:ann", "shared:ann", "transcripts:ann"):
        message = refused(reply({key: ConfigRecord({"heard": "나는 meeting 있어"})}), "ConfigRecord")
        assert "meeting" not in message


def test_tensors_and_counts_do_not_change_places(refused, reply, arrays):
    refused(reply({"counts:ann": arrays()}), "ArrayRecord")
    refused(reply({"shared:ann": MetricRecord({"examples": 3})}), "MetricRecord")


@pytest.mark.parametrize("name", ["pitch", "wer", "wer.rate", "substitutions", "gate-17.substitutions", "meeting 있어"])
def test_an_unknown_count_is_refused(name, refused, reply):
    refused(reply(**{name: 1}), name)


@pytest.mark.parametrize("name", ["examples", "loss", "wer.substitutions"])
@pytest.mark.parametrize("value", [[0.125, 0.375], [], float("nan"), float("inf"), [7]])
def test_a_count_is_one_finite_number(name, value, refused, reply):
    message = refused(reply(**{name: value}), name)
    assert "0.125" not in message, "an exception's text goes to the aggregator: it must not carry what was refused"


@pytest.mark.parametrize("value", [0.5, 2.0, -1])
def test_an_error_count_is_a_whole_number_so_that_no_weight_fits_in(value, refused, reply):
    refused(reply(**{"wer.deletions": value}), "wer.deletions")


def test_a_long_name_is_not_quoted_in_full(refused, reply):
    secret = "he said " + "너무 긴 비밀 " * 20
    assert secret not in refused(reply(**{secret: 1}), "he said")
