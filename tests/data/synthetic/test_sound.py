"""espeak-ng as a function of its arguments, and what a room and a microphone do to it."""

import sys

import numpy as np
import pytest

from fl.core.errors import ConfigError
from fl.data.synthetic.acoustics import Acoustics, impulse_response, join_segments, record
from fl.data.synthetic.espeak import ESPEAK_SAMPLE_RATE, Espeak, Voice
from fl.data.synthetic.pairs import known_pairs, load_pair
from fl.speech.audio import SAMPLE_RATE

PLAIN = Acoustics(low_hz=60, high_hz=7600, snr_db=40, noise_tilt=0.0, rt60=0.1, direct_db=30)


@pytest.fixture(scope="module")
def espeak():
    pytest.importorskip("espeakng_loader", reason="synthetic speech needs the extra synth")
    return Espeak()


def generator(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def bursts() -> np.ndarray:
    """Half a second of a chord, half a second of nothing, twice."""
    time = np.arange(SAMPLE_RATE // 2) / SAMPLE_RATE
    chord = sum(np.sin(2 * np.pi * hertz * time) for hertz in (300, 1000, 2500, 5500)) / 8
    return np.concatenate([chord, np.zeros(SAMPLE_RATE // 2)] * 2).astype(np.float32)


def share_above(audio: np.ndarray, hertz: float) -> float:
    power = np.abs(np.fft.rfft(audio)) ** 2
    return float(power[np.fft.rfftfreq(len(audio), 1 / SAMPLE_RATE) > hertz].sum() / power.sum())


def test_a_sentence_sounds_the_same_whatever_was_said_before(espeak):
    first, second = (
        ("어제 커피를 마셨어", "ko", Voice("f5")),
        ("the deadline is tomorrow", "en-us", Voice("m1", rate=200)),
    )
    alone = espeak.render(*first)
    espeak.render(*second)
    espeak.render(*second)
    assert np.array_equal(espeak.render(*first), alone)
    assert np.array_equal(Espeak().render(*first), alone)
    assert alone.dtype == np.float32


def test_variant_rate_and_pitch_each_change_the_sound(espeak):
    text = "오늘 회의가 길어졌어"
    voices = [Voice("m1"), Voice("f1"), Voice("m1", rate=220), Voice("m1", pitch=80), Voice("m1", pitch_range=90)]
    sounds = [espeak.render(text, "ko", voice) for voice in voices]
    assert len({sound.tobytes() for sound in sounds}) == len(voices)
    assert len(sounds[2]) < 0.9 * len(sounds[0])


@pytest.mark.parametrize("name", known_pairs())
def test_every_voice_of_a_pair_ships_and_speaks_without_clipping(espeak, name):
    pair = load_pair(name)
    assert len(set(pair.variants)) == len(pair.variants) >= 12
    for variant in pair.variants:
        for language in (pair.matrix_voice, pair.embedded_voice):
            sound = espeak.render("a la una" if language != "ko" else "안녕하세요", language, Voice(variant))
            assert 0.3 < len(sound) / ESPEAK_SAMPLE_RATE < 3.0
            assert 0.05 < np.abs(sound).max() < 0.999


def test_an_unknown_variant_or_language_lists_or_names_it(espeak):
    with pytest.raises(ConfigError, match=r"'nobody' is not shipped; known: .*m1"):
        espeak.render("안녕", "ko", Voice("nobody"))
    with pytest.raises(ConfigError, match="no voice 'tlh-x"):
        espeak.render("nuqneH", "tlh-x", Voice("m1"))


def test_without_the_extra_the_remedy_is_in_the_message(monkeypatch):
    monkeypatch.setitem(sys.modules, "espeakng_loader", None)
    with pytest.raises(ConfigError, match=r"pip install 'idiolect-fl\[synth\]'"):
        Espeak()


def test_joined_segments_are_equally_loud_and_have_no_gap():
    time = np.arange(ESPEAK_SAMPLE_RATE) / ESPEAK_SAMPLE_RATE
    silence = np.zeros(ESPEAK_SAMPLE_RATE // 4)
    loud, quiet = (
        np.concatenate([silence, level * np.sin(2 * np.pi * 200 * time), silence]).astype(np.float32)
        for level in (0.8, 0.05)
    )
    joined = join_segments([loud, quiet], ESPEAK_SAMPLE_RATE)
    level = np.sqrt(np.mean(joined[: len(joined) // 320 * 320].reshape(-1, 320) ** 2, axis=1))
    inner = level[8:-8]
    assert len(joined) / SAMPLE_RATE == pytest.approx(2.0 + 0.24, abs=0.06)
    assert inner.max() < 1.5 * np.median(inner)
    assert inner.min() > 0.4 * np.median(inner)


def test_the_microphone_limits_the_band():
    wide, narrow = (
        record(bursts(), Acoustics(100, high, 40, 0.0, 0.1, 30), generator(), generator(1)) for high in (7600, 3500)
    )
    assert share_above(wide, 4500) > 0.1
    assert share_above(narrow, 4500) < 0.01


@pytest.mark.parametrize("snr_db", [5.0, 20.0])
def test_noise_stands_below_speech_by_the_ratio_asked_for(snr_db):
    noisy = Acoustics(60, 7600, snr_db, 0.5, 0.1, 60)
    audio = record(bursts(), noisy, generator(), generator(1))
    # the second halves of the bursts hold noise alone; the ratio is over the whole utterance, half of it speech
    noise = np.concatenate([audio[12_000:15_500], audio[28_000:31_500]])
    total = np.mean(audio**2)
    measured = 10 * np.log10((total - np.mean(noise**2)) / np.mean(noise**2))
    assert measured == pytest.approx(snr_db, abs=1.0)


def test_the_echo_falls_by_sixty_decibels_in_its_time():
    room = Acoustics(60, 7600, 40, 0.0, rt60=0.4, direct_db=6.0)
    response = impulse_response(room, generator())
    tail = response.copy()
    tail[0] = 0.0
    assert 10 * np.log10(1.0 / np.sum(tail**2)) == pytest.approx(6.0, abs=1e-6)
    # Schroeder's backward integral; its slope between -5 and -25 dB extrapolates to 60 dB
    decay = 10 * np.log10(np.cumsum(tail[::-1] ** 2)[::-1] / np.sum(tail**2))
    first, last = (int(np.argmax(decay < level)) for level in (-5, -25))
    assert 3 * (last - first) / SAMPLE_RATE == pytest.approx(0.4, rel=0.2)


def test_a_recording_keeps_its_length_and_never_clips():
    for gain in (-20.0, 0.0, 30.0):
        audio = record(bursts(), Acoustics(60, 7600, 20, 0.5, 0.3, 6, gain), generator(), generator(1))
        assert len(audio) == len(bursts())
        assert np.isfinite(audio).all()
        assert 0.001 < np.abs(audio).max() < 0.9
