"""A correction makes what is decoded the exact mean of the devices' products, and leaves the frozen base alone."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from peft import get_peft_model
from torch import nn

from fl.adapters.config import GatedLoraConfig
from fl.adapters.correction import (
    corrected,
    corrected_fingerprint,
    find_correction,
    load_correction,
    require_fingerprint,
    save_correction,
    split_fingerprint,
    weight_corrections,
)
from fl.adapters.pairs import LowRankPair
from fl.adapters.state import load_state, tensors_digest
from fl.algorithms.shared.fedex import FedEx
from fl.algorithms.shared.flora import Flora
from fl.bases.resolve import load_base
from fl.core.errors import AdapterError, AdapterMismatchError

RANK, ALPHA = 2, 8.0
MODULE = "model.decoder.layers.0.self_attn.q_proj"
LAYER = f"base_model.model.{MODULE}"
FINGERPRINT = "whisper:64x2+2:0123456789abcdef"


@pytest.fixture(scope="module")
def nano():
    return load_base("random:whisper-nano")


@pytest.fixture
def pairs() -> tuple[list[LowRankPair], np.ndarray]:
    """Three devices' pairs and their shares."""
    draw = np.random.default_rng(4).normal
    found = [LowRankPair(draw(size=(RANK, 64)) / 8, draw(size=(64, RANK)) / 8) for _ in range(3)]
    return found, np.array([0.5, 0.3, 0.2])


def mean_product(pairs: list[LowRankPair], weights: np.ndarray) -> np.ndarray:
    return sum(p * pair.b @ pair.a for p, pair in zip(weights, pairs, strict=True))


def product_of(model: nn.Module, frozen: nn.Linear) -> torch.Tensor:
    """What the map at MODULE adds to the frozen weight, (d_out, d_in)."""
    layer = model.get_submodule(LAYER)
    return (layer(torch.eye(64)) - frozen(torch.eye(64))).T


@pytest.mark.parametrize("algorithm", [FedEx, Flora])
def test_the_decoded_product_is_the_exact_mean_product(nano, pairs, algorithm) -> None:
    start = LowRankPair(np.zeros((RANK, 64)), np.zeros((64, RANK)))
    pair, lost = algorithm().combine(start, *pairs)
    config = GatedLoraConfig(r=RANK, lora_alpha=ALPHA, gate="none", target_modules=[MODULE])
    model = get_peft_model(nano.new_model(), config)
    tensors = {
        f"{LAYER}.gated_lora_{n}": torch.tensor(v, dtype=torch.float32) for n, v in (("A", pair.a), ("B", pair.b))
    }
    load_state(model, tensors)
    frozen = nano.model.get_submodule(MODULE)
    exact = torch.tensor(ALPHA / RANK * mean_product(*pairs), dtype=torch.float32)
    with torch.no_grad(), corrected(model, weight_corrections({LAYER: lost.astype(np.float32)}, ALPHA / RANK)):
        torch.testing.assert_close(product_of(model, frozen), exact, atol=1e-6, rtol=0)
    with torch.no_grad():
        assert float((product_of(model, frozen) - exact).abs().max()) > 1e-2, "without it the product is another"


def test_the_frozen_tensors_are_put_back_also_behind_an_exception(nano) -> None:
    model = nano.new_model()
    before = dict(model.named_parameters())
    bits = before[f"{MODULE}.weight"].clone()

    def fail() -> None:
        with corrected(model, {LAYER: torch.ones(64, 64)}):
            assert torch.equal(model.get_submodule(MODULE).weight, bits + 1)
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail()
    assert all(parameter is before[name] for name, parameter in model.named_parameters())
    assert torch.equal(before[f"{MODULE}.weight"], bits)


def test_a_correction_that_does_not_fit_changes_nothing(nano) -> None:
    model = nano.new_model()
    for wrong in ({LAYER: torch.ones(64, 63)}, {"base_model.model.nowhere": torch.ones(64, 64)}):
        with pytest.raises(AdapterMismatchError, match="is it of another"), corrected(model, wrong):
            pass
        with pytest.raises(AdapterMismatchError, match="is it of another"):
            nano.with_correction(wrong)


def test_a_base_in_bf16_is_refused_since_the_correction_would_be_rounded_away(nano) -> None:
    corrections = {LAYER: torch.full((64, 64), 1e-5)}
    narrow = nano.to(torch.bfloat16)
    weight = narrow.weights[f"{MODULE}.weight"]
    lost = (weight.float() + 1e-5).to(torch.bfloat16) == weight
    assert float(lost.float().mean()) > 0.5  # which is why
    with pytest.raises(AdapterMismatchError, match="bfloat16 weights: load the base with precision float32"):
        narrow.with_correction(corrections)


def test_a_base_with_a_correction_has_a_fingerprint_of_its_own_and_shares_its_other_weights(nano) -> None:
    corrections = {LAYER: torch.full((64, 64), 0.5)}
    base = nano.with_correction(corrections)
    assert base.fingerprint == corrected_fingerprint(nano.fingerprint, corrections) != nano.fingerprint
    assert split_fingerprint(base.fingerprint) == (nano.fingerprint, tensors_digest(corrections))
    for model in (base.model, base.new_model()):
        plain = dict(nano.model.named_parameters())
        for name, parameter in model.named_parameters():
            if name == f"{MODULE}.weight":
                assert torch.equal(parameter, plain[name] + 0.5)
            else:
                assert parameter.data_ptr() == plain[name].data_ptr()


def test_what_is_saved_is_what_is_loaded(tmp_path: Path) -> None:
    corrections = {LAYER: torch.randn(3, 4, generator=torch.Generator().manual_seed(1))}
    save_correction(tmp_path / "c.safetensors", corrections, FINGERPRINT)
    found = load_correction(tmp_path / "c.safetensors", FINGERPRINT)
    assert torch.equal(found[LAYER], corrections[LAYER])
    assert tensors_digest(found) == tensors_digest(corrections)
    assert tensors_digest({LAYER: corrections[LAYER] + 1}) != tensors_digest(corrections)
    with pytest.raises(AdapterMismatchError, match="load that base instead"):
        load_correction(tmp_path / "c.safetensors", "whisper:other")


def test_anything_but_a_sound_file_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "c.safetensors"
    with pytest.raises(AdapterError, match="no correction at"):
        load_correction(path, FINGERPRINT)
    path.write_bytes(b"no safetensors")
    with pytest.raises(AdapterError, match="not a readable safetensors file"):
        load_correction(path, FINGERPRINT)
    for tensor in (torch.full((2, 2), math.nan), torch.zeros(2)):
        save_correction(path, {LAYER: tensor}, FINGERPRINT)
        with pytest.raises(AdapterError, match="not a finite float32 matrix"):
            load_correction(path, FINGERPRINT)
    save_correction(path, {LAYER: torch.ones(2, 2)}, FINGERPRINT)
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    with pytest.raises(AdapterError, match="not those that were written"):
        load_correction(path, FINGERPRINT)
    monkeypatch.setattr("fl.adapters.correction.MAX_CORRECTION_BYTES", 8)
    with pytest.raises(AdapterError, match="more than the 8"):
        load_correction(path, FINGERPRINT)


def test_a_correction_is_found_in_the_run_of_the_adapter(tmp_path: Path) -> None:
    adapter, digest = tmp_path / "run" / "devices" / "global" / "ann" / "adapter", "0123456789abcdef"
    adapter.mkdir(parents=True)
    with pytest.raises(AdapterError, match="--correction FILE"):
        find_correction(adapter, digest)
    (tmp_path / "run" / "corrections").mkdir()
    wanted = tmp_path / "run" / "corrections" / f"{digest}.safetensors"
    wanted.touch()
    assert find_correction(adapter, digest) == wanted.resolve()
    with pytest.raises(AdapterError, match="no digest"):
        find_correction(adapter, "../../../etc/passwd")


def test_a_mismatch_names_both_corrections() -> None:
    one, other = (f"{FINGERPRINT}+correction:{digit * 16}" for digit in "ab")
    with pytest.raises(
        AdapterMismatchError, match=r"correction a{16}, and this base has correction b{16}: give --corr"
    ):
        require_fingerprint(one, other)
    with pytest.raises(AdapterMismatchError, match="this base has no correction"):
        require_fingerprint(one, FINGERPRINT)
    with pytest.raises(AdapterMismatchError, match=r"for no correction.*leave --correction out"):
        require_fingerprint(FINGERPRINT, one)
    require_fingerprint(one, one)
