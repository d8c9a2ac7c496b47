"""What FFmpeg decodes of a recording: one demuxer, which the caller names, and decoders of a list.

FFmpeg sees a file object and never a path, a demuxer is not guessed, and other decoders are closed to it: nothing that stands in a
file leads to another file, to the network or to a decoder of video.
"""

from collections.abc import Iterator
from typing import BinaryIO

import av
import numpy as np
import numpy.typing as npt

PCM = ("u8", "s16le", "s16be", "s24le", "s24be", "s32le", "s32be", "f32le", "f32be", "f64le", "f64be", "alaw", "mulaw")
DECODERS = (
    *("aac", "alac", "amrnb", "amrwb", "flac", "mp2", "mp2float", "mp3", "mp3float", "opus", "vorbis"),
    *(f"pcm_{kind}" for kind in PCM),
)
_OPTIONS = {"codec_whitelist": ",".join(DECODERS), "protocol_whitelist": "none"}
_LOST_SECONDS = 0.1  # of packets that cannot be decoded: what stands before the first frame or after the last


class FFmpegSound:
    """The first stream of audio in ``file``, in a container of ``demuxer``; see :class:`fl.speech.sound.Sound`.

    Raises ValueError for no such stream and for what is damaged.
    """

    frames: int | None = None  # these headers are claims: an estimate, the length before a cut, or nothing

    def __init__(self, file: BinaryIO, demuxer: str) -> None:
        self._file, self._demuxer = file, demuxer
        self.rate = self.channels = 0  # of the first frame, from here on of all
        self.floating = False
        next(self._arrays(), None)

    def blocks(self, first: int = 0) -> Iterator[npt.NDArray[np.float32]]:
        """Decoded from the beginning, whatever ``first`` is: no seek of these containers is exact."""
        waiting: list[npt.NDArray[np.float32]] = []
        for array in self._arrays():
            skipped = min(first, len(array))
            first -= skipped
            if skipped == len(array):
                continue
            waiting.append(array[skipped:])
            if sum(map(len, waiting)) >= self.rate:
                yield np.concatenate(waiting)
                waiting.clear()
        if waiting:
            yield np.concatenate(waiting)

    def _arrays(self) -> Iterator[npt.NDArray[np.float32]]:
        size = self._file.seek(0, 2)
        self._file.seek(0)
        try:
            with av.open(
                self._file, "r", format=self._demuxer, options=_OPTIONS, metadata_errors="ignore"
            ) as container:
                yield from self._decoded(container, size)
        except av.FFmpegError as error:
            raise ValueError(error.strerror) from error

    def _decoded(self, container: av.container.InputContainer, size: int) -> Iterator[npt.NDArray[np.float32]]:
        if not container.streams.audio:
            raise ValueError("no sound in it")
        stream = container.streams.audio[0]
        codec, lost, seconds = stream.codec_context, 0.0, 0.0
        if codec is None or codec.name not in DECODERS:
            raise ValueError(f"codec {codec.name if codec else 'unknown'} is not read")
        index = stream.index_entries  # of a file that is written piece by piece: of no more than the first pieces
        last = index[len(index) - 1] if len(index) else None
        if self._demuxer == "mov" and stream.frames and last is not None and last.pos + last.size > size:
            raise ValueError("cut off: its index leads past its end")
        codec.thread_count = 1
        self.floating = codec.name.startswith("pcm_f")
        for packet in container.demux(stream):
            if lost > _LOST_SECONDS:
                raise ValueError("damaged: parts of it cannot be decoded")
            try:
                frames = codec.decode(packet)
            except av.error.InvalidDataError:
                lost += seconds or 0.02  # as long as the one before; the last packet of a file may be cut
                continue
            for frame in frames:
                yield self._array(frame)
                seconds = frame.samples / frame.sample_rate

    def _array(self, frame: av.AudioFrame) -> npt.NDArray[np.float32]:
        """Samples (frames, channels) in [-1, 1]."""
        found, values = (frame.sample_rate, frame.layout.nb_channels), frame.to_ndarray()
        if (self.rate or found[0], self.channels or found[1]) != found:
            before = f"{self.rate:,} Hz and {self.channels} channels"
            raise ValueError(f"changes from {before} to {found[0]:,} and {found[1]}")
        self.rate, self.channels = found
        values = values.T if frame.format.is_planar else values.reshape(-1, self.channels)
        if values.dtype.kind == "f":
            return np.ascontiguousarray(values, np.float32)
        half = 2.0 ** (8 * values.dtype.itemsize - 1)
        return ((values - (half if values.dtype.kind == "u" else 0.0)) / half).astype(np.float32)
