"""A device and its server: who sends what when, and what a device believes."""

import base64
import json
import re

import numpy as np
import pytest

from benchmarks.stub_server import HANG_UP, TEXT, Reply, events, problem
from clients.device.adapt import AdaptOptions
from clients.device.audio import encode_file
from clients.device.labelled import read_labelled
from clients.device.messages import RefusedError, UnreachableError
from fl.core.errors import AdapterError, AdapterMismatchError, ConfigError, ManifestError, StoreError
from fl.packed.blob import pack, unpack

POST, PUT = "POST /v1/audio/transcriptions", "PUT /v1/adapters"


@pytest.fixture
def upload(wav):
    return encode_file(wav)


def test_without_an_adapter_only_speech_is_sent_and_no_name_of_a_file(server, client, upload):
    assert client.transcribe(upload, language="ko").text == TEXT
    (request,) = server.requests
    assert request.form.keys() == {"file", "language", "response_format"}
    assert request.form["file"] == [upload.content]
    assert "김민수" not in json.dumps(list(request.headers.items()), ensure_ascii=False)


def test_the_adapter_is_sent_once_and_its_handle_from_then_on(server, client, upload, make_adapter, make_client):
    client.store.set(make_adapter())
    client.transcribe(upload)
    client.transcribe(upload)
    make_client().transcribe(upload)  # another process of the same device
    assert server.paths() == [PUT, POST, POST, POST]
    assert server.requests[0].body == make_adapter()
    assert all("adapter" not in request.form for request in server.requests)
    assert {request.text("adapter_handle") for request in server.requests[1:]} == set(server.handles)


def test_an_adapter_that_the_server_lost_is_put_again(server, client, upload, make_adapter):
    client.store.set(make_adapter())
    client.transcribe(upload)
    server.handles.clear()
    assert client.transcribe(upload).text == TEXT
    assert server.paths() == [PUT, POST, POST, PUT, POST]


def test_the_same_key_never_goes_with_another_body(server, client, upload, make_adapter):
    client.store.set(make_adapter())
    client.transcribe(upload)
    server.handles.clear()
    client.transcribe(upload, key="k")
    refused, again = server.requests[2], server.requests[4]
    assert refused.headers["Idempotency-Key"] == "k"
    assert again.headers["Idempotency-Key"] == "k-put"


def test_a_server_that_drops_every_handle_gets_the_adapter_with_the_request(server, client, upload, make_adapter):
    client.store.set(make_adapter())

    def forget(request):
        server.script.append(problem(404, "unknown-handle"))
        return Reply(body=b'{"handle": "h", "expires_in": 60, "bytes": 1}')

    server.script.append(forget)
    assert client.transcribe(upload).text == TEXT
    assert server.paths() == [PUT, POST, POST]
    assert server.requests[-1].form["adapter"] == [make_adapter()]


def test_a_server_without_handles_gets_the_adapter_with_the_request(server, client, upload, make_adapter):
    server.keeps_handles = False
    client.store.set(make_adapter())
    client.transcribe(upload)
    assert server.paths() == [PUT, POST]
    assert server.requests[-1].form["adapter"] == [make_adapter()]


def test_a_device_that_wants_no_handle_never_puts_its_adapter(server, make_client, upload, make_adapter):
    client = make_client(handles=False)
    client.store.set(make_adapter())
    client.transcribe(upload)
    client.transcribe(upload)
    assert server.paths() == [POST, POST]
    assert all(request.form["adapter"] == [make_adapter()] for request in server.requests)


def test_a_new_adapter_is_not_served_by_the_old_ones_handle(server, client, upload, make_adapter):
    client.store.set(make_adapter())
    client.transcribe(upload)
    client.store.set(make_adapter(seed=1))
    client.transcribe(upload)
    assert server.paths() == [PUT, POST, PUT, POST]
    assert server.handles[server.requests[-1].text("adapter_handle")] == make_adapter(seed=1)


def test_an_adapter_that_the_server_refuses_is_not_sent_in_another_way(server, client, upload, make_adapter):
    client.store.set(make_adapter())
    server.script.append(problem(422, "adapter-mismatch", "made for base 'whisper-base'"))
    with pytest.raises(RefusedError, match="made for base"):
        client.transcribe(upload)
    assert server.paths() == [PUT]
    assert client.store.load() == make_adapter()


@pytest.mark.parametrize("answer", [b"{}", b'{"handle": 5}', b'{"handle": ""}', b'{"handle": "a\\nb"}'])
def test_an_answer_without_a_handle_is_refused(server, client, upload, make_adapter, answer):
    client.store.set(make_adapter())
    server.script.append(Reply(body=answer))
    with pytest.raises(RefusedError, match="no handle"):
        client.transcribe(upload)


def test_the_base_alone_can_be_asked(server, client, upload, make_adapter):
    client.store.set(make_adapter())
    client.transcribe(upload, adapted=False)
    assert server.paths() == [POST]
    assert server.requests[0].form.keys() == {"file", "response_format"}


@pytest.mark.parametrize("kind", ["json", "verbose_json", "text", "srt", "vtt"])
def test_every_format_comes_as_the_server_wrote_it(server, client, upload, kind):
    found = client.transcribe(upload, response_format=kind)
    assert server.requests[0].text("response_format") == kind
    assert found.text == TEXT
    assert json.loads(found.answer) == {"text": TEXT} if kind.endswith("json") else found.answer == TEXT + "\n"


def test_an_impossible_request_is_refused_before_it_is_sent(server, client, upload):
    with pytest.raises(ConfigError, match="'pdf' is not known"):
        client.transcribe(upload, response_format="pdf")
    with pytest.raises(ConfigError, match="cannot be streamed"):
        client.transcribe(upload, response_format="srt", on_text=print)
    assert server.requests == []


# Streaming


def delta(text):
    return {"type": "transcript.text.delta", "delta": text}


def done(text):
    return {"type": "transcript.text.done", "text": text}


def test_partial_texts_come_as_they_grow(server, client, upload):
    seen = []
    assert client.transcribe(upload, on_text=seen.append).text == TEXT
    assert server.requests[0].text("stream") == "true"
    assert seen == [TEXT[: len(part)] for part in seen]
    assert len(seen) == 6


def test_the_last_event_is_right_where_it_differs(server, client, upload):
    server.script.append(events(delta("I here"), done("I hear")))
    assert client.transcribe(upload, on_text=lambda _: None).text == "I hear"


def test_a_stream_that_ends_early_is_asked_for_again(server, client, upload, waits):
    whole = events(delta("one"), delta(" two"), done("one two"))
    server.script.extend([events(delta("one")), Reply(body=whole.body, content_type=whole.content_type, cut=60), whole])
    seen = []
    assert client.transcribe(upload, on_text=seen.append).text == "one two"
    assert len(server.requests) == 3
    assert len({request.headers["Idempotency-Key"] for request in server.requests}) == 1
    assert seen[-2:] == ["one", "one two"]


def test_a_problem_in_the_middle_of_a_stream_is_that_problem(server, client, upload):
    trouble = {"type": "error", "error": {"message": "x"}}
    late = {**trouble, "problem": {"type": "/problems/deadline", "status": 408, "detail": "not done in time"}}
    bad = {**trouble, "problem": {"type": "/problems/unusable-adapter", "status": 422, "detail": "not finite"}}
    server.script.extend([events(delta("one"), late), events(delta("one"), done("one"))])
    assert client.transcribe(upload, on_text=lambda _: None).text == "one"
    server.script.append(events(delta("one"), bad))
    with pytest.raises(RefusedError, match="not finite"):
        client.transcribe(upload, on_text=lambda _: None)


@pytest.mark.parametrize("body", [b"data: no json\n\n", b"data: [1]\n\n", b"data: {}\n\n", b"\n\n", b"x" * 1000])
def test_events_that_are_none_end_in_a_typed_error(server, client, upload, body):
    server.script.extend([Reply(body=body, content_type="text/event-stream")] * 3)
    with pytest.raises((RefusedError, UnreachableError)):
        client.transcribe(upload, on_text=lambda _: None)


# Training at the server


@pytest.fixture
def labelled(upload):
    return [(upload, "오늘 meeting 은"), (upload, 'say "hi"')]


def test_adapting_sends_speech_texts_and_adapter_and_stores_what_comes_back(server, client, labelled, make_adapter):
    client.store.set(make_adapter())
    info, report = client.enrol(labelled, AdaptOptions(keep=True, seed=3))
    (request,) = server.requests
    assert request.path == "/v1/adapt"
    assert request.form["adapter"] == [make_adapter()]
    assert request.form["audio"] == [labelled[0][0].content] * 2
    assert json.loads(request.text("texts")) == ["오늘 meeting 은", 'say "hi"']
    sent = {name: request.text(name) for name in request.form if name not in ("adapter", "audio", "texts")}
    assert sent == {"keep": "True", "seed": "3"}
    before, after = unpack(make_adapter())[0], unpack(client.store.load())[0]
    assert all(np.allclose(after[n], (0.5 if n.endswith("_B") else 1) * before[n], atol=1e-3) for n in before)
    assert (info.dtype, info.split, report["steps"]) == ("float16", "fedsa", 3)


def test_what_the_server_did_not_keep_leaves_the_stored_adapter(server, client, labelled, make_adapter):
    client.store.set(make_adapter())
    sentence = {"name": "1", "said": "a", "before": "a", "after": "b", "errors": [0, 1], "tokens": 1}
    server.script.append(Reply(body=json.dumps({"kept": False, "unseen": [sentence], "steps": 0}).encode()))
    info, report = client.enrol(labelled, AdaptOptions())
    assert (info.split, report["kept"], report["unseen"][0]["errors"]) == ("gates", False, [0, 1])
    assert client.store.load() == make_adapter()


@pytest.mark.parametrize("sentences", [5, [{}], [{"name": "x"}], [None]])
def test_sentences_that_are_none_are_refused_and_the_old_adapter_stays(
    server, client, labelled, make_adapter, sentences
):
    client.store.set(make_adapter())
    server.script.append(Reply(body=json.dumps({"kept": False, "unseen": sentences}).encode()))
    with pytest.raises(RefusedError, match="what became of the sentences"):
        client.enrol(labelled, AdaptOptions())


def test_what_changed_must_be_private_in_what_comes_back(server, client, labelled, make_adapter):
    """A server may change a private part alone, or say that what it changed is one."""
    client.store.set(make_adapter())
    tensors, _ = unpack(make_adapter())
    for changed, split, taken in (("_bias", "gates", True), ("_A", "fedsa", False), ("_A", "all-private", True)):
        values = {name: v * 2 if name.endswith(changed) else v for name, v in tensors.items()}
        new = repacked(make_adapter(), values, split=split)
        server.script.append(Reply(body=json.dumps({"adapter": base64.b64encode(new).decode()}).encode()))
        client.store.set(make_adapter())
        if taken:
            client.enrol(labelled, AdaptOptions())
            assert client.store.load() == new
        else:
            with pytest.raises(AdapterMismatchError, match="not private"):
                client.enrol(labelled, AdaptOptions())
            assert client.store.load() == make_adapter()


def repacked(data, values=None, **changes):
    tensors, info = unpack(data)
    return pack(values or tensors, type(info)(**{**info.__dict__, **changes}))


@pytest.mark.parametrize(
    "change",
    [
        {"base_fingerprint": "whisper:768"},
        {"base_name": "other"},
        {"split": "all-shared"},
        {"window": "full"},
        {"tokenizer": "ab" * 32},
        {"config": {"r": 2, "gate": "none"}},
    ],
    ids=lambda change: next(iter(change)),
)
def test_another_adapter_than_the_one_that_was_sent_is_not_stored(server, client, labelled, make_adapter, change):
    client.store.set(make_adapter())
    new = repacked(make_adapter(seed=1), **change)
    server.script.append(Reply(body=json.dumps({"adapter": base64.b64encode(new).decode()}).encode()))
    with pytest.raises(AdapterMismatchError, match=f"another {next(iter(change))}.*kept"):
        client.enrol(labelled, AdaptOptions())
    assert client.store.load() == make_adapter()


def test_other_tensors_than_those_that_were_sent_are_not_stored(server, client, labelled, make_adapter):
    client.store.set(make_adapter())
    new = make_adapter(width=7)
    server.script.append(Reply(body=json.dumps({"adapter": base64.b64encode(new).decode()}).encode()))
    with pytest.raises(AdapterMismatchError, match="other tensors"):
        client.enrol(labelled, AdaptOptions())
    assert client.store.load() == make_adapter()


@pytest.mark.parametrize("coded", [None, 5, "", "***", base64.b64encode(b"not an adapter" * 9).decode()])
def test_an_answer_without_a_sound_adapter_changes_nothing(server, client, labelled, make_adapter, coded):
    client.store.set(make_adapter())
    server.script.append(Reply(body=json.dumps({"adapter": coded}).encode()))
    with pytest.raises((RefusedError, AdapterError)):
        client.enrol(labelled, AdaptOptions())
    assert client.store.load() == make_adapter()


def test_a_trained_adapter_beyond_the_budget_is_refused_before_it_replaces_the_old_one(
    server, make_client, labelled, make_adapter
):
    adapter = make_adapter()
    client = make_client(budget_bytes=len(adapter) + 10)
    client.store.set(adapter)
    new = repacked(adapter, dtype="float32")
    assert len(new) > len(adapter) + 10
    server.script.append(Reply(body=json.dumps({"adapter": base64.b64encode(new).decode()}).encode()))
    with pytest.raises(Exception, match="old one is kept"):
        client.enrol(labelled, AdaptOptions())
    assert client.store.load() == adapter


def test_without_an_adapter_there_is_nothing_to_train(server, client, labelled):
    with pytest.raises(StoreError, match="adapter set FILE"):
        client.enrol(labelled, AdaptOptions())
    assert server.requests == []


def test_a_training_that_breaks_off_is_asked_for_again_with_the_same_key(server, client, labelled, make_adapter, waits):
    client.store.set(make_adapter())
    server.script.append(HANG_UP)
    client.enrol(labelled, AdaptOptions())
    assert len({request.headers["Idempotency-Key"] for request in server.requests}) == 1
    assert len(server.requests) == 2


def test_labelled_speech_is_a_folder_of_pairs_or_a_manifest(tmp_path, wav):
    folder = tmp_path / "labelled"
    folder.mkdir()
    for name in ("b", "a"):
        (folder / f"{name}.wav").write_bytes(wav.read_bytes())
        (folder / f"{name}.txt").write_text(f"text of {name}\n")
    assert [text for _, text in read_labelled(folder).utterances] == ["text of a", "text of b"]
    lines = [{"audio": "b.wav", "text": "둘", "speaker": "x"}, {"audio": "a.wav", "text": "하나"}]
    (folder / "manifest.jsonl").write_text("\n".join(map(json.dumps, lines)) + "\n\n")
    for source in (folder, folder / "manifest.jsonl"):
        assert [text for _, text in read_labelled(source).utterances] == ["둘", "하나"]


@pytest.mark.parametrize(
    ("line", "match"),
    [
        ("no json", r"manifest\.jsonl:2"),
        ('{"audio": "a.wav"}', r"manifest\.jsonl:2.*text"),
        ('{"audio": 5, "text": "x"}', r"manifest\.jsonl:2"),
        ('{"audio": "a.wav", "text": "x", "start": 1.0}', "files of their own"),
        ("[" * 100_000, r"manifest\.jsonl:2"),
    ],
)
def test_a_line_that_cannot_be_used_is_named(tmp_path, wav, line, match):
    (tmp_path / "manifest.jsonl").write_text(json.dumps({"audio": wav.name, "text": "x"}) + "\n" + line)
    found = read_labelled(tmp_path)
    assert [text for _, text in found.utterances] == ["x"]
    assert re.search(match, *found.remarks())


def test_without_any_utterance_each_file_is_named(tmp_path, wav):
    with pytest.raises(ManifestError, match=rf"1 left out: {wav.name} \(no text beside it"):
        read_labelled(tmp_path)
    (tmp_path / "manifest.jsonl").write_text('{"audio": "gone.wav", "text": "x"}')
    with pytest.raises(ManifestError, match=r"manifest\.jsonl:1 \(no such audio file"):
        read_labelled(tmp_path)
    for empty in (tmp_path / "empty", tmp_path / "nowhere"):
        if empty.name == "empty":
            empty.mkdir()
        with pytest.raises(ManifestError):
            read_labelled(empty)
