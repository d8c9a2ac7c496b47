"""The growth of aggregation: an exponent is the slope of the logarithms."""

import pytest

from benchmarks.aggregation_growth import exponent


@pytest.mark.parametrize("power", [0.0, 1.0, 2.0])
def test_an_exponent_is_the_power_by_which_seconds_grow(power: float) -> None:
    rows = [{"devices": count, "seconds": 0.003 * count**power} for count in (10, 1_000, 100_000)]
    assert exponent(rows, "devices", "seconds") == pytest.approx(power, abs=1e-3)
    assert exponent(rows[:1], "devices", "seconds") is None
