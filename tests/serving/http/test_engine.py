"""The server on the real engine: over HTTP everybody gets what their adapter gives alone, whoever else is in the batch."""

import io
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import pytest
import soundfile
import torch
from peft import get_peft_model
from starlette.testclient import TestClient

from fl.adapters.state import load_state
from fl.serving.engine.adapters import admit
from fl.serving.engine.engine import BatchEngine, EngineSettings
from fl.serving.http.app import create_app
from fl.serving.http.limits import ServerLimits

PATH, URL = "/v1/audio/transcriptions", "http://127.0.0.1"


@contextmanager
def serving(base, **settings):
    engine = BatchEngine(base, EngineSettings(rows=4))
    try:
        with TestClient(create_app(engine, base, ServerLimits(**settings)), base_url=URL) as client:
            yield client
    finally:
        engine.close()


def alone(base, audio, data=None):
    """What one recording gives without a server, a batch or a stack: PEFT's adapter in a model of its own."""
    samples, _ = soundfile.read(io.BytesIO(audio), dtype="float32")
    model, window = base.new_model(), "full"
    if data is not None:
        adapter = admit(data, base)
        model, window = get_peft_model(model, adapter.info.config), "trimmed"
        load_state(model, adapter.tensors)
    with torch.inference_mode():
        batch = base.collate([base.features(samples, window)], None, window, "ko")
        return base.generate(model.eval(), batch)[0]


def ask(client, audio, data=None, **fields):
    files = [("file", ("a.flac", audio))] + ([("adapter", ("a", data))] if data is not None else [])
    return client.post(PATH, files=files, data={"language": "ko", "response_format": "verbose_json", **fields})


@pytest.fixture(scope="module")
def crowd(packed, recording):
    """Recordings of several lengths, each with an adapter of its own gate and rank, and one without."""
    gates = [("self", 2), ("low-rank", 3), ("none", 4), ("hidden", 1), ("cross", 2)]
    people = [
        (recording(0.5 + i / 4, seed=i), packed(gate=g, rank=r, seed=i, scale=0.3)) for i, (g, r) in enumerate(gates)
    ]
    return [*people, (recording(1.1, seed=9), None)]


def test_everybody_in_a_crowd_gets_what_their_adapter_gives_alone(base, crowd):
    expected = [alone(base, audio, data) for audio, data in crowd]
    assert len(set(expected)) > 2
    with serving(base) as client, ThreadPoolExecutor(len(crowd)) as pool:
        answers = list(pool.map(lambda person: ask(client, *person), crowd))
    assert [answer.status_code for answer in answers] == [200] * len(crowd)
    assert [answer.json()["text"] for answer in answers] == expected
    assert all(answer.json()["stages"]["decode"] > 0 for answer in answers)


def test_after_a_request_that_failed_the_next_gets_the_base_and_nobody_elses_adapter(base, crowd, packed):
    audio, _ = crowd[-1]

    def explode(tensors):
        for tensor in tensors.values():
            tensor[:] = 60_000.0

    broken = packed(change=explode, config={"lora_alpha": 9e18})
    with serving(base) as client:
        refused = ask(client, audio, broken)
        assert (refused.status_code, refused.json()["type"]) == (422, "/problems/unusable-adapter")
        assert ask(client, audio).json()["text"] == alone(base, audio)


def test_a_stream_of_the_real_engine_adds_up_to_its_text(base, crowd):
    audio, data = crowd[0]
    with serving(base) as client:
        plain = ask(client, audio, data).json()["text"]
        text = ask(client, audio, data, stream="true").text
    assert text.count("event: transcript.text.done") == 1
    assert plain == alone(base, audio, data)


def test_a_deadline_that_has_passed_is_said(base, crowd):
    audio, data = crowd[0]
    with serving(base, request_seconds=1e-9) as client:
        answer = ask(client, audio, data)
    assert (answer.status_code, answer.json()["type"]) == (408, "/problems/deadline")


def test_beams_and_long_recordings_go_through_the_engine(base, packed, recording):
    with serving(base) as client:
        assert ask(client, recording(0.5), packed(), beams="2").status_code == 200
        found = ask(client, recording(31.0), packed()).json()
    assert len(found["segments"]) == 2
