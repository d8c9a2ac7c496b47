"""Unpacking a corpus that comes as one archive, without trusting it."""

import re
import shutil
import stat
import tarfile
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path, PurePosixPath
from typing import IO

from fl.core.apart import Apart
from fl.core.errors import CorpusError
from fl.core.files import new_folder
from fl.core.paths import is_litter

MAX_MEMBERS = 20_000_000
MAX_BYTES = 4 << 40  # unpacked; no corpus of speech has as much
SPARE_BYTES = 1 << 30  # what is left free on the disk
ENDINGS = (".zip", ".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tar.xz")


def is_archive(path: Path) -> bool:
    """Whether ``path`` is a file that :func:`unpack` takes, by its name."""
    return path.is_file() and path.name.lower().endswith(ENDINGS)


def unpack(archive: Path, folder: Path, encoding: str = "", progress: Callable[[int, int], None] | None = None) -> Path:
    """Unpack ``archive`` to ``folder``, which appears whole or not at all; one that is there is taken as it is.

    ``encoding`` is that of the names in a zip from before Unicode (AI Hub's are CP949), where they are no UTF-8. Litter
    (:func:`fl.core.paths.is_litter`) is passed over. Raises :class:`CorpusError` for a member with an absolute path or ``..``, a
    link, a device, a name twice, for more than the disk has room for, and for damage.
    """
    if folder.is_dir():
        return folder
    with new_folder(folder) as fresh, Apart(f"{__name__}:Archive", CorpusError) as unpacker:
        for done, total in unpacker.ask(archive, "unpack", str(archive), str(fresh), encoding):
            if progress:
                progress(done, total)
    return folder


class Archive:
    """What is done apart (:mod:`fl.core.apart`): an archive may list more members, or longer names, than there is memory for."""

    def unpack(self, archive: str, folder: str, encoding: str) -> Iterator[tuple[int, int]]:
        """Unpack to an empty ``folder``; yields how many members are done, and of how many (0 if that is not known)."""
        path = Path(archive)
        members = _zipped(path, Path(folder), encoding) if archive.lower().endswith(".zip") else _tarred(path)
        size = 0
        try:
            for done, (name, bytes_, total, source) in enumerate(members, 1):
                size += bytes_
                _check_room(path, done, size, bytes_, Path(folder))
                if not any(map(is_litter, PurePosixPath(name).parts)):
                    _write_member(path, name, source, Path(folder))
                yield done, total
        except (tarfile.TarError, zipfile.BadZipFile, EOFError, UnicodeDecodeError, LookupError) as error:
            raise CorpusError(f"{archive}: cannot be unpacked ({error}); fetch it again") from error


_PLAIN = (0, stat.S_IFREG, stat.S_IFDIR)  # a zip that was not made on Unix says 0
_UTF8_NAME = 1 << 11
_Member = tuple[str, int, int, IO[bytes] | None]
"""Name, bytes, number of members or 0, and content, None for a folder."""


def _zipped(archive: Path, folder: Path, encoding: str) -> Iterator[_Member]:
    with zipfile.ZipFile(archive) as file:
        members = file.infolist()
        size = sum(member.file_size for member in members)
        _check_room(archive, len(members), size, size, folder)
        for member in members:
            name = _name_of(member, encoding)
            _check_member(archive, name, plain=stat.S_IFMT(member.external_attr >> 16) in _PLAIN)
            yield name, member.file_size, len(members), None if member.is_dir() else file.open(member)


def _name_of(member: zipfile.ZipInfo, encoding: str) -> str:
    """A name that is not marked as UTF-8 may be so all the same (macOS), or in ``encoding``."""
    if member.flag_bits & _UTF8_NAME:
        return member.filename
    name = member.filename.encode("cp437")  # as zipfile decoded it
    try:
        return name.decode()
    except UnicodeDecodeError:
        return name.decode(encoding or "cp437")


def _tarred(archive: Path) -> Iterator[_Member]:
    with tarfile.open(archive) as file:
        for member in file:
            _check_member(archive, member.name, plain=member.isfile() or member.isdir())
            yield member.name, member.size, 0, file.extractfile(member)


def _write_member(archive: Path, name: str, source: IO[bytes] | None, folder: Path) -> None:
    """The bytes alone: no owner, no mode, no time. A file is made and never opened again, so no name can stand for two."""
    target = folder.joinpath(*PurePosixPath(name.replace("\\", "/")).parts)
    try:
        if source is None:
            target.mkdir(parents=True, exist_ok=True)
            return
        target.parent.mkdir(parents=True, exist_ok=True)
        with source, target.open("xb") as copy:
            shutil.copyfileobj(source, copy)
    except (FileExistsError, NotADirectoryError, IsADirectoryError) as error:
        raise CorpusError(
            f"{archive}: member {name!r} has the name of another member, or lies below a file; unpack it yourself and look at it"
        ) from error
    except OSError as error:
        raise CorpusError(
            f"{archive}: member {name!r} cannot be written ({error.strerror}); choose another --out"
        ) from error


def _check_member(archive: Path, name: str, plain: bool) -> None:
    path = PurePosixPath(name.replace("\\", "/"))
    if path.is_absolute() or ".." in path.parts or "\0" in name or re.match(r"[A-Za-z]:", name):
        raise CorpusError(f"{archive}: member {name!r} would be written outside the folder; do not trust this archive")
    if not plain:
        raise CorpusError(f"{archive}: {name} is a link or a device; unpack the archive yourself and look at it")


def _check_room(archive: Path, members: int, size: int, more: int, folder: Path) -> None:
    """Before ``more`` of the ``size`` bytes of so many members is written."""
    if members > MAX_MEMBERS or size > MAX_BYTES:
        raise CorpusError(
            f"{archive}: more than {MAX_MEMBERS:,} members or {MAX_BYTES / 2**40:g} TiB; unpack it in parts"
        )
    free = max(0, shutil.disk_usage(folder).free - SPARE_BYTES)
    if more > free:
        raise CorpusError(
            f"{archive}: needs {more / 2**30:.1f} GiB more, {free / 2**30:.1f} GiB are free; choose another --out"
        )
