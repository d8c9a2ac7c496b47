"""A device's settings: which server, which codec, how much room, and how its files are encrypted.

    device.json       settings, without any secret
    settings.sealed   the same, where files are encrypted: others than these are not acted on
    adapter.packed    the adapter (:mod:`clients.device.store`)
    spelling.json     how the person spells (:mod:`clients.device.spelling`)
    handle.json       what the server calls it for the time being
    queue/            recordings that wait for the server (:mod:`clients.device.queue`)

Each setting is an option of ``idiolect device init``; its words stand beside it. Passphrase and token come from the environment,
from files or from the keyboard, never from the command line, where every process of the machine can read them.
"""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any, TypeAlias

from clients.device.audio import CODECS
from clients.device.http import ServerAddress
from clients.device.seal import (
    KINDS,
    SALT_BYTES,
    LockedError,
    Seal,
    SealedFolder,
    key_from_file,
    key_from_passphrase,
    read_secret,
)
from fl.core.errors import ConfigError, StoreError

SETTINGS_NAME, SEALED_NAME = "device.json", "settings.sealed"
HOME_VARIABLE, TOKEN_VARIABLE = "IDIOLECT_DEVICE", "IDIOLECT_TOKEN"
_ANEW = ", or set up another folder with 'idiolect device init'"
MAX_SETTINGS_BYTES = 64 * 2**10
MIB = 2**20
_TRUE, _FALSE = {"action": "store_true"}, {"action": "store_false"}


def mib(text: str) -> int:
    """Bytes of a number of MiB. Raises ValueError for what is none."""
    return int(f"{float(text) * MIB:.0f}")  # also for infinity


def absolute(text: str) -> str:
    """A path that means the same from any folder."""
    return str(Path(text).resolve()) if text else ""


Option: TypeAlias = tuple[str, dict[str, Any]]


def option(flag: str, help: str = "", **how: Any) -> Option:
    """An option or a positional argument of a command, as argparse's ``add_argument`` takes it."""
    return flag, {"help": help, **how}


def _setting(default: Any, flag: str, help: str, **how: Any) -> Any:
    return field(default=default, metadata={"option": option(flag, help, **how)})


@dataclass(frozen=True)
class DeviceSettings:
    """What ``idiolect device init`` writes. Raises :class:`ConfigError` for a value that is not allowed."""

    server: str = _setting("", "--server", "https://HOST[:PORT]", type=str.strip, required=True, metavar="URL")
    ca: str = _setting("", "--ca", "PEM certificates to trust instead of the system's", type=absolute, metavar="FILE")
    allow_http: bool = _setting(False, "--allow-http", "no TLS to another machine (readable on the way)", **_TRUE)
    token_file: str = _setting("", "--token-file", "where the token is (mode 600)", type=absolute, metavar="FILE")
    language: str = _setting("", "--language", "code such as ko (the adapter's own)")
    codec: str = _setting("flac", "--codec", "of uploads: lossless, or small (%(default)s)", choices=tuple(CODECS))
    budget_bytes: int = _setting(4 * MIB, "--budget-mib", "room for the adapter (4)", type=mib, metavar="MIB")
    queue_bytes: int = _setting(64 * MIB, "--queue-mib", "room for what waits (64)", type=mib, metavar="MIB")
    handles: bool = _setting(True, "--no-handle", "send the adapter each time; the server never keeps it", **_FALSE)
    encryption: str = _setting("none", "--encrypt", "adapter and queue (%(default)s)", choices=KINDS)
    key_file: str = _setting("", "--key-file", "made if it is missing; not on this disk", type=absolute, metavar="FILE")
    salt: str = ""
    check: str = ""

    def __post_init__(self) -> None:
        for one in fields(self):
            value = getattr(self, one.name)
            if type(value).__name__ != one.type:
                raise ConfigError(f"{one.name} = {value!r} is not allowed: it has to be of type {one.type}")
        for name, value, known in (("codec", self.codec, CODECS), ("encryption", self.encryption, KINDS)):
            if value not in known:
                raise ConfigError(f"{name} {value!r} is not known: give one of {', '.join(known)}")
        if self.budget_bytes < 1 or self.queue_bytes < 1:
            raise ConfigError("budgets have to be above zero")
        if len(self.language) > 20 or not self.language.isprintable():
            raise ConfigError(f"language {self.language[:20]!r} is no code: give one such as ko, or none")
        ServerAddress(self.server, ca=self.ca, allow_http=self.allow_http)

    @classmethod
    def options(cls) -> Iterator[Option]:
        """An option for each setting that a person chooses."""
        for one in fields(cls):
            if one.metadata:
                flag, how = one.metadata["option"]
                yield flag, {"dest": one.name, "default": one.default, **how}

    @classmethod
    def chosen(cls, arguments: argparse.Namespace) -> DeviceSettings:
        """The settings that were chosen with :meth:`options`."""
        return cls(**{one.name: getattr(arguments, one.name) for one in fields(cls) if one.metadata})


def default_folder() -> Path:
    """``$IDIOLECT_DEVICE`` where it is set, else ``~/.local/share/idiolect-device``."""
    home = os.environ.get(HOME_VARIABLE)
    return Path(home).expanduser() if home else Path.home() / ".local" / "share" / "idiolect-device"


def initialize(folder: Path, settings: DeviceSettings, passphrase: Callable[[], str] = lambda: "") -> DeviceSettings:
    """Write settings into ``folder``, with what is needed to recognise the key again, and return them.

    On a folder that is set up already, everything may change but encryption, with the key or passphrase that it has. Raises
    :class:`ConfigError` or :class:`clients.device.seal.LockedError`, and nothing is changed.
    """
    seal = Seal()
    old = load_settings(folder) if (folder / SETTINGS_NAME).exists() else None
    if old is not None:
        if (settings.encryption, settings.key_file) != (old.encryption, old.key_file):
            raise ConfigError(
                f"{folder} is set up with encryption {old.encryption!r}, which cannot be changed in place: export the "
                "adapter and set up another folder"
            )
        settings = replace(settings, salt=old.salt, check=old.check)
        seal = open_seal(settings, passphrase)
    elif sealed := next(SealedFolder(folder).sealed(), None):
        raise LockedError(f"{sealed} is encrypted and {SETTINGS_NAME}, which says how, is lost: restore it{_ANEW}")
    elif settings.encryption != "none":
        if settings.encryption == "key-file" and not settings.key_file:
            raise ConfigError("encryption by key file needs --key-file PATH; it is made if it is missing")
        settings = replace(settings, salt=os.urandom(SALT_BYTES).hex())
        seal = _seal(settings, passphrase, create=True)
        settings = replace(settings, check=seal.check())
    data = json.dumps(asdict(settings), indent=2).encode() + b"\n"
    remedy = "free some space or choose another folder"
    if seal.key:
        SealedFolder(folder, seal).write(SEALED_NAME, SETTINGS_NAME, data, remedy)
    SealedFolder(folder).write(SETTINGS_NAME, f"settings of {folder}", data, remedy)
    return settings


def load_settings(folder: Path) -> DeviceSettings:
    """The settings of a device's folder. Raises :class:`ConfigError` where there are none or they are damaged."""
    path = folder / SETTINGS_NAME
    try:
        if path.stat().st_size > MAX_SETTINGS_BYTES:
            raise ConfigError(f"{path} is too large for settings: set the device up again with 'idiolect device init'")
        return DeviceSettings(**json.loads(path.read_text(encoding="utf-8")))
    except FileNotFoundError as error:
        raise ConfigError(
            f"no device is set up in {folder}: 'idiolect device init --server https://HOST', or give its --folder"
        ) from error
    except (OSError, ValueError, TypeError, RecursionError) as error:
        raise ConfigError(f"{path} is damaged ({error}): restore it, or set the device up again") from error


def open_device(folder: Path, passphrase: Callable[[], str]) -> tuple[DeviceSettings, Seal]:
    """The settings of a device's folder and the key to its files. Raises :class:`ConfigError` where there are no settings, and
    :class:`clients.device.seal.LockedError` for a wrong key, or settings that were not written by who has the key."""
    settings = load_settings(folder)
    seal = open_seal(settings, passphrase)
    files = SealedFolder(folder, seal)
    if seal.key is None:
        if sealed := next(files.sealed(), None):
            raise LockedError(f"{SETTINGS_NAME} asks for no key and {sealed} is encrypted: altered; restore it{_ANEW}")
        return settings, seal
    try:
        sealed_in = json.loads(files.read(SEALED_NAME, SETTINGS_NAME, MAX_SETTINGS_BYTES))
    except (StoreError, ValueError):
        sealed_in = {}
    other = sorted(name for name, value in asdict(settings).items() if sealed_in.get(name) != value)
    if other:
        raise LockedError(
            f"{', '.join(other)} of {folder / SETTINGS_NAME} was not set with this device's key: restore the file, or confirm "
            "all settings with 'idiolect device init'; nothing was sent"
        )
    return settings, seal


def open_seal(settings: DeviceSettings, passphrase: Callable[[], str]) -> Seal:
    """The key to a device's files. Raises :class:`clients.device.seal.LockedError` for a wrong or missing one; the files are intact."""
    if settings.encryption == "none":
        return Seal()
    seal = _seal(settings, passphrase)
    seal.verify(settings.check)
    return seal


def _seal(settings: DeviceSettings, passphrase: Callable[[], str], *, create: bool = False) -> Seal:
    if settings.encryption == "key-file":
        return Seal(key_from_file(Path(settings.key_file).expanduser(), create=create))
    return Seal(key_from_passphrase(passphrase(), bytes.fromhex(settings.salt)))


def open_server(settings: DeviceSettings) -> ServerAddress:
    """The server with its token. Raises :class:`ConfigError` for a token file that is not there or readable by others."""
    token = os.environ.get(TOKEN_VARIABLE, "").strip()
    if not token and settings.token_file:
        path = Path(settings.token_file).expanduser()
        try:
            token = read_secret(path, "token")
        except (OSError, ValueError) as error:
            raise ConfigError(
                f"token file {path} cannot be read ({type(error).__name__}): it holds the token alone, as text"
            ) from error
    return ServerAddress(settings.server, token.removeprefix("Bearer "), settings.ca, allow_http=settings.allow_http)
