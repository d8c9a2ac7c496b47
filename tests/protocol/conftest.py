"""Replies of a node, good ones and changed ones, and what was agreed about them."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, MetricRecord, RecordDict

from fl.algorithms.arms import trained_arm
from fl.algorithms.plan import Phase
from fl.protocol.reply import Exchange, ReplySchema
from fl.settings.config import make_config

SHAPES = {"q_proj.gated_lora_A": (2, 3), "q_proj.gated_lora_B": (4, 2)}


@pytest.fixture
def shapes() -> dict[str, tuple[int, ...]]:
    """Names and shapes of the tensors that were agreed on as shared."""
    return dict(SHAPES)


@pytest.fixture(scope="session")
def agreed() -> Callable[..., ReplySchema]:
    """The schema of a training message of the personalized arm; settings by their keys."""

    def make(
        shapes: dict[str, tuple[int, ...]] | None = None, participants: tuple[str, ...] = (), **settings: Any
    ) -> ReplySchema:
        config = make_config(settings)
        exchange = Exchange.of(config, trained_arm("personalized", config), Phase.FEDERATE)
        return ReplySchema(SHAPES if shapes is None else shapes, exchange, participants)

    return make


@pytest.fixture
def arrays() -> Callable[..., ArrayRecord]:
    """The updates of ann and bob, stacked; named ones replaced, or left out with None."""

    def make(changes: dict[str, np.ndarray | Array | None] | None = None) -> ArrayRecord:
        values = {name: np.full((2, *shape), 0.5, np.float32) for name, shape in SHAPES.items()} | (changes or {})
        return ArrayRecord({n: v if isinstance(v, Array) else Array(v) for n, v in values.items() if v is not None})

    return make


@pytest.fixture
def reply(arrays: Callable[..., ArrayRecord]) -> Callable[..., RecordDict]:
    """A proper reply of ann and bob, with records replaced or added, and counts replaced or added."""

    def make(records: dict[str, Any] | None = None, ids: tuple[str, ...] = ("ann", "bob"), **counts: Any) -> RecordDict:
        proper = {"examples": [3, 4], "loss": [0.5, 0.25], "wer.substitutions": [2, 1], "wer.reference": [9, 8]}
        content = {
            "devices": ConfigRecord({"ids": list(ids)}),
            "counts": MetricRecord({**proper, **counts}),
            "updates": arrays(),
        }
        return RecordDict({**content, **(records or {})})

    return make
