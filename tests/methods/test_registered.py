"""A method of another package: listed, put on a base, sized by a budget, saved and read again."""

import pytest
import torch

from fl.adapters.gates.table import CROSS, NONE, SCALAR
from fl.core.errors import ConfigError
from fl.methods.files import MethodInfo, load_method, save_method
from fl.methods.recipes import attach, budget_rank
from fl.methods.table import METHODS

from .conftest import recipe_of

SHIFTS = """
import torch
from fl.methods.base import Adaptation, Attached, Method
from fl.methods.targets import own_parameter, targeted


def attach(model, recipe):
    model.requires_grad_(False)
    found = {f"{name}.bias": own_parameter(linear, "bias", torch.zeros(linear.out_features))
             for name, linear in targeted(model, recipe.targets) if linear.bias is not None}
    return Attached(model.eval(), dict(sorted(found.items())))


CODE = Adaptation(attach)
METHOD = Method("shifts", "other_methods:CODE", sized=False)
"""


@pytest.fixture(autouse=True)
def shifts(other_package):
    other_package(METHODS, SHIFTS, shifts="METHOD")


def test_another_packages_method_is_attached_saved_and_loaded(base, tmp_path):
    recipe = recipe_of("shifts")
    attached = attach(base.new_model(), recipe)
    save_method(tmp_path, attached.state(), MethodInfo("nano", "whisper:x", "all-shared", recipe))
    tensors, info = load_method(tmp_path, attached.shapes())
    assert info.recipe == recipe
    assert all(torch.equal(tensors[name], tensor) for name, tensor in attached.state().items())


def test_a_method_without_a_size_takes_no_budget(base):
    METHODS["shifts"].require_fit(base.model, recipe_of("shifts", size=10_000))
    with pytest.raises(ConfigError, match="no size to choose"):
        budget_rank(METHODS["shifts"], base.model, recipe_of("shifts"), 100)


def test_the_gate_of_a_method_is_its_own_or_the_one_that_is_set():
    gates = {name: method.gate(CROSS.name) for name, method in METHODS.items()}
    own = {"gated-lora": CROSS.name, "scalar-gate": SCALAR.name}
    assert gates == {name: own.get(name, NONE.name) for name in METHODS}
