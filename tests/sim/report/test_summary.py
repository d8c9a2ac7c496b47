import json
from collections import defaultdict

import pytest

from fl.core.errors import RunError
from fl.metrics import METRICS, Counts, score_utterance
from fl.runs.files import read_run
from fl.settings.names import ARMS
from sim.report.summary import pool, summarize, write_summary

SAMPLES = 200


@pytest.fixture(scope="module")
def summary(finished_run):
    return summarize([read_run(finished_run)], samples=SAMPLES)


def pooled_by_hand(rows, metric):
    total = Counts()
    for row in rows:
        scores = score_utterance(row.reference, row.hypothesis, spans=row.spans, loanwords=row.loanwords, matrix="ko")
        total += scores.metrics[metric]
    return total


def test_the_main_rows_pool_the_devices_that_took_part(finished_run, summary):
    rows = [row for row in read_run(finished_run).transcripts if row.arm == "global" and not row.new_person]
    for metric in ("wer", "mer", "pier"):
        total = pooled_by_hand(rows, metric)
        found = summary["arms"]["global"][metric]
        assert (found["errors"], found["reference"]) == (total.errors, total.reference)
        assert found["rate"] == total.errors / total.reference
        assert found["low"] < found["rate"] < found["high"]


def test_new_people_stand_apart(finished_run, summary):
    rows = [row for row in read_run(finished_run).transcripts if row.arm == "neutral" and row.new_person]
    assert set(summary["new_people"]) == {"zero-shot", "global", "neutral", "centralized"}
    assert summary["new_people"]["neutral"]["mer"]["errors"] == pooled_by_hand(rows, "mer").errors
    assert summary["run"]["new_people"] == 2
    assert summary["run"]["devices"] == 8


def test_every_arm_has_every_metric_and_the_devices_add_up_to_it(summary):
    assert list(summary["arms"]) == list(ARMS)
    for arm in ARMS:
        assert set(summary["arms"][arm]) == set(METRICS)
        own = [
            device["arms"][arm]["wer"]["errors"] for device in summary["devices"].values() if not device["new_person"]
        ]
        assert sum(own) == summary["arms"][arm]["wer"]["errors"]


def test_levels_add_up_to_the_arm(summary):
    levels = summary["by_level"]["local"]
    assert list(levels) == ["word", "phrase", "sentence"]
    assert sum(level["cer"]["errors"] for level in levels.values()) == summary["arms"]["local"]["cer"]["errors"]


def test_word_errors_are_charged_to_both_languages(summary):
    assert {"en", "ko"} <= set(summary["by_language"]["global"])


def test_a_better_arm_has_a_negative_difference_with_its_interval(summary):
    found = summary["comparisons"]["personalized_vs_global"]["mer"]
    ours, theirs = (summary["arms"][arm]["mer"]["rate"] for arm in ("personalized", "global"))
    assert found["difference"] == pytest.approx(ours - theirs)
    assert found["relative"] == pytest.approx(ours / theirs - 1)
    assert found["low"] < found["difference"] < found["high"] < 0
    assert found["excludes_zero"] is True
    assert "neutral_vs_global" in summary["new_people_comparisons"]


def test_the_harmed_are_those_whose_own_model_makes_more_errors(summary):
    assert summary["harmed"] == {"share": 1 / 8, "devices": ["speaker-07"], "of": 8}


def test_the_worst_tenth_is_at_least_one_device(summary):
    rates = [
        device["arms"]["global"]["mer"]["rate"] for device in summary["devices"].values() if not device["new_person"]
    ]
    assert summary["worst_tenth"]["global"]["mer"] == max(rates)


def test_curves_pool_validation_counts_by_round(finished_run, summary):
    counts = defaultdict(Counts)
    for row in read_run(finished_run).results:
        if row.arm == "personalized":
            counts[row.round] += row.metrics["mer"]
    assert [point["round"] for point in summary["curves"]["personalized"]] == list(range(9))
    assert [point["mer"] for point in summary["curves"]["personalized"]] == [counts[k].rate for k in range(9)]
    assert [point["round"] for point in summary["curves"]["global+finetune"]] == [8]


def test_costs_say_what_part_of_the_base_lies_on_the_device(summary):
    assert summary["costs"]["adapter_share_of_base"] == 2_520_000 / 290_403_936


def test_the_summary_is_the_same_each_time_and_in_any_order_of_rows(run_copy, summary):
    path = run_copy / "transcripts.jsonl"
    lines = path.read_text(encoding="utf-8").splitlines()
    path.write_text("\n".join(reversed(lines)), encoding="utf-8")
    again = summarize([read_run(run_copy)], samples=SAMPLES)
    assert again["arms"] == summary["arms"]
    assert again["comparisons"] == summary["comparisons"]


def test_two_seeds_are_pooled_with_their_devices_apart(finished_run, other_seed, summary):
    both = summarize(pool([read_run(finished_run), read_run(other_seed)]), samples=50)
    alone = summarize([read_run(other_seed)], samples=50)
    assert {"seed0/speaker-00", "seed1/speaker-00"} <= set(both["devices"])
    errors = summary["arms"]["local"]["mer"]["errors"] + alone["arms"]["local"]["mer"]["errors"]
    assert both["arms"]["local"]["mer"]["errors"] == errors
    assert both["run"]["seeds"] == [0, 1]
    assert both["run"]["devices"] == 16


def test_the_same_seed_twice_and_different_settings_are_not_pooled(finished_run, other_seed, run_copy):
    with pytest.raises(RunError, match="both have seed 0"):
        pool([read_run(finished_run), read_run(run_copy)])
    path = run_copy / "costs.json"
    path.write_text(json.dumps(json.loads(path.read_text("utf-8")) | {"rounds": 3, "seed": 5}), "utf-8")
    with pytest.raises(RunError, match="rounds is 3 and 8"):
        pool([read_run(finished_run), read_run(run_copy)])


def test_arms_over_different_utterances_are_not_compared(run_copy, edit_rows):
    lost = lambda row: None if (row["arm"], row["utterance"]) == ("global", "u3-05") else row  # noqa: E731
    edit_rows(run_copy / "transcripts.jsonl", lost)
    with pytest.raises(RunError, match="'u3-05' of device 'speaker-03'"):
        summarize([read_run(run_copy)], samples=20)


def test_a_run_of_few_arms_has_a_summary_of_these(run_copy, edit_rows):
    edit_rows(run_copy / "transcripts.jsonl", lambda row: row if row["arm"] in ("zero-shot", "local") else None)
    found = summarize([read_run(run_copy)], samples=20)
    assert list(found["arms"]) == ["zero-shot", "local"]
    assert found["harmed"]["share"] is None
    assert found["comparisons"] == {}


def test_spans_that_do_not_spell_the_reference_name_the_utterance(run_copy, edit_rows):
    edit_rows(run_copy / "transcripts.jsonl", lambda row: row | {"spans": [["다른", "ko"]]})
    with pytest.raises(RunError, match="utterance 'u0-00' of device 'speaker-00'"):
        summarize([read_run(run_copy)], samples=20)


def test_what_is_written_is_what_is_read_again(summary, tmp_path):
    write_summary(summary, tmp_path / "summary.json")
    assert json.loads((tmp_path / "summary.json").read_text("utf-8")) == json.loads(json.dumps(summary))
    assert [path.name for path in tmp_path.iterdir()] == ["summary.json"]


def test_a_folder_that_cannot_be_written_leaves_the_old_summary(summary, tmp_path):
    (tmp_path / "summary.json").mkdir()
    with pytest.raises(RunError, match="cannot be written"):
        write_summary(summary, tmp_path / "summary.json")
    assert [path.name for path in tmp_path.iterdir()] == ["summary.json"]
