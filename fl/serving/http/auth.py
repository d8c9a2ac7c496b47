"""Bearer tokens: who may use the server. A file holds a name and a hash for each; a token itself is shown once and kept nowhere.

A line is ``NAME sha256:HEX``, empty lines and lines with ``#`` in front are skipped. A token is 256 random bits, which no
dictionary holds, so a slow hash would add nothing but a way to keep the server busy.
"""

import hashlib
import hmac
import logging
import os
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
    before = _read_text(path) if path.exists() else "# name sha256:hash; made by 'idiolect token'\n"
    if name in parse_tokens(before, str(path)).values():
        raise ConfigError(f"{path} has a token for {name!r} already: remove its line first, or take another name")
    token = PREFIX + secrets.token_urlsafe(32)
    newline = "" if before.endswith("\n") or not before else "\n"
    try:
        write_atomically(path, f"{before}{newline}{name} sha256:{hash_token(token)}\n".encode())
    except OSError as error:
        raise ConfigError(f"{path} cannot be written: {error.strerror}; choose another place") from error
    return token


def _read_text(path: Path) -> str:
    try:
        if path.stat().st_size > MAX_FILE_BYTES:
            raise ConfigError(f"{path} has more than {MAX_FILE_BYTES:,} bytes: it is no token file")
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} cannot be read ({type(error).__name__}): make one with 'idiolect token'") from error


def parse_tokens(text: str, source: str) -> dict[str, str]:
    """Names by hash. Raises :class:`ConfigError` that names the line; it never quotes one, since it may be a token."""
    names: dict[str, str] = {}
    for number, line in enumerate(text.splitlines(), 1):
        if not line.strip() or line.lstrip().startswith("#"):
            continue
        match = _LINE.fullmatch(line.strip())
        if match is None:
            raise ConfigError(f"{source}:{number}: not of the form 'NAME sha256:HEX'; make it with 'idiolect token'")
        name, known = match.groups()
        if known in names or name in names.values():
            raise ConfigError(f"{source}:{number}: this name or token stands there twice; keep one line")
        names[known] = name
    return names


class TokenFile:
    """The tokens of a file. It is read again when it has changed, so that a removed token is refused at once."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._stamp = self._stat()
        self._names = self._load()

    def _load(self) -> dict[str, str]:
        names = parse_tokens(_read_text(self.path), str(self.path))
        if not names:
            raise ConfigError(f"{self.path} holds no token: add one with 'idiolect token NAME --tokens {self.path}'")
        return names

    def _stat(self) -> tuple[int, int, int]:
        try:
            found = os.stat(self.path)
        except OSError:
            return (0, 0, 0)
        return (found.st_mtime_ns, found.st_size, found.st_ino)

    def owner(self, token: str) -> str | None:
        """The name of ``token``, None if it is not one. All hashes are compared, each in constant time."""
        stamp = self._stat()
        if stamp != self._stamp:
            self._stamp = stamp
            try:
                self._names = self._load()
            except ConfigError as error:  # an edit in the middle: go on with what was there, and say so
                logger.warning("token file kept as it was: %s", error)
        given = hash_token(token[:MAX_TOKEN])
        found = [name for known, name in self._names.items() if hmac.compare_digest(known, given)]
        return found[0] if found else None


def bearer_of(header: str) -> str | None:
    """The token of an ``Authorization`` header, None if it has none."""
    scheme, _, token = header.strip().partition(" ")
    return token.strip() or None if scheme.lower() == "bearer" else None
