"""Directions of updates are the right singular vectors of all of them, and none where nothing moves."""

import numpy as np
import pytest

from fl.aggregation.directions import main_directions
from fl.aggregation.updates import CACHE_NUMBERS

NAMES = ("a", "b")


def updates(count: int, rank: int, large: int = 6) -> list[dict[str, np.ndarray]]:
    draw = np.random.default_rng(3)
    basis = [draw.normal(size=(rank, 4 * large)), draw.normal(size=(rank, 10))]
    mixed = draw.normal(size=(count, rank)) * 3.0 ** -np.arange(rank)
    return [
        {
            "a": (row @ basis[0]).reshape(4, large).astype(np.float32),
            "b": (row @ basis[1]).astype(np.float32),
            "c": np.ones(1),
        }
        for row in mixed
    ]


def flat(rows: list[dict[str, np.ndarray]]) -> np.ndarray:
    return np.stack([np.concatenate([row[name].ravel() for name in NAMES]) for row in rows]).astype(np.float64)


@pytest.mark.parametrize("large", [6, CACHE_NUMBERS // 4 + 5])  # of more than one block, too
def test_they_are_the_right_singular_vectors_of_all_updates(large: int) -> None:
    rows = updates(7, 5, large)
    found = main_directions(rows, NAMES, 3)
    assert {name: values.shape for name, values in found.items()} == {"a": (3, 4 * large), "b": (3, 10)}
    basis = np.concatenate([found[name] for name in NAMES], axis=1)
    np.testing.assert_allclose(basis @ basis.T, np.eye(3), atol=1e-5)
    exact = np.linalg.svd(flat(rows), full_matrices=False)[2][:3]
    np.testing.assert_allclose(np.abs(basis @ exact.T), np.eye(3), atol=1e-4)


def test_there_are_no_more_than_the_updates_span_and_none_of_updates_that_are_zero() -> None:
    assert len(main_directions(updates(7, 2), NAMES, 16)["a"]) == 2
    assert len(main_directions(updates(3, 5), NAMES, 16)["a"]) == 3
    still = [{name: np.zeros_like(values) for name, values in row.items()} for row in updates(3, 2)]
    for rows, names, count in ((still, NAMES, 2), ([], NAMES, 2), (updates(3, 2), (), 2), (updates(3, 2), NAMES, 0)):
        assert main_directions(rows, names, count) == {}
