"""The audio of a record: how long it is, and its waveform, whether it is a file, a header-less file or bytes in a table."""

from __future__ import annotations

import io
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import soundfile

from fl.core.errors import AudioError
from fl.data.importers.columns import ColumnReader
from fl.data.importers.records import AudioPlace, Embedded, RawPcm, Record
from fl.data.importers.texts import is_pointer
from fl.speech.audio import SAMPLE_RATE, Waveform, read_mono

MAX_EMBEDDED_BYTES = 512 << 20
_RAW = {"samplerate": SAMPLE_RATE, "channels": 1, "format": "RAW", "subtype": "PCM_16", "endian": "LITTLE"}


class Sounds:
    """Reads audio of records in the order of the corpus, so that a table is read once and a long recording measured once."""

    def __init__(self) -> None:
        self._columns = ColumnReader()
        self._known: tuple[AudioPlace | None, float] = (None, 0.0)

    def seconds(self, audio: AudioPlace) -> float:
        """Length of the whole file from its header. Raises :class:`AudioError` if it is not audio."""
        if self._known[0] != audio:
            with self._opened(audio) as file:
                self._known = (audio, file.frames / file.samplerate)
        return self._known[1]

    def waveform(self, record: Record) -> Waveform:
        """The record's samples, 16 kHz mono, cut from ``start`` to ``end``. Raises :class:`AudioError`."""
        with self._opened(record.audio) as file:
            first = min(file.frames, round((record.start or 0.0) * file.samplerate))
            last = file.frames if record.end is None else min(file.frames, round(record.end * file.samplerate))
            return read_mono(file, first, max(0, last - first))

    @contextmanager
    def _opened(self, audio: AudioPlace) -> Iterator[Any]:
        try:
            with self._file(audio) as file:
                yield file
        except (soundfile.SoundFileError, RuntimeError) as error:
            raise AudioError(_unreadable(audio, error)) from error

    def _file(self, audio: AudioPlace) -> Any:
        if isinstance(audio, Path):
            return soundfile.SoundFile(str(audio))
        if isinstance(audio, RawPcm):
            return soundfile.SoundFile(str(audio.path), **({} if has_header(audio.path) else _RAW))
        data = self._columns.value(audio)
        if not data or len(data) > MAX_EMBEDDED_BYTES:
            raise AudioError(
                f"{audio.path}: row {audio.row + 1} holds no audio, or more than {MAX_EMBEDDED_BYTES:,} bytes"
            )
        return soundfile.SoundFile(io.BytesIO(data))


def _unreadable(audio: AudioPlace, error: Exception) -> str:
    if isinstance(audio, Embedded):
        return f"{audio.path}: the audio in row {audio.row + 1} cannot be read ({error}); fetch the file again"
    path = audio.path if isinstance(audio, RawPcm) else audio
    if is_pointer(path):
        return f"{path}: is a Git LFS pointer, not the audio; run `git lfs pull` in the corpus"
    return f"{path}: cannot be read as audio ({error}); convert it to WAV or FLAC, or fetch it again"


def has_header(path: Path) -> bool:
    """Whether a file that is called ``.pcm`` is a WAV all the same."""
    with path.open("rb") as file:
        return file.read(4) == b"RIFF"
