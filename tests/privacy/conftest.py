"""Replies of one device, good ones and changed ones."""

from collections.abc import Callable

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, MetricRecord, RecordDict

SHAPES = {"q_proj.gated_lora_A": (2, 3), "q_proj.gated_lora_B": (4, 2)}
GATE = "q_proj.gated_lora_gate_weight"


@pytest.fixture
def shapes() -> dict[str, tuple[int, ...]]:
    """Names and shapes of the tensors that were agreed on as shared."""
    return dict(SHAPES)


@pytest.fixture
def arrays() -> Callable[..., ArrayRecord]:
    """The shared tensors of a proper reply; named ones replaced, or left out with None."""

    def make(changes: dict[str, np.ndarray | Array | None] | None = None) -> ArrayRecord:
        values = {name: np.full(shape, 0.5, np.float32) for name, shape in SHAPES.items()} | (changes or {})
        return ArrayRecord({n: v if isinstance(v, Array) else Array(v) for n, v in values.items() if v is not None})

    return make


@pytest.fixture
def reply(arrays) -> Callable[..., RecordDict]:
    """A proper reply of the device ``ann`` with further records, which may replace its own."""

    def make(records: dict[str, object] | None = None, **counts: object) -> RecordDict:
        proper = {"examples": 3, "steps": 5, "loss": 0.25, "wer.substitutions": 2, "wer.reference": 9}
        content = {"shared:ann": arrays(), "counts:ann": MetricRecord({**proper, **counts})}
        return RecordDict({**content, **(records or {})})

    return make
