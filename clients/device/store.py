"""The adapter on a device's disk: whole or absent, within its budget, of one base, encrypted where that was asked for.

Everything is checked before the old adapter is replaced: bytes, sound, base, budget. What is refused changes nothing.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

from clients.device.errors import LockedError
from clients.device.seal import Seal
from fl.core.errors import AdapterError, AdapterMismatchError, StoreError
from fl.core.files import write_atomically
from fl.packed.blob import PackedInfo, digest, read_info, unpack
from fl.packed.header import MAX_PACKED_BYTES

ADAPTER_NAME, HANDLE_NAME = "adapter.packed", "handle.json"
MAX_HANDLE_BYTES = 4096


@dataclass(frozen=True)
class Handle:
    """What a server calls the adapter with ``digest`` until ``expires`` (seconds since 1970)."""

    handle: str
    server: str
    digest: str
    expires: float


class AdapterStore:
    """The one adapter of a device, in ``folder``. ``budget_bytes`` is what it may take there, encrypted or not."""

    def __init__(
        self, folder: Path, budget_bytes: int, seal: Seal | None = None, clock: Callable[[], float] = time.time
    ) -> None:
        self.folder = folder
        self.budget_bytes = budget_bytes
        self.seal = seal or Seal()
        self._clock = clock

    def load(self) -> bytes | None:
        """The adapter as a blob; None without one. Raises :class:`StoreError` for one that was altered or cannot be read."""
        data = self._stored()
        if data is None:
            return None
        opened = self.seal.open(data, "adapter")
        try:
            read_info(opened)
        except AdapterError as error:
            raise StoreError(f"{self.folder / ADAPTER_NAME} is damaged ({error}); set the adapter again") from error
        return opened

    def _stored(self) -> bytes | None:
        path = self.folder / ADAPTER_NAME
        try:
            if path.stat().st_size > MAX_PACKED_BYTES + self.seal.overhead:
                raise StoreError(f"{path} is too large for an adapter: remove it and set the adapter again")
            return path.read_bytes()
        except FileNotFoundError:
            return None
        except OSError as error:
            raise StoreError(f"{path} cannot be read ({error}): check the disk and who owns the file") from error

    def info(self) -> PackedInfo | None:
        """What the stored adapter says of itself."""
        data = self.load()
        return None if data is None else read_info(data)

    def set(self, data: bytes, *, other_base: bool = False) -> PackedInfo:
        """Check ``data`` and make it the adapter of this device, durably; the old one stays when anything is wrong.

        Raises :class:`AdapterError` for what is no sound adapter, :class:`AdapterMismatchError` for one of another base
        than the stored one (unless ``other_base``), :class:`StoreError` beyond the budget or on a full disk.
        """
        size = len(data) + self.seal.overhead
        if size > self.budget_bytes:
            raise StoreError(
                f"the adapter would take {size:,} bytes and this device gives it {self.budget_bytes:,}: pack it as int8, or "
                "raise the budget with 'idiolect device init --budget-mib'; the old one is kept"
            )
        _, info = unpack(data)
        old = None if other_base else self._old_info()
        if old is not None and (old.base_fingerprint, old.base_name) != (info.base_fingerprint, info.base_name):
            raise AdapterMismatchError(
                f"the adapter is for base {info.base_name!r} ({info.base_fingerprint}), this device's is for "
                f"{old.base_name!r} ({old.base_fingerprint}): get one for that base, or say --other-base; the old one is kept"
            )
        sealed = self.seal.close(data, "adapter")
        try:
            write_atomically(self.folder / ADAPTER_NAME, sealed)
        except OSError as error:
            raise StoreError(
                f"the adapter could not be written ({error}): free some space; the old one is kept"
            ) from error
        return info

    def _old_info(self) -> PackedInfo | None:
        try:
            return self.info()
        except LockedError:
            raise
        except StoreError:
            return None  # damaged: a sound one may take its place

    def handle(self, server: str, data: bytes) -> str:
        """The handle under which ``server`` may still have the adapter ``data``; empty for none."""
        path = self.folder / HANDLE_NAME
        try:
            if path.stat().st_size > MAX_HANDLE_BYTES:
                return ""
            found = Handle(**json.loads(self.seal.open(path.read_bytes(), "handle")))
            fits = found.server == server and found.digest == digest(data) and found.expires > self._clock()
            return str(found.handle) if fits else ""
        except (OSError, ValueError, TypeError, StoreError):
            return ""  # it only saves sending the adapter

    def remember(self, server: str, data: bytes, handle: str, seconds: float) -> None:
        """Keep a handle that ``server`` gave for ``data``."""
        held = Handle(handle, server, digest(data), self._clock() + seconds)
        try:
            write_atomically(self.folder / HANDLE_NAME, self.seal.close(json.dumps(asdict(held)).encode(), "handle"))
        except OSError:
            self.forget_handle()  # a full disk must not stop a transcription

    def forget_handle(self) -> None:
        """Forget the handle: the server does not have the adapter any more."""
        (self.folder / HANDLE_NAME).unlink(missing_ok=True)
