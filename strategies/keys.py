"""Whose device an id is: the key of its SuperNode, as a file of the operator says or as this run saw it before.

Flower proves a node's key with each of its requests and tells it here; the id of a device is only what its node says. A line of
either file is a device's id and then its public key as ``ssh-keygen`` writes it: ``minji ecdsa-sha2-nistp384 AAAA... comment``.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat, load_pem_public_key
from flwr.serverapp import Grid

from fl.core.errors import ConfigError
from fl.core.files import write_atomically
from fl.settings.config import RunConfig

NAME = "device-keys.txt"  # in the run folder
LINE = re.compile(r"(?P<device>\S.*?)\s+(?P<key>(?:ssh|ecdsa)-[\w-]+ [\w+/]{40,}=*)(?:\s.*)?")


def keys_of(grid: Grid) -> dict[int, str]:
    """The public key of each node as OpenSSH writes it; empty in a simulation."""
    return {node.node_id: _openssh(node.public_key) for node in grid.get_nodes()}


def _openssh(pem: bytes) -> str:
    try:
        return load_pem_public_key(pem).public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH).decode()
    except (ValueError, UnsupportedAlgorithm):  # a simulated node has random bytes there
        return ""


def read_keys(path: Path) -> dict[str, str]:
    """The key of each device in a file; :class:`ConfigError` names the line that is none."""
    try:
        lines = path.read_text(encoding="utf-8").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(
            f"{path} cannot be read ({error}): give device-keys a file of lines <device-id> <public key>"
        ) from error
    keys: dict[str, str] = {}
    for number, line in enumerate(lines, 1):
        if not line.strip() or line.startswith("#"):
            continue
        found = LINE.fullmatch(line.strip())
        if found is None or found["device"] in keys:
            raise ConfigError(
                f"{path}:{number}: write a device's id, once, and its public key as ssh-keygen does: "
                "minji ecdsa-sha2-nistp384 AAAA..."
            )
        keys[found["device"]] = found["key"]
    return keys


@dataclass(frozen=True)
class Owners:
    """The key of each device that is known; with a ``list`` nobody else takes part."""

    known: Mapping[str, str]
    list: str = ""

    @classmethod
    def of(cls, config: RunConfig) -> Owners:
        """Those of the operator's list, else those that the run folder remembers. :class:`ConfigError` for a line that is none."""
        path, before = config.federation.device_keys, Path(config.output) / NAME
        if path:
            return cls(read_keys(Path(path)), path)
        return cls(read_keys(before) if config.output and before.exists() else {})

    def fault(self, device_id: str, key: str) -> str:
        """Why a node with this key cannot host the device; an empty text if it can."""
        if self.list and device_id not in self.known:
            return f"it is not in {self.list}"
        if self.known.get(device_id, key) == key:
            return ""
        return f"it is another key's: if its owner changed the key, correct its line in {self.list or NAME}"


def remember(folder: Path, keys: Mapping[str, str]) -> None:
    """Keep the keys of a run's devices for when it is resumed; the file is one for ``device-keys`` too."""
    path = folder / NAME
    known = {**(read_keys(path) if path.exists() else {}), **keys}
    if known:
        write_atomically(path, "".join(f"{device} {key}\n" for device, key in sorted(known.items())).encode())
