"""Kaldi data directories: ``wav.scp``, ``text``, ``utt2spk`` and, where recordings hold several utterances, ``segments``.

A line of ``wav.scp`` may be a command whose output is the audio (``flac -dc a.flac |``). A corpus is data: no command of it is
ever run. The audio of such a line is looked for by the name of its recording in the folder given with ``--audio``.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from fl.core.errors import CorpusError
from fl.data.importers.places import RAW_SUFFIXES, AudioIndex, locate, roots_of
from fl.data.importers.records import Audio, Finding, Format, Note, Options, Problem, RawPcm, Record, split_name
from fl.data.importers.texts import numbered_lines, seconds

TO_THE_END = -1.0
"""What Kaldi writes as the end of a segment that goes on to the end of the recording."""


@dataclass(frozen=True)
class Entry:
    """What a file says of one key, and in which line."""

    where: str
    value: str


def read(source: Path, options: Options) -> Iterator[Finding]:
    """Records of one data directory, or of all directories below ``source`` that are one."""
    folders = data_folders(source)
    for folder in folders:
        if options.wants(folder.name):
            yield from read_folder(folder, source, options)


def data_folders(source: Path) -> list[Path]:
    """Folders with a ``wav.scp`` and a ``text``. Raises :class:`CorpusError` if there are none."""
    found = sorted({path.parent for path in (source, *source.rglob("wav.scp")) if (path.parent / "text").is_file()})
    found = [folder for folder in found if (folder / "wav.scp").is_file() and folder.is_relative_to(source)]
    if not found:
        raise CorpusError(
            f"{source}: no folder here has both wav.scp and text; give a Kaldi data directory or one above it"
        )
    return found


def read_folder(folder: Path, source: Path, options: Options) -> Iterator[Finding]:
    """Records of one data directory."""
    recordings = read_map(folder / "wav.scp", options.encoding)
    texts = read_map(folder / "text", options.encoding, empty=True)
    segments = folder / "segments"
    cuts = read_map(segments, options.encoding) if segments.is_file() else None
    speakers = folder / "utt2spk"
    who = read_map(speakers, options.encoding) if speakers.is_file() else {}
    if (channels := folder / "reco2file_and_channel").is_file():
        yield from _check_channels(channels, options.encoding)
    place = Recordings(recordings, roots_of(source, options.audio))
    split = split_name(folder.name)
    for key, text in texts.items():
        if speakers.is_file() and key not in who:
            message = f"{text.where}: utterance {key!r} has no line in {speakers}; add one, or leave it out"
            yield Problem(text.where, "unknown speaker", message)
            continue
        cut = _cut(key, text, cuts, segments)
        if isinstance(cut, Problem):
            yield cut
            continue
        recording, start, end = cut
        audio = place.audio(recording, text.where)
        if isinstance(audio, Problem):
            yield audio
            continue
        speaker = who[key].value if key in who else None
        yield Record(text.where, key, audio, text.value, speaker, split=split, start=start, end=end)


def read_map(path: Path, encoding: str, *, empty: bool = False) -> dict[str, Entry]:
    """Key -> the rest of its line. Raises :class:`CorpusError` for a key twice, and one with nothing unless ``empty``."""
    found: dict[str, Entry] = {}
    for number, line in numbered_lines(path, encoding):
        key, _, value = line.strip().replace("\t", " ", 1).partition(" ")
        where = f"{path}:{number}"
        if key in found:
            raise CorpusError(
                f"{where}: {key!r} was already in {found[key].where}; ids are unique: rename or remove one"
            )
        if not value.strip() and not empty:
            raise CorpusError(f"{where}: {key!r} stands alone; a line is a key and a value")
        found[key] = Entry(where, value.strip())
    return found


def _cut(
    key: str, text: Entry, cuts: Mapping[str, Entry] | None, segments: Path
) -> tuple[str, float | None, float | None] | Problem:
    """The recording that holds utterance ``key``, and from where to where (seconds)."""
    if cuts is None:
        return key, None, None
    if key not in cuts:
        return Problem(text.where, "missing segment", f"{text.where}: utterance {key!r} has no line in {segments}")
    entry = cuts[key]
    parts = entry.value.split()
    try:
        recording, begin, finish = parts[0], float(parts[1]), float(parts[2])
        end = None if finish == TO_THE_END else seconds(finish)
        start = seconds(begin)
    except (IndexError, ValueError) as error:
        message = f"{entry.where}: a segment is utterance, recording, start and end in seconds ({error}), this is {entry.value!r}"
        return Problem(entry.where, "broken times", message)
    if end is not None and start is not None and start >= end:
        return Problem(entry.where, "broken times", f"{entry.where}: start {start} is not before end {end} (seconds)")
    return recording, start, end


def _check_channels(path: Path, encoding: str) -> Iterator[Finding]:
    """Two speakers on two channels of one file would be mixed by averaging."""
    for entry in read_map(path, encoding).values():
        if entry.value.split()[-1] not in ("A", "1"):
            raise CorpusError(
                f"{entry.where}: recordings with more than one channel; write one file a channel (sox, remix)"
            )
    yield Note(f"{path.name}: first channels only")


class Recordings:
    """Where the audio of each recording is."""

    def __init__(self, entries: Mapping[str, Entry], roots: Sequence[Path]) -> None:
        self._entries, self._roots = entries, roots
        self._index: AudioIndex | None = None

    def audio(self, recording: str, where: str) -> Audio | Problem:
        """The audio of ``recording``. Raises :class:`CorpusError` for a command or an offset into an archive of Kaldi's."""
        entry = self._entries.get(recording)
        if entry is None:
            return Problem(where, "missing audio", f"{where}: recording {recording!r} has no line in wav.scp")
        name = entry.value
        if name.endswith("|") or name.startswith("|"):
            path = self._by_name(recording, entry.where)
            if path is None:
                raise CorpusError(
                    f"{entry.where}: the audio of {recording!r} is the output of a command ({name[:80]!r}), and commands of a "
                    f"corpus are not run; convert the audio yourself and give its folder with --audio DIR ({recording}.flac)"
                )
        elif ".ark:" in name:
            raise CorpusError(
                f"{entry.where}: {name!r} is a place in a Kaldi archive; write the audio out as files (wav-copy) and give --audio DIR"
            )
        else:
            path = locate(name, entry.where, self._roots)
        return RawPcm(path) if path.suffix.lower() in RAW_SUFFIXES else path

    def _by_name(self, recording: str, where: str) -> Path | None:
        if len(self._roots) < 2:
            return None
        if self._index is None:
            self._index = AudioIndex(self._roots[1:])
        return self._index.find(recording, where)


FORMAT = Format(
    name="kaldi",
    title="any Kaldi data directory (TALCS, MUCS 2021, HiACC and others)",
    layout="wav.scp, text, utt2spk and segments, in one folder or in train, dev, test",
    speakers="utt2spk",
    licence="the corpus's own",
    get="run the corpus's recipe up to its data directories",
    read=read,
)
