"""Replies that nobody would send, into the guard and the aggregator's reader: a typed error, or exactly what was agreed."""

import math
from typing import Any

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, MetricRecord, RecordDict
from hypothesis import given
from hypothesis import strategies as st

from fl.aggregation.updates import DeviceUpdate
from fl.algorithms.arms import trained_arm
from fl.algorithms.plan import Phase
from fl.codecs.tensors import encode_all, join
from fl.core.errors import GuardError
from fl.privacy.secure_sum.messages import MaskedInput
from fl.protocol.guard import REAL_COUNTS, WHOLE_COUNTS, check_reply, error_counts
from fl.protocol.reply import Exchange, ReplySchema, UnreadableError
from fl.protocol.wire import COUNTS, DEVICES, IDS, PAYLOAD, SECURE, TOTALS, WITHIN, split_key
from fl.settings.config import make_config
from strategies.replies import read_node

from .conftest import damaged, fuzz

SHAPES = {"A": (2, 3), "B": (4,)}
GATE, ASKED, SECRET = "gate", ("ann", "bob"), "나는 meeting 있어"
SETTINGS: dict[str, dict[str, Any]] = {
    "plain": {},
    "edge": {"aggregation": "edge"},
    "encoded": {"codec": "int8"},
    "masked": {"secure_sum": "pairwise"},
}


def agreed(form: str) -> ReplySchema:
    config = make_config(SETTINGS[form])
    participants = ASKED if form == "masked" else ()
    return ReplySchema(SHAPES, Exchange.of(config, trained_arm("global", config), Phase.FEDERATE), participants)


def proper(form: str, schema: ReplySchema) -> dict[str, Any]:
    """A reply of ann and bob as it should be."""
    numbers = {"examples": [3, 4], "loss": [0.5, 0.25], "wer.substitutions": [2, 1], "wer.reference": [9, 8],
               "wer.deletions": [0, 0], "wer.insertions": [0, 0]}  # fmt: skip
    content: dict[str, Any] = {DEVICES: ConfigRecord({IDS: list(ASKED)}), COUNTS: MetricRecord(numbers)}
    key, expected = schema.arrays(2)
    if form == "encoded":
        update = {name: np.ones(shape, np.float32) for name, shape in SHAPES.items()}
        row = join(encode_all(update, schema.exchange.codec))
        content[key] = ArrayRecord({PAYLOAD: Array(np.stack([row, row]))})
    elif key:
        content[key] = ArrayRecord({n: Array(np.full(e.shape, 0.5, e.dtypes[0])) for n, e in expected.items()})
    if form == "edge":
        content[TOTALS] = MetricRecord({"weight": 7.0, "devices": 2, WITHIN: 1})
    for device, size in schema.masked.items():
        content[f"{SECURE}:{device}"] = MaskedInput(bytes(16), device, bytes(4 * size), bytes(32)).to_record()
    return content


OTHER_KEYS = (
    "shared",
    f"{SECURE}:ann",
    f"{SECURE}:eve",
    SECURE,
    "counts:ann",
    "counts:eve",
    "counts:",
    "updates:ann",
    "private:ann",
    "",
)
keys = st.sampled_from([DEVICES, COUNTS, TOTALS, "updates", "sum", "encoded", SECRET, *OTHER_KEYS])
names = st.sampled_from(
    ["A", "B", PAYLOAD, GATE, "examples", "loss", "wer.substitutions", "ids", "words", "kind", SECRET]
)
numbers = st.sampled_from([0, 1, 2, -1, 0.5, 7.0, math.nan, math.inf, 2**62, -(2**62)]) | st.floats()
metrics = numbers | st.lists(st.integers(-2, 2**40), max_size=3) | st.lists(st.floats(), max_size=3)
settings_ = metrics | st.text(max_size=5) | st.binary(max_size=5) | st.just(SECRET) | st.lists(
    st.sampled_from(["ann", "bob", "eve", "", SECRET]), max_size=3
)  # fmt: skip


@st.composite
def arrays(draw: st.DrawFn) -> Array:
    dtype = draw(st.sampled_from(["float32", "float64", "float16", "int32", "uint8", "bool", "complex64", ">f4", "S9"]))
    shape = draw(st.sampled_from([(2, 2, 3), (2, 4), (2, 3), (4,), (), (0,), (2, 0), (1, 2, 3), (3, 2), (2, 22)]))
    values = np.full(shape, draw(st.sampled_from([0, 1, 3])), dtype)
    if values.dtype.kind == "f" and draw(st.booleans()):
        values[...] = draw(st.sampled_from([math.nan, math.inf, 1e-3]))
    return Array(np.asfortranarray(values) if draw(st.booleans()) else values)


@st.composite
def forged(draw: st.DrawFn, array: Array) -> Array:
    """``array`` under another label, or with other bytes."""
    other = draw(arrays())
    dtype, shape = draw(
        st.sampled_from([(array.dtype, array.shape), (other.dtype, array.shape), (array.dtype, other.shape)])
    )
    data = draw(st.one_of(st.just(array.data), st.just(other.data), damaged(array.data), st.binary(max_size=20),
                          st.just(array.data + SECRET.encode())))  # fmt: skip
    return Array(
        dtype=dtype, shape=tuple(shape), stype=draw(st.sampled_from([array.stype] * 9 + ["pickle"])), data=data
    )


@st.composite
def records(draw: st.DrawFn, record: Any) -> Any:
    """``record`` with an entry dropped, added or changed."""
    entries = dict(record)
    name = draw(st.sampled_from(sorted(entries)) | names if entries else names)
    if draw(st.integers(0, 4)) == 0:
        entries.pop(name, None)
    elif isinstance(record, ArrayRecord):
        entries[name] = draw(forged(entries[name]) if name in entries else arrays())
    elif isinstance(record, MetricRecord):
        entries[name] = draw(metrics)
    elif isinstance(entries.get(name), bytes):
        entries[name] = draw(damaged(entries[name]))
    else:
        entries[name] = draw(settings_)
    return type(record)(entries)


@st.composite
def replies(draw: st.DrawFn, form: str) -> RecordDict:
    """A proper reply that was changed in one to three places."""
    content = proper(form, agreed(form))
    for _ in range(draw(st.integers(1, 3))):
        key = draw(st.sampled_from(sorted(content)) if content else keys)
        kind = draw(st.sampled_from(["entry", "entry", "entry", "drop", "rename", "copy", "add"]))
        if kind == "entry" and key in content:
            content[key] = draw(records(content[key]))
        elif kind == "drop":
            content.pop(key, None)
        elif kind == "add" or key not in content:
            empty = draw(st.sampled_from([ArrayRecord, MetricRecord, ConfigRecord]))()
            content[draw(keys)] = draw(records(empty))
        else:
            record = content[key] if kind == "copy" else content.pop(key)
            content[draw(keys)] = record
    return RecordDict(content)


def assert_exact(content: RecordDict, schema: ReplySchema) -> None:
    """What the guard let pass holds what was agreed and has room for nothing else."""
    ids = list(content[DEVICES][IDS]) if DEVICES in content else []
    assert set(ids) <= set(ASKED)
    assert len(set(ids)) == len(ids)
    for key, record in content.items():
        kind, device = split_key(key)
        if isinstance(record, ArrayRecord):
            name, expected = schema.arrays(len(ids))
            assert key == name
            assert record.keys() == expected.keys()
            for tensor, array in record.items():
                values = array.numpy()
                assert values.shape == expected[tensor].shape == tuple(array.shape)
                assert values.dtype == array.dtype
                assert array.dtype in expected[tensor].dtypes
                assert np.isfinite(values).all()
                assert array.data == Array(values).data, "bytes that are no numbers"
        elif isinstance(record, MetricRecord):
            if kind == TOTALS:
                assert set(record) <= {"weight", "devices", WITHIN}
                continue
            assert kind == COUNTS
            assert not device or device in ASKED
            assert set(record) <= WHOLE_COUNTS | REAL_COUNTS | error_counts()
            for value in record.values():
                assert (len(value) == len(ids)) if isinstance(value, list) else device
                assert np.isfinite(value).all()
        elif key != DEVICES:
            assert kind == SECURE
            assert device in schema.masked
            assert set(record) == {"kind", "session", "device", "words", "commitment"}
            assert len(record["words"]) in (4 * schema.masked[device], 8 * schema.masked[device])
        else:
            assert set(record) == {IDS}


@pytest.mark.parametrize("form", SETTINGS)
def test_a_proper_reply_passes(form):
    schema = agreed(form)
    content = RecordDict(proper(form, schema))
    check_reply(content, schema, private={GATE}, devices=ASKED)
    assert_exact(content, schema)
    assert all(isinstance(answer, DeviceUpdate) for _, answer in read_node("n", content, schema, trains=True).answers)


@pytest.mark.parametrize("form", SETTINGS)
def test_the_guard_refuses_or_lets_out_exactly_what_was_agreed(form):
    schema = agreed(form)

    @fuzz
    @given(replies(form))
    def check(content):
        try:
            check_reply(content, schema, private={GATE}, devices=ASKED)
        except GuardError:
            return
        assert_exact(content, schema)

    check()


@pytest.mark.parametrize("form", SETTINGS)
def test_the_aggregator_reads_what_was_agreed_or_says_what_is_wrong(form):
    schema = agreed(form)

    @fuzz
    @given(replies(form))
    def check(content):
        try:
            node = read_node("node 1", content, schema, trains=True)
        except UnreadableError:
            return
        answers = [answer for _, answer in node.answers if isinstance(answer, DeviceUpdate)]
        for answer in [*answers, *([node.mean] if node.mean else [])]:
            assert answer.examples > 0
            assert all(map(math.isfinite, answer.numbers.values()))
            if answer.tensors is not None:
                assert {name: values.shape for name, values in answer.tensors.items()} == SHAPES
                assert all(np.isfinite(values).all() for values in answer.tensors.values())

    check()
