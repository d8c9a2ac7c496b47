"""From the settings of a run to a method on its base: the recipe, the model that is trained, and its first tensors."""

from __future__ import annotations

from dataclasses import replace

from torch import nn

from fl.adapters.state import State
from fl.methods.base import Attached, Recipe
from fl.methods.budget import budget_rank
from fl.methods.table import METHODS
from fl.settings.config import RunConfig
from fl.tasks.task import Task


def make_recipe(config: RunConfig, task: Task, gate: str) -> Recipe:
    """The recipe of an adapter with ``gate``: of the size that is set, or that the parameter budget gives at the same scale.

    Raises :class:`fl.core.errors.ConfigError` for a size that is larger than a layer and for a budget that cannot be met.
    """
    ours = config.adapter
    recipe = Recipe(ours.method, ours.rank, ours.alpha, gate, task.targets, config.seed, ours.prefix_gate)
    method = METHODS.find(ours.method)
    if ours.parameter_budget:
        size = budget_rank(method, task.model, recipe, ours.parameter_budget)
        return replace(recipe, size=size, alpha=ours.alpha * size / ours.rank)
    method.require_fit(task.model, recipe)
    return recipe


def attach(model: nn.Module, recipe: Recipe) -> Attached:
    """Put a method on ``model``, in place."""
    return METHODS.find(recipe.method).attach(model, recipe)


def fresh_state(config: RunConfig, task: Task, gate: str) -> State:
    """The trained tensors before the first step, the same on every node and at the aggregator."""
    recipe = make_recipe(config, task, gate)
    fresh = METHODS.find(recipe.method).adaptation.fresh
    return fresh(task.model, recipe) if fresh is not None else attach(task.new_model(), recipe).state()
