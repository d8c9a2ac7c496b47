"""Encryption of a device's files: AES-256-GCM, with a key from a key file or from a passphrase by scrypt.

A sealed file is ``IDIO1``, a nonce of 12 random bytes, then ciphertext and tag. What a file is for (``adapter``, a queue entry's
name) is authenticated with it, so that one cannot be passed off as another. A wrong key and a damaged file are told apart by a
small sealed value in the device's settings that only the right key opens.
"""

from __future__ import annotations

import hashlib
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from clients.device.errors import LockedError
from fl.core.errors import ConfigError, StoreError
from fl.core.files import write_atomically

MAGIC = b"IDIO1"
NONCE_BYTES, TAG_BYTES, KEY_BYTES, SALT_BYTES = 12, 16, 32, 16
OVERHEAD = len(MAGIC) + NONCE_BYTES + TAG_BYTES
SCRYPT = {"n": 2**14, "r": 8, "p": 5}  # 16 MiB for a fraction of a second: a device has little memory (RFC 7914; OWASP)
_SCRYPT_MEMORY = 64 * 2**20  # what OpenSSL may take at most
_CHECK = b"idiolect device"


@dataclass(frozen=True)
class Seal:
    """Seals and opens files. Without a key it passes them through: a device that was set up without encryption."""

    key: bytes | None = None

    @property
    def overhead(self) -> int:
        """Bytes that a sealed file is longer by."""
        return OVERHEAD if self.key else 0

    def close(self, data: bytes, purpose: str) -> bytes:
        """``data``, sealed for ``purpose``."""
        if self.key is None:
            return data
        nonce = os.urandom(NONCE_BYTES)
        sealed: bytes = _cipher(self.key).encrypt(nonce, data, purpose.encode())
        return MAGIC + nonce + sealed

    def open(self, data: bytes, purpose: str) -> bytes:
        """The inverse of :meth:`close`; :class:`StoreError` for bytes that were not sealed with this key for ``purpose``."""
        sealed = data.startswith(MAGIC)
        if self.key is None:
            if sealed:
                raise LockedError(
                    f"{purpose} is encrypted and no key is set: the device's settings were lost or altered"
                )
            return data
        if not sealed or len(data) < OVERHEAD:
            raise StoreError(
                f"{purpose} is not encrypted though this device's files are: it was altered; restore or remove it"
            )
        nonce, body = data[len(MAGIC) : len(MAGIC) + NONCE_BYTES], data[len(MAGIC) + NONCE_BYTES :]
        try:
            opened: bytes = _cipher(self.key).decrypt(nonce, body, purpose.encode())
        except Exception as error:  # InvalidTag, a type that is known only where the library is installed
            raise StoreError(
                f"{purpose} was altered or damaged since it was encrypted: restore or remove it"
            ) from error
        return opened


def _cipher(key: bytes) -> Any:
    try:
        from cryptography.hazmat.primitives.ciphers.aead import AESGCM
    except ImportError as error:
        raise LockedError("encryption needs the package cryptography: 'pip install cryptography'") from error
    return AESGCM(key)


def key_from_passphrase(passphrase: str, salt: bytes) -> bytes:
    """scrypt of a passphrase (RFC 7914)."""
    if not passphrase:
        raise LockedError("the passphrase is empty: set IDIOLECT_PASSPHRASE, or type it when asked")
    return hashlib.scrypt(passphrase.encode(), salt=salt, dklen=KEY_BYTES, maxmem=_SCRYPT_MEMORY, **SCRYPT)


def key_from_file(path: Path, *, create: bool = False) -> bytes:
    """The 32 bytes, as 64 hexadecimal digits, of a key file; with ``create`` a new one where there is none.

    Raises :class:`LockedError` for a file that is missing, no key, or readable by others.
    """
    try:
        if create and not path.exists():
            write_atomically(path, os.urandom(KEY_BYTES).hex().encode() + b"\n")
        if path.stat().st_mode & 0o077:
            raise LockedError(f"key file {path} can be read by others: 'chmod 600 {path}'")
        if path.stat().st_size > 1024:
            raise LockedError(f"{path} is no key file: it has more than 64 hexadecimal digits")
        key = bytes.fromhex(path.read_text(encoding="ascii").strip())
    except OSError as error:
        raise LockedError(
            f"key file {path} cannot be read ({error.strerror}): put it back; the files are intact"
        ) from error
    except ValueError as error:
        raise LockedError(f"{path} is no key file: it has to hold 64 hexadecimal digits") from error
    if len(key) != KEY_BYTES:
        raise LockedError(f"{path} is no key file: it has to hold 64 hexadecimal digits, not {2 * len(key)}")
    return key


def make_check(seal: Seal) -> str:
    """What :func:`verify` later tells the right key by; hexadecimal, empty without encryption."""
    return seal.close(_CHECK, "settings").hex() if seal.key else ""


def verify(seal: Seal, check: str) -> None:
    """Raise :class:`LockedError` unless ``seal`` has the key that made ``check``."""
    try:
        sound = seal.open(bytes.fromhex(check), "settings") == _CHECK
    except LockedError:
        raise
    except (StoreError, ValueError):
        sound = False
    if not sound:
        raise LockedError("wrong passphrase or key: the device's files are intact, try again with the right one")


def require_kind(kind: str) -> None:
    """Raise :class:`ConfigError` for a kind of encryption that there is not."""
    if kind not in ("none", "key-file", "passphrase"):
        raise ConfigError(f"encryption {kind!r} is not known: give none, key-file or passphrase")
