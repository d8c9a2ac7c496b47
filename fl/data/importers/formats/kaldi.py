"""Kaldi data directories: ``wav.scp``, ``text``, ``utt2spk`` and, where recordings hold several utterances, ``segments``.

A line of ``wav.scp`` may be a command whose output is the audio (``flac -dc a.flac |``). A corpus is data: no command of it is
ever run. The audio of such a line is looked for by the name of its recording in the folder given with ``--audio``.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from fl.core.errors import CorpusError
from fl.core.paths import files_below, readable
from fl.data.importers.marks import Marks
from fl.data.importers.places import AudioFolders
from fl.data.importers.records import Finding, Importer, Options, Record, UnusableError, attempt, seconds, split_name
from fl.data.importers.texts import numbered_lines

_SOUNDS = r"(?:[a-z]{1,12}[_-])?noises?|n(?:sn|oi)|spn|sil(?:ence)?|laugh\w*|cough\w*|breath\w*|music|lip-?smack|clears?-throat|sniff|sigh"
MARKS = Marks(
    unusable={r"(?i)(?<!\S)[<\[](?:unk|oov|unintelligible|inaudible)[>\]]": "unintelligible speech"},
    rules=(
        (r"(?i)\[laughter-([^\[\]]+)\]", r"\1"),  # a word said with laughter
        (rf"(?i)(?<!\S)(?:[<\[](?:{_SOUNDS})[>\]]|!sil\w*|%hesitation)(?!\S)", " "),
    ),
    half_width=True,
)
"""What recipes write for sounds (Switchboard, WSJ, LibriSpeech, AMI) and for words that nobody knows."""

TO_THE_END = -1.0
"""What Kaldi writes as the end of a segment that goes on to the end of the recording."""


@dataclass(frozen=True)
class _MapLine:
    """What a file says of one key, and in which line."""

    where: str
    value: str


def read(source: Path, options: Options, marks: Marks = MARKS) -> Iterator[Finding]:
    """Records of one data directory, or of all directories below ``source`` that are one (``wav.scp`` and ``text``)."""
    folders = [path.parent for path in files_below(source, "wav.scp") if (path.parent / "text").is_file()]
    if not folders:
        raise CorpusError(f"{source}: no folder here has both wav.scp and text; give a Kaldi directory or one above it")
    for folder in folders:
        if options.wants(folder.name):
            if (channels := folder / "reco2file_and_channel").is_file():
                yield _check_channels(channels, options.encoding)
            directory = _Directory(folder, source, options, marks)
            yield from directory.faults
            for key, text in directory.texts.items():
                yield attempt(directory.record, key, text)


def _read_map(path: Path, encoding: str, faults: list[UnusableError], *, empty: bool = False) -> dict[str, _MapLine]:
    """Key -> the rest of its line. A key twice, and one with nothing unless ``empty``, are ``faults``."""
    found: dict[str, _MapLine] = {}
    for number, line in numbered_lines(path, encoding):
        key, _, value = line.strip().replace("\t", " ", 1).partition(" ")
        key, where = readable(key), f"{path}:{number}"
        if key in found:
            fault = f"{key!r} was already in {found[key].where}; ids are unique: rename or remove one"
            faults.append(UnusableError(where, "id twice", fault))
        elif not value.strip() and not empty:
            faults.append(UnusableError(where, "broken line", f"{key!r} stands alone; a line is a key and a value"))
        else:
            found[key] = _MapLine(where, value.strip())
    return found


def _check_channels(path: Path, encoding: str) -> str:
    """Two speakers on two channels of one file would be mixed by averaging."""
    for entry in _read_map(path, encoding, []).values():
        if entry.value.split()[-1] not in ("A", "1"):
            raise CorpusError(
                f"{entry.where}: recordings with more than one channel; write one file a channel (sox, remix)"
            )
    return f"{path.name}: first channels only"


class _Directory:
    """The maps of one data directory; ``segments`` and ``utt2spk`` may be missing."""

    def __init__(self, folder: Path, source: Path, options: Options, marks: Marks) -> None:
        self._marks, self._keep = marks, options.events == "keep"
        self._segments, self._speakers = folder / "segments", folder / "utt2spk"
        self.faults: list[UnusableError] = []
        read = partial(_read_map, encoding=options.encoding, faults=self.faults)
        self._recordings = read(folder / "wav.scp")
        self.texts = read(folder / "text", empty=True)
        self._cuts = read(self._segments) if self._segments.is_file() else None
        self._who = read(self._speakers) if self._speakers.is_file() else None
        self._folders = AudioFolders(source, options)
        self._further = AudioFolders(options.audio, Options()) if options.audio is not None else None
        self._split = split_name(folder.name)

    def record(self, key: str, text: _MapLine) -> Record:
        """Utterance ``key``. Raises :class:`fl.data.importers.records.UnusableError` for what the other maps lack or have wrong."""
        if self._who is not None and key not in self._who:
            fault = f"utterance {key!r} has no line in {self._speakers}; add one, or leave it out"
            raise UnusableError(text.where, "unknown speaker", fault)
        recording, start, end = self._cut(key, text)
        return Record(
            text.where,
            key,
            self._audio(recording, text.where),
            self._marks.clean(text.value, text.where, keep=self._keep),
            None if self._who is None else self._who[key].value,
            split=self._split,
            start=start,
            end=end,
        )

    def _cut(self, key: str, text: _MapLine) -> tuple[str, float | None, float | None]:
        """The recording that holds utterance ``key``, and from where to where (seconds)."""
        if self._cuts is None:
            return key, None, None
        if key not in self._cuts:
            raise UnusableError(text.where, "missing segment", f"utterance {key!r} has no line in {self._segments}")
        entry = self._cuts[key]
        try:
            recording, begin, finish = entry.value.split()[:3]
            start, stop = float(begin), float(finish)
        except ValueError as error:
            fault = f"a segment is utterance, recording, start and end in seconds ({error}), this is {entry.value!r}"
            raise UnusableError(entry.where, "broken times", fault) from error
        first, last = seconds(start, entry.where), None if stop == TO_THE_END else seconds(stop, entry.where)
        if last is not None and start >= last:
            raise UnusableError(entry.where, "broken times", f"start {start} is not before end {last} (seconds)")
        return readable(recording), first, last

    def _audio(self, recording: str, where: str) -> Path:
        """Raises :class:`UnusableError` for a command or an offset into an archive of Kaldi's too."""
        if recording not in self._recordings:
            raise UnusableError(where, "missing audio", f"recording {recording!r} has no line in wav.scp")
        entry = self._recordings[recording]
        name = entry.value
        if name.startswith("|") or name.endswith("|"):
            found = self._further.find(recording, entry.where) if self._further is not None else None
            if found is None:
                fault = (
                    f"the audio of {recording!r} is the output of a command ({name[:80]!r}), and commands of a corpus are not run; "
                    f"convert the audio yourself and give its folder with --audio DIR ({recording}.flac)"
                )
                raise UnusableError(entry.where, "audio from a command", fault)
            return found
        if ".ark:" in name:
            fault = f"{name!r} is in a Kaldi archive; write the audio out as files (wav-copy) and give --audio DIR"
            raise UnusableError(entry.where, "audio in an archive", fault)
        return self._folders.at(name, entry.where)


IMPORTER = Importer(
    title="any Kaldi data directory (TALCS, MUCS 2021, HiACC and others)",
    layout="wav.scp, text, utt2spk and segments, in one folder or in train, dev, test",
    speakers="utt2spk",
    licence="the corpus's own",
    get="run the corpus's recipe up to its data directories",
    read=read,
)
