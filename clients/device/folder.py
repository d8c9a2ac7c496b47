"""A device's folder and its settings: which server, which codec, how much room, and how its files are encrypted.

    device.json       settings; no secret is in it
    adapter.packed    the adapter (:mod:`clients.device.store`)
    handle.json       what the server calls it for the time being
    queue/            recordings that wait for the server (:mod:`clients.device.queue`)

Passphrase and token come from the environment, from files or from the keyboard, never from the command line, where every
process of the machine can read them.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from dataclasses import asdict, dataclass, fields
from pathlib import Path

from clients.device.audio import CODECS
from clients.device.errors import LockedError
from clients.device.http import Server
from clients.device.seal import SALT_BYTES, Seal, key_from_file, key_from_passphrase, make_check, require_kind, verify
from fl.core.errors import ConfigError, StoreError
from fl.core.files import write_atomically

SETTINGS_NAME = "device.json"
HOME_VARIABLE, TOKEN_VARIABLE, PASSPHRASE_VARIABLE = "IDIOLECT_DEVICE", "IDIOLECT_TOKEN", "IDIOLECT_PASSPHRASE"
MAX_SETTINGS_BYTES = 64 * 2**10
MIB = 2**20


@dataclass(frozen=True)
class Settings:
    """What ``idiolect device init`` writes. ``budget_bytes`` bounds the adapter, ``queue_bytes`` all that waits."""

    server: str
    ca: str = ""
    allow_http: bool = False
    token_file: str = ""
    language: str = ""
    codec: str = "flac"
    budget_bytes: int = 4 * MIB
    queue_bytes: int = 64 * MIB
    handles: bool = True  # let the server hold the adapter in memory for a while
    encryption: str = "none"
    key_file: str = ""
    salt: str = ""
    check: str = ""

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if type(value).__name__ != field.type:
                raise ConfigError(f"{field.name} = {value!r} is not allowed: it has to be of type {field.type}")
        if self.codec not in CODECS:
            raise ConfigError(f"codec {self.codec!r} is not known: give one of {', '.join(CODECS)}")
        if self.budget_bytes < 1 or self.queue_bytes < 1:
            raise ConfigError("budgets have to be above zero")
        if len(self.language) > 20 or not self.language.isprintable():
            raise ConfigError(f"language {self.language[:20]!r} is no code: give one such as ko, or none")
        require_kind(self.encryption)
        Server(self.server, ca=self.ca, allow_http=self.allow_http)


def default_folder() -> Path:
    """``$IDIOLECT_DEVICE`` where it is set, else ``~/.local/share/idiolect-device``."""
    home = os.environ.get(HOME_VARIABLE)
    return Path(home).expanduser() if home else Path.home() / ".local" / "share" / "idiolect-device"


def initialize(folder: Path, settings: Settings, passphrase: Callable[[], str] = lambda: "") -> Settings:
    """Write settings into ``folder``, with what is needed to recognise the key again, and return them.

    On a folder that is set up already, everything may change but encryption: :class:`ConfigError`, nothing changed.
    """
    old = load_settings(folder) if (folder / SETTINGS_NAME).exists() else None
    secret: dict[str, str] = {}
    if old is not None:
        if (settings.encryption, settings.key_file) != (old.encryption, old.key_file):
            raise ConfigError(
                f"{folder} is set up with encryption {old.encryption!r}, which cannot be changed in place: export the adapter "
                "and set up another folder"
            )
        secret = {"salt": old.salt, "check": old.check}
    elif settings.encryption != "none":
        salt = os.urandom(SALT_BYTES).hex()
        if settings.encryption == "key-file" and not settings.key_file:
            raise ConfigError(
                "encryption by key file needs the file: give --key-file PATH; it is made if it is not there"
            )
        seal = Seal(_key(settings, salt, passphrase, create=True))
        secret = {"salt": salt, "check": make_check(seal)}
    settings = Settings(**{**asdict(settings), **secret})
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        write_atomically(folder / SETTINGS_NAME, json.dumps(asdict(settings), indent=2).encode() + b"\n")
    except OSError as error:
        raise StoreError(
            f"settings could not be written to {folder}: {error}; free some space or choose another"
        ) from error
    return settings


def load_settings(folder: Path) -> Settings:
    """The settings of a device's folder. Raises :class:`ConfigError` where there are none or they are damaged."""
    path = folder / SETTINGS_NAME
    try:
        if path.stat().st_size > MAX_SETTINGS_BYTES:
            raise ConfigError(f"{path} is too large for settings: set the device up again with 'idiolect device init'")
        values = json.loads(path.read_text(encoding="utf-8"))
        return Settings(**values)
    except FileNotFoundError as error:
        raise ConfigError(
            f"no device is set up in {folder}: 'idiolect device init --server https://HOST', or give its --folder"
        ) from error
    except (OSError, ValueError, TypeError, RecursionError) as error:
        raise ConfigError(f"{path} is damaged ({error}): restore it, or set the device up again") from error


def open_seal(settings: Settings, passphrase: Callable[[], str]) -> Seal:
    """The key to a device's files. Raises :class:`LockedError` for a wrong or missing one; the files are intact."""
    if settings.encryption == "none":
        return Seal()
    seal = Seal(_key(settings, settings.salt, passphrase))
    verify(seal, settings.check)
    return seal


def _key(settings: Settings, salt: str, passphrase: Callable[[], str], *, create: bool = False) -> bytes:
    if settings.encryption == "key-file":
        return key_from_file(Path(settings.key_file).expanduser(), create=create)
    return key_from_passphrase(passphrase(), bytes.fromhex(salt))


def ask_passphrase() -> str:
    """From the environment, else from the keyboard."""
    found = os.environ.get(PASSPHRASE_VARIABLE)
    if found is not None:
        return found
    import getpass
    import sys

    if not sys.stdin.isatty():
        raise LockedError(f"the device's files are encrypted: set {PASSPHRASE_VARIABLE}, or run this in a terminal")
    return getpass.getpass("passphrase of this device: ")


def open_server(settings: Settings) -> Server:
    """The server with its token. Raises :class:`ConfigError` for a token file that is not there or readable by others."""
    token = os.environ.get(TOKEN_VARIABLE, "").strip()
    if not token and settings.token_file:
        path = Path(settings.token_file).expanduser()
        try:
            if path.stat().st_mode & 0o077:
                raise ConfigError(f"token file {path} can be read by others: 'chmod 600 {path}'")
            token = path.read_text(encoding="utf-8")[:4096].strip()
        except (OSError, ValueError) as error:
            raise ConfigError(
                f"token file {path} cannot be read: {type(error).__name__}; write the token into it"
            ) from error
    return Server(settings.server, token, settings.ca, allow_http=settings.allow_http)
