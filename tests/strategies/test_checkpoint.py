"""The aggregator's state on disk: replaced whole or not at all."""

import errno
import os
from pathlib import Path
from typing import NoReturn

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord

from fl.core.errors import RunError
from strategies.checkpoint import Checkpoint, checkpoint_path, load_checkpoint, save_checkpoint, state_path

BASE = "whisper:64x2+2:0123"


def arrays(value: float) -> ArrayRecord:
    return ArrayRecord({"layer.A": Array(np.full((2, 3), value, np.float32)), "layer.B": Array(np.ones(4, np.float32))})


def load(folder: Path, arm: str = "personalized", base: str = BASE) -> Checkpoint:
    found = load_checkpoint(folder, arm, base)
    assert found is not None
    return found


def test_a_checkpoint_comes_back_bit_for_bit(tmp_path: Path) -> None:
    saved = arrays(1 / 3)
    save_checkpoint(tmp_path, "personalized", Checkpoint(7, saved), BASE)
    found = load(tmp_path)
    assert found.round == 7
    assert {n: a.data for n, a in found.arrays.items()} == {n: a.data for n, a in saved.items()}


def test_the_newest_replaces_the_one_before_and_each_arm_has_its_own(tmp_path: Path) -> None:
    for server_round, arm in ((1, "global"), (2, "global"), (1, "global+finetune")):
        save_checkpoint(tmp_path, arm, Checkpoint(server_round, arrays(server_round)), BASE)
    assert load(tmp_path, "global").round == 2
    assert load(tmp_path, "global+finetune").round == 1
    assert load_checkpoint(tmp_path, "local", BASE) is None


def test_an_arm_that_shares_nothing_has_a_checkpoint_of_its_round(tmp_path: Path) -> None:
    save_checkpoint(tmp_path, "local", Checkpoint(3, ArrayRecord()), BASE)
    found = load(tmp_path, "local")
    assert (found.round, len(found.arrays)) == (3, 0)


def test_equal_state_is_equal_bytes(tmp_path: Path) -> None:
    backwards = ArrayRecord({name: arrays(2.0)[name] for name in ("layer.B", "layer.A")})
    save_checkpoint(tmp_path / "one", "global", Checkpoint(1, arrays(2.0)), BASE)
    save_checkpoint(tmp_path / "two", "global", Checkpoint(1, backwards), BASE)
    one, two = (checkpoint_path(tmp_path / folder, "global").read_bytes() for folder in ("one", "two"))
    assert one == two


@pytest.mark.parametrize("damage", [b"", b"nothing of ours", "cut"])
def test_a_damaged_checkpoint_is_named_with_what_to_do(tmp_path: Path, damage: bytes | str) -> None:
    save_checkpoint(tmp_path, "personalized", Checkpoint(7, arrays(1.0)), BASE)
    path = checkpoint_path(tmp_path, "personalized")
    path.write_bytes(damage if isinstance(damage, bytes) else path.read_bytes()[:-3])
    with pytest.raises(RunError, match=r"personalized.safetensors is damaged .* remove it"):
        load(tmp_path)


def test_a_checkpoint_of_another_base_is_refused_by_name(tmp_path: Path) -> None:
    save_checkpoint(tmp_path, "personalized", Checkpoint(7, arrays(1.0)), BASE)
    with pytest.raises(RunError, match=r"whisper:64x2\+2:0123.*another output"):
        load(tmp_path, base="whisper:512x6+6:4567")


@pytest.mark.parametrize("call", ["fsync", "replace"])
def test_a_full_disk_leaves_the_checkpoint_before_and_no_temporary_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    save_checkpoint(tmp_path, "personalized", Checkpoint(1, arrays(1.0)), BASE)

    def full(*_: object) -> NoReturn:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(os, call, full)
        with pytest.raises(RunError, match="No space left"):
            save_checkpoint(tmp_path, "personalized", Checkpoint(2, arrays(2.0)), BASE)
    assert [p.name for p in tmp_path.iterdir() if p.is_file()] == ["personalized.safetensors"]
    assert load(tmp_path).round == 1


# What a strategy keeps beside the shared tensors


class Killed(BaseException):
    """The end of the process."""


def test_a_checkpoint_is_always_beside_the_state_of_its_own_round(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The process dies when the state of round 2 is on the disk and its checkpoint is not."""
    save_checkpoint(tmp_path, "global", Checkpoint(1, arrays(1.0), {"first:x": np.ones(1)}), BASE)
    with monkeypatch.context() as patch:
        write = save_checkpoint.__globals__["write_atomically"]

        def die(path: Path, data: bytes, **_: object) -> None:
            if "state" not in path.name:
                raise Killed
            write(path, data)

        patch.setitem(save_checkpoint.__globals__, "write_atomically", die)
        with pytest.raises(Killed):
            save_checkpoint(tmp_path, "global", Checkpoint(2, arrays(2.0), {"first:x": np.full(1, 2.0)}), BASE)
    found = load_checkpoint(tmp_path, "global", BASE)
    assert found is not None
    assert (found.round, found.state["first:x"].tolist()) == (1, [1.0])


def test_a_state_that_is_missing_or_damaged_is_named_with_what_to_do(tmp_path: Path) -> None:
    save_checkpoint(tmp_path, "global", Checkpoint(1, arrays(1.0), {"first:x": np.ones(1)}), BASE)
    path = state_path(tmp_path, "global", 1)
    path.write_bytes(path.read_bytes()[:-3])
    with pytest.raises(RunError, match=r"state-1.safetensors is damaged .* remove it"):
        load_checkpoint(tmp_path, "global", BASE)
    path.unlink()
    with pytest.raises(RunError, match=r"state-1.safetensors is missing"):
        load_checkpoint(tmp_path, "global", BASE)


def test_the_state_of_another_arm_is_not_touched(tmp_path: Path) -> None:
    for arm in ("global", "global+finetune", "personalized"):
        save_checkpoint(tmp_path, arm, Checkpoint(1, arrays(1.0), {"first:x": np.ones(1)}), BASE)
    save_checkpoint(tmp_path, "global", Checkpoint(2, arrays(1.0), {"first:x": np.ones(1)}), BASE)
    assert sorted(p.name for p in tmp_path.glob("*state*")) == [
        "global+finetune.state-1.safetensors",
        "global.state-2.safetensors",
        "personalized.state-1.safetensors",
    ]
