"""Where the audio of a corpus lies. A path that stands in a corpus is data: it may not lead out of the corpus."""

import os
import re
from collections import defaultdict
from collections.abc import Sequence
from functools import cached_property
from itertools import takewhile
from pathlib import Path

from fl.core.errors import CorpusError
from fl.core.paths import Names, files_below, readable
from fl.data.importers.records import Options, UnusableError
from fl.speech import audio

RAW_SUFFIXES = frozenset({".pcm", ".raw"})
"""Files without a header. (Some ``.pcm`` files of AI Hub do have one: see :mod:`fl.data.importers.audio`.)"""
CONVERTED = {".sph": "NIST", ".aiff": "AIFF", ".au": "AU"}
"""Containers, by libsndfile's names, that a run does not read: they are written as FLAC."""
_ELSEWHERE = re.compile(r"(?:/|[A-Za-z]:/).*|[^/]*")
"""A path of another machine, or a name without a folder."""
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
    for path in files_below(source):
        leads = path.is_symlink() and path.suffix.lower() not in SUFFIXES and leads_out(path, roots)
        if leads or not (path.is_symlink() or path.is_file()):
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
        self._names = Names()

    def at(self, name: str, where: str, *, beside: Path | None = None) -> Path:
        """The audio that ``name`` in a label file means: relative to the folder ``beside`` or a root, or absolute and inside one.

        The first that exists, else the first that may; a later check reports it as missing. What lies elsewhere (an absolute path of
        another machine, a bare name, any name where ``--audio`` is given) is looked for by its name below (:meth:`find`). Raises
        :class:`fl.data.importers.records.UnusableError` for a path that leads out of all roots.
        """
        roots = self.roots if beside is None else (beside, *self.roots)
        name = name.strip().replace("\\", "/")
        if not name or "\0" in name:
            raise UnusableError(where, "missing audio", "the path of the audio is empty or holds a zero character")
        allowed = [path for path in (_inside(root, name) for root in roots) if path is not None]
        found = next((path for path in map(self._names.find, allowed) if os.path.isfile(path)), None)
        if found is None and (len(self.roots) > 1 or _ELSEWHERE.fullmatch(name)):
            found = self.find(Path(name).stem, where, Path(name))
        if found is None and not allowed:
            fault = f"path {name!r} leads out of {roots[0]}; if the audio is meant to lie elsewhere, name that folder with --audio DIR"
            raise UnusableError(where, "audio outside the corpus", fault)
        return found or allowed[0]

    def called(self, stem: str, where: str, label: Path | None = None, least: int = 1) -> Path:
        """The audio file of that name in any folder, for corpora that keep labels and audio in two trees. Of several, the one
        in whose path the most last names are those of ``label``'s path, and at least so many (2: name and folder).

        Raises :class:`fl.data.importers.records.UnusableError` if there is none, or are several.
        """
        found = self.find(stem, where, label, least)
        if found is None:
            raise UnusableError(
                where, "missing audio", f"no audio file is called {stem!r}; give its folder with --audio DIR"
            )
        return found

    def find(self, stem: str, where: str, label: Path | None = None, least: int = 1) -> Path | None:
        """As :meth:`called`, None if there is none."""
        found = self._by_stem.get(readable(stem), [])
        if label is not None and (len(found) > 1 or least > 1):
            shared = [_shared(path, label) for path in found]
            found = [path for path, count in zip(found, shared, strict=True) if count == max(least, *shared)]
        if len(found) > 1:
            two = f"{found[0]}, {found[1]}"
            fault = f"{len(found)} audio files are called {stem!r} ({two}); import the parts one by one"
            raise UnusableError(where, "ambiguous audio", fault)
        return found[0] if found else None

    @cached_property
    def _by_stem(self) -> dict[str, list[Path]]:
        found: dict[str, list[Path]] = defaultdict(list)
        for root in self.roots:
            for path in files_below(root):
                if path.suffix.lower() in SUFFIXES and path not in found[readable(path.stem)]:
                    found[readable(path.stem)].append(path)
        return found


def _shared(path: Path, other: Path) -> int:
    """How many of the last names of two paths are the same, the endings aside."""
    names = (map(readable, reversed(p.with_suffix("").parts)) for p in (path, other))
    return sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(*names, strict=False)))


def _inside(root: Path, name: str) -> Path | None:
    base = Path(os.path.abspath(root))
    path = Path(os.path.normpath(base / name))
    return path if path.is_relative_to(base) and path != base else None
