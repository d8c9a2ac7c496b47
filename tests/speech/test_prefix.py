"""Activations below the lowest adapter: computed once, kept in half precision, and never a way around an adapter."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from peft import get_peft_model
from torch import nn

from fl.adapters.config import GatedLoraConfig, target_pattern
from fl.bases.resolve import load_base
from fl.core.errors import BaseModelError
from fl.settings.config import make_config
from fl.speech.prefix import PrefixCache, check_frozen, frozen_layers
from fl.tasks.speech.task import SpeechTask

DECODER = "decoder.self,decoder.cross"


@pytest.fixture(scope="module")
def nano() -> Any:
    return load_base("random:whisper-nano")


@pytest.fixture
def features(nano: Any) -> np.ndarray:
    noise = np.random.default_rng(0).normal(size=14_000)
    return nano.features((0.1 * noise).astype(np.float32))


@pytest.fixture(scope="module", autouse=True)
def cache(own_home: Path) -> Path:
    """A cache folder of the tests' own."""
    return own_home


@pytest.fixture(scope="module")
def manifest(noise_manifest: Callable[..., Path]) -> Path:
    """Two speakers with six recordings each."""
    return noise_manifest(["ann", "bob"], 6)


@pytest.fixture(scope="module")
def task(manifest: Path) -> SpeechTask:
    return make_task(manifest, DECODER)


def make_task(manifest: Path, sites: str) -> SpeechTask:
    values = {"base": "random:whisper-nano", "manifest": str(manifest), "new_people": 0, "sites": sites}
    return SpeechTask(make_config(values))


def adapted(task: SpeechTask, targets: Any = None, **options: Any) -> nn.Module:
    config = GatedLoraConfig(r=4, gate="self", target_modules=targets or task.targets, init_seed=1, **options)
    model = get_peft_model(task.new_model(), config)
    torch.manual_seed(0)
    for name, parameter in model.named_parameters():
        if name.endswith("B.default"):
            nn.init.normal_(parameter, std=0.05)
    return model


def loss_and_gradient(task: SpeechTask, model: nn.Module, examples: Any) -> tuple[torch.Tensor, torch.Tensor]:
    loss = task.loss(model, examples)
    trained = [p for p in model.parameters() if p.requires_grad]
    gradient = torch.cat([g.flatten() for g in torch.autograd.grad(loss, trained)])
    return loss.detach(), gradient


@pytest.mark.parametrize(
    ("sites", "layers"),
    [("decoder.self", 2), (DECODER, 2), ("decoder.cross", 2), ("encoder.self", 0), ("ffn", 0), ("decoder.self,ffn", 0)],
)
def test_the_frozen_layers_are_those_below_the_lowest_site(nano: Any, sites: str, layers: int) -> None:
    assert frozen_layers(nano, target_pattern(sites.split(","))) == layers


def test_adapters_that_begin_higher_leave_the_layers_below_frozen(nano: Any) -> None:
    assert frozen_layers(nano, r"(?:.*\.)?encoder\.layers\.1\.self_attn\.q_proj") == 1
    assert frozen_layers(nano, ["q_proj"]) == 0
    assert frozen_layers(nano, ["encoder.layers.1.fc1", "embed_tokens"]) == 1


def test_with_cached_states_loss_and_gradient_differ_by_the_rounding_of_the_states_alone(
    task: SpeechTask, monkeypatch: pytest.MonkeyPatch
) -> None:
    """States keep 11 bits: relative 5e-4 each, under 1e-3 in the loss and 5e-3 in the direction of the gradient."""
    model, examples = adapted(task), task.device("ann").train
    loss, gradient = loss_and_gradient(task, model, examples)
    monkeypatch.setattr(task, "frozen_layers", 0)
    exact_loss, exact_gradient = loss_and_gradient(task, model, examples)
    assert not torch.equal(loss, exact_loss)  # the cached path was taken
    torch.testing.assert_close(loss, exact_loss, rtol=1e-3, atol=0)
    assert float((gradient - exact_gradient).norm() / exact_gradient.norm()) < 5e-3


def test_adapters_from_the_second_layer_on_train_as_without_the_cache(
    task: SpeechTask, monkeypatch: pytest.MonkeyPatch
) -> None:
    targets = r"(?:.*\.)?(?:encoder\.layers\.1|decoder\.layers\.\d+)\.self_attn\.(?:q_proj|v_proj)"
    model, examples = adapted(task, targets), task.device("ann").train
    monkeypatch.setattr(task, "frozen_layers", frozen_layers(task.base, targets))
    assert task.frozen_layers == 1
    loss, gradient = loss_and_gradient(task, model, examples)
    monkeypatch.setattr(task, "frozen_layers", 0)
    exact_loss, exact_gradient = loss_and_gradient(task, model, examples)
    torch.testing.assert_close(loss, exact_loss, rtol=1e-3, atol=0)
    assert float((gradient - exact_gradient).norm() / exact_gradient.norm()) < 5e-3


def test_the_second_step_does_not_run_the_encoder_again(task: SpeechTask, monkeypatch: pytest.MonkeyPatch) -> None:
    model, examples = adapted(task), task.device("bob").train
    cold = task.loss(model, examples)
    monkeypatch.setattr(task.base, "prefix_states", lambda *_: pytest.fail("computed again"))
    for module in (model, task.base.model):
        encoder = module.get_base_model().model.encoder if hasattr(module, "peft_config") else module.model.encoder
        for layer in encoder.layers:
            monkeypatch.setattr(layer, "forward", lambda *_: pytest.fail("encoder ran"))
    assert torch.equal(task.loss(model, examples), cold)  # warm and cold are the same bits
    assert len(task.predict(model, examples, adapted=True, beams=1)) == len(examples)


def test_a_row_does_not_depend_on_its_neighbours(task: SpeechTask) -> None:
    model, examples = adapted(task), task.device("ann").train
    with torch.no_grad():
        sums, _ = task.losses(model, examples)
        alone = torch.cat([task.losses(model, [e])[0] for e in examples])
    torch.testing.assert_close(sums, alone, rtol=1e-5, atol=1e-4)


def test_an_adapter_in_the_encoder_is_refused_where_the_sites_leave_it_out(task: SpeechTask) -> None:
    everywhere = adapted(task, ["q_proj"])
    with pytest.raises(BaseModelError, match="lowest 2 encoder layers"):
        task.loss(everywhere, task.device("ann").train)
    check_frozen(task.base, everywhere, 0)


def test_with_adapters_in_the_encoder_nothing_is_cached(manifest: Path, cache: Path) -> None:
    everywhere = make_task(manifest, "encoder.self,decoder.self")
    before = len(list((cache / "prefix").rglob("*.states")))
    everywhere.loss(adapted(everywhere), everywhere.device("ann").train)
    assert everywhere.frozen_layers == 0
    assert len(list((cache / "prefix").rglob("*.states"))) == before


def test_states_are_those_of_the_encoder_rounded_to_half_precision(
    nano: Any, features: np.ndarray, tmp_path: Path
) -> None:
    states = PrefixCache(tmp_path).states(nano, features, 2)
    with torch.no_grad():
        expected, _ = nano.encode(nano.model, nano.collate([features]))
    assert states.dtype == np.float16
    np.testing.assert_array_equal(states, expected[0].numpy().astype(np.float16))


def test_activations_beyond_half_precision_are_kept_in_full(tmp_path: Path, features: np.ndarray) -> None:
    class Loud:
        fingerprint = "loud"
        dtype = torch.float32

        def states_of(self, length: int) -> int:
            return (length + 1) // 2

        def prefix_states(self, features: np.ndarray, layers: int) -> np.ndarray:
            return np.full(((features.shape[1] + 1) // 2, 4), 1e5, np.float32)

    cold = PrefixCache(tmp_path).states(Loud(), features, 1)
    warm = PrefixCache(tmp_path).states(Loud(), features, 1)
    assert cold.dtype == warm.dtype == np.float32
    assert (warm == 1e5).all()


def test_the_key_is_the_features_the_base_with_its_precision_and_the_layer(nano: Any, features: np.ndarray) -> None:
    class Other:
        fingerprint = "whisper:other"
        dtype = torch.float32

        def prefix_states(self, features: np.ndarray, layers: int) -> np.ndarray:
            raise AssertionError

    changed = features.copy()
    changed[0, 0] += 1
    keys = {
        PrefixCache.key(nano, features, 1),
        PrefixCache.key(nano, features, 2),
        PrefixCache.key(nano, changed, 2),
        PrefixCache.key(nano, features[:, :-2], 2),
        PrefixCache.key(Other(), features, 2),
        PrefixCache.key(nano.to(torch.bfloat16), features, 2),
    }
    assert len(keys) == 6
    assert PrefixCache.key(nano, features.copy(), 2) in keys


@pytest.mark.parametrize("damage", ["cut", "empty", "flipped", "shorter"])
def test_a_damaged_file_is_computed_again(nano: Any, features: np.ndarray, tmp_path: Path, damage: str) -> None:
    cache = PrefixCache(tmp_path)
    good = cache.states(nano, features, 2)
    path = cache.path(cache.key(nano, features, 2))
    data = path.read_bytes()
    shorter = cache.path(cache.key(nano, features[:, :-2], 2))
    cache.states(nano, features[:, :-2], 2)
    flipped = data[:100] + bytes([data[100] ^ 1]) + data[101:]
    path.write_bytes({"cut": data[:-2], "empty": b"", "flipped": flipped, "shorter": shorter.read_bytes()}[damage])
    np.testing.assert_array_equal(cache.states(nano, features, 2), good)
    assert path.read_bytes() == data


def test_a_full_disk_costs_time_and_nothing_else(
    nano: Any, features: np.ndarray, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    states = PrefixCache(tmp_path).states(nano, features, 2)
    monkeypatch.undo()
    np.testing.assert_array_equal(states, PrefixCache(tmp_path / "other").states(nano, features, 2))
    assert not [path for path in tmp_path.rglob("*.states") if tmp_path / "other" not in path.parents]
