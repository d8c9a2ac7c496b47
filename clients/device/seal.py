"""Encryption of a device's files: AES-256-GCM, with a key from a key file or from a passphrase by scrypt.

A sealed file is ``IDIO1``, a nonce of 12 random bytes, then ciphertext and tag. What a file is for (``adapter``, the name of a
queued recording) is authenticated with it, so that one cannot be passed off as another. A small sealed value in the settings
distinguishes a wrong key from a damaged file.
"""

import hashlib
import os
import sys
from codecs import BOM_UTF16_BE, BOM_UTF16_LE
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fl.core.errors import ConfigError, StoreError
from fl.core.files import write_atomically

PASSPHRASE_VARIABLE = "IDIOLECT_PASSPHRASE"
MAGIC = b"IDIO1"
NONCE_BYTES, TAG_BYTES, KEY_BYTES, SALT_BYTES = 12, 16, 32, 16
OVERHEAD = len(MAGIC) + NONCE_BYTES + TAG_BYTES
KINDS = ("none", "key-file", "passphrase")
SCRYPT = {"n": 2**14, "r": 8, "p": 5}  # 16 MiB for a fraction of a second: a device has little memory (RFC 7914; OWASP)
_SCRYPT_MEMORY = 64 * 2**20  # what OpenSSL may take at most
_CHECK = b"idiolect device"


class LockedError(StoreError):
    """The key or passphrase is missing or is not the one that the device's files were encrypted with. They are intact."""


@dataclass(frozen=True)
class Seal:
    """Seals and opens files. Without a key it passes them through: a device that was set up without encryption."""

    key: bytes | None = field(default=None, repr=False)

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
                raise LockedError(f"{purpose} is encrypted and no key is set: the settings were lost or altered")
            return data
        if not sealed or len(data) < OVERHEAD:
            raise StoreError(f"{purpose} is not encrypted, as this device's files are: altered; restore or remove it")
        start = len(MAGIC) + NONCE_BYTES
        try:
            opened: bytes = _cipher(self.key).decrypt(data[len(MAGIC) : start], data[start:], purpose.encode())
        except Exception as error:  # InvalidTag, a type that is known only where the library is installed
            raise StoreError(f"{purpose} was altered or damaged: restore or remove it") from error
        return opened

    def check(self) -> str:
        """Hexadecimal, what :meth:`verify` later tells the right key by; empty without encryption."""
        return self.close(_CHECK, "settings").hex() if self.key else ""

    def verify(self, check: str) -> None:
        """Raise :class:`LockedError` unless this seal has the key that made ``check``."""
        try:
            self.open(bytes.fromhex(check), "settings")
        except LockedError:
            raise
        except (StoreError, ValueError):
            raise LockedError("wrong passphrase or key: the files are intact, try again with the right one") from None


def _cipher(key: bytes) -> Any:
    try:
        from cryptography.hazmat.primitives.ciphers.aead import AESGCM
    except ImportError as error:
        raise LockedError("encryption needs the package cryptography: 'pip install cryptography'") from error
    return AESGCM(key)


@dataclass(frozen=True)
class SealedFolder:
    """Files below ``folder``, each sealed for its purpose: bounded when read, durable when written."""

    folder: Path
    seal: Seal = field(default_factory=Seal)

    def read(self, name: str, purpose: str, limit: int) -> bytes:
        """What the file ``name`` holds. Raises :class:`StoreError` for one that is missing, altered or beyond ``limit`` bytes."""
        path = self.folder / name
        try:
            if path.stat().st_size > limit + self.seal.overhead:
                raise StoreError(f"{path} is too large ({path.stat().st_size:,} bytes): remove it")
            return self.seal.open(path.read_bytes(), purpose)
        except OSError as error:
            raise StoreError(f"{path} cannot be read ({error}): check the disk and who owns the file") from error

    def sealed(self) -> Iterator[Path]:
        """The files here and of a queue here that are sealed, with whatever key."""
        for path in [*self.folder.glob("*"), *self.folder.glob("queue/*/*")]:
            if path.is_file():
                with path.open("rb") as file:
                    if file.read(len(MAGIC)) == MAGIC:
                        yield path

    def write(self, name: str, purpose: str, data: bytes, remedy: str) -> None:
        """Write durably, or raise :class:`StoreError` with the ``remedy`` and leave the old file as it was."""
        try:
            write_atomically(self.folder / name, self.seal.close(data, purpose))
        except OSError as error:
            raise StoreError(f"{purpose} could not be written ({error}): {remedy}") from error


def ask_passphrase() -> str:
    """From the environment, else from the keyboard."""
    if PASSPHRASE_VARIABLE in os.environ:
        return os.environ[PASSPHRASE_VARIABLE]
    import getpass

    if not sys.stdin.isatty():
        raise LockedError(f"the device's files are encrypted: set {PASSPHRASE_VARIABLE}, or run this in a terminal")
    return getpass.getpass("passphrase of this device: ")


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
        key = bytes.fromhex(read_secret(path, "key"))
    except (OSError, ConfigError) as error:
        raise LockedError(f"the key cannot be read ({error}): put it back; the files are intact") from error
    except ValueError:
        key = b""
    if len(key) != KEY_BYTES:
        raise LockedError(f"{path} is no key file: it has to hold {2 * KEY_BYTES} hexadecimal digits")
    return key


def read_secret(path: Path, kind: str) -> str:
    """The text of a small file that its owner alone can read. Raises :class:`ConfigError` where others can or it is
    empty, OSError, ValueError."""
    with path.open("rb") as file:
        if os.fstat(file.fileno()).st_mode & 0o077:
            raise ConfigError(f"{kind} file {path} can be read by others: 'chmod 600 {path}'")
        data = file.read(4096)
    text = data.decode("utf-16" if data[:2] in (BOM_UTF16_LE, BOM_UTF16_BE) else "utf-8-sig").strip()
    if not text:
        raise ConfigError(f"{kind} file {path} is empty: write the {kind} into it")
    return text
