"""Audio at a device: any file that libsndfile reads, or the microphone, as a small 16 kHz mono upload.

A file is read, mixed, resampled and encoded second by second, so that an hour of stereo needs no more memory than its upload.
"""

from __future__ import annotations

import importlib
import io
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import soundfile

from clients.device.body import FormPart
from fl.core.errors import AudioError, ConfigError

SAMPLE_RATE = 16_000  # Hz, what every base expects
MIN_SECONDS = 0.2
MAX_SECONDS = 3600.0  # of one upload; a server may take less
SILENCE_PEAK = 10 ** (-60 / 20)

CODECS: dict[str, tuple[str, str, str, str]] = {  # libsndfile's format and subtype, file name, media type
    "flac": ("FLAC", "PCM_16", "audio.flac", "audio/flac"),
    "opus": ("OGG", "OPUS", "audio.ogg", "audio/ogg"),
}

Block = npt.NDArray[np.float32]


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
    if not path.is_file():
        raise AudioError(f"{path}: no such audio file; check the name")
    try:
        with soundfile.SoundFile(str(path)) as file:
            if file.frames > MAX_SECONDS * file.samplerate:
                raise _too_long(str(path), file.frames / file.samplerate)
            return _encode(_resampled(_mono(file), int(file.samplerate)), codec, str(path))
    except (soundfile.SoundFileError, RuntimeError, OSError) as error:
        raise AudioError(f"{path}: cannot be read as audio ({error}); use WAV, FLAC, OGG or MP3") from error


def encode_samples(samples: Block, codec: str = "flac", source: str = "recording") -> Upload:
    """Samples ``(samples,)`` at 16 kHz, nominally in [-1, 1], as an upload."""
    return _encode(iter([samples]), codec, source)


def _too_long(source: str, seconds: float) -> AudioError:
    return AudioError(f"{source}: {seconds:,.0f} s is too long; cut it into parts of at most {MAX_SECONDS:,.0f} s")


def _mono(file: soundfile.SoundFile) -> Iterator[Block]:
    while len(block := file.read(int(file.samplerate), dtype="float32", always_2d=True)):
        yield block.mean(axis=1, dtype=np.float32)


def _resampled(blocks: Iterator[Block], rate: int) -> Iterator[Block]:
    if rate == SAMPLE_RATE:
        yield from blocks
        return
    import soxr  # a fifth of the start-up time, and most devices record at 16 kHz

    stream = soxr.ResampleStream(rate, SAMPLE_RATE, 1, dtype="float32", quality="HQ")
    for block in blocks:
        yield stream.resample_chunk(block)
    yield stream.resample_chunk(np.zeros(0, np.float32), last=True)


def _encode(blocks: Iterator[Block], codec: str, source: str) -> Upload:
    if codec not in CODECS:
        raise ConfigError(f"codec {codec!r} is not known: give one of {', '.join(CODECS)}")
    kind, subtype, _, _ = CODECS[codec]
    if subtype not in soundfile.available_subtypes(kind):
        raise ConfigError(f"this device's libsndfile cannot write {codec}: update it to 1.0.29 or later, or use flac")
    buffer, samples, peak = io.BytesIO(), 0, 0.0
    with soundfile.SoundFile(buffer, "w", SAMPLE_RATE, 1, subtype, format=kind) as out:
        for block in blocks:
            if not np.isfinite(block).all():
                raise AudioError(f"{source}: holds samples that are not finite numbers; convert the file again")
            samples += len(block)
            if samples > MAX_SECONDS * SAMPLE_RATE:
                raise _too_long(source, samples / SAMPLE_RATE)
            peak = max(peak, float(np.abs(block).max(initial=0.0)))
            out.write(np.clip(block, -1.0, 1.0))
    seconds = samples / SAMPLE_RATE
    if seconds < MIN_SECONDS:
        raise AudioError(f"{source}: {seconds:.2f} s is too short; speech has at least {MIN_SECONDS} s")
    if peak < SILENCE_PEAK:
        raise AudioError(f"{source}: is silent (peak under -60 dBFS); check the microphone")
    return Upload(buffer.getvalue(), codec, seconds)


def record(seconds: float, codec: str = "flac") -> Upload:
    """``seconds`` from the default microphone as an upload. Raises :class:`AudioError` where there is none."""
    if not MIN_SECONDS <= seconds <= MAX_SECONDS:
        raise ConfigError(f"seconds = {seconds:g} is not allowed: give {MIN_SECONDS} to {MAX_SECONDS:.0f}")
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
