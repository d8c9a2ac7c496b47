"""Writing files and folders so that a reader never sees half of one: whatever must survive a crash is written here."""

import os
import secrets
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

PRIVATE, PUBLIC = 0o600, 0o644  # file modes: for the owner alone, or for everybody to read


def make_folder(path: Path, mode: int = PRIVATE) -> None:
    """Make a folder, and those above it that are missing, for those who may read files of ``mode``. One that is there stays."""
    if not path.is_dir():
        make_folder(path.parent, mode)
        path.mkdir(mode=_folder_mode(mode), exist_ok=True)


def _folder_mode(mode: int) -> int:
    """Whoever may read files may look into their folder."""
    return mode | (mode & 0o444) >> 2


def write_atomically(path: Path, data: bytes, *, mode: int = PRIVATE, before: Path | None = None) -> None:
    """Write ``data`` to ``path``: a temporary file beside it, flushed to the disk, then renamed over it.

    On any error (a full disk, say) the old file is intact and the temporary one is gone; the OSError is passed on.
    With the folder ``before`` the old file moves there instead of being lost: one of the two places always has a whole one.
    """
    write_together(path.parent, {path.name: data}, mode=mode, before=before)


def write_together(
    folder: Path, files: Mapping[str, bytes], *, mode: int = PRIVATE, before: Path | None = None
) -> None:
    """Write files that belong together: all of them reach the disk before the first is renamed to its name in ``folder``.

    A disk that fills up therefore leaves every old file intact, not the first of them replaced.
    """
    make_folder(folder, mode)
    temporaries: dict[str, str] = {}
    try:
        for name, data in files.items():
            descriptor, temporaries[name] = tempfile.mkstemp(prefix=f".{name}.", dir=folder)
            with os.fdopen(descriptor, "wb") as file:
                file.write(data)
                file.flush()
                os.fchmod(file.fileno(), mode)
                os.fsync(file.fileno())
        for name, temporary in temporaries.items():
            if before is not None and (folder / name).exists():
                make_folder(before, mode)
                os.replace(folder / name, before / name)
                sync_path(before)
            os.replace(temporary, folder / name)
    except BaseException:
        for temporary in temporaries.values():
            Path(temporary).unlink(missing_ok=True)
        raise
    sync_path(folder)


def append_durably(path: Path, data: bytes) -> None:
    """Add ``data`` to the end of a file, on the disk when this returns. On any OSError the file is as long as before."""
    with path.open("ab", buffering=0) as file:
        before = file.tell()
        try:
            left = memoryview(data)
            while left:  # a disk that fills up takes a part and refuses the rest
                left = left[os.write(file.fileno(), left) :]
            os.fsync(file.fileno())
        except BaseException:
            os.ftruncate(file.fileno(), before)
            raise


@contextmanager
def new_folder(path: Path, mode: int = PRIVATE) -> Iterator[Path]:
    """A folder to fill, which becomes ``path`` when the block ends well and vanishes when it does not. ``mode`` as of its files.

    If ``path`` has come into being meanwhile (another process was quicker), that one stays and ours is dropped.
    """
    make_folder(path.parent, mode)
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(6)}.tmp")
    temporary.mkdir(mode=_folder_mode(mode))
    try:
        yield temporary
        for file in sorted(temporary.rglob("*")):
            if file.is_file():
                sync_path(file)
        sync_path(temporary)
        try:
            temporary.rename(path)
        except OSError:
            if not path.is_dir():
                raise
        sync_path(path.parent)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def sync_path(path: Path) -> None:
    """Make what was written to a file, or a rename inside a folder, survive a power cut."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
