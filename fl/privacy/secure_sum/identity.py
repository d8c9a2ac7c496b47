"""Who a device is to the others of a secure sum: its own key and theirs, neither of which comes from the aggregator.

The keys are those with which SuperNodes are admitted: ECDSA on P-384 in OpenSSH's format (``ssh-keygen -t ecdsa -b 384``). A file of
peers has a line for each device, its id and its public key, as its owner has it from their owners. Without these an aggregator can
invent participants, and nothing in a session tells.
"""

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ec import (
    ECDSA,
    SECP384R1,
    EllipticCurvePrivateKey,
    EllipticCurvePublicKey,
)
from cryptography.hazmat.primitives.hashes import SHA384
from cryptography.hazmat.primitives.serialization import load_ssh_private_key, load_ssh_public_key

from fl.core.errors import ConfigError
from fl.core.paths import readable
from fl.privacy.secure_sum.keys import framed

SIGNATURE_BYTES = 104  # of a P-384 signature at most: two numbers of 48 bytes in DER
KEY_TYPE = "ecdsa-sha2-nistp384"


@dataclass(frozen=True)
class Identity:
    """A device's own ``key``, with which it signs, and the public keys of its ``peers``, with which it checks the others.

    Without a key it signs nothing; without peers it has to believe whatever the aggregator passes on.
    """

    key: EllipticCurvePrivateKey | None = field(default=None, repr=False)
    peers: Mapping[str, EllipticCurvePublicKey] = field(default_factory=dict)

    def sign(self, *parts: bytes) -> bytes:
        """A signature of these parts; nothing without a key."""
        return b"" if self.key is None else self.key.sign(framed(*parts), ECDSA(SHA384()))

    def signed(self, device: str, signature: bytes, *parts: bytes) -> bool:
        """Whether the peer of this name signed these parts."""
        if device not in self.peers:
            return False
        try:
            self.peers[device].verify(signature, framed(*parts), ECDSA(SHA384()))
        except InvalidSignature:
            return False
        return True


def read_identity(device: str, key_path: str, peers_path: str) -> Identity:
    """The identity in a device's files; empty paths are files that there are not. Raises :class:`ConfigError` with the remedy."""
    if peers_path and not key_path:
        raise ConfigError("node-config: peers without key: the others could not tell this device from an invented one")
    if not key_path:
        return Identity()
    try:
        key = load_ssh_private_key(Path(key_path).read_bytes(), password=None)
    except (OSError, ValueError, TypeError, UnsupportedAlgorithm) as error:
        raise ConfigError(
            f"node-config: key = {key_path!r} cannot be read ({error}): it is a private key in OpenSSH's format without passphrase, "
            "as ssh-keygen -t ecdsa -b 384 -N '' makes it"
        ) from None
    if not isinstance(key, EllipticCurvePrivateKey) or not isinstance(key.curve, SECP384R1):
        raise ConfigError(
            f"node-config: key = {key_path!r} is of another type: make one with ssh-keygen -t ecdsa -b 384"
        )
    return Identity(key, {**_peers(Path(peers_path)), device: key.public_key()} if peers_path else {})


def _peers(path: Path) -> dict[str, EllipticCurvePublicKey]:
    """Public keys by device id. An id may hold spaces: it ends where the key's type begins."""
    try:
        lines = path.read_text(encoding="utf-8").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"node-config: peers = {str(path)!r} cannot be read ({error})") from None
    found: dict[str, EllipticCurvePublicKey] = {}
    for number, line in enumerate(lines, 1):
        if not line.strip() or line.startswith("#"):
            continue
        device, _, rest = line.partition(f" {KEY_TYPE} ")
        key: object = None
        with suppress(ValueError, UnsupportedAlgorithm):
            key = load_ssh_public_key(f"{KEY_TYPE} {rest}".encode())
        device = readable(device)
        if not device or device in found or not isinstance(key, EllipticCurvePublicKey):
            raise ConfigError(
                f"{path}:{number}: no device id with a key of its own: a line is the id, once, and what ssh-keygen wrote into the "
                f"device's .pub file: ID {KEY_TYPE} AAAA..."
            )
        found[device] = key
    return found
