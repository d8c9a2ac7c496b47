"""Where the audio of a corpus lies. A path that stands in a corpus is data: it may not lead out of the corpus."""

import os
import stat
from collections import defaultdict
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path

from fl.core.errors import CorpusError
from fl.data.importers.records import Options, UnusableError
from fl.speech import audio

RAW_SUFFIXES = frozenset({".pcm", ".raw"})
"""Files without a header. (Some ``.pcm`` files of AI Hub do have one: see :mod:`fl.data.importers.audio`.)"""
CONVERTED = {".sph": "NIST", ".aiff": "AIFF", ".au": "AU"}
"""Containers, by libsndfile's names, that a run does not read: they are written as FLAC."""
SUFFIXES = RAW_SUFFIXES | CONVERTED.keys() | set(audio.SUFFIXES)


def roots_of(source: Path, options: Options) -> tuple[Path, ...]:
    """The folders that a corpus may use: its own (of a label file, its folder), and the one named with ``--audio``."""
    own = source if source.is_dir() else source.parent
    return (own,) if options.audio is None else (own, options.audio)


def leads_out(path: Path, roots: Sequence[Path]) -> bool:
    """Whether ``path`` is in none of ``roots`` when all links are followed."""
    real = Path(os.path.realpath(path))
    return not any(real.is_relative_to(os.path.realpath(root)) for root in roots)


def check_labels(source: Path, options: Options) -> None:
    """Raise :class:`CorpusError` for files of a corpus, other than audio, that are links out of it or no files (pipes, devices).

    Audio is looked at when it is known which is used: :func:`fl.data.importers.gather.with_audio`.
    """
    roots, odd = roots_of(source, options), []
    for folder, _, names in os.walk(source):
        for name in names:
            path = Path(folder, name)
            kind = path.lstat().st_mode
            if (stat.S_ISLNK(kind) and path.suffix.lower() not in SUFFIXES and leads_out(path, roots)) or not (
                stat.S_ISLNK(kind) or stat.S_ISREG(kind)
            ):
                odd.append(path)
    if odd:
        raise CorpusError(
            f"{odd[0]}: is a link out of the corpus, or no file, and {len(odd) - 1} more are; put the files themselves there "
            "(`hf download --local-dir DIR` does), or name the folder where they lie with --audio DIR"
        )


class AudioFolders:
    """The folders in which audio may lie: that of the corpus (of a label file, its folder), and the one named with ``--audio``."""

    def __init__(self, source: Path, options: Options) -> None:
        if options.audio is not None and not options.audio.is_dir():
            raise CorpusError(f"--audio {options.audio}: no such folder")
        self.roots = roots_of(source, options)

    def at(self, name: str, where: str, *, beside: Path | None = None) -> Path:
        """The audio that ``name`` in a label file means: relative to the folder ``beside`` or a root, or absolute and inside one.

        The first that exists, else the first that may; a later check reports it as missing. An absolute path of another
        machine is looked for by its file name in the last root, the one named with ``--audio``. Raises :class:`CorpusError` for
        a path that leads out of all of them.
        """
        roots = self.roots if beside is None else (beside, *self.roots)
        name = name.strip().replace("\\", "/")
        if not name or "\0" in name:
            raise CorpusError(f"{where}: the path of the audio is empty or holds a zero character")
        allowed = [path for path in (_inside(root, name) for root in roots) if path is not None]
        by_name = [roots[-1] / name.rsplit("/", 1)[-1]] if len(roots) > 1 else []
        found = next((path for path in (*allowed, *by_name) if path.is_file()), None)
        if found is None and not allowed:
            raise CorpusError(
                f"{where}: path {name!r} leads out of {roots[0]}; if the audio is meant to lie elsewhere, name that folder with "
                "--audio DIR"
            )
        return found or allowed[0]

    def called(self, stem: str, where: str) -> Path:
        """The audio file of that name in any folder, for corpora that keep labels and audio in two trees.

        Raises :class:`fl.data.importers.records.UnusableError` if there is none and :class:`CorpusError` if there are several.
        """
        found = self.find(stem, where)
        if found is None:
            raise UnusableError(
                where, "missing audio", f"no audio file is called {stem!r}; give its folder with --audio DIR"
            )
        return found

    def find(self, stem: str, where: str) -> Path | None:
        """As :meth:`called`, None if there is none."""
        found = self._by_stem.get(stem, [])
        if len(found) > 1:
            raise CorpusError(
                f"{where}: {len(found)} audio files are called {stem!r} ({found[0]}, {found[1]}); import the parts one by one"
            )
        return found[0] if found else None

    @cached_property
    def _by_stem(self) -> dict[str, list[Path]]:
        found: dict[str, list[Path]] = defaultdict(list)
        for root in self.roots:
            for folder, _, names in sorted(os.walk(root)):
                for path in (Path(folder, name) for name in sorted(names)):
                    if path.suffix.lower() in SUFFIXES and path not in found[path.stem]:
                        found[path.stem].append(path)
        return found


def _inside(root: Path, name: str) -> Path | None:
    base = Path(os.path.abspath(root))
    path = Path(os.path.normpath(base / name))
    return path if path.is_relative_to(base) and path != base else None
