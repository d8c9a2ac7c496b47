"""An adapter folder: written whole, read with suspicion."""

import dataclasses
import errno
import json
import os
import pickle

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file

from fl.adapters import files as adapter_files
from fl.adapters.files import AdapterInfo, describe, load_adapter, save_adapter
from fl.adapters.state import adapter_state, check_tensors, load_state
from fl.core.errors import AdapterError, AdapterMismatchError, IdiolectError
from fl.packed import folder as packed_folder
from fl.packed.folder import CONFIG_NAME, WEIGHTS_NAME, read_tensors

FINGERPRINT = "whisper:16x2+2:0123456789abcdef"


@pytest.fixture
def model(gated):
    return gated("self")


@pytest.fixture
def info(model):
    return AdapterInfo("whisper-nano", FINGERPRINT, "gates", model.peft_config["default"], language="ko")


@pytest.fixture
def folder(tmp_path, model, info):
    save_adapter(tmp_path / "device" / "adapter", adapter_state(model), info)
    return tmp_path / "device" / "adapter"


def test_an_adapter_comes_back_as_it_was(folder, model, info):
    tensors, read = load_adapter(folder)
    state = adapter_state(model)
    assert set(tensors) == set(state)
    assert all(torch.equal(tensors[name], state[name]) for name in state)
    for field in ("base_name", "base_fingerprint", "split", "window", "language"):
        assert getattr(read, field) == getattr(info, field)
    for field in ("r", "lora_alpha", "gate", "target_modules", "init_seed"):
        assert getattr(read.config, field) == getattr(info.config, field)


def test_half_precision_survives(tmp_path, model, info):
    halves = {name: tensor.half() for name, tensor in adapter_state(model).items()}
    save_adapter(tmp_path, halves, info)
    tensors, _ = load_adapter(tmp_path)
    assert all(t.dtype == torch.float16 and torch.equal(t, halves[name]) for name, t in tensors.items())


def test_an_adapter_folder_is_one_that_peft_reads(folder, model, whisper, logits):
    loaded = PeftModel.from_pretrained(whisper(), folder).eval()
    assert torch.equal(logits(loaded), logits(model))


def test_the_folder_holds_two_files_and_neither_is_a_pickle(folder):
    assert sorted(p.name for p in folder.iterdir()) == [CONFIG_NAME, WEIGHTS_NAME]
    json.loads((folder / CONFIG_NAME).read_text())
    load_file(folder / WEIGHTS_NAME)


@pytest.mark.parametrize("name", [CONFIG_NAME, WEIGHTS_NAME])
def test_a_missing_file_is_named(folder, name):
    (folder / name).unlink()
    with pytest.raises(AdapterError, match=rf"{name} is missing; give RUN/shared"):
        load_adapter(folder)


def test_a_folder_that_does_not_exist_is_an_adapter_error(tmp_path):
    with pytest.raises(AdapterError, match="no adapter at"):
        load_adapter(tmp_path / "nowhere")


@pytest.mark.parametrize("kept", [0, 4, 100, -1])
def test_truncated_weights_are_refused(folder, kept):
    path = folder / WEIGHTS_NAME
    path.write_bytes(path.read_bytes()[:kept])
    with pytest.raises(AdapterError, match="not a readable safetensors file"):
        load_adapter(folder)


class Bomb:
    """Unpickling it leaves a trace."""

    def __init__(self, trace):
        self.trace = trace

    def __reduce__(self):
        return os.mkdir, (str(self.trace),)


def test_a_pickle_in_disguise_is_refused_and_never_run(folder, tmp_path, model):
    trace = tmp_path / "ran"
    (folder / WEIGHTS_NAME).write_bytes(pickle.dumps(Bomb(trace)))
    with pytest.raises(AdapterError, match="not a readable safetensors file"):
        load_adapter(folder)
    torch.save({**adapter_state(model), "bomb": Bomb(trace)}, folder / WEIGHTS_NAME)
    with pytest.raises(AdapterError, match="not a readable safetensors file"):
        load_adapter(folder)
    assert not trace.exists()


@pytest.mark.parametrize(
    ("module", "limit", "named"),
    [(adapter_files, "MAX_ADAPTER_BYTES", WEIGHTS_NAME), (packed_folder, "MAX_CONFIG_BYTES", CONFIG_NAME)],
)
def test_an_oversized_file_is_refused_before_it_is_read(folder, monkeypatch, module, limit, named):
    monkeypatch.setattr(module, limit, (folder / named).stat().st_size - 1)
    monkeypatch.setattr(packed_folder, "read_tensors", lambda *_: pytest.fail("it was read"))
    with pytest.raises(AdapterError, match=rf"{named} has [\d,]+ bytes, more than"):
        load_adapter(folder)


def test_too_many_tensors_are_refused(folder, monkeypatch):
    monkeypatch.setattr("fl.core.tensorfile.MAX_TENSORS", 3)
    with pytest.raises(AdapterError, match="more than the 3 allowed"):
        load_adapter(folder)


def rewrite(folder, *, tensors=None, **metadata):
    """The weights file with other tensors or metadata; None removes an entry."""
    path = folder / WEIGHTS_NAME
    held, info = read_tensors(path, "pt")
    info.update(metadata)
    save_file(held if tensors is None else tensors, path, {k: v for k, v in info.items() if v is not None})


@pytest.mark.parametrize("schema", ["2", "0", "", None])
def test_another_schema_is_refused(folder, schema):
    rewrite(folder, schema=schema)
    with pytest.raises(AdapterError, match="schema"):
        load_adapter(folder)


def test_a_tensor_that_was_taken_out_or_put_in_is_noticed(folder, model):
    state = adapter_state(model)
    rewrite(folder, tensors={**state, "more": torch.zeros(1)})
    with pytest.raises(AdapterError, match="was altered"):
        load_adapter(folder)
    state.pop(next(iter(state)))
    rewrite(folder, tensors=state)
    with pytest.raises(AdapterError, match="was altered"):
        load_adapter(folder)


@pytest.mark.parametrize("split", ["secret", None, "layers:[", "layers:nowhere"])
def test_a_file_that_does_not_say_what_is_private_is_refused(folder, split):
    rewrite(folder, split=split)
    with pytest.raises(AdapterError, match="split"):
        load_adapter(folder)


def test_weights_of_pefts_own_making_are_refused_for_want_of_a_schema(tmp_path, model):
    model.save_pretrained(tmp_path)
    with pytest.raises(AdapterError, match="schema None"):
        load_adapter(tmp_path)


@pytest.mark.parametrize(
    "config",
    [
        "",
        "{",
        "[]",
        "null",
        '{"peft_type": "LORA", "r": 8}',
        '{"peft_type": "GLORA"}',
        "{}",
        '{"peft_type": "GATED_LORA", "r": 0}',
        '{"peft_type": "GATED_LORA", "r": "8"}',
        '{"peft_type": "GATED_LORA", "gate": "magic"}',
        '{"peft_type": "GATED_LORA", "lora_alpha": "x"}',
        '{"peft_type": "GATED_LORA", "lora_alpha": NaN}',
        '{"peft_type": "GATED_LORA", "lora_alpha": Infinity}',
        "\xff\xfe",
        "[" * 100_000,
    ],
)
def test_a_configuration_that_is_none_is_refused(folder, config):
    (folder / CONFIG_NAME).write_bytes(config.encode("latin-1"))
    with pytest.raises(AdapterError, match=CONFIG_NAME):
        load_adapter(folder)


def test_an_ordinary_lora_is_sent_to_peft(folder):
    (folder / CONFIG_NAME).write_text('{"peft_type": "LORA"}')
    with pytest.raises(AdapterError, match=r"'LORA'.*load it with PEFT itself"):
        load_adapter(folder)


def test_nan_on_disk_does_not_reach_a_model(folder, model):
    state = adapter_state(model)
    name = max(state)
    rewrite(folder, tensors={**state, name: torch.full_like(state[name], float("nan"))})
    tensors, _ = load_adapter(folder)
    with pytest.raises(AdapterError, match="NaN or infinity") as error:
        load_state(model, tensors)
    assert name in str(error.value)


def test_an_incomplete_adapter_is_refused_where_the_model_is_known(folder, model):
    state = adapter_state(model)
    name = next(iter(state))
    rewrite(folder, tensors={n: t for n, t in state.items() if n != name})
    path = folder / WEIGHTS_NAME
    held, metadata = read_tensors(path, "pt")
    save_file(held, path, {**metadata, "tensors": str(len(held))})
    tensors, _ = load_adapter(folder)
    with pytest.raises(AdapterMismatchError, match="lacks 1 tensors"):
        check_tensors(tensors, {name: tuple(tensor.shape) for name, tensor in state.items()})


def test_an_adapter_of_another_base_is_refused_by_name(folder):
    _, info = load_adapter(folder)
    info.require_base(FINGERPRINT)
    with pytest.raises(AdapterMismatchError, match="made for base 'whisper-nano'") as error:
        info.require_base("whisper:512x6+6:ffffffffffffffff")
    assert FINGERPRINT in str(error.value)
    assert "whisper:512x6+6:ffffffffffffffff" in str(error.value)


def test_an_adapter_of_another_gate_is_refused(folder, gated):
    tensors, _ = load_adapter(folder)
    with pytest.raises(AdapterMismatchError, match="another gate, rank or set of sites"):
        load_state(gated("none"), tensors)
    with pytest.raises(AdapterMismatchError, match="is expected"):
        load_state(
            gated("cross", sites=("ffn",)), {n: t for n, t in tensors.items() if "fc1.gated_lora_gate_weight" in n}
        )


@pytest.mark.parametrize(("call", "failing"), [("fsync", 1), ("fsync", 2), ("replace", 1)])
def test_a_full_disk_leaves_the_old_adapter_and_no_litter(folder, model, info, monkeypatch, call, failing):
    before, _ = load_adapter(folder)
    real, count = getattr(os, call), iter(range(1, 100))

    def full(*arguments):
        if next(count) == failing:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return real(*arguments)

    changed = {name: tensor + 1 for name, tensor in before.items()}
    other = dataclasses.replace(info, config=dataclasses.replace(info.config, lora_alpha=99.0))
    with monkeypatch.context() as patch:
        patch.setattr(os, call, full)
        with pytest.raises(AdapterError, match=r"No space left.*free some space"):
            save_adapter(folder, changed, other)
    assert sorted(p.name for p in folder.iterdir()) == [CONFIG_NAME, WEIGHTS_NAME]
    after, kept = load_adapter(folder)
    assert all(torch.equal(after[name], before[name]) for name in before)
    assert kept.config.lora_alpha == info.config.lora_alpha

    save_adapter(folder, changed, other)
    assert load_adapter(folder)[1].config.lora_alpha == 99.0


def test_every_way_to_fail_is_one_that_the_command_line_prints(folder):
    (folder / WEIGHTS_NAME).write_bytes(b"\x00" * 64)
    with pytest.raises(IdiolectError):
        load_adapter(folder)


def test_a_description_adds_up(folder, model):
    tensors, info = load_adapter(folder)
    facts = describe(tensors, info)
    gates = {name: t for name, t in adapter_state(model).items() if "gate_" in name}
    assert facts["private"] == {
        "tensors": len(gates),
        "parameters": sum(t.numel() for t in gates.values()),
        "bytes": 4 * sum(t.numel() for t in gates.values()),
    }
    for key in ("tensors", "parameters", "bytes"):
        assert facts["shared"][key] + facts["private"][key] == facts[key]
    assert (facts["rank"], facts["gate"], facts["split"], facts["language"]) == (3, "self", "gates", "ko")
    json.dumps(facts)
