"""Recordings of strangers, decoded apart (:mod:`fl.core.apart`): a file that was made to break a decoder ends that process, and no
other.
"""

import io
import math
import struct
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from fl.core.apart import Apart, Bounds
from fl.core.errors import AudioError
from fl.speech.mono import SAMPLE_RATE, Mono, Waveform
from fl.speech.sound import open_sound

MEMORY = 384 * 2**20  # bytes of address space beside a few copies of the file; the libraries take half of it
PER_CPU_SECOND = 20  # seconds of audio; slow formats are decoded ten times as fast
SPARE_CPU_SECONDS = 10
FRAME_BYTES = 2**20  # more than a second of samples
SILENT_SECONDS = 120.0
_DECODED = struct.Struct("<q")  # frames so far, before each block of samples


@dataclass(frozen=True)
class AudioHeader:
    """What a file claims to be, or, where its header cannot be believed, what is decoded of it so far."""

    rate: int
    channels: int
    frames: int | None

    @property
    def seconds(self) -> float:
        """Of audio."""
        return (self.frames or 0) / max(1, self.rate)


class Decoder(Apart):
    """One process, which decodes one file at a time, of at most ``max_bytes`` and ``max_seconds``."""

    def __init__(self, max_bytes: int, max_seconds: float) -> None:
        seconds = math.ceil(SPARE_CPU_SECONDS + max_seconds / PER_CPU_SECOND)
        bounds = Bounds(MEMORY + 4 * max_bytes, seconds, FRAME_BYTES, SILENT_SECONDS, stranger=True)
        super().__init__(f"{__name__}:Recording", AudioError, bounds)

    def decode(self, data: bytes, accept: Callable[[AudioHeader], None], source: str) -> Waveform:
        """Samples at 16 kHz, mono. ``accept`` may refuse what the header claims, by raising, before anything is decoded; a header
        that says no length comes again and again, with what is decoded so far.

        Raises :class:`AudioError`, beginning with ``source``, for what is no audio, is longer than it claims or costs more than it may.
        """
        header = AudioHeader(*self.one(source, "open", data, source))
        accept(header)
        blocks: list[Waveform] = []
        left = header.seconds + 1.0
        with closing(self.ask(source, "samples")) as answer:
            for block in answer:
                blocks.append(np.frombuffer(block, np.float32, offset=_DECODED.size))
                left -= len(blocks[-1]) / SAMPLE_RATE
                if header.frames is None:
                    accept(replace(header, frames=_DECODED.unpack_from(block)[0]))
                elif left < 0:
                    raise AudioError(f"{source}: is longer than its header says; record or convert it again")
        return np.concatenate(blocks) if blocks else np.zeros(0, np.float32)


class Recording:
    """What runs apart, on the file that was sent last."""

    def open(self, data: bytes, source: str) -> Iterator[Any]:
        """Rate, channels and frames, as the header says."""
        self._data, self._source = data, source
        with open_sound(io.BytesIO(data), source) as sound:
            yield sound.rate, sound.channels, None if sound.frames is None else max(0, sound.frames)

    def samples(self) -> Iterator[bytes]:
        """A second at a time."""
        with open_sound(io.BytesIO(self._data), self._source) as sound:
            for block in (mono := Mono(sound, self._source)):
                yield _DECODED.pack(mono.decoded) + block.tobytes()
