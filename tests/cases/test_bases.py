"""Bases as they lie on people's disks, and the fields of a request that concern the decoder itself."""

from contextlib import contextmanager
from io import BytesIO

import numpy as np
import pytest
import soundfile
import torch
from starlette.testclient import TestClient

from fl.bases.resolve import load_base, load_speech_base
from fl.bases.whisper import decoding
from fl.core.errors import BaseModelError
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


@pytest.mark.parametrize("name", ["random:whisper-nano", pytest.param("whisper-base", marks=pytest.mark.slow)])
@pytest.mark.parametrize("prompt", [PROMPT, "그러니까 meeting은 " * 60], ids=["short", "over the limit"])
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


@pytest.mark.case("bases", "CTC, with a prompt", "answer", "refused: it has no decoder")
def test_ctc_takes_no_prompt():
    base = load_speech_base("random:wav2vec2-nano")
    batch = base.collate([base.features(speech())])
    with pytest.raises(BaseModelError, match="takes no prompt"):
        base.generate(base.model, batch, prompt=PROMPT)
