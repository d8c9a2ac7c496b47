"""The adapter on a device: within its budget, of one base, whole or absent, readable only with the key."""

import errno
import hashlib
import os
import pickle

import numpy as np
import pytest

from clients.device.seal import MAGIC, OVERHEAD, SCRYPT, LockedError, Seal, key_from_passphrase
from clients.device.settings import DeviceSettings, initialize, load_settings, open_seal
from clients.device.store import ADAPTER_NAME, HANDLE_NAME, AdapterStore
from fl.core.errors import AdapterError, AdapterMismatchError, ConfigError, StoreError
from fl.packed.blob import read_info

KEY = Seal(b"k" * 32)


@pytest.fixture(params=["plain", "sealed"])
def store(request, tmp_path):
    return AdapterStore(tmp_path, 4096, KEY if request.param == "sealed" else None)


def files(store):
    return {path.name: path.read_bytes() for path in store.folder.iterdir() if path.is_file()}


def test_an_adapter_comes_back_as_the_same_bytes(store, make_adapter):
    assert store.load() is None
    store.set(make_adapter())
    assert store.load() == make_adapter()
    assert read_info(store.load()).base_name == "whisper-base"
    assert (store.folder / ADAPTER_NAME).stat().st_mode & 0o777 == 0o600


def broken(name, make_adapter):
    good = make_adapter(seed=1)
    if name == "NaN":
        return good[:-2] + np.float16(np.nan).tobytes()
    return {
        "empty": b"",
        "cut": good[:-1],
        "behind": good + b"\0",
        "text": b"hello" * 99,
        "pickle": pickle.dumps([1] * 99),
    }[name]


@pytest.mark.parametrize("name", ["empty", "cut", "behind", "text", "pickle", "NaN"])
def test_what_is_no_sound_adapter_is_refused_and_the_old_one_stays(store, make_adapter, name):
    store.set(make_adapter())
    before = files(store)
    with pytest.raises(AdapterError):
        store.set(broken(name, make_adapter))
    assert files(store) == before


def test_an_adapter_of_another_base_is_refused_by_name_and_the_old_one_stays(store, make_adapter):
    store.set(make_adapter())
    before = files(store)
    other = make_adapter(base_name="whisper-small", base_fingerprint="whisper:768x12+12:02")
    with pytest.raises(AdapterMismatchError, match=r"whisper-small.*whisper-base.*--other-base"):
        store.set(other)
    assert files(store) == before
    store.set(other, other_base=True)
    assert store.load() == other


def test_an_adapter_beyond_the_budget_is_refused_before_it_replaces_the_old_one(store, make_adapter):
    store.set(make_adapter())
    before = files(store)
    with pytest.raises(StoreError, match=r"gives it 4,096.*old one is kept"):
        store.set(make_adapter(width=2000))
    assert files(store) == before


def test_the_budget_is_of_the_file_with_its_encryption(tmp_path, make_adapter):
    data = make_adapter()
    AdapterStore(tmp_path / "a", len(data)).set(data)
    with pytest.raises(StoreError, match="budget"):
        AdapterStore(tmp_path / "b", len(data) + OVERHEAD - 1, KEY).set(data)
    AdapterStore(tmp_path / "b", len(data) + OVERHEAD, KEY).set(data)
    assert (tmp_path / "b" / ADAPTER_NAME).stat().st_size == len(data) + OVERHEAD


@pytest.mark.parametrize("call", ["fsync", "replace"])
def test_a_full_disk_leaves_the_old_adapter_and_no_temporary_file(store, make_adapter, monkeypatch, call):
    store.set(make_adapter())
    before = files(store)

    def full(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(os, call, full)
        with pytest.raises(StoreError, match=r"No space left.*old one is kept"):
            store.set(make_adapter(seed=1))
    assert files(store) == before


def test_a_damaged_adapter_is_named_and_a_sound_one_may_take_its_place(store, make_adapter):
    store.set(make_adapter())
    path = store.folder / ADAPTER_NAME
    path.write_bytes(path.read_bytes()[:-3])
    with pytest.raises(StoreError, match="damaged"):
        store.load()
    store.set(make_adapter(seed=1))
    assert store.load() == make_adapter(seed=1)


# Handles


def test_a_handle_is_for_one_server_one_adapter_and_its_time(tmp_path, make_adapter):
    now = [1000.0]
    store = AdapterStore(tmp_path, 4096, clock=lambda: now[0])
    first, second = make_adapter(), make_adapter(seed=1)
    store.remember("https://a", first, "h1", 60.0)
    assert store.handle("https://a", first) == "h1"
    assert store.handle("https://b", first) == ""
    assert store.handle("https://a", second) == ""
    now[0] = 1060.0
    assert store.handle("https://a", first) == ""


@pytest.mark.parametrize("content", [b"", b"{}", b"[1]", b'{"handle": 1}', b"\xff", b"x" * 10_000])
def test_a_damaged_handle_is_none(store, make_adapter, content):
    store.remember("https://a", make_adapter(), "h1", 60.0)
    (store.folder / HANDLE_NAME).write_bytes(content)
    assert store.handle("https://a", make_adapter()) == ""


# Encryption


def test_nothing_of_a_sealed_adapter_is_readable_on_the_disk(tmp_path, make_adapter):
    store = AdapterStore(tmp_path, 4096, KEY)
    store.set(make_adapter())
    store.remember("https://secret.example", make_adapter(), "the-handle", 60.0)
    for content in files(store).values():
        assert content.startswith(MAGIC)
        for marker in (b"gated_lora", b"whisper", b"secret.example", b"the-handle"):
            assert marker not in content


def test_the_same_adapter_is_sealed_differently_each_time(make_adapter):
    assert KEY.close(make_adapter(), "adapter") != KEY.close(make_adapter(), "adapter")


def test_every_altered_byte_of_a_sealed_file_is_noticed(make_adapter):
    sealed = KEY.close(make_adapter(), "adapter")
    for place in range(0, len(sealed), 11):
        changed = bytearray(sealed)
        changed[place] ^= 1
        with pytest.raises(StoreError):
            KEY.open(bytes(changed), "adapter")


def test_a_sealed_file_cannot_be_passed_off_as_another():
    with pytest.raises(StoreError, match="altered"):
        KEY.open(KEY.close(b"text", "handle"), "adapter")
    with pytest.raises(StoreError, match="not encrypted"):
        KEY.open(b"an adapter that somebody put there", "adapter")
    with pytest.raises(LockedError, match="no key is set"):
        Seal().open(KEY.close(b"text", "adapter"), "adapter")


def passphrase_device(tmp_path, passphrase="옳은 말"):
    settings = DeviceSettings(server="https://example.org", encryption="passphrase")
    return initialize(tmp_path / "device", settings, lambda: passphrase)


def test_a_wrong_passphrase_is_a_typed_error_and_nothing_is_lost(tmp_path, make_adapter):
    settings = passphrase_device(tmp_path)
    store = AdapterStore(tmp_path / "device", 4096, open_seal(settings, lambda: "옳은 말"))
    store.set(make_adapter())
    before = files(store)
    for wrong in ("옳은 말 ", "", "x" * 10_000):
        with pytest.raises(LockedError, match="passphrase"):
            open_seal(load_settings(tmp_path / "device"), lambda wrong=wrong: wrong)
    assert files(store) == before
    again = AdapterStore(tmp_path / "device", 4096, open_seal(load_settings(tmp_path / "device"), lambda: "옳은 말"))
    assert again.load() == make_adapter()


def test_the_same_passphrase_makes_another_key_on_another_device(tmp_path):
    keys = {open_seal(passphrase_device(tmp_path / name), lambda: "옳은 말").key for name in ("a", "b")}
    assert len(keys) == 2


def test_a_key_is_derived_slowly_and_in_the_memory_that_it_may_take(monkeypatch):
    monkeypatch.setitem(SCRYPT, "n", 2**14)
    expected = hashlib.scrypt("말".encode(), salt=b"s" * 16, n=2**14, r=8, p=5, dklen=32, maxmem=2**26)
    assert key_from_passphrase("말", b"s" * 16) == expected


def test_no_secret_is_in_the_settings(tmp_path):
    settings = passphrase_device(tmp_path, "open sesame")
    text = (tmp_path / "device" / "device.json").read_text()
    assert "sesame" not in text
    assert open_seal(settings, lambda: "open sesame").key.hex() not in text


def test_a_key_file_is_made_for_its_owner_alone_and_checked(tmp_path):
    path = tmp_path / "stick" / "key"
    settings = initialize(
        tmp_path / "device", DeviceSettings(server="https://a.org", encryption="key-file", key_file=str(path))
    )
    assert path.stat().st_mode & 0o777 == 0o600
    seal = open_seal(settings, lambda: pytest.fail("asked for a passphrase"))
    sealed = seal.close(b"text", "adapter")
    assert open_seal(settings, lambda: "").open(sealed, "adapter") == b"text"
    whole = path.read_bytes()
    for content, match in (
        (b"00" * 32, "wrong"),
        (b"xyz", "no key file"),
        (b"00" * 31, "64 hexadecimal"),
        (b"0" * 5000, "no key"),
    ):
        path.write_bytes(content)
        with pytest.raises(LockedError, match=match):
            open_seal(settings, lambda: "")
    path.write_bytes(whole)
    path.chmod(0o644)
    with pytest.raises(LockedError, match="chmod 600"):
        open_seal(settings, lambda: "")
    path.unlink()
    with pytest.raises(LockedError, match="put it back"):
        open_seal(settings, lambda: "")
    assert not path.exists()  # a missing key is never made anew over what it locked


def test_encryption_cannot_be_taken_off_in_place(tmp_path):
    old = passphrase_device(tmp_path)
    with pytest.raises(ConfigError, match="cannot be changed in place"):
        initialize(tmp_path / "device", DeviceSettings(server="https://example.org"))
    assert load_settings(tmp_path / "device") == old
    other = DeviceSettings(server="https://other.org", encryption="passphrase")
    changed = initialize(tmp_path / "device", other, lambda: "옳은 말")
    assert (changed.server, changed.salt, changed.check) == ("https://other.org", old.salt, old.check)


def test_without_the_package_encryption_says_what_to_install(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "cryptography.hazmat.primitives.ciphers.aead", None)
    with pytest.raises(LockedError, match="pip install cryptography"):
        KEY.close(b"text", "adapter")


# Settings


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"server": "example.org"}, "no address"),
        ({"server": "ftp://example.org"}, "no address"),
        ({"server": "https://user@example.org"}, "no address"),
        ({"server": "https://example.org:99999"}, "no address"),
        ({"server": "https://exa mple.org"}, "no address"),
        ({"server": "http://example.org"}, "not encrypted"),
        ({"codec": "mp3"}, "codec 'mp3'"),
        ({"budget_bytes": 0}, "above zero"),
        ({"budget_bytes": 1.5}, "budget_bytes"),
        ({"encryption": "rot13"}, "rot13"),
        ({"language": "ko\n"}, "language"),
        ({"handles": "yes"}, "handles"),
    ],
)
def test_impossible_settings_name_what_is_wrong(changes, match):
    with pytest.raises(ConfigError, match=match):
        DeviceSettings(**{"server": "https://example.org", **changes})


def test_plain_http_is_for_this_machine_or_where_it_was_allowed():
    for server in ("http://localhost:8000", "http://127.0.0.1:8000", "http://[::1]:8000"):
        DeviceSettings(server=server)
    DeviceSettings(server="http://192.168.1.9:8000", allow_http=True)


@pytest.mark.parametrize(
    "content", ["", "[]", "{}", '{"server": 1}', '{"server": "https://a.org", "more": 1}', "[" * 10**5]
)
def test_damaged_settings_are_named(tmp_path, content):
    (tmp_path / "device.json").write_text(content)
    with pytest.raises(ConfigError):
        load_settings(tmp_path)


def test_a_folder_that_is_no_device_says_how_to_make_one(tmp_path):
    with pytest.raises(ConfigError, match="idiolect device init"):
        load_settings(tmp_path)
