"""Adapter folders as packed blobs: with torch and without the same is read, and the same is refused."""

import json
import os
from dataclasses import replace

import numpy as np
import pytest
from safetensors.torch import load_file, save_file

from fl.adapters.files import AdapterInfo, load_adapter, save_adapter
from fl.adapters.state import adapter_state
from fl.bases.resolve import load_base
from fl.bases.whisper.tokenizer import ByteTokenizer
from fl.core.errors import AdapterError
from fl.packed.blob import read_info, unpack
from fl.packed.folder import CONFIG_NAME, WEIGHTS_NAME, pack_folder

FINGERPRINT = "whisper:16x2+2:0123456789abcdef"


@pytest.fixture
def folder(tmp_path, gated):
    model = gated("self")
    info = AdapterInfo("whisper-nano", FINGERPRINT, "gates", model.peft_config["default"], window="full", language="ko")
    save_adapter(tmp_path / "adapter", adapter_state(model), info)
    return tmp_path / "adapter"


def test_a_folder_survives_packing_bit_for_bit(folder):
    tensors, info = load_adapter(folder)
    arrays, packed = unpack(pack_folder(folder, "float32"))
    assert tensors.keys() == arrays.keys()
    assert all(np.array_equal(tensors[name].numpy(), arrays[name]) for name in tensors)
    for field in ("base_name", "base_fingerprint", "split", "window", "language"):
        assert getattr(info, field) == getattr(packed, field)
    for field in ("r", "lora_alpha", "gate", "target_modules", "init_seed"):
        assert getattr(info.config, field) == packed.config[field]


def test_the_tokenizer_travels_with_the_adapter(folder):
    digest = load_base("random:whisper-nano").tokenizer.digest
    tensors, info = load_adapter(folder)
    assert read_info(pack_folder(folder)).tokenizer == info.tokenizer == ""
    save_adapter(folder, tensors, replace(info, tokenizer=digest))
    assert read_info(pack_folder(folder)).tokenizer == load_adapter(folder)[1].tokenizer == digest


@pytest.mark.parametrize("read_one", [pack_folder, load_adapter])
@pytest.mark.parametrize("name", [CONFIG_NAME, WEIGHTS_NAME])
@pytest.mark.parametrize("damage", ["missing", "empty", "cut", "text", "huge"])
def test_a_damaged_folder_is_refused_with_and_without_torch(folder, name, damage, read_one):
    path = folder / name
    whole = path.read_bytes()
    if damage == "missing":
        path.unlink()
    elif damage == "huge":
        os.truncate(path, 600 * 2**20)
    else:
        path.write_bytes({"empty": b"", "cut": whole[: len(whole) // 2], "text": b"hello"}[damage])
    with pytest.raises(AdapterError):
        read_one(folder)


@pytest.mark.parametrize(
    "change",
    [{"schema": "2"}, {"base_fingerprint": None}, {"split": None}],
    ids=["schema", "no fingerprint", "no split"],
)
def test_metadata_that_says_too_little_is_refused(folder, change):
    from safetensors import safe_open

    with safe_open(folder / WEIGHTS_NAME, "pt") as file:
        metadata = {**file.metadata(), **change}
    kept = {key: value for key, value in metadata.items() if value is not None}
    save_file(load_file(folder / WEIGHTS_NAME), folder / WEIGHTS_NAME, kept)
    with pytest.raises(AdapterError):
        pack_folder(folder)


def test_an_adapter_of_another_method_is_not_packed(folder):
    config = json.loads((folder / CONFIG_NAME).read_text())
    (folder / CONFIG_NAME).write_text(json.dumps({**config, "peft_type": "LORA"}))
    with pytest.raises(AdapterError, match="GATED_LORA"):
        pack_folder(folder)


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
