"""What a device uploads: 16 kHz mono, lossless or small, and nothing that a server would refuse anyway."""

import io
import sys
import types

import numpy as np
import pytest
import soundfile

from clients.device.audio import encode_file, encode_samples, record
from clients.device.messages import FormPart
from fl.core.errors import AudioError, ConfigError


def decoded(upload):
    return soundfile.read(io.BytesIO(upload.content), dtype="int16")


def tone(rate, seconds=1.0, hertz=440.0):
    return 0.5 * np.sin(2 * np.pi * hertz * np.arange(round(seconds * rate)) / rate)


def test_flac_is_lossless_at_sixteen_bits(wav):
    upload = encode_file(wav)
    samples, rate = decoded(upload)
    assert rate == 16_000
    assert np.array_equal(samples, soundfile.read(wav, dtype="int16")[0])
    assert upload.part("file") == FormPart("file", upload.content, "audio.flac", "audio/flac")
    assert upload.seconds == 1.0


def test_opus_is_much_smaller(tmp_path):
    soundfile.write(tmp_path / "a.wav", tone(16_000, 10.0), 16_000)
    upload = encode_file(tmp_path / "a.wav", "opus")
    samples, rate = decoded(upload)
    assert rate == 16_000
    assert abs(len(samples) - 160_000) < 1600
    assert len(upload.content) < 16_000 * 2 * 10 / 4


@pytest.mark.parametrize("rate", [8_000, 22_050, 44_100, 48_000])
def test_any_rate_and_any_number_of_channels_become_16_khz_mono(tmp_path, rate):
    left, right = tone(rate, 1.5), 0.5 * tone(rate, 1.5)
    soundfile.write(tmp_path / "a.wav", np.stack([left, right], axis=1), rate, subtype="FLOAT")
    samples, _ = soundfile.read(io.BytesIO(encode_file(tmp_path / "a.wav").content))
    assert samples.ndim == 1
    assert abs(len(samples) - 24_000) <= 1
    middle = slice(2_000, 22_000)  # away from the filter's ends
    assert np.abs(samples[middle] - 0.75 * tone(16_000, 1.5)[: len(samples)][middle]).max() < 0.01


def test_the_pieces_of_a_long_file_join_without_a_seam(tmp_path):
    soundfile.write(tmp_path / "a.wav", tone(44_100, 4.2), 44_100, subtype="FLOAT")
    samples, _ = soundfile.read(io.BytesIO(encode_file(tmp_path / "a.wav").content))
    assert np.abs(np.diff(samples)[2_000:-2_000]).max() < 0.5 * 2 * np.pi * 440 / 16_000 * 1.05  # as steep as the sine


@pytest.mark.parametrize("content", [b"RIFF", b"hello, this is a text", b"fLaC" + bytes(200)])
def test_a_file_that_is_no_audio_is_refused_by_name(tmp_path, content):
    (tmp_path / "a.wav").write_bytes(content)
    with pytest.raises(AudioError, match=r"a\.wav: cannot be read as audio"):
        encode_file(tmp_path / "a.wav")


def test_a_missing_file_and_a_folder_are_refused(tmp_path):
    for path, reason in ((tmp_path / "nothing.wav", "no such audio file"), (tmp_path, "is a folder")):
        with pytest.raises(AudioError, match=reason):
            encode_file(path)


@pytest.mark.parametrize(
    ("samples", "match"),
    [
        (np.zeros(16_000), "silent"),
        (tone(16_000, 0.1), "too short"),
        (np.zeros(0), "too short"),
        (np.array([0.1] * 8_000 + [np.nan] + [0.1] * 8_000), "not finite"),
    ],
)
def test_what_holds_no_speech_is_not_uploaded(tmp_path, samples, match):
    soundfile.write(tmp_path / "a.wav", samples, 16_000, subtype="FLOAT")
    with pytest.raises(AudioError, match=match):
        encode_file(tmp_path / "a.wav")


def test_three_hours_are_refused_before_they_are_read(tmp_path):
    with soundfile.SoundFile(tmp_path / "a.flac", "w", 1_000, 1) as file:
        for _ in range(3 * 60):
            file.write(np.zeros(60 * 1_000, np.int16))
    with pytest.raises(AudioError, match="10,800 s is too long"):
        encode_file(tmp_path / "a.flac")


def test_an_unknown_codec_names_the_known(wav):
    with pytest.raises(ConfigError, match="'mp3' is not known: give one of flac, opus"):
        encode_file(wav, "mp3")


def test_samples_beyond_full_scale_are_clipped_and_do_not_wrap_around():
    samples, _ = decoded(encode_samples(np.float32([1.5, -1.5] * 8_000)))
    assert samples.max() == 32767
    assert samples.min() == -32768


def test_recording_without_the_package_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "sounddevice", None)
    with pytest.raises(AudioError, match=r"pip install sounddevice"):
        record(1.0)


def test_a_recording_is_uploaded_as_a_file_would_be(monkeypatch):
    asked = {}

    def rec(frames, **settings):
        asked.update(settings, frames=frames)
        return tone(16_000, frames / 16_000).astype(np.float32)[:, None]

    monkeypatch.setitem(sys.modules, "sounddevice", types.SimpleNamespace(rec=rec, wait=lambda: None))
    assert record(2.0, "opus").seconds == 2.0
    assert asked == {"frames": 32_000, "samplerate": 16_000, "channels": 1, "dtype": "float32"}


def test_a_microphone_that_is_in_use_is_a_typed_error(monkeypatch):
    def rec(*_, **__):
        raise RuntimeError("Device unavailable")

    monkeypatch.setitem(sys.modules, "sounddevice", types.SimpleNamespace(rec=rec))
    with pytest.raises(AudioError, match=r"cannot be used \(Device unavailable\)"):
        record(1.0)


@pytest.mark.parametrize("seconds", [0.0, -1.0, 1e9, float("nan")])
def test_an_impossible_length_is_refused_before_the_microphone_is_opened(seconds):
    with pytest.raises(ConfigError, match="seconds"):
        record(seconds)
