"""Bases as they lie on people's disks, and the fields of a request that concern the decoder itself."""

import unicodedata
from contextlib import contextmanager
from io import BytesIO
from itertools import pairwise

import numpy as np
import pytest
import soundfile
import soxr
import torch
from starlette.testclient import TestClient
from transformers.generation.utils import GenerateEncoderDecoderOutput

from fl.bases.resolve import load_base, load_speech_base
from fl.bases.whisper import decoding
from fl.bases.whisper.alignment import timed_words, token_times
from fl.core.errors import BaseModelError
from fl.data.synthetic.espeak import Espeak, Voice
from fl.serving.engine.engine import BatchEngine, EngineSettings
from fl.serving.http.app import create_app
from fl.serving.http.limits import ServerLimits
from fl.speech.features import heard_frames

PROMPT = "회의: Flower, LoRA."


def speech(seconds=1.0, seed=0):
    """Noise under a moving envelope."""
    samples = int(seconds * 16_000)
    envelope = 0.1 + np.abs(np.sin(np.arange(samples) / 2_000))
    return (0.1 * np.random.default_rng(seed).normal(size=samples) * envelope).astype(np.float32)


@contextmanager
def serving(base):
    engine = BatchEngine(base, EngineSettings(rows=4))
    try:
        with TestClient(create_app(engine, base, ServerLimits()), base_url="http://127.0.0.1") as client:
            yield client
    finally:
        engine.close()


def ask(client, audio, **fields):
    out = BytesIO()
    soundfile.write(out, audio, 16_000, format="FLAC")
    return client.post(
        "/v1/audio/transcriptions", files={"file": ("a.flac", out.getvalue())}, data={"language": "ko", **fields}
    )


@pytest.fixture(scope="module")
def nano():
    return load_base("random:whisper-nano")


def theirs(base, features, prompt, tokens):
    """What transformers' own ``generate`` finds behind a prompt."""
    special, model = base.tokenizer.special, base.new_model()
    for name, value in {
        "is_multilingual": True,
        "lang_to_id": {f"<|{code}|>": index for code, index in special.languages.items()},
        "task_to_id": {"transcribe": special.transcribe},
        "no_timestamps_token_id": special.no_timestamps,
        "prev_sot_token_id": base.tokenizer.previous,
        "decoder_start_token_id": special.start,
        "eos_token_id": special.end,
        "pad_token_id": special.end,
        "suppress_tokens": list(base.rules.suppress),
        "begin_suppress_tokens": list(base.rules.begin_suppress) or None,
    }.items():
        setattr(model.generation_config, name, value)
    with torch.no_grad():
        found = model.generate(
            torch.from_numpy(features.astype(np.float32))[None],
            prompt_ids=torch.tensor(base.prompt_ids(prompt)),
            language="ko",
            task="transcribe",
            max_new_tokens=tokens,
        )
    return [token for token in found[0].tolist() if token != special.end]


@pytest.mark.parametrize(
    ("name", "prompt"),
    [
        ("random:whisper-nano", PROMPT),
        ("random:whisper-nano", "그러니까 meeting은 " * 60),  # over the limit
        pytest.param("whisper-base", PROMPT, marks=pytest.mark.slow),
    ],
)
def test_a_prompt_is_read_as_transformers_reads_it(name, prompt, monkeypatch):
    monkeypatch.setattr(decoding, "loop_length", lambda tokens: None)  # random weights love to loop
    base, audio = load_base(name), speech()
    features = base.features(audio, "full")
    assert len(base.prompt_ids(prompt)) <= 224
    batch = base.collate([features], None, "full", "ko")
    found = base.transcribe(base.model, batch, max_new_tokens=10, prompt=prompt)[0].tokens
    expected = theirs(base, features, prompt, 10)
    assert list(found) == expected[-len(found) :]
    assert found != base.transcribe(base.model, batch, max_new_tokens=10)[0].tokens


@pytest.mark.case("clients", "`prompt`", "answer", "read before each part, its last 223 tokens; not in the answer")
@pytest.mark.case("clients", "`temperature` 0 to 1", "answer", "taken; decoding is deterministic")
def test_the_server_reads_prompts_and_draws_nothing(nano):
    audio = speech()
    batch = nano.collate([nano.features(audio, "full")], None, "full", "ko")
    options = {"heard": [heard_frames(len(audio))]}
    with serving(nano) as client:
        for prompt in ("", " ", PROMPT):
            answers = [ask(client, audio, prompt=prompt, temperature=heat).json() for heat in ("0", "0.2", "1")]
            assert answers == [{"text": nano.generate(nano.model, batch, prompt=prompt, **options)[0]}] * 3
        assert ask(client, audio).json() == ask(client, audio, prompt="").json() != answers[0]


def attended(base, tokens, states, heard):
    """Token times by transformers' own alignment, from the prefix's last token on, which is where openai/whisper begins."""
    model, prefix = base.new_model(), base.prefix_ids("ko")
    model.set_attn_implementation("eager")
    ids = torch.tensor([[*prefix, *tokens]])
    out = model(encoder_outputs=(states,), decoder_input_ids=ids, output_attentions=True)
    found = GenerateEncoderDecoderOutput(sequences=ids, cross_attentions=(out.cross_attentions,))
    times = model._extract_token_timestamps(
        found, base.alignment_heads, num_frames=2 * heard, num_input_ids=len(prefix) - 1
    )
    return times[0, len(prefix) - 1 : -1].tolist()


@pytest.mark.parametrize("name", ["random:whisper-nano", pytest.param("whisper-base", marks=pytest.mark.slow)])
def test_token_times_are_those_of_transformers(name):
    base = load_base(name)
    assert len(base.alignment_heads) == {"random:whisper-nano": 2, "whisper-base": 8}[name]
    tokens = base.tokenizer.encode("그 meeting은 내일이에요")
    with torch.inference_mode():
        batch = base.collate([base.features(speech(3.0), "full")], None, "full", "ko")
        states, _ = base.encode(base.model, batch)
        found = token_times(base.model, base.alignment_heads, base.prefix_ids("ko"), tokens, states, 150)
        assert found == pytest.approx(attended(base, tokens, states, 150))
    assert len(found) == len(tokens) + 1
    assert len(set(found)) > 1


@pytest.mark.slow
def test_words_end_where_they_were_spoken():
    base, voice, audio, ends = load_base("whisper-base"), Voice("m3", 150), [np.zeros(4_800, np.float32)], []
    for part in ("please send the report", "before", "tomorrow", "evening"):
        sound = soxr.resample(Espeak().render(part, "en-us", voice), 22_050, 16_000) / 2
        loud = np.flatnonzero(np.abs(sound) > 0.005)
        audio += [sound[loud[0] : loud[-1]], np.zeros(9_600, np.float32)]
        ends.append(sum(map(len, audio)) / 16_000 - 0.6)
    with serving(base) as client:
        answer = ask(client, np.concatenate(audio), language="en", response_format="verbose_json").json()
    assert answer["text"] == "Please send a report before tomorrow evening."
    found = {word["word"]: word["end"] for word in answer["words"]}
    assert [found[word] for word in ("report", "before", "tomorrow")] == pytest.approx(ends[:3], abs=0.15)


@pytest.mark.parametrize("text", [" 그 bug는 😀 뭐야", "bug"])
def test_a_word_begins_with_its_first_byte_and_lasts_until_the_next(nano, text):
    tokens = list(text.encode())  # a token each, so that characters lie across tokens
    found = timed_words(nano.tokenizer, tokens, range(len(tokens) + 1))
    assert [word.text for word in found] == text.split()
    starts = [len(text[: text.index(word.text)].encode()) for word in found]
    assert [(word.start, word.end) for word in found] == list(pairwise([*starts, len(tokens)]))
    syllable = "각".encode()
    assert timed_words(nano.tokenizer, unicodedata.normalize("NFD", "각").encode(), range(10))[0].text == "각"
    assert timed_words(nano.tokenizer, syllable[:2], (0, 1, 2))[0].end == 2


@pytest.mark.case("clients", "words of `verbose_json`", "answer", "times by alignment of the decoder's attention")
def test_the_server_finds_the_words_of_each_part_within_it(nano):
    audio = np.concatenate((speech(20.0), np.zeros(16_000, np.float32), speech(12.0, 1)))
    with serving(nano) as client:
        found = ask(client, audio, response_format="verbose_json", beams=2).json()
        assert (
            "words"
            not in ask(
                client, audio[:8_000], response_format="verbose_json", **{"timestamp_granularities[]": "segment"}
            ).json()
        )
    words, segments = list(found["words"]), found["segments"]
    assert len(segments) == 2
    for segment in segments:
        inside = [words.pop(0) for _ in segment["text"].split()]
        times = [time for word in inside for time in (word["start"], word["end"])]
        assert [word["word"] for word in inside] == segment["text"].split()
        assert sorted(times) == times
        assert inside == [] or segment["start"] <= times[0] <= times[-1] <= segment["end"]
    assert not words


@pytest.mark.case("bases", "CTC, with a prompt", "answer", "refused: it has no decoder")
def test_ctc_takes_no_prompt():
    base = load_speech_base("random:wav2vec2-nano")
    batch = base.collate([base.features(speech())])
    with pytest.raises(BaseModelError, match="takes no prompt"):
        base.generate(base.model, batch, prompt=PROMPT)
