"""Private state on a device's disk: durable, whole or absent, and nobody else's."""

import errno
import os
import shutil
from pathlib import Path
from typing import NoReturn

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file

from clients import store as store_module
from clients.store import DeviceStore, folder_name
from fl.adapters.state import State
from fl.core.errors import StoreError
from fl.core.tensorfile import tensor_bytes
from fl.packed.blob import PackedInfo, pack, unpack

SHAPES = {"layer.gated_lora_gate_weight": (2, 3), "layer.gated_lora_gate_bias": (2,)}


def save(store: DeviceStore, device_id: str, round_index: int, value: float | None = None) -> None:
    """Tensors that are filled with a value, the round's number unless given."""
    filled = float(round_index) if value is None else value
    tensors = {name: torch.full(shape, filled) for name, shape in SHAPES.items()}
    store.save("personalized", device_id, round_index, tensors)


@pytest.fixture
def store(tmp_path: Path) -> DeviceStore:
    return DeviceStore(tmp_path / "store", "whisper:64x2+2:0123")


def load(store: DeviceStore, device_id: str = "ann", before: int = 1_000) -> State:
    found = store.load("personalized", device_id, SHAPES, before=before)
    assert found is not None
    return found


def value_of(store: DeviceStore, device_id: str = "ann", before: int = 1_000) -> float:
    """What the stored tensors are filled with."""
    (value,) = {float(x) for tensor in load(store, device_id, before).values() for x in tensor.flatten()}
    return value


def test_a_state_comes_back_bit_for_bit(store: DeviceStore) -> None:
    generator = torch.Generator().manual_seed(0)
    tensors = {name: torch.randn(shape, generator=generator) for name, shape in SHAPES.items()}
    store.save("personalized", "ann", 3, tensors)
    found = load(store)
    assert found.keys() == tensors.keys()
    assert all(torch.equal(found[name], tensors[name]) for name in tensors)


def test_a_state_in_int8_comes_back_as_a_packed_adapter_has_it(store: DeviceStore, tmp_path: Path) -> None:
    """A byte for each number and two for each row's scale, no entry farther away than half of its row's scale."""
    tensors = {name: torch.randn(shape, generator=torch.Generator().manual_seed(1)) for name, shape in SHAPES.items()}
    store.save("personalized", "ann", 3, tensors, int8=True)
    found = load(store)
    arrays = {name: tensor.numpy() for name, tensor in tensors.items()}
    packed, _ = unpack(pack(arrays, PackedInfo("b", "f", "", "gates", "trimmed", "ko", {}, "int8")))
    for name, tensor in tensors.items():
        assert torch.equal(found[name], torch.from_numpy(packed[name]))
        largest = tensor.abs().amax(-1, keepdim=True)
        assert bool(((found[name] - tensor).abs() <= largest / 253).all())
    kept = load_file(next((tmp_path / "store").rglob("state-*")))
    assert sum(tensor.nbytes for tensor in kept.values()) == 8 + 2 * 3
    store.save("personalized", "ann", 4, found, int8=True)
    assert all(torch.equal(load(store)[name], found[name]) for name in found)


def test_int8_without_its_scales_is_damaged(store: DeviceStore, tmp_path: Path) -> None:
    store.save("personalized", "ann", 3, {name: torch.ones(shape) for name, shape in SHAPES.items()}, int8=True)
    path = next((tmp_path / "store").rglob("state-*"))
    facts = {"schema": "1", "base": store.fingerprint, "round": "3", "dtype": "int8"}
    path.write_bytes(tensor_bytes({n: t for n, t in load_file(path).items() if n != "scales"}, facts))
    with pytest.raises(StoreError, match="damaged"):
        load(store)


def test_a_device_without_state_has_none(store: DeviceStore) -> None:
    save(store, "ann", 1)
    assert store.load("personalized", "bob", SHAPES, before=9) is None
    assert store.load("local", "ann", SHAPES, before=9) is None
    assert store.load("personalized", "ann", SHAPES, before=1) is None


def test_three_rounds_are_kept_and_before_picks_an_older_one(store: DeviceStore) -> None:
    for round_index in (1, 2, 3, 4):
        save(store, "ann", round_index)
    assert store.rounds("personalized", "ann") == [2, 3, 4]
    assert [value_of(store, before=before) for before in (5, 4, 3)] == [4, 3, 2]


def test_a_round_that_is_trained_again_replaces_its_state_and_keeps_the_one_before(store: DeviceStore) -> None:
    for round_index in (4, 5):
        save(store, "ann", round_index)
    save(store, "ann", 5, value=-1.0)
    assert store.rounds("personalized", "ann") == [4, 5]
    assert value_of(store) == -1.0


def test_rounds_of_a_device_that_was_not_drawn_each_time_are_kept_by_number_not_by_age(store: DeviceStore) -> None:
    for round_index in (2, 9, 11, 14):
        save(store, "ann", round_index)
    assert store.rounds("personalized", "ann") == [9, 11, 14]
    assert value_of(store, before=11) == 9


@pytest.mark.parametrize("damage", [b"", b"not safetensors", "cut", "flipped header"])
def test_a_damaged_file_is_named_and_says_what_to_do(store: DeviceStore, damage: bytes | str) -> None:
    save(store, "ann", 1)
    save(store, "ann", 2)
    path = store.folder("personalized", "ann") / "state-000002.safetensors"
    whole = path.read_bytes()
    path.write_bytes(
        damage if isinstance(damage, bytes) else whole[:-5] if damage == "cut" else b"\xff" * 8 + whole[8:]
    )
    with pytest.raises(StoreError, match=r"state-000002.*remove the file"):
        load(store)
    path.unlink()
    assert value_of(store) == 1


def test_state_of_another_base_is_refused_by_name(store: DeviceStore) -> None:
    save(store, "ann", 1)
    other = DeviceStore(store.root, "whisper:512x6+6:4567")
    with pytest.raises(StoreError, match=r"whisper:64x2\+2:0123.*whisper:512x6\+6:4567"):
        load(other)


@pytest.mark.parametrize(
    "shapes",
    [
        {**SHAPES, "layer.gated_lora_gate_weight": (4, 3)},
        {"layer.gated_lora_gate_bias": (2,)},
        {**SHAPES, "more.gated_lora_gate_bias": (2,)},
    ],
    ids=["other shape", "fewer tensors", "more tensors"],
)
def test_state_of_another_configuration_is_refused(store: DeviceStore, shapes: dict[str, tuple[int, ...]]) -> None:
    save(store, "ann", 1)
    with pytest.raises(StoreError, match="does not fit this run"):
        store.load("personalized", "ann", shapes, before=9)


def test_state_with_nan_is_refused(store: DeviceStore) -> None:
    save(store, "ann", 1, value=float("nan"))
    with pytest.raises(StoreError, match="NaN"):
        load(store)


@pytest.mark.parametrize("call", ["fsync", "replace"])
def test_a_full_disk_leaves_the_state_before_and_no_temporary_file(
    store: DeviceStore, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    save(store, "ann", 1)
    save(store, "ann", 2)
    before = sorted(p.name for p in store.folder("personalized", "ann").iterdir())

    def full(*_: object) -> NoReturn:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(os, call, full)
        with pytest.raises(StoreError, match=r"No space left.*free some space"):
            save(store, "ann", 3)
    assert sorted(p.name for p in store.folder("personalized", "ann").iterdir()) == before
    assert value_of(store) == 2
    assert value_of(store, before=2) == 1


STRANGE = ["../x", "a/b", "a%2fb", "a_b", "..", ".", "/etc", "C:\\x", "김민수", "김민서", "a b", "-", "a\0b", "state-1"]


def test_strange_device_ids_stay_inside_the_root_and_apart_from_each_other(store: DeviceStore) -> None:
    for number, device_id in enumerate(STRANGE):
        folder = store.folder("personalized", device_id)
        assert folder.resolve().parent == (store.root / "personalized").resolve()
        save(store, device_id, 1, value=float(number))
    for number, device_id in enumerate(STRANGE):
        assert value_of(store, device_id) == number
    assert sorted(p.name for p in store.root.iterdir()) == ["personalized"]


@given(st.lists(st.text(st.characters(codec="utf-8"), min_size=1, max_size=12), min_size=2, max_size=2, unique=True))
def test_two_device_ids_never_share_a_folder(pair: list[str]) -> None:
    first, second = map(folder_name, pair)
    assert first != second
    assert "/" not in first
    assert first not in (".", "..")


@pytest.mark.parametrize("device_id", ["", "x" * 201])
def test_an_id_that_cannot_name_a_folder_is_refused(device_id: str) -> None:
    with pytest.raises(StoreError, match="cannot name a folder"):
        folder_name(device_id)


# Many devices that wait for the disk together


def test_a_state_that_was_written_behind_is_there_once_it_is_settled(store: DeviceStore) -> None:
    with store.writing_behind():
        for number in range(20):
            save(store, f"device {number}", 1)
        store.settle("device 3")
        assert store.rounds("personalized", "device 3") == [1]
    assert all(store.rounds("personalized", f"device {number}") == [1] for number in range(20))


def test_a_full_disk_while_writing_behind_fails_the_device_whose_state_was_lost_and_no_other(
    store: DeviceStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = store_module.write_atomically

    def full(path: Path, data: bytes) -> None:
        if path.parent.name == "bob":
            raise OSError(28, "No space left on device")
        whole(path, data)

    monkeypatch.setattr(store_module, "write_atomically", full)
    with store.writing_behind():
        for device_id in ("ann", "bob", "cho"):
            save(store, device_id, 1)
        store.settle("ann")
        with pytest.raises(StoreError, match="free some space"):
            store.settle("bob")
        store.settle("cho")
    assert [store.rounds("personalized", d) for d in ("ann", "bob", "cho")] == [[1], [], [1]]


def test_a_state_is_on_the_disk_before_it_is_settled_and_not_only_in_memory(
    store: DeviceStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced: list[int] = []
    whole = os.fsync
    monkeypatch.setattr(os, "fsync", lambda descriptor: (synced.append(descriptor), whole(descriptor))[1])
    with store.writing_behind():
        save(store, "ann", 1)
        store.settle("ann")
        assert len(synced) == 2  # the file and its folder


def test_after_writing_behind_a_state_is_written_at_once_again(store: DeviceStore) -> None:
    with store.writing_behind():
        pass
    save(store, "ann", 1)
    assert store.rounds("personalized", "ann") == [1]


def test_a_device_whose_folder_vanished_begins_afresh_and_the_log_says_so(
    store: DeviceStore, caplog: pytest.LogCaptureFixture
) -> None:
    save(store, "ann", 4)
    shutil.rmtree(store.root)
    with caplog.at_level("INFO", logger="idiolect.client"):
        assert store.load("personalized", "ann", SHAPES, before=5) is None
        assert "ann has no state of arm personalized from before round 5" in caplog.text
        caplog.clear()
        assert store.load("personalized", "ann", SHAPES, before=1) is None
    assert not caplog.text
