"""Names of files and people as people read them, what systems leave in folders, and where Idiolect keeps what it can make again."""

import os
import re
import unicodedata
from collections import defaultdict
from collections.abc import Iterator
from fnmatch import fnmatchcase
from pathlib import Path

# Zero-width space, word joiner, soft hyphen, byte order mark, marks of direction. Joiners stay: letters of Hindi look otherwise.
_INVISIBLE = dict.fromkeys(map(ord, "\u200b\u2060\u00ad\ufeff\u200e\u200f"))
_LITTER = re.compile(
    r"\..*|~\$.*|__macosx|@eadir|\$recycle\.bin|system volume information|lost\+found|thumbs\.db|desktop\.ini|icon\r",
    re.IGNORECASE,
)


def cache_root() -> Path:
    """``$IDIOLECT_HOME`` where it is set, else ``~/.cache/idiolect``. The folder is not created here."""
    home = os.environ.get("IDIOLECT_HOME")
    return Path(home).expanduser() if home else Path.home() / ".cache" / "idiolect"


def readable(name: str) -> str:
    """``name`` as people read it, so that what looks the same is the same: in NFC, without characters that show nothing, every run
    of white space as one space and none at the ends. Case and width (``Ａ``) are seen and stay."""
    return " ".join(unicodedata.normalize("NFC", name.translate(_INVISIBLE)).split())


def is_litter(name: str) -> bool:
    """Whether a file or folder of this name is a system's or an editor's and nobody's data: hidden (also macOS's ``._a.wav``),
    ``__MACOSX``, ``@eaDir``, ``Thumbs.db``, ``desktop.ini``, a lock file (``~$list.xlsx``)."""
    return _LITTER.fullmatch(name) is not None


def files_below(folder: Path, pattern: str = "*") -> Iterator[Path]:
    """The files below ``folder`` without litter whose name fits ``pattern`` in whatever case, in the order of their paths. Links to
    folders are not followed."""
    left = _entries(folder)
    while left:
        entry = left.pop()
        if entry.is_dir(follow_symlinks=False):
            left += _entries(entry.path)
        elif fnmatchcase(entry.name.lower(), pattern.lower()) and not entry.is_dir():
            yield Path(entry.path)


def _entries(folder: Path | str) -> list[os.DirEntry[str]]:
    """What lies in a folder, the first name last; nothing lies in what is no folder or may not be read."""
    try:
        with os.scandir(folder) as found:
            return sorted((entry for entry in found if not is_litter(entry.name)), key=lambda e: e.name, reverse=True)
    except OSError:
        return []


class Names:
    """Finds files by the names that people read. Each folder is listed once, and only where a name is not found as it stands."""

    def __init__(self) -> None:
        self._listed: dict[Path, dict[str, list[str]]] = {}

    def find(self, path: Path) -> Path:
        """The file or folder that ``path`` means: itself if it exists, else the one whose name, and whose folders' names, are read
        the same (macOS writes 한 as its three letters), or differ in case alone. ``path`` where there is none, or are several."""
        if os.path.exists(path):
            return path
        found = Path(path.anchor)
        for name in path.relative_to(found).parts:
            found = found / name if os.path.exists(found / name) else self._alike(found, name)
        return found if os.path.exists(found) else path

    def _alike(self, folder: Path, name: str) -> Path:
        if folder not in self._listed:
            listed = self._listed[folder] = defaultdict(list)
            for other in os.listdir(folder) if os.access(folder, os.R_OK) and folder.is_dir() else ():
                listed[readable(other).casefold()].append(other)
        alike = self._listed[folder].get(readable(name).casefold(), [])
        alike = [other for other in alike if readable(other) == readable(name)] or alike
        return folder / (alike[0] if len(alike) == 1 else name)


def find(path: Path) -> Path:
    """The file or folder that ``path`` means (:meth:`Names.find`); of many files of a folder ask one :class:`Names`."""
    return Names().find(path)
