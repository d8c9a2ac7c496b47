import json
import os
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from fl.bases import resolve
from fl.bases.files import remembered
from fl.bases.known import known_bases
from fl.bases.resolve import architecture_sizes, load_base, load_speech_base, sizes_table
from fl.bases.sources import hub
from fl.bases.sources.convert import ensure_converted
from fl.bases.sources.wheels import WHEEL_BASES
from fl.bases.whisper.loading import ARCHITECTURES
from fl.core.errors import BaseModelError


@pytest.fixture
def folder(tmp_path, ct2_model, make_wheels):
    wheels = make_wheels(ct2_model)
    return ensure_converted(wheels.base, tmp_path / "made", wheels.fetch)


def test_a_folder_is_a_base(folder, tmp_path, nano):
    base = load_base(str(folder), cache=tmp_path / "cache")
    assert base.fingerprint == nano.fingerprint
    assert base.languages == ()
    assert not any(parameter.requires_grad for parameter in base.model.parameters())
    assert not base.model.training


def test_the_fingerprint_does_not_depend_on_how_the_weights_are_cut_into_files(folder, tmp_path, nano):
    weights = {name: value for name, value in nano.model.state_dict().items() if name != "proj_out.weight"}
    names = sorted(weights)
    shards = {"model-1.safetensors": names[:20], "model-2.safetensors": names[20:]}
    for file, own in shards.items():
        save_file({name: weights[name].clone() for name in own}, folder / file)
    index = {"weight_map": {name: file for file, own in shards.items() for name in own}}
    (folder / "model.safetensors").unlink()
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    assert load_base(str(folder), cache=tmp_path / "sharded").fingerprint == nano.fingerprint


def test_one_changed_weight_changes_the_fingerprint(nano):
    bias = nano.weights["model.encoder.conv1.bias"]
    changed = nano.on_weights({**nano.weights, "model.encoder.conv1.bias": bias + 1e-7})
    assert nano.compute_fingerprint() == nano.fingerprint
    assert changed.compute_fingerprint() != nano.fingerprint


def test_a_remembered_fingerprint_is_forgotten_when_the_file_changes(tmp_path):
    file = tmp_path / "model.safetensors"
    file.write_bytes(b"first")
    marks = tmp_path / "marks"
    assert remembered(marks, [file], lambda: "whisper:first") == "whisper:first"
    assert remembered(marks, [file], lambda: "whisper:second") == "whisper:first"
    os.utime(file, ns=(1, 1))
    assert remembered(marks, [file], lambda: "whisper:second") == "whisper:second"


def test_the_same_name_is_the_same_object_in_a_process():
    assert load_base("random:whisper-nano") is load_base("random:whisper-nano")


def test_random_weights_depend_on_the_name_alone_and_leave_the_global_generator_alone(nano):
    torch.manual_seed(1)
    expected = torch.rand(3)
    torch.manual_seed(1)
    again = resolve.random_base("random:whisper-nano")
    assert torch.equal(torch.rand(3), expected)
    assert again.fingerprint == nano.fingerprint
    assert again.fingerprint.startswith("whisper:64x2+2:")


def test_random_bases_have_the_published_shapes():
    """Whisper tiny on the Hub has 37,760,640 parameters, its 1,500 fixed sinusoids included."""
    assert load_base("random:whisper-tiny").model.num_parameters() == 37_760_640
    shape = ARCHITECTURES["whisper-small"]
    assert (shape.d_model, shape.encoder_layers, shape.heads) == (768, 12, 12)


def test_new_models_share_weights_but_not_modules(nano):
    first, second = nano.new_model(), nano.new_model()
    own, other = first.model.encoder.layers[0].fc1, second.model.encoder.layers[0].fc1
    assert own is not other
    assert own.weight.data_ptr() == other.weight.data_ptr() == nano.model.model.encoder.layers[0].fc1.weight.data_ptr()
    assert first.proj_out.weight is first.model.decoder.embed_tokens.weight


def test_a_base_in_another_type_keeps_its_fingerprint(nano):
    half = load_base("random:whisper-nano", dtype=torch.bfloat16)
    assert half.model.dtype == torch.bfloat16
    assert half.fingerprint == nano.fingerprint


def test_an_unknown_name_lists_the_known_ones(tmp_path):
    with pytest.raises(BaseModelError) as caught:
        load_base("whisper-bse", cache=tmp_path)
    assert all(name in str(caught.value) for name in [*WHEEL_BASES, "random:whisper-nano", "owner/model"])


def test_an_unknown_architecture_lists_the_known_ones():
    with pytest.raises(BaseModelError, match="random:whisper-large-v3-turbo"):
        load_base("random:whisper-huge")


def test_without_a_network_a_hub_name_says_where_was_looked_and_what_to_do(monkeypatch, tmp_path):
    from huggingface_hub.errors import LocalEntryNotFoundError

    calls = []

    def offline(name, *, local_files_only=False, **_):
        calls.append(local_files_only)
        raise LocalEntryNotFoundError("Name or service not known")

    monkeypatch.setattr(hub, "snapshot_download", offline)
    with pytest.raises(BaseModelError, match=r"Hub's cache .*could not be reached .*give its path.*whisper-base"):
        load_base("openai/whisper-tiny", cache=tmp_path)
    assert calls == [True, False]


def test_a_hub_name_in_its_cache_needs_no_network(monkeypatch, folder, tmp_path, nano):
    def cached(name, *, local_files_only=False, **_):
        assert local_files_only
        return str(folder)

    monkeypatch.setattr(hub, "snapshot_download", cached)
    assert load_base("someone/nano", cache=tmp_path / "cache").fingerprint == nano.fingerprint


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("config.json", None, r"no config\.json"),
        ("config.json", b'{"model_type": "bert"}', "needs 'whisper'"),
        ("config.json", b"{", "cannot be read as JSON"),
        ("config.json", b"[]", "where an object should be"),
        ("model.safetensors", None, "no model.safetensors"),
        ("model.safetensors", b"\x10\x00\x00\x00\x00\x00\x00\x00 half", "may be truncated"),
        ("tokenizer.json", None, "not a readable tokenizer"),
        ("tokenizer.json", b"{}", "not a readable tokenizer"),
    ],
)
def test_a_folder_with_a_missing_or_broken_file_is_refused_by_name(folder, tmp_path, file, content, message):
    (folder / file).unlink()
    if content is not None:
        (folder / file).write_bytes(content)
    with pytest.raises(BaseModelError, match=message) as caught:
        load_base(str(folder), cache=tmp_path / file)
    assert str(folder) in str(caught.value)


def test_a_folder_whose_weights_lack_a_tensor_is_refused(folder, tmp_path, nano):
    weights = {name: value.clone() for name, value in nano.model.state_dict().items() if name != "proj_out.weight"}
    del weights["model.encoder.conv1.bias"]
    save_file(weights, folder / "model.safetensors")
    with pytest.raises(BaseModelError, match=r"1 tensors are missing .*conv1\.bias"):
        load_base(str(folder), cache=tmp_path / "cache")


def test_a_folder_whose_shapes_are_not_those_of_its_config_is_refused(folder, tmp_path, nano):
    weights = {name: value.clone() for name, value in nano.model.state_dict().items() if name != "proj_out.weight"}
    weights["model.encoder.conv1.bias"] = torch.zeros(65)
    save_file(weights, folder / "model.safetensors")
    with pytest.raises(BaseModelError, match=r"conv1\.bias has the shape \(65,\)"):
        load_base(str(folder), cache=tmp_path / "cache")


def test_known_bases_say_whether_they_are_there(tmp_path):
    assert [(base.name, base.cached) for base in known_bases(tmp_path)] == [
        ("whisper-base", False),
        ("whisper-tiny.en", False),
        ("all-minilm-l6-v2", False),
    ]


def test_a_counted_size_is_that_of_the_loaded_base() -> None:
    sizes = {name: size for name, (_, size) in architecture_sizes().items()}
    for name in ("whisper-nano", "wav2vec2-nano", "wav2vec2-nano-group"):
        base = load_speech_base(f"random:{name}")
        assert sizes[name] == sum(p.numel() for p in base.model.parameters())
    assert sizes["whisper-base"] == 72_593_920  # openai/whisper-base
    assert sizes_table() in (Path(__file__).parents[2] / "docs" / "bases.md").read_text(encoding="utf-8")
