"""The adapter on a device's disk: whole or absent, within its budget, of one base, encrypted where that was asked for.

Everything is checked before the old adapter is replaced: its values, its base, the budget. What is refused changes nothing.
"""

import json
import time
from collections.abc import Callable
from pathlib import Path

from clients.device.seal import LockedError, Seal, SealedFolder
from fl.core.errors import AdapterError, AdapterMismatchError, StoreError
from fl.packed.blob import PackedInfo, digest, read_info, unpack
from fl.packed.header import MAX_PACKED_BYTES

ADAPTER_NAME, HANDLE_NAME = "adapter.packed", "handle.json"
MAX_HANDLE_BYTES = 4096


class AdapterStore:
    """The one adapter of a device, in ``folder``. ``budget_bytes`` is what it may take there, encrypted or not."""

    def __init__(
        self, folder: Path, budget_bytes: int, seal: Seal | None = None, clock: Callable[[], float] = time.time
    ) -> None:
        self.folder = folder
        self.budget_bytes = budget_bytes
        self._files = SealedFolder(folder, seal or Seal())
        self._clock = clock

    def load(self) -> bytes | None:
        """The adapter as a blob; None without one. Raises :class:`StoreError` for one that was altered or cannot be read."""
        if not (self.folder / ADAPTER_NAME).exists():
            return None
        data = self._files.read(ADAPTER_NAME, "adapter", MAX_PACKED_BYTES)
        try:
            read_info(data)
        except AdapterError as error:
            raise StoreError(f"{self.folder / ADAPTER_NAME} is damaged ({error}); set the adapter again") from error
        return data

    def require(self) -> bytes:
        """As :meth:`load`, but raises :class:`StoreError` without one."""
        data = self.load()
        if data is None:
            raise StoreError("there is no adapter on this device: 'idiolect device adapter set FILE' first")
        return data

    def set(self, data: bytes, *, other_base: bool = False) -> PackedInfo:
        """Check ``data`` and make it the adapter of this device, durably; the old one stays when anything is wrong.

        Raises :class:`AdapterError` for an unsound adapter, :class:`AdapterMismatchError` for one of another base than the
        stored one (unless ``other_base``), :class:`StoreError` beyond the budget or on a full disk.
        """
        size = len(data) + self._files.seal.overhead
        if size > self.budget_bytes:
            raise StoreError(
                f"the adapter would take {size:,} bytes, this device gives it {self.budget_bytes:,}: pack it as int8, "
                "or raise the budget with 'idiolect device init --budget-mib'; the old one is kept"
            )
        _, info = unpack(data)
        try:
            stored = None if other_base else self.load()
        except LockedError:
            raise
        except StoreError:
            stored = None  # damaged: a sound one may replace it
        old = info if stored is None else read_info(stored)
        if (old.base_fingerprint, old.base_name) != (info.base_fingerprint, info.base_name):
            raise AdapterMismatchError(
                f"the adapter is for base {info.base_name!r} ({info.base_fingerprint}), this device's is for "
                f"{old.base_name!r} ({old.base_fingerprint}): get one for that base, or say --other-base; the old one is kept"
            )
        self._files.write(ADAPTER_NAME, "adapter", data, "free some space; the old one is kept")
        return info

    def handle(self, server: str, data: bytes) -> str:
        """The handle under which ``server`` may still have the adapter ``data``; empty for none."""
        try:
            found = json.loads(self._files.read(HANDLE_NAME, "handle", MAX_HANDLE_BYTES))
            fits = (found["server"], found["digest"]) == (server, digest(data)) and found["expires"] > self._clock()
            return str(found["handle"]) if fits else ""
        except (ValueError, KeyError, TypeError, StoreError):
            return ""  # it only saves sending the adapter

    def remember(self, server: str, data: bytes, handle: str, seconds: float) -> None:
        """Keep a handle that ``server`` gave for ``data``."""
        held = {"handle": handle, "server": server, "digest": digest(data), "expires": self._clock() + seconds}
        try:
            self._files.write(HANDLE_NAME, "handle", json.dumps(held).encode(), "free some space")
        except StoreError:
            self.forget_handle()  # a full disk must not stop a transcription

    def forget_handle(self) -> None:
        """Forget the handle: the server does not have the adapter any more."""
        (self.folder / HANDLE_NAME).unlink(missing_ok=True)
