"""Audio out of a request body, in memory, never more of it than the limit.

A tiny file can claim or hold days of audio, so its header is refused or paid for before a sample is decoded, and no more is
decoded than it claims, in a process that has bounds (:mod:`fl.speech.decode`).
"""

from collections.abc import Callable

import numpy as np

from fl.core.errors import AudioError
from fl.serving.http.problems import ProblemError
from fl.speech.audio import SAMPLE_RATE, Waveform, check_sound
from fl.speech.decode import AudioHeader, Decoder

MAX_CHANNELS = 2
RATES = (1_000, 48_000)  # Hz
ROUNDING = 1e-3  # seconds, more than a resampler rounds a length by


def decode_audio(
    decoder: Decoder, data: bytes, max_seconds: float, charge: Callable[[float], None], source: str = "file"
) -> Waveform:
    """``data`` as float32 ``(samples,)`` at 16 kHz mono.

    ``charge`` takes what the header claims before it is decoded, in seconds: samples times channels at 48 kHz, and not less than
    it lasts; where a header cannot be believed, each second when it is decoded. ``source`` is the form field that messages name.
    Raises :class:`AudioError` for what is no speech, :class:`ProblemError` ``audio-too-long`` beyond ``max_seconds``, and what
    ``charge`` raises.
    """
    if not data:
        raise AudioError(f"{source}: is empty; record it again")
    paid = 0.0

    def accept(header: AudioHeader) -> None:
        nonlocal paid
        if not RATES[0] <= header.rate <= RATES[1] or not 1 <= header.channels <= MAX_CHANNELS:
            raise AudioError(
                f"{source}: {header.rate} Hz and {header.channels} channels; {RATES[0]} to {RATES[1]} Hz and at most "
                f"{MAX_CHANNELS} are read"
            )
        if header.seconds > max_seconds + ROUNDING:
            reason = f"{source}: {header.seconds:,.1f} s of audio, and at most {max_seconds:g} s are taken"
            raise ProblemError("audio-too-long", reason)
        cost = max(header.seconds, (header.frames or 0) * header.channels / RATES[1])
        if cost > paid:
            charge(cost - paid)
            paid = cost

    audio = decoder.decode(data, accept, source)
    check_sound(len(audio) / SAMPLE_RATE, float(np.abs(audio).max(initial=0.0)), source)
    return audio
