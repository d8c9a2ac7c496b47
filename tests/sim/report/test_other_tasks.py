"""The report of a run that is not speech: its own metric, its own words, no recordings."""

import json

import pytest

from fl.core.errors import RunError
from fl.runs.files import read_run
from sim.report.page import render
from sim.report.summary import pool, summarize

WORDS = ("el", "mitin", "fue", "short")
WANTED = ("es", "en", "es", "en")


def tags(languages):
    return " ".join(f"{word}/{code}" for word, code in zip(WORDS, languages, strict=True))


def retold(row):
    """A row of speech as one of language identification; personalized knows what global gets wrong."""
    wrong = ("es", "es", "es", "en") if row["arm"] != "personalized" else WANTED
    kept = {name: row[name] for name in ("schema", "arm", "device", "new_person", "utterance", "level")}
    return kept | {"reference": tags(WANTED), "hypothesis": tags(wrong), "spans": list(zip(WORDS, WANTED, strict=True))}


def recounted(row):
    return row | {"metrics": {"error": row["metrics"]["mer"]}}


@pytest.fixture
def other_run(run_copy, edit_rows):
    edit_rows(run_copy / "transcripts.jsonl", retold)
    edit_rows(run_copy / "results.jsonl", recounted)
    (run_copy / "config.toml").write_text('task = "language-id"\n', encoding="utf-8")
    return run_copy


def test_the_tasks_own_metric_decides(other_run):
    summary = summarize([read_run(other_run)], samples=50)
    assert summary["run"]["main_metric"] == "error"
    assert {arm: metrics["error"]["rate"] for arm, metrics in summary["arms"].items()} == {
        arm: 0.0 if arm == "personalized" else 0.25 for arm in summary["arms"]
    }
    assert summary["comparisons"]["personalized_vs_global"]["error"]["difference"] == -0.25
    assert summary["harmed"] == {"share": 0.0, "devices": [], "of": 8}
    assert summary["by_language"]["global"]["en"] == {"rate": 0.5, "errors": 96, "reference": 192}
    assert all("error" in point for points in summary["curves"].values() for point in points)
    json.dumps(summary)


def test_the_page_speaks_of_the_task_and_of_no_other(other_run):
    summary = summarize([read_run(other_run)], samples=50)
    page = render(summary, [read_run(other_run)])
    assert "Personalized taggers make 100\u202f% fewer errors" in page
    assert "Error rate with 95 % CI" in page
    for word in ("MER", "recognizer", "Recording", "<audio", ">Listen"):
        assert word not in page, word


def test_an_image_is_drawn(other_run, edit_rows):
    image = "0" * 62 + "7f"
    edit_rows(other_run / "transcripts.jsonl", lambda row: row | {"image": image})
    page = render(summarize([read_run(other_run)], samples=50), [read_run(other_run)])
    assert '<rect x="7" y="7" width="1.02" height="1.02" opacity="1.00"/></svg>' in page
    assert '<rect x="0" y="0"' not in page


def test_a_run_of_a_task_that_is_not_known_is_refused(other_run):
    (other_run / "config.toml").write_text('task = "poetry"\n', encoding="utf-8")
    with pytest.raises(RunError, match=r"unknown task 'poetry'.*the version of Idiolect"):
        summarize([read_run(other_run)], samples=50)


def test_runs_of_two_tasks_are_not_pooled(other_run, other_seed):
    with pytest.raises(RunError, match="the tasks are 'language-id' and 'speech'"):
        summarize(pool([read_run(other_seed), read_run(other_run)]), samples=50)
