"""Equal parameter budgets: the size of a method that comes closest to a number of trained parameters."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from fl.core.errors import ConfigError
from fl.methods.base import Method, Recipe
from fl.settings.names import MAX_RANK

if TYPE_CHECKING:
    from torch import nn

FAR = 2.0  # a budget that even the closest size misses by this factor is refused


def budget_rank(method: Method, base: nn.Module, recipe: Recipe, parameters: int) -> int:
    """The size at which ``method`` trains the number closest to ``parameters`` on ``base``; the smaller of two as close.

    ``recipe`` gives everything but the size. Raises :class:`ConfigError` for a method without a size, and for a budget that no
    size comes near.
    """
    if not method.sized:
        raise ConfigError(
            f"parameter-budget = {parameters} and method = {recipe.method!r}: its tensors are those of the base, so it has no "
            "size to choose; set parameter-budget = 0"
        )

    def count(size: int) -> int:
        return method.count(base, replace(recipe, size=size))

    low, high = 1, min(method.largest(base, recipe)[0], MAX_RANK)
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
