"""Whether directions tell participants from others: the area under the curve, and who is uncertain."""

import numpy as np
import pytest

from benchmarks.directions import auc, interval

LOW, HIGH = np.array([0.1, 0.2, 0.3]), np.array([0.4, 0.5])


def test_the_area_is_the_share_of_pairs_in_order() -> None:
    assert (auc(HIGH, LOW), auc(LOW, HIGH), auc(LOW, LOW)) == (1.0, 0.0, 0.5)
    assert auc(np.array([0.25, 0.4]), LOW) == pytest.approx(5 / 6)


def test_the_interval_is_over_people_and_nobody_makes_one_where_all_are_apart() -> None:
    assert interval(HIGH, LOW, 1) == (1.0, 1.0)
    low, high = interval(np.array([0.15, 0.4]), LOW, 1)
    assert 0 <= low < auc(np.array([0.15, 0.4]), LOW) < high <= 1
