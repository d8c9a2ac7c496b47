"""What an aggregator or a participant may send a device: jobs, settings, messages of secure sums, encodings of tensors."""

import math
from dataclasses import fields

import numpy as np
import pytest
from flwr.app import ConfigRecord, RecordDict
from hypothesis import given
from hypothesis import strategies as st

from fl.algorithms.plan import Phase
from fl.codecs.table import make_codec
from fl.core.errors import ConfigError, IdiolectError
from fl.privacy.secure_sum.keys import SecureSumError
from fl.privacy.secure_sum.messages import (
    AdvertiseKeys,
    Inbox,
    MaskedInput,
    Participants,
    SecureSumSetup,
    ShareKeys,
    Survivors,
)
from fl.protocol.wire import SETTINGS_RECORD, Job, read_settings, settings_record
from fl.settings.config import RunConfig

from .conftest import damaged, fuzz

values = (
    st.sampled_from([0, 1, -1, 2**62, math.nan, math.inf, True, "", "finetune", "nobody", "../..", "나는"])
    | st.floats()
    | st.text(max_size=4)
    | st.binary(max_size=4)
    | st.lists(st.sampled_from(["ann", ""]), max_size=2)
    | st.lists(st.integers(-1, 2), max_size=2)
)


@st.composite
def changed(draw: st.DrawFn, record: ConfigRecord) -> ConfigRecord:
    """``record`` with one to three entries dropped or replaced."""
    entries = dict(record)
    for _ in range(draw(st.integers(1, 3))):
        key = draw(st.sampled_from([*record, "other"]))
        if draw(st.integers(0, 3)) == 0:
            entries.pop(key, None)
        else:
            old = entries.get(key)
            entries[key] = draw(damaged(old)) if isinstance(old, bytes) and draw(st.booleans()) else draw(values)
    return ConfigRecord(entries)


@fuzz
@given(changed(Job("global", 1, ("ann",), Phase.FEDERATE).to_record()))
def test_a_job_is_one_or_a_config_error(record):
    try:
        job = Job.from_record(record)
    except ConfigError:
        return
    assert isinstance(job.phase, Phase)
    assert all(isinstance(device, str) for device in job.devices)
    assert Job.from_record(job.to_record()) == job


@fuzz
@given(changed(settings_record(RunConfig())))
def test_settings_are_a_configuration_or_a_config_error(record):
    try:
        config = read_settings(RecordDict({SETTINGS_RECORD: record}))
    except IdiolectError:
        return
    assert read_settings(RecordDict({SETTINGS_RECORD: settings_record(config)})) == config


MESSAGES = [
    SecureSumSetup(bytes(16), ("ann", "bob"), 2, 9, 1.0),
    AdvertiseKeys(bytes(16), "ann", bytes(32), bytes(32)),
    Participants(bytes(16), {"ann": bytes(32)}, {"ann": bytes(32)}),
    ShareKeys(bytes(16), "ann", {"bob": bytes(62)}),
    Inbox(bytes(16), "ann", {"bob": bytes(62)}),
    MaskedInput(bytes(16), "ann", bytes(36), bytes(32)),
    Survivors(bytes(16), ("ann", "bob")),
]


@pytest.mark.parametrize("message", MESSAGES, ids=lambda message: type(message).__name__)
def test_a_message_of_a_secure_sum_is_one_or_an_error(message):
    @fuzz
    @given(changed(message.to_record()))
    def check(record):
        try:
            read = type(message).from_record(record)
        except SecureSumError:
            return
        assert len(read.session) == 16
        for field in fields(read):
            assert type(getattr(read, field.name)) is type(getattr(message, field.name))

    check()


@pytest.mark.parametrize(
    "name", ["fp32", "fp16", "int8", "int4", "int8:0.5", "top-k:0.2", "top-k:0.2+int8", "top-k:0.2+fp16"]
)
def test_an_encoding_is_finite_numbers_or_an_error(name):
    codec, entries = make_codec(name), np.linspace(-0.4, 0.4, 40, dtype=np.float32)

    @fuzz
    @given(damaged(codec.encode(entries).tobytes()))
    def check(data):
        try:
            found = codec.decode(np.frombuffer(data, np.uint8), 40)
        except IdiolectError:
            return
        assert found.shape == (40,)
        assert np.isfinite(found).all()

    check()
