"""The demo's figures: made from stored counts of each person."""

import json
from pathlib import Path

import pytest

from benchmarks.personalization import END, NOT_STORED, START, STORED, conditions, stored, tables
from sim.section import markdown_tables

ROOT = Path(__file__).parents[2]


@pytest.fixture
def summary() -> dict:
    return json.loads((ROOT / STORED).read_text(encoding="utf-8"))


def test_the_page_has_what_the_stored_figures_say(summary):
    page = (ROOT / "docs/results/participants.md").read_text(encoding="utf-8")
    section = page[page.index(START) + len(START) : page.index(END)]
    assert section.strip() == markdown_tables(tables(summary), conditions(summary)).strip()


@pytest.mark.parametrize("metric", ["mer", "mer_folded", "wer"])
def test_pooled_rates_are_those_of_the_stored_people(summary, metric):
    people = [one for one in summary["devices"].values() if not one["new_person"]]
    assert len(people) == summary["run"]["devices"]
    for arm, rates in summary["arms"].items():
        each = [one["arms"][arm][metric] for one in people]
        errors, reference = (sum(one[name] for one in each) for name in ("errors", "reference"))
        assert rates[metric]["rate"] == pytest.approx(errors / reference)


def test_what_is_stored_names_no_folder_and_keeps_what_tables_need(summary):
    config = summary["run"]["config"] | {"output": "/home/somebody/runs/demo"}
    kept = json.loads(stored({**summary, "run": {**summary["run"], "config": config}, "curves": {}}))
    assert kept == summary
    assert not set(NOT_STORED) & set(kept)
