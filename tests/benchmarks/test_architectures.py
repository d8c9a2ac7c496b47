"""``benchmarks.architectures``: what it measures of the smallest shapes, and the table that it makes of that."""

import argparse

import pytest

from benchmarks import architectures

SETTINGS = {"batch_size": 2, "seconds": 1.0, "rank": 2, "threads": 1, "repeats": 2, "seed": 0}


@pytest.mark.parametrize("name", architectures.SMALL)
def test_a_row_has_the_steps_that_were_asked_for_and_no_peak_below_the_start(name: str) -> None:
    found = {
        method: architectures.measure(argparse.Namespace(child=name, method=method, **SETTINGS))
        for method in architectures.METHODS
    }
    for row in found.values():
        assert len(row["steps"]) == len(row["forwards"]) == 2  # the warm-up is not among them
        assert row["peak"] >= row["before"] > 0
    assert found["full"]["parameters"] > found["gated-lora"]["parameters"] > 0


def test_the_table_has_a_line_for_each_row_and_says_its_conditions() -> None:
    row = {
        "name": "whisper-nano",
        "method": "full",
        "parameters": 1234,
        "steps": [3.0, 1.0, 2.0],
        "forwards": [0.5],
        "peak": 3 * 2**20,
        "before": 2**20,
    }
    text = architectures.table([row], argparse.Namespace(**SETTINGS))
    assert "| `whisper-nano` | full | 1,234 | 2.00 (1.00 to 3.00) | 0.50 (0.50 to 0.50) | 3 | 1 |" in text
    assert "Batch of 2, 1 s" in text
    assert "seed 0" in text
