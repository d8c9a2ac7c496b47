"""Wav2Vec2-CTC as a base: what transformers computes, no row depends on another, adapters and stacks of them work on it."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from peft import get_peft_model
from torch import nn
from transformers import Wav2Vec2ForCTC

from fl.adapters.config import GatedLoraConfig, target_pattern
from fl.adapters.stacked import BASE, Slot, StackedAdapters, StackedModel
from fl.adapters.state import adapter_state, load_state
from fl.bases.ctc.base import CtcBase, path_length
from fl.bases.ctc.forward import encode_ctc, strided_convolution, unwrap_ctc
from fl.bases.resolve import load_base, load_speech_base, name_with_tokens, split_tokens
from fl.core.errors import BaseModelError, TextError, VocabularyError
from fl.speech.prefix import frozen_layers, untouched

NANO, GROUP = "random:wav2vec2-nano+jamo", "random:wav2vec2-nano-group+jamo"
TEXTS = ["오늘 meeting", "yes", "커피 한 잔"]
TARGETS = target_pattern(["encoder.self", "ffn"])


@pytest.fixture(scope="module", params=[NANO, GROUP])
def base(request: pytest.FixtureRequest) -> CtcBase:
    found = load_speech_base(request.param)
    assert isinstance(found, CtcBase)
    return found


@pytest.fixture(scope="module")
def nano() -> CtcBase:
    found = load_speech_base(NANO)
    assert isinstance(found, CtcBase)
    return found


@pytest.fixture
def rows(speech: Callable[[float, int], np.ndarray]) -> list[np.ndarray]:
    """Waveforms of three utterances of different lengths."""
    base = load_speech_base(NANO)
    return [base.features(speech(seconds, seed)) for seed, seconds in enumerate((2.0, 0.7, 1.3))]


def with_adapter(base: CtcBase, gate: str = "self", seed: int = 0) -> nn.Module:
    """A PEFT-wrapped model of its own whose adapter does something."""
    config = GatedLoraConfig(r=2, gate=gate, target_modules=TARGETS, init_seed=seed)
    model = get_peft_model(base.new_model(), config)
    torch.manual_seed(seed)
    for name, parameter in model.named_parameters():
        if "gated_lora_" in name and "lora_A" not in name:
            nn.init.normal_(parameter, std=0.2)
    return model


def test_a_row_alone_has_the_logits_of_transformers(base: CtcBase, rows: list[np.ndarray]) -> None:
    batch = base.collate(rows[:1])
    with torch.no_grad():
        found, lengths = base.log_probs(base.model, batch)
        expected = base.model(batch.features[:, 0]).logits
    assert lengths.tolist() == [expected.shape[1]]
    torch.testing.assert_close(found, torch.log_softmax(expected, dim=-1), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("kernel", "stride"), [(10, 5), (3, 2), (2, 2), (5, 3), (2, 3), (4, 1)])
@pytest.mark.parametrize("channels", [1, 6])
@pytest.mark.parametrize("frames", [10, 23, 24])
def test_a_convolution_is_that_of_torch_in_values_and_gradients(
    kernel: int, stride: int, channels: int, frames: int
) -> None:
    torch.manual_seed(kernel * stride)
    values = torch.randn(2, frames, channels, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(12, channels, kernel, dtype=torch.float64, requires_grad=True)
    bias = torch.randn(12, dtype=torch.float64, requires_grad=True)
    found = strided_convolution(values, weight, bias, stride)
    expected = torch.nn.functional.conv1d(values.transpose(1, 2), weight, bias, stride).transpose(1, 2)
    torch.testing.assert_close(found, expected)
    direction = torch.randn_like(expected)
    for mine, theirs in zip(
        torch.autograd.grad(found, (values, weight, bias), direction),
        torch.autograd.grad(expected, (values, weight, bias), direction),
        strict=True,
    ):
        torch.testing.assert_close(mine, theirs)


@pytest.mark.parametrize("wrapped", [False, True])
def test_a_row_does_not_depend_on_the_others(base: CtcBase, rows: list[np.ndarray], wrapped: bool) -> None:
    model = with_adapter(base) if wrapped else base.model
    with torch.no_grad():
        together, lengths = base.log_probs(model, base.collate(rows))
        for row, features in enumerate(rows):
            alone, count = base.log_probs(model, base.collate([features]))
            assert int(count) == int(lengths[row]) == base.states_of(features.shape[1])
            torch.testing.assert_close(together[row, : int(count)], alone[0], atol=2e-5, rtol=0)


def test_the_norm_over_time_of_transformers_depends_on_the_padding(rows: list[np.ndarray]) -> None:
    """Why the forward is our own: stock, a neighbour changes a row of the group-norm model by far more than rounding."""
    base = load_speech_base(GROUP)
    batch = base.collate(rows)
    mask = torch.arange(batch.features[:, 0].shape[1])[None] < torch.tensor(batch.lengths)[:, None]
    with torch.no_grad():
        stock = base.model(batch.features[:, 0], attention_mask=mask.long()).logits[1, :30]
        alone = base.model(base.collate(rows[1:2]).features[:, 0]).logits[0, :30]
    assert float((stock - alone).abs().max()) > 1e-3


def test_what_is_behind_a_row_never_reaches_it(base: CtcBase, rows: list[np.ndarray]) -> None:
    batch = base.collate(rows, TEXTS)
    before, _ = base.row_losses(base.model, batch)
    assert batch.labels is not None
    for row, count in enumerate(batch.lengths):
        batch.features[:, 0][row, count:] = 3.0
        batch.labels[row, len(base.target_ids(TEXTS[row])) :] = 5
    after, _ = base.row_losses(base.model, batch)
    torch.testing.assert_close(before, after, atol=1e-4, rtol=0)


def test_the_loss_of_a_row_is_that_of_the_row_alone_and_of_transformers(base: CtcBase, rows: list[np.ndarray]) -> None:
    losses, counts = base.row_losses(base.model, base.collate(rows, TEXTS))
    assert counts.tolist() == [len(base.target_ids(text)) for text in TEXTS]
    torch.testing.assert_close(base.loss(base.model, base.collate(rows, TEXTS)), losses.sum() / counts.sum())
    for row, (features, text) in enumerate(zip(rows, TEXTS, strict=True)):
        batch = base.collate([features], [text])
        alone, _ = base.row_losses(base.model, batch)
        torch.testing.assert_close(losses[row], alone[0], rtol=1e-5, atol=1e-3)
        assert batch.labels is not None
        base.model.config.ctc_loss_reduction = "sum"
        torch.testing.assert_close(alone[0], base.model(batch.features[:, 0], labels=batch.labels).loss)


def test_a_text_that_the_speech_cannot_hold_is_refused(nano: CtcBase, rows: list[np.ndarray]) -> None:
    assert path_length(nano.target_ids("bookkeeper")) == 10 + 3
    with pytest.raises(TextError, match=r"a text of 60 symbols needs 119 states and the speech has \d+"):
        nano.collate(rows[1:2], ["a" * 60])
    with pytest.raises(VocabularyError, match="'咖'"):
        nano.collate(rows[:1], ["咖啡"])


@pytest.mark.parametrize("shape", [(80, 200), (1, 399), (1, 480_001), (400,)])
def test_features_of_another_base_are_refused(nano: CtcBase, shape: tuple[int, ...]) -> None:
    with pytest.raises(BaseModelError, match=r"takes \(1, at most 480000\)"):
        nano.collate([np.zeros(shape, np.float16)])


def test_the_volume_and_the_offset_of_a_recording_do_not_matter(
    nano: CtcBase, speech: Callable[..., np.ndarray]
) -> None:
    audio = speech(1.0)
    np.testing.assert_allclose(nano.features(audio), nano.features(0.3 * audio + 0.1), atol=5e-3)


def test_adapters_sit_in_attention_and_feed_forward(nano: CtcBase) -> None:
    def matched(*sites: str) -> set[str]:
        pattern = target_pattern(sites)
        host = StackedModel(nano.new_model(), pattern)
        return {name.removeprefix("wav2vec2.encoder.layers.") for name in host.modules}

    attention = {f"{i}.attention.{p}_proj" for i in (0, 1) for p in ("q", "k", "v", "out")}
    ffn = {f"{i}.feed_forward.{p}_dense" for i in (0, 1) for p in ("intermediate", "output")}
    assert matched("encoder.self", "decoder.self") == attention
    assert matched("ffn") == ffn
    assert frozen_layers(nano, target_pattern(["encoder.self"])) == 0


@pytest.mark.parametrize("gate", ["none", "self", "hidden", "low-rank", "cross"])
def test_a_stack_gives_each_row_what_its_own_adapter_gives(base: CtcBase, rows: list[np.ndarray], gate: str) -> None:
    single = [with_adapter(base, gate, seed) for seed in (1, 2)]
    host = StackedModel(base.new_model(), TARGETS)
    slot = Slot.of(GatedLoraConfig(r=2, gate=gate, target_modules=TARGETS))
    stack = StackedAdapters.from_states([slot, slot], [adapter_state(model) for model in single])
    index = [1, 0, BASE]
    with torch.no_grad(), host.rows(stack, index) as model:
        together, lengths = base.log_probs(model, base.collate(rows))
    with torch.no_grad():
        for row, slot_index in enumerate(index):
            own = base.model if slot_index == BASE else single[slot_index]
            expected, _ = base.log_probs(own, base.collate([rows[row]]))
            torch.testing.assert_close(together[row, : int(lengths[row])], expected[0], atol=5e-5, rtol=0)


def test_a_fresh_adapter_changes_nothing_and_its_gradient_reaches_nothing_else(
    nano: CtcBase, rows: list[np.ndarray]
) -> None:
    config = GatedLoraConfig(r=2, gate="self", target_modules=TARGETS, init_seed=1)
    model = get_peft_model(nano.new_model(), config)
    batch = nano.collate(rows, TEXTS)
    loss = nano.loss(model, batch)
    torch.testing.assert_close(loss, nano.loss(nano.model, batch), rtol=1e-6, atol=0)
    loss.backward()
    before = float(loss.detach())
    assert all(p.grad is None for name, p in model.named_parameters() if "gated_lora" not in name)
    load_state(model, adapter_state(with_adapter(nano, seed=3)))
    assert float(nano.loss(model, batch).detach()) != pytest.approx(before, abs=1e-4)


@pytest.mark.parametrize("layers", [0, 1, 2])
def test_what_enters_a_layer_computed_before_gives_the_same_result(
    base: CtcBase, rows: list[np.ndarray], layers: int
) -> None:
    batch = base.collate(rows)
    states = [base.prefix_states(row, layers) for row in rows]
    with torch.no_grad():
        expected, lengths = base.log_probs(base.model, batch)
        found, _ = base.log_probs(base.model, base.with_prefix(batch, states, layers))
    for row, count in enumerate(lengths.tolist()):
        torch.testing.assert_close(found[row, :count], expected[row, :count], atol=2e-5, rtol=0)
    with pytest.raises(BaseModelError, match="states for rows"):
        base.with_prefix(batch, states[::-1], layers)


def test_models_share_the_frozen_tensors_until_they_are_trained(nano: CtcBase) -> None:
    one, other = nano.new_model(), nano.new_model()
    assert not {id(m) for m in one.modules()} & {id(m) for m in other.modules()}
    assert untouched(nano, with_adapter(nano), 0)
    assert not untouched(nano, with_adapter(nano), 1)  # the adapter is in front of that layer
    one.requires_grad_(True)
    assert not untouched(nano, one, 0)
    copied = nano.new_model()
    conv = unwrap_ctc(copied).wav2vec2.feature_extractor.conv_layers[0].conv
    conv.weight = nn.Parameter(conv.weight.clone(), requires_grad=False)
    assert not untouched(nano, copied, 0)


def test_beams_find_a_labelling_at_least_as_probable_as_the_best_path(nano: CtcBase, rows: list[np.ndarray]) -> None:
    model = nano.new_model()
    batch = nano.collate(rows[1:2])
    path, beam = (nano.transcribe(model, batch, beams=beams)[0] for beams in (1, 8))
    assert beam.log_prob >= path.log_prob
    assert nano.generate(model, batch) == [nano.vocabulary.decode(path.tokens)]
    with pytest.raises(BaseModelError, match="at least 1"):
        nano.transcribe(model, batch, beams=0)


def test_a_model_with_weights_of_its_own_learns_and_the_base_stays(nano: CtcBase, rows: list[np.ndarray]) -> None:
    model = nano.new_model()
    own = {name: nn.Parameter(p.detach().clone()) for name, p in model.named_parameters()}
    model.load_state_dict(own, assign=True)
    model.requires_grad_(True)
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-3)
    batch = nano.collate(rows[1:2], ["커피 yes"])
    before = nano.loss(nano.model, batch)
    losses = []
    for _ in range(20):
        optimizer.zero_grad()
        loss = nano.loss(model, batch)
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.5 * losses[0]
    assert torch.equal(nano.loss(nano.model, batch), before)


def test_the_fingerprint_is_of_weights_and_vocabulary() -> None:
    names = [NANO, GROUP, "random:wav2vec2-nano+compat-jamo", "random:wav2vec2-nano"]
    marks = [load_speech_base(name).fingerprint for name in names]
    assert len(set(marks)) == len(marks)
    assert all(mark.startswith("wav2vec2:32x2:") for mark in marks)
    load_speech_base.__globals__["_load"].cache_clear()
    assert [load_speech_base(name).fingerprint for name in names] == marks


def test_names_carry_their_tokens() -> None:
    assert name_with_tokens("whisper-base", "own") == "whisper-base"
    assert split_tokens(name_with_tokens("a/b+c", "jamo")) == ("a/b+c", "jamo")
    assert split_tokens("a/b+c") == ("a/b+c", "own")


def test_a_command_for_whisper_says_so() -> None:
    with pytest.raises(BaseModelError, match="Wav2Vec2 with a CTC head; this command needs a Whisper"):
        load_base("random:wav2vec2-base")
    with pytest.raises(BaseModelError, match="random:wav2vec2-large"):
        load_speech_base("random:wav2vec3")


def saved(base: CtcBase, folder: Path) -> Path:
    """``base`` as transformers writes it."""
    unwrap_ctc(base.model).save_pretrained(folder)
    base.vocabulary.save(folder)
    return folder


def test_a_folder_is_the_base_that_was_saved(base: CtcBase, tmp_path: Path, rows: list[np.ndarray]) -> None:
    found = load_speech_base(str(saved(base, tmp_path / "base")), cache=tmp_path / "cache")
    assert isinstance(found, CtcBase)
    assert found.fingerprint == base.fingerprint
    batch = base.collate(rows, TEXTS)
    with torch.no_grad():
        assert torch.equal(found.loss(found.model, batch), base.loss(base.model, batch))
        stock = Wav2Vec2ForCTC.from_pretrained(tmp_path / "base").eval()
        states, _ = encode_ctc(stock, batch)
    assert torch.isfinite(states).all()
    half = load_speech_base(str(tmp_path / "base"), cache=tmp_path / "cache", dtype=torch.float16)
    assert half.fingerprint == base.fingerprint
    assert next(half.model.parameters()).dtype == torch.float16


def test_old_names_of_weight_normalization_are_read(nano: CtcBase, tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    folder = saved(nano, tmp_path / "base")
    weights = load_file(folder / "model.safetensors")
    old = {
        name.replace("parametrizations.weight.original0", "weight_g").replace(
            "parametrizations.weight.original1", "weight_v"
        ): t
        for name, t in weights.items()
    }
    assert old.keys() != weights.keys()
    save_file({**old, "wav2vec2.masked_spec_embed": torch.zeros(32)}, folder / "model.safetensors")
    assert load_speech_base(str(folder), cache=tmp_path).fingerprint == nano.fingerprint


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"add_adapter": True}, "add_adapter"),
        ({"num_hidden_layers": 3}, "tensors are missing"),
        ({"hidden_size": 48, "num_attention_heads": 2}, "has the shape"),
        ({"conv_stride": [5, 2]}, "not a valid Wav2Vec2|differ in length"),
        ({"vocab_size": 7}, "from 0 to 6"),
    ],
)
def test_a_folder_that_does_not_fit_its_configuration_is_refused(
    nano: CtcBase, tmp_path: Path, change: dict[str, Any], reason: str
) -> None:
    folder = saved(nano, tmp_path / "base")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, **change}))
    with pytest.raises(BaseModelError, match=reason):
        load_speech_base(str(folder), cache=tmp_path)


def test_a_wav2vec2_without_a_head_is_refused(nano: CtcBase, tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    folder = saved(nano, tmp_path / "base")
    weights = load_file(folder / "model.safetensors")
    save_file({n: t for n, t in weights.items() if not n.startswith("lm_head")}, folder / "model.safetensors")
    with pytest.raises(BaseModelError, match="no CTC head"):
        load_speech_base(str(folder), cache=tmp_path)
