"""One blob for an adapter: small, the same bytes each time, and read with suspicion."""

import dataclasses
import json
import pickle
import struct
import subprocess
import sys

import numpy as np
import pytest
import safetensors.numpy
from hypothesis import example, given, settings
from hypothesis import strategies as st

from fl.core.errors import AdapterError
from fl.packed.blob import PackedInfo, digest, pack, read_info, unpack

INFO = PackedInfo(
    "whisper-base", "whisper:512x6+6:01", "", "gates", "trimmed", "ko", {"r": 2, "gate": "self"}, "float32"
)
DTYPES = ("float32", "float16", "int8")


def info(dtype="float32", **changes):
    return dataclasses.replace(INFO, dtype=dtype, **changes)


def small(seed=0, scale=1.0):
    generator = np.random.default_rng(seed)
    shapes = {"m.q.gated_lora_A": (2, 6), "m.q.gated_lora_B": (5, 2), "m.q.gated_lora_gate_bias": (2,)}
    return {name: (scale * generator.standard_normal(shape)).astype(np.float32) for name, shape in shapes.items()}


def default_adapter():
    """Names and shapes of rank 8 with self gates on q, k, v, out of all attention of whisper-base."""
    generator = np.random.default_rng(0)
    blocks = [f"encoder.layers.{layer}.self_attn" for layer in range(6)]
    blocks += [f"decoder.layers.{layer}.{kind}" for layer in range(6) for kind in ("self_attn", "encoder_attn")]
    parts = {"A": (8, 512), "B": (512, 8), "gate_weight": (8, 512), "gate_bias": (8,)}
    return {
        f"base_model.model.model.{block}.{target}.gated_lora_{part}": generator.standard_normal(shape).astype(
            np.float32
        )
        for block in blocks
        for target in ("q_proj", "k_proj", "v_proj", "out_proj")
        for part, shape in parts.items()
    }


def take_apart(data):
    (size,) = struct.unpack_from("<Q", data)
    return json.loads(data[8 : 8 + size]), data[8 + size :]


def put_together(header, content):
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + content


def altered(data, change):
    """``data`` with ``change(header)`` made to its header."""
    header, content = take_apart(data)
    change(header)
    return put_together(header, content)


# What comes back


def test_float32_comes_back_bit_for_bit_with_all_that_was_said_of_it():
    tensors = small()
    found, read = unpack(pack(tensors, info(tokenizer="ab" * 32)))
    assert found.keys() == tensors.keys()
    assert all(np.array_equal(found[name], tensors[name]) for name in tensors)
    assert read == info(tokenizer="ab" * 32, tensors=3)


@pytest.mark.parametrize("scale", [1e-8, 1e-3, 1.0, 300.0])
def test_float16_is_off_by_at_most_half_a_unit_in_the_last_place(scale):
    tensors = small(scale=scale)
    found, _ = unpack(pack(tensors, info("float16")))
    for name, values in tensors.items():
        bound = np.maximum(2.0**-11 * np.abs(values.astype(np.float64)), 2.0**-25)
        assert (np.abs(found[name].astype(np.float64) - values) <= bound).all()


@pytest.mark.parametrize("scale", [1e-9, 1e-6, 1e-3, 1.0, 300.0])
def test_int8_is_off_by_at_most_half_of_its_rows_scale(scale):
    tensors = small(seed=1, scale=scale)
    data = pack(tensors, info("int8"))
    found, _ = unpack(data)
    scales = safetensors.numpy.load(data)["scales"].astype(np.float64)
    names = sorted(tensors)
    assert len(scales) == 2 + 5 + 1  # rows of A, rows of B, one for the bias
    row = 0
    for name in names:
        exact, back = np.atleast_2d(tensors[name]).astype(np.float64), np.atleast_2d(found[name])
        for one, other in zip(exact, back, strict=True):
            assert np.abs(one - other).max() <= scales[row] / 2 * (1 + 1e-12)
            assert np.abs(one).max() <= 127 * scales[row]  # rounded up: nothing is cut off
            row += 1


@example([65504.0, -65504.0])
@given(st.lists(st.floats(-65504, 65504, width=32), min_size=1, max_size=12))
def test_int8_keeps_its_bound_for_any_row(row):
    values = np.array([row], np.float32)
    data = pack({"m.A": values}, info("int8"))
    scale = float(safetensors.numpy.load(data)["scales"][0])
    found, _ = unpack(data)
    assert np.abs(found["m.A"]).max() <= 65504
    assert np.abs(found["m.A"].astype(np.float64) - values).max() <= scale / 2 * (1 + 1e-12)


def test_rows_of_zeros_stay_zeros_in_every_precision():
    for dtype in DTYPES:
        found, _ = unpack(pack({"m.B": np.zeros((4, 2), np.float32)}, info(dtype)))
        assert not found["m.B"].any()


def test_an_int8_adapter_that_is_packed_again_drifts_only_where_it_was_changed():
    data = pack(small(scale=1e-3), info("int8"))
    tensors, said = unpack(data)
    assert pack(tensors, said) != data  # its own nearest int8 is another
    assert pack(tensors, said, like=data) == data
    name = min(tensors)
    changed, _ = unpack(pack({**tensors, name: 2 * tensors[name]}, said, like=data))
    assert {other for other in tensors if not np.array_equal(changed[other], tensors[other])} == {name}
    assert pack(tensors, info("float16"), like=data) == pack(tensors, info("float16"))


@pytest.mark.parametrize("dtype", DTYPES)
def test_equal_adapters_are_equal_bytes_whatever_the_order_and_the_process(dtype):
    data = pack(small(), info(dtype, config={"r": 2, "gate": "self", "a": [1, 2]}))
    turned = dict(reversed(small().items()))
    assert pack(turned, info(dtype, config={"a": [1, 2], "gate": "self", "r": 2})) == data
    assert pack(*unpack(data)) == data  # what came back packs to the same
    assert len(digest(data)) == 64


def test_the_default_adapter_fits_two_mebibytes_as_float16_and_one_as_int8():
    tensors = default_adapter()
    assert sum(values.size for values in tensors.values()) == 885_312
    assert len(pack(tensors, info("float16"))) <= 2 * 2**20
    assert len(pack(tensors, info("int8"))) <= 2**20


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_blob_is_a_file_that_the_safetensors_library_reads(dtype):
    found = safetensors.numpy.load(pack(small(), info(dtype)))
    assert found.keys() - {"scales"} == small().keys()


def test_the_header_alone_says_what_a_blob_is():
    data = bytearray(pack(small(), info("float16")))
    data[-2:] = b"\xff\xff"  # NaN, which only unpack looks for
    assert read_info(bytes(data)).base_name == "whisper-base"
    with pytest.raises(AdapterError, match="NaN"):
        unpack(bytes(data))


# What is not packed


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 70_000.0])
@pytest.mark.parametrize("dtype", DTYPES)
def test_a_value_that_is_no_float16_is_not_packed(value, dtype):
    tensors = small()
    tensors["m.q.gated_lora_A"][1, 2] = value
    with pytest.raises(AdapterError, match=r"gated_lora_A.*NaN, infinity or a value beyond 65504"):
        pack(tensors, info(dtype))


@pytest.mark.parametrize(
    ("tensors", "match"),
    [
        ({}, "holds 0 tensors"),
        ({"m.A": np.zeros((2, 2), np.int32)}, "floating point"),
        ({"m.A": np.zeros((0, 2), np.float32)}, "vectors and matrices"),
        ({"m.A": np.zeros((2, 2, 2), np.float32)}, "vectors and matrices"),
        ({"m.A": np.float32(1.0).reshape(())}, "vectors and matrices"),
        ({"../m.A": np.zeros(2, np.float32)}, "no name of a tensor"),
        ({"m.A": np.zeros(2, np.float32), "scales": np.zeros(2, np.float32)}, "scales are there"),
    ],
)
def test_what_is_no_adapter_is_not_packed(tensors, match):
    with pytest.raises(AdapterError, match=match):
        pack(tensors, info())


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"dtype": "bfloat16"}, "precision 'bfloat16'"),
        ({"base_name": "a\nb"}, "base_name"),
        ({"tokenizer": "xyz"}, "SHA-256"),
        ({"config": {"a": {1, 2}}}, "cannot be written as JSON"),
        ({"config": {"a": float("nan")}}, "cannot be written as JSON"),
        ({"config": {"a": [[[[1]]]]}}, "nested"),
        ({"config": {"a": 2**70}}, "out of range"),
    ],
)
def test_what_cannot_be_said_of_an_adapter_is_refused(changes, match):
    with pytest.raises(AdapterError, match=match):
        pack(small(), dataclasses.replace(INFO, **changes))


# What is not unpacked


def entry(header, name="m.q.gated_lora_A"):
    return header[name]


def _overlap(header):
    names = sorted(name for name in header if name != "__metadata__")
    header[names[1]]["data_offsets"] = header[names[0]]["data_offsets"]


def _nested(header):
    header["__metadata__"]["config"] = "[" * 100_000


ALTERATIONS = {
    "another format": (lambda h: h["__metadata__"].update(format="pt"), "does not say"),
    "another schema": (lambda h: h["__metadata__"].update(schema="2"), "schema '2'"),
    "no metadata": (lambda h: h.pop("__metadata__"), "metadata"),
    "metadata of numbers": (lambda h: h["__metadata__"].update(split=3), "split"),
    "a key more": (lambda h: h["__metadata__"].update(more="x"), "more"),
    "a key less": (lambda h: h["__metadata__"].pop("window"), "window"),
    "another count": (lambda h: h["__metadata__"].update(tensors="4"), "says 4"),
    "a count in words": (lambda h: h["__metadata__"].update(tensors="three"), "no number"),
    "another precision": (lambda h: h["__metadata__"].update(dtype="float16"), "not F16"),
    "int8 without scales": (lambda h: h["__metadata__"].update(dtype="int8"), "without scales"),
    "an unknown precision": (lambda h: h["__metadata__"].update(dtype="int4"), "int4"),
    "a negative shape": (lambda h: entry(h).update(shape=[-2, -6]), "out of range"),
    "a shape of truths": (lambda h: entry(h).update(shape=[True, 12]), "out of range"),
    "a huge shape": (lambda h: entry(h).update(shape=[2**31, 2**31]), "out of range"),
    "an empty shape": (lambda h: entry(h).update(shape=[0, 6]), "empty"),
    "three dimensions": (lambda h: entry(h).update(shape=[1, 2, 6]), "no list"),
    "another shape": (lambda h: entry(h).update(shape=[3, 6]), "not of its size"),
    "another dtype": (lambda h: entry(h).update(dtype="F64"), "F64"),
    "offsets behind the end": (lambda h: entry(h).update(data_offsets=[0, 10**6]), "not of its size"),
    "offsets that overlap": (_overlap, "overlapping"),
    "an entry that is a list": (lambda h: h.update({"m.x": []}), "no JSON object"),
    "a tensor more": (lambda h: h.update({"m.x": dict(entry(h))}), "says 3"),
    "a name that is a path": (lambda h: h.update({"/etc/x.y": h.pop("m.q.gated_lora_A")}), "no name of a tensor"),
    "a deep configuration": (_nested, "configuration is not JSON"),
    "a configuration that is a list": (lambda h: h["__metadata__"].update(config="[]"), "no JSON object"),
    "a configuration with NaN": (lambda h: h["__metadata__"].update(config='{"r":NaN}'), "NaN"),
    "a configuration with 1e999": (lambda h: h["__metadata__"].update(config='{"r":1e999}'), "out of range"),
    "half a character": (lambda h: h["__metadata__"].update(config='{"r":"\\ud800"}'), "not printable"),
}


@pytest.mark.parametrize("name", ALTERATIONS)
def test_an_altered_header_is_refused_with_the_reason(name):
    change, match = ALTERATIONS[name]
    with pytest.raises(AdapterError, match=rf"(?s){match}.*; ."):  # the reason, then a remedy
        unpack(altered(pack(small(), info()), change))


def test_ten_thousand_tensors_are_refused():
    header, _ = take_apart(pack({"m.A": np.zeros(1, np.float32)}, info()))
    del header["m.A"]
    header["__metadata__"]["tensors"] = "10000"
    for number in range(10_000):
        header[f"m.{number}"] = {"dtype": "F32", "shape": [1], "data_offsets": [4 * number, 4 * number + 4]}
    with pytest.raises(AdapterError, match="10,000 tensors"):
        unpack(put_together(header, bytes(40_000)))


def test_a_small_file_that_claims_a_huge_tensor_allocates_nothing():
    def claim(header):
        entry(header).update(shape=[100_000_000, 1], data_offsets=[0, 100_000_000])

    with pytest.raises(AdapterError, match="parameters"):
        unpack(altered(pack(small(), info()), claim))


@pytest.mark.parametrize(
    "text",
    [b"{" * 200_000, b'{"a":1,"a":2}', b"[]", b"\xff\xfe{\x00}\x00", b"", b"1" * 10_000],
    ids=["deep", "twice", "list", "utf-16", "empty", "a long number"],
)
def test_a_header_that_is_no_table_is_refused(text):
    with pytest.raises(AdapterError, match="header"):
        unpack(put_together(text, b""))


def test_a_pickle_in_disguise_is_named_and_not_opened():
    class Bomb:
        def __reduce__(self):
            return (pytest.fail, ("it was unpickled",))

    for protocol in range(2, 6):
        with pytest.raises(AdapterError, match="pickle"):
            unpack(pickle.dumps({"m.A": Bomb()}, protocol))
    with pytest.raises(AdapterError, match="pickle"):
        unpack(b"PK\x03\x04" + bytes(100))  # what torch.save writes


@pytest.mark.parametrize("dtype", DTYPES)
def test_every_cut_and_everything_behind_is_refused(dtype):
    data = pack(small(), info(dtype))
    for kept in [*range(0, len(data), 7), len(data) - 1]:
        with pytest.raises(AdapterError):
            unpack(data[:kept])
    with pytest.raises(AdapterError, match="behind"):
        unpack(data + b"\0")


@pytest.mark.parametrize("scale", [np.nan, np.inf, -1.0, 517.0])
def test_a_wrong_scale_is_refused(scale):
    data = pack(small(), info("int8"))
    _, content = take_apart(data)
    broken = data[: -len(content)] + np.float16(scale).tobytes() + content[2:]
    with pytest.raises(AdapterError, match="scale"):
        unpack(broken)


def test_an_int8_of_minus_128_is_refused():
    with pytest.raises(AdapterError, match="-128"):
        unpack(pack(small(), info("int8"))[:-1] + b"\x80")


BLOBS = {dtype: pack(small(), info(dtype)) for dtype in DTYPES}


@settings(max_examples=300)
@given(st.sampled_from(DTYPES), st.data())
def test_a_mutated_blob_is_sound_or_an_adapter_error_and_nothing_else(dtype, data):
    blob = bytearray(BLOBS[dtype])
    for _ in range(data.draw(st.integers(1, 4))):
        place = data.draw(st.integers(0, max(0, len(blob) - 1)))
        blob = blob or bytearray(1)
        kind = data.draw(st.sampled_from(["set", "insert", "delete", "cut"]))
        if kind == "set":
            blob[place] = data.draw(st.integers(0, 255))
        elif kind == "insert":
            blob[place:place] = data.draw(st.binary(min_size=1, max_size=9))
        elif kind == "delete":
            del blob[place : place + data.draw(st.integers(1, 9))]
        else:
            del blob[place + 1 :]
    try:
        tensors, read = unpack(bytes(blob))
    except AdapterError:
        return
    assert len(tensors) == read.tensors
    assert all(np.isfinite(values).all() for values in tensors.values())
    assert safetensors.numpy.load(bytes(blob)).keys() - {"scales"} == tensors.keys()  # the library finds nothing wrong


_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)


@given(st.data())
def test_a_header_with_anything_in_any_place_is_sound_or_an_adapter_error(data):
    header, content = take_apart(BLOBS["int8"])
    table = header[data.draw(st.sampled_from(sorted(header)))]
    table[data.draw(st.sampled_from(sorted(table)))] = data.draw(_JSON)
    try:
        tensors, _ = unpack(put_together(header, content))
    except AdapterError:
        return
    assert safetensors.numpy.load(put_together(header, content)).keys() - {"scales"} == tensors.keys()


@given(st.binary(max_size=64))
def test_any_bytes_are_an_adapter_error(data):
    with pytest.raises(AdapterError):
        unpack(data)


def test_it_loads_where_torch_is_not():
    code = (
        "import sys; sys.modules['torch'] = None; import fl.packed.blob, fl.packed.folder; print(sorted(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "'transformers'" not in done.stdout
    assert "'flwr'" not in done.stdout
