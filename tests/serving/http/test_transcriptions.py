"""A recording goes in, a transcript comes out in the format that was asked for, and with the adapter that was brought."""

import io
import json
import threading

import numpy as np
import pytest
import soundfile
from starlette.testclient import TestClient

from fl.serving.engine.requests import BusyError, ClosedError, DeadlineError

PATH = "/v1/audio/transcriptions"


def transcribe(client, audio, *, files=(), headers=None, **fields):
    parts = [("file", ("speech.flac", audio)), *files]
    return client.post(PATH, files=parts, data=fields, headers=headers)


def problem(answer):
    document = answer.json()
    assert answer.headers["content-type"] == "application/problem+json"
    assert document["status"] == answer.status_code
    assert document["detail"]
    assert document["remedy"]
    return document["type"].removeprefix("/problems/")


def test_the_default_format_is_the_text_as_json(client, recording):
    answer = transcribe(client, recording(), model="whisper-1")
    assert answer.status_code == 200
    assert answer.json() == {"text": "오늘 meeting 있어요"}


@pytest.mark.parametrize("kind", ["AIFF", "AU", "CAF", "NIST", "VOC"])
def test_other_containers_than_those_documented_are_refused(client, kind):
    out = io.BytesIO()
    soundfile.write(out, np.sin(np.arange(16_000) / 7) / 3, 16_000, format=kind, subtype="PCM_16")
    answer = transcribe(client, out.getvalue())
    assert (answer.status_code, problem(answer)) == (422, "unusable-audio")
    assert "use WAV, FLAC, MP3" in answer.json()["detail"]


def test_text_is_the_text_and_a_newline(client, recording):
    answer = transcribe(client, recording(), response_format="text")
    assert answer.headers["content-type"] == "text/plain; charset=utf-8"
    assert answer.text == "오늘 meeting 있어요\n"


def test_verbose_json_says_which_word_is_which_language_and_where_the_seconds_went(client, engine, recording):
    engine.text = lambda request: "이번 bug는 2개"
    found = transcribe(client, recording(2.0), response_format="verbose_json").json()
    assert found["task"] == "transcribe"
    assert found["language"] == "ko"
    assert found["duration"] == 2.0
    assert [(w["word"], w["language"]) for w in found["words"]] == [("이번", "ko"), ("bug는", "en"), ("2개", "ko")]
    assert found["words"][0]["start"] == 0.0
    assert found["words"][-1]["end"] == 2.0
    assert all(a["end"] == b["start"] for a, b in zip(found["words"], found["words"][1:], strict=False))
    assert [(s["text"], s["language"]) for s in found["spans"]] == [("이번", "ko"), ("bug", "en"), ("는 2개", "ko")]
    assert [found["text"][s["start"] : s["end"]] for s in found["spans"]] == [s["text"] for s in found["spans"]]
    assert {k: found["stages"][k] for k in ("queue", "features", "encode", "decode")} == {
        "queue": 0.5,
        "features": 0.25,
        "encode": 0.125,
        "decode": 0.0625,
    }
    assert found["stages"]["total"] >= found["stages"]["audio"] >= 0
    (segment,) = found["segments"]
    assert (segment["start"], segment["end"], segment["text"]) == (0.0, 2.0, "이번 bug는 2개")
    assert segment["avg_logprob"] == -0.5 / 4  # three tokens and the end


@pytest.mark.parametrize(("asked", "absent"), [("word", "segments"), ("segment", "words")])
def test_only_the_granularity_that_was_asked_for_comes(client, recording, asked, absent):
    found = transcribe(
        client, recording(), response_format="verbose_json", **{"timestamp_granularities[]": asked}
    ).json()
    assert f"{asked}s" in found
    assert absent not in found


def test_subtitles_have_a_cue_for_each_part_between_silences(client, engine, recording):
    engine.text = lambda request: "a --> b"
    srt = transcribe(client, recording(40.0), response_format="srt").text
    vtt = transcribe(client, recording(40.0), response_format="vtt").text
    cues = srt.strip().split("\n\n")
    assert len(cues) == 2
    assert cues[0].startswith("1\n00:00:00,000 --> 00:00:")
    assert cues[1].startswith("2\n00:00:")
    assert cues[1].splitlines()[1].endswith("--> 00:00:40,000")
    assert cues[0].endswith("a -> b")  # an arrow in the text would be taken for times
    assert vtt.startswith("WEBVTT\n\n00:00:00.000 --> ")


def test_long_audio_is_cut_at_silence_and_its_parts_stay_in_order(client, engine, recording):
    starts = []
    engine.text = lambda request: f"{len(request.audio)}"
    found = transcribe(client, recording(100.0), response_format="verbose_json").json()
    lengths = [len(request.audio) for request in engine.asked]
    assert sum(lengths) == 1_600_000
    assert max(lengths) <= 29 * 16_000
    assert found["text"] == " ".join(map(str, lengths))
    starts = [segment["start"] for segment in found["segments"]]
    assert starts == sorted(starts)
    assert [s["end"] for s in found["segments"]][:-1] == starts[1:]


def test_parts_that_are_done_out_of_order_are_heard_in_order_and_few_are_in_the_engine_at_once(
    make_app, engine, recording
):
    engine.hold = True
    engine.text = lambda request: f"part{[r is request for r in engine.asked].index(True)}"
    most = []

    def work():
        answered = set()
        while len(answered) < 4:
            engine.submitted.wait()
            engine.submitted.clear()
            open_now = [i for i in range(len(engine.asked)) if i not in answered]
            most.append(len(open_now))
            for index in reversed(open_now):
                engine.answer(index)
                answered.add(index)

    thread = threading.Thread(target=work)
    thread.start()
    with TestClient(make_app(parts_ahead=2), base_url="http://127.0.0.1") as client:
        found = transcribe(client, recording(100.0)).json()
    thread.join()
    assert found["text"].split() == [f"part{i}" for i in range(len(engine.asked))]
    assert max(most) <= 2


def test_what_the_engine_gets_is_the_samples_the_language_and_the_beams(client, engine, recording):
    assert transcribe(client, recording(1.5, rate=44_100), language="ko", beams="3").status_code == 200
    (request,) = engine.asked
    assert len(request.audio) == 24_000
    assert request.audio.dtype == np.float32
    assert (request.language, request.beams, request.adapter) == ("ko", 3, None)
    assert request.deadline is not None


def test_an_adapter_that_comes_along_is_used_and_dropped(client, engine, packed, recording):
    data = packed(seed=3)
    assert transcribe(client, recording(), files=[("adapter", ("a.safetensors", data))]).status_code == 200
    assert transcribe(client, recording()).status_code == 200
    first, second = engine.asked
    assert first.adapter is not None
    assert first.adapter.slot.rank == 2
    assert second.adapter is None
    assert len(client.app.state.service.handles) == 0


# Streaming


def events(answer):
    blocks = [b for b in answer.text.split("\n\n") if b and not b.startswith(":")]
    return [json.loads(block.partition("data: ")[2]) for block in blocks]


def test_a_stream_has_deltas_that_add_up_to_the_text(client, recording):
    answer = transcribe(client, recording(), stream="true")
    assert answer.headers["content-type"].startswith("text/event-stream")
    assert answer.headers["x-accel-buffering"] == "no"
    *deltas, last = events(answer)
    assert {d["type"] for d in deltas} == {"transcript.text.delta"}
    assert "".join(d["delta"] for d in deltas) == last["text"] == "오늘 meeting 있어요"
    assert last["type"] == "transcript.text.done"
    assert last["stages"]["decode"] == 0.0625


def test_the_deltas_of_several_parts_add_up_to_their_texts(client, engine, recording):
    engine.text = lambda request: f"{len(request.audio)} samples"
    *deltas, last = events(transcribe(client, recording(70.0), stream="true"))
    assert "".join(d["delta"] for d in deltas) == last["text"]
    assert last["text"].count("samples") == len(engine.asked) > 1


def test_an_error_in_the_middle_of_a_stream_is_an_event(client, engine, recording):
    engine.error = lambda request: DeadlineError("too late") if len(engine.asked) > 1 else None
    *_, last = events(transcribe(client, recording(40.0), stream="true"))
    assert last["type"] == "error"
    assert last["error"] == {"message": "too late", "code": "deadline"}
    assert last["problem"]["status"] == 408


# What is refused


@pytest.mark.parametrize(
    ("fields", "name"),
    [
        ({"response_format": "xml"}, "response_format"),
        ({"temperature": "2"}, "temperature"),
        ({"temperature": "warm"}, "temperature"),
        ({"stream": "perhaps"}, "stream"),
        ({"beams": "0"}, "beams"),
        ({"beams": "9"}, "beams"),
        ({"language": "klingon"}, "language"),
        ({"timestamp_granularities[]": "syllable"}, "timestamp_granularities"),
        ({"adapter": "not a file"}, "adapter"),
        ({"model": ["whisper-1", "whisper-1"]}, "model"),
    ],
)
def test_a_field_with_a_wrong_value_is_named(client, recording, fields, name):
    answer = transcribe(client, recording(), **fields)
    assert answer.status_code == 422
    assert problem(answer) == "invalid-field"
    assert name in answer.json()["detail"]


def test_a_text_that_comes_as_a_file_is_named(client, recording):
    answer = transcribe(client, recording(), files=[("language", ("language.txt", b"ko"))])
    assert (answer.status_code, problem(answer)) == (422, "invalid-field")
    assert answer.json()["detail"] == "language: is a file; send it as a part without a file name"


def test_another_model_is_refused_by_name(client, recording):
    answer = transcribe(client, recording(), model="whisper-large-v9")
    assert answer.status_code == 404
    assert problem(answer) == "unknown-model"
    assert "whisper-nano" in answer.json()["detail"]


def test_a_form_without_a_file_and_a_body_that_is_no_form(client):
    answer = client.post(PATH, files=[("nothing", ("x", b"x"))])
    assert (answer.status_code, problem(answer)) == (422, "invalid-field")
    assert "file: is missing" in answer.json()["detail"]
    for headers in ({}, {"content-type": "application/json"}, {"content-type": "multipart/form-data"}):
        answer = client.post(PATH, content=b"{}", headers=headers)
        assert (answer.status_code, problem(answer)) == (400, "bad-request")
    answer = client.post(PATH, content=b"--x\r\nbroken", headers={"content-type": "multipart/form-data; boundary=x"})
    assert answer.status_code in (400, 422)
    for charset in ("nonsense", "utf-16"):
        kind = f"multipart/form-data; boundary=x; charset={charset}"
        body = b'--x\r\nContent-Disposition: form-data; name="prompt"\r\n\r\nx\r\n--x--\r\n'
        assert client.post(PATH, content=body, headers={"content-type": kind}).status_code in (400, 422)


def test_two_files_and_an_adapter_beside_a_handle_are_refused(client, packed, recording):
    answer = transcribe(client, recording(), files=[("file", ("b.flac", recording()))])
    assert problem(answer) == "invalid-field"
    answer = transcribe(client, recording(), files=[("adapter", ("a", packed()))], adapter_handle="x")
    assert problem(answer) == "invalid-field"
    assert "adapter_handle" in answer.json()["detail"]


@pytest.mark.parametrize(
    ("error", "status", "slug"),
    [
        (BusyError("full", 7.2), 429, "busy"),
        (ClosedError("closing"), 503, "closing"),
        (DeadlineError("late"), 408, "deadline"),
    ],
)
def test_an_engine_that_cannot_says_so_with_the_right_status(client, engine, recording, error, status, slug):
    engine.refuse = error
    for stream in ("false", "true"):
        answer = transcribe(client, recording(), stream=stream)
        assert (answer.status_code, problem(answer)) == (status, slug)
        if slug == "busy":
            assert answer.headers["retry-after"] == "8"


def test_a_recording_that_was_begun_waits_while_the_engine_is_full(make_app, engine, recording):
    submit, calls = engine.submit, []

    def sometimes_full(request):
        calls.append(request)
        if len(calls) == 2:
            raise BusyError("full", 0.0)
        return submit(request)

    engine.submit = sometimes_full
    with TestClient(make_app(parts_ahead=1), base_url="http://127.0.0.1") as client:
        answer = transcribe(client, recording(40.0))
    assert answer.status_code == 200
    assert len(engine.asked) == 2
    assert len(calls) == 3
