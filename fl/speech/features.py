"""Log-mel spectrograms as Whisper's authors define them, and a cache of them on disk.

Source: openai/whisper ``audio.py`` (Radford et al. 2022, section 2.2): 25 ms Hann windows every 10 ms, Slaney mel
filters up to 8 kHz, log10 floored 8 decades under the maximum, then ``(x + 4) / 4``.
"""

import hashlib
from functools import lru_cache
from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt
from transformers import WhisperFeatureExtractor

from fl.core.errors import AudioError
from fl.speech.arrays import GIB, ArrayCache
from fl.speech.audio import SAMPLE_RATE, Waveform

Window = Literal["trimmed", "full"]
WINDOWS: tuple[Window, ...] = ("trimmed", "full")

FFT_SAMPLES = 400  # 25 ms
HOP_SAMPLES = 160  # 10 ms: 100 mel frames a second
FRAMES_PER_STATE = 2  # the encoder's second convolution has stride 2: 50 states a second
FULL_SECONDS = 30
FULL_SAMPLES = FULL_SECONDS * SAMPLE_RATE
MARGIN_SECONDS = 0.5  # real silence behind a trimmed utterance, so that the model sees it end
MAX_MELS = 256
_MAGIC = b"IDF1"
BUDGET = 4 * GIB  # on disk: about 70 hours of speech at 80 mel bands

Features = npt.NDArray[np.float16]


def pad_window(audio: Waveform, window: Window) -> Waveform:
    """``audio`` (samples,) at 16 kHz followed by zeros: up to 30 s (``full``), or 0.5 s and then up to a whole encoder
    state, 20 ms (``trimmed``). Raises :class:`AudioError` for audio that does not fit into 30 s.
    """
    if window not in WINDOWS:
        raise AudioError(f"window {window!r} is not known. Known: {', '.join(WINDOWS)}.")
    if audio.ndim != 1 or audio.size == 0:
        raise AudioError(f"audio must be a non-empty vector of samples, not of shape {audio.shape}.")
    size = FULL_SAMPLES if window == "full" else heard_frames(audio.size) * HOP_SAMPLES
    if audio.size > size:
        raise AudioError(
            f"audio of {audio.size / SAMPLE_RATE:.1f} s is longer than the window of {FULL_SECONDS} s: "
            "split it first (fl.speech.audio.split_at_silence)."
        )
    return np.pad(np.asarray(audio, np.float32), (0, size - audio.size))


def heard_frames(samples: int) -> int:
    """Frames of a trimmed window: what can be speech, whatever else the window is padded with."""
    step = HOP_SAMPLES * FRAMES_PER_STATE
    wanted = samples + int(MARGIN_SECONDS * SAMPLE_RATE)
    return min(-(-wanted // step) * step, FULL_SAMPLES) // HOP_SAMPLES


@lru_cache(maxsize=4)
def _extractor(mels: int) -> WhisperFeatureExtractor:
    return WhisperFeatureExtractor(feature_size=mels)


def log_mel(waveform: Waveform, mels: int) -> npt.NDArray[np.float32]:
    """The log-mel spectrogram (mels, samples // 160) of a padded waveform (samples,) at 16 kHz.

    The floor is relative to the loudest point of *this* waveform; trailing silence never is, so a trimmed window has
    the same values as the same frames of the full one.
    """
    made = _extractor(mels)(waveform, sampling_rate=SAMPLE_RATE, padding="longest", return_tensors="np")
    spectrogram: npt.NDArray[np.float32] = made["input_features"][0]
    return spectrogram


def extract(audio: Waveform, mels: int, window: Window) -> Features:
    """Features (mels, frames) of ``audio`` (samples,) in half precision, which is what the cache keeps.

    Half precision always, so that a result does not depend on whether the cache was warm. Values are within about
    [-1.5, 2]; the rounding is under 0.001.
    """
    return log_mel(pad_window(audio, window), mels).astype(np.float16)


class FeatureCache(ArrayCache):
    """Features on disk under ``root``, by the hash of the samples and of every setting."""

    def __init__(self, root: Path) -> None:
        largest = 64 + 2 * MAX_MELS * FULL_SAMPLES // HOP_SAMPLES
        super().__init__(root, ".mel", {_MAGIC: "<f2"}, budget=BUDGET, largest=largest)

    @staticmethod
    def key(audio: Waveform, mels: int, window: Window) -> str:
        """The key of the features of ``audio``."""
        settings = f"{FFT_SAMPLES} {HOP_SAMPLES} {MARGIN_SECONDS} {mels} {window} {audio.size}\n".encode()
        return hashlib.sha256(_MAGIC + settings + np.ascontiguousarray(audio, "<f4").tobytes()).hexdigest()

    def features(self, audio: Waveform, mels: int, window: Window) -> Features:
        """Features (mels, frames) of ``audio`` (samples,), from disk if they are there."""
        return self.get(self.key(audio, mels, window), mels, lambda: extract(audio, mels, window))
