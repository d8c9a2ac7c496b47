"""What goes wrong stands beside what caused it, in the words of the server's problem document.

In a real browser; skipped without Chromium (Debian: chromium; fonts-nanum for Hangul).
"""

import json

import numpy as np
import pytest
import soundfile
from fastapi.responses import JSONResponse, Response

TOKEN = {"type": "/problems/unauthorized", "title": "No valid token", "status": 401, "detail": "The token is unknown"}
OTHER_BASE = {
    "type": "/problems/adapter-mismatch",
    "title": "The adapter belongs to another base",
    "status": 422,
    "detail": "It was trained for whisper:64x2+2:0123",
}
NOT_AUDIO = {
    "type": "/problems/unusable-audio",
    "title": "The audio cannot be used",
    "status": 422,
    "detail": "file: no audio.",
}
BUSY = {
    "type": "/problems/busy",
    "title": "As much work is open as may be",
    "status": 429,
    "detail": "32 wait.",
}
OTHER = {"title": "Unprocessable", "status": 400, "detail": "A field."}


def refuse(document, **headers):
    return JSONResponse(document, document["status"], headers=headers, media_type="application/problem+json")


def transcript(text="안녕"):
    return JSONResponse({"text": text})


@pytest.fixture
def ask(serve, open_tab, sentence, packed):
    """``ask(reply)``: the page after both requests were answered."""

    def send(reply):
        tab = open_tab(serve(reply))
        tab.choose("audio-file", sentence)
        tab.choose("adapter-file", packed)
        tab.wait("document.getElementById('audio-facts').innerText.includes('1.5 s')")
        tab.wait("!document.getElementById('adapter-remove').hidden")
        tab.transcribe(
            "document.getElementById('transcribe').innerText === 'Transcribe' && !document.querySelector('[aria-busy=true]')"
            " && document.querySelector('.error[role]:not([hidden])')"
        )
        return tab

    return send


def problems(tab):
    """Text of the visible errors by the field that they stand at."""
    found = tab.js("[...document.querySelectorAll('.error[role=alert]:not([hidden])')].map((e) => [e.id, e.innerText])")
    return {name.removesuffix("-error"): text for name, text in found}


@pytest.mark.parametrize(
    ("document", "place", "text"),
    [
        (TOKEN, "token", "No valid token The token is unknown. Enter a token of this server."),
        (NOT_AUDIO, "audio", "The audio cannot be used file: no audio."),
        (OTHER, "audio", "Unprocessable A field."),
    ],
)
def test_what_stops_both_requests_is_told_once(ask, document, place, text):
    tab = ask(lambda form: refuse(document))
    assert problems(tab) == {place: text}
    assert tab.js("document.getElementById('results').hidden")
    field = {"audio": "audio-file"}.get(place, place)
    assert tab.js(f"document.getElementById('{field}').getAttribute('aria-invalid')") == "true"
    assert f"{place}-error" in tab.js(f"document.getElementById('{field}').getAttribute('aria-describedby')").split()


@pytest.mark.parametrize("document", [OTHER_BASE, OTHER])
def test_an_adapter_that_is_refused_leaves_the_base_transcript(ask, document):
    tab = ask(lambda form: refuse(document) if "adapter" in form else transcript())
    assert list(problems(tab)) == ["adapter"]
    assert document["detail"] in problems(tab)["adapter"]
    assert tab.text("#base .said") == "안녕"
    assert document["title"] in tab.text("#personal .error")
    tab.js("document.getElementById('adapter-remove').click()")
    assert problems(tab) == {}
    tab.transcribe()
    assert "Choose your adapter" in tab.text("#personal")


def test_a_busy_server_says_when_to_try_again(ask):
    tab = ask(lambda form: refuse(BUSY, **{"Retry-After": "7"}))
    assert problems(tab) == {"ask": "As much work is open as may be 32 wait. Try again in 7 s."}


@pytest.mark.parametrize(
    ("reply", "text"),
    [
        (Response("<h1>Bad Gateway</h1>", 502), "The server answered 502"),
        (Response("not JSON"), "Not understood"),
        (JSONResponse({"no": "text"}), "Not understood"),
    ],
)
def test_an_answer_that_is_none_is_called_so(ask, reply, text):
    tab = ask(lambda form: reply)
    assert problems(tab)["ask"].startswith(text)
    assert tab.complaints == []


@pytest.mark.parametrize(
    ("stream", "place", "text"),
    [
        (json.dumps({"type": "error", "error": {"message": "-"}, "problem": OTHER_BASE}), "adapter", "another base"),
        (json.dumps({"type": "transcript.text.delta", "delta": "오늘"}), "ask", "Cut off"),
    ],
)
def test_a_stream_that_breaks_is_no_transcript(ask, stream, place, text):
    events = Response(f"data: {stream}\n\n", media_type="text/event-stream")
    tab = ask(lambda form: events if "stream" in form else transcript())
    assert text in problems(tab)[place]
    assert "No transcript." in tab.text("#personal")
    assert tab.text("#base .said") == "안녕"


def test_a_server_that_is_gone_is_told_from_one_that_refuses(serve, open_tab, sentence):
    tab = open_tab(serve(lambda form: transcript()))
    tab.choose("audio-file", sentence)
    tab.wait("document.getElementById('audio-facts').innerText.includes('1.5 s')")
    tab.call("Network.emulateNetworkConditions", offline=True, latency=0, downloadThroughput=-1, uploadThroughput=-1)
    tab.transcribe("!document.getElementById('ask-error').hidden")
    assert problems(tab)["ask"].startswith("Not connected")


def test_sound_that_cannot_be_speech_is_never_sent(serve, open_tab, tmp_path):
    stub = serve(lambda form: transcript())
    tab = open_tab(stub)
    for name, sound, text in [
        ("short.wav", 0.3 * np.ones(1_600), "Too short"),
        ("silent.wav", np.zeros(16_000), "Only silence"),
    ]:
        soundfile.write(tmp_path / name, sound, 16_000)
        tab.choose("audio-file", tmp_path / name)
        tab.wait(f"document.getElementById('audio-error').innerText.startsWith('{text}')")
        tab.transcribe(f"document.getElementById('audio-error').innerText.startsWith('{text}')")
    (tmp_path / "empty.wav").write_bytes(b"")
    tab.choose("audio-file", tmp_path / "empty.wav")
    tab.wait("document.getElementById('audio-error').innerText.startsWith('Empty file')")
    assert stub.forms == []


def test_nothing_chosen_and_a_token_that_is_none_are_told_before_anything_is_sent(serve, open_tab, sentence):
    stub = serve(lambda form: transcript())
    tab = open_tab(stub)
    tab.transcribe("!document.getElementById('audio-error').hidden")
    assert problems(tab)["audio"].startswith("No speech yet")
    tab.choose("audio-file", sentence)
    tab.wait("document.getElementById('audio-facts').innerText.includes('1.5 s')")
    tab.js("document.getElementById('token').value = '비밀'")
    tab.transcribe("!document.getElementById('token-error').hidden")
    assert list(problems(tab)) == ["token"]
    assert stub.forms == []


@pytest.mark.parametrize(
    ("break_it", "text"),
    [
        (
            "navigator.mediaDevices.getUserMedia = () => Promise.reject(new DOMException('', 'NotAllowedError'))",
            "Microphone not allowed",
        ),
        ("Object.defineProperty(navigator, 'mediaDevices', {value: undefined})", "No microphone here"),
    ],
)
def test_a_microphone_that_is_refused_or_missing_says_what_to_do(serve, open_tab, break_it, text):
    tab = open_tab(serve(lambda form: transcript()))
    tab.js(f"void ({break_it})")
    tab.js("document.getElementById('record').click()")
    tab.wait("!document.getElementById('audio-error').hidden")
    assert problems(tab)["audio"].startswith(text)
    assert tab.text("#record") == "Record"
    assert tab.complaints == []


def test_a_request_can_be_cancelled(serve, open_tab, sentence):
    tab = open_tab(serve(lambda form: transcript()))
    tab.js(
        "window.fetch = (_, {signal}) => new Promise((_, no) => signal.addEventListener('abort', () => no(signal.reason)))"
    )
    tab.choose("audio-file", sentence)
    tab.wait("document.getElementById('audio-facts').innerText.includes('1.5 s')")
    tab.transcribe("document.getElementById('transcribe').innerText === 'Cancel'")
    tab.transcribe("document.getElementById('transcribe').innerText === 'Transcribe'")
    assert tab.text("#status") == "Cancelled."
    assert problems(tab) == {}
