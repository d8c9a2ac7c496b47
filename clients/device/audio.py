"""Audio at a device: a recording, or the microphone, as a small 16 kHz mono upload.

A file is read, mixed, resampled and encoded second by second, so that an hour of stereo needs no more memory than its upload.
"""

import importlib
import io
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import soundfile

from clients.device.messages import FormPart
from fl.core.errors import AudioError, ConfigError
from fl.core.paths import find
from fl.speech.audio import MIN_SECONDS, SAMPLE_RATE, Waveform, check_sound
from fl.speech.mono import Mono
from fl.speech.sound import open_sound

UPLOAD_SECONDS = 3600.0  # a server may take less
CODECS: dict[str, tuple[str, str, str, str]] = {  # libsndfile's format and subtype, file name, media type
    "flac": ("FLAC", "PCM_16", "audio.flac", "audio/flac"),
    "opus": ("OGG", "OPUS", "audio.ogg", "audio/ogg"),
}


@dataclass(frozen=True)
class Upload:
    """Encoded speech. ``codec`` is a key of :data:`CODECS`."""

    content: bytes
    codec: str
    seconds: float

    def part(self, name: str) -> FormPart:
        """A file of a form. The name that it goes by is ours, whatever the person's file is called."""
        return FormPart(name, self.content, *CODECS[self.codec][2:])


def encode_file(path: Path, codec: str = "flac") -> Upload:
    """``path`` as an upload: ``flac`` is lossless at 16 bits, ``opus`` about a tenth of that.

    Raises :class:`AudioError` for a file that is missing, no audio, too short, too long or silent.
    """
    with open_sound(_recording(path), str(path)) as sound:
        if sound.frames is not None and sound.frames > UPLOAD_SECONDS * sound.rate:
            raise _too_long(str(path), sound.frames / sound.rate)
        return _encode(Mono(sound, str(path)), codec, str(path))


def _recording(path: Path) -> Path:
    """The file of that name, in whatever Unicode form; :class:`AudioError` where it holds nothing or is none."""
    try:
        str(path).encode()
        there = find(path)
        if there.is_dir():
            raise AudioError(f"{path}: is a folder; give one recording, or labelled ones to 'idiolect device enrol'")
        if not there.is_file():
            raise AudioError(f"{path}: no such audio file; check the name")
        if not there.stat().st_size:
            raise AudioError(f"{path}: is empty; is it still being recorded or copied? try again when that is done")
    except (OSError, UnicodeError) as error:
        reason = getattr(error, "strerror", "") or "its name is no UTF-8"
        raise AudioError(f"{path}: cannot be opened ({reason}); rename it, or check who may read it") from error
    return there


def encode_samples(samples: Waveform, codec: str = "flac") -> Upload:
    """Samples ``(samples,)`` at 16 kHz, nominally in [-1, 1], as an upload."""
    return _encode([samples], codec, "recording")


def _too_long(source: str, seconds: float) -> AudioError:
    return AudioError(f"{source}: {seconds:,.0f} s is too long; cut it into parts of at most {UPLOAD_SECONDS:,.0f} s")


def _encode(blocks: Iterable[Waveform], codec: str, source: str) -> Upload:
    if codec not in CODECS:
        raise ConfigError(f"codec {codec!r} is not known: give one of {', '.join(CODECS)}")
    kind, subtype, _, _ = CODECS[codec]
    if subtype not in soundfile.available_subtypes(kind):
        raise ConfigError(f"this device's libsndfile cannot write {codec}: update it to 1.0.29 or later, or use flac")
    buffer, samples, peak = io.BytesIO(), 0, 0.0
    with soundfile.SoundFile(buffer, "w", SAMPLE_RATE, 1, subtype, format=kind) as out:
        for block in blocks:
            samples += len(block)
            if samples > UPLOAD_SECONDS * SAMPLE_RATE:
                raise _too_long(source, samples / SAMPLE_RATE)
            peak = float(np.maximum(peak, np.abs(block).max(initial=0.0)))  # NaN stays
            out.write(np.nan_to_num(block).clip(-1.0, 1.0))  # FLAC takes no NaN; it is refused below
    check_sound(samples / SAMPLE_RATE, peak, source)
    return Upload(buffer.getvalue(), codec, samples / SAMPLE_RATE)


def record(seconds: float, codec: str = "flac") -> Upload:
    """``seconds`` from the default microphone as an upload. Raises :class:`AudioError` where there is none."""
    if not MIN_SECONDS <= seconds <= UPLOAD_SECONDS:
        raise ConfigError(f"seconds = {seconds:g} is not allowed: give {MIN_SECONDS} to {UPLOAD_SECONDS:.0f}")
    try:
        device: Any = importlib.import_module("sounddevice")
    except (ImportError, OSError) as error:  # OSError: without the PortAudio library
        raise AudioError(f"recording needs PortAudio and sounddevice ({error}): 'pip install sounddevice'") from error
    try:
        samples = device.rec(round(seconds * SAMPLE_RATE), samplerate=SAMPLE_RATE, channels=1, dtype="float32")
        device.wait()
    except Exception as error:  # the library's own PortAudioError, known only where it is installed
        raise AudioError(f"the microphone cannot be used ({error}): check that one is there and not in use") from error
    return encode_samples(np.ascontiguousarray(samples[:, 0]), codec)
