"""What matters in a search: rank correlations against scipy's, chance by shuffling, and settings that cannot matter."""

import re
from dataclasses import replace

import numpy as np
import pytest
from scipy.stats import spearmanr

from fl.core.rng import derive_generator
from sim.study.catalog import STUDIES
from sim.study.influence import influence_table, influences, rank_correlation
from sim.study.page import searched
from sim.study.plots import influence_svg
from sim.study.rows import StudyResult, StudyRow


def search(count: int = 24) -> StudyResult:
    """Draws whose rate grows with the learning rate and with nothing else; the schedule `constant` is 20 points worse."""
    generator = derive_generator(5, "draws")
    rows = [StudyRow("default", "global", {}, (1,), "mer", {"mer": {"rate": 0.3}})]
    for i in range(count):
        settings = {
            "learning-rate": float(10 ** generator.uniform(-4, -1)),
            "batch-size": int(generator.integers(1, 9)),
            "schedule": str(generator.choice(["cosine", "constant"])),
        }
        rate = 0.3 + 0.1 * np.log10(settings["learning-rate"] / 1e-4) + 0.2 * (settings["schedule"] == "constant")
        rows.append(StudyRow(f"draw {i}", "global", settings, (1,), "mer", {"mer": {"rate": float(rate)}}))
    return StudyResult("search", "Which?", "tiny", "mer", tuple(rows), {"drawn": True})


def test_rank_correlation_is_spearmans_with_ties():
    first, second = np.array([1.0, 2.0, 2.0, 5.0, 0.5]), np.array([3.0, 3.0, 8.0, 9.0, 1.0])
    assert rank_correlation(first, second) == pytest.approx(spearmanr(first, second).statistic)
    assert rank_correlation(first, first**3) == pytest.approx(1)
    assert rank_correlation(first, np.ones(5)) == 0


def test_what_decides_the_rate_stands_out_and_what_does_not_is_within_chance():
    found = {one.setting: one for one in influences(search())}
    assert found["learning-rate"].strength > found["learning-rate"].chance
    assert abs(found["batch-size"].strength) < found["batch-size"].chance
    assert [name for name, one in found.items() if one.words] == ["schedule"]
    assert found["schedule"].strength > found["schedule"].chance
    assert all(one.draws == 24 for one in found.values())  # the default was not drawn
    table = influence_table(search())
    assert "| `learning-rate` | global | **+" in table
    assert "| `batch-size` | global | **" not in table


def test_only_a_plan_that_draws_its_cells_asks_what_matters():
    assert searched(search())
    assert not searched(replace(search(), conditions={"drawn": False}))  # alpha follows rank
    assert not searched(search(3))
    assert [plan.name for plan in STUDIES.values() if plan.drawn] == ["search"]


def test_a_setting_that_every_draw_has_alike_is_left_out_and_the_others_stay():
    alike = [replace(row, settings={**row.settings, "rank": 4}) if row.settings else row for row in search().rows]
    result = replace(search(), rows=tuple(alike))
    assert searched(result)
    assert {one.setting for one in influences(result)} == {"learning-rate", "batch-size", "schedule"}


def test_few_draws_say_nothing():
    assert influences(search(3)) == []
    assert influence_table(search(3)) == ""


def test_every_draw_is_a_dot_in_every_panel():
    drawing = influence_svg(search())
    assert len(re.findall("<use .*fill: #0b6e99", drawing)) == 24 * 3 + 1  # and one in the legend
    assert influence_svg(search()) == drawing
