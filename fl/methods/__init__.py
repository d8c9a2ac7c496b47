"""Methods of adapting a frozen base: gated and plain LoRA, DoRA, bottlenecks, prefixes, biases, all weights, random weights.

Knows models and their tensors; not speech, rounds or messages. The package and its table load without torch: a name below is
taken out of its module when it is first asked for.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fl.methods.base import Attached, Method, Recipe
    from fl.methods.budget import budget_rank
    from fl.methods.files import MethodInfo, load_method, save_method
    from fl.methods.recipes import attach, fresh_state, make_recipe
    from fl.methods.table import METHODS

_MODULES = {
    "base": ("Attached", "Method", "Recipe"),
    "budget": ("budget_rank",),
    "files": ("MethodInfo", "load_method", "save_method"),
    "recipes": ("attach", "fresh_state", "make_recipe"),
    "table": ("METHODS",),
}

__all__ = [
    "METHODS",
    "Attached",
    "Method",
    "MethodInfo",
    "Recipe",
    "attach",
    "budget_rank",
    "fresh_state",
    "load_method",
    "make_recipe",
    "save_method",
]


def __getattr__(name: str) -> Any:
    for module, names in _MODULES.items():
        if name in names:
            return getattr(import_module(f"{__name__}.{module}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
