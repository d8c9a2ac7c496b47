"""Where the audio of a corpus lies. A path that stands in a corpus is data: it may not lead out of the corpus."""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path

from fl.core.errors import CorpusError

SUFFIXES = frozenset({".wav", ".flac", ".mp3", ".ogg", ".opus", ".sph", ".aiff", ".au", ".pcm", ".raw"})
RAW_SUFFIXES = frozenset({".pcm", ".raw"})
"""Files without a header. (Some ``.pcm`` files of AI Hub do have one: see :mod:`fl.data.importers.sounds`.)"""


def roots_of(source: Path, audio: Path | None) -> tuple[Path, ...]:
    """The folders in which audio may lie: that of the corpus, and the one named with ``--audio``."""
    own = source if source.is_dir() else source.parent
    if audio is not None and not audio.is_dir():
        raise CorpusError(f"--audio {audio}: no such folder")
    return (own, *([audio] if audio is not None else []))


def locate(name: str, where: str, roots: Sequence[Path]) -> Path:
    """The file that ``name`` in a label file means: relative to one of ``roots``, or absolute and inside one of them.

    The first that exists, else the first that may; a later check reports it as missing. An absolute path of another
    machine is looked for by its file name in the last root, the one named with ``--audio``. Raises :class:`CorpusError` for
    a path that leads out of all of them.
    """
    name = name.strip().replace("\\", "/")
    if not name or "\0" in name:
        raise CorpusError(f"{where}: the path of the audio is empty or holds a zero character")
    allowed = [path for path in (_inside(root, name) for root in roots) if path is not None]
    for path in allowed:
        if path.is_file():
            return path
    if len(roots) > 1 and (by_name := roots[-1] / name.rsplit("/", 1)[-1]).is_file():
        return by_name
    if not allowed:
        raise CorpusError(
            f"{where}: path {name!r} leads out of {roots[0]}; if the audio is meant to lie elsewhere, name that folder with "
            "--audio DIR"
        )
    return allowed[0]


def _inside(root: Path, name: str) -> Path | None:
    base = Path(os.path.abspath(root))
    path = Path(os.path.normpath(base / name))
    return path if path.is_relative_to(base) and path != base else None


class AudioIndex:
    """Audio files below some folders by the stem of their name, for corpora that keep labels and audio in two trees."""

    def __init__(self, roots: Iterable[Path]) -> None:
        self._by_stem: dict[str, list[Path]] = defaultdict(list)
        for root in roots:
            for folder, _, names in sorted(os.walk(root)):
                for name in sorted(names):
                    path = Path(folder, name)
                    if path.suffix.lower() in SUFFIXES and path not in self._by_stem[path.stem]:
                        self._by_stem[path.stem].append(path)

    def find(self, stem: str, where: str) -> Path | None:
        """The audio file of that name, None if there is none. Raises :class:`CorpusError` if there are several."""
        found = self._by_stem.get(stem, [])
        if len(found) > 1:
            raise CorpusError(
                f"{where}: {len(found)} audio files are called {stem!r} ({found[0]}, {found[1]}); import the parts one by one"
            )
        return found[0] if found else None
