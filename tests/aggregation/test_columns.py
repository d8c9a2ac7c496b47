"""All devices' values side by side: coordinates in order, and rows of bounded length."""

import numpy as np
import pytest

from fl.aggregation.columns import BoundedUpdates, by_coordinate
from fl.aggregation.updates import DeviceUpdate


def devices(rows: np.ndarray) -> list[DeviceUpdate]:
    return [DeviceUpdate(f"d{i}", {"x": row}, {}, {"examples": 1.0}) for i, row in enumerate(rows)]


def test_a_far_row_is_shortened_and_one_whose_norm_overflows_is_zero() -> None:
    rows = np.array([[0.0, 1.0], [0.0, 2.0], [0.0, 3e9], [np.inf, 0.0]], np.float32)
    bounded = BoundedUpdates(devices(rows), keep=True)
    (matrix,) = bounded.matrices(np.float32)
    assert bounded.norms[:3] == pytest.approx([1.0, 2.0, 3e9])
    assert bounded.factors.tolist() == pytest.approx([1.0, 1.0, 2e6 / 3e9, 0.0])
    assert matrix[:, 1].tolist() == pytest.approx([1.0, 2.0, 2e6, 0.0])


def test_coordinates_are_ordered_in_blocks_and_come_back_in_their_shape() -> None:
    stack = np.random.default_rng(0).standard_normal((5, 3, 321)).astype(np.float16)
    found = by_coordinate(devices(stack), lambda ordered: ordered[:, 1])["x"]
    assert (found == np.sort(stack, axis=0)[1].astype(np.float32)).all()
