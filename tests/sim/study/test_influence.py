"""What matters in a search: rank correlations against scipy's, chance by shuffling, and settings that cannot matter."""

from dataclasses import replace

import numpy as np
import pytest
from scipy.stats import spearmanr

from fl.rng import derive_generator
from sim.study.influence import influence_svg, influence_table, influences, rank_correlation
from sim.study.page import searched
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
    return StudyResult("search", "Which?", "tiny", "mer", tuple(rows), {})


def test_rank_correlation_is_spearmans_with_ties():
    first, second = np.array([1.0, 2.0, 2.0, 5.0, 0.5]), np.array([3.0, 3.0, 8.0, 9.0, 1.0])
    assert rank_correlation(first, second) == pytest.approx(spearmanr(first, second).statistic)
    assert rank_correlation(first, first**3) == pytest.approx(1)
    assert rank_correlation(first, np.ones(5)) == 0


def test_what_decides_the_rate_stands_out_and_what_does_not_is_within_chance():
    found = {one.setting: one for one in influences(search())}
    assert found["learning-rate"].correlation > found["learning-rate"].chance
    assert abs(found["batch-size"].correlation) < found["batch-size"].chance
    assert found["schedule"].correlation is None
    assert found["schedule"].spread > found["schedule"].chance
    assert all(one.draws == 24 for one in found.values())  # the default was not drawn
    table = influence_table(search())
    assert "| `learning-rate` | global | **+" in table
    assert "| `batch-size` | global | **" not in table


def test_a_search_is_told_from_a_study_of_one_setting():
    assert searched(search())
    rows = tuple(StudyRow(f"rank {r}", "global", {"rank": r}, (1,)) for r in (1, 2))
    assert not searched(StudyResult("rank", "Which?", "tiny", "mer", rows, {}))
    assert not searched(replace(search(), conditions={"axis": "rank"}))  # alpha follows rank
    alike = [replace(row, settings={**row.settings, "rank": 4}) if row.settings else row for row in search().rows]
    assert not searched(replace(search(), rows=tuple(alike)))  # a setting that is the same in all rows is no draw


def test_few_draws_say_nothing():
    assert influences(search(3)) == []
    assert influence_table(search(3)) == ""


def test_every_draw_is_a_dot_in_every_panel():
    assert influence_svg(search()).count("<circle") == 24 * 3
