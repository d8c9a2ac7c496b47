"""Every method of adaptation by name. A new one is a :class:`fl.methods.base.Method` in a file of its own, and one line here.

The names are those of :data:`fl.settings.config.METHODS`, which also says which of them have gates and which can be stacked.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from torch import nn

from fl.adapters.fresh import fresh_adapter
from fl.adapters.state import State
from fl.methods.base import Attached, Method, Recipe
from fl.methods.bottleneck import BOTTLENECK
from fl.methods.budget import budget_rank
from fl.methods.dora import DORA
from fl.methods.low_rank import LOW_RANK, peft_config
from fl.methods.prefix import PREFIX
from fl.methods.whole import BITFIT, FULL, SCRATCH
from fl.settings.config import RunConfig
from fl.settings.names import LOW_RANK_METHODS
from fl.tasks.task import Task

METHODS: Mapping[str, Method] = {
    "gated-lora": LOW_RANK,
    "lora": LOW_RANK,
    "scalar-gate": LOW_RANK,
    "dora": DORA,
    "bottleneck": BOTTLENECK,
    "prefix": PREFIX,
    "bitfit": BITFIT,
    "full": FULL,
    "scratch": SCRATCH,
}


def make_recipe(config: RunConfig, task: Task, gate: str) -> Recipe:
    """The recipe of an adapter with ``gate``: of the size that is set, or that the parameter budget gives at the same scale.

    Raises :class:`ConfigError` for a size that is larger than a layer and for a budget that cannot be met.
    """
    ours = config.adapter
    recipe = Recipe(ours.method, ours.rank, ours.alpha, gate, task.targets, config.seed, ours.prefix_gate)
    method = METHODS[ours.method]
    if ours.parameter_budget:
        size = budget_rank(method, task.model, recipe, ours.parameter_budget)
        return replace(recipe, size=size, alpha=ours.alpha * size / ours.rank)
    method.require_fit(task.model, recipe)
    return recipe


def attach(model: nn.Module, recipe: Recipe) -> Attached:
    """Put a method on ``model``, in place."""
    return METHODS[recipe.method].attach(model, recipe)


def fresh_state(config: RunConfig, task: Task, gate: str) -> State:
    """The trained tensors before the first step, the same on every node and at the aggregator."""
    recipe = make_recipe(config, task, gate)
    if recipe.method in LOW_RANK_METHODS:
        return fresh_adapter(task.model, peft_config(recipe))
    return attach(task.new_model(), recipe).state()
