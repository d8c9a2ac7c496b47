"""The enrolment curve of a report, from rows of the study of enrolment that lie in the run folder."""

import re

import pytest

from fl.core.errors import RunError
from fl.runs.files import read_run
from sim.report.page import render
from sim.report.summary import summarize
from sim.study.enrol.rows import ROWS, EnrolRow, append_rows


def row(method, sentences, person, errors, seed=0):
    return EnrolRow(seed, person, method, sentences, "", {"mer": (errors, 100)})


def enrolled(seed=0):
    """Two speakers: ``B`` saves more than ``gates``, and only one of them has 20 sentences for ``gates``."""
    found = [row("neutral", 0, "new-08", 40, seed), row("neutral", 0, "new-09", 20, seed)]
    found += [
        row("gates", 5, "new-08", 36, seed),
        row("gates", 5, "new-09", 18, seed),
        row("gates", 20, "new-09", 10, seed),
    ]
    return [*found, row("B", 5, "new-08", 20, seed), row("B", 5, "new-09", 14, seed)]


def test_a_point_is_the_pooled_rate_over_people_who_have_all_the_numbers_of_sentences(run_copy):
    append_rows(run_copy / ROWS, enrolled())
    methods = summarize([read_run(run_copy)], samples=50)["enrolment"]["methods"]
    rates = {name: {p["sentences"]: (p["people"], p["rate"]) for p in points} for name, points in methods.items()}
    assert rates["B"] == {0: (2, (40 + 20) / 200), 5: (2, (20 + 14) / 200)}
    assert rates["gates"] == {0: (1, 0.20), 5: (1, 0.18), 20: (1, 0.10)}  # over new-09 alone
    point = methods["B"][1]
    assert 0.14 <= point["low"] <= point["rate"] <= point["high"] <= 0.20


def test_the_curve_comes_second_with_its_numbers_and_the_best_method_first(run_copy):
    append_rows(run_copy / ROWS, enrolled())
    runs = [read_run(run_copy)]
    page = render(summarize(runs, samples=50), runs)
    assert re.findall(r'<section id="([^"]+)"', page)[:3] == ["listen", "enrolment", "arms"]
    section = page[page.index('id="enrolment"') : page.index('id="arms"')]
    assert re.findall(r'class="method-\d">.*?class="name"[^>]*>([^<]+)<', section, re.DOTALL) == ["gates", "B"]
    assert "17.0\u202f%" in section
    assert 'href="#enrolment"' in page


@pytest.mark.parametrize("rows", [[], enrolled(seed=7)])
def test_a_run_without_such_rows_has_no_curve(run_copy, rows):
    append_rows(run_copy / ROWS, rows)
    runs = [read_run(run_copy)]
    summary = summarize(runs, samples=50)
    assert summary["enrolment"] == {}
    assert "own sentences" not in render(summary, runs)


def test_a_row_that_is_none_is_named(run_copy):
    (run_copy / ROWS).write_text('{"seed": 0}\n', encoding="utf-8")
    with pytest.raises(RunError, match=rf"{ROWS}:1 .*delete the line"):
        summarize([read_run(run_copy)], samples=50)
