"""Waveforms: recordings in, 16 kHz mono float32 out, and checks that it can be speech."""

import io
import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import soundfile

from fl.core.errors import AudioError, SilenceError, TooShortError
from fl.core.files import write_atomically
from fl.speech.mono import MAX_SECONDS as MAX_SECONDS
from fl.speech.mono import SAMPLE_RATE as SAMPLE_RATE
from fl.speech.mono import SILENCE_PEAK as SILENCE_PEAK
from fl.speech.mono import Mono
from fl.speech.mono import Waveform as Waveform
from fl.speech.sound import open_sound

SUFFIXES = (".mp3", ".mp4", ".mpeg", ".mpga", ".m4a", ".wav", ".webm", ".ogg", ".flac", ".opus", ".aac", ".amr")
MIN_SECONDS = 0.2
MAX_FILE_SECONDS = 4 * 3600.0  # no more is read into memory at once; cut longer files with ``start`` and ``end``
SHORTEST_PART = 0.1  # seconds: less than this at the end of a recording holds no word
_LEVEL_WINDOW = SAMPLE_RATE // 50  # 20 ms


def require_recording(path: Path) -> None:
    """Raise :class:`AudioError` where there is no file to read."""
    if path.is_dir():
        raise AudioError(f"{path}: is a folder; give a recording")
    if not path.is_file():
        raise AudioError(f"{path}: no such audio file; check the name, which in a manifest is relative to the manifest")


def load_audio(
    path: str | Path, start: float | None = None, end: float | None = None, remark: Callable[[str], None] | None = None
) -> Waveform:
    """Read ``path``, or its part from ``start`` to ``end`` seconds, as float32 ``(samples,)`` at 16 kHz.

    Channels are averaged; any other rate is resampled by soxr in high quality. ``remark`` is told what is odd but usable.
    Raises AudioError when the file is missing, is not audio, holds no samples in the range or fewer than it says, or is longer than
    MAX_FILE_SECONDS.
    """
    path = Path(path)
    require_recording(path)
    first = start or 0.0
    last = min(first + MAX_FILE_SECONDS + 1.0, math.inf if end is None else end)
    with open_sound(path, str(path)) as sound:
        length = math.inf if sound.frames is None else sound.frames / sound.rate
        if first < 0 or last <= first or 0 < length <= first:
            has = f"; the file has {length:.2f} s" if length < math.inf else ""
            raise AudioError(f"{path}: the range {start} to {end} s is empty{has}")
        if length < math.inf and min(length, last) - first > MAX_FILE_SECONDS:
            raise _too_long(path, length - first)
        skipped = round(first * sound.rate)
        mono = Mono(sound, str(path), skipped, round(last * sound.rate) - skipped)
        audio = mono.read()
    if len(audio) > MAX_FILE_SECONDS * SAMPLE_RATE:
        raise _too_long(path, len(audio) / SAMPLE_RATE)
    if not len(audio):
        raise AudioError(f"{path}: holds no samples{' from there on' if start else ''}; record again or leave it out")
    if remark:
        for text in mono.remarks:
            remark(text)
    return audio


def _too_long(path: Path, seconds: float) -> AudioError:
    return AudioError(
        f"{path}: {seconds / 3600:.1f} h at once is more than {MAX_FILE_SECONDS / 3600:.0f} h; "
        "give 'start' and 'end' of each utterance"
    )


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
        raise TooShortError(f"{source}: {seconds:.2f} s is too short; speech has at least {MIN_SECONDS} s")
    if peak < SILENCE_PEAK:
        raise SilenceError(f"{source}: is silent (peak under -60 dBFS); check the microphone or leave it out", seconds)


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


def speech_parts(audio: Waveform) -> list[tuple[int, int]]:
    """The ranges of :func:`split_at_silence` but for those without sound or shorter than 0.1 s."""
    return [
        (start, end)
        for start, end in split_at_silence(audio)
        if end - start >= SHORTEST_PART * SAMPLE_RATE and float(np.abs(audio[start:end]).max()) >= SILENCE_PEAK
    ]


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
