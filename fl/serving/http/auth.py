"""Bearer tokens: who may use the server. A file holds a name and a hash for each; a token itself is shown once and kept nowhere.

A line is ``NAME sha256:HEX``, empty lines and lines with ``#`` in front are skipped. A token is 256 random bits, which no
dictionary holds, so a slow hash would add nothing but a way to keep the server busy.
"""

import hashlib
import hmac
import logging
import re
import secrets
from pathlib import Path

from fl.core.errors import ConfigError
from fl.core.files import write_atomically

logger = logging.getLogger(__name__)

PREFIX = "idl_"  # so that scanners for leaked secrets can know one
MAX_TOKEN = 512  # characters that are looked at
MAX_FILE_BYTES = 2**20
_NAME = r"[A-Za-z0-9._@-]{1,64}"
_LINE = re.compile(rf"({_NAME})\s+sha256:([0-9a-f]{{64}})")


def hash_token(token: str) -> str:
    """What a token file holds of ``token``: its SHA-256, hexadecimal."""
    return hashlib.sha256(token.encode(errors="surrogateescape")).hexdigest()


def add_token(path: Path, name: str) -> str:
    """Make a token for ``name``, add its hash to the file at ``path`` (made if it is not there) and return the token.

    Raises :class:`ConfigError` for a name that stands there already or is none.
    """
    if not re.fullmatch(_NAME, name):
        raise ConfigError(f"token name {name!r} is not allowed: use 1 to 64 letters, digits and . _ @ -")
    before = _read(path) if path.exists() else b"# name sha256:hash; made by 'idiolect token'\n"
    if name in parse_tokens(before, str(path))[0].values():
        raise ConfigError(f"{path} has a token for {name!r} already: remove its line first, or take another name")
    token = PREFIX + secrets.token_urlsafe(32)
    newline = "" if before.endswith(b"\n") or not before else "\n"
    try:
        write_atomically(path, before + f"{newline}{name} sha256:{hash_token(token)}\n".encode())
    except OSError as error:
        raise ConfigError(f"{path} cannot be written: {error.strerror}; choose another place") from error
    return token


def _read(path: Path) -> bytes:
    try:
        if not path.is_file() or path.stat().st_size > MAX_FILE_BYTES:
            raise ConfigError(f"{path} is no file of at most {MAX_FILE_BYTES:,} bytes: make one with 'idiolect token'")
        return path.read_bytes()
    except OSError as error:
        raise ConfigError(f"{path} cannot be read ({type(error).__name__}): make one with 'idiolect token'") from error


def parse_tokens(data: bytes, source: str) -> tuple[dict[str, str], list[str]]:
    """Names by hash, and what is wrong with each other line, which lets nobody in.

    A line is named by its number and never quoted, since it may be a token.
    """
    names: dict[str, str] = {}
    faults = []
    for number, line in enumerate(data.decode(errors="replace").split("\n"), 1):
        if not line.strip() or line.lstrip().startswith("#"):
            continue
        match = _LINE.fullmatch(line.strip())
        if match is None:
            faults.append(f"{source}:{number}: not of the form 'NAME sha256:HEX'; make it with 'idiolect token'")
        elif match[2] in names or match[1] in names.values():
            faults.append(f"{source}:{number}: this name or token stands there twice; keep one line")
        else:
            names[match[2]] = match[1]
    return names, faults


class TokenFile:
    """The tokens of a file, which is read for each request: what does not stand there now lets nobody in."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._data = b""
        self._names: dict[str, str] = {}
        self._load(_read(path))
        if not self._names:
            raise ConfigError(f"{path} holds no token: add one with 'idiolect token NAME --tokens {path}'")

    def _load(self, data: bytes) -> None:
        if data == self._data:
            return
        self._data = data
        self._names, faults = parse_tokens(data, str(self.path))
        for fault in faults:
            logger.warning("%s", fault)
        if not self._names:
            logger.warning("%s holds no token: nobody is let in", self.path)

    def owner(self, token: str) -> str | None:
        """The name of ``token``, None if it is not one. All hashes are compared, each in constant time."""
        try:
            self._load(_read(self.path))
        except ConfigError:  # gone, or no file any more: nobody
            self._load(b"")
        given = hash_token(token[:MAX_TOKEN])
        found = [name for known, name in self._names.items() if hmac.compare_digest(known, given)]
        return found[0] if found else None


def bearer_of(header: str) -> str | None:
    """The token of an ``Authorization`` header, None if it has none."""
    scheme, _, token = header.strip().partition(" ")
    return token.strip() or None if scheme.lower() == "bearer" else None
