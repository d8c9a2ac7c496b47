"""A recording as blocks of samples, whichever library decodes it: libsndfile takes WAV and FLAC, FFmpeg (PyAV) all else.

A file is what its beginning says, whatever its name, and no decoder sees a file that is not its own.
"""

import re
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any, BinaryIO, Protocol

import numpy as np
import numpy.typing as npt
import soundfile

from fl.core.errors import AudioError

CONTAINERS = ("WAV", "WAVEX", "RF64", "W64", "FLAC")  # by libsndfile's names; WAVEX is a WAV whose header says more
REMEDY = "use WAV, FLAC, MP3, M4A, MP4, OGG, OPUS, WebM, AAC or AMR; others: ffmpeg -i FILE out.flac"
_LIBSNDFILE = re.compile(rb"(RIFF|RIFX|RF64)....WAVE|riff\x2e\x91\xcf\x11|fLaC", re.DOTALL)
_DEMUXERS = {  # FFmpeg's names, by how a file begins
    "ogg": rb"OggS",
    "mov": rb"....(ftyp|moov|mdat|free|skip|wide)",
    "matroska": rb"\x1a\x45\xdf\xa3",
    "amr": rb"#!AMR",
    "mpeg": rb"\x00\x00\x01\xba",
    "aac": rb"\xff[\xf0\xf1\xf8\xf9]",
    "mp3": rb"\xff[\xe2-\xe5\xf2-\xf5\xfa-\xfd][\x10-\xef]",  # a frame of layer II or III
}
_HEAD = 16
_UNKNOWN = 0x7F00_0000  # bytes: a WAV that is written to a pipe claims this or more
_SHORTEST = 128  # bytes: a WAV of more that says to hold nothing was written to a pipe
_MOST = 2**36 - 1  # frames: what FLAC says where it does not know


class Sound(Protocol):
    """An open recording."""

    rate: int
    channels: int
    frames: int | None
    """How many there are, by a header that can be believed. A count that none can be is no count."""
    floating: bool
    """Whether samples are stored as floats, so that they may be of any size."""

    def blocks(self, first: int = 0) -> Iterator[npt.NDArray[np.float32]]:
        """Frames ``(frames, channels)`` from ``first`` on to the end, about a second at a time. May be called again."""
        ...


class _Forward(soundfile.SoundFile):
    def seekable(self) -> bool:
        """Else every block is followed by a seek, which fails at the end of a FLAC of unknown length."""
        return False


class _LibsndfileSound:
    def __init__(self, file: soundfile.SoundFile) -> None:
        self._file, self._at = file, 0
        self.rate, self.channels = int(file.samplerate), int(file.channels)
        self.floating = file.subtype in ("FLOAT", "DOUBLE")
        self.frames: int | None = file.frames if file.frames < _MOST else None
        cut = re.search(r"(?:data|SSND|riff|Riff size) : (\d+) \(should be (\d+)\)", file.extra_info)
        if cut and int(cut[1]) < _UNKNOWN:  # libsndfile has counted what is there
            self.frames = file.frames * int(cut[1]) // max(1, int(cut[2]))

    def blocks(self, first: int = 0) -> Iterator[npt.NDArray[np.float32]]:
        if first != self._at:
            self._file.seek(min(first, self._file.frames))
        self._at = -1
        while len(block := self._file.read(self.rate, dtype="float32", always_2d=True)):
            yield block


@contextmanager
def open_sound(source: Path | BinaryIO, name: str, also: str = "", **raw: Any) -> Iterator[Sound]:
    """Open a recording in a container that is read everywhere, or in the container ``also`` of libsndfile.

    ``raw`` is what a file without header does not say. Raises :class:`AudioError`, beginning with ``name``, for anything else, here
    and where blocks are read in the block of this context.
    """
    try:
        with source.open("rb") if isinstance(source, Path) else nullcontext(source) as file:
            demuxer = "" if raw else _demuxer(file, also)
            if not demuxer:
                file.seek(0)
                with _Forward(str(source) if isinstance(source, Path) else file, **raw) as opened:
                    if opened.format not in (*CONTAINERS, also):
                        raise ValueError(f"{opened.format} is not read")
                    if opened.frames or opened.format != "WAV" or file.seek(0, 2) < _SHORTEST:
                        yield _LibsndfileSound(opened)
                        return
                demuxer = "wav"  # its header says 0 bytes: FFmpeg reads on to the end
            try:
                from fl.speech.ffmpeg import FFmpegSound
            except ImportError as error:
                raise AudioError(f"{name}: is in a container that FFmpeg reads ({demuxer}): pip install av") from error
            yield FFmpegSound(file, demuxer)
    except (soundfile.SoundFileError, RuntimeError, OSError, ValueError) as error:
        raise AudioError(f"{name}: cannot be read as audio ({error}); {REMEDY}") from error


def _demuxer(file: BinaryIO, also: str) -> str:
    """FFmpeg's name of the container, or empty for one of libsndfile. Raises ValueError for what is neither."""
    file.seek(0)
    head, tagged = file.read(_HEAD), False
    if head.startswith(b"ID3") and len(head) == _HEAD:  # a tag before the sound: its size is 4 times 7 bits
        size = sum(byte << shift for byte, shift in zip(head[6:10], (21, 14, 7, 0), strict=True))
        file.seek(10 + size)
        head, tagged = file.read(_HEAD), True
    if _LIBSNDFILE.match(head):
        return ""
    found = next((name for name, begin in _DEMUXERS.items() if re.match(begin, head, re.DOTALL)), "")
    if not found and not tagged and not also:
        raise ValueError("its beginning is that of no container that is read" if head else "it is empty")
    return found or ("mp3" if tagged else "")
