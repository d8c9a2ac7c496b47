"""Directions lie beside the adapter that they were made with, in int8, and are of no other."""

from pathlib import Path

import numpy as np
import pytest
import torch

from fl.adapters.directions import (
    NAME,
    grown_from,
    load_directions,
    read_directions,
    save_directions,
    stored_directions,
)
from fl.core.errors import AdapterError
from fl.core.tensorfile import tensor_bytes
from fl.packed.blob import quantized, restored

ROWS = {
    name: np.random.default_rng(5).normal(size=(3, size)).astype(np.float32) for name, size in (("x", 40), ("y", 8))
}
DRAW = torch.manual_seed(2)
SHARED = {f"m.gated_lora_{kind}": torch.randn(*shape, generator=DRAW) for kind, shape in (("A", (2, 9)), ("B", (7, 2)))}


def test_what_is_written_is_read_back_to_half_a_step_of_int8(tmp_path: Path) -> None:
    assert load_directions(tmp_path) == {}
    save_directions(tmp_path, stored_directions(ROWS))
    found = load_directions(tmp_path)
    assert found.keys() == ROWS.keys()
    for name, values in found.items():
        step = np.abs(ROWS[name]).max(1, keepdims=True) / 127
        assert bool((np.abs(values.numpy() - ROWS[name]) <= 0.51 * step).all())
    save_directions(tmp_path, {})
    assert load_directions(tmp_path) == {}  # none of another adapter stay
    assert stored_directions({}) == {}
    assert read_directions({}) == {}


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"{}",
        tensor_bytes({"x": torch.ones(2)}, {"format": "pt"}),  # of another kind
        tensor_bytes({"x": torch.ones(2)}, {"idiolect_directions": "1"}),  # not as they are kept
        tensor_bytes({"scales": torch.ones(2).half()}, {"idiolect_directions": "1"}),
        tensor_bytes(
            {"x": torch.tensor(1, dtype=torch.int8), "scales": torch.ones(1).half()}, {"idiolect_directions": "1"}
        ),
    ],
)
def test_a_file_that_holds_none_is_refused_by_name_with_a_remedy(tmp_path: Path, data: bytes) -> None:
    (tmp_path / NAME).write_bytes(data)
    with pytest.raises(AdapterError, match=r"get it again|remove it"):
        load_directions(tmp_path)


def test_an_adapter_is_of_the_same_run_where_a_is_the_same_but_for_int8() -> None:
    a, b = SHARED
    rounded = {
        n: torch.from_numpy(v) for n, v in restored(quantized({n: t.numpy() for n, t in SHARED.items()})).items()
    }
    for same in (SHARED, rounded, {**SHARED, b: SHARED[b] + 1}, {**SHARED, "m.gate": torch.ones(1)}):
        assert grown_from(same, SHARED)
    for other in ({**SHARED, a: SHARED[a] + 0.1}, {**SHARED, a: SHARED[a][:1]}, {b: SHARED[b]}):
        assert not grown_from(other, SHARED)
