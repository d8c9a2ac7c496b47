"""From the settings of a run to a method on its base: the recipe, the model that is trained, and its first tensors."""

from dataclasses import replace

from torch import nn

from fl.adapters.state import State
from fl.core.errors import ConfigError
from fl.methods.base import Attached, Method, Recipe
from fl.methods.table import METHODS
from fl.settings.config import RunConfig
from fl.settings.names import MAX_RANK
from fl.tasks.task import Task

FAR = 2.0  # a budget that even the closest size misses by this factor is refused


def make_recipe(config: RunConfig, task: Task, gate: str) -> Recipe:
    """The recipe of an adapter with ``gate``: of the size that is set, or that the parameter budget gives at the same scale.

    Raises :class:`ConfigError` for a size that is larger than a layer and for a budget that cannot be met.
    """
    ours = config.adapter
    recipe = Recipe(ours.method, ours.rank, ours.alpha, gate, task.targets, config.seed, ours.prefix_gate)
    method = METHODS.find(ours.method)
    if ours.parameter_budget:
        size = budget_rank(method, task.model, recipe, ours.parameter_budget)
        return replace(recipe, size=size, alpha=ours.alpha * size / ours.rank)
    method.require_fit(task.model, recipe)
    return recipe


def budget_rank(method: Method, base: nn.Module, recipe: Recipe, parameters: int) -> int:
    """The size at which ``method`` trains the number closest to ``parameters`` on ``base``; the smaller of two as close.

    ``recipe`` gives everything but the size. Raises :class:`ConfigError` for a method without a size, and for a budget that no
    size comes near.
    """

    def count(size: int) -> int:
        return method.count(base, replace(recipe, size=size))

    low, high = 1, min(method.adaptation.largest(base, recipe)[0], MAX_RANK)
    while high - low > 1:  # the number grows with the size
        middle = (low + high) // 2
        low, high = (middle, high) if count(middle) <= parameters else (low, middle)
    size = min((low, high), key=lambda each: (abs(count(each) - parameters), each))
    found = count(size)
    if not parameters / FAR <= found <= parameters * FAR:
        raise ConfigError(
            f"parameter-budget = {parameters} is out of reach of method = {recipe.method!r} at these sites: with rank = {size} it "
            f"trains {found:,} parameters, the closest there is; choose another budget, or other sites"
        )
    return size


def attach(model: nn.Module, recipe: Recipe) -> Attached:
    """Put a method on ``model``, in place."""
    return METHODS.find(recipe.method).adaptation.attach(model, recipe)


def fresh_state(config: RunConfig, task: Task, gate: str) -> State:
    """The trained tensors before the first step, the same on every node and at the aggregator."""
    recipe = make_recipe(config, task, gate)
    fresh = METHODS.find(recipe.method).adaptation.fresh
    return fresh(task.model, recipe) if fresh is not None else attach(task.new_model(), recipe).state()
