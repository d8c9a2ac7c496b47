"""Training speech in other circumstances: faster or slower, noisier, with parts of the spectrogram masked.

Every utterance is drawn anew for each local phase, by the phase's seed and the utterance's name: the same whatever the order and
whatever the backend. Nothing of it reaches a cache, and without it examples are what they were.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, overload

import numpy as np
import numpy.typing as npt
import soxr

from fl.core.rng import derive_generator
from fl.settings.config import TrainConfig
from fl.speech.audio import MAX_SECONDS, MIN_SECONDS, SAMPLE_RATE, Waveform
from fl.tasks.task import Example

BAND_SHARE = 27 / 80  # of the mel bands: the widest frequency mask at strength 1, F of SpecAugment's policies
SPAN_SHARE, SPAN_FRAMES = 0.2, 100  # of an utterance, and frames of 10 ms: the longest time mask, p and T
MASKS = 2  # of each kind
QUIETER_DB = 20.0  # noise is drawn between the setting and this much less of it
VARIED = "varied"  # in an example's details: its features are its own alone, no cache holds them

Array = npt.NDArray[Any]


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


@dataclass(frozen=True)
class Augmentation:
    """What is done to training speech; zeros do nothing."""

    spec_augment: float = 0.0
    speed: float = 0.0
    noise_snr_db: float = 0.0

    @classmethod
    def of(cls, train: TrainConfig) -> Augmentation:
        """That of the settings."""
        return cls(train.spec_augment, train.speed_perturbation, train.noise_snr)

    @property
    def active(self) -> bool:
        """Whether anything is done."""
        return self != Augmentation()

    def heard(self, audio: Waveform, generator: np.random.Generator) -> Waveform:
        """One drawing of ``audio`` (samples,)."""
        speed, less = 1 + self.speed * generator.uniform(-1, 1), QUIETER_DB * generator.random()
        if self.speed:
            audio = change_speed(audio, speed)
        return add_noise(audio, self.noise_snr_db + less, generator) if self.noise_snr_db else audio


class VariedExamples(Sequence[Example]):
    """Examples of which each is drawn when it is first used: a local phase uses few of a device's."""

    def __init__(
        self,
        examples: Sequence[Example],
        augmentation: Augmentation,
        seed: int,
        audio_of: Callable[[Example], Waveform],
        features_of: Callable[[Waveform], Array],
        frames_of: Callable[[Array], int],
    ) -> None:
        self._examples, self._augmentation, self._seed = examples, augmentation, seed
        self._audio_of, self._features_of, self._frames_of = audio_of, features_of, frames_of
        self._drawn: dict[int, Example] = {}

    def __len__(self) -> int:
        return len(self._examples)

    @overload
    def __getitem__(self, index: int) -> Example: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[Example]: ...
    def __getitem__(self, index: int | slice) -> Example | Sequence[Example]:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        place = range(len(self))[index]
        if place not in self._drawn:
            self._drawn[place] = self._draw(self._examples[place])
        return self._drawn[place]

    def _draw(self, example: Example) -> Example:
        generator = derive_generator(self._seed, "augment", example.key)
        features = self._features_of(self._augmentation.heard(self._audio_of(example), generator))
        frames = self._frames_of(features)
        if self._augmentation.spec_augment:
            features = mask_features(features, frames, self._augmentation.spec_augment, generator)
        utterance = example.inputs[0]
        return replace(example, inputs=(utterance, features), size=frames, details={**example.details, VARIED: True})
