"""Methods on disk."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from fl.adapters.files import load_adapter
from fl.core.errors import AdapterError, AdapterMismatchError
from fl.methods.files import MethodInfo, load_method, save_method

from .conftest import recipe_of

INFO = MethodInfo("nano", "whisper:x", "all-shared", recipe_of("prefix"))


@pytest.fixture
def folder(tmp_path, make):
    save_method(tmp_path / "p", make("prefix").state(), INFO)
    return tmp_path / "p"


def test_what_was_written_comes_back(folder, make):
    tensors, info = load_method(folder, make("prefix").shapes())
    expected = make("prefix").state()
    assert info == INFO
    assert tensors.keys() == expected.keys()
    assert all(torch.equal(tensors[name], expected[name]) for name in expected)
    info.require_base("whisper:x")
    with pytest.raises(AdapterMismatchError, match="made for base 'nano'"):
        info.require_base("whisper:y")


def test_another_shape_is_refused(folder, make):
    with pytest.raises(AdapterMismatchError, match="expected"):
        load_method(folder, make("prefix", size=4).shapes())


def test_an_adapter_reader_says_what_it_is(folder):
    with pytest.raises(AdapterError, match="'prefix': only low-rank adapters are rows of a batch"):
        load_adapter(folder)


def damage_weights(folder):
    (folder / "adapter_model.safetensors").write_bytes(b"broken")


def add_nan(folder):
    tensors = load_file(folder / "adapter_model.safetensors")
    tensors[next(iter(tensors))].fill_(float("nan"))
    metadata = {"schema": "1", "base": "nano", "base_fingerprint": "whisper:x", "split": "all-shared"}
    metadata["tensors"] = str(len(tensors))
    save_file(tensors, folder / "adapter_model.safetensors", metadata)


def drop_metadata(folder):
    save_file(load_file(folder / "adapter_model.safetensors"), folder / "adapter_model.safetensors")


def change(**values):
    def damage(folder):
        path = folder / "adapter_config.json"
        path.write_text(json.dumps({**json.loads(path.read_text()), **values}))

    return damage


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (damage_weights, "not a readable safetensors"),
        (add_nan, "NaN"),
        (drop_metadata, "schema None"),
        (lambda folder: (folder / "adapter_model.safetensors").unlink(), "is missing"),
        (lambda folder: (folder / "adapter_config.json").write_text("[1]"), "not of a method"),
        (lambda folder: (folder / "adapter_config.json").write_text("{"), "not such a configuration"),
        (lambda folder: (folder / "adapter_config.json").write_bytes(b" " * (2**20 + 1)), "more than"),
        (change(method="voodoo"), "unknown method"),
        (change(size="three"), "size = 'three' is not of its kind"),
        (change(extra=1), "other fields"),
    ],
)
def test_an_unsound_folder_is_refused(damage, message, folder):
    damage(folder)
    with pytest.raises(AdapterError, match=message):
        load_method(folder)
