"""Training speech in other circumstances: faster or slower, noisier, with parts of the spectrogram masked.

Every utterance is drawn anew for each local phase, by the phase's seed and the utterance's name: the same whatever the order and
whatever the backend. Nothing of it reaches a cache, and without it examples are what they were.
"""

from collections.abc import Callable, Sequence
from functools import cache
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt
import soxr

from fl.settings.tables import AugmentationTable
from fl.speech.audio import MAX_SECONDS, MIN_SECONDS, SAMPLE_RATE, Waveform

BAND_SHARE = 27 / 80  # of the mel bands: the widest frequency mask at strength 1, F of SpecAugment's policies
SPAN_SHARE, SPAN_FRAMES = 0.2, 100  # of an utterance, and frames of 10 ms: the longest time mask, p and T
MASKS = 2  # of each kind
QUIETER_DB = 20.0  # noise is drawn between the setting and this much less of it

Array = npt.NDArray[Any]
Item = TypeVar("Item")


def change_speed(audio: Waveform, factor: float) -> Waveform:
    """``audio`` (samples,) played ``factor`` times as fast, pitch included (Ko et al. 2015, "Audio augmentation").

    As it is where it would become shorter or longer than an utterance may be.
    """
    if not MIN_SECONDS * SAMPLE_RATE <= len(audio) / factor <= MAX_SECONDS * SAMPLE_RATE:
        return audio
    return np.asarray(soxr.resample(audio, SAMPLE_RATE * factor, SAMPLE_RATE, quality="HQ"), np.float32)


def add_noise(audio: Waveform, snr_db: float, generator: np.random.Generator) -> Waveform:
    """``audio`` (samples,) with white noise ``snr_db`` under its power."""
    power = float(np.mean(np.square(audio, dtype=np.float64)))
    noise = generator.standard_normal(len(audio)) * np.sqrt(power * 10 ** (-snr_db / 10))
    noisy: Waveform = (audio + noise).astype(np.float32)
    return noisy


def mask_features(features: Array, frames: int, strength: float, generator: np.random.Generator) -> Array:
    """Two bands and two spans of ``features`` (bands, columns) replaced by their mean: SpecAugment without time warping.

    Source: Park et al. 2019, arXiv 1904.08779, section 2; widths are drawn from 0 to ``strength`` times those of its policies.
    The columns are of ``frames`` frames of 10 ms. A waveform (1, samples) has no bands and gets the spans alone.
    """
    bands, columns = features.shape
    masked: Array = features.copy()
    mean = features.mean(dtype=np.float64)
    longest = strength * min(SPAN_SHARE * frames, SPAN_FRAMES) * columns / max(1, frames)
    for axis, size, widest in ((0, bands, strength * BAND_SHARE * bands if bands > 1 else 0.0), (1, columns, longest)):
        for _ in range(MASKS):
            width = int(generator.integers(0, int(widest) + 1))
            start = int(generator.integers(0, size - width + 1))
            where = slice(start, start + width)
            masked[(where, slice(None)) if axis == 0 else (slice(None), where)] = mean
    return masked


def vary_audio(settings: AugmentationTable, audio: Waveform, generator: np.random.Generator) -> Waveform:
    """One drawing of ``audio`` (samples,)."""
    speed = 1 + settings.speed_perturbation * generator.uniform(-1, 1)
    less = QUIETER_DB * generator.random()
    if settings.speed_perturbation:
        audio = change_speed(audio, speed)
    return add_noise(audio, settings.noise_snr + less, generator) if settings.noise_snr else audio


def vary_features(settings: AugmentationTable, features: Array, frames: int, generator: np.random.Generator) -> Array:
    """One drawing of ``features`` (bands, columns) of ``frames`` frames, after that of their audio."""
    return mask_features(features, frames, settings.spec_augment, generator) if settings.spec_augment else features


class DrawnLater(Sequence[Item]):
    """``draw`` of each item, made when it is first used: a local phase uses few of a device's examples."""

    def __init__(self, items: Sequence[Item], draw: Callable[[Item], Item]) -> None:
        self._items, self._drawn = items, cache(lambda place: draw(items[place]))

    def __len__(self) -> int:
        return len(self._items)

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return [self[place] for place in range(len(self))[index]]
        return self._drawn(range(len(self))[index])
