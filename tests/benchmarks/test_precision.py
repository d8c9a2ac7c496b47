"""bf16 against float32: what the difference of two precisions is, and its interval over people and seeds."""

import numpy as np
import pytest

from benchmarks.precision import compare, main

REFERENCE = np.array([40, 60])
WIDE = np.array([[10, 12, 14], [20, 18, 22]])  # (people, seeds): 30, 30 and 36 errors of 100 tokens


def test_a_precision_that_changes_nothing_differs_by_nothing() -> None:
    found = compare(WIDE, WIDE, REFERENCE, seed=1)
    assert (found["difference"], found["low"], found["high"]) == (0.0, 0.0, 0.0)
    assert found["float32"] == found["bf16"] == pytest.approx(32.0)
    assert found["deviation"] == pytest.approx(12**0.5)  # of 30, 30 and 36 %


def test_an_interval_is_over_people_and_over_seeds() -> None:
    one_person, one_seed = WIDE.copy(), WIDE.copy()
    one_person[0] += 6
    one_seed[:, 1] += 6
    by_person, by_seed = (compare(WIDE, narrow, REFERENCE, seed=1) for narrow in (one_person, one_seed))
    assert by_person["difference"] == pytest.approx(6.0)
    assert by_seed["difference"] == pytest.approx(4.0)
    for found in (by_person, by_seed):  # who or what is drawn may leave the only one with a difference out
        assert found["low"] == 0.0 < found["difference"] < found["high"]


def test_the_runs_of_all_seeds_have_the_same_people(monkeypatch, tmp_path) -> None:
    monkeypatch.setenv("IDIOLECT_HOME", str(tmp_path / "home"))
    monkeypatch.setattr("sys.argv", ["precision", "--smoke", "--seeds", "2", "--runs", str(tmp_path)])
    assert main() == 0
