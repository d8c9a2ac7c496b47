"""A fresh adapter's tensors without a model to put them in: what the aggregator starts from."""

from __future__ import annotations

import torch
from peft.tuners.tuners_utils import check_target_module_exists
from torch import nn

from fl.adapters.config import GatedLoraConfig
from fl.adapters.layer import check_rank, gate_shapes, initial_a
from fl.adapters.state import State
from fl.core.errors import ConfigError


def fresh_adapter(model: nn.Module, config: GatedLoraConfig) -> State:
    """The tensors that injecting ``config`` into ``model`` would create, by the names of ``peft.get_peft_model_state_dict``.

    A is decided by ``config.init_seed`` and the module's name, so every node and the aggregator start from the same values.
    Raises :class:`ConfigError` if nothing is targeted or the rank is too large for a target.
    """
    state: State = {}
    for name, module in model.named_modules():
        chosen = config.target_modules is not None and check_target_module_exists(config, name)
        if not chosen or not isinstance(module, nn.Linear):
            continue
        check_rank(config.r, module.in_features, module.out_features, name)
        prefix = f"base_model.model.{name}.gated_lora_"
        state[prefix + "A"] = initial_a(config.r, module.in_features, config.init_seed, name)
        state[prefix + "B"] = torch.zeros(module.out_features, config.r)
        gates = gate_shapes(config.gate, module.in_features, module.out_features, config.r)
        state.update({prefix + what: torch.zeros(shape) for what, shape in gates.items()})
    if not state:
        raise ConfigError(f"target_modules {config.target_modules!r} matches no linear map of this base: check sites")
    return dict(sorted(state.items()))
