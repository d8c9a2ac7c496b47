"""A base learns a script that it was not made for: new tokens, sensible first rows, trained and shared with the adapter."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import tokenizers
import torch
from peft import get_peft_model
from torch import nn

from fl.adapters.config import GatedLoraConfig, target_pattern
from fl.adapters.layer import fresh_adapter
from fl.adapters.split import make_split
from fl.adapters.stacked import Slot, StackedAdapters, StackedModel
from fl.adapters.state import adapter_state
from fl.bases.base import SpeechBase
from fl.bases.ctc.vocabulary import make_vocabulary
from fl.bases.extended import ExtendedCtc, ExtendedTokenizer, ExtendedWhisper
from fl.bases.resolve import load_speech_base, split_tokens
from fl.bases.whisper.tokenizer import FileTokenizer
from fl.core.errors import ConfigError
from fl.speech.hangul import ALL_SYLLABLES, COMPAT_JAMO, FORMS, JAMO, SYLLABLES

TEXTS = ["오늘 meeting", "yes", "커피 한 잔"]
EVERY = "".join(chr(code) for code in range(0xAC00, 0xD7A4))


@pytest.fixture(scope="module", params=["whisper", "ctc"])
def base(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> SpeechBase:
    """A base whose tokens are extended: a Whisper, and a CTC base that writes Latin letters only."""
    if request.param == "whisper":
        return load_speech_base("random:whisper-nano+jamo")
    folder = tmp_path_factory.mktemp("latin")
    plain = load_speech_base("random:wav2vec2-nano+latin")
    plain.model.save_pretrained(folder)  # type: ignore[operator]
    make_vocabulary("latin").save(folder)
    return load_speech_base(f"{folder}+jamo", cache=folder / "cache")


@pytest.fixture
def rows(base: SpeechBase, speech: Callable[[float, int], np.ndarray]) -> list[np.ndarray]:
    return [base.features(speech(seconds, seed)) for seed, seconds in enumerate((1.6, 0.7, 1.1))]


def plain_of(base: SpeechBase) -> SpeechBase:
    return load_speech_base(split_tokens(base.name)[0])


def targets(base: SpeechBase) -> str:
    return f"(?:{target_pattern(['encoder.self'])}|{base.targets})"


def with_adapter(base: SpeechBase, seed: int) -> nn.Module:
    config = GatedLoraConfig(r=2, gate="self", target_modules=targets(base), init_seed=seed)
    model = get_peft_model(base.new_model(), config)
    torch.manual_seed(seed)
    for name, parameter in model.named_parameters():
        if "gated_lora_" in name:
            nn.init.normal_(parameter, std=0.2)
    return model


def collate(base: SpeechBase, rows: list[np.ndarray], texts: list[str]) -> object:
    return base.collate(rows, texts, language="ko" if base.languages else None)


def test_known_outputs_are_those_of_the_frozen_base(base: SpeechBase, rows: list[np.ndarray]) -> None:
    assert isinstance(base, ExtendedWhisper | ExtendedCtc)
    assert base.fingerprint == f"{plain_of(base).fingerprint}+jamo"
    assert base.name == f"{plain_of(base).name}+jamo"
    states = torch.randn(2, 3, base.rows.shape[1])
    heads = [m.proj_out if isinstance(base, ExtendedWhisper) else m.lm_head for m in (base.model, plain_of(base).model)]
    with torch.no_grad():
        wide, known = (head(states) for head in heads)
        assert torch.equal(wide[..., : known.shape[-1]], known)
        assert wide.shape[-1] - known.shape[-1] == len(base.rows)
    if isinstance(base, ExtendedWhisper):
        decoder = base.model.model.decoder
        first = base.tokenizer.first  # type: ignore[attr-defined]
        ids = torch.tensor([[3, first, first + 5]])
        embedded = decoder.embed_tokens(ids)[0]
        assert torch.equal(embedded[0], plain_of(base).model.model.decoder.embed_tokens.weight[3])
        torch.testing.assert_close(embedded[1:], base.rows[[0, 5]])


def test_a_new_row_starts_near_what_spelled_it() -> None:
    base = load_speech_base("random:whisper-nano+syllables")
    assert isinstance(base, ExtendedWhisper)
    embedding = plain_of(base).model.model.decoder.embed_tokens.weight
    spread = float(embedding.std())
    for symbol in ("가", "한"):
        mean = embedding[list(symbol.encode())].mean(dim=0)
        row = base.rows[base.tokenizer.symbols.index(symbol)]  # type: ignore[attr-defined]
        assert 0 < float((row - mean).abs().max()) < 0.5 * spread
    again = ExtendedWhisper(plain_of(base), SYLLABLES)
    assert torch.equal(again.rows, base.rows)  # every node derives the same


def test_texts_are_written_with_the_new_tokens_and_read_back(base: SpeechBase) -> None:
    for text in (*TEXTS, "가ㅋㅋ 뷁 é"):
        assert decoded(base, base.target_ids(text)) == text


def decoded(base: SpeechBase, ids: list[int]) -> str:
    return base.tokenizer.decode(ids) if isinstance(base, ExtendedWhisper) else base.vocabulary.decode(ids)  # type: ignore[attr-defined]


@pytest.mark.parametrize("form", FORMS)
def test_every_syllable_comes_back_from_an_extended_whisper(form: str, tokenizer_json: str, tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_text(tokenizer_json)
    known = FileTokenizer(tmp_path / "tokenizer.json", multilingual=False)
    first = tokenizers.Tokenizer.from_str(tokenizer_json).get_vocab_size()
    wide = ExtendedTokenizer(known, form, first)
    text = f"a {EVERY} b"
    ids = wide.encode(text)
    assert wide.decode(ids) == text
    lengths = {SYLLABLES: None, ALL_SYLLABLES: 11_172, JAMO: 11_172 * 3 - 399, COMPAT_JAMO: 11_172 * 3 - 399}
    if lengths[form] is not None:  # 399 = 19 * 21 syllables have no tail
        assert sum(index >= first for index in ids) == lengths[form]
    assert wide.encode("ab") == known.encode("ab")
    assert wide.digest != known.digest


def test_the_new_rows_are_trained_and_shared(base: SpeechBase, rows: list[np.ndarray]) -> None:
    config = GatedLoraConfig(r=2, gate="self", target_modules=targets(base), init_seed=1)
    model = get_peft_model(base.new_model(), config)
    state = adapter_state(model)
    fresh = fresh_adapter(base.new_model(), config)
    assert state.keys() == fresh.keys()
    assert all(torch.equal(state[name], fresh[name]) for name in state)
    added = [name for name in state if ".added." in name]
    split = make_split("gates", state)
    assert {name for name in added if name.endswith(("_A", "_B"))} <= set(split.shared)
    assert len(added) == (8 if isinstance(base, ExtendedWhisper) else 4)
    base.loss(model, collate(base, rows, TEXTS)).backward()
    moved = {n for n, p in model.named_parameters() if p.grad is not None and bool(p.grad.any())}
    assert any("added.gated_lora_B" in name for name in moved)
    assert all("gated_lora" in name for name in moved)


def test_a_stack_gives_each_row_its_own_new_rows(base: SpeechBase, rows: list[np.ndarray]) -> None:
    single = [with_adapter(base, seed) for seed in (1, 2)]
    host = StackedModel(base.new_model(), targets(base))
    slot = Slot.of(GatedLoraConfig(r=2, gate="self", target_modules=targets(base)))
    stack = StackedAdapters.from_states([slot, slot], [adapter_state(model) for model in single])
    index = [1, 0, 1]
    with torch.no_grad(), host.rows(stack, index) as model:
        together, _ = base.row_losses(model, collate(base, rows, TEXTS))
        texts = base.generate(model, base.collate(rows, language="ko" if base.languages else None))
    with torch.no_grad():
        for row, slot_index in enumerate(index):
            alone, _ = base.row_losses(single[slot_index], collate(base, [rows[row]], [TEXTS[row]]))
            torch.testing.assert_close(together[row], alone[0], rtol=1e-4, atol=1e-3)
    assert len(texts) == 3


def test_nothing_to_add_is_refused() -> None:
    with pytest.raises(ConfigError, match="spells any text in bytes"):
        load_speech_base("random:whisper-nano+latin")
    plain = load_speech_base("random:wav2vec2-nano+jamo")
    with pytest.raises(ConfigError, match=r"has all symbols .* tokens = 'own'"):
        ExtendedCtc(plain, JAMO)  # type: ignore[arg-type]
