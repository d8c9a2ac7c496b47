"""Adapter folders as packed blobs and back, with torch and without."""

import dataclasses
import json
import os

import pytest
import torch
from safetensors.torch import load_file, save_file

from fl.adapters.files import CONFIG_NAME, WEIGHTS_NAME, AdapterInfo, load_adapter, save_adapter
from fl.adapters.packing import pack_folder, unpack_state, unpack_to_folder
from fl.adapters.state import adapter_state
from fl.bases.resolve import load_base
from fl.bases.whisper.tokenizer import ByteTokenizer, tokenizer_digest
from fl.core.errors import AdapterError
from fl.packed import folder as packed_folder
from fl.packed.blob import pack, read_info, unpack

FINGERPRINT = "whisper:16x2+2:0123456789abcdef"
DTYPES = ("float32", "float16", "int8")


@pytest.fixture
def folder(tmp_path, gated):
    model = gated("self")
    info = AdapterInfo("whisper-nano", FINGERPRINT, "gates", model.peft_config["default"], window="full", language="ko")
    save_adapter(tmp_path / "adapter", adapter_state(model), info)
    return tmp_path / "adapter"


def test_a_folder_survives_packing_bit_for_bit(folder, tmp_path):
    unpack_to_folder(pack_folder(folder, "float32"), tmp_path / "again")
    (tensors, info), (others, other) = load_adapter(folder), load_adapter(tmp_path / "again")
    assert tensors.keys() == others.keys()
    assert all(torch.equal(tensors[name], others[name]) for name in tensors)
    for field in ("base_name", "base_fingerprint", "split", "window", "language"):
        assert getattr(info, field) == getattr(other, field)
    for field in ("r", "lora_alpha", "gate", "target_modules", "init_seed"):
        assert getattr(info.config, field) == getattr(other.config, field)


def test_packing_is_the_same_again_after_unpacking(folder, tmp_path):
    data = pack_folder(folder, "float32")
    unpack_to_folder(data, tmp_path / "again")
    assert pack_folder(tmp_path / "again", "float32") == data


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_device_without_torch_packs_the_same_bytes(folder, dtype):
    assert packed_folder.pack_folder(folder, dtype) == pack_folder(folder, dtype)


def test_the_tokenizer_travels_with_the_adapter(folder):
    digest = tokenizer_digest(load_base("random:whisper-nano"))
    assert read_info(pack_folder(folder, tokenizer=digest)).tokenizer == digest
    assert read_info(pack_folder(folder)).tokenizer == ""


@pytest.mark.parametrize("pack_one", [pack_folder, packed_folder.pack_folder])
@pytest.mark.parametrize("name", [CONFIG_NAME, WEIGHTS_NAME])
@pytest.mark.parametrize("damage", ["missing", "empty", "cut", "text", "huge"])
def test_a_damaged_folder_is_refused_with_and_without_torch(folder, name, damage, pack_one):
    path = folder / name
    whole = path.read_bytes()
    if damage == "missing":
        path.unlink()
    elif damage == "huge":
        os.truncate(path, 600 * 2**20)
    else:
        path.write_bytes({"empty": b"", "cut": whole[: len(whole) // 2], "text": b"hello"}[damage])
    with pytest.raises(AdapterError):
        pack_one(folder)


@pytest.mark.parametrize("pack_one", [pack_folder, packed_folder.pack_folder])
@pytest.mark.parametrize(
    "change",
    [{"schema": "2"}, {"base_fingerprint": None}, {"split": None}],
    ids=["schema", "no fingerprint", "no split"],
)
def test_metadata_that_says_too_little_is_refused(folder, pack_one, change):
    from safetensors import safe_open

    with safe_open(folder / WEIGHTS_NAME, "pt") as file:
        metadata = {**file.metadata(), **change}
    kept = {key: value for key, value in metadata.items() if value is not None}
    save_file(load_file(folder / WEIGHTS_NAME), folder / WEIGHTS_NAME, kept)
    with pytest.raises(AdapterError):
        pack_one(folder)


def test_an_adapter_of_another_method_is_not_packed(folder):
    config = json.loads((folder / CONFIG_NAME).read_text())
    (folder / CONFIG_NAME).write_text(json.dumps({**config, "peft_type": "LORA"}))
    with pytest.raises(AdapterError, match="GATED_LORA"):
        packed_folder.pack_folder(folder)
    tensors, info = unpack(pack_blob(folder))
    with pytest.raises(AdapterError, match="'LORA'"):
        unpack_state(pack(tensors, dataclasses.replace(info, config={**info.config, "peft_type": "LORA"})))


def pack_blob(folder):
    config = json.loads((folder / CONFIG_NAME).read_text())
    (folder / CONFIG_NAME).write_text(json.dumps({**config, "peft_type": "GATED_LORA"}))
    return pack_folder(folder)


@pytest.mark.parametrize(
    "change",
    [
        {"split": "all-of-it"},
        {"config": {"r": 0}},
        {"config": {"r": "8"}},
        {"config": {"gate": "revolving"}},
        {"config": {"target_modules": ["q"], "lora_alpha": [1]}},
    ],
    ids=lambda change: str(change)[:40],
)
def test_a_blob_with_an_impossible_configuration_writes_no_folder(folder, tmp_path, change):
    tensors, info = unpack(pack_folder(folder))
    if "config" in change:
        change = {"config": {**info.config, **change["config"]}}
    with pytest.raises(AdapterError):
        unpack_to_folder(pack(tensors, dataclasses.replace(info, **change)), tmp_path / "again")
    assert not (tmp_path / "again").exists()


# The tokenizer's digest


def test_tokenizers_that_decode_alike_have_the_same_digest_and_others_do_not():
    assert ByteTokenizer(51_865).digest == ByteTokenizer(51_865).digest
    assert len({ByteTokenizer(size).digest for size in (400, 51_864, 51_865, 51_866)}) == 4


def test_a_digest_is_of_the_vocabulary_and_not_of_how_the_file_is_written(tmp_path):
    from fl.bases.whisper.tokenizer import FileTokenizer

    special = ["<|endoftext|>", "<|startoftranscript|>", "<|ko|>", "<|transcribe|>", "<|notimestamps|>"]
    added = [
        {
            "id": 3 + index,
            "content": content,
            "special": True,
            "single_word": False,
            "lstrip": False,
            "rstrip": False,
            "normalized": False,
        }
        for index, content in enumerate(special)
    ]
    model = {"type": "BPE", "vocab": {"a": 0, "b": 1, "ab": 2}, "merges": ["a b"]}
    written = {"version": "1.0", "added_tokens": added, "model": model}

    def digest(name, document, indent=None):
        (tmp_path / name).write_text(json.dumps(document, indent=indent))
        return FileTokenizer(tmp_path / name, multilingual=True).digest

    first = digest("one.json", written)
    assert digest("two.json", {**written, "normalizer": None}, indent=2) == first
    other = {**written, "model": {**model, "vocab": {"b": 0, "a": 1, "ab": 2}}}
    assert digest("other.json", other) != first


def test_a_base_without_a_tokenizer_has_no_digest():
    assert tokenizer_digest(object()) == ""
    assert len(tokenizer_digest(load_base("random:whisper-nano"))) == 64
