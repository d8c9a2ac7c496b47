"""A study of tiny runs: its rows, what they are compared with, what it stores, and how it goes on."""

import json
import re
from dataclasses import asdict, replace

import pytest

from fl.core.errors import AggregationError, ConfigError, RunError
from fl.core.rng import derive_seed
from fl.metrics import rate_interval
from fl.metrics.intervals import SAMPLES
from fl.runs.files import read_run
from fl.settings.config import flat
from sim.section import SectionError
from sim.study import run as study_run
from sim.study.page import markers, rewrite, write_study
from sim.study.plan import Study, StudyCell, StudySize
from sim.study.rows import StudyResult
from sim.study.run import StudyRun
from sim.study.table import conditions, markdown

TINY = StudySize("tiny", {}, seeds=(1, 2))


@pytest.fixture(scope="module")
def study(tmp_path_factory, tiny_manifest):
    """Two cells of two seeds each, run once."""
    patch = pytest.MonkeyPatch()
    patch.setenv("IDIOLECT_HOME", str(tmp_path_factory.getbasetemp() / "tiny-home"))
    base = {
        "base": "random:whisper-nano",
        "manifest": str(tiny_manifest),
        "new-people": 0,
        "rounds": 2,
        "local-steps": 1,
        "batch-size": 2,
        "rank": 2,
        "test-share": 0.4,
        "evaluate-every": 0,
    }
    plan = Study(
        "tiny",
        "Does rank matter?",
        (StudyCell("rank 2", {}), StudyCell("rank 4", {"rank": 4}), StudyCell("none learnt", {"learning-rate": 0.0})),
        "rank 2",
        compared=("global", "personalized"),
        base=base,
        slices=("mixing",),
    )
    run = StudyRun(plan, TINY, tmp_path_factory.mktemp("studies"))
    yield run, run.run()
    patch.undo()


def test_each_cell_and_arm_has_a_row_over_all_seeds(study):
    _, result = study
    whole = [row for row in result.rows if not row.cell.startswith("embedded")]
    assert [(row.cell, row.arm) for row in whole] == [
        (cell, arm) for cell in ("rank 2", "rank 4", "none learnt") for arm in ("global", "personalized")
    ]
    assert all(row.seeds == (1, 2) and not row.failed for row in whole)
    assert (
        result.conditions["sentences"] == len({1, 2}) * 3 * 2
    )  # two of five sentences of three people are for testing


def test_a_row_is_compared_with_the_baseline_and_with_global_on_the_same_sentences(study):
    _, result = study
    rows = {(row.cell, row.arm): row for row in result.rows}
    mer = {key: row.rates["mer"]["rate"] for key, row in rows.items()}
    other = rows["rank 4", "personalized"]
    assert other.against_baseline["difference"] == pytest.approx(
        mer["rank 4", "personalized"] - mer["rank 2", "personalized"]
    )
    assert other.against_global["difference"] == pytest.approx(mer["rank 4", "personalized"] - mer["rank 4", "global"])
    assert rows["rank 2", "global"].against_baseline is None
    assert rows["rank 2", "global"].against_global is None


def test_counts_of_each_person_are_kept_and_give_the_rates_and_intervals(study):
    _, result = study
    for row in result.rows:
        for metric, rate in row.rates.items():
            errors, reference = zip(*(counts[metric] for counts in row.people.values()), strict=True)
            seed = derive_seed(1, 2, "study")
            found = rate_interval(errors, reference, ["all"] * len(errors), seed=seed, samples=SAMPLES)
            assert asdict(found) == rate
    whole = [row for row in result.rows if not row.cell.startswith("embedded")]
    assert all(len(row.people) == len({1, 2}) * 3 for row in whole)


def test_an_arm_is_as_large_as_what_it_trains(study):
    _, result = study
    rows = {(row.cell, row.arm): row.costs for row in result.rows}
    shared, personal = rows["rank 4", "global"], rows["rank 4", "personalized"]
    assert shared["parameters"] == 2 * rows["rank 2", "global"]["parameters"]  # A and B alone
    assert shared["private_bytes"] == 0
    assert personal["parameters"] == shared["parameters"]
    decoder_b = personal["parameters"] / 2 * 8 / 12  # of three attentions with four maps each, two are the decoder's
    assert personal["private_bytes"] == decoder_b * (1 + 2 / 4)  # int8, and a scale of two bytes for each row of 4


def test_a_cell_without_the_arm_of_all_is_compared_with_that_of_the_baseline(study):
    run, _ = study
    alone = StudyCell("alone", {"arms": "personalized"}, compared=("personalized",))
    tuned = StudyCell("tuned", {"arms": "global,global+finetune"}, compared=("global+finetune",))
    plan = replace(run.study, cells=(run.study.cells[0], alone, tuned), slices=(), compared=("personalized",))
    rows = {(row.cell, row.arm): row for row in replace(run, study=plan).run().rows}
    assert set(rows) == {("rank 2", "personalized"), ("alone", "personalized"), ("tuned", "global+finetune")}
    # The same settings but for the arms: the same model.
    first, second = rows["rank 2", "personalized"], rows["alone", "personalized"]
    assert second.rates == first.rates
    assert second.against_baseline["difference"] == 0
    assert second.against_global == first.against_global
    assert second.facts == first.facts
    assert "harmed" in second.facts
    assert rows["tuned", "global+finetune"].against_baseline is not None


def test_a_cell_of_new_people_is_about_them_alone(study):
    run, _ = study
    arms = {"new-people": 1, "arms": "global,personalized,neutral"}
    new = StudyCell("new", arms, compared=("global", "neutral"), new_people=True)
    plan = replace(
        run.study, cells=(run.study.cells[0], new, StudyCell("others", arms, compared=("global",))), slices=()
    )
    other = replace(run, study=plan)
    rows = {(row.cell, row.arm): row for row in other.run().rows}
    read = [row for seed in TINY.seeds for row in read_run(other.folder(new, seed)).transcripts if row.arm == "neutral"]
    words = {who: sum(len(row.reference.split()) for row in read if row.new_person == who) for who in (True, False)}
    assert rows["new", "neutral"].rates["wer"]["reference"] == words[True] > 0
    assert rows["others", "global"].rates["wer"]["reference"] == words[False] > 0
    assert rows["new", "neutral"].against_baseline is None  # other sentences
    assert rows["new", "neutral"].against_global is not None
    assert rows["new", "neutral"].costs["audio_per_second"] > 0
    beside = replace(other, study=replace(plan, baseline="others")).run()  # with held-out speakers of its own
    (row,) = [row for row in beside.rows if (row.cell, row.arm) == ("new", "global")]
    assert row.against_baseline["difference"] == 0
    turned = replace(plan, cells=(new, plan.cells[2]), baseline="new")
    (row,) = [row for row in replace(other, study=turned).run().rows if row.cell == "others"]
    assert row.against_baseline["difference"] == 0  # the baseline's participants, whom its own row is not about


def test_the_conditions_are_those_of_the_baseline(study):
    run, _ = study
    cells = (StudyCell("one round", {"rounds": 1}), run.study.cells[0])
    other = replace(run, study=replace(run.study, cells=cells, slices=())).run()
    assert other.conditions["rounds"] == 2


def test_slices_divide_the_sentences(study):
    _, result = study
    whole = next(row for row in result.rows if (row.cell, row.arm) == ("rank 4", "global"))
    at = result.rows.index(whole)
    parts = [row for row in result.rows[at:] if row.cell.startswith("embedded") and row.arm == "global"]
    ours = parts[: len({row.cell for row in parts})]
    assert sum(row.rates["wer"]["reference"] for row in ours) == whole.rates["wer"]["reference"]


def test_a_finished_study_is_read_and_not_run_again(study, monkeypatch):
    run, result = study
    monkeypatch.setattr(study_run, "run_simulation", lambda *_, **__: pytest.fail("ran again"))
    again = run.run()
    assert [replace(row, costs={}) for row in again.rows] == [replace(row, costs={}) for row in result.rows]


def test_runs_that_two_studies_have_in_common_are_made_once(study, tmp_path):
    run, _ = study
    other = replace(run, study=replace(run.study, name="other", cells=run.study.cells[:1]))
    assert other.folder(other.study.cells[0], 1) == run.folder(run.study.cells[0], 1)
    apart = replace(other, root=tmp_path)
    assert apart.folder(apart.study.cells[0], 1).name.startswith("other-rank-2-seed1-")


def test_a_run_that_ends_without_a_model_is_a_row_that_says_so(study, monkeypatch, tmp_path):
    run, _ = study

    def fails(*_, **__):
        raise AggregationError("the aggregate is not finite")

    monkeypatch.setattr(study_run, "run_simulation", fails)
    cell = StudyCell("attacked", {"rank": 3})
    attacked = replace(run, study=replace(run.study, cells=(*run.study.cells, cell)), cells=("attacked",))
    folder = attacked.folder(cell, 1)
    folder.mkdir()
    result = attacked.run()
    rows = [row for row in result.rows if row.cell == "attacked"]
    assert [row.failed for row in rows] == ["the aggregate is not finite"] * 2
    assert "no result: the aggregate is not finite" in markdown(result)
    assert result.rows[0].cell == "rank 2"  # the baseline comes along


def test_what_could_not_run_is_refused_before_the_first_run(study, monkeypatch):
    run, _ = study
    wrong = replace(run, study=replace(run.study, cells=(*run.study.cells, StudyCell("wrong", {"rank": -1}))))
    monkeypatch.setattr(study_run, "run_simulation", lambda *_, **__: pytest.fail("ran"))
    with pytest.raises(ConfigError, match="rank = -1 is out of range"):
        wrong.run()


def test_rows_are_stored_and_the_page_is_made_from_them_again(study, tmp_path):
    _, result = study
    page, rows = tmp_path / "results" / "tiny.md", tmp_path / "studies"
    page.parent.mkdir()
    start, end = markers("tiny")
    write_study(result, page.parent, rows)  # a page that is not there is made
    assert page.read_text(encoding="utf-8").startswith(f"# {result.question}\n\n{start}")
    page.write_text("# Before\n", encoding="utf-8")
    with pytest.raises(SectionError):
        write_study(result, page.parent, rows)
    page.write_text(f"# Before\n{start}\n{end}\nafter\n", encoding="utf-8")
    write_study(result, page.parent, rows)
    first = page.read_text(encoding="utf-8")
    assert first.startswith("# Before\n")
    assert first.endswith("after\n")
    rate = 100 * next(row for row in result.rows if row.cell == "rank 4").rates["mer"]["rate"]
    assert f"| rank 4 | global | {rate:.1f} (" in first
    assert "![Does rank matter?](../studies/tiny-tiny.svg)" in first
    page.write_text(first.replace("| rank 4 |", "| rank 5 |"), encoding="utf-8")
    assert rewrite(page.parent, rows) == [page]
    assert page.read_text(encoding="utf-8") == first
    assert StudyResult.read(rows / "tiny-tiny.json") == replace(result, rows=result.rows)


def test_a_study_whose_name_begins_another_keeps_its_page_to_itself(study, tmp_path):
    _, result = study
    for name in ("tiny", "tiny-more"):
        (tmp_path / f"{name}.md").write_text("\n".join(markers(name)), encoding="utf-8")
    write_study(replace(result, name="tiny-more", question="Does more matter?"), tmp_path, tmp_path / "studies")
    write_study(result, tmp_path, tmp_path / "studies")
    own, other = ((tmp_path / f"{name}.md").read_text(encoding="utf-8") for name in ("tiny", "tiny-more"))
    assert ("Does rank matter?" in own, "Does more matter?" in own) == (True, False)
    assert ("Does rank matter?" in other, "Does more matter?" in other) == (False, True)


def test_no_table_of_a_page_has_more_than_seven_columns(study):
    _, result = study
    rows = [line for line in markdown(result).splitlines() if line.startswith("|")]
    assert max(line.count(" | ") for line in rows) < 7
    assert all(head in "".join(rows) for head in ("WER, %", "worst tenth", "harmed, %", "KiB up"))


def test_a_quick_look_replaces_no_result(study, tmp_path):
    _, result = study
    page, rows = tmp_path / "results" / "tiny.md", tmp_path / "studies"
    page.parent.mkdir()
    page.write_text("\n".join(markers("tiny")), encoding="utf-8")
    full, smoke = replace(result, size="full"), replace(result, size="smoke", rows=result.rows[:2])
    write_study(full, page.parent, rows)
    write_study(smoke, page.parent, rows)
    text = page.read_text(encoding="utf-8")
    assert text.count("Does rank matter?") == 2  # two plots
    assert text.index("../studies/tiny-full.svg") < text.index("Size full") < text.index("../studies/tiny-smoke.svg")
    assert [StudyResult.read(rows / f"tiny-{each.size}.json") for each in (full, smoke)] == [full, smoke]
    assert rewrite(page.parent, rows) == [page]
    assert page.read_text(encoding="utf-8") == text


def test_cells_that_were_run_later_join_those_that_are_stored(study):
    _, result = study
    one = replace(result, rows=tuple(row for row in result.rows if row.cell == "rank 4"))
    rest = replace(result, rows=tuple(row for row in result.rows if row.cell == "rank 2"))
    joined = one.merged(rest).ordered(["rank 2", "rank 4"])
    assert [row.cell for row in joined.rows] == [*["rank 2"] * len(rest.rows), *["rank 4"] * len(one.rows)]


def elsewhere(rows, processor, better_by=0.0):
    """The same rows, made on another machine by a baseline that did better there."""
    return tuple(
        replace(
            row,
            machine={**row.machine, "processor": processor},
            against_baseline=row.against_baseline
            and {**row.against_baseline, "difference": row.against_baseline["difference"] + better_by},
        )
        for row in rows
        if not row.cell.startswith("embedded")
    )


def test_a_baseline_that_is_run_again_for_other_cells_replaces_no_stored_one(study):
    _, result = study
    stored = replace(result, rows=elsewhere((row for row in result.rows if row.cell != "rank 4"), "first"))
    later = replace(result, rows=elsewhere((row for row in result.rows if row.cell in ("rank 2", "rank 4")), "second"))
    machines = {row.cell: row.machine["processor"] for row in later.merged(stored, keep="rank 2").rows}
    assert machines == {"rank 2": "first", "none learnt": "first", "rank 4": "second"}
    assert {row.machine["processor"] for row in later.merged(stored).rows if row.cell == "rank 2"} == {"second"}
    assert {row.cell for row in later.merged(replace(stored, rows=()), keep="rank 2").rows} == {"rank 2", "rank 4"}


def test_rows_of_several_machines_are_told_apart_under_the_table(study):
    _, result = study
    first = elsewhere((row for row in result.rows if row.cell != "rank 4"), "first")
    own = [row for row in result.rows if row.cell == "rank 4"]
    text = conditions(replace(result, rows=(*first, *elsewhere(own, "second"))))
    assert re.search(r"; first, \d+ cores?, Python [\d.]+; second, \d+ cores?, Python [\d.]+ \(rank 4\); flwr", text)
    text = conditions(replace(result, rows=(*first, *elsewhere(own, "second", better_by=0.1))))
    whole = {row.arm: row for row in result.rows if row.cell == "rank 2"}
    rates = sorted({f"{100 * (row.rates['mer']['rate'] - 0.1):.1f}" for row in whole.values()})
    assert f"(rank 4), where the baseline rank 2 has {' and '.join(rates)} %; flwr" in text


def test_versions_of_rows_that_were_stored_earlier_are_not_forgotten(study):
    _, result = study
    versions = {**result.conditions["versions"], "torch": "1.0"}
    older = replace(result, rows=result.rows[:2], conditions={**result.conditions, "versions": versions})
    later = replace(result, rows=result.rows[2:])
    torch = result.conditions["versions"]["torch"]
    assert later.merged(older).conditions["versions"]["torch"] == f"1.0 or {torch}"
    assert later.merged(later.merged(older)).conditions["versions"]["torch"] == f"1.0 or {torch}"


def test_a_repetition_has_the_same_people_and_another_run(study):
    run, result = study
    plan = replace(
        run.study, slices=(), cells=(run.study.cells[0], *(StudyCell(f"again {k}", {}, again=k) for k in (1, 2)))
    )
    configs = [plan.config(cell, TINY, 2, "") for cell in plan.cells]
    assert [(config.seed, config.data_seed) for config in configs] == [(2, 2), (1002, 2), (2002, 2)]
    assert plan.repeated
    assert not run.study.repeated
    repeated = replace(run, study=plan).run()
    rows = {row.cell: row for row in repeated.rows if row.arm == "personalized"}
    assert rows["rank 2"] == next(row for row in result.rows if (row.cell, row.arm) == ("rank 2", "personalized"))
    assert all(row.against_baseline is not None for name, row in rows.items() if name != "rank 2")  # the same sentences
    losses = [
        [row.train_loss for row in read_run(run.folder(cell, 2)).results if row.train_loss] for cell in plan.cells
    ]
    assert losses[0] != losses[1] != losses[2] != losses[0]


def test_the_spread_of_repetitions_stands_under_their_table(study, tmp_path):
    _, result = study
    (row,) = (row for row in result.rows if (row.cell, row.arm) == ("rank 2", "personalized"))
    rates, differences = (0.30, 0.32, 0.37), (-0.04, -0.02, -0.03)
    rows = tuple(
        replace(
            row,
            cell=f"again {k}",
            rates={**row.rates, "mer": {**row.rates["mer"], "rate": rate}},
            against_global={**row.against_global, "difference": difference},
        )
        for k, (rate, difference) in enumerate(zip(rates, differences, strict=True))
    )
    page = tmp_path / "tiny.md"
    page.write_text("\n".join(markers("tiny")), encoding="utf-8")
    of_one = replace(result, rows=rows, conditions={**result.conditions, "repeated": True})
    write_study(of_one, tmp_path, tmp_path / "studies")
    line = "| personalized | 3 | 33.0 (3.6) | 30.0 to 37.0 | -3.0 (1.0) | -4.0 to -2.0 |"
    assert line in page.read_text(encoding="utf-8")
    write_study(replace(of_one, rows=rows[:2]), tmp_path, tmp_path / "studies")
    assert "| personalized | 2 |" not in page.read_text(encoding="utf-8")  # two runs have no spread to speak of
    write_study(replace(of_one, conditions=result.conditions), tmp_path, tmp_path / "studies")
    assert line not in page.read_text(encoding="utf-8")  # cells that differ in a setting are no repetitions


def test_a_file_that_holds_no_rows_says_what_to_do(tmp_path):
    path = tmp_path / "rows.json"
    path.write_text(json.dumps({"schema": 2}), encoding="utf-8")
    with pytest.raises(RunError, match="run the study again"):
        StudyResult.read(path)


def test_a_checkpoint_is_not_kept_but_the_rows_are(study):
    run, _ = study
    folder = run.folder(run.study.cells[1], 2)
    assert not (folder / "checkpoints").exists()
    assert (folder / "transcripts.jsonl").exists()
    assert flat(run.study.config(run.study.cells[1], TINY, 2, str(folder)))["adapter.rank"] == 4
