"""KECS and other sets of AI Hub: JSON label files beside WAV or raw PCM, with dual transcripts.

The sets differ in the names of their fields and in where they keep labels and audio. An utterance is any object with a text
in it, alone in its file or in a list; what the objects around it say (speaker, topic) holds for it too. Audio is the file that a
field names, else the file with the name of the label file, in any folder.
"""

from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from fl.core.errors import CorpusError
from fl.core.paths import files_below, readable
from fl.data.importers.duals import reversed_votes, spoken_text
from fl.data.importers.places import SUFFIXES, AudioFolders
from fl.data.importers.records import Finding, Importer, Options, Record, UnusableError, attempt, seconds
from fl.data.importers.tables import language, parts_of, plain, split_of
from fl.data.importers.texts import line_of, parse_json, read_text

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
SHARED = ("speaker", "topic", "lang", "audio")
"""Fields that the objects around an utterance say of it too. Of one that is alone in its file they say all: its id, its audio."""


def read(source: Path, options: Options) -> Iterator[Finding]:
    """Records of all JSON files below ``source``."""
    paths = [source] if source.is_file() else list(files_below(source, "*.json"))
    if not paths:
        raise CorpusError(f"{source}: holds no JSON files; give the folder of the labels (and --audio with the audio)")
    folders = AudioFolders(source, options)
    votes = 0
    paths = [path for path in paths if options.wants(split_of(path, source) or "", *parts_of(path, source))]
    stems = Counter(path.stem for path in paths)
    for path in paths:
        alone = stems[path.stem] == 1
        name = path.stem if alone else Path(*parts_of(path, source)).with_suffix("").as_posix()
        labels = attempt(_LabelFile, path, name, options, split_of(path, source), folders)
        if isinstance(labels, UnusableError):
            yield labels
        else:
            yield from labels.findings()
            votes += labels.reversed_votes
    if votes > 0:
        yield f"digits and Latin letters stand mostly in the other half of the duals: is --order {options.order} right?"


class _LabelFile:
    """One label file, called ``name`` among all; ``reversed_votes`` of its duals are counted while they are read."""

    def __init__(self, path: Path, name: str, options: Options, split: str | None, folders: AudioFolders) -> None:
        self._path, self._name, self._options, self._split, self._folders = path, name, options, split, folders
        self._least = 1 if name == path.stem else 2  # among others of its name the folder tells whose audio it is
        self.reversed_votes = 0
        chosen = {field: (name,) for field, name in options.fields.items()}
        self._names: Mapping[str, tuple[str, ...]] = {**ALIASES, **chosen}
        self._shared = {name for field in SHARED for name in self._names[field]}
        self._source = read_text(path, options.encoding)
        self._document = parse_json(self._source, str(path))
        listed = self._document.get("speaker") if isinstance(self._document, dict) else None
        people = listed if isinstance(listed, list) else []
        self._listed = {readable(str(person["id"])) for person in people if isinstance(person, dict) and "id" in person}

    def findings(self) -> Iterator[Finding]:
        """The utterances of this file; a problem where it holds none."""
        count = 0
        for count, (values, alone) in enumerate(self._utterances(), 1):
            yield attempt(self._record, values, count, alone)
        if not count:
            fault = f"no text under {', '.join(self._names['text'])}; name the field with --field text=NAME"
            yield UnusableError(f"{self._path}:1", "no transcript", fault)

    def _record(self, values: Mapping[str, Any], number: int, alone: bool) -> Record:
        def cell(field: str) -> Any:
            return next((values[key] for key in self._names[field] if values.get(key) is not None), None)

        text = next(value for key in self._names["text"] if isinstance(value := values.get(key), str))
        where = f"{self._path}:{line_of(self._source, text)}"
        speaker = self._speaker(plain(cell("speaker")), where)
        self.reversed_votes += reversed_votes(text, self._options.order)
        spoken, loanwords = spoken_text(plain(text) or "", where, self._options)
        return Record(
            where=where,
            id=plain(cell("id")) or (self._path.stem if alone else f"{self._path.stem}-{number}"),
            audio=self._audio(plain(cell("audio")), where),
            text=spoken,
            speaker=speaker,
            session=None if alone else self._name,
            topic=plain(cell("topic")),
            split=self._split,
            lang=language(plain(cell("lang"))),
            start=seconds(cell("start"), where),
            end=seconds(cell("end"), where),
            loanwords=loanwords,
        )

    def _speaker(self, speaker: str | None, where: str) -> str | None:
        if self._listed and speaker is not None and readable(speaker) not in self._listed:
            fault = f"speaker {speaker!r} is not among those that the file lists ({', '.join(sorted(self._listed))})"
            raise UnusableError(where, "unknown speaker", fault)
        return f"{self._name}/{speaker}" if speaker is not None and self._options.local_speakers else speaker

    def _utterances(self) -> Iterator[tuple[Mapping[str, Any], bool]]:
        """What is known of every object with a text (its own values go before those around it), and whether it is alone."""
        where = self._options.fields.get("utterances")
        document = self._document
        for key in where.split(".") if where else ():
            if not isinstance(document, dict) or key not in document:
                raise CorpusError(f"{self._path}:1: --field utterances={where}: there is no {key!r}")
            document = document[key]
        yield from self._walk(document, {}, True)

    def _walk(self, value: Any, around: Mapping[str, Any], alone: bool) -> Iterator[tuple[Mapping[str, Any], bool]]:
        if isinstance(value, list):
            for item in value:
                yield from self._walk(item, around, False)
        elif isinstance(value, dict):
            own = _flat(value)
            here = {**around, **own}
            if any(isinstance(value.get(key), str) for key in self._names["text"]):
                yield {key: here[key] for key in here if alone or key in own or key in self._shared}, alone
                return
            for item in value.values():
                yield from self._walk(item, here, alone)

    def _audio(self, name: str | None, where: str) -> Path:
        if not name or Path(name).suffix.lower() not in SUFFIXES:
            return self._folders.called(self._path.stem, where, self._path, self._least)
        audio = self._folders.at(name, where, beside=self._path.parent)
        if audio.is_file():
            return audio
        return self._folders.find(Path(name.replace("\\", "/")).stem, where, self._path, self._least) or audio


def _flat(value: Mapping[str, Any]) -> dict[str, Any]:
    """The plain values of an object and of the objects inside it, by their own names; the outer ones win."""
    inner: dict[str, Any] = {}
    for item in value.values():
        if isinstance(item, dict):
            inner.update(_flat(item))
    return {**inner, **{key: item for key, item in value.items() if not isinstance(item, dict | list)}}


IMPORTER = Importer(
    title="KECS and other sets of AI Hub",
    layout="JSON label files (one or many utterances each) and .wav or raw .pcm; duals (spelling)/(pronunciation), either order",
    speakers="speaker_id in the labels, else topic or session",
    licence="AI Hub terms: application only, not to be passed on",
    get="apply at aihub.or.kr; unpack labels and audio, give both folders",
    read=read,
)
