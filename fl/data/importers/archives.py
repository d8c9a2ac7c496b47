"""Unpacking a corpus that comes as one archive, without trusting it."""

import re
import shutil
import stat
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path, PurePosixPath

from fl.core.errors import CorpusError
from fl.core.files import new_folder

MAX_MEMBERS = 20_000_000
ENDINGS = (".zip", ".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tar.xz")


def is_archive(path: Path) -> bool:
    """Whether ``path`` is a file that :func:`unpack` takes, by its name."""
    return path.is_file() and path.name.lower().endswith(ENDINGS)


def unpack(archive: Path, folder: Path, encoding: str = "", progress: Callable[[int, int], None] | None = None) -> Path:
    """Unpack ``archive`` to ``folder``, which appears whole or not at all; one that is there is taken as it is.

    ``encoding`` is that of the names in a zip from before Unicode (AI Hub's are CP949). Raises :class:`CorpusError` for a
    member with an absolute path or ``..``, a link, a device, for more than the disk has room for, and for damage.
    """
    if folder.is_dir():
        return folder
    try:
        with new_folder(folder) as fresh:
            if archive.name.lower().endswith(".zip"):
                _unzip(archive, fresh, encoding, progress)
            else:
                _untar(archive, fresh, progress)
    except (tarfile.TarError, zipfile.BadZipFile, EOFError, UnicodeDecodeError, LookupError) as error:
        raise CorpusError(f"{archive}: cannot be unpacked ({error}); fetch it again") from error
    return folder


def _unzip(archive: Path, folder: Path, encoding: str, progress: Callable[[int, int], None] | None) -> None:
    with zipfile.ZipFile(archive, metadata_encoding=encoding or None) as file:
        members = file.infolist()
        _check_room(archive, len(members), sum(member.file_size for member in members), folder)
        for done, member in enumerate(members, 1):
            _check_member(archive, member.filename, plain=not stat.S_ISLNK(member.external_attr >> 16))
            file.extract(member, folder)
            if progress:
                progress(done, len(members))


def _untar(archive: Path, folder: Path, progress: Callable[[int, int], None] | None) -> None:
    with tarfile.open(archive) as file:
        for done, member in enumerate(file, 1):
            _check_member(archive, member.name, plain=member.isfile() or member.isdir())
            _check_room(archive, done, member.size, folder)
            _write_member(file, member, folder / member.name)
            if progress:
                progress(done, 0)


def _write_member(file: tarfile.TarFile, member: tarfile.TarInfo, target: Path) -> None:
    """The bytes alone: no owner, no mode, no time. ``TarFile.extract`` takes a filter to do so only from Python 3.11.4 on."""
    source = file.extractfile(member)
    if source is None:
        target.mkdir(parents=True, exist_ok=True)
        return
    target.parent.mkdir(parents=True, exist_ok=True)
    with source, target.open("wb") as copy:
        shutil.copyfileobj(source, copy)


def _check_member(archive: Path, name: str, plain: bool) -> None:
    path = PurePosixPath(name.replace("\\", "/"))
    if path.is_absolute() or ".." in path.parts or "\0" in name or re.match(r"[A-Za-z]:", name):
        raise CorpusError(
            f"{archive}: member {name!r} would be written outside the folder; this archive is not to be trusted"
        )
    if not plain:
        raise CorpusError(f"{archive}: {name} is a link or a device; unpack the archive yourself and look at it")


def _check_room(archive: Path, members: int, size: int, folder: Path) -> None:
    if members > MAX_MEMBERS:
        raise CorpusError(f"{archive}: more than {MAX_MEMBERS:,} members; unpack it in parts")
    free = shutil.disk_usage(folder).free
    if size > free:
        raise CorpusError(
            f"{archive}: needs {size / 2**30:.1f} GiB, {free / 2**30:.1f} GiB are free; choose another --out"
        )
