"""Waveforms: WAV, FLAC, OGG or MP3 in, 16 kHz mono float32 out, and checks that it can be speech."""

import io
import math
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt
import soundfile

from fl.core.errors import AudioError
from fl.core.files import write_atomically

Waveform = npt.NDArray[np.float32]  # samples (samples,) at SAMPLE_RATE, nominally in [-1, 1]
SUFFIXES = (".mp3", ".mp4", ".mpeg", ".mpga", ".m4a", ".wav", ".webm", ".ogg", ".flac", ".opus", ".aac", ".amr")
SAMPLE_RATE = 16_000  # Hz, what Whisper and Wav2Vec2 expect
MIN_SECONDS = 0.2
MAX_SECONDS = 29.0  # Whisper's window of 30 s less a margin for the padding of a trimmed window
SILENCE_PEAK = 10 ** (-60 / 20)  # a waveform whose peak is under -60 dBFS holds no speech
MAX_FILE_SECONDS = 4 * 3600.0  # no more is read into memory at once; cut longer files with ``start`` and ``end``
MAX_RATE, MAX_CHANNELS = 384_000, 16  # Hz; no recording of speech has more
CONTAINERS = ("WAV", "WAVEX", "FLAC", "OGG", "MP3")  # by libsndfile's names; WAVEX is a WAV whose header says more
_ROUNDING = 0.1  # seconds that a lossy file may be off what its header says
_FORMATS = "WAV, FLAC, OGG or MP3"
_LEVEL_WINDOW = SAMPLE_RATE // 50  # 20 ms


def open_sound(source: str | BinaryIO, also: str = "", **raw: Any) -> soundfile.SoundFile:
    """Open audio in one of CONTAINERS, or in the container ``also``; ``raw`` is what a file without header does not say.

    Raises SoundFileError, for the caller to say which file it is, for any other container and what is no audio.
    """
    file = soundfile.SoundFile(source, **raw)
    if file.format in (*CONTAINERS, also):
        return file
    file.close()
    raise soundfile.SoundFileRuntimeError(f"{file.format} is not read")


def load_audio(path: str | Path, start: float | None = None, end: float | None = None) -> Waveform:
    """Read ``path``, or its part from ``start`` to ``end`` seconds, as float32 ``(samples,)`` at 16 kHz.

    Channels are averaged; any other rate is resampled by soxr in high quality. Raises AudioError when the file is
    missing, is not audio, holds no samples in the range or fewer than it says, or is longer than MAX_FILE_SECONDS.
    """
    path = Path(path)
    if not path.is_file():
        raise AudioError(f"{path}: no such audio file; check the 'audio' field, which is relative to the manifest")
    try:
        with open_sound(str(path)) as file:
            rate = int(file.samplerate)
            first, count = _frame_range(path, start, end, rate, len(file))
            audio = read_mono(file, first, count, str(path))
    except (soundfile.SoundFileError, RuntimeError) as error:
        raise AudioError(f"{path}: cannot be read as audio ({error}); use {_FORMATS}") from error
    if not len(audio):
        raise AudioError(f"{path}: holds no samples; record it again or leave it out")
    return audio


def read_mono(file: soundfile.SoundFile, first: int, count: int, source: str) -> Waveform:
    """``count`` frames from frame ``first`` on of an open file, as float32 ``(samples,)`` at 16 kHz: channels averaged, resampled.

    Takes memory for what is there, not for what the header says. Raises AudioError, beginning with ``source``, where that is less.
    """
    file.seek(first)
    found = bytearray()
    for block in read_blocks(file, count, source):
        found += block.tobytes()
    audio: Waveform = np.frombuffer(found, np.float32)
    seconds, claimed = len(audio) / SAMPLE_RATE, count / file.samplerate
    if seconds < claimed - _ROUNDING:
        raise AudioError(
            f"{source}: is cut off after {seconds:,.1f} of {claimed:,.1f} s; fetch it again or leave it out"
        )
    return audio


def read_blocks(file: soundfile.SoundFile, frames: int = sys.maxsize, source: str = "audio") -> Iterator[Waveform]:
    """At most ``frames`` more of an open file as :func:`read_mono` gives them, a second at a time, whatever length its header
    claims. Raises AudioError, beginning with ``source``, for more than MAX_RATE or MAX_CHANNELS."""
    rate, stream, last = int(file.samplerate), None, False
    if not (0 < rate <= MAX_RATE and file.channels <= MAX_CHANNELS):
        raise AudioError(
            f"{source}: {rate:,} Hz and {file.channels} channels; at most {MAX_RATE:,} Hz and {MAX_CHANNELS} are read: convert it"
        )
    if rate != SAMPLE_RATE:
        import soxr  # a fifth of a small device's start-up time, and most of them record at 16 kHz

        stream = soxr.ResampleStream(rate, SAMPLE_RATE, 1, dtype="float32", quality="HQ")
    while not last:
        wanted = min(rate, frames)
        block = file.read(wanted, dtype="float32", always_2d=True)
        frames -= len(block)
        last = len(block) < wanted or not frames
        mono = block.mean(axis=1, dtype=np.float32)
        yield mono if stream is None else stream.resample_chunk(mono, last=last)


def _frame_range(path: Path, start: float | None, end: float | None, rate: int, frames: int) -> tuple[int, int]:
    first = round((start or 0.0) * rate)
    last = frames if end is None else min(frames, round(end * rate))
    if first < 0 or (end is not None and last <= first) or (first >= frames > 0):
        raise AudioError(f"{path}: the range {start} to {end} s is empty; the file has {frames / rate:.2f} s")
    if (last - first) / rate > MAX_FILE_SECONDS:
        raise AudioError(
            f"{path}: {(last - first) / rate / 3600:.1f} h at once is more than {MAX_FILE_SECONDS / 3600:.0f} h; "
            "give 'start' and 'end' of each utterance"
        )
    return first, last - first


def check_speech(audio: Waveform, source: str) -> None:
    """Refuse what cannot be one utterance: AudioError, beginning with ``source``, for non-finite samples, less than
    MIN_SECONDS, more than MAX_SECONDS, or silence (peak under -60 dBFS)."""
    seconds = len(audio) / SAMPLE_RATE
    check_sound(seconds, float(np.abs(audio).max(initial=0.0)), source)
    if seconds > MAX_SECONDS:
        raise AudioError(
            f"{source}: {seconds:.1f} s is too long; an utterance has at most {MAX_SECONDS:.0f} s. Split it with "
            "'start' and 'end' in the manifest, each part with its own text; `idiolect transcribe` splits at pauses"
        )


def check_sound(seconds: float, peak: float, source: str) -> None:
    """Refuse what holds no speech, of any length: :class:`AudioError` as :func:`check_speech`. ``peak`` is NaN where a sample is."""
    if not math.isfinite(peak):
        raise AudioError(f"{source}: holds samples that are not finite numbers; convert the file again")
    if seconds < MIN_SECONDS:
        raise AudioError(f"{source}: {seconds:.2f} s is too short; speech has at least {MIN_SECONDS} s")
    if peak < SILENCE_PEAK:
        raise AudioError(f"{source}: is silent (peak under -60 dBFS); check the microphone or leave it out")


def split_at_silence(audio: Waveform, max_seconds: float = MAX_SECONDS) -> list[tuple[int, int]]:
    """Ranges ``(first, past the last)`` of samples that cover ``audio`` in order, none longer than ``max_seconds``.

    Each cut is made at the quietest 20 ms of the last half of the longest piece allowed, so pieces are at least half of
    ``max_seconds`` long except the last.
    """
    limit = int(max_seconds * SAMPLE_RATE)
    if limit < 2 * _LEVEL_WINDOW:
        raise AudioError(f"max_seconds={max_seconds} is too short to split at; give at least {MIN_SECONDS}")
    ranges, start = [], 0
    while len(audio) - start > limit:
        cut = _quietest(audio, start + limit // 2, start + limit)
        ranges.append((start, cut))
        start = cut
    ranges.append((start, len(audio)))
    return ranges


def _quietest(audio: Waveform, first: int, last: int) -> int:
    """The middle of the 20 ms window with the least energy between two samples; the first of several that are equal."""
    energy = np.concatenate([[0.0], np.cumsum(np.square(audio[first:last], dtype=np.float64))])
    windows = energy[_LEVEL_WINDOW:] - energy[:-_LEVEL_WINDOW]
    return first + int(np.argmin(windows)) + _LEVEL_WINDOW // 2


def save_audio(path: str | Path, audio: Waveform) -> None:
    """Write 16-bit mono at 16 kHz, FLAC if ``path`` ends in ``.flac``, else WAV. Samples beyond [-1, 1] are clipped.

    The file appears complete or not at all (temporary file, fsync, rename): a file of that name from before is intact
    when an AudioError or OSError (disk full) is raised.
    """
    path = Path(path)
    if not np.isfinite(audio).all():
        raise AudioError(f"{path}: refusing to write samples that are not finite numbers")
    samples = np.round(np.clip(audio, -1.0, 1.0) * 32767.0).astype(np.int16)
    kind = "FLAC" if path.suffix.lower() == ".flac" else "WAV"
    buffer = io.BytesIO()
    soundfile.write(buffer, samples, SAMPLE_RATE, format=kind, subtype="PCM_16")
    write_atomically(path, buffer.getvalue())
