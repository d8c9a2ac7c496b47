"""Nothing but updates of shared tensors and counts of the devices that were asked gets past the guard."""

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, MetricRecord, RecordDict

from fl.core.errors import GuardError
from fl.metrics import METRICS
from fl.protocol.guard import check_reply
from fl.protocol.reply import ReplySchema
from fl.protocol.wire import FIELDS

A, B, GATE = "q_proj.gated_lora_A", "q_proj.gated_lora_B", "q_proj.gated_lora_gate_weight"


@pytest.fixture
def guard(agreed):
    def check(content, schema=None, **options):
        check_reply(content, schema or agreed(), **{"private": {GATE}, "devices": ("ann", "bob"), **options})

    return check


@pytest.fixture
def refused(guard, caplog):
    """Expect a refusal that says so and names ``what``, in this machine's log where it was not agreed."""

    def check(content, what, schema=None, **options):
        with pytest.raises(GuardError, match="nothing was sent") as error:
            guard(content, schema, **options)
        assert what in str(error.value) + caplog.text
        return str(error.value)

    return check


def alone(**counts):
    """A device with a record of its own."""
    return RecordDict({"counts:ann": MetricRecord({"examples": 3, **counts})})


def test_updates_and_counts_pass(guard, reply):
    guard(reply())
    guard(reply({"counts:bob": MetricRecord({"failed": 1})}))
    guard(alone())
    guard(RecordDict())


def test_half_precision_passes(guard, reply, arrays):
    guard(reply({"updates": arrays({A: np.ones((2, 2, 3), np.float16)})}))


@pytest.mark.parametrize("metric", METRICS)
def test_the_counts_of_every_metric_pass(metric, guard):
    guard(RecordDict({"counts:ann": MetricRecord({f"{metric}.{field}": 7 for field in FIELDS})}))


# Tensors


def test_a_private_tensor_is_refused_by_name(refused, reply, arrays):
    message = refused(reply({"updates": arrays({GATE: np.zeros((2, 2, 2), np.float32)})}), GATE)
    assert "gates never leave the device" in message


def test_a_private_tensor_is_refused_even_where_it_was_asked_for(refused, reply, arrays, agreed, shapes):
    content = reply({"updates": arrays({GATE: np.zeros((2, 2, 2), np.float32)})})
    refused(content, GATE, agreed({**shapes, GATE: (2, 2)}))


def test_a_tensor_nobody_agreed_on_is_refused(refused, reply, arrays):
    refused(reply({"updates": arrays({"k_proj.gated_lora_A": np.zeros((2, 2, 3), np.float32)})}), "k_proj.gated_lora_A")


def test_a_missing_tensor_is_refused(refused, reply, arrays):
    refused(reply({"updates": arrays({A: None})}), A)
    refused(reply({"updates": ArrayRecord()}), "lacks 2")


@pytest.mark.parametrize("shape", [(2, 3), (2, 3, 2), (2, 6), (2, 2, 3, 1), (2, 2, 4), (), (1, 2, 3), (3, 2, 3)])
def test_another_shape_or_number_of_rows_is_refused(shape, refused, reply, arrays):
    refused(reply({"updates": arrays({A: np.zeros(shape, np.float32)})}), str(shape))


@pytest.mark.parametrize("dtype", ["float64", "int32", "uint8", "bool", "complex64"])
def test_another_dtype_is_refused(dtype, refused, reply, arrays):
    refused(reply({"updates": arrays({A: np.zeros((2, 2, 3), dtype)})}), dtype)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_one_value_that_is_not_finite_is_refused(value, refused, reply, arrays):
    values = np.zeros((2, 2, 3), np.float32)
    values[1, 0, 2] = value
    refused(reply({"updates": arrays({A: values})}), A)


def test_an_array_that_holds_more_than_its_label_says_is_refused(refused, reply, arrays):
    for values in (np.zeros((200, 3), np.float32), np.zeros((2, 2, 3))):
        true = Array(values)
        mislabelled = Array(dtype="float32", shape=(2, 2, 3), stype=true.stype, data=true.data)
        refused(reply({"updates": arrays({A: mislabelled})}), "the bytes of that alone")


@pytest.mark.parametrize("data", [b"", b"a transcript", b"\x93NUMPY"])
def test_an_array_that_is_none_is_refused(data, refused, reply, arrays):
    forged = Array(dtype="float32", shape=(2, 2, 3), stype="numpy.ndarray", data=data)
    assert "transcript" not in refused(reply({"updates": arrays({A: forged})}), "cannot be decoded")


# Records


@pytest.mark.parametrize(
    "key", ["updates:ann", "shared", "shared:ann", "sum", "encoded", "update", "ann:updates", "counts:ann"]
)
def test_tensors_pass_under_the_agreed_name_alone(key, refused, reply, arrays):
    refused(reply({key: arrays()}), f"holds tensors that were not agreed; updates were: {key!r}")


def test_tensors_are_refused_where_none_were_agreed(refused, reply):
    refused(reply(), "none were", ReplySchema())


def test_tensors_of_nobody_are_refused(refused, arrays):
    refused(RecordDict({"updates": arrays()}), "updates")


@pytest.mark.parametrize("key", ["counts:eve", "counts:", "totals", "totals:ann", "ann"])
def test_counts_of_a_device_that_was_not_asked_or_of_nobody_are_refused(key, refused, reply):
    refused(reply({key: MetricRecord({"examples": 1})}), key)


def test_text_is_refused_under_any_name(refused, reply):
    for key in ("counts:ann", "updates:ann", "transcripts:ann", "counts", "updates"):
        message = refused(reply({key: ConfigRecord({"heard": "나는 meeting 있어"})}), "")
        assert "meeting" not in message


def test_tensors_and_counts_do_not_change_places(refused, reply, arrays):
    refused(reply({"counts": arrays()}), "counts")
    refused(reply({"updates": MetricRecord({"examples": [3, 4]})}), "updates")
    refused(reply({"updates:ann": MetricRecord({"examples": 3})}), "neither updates nor counts")


# Counts


@pytest.mark.parametrize("name", ["pitch", "wer", "wer.rate", "substitutions", "gate-17.substitutions", "meeting 있어"])
def test_an_unknown_count_is_refused(name, refused, reply):
    refused(alone(**{name: 1}), name)
    refused(reply(**{name: [1, 1]}), name)


@pytest.mark.parametrize("name", ["examples", "loss", "wer.substitutions"])
@pytest.mark.parametrize("value", [[0.125, 0.375], [], float("nan"), float("inf"), [7]])
def test_a_count_of_one_device_is_one_finite_number(name, value, refused):
    message = refused(alone(**{name: value}), name)
    assert "0.125" not in message, "an exception's text goes to the aggregator: it must not carry what was refused"


@pytest.mark.parametrize(
    "counts",
    [{"examples": [3]}, {"examples": [1, 2, 3]}, {"examples": 3}, {"loss": [0.5, float("nan")]}, {"pitch": [1, 2]},
     {"wer.deletions": [1, -1]}, {"wer.deletions": [0.125, 0.5]}],
)  # fmt: skip
def test_a_column_is_one_known_count_for_each_device(counts, refused, reply):
    assert "0.125" not in refused(reply(**counts), next(iter(counts)))


@pytest.mark.parametrize("value", [0.5, 2.0, -1])
def test_an_error_count_is_a_whole_number_so_that_no_weight_fits_in(value, refused):
    refused(alone(**{"wer.deletions": value}), "wer.deletions")


def test_a_name_that_was_not_agreed_is_not_quoted(refused):
    assert "said" not in refused(alone(**{"he said no": 1}), "he said no")


# The list of devices


@pytest.mark.parametrize("ids", [("ann", "eve"), ("ann", "ann"), ("ann", "나는 meeting 있어")])
def test_the_list_of_devices_names_those_that_were_asked_once(ids, refused, reply):
    refused(reply(ids=ids), "not asked" if ids != ("ann", "ann") else "twice")


@pytest.mark.parametrize("record", [ConfigRecord({"ids": ["ann", "bob"], "heard": "meeting"}), ConfigRecord({"ids": "ann"}),
                                    ConfigRecord({"ids": [1, 2]}), MetricRecord({"ids": [1, 2]})])  # fmt: skip
def test_the_list_of_devices_holds_nothing_else(record, refused, reply):
    assert "meeting" not in refused(reply({"devices": record}), "list of device ids")


# Sums of a node


@pytest.fixture
def edge(agreed):
    """What was agreed where nodes send sums."""
    return agreed(aggregation="edge")


@pytest.fixture
def summed(arrays, reply):
    """A proper reply of ann and bob with their sum, with records replaced or added."""

    def make(records=None, **changes):
        content = reply()
        del content["updates"]
        totals = MetricRecord({"weight": 7.0, "devices": 2})
        sums = arrays({A: np.ones((2, 3)), B: np.ones((4, 2)), **changes})
        return RecordDict({**content, "sum": sums, "totals": totals, **(records or {})})

    return make


def test_a_sum_passes_where_one_was_agreed_and_only_there(guard, refused, summed, reply, edge):
    guard(summed(), edge)
    refused(summed(), "sum")
    refused(reply(), "updates", edge)


def test_totals_are_refused_where_no_sum_was_agreed(refused, reply):
    refused(reply({"totals": MetricRecord({"weight": 7.0, "devices": 2})}), "totals")


def test_a_sum_has_the_shape_of_one_device_and_no_leading_dimension(refused, summed, edge):
    refused(summed(**{A: np.ones((2, 2, 3))}), "(2, 2, 3)", edge)
    refused(summed(**{A: None}), "lacks 1", edge)
    refused(summed(**{A: np.ones((2, 3), np.float32)}), "float32", edge)


def test_a_gate_and_a_value_that_is_not_finite_are_refused_in_a_sum(refused, summed, edge):
    refused(summed(**{GATE: np.zeros((2, 2))}), GATE, edge)
    for value in (np.nan, np.inf):
        refused(summed(**{A: np.full((2, 3), value)}), A, edge)


@pytest.mark.parametrize(
    "totals",
    [{"weight": 7.0}, {"weight": -1.0, "devices": 2}, {"weight": 7.0, "devices": 3}, {"weight": float("nan"), "devices": 2},
     {"weight": 7.0, "devices": 2, "gate": 0.125}, {"weight": [0.125, 0.25], "devices": 2},
     *({"weight": 7.0, "devices": 2, "within": within} for within in (3, -1, 0.5))],
)  # fmt: skip
def test_totals_are_a_weight_and_a_number_of_devices_and_nothing_else(totals, refused, summed, edge):
    assert "0.125" not in refused(summed({"totals": MetricRecord(totals)}), "totals is not a weight", edge)


@pytest.mark.parametrize("within", [0, 1, 2])
def test_a_count_of_those_within_the_norm_may_stand_beside_a_sum(within, guard, summed, edge):
    guard(summed({"totals": MetricRecord({"weight": 7.0, "devices": 2, "within": within})}), edge)


def test_a_header_that_is_no_python_is_refused(refused, reply, arrays):
    true = Array(np.zeros((2, 2, 3), np.float32))
    for old, new in ((b"{'descr'", b"\0'descr'"), (b", }", b", ("), (b"'fortran_order'", b"'''ortran_order")):
        assert old in true.data
        forged = Array(dtype="float32", shape=(2, 2, 3), stype=true.stype, data=true.data.replace(old, new))
        refused(reply({"updates": arrays({A: forged})}), "cannot be decoded")


def test_bytes_behind_the_numbers_of_an_array_are_refused(refused, reply, arrays):
    true = Array(np.zeros((2, 2, 3), np.float32))
    forged = Array(dtype="float32", shape=(2, 2, 3), stype=true.stype, data=true.data + b"a transcript")
    assert "transcript" not in refused(reply({"updates": arrays({A: forged})}), A)
