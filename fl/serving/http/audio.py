"""Audio out of a request body: WAV, FLAC, OGG or MP3, in memory, never more of it than the limit.

A tiny file can claim or hold days of audio, so the header is believed only where it is to the sender's disadvantage: what it
claims is refused before a sample is read, and what there is is read in blocks of a second.
"""

import io

import numpy as np
import soundfile

from fl.core.errors import AudioError
from fl.serving.http.problems import ProblemError
from fl.speech.audio import SAMPLE_RATE, SILENCE_PEAK, Waveform, check_sound, open_sound, read_blocks, split_at_silence

MAX_CHANNELS = 16
RATES = (1_000, 384_000)  # Hz
ROUNDING = 1e-3  # seconds, more than a resampler rounds a length by
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
        with open_sound(io.BytesIO(data)) as file:
            audio = _read(file, max_seconds, source)
    except (soundfile.SoundFileError, RuntimeError, ValueError, TypeError) as error:
        raise AudioError(f"{source}: cannot be read as audio ({type(error).__name__}); send {_FORMATS}") from None
    check_sound(len(audio) / SAMPLE_RATE, float(np.abs(audio).max(initial=0.0)), source)
    return audio


def _read(file: soundfile.SoundFile, max_seconds: float, source: str) -> Waveform:
    rate, channels = int(file.samplerate), int(file.channels)
    if not RATES[0] <= rate <= RATES[1] or not 1 <= channels <= MAX_CHANNELS:
        raise AudioError(
            f"{source}: {rate} Hz and {channels} channels; {RATES[0]} to {RATES[1]} Hz and at most {MAX_CHANNELS} are read"
        )

    def check_length(seconds: float) -> None:
        if seconds > max_seconds + ROUNDING:
            reason = f"{source}: {seconds:,.1f} s of audio, and at most {max_seconds:g} s are taken"
            raise ProblemError("audio-too-long", reason)

    claimed, seconds = len(file) / rate, 0.0
    check_length(claimed)
    blocks: list[Waveform] = []
    for block in read_blocks(file):
        seconds += len(block) / SAMPLE_RATE
        check_length(seconds)
        blocks.append(block)
    if seconds < claimed - ROUNDING:
        raise AudioError(f"{source}: is cut off after {seconds:,.1f} of {claimed:,.1f} s; send all of it")
    return np.ascontiguousarray(np.concatenate(blocks), dtype=np.float32)


def speech_parts(audio: Waveform) -> list[tuple[int, int]]:
    """Ranges of samples of at most 29 s, cut at silence, in order. Parts without sound or shorter than 0.1 s are left out."""
    return [
        (start, end)
        for start, end in split_at_silence(audio)
        if end - start >= SHORTEST_PART * SAMPLE_RATE and float(np.abs(audio[start:end]).max()) >= SILENCE_PEAK
    ]
