"""Audio as people really have it: wrong rates, broken files, silence, too short, too long."""

import errno
import os
from itertools import pairwise

import numpy as np
import pytest
import soundfile

from fl.core.errors import AudioError
from fl.speech.audio import MAX_SECONDS, SAMPLE_RATE, check_speech, load_audio, save_audio, split_at_silence


def tone(seconds: float, rate: int = SAMPLE_RATE, hertz: float = 440.0, level: float = 0.5) -> np.ndarray:
    return (level * np.sin(2 * np.pi * hertz * np.arange(int(seconds * rate)) / rate)).astype(np.float32)


def strongest_hertz(audio: np.ndarray) -> float:
    return float(np.argmax(np.abs(np.fft.rfft(audio))) * SAMPLE_RATE / len(audio))


@pytest.mark.parametrize(
    ("rate", "channels", "name"),
    [(8_000, 1, "a.wav"), (48_000, 2, "b.wav"), (44_100, 2, "c.flac"), (16_000, 1, "d.ogg")],
)
def test_any_rate_and_channel_count_becomes_the_same_tone_at_16_khz_mono(tmp_path, rate, channels, name):
    samples = np.stack([tone(1.0, rate)] * channels, axis=1)
    soundfile.write(tmp_path / name, samples, rate)
    audio = load_audio(tmp_path / name)
    assert audio.dtype == np.float32
    assert audio.ndim == 1
    assert abs(len(audio) - SAMPLE_RATE) <= (160 if name.endswith("ogg") else 2)
    assert strongest_hertz(audio) == pytest.approx(440.0, abs=1.5)
    assert np.abs(audio[2000:-2000]).max() == pytest.approx(0.5, abs=0.05)


def test_channels_are_averaged_not_dropped(tmp_path):
    both = np.stack([tone(0.5), tone(0.5, hertz=880.0, level=0.1)], axis=1)
    soundfile.write(tmp_path / "s.wav", both, SAMPLE_RATE)
    assert np.abs(load_audio(tmp_path / "s.wav") - both.mean(axis=1)).max() < 1e-4


def test_a_tone_above_the_new_band_does_not_fold_back(tmp_path):
    soundfile.write(tmp_path / "high.wav", tone(1.0, 48_000, hertz=11_000.0), 48_000)
    assert np.abs(load_audio(tmp_path / "high.wav")[1000:-1000]).max() < 0.01


@pytest.mark.parametrize("rate", [8_000, 16_000, 48_000])
def test_start_and_end_cut_in_seconds_of_the_file_whatever_its_rate(tmp_path, rate):
    soundfile.write(tmp_path / "two.wav", np.concatenate([tone(1.0, rate, 300.0), tone(1.0, rate, 700.0)]), rate)
    part = load_audio(tmp_path / "two.wav", start=1.25, end=1.75)
    assert len(part) == pytest.approx(SAMPLE_RATE / 2, abs=2)
    assert strongest_hertz(part) == pytest.approx(700.0, abs=3)


def test_an_end_past_the_file_is_the_end_of_the_file_but_a_start_past_it_is_an_error(tmp_path):
    soundfile.write(tmp_path / "one.wav", tone(1.0), SAMPLE_RATE)
    assert len(load_audio(tmp_path / "one.wav", start=0.5, end=9.0)) == SAMPLE_RATE // 2
    with pytest.raises(AudioError, match=r"one\.wav.*1\.00 s"):
        load_audio(tmp_path / "one.wav", start=2.0)


def test_missing_audio_is_named_with_what_to_check(tmp_path):
    with pytest.raises(AudioError, match=r"gone\.wav: no such audio file.*relative to the manifest"):
        load_audio(tmp_path / "gone.wav")


@pytest.mark.parametrize("content", [b"", os.urandom(5000), b"RIFF\x24\x00\x00\x00WAVEfmt ", b"RIFF" + bytes(60)])
def test_corrupt_audio_is_an_audio_error_that_names_the_file(tmp_path, content):
    (tmp_path / "broken.wav").write_bytes(content)
    with pytest.raises(AudioError, match=r"broken\.wav"):
        load_audio(tmp_path / "broken.wav")


def test_a_file_without_samples_is_refused(tmp_path):
    soundfile.write(tmp_path / "empty.wav", np.zeros(0, np.float32), SAMPLE_RATE)
    with pytest.raises(AudioError, match="no samples"):
        load_audio(tmp_path / "empty.wav")


@pytest.mark.parametrize(
    ("audio", "message"),
    [
        (np.zeros(SAMPLE_RATE, np.float32), "silent"),
        (tone(1.0, level=0.0005), "silent"),
        (tone(0.1), r"0\.10 s is too short"),
        (tone(40.0), r"40\.0 s is too long.*Split"),
        (np.zeros(0, np.float32), "too short"),
        (np.full(SAMPLE_RATE, np.nan, np.float32), "not finite"),
    ],
    ids=["silence", "nearly silent", "0.1 s", "40 s", "nothing", "nan"],
)
def test_what_cannot_be_one_utterance_is_refused_with_its_source(audio, message):
    with pytest.raises(AudioError, match=f"^anna-7: .*{message}"):
        check_speech(audio, "anna-7")


def test_quiet_speech_of_a_usual_length_passes():
    check_speech(tone(3.0, level=0.01), "quiet")


def test_long_audio_is_cut_in_its_pauses_and_nothing_is_lost():
    pause = np.zeros(SAMPLE_RATE // 2, np.float32)
    audio = np.concatenate([tone(25.0), pause, tone(20.0), pause, tone(10.0)])
    ranges = split_at_silence(audio)
    assert ranges[0][0] == 0
    assert ranges[-1][1] == len(audio)
    assert all(left[1] == right[0] for left, right in pairwise(ranges))
    assert all(end - start <= MAX_SECONDS * SAMPLE_RATE for start, end in ranges)
    first_pause = (25.0, 25.5)
    assert first_pause[0] < ranges[0][1] / SAMPLE_RATE < first_pause[1]


def test_short_audio_is_one_piece():
    assert split_at_silence(tone(5.0)) == [(0, 5 * SAMPLE_RATE)]


@pytest.mark.parametrize(("name", "kind"), [("a.wav", "WAV"), ("a.flac", "FLAC")])
def test_saved_audio_comes_back_within_16_bit_rounding(tmp_path, name, kind):
    audio = tone(0.5)
    save_audio(tmp_path / name, audio)
    assert soundfile.info(tmp_path / name).format == kind
    assert np.abs(load_audio(tmp_path / name) - audio).max() <= 1.0 / 32767


def test_samples_beyond_full_scale_are_clipped_and_do_not_wrap(tmp_path):
    save_audio(tmp_path / "loud.wav", np.array([3.0, -3.0] * 4000, np.float32))
    audio = load_audio(tmp_path / "loud.wav")
    assert audio[0] > 0.99
    assert audio[1] < -0.99


def test_a_full_disk_leaves_the_old_file_and_no_rest(tmp_path, monkeypatch):
    save_audio(tmp_path / "a.wav", tone(0.5))
    before = (tmp_path / "a.wav").read_bytes()

    def full(_handle: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        save_audio(tmp_path / "a.wav", tone(1.0))
    assert (tmp_path / "a.wav").read_bytes() == before
    assert [entry.name for entry in tmp_path.iterdir()] == ["a.wav"]


def test_non_finite_samples_are_never_written(tmp_path):
    with pytest.raises(AudioError, match="not finite"):
        save_audio(tmp_path / "nan.wav", np.array([0.0, np.inf], np.float32))
    assert not list(tmp_path.iterdir())


def test_a_header_that_says_hours_takes_memory_for_what_is_there(tmp_path):
    path = tmp_path / "long.flac"
    soundfile.write(path, np.stack([tone(1.0, 96_000)] * 8, axis=1), 96_000)
    data = bytearray(path.read_bytes())
    frames = 4 * 3600 * 96_000 - 1  # 44 GB as float32
    data[21] = data[21] & 0xF0 | frames >> 32
    data[22:26] = (frames & 0xFFFFFFFF).to_bytes(4, "big")
    path.write_bytes(data)
    with pytest.raises(AudioError, match=r"long\.flac: (is cut off after 1\.0 of 14,400\.0 s|cannot be read as audio)"):
        load_audio(path)
    assert len(load_audio(path, end=0.5)) == SAMPLE_RATE // 2


@pytest.mark.parametrize(("rate", "channels"), [(1_000_000, 1), (16_000, 17)])
def test_what_no_microphone_records_is_refused_before_it_is_decoded(tmp_path, rate, channels):
    soundfile.write(tmp_path / "odd.wav", np.zeros((rate // 10, channels)), rate)
    with pytest.raises(AudioError, match=r"odd\.wav: .* Hz and \d+ channels; at most 384,000 Hz and 16 are read"):
        load_audio(tmp_path / "odd.wav")


def test_a_wav_that_was_cut_off_is_no_utterance(tmp_path):
    soundfile.write(tmp_path / "whole.wav", tone(3.0), SAMPLE_RATE)
    data = (tmp_path / "whole.wav").read_bytes()
    (tmp_path / "cut.wav").write_bytes(data[: len(data) // 2])
    with pytest.raises(AudioError, match=r"cut\.wav: is cut off after 1\.5 of 3\.0 s"):
        load_audio(tmp_path / "cut.wav")
