"""Arrays on disk that can be computed again: found by key, checked, bounded in size, the longest unused go first."""

import os
import struct
import time
import zlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from fl.core.files import write_atomically

GIB = 2**30
_HEADER = struct.Struct("<4sIII")  # magic, rows, columns, CRC-32 of the values
_TOUCH_SECONDS = 60.0  # how old "last used" may be before a read writes it anew
_FILL = 0.9  # share of the budget that is left after an eviction
_SCAN_SHARE = 1 / 16  # of the budget: after so many bytes of its own a process looks again at what others wrote


class ArrayCache:
    """Matrices under ``root``, one file each, by a key of hexadecimal digits.

    A file that does not read back whole is as good as none. A disk that cannot take more is no error. Processes may
    write the same key at once: a file appears whole or not at all, and equal keys mean equal values.

    ``budget`` bounds the bytes of all files together: above it the longest unused are removed. Processes count their own
    writes and look at the folder now and then, so N of them may go over by N/16 of the budget before one notices.
    """

    def __init__(self, root: Path, suffix: str, dtypes: Mapping[bytes, str], *, budget: int, largest: int) -> None:
        self.root, self.suffix, self.budget = root, suffix, budget
        self.dtypes = {magic: np.dtype(dtype) for magic, dtype in dtypes.items()}  # by four bytes that say so in a file
        self.largest = largest  # bytes of a file that could be ours; anything above is not read
        self._unseen: int | None = None  # bytes written since the last look; None before the first

    def path(self, key: str) -> Path:
        """Where ``key`` is or would be."""
        return self.root / key[:2] / f"{key[2:]}{self.suffix}"

    def get(self, key: str, rows: int, make: Callable[[], npt.NDArray[Any]]) -> npt.NDArray[Any]:
        """The matrix of ``key``, which has so many ``rows``: read if it is there, else made and kept."""
        found = self.read(key, rows)
        if found is None:
            found = make()
            self.write(key, found)
        return found

    def read(self, key: str, rows: int) -> npt.NDArray[Any] | None:
        """The matrix of ``key`` if it is there, whole, and has so many ``rows``."""
        path = self.path(key)
        try:
            facts = path.stat()
            if facts.st_size > self.largest:
                return None
            data = path.read_bytes()
        except OSError:
            return None
        if len(data) < _HEADER.size:
            return None
        magic, height, width, crc = _HEADER.unpack_from(data)
        dtype = self.dtypes.get(magic)
        payload = memoryview(data)[_HEADER.size :]
        if dtype is None or height != rows or len(payload) != dtype.itemsize * height * width:
            return None
        if zlib.crc32(payload) != crc:
            return None
        if time.time() - facts.st_mtime > _TOUCH_SECONDS:
            with suppress(OSError):
                os.utime(path)
        return np.frombuffer(payload, dtype).reshape(height, width).astype(dtype.newbyteorder("="))

    def write(self, key: str, values: npt.NDArray[Any]) -> None:
        """Keep a matrix of one of the types, if the disk and the budget allow."""
        magic, dtype = next(known for known in self.dtypes.items() if known[1] == values.dtype.newbyteorder("<"))
        payload = np.ascontiguousarray(values, dtype).tobytes()
        data = _HEADER.pack(magic, *values.shape, zlib.crc32(payload)) + payload
        if len(data) > min(self.largest, self.budget):
            return
        with suppress(OSError):
            write_atomically(self.path(key), data)
        if self._unseen is None or self._unseen + len(data) > self.budget * _SCAN_SHARE:
            self._evict()
            self._unseen = 0
        else:
            self._unseen += len(data)

    def _evict(self) -> None:
        """Remove what was not used for longest until nine tenths of the budget are left, if it is exceeded."""
        files = sorted(self._files())
        total = sum(size for _, size, _ in files)
        # The next look comes after a sixteenth of the budget: stay under it until then.
        if total <= self.budget * (1 - _SCAN_SHARE):
            return
        for _, size, path in files:
            if total <= self.budget * _FILL:
                return
            with suppress(OSError):
                path.unlink()
            total -= size

    def _files(self) -> Iterator[tuple[float, int, Path]]:
        """Last use, size and path of every file, those of killed writers included."""
        for path in self.root.glob("*/*"):
            with suppress(OSError):
                facts = path.stat()
                yield facts.st_mtime, facts.st_size, path
