"""Keys and peers of a device: what OpenSSH writes is read, and anything else is refused with the remedy."""

import unicodedata
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric import ec, ed25519
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
)

from fl.core.errors import ConfigError
from fl.privacy.secure_sum.identity import SIGNATURE_BYTES, Identity, read_identity

KEY = ec.generate_private_key(ec.SECP384R1())
PUBLIC = KEY.public_key().public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH).decode()


def private_bytes(key: ec.EllipticCurvePrivateKey | ed25519.Ed25519PrivateKey, passphrase: bytes = b"") -> bytes:
    encryption = BestAvailableEncryption(passphrase) if passphrase else NoEncryption()
    return key.private_bytes(Encoding.PEM, PrivateFormat.OpenSSH, encryption)


@pytest.fixture
def key_path(tmp_path: Path) -> Path:
    path = tmp_path / "key"
    path.write_bytes(private_bytes(KEY))
    return path


def test_who_signed_which_parts_is_told(key_path: Path, tmp_path: Path) -> None:
    peers = tmp_path / "peers"
    decomposed = unicodedata.normalize("NFD", "화자 1")  # as a Mac may write it
    peers.write_text(f"# owners\u2028of keys\n{decomposed} {PUBLIC} minji@home\n", encoding="utf-8")
    one = read_identity("ann", str(key_path), str(peers))
    signature = one.sign(b"a", b"bc")
    assert len(signature) <= SIGNATURE_BYTES
    assert one.signed("화자 1", signature, b"a", b"bc")
    assert one.signed("ann", signature, b"a", b"bc")  # itself needs no line
    for device, parts in (("화자 1", (b"ab", b"c")), ("화자 2", (b"a", b"bc"))):
        assert not one.signed(device, signature, *parts)
    assert not one.signed("ann", b"", b"a", b"bc")


def test_without_files_a_device_signs_nothing() -> None:
    assert read_identity("ann", "", "") == Identity()
    assert Identity().sign(b"a") == b""


@pytest.mark.parametrize(
    ("content", "why"),
    [
        (private_bytes(ed25519.Ed25519PrivateKey.generate()), "another type"),
        (private_bytes(ec.generate_private_key(ec.SECP256R1())), "another type"),
        (private_bytes(KEY)[:100], "cannot be read"),
        (PUBLIC.encode(), "cannot be read"),
        (b"", "cannot be read"),
        (None, "cannot be read"),
    ],
    ids=["ed25519", "P-256", "torn", "public", "empty", "missing"],
)
def test_a_private_key_of_another_kind_is_refused(tmp_path: Path, content: bytes | None, why: str) -> None:
    path = tmp_path / "key"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ConfigError, match=f"(?s)key = .* {why}.*ssh-keygen"):
        read_identity("ann", str(path), "")


@pytest.mark.parametrize(
    ("line", "why"),
    [
        (f"{PUBLIC}", ":1: no device id"),
        ("bob ecdsa-sha2-nistp384 AAAA", ":1: no device id"),
        ("bob ssh-ed25519 AAAA", ":1: no device id"),
        (f"bob {PUBLIC}\nbob {PUBLIC}", ":2: no device id"),
    ],
    ids=["without id", "no key", "another type", "twice"],
)
def test_a_line_of_peers_that_is_none_is_named(key_path: Path, tmp_path: Path, line: str, why: str) -> None:
    peers = tmp_path / "peers"
    peers.write_text(line, encoding="utf-8")
    with pytest.raises(ConfigError, match=why):
        read_identity("ann", str(key_path), str(peers))
    with pytest.raises(ConfigError, match="cannot be read"):
        read_identity("ann", str(key_path), str(tmp_path / "none"))


def test_peers_without_a_key_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="peers without key"):
        read_identity("ann", "", str(tmp_path / "peers"))
