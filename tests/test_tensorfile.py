"""A file of tensors is a function of what it holds."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from fl.core.tensorfile import read_tensors, tensor_bytes

TENSORS = {"b": torch.arange(6.0).reshape(2, 3), "가": torch.ones(1, dtype=torch.float16), "a": torch.zeros(0, 4)}
METADATA = {"schema": "1", "round": "3", "base": "whisper:64x2", "arm": "전체", "split": "gates"}

PROGRAM = """
import hashlib, torch
from fl.core.tensorfile import tensor_bytes
print(hashlib.sha256(tensor_bytes({"a": torch.ones(3), "b": torch.zeros(2)}, {str(i): "x" for i in range(9)})).hexdigest())
"""


@pytest.mark.parametrize(("tensors", "metadata"), [(TENSORS, METADATA), (TENSORS, {}), ({}, METADATA)])
def test_any_reader_of_safetensors_finds_everything(
    tmp_path: Path, tensors: dict[str, Tensor], metadata: dict[str, str]
) -> None:
    path = tmp_path / "file.safetensors"
    path.write_bytes(tensor_bytes(tensors, metadata))
    with safe_open(path, framework="pt") as file:
        found_metadata = dict(file.metadata() or {})
        assert len(found_metadata.pop("sha256")) == 64
        assert found_metadata == metadata
        found = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a dict
    assert found.keys() == tensors.keys()
    assert all(torch.equal(found[n], tensors[n]) and found[n].dtype == tensors[n].dtype for n in tensors)


def test_equal_content_is_equal_bytes_whatever_the_order_and_memory_layout() -> None:
    strided = {**TENSORS, "b": torch.arange(6.0).reshape(2, 3).T.contiguous().T}
    backwards = {name: strided[name] for name in reversed(strided)}
    one = tensor_bytes(TENSORS, METADATA)
    assert all(tensor_bytes(backwards, dict(reversed(METADATA.items()))) == one for _ in range(20))
    assert tensor_bytes({**TENSORS, "b": TENSORS["b"] + 1}, METADATA) != one


def test_two_processes_write_the_same_bytes() -> None:
    root = Path(__file__).parents[1]
    runs = {
        subprocess.run([sys.executable, "-c", PROGRAM], cwd=root, check=True, capture_output=True, text=True).stdout
        for _ in range(2)
    }
    assert len(runs) == 1


@pytest.mark.parametrize("framework", ["pt", "np"])
def test_a_flipped_bit_is_found_wherever_it_is(tmp_path: Path, framework: str) -> None:
    path = tmp_path / "file.safetensors"
    whole = tensor_bytes({"a": torch.ones(3), "b": torch.zeros(2, 2)}, {"round": "3"})
    path.write_bytes(whole)
    held, metadata = read_tensors(path, framework)
    assert ({name: values.tolist() for name, values in held.items()}, metadata) == (
        {"a": [1, 1, 1], "b": [[0, 0], [0, 0]]},
        {"round": "3"},
    )
    for place in range(len(whole)):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
        try:
            found, said = read_tensors(path, framework)
        except ValueError:
            continue
        assert "sha256" not in said  # its name was hit, and nothing else
        assert len(said) == 2
        assert all(found[name].tolist() == held[name].tolist() for name in held)


def test_a_file_without_a_digest_is_read_as_it_is(tmp_path: Path) -> None:
    path = tmp_path / "file.safetensors"
    save_file({"a": torch.ones(3)}, path, {"round": "3"})
    found, metadata = read_tensors(path)
    assert (found["a"].tolist(), metadata) == ([1, 1, 1], {"round": "3"})
