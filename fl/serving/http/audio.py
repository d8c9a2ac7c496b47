"""Audio out of a request body: any format of libsndfile, in memory, never more of it than the limit.

A tiny file can claim or hold days of audio, so the header is believed only where it is to the sender's disadvantage: what it
claims is refused before a sample is read, and what there is is read in blocks of a second that are mixed and resampled as they
come.
"""

from __future__ import annotations

import io

import numpy as np
import soundfile
import soxr

from fl.core.errors import AudioError
from fl.serving.http.problems import ProblemError
from fl.speech.audio import MIN_SECONDS, SAMPLE_RATE, SILENCE_PEAK, Waveform, split_at_silence

MAX_CHANNELS = 16
RATES = (1_000, 384_000)  # Hz
SHORTEST_PART = 0.1  # seconds: less than this at the end of a recording holds no word
_FORMATS = "WAV, FLAC, OGG (Vorbis, Opus), MP3"


def decode_audio(data: bytes, max_seconds: float, source: str = "file") -> Waveform:
    """``data`` as float32 ``(samples,)`` at 16 kHz mono.

    ``source`` is the form field that messages name. Raises :class:`AudioError` for what is no speech, :class:`ProblemError`
    ``audio-too-long`` beyond ``max_seconds``.
    """
    if not data:
        raise AudioError(f"{source}: is empty; record it again")
    try:
        with soundfile.SoundFile(io.BytesIO(data)) as file:
            audio = _read(file, max_seconds, source)
    except (soundfile.SoundFileError, RuntimeError, ValueError, TypeError) as error:
        raise AudioError(f"{source}: cannot be read as audio ({type(error).__name__}); send {_FORMATS}") from None
    if not np.isfinite(audio).all():
        raise AudioError(f"{source}: holds samples that are not finite numbers; convert the file again")
    seconds = len(audio) / SAMPLE_RATE
    if seconds < MIN_SECONDS:
        raise AudioError(f"{source}: {seconds:.2f} s is too short; speech has at least {MIN_SECONDS} s")
    if float(np.abs(audio).max()) < SILENCE_PEAK:
        raise AudioError(f"{source}: is silent (peak under -60 dBFS); check the microphone")
    return audio


def _read(file: soundfile.SoundFile, max_seconds: float, source: str) -> Waveform:
    rate, channels, claimed = int(file.samplerate), int(file.channels), len(file)
    if not RATES[0] <= rate <= RATES[1] or not 1 <= channels <= MAX_CHANNELS:
        raise AudioError(
            f"{source}: {rate} Hz and {channels} channels; {RATES[0]} to {RATES[1]} Hz and at most {MAX_CHANNELS} are read"
        )

    def check_length(frames: int) -> None:
        if frames > round(max_seconds * rate):
            reason = f"{source}: {frames / rate:,.1f} s of audio, and at most {max_seconds:g} s are taken"
            raise ProblemError("audio-too-long", reason)

    check_length(claimed)
    resampler = (
        None if rate == SAMPLE_RATE else soxr.ResampleStream(rate, SAMPLE_RATE, 1, dtype="float32", quality="HQ")
    )
    parts: list[np.ndarray] = []
    frames, last = 0, False
    while not last:
        block = file.read(rate, dtype="float32", always_2d=True)
        frames, last = frames + len(block), len(block) < rate
        check_length(frames)
        mono = block.mean(axis=1, dtype=np.float32)
        parts.append(mono if resampler is None else resampler.resample_chunk(mono, last=last))
    if frames < claimed:
        raise AudioError(f"{source}: is cut off after {frames:,} of {claimed:,} frames; send all of it")
    return np.ascontiguousarray(np.concatenate(parts), dtype=np.float32)


def speech_parts(audio: Waveform) -> list[tuple[int, int]]:
    """Ranges of samples of at most 29 s, cut at silence, in order. Parts without sound or shorter than 0.1 s are left out."""
    return [
        (start, end)
        for start, end in split_at_silence(audio)
        if end - start >= SHORTEST_PART * SAMPLE_RATE and float(np.abs(audio[start:end]).max()) >= SILENCE_PEAK
    ]
