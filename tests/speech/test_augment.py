"""Training speech varied: deterministic, bounded, and nothing at all by default."""

import numpy as np
import pytest

from fl.core.errors import ConfigError
from fl.settings.config import make_config
from fl.settings.tables import AugmentationTable
from fl.speech.audio import SAMPLE_RATE
from fl.speech.augment import DrawnLater, add_noise, change_speed, mask_features, vary_audio, vary_features

TONE = (0.3 * np.sin(2 * np.pi * 440 * np.arange(SAMPLE_RATE) / SAMPLE_RATE)).astype(np.float32)


def pitch(audio):
    """The loudest frequency in Hz."""
    return float(np.argmax(np.abs(np.fft.rfft(audio)))) * SAMPLE_RATE / len(audio)


@pytest.mark.parametrize("factor", [0.8, 1.25])
def test_faster_speech_is_shorter_and_higher(factor):
    changed = change_speed(TONE, factor)
    assert len(changed) == pytest.approx(len(TONE) / factor, abs=2)
    assert pitch(changed) == pytest.approx(440 * factor, rel=0.01)


def test_speech_stays_as_it_is_where_it_would_be_too_long_or_too_short():
    long, short = np.zeros(int(28.5 * SAMPLE_RATE), np.float32), TONE[: int(0.21 * SAMPLE_RATE)]
    assert change_speed(long, 0.9) is long
    assert change_speed(short, 1.2) is short


def test_noise_has_the_power_that_the_ratio_says():
    noise = add_noise(TONE, 12.0, np.random.default_rng(0)) - TONE
    ratio = 10 * np.log10(np.mean(TONE**2) / np.mean(noise**2))
    assert ratio == pytest.approx(12.0, abs=0.2)


def test_masks_are_bands_and_spans_no_wider_than_the_policy():
    features = np.random.default_rng(0).normal(size=(80, 300)).astype(np.float16)
    widest = [0, 0]
    for seed in range(40):
        masked = mask_features(features, 300, 0.5, np.random.default_rng(seed))
        same = masked == features
        bands, spans = (~same.any(axis=1)).sum(), (~same.any(axis=0)).sum()
        assert same[same.any(axis=1)][:, same.any(axis=0)].all()  # nothing but whole bands and whole spans
        widest = [max(widest[0], bands), max(widest[1], spans)]
    assert 13 < widest[0] <= 2 * 13  # two masks of at most half of 27 bands
    assert 30 < widest[1] <= 2 * 30  # and of half of 20 % of 300 frames
    assert (mask_features(features, 300, 0.0, np.random.default_rng(0)) == features).all()


def test_a_waveform_has_spans_alone():
    wave = np.random.default_rng(0).normal(size=(1, 48_000)).astype(np.float16)
    masked = mask_features(wave, 300, 1.0, np.random.default_rng(2))
    assert 0 < (masked != wave).sum() <= 2 * 60 * 160


def test_items_are_drawn_once_and_when_they_are_used():
    drawn = []
    items = DrawnLater("abc", lambda item: drawn.append(item) or item.upper())
    assert len(items) == 3
    assert drawn == []
    assert (items[1], items[1], items[:2]) == ("B", "B", ["A", "B"])
    assert drawn == ["b", "a"]


def test_nothing_is_varied_by_default_and_only_speech_can_be():
    settings, generator = make_config({}).train.augmentation, np.random.default_rng(0)
    assert settings == AugmentationTable()
    assert vary_audio(settings, TONE, generator) is TONE
    wave = TONE[None]
    assert vary_features(settings, wave, 100, generator) is wave
    noisy = make_config({"noise-snr": 20}).train.augmentation
    assert noisy != AugmentationTable()
    assert not np.array_equal(vary_audio(noisy, TONE, generator), TONE)
    with pytest.raises(ConfigError, match="noise-snr varies speech, and task = 'no-op' has none"):
        make_config({"noise-snr": 20, "task": "no-op", "arms": "global"})
