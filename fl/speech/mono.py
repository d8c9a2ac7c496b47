"""A recording as one channel at 16 kHz, a second at a time, and what is odd about it.

Stereo and float samples are heard twice: which channel to use, and what full scale is, is known at their end alone.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from fl.core.errors import AudioError
from fl.speech.sound import Sound

Waveform = npt.NDArray[np.float32]  # samples (samples,) at SAMPLE_RATE, nominally in [-1, 1]
SAMPLE_RATE = 16_000  # Hz, what Whisper and Wav2Vec2 expect
MAX_SECONDS = 29.0  # Whisper's window of 30 s less a margin for the padding of a trimmed window
SILENCE_PEAK = 10 ** (-60 / 20)  # a waveform whose peak is under -60 dBFS holds no speech
MAX_RATE, MAX_CHANNELS = 384_000, 16  # Hz; no recording of speech has more
_ROUNDING = 0.1  # seconds that a file may be off what its header says
_FULL_SCALE = 127 / 128  # what the least exact samples, of 8 bits, reach
_CLIPPED = 0.01  # a larger share of samples at full scale is no accident
_INVERTED = -0.9  # a correlation of channels below it: their mean would be next to nothing


@dataclass
class _Survey:
    """Extremes, sums and products of channels."""

    frames: int = 0
    clipped: int = 0
    low: npt.NDArray[np.float64] = field(default_factory=lambda: np.full(1, np.inf))
    high: npt.NDArray[np.float64] = field(default_factory=lambda: np.full(1, -np.inf))
    total: npt.NDArray[np.float64] = field(default_factory=lambda: np.zeros(1))
    products: npt.NDArray[np.float64] = field(default_factory=lambda: np.zeros((1, 1)))

    def add(self, block: npt.NDArray[np.float32]) -> None:
        """``block`` (frames, channels)."""
        self.frames += len(block)
        self.clipped += int((np.abs(block) >= _FULL_SCALE).sum())
        self.low, self.high = np.minimum(self.low, block.min(axis=0)), np.maximum(self.high, block.max(axis=0))
        if block.shape[1] > 1:
            exact = block.astype(np.float64)
            self.total, self.products = self.total + exact.sum(axis=0), self.products + exact.T @ exact

    @property
    def alive(self) -> npt.NDArray[np.bool_]:
        """Whether a channel moves by more than silence does, or holds NaN."""
        with np.errstate(invalid="ignore"):  # infinite samples, which are refused later
            return ~((self.high - self.low) / 2 < SILENCE_PEAK)

    def scale(self) -> float:
        """By what floats in the range of integers are divided: 1 for floats in theirs."""
        peak = float(np.maximum(np.abs(self.low), np.abs(self.high)).max(initial=0.0))
        if not SILENCE_PEAK * 2**15 <= peak < np.inf:  # in the range of 16 bits this would be silence
            return 1.0
        return next((2.0 ** (bits - 1) for bits in (16, 24, 32) if peak <= 2 ** (bits - 1)), 1.0)

    def channels(self) -> tuple[list[int], str]:
        """Which channels to average, and a remark where these are not all."""
        used, every = np.flatnonzero(self.alive).tolist(), list(range(len(self.low)))
        if not used:
            return every, ""
        covariance = self.products - np.outer(self.total, self.total) / max(1, self.frames)
        spread = np.sqrt(np.diag(covariance))
        if len(used) > 1 and any(covariance[used[0], n] < _INVERTED * spread[used[0]] * spread[n] for n in used[1:]):
            return used[:1], "one channel is the other one inverted; one was used"
        return used, "" if used == every else "a channel is silent; the others were used"


class Mono:
    """``most`` frames of ``sound`` from frame ``first`` on, channels averaged, resampled. Iterate over it once.

    Of ``source`` messages speak. Raises :class:`AudioError` for more than MAX_RATE or MAX_CHANNELS, for less sound than a header
    that can be believed says, and for a signal that never moves.
    """

    def __init__(self, sound: Sound, source: str = "audio", first: int = 0, most: int = 2**62) -> None:
        self.sound, self._source, self._first, self._most = sound, source, first, most
        self.decoded = 0  # frames so far
        self.remarks: list[str] = []  # known after the last block

    def read(self) -> Waveform:
        """All of it. Takes memory for what is there, not for what the header says."""
        found = bytearray()
        for block in self:
            found += block.tobytes()
        return np.frombuffer(found, np.float32)

    def __iter__(self) -> Iterator[Waveform]:
        sound, rate = self.sound, self.sound.rate
        if not (0 <= rate <= MAX_RATE and sound.channels <= MAX_CHANNELS):
            raise AudioError(
                f"{self._source}: {rate:,} Hz and {sound.channels} channels; at most {MAX_RATE:,} Hz and "
                f"{MAX_CHANNELS} are read: convert it"
            )
        used, scale = list(range(sound.channels)), 1.0
        if sound.channels > 1 or sound.floating:
            before = _Survey()
            for block in self._blocks():
                before.add(block)
                yield np.zeros(0, np.float32)  # so that whoever counts what is decoded can stop
            scale = before.scale()
            used, odd = before.channels() if sound.channels > 1 else (used, "")
            self.remarks += [odd] if odd else []
            self.remarks += [f"float samples in the range of integers; divided by {scale:,.0f}"] if scale != 1.0 else []
        heard = _Survey()
        resampler = None
        if rate != SAMPLE_RATE and rate:
            import soxr  # a fifth of a small device's start-up time, and most of them record at 16 kHz

            resampler = soxr.ResampleStream(rate, SAMPLE_RATE, 1, dtype="float32", quality="HQ")
        waiting: Waveform | None = None  # the last block ends the stream of the resampler
        for block in self._blocks():
            if waiting is not None:
                yield waiting if resampler is None else resampler.resample_chunk(waiting)
            block = block if len(used) == sound.channels else block[:, used]
            waiting = block.mean(axis=1, dtype=np.float32)
            waiting = waiting if scale == 1.0 else waiting / np.float32(scale)
            heard.add(waiting[:, None])
        if waiting is not None:
            yield waiting if resampler is None else resampler.resample_chunk(waiting, last=True)
        self._judge(heard)

    def _blocks(self) -> Iterator[npt.NDArray[np.float32]]:
        left = self._most
        for block in self.sound.blocks(self._first):
            block = block[:left]
            left -= len(block)
            self.decoded = max(self.decoded, self._most - left)
            yield block
            if not left:
                return

    def _judge(self, heard: _Survey) -> None:
        rate, claimed = self.sound.rate, self.sound.frames
        wanted = heard.frames if claimed is None else min(self._most, claimed - self._first)
        if heard.frames < wanted - _ROUNDING * rate:
            seconds = f"{heard.frames / rate:,.1f} of {wanted / rate:,.1f} s"
            raise AudioError(f"{self._source}: is cut off after {seconds}; fetch it again or leave it out")
        if not heard.alive.any() and max(abs(heard.low[0]), abs(heard.high[0])) >= SILENCE_PEAK and heard.frames:
            raise AudioError(f"{self._source}: is one constant value throughout; check the microphone or leave it out")
        if heard.clipped > _CLIPPED * heard.frames:
            self.remarks.append("more than 1 % of the samples are at full scale, so it is clipped")
