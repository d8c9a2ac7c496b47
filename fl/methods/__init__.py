"""Methods of adapting a frozen base: gated and plain LoRA, DoRA, bottlenecks, prefixes, biases, all weights, random weights."""

from fl.methods.base import Attached, Method, Recipe
from fl.methods.budget import budget_rank
from fl.methods.files import MethodInfo, load_method, save_method
from fl.methods.table import METHODS, attach, fresh_state, make_recipe

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
