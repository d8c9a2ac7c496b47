"""A device that cannot hold the base is enrolled: B of the decoder moves and nothing else, and only what helps comes back."""

import base64
import io
import json
import threading
import time

import numpy as np
import pytest
import soundfile
import torch
from starlette.testclient import TestClient

from clients.training.enrol_method import DEFAULT
from clients.training.person import enrol_person
from clients.training.private_part import Adapter
from fl.adapters.config import GatedLoraConfig, target_pattern
from fl.adapters.directions import NAME, save_directions, stored_directions
from fl.adapters.files import AdapterInfo, save_adapter
from fl.adapters.split import make_split
from fl.bases.whisper import forward
from fl.core.errors import AdapterError, IdiolectError
from fl.packed.blob import read_info, unpack
from fl.serving.engine.adapters import admit
from fl.serving.http.adapt import AdaptResult
from fl.serving.http.auth import TokenFile
from fl.tasks.speech.own import OwnSpeech
from sim.cli.serve import enrolling

PATH, URL = "/v1/adapt", "http://127.0.0.1"
TEXTS = ["오늘 meeting 있어요", "yes"]


def send(client, adapter, recordings, texts=TEXTS, *, headers=None, **fields):
    """What comes back whether it helps or not, unless ``fields`` say otherwise."""
    files = [("adapter", ("a.safetensors", adapter)), *[("audio", ("x.flac", audio)) for audio in recordings]]
    data = {"texts": texts if isinstance(texts, str) else json.dumps(texts), "keep": "true", **fields}
    return client.post(PATH, files=files, data=data, headers=headers)


@pytest.fixture
def audio(recording):
    return [recording(1.0, seed=1), recording(0.7, seed=2)]


@pytest.fixture
def trained(make_app, base):
    """A client of a server that really trains."""
    with TestClient(make_app(adapt=enrolling(base)), base_url=URL) as client:
        yield client


def moved(before, after):
    old, new = unpack(before)[0], unpack(after)[0]
    assert old.keys() == new.keys()
    return {name for name in old if not np.array_equal(old[name], new[name])}


def result_of(answer, before):
    """The tensors that moved, and the document."""
    assert answer.status_code == 200, answer.text
    found = answer.json()
    return moved(before, base64.b64decode(found["adapter"])), found


@pytest.mark.parametrize("dtype", ["float32", "float16", "int8"])
def test_b_of_the_decoder_is_enrolled_and_all_else_comes_back_bit_for_bit(trained, packed, audio, dtype):
    data = packed(dtype=dtype)
    changed, found = result_of(send(trained, data, [*audio, audio[0]], [*TEXTS, TEXTS[0]]), data)
    trained_part = {name for name in unpack(data)[0] if "decoder" in name and name.endswith("_B")}
    assert changed <= set(found["private"]) == trained_part
    assert (found["split"], found["dtype"], found["kept"]) == ("fedsa", dtype, True)
    assert trained_part <= {*make_split("fedsa", unpack(data)[0]).private}
    assert len(base64.b64decode(found["adapter"])) == found["bytes"]


def test_it_is_what_idiolect_enrol_does(trained, base, packed, audio, recording, monkeypatch):
    """The same method, folds, steps and transcripts as the command gives on the same recordings."""
    data = packed(dtype="float32")
    texts = [*TEXTS, TEXTS[0], TEXTS[1]]
    audio = [*audio, recording(0.9, seed=3), recording(1.1, seed=4)]
    _, found = result_of(send(trained, data, audio, texts, seed="3"), data)
    adapter = admit(data, base)
    waves = [soundfile.read(io.BytesIO(one), dtype="float32")[0] for one in audio]
    speech = OwnSpeech(
        base,
        [(str(i), wave, text) for i, (wave, text) in enumerate(zip(waves, texts, strict=True))],
        window="trimmed",
        language="ko",
        targets=adapter.info.config.target_modules,
    )
    encoded, stem = [], forward._stem
    monkeypatch.setattr(forward, "_stem", lambda e, x, real: encoded.append(len(x)) or stem(e, x, real))
    by_hand = enrol_person(speech, Adapter(adapter.slot, adapter.tensors), DEFAULT, metric="mer", seed=3)
    assert sum(encoded) == len(texts)  # each once, for training and for both transcripts
    assert found["steps"] == by_hand.enrolment.steps
    assert {int(k): v for k, v in found["losses"].items()} == pytest.approx(by_hand.enrolment.curve, rel=1e-4)
    assert sorted(one["name"] for one in found["unseen"]) == ["0", "1", "2", "3"]
    assert [one["after"] for one in found["unseen"]] == [one.after for one in by_hand.left_out]


def test_who_comes_with_the_shared_adapter_of_the_server_is_drawn_to_its_directions(
    make_app, base, packed, audio, tmp_path, monkeypatch
):
    """In whatever precision it comes; an adapter of another run is not."""
    tensors, info = unpack(packed(dtype="float32"))
    state = {name: torch.from_numpy(values) for name, values in tensors.items()}
    config = GatedLoraConfig(**{key: info.config[key] for key in ("r", "lora_alpha", "gate", "target_modules")})
    save_adapter(tmp_path, state, AdapterInfo(info.base_name, base.fingerprint, info.split, config))
    with pytest.raises(AdapterError, match=NAME):
        enrolling(base, tmp_path)
    names = [name for name in state if "decoder" in name and name.endswith("_B")]
    save_directions(
        tmp_path, stored_directions({name: np.eye(2, state[name].numel(), dtype=np.float32) for name in names})
    )
    given = []

    def spied(task, shared, method, **rest):
        given.append(sorted(shared.directions))
        return enrol_person(task, shared, method, **rest)

    monkeypatch.setattr("sim.cli.serve.enrol_person", spied)
    with TestClient(make_app(adapt=enrolling(base, tmp_path)), base_url=URL) as client:
        for data in (packed(dtype="int8"), packed(seed=9)):
            assert send(client, data, audio).status_code == 200
    assert given == [sorted(names), []]


def test_what_makes_left_out_sentences_worse_is_not_sent_unless_it_is_wanted(make_app, packed, audio):
    def worse(job):
        return AdaptResult(job.adapter.tensors, (), False, {"steps": 3, "unseen": []})

    with TestClient(make_app(adapt=worse), base_url=URL) as client:
        found = send(client, packed(), audio, keep="false").json()
        assert (found["kept"], "adapter" in found) == (False, False)
        assert send(client, packed(), audio, keep="true").json()["adapter"]


def test_an_adapter_that_is_wholly_private_says_so_after_enrolment_too(trained, packed, audio):
    data = packed(gate="none", split="all-private", dtype="float32")
    assert send(trained, data, audio).json()["split"] == "all-private"


def test_of_an_adapter_without_a_decoder_b_of_the_encoder_is_trained(trained, packed, audio, base, monkeypatch):
    monkeypatch.setattr("clients.training.enrol.MARGIN", 0.0)  # of random weights no loss falls by much
    sites = target_pattern(("encoder.self",))
    data = packed(
        config={"target_modules": sites},
        change=lambda tensors: [tensors.pop(name) for name in list(tensors) if "encoder.layers" not in name],
    )
    answer = send(trained, data, audio)
    assert answer.status_code == 200, answer.text
    changed = moved(data, base64.b64decode(answer.json()["adapter"]))
    assert changed == {name for name in unpack(data)[0] if name.endswith("_B")}


def test_the_same_request_gives_the_same_bytes_and_serving_goes_on_with_the_same_base(trained, base, packed, audio):
    before = {name: tensor.clone() for name, tensor in base.model.state_dict().items()}
    first, second = (send(trained, packed(), audio, seed="7").json()["adapter"] for _ in range(2))
    assert first == second
    assert all(torch.equal(before[name], tensor) for name, tensor in base.model.state_dict().items())
    assert not any("gated_lora" in name for name, _ in base.model.named_parameters())


def test_the_answer_is_as_precise_as_what_was_sent_unless_asked_otherwise(trained, packed, audio):
    assert send(trained, packed(dtype="float16"), audio).json()["dtype"] == "float16"
    found = send(trained, packed(dtype="float16"), audio, dtype="int8").json()
    assert unpack(base64.b64decode(found["adapter"]))[1].dtype == "int8"


# Bad input


@pytest.mark.parametrize(
    ("texts", "fields", "slug", "reason"),
    [
        ("not json", {}, "invalid-field", "texts"),
        ("[" * 100_000, {}, "invalid-field", "texts"),
        ('{"a": 1}', {}, "invalid-field", "texts"),
        ([1, 2], {}, "invalid-field", "texts"),
        (["one"], {}, "invalid-field", "2 files for 1 texts"),
        (["one", "two", "three"], {}, "invalid-field", "2 files for 3 texts"),
        (["one", "x" * 2_000], {}, "invalid-field", "1000 characters"),
        (["one", " "], {}, "unusable-text", r"texts[1]"),
        (["one", "two\u0000"], {}, "unusable-text", r"texts[1]"),
        (["one", "word " * 199], {}, "unusable-text", r"texts[1]: a text of 996 tokens"),
        (TEXTS, {"keep": "perhaps"}, "invalid-field", "keep"),
        (TEXTS, {"seed": "-1"}, "invalid-field", "seed"),
        (TEXTS, {"language": "klingon"}, "invalid-field", "language"),
        (TEXTS, {"dtype": "int4"}, "invalid-field", "dtype"),
    ],
)
def test_what_cannot_be_learned_from_is_named(trained, packed, audio, texts, fields, slug, reason):
    answer = send(trained, packed(), audio, texts, **fields)
    assert answer.status_code == 422, answer.text
    assert answer.json()["type"] == f"/problems/{slug}"
    assert reason in answer.json()["detail"]


def test_an_adapter_that_cannot_be_trained_is_refused(trained, packed, audio):
    for change, slug in (
        ({"base_fingerprint": "whisper:1x1+1:0"}, "adapter-mismatch"),
        ({"split": "layers:(a+)+$"}, "unusable-adapter"),
        ({"split": "layers:[unclosed"}, "unusable-adapter"),
        ({"split": "everything"}, "unusable-adapter"),
        ({"language": ""}, "invalid-field"),
    ):
        answer = send(trained, packed(**change), audio)
        assert (answer.status_code, answer.json()["type"]) == (422, f"/problems/{slug}"), change
    answer = send(trained, packed(language=""), audio, language="ko-KR")
    assert answer.status_code == 200
    assert read_info(base64.b64decode(answer.json()["adapter"])).language == "ko"
    assert send(trained, packed(split=r"layers:encoder\.layers\.0"), audio).status_code == 200


def test_audio_that_is_none_is_named_by_its_number_and_all_of_it_is_bounded(make_app, base, packed, recording):
    with TestClient(make_app(adapt=enrolling(base), max_train_seconds=3, max_utterances=2), base_url=URL) as client:
        answer = send(client, packed(), [recording(), b"no audio"])
        assert (answer.status_code, answer.json()["type"]) == (422, "/problems/unusable-audio")
        assert answer.json()["detail"].startswith("audio[1]: ")
        answer = send(client, packed(), [recording(2.0), recording(2.0)])
        assert (answer.status_code, answer.json()["type"]) == (413, "/problems/audio-too-long")
        assert answer.json()["detail"].startswith(
            "audio: at most 3 s of audio in all are taken"
        )  # no single one is at fault
        answer = send(client, packed(), [recording()] * 3, ["a", "b", "c"])
        assert answer.status_code in (400, 422)


def test_training_that_diverges_is_the_senders_and_gives_no_adapter(trained, packed, audio):
    def explode(tensors):
        for tensor in tensors.values():
            tensor[:] = 60_000.0

    answer = send(trained, packed(change=explode, dtype="float32", config={"lora_alpha": 9e18}), audio)
    assert answer.status_code == 422
    assert answer.json()["type"] == "/problems/unusable-adapter"
    assert "diverged" in answer.json()["detail"]


def test_without_a_trainer_there_is_no_such_route(client, packed, audio):
    assert send(client, packed(), audio).status_code == 404


# One at a time


class BlockedTrainer:
    """A trainer that waits until it is let go, and notes who was in it together."""

    def __init__(self):
        self.go, self.inside, self.most, self.entered, self.stopped = threading.Event(), 0, 0, threading.Semaphore(0), 0
        self.lock = threading.Lock()

    def __call__(self, job):
        with self.lock:
            self.inside += 1
            self.most = max(self.most, self.inside)
        self.entered.release()
        try:
            while not self.go.wait(0.005):
                job.check()
        except IdiolectError:
            self.stopped += 1
            raise
        finally:
            with self.lock:
                self.inside -= 1
        return AdaptResult(job.adapter.tensors, (), True, {})


def test_one_adapter_is_trained_at_a_time_and_only_so_many_wait(make_app, packed, audio):
    slow, statuses = BlockedTrainer(), []
    with TestClient(make_app(adapt=slow, adapts_waiting=1), base_url=URL) as client:
        threads = [
            threading.Thread(target=lambda: statuses.append(send(client, packed(), audio).status_code))
            for _ in range(2)
        ]
        threads[0].start()
        slow.entered.acquire()
        threads[1].start()
        while len(client.app.state.adapts.jobs) < 2:
            time.sleep(0.001)
        answer = send(client, packed(), audio)
        slow.go.set()
        for thread in threads:
            thread.join()
    assert answer.status_code == 429
    assert int(answer.headers["retry-after"]) >= 1
    assert statuses == [200, 200]
    assert slow.most == 1


def test_one_token_cannot_hold_all_places(make_app, people, packed, audio):
    slow, statuses = BlockedTrainer(), []
    with TestClient(make_app(TokenFile(people.path), adapt=slow), base_url=URL) as client:
        ann, bob = people.header(people.ann), people.header(people.bob)

        def train(headers):
            statuses.append(send(client, packed(), audio, headers=headers).status_code)

        threads = [threading.Thread(target=train, args=(headers,)) for headers in (ann, bob)]
        threads[0].start()
        slow.entered.acquire()
        refused = send(client, packed(), audio, headers=ann)
        threads[1].start()
        while len(client.app.state.adapts.jobs) < 2:
            time.sleep(0.001)
        slow.go.set()
        for thread in threads:
            thread.join()
        assert send(client, packed(), audio, headers=ann).status_code == 200
    assert (refused.status_code, refused.json()["type"]) == (429, "/problems/busy")
    assert "of this token" in refused.json()["detail"]
    assert statuses == [200, 200]


def test_training_that_takes_too_long_is_stopped_at_a_step(make_app, packed, audio):
    slow = BlockedTrainer()
    with TestClient(make_app(adapt=slow, adapt_seconds=0.02), base_url=URL) as client:
        answer = send(client, packed(), audio)
    assert (answer.status_code, answer.json()["type"]) == (408, "/problems/deadline")
    assert slow.stopped == 1


def test_a_server_that_stops_does_not_wait_for_the_last_step(make_app, packed, audio):
    slow, answers = BlockedTrainer(), []
    with TestClient(make_app(adapt=slow), base_url=URL, raise_server_exceptions=False) as client:
        thread = threading.Thread(target=lambda: answers.append(send(client, packed(), audio)))
        thread.start()
        slow.entered.acquire()
        client.app.state.adapts.close()
        thread.join()
    assert slow.stopped == 1
    assert (answers[0].status_code, answers[0].json()["type"]) == (503, "/problems/closing")


def test_an_answer_that_cannot_be_packed_is_refused_and_not_half_sent(make_app, packed, audio):
    def diverge(job):
        return AdaptResult({n: t * torch.inf for n, t in job.adapter.tensors.items()}, (), True, {})

    with TestClient(make_app(adapt=diverge), base_url=URL) as client:
        answer = send(client, packed(), audio)
    assert (answer.status_code, answer.json()["type"]) == (422, "/problems/unusable-adapter")
