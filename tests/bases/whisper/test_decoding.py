import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import GenerationConfig
from transformers.generation import GenerationMixin
from transformers.modeling_outputs import BaseModelOutput

from fl.bases.resolve import load_base
from fl.bases.whisper import decoding, forward
from fl.bases.whisper.decoder import DecodingRules
from fl.bases.whisper.decoding import BeamSearch, Hypothesis, loop_length, search, token_limit


def reference_generate(base, batch, beams=1, tokens=12):
    """transformers' own search over the same encoder states; ids without prefix, end and padding."""
    states, mask = base.encode(base.model, batch)
    assert mask is None
    prefix = torch.tensor([base.prefix_ids(batch.language)] * batch.size)
    config = GenerationConfig(
        max_new_tokens=tokens,
        num_beams=beams,
        do_sample=False,
        suppress_tokens=list(base.rules.suppress),
        begin_suppress_tokens=list(base.rules.begin_suppress) or None,
        eos_token_id=base.rules.end,
        pad_token_id=base.rules.end,
        decoder_start_token_id=base.tokenizer.special.start,
    )
    with torch.no_grad():
        out = GenerationMixin.generate(
            base.model,
            encoder_outputs=BaseModelOutput(last_hidden_state=states),
            decoder_input_ids=prefix,
            generation_config=config,
        )
    return [tuple(token for token in row if token != base.rules.end) for row in out[:, prefix.shape[1] :].tolist()]


@pytest.fixture
def unguarded(monkeypatch):
    """Random weights love to loop; without the guard they are compared token by token."""
    monkeypatch.setattr(decoding, "loop_length", lambda tokens: None)


@pytest.mark.usefixtures("unguarded")
def test_greedy_is_transformers_greedy(nano, speech):
    batch = nano.collate([nano.features(speech(2.0, seed)) for seed in range(4)], language="ko")
    found = nano.transcribe(nano.model, batch, max_new_tokens=12)
    assert [hypothesis.tokens for hypothesis in found] == reference_generate(nano, batch)


@pytest.mark.usefixtures("unguarded")
def test_greedy_reports_the_sum_of_the_log_probabilities(nano, speech):
    batch = nano.collate([nano.features(speech(2.0))], language="ko")
    found = nano.transcribe(nano.model, batch, max_new_tokens=6)[0]
    prefix = nano.prefix_ids("ko")
    with torch.no_grad():
        states, mask = nano.encode(nano.model, batch)
        hidden = forward.decode(nano.model, torch.tensor([[*prefix, *found.tokens[:-1]]]), states, mask)
        log_probs = torch.log_softmax(nano.model.proj_out(hidden)[0, len(prefix) - 1 :], -1)
    assert found.reason == "length"
    assert found.log_prob == pytest.approx(sum(log_probs[i, t].item() for i, t in enumerate(found.tokens)), abs=1e-3)


@pytest.mark.usefixtures("unguarded")
def test_a_row_is_decoded_as_if_it_were_alone(nano, speech):
    rows = [nano.features(speech(seconds, seed)) for seed, seconds in enumerate((3.0, 1.1, 2.2))]
    for beams in (1, 3):
        together = nano.transcribe(nano.model, nano.collate(rows, language="ko"), beams=beams, max_new_tokens=10)
        alone = [
            nano.transcribe(nano.model, nano.collate([row], language="ko"), beams=beams, max_new_tokens=10)[0]
            for row in rows
        ]
        assert [hypothesis.tokens for hypothesis in together] == [hypothesis.tokens for hypothesis in alone]


def search_batch(base, batch, beams, tokens=10, **options):
    with torch.no_grad():
        states, mask = base.encode(base.model, batch)
        prompt = base.prefix_ids(batch.language)
        limits = [token_limit(frames, len(prompt), 448, tokens) for frames in batch.lengths]
        prompts = [prompt] * batch.size
        return search(base.model, states, mask, prompts, limits, base.rules, beams=beams, **options)


def test_one_beam_is_greedy(nano, speech):
    batch = nano.collate([nano.features(speech(2.0 + seed / 3, seed)) for seed in range(3)], language="ko")
    plain = nano.transcribe(nano.model, batch, max_new_tokens=10)
    wide = search_batch(nano, batch, 1)
    assert [(h.tokens, h.reason) for h in wide] == [(h.tokens, h.reason) for h in plain]
    assert [h.log_prob for h in wide] == pytest.approx([h.log_prob for h in plain], abs=1e-3)


@pytest.mark.usefixtures("unguarded")
def test_more_beams_find_nothing_worse_and_something_better(nano, speech):
    batch = nano.collate([nano.features(speech(2.0, seed)) for seed in range(6)], language="ko")
    plain = nano.transcribe(nano.model, batch, max_new_tokens=10)
    wide = nano.transcribe(nano.model, batch, beams=5, max_new_tokens=10)
    gains = [b.score(1.0) - g.score(1.0) for b, g in zip(wide, plain, strict=True)]
    assert min(gains) >= -1e-4
    assert max(gains) > 0.01


@pytest.mark.usefixtures("unguarded")
def test_a_beam_reports_the_log_probability_of_its_own_tokens(nano, speech):
    """It would not, if a beam went on from the keys and values of another."""
    rows = [nano.features(speech(2.0, seed)) for seed in range(4)]
    prefix = nano.prefix_ids("ko")
    for row, found in zip(rows, search_batch(nano, nano.collate(rows, language="ko"), 4, tokens=8), strict=True):
        with torch.no_grad():
            states, mask = nano.encode(nano.model, nano.collate([row]))
            hidden = forward.decode(nano.model, torch.tensor([[*prefix, *found.tokens[:-1]]]), states, mask)
            log_probs = torch.log_softmax(nano.model.proj_out(hidden)[0, len(prefix) - 1 :], -1)
        assert len(found.tokens) == 8
        expected = sum(log_probs[index, token].item() for index, token in enumerate(found.tokens))
        assert found.log_prob == pytest.approx(expected, abs=1e-3)


def test_a_hypothesis_that_loops_wins_only_where_there_is_no_other():
    looping = Hypothesis((1,), -0.1, "loop")
    ended = Hypothesis((1, 2, 3), -9.0, "end")
    assert BeamSearch(2, 9, 256, finished=[looping, ended]).best(1.0) is ended
    assert BeamSearch(2, 9, 256, finished=[looping]).best(1.0) is looping


def test_the_length_penalty_weighs_short_against_long():
    short, long = Hypothesis((1,), -2.0, "end"), Hypothesis((1, 2, 3), -3.6, "end")
    found = BeamSearch(2, 9, 256, finished=[short, long])
    assert found.best(1.0) is long  # -3.6 / 4 against -2 / 2: the end is a token too
    assert found.best(0.0) is short
    assert short.score(1.0) == -1.0
    assert Hypothesis((1, 2), -2.0, "length").score(1.0) == -1.0


def test_an_ending_counts_only_among_the_best_candidates():
    one = BeamSearch(1, 9, 256)
    assert one.step([(-1.0, 0, 5), (-2.0, 0, 256)]) == ([0], [5])
    assert not one.finished
    two = BeamSearch(2, 9, 256)
    assert two.step([(-2.0, 0, 256), (-3.0, 0, 5), (-4.0, 0, 256), (-5.0, 0, 6)]) == ([0, 0], [5, 6])
    assert [found.log_prob for found in two.finished] == [-2.0]


@pytest.mark.usefixtures("unguarded")
def test_beam_search_is_exhaustive_when_it_is_wide_enough(nano, speech):
    """Two tokens out of three: every sequence can be scored by hand."""
    batch = nano.collate([nano.features(speech(1.5))], language="ko")
    allowed = (65, 66, 67)
    rules = DecodingRules(nano.rules.end, tuple(t for t in range(300) if t not in allowed), ())
    prefix = nano.prefix_ids("ko")
    with torch.no_grad():
        states, mask = nano.encode(nano.model, batch)
        found = search(nano.model, states, mask, [prefix], [2], rules, beams=9)[0]
        pairs = [(a, b) for a in allowed for b in allowed]
        ids = torch.tensor([[*prefix, a] for a, _ in pairs])
        hidden = forward.decode(nano.model, ids, states.expand(9, -1, -1), mask)
        log_probs = torch.log_softmax(nano.model.proj_out(hidden), -1)
        scores = [(log_probs[i, -2, a] + log_probs[i, -1, b]).item() for i, (a, b) in enumerate(pairs)]
    assert found.tokens == pairs[scores.index(max(scores))]
    assert found.log_prob == pytest.approx(max(scores), abs=1e-3)


def test_suppressed_tokens_never_occur_and_begin_suppressed_ones_not_first(nano, speech):
    batch = nano.collate([nano.features(speech(2.0))], language="ko")
    free = nano.transcribe(nano.model, batch, max_new_tokens=3)[0].tokens
    with torch.no_grad():
        states, mask = nano.encode(nano.model, batch)
        prompts = [nano.prefix_ids("ko")]
        never = search(nano.model, states, mask, prompts, [8], DecodingRules(256, (*nano.rules.suppress, free[0]), ()))[
            0
        ]
        later = search(nano.model, states, mask, prompts, [8], DecodingRules(256, nano.rules.suppress, (free[0],)))[0]
    assert free[0] not in never.tokens
    assert free[0] != later.tokens[0]
    assert all(token < 256 for token in free)


@pytest.mark.parametrize(
    ("tokens", "kept"),
    [
        ([], None),
        ([1, 2, 3, 4], None),
        ([5] * 3, None),  # "no no no" is speech
        ([5] * 8, 1),
        ([1, 2] + [5] * 8, 3),
        ([1, 2] * 3, None),  # six tokens in all
        ([9] + [1, 2] * 4, 3),
        ([9, 8] + [1, 2, 3] * 3, 5),
        ([1, 2, 3] * 2 + [1, 2], None),
        (list(range(16)) * 3, 16),
        (list(range(17)) * 3, None),  # longer than what is looked for
        ([1, 2, 3] * 3 + [4], None),  # it went on
    ],
)
def test_a_loop_is_an_ngram_said_three_times_over_eight_tokens(tokens, kept):
    assert loop_length(tokens) == kept


def test_the_guard_stops_a_looping_row_and_keeps_one_copy(nano, speech):
    batch = nano.collate([nano.features(speech(8.0))], language="ko")
    only = 65
    rules = DecodingRules(256, tuple(token for token in range(300) if token != only), ())
    with torch.no_grad():
        states, mask = nano.encode(nano.model, batch)
        prompts = [nano.prefix_ids("ko")]
        for found in (
            search(nano.model, states, mask, prompts, [100], rules)[0],
            search(nano.model, states, mask, prompts, [100], rules, beams=3)[0],
        ):
            assert (found.tokens, found.reason) == ((only,), "loop")


def test_a_row_may_produce_what_its_seconds_can_hold(nano):
    assert [token_limit(frames, 4, 448, None) for frames in (100, 3000)] == [36, 444]
    assert [token_limit(frames, 4, 448, 20) for frames in (100, 3000)] == [20, 20]


def test_the_number_of_rows_stays_the_same_while_some_are_finished(nano, speech):
    """Adapters of several people in one batch rely on it: row i is person i from the first token to the last."""
    model = get_peft_model(nano.new_model(), LoraConfig(r=2, target_modules=["q_proj"]))
    seen = []
    layer = forward.unwrap(model).model.decoder.layers[0].self_attn.q_proj
    handle = layer.register_forward_hook(lambda module, inputs, output: seen.append(output.shape[0]))
    batch = nano.collate([nano.features(speech(0.3)), nano.features(speech(2.0))], language="ko")
    nano.transcribe(model, batch)
    assert set(seen) == {2}
    seen.clear()
    nano.transcribe(model, batch, beams=3, max_new_tokens=5)
    assert seen[0] == 2  # the prompts, once for all beams of an utterance
    assert set(seen[1:]) == {6}
    handle.remove()


def test_speech_is_made_keys_and_values_once_though_a_language_is_found_first(nano, speech):
    batch = nano.collate([nano.features(speech(seconds, seed)) for seed, seconds in enumerate((2.0, 1.4))])
    model, calls = nano.new_model(), []
    model.model.decoder.layers[0].encoder_attn.k_proj.register_forward_hook(lambda *_: calls.append(1))
    with torch.no_grad():
        states, mask = nano.encode(model, batch)
        special = nano.tokenizer.special
        found = decoding.detect_languages(model, states, mask, special.start, [*special.languages.values()])
        prompts = [next(p for code in nano.languages if (p := nano.prefix_ids(code))[1] == token) for token in found]
        slow = search(model, states, mask, prompts, [12, 12], nano.rules)
    assert len(calls) == 2
    calls.clear()
    fast = nano.transcribe(model, batch, max_new_tokens=12)
    assert len(calls) == 1
    assert fast == slow


def test_without_a_language_each_row_gets_its_most_probable_one(nano, speech):
    rows = [nano.features(speech(2.0, seed)) for seed in range(3)]
    batch = nano.collate(rows)
    candidates = ("ko", "en", "ja")
    special = nano.tokenizer.special
    with torch.no_grad():
        states, mask = nano.encode(nano.model, batch)
        ids = torch.full((3, 1), special.start)
        logits = nano.model.proj_out(forward.decode(nano.model, ids, states, mask))[:, 0]
        best = [
            max(candidates, key=lambda code, row=row: logits[row, special.languages[code]].item()) for row in range(3)
        ]
    expected = [
        nano.transcribe(nano.model, nano.collate([row], language=code), max_new_tokens=6)[0].tokens
        for row, code in zip(rows, best, strict=True)
    ]
    found = nano.transcribe(nano.model, batch, languages=candidates, max_new_tokens=6)
    assert [hypothesis.tokens for hypothesis in found] == expected
    assert nano.generate(nano.model, nano.collate(rows, language="auto"), max_new_tokens=3) == nano.generate(
        nano.model, batch, max_new_tokens=3
    )


@pytest.mark.slow
def test_greedy_is_transformers_greedy_on_whisper_base(speech):
    base = load_base("whisper-base")
    batch = base.collate([base.features(speech(3.0, seed)) for seed in range(2)], language="en")
    found = base.transcribe(base.model, batch, max_new_tokens=12)
    for hypothesis, expected in zip(found, reference_generate(base, batch), strict=True):
        assert hypothesis.tokens == expected[: len(hypothesis.tokens)]
