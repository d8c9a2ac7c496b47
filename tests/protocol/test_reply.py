"""In which form the updates of a message come back: derived from the settings, the arm and the phase, for both ends alike."""

from typing import Any

import numpy as np
import pytest

from fl.algorithms.arms import trained_arm
from fl.algorithms.plan import Phase
from fl.codecs.table import make_codec
from fl.protocol.reply import Exchange, Form, ReplySchema
from fl.settings.config import make_config

SHAPES = {"A": (2, 3), "B": (4,)}
NOISE = {"noise_multiplier": 1.0}


def exchange(arm: str = "personalized", phase: Phase = Phase.FEDERATE, **settings: Any) -> Exchange:
    config = make_config(settings)
    return Exchange.of(config, trained_arm(arm, config), phase)


@pytest.mark.parametrize(
    ("settings", "form"),
    [
        ({}, Form.PLAIN),
        ({"aggregation": "edge"}, Form.PLAIN),
        ({"codec": "int8"}, Form.ENCODED),
        ({"codec": "fp16"}, Form.ENCODED),
        ({"codec": "fp16", "aggregation": "edge"}, Form.PLAIN),  # a node sums what the encodings decode to
        ({"secure_sum": "pairwise"}, Form.MASKED),
        ({"secure_sum": "pairwise", "aggregation": "edge"}, Form.MASKED),
        ({"dp": "server", **NOISE}, Form.PLAIN),
    ],
)
def test_the_form_follows_from_the_settings(settings: dict[str, Any], form: Form) -> None:
    for arm in ("personalized", "global"):
        assert exchange(arm, **settings).form is form


@pytest.mark.parametrize("settings", [{}, {"codec": "int8"}, {"secure_sum": "pairwise"}, {"aggregation": "edge"}])
def test_nothing_leaves_in_a_phase_without_exchange_nor_in_an_arm_that_shares_nothing(settings: dict[str, Any]) -> None:
    assert exchange("personalized", Phase.PERSONALIZE, **settings).form is Form.NOTHING
    assert exchange("global+finetune", Phase.FINETUNE, **settings).form is Form.NOTHING
    assert exchange("local", **settings).form is Form.NOTHING
    assert exchange("zero-shot", **settings).form is Form.NOTHING


@pytest.mark.parametrize("settings", [{"codec": "int8"}, {"secure_sum": "pairwise"}])
def test_all_data_in_one_place_is_no_federation_so_nothing_is_done_to_its_update(settings: dict[str, Any]) -> None:
    found = exchange("centralized", **settings)
    assert found.form is Form.PLAIN
    assert not found.clips


@pytest.mark.parametrize(
    ("settings", "clips"),
    [
        ({}, False),
        ({"dp": "server", **NOISE}, False),  # an aggregator that sees single updates clips them itself
        ({"dp": "server", "aggregation": "edge", **NOISE}, True),
        ({"dp": "local", **NOISE}, True),
        ({"secure_sum": "pairwise"}, True),
        ({"codec": "int8"}, False),
        ({"codec": "int8:0.5"}, True),  # its grid has a limit
        ({"aggregation": "edge"}, False),
    ],
)
def test_a_device_clips_where_nobody_after_it_sees_its_update(settings: dict[str, Any], clips: bool) -> None:
    assert exchange(**settings).clips == clips


def test_a_weight_is_the_number_of_examples_or_bounded_where_a_sum_must_be() -> None:
    assert exchange().weigh(30) == 30.0
    assert exchange(secure_sum="pairwise").weigh(30) == 1.0
    assert exchange(secure_sum="pairwise", example_cap=40).weigh(30) == 30 / 40
    assert exchange(secure_sum="pairwise", example_cap=10).weigh(30) == 1.0
    assert exchange("centralized", secure_sum="pairwise", example_cap=10).weigh(30) == 30.0


@pytest.mark.parametrize("codec", ["fp16", "int8", "int4", "top-k:0.5", "top-k:0.5+int8"])
def test_the_agreed_bytes_are_those_of_any_encoding(codec: str) -> None:
    generator = np.random.default_rng(0)
    for name, size in exchange(codec=codec).payload_sizes(SHAPES).items():
        values = generator.standard_normal(SHAPES[name]).astype(np.float32).ravel()
        assert len(make_codec(codec).encode(values)) == size


# What follows for a reply


def schema(participants: tuple[str, ...] = (), **settings: Any) -> ReplySchema:
    return ReplySchema(SHAPES, exchange(**settings), participants)


def test_a_stack_has_a_row_for_each_device_and_a_sum_has_none() -> None:
    key, expected = schema().arrays(5)
    assert (key, {n: e.shape for n, e in expected.items()}) == ("updates", {"A": (5, 2, 3), "B": (5, 4)})
    assert {e.dtypes for e in expected.values()} == {("float32", "float16")}
    key, expected = schema(aggregation="edge").arrays(5)
    assert (key, {n: (e.shape, e.dtypes) for n, e in expected.items()}) == (
        "sum", {"A": ((2, 3), ("float64",)), "B": ((4,), ("float64",))},
    )  # fmt: skip


def test_encodings_are_one_array_of_bytes_with_a_row_for_each_device() -> None:
    key, expected = schema(codec="fp16").arrays(5)
    assert (key, {n: (e.shape, e.dtypes) for n, e in expected.items()}) == (
        "encoded", {"update": ((5, 2 * (2 * 3 + 4)), ("uint8",))},
    )  # fmt: skip


@pytest.mark.parametrize(("quantile", "numbers"), [(0.0, 2 * 3 + 4 + 1), (0.5, 2 * 3 + 4 + 2)])
def test_a_masked_vector_has_all_numbers_the_weight_and_with_adaptive_clipping_a_bit(
    quantile: float, numbers: int
) -> None:
    noise = {"dp": "distributed", "clip_quantile": quantile, **NOISE}
    found = schema(("ann", "node 2"), secure_sum="pairwise", **noise)
    assert found.masked == {"ann": numbers, "node 2": numbers}
    assert found.arrays(2) == ("", {})


def test_without_tensors_or_agreement_there_is_nothing_to_send() -> None:
    for empty in (ReplySchema(), ReplySchema(SHAPES), ReplySchema({}, exchange())):
        assert empty.form is Form.NOTHING
        assert empty.arrays(3) == ("", {})
        assert empty.masked == {}
