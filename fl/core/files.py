"""Writing files so that a reader never sees half of one."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Mapping
from pathlib import Path

PRIVATE, PUBLIC = 0o600, 0o644  # file modes: for the owner alone, or for everybody to read


def write_atomically(path: Path, data: bytes, *, mode: int = PRIVATE) -> None:
    """Write ``data`` to ``path``: a temporary file beside it, flushed to the disk, then renamed over it.

    On any error (a full disk, say) the old file is intact and the temporary one is gone; the OSError is passed on.
    """
    write_together(path.parent, {path.name: data}, mode=mode)


def write_together(folder: Path, files: Mapping[str, bytes], *, mode: int = PRIVATE) -> None:
    """Write files that belong together: all of them reach the disk before the first is renamed to its name in ``folder``.

    A disk that fills up therefore leaves every old file intact, not the first of them replaced.
    """
    folder.mkdir(parents=True, exist_ok=True)
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
            os.replace(temporary, folder / name)
    except BaseException:
        for temporary in temporaries.values():
            Path(temporary).unlink(missing_ok=True)
        raise
    sync_folder(folder)


def sync_folder(folder: Path) -> None:
    """Make a rename inside ``folder`` survive a power cut."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
