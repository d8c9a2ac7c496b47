"""What may become a row of a batch: a sound adapter of this base. Anything else is refused with a typed error, and quickly."""

import contextlib
import json
import pickle
import struct

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fl.adapters.config import target_pattern
from fl.core.errors import AdapterError, AdapterMismatchError
from fl.packed.blob import unpack
from fl.serving.engine.adapters import admit, linear_maps


@pytest.mark.parametrize("gate", ["none", "hidden", "low-rank", "self", "cross"])
@pytest.mark.parametrize("dtype", ["float32", "float16", "int8"])
def test_a_sound_adapter_is_ready_for_a_row(base, packed, gate, dtype):
    data = packed(gate=gate, rank=3, dtype=dtype)
    found = admit(data, base)
    arrays, _ = unpack(data)
    assert found.tensors.keys() == arrays.keys()
    assert all(t.dtype == torch.float32 and np.array_equal(t.numpy(), arrays[n]) for n, t in found.tensors.items())
    assert (found.slot.rank, found.slot.gate, found.slot.scaling) == (3, gate, 4.0 / 3)
    assert (found.info.language, found.info.window, found.info.split) == ("ko", "trimmed", "gates")
    assert found.info.base_fingerprint == base.fingerprint
    assert set(found.info.config.target_modules) <= set(linear_maps(base))


def test_targets_may_be_a_list_of_endings_or_of_names(base, packed):
    def only_queries(tensors):
        for name in [n for n in tensors if ".q_proj." not in n or ".encoder." not in n]:
            del tensors[name]

    names = [name for name in linear_maps(base) if "encoder.layers" in name and name.endswith("self_attn.q_proj")]
    found = admit(packed(change=only_queries, config={"target_modules": names}), base)
    assert found.info.config.target_modules == names


def test_the_model_head_and_the_convolutions_cannot_be_adapted(base, packed):
    with pytest.raises(AdapterMismatchError, match="match no map"):
        admit(packed(config={"target_modules": ["proj_out"]}), base)


MISMATCHES = {
    "another base": ({"base_fingerprint": "whisper:512x6+6:0123456789abcdef"}, "made for base"),
    "another tokenizer": ({"tokenizer": "ab" * 32}, "another tokenizer"),
    "an unknown language": ({"language": "xx"}, "language 'xx' is unknown"),
    "other sites": ({"config": {"target_modules": target_pattern(("encoder.self",))}}, "its configuration means"),
    "another gate": ({"config": {"gate": "none"}}, "its configuration means"),
    "another rank": ({"config": {"r": 3}}, "check rank and base"),
}


@pytest.mark.parametrize("case", MISMATCHES)
def test_an_adapter_of_another_base_or_configuration_is_refused_by_name(base, packed, case):
    info, reason = MISMATCHES[case]
    with pytest.raises(AdapterMismatchError, match=reason):
        admit(packed(**info), base)


def rename(tensors):
    tensors["base_model.model.other.gated_lora_A"] = tensors.pop(min(tensors))


def reshape(tensors):
    name = min(n for n in tensors if n.endswith("_A"))
    tensors[name] = np.ascontiguousarray(tensors[name].T)


UNSOUND = {
    "a wrong name": ({"change": rename}, "does not"),
    "a wrong shape": ({"change": reshape}, "check rank and base"),
    "a tensor less": ({"change": lambda t: t.pop(min(t))}, "its configuration means"),
    "an unknown window": ({"window": "half"}, "window 'half'"),
    "an unknown gate": ({"config": {"gate": "portal"}}, "unknown gate"),
    "no rank": ({"config": {"r": None}}, "not one"),
    "a rank that is a text": ({"config": {"r": "2"}}, "not one"),
    "a rank that is a list": ({"config": {"r": [2]}}, "not one"),
    "a gate that is a list": ({"config": {"gate": ["self"]}}, "not one"),
    "a huge rank": ({"config": {"r": 4096}}, "not one|rank"),
    "alpha zero": ({"config": {"lora_alpha": 0.0}}, "alpha"),
    "alpha a text": ({"config": {"lora_alpha": "much"}}, "not one"),
    "layers left out": ({"config": {"exclude_modules": "(a+)+$"}}, "exclude_modules"),
    "no targets": ({"config": {"target_modules": None}}, "target_modules"),
    "empty targets": ({"config": {"target_modules": []}}, "target_modules"),
    "targets of numbers": ({"config": {"target_modules": [1, 2]}}, "target_modules"),
    "an evil pattern": (
        {"config": {"target_modules": r"(?:.*\.)?(?:(\w+)*)*\.q_proj!"}},
        "pattern that 'sites' does not make",
    ),
}


@pytest.mark.parametrize("case", UNSOUND)
def test_an_unsound_adapter_is_refused_with_the_reason(base, packed, case):
    change, reason = UNSOUND[case]
    with pytest.raises(AdapterError, match=reason):
        admit(packed(**change), base)


def raw(header, data=b""):
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + data


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\0" * 7,
        pickle.dumps({"a": 1}),
        b"PK\x03\x04" + bytes(1000),
        b"[" * 100_000,
        raw({}),
        raw([]),
        raw({"__metadata__": {}}),
        struct.pack("<Q", 2**63) + b"{}",
    ],
)
def test_bytes_that_are_no_adapter_are_refused(base, data):
    with pytest.raises(AdapterError):
        admit(data, base)


def test_nan_is_refused(base, packed):
    data = bytearray(packed(dtype="float32"))
    data[-4:] = struct.pack("<f", float("nan"))
    with pytest.raises(AdapterError, match="NaN"):
        admit(bytes(data), base)


def test_size_and_number_of_tensors_are_bounded_before_anything_is_made(base, packed, monkeypatch):
    data = packed()
    with pytest.raises(AdapterError, match="at most 100 are taken"):
        admit(data, base, max_bytes=100)
    monkeypatch.setattr("fl.serving.engine.adapters.MAX_RANK", 1)
    with pytest.raises(AdapterError, match="rank 2, and at most 1"):
        admit(data, base)
    monkeypatch.setattr("fl.serving.engine.adapters.MAX_TENSORS", 3)
    with pytest.raises(AdapterError, match="tensors, and at most 3"):
        admit(data, base)


def test_ten_thousand_tensors_are_refused(base):
    names = {
        f"base_model.model.m{i}.gated_lora_A": {"dtype": "I8", "shape": [1], "data_offsets": [i, i + 1]}
        for i in range(10_000)
    }
    with pytest.raises(AdapterError):
        admit(raw(names, bytes(10_000)), base)


@given(data=st.data())
def test_a_mutated_adapter_is_admitted_whole_or_refused_with_a_typed_error(base, packed, data):
    """A change in the values may go unseen (they are values); a change in the header never makes another structure."""
    blob = bytearray(packed(dtype=data.draw(st.sampled_from(["float32", "float16", "int8"]))))
    header = 8 + int.from_bytes(blob[:8], "little")
    for _ in range(data.draw(st.integers(1, 6))):
        where = data.draw(st.integers(0, header - 1) | st.integers(0, len(blob) - 1))
        how = data.draw(st.sampled_from(["set", "drop", "add", "digit"]))
        value = data.draw(st.integers(0, 255))
        if how == "set":
            blob[where % len(blob)] = value
        elif how == "drop":
            del blob[where % len(blob)]
        elif how == "add":
            blob.insert(where % len(blob), value)
        else:
            blob[where % len(blob)] = ord("0") + value % 10
    try:
        found = admit(bytes(blob), base)
    except AdapterError:
        return
    whole = admit(packed(), base)
    assert {n: t.shape for n, t in found.tensors.items()} == {n: t.shape for n, t in whole.tensors.items()}
    assert all(bool(torch.isfinite(t).all()) for t in found.tensors.values())


@given(
    st.dictionaries(
        st.sampled_from(["r", "lora_alpha", "gate", "target_modules"]),
        st.recursive(
            st.none()
            | st.booleans()
            | st.integers(-(2**40), 2**40)
            | st.floats(allow_nan=False, allow_infinity=False, width=32)
            | st.text(st.characters(codec="ascii", categories=["L", "N", "P"]), max_size=40),
            lambda inner: st.lists(inner, max_size=3),
            max_leaves=4,
        ),
    )
)
def test_any_configuration_is_admitted_or_refused_with_a_typed_error(base, packed, config):
    with contextlib.suppress(AdapterError):
        admit(packed(config=config), base)
