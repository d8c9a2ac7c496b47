"""KECS and other sets of AI Hub: JSON label files beside WAV or raw PCM, with dual transcripts.

The sets differ in the names of their fields and in where they keep labels and audio. An utterance is any object with a text
in it, alone in its file or in a list; what the objects around it say (speaker, topic) holds for it too. Audio is the file that a
field names, else the file with the name of the label file, in any folder.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fl.core.errors import CorpusError
from fl.data.importers.duals import has_dual, looks_reversed, read_dual, remove_marks
from fl.data.importers.places import RAW_SUFFIXES, SUFFIXES, AudioIndex, locate, roots_of
from fl.data.importers.records import Audio, Finding, Format, LeftOut, Note, Options, Problem, RawPcm, Record
from fl.data.importers.tables import language, plain, split_of
from fl.data.importers.texts import line_of, parse_json, read_text, seconds

ALIASES: Mapping[str, tuple[str, ...]] = {
    "text": ("form", "transcription", "transcript", "text", "sentence"),
    "speaker": ("speaker_id", "speakerId", "speaker"),
    "id": ("id", "utterance_id"),
    "audio": ("audio", "audio_path", "file_name", "fileName", "wav"),
    "start": ("start", "start_time"),
    "end": ("end", "end_time"),
    "topic": ("topic", "category", "domain"),
    "lang": ("lang", "language"),
}
SAMPLE = 200
"""Duals that are looked at to notice an order that was given the wrong way round."""


@dataclass(frozen=True)
class Found:
    """An object with a text: its plain values, and with those of the objects around it (its own go before theirs).

    ``alone`` in its file, what is around it is about it: its id, its audio.
    """

    own: Mapping[str, Any]
    values: Mapping[str, Any]
    alone: bool


def read(source: Path, options: Options) -> Iterator[Finding]:
    """Records of all JSON files below ``source``."""
    names = {field: (options.fields[field],) if field in options.fields else known for field, known in ALIASES.items()}
    paths = [source] if source.is_file() else sorted(source.rglob("*.json"))
    if not paths:
        raise CorpusError(
            f"{source}: holds no JSON files; give the folder with the labels (and --audio with the audio)"
        )
    roots = roots_of(source, options.audio)
    index = AudioIndex(roots)
    duals: list[str] = []
    for path in paths:
        split = split_of(path, source)
        if options.wants(split or "", *path.relative_to(source if source.is_dir() else path.parent).parts):
            yield from _File(path, options, names, roots, index, duals).findings(split)
    if duals and looks_reversed(duals, options.order):
        yield Note(
            f"digits and Latin letters stand mostly in the other half of the duals: is --order {options.order} right?"
        )


class _File:
    """One label file."""

    def __init__(
        self,
        path: Path,
        options: Options,
        names: Mapping[str, tuple[str, ...]],
        roots: tuple[Path, ...],
        index: AudioIndex,
        duals: list[str],
    ) -> None:
        self._path, self._options, self._names, self._roots, self._index = path, options, names, roots, index
        self._duals = duals
        self._source = read_text(path, options.encoding)
        self._document = parse_json(self._source, str(path))

    def findings(self, split: str | None) -> Iterator[Finding]:
        """The utterances of this file; a Problem where it holds none."""
        known = self._listed_speakers()
        count = 0
        for count, found in enumerate(self._utterances(), 1):
            text = self._field(found, "text") or ""
            where = f"{self._path}:{line_of(self._source, found.values[self._key(found, 'text')])}"
            speaker = self._field(found, "speaker")
            if known and speaker is not None and speaker not in known:
                message = (
                    f"{where}: speaker {speaker!r} is not among those that the file lists ({', '.join(sorted(known))})"
                )
                yield Problem(where, "unknown speaker", message)
                continue
            if speaker is not None and self._options.local_speakers:
                speaker = f"{self._path.stem}/{speaker}"
            yield self._record(found, where, text, speaker, split, count)
        if not count:
            named = ", ".join(self._names["text"])
            message = f"{self._path}:1: no text under {named}; name the field with --field text=NAME"
            yield Problem(f"{self._path}:1", "no transcript", message)

    def _record(
        self, found: Found, where: str, text: str, speaker: str | None, split: str | None, number: int
    ) -> Finding:
        if has_dual(text) and len(self._duals) < SAMPLE:
            self._duals.append(text)
        spoken = read_dual(text, where, self._options.order, self._options.transcript)
        text = spoken.text
        if self._options.events == "remove":
            text, useless = remove_marks(text)
            if useless:
                return LeftOut(where, useless)
        audio = self._audio(found, where)
        if audio is None:
            message = (
                f"{where}: no audio file is called {self._path.stem!r}; give the folder of the audio with --audio DIR"
            )
            return Problem(where, "missing audio", message)
        try:
            start, end = seconds(self._raw(found, "start")), seconds(self._raw(found, "end"))
        except ValueError as error:
            return Problem(where, "broken times", f"{where}: {error}")
        return Record(
            where=where,
            id=self._field(found, "id") or (self._path.stem if found.alone else f"{self._path.stem}-{number}"),
            audio=audio,
            text=text,
            speaker=speaker,
            session=None if found.alone else self._path.stem,
            topic=self._field(found, "topic"),
            split=split,
            lang=language(self._field(found, "lang")),
            start=start,
            end=end,
            loanwords=spoken.loanwords,
        )

    def _utterances(self) -> Iterator[Found]:
        where = self._options.fields.get("utterances")
        document = self._document
        for key in where.split(".") if where else ():
            if not isinstance(document, dict) or key not in document:
                raise CorpusError(f"{self._path}:1: --field utterances={where}: there is no {key!r}")
            document = document[key]
        yield from self._walk(document, {}, True)

    def _walk(self, value: Any, around: Mapping[str, Any], alone: bool) -> Iterator[Found]:
        if isinstance(value, list):
            for item in value:
                yield from self._walk(item, around, False)
        elif isinstance(value, dict):
            own = _flat(value)
            here = {**around, **own}
            if any(isinstance(value.get(key), str) for key in self._names["text"]):
                yield Found(own, here, alone)
                return
            for item in value.values():
                if isinstance(item, dict | list):
                    yield from self._walk(item, here, alone)

    def _key(self, found: Found, field: str) -> str:
        return next(key for key in self._names[field] if isinstance(found.values.get(key), str))

    def _raw(self, found: Found, field: str) -> Any:
        shared = field in ("speaker", "topic", "lang", "audio") or found.alone
        values = found.values if shared else found.own
        return next((values[key] for key in self._names[field] if values.get(key) is not None), None)

    def _field(self, found: Found, field: str) -> str | None:
        return plain(self._raw(found, field))

    def _listed_speakers(self) -> set[str]:
        """Ids in a list of speakers at the top of the document, where there is one."""
        listed = self._document.get("speaker") if isinstance(self._document, dict) else None
        people = listed if isinstance(listed, list) else []
        return {str(person["id"]) for person in people if isinstance(person, dict) and "id" in person}

    def _audio(self, found: Found, where: str) -> Audio | None:
        name = self._field(found, "audio")
        if name and Path(name).suffix.lower() in SUFFIXES:
            path: Path | None = locate(name, where, (self._path.parent, *self._roots))
            if path is not None and not path.is_file():
                path = self._index.find(Path(name.replace("\\", "/")).stem, where) or path
        else:
            path = self._index.find(self._path.stem, where)
        return RawPcm(path) if path is not None and path.suffix.lower() in RAW_SUFFIXES else path


def _flat(value: Mapping[str, Any]) -> dict[str, Any]:
    """The plain values of an object and of the objects inside it, by their own names; the outer ones win."""
    inner: dict[str, Any] = {}
    for item in value.values():
        if isinstance(item, dict):
            inner.update(_flat(item))
    return {**inner, **{key: item for key, item in value.items() if not isinstance(item, dict | list)}}


FORMAT = Format(
    name="aihub",
    title="KECS and other sets of AI Hub",
    layout="JSON label files (one or many utterances each) and .wav or raw .pcm; duals (spelling)/(pronunciation), either order",
    speakers="speaker_id in the labels, else topic or session",
    licence="AI Hub terms: application only, not to be passed on",
    get="apply at aihub.or.kr; unpack labels and audio, give both folders",
    read=read,
)
