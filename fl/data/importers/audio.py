"""The audio of the records, wherever it lies: measured, checked and, where a manifest cannot name it in place, written out."""

import hashlib
import io
import re
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import numpy as np

from fl.core.apart import Apart
from fl.core.errors import AudioError, CorpusError
from fl.data.checked import odd_notes
from fl.data.importers.gather import ImportTally, Progress
from fl.data.importers.places import CONVERTED, RAW_SUFFIXES
from fl.data.importers.records import AudioPlace, Embedded, Record, UnusableError, file_of
from fl.data.importers.tables import ArrowTable
from fl.data.importers.texts import is_pointer
from fl.data.manifest import BEYOND, MAX_BEYOND, Utterance
from fl.speech.audio import MAX_FILE_SECONDS, MAX_SECONDS, MIN_SECONDS, SAMPLE_RATE, SILENCE_PEAK, Waveform, save_audio
from fl.speech.mono import Mono
from fl.speech.sound import Sound, open_sound

Spoken = tuple[Utterance, Record, float]
"""An utterance of the manifest, the record it comes from, and its seconds."""

PAUSE_SECONDS = 0.1  # between recordings of one utterance
MAX_EMBEDDED_BYTES = 512 << 20
_RAW = {"samplerate": SAMPLE_RATE, "channels": 1, "format": "RAW", "subtype": "PCM_16", "endian": "LITTLE"}


def checked(
    records: Sequence[Record], out: Path | None, copy: bool, tally: ImportTally, show: Progress
) -> Iterator[Spoken]:
    """Every record whose audio is speech of a usable length; what is not goes to ``tally``. All audio is decoded once, and what is
    odd about it is counted in the notes of ``tally``.

    Audio is written below ``out`` if ``copy`` says so, and where a manifest could not name it (bytes in a table, raw PCM).
    """
    odd: dict[str, list[str]] = {}
    with Apart(f"{__name__}:Sounds", AudioError) as sounds:
        for number, record in enumerate(records, 1):
            try:
                yield _spoken(record, sounds, out, copy, odd)
            except UnusableError as refusal:
                tally.add(refusal)
            except AudioError as error:
                tally.add(UnusableError(record.where, "unreadable audio", str(error)))
            except OSError as error:
                remedy = "make room or choose another --out, then start again"
                raise CorpusError(f"{record.where}: {error}; {remedy}") from error
            show("audio", number, len(records))
    tally.notes += odd_notes(odd, len(records))


def _spoken(record: Record, sounds: Apart, out: Path | None, copy: bool, odd: dict[str, list[str]]) -> Spoken:
    """The utterance of ``record``, its audio written if it must be. Raises :class:`UnusableError` for audio that is of no use."""
    audio = record.audio
    place = [str(audio.path), audio.column, audio.row] if isinstance(audio, Embedded) else [str(audio)]
    whole = float(sounds.one(place[0], "seconds", place))
    start, end = record.start or 0.0, whole if record.end is None else min(record.end, whole)
    if start >= whole:
        raise UnusableError(record.where, "beyond the end of its recording")
    if end - start < MIN_SECONDS:
        raise UnusableError(record.where, f"shorter than {MIN_SECONDS} s")
    if end - start > MAX_SECONDS:
        raise UnusableError(record.where, f"longer than {MAX_SECONDS:.0f} s")
    found, remarks = sounds.ask(place[0], "samples", place, start, end)
    samples = np.frombuffer(found, np.float32)
    for part in map(str, record.then):
        rest = MAX_SECONDS - len(samples) / SAMPLE_RATE
        if float(sounds.one(part, "seconds", [part])) + PAUSE_SECONDS > rest:
            raise UnusableError(record.where, f"longer than {MAX_SECONDS:.0f} s")
        more, others = sounds.ask(part, "samples", [part], 0.0, rest)
        pause = np.zeros(round(PAUSE_SECONDS * SAMPLE_RATE), np.float32)
        samples = np.concatenate([samples, pause, np.frombuffer(more, np.float32)])
        remarks += others
    if not np.isfinite(samples).all():
        raise UnusableError(record.where, "samples that are no finite numbers")
    if float(np.abs(samples).max(initial=0.0)) < SILENCE_PEAK:
        raise UnusableError(record.where, "silence")
    if record.end is not None and record.end > whole + MAX_BEYOND:
        remarks.append(BEYOND)
    for remark in remarks:
        odd.setdefault(remark, []).append(record.where)
    record = replace(record, end=None if record.end is None else end)
    inside = isinstance(audio, Embedded) or bool(record.then)  # no manifest can name it in place
    if out is None or not (copy or inside or _is_raw(audio) or file_of(audio).suffix.lower() in CONVERTED):
        return (
            _utterance(record, Path(_slug(record.id)) if inside else file_of(audio)),
            record,
            len(samples) / SAMPLE_RATE if record.then else end - start,
        )
    path = out / "audio" / _slug(record.speaker or "") / f"{_slug(record.id)}.flac"
    save_audio(path, samples)
    return _utterance(replace(record, start=None, end=None), path), record, len(samples) / SAMPLE_RATE


def _utterance(record: Record, audio: Path) -> Utterance:
    known = {field.name: getattr(record, field.name) for field in fields(Utterance)}
    return Utterance(**{**known, "audio": audio})


def _slug(name: str) -> str:
    """A file name for any id: the id itself where that is safe, else what is safe of it and a hash of all."""
    safe = re.sub(r"[^A-Za-z0-9_-]+", "_", name)[:80]
    return safe if safe == name and safe else f"{safe}-{hashlib.sha256(name.encode()).hexdigest()[:12]}"


class Sounds:
    """Opens audio of records in the order of the corpus, so that a table is read once and a long recording measured once.

    Runs apart (:mod:`fl.core.apart`): a place is a path, or a table's path, column and row.
    """

    def __init__(self) -> None:
        self._place: tuple[Path, str] | None = None  # the column that is being read
        self._values: Iterator[bytes | None] = iter(())
        self._row, self._value = -1, b""  # the one that was read last
        self._known: tuple[AudioPlace | None, float] = (None, 0.0)
        self._whole: tuple[Waveform, list[str]] | None = None  # of a recording whose header does not say its length

    def seconds(self, place: Sequence[Any]) -> Iterator[float]:
        """Length of the whole file, from its header where that can be believed. Raises :class:`AudioError` if it is not audio."""
        audio = _place(*place)
        if self._known[0] != audio:
            self._known, self._whole = (None, 0.0), None
            with self._opened(audio) as sound:
                seconds = 0.0 if sound.frames is None else sound.frames / sound.rate
                if sound.frames is None:
                    mono = Mono(sound, str(place[0]), most=round(MAX_FILE_SECONDS * sound.rate) + 1)
                    self._whole = mono.read(), mono.remarks
                    seconds = len(self._whole[0]) / SAMPLE_RATE
            if seconds > MAX_FILE_SECONDS and self._whole:
                raise AudioError(f"{place[0]}: is longer than {MAX_FILE_SECONDS / 3600:.0f} h; cut it into parts")
            self._known = audio, seconds
        yield self._known[1]

    def samples(self, place: Sequence[Any], start: float, end: float) -> Iterator[bytes | list[str]]:
        """Float32 samples at 16 kHz mono from ``start`` to ``end`` seconds, and remarks. Raises :class:`AudioError`."""
        audio = _place(*place)
        if self._known[0] == audio and self._whole:
            yield self._whole[0][round(start * SAMPLE_RATE) : round(end * SAMPLE_RATE)].tobytes()
            yield self._whole[1]
            return
        with self._opened(audio) as sound:
            first, last = round(start * sound.rate), round(end * sound.rate)
            mono = Mono(sound, str(place[0]), first, max(0, last - first))
            yield mono.read().tobytes()
            yield mono.remarks

    def _opened(self, audio: AudioPlace) -> AbstractContextManager[Sound]:
        path = file_of(audio)
        if isinstance(audio, Embedded):
            return open_sound(io.BytesIO(self._bytes(audio)), f"{path}: the audio in row {audio.row + 1}")
        if is_pointer(path):
            raise AudioError(f"{path}: is a Git LFS pointer, not the audio; run `git lfs pull` in the corpus")
        raw = _RAW if _is_raw(audio) and not _has_header(path) else {}
        return open_sound(path, str(path), CONVERTED.get(path.suffix.lower(), str(raw.get("format", ""))), **raw)

    def _bytes(self, audio: Embedded) -> bytes:
        if self._place != (audio.path, audio.column) or audio.row < self._row:
            self._place, self._row = (audio.path, audio.column), -1
            self._values = ArrowTable(audio.path).audio_bytes(audio.column)
        while self._row < audio.row:
            self._row, self._value = self._row + 1, next(self._values, None) or b""
        if not 0 < len(self._value) <= MAX_EMBEDDED_BYTES:
            row = f"{audio.path}: row {audio.row + 1}"
            raise AudioError(f"{row} holds no audio, or more than {MAX_EMBEDDED_BYTES:,} bytes")
        return self._value


def _place(path: str, column: str = "", row: int = 0) -> AudioPlace:
    return Embedded(Path(path), column, row) if column else Path(path)


def _is_raw(audio: AudioPlace) -> bool:
    """Whether audio is named like 16-bit little-endian samples of one channel at 16 kHz, as AI Hub ships them."""
    return isinstance(audio, Path) and audio.suffix.lower() in RAW_SUFFIXES


def _has_header(path: Path) -> bool:
    """Whether a file that is called ``.pcm`` is a WAV all the same."""
    with path.open("rb") as file:
        return file.read(4) == b"RIFF"
