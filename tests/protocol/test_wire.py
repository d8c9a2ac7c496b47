"""What is put into a message comes out of it."""

import numpy as np
import pytest
import torch
from flwr.app import ConfigRecord, MetricRecord, RecordDict
from flwr.common.serde import recorddict_from_proto, recorddict_to_proto
from hypothesis import given
from hypothesis import strategies as st

from fl.algorithms.plan import Phase
from fl.core.errors import ConfigError, IdiolectError
from fl.metrics import Counts
from fl.protocol.wire import (
    FIELDS,
    SETTINGS_RECORD,
    Job,
    add_counts,
    device_key,
    flat_counts,
    from_arrays,
    read_counts,
    read_settings,
    settings_record,
    split_key,
    tensors_bytes,
    to_arrays,
)
from fl.settings.config import RunConfig, make_config

JOB = Job("personalized", 3, ("ann", "박지민", "a:b"), phase=Phase.FINETUNE, split="test", final=True, parallel=4)
whole = st.integers(0, 10**9)
counts = st.builds(Counts, whole, whole, whole, whole)


def transport(record):
    """A record as it arrives: through Flower's own serialization."""
    return recorddict_from_proto(recorddict_to_proto(RecordDict({"it": record})))["it"]


@pytest.mark.parametrize("job", [JOB, Job("global", 0, ()), Job("local", 1, ("ann",))])
def test_a_job_comes_out_as_it_went_in(job):
    assert Job.from_record(transport(job.to_record())) == job


@pytest.mark.parametrize("key", sorted(JOB.to_record()))
def test_a_job_that_lacks_a_field_is_of_another_version(key):
    record = {k: v for k, v in JOB.to_record().items() if k != key}
    with pytest.raises(ConfigError, match="same version at both ends"):
        Job.from_record(record)


@pytest.mark.parametrize(
    "change", [{"round": "three"}, {"parallel": "many"}, {"devices": 5}, {"round": [1]}, {"phase": "rest"}]
)
def test_a_job_with_foreign_values_is_refused(change):
    with pytest.raises(ConfigError, match="not a job of this version"):
        Job.from_record({**JOB.to_record(), **change})


def test_a_record_of_something_else_is_no_job():
    with pytest.raises(ConfigError, match="not a job"):
        Job.from_record(ConfigRecord({"server-round": 3, "lr": 0.1}))


def test_settings_come_out_as_they_went_in():
    config = make_config({"rank": 3, "gate": "cross", "learning-rate": 0.25, "manifest": "/소리/manifest.jsonl"})
    record = transport(settings_record(config))
    assert read_settings(RecordDict({SETTINGS_RECORD: record})) == config
    assert read_settings(RecordDict()) == RunConfig()


def test_settings_of_another_version_are_refused():
    with pytest.raises(ConfigError, match="unknown setting 'warp'"):
        read_settings(RecordDict({SETTINGS_RECORD: ConfigRecord({"warp": 9})}))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_tensors_come_out_bit_for_bit(dtype):
    tensors = {
        "b": torch.randn(3, 4).to(dtype),
        "a": torch.randn(2, 5).to(dtype).T,  # not contiguous
        "scalar": torch.tensor(1.5, dtype=dtype),
        "empty": torch.zeros(0, 3, dtype=dtype),
    }
    record = transport(to_arrays(tensors))
    assert list(record) == sorted(tensors)
    back = from_arrays(record)
    for name, tensor in tensors.items():
        assert back[name].dtype == dtype
        assert torch.equal(back[name], tensor)


def test_tensors_on_the_wire_carry_no_gradient_and_can_be_written_to():
    parameter = torch.nn.Parameter(torch.ones(2, 2))
    (tensor,) = from_arrays(to_arrays({"a": parameter})).values()
    tensor.add_(1)
    assert not tensor.requires_grad
    assert torch.equal(parameter.detach(), torch.ones(2, 2))


def test_bytes_on_the_wire_are_those_of_the_values_and_little_more():
    tensors = {"a": torch.zeros(100, 10), "b": torch.zeros(7, dtype=torch.float16)}
    sent = sum(len(array.data) for array in to_arrays(tensors).values())
    assert tensors_bytes(tensors.values()) == sent == 4 * 1000 + 2 * 7 + 2 * 128


@given(st.dictionaries(st.sampled_from(["wer", "mer_folded", "jer.nfd"]), counts), whole, st.floats(0, 10))
def test_counts_come_out_as_they_went_in(metrics, examples, loss):
    record = flat_counts(metrics, {"examples": examples, "loss": loss})
    assert read_counts(record) == (metrics, {"examples": examples, "loss": loss})


def test_counts_survive_the_transport():
    metrics = {"wer": Counts(1, 2, 3, 10)}
    assert read_counts(transport(MetricRecord(flat_counts(metrics, {"steps": 5})))) == (metrics, {"steps": 5})


@pytest.mark.parametrize("value", [[1, 2], [0.5]])
def test_a_list_is_no_count(value):
    with pytest.raises(IdiolectError, match="'examples' is a list"):
        read_counts(MetricRecord({"examples": value}))


@pytest.mark.parametrize("value", [0.5, float("nan"), float("inf")])
def test_an_error_count_is_whole(value):
    record = flat_counts({"wer": Counts(1, 2, 3, 10)}, {})
    record["wer.deletions"] = value
    with pytest.raises(IdiolectError, match=r"'wer\.deletions' is .*not a whole number"):
        read_counts(record)


@pytest.mark.parametrize("field", FIELDS)
def test_counts_that_lack_a_part_are_refused_not_taken_for_zero(field):
    record = flat_counts({"wer": Counts(1, 2, 3, 10)}, {})
    del record[f"wer.{field}"]
    with pytest.raises(IdiolectError, match=f"'wer' lack .*{field}"):
        read_counts(record)


@given(st.lists(st.dictionaries(st.sampled_from(["wer", "mer"]), counts), max_size=5))
def test_counts_add_up_by_metric(rows):
    total = add_counts(rows)
    for name in {name for row in rows for name in row}:
        for field in FIELDS:
            assert getattr(total[name], field) == sum(getattr(row[name], field) for row in rows if name in row)
    assert set(total) == {name for row in rows for name in row}


@given(st.sampled_from(["counts", "secure-sum"]), st.text(max_size=20))
def test_a_record_name_tells_kind_and_device_whatever_the_device_is_called(kind, device):
    assert split_key(device_key(kind, device)) == (kind, device)


def test_a_name_without_a_device_has_none():
    assert split_key("updates") == ("updates", "")


def test_what_arrives_is_a_copy():
    record = to_arrays({"a": torch.ones(3)})
    first = from_arrays(record)["a"]
    first.zero_()
    assert np.array_equal(from_arrays(record)["a"].numpy(), np.ones(3, np.float32))
