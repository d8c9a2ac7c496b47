"""Runs of a study in processes of their own: the same rows, each run once, and an error that says whose it is."""

import os
from dataclasses import replace

import pytest

from fl.core.errors import ConfigError, IdiolectError
from fl.core.machine import available_cores
from sim.study.catalog import STUDIES
from sim.study.command import StudyOptions, make_run, run_ahead
from sim.study.plan import Study, StudyCell, StudySize
from sim.study.run import StudyRun, carry_out_side_by_side, core_groups

JOBS = min(2, available_cores())


@pytest.fixture(scope="module")
def study(tmp_path_factory, tiny_manifest):
    base = {
        "base": "random:whisper-nano",
        "manifest": str(tiny_manifest),
        "new-people": 0,
        "rounds": 1,
        "local-steps": 1,
        "batch-size": 2,
        "rank": 2,
        "test-share": 0.4,
        "evaluate-every": 0,
        "arms": "global",
    }
    cells = (StudyCell("rank 2", {}), StudyCell("rank 4", {"rank": 4}), StudyCell("rank 2 again", {"rank": 2}))
    plan = Study("tiny", "Does rank matter?", cells, "rank 2", arms=("global",), compared=("global",), base=base)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("IDIOLECT_HOME", str(tmp_path_factory.getbasetemp() / "tiny-home"))
        yield StudyRun(plan, StudySize("tiny", {}, seeds=(1,)), tmp_path_factory.mktemp("studies"))


def test_each_job_has_cores_of_its_own():
    everything = sorted(core for group in core_groups(JOBS) for core in group)
    assert everything == sorted(os.sched_getaffinity(0))
    with pytest.raises(ConfigError, match="at most one on each"):
        core_groups(available_cores() + 1)


def test_a_run_that_two_cells_have_in_common_is_carried_out_once(study):
    assert [run.title for run in study.pending().values()] == [
        "study tiny, cell 'rank 2', seed 1",
        "study tiny, cell 'rank 4', seed 1",
    ]


def test_side_by_side_gives_the_rows_of_one_after_the_other(study, tmp_path):
    seen = []
    carry_out_side_by_side(list(study.pending().values()), JOBS, lambda *told: seen.append(told))
    assert seen == [("runs", done, 2) for done in range(3)]
    assert not study.pending()
    apart = replace(study, root=tmp_path).run()
    rates = [(row.cell, row.rates["mer"], row.facts) for row in study.run().rows]
    assert rates == [(row.cell, row.rates["mer"], row.facts) for row in apart.rows]


def test_what_a_run_raises_names_its_cell(study, tmp_path):
    cells = (study.study.cells[0], StudyCell("lost", {"manifest": str(tmp_path / "nowhere.jsonl")}))
    broken = replace(study, study=replace(study.study, cells=cells), root=tmp_path, cells=("lost",))
    lost = [run for run in broken.pending().values() if "lost" in run.title]
    with pytest.raises(IdiolectError, match=r"cell 'lost', seed 1: .*nowhere\.jsonl"):
        carry_out_side_by_side(lost, 1, lambda *_: None)


def test_jobs_and_workers_are_not_given_together(tmp_path):
    study = make_run(STUDIES["rank"], StudyOptions(smoke=True, runs=tmp_path, workers=2))
    with pytest.raises(ConfigError, match="give one of them"):
        run_ahead([study], 2)
