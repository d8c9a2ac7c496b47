"""What a trait adds, of people who say other sentences with it than without."""

import pytest

from benchmarks.traits import difference, tables

WITHOUT = {
    "a": {"mer": (1, 10), "mer_folded": (1, 10), "wer": (1, 10)},
    "b": {"mer": (3, 30), "mer_folded": (3, 30), "wer": (3, 30)},
}
WITH = {
    "a": {"mer": (4, 20), "mer_folded": (2, 20), "wer": (4, 20)},
    "b": {"mer": (8, 40), "mer_folded": (4, 40), "wer": (8, 40)},
}


def test_rates_are_pooled_and_everybody_who_gets_as_much_worse_leaves_no_interval() -> None:
    assert difference(WITH, WITHOUT, "mer") == pytest.approx((10, 10, 10))
    assert difference(WITH, WITHOUT, "mer_folded") == pytest.approx((0, 0, 0))


def test_a_person_alone_makes_the_interval_wide() -> None:
    only = {"a": {"mer": (10, 10)}, "b": {"mer": (3, 30)}}
    points, low, high = difference(only, WITHOUT, "mer")
    assert (points, low, high) == pytest.approx((22.5, 0, 90))


def test_each_trait_has_a_line_beside_none() -> None:
    (table,) = tables({"none": WITHOUT, "accent": WITH})
    assert [row[0] for row in table.rows] == ["none", "accent"]
    assert table.rows[1][1:] == ("20.0", "10.0", "20.0", "+10.0 (+10.0 to +10.0)", "+0.0 (+0.0 to +0.0)")
