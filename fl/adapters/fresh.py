"""A fresh adapter's tensors without a model to put them in: what the aggregator starts from."""

from __future__ import annotations

from peft.tuners.tuners_utils import check_target_module_exists
from torch import nn

from fl.adapters.config import GatedLoraConfig
from fl.adapters.gates.table import GATES
from fl.adapters.layer import fresh_tensors
from fl.adapters.stacked import tensor_name
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
        tensors = fresh_tensors(GATES[config.gate], module, config.r, config.init_seed, name)
        state.update({tensor_name(name, what): tensor for what, tensor in tensors.items()})
    if not state:
        raise ConfigError(f"target_modules {config.target_modules!r} matches no linear map of this base: check sites")
    return dict(sorted(state.items()))
