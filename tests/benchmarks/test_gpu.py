"""``benchmarks.gpu``: every row of both precisions on the smallest sizes, on a machine without Flower."""

import argparse
from importlib import metadata

import pytest

from benchmarks import _report
from benchmarks.gpu import measure_rows
from fl.bases.whisper import decoding


def test_each_row_is_there_in_both_precisions_and_a_missing_package_is_null(monkeypatch):
    def version(package: str) -> str:
        if package == "flwr":
            raise metadata.PackageNotFoundError(package)
        return metadata.version(package)

    monkeypatch.setattr(_report, "version", version)
    monkeypatch.setattr(decoding, "MIN_REPEATS", decoding.MIN_REPEATS)
    row, cohort = measure_rows(
        argparse.Namespace(base="random:whisper-nano", compute="cpu", people=2, tokens=2, repeats=1, seed=0)
    )
    assert (row.name, cohort.name) == ("tiles_local_step", "tiles_cohort")
    assert row.conditions["machine"]["versions"]["flwr"] is None
    names = {"local_step", "alone_2", "cohort_6x2", "stock_step", "serving"}
    for seconds in row.conditions["seconds"].values():
        assert seconds.keys() == names
        assert all(value > 0 for value in seconds.values())
    local = {precision: seconds["local_step"] for precision, seconds in row.conditions["seconds"].items()}
    assert row.ratio == pytest.approx(local["bf16"] / local["float32"], rel=0.01)
    seconds = row.conditions["seconds"]
    assert cohort.ratio == pytest.approx(seconds["bf16"]["cohort_6x2"] / seconds["float32"]["alone_2"], rel=0.01)
