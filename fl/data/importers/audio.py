"""The audio of the records: measured, checked and, where a manifest cannot name it in place, written out."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from fl.core.errors import AudioError, CorpusError
from fl.data.importers.gather import ImportTally, Progress
from fl.data.importers.records import Problem, Record, UnusableError, file_of, useless
from fl.data.importers.sounds import Sounds
from fl.data.importers.summary import spoken_languages
from fl.data.manifest import Utterance
from fl.speech.audio import MAX_SECONDS, MIN_SECONDS, SAMPLE_RATE, SILENCE_PEAK, save_audio

Spoken = tuple[Utterance, Record, float]
"""An utterance of the manifest, the record it comes from, and its seconds."""


def checked(
    records: Sequence[Record], sounds: Sounds, out: Path | None, copy: bool, tally: ImportTally, show: Progress
) -> list[Spoken]:
    """Every record whose audio is speech of a usable length; what is not goes to ``tally``.

    Audio is written below ``out`` if ``copy`` says so, and where a manifest could not name it (bytes in a table, raw PCM).
    """
    spoken: list[Spoken] = []
    for number, record in enumerate(records, 1):
        try:
            spoken.append(checked_utterance(record, sounds, out, copy))
        except UnusableError as refusal:
            tally.add(refusal.finding)
        except AudioError as error:
            tally.add(Problem(record.where, "unreadable audio", str(error)))
        except OSError as error:
            raise CorpusError(
                f"{record.where}: {error}; make room or choose another --out, then start again"
            ) from error
        show("audio", number, len(records))
    return spoken


def checked_utterance(record: Record, sounds: Sounds, out: Path | None, copy: bool) -> Spoken:
    """The utterance of ``record``, its audio written if it must be. Raises :class:`UnusableError` for audio that is of no use."""
    whole = sounds.seconds(record.audio)
    start, end = record.start or 0.0, whole if record.end is None else min(record.end, whole)
    if start >= whole:
        raise useless(record.where, "beyond the end of its recording")
    if end - start < MIN_SECONDS:
        raise useless(record.where, f"shorter than {MIN_SECONDS} s")
    if end - start > MAX_SECONDS:
        raise useless(record.where, f"longer than {MAX_SECONDS:.0f} s")
    record = replace(record, end=None if record.end is None else end)
    inside = not isinstance(record.audio, Path)
    if out is None or not (inside or copy):
        place = Path(_slug(record.id)) if inside else file_of(record.audio)
        return _utterance(record, place, record.start, record.end), record, end - start
    audio = sounds.waveform(record)
    if not np.isfinite(audio).all():
        raise useless(record.where, "samples that are no finite numbers")
    if float(np.abs(audio).max()) < SILENCE_PEAK:
        raise useless(record.where, "silence")
    path = out / "audio" / _slug(record.speaker or "") / f"{_slug(record.id)}.flac"
    save_audio(path, audio)
    return _utterance(record, path, None, None), record, len(audio) / SAMPLE_RATE


def _utterance(record: Record, audio: Path, start: float | None, end: float | None) -> Utterance:
    return Utterance(
        id=record.id,
        audio=audio,
        text=record.text,
        speaker=record.speaker or "",
        start=start,
        end=end,
        lang=spoken_languages(record)[1],
        spans=record.spans,
        level=record.level,
        loanwords=record.loanwords,
        session=record.session,
        split=record.split,
    )


def _slug(name: str) -> str:
    """A file name for any id: the id itself where that is safe, else what is safe of it and a hash of all."""
    safe = re.sub(r"[^A-Za-z0-9_-]+", "_", name)[:80]
    return safe if safe == name and safe else f"{safe}-{hashlib.sha256(name.encode()).hexdigest()[:12]}"
