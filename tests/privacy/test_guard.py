"""Nothing but shared tensors and counts of the devices that were asked gets past the guard."""

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, MetricRecord, RecordDict

from fl.core.errors import GuardError
from fl.metrics import METRICS
from fl.protocol.guard import check_reply
from fl.protocol.wire import FIELDS

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


# Many devices in one reply


@pytest.fixture
def columns(arrays):
    """A proper reply of ann and bob in columns, with records replaced or added."""

    def make(records=None, ids=("ann", "bob"), counts=None):
        stacked = arrays({A: np.ones((2, 2, 3), np.float32), "q_proj.gated_lora_B": np.ones((2, 4, 2), np.float32)})
        numbers = {"examples": [3, 4], "loss": [0.5, 0.25], "wer.reference": [9, 8], **(counts or {})}
        content = {"devices": ConfigRecord({"ids": list(ids)}), "counts": MetricRecord(numbers), "shared": stacked}
        return RecordDict({**content, **(records or {})})

    return make


@pytest.fixture
def summed(arrays, columns):
    """A proper reply of ann and bob with their sum, with records replaced or added."""

    def make(records=None, **changes):
        names = {A: np.ones((2, 3)), "q_proj.gated_lora_B": np.ones((4, 2)), **changes}
        content = columns()
        del content["shared"]
        totals = MetricRecord({"weight": 7.0, "devices": 2})
        return RecordDict({**content, "sum": arrays(names), "totals": totals, **(records or {})})

    return make


def test_columns_and_stacks_pass(guard, columns, arrays):
    guard(columns())
    guard(columns({"counts:bob": MetricRecord({"failed": 1})}, ids=("ann", "bob")))


def test_a_sum_passes_where_one_was_agreed_and_only_there(guard, refused, summed, columns, reply):
    guard(summed(), edge=True)
    refused(summed(), "sum", edge=False)
    refused(columns(), "shared", edge=True)
    refused(reply(), "single device", edge=True)


def test_a_sum_has_the_form_of_one_device_and_no_leading_dimension(refused, summed):
    refused(summed(**{A: np.ones((2, 2, 3))}), "(2, 2, 3)", edge=True)
    refused(summed(**{A: None}), "lacks 1", edge=True)
    refused(summed(**{A: np.ones((2, 3), np.float32)}), "float32", edge=True)


def test_a_gate_is_refused_in_a_stack_and_in_a_sum(refused, columns, summed, arrays):
    b = np.ones((2, 4, 2), np.float32)
    stacked = {A: np.ones((2, 2, 3), np.float32), "q_proj.gated_lora_B": b, GATE: np.zeros((2, 2, 2), np.float32)}
    refused(columns({"shared": arrays(stacked)}), GATE)
    refused(summed(**{GATE: np.zeros((2, 2))}), GATE, edge=True)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_value_that_is_not_finite_is_refused_in_a_stack_and_in_a_sum(value, refused, columns, summed, arrays):
    stack = np.ones((2, 2, 3), np.float32)
    stack[1, 0, 2] = value
    refused(columns({"shared": arrays({A: stack, "q_proj.gated_lora_B": np.ones((2, 4, 2), np.float32)})}), A)
    refused(summed(**{A: np.full((2, 3), value)}), A, edge=True)


@pytest.mark.parametrize(
    "totals",
    [{"weight": 7.0}, {"weight": -1.0, "devices": 2}, {"weight": 7.0, "devices": 3}, {"weight": float("nan"), "devices": 2},
     {"weight": 7.0, "devices": 2, "gate": 0.125}, {"weight": [0.125, 0.25], "devices": 2}],
)  # fmt: skip
def test_totals_are_a_weight_and_a_number_of_devices_and_nothing_else(totals, refused, summed):
    assert "0.125" not in refused(summed({"totals": MetricRecord(totals)}), "totals", edge=True)


@pytest.mark.parametrize("rows", [1, 3])
def test_a_stack_has_a_row_for_each_device_and_no_more(rows, refused, columns, arrays):
    stacked = {A: np.ones((rows, 2, 3), np.float32), "q_proj.gated_lora_B": np.ones((rows, 4, 2), np.float32)}
    refused(columns({"shared": arrays(stacked)}), f"({rows}, ")


@pytest.mark.parametrize(
    "counts",
    [{"examples": [3]}, {"examples": [1, 2, 3]}, {"examples": 3}, {"loss": [0.5, float("nan")]}, {"pitch": [1, 2]},
     {"wer.deletions": [1, -1]}, {"wer.deletions": [0.125, 0.5]}],
)  # fmt: skip
def test_a_column_is_one_known_count_for_each_device(counts, refused, columns):
    assert "0.125" not in refused(columns(counts=counts), next(iter(counts)))


@pytest.mark.parametrize("ids", [("ann", "eve"), ("ann", "ann"), ("ann", "나는 meeting 있어")])
def test_the_list_of_devices_names_those_that_were_asked_once(ids, refused, columns):
    refused(columns(ids=ids), "devices")


@pytest.mark.parametrize("record", [ConfigRecord({"ids": ["ann", "bob"], "heard": "meeting"}), ConfigRecord({"ids": "ann"}),
                                    ConfigRecord({"ids": [1, 2]}), MetricRecord({"ids": [1, 2]})])  # fmt: skip
def test_the_list_of_devices_holds_nothing_else(record, refused, columns):
    assert "meeting" not in refused(columns({"devices": record}), "list of device ids")
