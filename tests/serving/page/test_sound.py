"""What the page sends: sound from a fake microphone and from files, the adapter, the token; and that the keyboard is enough.

In a real browser; skipped without Chromium (Debian: chromium; fonts-nanum for Hangul).
"""

import io

import numpy as np
import pytest
import soundfile
from fastapi.responses import JSONResponse

MICROPHONE_HZ = 1000  # what the fake microphone hears: conftest.py


@pytest.fixture
def stub(serve):
    return serve(lambda form: JSONResponse({"text": "안녕"}))


def read_wav(data):
    """Samples of a WAV file, and the loudest pitch in Hz; what was sent must be 16 kHz, mono, 16 bit."""
    with soundfile.SoundFile(io.BytesIO(data)) as file:
        assert (file.samplerate, file.channels, file.format, file.subtype) == (16_000, 1, "WAV", "PCM_16")
        samples = file.read(dtype="float32")
    return samples, np.argmax(level_by_hz(samples)) * 16_000 / len(samples)


def level_by_hz(samples):
    return np.abs(np.fft.rfft(samples * np.hanning(len(samples))))


def test_a_recording_stops_at_the_limit_and_arrives_as_16_khz_mono_wav_with_the_adapter(open_tab, stub, packed):
    tab = open_tab(stub)
    tab.js("document.getElementById('record').click()")
    tab.wait("document.getElementById('record').innerText === 'Stop'")
    assert tab.js("document.getElementById('transcribe').disabled")
    assert tab.js("!document.getElementById('meter').hidden")
    tab.wait("Number(document.getElementById('meter').ariaValueNow) > -50")
    assert "s left" in tab.text("#left")
    tab.js("document.body.dataset.maxSeconds = '1'")
    tab.wait("!document.getElementById('player').hidden")
    tab.choose("adapter-file", packed)
    tab.wait("document.getElementById('adapter-facts').innerText.includes('me.safetensors')")
    assert stub.forms == []  # nothing leaves before it is asked for
    tab.transcribe()
    samples, pitch = read_wav(stub.personal["file"])
    assert len(samples) == 16_000
    assert pitch == pytest.approx(MICROPHONE_HZ, abs=10)
    assert stub.base["file"] == stub.personal["file"]
    assert stub.base["headers"]["origin"] == stub.origin  # a server without tokens asks where a request comes from
    assert stub.personal["adapter"] == packed.read_bytes()
    assert stub.base["response_format"] == stub.personal["response_format"] == "verbose_json"
    assert tab.js("document.getElementById('player').duration") == pytest.approx(1.0, abs=1e-3)
    assert tab.complaints == []
    assert tab.elsewhere == []


def test_a_file_is_resampled_without_folding_high_pitches_into_speech(open_tab, stub, sentence):
    tab = open_tab(stub)
    tab.choose("audio-file", sentence)
    tab.wait("document.getElementById('audio-facts').innerText.includes('1.5 s')")
    tab.transcribe()
    samples, pitch = read_wav(stub.base["file"])
    assert len(samples) == pytest.approx(24_000, abs=2)
    assert pitch == pytest.approx(1_000, abs=2)
    level = level_by_hz(samples)
    assert level[round(5_000 * 1.5)] < 1e-3 * level.max()  # where 11 kHz would fold to
    assert np.abs(samples[4_000:-4_000]).max() == pytest.approx(0.2, abs=0.01)  # the mean of both channels


def test_dropped_files_go_where_they_belong_and_what_no_browser_decodes_is_sent_as_it_is(open_tab, stub):
    tab = open_tab(stub)
    tab.js(
        """(() => { const data = new DataTransfer();
        data.items.add(new File(["what only libsndfile knows"], "old.caf"));
        data.items.add(new File([new Uint8Array([8, 9, 10])], "Mine.SafeTensors"));
        document.body.dispatchEvent(new DragEvent("drop", {dataTransfer: data, bubbles: true, cancelable: true})); })()"""
    )
    tab.wait("document.getElementById('audio-facts').innerText.includes('cannot decode')")
    tab.wait("document.getElementById('adapter-facts').innerText.includes('Mine.SafeTensors')")
    tab.transcribe()
    assert stub.base["file"] == b"what only libsndfile knows"
    assert stub.personal["adapter"] == b"\x08\x09\x0a"


def test_a_token_is_sent_with_both_requests_and_stays_in_memory(open_tab, stub, sentence, packed):
    tab = open_tab(stub)
    tab.choose("audio-file", sentence)
    tab.choose("adapter-file", packed)
    tab.wait("document.getElementById('audio-facts').innerText.includes('1.5 s')")
    tab.js("document.getElementById('token').value = ' idl_secret '")
    tab.transcribe()
    assert [form["headers"]["authorization"] for form in stub.forms] == ["Bearer idl_secret"] * 2
    assert tab.js("localStorage.length + sessionStorage.length + document.cookie.length") == 0
    tab.open()
    assert tab.js("document.getElementById('token').value") == ""


def test_the_keyboard_alone_records_stops_and_sends(open_tab, stub):
    tab = open_tab(stub)
    order = []
    for _ in range(5):
        tab.press("Tab")
        order.append(tab.js("document.activeElement.id"))
    assert order == ["record", "audio-file", "adapter-file", "token", "transcribe"]
    tab.js("document.getElementById('record').focus()")
    tab.press("Enter")
    tab.wait("Number.parseFloat(document.getElementById('left').innerText) < 28.5")
    tab.press("Enter")
    tab.wait("!document.getElementById('player').hidden")
    assert tab.js("document.activeElement.id") == "record"
    tab.js("document.getElementById('token').focus()")
    tab.press("Enter")
    tab.wait("document.querySelector('#base .word')")
    samples, _ = read_wav(stub.base["file"])
    assert len(samples) >= 0.5 * 16_000
