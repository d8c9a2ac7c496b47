"""The audio of a record: how long it is, and its waveform, whether it is a file, a header-less file or bytes in a table."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import soundfile
import soxr

from fl.core.errors import AudioError
from fl.data.importers.columns import ColumnReader
from fl.data.importers.records import Audio, Embedded, RawPcm, Record
from fl.speech.audio import SAMPLE_RATE, Waveform

MAX_EMBEDDED_BYTES = 512 << 20
_POINTER = b"version https://git-lfs.github.com/spec"


class Sounds:
    """Reads audio of records in the order of the corpus, so that a table is read once and a long recording opened once."""

    def __init__(self) -> None:
        self._columns = ColumnReader()
        self._known: tuple[Audio | None, float] = (None, 0.0)

    def file_of(self, audio: Audio) -> Path:
        """The file that ``audio`` is or lies in."""
        return audio if isinstance(audio, Path) else audio.table if isinstance(audio, Embedded) else audio.path

    def seconds(self, audio: Audio) -> float:
        """Length of the whole file from its header. Raises :class:`AudioError` if it is not audio."""
        if self._known[0] != audio:
            self._known = (audio, self._seconds(audio))
        return self._known[1]

    def _seconds(self, audio: Audio) -> float:
        if isinstance(audio, RawPcm) and not has_header(audio.path):
            return audio.path.stat().st_size // 2 / SAMPLE_RATE
        try:
            found = soundfile.info(self._file(audio))
        except (soundfile.SoundFileError, RuntimeError) as error:
            raise AudioError(self._unreadable(audio, error)) from error
        return float(found.frames) / float(found.samplerate)

    def waveform(self, record: Record) -> Waveform:
        """The record's samples, 16 kHz mono, cut from ``start`` to ``end``. Raises :class:`AudioError`."""
        audio = record.audio
        if isinstance(audio, RawPcm) and not has_header(audio.path):
            data = audio.path.read_bytes()
            samples = np.frombuffer(data[: len(data) // 2 * 2], "<i2").astype(np.float32)[:, None] / 32768.0
            return _mono(_cut(samples, SAMPLE_RATE, record), SAMPLE_RATE)
        try:
            with soundfile.SoundFile(self._file(audio)) as file:
                rate = int(file.samplerate)
                first = round((record.start or 0.0) * rate)
                last = len(file) if record.end is None else min(len(file), round(record.end * rate))
                file.seek(min(first, len(file)))
                samples = file.read(max(0, last - first), dtype="float32", always_2d=True)
        except (soundfile.SoundFileError, RuntimeError) as error:
            raise AudioError(self._unreadable(audio, error)) from error
        return _mono(samples, rate)

    def _file(self, audio: Audio) -> str | io.BytesIO:
        if isinstance(audio, Embedded):
            data = self._columns.value(audio)
            if not data or len(data) > MAX_EMBEDDED_BYTES:
                raise AudioError(
                    f"{audio.table}: row {audio.row + 1} holds no audio, or more than {MAX_EMBEDDED_BYTES:,} bytes"
                )
            return io.BytesIO(data)
        return str(audio.path if isinstance(audio, RawPcm) else audio)

    def _unreadable(self, audio: Audio, error: Exception) -> str:
        if isinstance(audio, Embedded):
            return f"{audio.table}: the audio in row {audio.row + 1} cannot be read ({error}); fetch the file again"
        path = audio.path if isinstance(audio, RawPcm) else audio
        if is_pointer(path):
            return f"{path}: is a Git LFS pointer, not the audio; run `git lfs pull` in the corpus"
        return f"{path}: cannot be read as audio ({error}); convert it to WAV or FLAC, or fetch it again"


def has_header(path: Path) -> bool:
    """Whether a file that is called ``.pcm`` is a WAV all the same."""
    with path.open("rb") as file:
        return file.read(4) == b"RIFF"


def is_pointer(path: Path) -> bool:
    """Whether ``path`` is what Git leaves in place of a large file that was not fetched."""
    with path.open("rb") as file:
        return file.read(len(_POINTER)) == _POINTER


def _cut(samples: np.ndarray, rate: int, record: Record) -> np.ndarray:
    last = None if record.end is None else round(record.end * rate)
    return samples[round((record.start or 0.0) * rate) : last]


def _mono(samples: np.ndarray, rate: int) -> Waveform:
    mono = samples.mean(axis=1, dtype=np.float32) if len(samples) else np.zeros(0, np.float32)
    if rate != SAMPLE_RATE and len(mono):
        mono = soxr.resample(mono, rate, SAMPLE_RATE, quality="HQ").astype(np.float32)
    return np.ascontiguousarray(mono)
