import numpy as np
import pytest
import torch
from transformers.audio_utils import mel_filter_bank

from fl.core.errors import AudioError
from fl.speech import features
from fl.speech.features import FeatureCache, extract, log_mel, pad_window


@pytest.fixture
def audio():
    noise = np.random.default_rng(0).normal(size=40_000)
    return (0.05 * noise * np.hanning(40_000)).astype(np.float32)


@pytest.mark.parametrize("window", ["trimmed", "full"])
@pytest.mark.parametrize("mels", [80, 128])
def test_log_mel_is_that_of_openai_whisper(audio, mels, window):
    """Its ``log_mel_spectrogram`` over transformers' filters, which are Slaney's."""
    samples = torch.from_numpy(pad_window(audio, window))
    stft = torch.stft(samples, 400, 160, window=torch.hann_window(400), return_complex=True)
    filters = torch.from_numpy(mel_filter_bank(201, mels, 0.0, 8_000.0, 16_000, norm="slaney", mel_scale="slaney"))
    decades = (filters.float().T @ stft[:, :-1].abs() ** 2).clamp(min=1e-10).log10()
    expected = (torch.maximum(decades, decades.max() - 8.0) + 4.0) / 4.0
    np.testing.assert_allclose(log_mel(samples.numpy(), mels), expected.numpy(), atol=1e-6)


def test_a_trimmed_window_has_the_first_frames_of_the_full_one(audio):
    """All but the last two, whose 25 ms windows reach over the end of the trimmed waveform."""
    trimmed, full = extract(audio, 80, "trimmed"), extract(audio, 80, "full")
    assert full.shape == (80, 3000)
    np.testing.assert_array_equal(trimmed[:, :-2], full[:, : trimmed.shape[1] - 2])


@pytest.mark.parametrize("samples", [3_200, 3_201, 40_000, 40_319])
def test_a_trimmed_window_ends_with_half_a_second_of_silence_and_a_whole_encoder_state(samples):
    padded = pad_window(np.ones(samples, np.float32), "trimmed")
    assert 8_000 <= padded.size - samples < 8_000 + 320
    assert padded.size % 320 == 0
    assert not padded[samples:].any()
    assert extract(np.ones(samples, np.float32), 80, "trimmed").shape[1] % 2 == 0


def test_near_30_s_the_margin_shrinks_to_what_the_window_leaves():
    assert pad_window(np.ones(479_000, np.float32), "trimmed").size == 480_000


@pytest.mark.parametrize("window", ["trimmed", "full"])
def test_more_than_30_s_is_refused_with_a_remedy(window):
    with pytest.raises(AudioError, match=r"30\.0 s is longer .*split"):
        pad_window(np.ones(480_001, np.float32), window)


def test_an_unknown_window_and_empty_audio_are_refused(audio):
    with pytest.raises(AudioError, match="Known: trimmed, full"):
        pad_window(audio, "short")
    with pytest.raises(AudioError, match="non-empty"):
        pad_window(np.zeros(0, np.float32), "full")
    with pytest.raises(AudioError, match="vector"):
        pad_window(np.zeros((2, 100), np.float32), "full")


def test_the_cache_gives_the_values_that_it_was_not_asked_for_before(tmp_path, audio, monkeypatch):
    cache = FeatureCache(tmp_path)
    cold = cache.features(audio, 80, "trimmed")
    monkeypatch.setattr(features, "extract", lambda *_: pytest.fail("computed again"))
    warm = cache.features(audio, 80, "trimmed")
    assert warm.dtype == cold.dtype == np.float16
    np.testing.assert_array_equal(warm, cold)


def test_the_key_is_the_content_and_every_setting(audio):
    changed = audio.copy()
    changed[100] += 1e-6
    keys = {
        FeatureCache.key(audio, 80, "trimmed"),
        FeatureCache.key(audio, 80, "full"),
        FeatureCache.key(audio, 128, "trimmed"),
        FeatureCache.key(changed, 80, "trimmed"),
        FeatureCache.key(audio[:-1], 80, "trimmed"),
    }
    assert len(keys) == 5
    assert FeatureCache.key(audio.copy(), 80, "trimmed") in keys


@pytest.mark.parametrize("damage", ["cut", "empty", "flipped", "other", "huge"])
def test_a_damaged_file_is_computed_again(tmp_path, audio, damage):
    cache = FeatureCache(tmp_path)
    good = cache.features(audio, 80, "trimmed")
    path = cache.path(cache.key(audio, 80, "trimmed"))
    data = bytearray(path.read_bytes())
    whole = bytes(data)
    data[len(data) // 2] ^= 1
    path.write_bytes(
        {
            "cut": whole[:-2],
            "empty": b"",
            "flipped": bytes(data),
            "other": b"RIFF" + whole[4:],
            "huge": bytes(2_000_000),
        }[damage]
    )
    np.testing.assert_array_equal(cache.features(audio, 80, "trimmed"), good)
    assert path.read_bytes() == whole


def test_a_full_disk_costs_time_and_nothing_else(tmp_path, audio, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    made = FeatureCache(tmp_path).features(audio, 80, "trimmed")
    np.testing.assert_array_equal(made, extract(audio, 80, "trimmed"))
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]
