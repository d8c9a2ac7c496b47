"""What lies between a voice and a recording: the joints of a mixed sentence, the room, the microphone, the noise."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import scipy  # which loads signal and fft when they are first used
import soxr

from fl.speech.audio import SAMPLE_RATE, Waveform

_FADE_SECONDS = 0.012
_EDGE_SECONDS = 0.12
_SPEECH_RMS = 10 ** (-23 / 20)  # -23 dBFS, the loudness that broadcasters agreed on (EBU R 128), here as plain RMS
_PEAK = 0.89  # -1 dBFS


@dataclass(frozen=True)
class Acoustics:
    """Room and microphone of one device.

    ``low_hz`` and ``high_hz`` limit the band; ``snr_db`` is speech over noise; ``noise_tilt`` shapes the noise
    (amplitude ~ frequency ** -tilt: 0 white, 0.5 pink, 1 brown); ``rt60`` is the seconds in which the room's echo falls
    by 60 dB; ``direct_db`` is direct sound over reverberation; ``gain_db`` moves the level.
    """

    low_hz: float
    high_hz: float
    snr_db: float
    noise_tilt: float
    rt60: float
    direct_db: float
    gain_db: float = 0.0


def join_segments(segments: Sequence[Waveform], sample_rate: int) -> Waveform:
    """One waveform at 16 kHz from the runs of a sentence: their silent ends cut off, their loudness made equal (voices
    of two languages differ), and each joint faded over 12 ms."""
    fade = int(_FADE_SECONDS * sample_rate)
    loud = [_with_rms(_trim(segment, sample_rate), _SPEECH_RMS) for segment in segments]
    joined = loud[0]
    ramp = np.linspace(0.0, 1.0, fade, dtype=np.float32)
    for segment in loud[1:]:
        overlap = joined[-fade:] * ramp[::-1] + segment[:fade] * ramp
        joined = np.concatenate([joined[:-fade], overlap, segment[fade:]])
    edge = np.zeros(int(_EDGE_SECONDS * sample_rate), np.float32)
    padded = np.concatenate([edge, joined, edge])
    return np.asarray(soxr.resample(padded, sample_rate, SAMPLE_RATE, quality="HQ"), dtype=np.float32)


def record(speech: Waveform, acoustics: Acoustics, room: np.random.Generator, noise: np.random.Generator) -> Waveform:
    """``speech`` (16 kHz) as this device would record it, same length. ``room`` draws the impulse response and must
    give the same numbers for all utterances of a device; ``noise`` is the utterance's own."""
    wet = scipy.signal.fftconvolve(speech, impulse_response(acoustics, room))[: len(speech)]
    hiss = _coloured_noise(len(speech), acoustics.noise_tilt, noise)
    # the same microphone hears both, and the ratio is what it hears
    wet, hiss = _band(wet, acoustics), _band(hiss, acoustics)
    hiss *= np.sqrt(np.mean(wet**2) / np.mean(hiss**2)) * 10 ** (-acoustics.snr_db / 20)
    mixed = _with_rms((wet + hiss).astype(np.float32), _SPEECH_RMS * 10 ** (acoustics.gain_db / 20))
    peak = float(np.abs(mixed).max())
    return mixed * np.float32(min(1.0, _PEAK / peak))


def impulse_response(acoustics: Acoustics, room: np.random.Generator) -> np.ndarray:
    """A direct impulse followed, after 4 ms, by noise that decays by 60 dB in ``rt60`` seconds (Moorer 1979), float64
    ``(samples,)``, scaled to ``direct_db`` of direct over reverberant energy."""
    seconds = np.arange(int(acoustics.rt60 * SAMPLE_RATE)) / SAMPLE_RATE
    tail = room.standard_normal(len(seconds)) * 10 ** (-3 * seconds / acoustics.rt60)
    tail[: int(0.004 * SAMPLE_RATE)] = 0.0
    tail *= 10 ** (-acoustics.direct_db / 20) / np.sqrt(np.sum(tail**2))
    tail[0] = 1.0
    return tail


def _band(samples: np.ndarray, acoustics: Acoustics) -> np.ndarray:
    sections = scipy.signal.butter(
        3, (acoustics.low_hz, min(acoustics.high_hz, 0.49 * SAMPLE_RATE)), "bandpass", fs=SAMPLE_RATE, output="sos"
    )
    return np.asarray(scipy.signal.sosfilt(sections, samples))


def _coloured_noise(count: int, tilt: float, generator: np.random.Generator) -> np.ndarray:
    # a transform of prime length would be ten times slower
    length = scipy.fft.next_fast_len(count, real=True)
    spectrum = np.fft.rfft(generator.standard_normal(length))
    frequency = np.maximum(np.fft.rfftfreq(length, 1 / SAMPLE_RATE), 20.0)
    return np.fft.irfft(spectrum * frequency**-tilt, length)[:count]


def _trim(samples: Waveform, sample_rate: int) -> Waveform:
    """Without the silence at both ends (20 ms windows under -40 dB of the loudest), but never shorter than two fades."""
    window = sample_rate // 50
    count = max(1, len(samples) // window)
    level = np.sqrt([np.mean(samples[i * window : (i + 1) * window] ** 2) for i in range(count)])
    loud = np.flatnonzero(level > level.max() * 0.01)
    first, last = loud[0] * window, min(len(samples), (loud[-1] + 1) * window)
    kept = samples[first:last]
    shortest = 2 * int(_FADE_SECONDS * sample_rate)
    return np.pad(kept, (0, max(0, shortest - len(kept))))


def _with_rms(samples: Waveform, rms: float) -> Waveform:
    present = float(np.sqrt(np.mean(np.square(samples, dtype=np.float64))))
    return samples * np.float32(rms / max(present, 1e-9))
