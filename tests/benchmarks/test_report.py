"""Rows and their targets."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from benchmarks._report import BenchmarkRow, exponent, machine, matrix_rate, spread, write_row


def test_a_figure_that_should_be_large_is_met_from_its_target_upwards(make_row: Callable[..., BenchmarkRow]) -> None:
    assert make_row(ratio=12.0, target=12.0).met
    assert not make_row(ratio=11.9, target=12.0).met
    assert make_row(ratio=18.0, target=12.0).of_target == 1.5


def test_a_figure_that_should_be_small_is_met_from_its_target_downwards(make_row: Callable[..., BenchmarkRow]) -> None:
    assert make_row(ratio=2.0, target=2.0, at_most=True).met
    assert not make_row(ratio=2.1, target=2.0, at_most=True).met
    assert make_row(ratio=30.0, target=60.0, at_most=True).of_target == 2.0


def test_spread_is_median_and_range() -> None:
    assert spread([3.0, 1.0, 8.0]) == {"median": 3.0, "min": 1.0, "max": 8.0, "repeats": 3}


def test_the_exponent_is_that_of_a_power_whatever_its_factor() -> None:
    for power in (0.0, 1.0, 1.5):
        assert exponent({size: 3.0 * size**power for size in (10, 100, 100_000)}) == pytest.approx(power)


def test_a_row_on_disk_says_whether_its_target_was_met(tmp_path: Path, make_row: Callable[..., BenchmarkRow]) -> None:
    path = write_row(make_row("slow", ratio=3.0, target=4.0), tmp_path)
    found = json.loads(path.read_text())
    assert path.name == "slow.json"
    assert (found["met"], found["ratio"], found["target"]) == (False, 3.0, 4.0)


def test_the_machine_is_described_without_its_name() -> None:
    import platform

    found = machine(("rich",))
    assert {"processor", "cores", "python", "versions"} <= found.keys()
    assert "rich" in found["versions"]  # type: ignore[operator]
    assert platform.node() not in json.dumps(found).split()


def test_a_matrix_rate_is_counted_in_operations() -> None:
    assert 0.01 < matrix_rate(1, size=128, seconds=0.01) < 1e5
