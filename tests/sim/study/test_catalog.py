"""Every cell of every study is a run that could be made, and each differs from the others."""

from pathlib import Path

import pytest
from pydantic import ValidationError

from fl.algorithms.base import Role
from fl.algorithms.shared.fedavg import FedAvg
from fl.algorithms.table import names_of
from fl.core.errors import ConfigError
from fl.settings.config import flat
from sim.section import page_parts
from sim.study.catalog import ROBUST_RULES, STUDIES, read_study
from sim.study.page import PAGES, markers, page_of
from sim.study.plan import FULL, SIZES, SMOKE, Study, StudyCell

ROOT = Path(__file__).parents[3]


@pytest.mark.parametrize("size", SIZES.values(), ids=SIZES)
@pytest.mark.parametrize("plan", STUDIES.values(), ids=STUDIES)
def test_every_cell_is_a_configuration_of_its_own(plan, size):
    cells = plan.chosen(size)
    found = [(cell.new_people, *sorted(flat(plan.config(cell, size, 1, "")).items())) for cell in cells]
    same = [cell.name for cell, config in zip(cells, found, strict=True) if found.count(config) > 1]
    assert len(same) <= 2, f"{plan.name}: {same} are the same run"  # one cell may name the default by its value


def test_a_cell_wins_over_the_study_and_the_study_over_the_size():
    cell = StudyCell("c", {"rounds": 5})
    plan = Study("p", "?", (cell,), "c", base={"rounds": 4, "local-steps": 7}, sizes={"smoke": {"local-steps": 6}})
    config = plan.config(cell, SMOKE, 3, "")
    assert (config.federation.rounds, config.train.local_steps, config.seed) == (5, 6, 3)
    assert config.data.devices == SMOKE.settings["devices"]
    assert plan.config(cell, FULL, 3, "").train.local_steps == 7


def test_a_study_on_a_corpus_waits_for_its_manifest(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert [plan.name for plan in STUDIES.values() if plan.missing] == ["real"]
    manifest = tmp_path / STUDIES["real"].missing
    manifest.parent.mkdir(parents=True)
    manifest.touch()
    assert not STUDIES["real"].missing


def test_an_unknown_cell_lists_the_known_ones():
    with pytest.raises(ConfigError, match=r"no cell 'rank 3': known are rank 1, rank 2"):
        STUDIES["rank"].chosen(FULL, ("rank 3",))


def test_the_small_size_keeps_the_cell_that_the_others_are_compared_with():
    for plan in STUDIES.values():
        assert plan.baseline in [cell.name for cell in plan.chosen(SMOKE)]


def test_no_algorithm_is_forgotten():
    compared = {cell.settings.get("algorithm", FedAvg.name) for cell in STUDIES["strategies"].cells}
    assert set(names_of(Role.AGGREGATION)) <= compared | set(ROBUST_RULES)
    assert {cell.settings.get("algorithm") for cell in STUDIES["robust"].cells} == set(ROBUST_RULES)


@pytest.mark.parametrize("size", SIZES.values(), ids=SIZES)
def test_symbols_are_all_that_differs_where_symbols_are_compared(size):
    plan = STUDIES["ctc-tokens"]
    configs = [flat(plan.config(cell, size, 1, "")) for cell in plan.cells]
    assert {name for config in configs for name in config if config[name] != configs[0][name]} == {"base.tokens"}
    assert {config["base.tokens"] for config in configs} == {"syllables", "jamo", "compat-jamo"}


@pytest.mark.parametrize("wrong", ["bassline = 'first'", "slices = 'level'", "cells = [{name = 'a', smoke = 'often'}]"])
def test_a_file_with_a_word_that_is_no_field_or_a_value_of_another_type_is_refused(tmp_path, wrong):
    path = tmp_path / "tried.toml"
    path.write_text(f"question = '?'\nbaseline = 'first'\n{wrong}\n", encoding="utf-8")
    with pytest.raises(ValidationError):
        read_study(path)


def test_each_page_of_a_study_can_be_written_by_its_command():
    pages = {name: page_of(name, ROOT / PAGES) for name in STUDIES}
    there = {name: page for name, page in pages.items() if page.exists()}
    assert there
    for name, page in there.items():
        page_parts(page, *markers(name))  # raises where a comment is missing
