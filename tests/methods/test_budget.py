"""Sizes for equal numbers of trained parameters."""

import pytest

from fl.adapters.config import target_pattern
from fl.core.errors import ConfigError
from fl.methods.recipes import budget_rank, make_recipe
from fl.methods.table import METHODS
from fl.settings.config import make_config
from fl.tasks.table import load_task

from .conftest import recipe_of

D, LAYERS = 64, 2  # of the nano base
CROSS = target_pattern(["decoder.cross"])


@pytest.mark.parametrize(
    ("method", "per_size", "once"),
    [
        ("lora", 4 * 2 * D, 0),  # q, k, v and the output map
        ("gated-lora", 4 * (2 * D + D + 1), 0),
        ("scalar-gate", 4 * 2 * D, 4),
        ("dora", 4 * 2 * D, 4 * D),
        ("bottleneck", 2 * D + 1, D),
        ("prefix", 2 * D, 2),  # two heads
    ],
)
def test_the_size_is_the_closest_to_the_budget(method, per_size, once, base):
    recipe = recipe_of(method, targets=CROSS)
    for size in (1, 5, 64):
        exact = LAYERS * (per_size * size + once)
        assert METHODS[method].count(base.model, recipe_of(method, targets=CROSS, size=size)) == exact
        assert budget_rank(METHODS[method], base.model, recipe, exact) == size
    between = LAYERS * (per_size * 5 + once) + LAYERS * per_size // 2
    assert budget_rank(METHODS[method], base.model, recipe, between - 1) == 5
    assert budget_rank(METHODS[method], base.model, recipe, between + 2) == 6


@pytest.mark.parametrize("budget", [10, 10_000_000])
def test_a_budget_out_of_reach_is_refused_with_the_closest(budget, base):
    with pytest.raises(
        ConfigError, match=rf"parameter-budget = {budget} is out of reach.*'lora'.*the closest there is"
    ):
        budget_rank(METHODS["lora"], base.model, recipe_of("lora"), budget)


@pytest.mark.parametrize("method", ["bitfit", "full", "scratch"])
def test_what_has_no_size_has_no_budget(method, base):
    with pytest.raises(ConfigError, match="no size to choose"):
        budget_rank(METHODS[method], base.model, recipe_of(method), 1000)


def test_a_budget_changes_the_rank_and_not_the_scale(noise_manifest):
    settings = {"base": "random:whisper-nano", "manifest": str(noise_manifest(["ann", "bob"], 6)), "new_people": 0}
    task = load_task(make_config({**settings, "rank": 4, "alpha": 8.0}))
    asked = make_config({**settings, "rank": 4, "alpha": 8.0, "parameter-budget": 24_000})
    recipes = [make_recipe(asked, task, gate) for gate in ("none", "self")]
    assert len({recipe.size for recipe in recipes}) == 2
    assert [recipe.alpha / recipe.size for recipe in recipes] == [2.0, 2.0]
