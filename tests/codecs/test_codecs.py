"""A decoded update is within the stated error, its encoding of the stated size, and damaged bytes are refused."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fl.codecs.base import CompressionError
from fl.codecs.table import CODECS, make_codec
from fl.codecs.tensors import decode_all, encode_all, encoded_bytes, join, split

SHAPES = {"q.gated_lora_A": (8, 96), "q.gated_lora_B": (96, 8), "v.gated_lora_A": (3, 7)}
ENTRIES = sum(math.prod(shape) for shape in SHAPES.values())
LIMITED = ("int8:4", "int4:4")
ALL = ("fp32", "fp16", "int8", "int4", *LIMITED, "top-k:0.1", "top-k:0.1+fp16", "top-k:0.1+int8", "top-k:0.1+int4")


def update(seed: int, scale: float = 0.5) -> dict[str, np.ndarray]:
    generator = np.random.default_rng(seed)
    return {n: generator.normal(0, scale, shape).clip(-4, 4).astype(np.float32) for n, shape in SHAPES.items()}


def around(one: dict[str, np.ndarray], name: str) -> dict[str, np.ndarray]:
    codec = make_codec(name)
    return decode_all(encode_all(one, codec), SHAPES, codec)


values = st.builds(
    lambda seed, size, scale: (np.random.default_rng(seed).normal(0, 1, size) * 10.0**scale).astype(np.float32),
    st.integers(0, 2**31),
    st.integers(0, 3000),
    st.integers(-20, 4),
)


def one_codec(name: str, tensor: np.ndarray) -> np.ndarray:
    codec = make_codec(name)
    return codec.decode(codec.encode(tensor), len(tensor)).astype(np.float64)


def blocks(tensor: np.ndarray) -> np.ndarray:
    """The largest absolute value of each entry's block of 1,024."""
    return np.array([np.abs(tensor[i // 1024 * 1024 :][:1024]).max() for i in range(len(tensor))])


# Error bounds, as the table in the module states them


@given(values)
@settings(max_examples=40, deadline=None)
def test_32_bits_lose_nothing(tensor):
    assert np.array_equal(one_codec("fp32", tensor), tensor)


@given(values)
@settings(max_examples=40, deadline=None)
def test_half_precision_errs_by_one_part_in_2048(tensor):
    tensor = tensor.clip(-60_000, 60_000)
    bound = np.maximum(2.0**-11 * np.abs(tensor), 2.0**-25)
    assert (np.abs(one_codec("fp16", tensor) - tensor) <= bound).all()


@given(values, st.sampled_from([("int8", 254), ("int4", 14)]))
@settings(max_examples=60, deadline=None)
def test_integers_err_by_half_a_step_of_their_block(tensor, codec):
    name, steps = codec
    bound = blocks(tensor) / steps * (1 + 1e-5) + 1e-43  # float32 of the scale, and its smallest number
    assert (np.abs(one_codec(name, tensor) - tensor) <= bound).all()


@given(values, st.sampled_from([("int8", 254), ("int4", 14)]))
@settings(max_examples=40, deadline=None)
def test_integers_with_a_limit_err_by_half_a_step_of_it(tensor, codec):
    name, steps = codec
    limit = max(float(np.abs(tensor).max(initial=0)), 1e-3)
    assert (np.abs(one_codec(f"{name}:{limit}", tensor) - tensor) <= limit / steps * (1 + 1e-5)).all()


@given(values, st.sampled_from([0.01, 0.1, 0.5, 1.0]))
@settings(max_examples=40, deadline=None)
def test_the_largest_entries_come_back_and_the_rest_is_no_longer_than_stated(tensor, share):
    found = one_codec(f"top-k:{share}", tensor)
    kept = math.ceil(share * len(tensor))
    assert np.count_nonzero(found) <= kept
    places = np.flatnonzero(found)
    assert np.array_equal(found[places], tensor[places])
    lost = np.linalg.norm(found - tensor)
    assert lost <= math.sqrt(1 - kept / max(1, len(tensor))) * np.linalg.norm(tensor.astype(float)) * (1 + 1e-9)
    assert np.sort(np.abs(tensor))[::-1][:kept].sum() == pytest.approx(np.abs(found).sum())


@given(values, st.sampled_from([("int8", 254), ("int4", 14)]))
@settings(max_examples=40, deadline=None)
def test_the_largest_entries_in_few_bits_err_by_both(tensor, codec):
    name, steps = codec
    kept = math.ceil(0.1 * len(tensor))
    largest = float(np.abs(tensor).max(initial=0))
    bound = (1 - kept / max(1, len(tensor))) * np.linalg.norm(tensor.astype(float)) ** 2 + kept * (largest / steps) ** 2
    assert np.linalg.norm(one_codec(f"top-k:0.1+{name}", tensor) - tensor) ** 2 <= bound * (1 + 1e-4) + 1e-80


def test_of_equal_entries_the_first_are_kept():
    assert one_codec("top-k:0.5", np.array([1, -1, 1, -1], np.float32)).tolist() == [1, -1, 0, 0]


@pytest.mark.parametrize("name", ALL)
def test_zeros_stay_zeros_and_empty_tensors_empty(name):
    assert one_codec(name, np.zeros(5, np.float32)).tolist() == [0.0] * 5
    assert one_codec(name, np.zeros(0, np.float32)).tolist() == []


# Sizes


@pytest.mark.parametrize(
    ("name", "size"),
    [
        ("fp32", lambda n: 4 * n),
        ("fp16", lambda n: 2 * n),
        ("int8", lambda n: n + 4 * math.ceil(n / 1024)),
        ("int4", lambda n: math.ceil(n / 2) + 4 * math.ceil(n / 1024)),
        ("int8:4", lambda n: n),
        ("int4:4", lambda n: math.ceil(n / 2)),
        ("top-k:0.1", lambda n: 4 + 8 * math.ceil(0.1 * n)),
        ("top-k:0.1+int8", lambda n: 4 + 4 * (k := math.ceil(0.1 * n)) + k + 4 * math.ceil(k / 1024)),
        ("top-k:0.1+int4", lambda n: 4 + 4 * (k := math.ceil(0.1 * n)) + math.ceil(k / 2) + 4 * math.ceil(k / 1024)),
    ],
)
def test_an_encoding_has_the_stated_number_of_bytes(name, size):
    encoded = encode_all(update(0), make_codec(name))
    assert all(payload.dtype == np.uint8 for payload in encoded.values())
    assert encoded_bytes(encoded) == sum(size(math.prod(shape)) for shape in SHAPES.values())


def test_encodings_end_to_end_come_apart_again_and_another_length_is_refused():
    encoded = encode_all({"b": np.ones((3, 5), np.float32), "a": np.arange(2000, dtype=np.float32)}, make_codec("int8"))
    sizes = {name: payload.nbytes for name, payload in encoded.items()}
    joined = join(encoded)
    assert joined.nbytes == encoded_bytes(encoded)
    apart = split(joined, sizes)
    assert apart.keys() == encoded.keys()
    assert all(np.array_equal(apart[name], encoded[name]) for name in encoded)
    for wrong in (joined[:-1], np.append(joined, joined[:1]), joined[None]):
        with pytest.raises(CompressionError, match="2,027 bytes were agreed"):
            split(wrong, sizes)


def test_int8_is_a_quarter_of_fp32_plus_the_scales():
    tensor = {"a": np.random.default_rng(0).normal(size=(768, 768)).astype(np.float32)}
    whole = encoded_bytes(encode_all(tensor, make_codec("fp32")))
    scales = 4 * 768 * 768 // 1024
    assert encoded_bytes(encode_all(tensor, make_codec("int8"))) == whole / 4 + scales <= whole / 4 * 1.004
    assert encoded_bytes(encode_all(tensor, make_codec("int8:8"))) == whole / 4
    assert encoded_bytes(encode_all(tensor, make_codec("top-k:0.1+int4"))) < whole / 8


# What a codec can do


@pytest.mark.parametrize("name", ALL)
def test_a_codec_says_what_it_can_do(name):
    codec = make_codec(name)
    one = update(0)
    assert codec.sum_compatible == (name in ("fp32", "fp16", *LIMITED))
    assert codec.lossless == all(np.array_equal(value, one[n]) for n, value in around(one, name).items())
    assert codec.limit == (4.0 if name in LIMITED else None)


def test_the_limit_of_the_largest_entries_is_that_of_their_codec():
    assert make_codec("top-k:0.1+int8:4").limit == 4.0
    assert make_codec("top-k:0.1+int8").limit is None


@pytest.mark.parametrize(("name", "step"), [("int8:4", 4 / 127), ("int4:4", 4 / 7)])
def test_with_a_limit_all_updates_have_one_step_and_so_has_their_sum(name, step):
    summed = sum(around(update(seed), name)["q.gated_lora_A"].astype(float) for seed in range(5)) / step
    assert summed == pytest.approx(np.rint(summed), abs=1e-4)


# Bad input


@pytest.mark.parametrize(
    "name",
    [
        "", "zip", "int8:", "int8:0", "int8:-1", "int8:nan", "int4:inf", "fp16:3", "top-k:0", "top-k:1.5", "top-k:x",
        "int8+fp16", "top-k:0.1+", "top-k:0.1+zip", "top-k:0.1+top-k:0.1", "INT8",
    ],
)  # fmt: skip
def test_a_codec_that_is_none_is_refused(name):
    with pytest.raises(CompressionError, match="codec"):
        make_codec(name)


def test_an_unknown_codec_lists_the_known_ones():
    with pytest.raises(CompressionError) as raised:
        make_codec("gzip")
    assert all(name in str(raised.value) for name in CODECS)


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_a_tensor_that_is_not_finite_is_named(name, bad):
    one = update(0)
    one["q.gated_lora_B"][3, 3] = bad
    with pytest.raises(CompressionError, match=r"q\.gated_lora_B"):
        encode_all(one, make_codec(name))


@pytest.mark.parametrize(
    ("name", "message"), [("fp16", "in 2 bytes"), ("int8:4", "above the limit"), ("int4:4", "clip")]
)
def test_a_value_out_of_range_is_refused(name, message):
    with pytest.raises(CompressionError, match=message):
        encode_all({"a": np.full(3, 1e6, np.float32)}, make_codec(name))


@pytest.mark.parametrize("name", ALL)
def test_bytes_of_another_length_name_or_type_are_refused(name):
    codec = make_codec(name)
    encoded = encode_all(update(0), codec)
    first = "q.gated_lora_A"
    for change in (encoded[first][:-1], np.append(encoded[first], np.uint8(0)), encoded[first][:0]):
        with pytest.raises(CompressionError, match=r"q\.gated_lora_A"):
            decode_all({**encoded, first: change}, SHAPES, codec)
    with pytest.raises(CompressionError, match="not the bytes"):
        decode_all({**encoded, first: encoded[first].astype(np.float32)}, SHAPES, codec)
    with pytest.raises(CompressionError, match="missing or not expected"):
        decode_all({**encoded, "gate": encoded[first]}, SHAPES, codec)


@given(st.sampled_from(ALL), st.binary(max_size=80), st.integers(0, 40))
@settings(max_examples=200, deadline=None)
def test_any_bytes_give_finite_values_or_a_typed_error(name, data, size):
    payload = np.frombuffer(data, np.uint8)
    try:
        found = make_codec(name).decode(payload, size)
    except CompressionError:
        return
    assert found.shape == (size,)
    assert np.isfinite(found).all()


def test_damaged_bytes_are_found():
    tensor = {"a": np.arange(1, 12, dtype=np.float32)}
    for name, place, value in [
        ("int8", slice(0, 4), np.array([-1.0], "<f4").view(np.uint8)),  # a scale
        ("int8", slice(0, 4), np.array([np.nan], "<f4").view(np.uint8)),
        ("int8", slice(4, 5), np.array([128], np.uint8)),  # level -128
        ("int4", slice(-1, None), np.array([0x17], np.uint8)),  # half a byte beyond the last entry
        ("fp32", slice(0, 4), np.array([np.inf], "<f4").view(np.uint8)),
        ("top-k:0.3", slice(0, 4), np.array([5], "<u4").view(np.uint8)),
        ("top-k:0.3", slice(4, 8), np.array([99], "<u4").view(np.uint8)),  # a place out of order
        ("top-k:0.3", slice(16, 20), np.array([11], "<u4").view(np.uint8)),  # a place outside
    ]:
        codec = make_codec(name)
        encoded = encode_all(tensor, codec)
        encoded["a"][place] = value
        with pytest.raises(CompressionError, match="'a' cannot be decoded"):
            decode_all(encoded, {"a": (11,)}, codec)
